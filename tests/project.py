"What the tests know of the project's layout: its notebooks, its modules, its files."
import json
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS, LIB = ROOT / 'nbs', ROOT / 'ecgnb'
PARTS = {'1_sources': 'source', '2_representations': 'representation', '3_encoders': 'encoder',
         '4_objectives': 'objective', '5_connectors': 'connector'}     # folders whose notebooks hold one part each
PROSE = ('tutorials', 'explanations')                                  # folders whose notebooks export nothing

class Notebook:
    "A notebook as the layout rule sees it."
    def __init__(self, path):
        self.path, self.name, self.folder = path, path.stem, path.parent.name if path.parent != NBS else ''
        self.id = path.relative_to(NBS).as_posix()

    @cached_property
    def json(self): return json.loads(self.path.read_text(encoding='utf-8'))

    @property
    def cells(self): return [(c['cell_type'], ''.join(c['source']), c) for c in self.json['cells']]

    def directives(self):
        "list of (directive, value) over all code cells."
        lines = [s[2:].strip() for kind, src, _ in self.cells if kind == 'code' for s in src.splitlines() if s.startswith('#|')]
        return [(s.replace(':', ' ').split() + [''])[:2] for s in lines if s]

    @property
    def modules(self): return [v for d, v in self.directives() if d == 'default_exp']

    @property
    def exports(self): return any(d in ('export', 'exporti', 'exports', 'exportd') for d, _ in self.directives())

    @property
    def module(self):
        "The exported file that belongs to this notebook."
        return LIB.joinpath(*self.modules[0].split('.')).with_suffix('.py')

def notebooks():
    return [Notebook(p) for p in sorted(NBS.rglob('*.ipynb'))
            if not any(d.startswith(('.', '_')) for d in p.relative_to(NBS).parts)]

def modules(): return [p for p in sorted(LIB.rglob('*.py')) if not p.name.startswith('_')]

def tracked():
    "Files that are in the repository or would be with the next `git add`; all but hidden and built ones where git is missing."
    try:
        out = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=ROOT, capture_output=True, check=True)
        files = [ROOT / f for f in out.stdout.decode().split('\0') if f]
    except (OSError, subprocess.CalledProcessError):
        skip = ('.', '_docs', '_proc', 'target', 'runs', 'cache', '__pycache__')
        files = [p for p in ROOT.rglob('*') if not any(d.startswith(skip) for d in p.relative_to(ROOT).parts)]
    return [p for p in files if p.is_file()]

TWO = """
import sys, torch
from torch import distributed as dist
dist.init_process_group('gloo')
rank = dist.get_rank()
torch.set_num_threads(1)
{body}
if rank == 0: torch.save(out, sys.argv[1])
dist.barrier(); dist.destroy_process_group()
"""

def two_ranks(body, folder, timeout=240):
    """What `body` leaves in `out` (tensors in dicts and lists) on rank 0 of two gloo processes; it is a program that knows
    `rank`, `dist`, `torch`, and may import test modules. `folder` keeps its files. AssertionError: the end of its errors."""
    program, saved = Path(folder) / 'ranks.py', Path(folder) / 'two.pt'
    program.write_text(TWO.format(body=body))
    env = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')])}
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2',
                           str(program), str(saved)], env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-2000:]
    import torch
    return torch.load(saved, weights_only=True)

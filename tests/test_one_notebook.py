"The promise of the layout: one new notebook adds an encoder, and nothing else is edited."
import json
import os
import re
import shutil
import subprocess
import sys

from project import ROOT
from test_current import code, export

TOY = '''# toy

> An encoder in six lines: patches of all leads, one linear layer.
===
#| default_exp encoders.toy
===
#| export
import torch
from torch import nn
from ecgnb.registry import encoder
===
#| export
@encoder
class Toy(nn.Module):
    "Patches of 50 samples of all leads, projected: (B,C,T) -> (B,N,D)."
    leads: str = 'I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6'   # leads of the input, in order
    length: int = 500   # samples of the input
    dim: int = 16       # width of a token
    def __post_init__(self):
        self.takes = {'signal': (len(self.leads.split(',')), self.length)}
        self.n_tokens = self.length // 50
        self.project = nn.Linear(50 * len(self.leads.split(',')), self.dim)

    def forward(self, x, valid=None):
        "float32 (B,C,T) normalised, bool (B,C,T) True where recorded -> (B,N,D)."
        if valid is not None: x = x.where(valid, 0.)
        return self.project(x.unflatten(2, (-1, 50)).transpose(1, 2).flatten(2))

    def features(self, x, valid=None):
        "The same -> (B,D)."
        return self(x, valid).mean(1)
===
Toy()(torch.zeros(2, 12, 500)).shape
'''

CHECK = '''
import ecgnb, torch
from ecgnb.registry import encoder
assert ecgnb.__path__[0].startswith({here!r}), ecgnb.__path__
assert 'toy' in list(encoder), list(encoder)
toy = encoder['toy']()
assert toy(torch.zeros(2, 12, 500)).shape == (2, toy.n_tokens, toy.dim)
print('found')
'''

def notebook(text):
    cells = []
    for i, src in enumerate(text.split('===\n')):
        kind = 'code' if i else 'markdown'
        cells.append({'cell_type': kind, 'id': f'toy{i}', 'metadata': {}, 'source': src.strip('\n'),
                      **({'outputs': [], 'execution_count': None} if i else {})})
    return json.dumps({'cells': cells, 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5})

def test_one_notebook_adds_an_encoder(tmp_path):
    before = code(export(tmp_path / 'before'))
    (tmp_path / 'after').mkdir()
    lib = export(tmp_path / 'after')
    (tmp_path / 'after/nbs/3_encoders/toy.ipynb').write_text(notebook(TOY))
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | {'PYTHONPATH': str(tmp_path / 'after')}
    call = lambda text: subprocess.run([sys.executable, '-c', text], cwd=tmp_path / 'after', env=env, capture_output=True, text=True, timeout=300)
    run = call('from nbdev.doclinks import nbdev_export; nbdev_export()')
    assert run.returncode == 0, run.stderr
    after = code(lib)
    assert after.keys() - before.keys() == {'encoders/toy.py'}
    assert [f for f in before if before[f] != after[f]] in ([], ['_modidx.py']), 'adding a notebook changed another module'
    run = call(CHECK.format(here=str(tmp_path)))
    assert run.returncode == 0 and 'found' in run.stdout, run.stdout + run.stderr

    (tmp_path / 'after/tests').mkdir()
    for f in ('conftest.py', 'project.py', 'test_registry.py', 'visions.py'): shutil.copy(ROOT / 'tests' / f, tmp_path / 'after/tests')
    run = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests/test_registry.py', '-k', 'toy'], cwd=tmp_path / 'after',
                         env=env, capture_output=True, text=True, timeout=300)
    passed = re.search(r'(\d+) passed', run.stdout)
    assert run.returncode == 0 and int(passed[1]) >= 5, f'the contracts of all encoders, on the new one:\n{run.stdout[-3000:]}{run.stderr}'

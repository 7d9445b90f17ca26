"What is generated from the notebooks is what is committed: modules, README; and the notebooks are clean."
import copy
import os
import shutil
import subprocess
import sys

import pytest

from project import LIB, NBS, ROOT, notebooks

def export(where):
    "A copy of the notebooks in `where`, exported there."
    shutil.copytree(NBS, where / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    shutil.copytree(LIB, where / 'ecgnb', ignore=lambda d, names: [n for n in names if n.endswith(('.so', '.pyd')) or n == '__pycache__'])
    for f in ('pyproject.toml', '_quarto.yml'): shutil.copy(ROOT / f, where)
    for p in (where / 'ecgnb').rglob('*.py'):
        if p.name != '__init__.py': p.unlink()
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    run = subprocess.run([sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()'], cwd=where, env=env,
                         capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return where / 'ecgnb'

def code(lib): return {p.relative_to(lib).as_posix(): p.read_text() for p in sorted(lib.rglob('*.py'))}

def test_export_is_current(tmp_path):
    fresh, here = code(export(tmp_path)), code(LIB)
    assert fresh.keys() == here.keys(), f'differs: {sorted(fresh.keys() ^ here.keys())}; run `make export`'
    stale = [f for f in fresh if fresh[f] != here[f] and f != '_modidx.py']
    assert not stale, f'ecgnb/ differs from the notebooks in {stale}; edit the notebook, then run `make export`'
    index = [{k: v for k, v in namespace(x['_modidx.py'])['d']['syms'].items()} for x in (fresh, here)]
    assert index[0] == index[1], 'ecgnb/_modidx.py is not current; run `make export`'

def namespace(text):
    out = {}
    exec(text, out)
    return out

@pytest.mark.parametrize('nb', notebooks(), ids=lambda nb: nb.id)
def test_clean(nb):
    "No execution counts, no widget state, no stray metadata; ids of the cells are unique; no cell failed."
    from fastcore.nbio import read_nb
    from nbdev.clean import clean_nb
    seen = read_nb(nb.path)
    want = copy.deepcopy(seen)
    clean_nb(want)
    plain = lambda x: {'meta': x['metadata'], 'cells': [{k: c.get(k) for k in ('cell_type', 'source', 'metadata', 'outputs', 'execution_count')}
                                                        for c in x['cells']]}
    assert plain(seen) == plain(want), f'{nb.id} is not clean; run `make export`'
    ids = [c.get('id') for _, _, c in nb.cells]
    assert len(set(ids)) == len(ids) and None not in ids, f'{nb.id}: a cell has no id of its own'
    failed = [o['ename'] for _, _, c in nb.cells for o in c.get('outputs', []) if o['output_type'] == 'error']
    assert not failed, f'{nb.id}: a stored output is an error: {failed}'

@pytest.mark.parametrize('nb', notebooks(), ids=lambda nb: nb.id)
def test_outputs_are_stored(nb):
    "The stored outputs are the documentation: a notebook with code shows something, and is not too heavy to open."
    code = [c for kind, src, c in nb.cells if kind == 'code']
    assert not code or any(c.get('outputs') for c in code), f'{nb.id} was saved without outputs'
    size = nb.path.stat().st_size
    assert size < 1.5e6, f'{nb.id}: {size / 1e6:.1f} MB; make the figures smaller'

def test_readme_is_current():
    sys.path.insert(0, str(ROOT / 'tools'))
    from readme import build
    text, images = build()
    assert (ROOT / 'README.md').read_text() == text, 'README.md is not what nbs/index.ipynb says; run `make readme`'
    for path, data in images.items(): assert path.read_bytes() == data, f'{path.name} is not current; run `make readme`'

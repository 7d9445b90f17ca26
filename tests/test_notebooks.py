"Every notebook runs from top to bottom in a process of its own; `#| eval: false` cells are left out."
import io
import multiprocessing
import os
import shutil
import tempfile
import traceback
from contextlib import redirect_stderr, redirect_stdout

import pytest

from project import NBS, notebooks

LIMIT = 300     # seconds a notebook may take
server = multiprocessing.get_context('forkserver')      # imports the heavy libraries once, then forks a clean process a notebook
server.set_forkserver_preload(['torch', 'pandas', 'matplotlib.pyplot', 'scipy.signal', 'nbdev.test'])

def run(path, folder, said):
    multiprocessing.set_start_method(None, force=True)       # the notebook sees this Python's own default
    os.environ.update(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', MPLBACKEND='module://matplotlib_inline.backend_inline')
    for key in ('ECGNB_CACHE', 'ECGNB_RUNS', 'ECGNB_SETTINGS'): os.environ.pop(key, None)
    tempfile.tempdir = str(folder)
    import torch
    from nbdev.test import test_nb
    torch.set_num_threads(1)
    import sys
    sys.__stderr__ = out = io.StringIO()        # where test_nb writes a failing cell's traceback
    ok = False
    try:
        with redirect_stdout(out), redirect_stderr(out): ok, _ = test_nb(path, basepath=NBS.parent, cell_timeout=LIMIT)
    except BaseException: out.write(traceback.format_exc())
    said.send((ok, out.getvalue()[-6000:]))

@pytest.mark.timeout(LIMIT + 60)
@pytest.mark.parametrize('nb', notebooks(), ids=lambda nb: nb.id)
def test_notebook(nb, tmp_path):
    before = {p for p in nb.path.parent.iterdir()}
    hear, said = server.Pipe(duplex=False)
    child = server.Process(target=run, args=(nb.path, tmp_path, said))
    child.start()
    said.close()
    try: ok, text = hear.recv() if hear.poll(LIMIT) else (False, f'still running after {LIMIT} s')
    except EOFError: ok, text = False, f'the process died with exit code {child.exitcode}'
    finally:
        if child.is_alive(): child.join(5)
        if child.is_alive(): child.kill()
    assert ok, f'{nb.id}\n{text}'
    left = {p for p in nb.path.parent.iterdir() if p.name not in ('.ipynb_checkpoints', '__pycache__')} - before
    left = {p for p in left if p.suffix not in ('.ipynb', '.tmp')}
    shutil.rmtree(tmp_path, ignore_errors=True)
    assert not left, f'{nb.id} leaves {sorted(p.name for p in left)} beside itself; write into a temporary folder'

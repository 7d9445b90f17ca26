"What README.md shows is what works: its ten lines run as they stand, made small."
import os
import re
import subprocess
import sys

from project import ROOT

def test_the_line(tmp_path):
    block = next(b for b in re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S) if 'fit(' in b)
    small = {"source['ptb_xl']()": "source['sample'](n=24)", "'cache/ptb_xl'": repr(str(tmp_path / 'store')), 'dim=192, depth=6': 'dim=48, depth=1',
             'batch_size=64': 'batch_size=4', 'steps=1000': 'steps=3', 's.i % 100': 's.i % 1'}
    for old, new in small.items():
        assert old in block, f'README.md: the line no longer says {old!r}; mend this test with it'
        block = block.replace(old, new)
    assert len([s for s in block.splitlines() if s.strip() and not s.startswith(('from', 'import'))]) <= 10
    (tmp_path / 'line.py').write_text(block)
    run = subprocess.run([sys.executable, 'line.py'], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                         env=os.environ | {'PYTHONPATH': str(ROOT)})
    assert run.returncode == 0, run.stderr[-3000:]
    assert len(run.stdout.split()) >= 6, run.stdout

def test_commands_exist():
    "Every `make X` and every linked file that the texts name is there."
    targets = set(re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.M))
    for name in ('README.md', 'CONTRIBUTING.md', 'LOG.md'):
        text = (ROOT / name).read_text()
        for t in re.findall(r'(?:^|`)make ([a-z]+)', text, re.M): assert t in targets, f'{name}: make {t} does not exist'
        for to in re.findall(r'\]\(([^)#\s]+)\)', re.sub(r'^ *```.*?^ *```$', '', text, flags=re.S | re.M)):
            if ':' not in to: assert (ROOT / to).exists(), f'{name}: dead link {to}'
        for f in re.findall(r'`((?:tests|benchmarks|tools)/[\w./]+)`', text): assert (ROOT / f).exists(), f'{name}: no {f}'

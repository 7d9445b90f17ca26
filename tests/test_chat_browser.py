"The chat window in JupyterLab, in a real browser: load, ask, stop, compare, save. Skipped where there is no browser."
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = [pytest.mark.skipif(not CHROMIUM, reason='no chromium on this machine: apt-get install chromium fonts-dejavu-core'),
              pytest.mark.skipif(not Path(sys.executable).with_name('jupyter-lab').exists(), reason='no JupyterLab beside this Python')]
FLAGS = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update '
         '--disable-sync').split()
CELL = '''import sys; sys.path[:0] = [{tests!r}, {root!r}]
import warnings; warnings.filterwarnings('ignore')
from chatting import Scribe
from ecgnb.chat import Chat
chat = Chat(Scribe(slow={slow}, says={says!r}), run='browser'); chat'''
EVIL = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "Yields (address, folder): JupyterLab on 127.0.0.1 with a token and settings of its own."
    folder = tmp_path_factory.mktemp('lab')
    config = folder/'config'
    (config/'labconfig').mkdir(parents=True)
    (config/'labconfig/page_config.json').write_text(json.dumps({'disabledExtensions': {'@jupyterlab/apputils-extension:announcements': True}}))
    (folder/'work').mkdir()
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    token = secrets.token_hex(16)
    env = os.environ | dict(JUPYTER_CONFIG_DIR=str(config), JUPYTER_DATA_DIR=str(folder/'data'), JUPYTER_RUNTIME_DIR=str(folder/'runtime'),
                            JUPYTERLAB_WORKSPACES_DIR=str(folder/'spaces'), IPYTHONDIR=str(folder/'ipython'))
    log = open(folder/'lab.log', 'wb')
    server = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--ip=127.0.0.1', f'--port={port}', '--allow-root',
                               f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={folder/"work"}', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'],
                              env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token={token}', timeout=2)
                break
            except OSError: time.sleep(.5)
        else: pytest.fail((folder/'lab.log').read_text()[-2000:])
        yield f'http://127.0.0.1:{port}', token, folder/'work'
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)
        log.close()

@pytest.fixture(scope='module')
def browser():
    sync = pytest.importorskip('playwright.sync_api', reason='no playwright: pip install playwright')
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()

def opened(lab, browser, root, name, slow=.02, says=None):
    "A page with a notebook whose one cell shows a chat, run."
    address, token, work = lab
    cell = dict(cell_type='code', id='a', source=CELL.format(tests=str(root/'tests'), root=str(root), slow=slow, says=says), metadata={}, outputs=[], execution_count=None)
    (work/f'{name}.ipynb').write_text(json.dumps(dict(cells=[cell], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')), nbformat=4, nbformat_minor=5)))
    page = browser.new_page(viewport=dict(width=1280, height=1250))
    page.set_default_timeout(60_000)
    page.goto(f'{address}/lab/tree/{name}.ipynb?reset&token={token}')
    page.locator('.jp-Notebook .jp-CodeCell').first.wait_for()
    page.locator('.jp-CodeCell .cm-content').first.click()
    try:
        for _ in range(20):                                             # a kernel that still starts loses the first calls
            page.keyboard.press('Control+Enter')
            page.wait_for_timeout(1500)
            if '[ ]' not in page.locator('.jp-CodeCell .jp-InputPrompt').first.inner_text(): break
        page.get_by_role('button', name='Sample ECG').wait_for()
    except Exception:
        shoot(page, 'failed')
        raise
    return page

def shoot(page, name):
    "A screenshot into $ECGNB_SHOTS, where that is set."
    if folder := os.environ.get('ECGNB_SHOTS'): page.screenshot(path=f'{folder}/{name}.png')

def test_load_ask_prefer_save(lab, browser, root):
    page = opened(lab, browser, root, 'chat')
    log = page.locator('.ecgnb-log')
    page.get_by_role('button', name='Sample ECG').click()
    log.get_by_role('img', name='ECG on paper').wait_for()
    box = page.get_by_label('Question')
    box.fill('What is the largest voltage?')
    box.press('Enter')                                                   # the keyboard sends
    log.get_by_text('1 ECGs, 1 turns').wait_for()
    log.locator('[aria-busy=false]').get_by_text('mV.').wait_for()
    box.fill('And once more?')
    page.get_by_role('button', name='Two answers').click()
    page.get_by_role('button', name='Prefer answer B').wait_for()
    shoot(page, 'two')
    page.get_by_role('button', name='Prefer answer B').click()
    log.get_by_text('Answer B was preferred').wait_for()
    page.get_by_role('button', name='Sample ECG').click()
    log.get_by_role('img').nth(1).wait_for()
    box.fill('What of this one?')
    box.press('Enter')
    log.get_by_text('2 ECGs, 5 turns').wait_for()
    page.get_by_role('button', name='Save', exact=True).click()
    page.get_by_text('Saved: talks.jsonl, talks.preferences.jsonl').wait_for()
    last = log.get_by_text('2 ECGs, 5 turns').bounding_box()
    frame = log.bounding_box()
    assert frame['y'] <= last['y'] <= frame['y'] + frame['height'] - last['height'], 'the newest turn is out of view'
    shoot(page, 'chat')
    talk, = [json.loads(s) for s in (lab[2]/'talks.jsonl').read_text().splitlines()]
    assert [t['text'].count('<ecg>') for t in talk['turns']] == [1, 0, 0, 0, 1, 0] and len(talk['records']) == 2
    row, = [json.loads(s) for s in (lab[2]/'talks.preferences.jsonl').read_text().splitlines()]
    assert row['chosen'] != row['rejected'] and row['chosen'][0]['content'] == talk['turns'][3]['text']
    page.close()

def test_stop_upload_escape(lab, browser, root, tmp_path):
    page = opened(lab, browser, root, 'evil', slow=.3, says=EVIL + ' and' + ' so on'*40)
    log = page.locator('.ecgnb-log')
    bad = tmp_path/'<img src=x onerror=alert(1)>.csv'
    bad.write_text('1,2\n3,4\n')
    with page.expect_file_chooser() as chosen: page.locator('.jp-OutputArea').get_by_role('button', name='Upload').click()
    chosen.value.set_files(str(bad))
    log.get_by_text('fs, unit, leads').wait_for()                        # the error names the file, as text
    page.get_by_label('Question').fill(EVIL)
    page.get_by_role('button', name='Send').click()
    log.get_by_text('from the text alone').wait_for()
    log.get_by_text('so on').wait_for()
    page.get_by_role('button', name='Stop').click()
    log.get_by_text('(stopped)').wait_for()
    shoot(page, 'evil')
    assert 'owned' not in page.title() and page.locator('.ecgnb-log script').count() == 0
    assert page.locator('.ecgnb-log img').count() == 0                   # neither the question's, nor the model's, nor the file's
    assert page.get_by_role('button', name='Send').is_enabled()
    page.close()

"A conversation about ECGs: what is loaded, asked, kept and written; in the window, in the terminal, with a tiny real language model."
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chatting import Scribe
from ecgnb import chat
from ecgnb.chat import Chat
from ecgnb.dialogue import Dialogue, brought, read_file, read_lines, record_of
from ecgnb.leads import STANDARD, ECGError
from ecgnb.prompt import TooLong
from ecgnb.sources.sample import Sample
from ecgnb.synth import synth
from ecgnb.terminal import Terminal

EVIL = '<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\x1b]0;owned\x07\u202e'
E = synth(seed=1, fs=250.)

def files(folder, e):
    "One ECG in each kind of file: (file, what must be typed)."
    import wfdb
    x, how = e.signal.astype(np.float64), dict(fs=e.fs, unit='mV', leads=','.join(e.leads))
    wfdb.wrsamp('rec', fs=e.fs, units=['mV']*12, sig_name=list(e.leads), p_signal=x.T, fmt=['16']*12, write_dir=str(folder))
    np.save(folder/'a.npy', x)
    np.savez(folder/'a.npz', x=x)
    np.savetxt(folder/'a.csv', x.T, delimiter=',', header=','.join(e.leads), comments='')
    return [(folder/'rec.hea', {}), (folder/'rec.dat', {}), (folder/'rec', {}), (folder/'a.npy', how), (folder/'a.npz', how), (folder/'a.csv', how)]

def test_every_kind_of_file(tmp_path):
    d = Dialogue(Scribe())
    for file, how in files(tmp_path, E):
        e = d.load(file, **how)
        assert e.leads == STANDARD and np.abs(e.signal - E.signal).max() < .01, file
    assert 'rec' in d.waiting[0][1]['record'] and d.waiting[0][1]['file'] == str(tmp_path/'rec.hea')

def test_real_files(data):
    "WFDB at 500 Hz, of the shared data, becomes what the model reads."
    file = next((data/'ptb_xl').rglob('*_hr.hea'), None) or next((data/'ptb_xl').rglob('*.hea'))
    e = Dialogue(Scribe()).load(file)
    assert (e.fs, e.signal.shape) == (250., (12, 2500)) and e.meta['done'] == [f'{read_file(file).fs:g} Hz became 250 Hz']

def test_it_is_what_training_saw(tmp_path):
    "The window is bit for bit the one that prepare makes, filter included."
    from ecgnb.prepare import prepare
    src = Sample(n=2, seconds=12.)
    store = prepare(src, tmp_path/'s', fs=100, seconds=10, leads='II,V1', high=30, progress=False)
    e, done = brought(src[1], dict(leads=['II', 'V1'], fs=100., length=1000, unit='mV'), dict(low=0., high=30., notch=0., short='drop'))
    theirs = store[1].signal if store[1].meta['record'] == 's00001' else None
    assert theirs is not None and np.abs(theirs - e.signal).max() < 1e-3
    assert done == ['0 to 10 s of 12 s', '500 Hz became 100 Hz', 'filtered: high 30 Hz']

@pytest.mark.parametrize('file, how, said', [
    ('nowhere.hea', {}, 'no such file'), ('nowhere.npy', {}, 'no such file'), ('a.xyz', {}, 'suffix'), ('broken.hea', {}, 'damaged'),
    ('broken.dcm', {}, 'DICOM'), ('broken.npy', dict(fs=250, unit='mV', leads='I'), 'npy header'), ('good.npy', {}, 'fs, unit, leads'),
    ('good.npy', dict(fs=250, unit='mV'), 'leads'), ('good.npy', dict(fs=250, unit='mV', leads='I,II'), 'an axis of 2'),
    ('good.npy', dict(fs=250, unit='V', leads=','.join(STANDARD)), "unit='uV'"), ('broken.hea', dict(fs=250), 'says its own'),
    ('http://127.0.0.1/a.npy', dict(fs=250, unit='mV', leads='I'), 'a URL'), ('.', {}, 'a folder'), (7, {}, 'int')])
def test_files_that_cannot_be_read(tmp_path, monkeypatch, file, how, said):
    monkeypatch.chdir(tmp_path)
    for n in ('broken.hea', 'broken.dcm', 'broken.npy', 'a.xyz'): (tmp_path/n).write_text('not this\n')
    np.save('good.npy', E.signal)
    d = Dialogue(Scribe())
    with pytest.raises(ECGError, match=said.replace('.', r'\.')): d.load(file, **how)
    assert d.blind and not d.waiting

@pytest.mark.parametrize('change, said', [
    (lambda e: e.crop(0, 4), 'it holds 4 s; the model reads 10 s'), (lambda e: e.pick(['I', 'II', 'V1']), 'V2'),
    (lambda e: e.but(e.signal[[0, 1, 2, 4, 3, *range(5, 12)]]), 'aVR and aVL look exchanged'), (lambda e: e.but(e.signal*1000), 'uV'),
    (lambda e: e.but(np.full_like(e.signal, np.nan)), 'nothing recorded'), (lambda e: e.but(np.full_like(e.signal, .3)), 'all leads are flat')])
def test_ecgs_that_do_not_fit(change, said):
    d = Dialogue(Scribe())
    with pytest.raises(ECGError, match=said) as err: d.load(change(E))
    assert str(err.value).count('synth-1') == 1 and not d.waiting      # which recording, said once
    with pytest.raises(ECGError, match='lies outside'): d.load(E, start=11)

def test_limb_leads_are_computed_and_gaps_are_known():
    x = E.signal.copy()
    x[7, 100:200] = np.nan
    d = Dialogue(Scribe())
    e = d.load(E.but(x).pick(['I', 'II', 'V1', 'V2', 'V3', 'V4', 'V5', 'V6']))
    assert 'computed from the other limb leads: III, aVR, aVL, aVF' in e.meta['done'] and any('not recorded' in s for s in e.meta['done'])
    d.ask('?')
    assert not d.model.seen[0]['valid'][0, 7, 100:200].any() and d.model.seen[0]['valid'].float().mean() > .99

def test_each_ecg_keeps_its_place():
    d = Dialogue(Scribe())
    assert d.blind and d.ask('Without?').startswith('0 ECGs')
    d.load(E); d.ask('First?')
    d.load(synth(seed=2)); d.load(synth(seed=3)); d.ask('Then?')
    d.ask('And?')
    d.load(E); d.ask('Is <image> normal?')
    places = [t['text'].count('<ecg>') for t in d.turns if t['role'] == 'user']
    assert places == [0, 1, 2, 0, 1] and d.turns[-2]['text'] == 'Is <ecg> normal?'
    assert [f['record'] for _, f in d.ecgs] == ['synth-1', 'synth-2', 'synth-3', 'synth-1']
    assert torch.equal(d.model.seen[-1]['signal'][0], d.model.seen[1]['signal'][0])
    d.clear()
    assert d.blind and not d.turns and d.ask('Gone?').startswith('0 ECGs, 1 turns')

def test_a_models_place_is_no_place():
    "What the model or the user writes cannot smuggle a place in."
    d = Dialogue(Scribe(says='see <ecg> and < Image >.'))
    d.load(E)
    d.ask('?')
    assert d.turns[-1]['text'] == 'see (ecg) and (ecg).'
    d.ask('Again?')                                       # Scribe asserts that places and ECGs are as many
    with pytest.raises(ECGError, match='1 <ecg>, and 0 ECGs'): d.ask('Look at <signal>')
    with pytest.raises(ECGError, match='nothing was asked'): d.ask('  ')

def test_an_error_keeps_all_as_it_was():
    d = Dialogue(Scribe(context=60))
    d.load(E); d.ask('?')
    d.load(E)
    before = [*d.turns], [*d.ecgs], [*d.waiting]
    with pytest.raises(ECGError, match='do not fit into the context'): d.ask('x'*100)
    with pytest.raises(ECGError, match='do not fit into the context'): list(d.two('x'*100))
    assert before == (d.turns, d.ecgs, d.waiting) and d.pair is None

def test_what_cannot_answer():
    with pytest.raises(ECGError, match='cannot answer'): Dialogue(SimpleNamespace(representation=None))
    with pytest.raises(ECGError, match='text alone'): Dialogue(Scribe(connector=None)).load(E)
    assert Dialogue(Scribe(connector=None)).ask('Hello?').startswith('0 ECGs')
    with pytest.raises(ECGError, match='most'): Dialogue(Scribe(), most=0)
    with pytest.raises(ECGError, match="no recording 's1'"): record_of(Sample(n=3), 's1')
    assert record_of(Sample(n=3), 's00002').meta['record'] == 's00002'

def test_stopped_answers():
    d = Dialogue(Scribe())
    pieces = d.stream('?')
    next(pieces); next(pieces); pieces.close()
    assert d.turns[-1] == dict(role='assistant', text='0 ECGs,', stopped=True)
    pieces = d.stream('?')
    pieces.close()                                        # nothing was said: nothing is kept
    assert len(d.turns) == 2
    assert d.ask('Go on?').startswith('0 ECGs, 3 turns')  # the mark does not reach the model

def test_preferences_are_rows_for_dpo(tmp_path):
    d = Dialogue(Scribe(), run='r', seed=3)
    d.model.prompt = SimpleNamespace(system='Be brief.')
    d.load(E); d.ask('One?')
    with pytest.raises(ECGError, match='no two answers'): d.prefer(0)
    said = ['', '']
    for k, p in d.two('Two?'): said[k] += p
    assert said[0] != said[1] and len(d.turns) == 2
    with pytest.raises(ECGError, match='wanted 0'): d.prefer('a')
    row = d.prefer(1)
    assert [m['role'] for m in row['prompt']] == ['system', 'user', 'assistant', 'user']
    assert [row[k] for k in ('chosen', 'rejected')] == [[dict(role='assistant', content=said[k].strip())] for k in (1, 0)]
    assert d.turns[-1]['text'] == said[1].strip() and d.ask('Three?').startswith('1 ECGs, 5 turns')
    talks, wishes = d.save(tmp_path/'t.jsonl')
    d.clear(); d.ask('New?'); d.save(tmp_path/'t.jsonl'); d.save(tmp_path/'t.jsonl')
    a, b = read_lines(talks)
    assert a['run'] == 'r' and len(a['turns']) == 7 and len(b['turns']) == 3 and a['id'] != b['id'] and len(a['model']) == 64
    assert set(a['records'][0]) == {'record', 'source', 'start', 'seconds', 'fs', 'leads', 'sha256'} and a['settings']['seed'] == 3
    assert read_lines(wishes) == [json.loads(json.dumps(row))] and 'signal' not in wishes.read_text()
    from datasets import Dataset
    rows = Dataset.from_json(str(wishes), cache_dir=str(tmp_path/'c'))
    assert {'prompt', 'chosen', 'rejected'} <= set(rows.column_names) and rows[0]['chosen'][0]['role'] == 'assistant'

def test_equal_answers_leave_no_choice():
    d = Dialogue(Scribe())
    d.model.stream = lambda batch, *a, **k: (t for t in ['same'])
    assert list(d.two('?')) == [(0, 'same'), (1, 'same')] and d.pair is None and d.turns[-1]['text'] == 'same'

def test_files_of_others_are_safe(tmp_path, monkeypatch):
    d, file = Dialogue(Scribe()), tmp_path/'t.jsonl'
    with pytest.raises(ECGError, match='nothing was said'): d.save(file)
    d.ask('h\u00e9\udce9')                                # a byte that the terminal could not decode
    for bad in ('hello\n', '{"id": 1}\n[2]\n', '\x00\x01', '{"no": 1}'):
        file.write_text(bad)
        with pytest.raises(ECGError, match='line'): d.save(file)
        assert file.read_text() == bad
    file.write_bytes(b'\xff\xfe')
    with pytest.raises(ECGError, match='not a text file'): d.save(file)
    file.unlink()
    with pytest.raises(ECGError, match='no folder'): d.save(tmp_path/'no/t.jsonl')
    with pytest.raises(ECGError, match='a folder'): d.save(tmp_path)
    d.save(file)
    kept = file.read_bytes()
    def full(f): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError): d.save(file)
    assert file.read_bytes() == kept and [p.name for p in tmp_path.iterdir()] == ['t.jsonl']
    assert read_lines(file)[0]['turns'][0]['text'] == 'h\u00e9\ufffd'

# the window

def finished(c, timeout=20):
    c.worker.join(timeout)
    assert not c.worker.is_alive()
    return [w.value for w in walk(c.turns) if hasattr(w, 'value')]

def walk(w): return [w, *(x for k in getattr(w, 'children', ()) for x in walk(k))]

def test_window_escapes_everything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    c = Chat(Scribe(says=EVIL), run=EVIL)
    c.load(E.but(meta={'record': EVIL, 'labels': []}))
    c.question.value = EVIL
    c.send.click()
    html = finished(c)
    c.path.value = f'"{EVIL}.npy"'
    c.open.click()
    c.file.value = EVIL + '/x'
    c.store.click()
    html = ''.join([*html, *(w.value for w in c.turns.children if hasattr(w, 'value')), c.status.value])
    assert html.count('&lt;script&gt;') >= 5 and html.count('<img') == html.count('<img alt="ECG on paper') >= 1
    assert '<script' not in html and '\x1b' not in html and '\x07' not in html and '\u202e' not in html

def test_window_errors_and_enter():
    c = Chat(Scribe(context=80))
    c.send.click()
    assert 'nothing was asked' in c.turns.children[-1].value and c.worker is None
    c.question.value = 'x'*100
    c.send.click()
    assert any('do not fit' in v for v in finished(c)) and c.question.value == 'x'*100 and not c.send.disabled and c.stop.disabled
    for value_first in (True, False):                     # the box's text may arrive before Enter's message or after it
        c.clear()
        if value_first: c.question.value = 'Hello?'
        c.question._handle_custom_msg({'event': 'submit'}, [])
        if not value_first: c.question.value = 'Hello?'
        until(lambda: len(c.dialogue.turns) == 2)
        assert c.question.value == ''
        c.worker.join(5)
    c.fs.value = 'fast'
    c.path.value = 'x.npy'
    c.open.click()
    assert 'number of Hz' in c.turns.children[-1].value
    mute = Chat(Scribe(connector=None))
    mute.sample.click()
    assert 'reads text alone' in mute.turns.children[-1].value and 'no ECG' in mute.status.value

def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, 'did not happen'
        time.sleep(.02)

def test_window_stops(tmp_path):
    c = Chat(Scribe(slow=.05, says='word '*200))
    c.question.value = 'Long?'
    c.send.click()
    until(lambda: 'word' in c.turns.children[-1].value)
    assert not c.stop.disabled and c.send.disabled and 'aria-busy="true"' in c.turns.children[-1].value
    c.stop.click()
    html = finished(c)
    assert len(c.dialogue.turns) == 2 and c.dialogue.turns[-1]['stopped'] and '(stopped)' in html[-1] and 'aria-busy="false"' in html[-1] and not c.send.disabled

def test_stopping_two_answers_keeps_neither():
    c = Chat(Scribe(slow=.05, says='word '*200))
    c.question.value = 'Long?'
    c.both.click()
    until(lambda: 'word' in c.turns.children[-1].children[0].value)
    c.stop.click()
    assert any('left out' in v for v in finished(c)) and not c.dialogue.turns and c.dialogue.pair is None

def test_window_compares_uploads_and_saves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    c = Chat(Scribe())
    (tmp_path/'up').mkdir()
    files(tmp_path/'up', E)
    def sent(*names): return tuple(dict(name=n, type='', size=1, content=memoryview((tmp_path/'up'/n).read_bytes()), last_modified=datetime.now()) for n in names)
    c.upload.value = sent('rec.dat', 'rec.hea')
    assert c.dialogue.waiting[0][1]['file'] == 'rec.hea' and c.upload.value == () and 'alt="ECG on paper, rec:' in c.turns.children[-1].value
    c.upload.value = sent('a.npy')
    assert 'a.npy: fs, unit, leads' in c.turns.children[-1].value and str(tmp_path) not in c.turns.children[-1].value
    c.question.value = 'Which?'
    c.both.click()
    finished(c)
    a, b = c.turns.children[-1].children
    assert (a.description, b.description) == ('Prefer answer A', 'Prefer answer B') and not c.dialogue.turns
    b.click()
    assert len(c.dialogue.preferences) == 1 and len(c.dialogue.turns) == 2
    c.question.value = 'Which now?'
    c.both.click(); finished(c)
    c.sample.click()                                      # nobody chose: said, and left out
    assert any('Neither' in getattr(w, 'value', '') for w in c.turns.children) and len(c.dialogue.turns) == 2
    c.store.click()
    assert 'Saved: talks.jsonl, talks.preferences.jsonl' in c.status.value and len(read_lines('talks.jsonl')) == 1

def test_controls_are_labelled():
    c = Chat(Scribe())
    for w in walk(c.view):
        if 'description' in w.trait_names() and type(w).__name__ != 'HTML': assert w.description, w

# the terminal

def session(model, *typed, source=None, **more):
    left = iter(typed)
    def ask(prompt):
        for line in left: return line
        raise EOFError
    t = Terminal(Dialogue(model), source or (lambda: Sample(n=2)), ask, **more)
    return t.loop(), t.d

def test_terminal(tmp_path, capsys):
    file = tmp_path/'my talks.jsonl'
    np.save(tmp_path/'a b.npy', E.signal)
    how = f"fs=250 unit=mV leads={','.join(E.leads)}"
    failed, d = session(Scribe(), 'Blind?', f'/ecg "{tmp_path/"a b.npy"}" {how}', 'Seen?', '/two Which?', 'b', '/two Again?', '', '/record s00001', '', '/sample AFIB',
                        'Three?', '/save', '/help', '/clear', 'After?', '/quit', 'never', save=str(file))
    out, err = capsys.readouterr()
    assert failed == 0 and not err and 'text alone' in out and 'A: ' in out and 'B: ' in out and 'neither was chosen' in out and '/quit' in out
    first, second = read_lines(file)
    assert [t['text'].count('<ecg>') for t in first['turns']] == [0, 0, 1, 0, 0, 0, 2, 0] and len(second['turns']) == 2
    assert len(read_lines(file.with_suffix('.preferences.jsonl'))) == 1

def test_terminal_errors_go_on(capsys):
    failed, d = session(Scribe(context=30), '/ecg', '/ecg nowhere.hea', '/ecg x.npy fs=fast', '/ecg "x', '/save', '/sve a', '/two', '/record nobody', '/sample XYZ',
                        'x'*99, 'Ok?')
    err = capsys.readouterr().err
    assert failed == 10 and len(d.turns) == 2, err
    for said in ('wanted a file', 'no such file', 'wanted float', 'quotation', "did you mean 'save'", 'nothing was asked', 'no recording', 'XYZ', 'context'): assert said in err, said

class Moody(Scribe):
    "Fails or warns where it is told to."
    def stream(self, batch, *more, **how):
        said = batch['talks'][0]['turns'][-1]['text']
        if 'break' in said: raise RuntimeError('CUDA\nout of memory')
        if 'long' in said: raise TooLong('too many tokens')
        if 'full' in said: warnings.warn('context=9 is full: the 2 oldest exchanges were not read')
        yield from super().stream(batch, *more, **how)

def test_any_error_is_a_line_and_a_warning_a_sentence(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        failed, d = session(Moody(), 'One?', 'break', 'long', 'full?', '/two full?', 'a', 'Caf\udce9?', save=str(tmp_path/'t.jsonl'))
    out, err = capsys.readouterr()
    assert failed == 2 and err.splitlines() == ['error: CUDA out of memory', 'error: too many tokens; /clear begins anew']
    assert out.count('(context=9 is full: the 2 oldest exchanges were not read)\n') == 2 and not d.notes
    row, = read_lines(tmp_path/'t.jsonl')
    assert [t['text'] for t in row['turns'] if t['role'] == 'user'] == ['One?', 'full?', 'full?', 'Caf\ufffd?']

def test_window_says_warnings_and_full_contexts():
    c = Chat(Moody())
    for text in ('full?', 'long'):
        c.question.value = text
        c.ask(); finished(c)
    page = ''.join(w.value for w in walk(c.turns) if hasattr(w, 'value'))
    assert page.count('context=9 is full') == 1 and 'too many tokens; New conversation begins anew' in page

def test_a_latin_1_pipe(root):
    p = subprocess.run([sys.executable, '-c', SLOW.replace('slow=.1, says=\'word \'*500', '')], input=b'Caf\xe9?\nAnd?\n', capture_output=True, cwd=root,
                       env=os.environ | dict(PYTHONIOENCODING='utf-8:strict'), timeout=60)
    assert b'turns [None, None, None, None]' in p.stdout and not p.stderr, p

def test_terminal_is_not_steered(capsys):
    session(Scribe(says=EVIL), '/two ?', 'a', 'go?', f'/ecg {EVIL}.npy')
    out, err = capsys.readouterr()
    assert not {'\x1b', '\x07', '\u202e'} & set(out + err) and '<script>' in out

# the command, with a language model

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "The folder of a checkpoint of a tiny answer model."
    from llms import tiny
    from ecgnb import connector, encoder, objective, representation
    from ecgnb.hub import save
    folder = tmp_path_factory.mktemp('run')
    torch.manual_seed(0)
    r = representation['signal'](fs=100., length=500)
    model = objective['answer'](r, encoder['vit1d'](length=500, patch=50, dim=32, depth=1, heads=2), connector['linear'](), llm=tiny(folder, 'llama'), context=256)
    return save(model, folder/'answer')

def test_a_language_model_answers(run, tmp_path):
    "All of it with an answer model: the ECG reaches it, greedy answers repeat, drawn ones come in twos, a full context is said."
    from ecgnb.hub import load
    d = Dialogue(load(run, verbose=False), most=8)
    blind = d.ask('What is the rhythm?')
    d.clear(); d.load(E)
    a = d.ask('What is the rhythm?')
    d.clear(); d.load(synth(seed=7, code='AFIB'))
    b = d.ask('What is the rhythm?')
    d.clear(); d.load(E)
    assert a == d.ask('What is the rhythm?') and len({blind, a, b}) > 1
    d.load(synth(seed=3))
    for _ in d.two('And this?'): pass
    if d.pair: d.prefer(0)
    assert len(d.turns) == 4 and len(d.ecgs) == 2
    with pytest.raises(ECGError, match='context'): d.ask('rate '*400)
    assert len(d.turns) == 4
    stopped = d.stream('Once more?')
    next(stopped); stopped.close()
    assert d.turns[-1]['stopped'] and threading.active_count() < 20
    d.save(tmp_path/'t.jsonl')

def test_command_reads_a_pipe(run, tmp_path, capsys, monkeypatch):
    from ecgnb import command
    np.save(tmp_path/'a.npy', E.signal)
    how = ['fs=250', 'unit=mV', f"leads={','.join(E.leads)}", 'most=4', f'save={tmp_path/"t.jsonl"}']
    monkeypatch.setattr(sys, 'stdin', io.StringIO('What is the rhythm?\n/sample\nAnd now?\n'))
    assert command.main(['chat', str(run), f'ecg={tmp_path/"a.npy"}', *how]) == 0
    assert capsys.readouterr().out.startswith('loaded a: 12 leads, 5 s at 100 Hz (0 to 5 s of 10 s; 250 Hz became 100 Hz)\n')
    row, = read_lines(tmp_path/'t.jsonl')
    assert row['run'] == 'answer' and len(row['turns']) == 4 and len(row['records']) == 2
    monkeypatch.setattr(sys, 'stdin', io.StringIO('/ecg nowhere.hea\nStill there?\n'))
    assert command.main(['chat', str(run), 'most=2']) == 2          # a script is told, after every line was tried
    out, err = capsys.readouterr()
    assert 'no such file' in err and '1 of the lines' in err and 'text alone' in out

def test_command_starts_with_what_is_there(run, capsys):
    from ecgnb import command
    assert command.main(['chat', str(run), 'ecg=nowhere.hea']) == 2 and 'no such file' in capsys.readouterr().err
    chat.main(['-h'])
    out = capsys.readouterr().out
    assert 'most=128' in out and '/two QUESTION' in out and 'ecg=' in out
    with pytest.raises(ValueError, match='no such folder'): chat.main(['nowhere'])
    with pytest.raises(ValueError, match="did you mean 'record'"): chat.main([str(run), 'recod=1'])
    with pytest.raises(ECGError, match='both given'): chat.main([str(run), 'ecg=a', 'record=b'])

def test_a_record_of_a_source(run, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'stdin', io.StringIO('What is the rhythm?\n/record s00000\n'))
    chat.main([str(run), 'source=sample', 'source.n=3', 'record=s00002', 'most=2'])
    out = capsys.readouterr().out
    assert 'loaded s00002' in out and 'loaded s00000' in out

SLOW = '''import sys; sys.path.insert(0, 'tests')
from chatting import Scribe
from ecgnb.dialogue import Dialogue
from ecgnb.terminal import Terminal, lines
t = Terminal(Dialogue(Scribe(slow=.1, says='word '*500)), None, lines)
print('ready', flush=True)
t.loop()
print('turns', [x.get('stopped') for x in t.d.turns])'''

def test_ctrl_c_stops_the_answer_not_the_program(root):
    p = subprocess.Popen([sys.executable, '-c', SLOW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=os.environ | dict(PYTHONUNBUFFERED='1'))
    try:
        p.stdout.readline()
        p.stdin.write('go\n'); p.stdin.flush()
        p.stdout.readline() and p.stdout.read(10)         # the note that no ECG is there, then the first words
        p.send_signal(signal.SIGINT)
        out, _ = p.communicate('/quit\n', timeout=60)
    finally: p.kill()
    assert '(stopped; /quit leaves)' in out and 'turns [None, True]' in out and p.returncode == 0

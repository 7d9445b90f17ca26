"""Store, loader and prepare: what no single notebook can show."""
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from ecgnb.batch import MISSING, to_mv
from ecgnb.ecg import ECG
from ecgnb.leads import STANDARD, ECGError, derive
from ecgnb.loader import loader
from ecgnb.prepare import prepare
from ecgnb.records import Source
from ecgnb.store import Store, quantise, signature

here = Path(__file__).parent


@dataclass(eq=False, repr=False, kw_only=True)
class Toy(Source):
    "Small signals; `faults` gives a recording its fault; not registered, so that registry-wide tests do not see it."
    n: int = 40
    root: str = ''
    wait: float = 0.
    seconds: float = 10.
    faults: tuple = ()

    config = property(lambda s: dict(source='toy', n=s.n, root=s.root, seconds=s.seconds, faults=[list(f) for f in s.faults]))

    @cached_property
    def frame(self):
        return pd.DataFrame(dict(record=[f'r{k:03d}' for k in range(self.n)], patient=[f'p{k // 2}' for k in range(self.n)], fold=[1 + k // 2 % 10 for k in range(self.n)],
                                 labels=[[('NORM', 'MI')[k % 2]] if k % 7 else None for k in range(self.n)], text=[f'Befund {k}: ä' for k in range(self.n)]))

    def read(self, i):
        time.sleep(self.wait)
        fs = 500 if i % 3 else 400
        t, r = np.arange(round(fs * self.seconds)) / fs, np.random.default_rng(i)
        x = r.uniform(.3, 1.5, (8, 1)) * np.exp(-((t % .8 - .4) / .02) ** 2) + .05 * r.standard_normal((8, len(t)))
        names = STANDARD[::-1] if i % 2 else STANDARD
        e = ECG(derive(x, ('I', 'II', 'V1', 'V2', 'V3', 'V4', 'V5', 'V6'), names), fs, names)
        x = e.signal.copy()
        for kind in [f for k, f in self.faults if k == i]:
            if kind == 'unreadable': raise OSError('bad sector')
            if kind == 'nan': x[5, 100:110] = np.nan
            if kind == 'void': x[:] = np.nan
            if kind == 'flat': x[5] = .25
            if kind == 'clipped': x[8] = np.clip(x[8], None, .4 * x[8].max())
            if kind == 'short': x = x[:, :len(t) // 2]
            if kind == 'units': x = x * 1000
            if kind == 'order': x = x[[*range(3), 4, 3, *range(5, 12)]] if i % 2 == 0 else x
            if kind == 'leads': return ECG(x[:5], fs, names[:5])
        return e.but(x)


def made(tmp, name='s', src=None, **how): return prepare(src or Toy(), tmp / name, progress=False, **how)
def reasons(store): return {q.record: q.reason for q in store.qc.itertuples() if q.reason and q.what == 'recording'}
def hashes(store): return {k: v for k, v in store.files.items()}


@pytest.fixture(scope='module')
def store(tmp_path_factory): return made(tmp_path_factory.mktemp('store'))


# ---- 16 bits

@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.floats(-9, 4), st.booleans())
def test_quantise_is_within_half_a_step(seed, size, holes):
    r = np.random.default_rng(seed)
    x = (r.standard_normal((2, 3, 50)) * 10**size).astype(np.float32)
    if holes: x[0, 1, 5:9] = np.nan; x[1, 2] = np.nan
    q, scale = quantise(x)
    back = np.where(q == MISSING, np.nan, q.astype(np.float64) * scale[..., None])
    assert np.array_equal(np.isnan(back), np.isnan(x)) and (np.abs(q[q != MISSING]) <= 32767).all() and (scale > 0).all()
    assert (np.nan_to_num(np.abs(back - x)) <= scale[..., None] * .5 * (1 + 1e-3)).all()


def test_windows_hold_the_resampled_recordings(store):
    for i in (0, 1, 5, 39):
        want = Toy().read(i).pick(STANDARD).resample(250).signal
        q, scale = (a.numpy() for a in store.rows(i))
        assert (np.abs(q[0].astype(np.float64) * scale[0][:, None] - want) <= scale[0][:, None] * .501).all()
        e = store[i]
        assert e.leads == STANDARD and e.fs == 250 and e.meta['record'] == f'r{i:03d}' and e.meta['report'] == f'Befund {i}: ä'
        assert np.abs(e.signal - want).max() <= scale.max()


def test_known_labels_and_unknown_ones(store):
    assert store.classes == ('MI', 'NORM') and store.labels.shape == (40, 2)
    assert np.isnan(store.labels[::7]).all() and store.labels[1].tolist() == [1, 0] and store.labels[2].tolist() == [0, 1]
    assert store[0].meta['labels'] is None and store[1].meta['labels'] == ['MI']


# ---- policies

FAULTS = ((2, 'nan'), (3, 'flat'), (4, 'clipped'), (5, 'short'), (6, 'units'), (8, 'order'), (10, 'unreadable'), (11, 'leads'), (12, 'void'))

def test_default_policies_and_their_account(tmp_path):
    s = made(tmp_path, src=Toy(faults=FAULTS))
    assert reasons(s) == {'r002': 'nan', 'r003': 'flat', 'r005': 'short', 'r006': 'units', 'r008': 'order', 'r010': 'unreadable', 'r011': 'leads', 'r012': 'nan'}
    qc = s.qc.set_index('record')
    rec = s.qc[s.qc.what == 'recording'].set_index('record')
    assert len(rec) == 40 and rec.kept.sum() == len(s) == 32
    assert 'clipped' in rec.text['r004'] and rec.kept['r004'] == 1 and 'bad sector' in rec.text['r010'] and 'exchanged' in rec.text['r008']
    assert s.qc[(s.qc.what == 'window')].record.tolist() == ['r002', 'r003', 'r012'] and len(qc)


def test_keep_and_pad(tmp_path):
    s = made(tmp_path, src=Toy(faults=FAULTS), nan='keep', flat='keep', short='pad', clipped='drop')
    assert reasons(s) == {'r004': 'clipped', 'r006': 'units', 'r008': 'order', 'r010': 'unreadable', 'r011': 'leads', 'r012': 'nan'}
    at = {r: i for i, r in enumerate(s.frame.record)}
    padded, holed = s.rows([at['r005'], at['r002']])[0].numpy()
    assert (padded[:, 1250:] == MISSING).all() and (padded[:, :1250] != MISSING).all() and 3 <= (holed == MISSING).sum() <= 7
    assert s.frame.complete.sum() == len(s) - 2 and np.isnan(s[at['r005']].signal[:, 1250:]).all()


def test_stride_cuts_overlapping_windows(tmp_path):
    s = made(tmp_path, src=Toy(n=4, seconds=12.5), seconds=5, stride=2.5)
    assert s.frame.start.tolist() == [0, 2.5, 5, 7.5] * 4 and s.frame.row.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    whole = Toy(n=4, seconds=12.5).read(2).pick(STANDARD).resample(250).signal
    assert np.abs(s[9].signal - whole[:, 625:1875]).max() < 1e-4


def test_filter_and_lead_subset(tmp_path):
    s = made(tmp_path, leads=['V5', 'II'], low=.5, high=40, notch=50)
    want = Toy().read(3).pick(['V5', 'II']).filter(.5, 40, 50).resample(250).signal
    assert s.leads == ('V5', 'II') and np.abs(s[3].signal - want).max() < 1e-4 and s.contract['filter'] == 'high-pass 0.5 Hz, low-pass 40 Hz, notch 50 Hz (zero-phase)'


# ---- same bytes

def test_two_processes_write_what_one_writes(store, tmp_path):
    assert hashes(made(tmp_path, workers=2)) == hashes(store)
    assert (tmp_path / 's/contract.json').read_bytes() == (store.path / 'contract.json').read_bytes()


def test_twice_does_nothing(store):
    before = {f.name: f.stat().st_mtime_ns for f in store.path.iterdir()}
    assert len(prepare(Toy(wait=100.), store.path)) == 40 and len(prepare(Toy(root='/elsewhere'), store.path)) == 40
    assert {f.name: f.stat().st_mtime_ns for f in store.path.iterdir()} == before and os.listdir(store.path.parent) == [store.path.name]


def start(path, workers, wait):
    "A process of its own that prepares; forked, so that it need not import everything again."
    p = multiprocessing.get_context('fork').Process(target=prepare, args=(Toy(wait=wait), path), kwargs=dict(workers=workers, progress=False))
    p.start()
    return p


@pytest.mark.parametrize('workers, sig', [(1, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGINT)])
def test_killed_and_continued_gives_the_same_bytes(store, tmp_path, workers, sig):
    p, partial = start(tmp_path / 's', workers, .05), tmp_path / 's.partial'
    deadline = time.time() + 60
    while not list(partial.glob('part-*.arrow')) and p.is_alive() and time.time() < deadline: time.sleep(.01)
    os.kill(p.pid, sig)
    p.join(30)
    assert p.exitcode not in (0, None) and not (tmp_path / 's').exists()
    assert 1 <= len(list(partial.glob('part-*.arrow'))) < 5 + (sig == signal.SIGINT)    # Ctrl-C: parts at work are finished
    assert hashes(made(tmp_path)) == hashes(store) and os.listdir(tmp_path) == ['s']


def test_two_at_once_make_one_store(store, tmp_path):
    both = [start(tmp_path / 's', 1, .02) for _ in range(2)]
    for p in both: p.join(90)
    assert [p.exitcode for p in both] == [0, 0]
    assert hashes(Store(tmp_path / 's')) == hashes(store) and os.listdir(tmp_path) == ['s']


def test_several_files_hold_the_same_rows(store, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules['ecgnb.prepare'], 'SHARD', 7)
    s = made(tmp_path)
    assert [len(b) for b in s.blocks] == [7] * 5 + [5]
    idx = np.random.default_rng(0).integers(-40, 40, 100)
    for a, b in zip(s.rows(idx), store.rows(idx)): assert torch.equal(a, b)
    assert s.frame.equals(store.frame) and s.qc.equals(store.qc)


# ---- errors before work, and nothing left behind

def test_another_contract_is_refused(store):
    with pytest.raises(ECGError, match=r"(?s)another contract:\n  fs: 250.0 there, 500.0 wanted\n  length: 2500 there, 5000 wanted.*rm -r"): prepare(Toy(wait=100.), store.path, fs=500)
    with pytest.raises(ECGError, match='source_hash'): prepare(Toy(n=41), store.path)


def test_unfinished_work_of_another_contract_is_refused(tmp_path):
    src = Toy()
    src.read = lambda i: Toy.read(src, i) if i < 20 else (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt): prepare(src, tmp_path / 's', progress=False)
    with pytest.raises(ECGError, match=r'(?s)s.partial was made with another contract:\n  low: 0.0 there, 1.0 wanted|filter.*go on with the same arguments'):
        prepare(Toy(), tmp_path / 's', low=1, progress=False)
    assert len(made(tmp_path)) == 40


@pytest.mark.parametrize('how, words', [
    (dict(fs=0), 'fs=0'), (dict(seconds=-1), 'seconds=-1'), (dict(fs=float('nan')), 'fs=nan'), (dict(seconds=.0101), 'whole numbers'), (dict(stride=0.001), 'whole numbers'),
    (dict(leads=['I', 'I']), 'twice'), (dict(leads=['Q']), 'unknown lead'), (dict(low=50, high=5), 'not under'), (dict(low=-1), 'low=-1'), (dict(nan='zero'), "'drop' or 'keep'"),
    (dict(short='keep'), "'drop' or 'pad'"), (dict(workers=0), 'workers=0')])
def test_senseless_requests(tmp_path, how, words):
    with pytest.raises(ECGError, match=words): prepare(Toy(wait=100.), tmp_path / 's', **how)
    assert not os.listdir(tmp_path)


def test_patient_in_two_folds_and_no_recordings(tmp_path):
    src = Toy()
    src.frame.loc[3, 'fold'] = 7
    with pytest.raises(ECGError, match=r'patient p1 is in the folds \[2, 7\]'): prepare(src, tmp_path / 's')
    with pytest.raises(ECGError, match='no recordings'): prepare(Toy().select([]), tmp_path / 's')
    assert not os.listdir(tmp_path)


def test_path_that_is_something_else(tmp_path):
    (tmp_path / 'file').write_text('x'); (tmp_path / 'folder').mkdir()
    for name in ('file', 'folder'):
        with pytest.raises(ECGError, match='not a store'): made(tmp_path, name)
    assert (tmp_path / 'file').read_text() == 'x' and not os.listdir(tmp_path / 'folder')


def test_most_recordings_fail(tmp_path):
    with pytest.raises(ECGError, match=r'(?s)21 of \d+ recordings cannot be used.*r000: .*bad sector'): made(tmp_path, src=Toy(faults=tuple((k, 'unreadable') for k in range(21))))
    with pytest.raises(ECGError, match=r'no window is left of 3 recordings: short 3'): made(tmp_path, 't', src=Toy(n=3, seconds=5))
    assert not (tmp_path / 't.partial').exists()


def test_reads_that_failed_are_tried_again(store, tmp_path):
    "A recording that could not be read while the disk was away does not stay lost once the work goes on."
    src = Toy()
    def read(i):
        if i == 3: raise OSError('away')
        if i == 30: raise KeyboardInterrupt
        return Toy.read(src, i)
    src.read = read
    with pytest.raises(KeyboardInterrupt): prepare(src, tmp_path / 's', progress=False)
    assert hashes(made(tmp_path)) == hashes(store)


@pytest.mark.parametrize('workers', [1, 2])
def test_disk_full(store, tmp_path, monkeypatch, workers):
    real, count = os.fsync, []
    def full(fd):
        count.append(fd)
        if len(count) > 2: raise OSError(28, 'No space left on device')
        return real(fd)
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'): made(tmp_path, workers=workers)
    monkeypatch.undo()
    assert not (tmp_path / 's').exists() and not list(tmp_path.rglob('*.tmp'))
    assert hashes(made(tmp_path)) == hashes(store)


def test_an_error_of_our_own_names_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules['ecgnb.prepare'], 'windows', lambda *a: 1 / 0)
    for workers in (1, 2):
        with pytest.raises(RuntimeError, match=r'record r000 \(row 0\): ZeroDivisionError|record r\d+ '): made(tmp_path, workers=workers)
    assert not os.listdir(tmp_path)


# ---- damage

FILES = ('contract.json', 'data-00000-of-00001.arrow', 'state.json', 'dataset_info.json', 'qc.parquet')

@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize('how', ['empty', 'cut', 'zeros', 'noise', 'gone', 'folder'])
def test_damaged_file_is_named(store, tmp_path, file, how):
    shutil.copytree(store.path, tmp_path / 's')
    f = tmp_path / 's' / file
    b = f.read_bytes()
    f.unlink()
    if how == 'folder': f.mkdir()
    elif how != 'gone': f.write_bytes({'empty': b'', 'cut': b[:len(b) // 2], 'zeros': bytes(len(b)), 'noise': np.random.default_rng(0).bytes(len(b))}[how])
    with pytest.raises(ECGError, match=file if how != 'gone' or file != 'contract.json' else 'no contract.json'): Store(tmp_path / 's')


def test_flipped_bytes_never_crash(store, tmp_path):
    "In a process of its own: 150 stores with random bytes changed in the Arrow file open and are read, or end in ECGError."
    code = '''
import sys, shutil, numpy as np
from ecgnb.store import Store
from ecgnb.leads import ECGError
src, tmp = sys.argv[1:]
shutil.copytree(src, tmp)
f = tmp + '/data-00000-of-00001.arrow'
b, r, n = open(f, 'rb').read(), np.random.default_rng(0), 0
places = np.concatenate([np.arange(6000), len(b) - 1 - np.arange(9000)])
for k in range(150):
    x = np.frombuffer(b, np.uint8).copy()
    at = r.choice(places, r.integers(1, 4)); x[at] = r.integers(0, 256, len(at))
    open(f, 'wb').write(x.tobytes())
    try: s = Store(tmp); s.rows(range(len(s))); s.frame; s.labels; s[0]
    except ECGError as err: assert 'data-00000' in str(err), err; n += 1
print(n)
'''
    p = subprocess.run([sys.executable, '-c', code, str(store.path), str(tmp_path / 's')], env={**os.environ, 'PYTHONPATH': str(here.parent)}, capture_output=True, text=True, timeout=120)
    assert p.returncode == 0, p.stderr[-2000:]
    assert int(p.stdout) > 10


def test_a_store_of_another_version_is_refused(store, tmp_path):
    shutil.copytree(store.path, tmp_path / 's')
    file = tmp_path / 's/contract.json'
    old = json.loads(file.read_text()) | {'version': 1}
    file.write_text(json.dumps(old | {'seal': signature(old)}))
    for f in (Store, lambda path: prepare(Toy(wait=100.), path)):
        with pytest.raises(ECGError, match=r'version 1; this ecgnb reads version 2: remove the store and prepare it again: rm -r .*/s$'): f(tmp_path / 's')


def test_edited_contract_and_flipped_sample(store, tmp_path):
    shutil.copytree(store.path, tmp_path / 's')
    c = tmp_path / 's/contract.json'
    text = c.read_text()
    c.write_text(text.replace('"fs": 250.0', '"fs": 500.0'))
    with pytest.raises(ECGError, match='changed after'): Store(tmp_path / 's')
    c.write_text(json.dumps({k: v for k, v in json.loads(text).items() if k != 'fs'}))
    with pytest.raises(ECGError, match='lacks fs'): Store(tmp_path / 's')
    c.write_text(text)
    with open(tmp_path / 's' / FILES[1], 'r+b') as f: f.seek(500_000); f.write(b'\x55')
    with pytest.raises(ECGError, match=FILES[1]): Store(tmp_path / 's').verify()
    assert store.verify()


def test_garbled_part_is_made_again(store, tmp_path):
    src = Toy()
    src.read = lambda i: Toy.read(src, i) if i < 20 else (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt): prepare(src, tmp_path / 's', progress=False)
    part = sorted((tmp_path / 's.partial').glob('part-*.arrow'))[0]
    part.write_bytes(part.read_bytes()[:5000])
    assert hashes(made(tmp_path)) == hashes(store)


# ---- others read it

def test_datasets_reads_it(store):
    import datasets
    d = datasets.load_from_disk(str(store.path))
    assert len(d) == 40 and np.array_equal(d[7]['signal'], store.rows(7)[0][0]) and d[7]['labels'] == list(store.frame.labels[7]) and d[7]['text'] == 'Befund 7: ä'
    assert np.allclose(d.with_format('numpy')[3:5]['scale'], store.rows([3, 4])[1]) and d.features['signal'].length == 12


def test_views(store):
    train = store.fold('train')
    assert set(train.frame.fold) == set(range(1, 9)) and len(store.fold('9,10')) == len(store.fold('val')) + len(store.fold('test'))
    deep = train[3:20].select([4, 0]).select(np.array([False, True]))
    assert torch.equal(deep.rows(0)[0], train.rows(3)[0]) and deep.frame.record[0] == train.frame.record[3] and np.array_equal(deep.labels, train.labels[3:4], equal_nan=True)
    assert torch.equal(pickle.loads(pickle.dumps(train)).rows([5])[0], train.rows(5)[0])
    with pytest.raises(IndexError): train.rows(len(train))
    with pytest.raises(ECGError, match='no windows in fold'): train.fold('test')


# ---- loader

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k].nan_to_num(), b[k].nan_to_num()) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)

def test_batches_are_functions_of_seed_and_step(store):
    a, b = loader(store, 8, seed=3), loader(store, 8, seed=3)
    [b[k] for k in (9, 0, 77)]
    for k in (0, 4, 5, 1234, 9): assert same(a[k], b[k])
    assert not torch.equal(a[0]['row'], loader(store, 8, seed=4)[0]['row']) and not torch.equal(a[0]['seed'], a[5]['seed'])
    row = int(a[0]['row'][0])
    assert {int(x['seed'][x['row'] == row]) for x in (loader(store, n, seed=3)[k] for n in (4, 8, 40) for k in range(40 // n)) if row in x['row']} == {int(a[0]['seed'][0])}


def test_order_is_the_stated_one(store):
    "Golden: an order must survive versions, or resumed runs see other batches."
    assert loader(store, 8)[0]['row'].tolist() == [5, 15, 36, 12, 25, 7, 6, 24] and loader(store, 8, seed=1)[7]['row'].tolist() == [34, 21, 22, 39, 9, 25, 10, 36]


@pytest.mark.parametrize('n', [1, 7, 8, 40])
def test_every_row_once_an_epoch(store, n):
    b = loader(store, n, drop_last=False)
    for epoch in range(3): assert sorted(torch.cat([b[epoch * len(b) + k]['row'] for k in range(len(b))]).tolist()) == list(range(40))
    assert len(list(b)) == len(b) == -(-40 // n) and loader(store, n, shuffle=False)[0]['row'].tolist() == list(range(n))


@pytest.mark.parametrize('world', [2, 4])
def test_ranks_cut_the_batch(store, world):
    whole, ranks = loader(store, 8), [loader(store, 8, rank=r, world=world) for r in range(world)]
    for step in (0, 3, 11):
        parts = [r[step] for r in ranks]
        for k in ('signal', 'scale', 'label', 'seed', 'row'): assert torch.equal(torch.cat([p[k] for p in parts]).nan_to_num(), whole[step][k].nan_to_num())


def test_valid_only_where_something_is_missing(tmp_path):
    s = made(tmp_path, src=Toy(faults=((2, 'nan'), (5, 'short'))), nan='keep', short='pad')
    for unit in ('int16', 'mV'):
        for b in loader(s, 4, unit=unit):
            assert ('valid' in b) == bool(set(b['row'].tolist()) & {2, 5})
            x = to_mv(b)['signal']
            assert x.dtype == torch.float32 and x.isfinite().all()
            if 'valid' in b: assert b['valid'].shape == x.shape and (x[~b['valid']] == 0).all() and not b['valid'].all()
    for a, b in zip(loader(s, 4), loader(s, 4, unit='mV')): assert torch.equal(to_mv(a)['signal'], b['signal'])


def test_stream_resumes_and_reads_ahead(store):
    b = loader(store, 8)
    for workers in (0, 2):
        got = list(b.stream(3, 9, workers=workers))
        assert len(got) == 6 and all(same(x, b[k]) for x, k in zip(got, range(3, 9)))
    ever = b.stream(7)
    assert same(next(ever), b[7]) and same(next(ever), b[8])


def test_spawned_workers_read_the_store(store):
    b = loader(store.fold('train'), 8)
    d = torch.utils.data.DataLoader(b, batch_size=None, sampler=range(2), num_workers=1, multiprocessing_context='spawn')
    assert all(same(x, b[k]) for k, x in enumerate(d))


def test_batches_are_the_callers_own(store):
    b = loader(store, 8)
    first = b[0]; keep = first['signal'].clone()
    first['row'][0] = 39; first['signal'].zero_(); b[1]
    assert torch.equal(b[0]['signal'], keep) and store.verify()


@pytest.mark.parametrize('how, words', [(dict(batch_size=41), 'make no batch'), (dict(batch_size=9, world=2), 'multiple of world=2'), (dict(rank=2, world=2), 'rank=2'), (dict(unit='V'), "'mV'"),
                                        (dict(batch_size=0), 'batch_size=0'), (dict(batch_size=14, world=7, drop_last=False), 'does not divide')])
def test_loaders_that_cannot_be(store, how, words):
    with pytest.raises(ECGError, match=words): loader(store, **how)
    with pytest.raises(IndexError): loader(store, 4)[-1]

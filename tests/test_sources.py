"Sources: patients never cross, labels and folds as published, samples as in the file, an error for all else."
import ast
import csv
import json
import os
import pickle
import struct
from collections import Counter
from functools import cached_property
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from ecgnb.ecg import ECG
from ecgnb.io_wfdb import read_header
from ecgnb.leads import ECGError, STANDARD
from ecgnb.records import Source, Subset, assign, check_split, fold_numbers
from ecgnb.registry import from_config, source, to_config
from ecgnb.settings import data_dir
from ecgnb.sources.ptb_xl import PtbXl
from ecgnb.sources.wfdb_folder import WfdbFolder

ROOT = Path(__file__).resolve().parents[1]
REAL = data_dir('ptb_xl', ROOT)
real = pytest.mark.skipif(REAL is None, reason='no PTB-XL in settings.ini, $ECGNB_DATA or shared/data')
PARTS = ('train', 'val', 'test')


class Toy(Source):
    "A source over any table."
    def __init__(self, table, **said):
        self.table, self.guard, self.no_patient = table, True, said.get('no_patient', 'error')
    @property
    def config(self): return {'source': 'toy'}
    @cached_property
    def frame(self): return self.table
    def read(self, i): return ECG(np.sin(np.arange(500) / 9 + i)[None], 250, ['II'])


def table(patients, folds=None, labels=None):
    n = len(patients)
    return pd.DataFrame({'record': [f'r{i}' for i in range(n)], 'patient': [f'p{p}' for p in patients],
                         'fold': folds or [0] * n,
                         'labels': pd.Series(labels or [['A']] * n, dtype=object)})


# --- splits ---------------------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=120), st.integers(0, 2**31),
       st.sampled_from([(.8, .1, .1), (.6, .2, .2), (0, .5, .5), (1, 0, 0)]))
def test_split_is_a_partition_by_patient(patients, seed, fractions):
    src = Toy(table(patients))
    parts = src.split(by='patient', fractions=fractions, seed=seed)
    assert sorted(r for p in parts.values() for r in p.frame.record) == sorted(src.frame.record)
    sets = [set(p.frame.patient) for p in parts.values()]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    largest = max(Counter(patients).values())
    for part, share in zip(parts.values(), fractions):
        assert share * len(src) - 2 * largest <= len(part) < share * len(src) + largest + 1e-9
    check_split(**parts)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=60), st.randoms())
def test_split_does_not_depend_on_the_order_of_the_table(patients, rnd):
    order = list(range(len(patients)))
    rnd.shuffle(order)
    a = dict(zip(patients, assign([str(p) for p in patients], seed=3)))
    b = dict(zip([patients[i] for i in order], assign([str(patients[i]) for i in order], seed=3)))
    assert a == b


def test_split_seeds_differ_and_repeat():
    src = Toy(table(list(range(200))))
    rows = [src.split(seed=s)['test'].rows.tolist() for s in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2] and len(rows[0]) == 20


def test_a_patient_in_two_parts_is_named_with_the_records():
    src = Toy(table([0, 0, 1]))
    with pytest.raises(ECGError, match=r"patient p0 is in two parts: part 0 \(record r0\) and part 1 \(record r1\)"):
        check_split(src[:1], src[1:])
    with pytest.raises(ECGError, match='train .* and test'): check_split(train=src[:1], test=src[1:])
    with pytest.raises(ECGError, match='patient p0 is in two parts'):
        src.split(by='record', fractions=(.5, .5, 0), seed=1)
    cut = Toy(table([0, 0, 1], folds=[1, 9, 10]))
    with pytest.raises(ECGError, match='patient p0 is in two parts: fold train'): cut.fold('train')


def test_fold_names_numbers_and_mistakes():
    src = Toy(table(range(10), folds=list(range(1, 11))))
    assert [len(src.fold(p)) for p in PARTS] == [8, 1, 1] and src.fold('2-4,10').frame.fold.tolist() == [2, 3, 4, 10]
    assert fold_numbers('1') == {1}
    for wrong in ('tarin', '', '0', '11', '3-1', '1;2'):
        with pytest.raises(ECGError): src.fold(wrong)
    with pytest.raises(ECGError, match='0 = unknown'): Toy(table([1, 2])).fold('train')
    with pytest.raises(ECGError, match="did you mean 'patient'"): src.split(by='patientt')
    with pytest.raises(ECGError, match='add up to 1'): src.split(fractions=(.5, .5, .5))


# --- the table ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('change, message', [
    (lambda t: t.drop(columns=['patient', 'fold']), 'no column patient, fold'),
    (lambda t: t.assign(record='x'), '1 records stand more than once: x'),
    (lambda t: t.assign(record=''), 'no record name in the rows 0, 1, 2'),
    (lambda t: t.assign(patient=[None, 'p', float('nan')]),
     r"no patient id for 2 of 3 records \(r0, r2\); type no_patient='own'"),
    (lambda t: t.assign(fold=[1, 2, 12]), 'fold .*12.* of record r2; wanted 1 to 10'),
    (lambda t: t.assign(fold=['1', 'x', '2']), "fold 'x' of record r1"),
    (lambda t: t.assign(labels='NORM'), "labels 'NORM' of record r0; wanted a list"),
])
def test_bad_tables(change, message):
    with pytest.raises(ECGError, match=message): Toy(change(table([0, 1, 2]))).frame


def test_good_tables_are_cleaned():
    t = table([0, 1, 2]).assign(patient=[1.0, 2.0, np.nan], labels=pd.Series([['B'], None, []], dtype=object))
    src = Toy(t, no_patient='own')
    assert src.frame.patient.tolist() == ['1', '2', 'only r2'] and src.frame.text.tolist() == [''] * 3
    assert src.classes == ('B',) and np.array_equal(src.label_matrix(), [[1], [np.nan], [0]], equal_nan=True)
    assert src.label_matrix().dtype == np.float32


def test_items_slices_subsets():
    src = Toy(table(range(10), labels=[['A'], ['B']] * 5))
    assert src[-1].meta['record'] == 'r9' == src[np.int64(9)].meta['record']
    assert [e.meta['record'] for e in src[::4]] == ['r0', 'r4', 'r8']
    assert src[3].meta['labels'] == ['B'] and src[3].meta['patient'] == 'p3'
    deep = src[2:9].select([5, 0]).select(np.array([True, False]))
    assert isinstance(deep, Subset) and deep.whole is src and deep.rows.tolist() == [7]
    assert deep.config == {'source': 'toy', 'rows': '7'}
    assert deep.classes == ('A', 'B') and deep.label_matrix().tolist() == [[0, 1]] and len(src[5:5]) == 0
    for i in (10, -11):
        with pytest.raises(IndexError): src[i]
        with pytest.raises(IndexError): src.select([i])
    with pytest.raises(ECGError, match='more than once: 1'): src.select([1, -9])
    with pytest.raises(ECGError, match='mask of 2 rows for 10'): src.select([True, False])
    with pytest.raises(ECGError, match='wanted a list of whole numbers'): src.select([.5])
    with pytest.raises(ECGError, match='a Subset is no part of its own'): to_config(deep)


def test_sources_travel_to_workers(tmp_path):
    src = PtbXl(root=str(write_ptb_xl(tmp_path)))
    for s in (src, src.fold('train'), src[::3]):
        back = pickle.loads(pickle.dumps(s))
        assert back.fingerprint() == s.fingerprint() and back[-1] == s[-1]


def test_fingerprint_is_the_table_and_the_configuration():
    a, b = Toy(table([0, 1, 2])), Toy(table([0, 1, 2]))
    assert a.fingerprint() == b.fingerprint() and len(a.fingerprint()) == 64
    others = [Toy(table([0, 1, 1])), Toy(table([0, 1, 2], labels=[['A'], ['A'], ['B']])),
              Toy(table([0, 1, 2], folds=[1, 2, 3])), a[:2], a[[1, 0, 2]]]
    assert len({a.fingerprint(), *(s.fingerprint() for s in others)}) == 6


def test_the_guard_can_be_turned_off():
    class Microvolt(Toy):
        def read(self, i): return ECG(800 * np.sin(np.arange(500) / 9)[None], 250, ['II'])
    src = Microvolt(table([0]))
    with pytest.raises(ECGError, match='record r0.*uV'): src[0]
    src.guard = False
    assert src[0].signal.max() > 700


# --- PTB-XL, in small -----------------------------------------------------------------------------------------------

HEAD = ['ecg_id', 'patient_id', 'age', 'sex', 'height', 'weight', 'nurse', 'site', 'device', 'recording_date',
        'report', 'scp_codes', 'heart_axis', 'infarction_stadium1',
        'infarction_stadium2', 'validated_by', 'second_opinion', 'initial_autogenerated_report', 'validated_by_human',
        'baseline_drift', 'static_noise', 'burst_noise',
        'electrodes_problems', 'extra_beats', 'pacemaker', 'strat_fold', 'filename_lr', 'filename_hr']
SCP = [['', 'description', 'diagnostic', 'form', 'rhythm', 'diagnostic_class', 'diagnostic_subclass'],
       ['NDT', 'n', '1.0', '1.0', '', 'STTC', 'STTC'],
       ['NORM', 'n', '1.0', '', '', 'NORM', 'NORM'], ['IMI', 'i', '1.0', '', '', 'MI', 'IMI'],
       ['AMI', 'a', '1.0', '', '', 'MI', 'AMI'],
       ['ABQRS', 'a', '', '1.0', '', '', ''], ['SR', 's', '', '', '1.0', '', '']]
CODES = [{'NORM': 100.0, 'SR': 0.0}, {'AMI': 35.0, 'IMI': 80.0, 'ABQRS': 0.0}, {'NDT': 50.0}, {'SR': 0.0}]
ORDER = ['I', 'II', 'III', 'AVR', 'AVL', 'AVF', 'V1', 'V2', 'V3', 'V4', 'V5', 'V6']


def write_csv(file, rows):
    with open(file, 'w', newline='') as f: csv.writer(f).writerows(rows)


def samples(k, fs, order=ORDER):
    "int16 (10 s, 12): a spike train that obeys the lead algebra, another for each record."
    t = np.arange(10 * fs) / fs
    beat = sum(np.exp(-(t - c) ** 2 / 2 / .03 ** 2) for c in np.arange(.5, 10, .7 + .05 * k))
    one, two = 600 * beat, 1000 * beat + 40 * np.sin(2 * np.pi * t)
    limb = dict(I=one, II=two, III=two - one, AVR=-(one + two) / 2, AVL=one - two / 2, AVF=two - one / 2)
    return np.stack([limb.get(n, (k + 1) * 50 * int(n[-1]) * beat if n[0] == 'V' else 0) for n in order],
                    1).round().astype('<i2')


def write_header(file, x, fs, names, comments=()):
    "The .hea of the int16 signal (T,C) in the .dat beside it, with checksums."
    sums = [int(c.astype(int).sum()) & 0xffff for c in x.T]
    lines = [f'{file.name}.dat 16 1000.0(0)/mV 16 0 {x[0, k]} {sums[k]} 0 {name}' for k, name in enumerate(names)]
    text = [f'{file.name} {len(names)} {fs} {len(x)}', *lines, *(f'# {c}' for c in comments)]
    file.with_suffix('.hea').write_text('\n'.join(text) + '\n')


def write_ptb_xl(root, n=8, order=ORDER, **cells):
    "The published layout with `n` recordings, written byte by byte."
    rows = [HEAD]
    for k in range(1, n + 1):
        path = {}
        for fs, tag in ((500, 'hr'), (100, 'lr')):
            path[tag] = f'records{fs}/00000/{k:05d}_{tag}'
            file = root / path[tag]
            file.parent.mkdir(parents=True, exist_ok=True)
            x = samples(k, fs, order)
            file.with_suffix('.dat').write_bytes(x.tobytes())
            write_header(file, x, fs, order)
        row = dict(ecg_id=k, patient_id=f'{200 + (k + 1) // 2}.0', age='300.0' if k == 1 else '' if k == 2 else 50 + k,
                   sex=k % 2, site='0.0', device='CS-12   E', recording_date='1990-01-01',
                   report=f'bericht {k}', scp_codes=str(CODES[k % 4]), validated_by_human='True',
                   static_noise=' , I-V1,  ' if k == 1 else '', strat_fold=(1, 2, 9, 10)[(k - 1) // 2 % 4],
                   filename_lr=path['lr'], filename_hr=path['hr'])
        rows.append([{**row, **cells}.get(c, '') for c in HEAD])
    write_csv(root / 'ptbxl_database.csv', rows)
    write_csv(root / 'scp_statements.csv', SCP)
    return root


@pytest.fixture
def small(tmp_path):
    (tmp_path / 'ptb_xl').mkdir()
    return write_ptb_xl(tmp_path / 'ptb_xl')


def edit(file, column, value, row=1):
    with open(file, newline='') as f: rows = list(csv.reader(f))
    rows[row][rows[0].index(column)] = value
    write_csv(file, rows)


def test_small_ptb_xl_table(small):
    src = PtbXl(root=str(small))
    f = src.frame
    assert f.record.tolist() == [f'{k:05d}' for k in range(1, 9)]
    assert f.patient.tolist() == ['201', '201', '202', '202', '203', '203', '204', '204']
    assert f.labels.tolist()[:4] == [['MI'], ['STTC'], [], ['NORM']] and f.text[0] == 'bericht 1'
    assert src.classes == ('NORM', 'MI', 'STTC', 'CD', 'HYP')
    assert f.fold.tolist() == [1, 1, 2, 2, 9, 9, 10, 10] and [len(src.fold(p)) for p in PARTS] == [4, 2, 2]
    e = src[0]
    assert e.leads == STANDARD and e.fs == 500 and e.signal.shape == (12, 5000) and e.signal.dtype == np.float32
    assert np.array_equal(e.signal, (samples(1, 500).T / 1000).astype(np.float32))
    assert e.meta['age'] == 90 and src[1].meta['age'] is None and e.meta['sex'] == 'F' and e.meta['device'] == 'CS-12 E'
    assert e.meta['notes'] == {'static_noise': 'I-V1'}
    assert e.meta['scp'] == {'AMI': 35, 'IMI': 80, 'ABQRS': 0} and e.meta['report'] == 'bericht 1'
    assert e.meta['source'] == 'ptb_xl'
    json.dumps(e.meta)


def test_label_spaces_and_likelihood(small):
    row = {s: PtbXl(root=str(small), labels=s) for s in ('super', 'sub', 'diag', 'form', 'rhythm', 'all')}
    assert {s: list(v.classes) for s, v in row.items()} == dict(super=['NORM', 'MI', 'STTC', 'CD', 'HYP'],
                                                                sub=['STTC', 'NORM', 'IMI', 'AMI'],
                                                                diag=['NDT', 'NORM', 'IMI', 'AMI'],
        form=['NDT', 'ABQRS'], rhythm=['SR'], all=['NDT', 'NORM', 'IMI', 'AMI', 'ABQRS', 'SR'])
    assert {s: v.frame.labels[0] for s, v in row.items()} == dict(super=['MI'], sub=['IMI', 'AMI'],
                                                                  diag=['IMI', 'AMI'], form=['ABQRS'], rhythm=[],
                                                                  all=['IMI', 'AMI', 'ABQRS'])
    assert PtbXl(root=str(small), labels='all', likelihood=50.).frame.labels[0] == ['IMI', 'ABQRS']
    assert PtbXl(root=str(small), labels='super', likelihood=90.).frame.labels[0] == []
    assert PtbXl(root=str(small), labels='form', likelihood=90.).frame.labels[1] == ['NDT']
    assert not row['super'].label_matrix()[2].any()


def test_both_rates_show_the_same_heart(small):
    a, b = PtbXl(root=str(small))[3], PtbXl(root=str(small), fs=100)[3]
    assert a.meta['record'] == b.meta['record'] and b.fs == 100 and b.signal.shape == (12, 1000)
    assert all(np.corrcoef(a.resample(100).signal[c], b.signal[c])[0, 1] > .99 for c in range(12))


def test_leads_come_by_name(tmp_path):
    swapped = ['I', 'II', 'III', 'AVL', 'AVR', 'AVF', *ORDER[:5:-1]]
    a, b = PtbXl(root=str(write_ptb_xl(tmp_path, 2, swapped)))[0], samples(1, 500)
    for name in STANDARD:
        assert np.array_equal(a[name], (b[:, ORDER.index(name.upper())] / 1000).astype(np.float32)), name


def test_a_header_with_exchanged_names_is_refused(small):
    file = small / 'records500/00000/00001_hr.hea'
    file.write_text(file.read_text().replace('AVR', 'tmp').replace('AVL', 'AVR').replace('tmp', 'AVL'))
    with pytest.raises(ECGError, match='record 00001.*(aVR and aVL|aVL and aVR) look exchanged'):
        PtbXl(root=str(small))[0]
    assert PtbXl(root=str(small), guard=False)[0].leads[3] == 'aVL'


def test_ptb_xl_missing_things(small, tmp_path, monkeypatch):
    asks = r'(?s)PhysioNet|physionet.org/content/ptb-xl/1.0.3.*CC BY 4.0.*ptb_xl ='
    with pytest.raises(FileNotFoundError, match=asks): PtbXl(root=str(tmp_path / 'nowhere')).frame
    with pytest.raises(FileNotFoundError, match='ptbxl_database.csv'): PtbXl(root=str(tmp_path)).frame
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir('/'); monkeypatch.setenv('ECGNB_DATA', str(tmp_path / 'empty'))
    with pytest.raises(FileNotFoundError, match=asks): len(PtbXl())
    monkeypatch.setenv('ECGNB_DATA', str(tmp_path))
    assert len(PtbXl()) == 8 and PtbXl().fingerprint() == PtbXl(root=str(small)).fingerprint()
    (small / 'records100/00000/00003_lr.dat').unlink(); (small / 'records100/00000/00004_lr.hea').unlink()
    lost = r"2 of 8 recordings at 100 Hz \(records100/00000/00003_lr, records100/00000/00004_lr;.*missing='drop'"
    with pytest.raises(FileNotFoundError, match=lost): PtbXl(fs=100).frame
    assert PtbXl(fs=100, missing='drop').frame.record.tolist() == ['00001', '00002', '00005', '00006', '00007', '00008']
    assert len(PtbXl()) == 8
    (small / 'scp_statements.csv').unlink()
    with pytest.raises(FileNotFoundError, match='scp_statements.csv'): PtbXl().frame


@pytest.mark.parametrize('column, value, message', [
    ('scp_codes', "__import__('os').system('true')", 'record 00001: scp_codes is'),
    ('scp_codes', '', 'record 00001: scp_codes'), ('scp_codes', "['NORM']", 'wanted statements'),
    ('scp_codes', "{'NROM': 1.0}", "statement 'NROM' is not in scp_statements.csv; did you mean 'NORM'"),
    ('patient_id', '', 'no patient id for 1 of 8 records'),
    ('strat_fold', '', "of record 00001; wanted 1 to 10"), ('ecg_id', '2', '1 records stand more than once: 00002'),
    ('strat_fold', '9', None)])
def test_ptb_xl_bad_cells(small, column, value, message):
    edit(small / 'ptbxl_database.csv', column, value)
    if message is None:
        with pytest.raises(ECGError, match='patient 201 is in two parts'): PtbXl(root=str(small), folds='val').frame
    else:
        with pytest.raises(ECGError, match=message): PtbXl(root=str(small)).frame


def test_ptb_xl_bad_tables(small):
    file = small / 'ptbxl_database.csv'
    text = file.read_text()
    for broken, message in ((text.replace('strat_fold', 'stratum', 1), 'no column strat_fold'), ('', 'not a CSV'),
                            (text.splitlines()[0] + '\n', 'no rows'), ('a,b\n1,2,3\n"', 'not a CSV|no column')):
        file.write_text(broken)
        with pytest.raises(ECGError, match=message): PtbXl(root=str(small)).frame
    file.write_bytes(b'\xff\xfe\x00' * 50)
    with pytest.raises(ECGError): PtbXl(root=str(small)).frame


@pytest.mark.parametrize('field', [dict(fs=250), dict(labels='superclass'), dict(likelihood=101.), dict(folds='trian'),
                                   dict(missing='ignore'), dict(fold='train'), dict(rate=500)])
def test_ptb_xl_bad_fields(field):
    with pytest.raises(ValueError): PtbXl(**field)


def test_mixed_rates_are_refused(small):
    file = small / 'records500/00000/00001_hr.hea'
    file.write_text(file.read_text().replace(' 12 500 5000', ' 12 250 5000'))
    with pytest.raises(ECGError, match='record 00001: 250 Hz .* wanted 500 Hz'): PtbXl(root=str(small))[0]


def test_config_round_trip(small):
    src = PtbXl(root=str(small), labels='form', folds='1-4')
    back = from_config(json.loads(json.dumps(to_config(src))))
    assert to_config(back) == to_config(src) and back.fingerprint() == src.fingerprint() and source['ptb_xl'] is PtbXl
    assert source['wfdb_folder'] is WfdbFolder
    assert set(src.frame.fold) <= {1, 2, 3, 4} and len(src) == 4


# --- PTB-XL, the recordings in shared/data --------------------------------------------------------------------------

def published():
    with open(REAL / 'ptbxl_database.csv', newline='') as f: rows = list(csv.DictReader(f))
    with open(REAL / 'scp_statements.csv', newline='') as f: said = {r['']: r for r in csv.DictReader(f)}
    return rows, said


@real
def test_real_folds_and_patients():
    rows, _ = published()
    src = PtbXl(root=str(REAL))
    counts = {p: sum(int(r['strat_fold']) in k for r in rows) for p, k in zip(PARTS, (range(1, 9), [9], [10]))}
    if len(rows) == 419:
        assert counts == dict(train=359, val=30, test=30) and len({r['patient_id'] for r in rows}) == 417
    assert {p: len(src.fold(p)) for p in PARTS} == counts == {p: len(PtbXl(root=str(REAL), folds=p)) for p in PARTS}
    assert src.frame.patient.tolist() == [r['patient_id'].split('.')[0] for r in rows]
    assert src.frame.text.tolist() == [r['report'] for r in rows]
    check_split(**{p: src.fold(p) for p in PARTS})
    check_split(**src.split())


@real
@pytest.mark.parametrize('space, column, kind',
                         [('super', 'diagnostic_class', 'diagnostic'), ('sub', 'diagnostic_subclass', 'diagnostic'),
                          ('form', '', 'form'), ('rhythm', '', 'rhythm'), ('all', '', '')])
def test_real_label_counts(space, column, kind):
    rows, said = published()
    want = Counter()
    for r in rows:
        codes = [c for c in ast.literal_eval(r['scp_codes']) if not kind or said[c][kind] == '1.0']
        want.update({said[c][column] if column else c for c in codes})
    src = PtbXl(root=str(REAL), labels=space)
    assert {c: int(n) for c, n in zip(src.classes, src.label_matrix().sum(0)) if n} == want
    assert len(src.classes) == dict(super=5, sub=23, form=19, rhythm=12, all=71)[space]
    if len(rows) == 419 and space == 'super': assert want == dict(NORM=255, MI=66, STTC=80, CD=68, HYP=38)


@real
def test_real_samples_are_the_bytes_of_the_file():
    src = PtbXl(root=str(REAL))
    i = src.frame.record.tolist().index('00001')
    raw = (REAL / 'records500/00000/00001_hr.dat').read_bytes()
    e = src[i]
    for n, lead in enumerate(STANDARD):
        want = [struct.unpack_from('<h', raw, 2 * (12 * t + n))[0] / 1000 for t in range(40)]
        assert np.array_equal(e[lead][:40], np.array(want, np.float32)), lead
    header = (REAL / 'records500/00000/00001_hr.hea').read_text().split('\n')[1:13]
    assert e.signal[:, 0].tolist() == pytest.approx([int(s.split()[5]) / 1000 for s in header])
    assert e['V2'][0] == np.float32(-.040)
    assert np.abs(e['aVR'] + (e['I'] + e['II']) / 2).max() < 2e-3
    assert np.abs(e['aVL'] - (e['I'] - e['II'] / 2)).max() < 2e-3


@real
def test_real_100_hz():
    if len(published()[0]) != 419: pytest.skip('this is not the excerpt of 419 recordings, 200 of them at 100 Hz')
    with pytest.raises(FileNotFoundError, match='219 of 419 recordings at 100 Hz'): len(PtbXl(root=str(REAL), fs=100))
    low, high = PtbXl(root=str(REAL), fs=100, missing='drop'), PtbXl(root=str(REAL))
    assert len(low) == 200
    at = {r: i for i, r in enumerate(high.frame.record)}
    for i in (0, 60, 199):
        a, b = low[i], high[at[low.frame.record[i]]].resample(100)
        assert a.signal.shape == b.signal.shape == (12, 1000) and a.leads == b.leads
        err = np.sqrt(((a.signal - b.signal)[:, 50:-50] ** 2).mean()) / a.signal.std()
        assert err < .15, err


# --- any tree of WFDB records ---------------------------------------------------------------------------------------

def write_record(file, fs=100, comments=(), n=1000, names=('I', 'II', 'V1')):
    file.parent.mkdir(parents=True, exist_ok=True)
    x = np.stack([samples(1, fs)[:n, ORDER.index(s.upper())] for s in names], 1)
    file.with_suffix('.dat').write_bytes(x.tobytes())
    write_header(file, x, fs, names, comments)


@pytest.fixture
def tree(tmp_path):
    write_record(tmp_path / 'b/r2', comments=['Dx: 111, 222', 'Age: 60', 'Who: 7'])
    write_record(tmp_path / 'a/r1', comments=['Dx: 111', 'Age: NaN', 'Who: 7'])
    write_record(tmp_path / 'a/r0', comments=['Dx: Unknown', 'Who: 8'])
    write_record(tmp_path / 'c/s1', n=400); write_record(tmp_path / 'c/s2', n=600)
    (tmp_path / 'c/r3.hea').write_text('r3/2 3 100 1000\ns1 400\ns2 600\n# Dx: 222\n# Who: 9\n')
    return tmp_path


def test_wfdb_tree(tree):
    src = WfdbFolder(root=str(tree), patient='record')
    assert src.frame.record.tolist() == ['a/r0', 'a/r1', 'b/r2', 'c/r3'] == src.frame.patient.tolist()
    assert src.frame.labels.tolist() == [None, ['111'], ['111', '222'], ['222']]
    assert src.frame.seconds.tolist() == [10.] * 4
    assert src[2].meta['age'] == 60 and 'age' not in src[1].meta and src[0].meta['labels'] is None
    assert src[3].signal.shape == (3, 1000) and src[0].leads == ('I', 'II', 'V1')
    assert WfdbFolder(root=str(tree), patient='header:who').frame.patient.tolist() == ['8', '7', '7', '9']
    assert WfdbFolder(root=str(tree), patient='^([^/]+)/').frame.patient.tolist() == ['a', 'a', 'b', 'c']
    assert WfdbFolder(root=str(tree), patient='record', pattern='a/*.hea').frame.record.tolist() == ['a/r0', 'a/r1']
    parts = WfdbFolder(root=str(tree), patient='header:Who').split(fractions=(.5, .25, .25))
    assert sum(map(len, parts.values())) == 4
    assert WfdbFolder(root=str(tree), patient='record', leads='V1,II')[0].leads == ('V1', 'II')
    json.dumps(src[2].meta)
    (tree / 'b/r2.dat').write_bytes(bytes(6000))
    with pytest.raises(ECGError, match='checksum'): src[2]
    assert not WfdbFolder(root=str(tree), patient='record', checksum=False, guard=False)[2].signal.any()


def test_links_and_missing_signals(tree):
    os.symlink(tree, tree / 'a/loop')
    assert len(WfdbFolder(root=str(tree), patient='record')) == 4
    (tree / 'a/r1.dat').unlink()
    with pytest.raises(FileNotFoundError, match='signal of 1 of 4 recordings .a/r1: r1.dat'):
        WfdbFolder(root=str(tree), patient='record').frame
    assert len(WfdbFolder(root=str(tree), patient='record', missing='drop')) == 3


@pytest.mark.parametrize('field, message', [
    (dict(), "say who the patient is: patient='record'"), (dict(patient='header:Name'), 'no patient id for 4 of 4'),
    (dict(patient='zzz(.)'), 'no patient id for 4'),
    (dict(patient='record', pattern='*.hea'), 'a header'), (dict(patient='a'), 'has 0 groups'),
    (dict(patient='(('), 'not a regular expression'), (dict(patient='record', missing='no'), 'wanted')])
def test_wfdb_bad_fields(tree, field, message):
    with pytest.raises((ECGError, FileNotFoundError), match=message): WfdbFolder(root=str(tree), **field).frame


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.builds(lambda a, b: b'r 12 500 5000\nr.dat 16 1000/mV 16 0 0 0 0 I\n'[:a] + b,
                                           st.integers(0, 60), st.binary(max_size=40)))
def test_headers_are_read_or_refused(data):
    import tempfile
    with tempfile.NamedTemporaryFile(suffix='.hea') as f:
        f.write(data); f.flush()
        try: h = read_header(Path(f.name))
        except ECGError as err: assert f.name in str(err)
        else: assert h.fs > 0 and h.samples >= 0


@pytest.mark.parametrize('name, count, how, labelled',
                         [('cinc2021', 12, {}, 12), ('code15/wfdb', 10, dict(labels='Chagas label'), 10),
                          ('ludb', 1, dict(labels='', guard=False), 0)])
def test_real_trees(name, count, how, labelled):
    base = data_dir(name.split('/')[0], ROOT)
    if base is None: pytest.skip(f'{name} is not here: settings.ini, $ECGNB_DATA or shared/data would say where')
    src = WfdbFolder(root=str(base.parent / name), patient='record', **how)
    assert len(src) == count and src.frame.labels.notna().sum() == labelled
    for i, e in enumerate(src):
        assert e.leads == STANDARD and e.fs == src.frame.fs[i] and e.seconds == pytest.approx(src.frame.seconds[i])

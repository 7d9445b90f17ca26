"""An ECG in numbers: errors against what the simulator drew and what cardiologists marked; statements; NaN and no guess where nothing can be read."""
import numpy as np
import pytest
from ecgnb import source
from ecgnb.ecg import ECG
from ecgnb.leads import STANDARD, ECGError
from ecgnb.measure import Measured, Statement, contiguous, marked, measure, statements
from ecgnb.synth import synth

CODES = ['NORM', 'LAFB', '1AVB', 'CRBBB', 'LVH', 'IMI', 'STACH', 'SBRAD', 'ISC_', 'PVC']

@pytest.fixture(scope='module')
def pairs():
    return [(e := synth(100 + n, code=c), measure(e)) for n, c in enumerate(CODES*2)]


def names(e, **given): return {s.name for s in statements(measure(e), **given)}


@pytest.mark.parametrize('what,mean,worst', [('pr', 9, 25), ('qrs', 14, 30), ('qt', 18, 60), ('rate', .5, 2)])
def test_errors_on_the_simulator(pairs, what, mean, worst):
    d = [abs(getattr(m, what) - e.meta['truth'][what]) for e, m in pairs if e.meta['truth'][what]]
    assert np.isfinite(d).mean() > .9 and np.nanmean(d) < mean and np.nanmax(d) < worst


def test_axis_and_st_on_the_simulator(pairs):
    turn = [abs((m.axis - e.meta['truth']['axis'] + 180) % 360 - 180) for e, m in pairs if 'CRBBB' not in e.meta['labels']]
    assert np.median(turn) < 4
    level = [abs(m.st[l] - v) for e, m in pairs for l, v in e.meta['truth']['st'].items()]
    assert np.median(level) < .02 and np.quantile(level, .9) < .08


def test_corrections_of_qt(pairs):
    for _, m in pairs:
        rr = np.median(np.diff(m.times))
        if np.isfinite(m.qt): assert m.qtc_b == pytest.approx(m.qt/rr**.5, rel=.01) and m.qtc_f == pytest.approx(m.qt/rr**(1/3), rel=.01)


def test_ludb(data):
    import wfdb
    r = wfdb.rdrecord(str(data/'ludb/3'))
    m = measure(ECG(r.p_signal.T, r.fs, r.sig_name))
    for mine, theirs, most in ((m.pr, 174, 10), (m.qrs, 110, 20), (m.qt, 408, 35)): assert abs(mine - theirs) < most   # medians over beats and leads
    assert m.quality == 'good'


@pytest.mark.parametrize('code,wanted', [('AFIB', 'AFIB'), ('1AVB', '1AVB'), ('CLBBB', 'CLBBB'), ('CRBBB', 'CRBBB'), ('LVH', 'VCLVH'), ('LVOLT', 'LVOLT'), ('STACH', 'STACH'), ('LNGQT', 'LNGQT'),
                                         ('PVC', 'extrasystole'), ('ISCAL', 'INVT')])
def test_statements_name_what_was_simulated(code, wanted):
    found = [wanted in names(synth(s, code=code)) for s in range(6)]
    assert sum(found) >= (4 if code == '1AVB' else 5), f'{code}: {found}'       # drawn PR of 222 and 234 ms are within the margin of 1AVB


def test_normal_is_called_normal_and_no_abnormality_is_made_up():
    said = [names(synth(s, code='NORM')) for s in range(12)]
    assert sum('NORM' in s for s in said) >= 8 and not any(s & {'AFIB', 'CLBBB', 'CRBBB', 'STE_', 'QWAVE', 'LNGQT', '1AVB'} for s in said)


def test_ptb_xl_labels(data):
    src = source['ptb_xl'](root=str(data/'ptb_xl'))
    want = [i for i, s in enumerate(src.frame['scp']) if {*s} & {'AFIB', 'CLBBB', 'STACH', '1AVB'}][:24]
    rows = [({*src[i].meta['scp']}, names(src[i])) for i in want]
    for code in ('AFIB', 'STACH', '1AVB'):
        have = [code in s for t, s in rows if code in t]
        assert len(have) >= 2 and np.mean(have) > .7, code


@pytest.mark.parametrize('x', [np.zeros((12, 5000)), np.full((12, 5000), np.nan), np.random.default_rng(0).normal(0, .2, (12, 5000)), np.ones((12, 5000)), np.zeros((12, 100))])
def test_unreadable_gives_nan_and_says_so(x):
    m = measure(ECG(x, 500, STANDARD))
    assert m.quality == 'unreadable' and np.isnan([m.rate, m.pr, m.qrs, m.qt, m.axis, m.sokolow, m.p_share]).all() and not m.st and not m.times
    assert [s.name for s in statements(m)] == ['unreadable'] and marked(ECG(x, 500, STANDARD), m) == []


def test_a_flat_or_lost_lead_is_nan_and_the_rest_stays():
    e = synth(5)
    x = np.array(e.signal); x[6] = 0; x[7] = np.nan; x[8, :3000] = np.nan
    m, whole = measure(e.but(x)), measure(e)
    assert np.isnan([m.st['V1'], m.t['V2'], m.r['V3'], m.sokolow, m.cornell, m.chest]).all()
    assert abs(m.pr - whole.pr) < 10 and abs(m.axis - whole.axis) < 3 and abs(m.st['V5'] - whole.st['V5']) < .03


def test_gaps_and_other_rates_and_leads():
    e = synth(6)
    x = np.array(e.signal); x[:, :1500] = np.nan; x[:, -200:] = np.nan
    m = measure(e.but(x))
    assert m.seconds == pytest.approx(6.6) and min(m.times) > 3 and abs(m.pr - measure(e).pr) < 15
    low = measure(e.resample(100))
    assert abs(low.qrs - measure(e).qrs) < 20 and abs(low.rate - measure(e).rate) < .5
    two = measure(e.pick(['I', 'II']))
    assert two.axis == pytest.approx(measure(e).axis, abs=8) and np.isnan(two.sokolow) and {'III', 'aVF'} <= two.st.keys()
    assert np.isnan(measure(e.pick(['V1'])).axis)


def test_a_qrs_complex_without_an_end_is_not_believed(data):
    src = source['ptb_xl'](root=str(data/'ptb_xl'))
    at = src.frame['record'].tolist()
    if '00180' not in at: pytest.skip('record 00180 of PTB-XL is not here')
    m = measure(src[at.index('00180')])
    assert np.isnan([m.qrs, m.pr, m.qt, m.axis]).all() and m.rate == pytest.approx(93, abs=1) and not {s.name for s in statements(m)} & {'CRBBB', 'VCLVH', '1AVB'}


def test_contiguous_leads():
    per = dict(II=.2, III=0., aVF=.2, V1=.3, V4=.3, V5=.3)
    assert contiguous(per, high=.1) == ['II', 'aVF', 'V4', 'V5'] and contiguous(per, high={'': .1, 'V5': .4}) == ['II', 'aVF'] and contiguous({'V1': np.nan}, low=0) == []


def test_sex_and_age_change_the_limits():
    m = Measured(quality='good', alike=1., rate=70., p_share=1., pr=160., qrs=90., qt=420., qtc_f=455., sokolow=4., rr_cv=.02, odd=0., j=dict(V2=.17, V3=.17))
    said = lambda **given: {s.name for s in statements(m, **given)}
    assert 'LNGQT' in said(sex='M') and 'LNGQT' not in said(sex='F') and 'STE_' in said(sex='F') and 'STE_' not in said(sex='M') and 'VCLVH' in said(age=60.) and 'VCLVH' not in said(age=20.)
    assert all(isinstance(s, Statement) and s.text.endswith('.') and s.evidence for s in statements(m))
    with pytest.raises(ECGError, match="wanted M, F"): statements(m, sex='f')


def test_row_is_json():
    import json
    row = json.loads(json.dumps(measure(synth(1)).row(), allow_nan=False))
    assert row['quality'] == 'good' and row['st'].keys() == {*STANDARD} and json.dumps(Measured().row(), allow_nan=False)


def steady(**words):
    "A `Measured` in which every rule is silent."
    flat = dict.fromkeys(STANDARD, 0.)
    return Measured(**dict(quality='good', alike=1., seconds=10., rate=70., rr_cv=.02, rr_jump=.01, odd=0., p_share=1., pr=160., qrs=90., qt=400., qtc_f=420., axis=40., limb=1., chest=2.,
                           q=flat, q_ms=flat, r=flat, s=flat, j=flat, st=flat, t=flat, times=tuple(.86*n for n in range(11))) | words)


old = dict(q={**dict.fromkeys(STANDARD, 0.), 'I': .3, 'aVL': .3}, q_ms={**dict.fromkeys(STANDARD, 0.), 'I': 40., 'aVL': 40.})
turned = dict(p={'I': -.1}, r={**dict.fromkeys(STANDARD, 0.), 'V6': 1.}, s={**dict.fromkeys(STANDARD, 0.), 'I': .8, 'V1': 1.})

@pytest.mark.parametrize('words,said,silent', [
    ({}, 'SR NORM', 'pause'),
    (dict(times=(0., .9, 1.8, 4.1, 5.)), 'pause', 'NORM'),
    (dict(times=(0., .9, 1.8, 3.7, 4.6)), 'NORM', 'pause'),
    (dict(rate=45., rr_cv=.2), 'bradycardia', 'SBRAD NORM'),
    (dict(rate=45.), 'SBRAD NORM', 'bradycardia'),
    (dict(rate=140.), 'STACH', 'tachycardia'),
    (dict(rate=152.), 'tachycardia', 'STACH SR NORM'),
    (dict(pr=219.), 'NORM', '1AVB'),
    (dict(pr=220.), '1AVB', 'NORM'),
    (dict(pr=260., p_share=.5), 'rhythm', '1AVB'),
    (dict(pr=100., p_share=.1, rr_jump=.2), 'AFIB', 'short_pr'),
    (dict(qrs=140., **old), 'IVCD', 'QWAVE'),
    (dict(qrs=140., last=.2, **old), 'CRBBB QWAVE', 'IVCD'),
    (old, 'QWAVE', 'NORM'),
    (dict(**turned, **old, axis=150.), 'swap', 'QWAVE RAD NORM'),
    (dict(turned, p={'I': .1}, axis=150.), 'RAD', 'swap'),
    (dict(qtc_f=340.), 'NORM', 'short_qt'),
    (dict(qtc_f=330.), 'short_qt', 'NORM'),
    (dict(qt=601., qtc_f=640.), 'SR', 'LNGQT'),
    (dict(qt=600., qtc_f=640.), 'LNGQT', 'NORM'),
    (dict(qrs=np.nan, axis=-60., qtc_f=500., st=dict.fromkeys(STANDARD, -.2), t=dict.fromkeys(STANDARD, -.3), j=dict.fromkeys(STANDARD, .5)), 'SR', 'LAD LAFB STE_ STD_ INVT LNGQT NORM'),
])
def test_limits_of_the_rules(words, said, silent):
    have = {s.name for s in statements(steady(**words))}
    assert {*said.split()} <= have and not {*silent.split()} & have


def test_the_evidence_names_its_margin():
    text = {s.name: s.text + s.evidence for m in (steady(pr=230., qtc_f=320.), steady(qrs=140.)) for s in statements(m)}
    assert '200 ms and the error' in text['1AVB'] and 'lower, diagnostic limit' in text['short_qt'] and 'paced rhythm is not told apart' in text['IVCD']


def test_exchanged_arm_electrodes_are_named():
    e = synth(2, code='NORM')
    arms = e.but(np.stack([{'I': -e['I'], 'II': e['III'], 'III': e['II'], 'aVR': e['aVL'], 'aVL': e['aVR']}.get(l, e[l]) for l in e.leads]))
    assert 'swap' in names(arms) and not {'QWAVE', 'RAD', 'extreme_axis'} & names(arms) and 'swap' not in names(e)


def test_what_p_is_denied_has_no_pr():
    got = [measure(synth(s, code='AFIB')) for s in range(8)]
    assert all(np.isnan([m.pr, m.marks.p]).all() and not np.isfinite([*m.p.values()]).any() for m in got if m.p_share < .6) and sum(m.p_share < .6 for m in got) >= 6


def test_the_longest_stretch_is_read():
    e = synth(6)
    x = np.array(e.signal); x[:, 2000:3500] = np.nan
    m = measure(e.but(x))
    assert m.quality == 'good' and m.seconds == pytest.approx(4) and max(m.times) < 4 and abs(m.rate - measure(e).rate) < 3 and 'pause' not in names(e.but(x))
    x[:, ::900] = np.nan; x[:, 900:1800] = np.nan; x[:, 4300:] = np.nan
    said, = statements(measure(e.but(x)))
    assert said.name == 'unreadable' and 'too little was recorded without a gap' in said.text
    y = np.array(e.signal); y[::2, 300:900] = np.nan; y[1::2, 900:1500] = np.nan        # no gap in common, none without one
    m = measure(e.but(y))
    assert m.quality == 'good' and m.seconds == pytest.approx(7) and min(m.times) > 3


def test_microvolts_are_an_error():
    e = synth(1)
    with pytest.raises(ECGError, match='is it in µV'): measure(e.but(1000*e.signal))


def test_errors():
    with pytest.raises(ECGError, match='ndarray is no ECG'): measure(np.zeros((12, 500)))
    with pytest.raises(ECGError, match='fs=20'): measure(ECG(np.random.default_rng(0).normal(size=(12, 400)), 20, STANDARD))

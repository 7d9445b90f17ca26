"The simulator: its algebra, its truth, its physiology; and the source made of it."
import csv
import numpy as np
import pytest
from scipy.signal import find_peaks
from ecgnb.dipole import CODES, SUPER, DOWER, electrodes, heart, leads12, sokolow
from ecgnb.leads import INDEPENDENT, STANDARD, ECGError, findings, guard, residual
from ecgnb.settings import data_dir
from ecgnb.sources.sample import MIX, Sample, superclasses
from ecgnb.synth import Noise, parse, synth

LOUD = Noise(wander=.3, mains=.05, muscle=.05, motion=1.)
at = STANDARD.index

def r_peaks(e, high=40):
    "Seconds of the largest deflections of all leads together, 2 to `high` Hz, near bursts of energy; no truth used"
    y = np.sqrt((e.filter(low=2, high=high).pick(INDEPENDENT).signal**2).sum(0))
    energy = np.convolve(np.gradient(y)**2, np.ones(int(.08 * e.fs)), 'same')
    near = find_peaks(energy, height=.2 * np.percentile(energy, 99), distance=int(.28 * e.fs))[0]
    w = int(.07 * e.fs)
    return np.array([max(0, i - w) + y[max(0, i - w):i + w].argmax() for i in near]) / e.fs

def beat(e, before=.3, after=.55):
    "(12, W): the median sinus beat from `before` s ahead of the true QRS onset; the PR segment is zero"
    t = e.meta['truth']
    starts = [b for b, odd in zip(t['onsets'], t['ectopic']) if not odd and before < b < e.seconds - after - .02]
    i = [round((b - before) * e.fs) for b in starts]
    x = np.median([e.signal[:, k:k + round((before + after) * e.fs)] for k in i], 0)
    k = round((before - .012) * e.fs)
    return x - x[:, k - 3:k + 3].mean(1, keepdims=True)

@pytest.mark.parametrize('code', CODES)
def test_lead_algebra_is_exact_with_noise(code):
    e = synth(5, code=code, noise=LOUD)
    I, II, III, R, L, F = e.signal[:6].astype(float)
    ulp = 4 * np.spacing(np.abs(e.signal).max())
    for off in (III - (II - I), R + (I + II) / 2, L - (I - II / 2), F - (II - I / 2), R + L + F):
        assert np.abs(off).max() <= ulp
    assert residual(e.signal, e.leads) < 1e-6 and e.leads == STANDARD and e.signal.dtype == np.float32

def test_leads_are_differences_of_electrodes():
    v = np.random.default_rng(0).normal(size=(9, 100))
    x = leads12(v)
    np.testing.assert_allclose(x[[0, 1, 2]], [v[1] - v[0], v[2] - v[0], v[2] - v[1]], atol=1e-6)
    np.testing.assert_allclose(x[6:], v[3:] - v[:3].mean(0), atol=1e-6)
    np.testing.assert_array_equal(leads12(v + 1.), leads12(v + 1.))
    np.testing.assert_allclose(leads12(v + 5.), x, atol=1e-5)
    np.testing.assert_allclose(leads12(electrodes(DOWER))[[0, 1, *range(6, 12)]], DOWER, atol=1e-6)

@pytest.mark.parametrize('code', ['NORM', 'AFIB+LVH', 'BIGU', 'AFLT', 'SARRH+IMI'])
def test_same_seed_same_bits(code):
    a, b, c = synth(7, code=code, noise=LOUD), synth(7, code=code, noise=LOUD), synth(8, code=code, noise=LOUD)
    assert np.array_equal(a.signal, b.signal) and a.meta == b.meta
    assert np.abs(a.signal - c.signal).max() > .2

def test_patient_is_the_heart_and_seed_the_visit():
    a, b = synth(1, patient=9), synth(2, patient=9)
    ta, tb = a.meta['truth'], b.meta['truth']
    assert (ta['qrs'], ta['pr'], ta['axis'], ta['qtc']) == (tb['qrs'], tb['pr'], tb['axis'], tb['qtc'])
    assert ta['rate'] != tb['rate']
    assert np.corrcoef(beat(a).ravel(), beat(b).ravel())[0, 1] > .9

@pytest.mark.parametrize('code', ['NORM', 'STACH', 'SBRAD', 'SARRH', '1AVB', 'LVH', 'IMI', 'AFIB', 'CLBBB',
                                  'LAFB', 'IRBBB'])
def test_r_peaks_stand_where_the_truth_says(code):
    worst = []
    for seed in range(12):
        e = synth(seed, code=code)
        true = np.array(e.meta['truth']['beats'])
        found = r_peaks(e, 15 if code == 'CLBBB' else 40)                    # a notched R has two tops
        found = found[(found > .25) & (found < 9.75)]
        near = np.abs(found[:, None] - true)
        assert len(found) >= (len(true) - 2) * .95, (code, seed)
        assert near.argmin(1).tolist() == sorted(set(near.argmin(1).tolist())), (code, seed)
        worst.append(np.median(near.min(1)))
        assert np.median(np.abs(np.diff(found) - np.diff(true[near.argmin(1)]))) < .006
        assert near.min(1).max() < (.040 if code == 'CLBBB' else .020), (code, seed, near.min(1).max())
    assert np.mean(worst) < .020

@pytest.mark.parametrize('code', [c for c in CODES if c not in ('AFIB', 'AFLT')])
def test_intervals_are_ordered_and_in_range(code):
    for seed in range(15):
        t = synth(seed, code=code).meta['truth']
        assert 120 <= t['pr'] <= 300 and 70 <= t['qrs'] <= 165 and t['qrs'] + 120 < t['qt'] < 620
        assert (t['pr'] > 200) == ('1AVB' in t['codes'])
        assert (t['qrs'] >= 120) == bool({'CLBBB', 'CRBBB'} & set(t['codes']))
        assert (t['qtc'] > 470) == ('LNGQT' in t['codes'])
        assert np.isclose(t['qt'], t['qtc'] * (60 / t['rate'])**(1 / 3), rtol=.05)
        if 'NORM' in t['codes']: assert -30 <= t['axis'] <= 90 and t['qtc'] < 450

@pytest.mark.parametrize('code', ['NORM', 'CLBBB', 'CRBBB', 'LVH'])
def test_qrs_width_measured(code):
    for seed in range(10):
        e = synth(seed, code=code, rate=65, noise=0, fs=1000)
        steep = np.flatnonzero(np.abs(np.diff(beat(e, .04, .2), axis=1)).max(0) * 1000 > 10)      # mV/s, any lead
        assert abs(steep[-1] - steep[0] - e.meta['truth']['qrs']) < 12
        if code == 'CLBBB': assert steep[-1] - steep[0] > 120

def test_qt_ends_where_the_tangent_meets_the_baseline():
    for seed in range(10):
        e = synth(seed, noise=0, rate=60, fs=1000)
        y = beat(e, .3, .6)[at('II')]
        t = np.arange(len(y)) - 300
        i = np.flatnonzero((t > 200) & (t < 560))
        k = i[np.gradient(y)[i].argmin()]
        assert abs(t[k] - y[k] / np.gradient(y)[k] - e.meta['truth']['qt']) < 20

def test_pr_starts_with_p():
    for seed in range(10):
        e = synth(seed, noise=0, rate=65, fs=1000)
        y = np.abs(beat(e, .35, .1)).max(0)
        p = np.flatnonzero(y[:340] > .012)[0] - 350
        assert abs(-p - e.meta['truth']['pr']) < 20

def test_fibrillation_has_no_p_and_no_rhythm():
    cv = lambda e: np.std(np.diff(e.meta['truth']['beats'])) / np.mean(np.diff(e.meta['truth']['beats']))
    for seed in range(12):
        sr, af = (synth(seed, code=c, rate=66, noise=0, seconds=120) for c in ('SR', 'AFIB'))
        assert cv(af) > .14 > .07 > cv(sr) and af.meta['truth']['pr'] is None
        # averaged over two minutes, what is locked to the QRS remains: a P wave, or nothing
        def before(e):
            t = np.array(e.meta['truth']['onsets'])
            free = t[1:][(np.diff(t) > .7) & (t[1:] > .5)]                          # behind the last T wave
            x = np.mean([e.signal[at('II'), round((b - .21) * 500):round((b - .01) * 500)] for b in free], 0)
            return np.ptp(x - np.linspace(x[0], x[-1], len(x)))
        assert before(sr) > 2 * before(af)

def test_flutter_waves_are_locked():
    e = synth(3, code='AFLT', noise=0)
    f = np.fft.rfftfreq(len(e), 1 / e.fs)
    p = np.abs(np.fft.rfft(e['aVF'] - e['aVF'].mean()))**2
    assert e.meta['truth']['rate'] > 60 and p[(f > 4.3) & (f < 5.8)].max() > 20 * np.median(p[(f > 3) & (f < 9)])

def test_premature_beats():
    for seed in range(15):
        e = synth(seed, code='PVC', rate=70, noise=0)
        t, odd = np.array(e.meta['truth']['beats']), np.flatnonzero(e.meta['truth']['ectopic'])
        rr = np.diff(t)
        assert len(odd)
        for i in odd:
            if 0 < i < len(rr):
                a, b = rr[i - 1] / np.median(rr), rr[i] / np.median(rr)
                assert a < .85 and b > 1.15 and 1.8 < a + b < 2.2
    t = synth(1, code='BIGU').meta['truth']['ectopic']
    assert all(a != b for a, b in zip(t, t[1:]))

def test_bundle_branch_blocks_look_like_themselves():
    for seed in range(20):
        v = beat(synth(seed, code='CLBBB', rate=65, noise=0))
        qrs = v[:, 150:150 + 58]
        assert qrs[at('V1')].min() < -.6, seed
        assert qrs[at('V1')].max() < .3, seed
        assert qrs[at('V6')].max() > .3 > -.15 < qrs[at('V6')].min(), seed
        assert qrs[at('I')].min() > -.15  # no q; T against the QRS
        assert v[at('V6'), 280:330].mean() < 0 < v[at('V1'), 280:330].mean()
        e = synth(seed, code='CRBBB', rate=65, noise=0)
        y = beat(e)[:, 150:150 + round(e.meta['truth']['qrs'] / 2)]
        h = y.shape[1] // 2
        assert y[at('V1'), h:].max() > max(.25, y[at('V1'), :h].max()), seed  # rsR'
        assert y[at('V1')].min() < 0, seed
        assert y[at('I'), h:].min() < -.1, seed  # wide S
        assert y[at('V6'), h:].min() < -.15, seed

def test_normal_hearts_are_normal():
    for seed in range(60):
        e = synth(seed, noise=0)
        y = beat(e)
        qrs, t = y[:, 150:205], y[:, 250:340]
        assert qrs[at('aVR')].sum() < 0, seed
        assert qrs[at('V1')].sum() < 0 < qrs[at('V5')].sum(), seed
        assert qrs[at('II')].sum() > 0, seed
        assert -qrs[at('V1')].min() + max(qrs[at('V5')].max(), qrs[at('V6')].max()) < 3.5
        r = qrs[6:].max(1) / (qrs[6:].max(1) - qrs[6:].min(1))
        assert r[0] < .5 < r[4], seed  # R progression
        assert r[:2].mean() < r[2:4].mean() < r[4:].mean(), seed
        assert (t[[at(k) for k in ('I', 'II', 'V3', 'V4', 'V5', 'V6')]].max(1) > .02).all(), seed
        assert t[at('aVR')].min() < 0, seed
        assert max(e.meta['truth']['st'].values()) < .25 and min(e.meta['truth']['st'].values()) > -.1

def test_sokolow():
    for seed in range(25):
        def s(code):
            q = beat(synth(seed, code=code, noise=0))[:, 150:215]
            return -q[at('V1')].min() + max(q[at('V5')].max(), q[at('V6')].max())
        assert s('LVH') > 3.5 and s('VCLVH') > 3.5 > s('NORM') and s('LVOLT') < 3.5
        h = heart(seed, ['LVOLT'])
        q = beat(synth(seed, code='LVOLT', noise=0))[:6, 150:215]
        assert np.ptp(q, axis=1).max() < .5 and sokolow(h.qrs, h.vectors) > 0

UP = dict(AMI='V2 V3 V4', ASMI='V1 V2 V3', IMI='II III aVF', LMI='I aVL V5 V6', STD_='aVR')
DOWN = dict(AMI='III', ASMI='', IMI='I aVL', LMI='III', STD_='II V4 V5 V6')

@pytest.mark.parametrize('code', UP)
def test_st_level_by_territory(code):
    for seed in range(20):
        e, well = synth(seed, code=code, rate=65, noise=0), synth(seed, rate=65, noise=0)
        level = beat(e)[:, round((.3 + .06 + e.meta['truth']['qrs'] / 1000) * 500)]
        claimed = np.array([e.meta['truth']['st'][k] for k in STANDARD])
        assert np.abs(level - claimed).max() < .05, seed
        moved = claimed - [well.meta['truth']['st'][k] for k in STANDARD]
        for k in UP[code].split(): assert moved[at(k)] > .03, (seed, k)
        for k in DOWN[code].split(): assert moved[at(k)] < -.02, (seed, k)
        if code != 'STD_': assert max(claimed[at(k)] for k in UP[code].split()) > .1

def test_t_waves_turn():
    for seed in range(20):
        y = beat(synth(seed, code='INVT', noise=0, rate=65))[:, 250:340]
        assert all(abs(y[at(k)].min()) > y[at(k)].max() for k in ('I', 'V4', 'V5', 'V6')), seed
        y = beat(synth(seed, code='ISCIN', noise=0, rate=65))[:, 250:340]
        assert all(abs(y[at(k)].min()) > y[at(k)].max() for k in ('III', 'aVF')), seed

def test_axis():
    for seed, degrees in enumerate((-150, -60, -20, 0, 30, 45, 60, 90, 130, 170)):
        e = synth(seed, axis=degrees, noise=0)
        area = beat(e)[:, 150:210].sum(1)
        assert abs(e.meta['truth']['axis'] - degrees) < 1
        assert abs((np.degrees(np.arctan2(area[at('aVF')] * 2 / 3**.5, area[0])) - degrees + 180) % 360 - 180) < 10
    for seed in range(20):
        assert synth(seed, code='LAFB').meta['truth']['axis'] < -45
        assert 90 < synth(seed, code='LPFB').meta['truth']['axis'] < 125

@pytest.mark.parametrize('code', ['NORM', 'AFIB', 'BIGU', 'AMI'])
def test_sampling_rate_changes_nothing(code):
    fine = synth(4, fs=1000, code=code, noise=Noise())
    for fs in (100, 250, 400, 500):
        e = synth(4, fs=fs, code=code, noise=Noise())
        assert e.meta['truth'] == fine.meta['truth'] and e.signal.shape == (12, 10 * fs)
        apart = np.abs(e.signal - fine.resample(fs).signal)[:, fs // 2:-fs // 2]
        assert apart.max() < (.25 if fs == 100 else .08) and apart.mean() < .02, (fs, apart.max())

def test_mains_is_left_out_where_the_recorder_cannot_see_it():
    only = Noise(wander=0, mains=.2, muscle=0)
    for hz, fs, seen in ((50, 500, True), (60, 500, True), (60, 100, False), (50, 100, False)):
        x = synth(1, fs=fs, noise=Noise(wander=0, mains=.2, muscle=0, hz=hz)).signal - synth(1, fs=fs, noise=0).signal
        assert (np.abs(x).max() > .1) == seen
    p = np.abs(np.fft.rfft(synth(1, noise=only)['V3'] - synth(1, noise=0)['V3']))
    assert p.argmax() == 500

def test_noise_amplitudes_are_in_mv():
    from ecgnb.synth import disturb
    for kind, size in (('wander', .1), ('muscle', .05), ('mains', .02)):
        x = disturb(np.random.default_rng(1), Noise(**{'wander': 0, 'mains': 0, 'muscle': 0, kind: size}), 60, 500)
        assert .6 * size < np.sqrt((x**2).mean()) < 1.6 * size
    assert np.array_equal(synth(3, noise=2.).signal, synth(3, noise=Noise() * 2.).signal)

def test_codes_are_scp_statements():
    assert {s for s, _, _ in CODES.values()} <= {*SUPER, ''}
    assert all(not i or i in CODES for _, i, _ in CODES.values())
    root = data_dir('ptb_xl')
    if root is None: pytest.skip('PTB-XL is not here')
    with open(root / 'scp_statements.csv') as f: rows = {r['']: r for r in csv.DictReader(f)}
    for code, (superclass, _, _) in CODES.items(): assert rows[code]['diagnostic_class'] == superclass, code

@pytest.mark.parametrize('code', CODES)
def test_meta(code):
    e = synth(2, code=code)
    m = e.meta
    assert m['labels'] == m['truth']['codes'] == parse(code, None)[0]
    assert code in m['labels']
    assert set(m['labels']) <= set(CODES)
    assert all(CODES[c][2].lower() in m['report'].lower() for c in m['labels'])
    assert m['report'].count('.') == 1
    assert m['report'].endswith('.')
    assert m['record'] == 'synth-2' and m['patient'] == '2' and m['source'] == 'synth'
    assert not [f for f in findings(e) if f.kind in ('order', 'units', 'flat', 'clipped', 'nan')]

def test_two_hundred_seeds_pass_the_guard_and_differ():
    codes, seen = list(MIX), []
    for seed in range(200):
        e = guard(synth(seed, code=codes[seed % len(codes)], noise=1 + seed % 4))
        assert np.isfinite(e.signal).all() and .3 < np.abs(e.signal).max() < 8 and len(e.meta['truth']['beats']) >= 6
        seen.append(e.meta['truth'])
    assert len({t['axis'] for t in seen}) > 150
    assert np.std([t['rate'] for t in seen]) > 10
    assert np.std([t['axis'] for t in seen if 'NORM' in t['codes']]) > 12

@pytest.mark.parametrize('how, says', [
    (dict(code='LBBB'), "no code 'LBBB'"), (dict(code=''), "no code ''"),
    (dict(code='CLBBB+CRBBB'), 'do not go together'),
    (dict(code='NORM+IMI'), 'do not go together'), (dict(code='AFIB+SR'), 'do not go together'),
    (dict(code='STACH', rate=60), 'STACH goes from 100'), (dict(rate=500), 'STACH goes from'),
    (dict(seconds=0), 'seconds=0'), (dict(fs=0), 'fs=0'), (dict(code='PVC', seconds=1), 'no room')])
def test_bad_input(how, says):
    with pytest.raises(ECGError, match=says): synth(**how)

@pytest.mark.parametrize('seconds, fs', [(1, 500), (2.5, 360), (30, 257), (10, 50), (5, 2000)])
def test_odd_lengths_and_rates(seconds, fs):
    e = synth(1, seconds, fs)
    assert e.signal.shape == (12, round(seconds * fs)) and e.fs == fs and np.isfinite(e.signal).all()

def test_sample_source():
    s = Sample(n=60)
    assert len(s) == 60
    assert s.classes == SUPER
    assert s.frame.groupby('patient').fold.nunique().max() == 1
    assert set(s.frame.fold) <= set(range(1, 11))
    a, b = s[7], Sample(n=60)[7]
    assert np.array_equal(a.signal, b.signal)
    assert a.meta['record'] == s.frame.record[7]
    assert a.meta['labels'] == s.frame.labels[7] == superclasses(a.meta['truth']['codes'])
    assert not np.array_equal(a.signal, Sample(n=60, seed=1)[7].signal)
    assert s.fingerprint() == Sample(n=60).fingerprint() != Sample(n=60, seed=1).fingerprint()
    parts = s.split(by='patient')
    assert not set(parts['train'].frame.patient) & set(parts['test'].frame.patient)
    c = Sample(n=60, labels='codes')
    assert c[7].meta['labels'] == [k for k in CODES if k in a.meta['truth']['codes']]
    assert c.label_matrix().shape == (60, len(CODES))
    f = Sample(n=5, fs=250., seconds=5.)
    assert [e.signal.shape for e in f] == [(12, 1250)] * 5

def test_every_code_of_the_mix_can_be_made():
    for code in MIX: synth(1, code=code, seconds=4)

"""Generation against known answers: Gaussians whose distance is known, sets made to be precise or diverse, a model that hands out real ECGs, the command."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ecgnb.command import main as command
from ecgnb.distances import between, frechet, halves, mmd, moments, neighbourhood, radii, spread
from ecgnb.generate import UNITS, baselines, describe, digest, figure, fixed, generation, lineage, main, protocol, scores, space_of, spectra, transfer
from ecgnb.hub import CheckpointError, save
from ecgnb.leads import STANDARD, ECGError
from ecgnb.objectives.flow import Flow
from ecgnb.prepare import prepare
from ecgnb.recipes import build
from ecgnb.encoders.dit import Dit
from ecgnb.representations.signal import Signal
from ecgnb.sources.sample import Sample
from ecgnb.train import train

LEADS = ('I', 'II', 'III', 'V2')
CONTRACT = dict(leads=list(LEADS), fs=100., length=400, unit='mV')

def rng(seed=0): return np.random.default_rng(seed)

# ---- Fréchet distance --------------------------------------------------------------------------------------------------

def test_frechet_of_known_gaussians():
    from scipy.linalg import sqrtm
    for seed in range(5):
        a, b, m = rng(seed).normal(size=(6, 6)), rng(seed + 9).normal(size=(6, 6)), rng(seed).normal(size=6)
        s, t = a @ a.T, b @ b.T
        want = m @ m + np.trace(s + t - 2*np.real(sqrtm(s @ t)))
        assert between((0*m, s), (m, t)) == pytest.approx(want, rel=1e-6) == pytest.approx(between((m, t), (0*m, s)), rel=1e-6)
    assert between((np.zeros(3), np.diag([4., 1, 0])), (np.array([3., 0, 0]), np.diag([1., 1, 9]))) == pytest.approx(9 + 1 + 0 + 9)
    flat = np.zeros((3, 3))                                                             # singular: no NaN, no complex number
    assert between((np.zeros(3), flat), (np.ones(3), flat)) == pytest.approx(3)

def test_frechet_estimates_and_its_small_sample_bias():
    x, y = rng(0).normal(0, 1, (4000, 5)), rng(1).normal(.7, 2, (4000, 5))
    assert frechet(x, y) == pytest.approx(5*(.49 + 1), rel=.08)                              # (1 - 2)^2 + 0.7^2, five times
    u, v = rng(2).normal(size=(2, 60, 244))                                                    # the same Gaussian twice
    plain = between((u.mean(0), np.cov(u.T)), (v.mean(0), np.cov(v.T)))
    assert frechet(u, v) < .12*plain and frechet(u, u) < 1e-6
    far = [frechet(u, v + d) for d in (0, .5, 1., 2.)]
    assert far == sorted(far) and far[-1] == pytest.approx(4*244, rel=.25)

def test_shrinkage_is_ledoit_and_wolf():
    from sklearn.covariance import ledoit_wolf
    for n, d in ((20, 5), (10, 40), (300, 12)):
        x = rng(n).normal(size=(n, d)) @ rng(d).normal(size=(d, d))
        assert np.allclose(moments(x)[1], ledoit_wolf(x)[0])
    assert np.allclose(moments(np.ones((9, 4)))[1], 0)

# ---- MMD -------------------------------------------------------------------------------------------------------------

def test_mmd_is_unbiased():
    for n, m in ((20, 20), (15, 40)):
        v = np.array([mmd(rng(i).normal(size=(n, 4)), rng(i + 10_000).normal(size=(m, 4)), 2.) for i in range(400)])
        assert abs(v.mean()) < 3*v.std()/20 and v.min() < 0
        biased = v.mean() + (1 - .2)*(1/n + 1/m)                                            # what the diagonal would add, about
        assert biased > 10*abs(v.mean())

def test_mmd_against_its_closed_form():
    d, w = 1.2, 1.5
    want = (w**2/(w**2 + 2))**.5*2*(1 - np.exp(-d**2/(2*(w**2 + 2))))
    got = np.mean([mmd(rng(i).normal(size=(400, 1)), rng(i + 99).normal(d, 1, (400, 1)), w) for i in range(30)])
    assert got == pytest.approx(want, rel=.05)

def test_mmd_of_subsets_and_blocks(monkeypatch):
    import ecgnb.distances as D
    x, y = rng(0).normal(size=(50, 3)), rng(1).normal(.3, 1, (40, 3))
    wx, wy = rng(2).random((6, 50)) < .5, rng(3).random((6, 40)) < .5
    got = mmd(x, y, 1.7, wx, wy)
    assert np.allclose(got, [mmd(x[a], y[b], 1.7) for a, b in zip(wx, wy)])
    whole, near, r = mmd(x, y, 1.7), neighbourhood(x, y, 3), radii(x, 3)
    monkeypatch.setattr(D, 'BLOCK', 7)
    assert mmd(x, y, 1.7) == pytest.approx(whole) and neighbourhood(x, y, 3) == near and np.allclose(radii(x, 3), r)

# ---- precision, recall, density, coverage ------------------------------------------------------------------------------

def test_radii():
    d = np.linalg.norm((x := rng(0).normal(size=(30, 4)))[:, None] - x, axis=2)
    assert np.allclose(radii(x, 4), np.sort(d, 1)[:, 4]**2)
    with pytest.raises(ECGError, match='4 samples have no 5-th neighbour'): radii(x[:4], 5)

def test_constructed_sets():
    x = np.concatenate([rng(0).normal(0, 1, (200, 3)), rng(1).normal(20, 1, (200, 3))])
    one = neighbourhood(x, rng(2).normal(0, 1, (400, 3)))                                     # one of two clusters
    assert one['precision'] > .95 and .4 < one['recall'] < .55 and .4 < one['coverage'] < .55
    far = neighbourhood(x, rng(3).normal(100, 1, (400, 3)))
    assert far['precision'] == far['recall'] == far['density'] == far['coverage'] == 0
    half = neighbourhood(x, np.concatenate([x[:200] + .01, rng(4).normal(100, 1, (200, 3))]))    # half of it garbage
    assert half['precision'] == .5 and half['coverage'] == .5
    same = neighbourhood(x, np.concatenate([rng(5).normal(0, 1, (200, 3)), rng(6).normal(20, 1, (200, 3))]))
    assert min(same.values()) > .9 and same['density'] == pytest.approx(1, abs=.15)
    point = neighbourhood(x, np.repeat(x[:1], 400, 0))                                           # one ECG again and again
    assert point['precision'] == 1 and point['recall'] < .01 and point['coverage'] < .05

def test_halves_keep_patients_whole_and_measure_the_spread():
    who = np.repeat(np.arange(30), 3)
    h = halves(who, 40, 1)
    assert h.shape == (40, 90) and (h.sum(1) == 45).all() and all(len(set(row[who == p])) == 1 for row in h for p in (0, 7)) and not (h[0] == h[1]).all()
    x = rng(0).normal(0, 1, 30)[who]                                                              # three equal samples a patient
    _, low, high = spread(x.mean(), np.array([x[r].mean() for r in halves(who, 400)]))
    assert (high - low)/3.92 == pytest.approx(x.std()/30**.5, rel=.15)
    assert np.isnan(spread(1., np.array([1., np.nan]))[1])

# ---- what is measured of ECGs ------------------------------------------------------------------------------------------

class Hands(nn.Module):
    "Draws by handing out `rule(batch)`."
    def __init__(self, rule, **more):
        super().__init__()
        self.rule, self.representation, self.seen = rule, SimpleNamespace(contract=CONTRACT, norm='fixed'), []
        for k, v in more.items(): setattr(self, k, v)
    def generate(self, batch, steps=None, solver='', guidance=1., seed=None):
        self.seen.append((steps, solver, guidance, batch['seed'].tolist()))
        return self.rule(batch)

@pytest.fixture(scope='module')
def store(tmp_path_factory):
    return prepare(Sample(n=90, seconds=4., seed=3), tmp_path_factory.mktemp('s')/'store', fs=100, seconds=4, leads=LEADS, low=.5, progress=False)

def test_spectrum_in_db():
    t = np.arange(2000)/100
    x = np.stack([np.sin(2*np.pi*10*t), 2*np.sin(2*np.pi*10*t)])[None]
    s = spectra(x, 100).reshape(2, -1)
    f = np.arange(.5, 40.01, .5)
    assert s.shape == (2, len(f)) and f[s[0].argmax()] == 10 and 10*(s[1].max() - s[0].max()) == pytest.approx(10*np.log10(4), abs=.01)

def test_copies_of_the_test_set(store):
    "The test ECGs themselves: every distance 0; wrong ECGs of every kind are found."
    test, rest = store.fold('7-10'), store.fold('1-6')
    x = lambda b: b['signal'].clone()
    r = generation(m := Hands(x), test, rest, times=6, steps=3, solver='s', guidance=2., batch_size=20)
    assert {s[:3] for s in m.seen} == {(3, 's', 2.)} and sum(len(s[3]) for s in m.seen) == len(test)
    for k in ('frechet', 'algebra', 'spectrum', 'rate', 'pr', 'qrs', 'qt'): assert r.value(k) == pytest.approx(0, abs=.02), k
    assert r.value('precision') == r.value('recall') == r.value('coverage') == 1 and r.value('mmd') <= 0
    assert set(r.frame['method']) == {'model', 'real', 'leads shuffled', 'noise', 'mean ECG'} and set(r.frame['metric']) == set(UNITS)
    f = r.frame[r.frame['low'].notna()]
    assert ((f['low'] <= f['value'] + 1e-9) & (f['value'] <= f['high'] + 1e-9)).all()
    for k in ('frechet', 'mmd'):
        assert r.value(k, 'real') < .5*r.value(k, 'leads shuffled') and r.value(k, 'leads shuffled') < r.value(k, 'noise')
    assert r.value('algebra', 'leads shuffled') > .5 > .02 > r.value('algebra', 'real') and r.value('algebra', 'noise') > .5
    assert r.value('beats', 'noise') == 0 and r.value('beats', 'real') > .9 and r.value('coverage', 'mean ECG') < .1
    text, data = repr(r) + r._repr_html_(), json.loads(json.dumps(r.to_json(), allow_nan=False))
    assert 'ecgnb-hand-1' in r.protocol and f'{len(test)} windows' in r.protocol and 'tstr' in r.protocol and 'not defined' in text
    assert len(data['rows']) == 5*len(UNITS) and 'tstr' not in set(r.frame['metric'])
    again = generation(Hands(x), test, rest, times=6)
    assert again.value('frechet', 'real', 'low') == r.value('frechet', 'real', 'low')

def test_what_is_wrong_shows_where_it_is_wrong():
    src = Sample(n=60, seed=5)
    x = np.stack([e.resample(100).signal for e in src])
    a, b = describe([x[:30]], 100, STANDARD), describe([x[30:]], 100, STANDARD)
    s = space_of(b.features)
    good = scores(a, b, s)
    slow = np.stack([e.but(e.signal, fs=e.fs*.8).resample(100).signal[:, :1000] for e in (src[i] for i in range(30, 60))])
    worse = scores(a, describe([slow], 100, STANDARD), s)
    assert worse['rate'] > good['rate'] + 5 and worse['qrs'] > good['qrs'] and worse['qt'] > good['qt'] and worse['algebra'] < .01
    swap = x[30:].copy(); swap[:, [1, 2]] = swap[:, [2, 1]]
    swapped = scores(a, describe([swap], 100, STANDARD), s)
    assert swapped['algebra'] > .3 and swapped['rate'] == pytest.approx(good['rate'], abs=1) and swapped['frechet'] > good['frechet'] + 20 and swapped['mmd'] > good['mmd'] + .02
    hum = scores(a, describe([x[30:] + .1*np.sin(2*np.pi*30*np.arange(1000)/100)], 100, STANDARD), s)
    assert hum['spectrum'] > good['spectrum'] + .5
    few = scores(a, describe([np.concatenate([x[30:45], .05*rng(0).normal(size=x[:15].shape)])], 100, STANDARD), s)
    assert few['beats'] == pytest.approx(.5, abs=.05) and few['pr_found'] < .55

def test_train_on_synthetic_test_on_real(store):
    "A model that draws by report: its ECGs carry the labels of the report's recording."
    test, rest = store.fold('5-10'), store.fold('1-4')
    class Text: pass
    good = generation(Hands(lambda b: b['signal'].clone(), text=Text()), test, rest, times=4)
    deaf = generation(Hands(lambda b: b['signal'].roll(7, 0).clone(), text=Text()), test, rest, times=4)
    assert good.value('tstr') == pytest.approx(good.value('tstr', 'real'), abs=1e-6) and good.value('tstr') > .7       # the training ECGs themselves
    assert good.value('tstr') - .12 > deaf.value('tstr') and good.value('tstr', 'labels shuffled') < .65
    assert good.value('tstr', column='low') < good.value('tstr') < good.value('tstr', column='high') and 'drawn by the reports' in good.protocol
    y = np.zeros((10, 2)); f = rng(0).normal(size=(10, 3))
    assert transfer({'model': f}, y, f, y, np.arange(10)) is None

def test_baselines(store):
    x = np.concatenate([store.rows(np.arange(len(store)))[0].numpy()*store.rows(np.arange(len(store)))[1].numpy()[..., None]])
    made = {k: torch.cat(list(b)).numpy() for k, b in baselines(store).items()}
    assert all(v.shape == x.shape for v in made.values())
    assert np.allclose(made['mean ECG'], x.mean(0), atol=1e-5) and np.allclose(made['noise'].std((0, 2)), x.std((0, 2)), rtol=.05)
    assert all(np.allclose(np.sort(a, 0), np.sort(b, 0)) and not np.allclose(a, b) for a, b in zip(made['leads shuffled'][:9], x[:9]))

def test_baselines_leave_out_what_was_not_recorded(monkeypatch):
    "Lead II is recorded in half of each window, and over 0 to 50 samples in every second one only."
    x = torch.from_numpy(rng(0).normal(2, .5, (40, 2, 100))).float()
    valid = torch.ones_like(x, dtype=torch.bool); valid[:, 1, 50:] = False; valid[::2, 0, :50] = False
    monkeypatch.setattr('ecgnb.generate.windows', lambda store: iter([(x.where(valid, 0.), valid)]))
    got = {k: torch.cat(list(b)) for k, b in baselines(SimpleNamespace(leads=('I', 'II'))).items()}
    monkeypatch.setattr('ecgnb.generate.windows', lambda store: iter([(x.where(valid, 99.), valid)]))
    again = {k: torch.cat(list(b)) for k, b in baselines(SimpleNamespace(leads=('I', 'II'))).items()}
    for k in ('noise', 'mean ECG'): assert torch.equal(got[k], again[k]), k
    assert torch.allclose(got['mean ECG'][0, 0, :50], x[1::2, 0, :50].mean(0).double()) and torch.allclose(got['mean ECG'][0, 1, :50], x[:, 1, :50].mean(0).double())
    assert np.allclose(got['noise'].mean((0, 2)), 2, atol=.05) and np.allclose(got['noise'].std((0, 2)), .5, atol=.03)

# ---- errors, extractor, figure, command --------------------------------------------------------------------------------

def flow(seed=0, leads=LEADS, **more):
    torch.manual_seed(seed)
    kinds = dict(leads=','.join(leads), length=400)
    return Flow(Signal(fs=100., norm='fixed', **kinds), Dit(patch=20, dim=16, depth=1, heads=2, **kinds), **more)

def test_errors(store):
    test, rest = store.fold('7-10'), store.fold('1-6')
    with pytest.raises(ECGError, match='Linear cannot generate ECGs; use an objective that draws signals, such as flow'): generation(nn.Linear(2, 2), test, rest)
    tokens = Hands(None); tokens.generate = lambda prompts, most: None                                       # next_token's, which goes on with a text
    with pytest.raises(ECGError, match='Hands cannot generate ECGs'): generation(tokens, test, rest)
    with pytest.raises(ECGError, match='is in two parts'): generation(Hands(None), test, store)
    with pytest.raises(ECGError, match=r'wanted 14 windows of 4 patients or more in both \(neighbours=5\): .* such as fold=9-10 neighbours=2'): generation(Hands(None), test.select(np.arange(12)), rest)
    with pytest.raises(ECGError, match='not finite'): generation(Hands(lambda b: b['signal']*np.nan), test, rest)
    other = Hands(None); other.representation = SimpleNamespace(contract=CONTRACT | {'fs': 250.})
    with pytest.raises(CheckpointError, match='the data have 100.0, the model reads 250.0'): generation(other, test, rest)
    none = Hands(None); none.representation = SimpleNamespace()
    with pytest.raises(ECGError, match='states no contract'): generation(none, test, rest)

def test_extractor_is_another_model(store, tmp_path):
    a, b = flow(0), flow(1)
    save(a, tmp_path/'a'); save(b, tmp_path/'b'); save(flow(0, LEADS[:2]), tmp_path/'two')
    with pytest.raises(ECGError, match='holds the encoder that is judged'): fixed(str(tmp_path/'a'), a)
    with pytest.raises(CheckpointError, match='leads'): fixed(str(tmp_path/'two'), a)
    name, f = fixed(str(tmp_path/'b'), a)
    x = torch.randn(3, 4, 400)
    assert name == f'Flow(Dit) in b ({digest(b.encoder)[:8]})' and digest(a.encoder) != digest(b.encoder) == digest(flow(1).encoder) and np.allclose(f(x), b.eval().encoder.features(x/.25).detach(), atol=1e-5)
    r = generation(a, store.fold('7-10'), store.fold('1-6'), steps=2, extractor=str(tmp_path/'b'), times=3)
    assert f'Features: Flow(Dit) in b ({digest(b.encoder)[:8]})' in r.protocol and np.isfinite(r.value('frechet'))

def test_protocol_says_what_is_told(store):
    test, rest = store.fold('7-10'), store.fold('1-6')
    said = lambda **more: protocol(Hands(None, **more), test, rest, 'f', dict(steps=None, solver='', guidance=1.), 1, 2, 0, 'no')
    for given in ('', 'past', 'leads', 'any'): assert 'told nothing of it, its usual number of steps' in said(given=given), given
    assert 'told given leads of it' in said(given='II') and '; 1 neighbour.' in said() and '  ' not in said()

def test_too_few_patients_end_before_anything_is_drawn(store):
    test, rest = store.fold('7-10'), store.fold('1-6')
    three = np.flatnonzero(test.frame['patient'].isin(test.frame['patient'].unique()[:3]))
    with pytest.raises(ECGError, match=r'windows of 3 patients to test, .* wanted 6 windows of 4 patients or more in both .* such as fold=9-10 neighbours=2'): generation(m := Hands(None), test.select(three), rest, k=1)
    count = test.frame['patient'].map(test.frame['patient'].value_counts())
    uneven = test.select(np.flatnonzero(test.frame['patient'].isin(test.frame['patient'][count.sort_values().index].unique()[-9:])))
    with pytest.raises(ECGError, match='a half of the patients has'): generation(m, uneven, rest, k=len(uneven)//2 - 2)
    assert not m.seen

def test_lineage(tmp_path):
    for name, start in (('a', ''), ('b', 'a'), ('c', 'b')): save(flow(), tmp_path/name, run=dict(train=dict(start=start and str(tmp_path/start))))
    names = lambda n: [f.name for f in lineage(tmp_path/n)]
    assert names('a') == ['a'] and names('b') == ['b', 'a'] and names('c') == ['c', 'b', 'a'] and names('none') == ['none']

def test_draws_repeat(store):
    test, rest = store.fold('7-10').select(np.arange(16)), store.fold('1-6')
    a, b, c = (generation(flow().eval(), test, rest, steps=2, times=2, batch_size=n, seed=s).frame['value'] for n, s in ((32, 0), (7, 0), (32, 1)))
    assert np.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) and not np.allclose(a, c, rtol=1e-3, atol=1e-3, equal_nan=True)

def test_figure(store):
    fig = figure(flow().eval(), store, n=2, steps=2, seconds=3.)
    texts = lambda fig: {t.get_text() for a in fig.axes for t in a.texts} | {a.get_title() for a in fig.axes}
    assert any('generated' in t for t in texts(fig)) and any('stand-in' in t for t in texts(figure(flow().eval(), store, n=1, steps=1, seconds=3., title='stand-in')))
    assert len(fig.axes) == 4 and fig.png()[:4] == b'\x89PNG'

SMALL = ('source.n=120', 'source.seconds=4', 'prepare.stride=4', 'model.encoder.dim=16', 'model.encoder.depth=1', 'model.encoder.heads=2', 'fit.steps=30', 'fit.warmup=0',
         'train.batch_size=8', 'train.every=30', 'train.save=30')

def test_command(tmp_path, cache, capsys):
    run = tmp_path/'run'
    train(build('tiny_flow', *SMALL, f'out={run}'), quiet=True)
    had = json.loads((run/'results.json').read_text()) if (run/'results.json').exists() else {}
    args = ['fold=7-10', 'train=1-6', 'steps=2', 'times=4', 'device=cpu', 'windows=16']
    assert command(['generate', str(run), *args]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    r = json.loads((run/'results.json').read_text())
    assert 'frechet' in said and had.items() <= r.items() and r['generate']['steps'] == 2 and r['generate']['units']['qt'] == 'ms'
    assert {v['method'] for v in r['generate']['rows']} == {'model', 'real', 'leads shuffled', 'noise', 'mean ECG'} and (run/'generate.png').read_bytes()[:4] == b'\x89PNG'
    assert '16 windows of' in r['generate']['protocol'] and 'heun 2 steps' in r['generate']['protocol']
    main([str(run/'best'), *args, 'solver=euler', 'neighbours=3', f'out={tmp_path/"more"}'])
    assert 'euler 2 steps' in json.loads((tmp_path/'more/results.json').read_text())['generate']['protocol']
    assert command(['generate', str(run), *args, 'guidance=2']) == 2 and 'no condition to be guided by' in capsys.readouterr().err
    assert command(['generate', str(run), *args, f'extractor={run}']) == 2 and 'holds the encoder that is judged' in capsys.readouterr().err
    assert command(['generate', str(run), *args, 'steps=0']) == 2 and "steps=0; wanted 1 or more, or -1 = the usual number" in capsys.readouterr().err
    later = json.loads((run/'best/config.json').read_text()); later['run']['train']['start'] = str(run)
    save(flow(1), tmp_path/'later', run=later['run'])
    for judged, judge in ((run, tmp_path/'later'), (tmp_path/'later', run)):
        assert command(['generate', str(judged), *args, f'extractor={judge}', f'out={tmp_path/"none"}']) == 2 and 'one started from the other' in capsys.readouterr().err

def test_command_errors(tmp_path, capsys):
    for args, said in ((['generate', str(tmp_path/'no')], 'no such folder'), (['generate', str(tmp_path), 'flod=val'], "did you mean 'fold'"),
                       (['generate', str(tmp_path)], 'holds no config.json'), (['generate', str(tmp_path), 'times=0'], 'wanted 2 or more')):
        assert command(args) == 2 and said in capsys.readouterr().err
    assert command(['generate', '-h']) == 0 and 'extractor=' in capsys.readouterr().out

"""Reconstruction against known answers: the two baselines, the four numbers, the masks, and the command's files."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import nn

from ecgnb.baselines import fill_line, fill_mean, fit_leads, scaled, smoothed
from ecgnb.batch import Out, normal, uniform
from ecgnb.command import main as command
from ecgnb.hub import CheckpointError, save
from ecgnb.leads import ECGError
from ecgnb.loader import loader
from ecgnb.prepare import prepare
from ecgnb.recipes import build
from ecgnb.reconstruct import fill_in, figure, lead_completion, main, reconstruct, stand_in
from ecgnb.similarity import curves, ranges, ssim
from ecgnb.registry import from_config
from ecgnb.sources.sample import Sample
from ecgnb.train import train

LEADS = ('I', 'V2', 'II')
CONTRACT = dict(leads=list(LEADS), fs=100., length=200, unit='mV')


class Fake(nn.Module):
    "Hides samples by the seeds and says `rule(x)` in mV."
    def __init__(self, rule, share=.5, lead=None):
        super().__init__()
        self.rule, self.share, self.lead, self.seen = rule, share, lead, []
        self.representation = SimpleNamespace(contract=CONTRACT)
    def reconstruct(self, batch, share=None):
        x = batch['signal']
        mask = uniform(batch['seed'], *x.shape[1:]) < (self.share if share is None else 1 - share)
        if self.lead is not None: mask[:, self.lead] = True
        self.seen.append((x.clone(), mask))
        return Out(torch.tensor(0.), {}, dict(mv=self.rule(x), mask=mask))


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    return prepare(Sample(n=24, seconds=4., records_per_patient=2.), tmp_path_factory.mktemp('s') / 'store', fs=100, seconds=2, leads=LEADS, progress=False)

def truth(store):
    q, scale = store.rows(np.arange(len(store)))
    return q * scale[..., None]

def masks(model, store, **k):
    model.seen.clear(); reconstruct(model, store, times=2, **k)
    return torch.cat([m for _, m in model.seen[::2]])


# ---- the baselines -----------------------------------------------------------------------------------------------------

def test_line_meets_a_ramp_and_equals_numpy():
    t = torch.arange(50.)
    see = torch.rand(4, 3, 50, generator=torch.Generator().manual_seed(0)) < .3
    see[..., 0] = see[..., -1] = True
    assert torch.allclose(fill_line((2*t - 7).expand(4, 3, 50), see), (2*t - 7).expand(4, 3, 50), atol=1e-4)
    x = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(1)).double()
    see[..., :5] = see[..., -4:] = False
    want = [[np.interp(t.numpy(), np.flatnonzero(m), a[m]) for a, m in zip(p, q)] for p, q in zip(x.numpy(), see.numpy())]
    assert np.allclose(fill_line(x, see), want)

def test_nothing_visible():
    x, see = torch.ones(1, 2, 8), torch.zeros(1, 2, 8, dtype=torch.bool)
    assert not fill_mean(x, see).any() and not fill_line(x, see).any()                # nothing known of the record: 0 mV
    see[0, 1, 3] = True
    assert (fill_line(5*x, see) == 5).all() and (fill_mean(5*x, see) == 5).all()      # of the lead: the record's mean

def test_stand_in_keeps_the_statistics_of_what_is_visible():
    g = torch.Generator().manual_seed(0)
    x, see = torch.randn(2, 3, 400, generator=g) + 3, torch.arange(400).expand(2, 3, 400) % 4 == 1
    y = stand_in(x, see, ~see)
    assert torch.equal(y[see], x[see])
    for stat in (torch.Tensor.mean, torch.Tensor.var, torch.Tensor.amax):
        assert torch.allclose(stat(y, -1), stat(x[see].view(2, 3, 100), -1), rtol=1e-2)
    other = torch.where(see, x, torch.randn(2, 3, 400, generator=g))
    assert torch.equal(stand_in(other, see, ~see), y)                                 # nothing hidden gets through


# ---- the numbers -------------------------------------------------------------------------------------------------------

def test_ssim_equals_scipy_at_250_and_500_hz():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 600)).cumsum(1)
    L = np.ptp(a)
    for fs, sigma in ((250, 1.5), (500, 3.)):
        n = int(11*fs/250) | 1
        g = lambda v: gaussian_filter1d(v, sigma, radius=n//2, mode='nearest')
        c1, c2 = (.01*L)**2, (.03*L)**2
        want = (2*g(a)*g(b) + c1)*(2*(g(a*b) - g(a)*g(b)) + c2)/((g(a)**2 + g(b)**2 + c1)*(g(a*a) - g(a)**2 + g(b*b) - g(b)**2 + c2))
        got = ssim(torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None], L, fs)[0, 0]
        assert np.allclose(got, want)

def test_ranges():
    x = torch.tensor([[[0., 2, 9], [1, 1, 1]]])
    valid = torch.tensor([[[True, True, False], [True] * 3]])
    assert ranges(x, valid).flatten().tolist() == pytest.approx([2., .05])
    assert ranges(x, valid, 3.).flatten().tolist() == [3., 3.]

def test_perfect(store):
    at = {}
    class Oracle(Fake):
        def reconstruct(self, batch, share=None):
            out = super().reconstruct(batch)
            out.pred['mv'] = torch.stack([at[int(s)] for s in batch['seed']])
            return out
    b = loader(store, len(store), shuffle=False)[0]
    at.update({int(s): x for s, x in zip(b['seed'], truth(store))})
    r = reconstruct(Oracle(lambda x: x), store, times=20)
    assert r.value('mse') == r.value('mae') == 0 and r.value('psnr') == np.inf and r.value('ssim') == pytest.approx(1)
    assert all(np.isnan(r.value('psnr_low', m)) for m in ('mean', 'interpolation'))
    json.loads(json.dumps(r.to_json(), allow_nan=False))

@pytest.mark.parametrize('constant', [0., .3])
def test_known_prediction(store, constant):
    "A model that always says the same: every number by hand."
    model = Fake(lambda x: torch.full_like(x, constant))
    r, x, h = reconstruct(model, store, times=50), truth(store).double().numpy(), masks(model, store).numpy()
    assert list(r.frame['lead'].unique()) == ['all', *LEADS] and set(r.frame['method']) == {'model', 'mean', 'interpolation'}
    for c, lead in enumerate(LEADS):
        off = (constant - x[:, c])[h[:, c]]
        assert r.value('samples', lead=lead) == h[:, c].sum()
        assert r.value('mse', lead=lead) == pytest.approx((off**2).mean(), rel=1e-5)
        assert r.value('mae', lead=lead) == pytest.approx(abs(off).mean(), rel=1e-5)
        span = np.repeat(np.ptp(x[:, c], axis=1)[:, None], 200, 1)[h[:, c]]
        assert r.value('psnr', lead=lead) == pytest.approx(-10*np.log10(((off/span)**2).mean()), rel=1e-5)
        mean = np.concatenate([(a[m] - a[~m].mean())**2 for a, m in zip(x[:, c], h[:, c])])
        assert r.value('mse', 'mean', lead) == pytest.approx(mean.mean(), rel=1e-4)
        d = r.value('mse', lead=lead) - r.value('mse', 'mean', lead)
        assert r.value('mse_diff', 'mean', lead) == pytest.approx(d) and r.value('mse_low', 'mean', lead) <= d <= r.value('mse_high', 'mean', lead)
    assert r.value('mse') == pytest.approx(((constant - x)[h]**2).mean(), rel=1e-5)

def test_the_model_is_told_nothing(store):
    "A model that gives back its input cheats when it is told, and not when blind."
    told, blind = (reconstruct(Fake(lambda x: x), store, times=2, blind=b) for b in (False, True))
    assert told.value() == 0 and blind.value() > blind.value('mse', 'mean') > 0
    assert told.value('mse', 'mean') == blind.value('mse', 'mean')

def test_whole_lead_hidden(store):
    r = reconstruct(Fake(torch.zeros_like, lead=1), store, times=2)
    assert r.value('mse', 'mean', 'V2') == r.value('mse', 'interpolation', 'V2') and r.value('samples', lead='V2') == 200*len(store)

def test_not_recorded_is_not_counted(tmp_path, store):
    from ecgnb.batch import to_mv
    b = to_mv(loader(store, 4, shuffle=False)[0])
    valid = torch.ones_like(b['signal'], dtype=torch.bool); valid[:, 0, :100] = False
    x, v, h, guess, _ = fill_in(Fake(torch.zeros_like), b | {'valid': valid})
    assert not h[:, 0, :100].any() and all(torch.equal(y[~h], x[~h]) for y in guess.values())

def test_fixed_peak(store):
    r = reconstruct(Fake(torch.zeros_like), store, times=2, peak=2.)
    assert r.value('psnr') == pytest.approx(10*np.log10(4/r.value('mse')))


# ---- masks, intervals --------------------------------------------------------------------------------------------------

def test_masks_repeat_whatever_the_batch(store):
    model = Fake(torch.zeros_like)
    a = masks(model, store)
    assert torch.equal(a, masks(model, store, batch_size=5)) and torch.equal(a, masks(model, store)) and not torch.equal(a, masks(model, store, seed=1))
    r, s = reconstruct(model, store, times=30), reconstruct(model, store, times=30, batch_size=5)
    assert np.allclose(r.frame.iloc[:, 3:].to_numpy(float), s.frame.iloc[:, 3:].to_numpy(float), equal_nan=True)

def test_patients_are_what_is_drawn(store):
    "Doubling every window of every patient must not narrow the interval; one patient has none."
    model, n = Fake(torch.zeros_like, share=2.), len(store)                       # all hidden, so that the masks are the same
    once, twice = (reconstruct(model, store.select(np.tile(np.arange(n), k)), times=300) for k in (1, 2))
    assert twice.value('mse_low', 'mean') == pytest.approx(once.value('mse_low', 'mean')) and twice.value() == pytest.approx(once.value())
    who = store.frame['patient'] == store.frame['patient'][0]
    one = reconstruct(Fake(torch.zeros_like), store.select(who.to_numpy()))
    assert np.isnan(one.value('mse_low', 'mean')) and np.isfinite(one.value('mse_diff', 'mean')) and 'one patient' in one.protocol


# ---- shares of the signal ----------------------------------------------------------------------------------------------

class Noisy(Fake):
    "Adds noise of 1 mV by the seeds, as flow does; says `rule(noised)`."
    def reconstruct(self, batch, share=.5):
        x = batch['signal']
        y = share**.5*x + (1 - share)**.5*normal(batch['seed'], *x.shape[1:])
        self.seen.append((y, share))
        return Out(torch.tensor(0.), {}, dict(mv=self.rule(y), noised=y, mask=torch.ones_like(x, dtype=torch.bool)))

def test_one_axis(store):
    model = Fake(torch.zeros_like)
    r = reconstruct(model, store, times=5, shares=[.9, .2])
    assert r.shares == [.9, .2] and r.value('samples', share=.2) == pytest.approx(.8*len(store)*600, rel=.05) and r.value('samples') == r.value('samples', share=.9)
    own = reconstruct(model, store, times=5)
    assert own.shares == [pytest.approx(.5, abs=.02)] and 'share' not in own.overall and list(r.overall['share']) == ['0.9']*3 + ['0.2']*3
    for m in ('model', 'mean'): assert reconstruct(model, store, times=5, shares=[.5]).value('mse', m) == own.value('mse', m)
    assert 'model − method, MSE' in own.overall and 'shares kept: 0.9, 0.2' in r.protocol and list(r.leads.index.names) == ['share', 'lead']
    assert json.loads(json.dumps(r.to_json(), allow_nan=False))['rows'][0]['share'] == .9
    ax = curves({'a': r, 'b': reconstruct(Noisy(lambda y: y), store, times=5, shares=[.2, .9])}).axes[0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['a', 'mean', 'interpolation', 'b', 'scaled', 'smoothed']
    assert list(ax.lines[0].get_xdata()) == [.2, .9]

def test_noise(store):
    "All samples are measured, once, against what one number and a parabola make of the same noise."
    model = Noisy(lambda y: y)
    r = reconstruct(model, store, times=20, shares=[.2, .8])
    x = truth(store)
    for k, share in enumerate((.2, .8)):
        y = model.seen[k][0]
        assert len(model.seen) == 2 and model.seen[k][1] == share and r.value('samples', share=share) == x.numel()
        assert r.value('mse', share=share) == pytest.approx(float((y - x).square().mean()), rel=1e-4)
        assert r.value('mse', 'scaled', share=share) < r.value('mse', share=share) and r.value('mse_low', 'scaled', share=share) > 0
    assert reconstruct(model, store, times=2).shares == [.5] and 'know no statistics' in (model.representation.__dict__.update(norm='fixed') or reconstruct(model, store, times=2)).protocol
    model.representation.norm = 'zscore'
    assert 'relative to the zscore statistics' in reconstruct(model, store, times=2).protocol
    fig = figure(model, store[0], share=.5)
    assert len([a for a in fig.axes[0].lines if 'saw' in (a.get_gid() or '')]) == 3

def test_scaling_is_the_best_number():
    g = torch.Generator().manual_seed(0)
    x, every = torch.randn(4, 3, 500, generator=g), torch.ones(4, 3, 500, dtype=torch.bool)
    y = .6*x + .8*torch.randn(4, 3, 500, generator=g)
    best = min(float((c*y - x)[0].square().mean()) for c in torch.linspace(.3, .9, 61))
    assert float((scaled(y, x, every) - x)[0].square().mean()) == pytest.approx(best, rel=1e-2)
    assert torch.allclose(scaled(x/7 + .3, x + 7*.3, every), x + 2.1, atol=1e-4)                 # each with its own: deviation and level
    part = every.clone(); part[:, 1] = False                                                   # what was not recorded has no say
    other = y.clone(); other[:, 1] = 99.
    a, b = (v[:, [0, 2]] for v in (scaled(y, x, part), scaled(other, x, part)))
    assert torch.equal(a, b)
    t = torch.arange(500.)
    slow = torch.sin(t/60).expand(4, 3, 500)
    assert (smoothed(slow, slow, every, 100.) - slow)[..., 10:-10].abs().max() < 1e-3 < (smoothed(x, x, every, 100.) - x).abs().max()


# ---- missing leads -----------------------------------------------------------------------------------------------------

class Copy(Fake):
    "Fills missing leads by a fixed sum of what it is told."
    def fill(self, batch, known, seed=None):
        self.seen.append((batch['signal'].clone(), known))
        return torch.where(known, batch['signal'], batch['signal'].sum(1, keepdim=True))

def test_lead_completion(store):
    model, x = Copy(None), truth(store)
    r = lead_completion(model, store, 'I,V2', store, times=20)
    told, known = model.seen[0]
    assert known.any(-1).tolist() == [[True, True, False]]*len(store) and not told[:, 2].any() and torch.allclose(told[:, :2], x[:, :2])
    assert set(r.frame['lead']) == {'all', 'II'} and r.value('samples') == x[:, 2].numel() and r.shares == [pytest.approx(2/3, abs=1e-4)]
    a = np.concatenate([x[:, :2].transpose(1, 2).reshape(-1, 2).double().numpy(), np.ones((len(store)*200, 1))], 1)
    y = x[:, 2].reshape(-1).double().numpy()
    assert r.value('mse', 'linear') == pytest.approx(((a @ np.linalg.lstsq(a, y, rcond=None)[0] - y)**2).mean(), rel=1e-3)
    assert r.value() == pytest.approx(float((x[:, 0] + x[:, 1] - x[:, 2]).square().mean()), rel=1e-4) and 'given are I, V2' in r.protocol
    fig = figure(model, store[0], maps=fit_leads(store, 'II'))
    assert fig is not None
    with pytest.raises(ECGError, match='Fake has no `fill`'): lead_completion(Fake(None), store, 'I', store)
    with pytest.raises(ECGError, match='V5 not among the leads I,V2,II'): lead_completion(model, store, 'V5', store)
    with pytest.raises(ECGError, match='all leads there are'): lead_completion(model, store, 'II,I,V2', store)

def test_the_lead_algebra_is_exact(tmp_path):
    store = prepare(Sample(n=12, seconds=4.), tmp_path / 's', fs=100, seconds=4, progress=False)
    x = truth(store)
    for given in ('I,II', 'aVF,aVR', 'III,V2,aVL', 'I,II,III'):
        f = fit_leads(store.select([0]), given)
        y = f(x, [store.leads.index(n) for n in f.given])
        limb = [store.leads.index(n) for n in (*f.exact, *f.given)]
        assert len(f.exact) == 6 - sum(not n.startswith('V') for n in f.given) and (y - x)[:, limb].abs().max() < 2e-3     # mV, of 16 bit
    assert fit_leads(store, 'II,V1').exact == ()

def test_fit_leads_leaves_gaps_out(tmp_path):
    store = prepare(Sample(n=12, seconds=4.), tmp_path / 's', fs=100, seconds=4, leads=LEADS, progress=False)
    x, valid = truth(store), torch.ones(len(store), 3, 400, dtype=torch.bool); valid[:, 0, 100:200] = False
    from unittest.mock import patch
    def batches(x, valid): return [dict(signal=x, valid=valid)]
    with patch('ecgnb.baselines.loader', lambda *a, **k: batches(x.masked_fill(~valid, 0.), valid)): w = fit_leads(store, 'I,II').weight
    keep = torch.cat([x[..., :100], x[..., 200:]], -1)
    with patch('ecgnb.baselines.loader', lambda *a, **k: batches(keep, torch.ones_like(keep, dtype=torch.bool))): v = fit_leads(store, 'I,II').weight
    assert torch.allclose(w, v)

@pytest.mark.parametrize('objective', ['masked', 'flow', 'diffusion'])
def test_every_kind_of_model(store, objective):
    "The real ones, untrained: all three questions have an answer."
    torch.manual_seed(0)
    coder = dict(encoder='st_vit' if objective == 'masked' else 'dit', leads=','.join(LEADS), length=200, patch=20, dim=16, depth=1, heads=2)
    more = dict(dec_dim=16, dec_depth=1, dec_heads=2) if objective == 'masked' else {}
    model = from_config(dict(objective=objective, encoder=coder, **more, representation=dict(representation='signal', leads=','.join(LEADS), fs=100., length=200, norm='fixed')))
    some = store.select(range(4))
    r = reconstruct(model, some, times=5, shares=[.2, .8])
    assert np.isfinite(r.frame['mse']).all() and set(r.frame['method']) == {'model', *(('mean', 'interpolation') if objective == 'masked' else ('scaled', 'smoothed'))}
    assert reconstruct(model, some, times=2).shares == [pytest.approx(.25 if objective == 'masked' else .5, abs=.06)]
    fill = model.fill
    model.fill = (lambda b, k: fill(b, k)) if objective == 'masked' else (lambda b, k: fill(b, k, steps=2))
    assert np.isfinite(lead_completion(model, some, 'II', store, times=5).frame['mse']).all()
    for how in ({}, dict(share=.4), dict(maps=fit_leads(store, 'II'))): figure(model, store[0], **how)


# ---- errors ------------------------------------------------------------------------------------------------------------

def test_errors(store):
    with pytest.raises(ECGError, match='Linear has no `reconstruct`.*masked, flow, diffusion'): reconstruct(nn.Linear(2, 2), store)
    with pytest.raises(ECGError, match='empty'): reconstruct(Fake(torch.zeros_like), store.select([]))
    with pytest.raises(ECGError, match='hid no recorded sample'): reconstruct(Fake(torch.zeros_like, share=0.), store)
    with pytest.raises(ECGError, match='not finite'): reconstruct(Fake(lambda x: x*np.nan), store)
    other = Fake(torch.zeros_like); other.representation.contract = CONTRACT | {'fs': 250.}
    with pytest.raises(CheckpointError, match='the data have 100.0, the model reads 250.0'): reconstruct(other, store)
    with pytest.raises(CheckpointError, match='leads'): figure(Fake(torch.zeros_like), store[0].pick(['I', 'II', 'V2']))
    none = Fake(torch.zeros_like); none.representation = None
    with pytest.raises(ECGError, match='states no contract'): reconstruct(none, store)


# ---- the command -------------------------------------------------------------------------------------------------------

SMALL = ('source.n=40', 'source.seconds=4', 'prepare.seconds=4', 'prepare.leads=I,II,V2', 'model.encoder.dim=16', 'model.encoder.depth=1', 'model.encoder.heads=2',
         'model.dec_dim=16', 'model.dec_depth=1', 'model.dec_heads=2', 'fit.steps=2', 'fit.warmup=0', 'train.batch_size=4', 'train.every=2')

def test_command(tmp_path, cache, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / 'run'
    results = train(build('tiny', *SMALL, f'out={run}'), quiet=True)
    before = {p: p.read_bytes() for p in run.rglob('*') if p.is_file()}
    assert command(['reconstruct', str(run), 'times=20', 'device=cpu']) == 0
    assert 'interpolation' in capsys.readouterr().out
    r = json.loads((run / 'reconstruct.json').read_text())
    assert {x['lead'] for x in r['rows']} == {'all', 'I', 'II', 'V2'} and r['fold'] == 'test' and r['units']['mse'] == 'mV²' and 'hidden samples only' in r['protocol']
    assert (run / 'reconstruct.png').read_bytes()[:4] == b'\x89PNG'
    assert {p: p.read_bytes() for p in before} == before                          # results.json, the checkpoint: as they were
    assert {p.name for p in run.iterdir()} - {p.name for p in before if p.parent == run} <= {'reconstruct.json', 'reconstruct.png', 'best', 'last'}
    first = (run / 'reconstruct.json').read_bytes()
    main([str(run / 'best'), 'times=20', 'device=cpu', 'batch_size=3'])           # the checkpoint itself: the same place, the same masks
    again = json.loads((run / 'reconstruct.json').read_text())
    assert [x['samples'] for x in again['rows']] == [x['samples'] for x in r['rows']] and len(first)
    main([str(run), 'times=20', 'device=cpu', 'out=elsewhere', 'fold=val', 'source.seed=5'])
    assert json.loads((tmp_path / 'elsewhere/reconstruct.json').read_text())['source']['seed'] == 5
    bare = save(from_config(build('tiny', *SMALL)['model']), tmp_path / 'bare')   # a checkpoint that knows no run
    assert command(['reconstruct', str(bare)]) == 2 and 'type source=' in capsys.readouterr().err
    main([str(bare), 'source=sample', 'source.n=30', 'source.seconds=4', 'times=20', 'device=cpu'])
    assert (bare / 'reconstruct.json').is_file() and results['finished']

def test_command_asks_more(tmp_path, cache, capsys):
    run = tmp_path / 'run'
    train(build('tiny', *SMALL, f'out={run}'), quiet=True)
    base = ['reconstruct', str(run), 'times=20', 'device=cpu', 'fold=1-10']
    assert command([*base, 'shares=0.2,0.8']) == 0
    r = json.loads((run / 'reconstruct.json').read_text())
    assert {v['share'] for v in r['rows']} == {.2, .8} and r['shares'] == '0.2,0.8'
    assert all((run / f).read_bytes()[:4] == b'\x89PNG' for f in ('reconstruct.png', 'reconstruct_curve.png'))
    assert command([*base, 'known=I,II', 'train=1-8']) == 0
    r = json.loads((run / 'lead_completion.json').read_text())
    assert {v['method'] for v in r['rows']} == {'model', 'linear'} and {v['lead'] for v in r['rows']} == {'all', 'V2'} and r['known'] == 'I,II'
    assert (run / 'lead_completion.png').is_file()
    for wrong, said in (('shares=0,1', 'over 0 and under 1'), ('shares=half', 'over 0 and under 1'), ('known=V9', 'V9')):
        capsys.readouterr(); assert command([*base, wrong]) == 2 and said in capsys.readouterr().err
    assert command([*base, 'known=I', 'shares=.5']) == 2 and 'two questions' in capsys.readouterr().err

def test_command_errors(tmp_path, capsys):
    for args, said in ((['reconstruct', str(tmp_path / 'no')], 'no such folder'), (['reconstruct', str(tmp_path), 'flod=val'], "did you mean 'fold'"),
                       (['reconstruct', str(tmp_path)], 'holds no config.json'), (['reconstruct', str(tmp_path), 'fold'], 'wanted key=value'),
                       (['reconstruct', str(tmp_path), 'model.ratio=.5'], "no key 'model.ratio'")):
        assert command(args) == 2 and said in capsys.readouterr().err
    assert command(['reconstruct', '-h']) == 0 and 'fold=test' in capsys.readouterr().out
    assert not any(tmp_path.iterdir())

"""Forecasts against known answers: four naive ones, six numbers, what a model is told, where it stops, and the command's files."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ecgnb.batch import normal
from ecgnb.command import main as command
from ecgnb.forecast import ahead, boundary, figure, forecast, main, reads
from ecgnb.horizons import beats, horizons, scores, sums
from ecgnb.hub import CheckpointError, save
from ecgnb.leads import ECGError
from ecgnb.loader import loader
from ecgnb.metrics import resampled
from ecgnb.naive import METHODS, autoregress, beat_period, beat_scale, repeat_beat
from ecgnb.prepare import prepare
from ecgnb.recipes import build
from ecgnb.registry import from_config, objective as objectives
from ecgnb.representations.bpe import Bpe
from ecgnb.representations.symbols import Symbols
from ecgnb.sources.sample import Sample
from ecgnb.table import Table
from ecgnb.train import train

LEADS = 'I,II,V2'
FIXED = dict(norm='percentile', low=-4., high=4., levels=256)


class StandIn(nn.Module):
    "Answers with the tokens of `rule(k)`, (C,steps) mV, for the k-th window asked for; `ends`: tokens after which it stops."
    def __init__(self, rule, rep=None, context=5000, ends=None, **fields):
        super().__init__()
        how = dict(leads=LEADS, fs=100., length=400, flatten='time', context=context) | FIXED | fields
        self.representation = rep or Symbols(**how)
        self.encoder, self.rule, self.ends, self.prompts, self.calls = SimpleNamespace(context=context), rule, ends, [], []
    def generate(self, prompts, most, stop=None, **draw):
        r, out = self.representation, []
        self.calls.append(draw)
        for p in prompts:
            mv = self.rule(len(self.prompts))
            self.prompts.append(p.clone())
            new = r.ids(r.codes(mv[None])[0])[0][:min(most, self.encoder.context - len(p))]
            new = next((new[:i + 1] for i in range(len(new)) if stop(new[None, :i + 1])), new)
            out.append(new if self.ends is None else new[:self.ends])
        return out


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    src = Sample(n=24, seconds=4., records_per_patient=2.)
    return prepare(src, tmp_path_factory.mktemp('s') / 'store', fs=100, seconds=4, leads=LEADS, progress=False)

@pytest.fixture(scope='module')
def x(store): return loader(store, len(store), shuffle=False, unit='mV')[0]['signal']

class Filler(nn.Module):
    "Fills the unknown with `rule(x told, known, seed (B,))` mV; keeps what it was told."
    def __init__(self, rule, **contract):
        super().__init__()
        self.representation = SimpleNamespace(contract=dict(leads=LEADS.split(','), fs=100., length=400, unit='mV') | contract, norm='none')
        self.encoder, self.rule, self.told = SimpleNamespace(), rule, []
    def fill(self, batch, known, seed=None):
        self.told.append({k: v.clone() for k, v in batch.items() if isinstance(v, torch.Tensor)} | {'known': known})
        return torch.where(known, batch['signal'], self.rule(batch['signal'], known, batch.get('seed')))

class Drawing(Filler):
    "One whose draws differ, as the objectives that generate."
    def generate(self, batch): raise AssertionError('a forecast is filled in')

def whole(scores_of): return np.concatenate([scores_of, np.ones((2, *scores_of.shape[1:]))])    # sums as if of one beat, paired

def oracle(x, start=200, **k): return StandIn(lambda i: x[i % len(x), :, start:], **k)


# ---- without a model ---------------------------------------------------------------------------------------------------

def periodic(period, leads=3, T=1000):
    t = torch.arange(T) % period / period
    return torch.stack([torch.exp(-((t - .2 - .2*k)/.03)**2) - .3*torch.exp(-((t - .6)/.1)**2) for k in range(leads)])[None]

@pytest.mark.parametrize('period', [30, 47, 80, 111, 200])
def test_repeating_a_beat_is_exact_on_a_periodic_signal(period):
    x = periodic(period)
    assert beat_period(x[..., :500], 100).tolist() == [period]
    assert torch.equal(repeat_beat(x[..., :500], 500, 100), x[..., 500:])
    assert beat_scale(x[..., :500], torch.tensor([period])).max() == pytest.approx(.01)

def test_no_beat():
    noise, flat = torch.randn(1, 2, 500, generator=torch.Generator().manual_seed(0)), torch.full((1, 2, 500), .4)
    for v in (noise, flat, noise[..., :50]):
        assert beat_period(v, 100).tolist() == [0]
        assert torch.equal(repeat_beat(v, 7, 100), v[..., -1:].expand(-1, -1, 7))
    assert beat_scale(noise, torch.tensor([0])).flatten().tolist() == pytest.approx(noise.diff(dim=-1).abs().mean(-1).flatten().tolist())

def test_period_is_each_windows_own():
    x = torch.cat([periodic(60), periodic(90), torch.zeros(1, 3, 1000)])
    assert beat_period(x[..., :500], 100).tolist() == [60, 90, 0]
    y = METHODS['beat'](x[..., :500], 100, 100)
    assert torch.equal(y[:2], x[:2, :, 500:600]) and not y[2].any()

def test_autoregression_knows_a_decay_and_cannot_run_away():
    t = torch.arange(2000.)
    wave = (torch.sin(2*torch.pi*t/50) + torch.sin(2*torch.pi*t/23))[None, None]
    y = autoregress(wave[..., :1500], 500, 100)
    assert (y - wave[..., 1500:])[..., :50].square().mean() < .05*wave.var()
    ramp = torch.arange(500.)[None, None]**3                       # least squares would go on for ever
    assert autoregress(ramp, 5000, 100).abs().max() <= ramp.max()
    far = autoregress(wave[..., :300], 20000, 100)[..., -100:]
    assert (far - wave[..., :300].mean()).abs().max() < .05

def test_baselines_by_hand():
    x = torch.tensor([[[1., 2, 3, 6], [0, 0, 0, 4]]])
    assert METHODS['last'](x, 2, 100).tolist() == [[[6., 6], [4, 4]]] and METHODS['mean'](x, 2, 100).tolist() == [[[3., 3], [1, 1]]]
    assert all(f(x, 2, 100).shape == (1, 2, 2) for f in METHODS.values())


# ---- the numbers -------------------------------------------------------------------------------------------------------

def test_six_numbers_by_hand():
    rng = np.random.default_rng(0)
    x, y, m = rng.normal(size=(2, 3, 40)), rng.normal(size=(2, 3, 40)), rng.random((2, 3, 40)) < .8
    scale = rng.random((2, 3, 1)) + .1
    total = sums(*map(torch.from_numpy, (x, y[None], m)), [10, 40], torch.from_numpy(scale))
    assert total.shape == (2, 8, 2, 3)
    s = scores(whole(total.sum(0).numpy()))                                                # pooled over windows
    for h, end in enumerate((10, 40)):
        for c in range(3):
            w = m[:, c, :end]
            off = (y - x)[:, c, :end]
            r = [np.corrcoef(x[b, c, :end][w[b]], y[b, c, :end][w[b]])[0, 1] for b in range(2)]
            want = dict(mse=(off[w]**2).mean(), mae=abs(off[w]).mean(), mase=(abs(off)/scale[:, c])[w].mean(), r=np.mean(r),
                        snr=10*np.log10((x[:, c, :end][w]**2).sum()/(off[w]**2).sum()), crps=abs(off[w]).mean())
            assert {k: s[k][h, c] for k in want} == pytest.approx(want)

def test_crps_and_median_of_draws():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(1, 1, 30)), rng.normal(size=(5, 1, 1, 30))
    y[3, ..., 20:] = np.nan; y[4, ..., 10:] = np.nan                                 # two draws that ended early
    s = scores(whole(sums(torch.from_numpy(x), torch.from_numpy(y), torch.ones(1, 1, 30).bool(), [30], torch.ones(1, 1, 1))[0].numpy()))
    crps, off = [], []
    for t in range(30):
        v = y[:, 0, 0, t][np.isfinite(y[:, 0, 0, t])]
        crps.append(abs(v - x[0, 0, t]).mean() - .5*abs(v[:, None] - v).mean()); off.append(np.median(v) - x[0, 0, t])
    assert s['crps'][0, 0] == pytest.approx(np.mean(crps)) and s['mse'][0, 0] == pytest.approx(np.square(off).mean())

def test_beats_by_hand():
    "Peaks at known places; partners within 75 ms; each side counts its own up to the horizon."
    x = periodic(80)                                                      # ten beats; R at 16, 96, ...: six of them after 500
    past, later = x[..., :500], x[..., 500:]
    seen = torch.ones_like(later, dtype=torch.bool)
    of = lambda y, ends=(500,), counted=seen: beats(past, later, y, counted, ends, 100.)[0]
    n = int(of(later[None])[1, 0]/2)
    assert n in (6, 7) and of(later[None])[:, 0].tolist() == [2*n, 2*n]
    assert of(torch.zeros(1, 1, 3, 500))[:, 0].tolist() == [0, n] == of(torch.full((1, 1, 3, 500), torch.nan))[:, 0].tolist()
    assert of(torch.stack([later, torch.zeros(1, 3, 500)]))[:, 0].tolist() == [n, 1.5*n]
    near, far = (of(later.roll(k, -1)[None])[0, 0] for k in (7, 9))
    assert near >= 2*n - 2 and far <= 2
    half = of(later[None], (250, 500))
    assert 0 < half[1, 0] < half[1, 1] == 2*n
    gone = seen.clone(); gone[..., 250:] = False                          # not recorded in any lead: not counted
    assert of(later[None], (500,), gone)[1, 0] == half[1, 0]
    one = gone.clone(); one[:, 1] = True
    assert of(later[None], (500,), one)[1, 0] == 2*n
    assert beats(past, later, later[None], seen, [500], 40.).isnan().all()

def test_r_where_nothing_moves():
    x, flat, m = torch.randn(1, 1, 20), torch.zeros(1, 1, 20), torch.ones(1, 1, 20).bool()
    one = lambda x, y: sums(x, y[None], m, [20], torch.ones(1, 1, 1))[0, 4:6, 0, 0].tolist()
    assert one(x, flat + .3) == [0., 1.] and one(flat + .3, x) == [0., 0.] and one(x, 2*x - 1) == pytest.approx([1., 1.])

def test_horizons():
    assert horizons(200, 100) == {'0.25 s': 25, '0.5 s': 50, '1 s': 100, 'all': 200}
    assert horizons(201, 100)['2 s'] == 200 and horizons(10, 100) == {'all': 10}

def test_patients_are_what_is_drawn():
    total, who = np.arange(8.).reshape(4, 2), ['a', 'b', 'a', 'c']
    out = resampled(total, who, 200, 0)
    assert out.shape == (201, 2) and out[0].tolist() == [12., 16.]
    each = np.array([[4., 6], [2, 3], [6, 7]])                                       # of a, b, c: three drawn, with replacement
    assert {tuple(v) for v in out[1:].tolist()} <= {tuple(each[[i, j, k]].sum(0)) for i in range(3) for j in range(3) for k in range(3)}
    assert np.array_equal(resampled(np.tile(total, (2, 1)), who*2, 200, 0), 2*out)   # twice the windows: no narrower
    assert resampled(total, ['a']*4, 200, 0).shape == (1, 2)


# ---- what the model is told, and where it stops ------------------------------------------------------------------------

def test_oracle(store, x):
    "Who gives the true tokens is off by the quantisation; every sample behind the boundary is in its place."
    model = oracle(x)
    r = forecast(model, store, batch_size=5, times=20)
    assert r.value('mae') < 8/256/2 and r.value('r') > .98 and r.value('mse_high', 'mean') < 0
    assert r.counts['reached'] == 1 and r.value('samples') == 24*3*200 and r.value('samples', lead='V2', horizon='0.5 s') == 24*50
    y = ahead(oracle(x), dict(signal=x)).guess['model'][0]
    assert (y - x[..., 200:]).abs().max() <= 8/256/2 + 1e-4

def test_who_repeats_the_beat_equals_the_baseline(store, x):
    beat = repeat_beat(x[..., :200], 200, 100.)
    r = forecast(StandIn(lambda i: beat[i]), store, times=20)
    for m, near in dict(mse=2e-3, mae=2e-3, mase=.02, r=5e-3, snr=.05).items(): assert r.value(m) == pytest.approx(r.value(m, 'beat'), abs=near)

@pytest.mark.parametrize('norm', ['minmax', 'percentile'])
@pytest.mark.parametrize('block', [1, 8])
def test_no_leak(x, norm, block):
    "Another future, the same prompts, range and baselines, whatever the normalisation."
    told, other = [StandIn(lambda i: torch.zeros(3, 200), **(dict(norm=norm, low=-4., high=4.) if norm == 'percentile' else dict(norm=norm, low=-1.5, high=1.5)), block=block) for _ in range(2)]
    later = x.clone(); later[..., 200:] = 40*torch.randn(len(x), 3, 200)
    a, b = ahead(told, dict(signal=x)), ahead(other, dict(signal=later))
    assert all(torch.equal(p, q) for p, q in zip(told.prompts, other.prompts)) and torch.equal(a.guess['model'], b.guess['model'])
    assert all(torch.equal(a.guess[k], b.guess[k]) for k in METHODS)
    assert told.prompts[0][0] == told.representation.bos and len(told.prompts[0]) == 601

def test_only_recorded_samples_count(store, x):
    valid = torch.ones_like(x, dtype=torch.bool); valid[:, 0, 250:] = False; valid[:, 1, 50:90] = False
    a = ahead(oracle(x), dict(signal=x, valid=valid))
    assert a.counted.sum((0, 2)).tolist() == [24*50, 24*200, 24*200]
    assert torch.allclose(a.x[0, 1, 50:90].diff(), a.x[0, 1, 50:52].diff().expand(39), atol=1e-6)       # a line over the gap

def test_boundary_is_a_whole_block():
    assert [boundary(s, 400, b) for s, b in ((.5, 1), (.5, 30), (.3, 1), (.999, 1))] == [200, 180, 120, 399]
    for share, block in ((0., 1), (1., 1), (-1., 1), (.001, 1), (.1, 80)):
        with pytest.raises(ECGError, match=f'wanted {block} to 399'): boundary(share, 400, block)

def test_blocks_come_back_in_their_place(x):
    y = ahead(oracle(x, 182, block=7), dict(signal=x), share=.46).guess['model'][0]
    assert y.shape[-1] == 218 and (y - x[..., 182:]).abs().max() <= 8/256/2 + 1e-4

def test_cut_short(store, x):
    "A context that holds less than the window: half of it is the latest part of what is given, the forecast ends where it is full."
    model = oracle(x, context=400)
    r = forecast(model, store, times=20)
    assert all(len(p) == 199 for p in model.prompts)                                 # bos and 66 samples of three leads
    assert r.counts | dict(prompts_cut=24, left_out=134., ended_by_context=24, reached=201/600) == r.counts
    assert '24 windows were cut short by the context of 400 tokens' in r.protocol and '1.34 s less' in r.protocol and '33.5%' in r.protocol
    assert r.value('mae') < 8/256/2 and r.value('samples') == 24*201 == r.value('samples', 'beat')
    kept, _ = model.representation.encode(x[:1, :, 134:200])
    assert torch.equal(model.prompts[0][1:], kept[0])

def test_room_for_what_is_to_come(x):
    "What is given may take more than half of the context where the rest needs less."
    model = oracle(x, 320, context=1001)
    a = ahead(model, dict(signal=x), share=.8)
    assert len(model.prompts[0]) == 760 and (a.left == 67).all() and not a.full.any() and a.counted.all()

def test_the_end_token_is_not_among_the_choices(store, x):
    model = oracle(x)
    forecast(model, store, times=20)
    assert all(c['end'] is False for c in model.calls)

def test_what_a_model_leaves_out_is_not_counted(store, x):
    r = forecast(oracle(x, ends=90), store, times=20)
    assert r.counts['ended_by_context'] == 24 and r.value('samples') == 24*90
    with pytest.raises(ECGError, match='forecast no recorded sample'): forecast(oracle(x, ends=0), store)

def test_merged_tokens(store, x):
    "With merges a token may reach past the end: it is cut there, and nothing is out of place."
    pytest.importorskip('ecgnb._bpe', reason='needs the compiled tokenizer')           # of `make setup`
    pairs = np.array([[k, k] for k in range(20, 40)] + [[64 + k, 64 + k] for k in range(20)], np.int32)      # level 32 is 0 mV
    rep = Bpe.of(Table(pairs, bytes(range(64)), {}, {}), leads='II', fs=100., length=400, levels=64, norm='percentile', low=-4., high=4.,
                 flatten='time', context=500)
    one = x[:, 1:2]
    class Late(StandIn):
        def generate(self, prompts, most, stop=None, **draw):
            r = self.representation
            return [r.ids(r.codes(torch.cat([one[k, :, 200:], one[k, :, -1:].expand(1, 60)], -1)[None])[0])[0] for k in range(len(prompts))]
    y = ahead(Late(None, rep), dict(signal=one)).guess['model'][0]
    assert y.shape[-1] == 200 and (y - one[..., 200:]).abs().max() <= 8/64/2 + 1e-4

def test_draws_have_their_own_seeds(store, x):
    model = oracle(x)
    r = forecast(model, store, samples=3, batch_size=24, times=5, temperature=.8, top_k=5)
    assert [c['temperature'] for c in model.calls] == [.8]*3 and len({tuple(c['seed'].tolist()) for c in model.calls}) == 3
    assert 'temperature=0.8, top_k=5, seed=0, the median of 3 draws' in r.protocol and 'CRPS mV' in r.overall
    forecast(model := oracle(x), store, times=5)
    assert 'seed' not in model.calls[0] and 'greedily' in forecast(oracle(x), store, times=5).protocol


# ---- models that fill in -----------------------------------------------------------------------------------------------

def test_who_fills_is_told_the_past_alone(x):
    valid = torch.ones_like(x, dtype=torch.bool); valid[:, 0, 250:] = False; valid[:, 1, 50:90] = False
    later = x.clone(); later[..., 200:] = 40*torch.randn(len(x), 3, 200)
    model = Filler(lambda told, known, seed: told + 1)
    a, b = (ahead(model, dict(signal=v, valid=valid)) for v in (x, later))
    one, two = model.told
    assert torch.equal(one['signal'], two['signal']) and not one['signal'][..., 200:].any() and torch.equal(a.guess['model'], b.guess['model'])
    known = valid.clone(); known[..., 200:] = False
    assert torch.equal(one['known'], known) and torch.equal(one['signal'][known], x[known]) and a.counted.sum((0, 2)).tolist() == [24*50, 24*200, 24*200]

def test_filling_oracle(store, x):
    model = Filler(lambda told, known, seed: x[:len(told)] if len(told) == len(x) else None)
    r = forecast(model, store, batch_size=24, times=20)
    assert r.value('mse') == 0 and r.value('f1') == 1 and r.value('mse_high', 'mean') < 0 and r.counts['reached'] == 1
    assert r.value('f1_low', 'last') == 1 and np.isnan(r.value('f1', lead='II'))
    assert 'filling in the whole of it at once;' in r.protocol and 'at most 75 ms apart' in r.protocol and 'tokens' not in r.protocol

def test_filling_the_beat_equals_the_baseline(store, x):
    model = Filler(lambda told, known, seed: torch.cat([told[..., :200], repeat_beat(told[..., :200], 200, 100.)], -1))
    r = forecast(model, store, times=20)
    for m in ('mse', 'mae', 'mase', 'r', 'snr', 'f1'): assert r.value(m) == pytest.approx(r.value(m, 'beat'), abs=1e-6)

def test_filled_draws(store):
    model = Drawing(lambda told, known, seed: normal(seed, *told.shape[1:]))
    r = forecast(model, store, samples=4, times=5)
    seeds = [t['seed'] for t in model.told]
    assert len(seeds) == 4 and len(torch.cat(seeds).unique()) == 4*24 and r.value('crps') < r.value('mae') and 'drawn with seed=0, the median of 4 draws' in r.protocol
    again = forecast(Drawing(model.rule), store, samples=4, times=5, batch_size=7)
    assert r.value() == pytest.approx(again.value()) and r.counts == again.counts | dict(windows=24)
    assert r.value() != pytest.approx(forecast(Drawing(model.rule), store, samples=4, times=5, seed=1).value())

def test_who_cannot_fill_or_write(store):
    one = Filler(lambda told, known, seed: told)
    for how, said in (dict(samples=3), 'Filler fills in one way only, so wanted 1'), (dict(temperature=1.), 'draws no tokens; leave them out'), (dict(samples=0), 'wanted 1 or more'):
        with pytest.raises(ECGError, match=said): forecast(one, store, **how)
    with pytest.raises(CheckpointError, match='fs: the data have 100.0, the model reads 50.0'): forecast(Filler(one.rule, fs=50.), store)
    class Embeds(nn.Module): representation = SimpleNamespace(contract=dict(one.representation.contract))
    for model in (Embeds(), nn.Linear(2, 2)):
        with pytest.raises(ECGError, match='has no `fill`, and no `generate` on tokens, so it cannot forecast; wanted objective next_token.*masked, flow or diffusion'): forecast(model, store)
    blank = Filler(one.rule); blank.representation = None
    with pytest.raises(ECGError, match='states no contract'): forecast(blank, store)

TINY = dict(leads=LEADS, length=400, patch=20, dim=16, depth=1, heads=2)
SIGNAL = dict(representation='signal', leads=LEADS, fs=100., length=400)

@pytest.mark.parametrize('objective', ['masked', 'flow', 'diffusion'])
def test_every_model_that_fills(store, x, objective):
    "The real ones, untrained: a number for every horizon, the same whatever the future is; whole leads cannot be cut in time."
    torch.manual_seed(0)
    coder = dict(encoder='st_vit' if objective == 'masked' else 'dit', **TINY)
    more = dict(dec_dim=16, dec_depth=1, dec_heads=2) if objective == 'masked' else {}
    model = from_config(dict(objective=objective, representation=SIGNAL | dict(norm='fixed'), encoder=coder, **more))
    model.fill, fill = None, model.fill
    model.fill = (lambda b, k: fill(b, k)) if objective == 'masked' else (lambda b, k: fill(b, k, steps=2))
    some = store.select(range(3))
    r = forecast(model, some, times=5, samples=1 if objective == 'masked' else 2)
    assert np.isfinite(r.frame[r.frame['lead'] == 'all']['mse']).all() and r.counts['reached'] == 1
    w = dict(signal=x[:2], seed=torch.arange(2))
    later = x[:2].clone(); later[..., 200:] = 9.
    assert torch.equal(ahead(model, w).guess['model'], ahead(model, w | dict(signal=later)).guess['model'])
    figure(model, store[0])

def drawer(flatten='time', **fields):
    "token_flow, untrained, with the gates of its head open."
    torch.manual_seed(0)
    model = from_config(dict(objective='token_flow', representation=dict(representation='symbols', leads=LEADS, fs=100., length=400, levels=8, context=0, flatten=flatten) | fields,
                             encoder=dict(encoder='decoder', vocab=11, context=1202, dim=16, depth=1, heads=2, dropout=0.), head=dict(encoder='dit', leads=LEADS, length=400, patch=20, dim=16, depth=1, heads=2, cross=16)))
    for p in model.head.parameters(): nn.init.normal_(p, std=.2)
    fill, model.asked = model.fill, []
    def few(batch, known, **how):
        model.asked.append(how)
        return fill(batch, known, steps=2, **how)
    model.fill = few
    return model.eval()

def test_who_writes_and_draws_is_judged_by_what_it_draws(store, x):
    "token_flow: another head, another forecast; not the tokens decoded; the past alone is read, gaps and all."
    model, valid = drawer(), torch.ones_like(x[:2], dtype=torch.bool)
    valid[0, 0, 50:90] = False; valid[1, 2, 250:] = False
    w = dict(signal=x[:2], valid=valid, seed=torch.arange(2))
    a = ahead(model, w)
    later = x[:2].clone(); later[..., 200:] = 9.; later[0, 0, 50:90] = 9.
    assert torch.equal(a.guess['model'], ahead(model, w | dict(signal=later)).guess['model'])
    assert torch.equal(a.x[valid], x[:2][valid]) and torch.equal(a.counted, valid[..., 200:])
    other = drawer()
    with torch.no_grad():
        for p in other.head.parameters(): p.mul_(1.3)
    assert not torch.allclose(a.guess['model'], ahead(other, w).guess['model'], atol=1e-3)
    plain = from_config(dict(objective='next_token', representation=dict(representation='symbols', leads=LEADS, fs=100., length=400, levels=8, context=0, flatten='time'),
                             encoder=dict(encoder='decoder', vocab=11, context=1202, dim=16, depth=1, heads=2, dropout=0.))).eval()
    plain.encoder.load_state_dict(model.encoder.state_dict())
    assert not torch.allclose(a.guess['model'], ahead(plain, w).guess['model'], atol=1e-3)
    r = forecast(model, store.select(range(2)), times=5, samples=2)
    assert 'in its own range' in r.protocol and 'forecast greedily, in tokens, drawn by its flow head, seed=0, the median of 2 draws;' in r.protocol and r.counts['reached'] == 1
    assert r.value('crps') < r.value('mae') and 'flow head' not in forecast(plain, store.select(range(1)), times=5).protocol
    figure(model, store[0])

def test_who_writes_and_draws_is_told_how(store):
    model, some = drawer(), store.select(range(2))
    r = forecast(model, some, times=5, temperature=.8, top_k=3, top_p=.9)
    assert model.asked == [dict(temperature=.8, top_k=3, top_p=.9)] and 'forecast by temperature=0.8, top_k=3, top_p=0.9, in tokens, drawn by its flow head, seed=0;' in r.protocol
    assert r.value() != forecast(model, some, times=5).value() and r.value() == forecast(model, some, times=5, temperature=.8, top_k=3, top_p=.9).value()
    with pytest.raises(ECGError, match='train one with model.representation.flatten=time'): forecast(drawer('lead'), some)
    assert ahead(drawer(block=30), dict(signal=torch.zeros(1, 3, 400))).start == 180                # whole blocks
    with pytest.raises(ECGError, match='wanted 1 or more'): forecast(model, some, samples=0)

def test_a_whole_lead_is_no_past(store):
    model = from_config(dict(objective='masked', representation=SIGNAL, encoder=dict(encoder='vit1d', over='lead', **TINY | dict(patch=0)), dec_dim=16, dec_depth=1, dec_heads=2))
    with pytest.raises(ECGError, match='no patch of 400 samples that is known in whole'): forecast(model, store)

@pytest.mark.parametrize('objective', ['classify', 'contrastive', 'next_embedding'])
def test_objectives_without_a_way_back_to_mv(objective):
    cls = objectives[objective]
    model = cls.__new__(cls); nn.Module.__init__(model)
    with pytest.raises(ECGError, match='so it cannot forecast; wanted objective next_token'): reads(model)


# ---- table, figure, errors ---------------------------------------------------------------------------------------------

def test_table(store, x):
    noisy = x[..., 200:] + .1*torch.randn(24, 3, 200, generator=torch.Generator().manual_seed(0))
    r = forecast(StandIn(lambda i: noisy[i]), store, times=100)
    f = r.frame
    assert list(f['horizon'].unique()) == ['0.25 s', '0.5 s', '1 s', 'all'] and list(f['lead'].unique()) == ['all', *LEADS.split(',')]
    assert list(f['method'].unique()) == ['model', 'beat', 'linear', 'last', 'mean'] and len(f) == 4*4*5
    assert r.value('mse') == pytest.approx(np.mean([r.value('mse', lead=l) for l in LEADS.split(',')]))
    d = r.value('mse') - r.value('mse', 'last')
    assert r.value('mse_diff', 'last') == pytest.approx(d) and r.value('mse_low', 'last') <= d <= r.value('mse_high', 'last')
    saved = json.loads(json.dumps(r.to_json(), allow_nan=False))
    assert saved['counts']['windows'] == 24 and len(saved['rows']) == 80 and saved['units']['crps'] == 'mV'
    assert 'MASE' in repr(r) and '<table' in r._repr_html_()
    one = store.select((store.frame['patient'] == store.frame['patient'][0]).to_numpy())
    alone = forecast(StandIn(lambda i: noisy[i]), one)
    assert np.isnan(alone.value('mse_low', 'mean')) and np.isfinite(alone.value('mse_diff', 'mean')) and 'one patient' in alone.protocol

def test_figure(x, store):
    fig = figure(oracle(x), store[0])
    lines = {a.get_gid(): a for a in fig.axes[0].lines if a.get_gid()}
    assert {f'{k}:{l}' for k in ('trace', 'truth', 'forecast', 'boundary') for l in LEADS.split(',')} <= set(lines)
    edge = lines['boundary:II'].get_xdata()[0]
    own, red = (np.isfinite(lines[k].get_ydata()) for k in ('trace:II', 'forecast:II'))
    assert lines['trace:II'].get_xdata()[own].max() < edge + 1e-6 and lines['forecast:II'].get_xdata()[red].min() >= edge - 1e-6

def test_errors(store, x):
    with pytest.raises(ECGError, match='train one with model.representation.flatten=time'): forecast(oracle(x, flatten='lead'), store)
    with pytest.raises(ECGError, match='empty'): forecast(oracle(x), store.select([]))
    with pytest.raises(ECGError, match='samples=3 at temperature=0'): forecast(oracle(x), store, samples=3)
    with pytest.raises(CheckpointError, match='fs: the data have 100.0, the model reads 50.0'): forecast(oracle(x, fs=50.), store)
    with pytest.raises(CheckpointError, match='leads'): figure(oracle(x), store[0].pick(['I', 'V2', 'II']))
    with pytest.raises(ECGError, match='a smaller block or a larger context'): forecast(oracle(x, context=30, block=20), store)
    one = Symbols(leads='II', fs=100., length=400, context=500, **FIXED)             # a single lead is in time in any order
    assert ahead(StandIn(lambda i: x[i, 1:2, 200:], one), dict(signal=x[:, 1:2])).counted.all()


# ---- the command -------------------------------------------------------------------------------------------------------

SMALL = ('source.n=40', 'source.seconds=4', 'prepare.fs=25', 'prepare.stride=4', 'prepare.leads=I,II', 'model.encoder.dim=16', 'model.encoder.depth=1',
         'model.encoder.heads=2', 'fit.steps=2', 'fit.warmup=0', 'train.batch_size=4', 'train.every=2', 'train.save=2')

def test_command(tmp_path, cache, capsys):
    run = tmp_path / 'run'
    train(build('tiny_lm', *SMALL, 'prepare.low=0', f'out={run}'), quiet=True)
    before = {p: p.read_bytes() for p in run.rglob('*') if p.is_file()}
    assert command(['forecast', str(run), 'times=20', 'device=cpu']) == 0
    assert 'linear' in capsys.readouterr().out
    r = json.loads((run / 'forecast.json').read_text())
    assert {v['horizon'] for v in r['rows']} == {'0.25 s', '0.5 s', '1 s', 'all'} and r['fold'] == 'test' and r['share'] == .5
    assert r['counts']['given'] == 50 and 'given is the first 2 s' in r['protocol'] and (run / 'forecast.png').read_bytes()[:4] == b'\x89PNG'
    assert {p: p.read_bytes() for p in before} == before
    args = ['times=20', 'device=cpu', 'fold=1-10', 'windows=5', 'share=.25', 'samples=2', 'temperature=1.', f'out={tmp_path/"more"}']
    main([str(run / 'best'), *args])
    r = json.loads((tmp_path / 'more/forecast.json').read_text())
    assert r['counts']['windows'] == 5 and r['counts']['given'] == 25 and r['counts']['samples'] == 2
    assert {v['horizon'] for v in r['rows']} == {'0.25 s', '0.5 s', '1 s', '2 s', 'all'}
    wrong = build('tiny_lm', *SMALL, 'model.representation.flatten=lead')
    bare = save(from_config(wrong['model']), tmp_path / 'bare')
    assert command(['forecast', str(bare), 'source=sample']) == 2 and 'flatten=time' in capsys.readouterr().err

def test_command_fills(tmp_path, cache, capsys):
    "The same command for a model that fills in."
    run = tmp_path / 'run'
    few = ('source.n=40', 'source.seconds=4', 'prepare.seconds=4', 'prepare.leads=I,II', 'model.encoder.dim=16', 'model.encoder.depth=1', 'model.encoder.heads=2',
           'model.dec_dim=16', 'model.dec_depth=1', 'model.dec_heads=2', 'fit.steps=2', 'fit.warmup=0', 'train.batch_size=4', 'train.every=2')
    train(build('tiny', *few, f'out={run}'), quiet=True)
    assert command(['forecast', str(run), 'times=20', 'device=cpu']) == 0 and 'F1' in capsys.readouterr().out
    r = json.loads((run / 'forecast.json').read_text())
    assert {v['method'] for v in r['rows']} == {'model', *METHODS} and 'filling in' in r['protocol'] and r['units']['f1'] == ''
    assert (run / 'forecast.png').read_bytes()[:4] == b'\x89PNG'
    assert command(['forecast', str(run), 'samples=3']) == 2 and 'fills in one way only' in capsys.readouterr().err

def test_command_errors(tmp_path, capsys):
    for args, said in ((['forecast', str(tmp_path / 'no')], 'no such folder'), (['forecast', str(tmp_path), 'flod=val'], "did you mean 'fold'"),
                       (['forecast', str(tmp_path)], 'holds no config.json'), (['forecast', str(tmp_path), 'fold'], 'wanted key=value')):
        assert command(args) == 2 and said in capsys.readouterr().err
    assert command(['forecast', '-h']) == 0 and 'share=0.5' in capsys.readouterr().out
    assert not any(tmp_path.iterdir())

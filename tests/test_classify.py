"Supervised training: what counts in the loss, what freezing and layer-wise rates do, and that optimizers respect them."
import copy

import pytest
import torch
from torch import nn

from ecgnb.batch import sample_seeds
from ecgnb.encoders.decoder import Decoder
from ecgnb.encoders.s4 import S4
from ecgnb.encoders.vit1d import Vit1d
from ecgnb.fit import fit
from ecgnb.leads import ECGError
from ecgnb.objectives.classify import Classify, bce, depths
from ecgnb.optim import factors, kinds, optimizers
from ecgnb.representations.signal import Signal
from ecgnb.representations.symbols import Symbols

NAN = float('nan')
SMALL = dict(length=200, dim=16, depth=3, heads=2)


def model(**kw):
    torch.manual_seed(0)
    return Classify(Signal(fs=100., length=200), Vit1d(**SMALL), **{'classes': 'A,B,C', **kw})


def batch(n=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    label = (torch.rand(n, 3, generator=g) < .4).float()
    label[0, 1] = NAN
    return dict(signal=torch.randn(n, 12, 200, generator=g), seed=sample_seeds(0, 0, range(n)), label=label)


def some(b, rows): return {k: v[rows] for k, v in b.items()}


def test_shares_of_a_batch_average_to_the_batch():
    b, m = batch(6), model(weight='balanced', prior='.2,.5,.7', smoothing=.1)
    b['label'][4:] = NAN                    # a share of which nothing is known counts as the samples that it has
    whole = m(b).loss
    parts = [m(some(b, slice(i, i + 2))).loss for i in (0, 2, 4)]
    assert parts[2] == 0 and whole > 0
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_the_loss_by_hand():
    logits, label = torch.tensor([[.5, -1.], [2., .3]]), torch.tensor([[1., 0.], [NAN, 1.]])
    p = logits.sigmoid()
    want = (((-p[0, 0].log()*3 - (1 - p[0, 1]).log()*.5)/2) + -p[1, 1].log()*4)/2
    torch.testing.assert_close(bce(logits, label, torch.tensor([3., 4.]), torch.tensor([9., .5])), want)
    smooth = bce(logits, label, smoothing=.2)
    each = -(label*.8 + .1)*p.log() - (1 - label*.8 - .1)*(1 - p).log()
    torch.testing.assert_close(smooth, (each[0].mean() + each[1, 1])/2)


def test_nothing_known_gives_no_loss_and_no_gradient():
    m, b = model(), batch()
    out = m(b | {'label': torch.full((4, 3), NAN)})
    out.loss.backward()
    assert out.loss == 0 and all(v.isfinite() for v in out.logs.values())
    assert all(p.grad is not None and (p.grad == 0).all() for p in m.parameters())


def test_an_unknown_label_does_not_count():
    m, b = model().eval(), batch()
    before = m(b).loss
    with torch.no_grad(): m.head.bias[1] += 5.      # only sample 0 does not care
    m(some(b, slice(0, 1))).loss.backward()
    assert m.head.bias.grad[1] == 0 and (m.head.bias.grad[[0, 2]] != 0).all() and m(b).loss != before


def test_frozen_encoder():
    m = model(freeze=True, dropout=.5).train()
    state = copy.deepcopy(m.encoder.state_dict())
    assert not m.encoder.training and m.training and not any(p.requires_grad for p in m.encoder.parameters())
    for _ in fit(m, [batch()], 3, lr=.1): pass
    assert all(torch.equal(v, state[k]) for k, v in m.encoder.state_dict().items()) and list(m.rates()) == ['head.weight', 'head.bias']
    z = []
    m.encoder.norm.register_forward_hook(lambda mod, args, out: z.append(out.requires_grad))
    m(batch()).loss.backward()
    assert z == [False], 'a graph was built through the frozen encoder'


def test_prob_undoes_balancing():
    "Balanced logits are those of a 50:50 population; Bayes' rule brings back the share in the training data."
    m = model(weight='balanced', prior='.1,.5,.9')
    logits = torch.randn(5, 3)
    odds = logits.exp()*torch.tensor([.1/.9, 1., 9.])
    torch.testing.assert_close(m.prob(logits), odds/(1 + odds))
    torch.testing.assert_close(model().prob(logits), logits.sigmoid())


def test_predict_needs_no_label_and_leaves_the_mode():
    m, b = model(dropout=.9).train(), batch()
    p = m.predict({k: v for k, v in b.items() if k != 'label'})
    assert m.training and p.shape == (4, 3) and not p.requires_grad and torch.equal(p, m.predict(b))
    assert torch.equal(p, m.eval()(b).pred['prob'])


def test_what_features_do_not_read_is_not_trained():
    torch.manual_seed(0)
    r = Symbols(leads='II', fs=100., length=60)
    m = Classify(r, Decoder(dim=16, depth=1, heads=2, **r.facts), classes='A,B')
    assert not m.encoder.head.weight.requires_grad and 'encoder.head.weight' not in m.rates()
    out = m(dict(signal=torch.randn(3, 1, 60), label=torch.eye(3)[:, :2])); out.loss.backward()
    assert out.loss.isfinite() and all(p.grad is not None for p in m.parameters() if p.requires_grad)

    class Own(Vit1d):
        apart = ('norm', 'token')
    assert not any(p.requires_grad for n, p in Classify(Signal(fs=100., length=200), Own(**SMALL), classes='A').encoder.named_parameters()
                   if n.startswith(('norm', 'token')))


# ---- layer-wise rates -------------------------------------------------------------------------------------------------
def test_rates_of_a_transformer():
    m = model(layer_decay=.5)
    r = m.rates()
    assert r.keys() == dict(m.named_parameters()).keys()
    assert {r[f'encoder.transformer.{i}.qkv.weight'] for i in range(3)} == {.125, .25, .5} and r['encoder.transformer.2.up.bias'] == .5
    assert r['encoder.embedding.1.weight'] == r['encoder.token'] == .0625 and r['encoder.norm.weight'] == r['head.bias'] == 1.


def test_depth_of_any_encoder():
    where, n = depths(S4(length=200, dim=16, depth=2))
    assert n == 2 and where['embedding.weight'] == 0 and where['layers.0.ssm.out'] == 1 and where['layers.1.mix.bias'] == 2
    where, n = depths(Decoder(vocab=9, context=8, dim=8, depth=2, heads=2, positions='learned'))     # places come after the blocks
    assert n == 2 and where['places.table'] == where['embedding.weight'] == 0 and where['norm.weight'] == 3
    where, n = depths(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
    assert n == 0 and set(where.values()) == {0}
    block = lambda: nn.Sequential(nn.Conv1d(2, 2, 3), nn.BatchNorm1d(2))
    where, n = depths(nn.ModuleDict(dict(a=nn.Sequential(block(), block()), between=nn.Linear(2, 2), b=nn.ModuleList([block()]), end=nn.Linear(2, 2))))
    assert n == 3 and [where[k] for k in ('a.0.0.weight', 'a.1.1.bias', 'between.weight', 'b.0.0.bias', 'end.weight')] == [1, 2, 2, 3, 4]


NAMES = ['adamw', 'adam'] + ['muon']*hasattr(torch.optim, 'Muon')

@pytest.mark.parametrize('name', NAMES)
def test_every_parameter_gets_its_rate(name):
    m = model(layer_decay=.5)
    opts, r, what = optimizers(m, name, lr=1., weight_decay=.1, adamw_ratio=.25), m.rates(), kinds(m)
    seen = {id(p): (g['peak'], g['weight_decay']) for o in opts for g in o.param_groups for p in g['params']}
    assert len(seen) == sum(len(g['params']) for o in opts for g in o.param_groups) == len(list(m.parameters()))
    for k, p in m.named_parameters():
        base = .25 if name == 'muon' and what[k] != 'hidden' else 1.
        assert seen[id(p)] == (base*r[k], 0. if what[k] == 'plain' else .1), k


@pytest.mark.parametrize('name', NAMES)
def test_rates_of_one_change_nothing(name):
    "layer_decay=1 makes the groups, and the bits, of a model without rates()."
    def trained(with_rates):
        m = model()
        if not with_rates: m.rates = dict
        steps = list(fit(m, [batch()], 4, lr=1e-2, optim=name))
        return steps[-1].state_dict()
    a, b = trained(True), trained(False)
    assert all(torch.equal(v, b['model'][k]) for k, v in a['model'].items())
    assert [o['param_groups'] for o in a['opts']] == [o['param_groups'] for o in b['opts']]


def test_groups_without_rates_are_those_before_they_were_invented():
    m = nn.ModuleDict(dict(embed=nn.Linear(3, 4), blocks=nn.ModuleList([nn.Linear(4, 4)]), table=nn.Embedding(5, 4)))
    names = {id(p): n for n, p in m.named_parameters()}
    def seen(*a, **k): return [[([names[id(p)] for p in g['params']], g['peak'], g['weight_decay']) for g in o.param_groups] for o in optimizers(m, *a, **k)]
    plain = ['embed.bias', 'blocks.0.bias', 'table.weight']
    assert seen(lr=.5) == [[(['embed.weight', 'blocks.0.weight'], .5, .01), (plain, .5, 0.)]]
    assert seen(lr=.5, weight_decay=0.) == [[(['embed.weight', 'blocks.0.weight'], .5, 0.), (plain, .5, 0.)]]
    if 'muon' in NAMES:
        assert seen('muon', lr=.5, adamw_ratio=.5) == [[(['blocks.0.weight'], .5, .01)], [(['embed.weight'], .25, .01), (plain, .25, 0.)]]


@pytest.mark.parametrize('name', NAMES)
def test_a_resumed_fine_tuning_goes_on_to_the_same_bits(name):
    how, data = dict(lr=1e-2, optim=name, warmup=2), [batch(seed=i) for i in range(3)]
    whole = [(s.i, s.loss, s.state_dict() if s.i == 6 else None) for s in fit(model(layer_decay=.7), data, 6, **how)]
    for s in fit(model(layer_decay=.7), data, 6, **how):
        if s.i == 3: state = copy.deepcopy(s.state_dict()); break
    fresh = model(layer_decay=.7)
    with torch.no_grad():
        for p in fresh.parameters(): p.add_(1.)
    again = [(s.i, s.loss, s.state_dict() if s.i == 6 else None) for s in fit(fresh, data, 6, resume=state, **how)]
    assert [a[:2] for a in again] == [w[:2] for w in whole[3:]]
    assert all(torch.equal(v, whole[-1][2]['model'][k]) for k, v in again[-1][2]['model'].items())


def test_lower_layers_move_less():
    m = model(layer_decay=.1)
    before = copy.deepcopy(m.state_dict())
    for _ in fit(m, [batch()], 2, lr=1e-3, schedule='constant', weight_decay=0.): pass
    moved = {k: (v - before[k]).abs().max().item() for k, v in m.named_parameters()}
    low, mid, high = (moved[k] for k in ('encoder.embedding.1.weight', 'encoder.transformer.1.up.weight', 'head.weight'))
    assert 0 < low < .002*high and .005*high < mid < .02*high           # 1e-4 and 1e-2 of the head's, as Adam's steps are


def test_rates_that_do_not_fit_are_refused():
    m = model()
    m.rates = lambda: {'head.weigth': .5}
    with pytest.raises(ValueError, match="names 'head.weigth'; did you mean 'head.weight'"): optimizers(m)
    m.rates = lambda: {'head.weight': NAN}
    with pytest.raises(ValueError, match='wanted 0 or more'): optimizers(m)
    m.rates = lambda: {'head.weight': .5}
    assert factors(m)['head.weight'] == .5 and factors(m)['head.bias'] == 1.


def test_what_is_refused():
    for kw, text in [(dict(classes=''), 'needs the names of its classes'), (dict(classes='A,,B'), 'each once'), (dict(classes='A,A'), 'each once'),
                     (dict(weight='inverse'), "use 'none', 'balanced' or 'positive'"), (dict(weight='balanced', prior='.5,.5'), 'wants 3 numbers'),
                     (dict(weight='balanced', prior='.5,x,.5'), 'wants 3 numbers'), (dict(weight='balanced', prior='.5,1,.5'), 'prior of B 1'),
                     (dict(layer_decay=1.5), 'layer_decay=1.5'), (dict(dropout=1.), 'dropout=1'), (dict(smoothing=-.1), 'smoothing=-0.1')]:
        with pytest.raises(ECGError, match=text): model(**kw)
    m, b = model(), batch()
    with pytest.raises(ECGError, match=r'label is \(4, 2\); this model has 3 classes: A,B,C'): m(b | {'label': b['label'][:, :2]})
    with pytest.raises(ECGError, match='has no label'): m({'signal': b['signal']})

"""Relevance: completeness, occlusion and attention by hand, gaps, classes, the model untouched, drawing, the command."""
import numpy as np
import pytest
import torch
from torch import nn
from ecgnb import encoder, representation
from ecgnb.batch import collate
from ecgnb.ecg import ECG
from ecgnb.explain import METHODS, Inside, agreement, attentions, body, draw, hooked, main, open_for_gradients, pointing, saliency
from ecgnb.leads import STANDARD, ECGError
from ecgnb.objectives.classify import Classify
from ecgnb.transformer import Block

SMALL = {'vit1d': dict(patch=20, dim=16, depth=2, heads=2), 'st_vit': dict(patch=50, dim=16, depth=2, heads=2), 'resnet1d': dict(size='18', dim=16),
         's4': dict(dim=8, depth=1), 'wav2vec2': dict(dim=16, depth=2, heads=2, segment=100, width=8, kernel=4, groups=2)}


def model_of(name, norm='fixed', freeze=False, **how):
    torch.manual_seed(0)
    cls = encoder[name]
    fields = {k: v for k, v in (SMALL[name] | how).items() if k in cls.__dataclass_fields__}
    m = Classify(representation['signal'](fs=100., length=200, norm=norm), cls(length=200, **fields), classes='A,B', freeze=freeze)
    with torch.no_grad():
        for p in m.parameters(): p.add_(.05*torch.randn_like(p))
    return m.eval()


def batch_of(n=2, gap=False):
    x = np.random.default_rng(0).normal(0, .3, (n, 12, 200)).astype(np.float32)
    if gap: x[:, :, 120:], x[0, 3] = np.nan, np.nan
    return collate([ECG(v, 100., STANDARD, dict(record=str(i))) for i, v in enumerate(x)])


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('gap', [False, True])
def test_integrated_gradients_add_up_to_the_difference_of_logits(name, gap):
    m, b = model_of(name), batch_of(gap=gap)
    r = saliency(m, b, 'B', tolerance=.01)
    f = Inside(m, b, 'B')
    with torch.no_grad(): gap_of = f(f.x, f.valid) - f(f.flat, f.valid)
    torch.testing.assert_close(f(f.x, f.valid), m.logits(b)[:, 1], atol=1e-5, rtol=1e-5)
    assert r.shape == (2, 12, 200) and r.dtype == torch.float32
    assert ((r.sum((1, 2)) - gap_of).abs() <= .0101*(1 + gap_of.abs())).all()
    if gap: assert (r[~b['valid']] == 0).all()


def test_of_a_linear_model_the_shares_are_weight_times_input():
    class Linear(nn.Module):
        takes, dim = {'signal': (12, 200)}, 2
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.randn(12, 200))
        def features(self, x, valid=None): return torch.stack([(self.w*x).sum((1, 2)), x.sum((1, 2))], 1)
    m = Classify(representation['signal'](fs=100., length=200, norm='fixed', unit=1.), Linear(), classes='A,B')
    with torch.no_grad(): m.head.weight.copy_(torch.eye(2))
    b = batch_of()
    x = b['signal'] - b['signal'].mean(-1, keepdim=True)
    torch.testing.assert_close(saliency(m, b, 'A'), (m.encoder.w*x).detach(), atol=1e-4, rtol=1e-4)
    o = saliency(m, b, 'A', 'occlusion', width=.5, step=.5)                       # windows that do not overlap: their sums
    torch.testing.assert_close(o[:, :, ::50], (m.encoder.w*x).detach().unflatten(2, (4, 50)).sum(3), atol=1e-3, rtol=1e-3)


def test_a_class_that_reads_one_place_of_one_lead_is_found_there():
    class Spot(nn.Module):
        takes, dim = {'signal': (12, 200)}, 1
        def features(self, x, valid=None): return x[:, 8, 80:100].pow(2).sum(1, keepdim=True)
    m, b = Classify(representation['signal'](fs=100., length=200, norm='fixed'), Spot(), classes='A'), batch_of()
    with torch.no_grad(): m.head.weight.fill_(1.)
    region = torch.zeros(2, 12, 200, dtype=torch.bool)
    region[:, 8, 80:100] = True
    p = pointing(saliency(m, b, 'A'), region)
    assert (p['hit'] == 1).all() and (p['mass'] > .999).all() and p['chance'][0] == pytest.approx(20/2400)
    p = pointing(saliency(m, b, 'A', 'occlusion', width=.1, step=.1), region)
    assert (p['hit'] == 1).all() and (p['mass'] > .999).all()
    p = pointing(torch.ones(2, 1, 200), region)
    assert p['mass'][0] == pytest.approx(20/2400) and p['mass_time'][0] == pytest.approx(.1) and p['hit_time'][0] == pytest.approx(.1)


@pytest.mark.parametrize('name', ['vit1d', 'st_vit', 'wav2vec2'])
def test_attention_and_its_gradient_are_those_of_attention_done_by_hand(name, monkeypatch):
    m, b = model_of(name), batch_of(gap=name != 'wav2vec2')
    with open_for_gradients(m): each = attentions(Inside(m, b, 'A'))
    kept = []
    def by_hand(self, x, keys=None, angles=None, past=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        s = q @ k.transpose(-1, -2)/q.shape[-1]**.5
        a = (s if keys is None else s.masked_fill(~keys[:, None, None], -torch.inf)).softmax(-1)
        a.retain_grad(); kept.append(a)
        return self.out((a @ v).transpose(1, 2).flatten(2))
    monkeypatch.setattr(Block, 'attention', by_hand)
    m.logits(b)[:, 0].sum().backward()
    assert len(each) == len(kept) == 2
    for (a, g, _), mine in zip(each, kept):
        torch.testing.assert_close(a, mine.detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(g, mine.grad, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize('name', ['vit1d', 'st_vit', 'wav2vec2'])
def test_attention_by_class_differs_between_classes_and_the_others_do_not(name):
    m, b = model_of(name), batch_of()
    for how in METHODS[2:]:
        r, o = saliency(m, b, 'A', how), saliency(m, b, 'B', how)
        assert r.shape == (2, 12 if name == 'st_vit' else 1, 200) and (r >= 0).all() and r.std() > 0
        assert torch.equal(r, o) == (how != 'attention')


def test_the_reference_is_the_largest_weight_of_each_query_of_the_last_block():
    m, b = model_of('vit1d'), batch_of()
    with open_for_gradients(m): a = attentions(Inside(m, b, 'A'))[-1][0]
    torch.testing.assert_close(saliency(m, b, 'A', 'reference')[:, 0, ::20], a.mean(1).amax(-1)[:, 1:])
    assert body(m.encoder, a.mean(1)).shape == (2, 1, 10, 11)


@pytest.mark.parametrize('how', METHODS)
def test_the_model_is_left_as_it_was_even_after_an_error(how):
    m, b = model_of('vit1d', freeze=True), batch_of()
    m.train()
    before = {k: v.clone() for k, v in m.state_dict().items()}, [x.training for x in m.modules()]
    def same():
        assert all(torch.equal(v, before[0][k]) for k, v in m.state_dict().items()) and [x.training for x in m.modules()] == before[1]
        assert m.freeze and all(p.grad is None for p in m.parameters()) and torch.is_grad_enabled()
        assert not any(x._forward_hooks or x._forward_pre_hooks or x._backward_hooks for x in m.modules())
    first = saliency(m, b, 'A', how)
    same()
    torch.testing.assert_close(saliency(m, b, 'A', how), first)                    # no chance of training mode in it
    def broken(module, args, out): raise RuntimeError('broken')
    with hooked(m.head.register_forward_hook(broken)), pytest.raises(RuntimeError, match='broken'): saliency(m, b, 'A', how)
    same()


def test_other_weights_give_another_map():
    m, b = model_of('resnet1d'), batch_of(3)
    other = model_of('resnet1d')
    with torch.no_grad():
        for p in other.parameters(): p.copy_(p[torch.randperm(len(p))])
    a, c = saliency(m, b, 'A'), saliency(other, b, 'A')
    assert agreement(a, a).numpy() == pytest.approx(1) and (agreement(a, c) < .7).all()
    assert (agreement(a, torch.zeros_like(a)) == 0).all()


def test_what_was_not_recorded_has_no_relevance_and_changes_none():
    m, b = model_of('vit1d'), batch_of(gap=True)
    loud = b | {'signal': b['signal'].masked_fill(~b['valid'], 50.)}
    for how in ('gradients', 'occlusion', 'attention'):
        r = saliency(m, b, 'A', how)
        assert (r[(~b['valid']).all(1, keepdim=True).expand_as(r)] == 0).all()
        torch.testing.assert_close(saliency(m, loud, 'A', how), r)


def test_missing_as_filling_and_an_encoder_that_reads_tokens():
    m, b = model_of('vit1d'), batch_of()
    r = saliency(m, b, 'A', 'occlusion', fill='missing', width=.4, step=.4)
    assert r.shape == (2, 12, 200) and r.abs().sum() > 0
    class Words(nn.Module):
        gives, leads, fs, length = {'tokens': (3,)}, ','.join(STANDARD), 100., 200
        def forward(self, b): return b | {'tokens': b['signal'].unflatten(2, (4, 50)).mean((1, 3))}
    class Reads(nn.Module):
        takes, dim = {'tokens': (3,)}, 4
        def features(self, x, valid=None): return x
    w = Classify(Words(), Reads(), classes='A,B')
    assert saliency(w, b, 'A', 'occlusion', width=.5, step=.5).abs().sum() > 0
    with pytest.raises(ECGError, match="Reads does not take the signal itself; use how='occlusion'"): saliency(w, b, 'A')


def test_drawing_says_the_unit_and_draws_what_was_recorded():
    e = ECG(np.where(np.arange(200) < 100, .1, np.nan)*np.ones((12, 1)), 100., STANDARD, dict(record='r'*80))
    fig = draw(e, torch.linspace(-1, 1, 200).expand(12, 200), 'MI', 'occlusion')
    words = [t.get_text() for t in fig.axes[0].texts]
    assert any('logit' in w for w in words) and any(w.startswith('rrr') and w.endswith('…') for w in words)
    strips = [i for i in fig.axes[0].images if i.get_gid() == 'relevance'][:-1]
    assert len(strips) == 12 and all((np.asarray(i.get_array())[0, 100:, 3] == 0).all() for i in strips)
    assert fig.png()[:4] == b'\x89PNG'
    assert '(weight)' in ' '.join(t.get_text() for t in draw(e, torch.ones(1, 200), 'MI', 'rollout').axes[0].texts)


def test_bad_input_says_what_was_wanted(capsys):
    m, b = model_of('resnet1d'), batch_of()
    for what, says in ((lambda: saliency(m, b, 'C'), "no class 'C'"), (lambda: saliency(m, b, 'A', 'grad'), "how='grad'"),
                       (lambda: saliency(m, b, 'A', 'rollout'), 'Resnet1d has no attention'),
                       (lambda: saliency(m, b, 'A', 'occlusion', fill='zero'), "fill='zero'"),
                       (lambda: saliency(m, b, 'A', 'occlusion', width=5), 'width=5 s'),
                       (lambda: saliency(m.encoder, b, 'A'), 'no logits'), (lambda: main(['none', 'how=x']), "how='x'")):
        with pytest.raises(ValueError, match=says): what()
    main(['-h'])
    assert 'record=' in capsys.readouterr().out

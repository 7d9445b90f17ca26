"""The diffusion transformer: what it may be told, what it must not see, what it refuses."""
import pytest
import torch
from torch import nn

from ecgnb.encoders.dit import AdaBlock, Dit, embed_time
from ecgnb.leads import ECGError

SMALL = dict(length=500, dim=32, depth=2, heads=2)


def lively(seed=0, **kw):
    "A small network in which what starts at zero is not zero."
    torch.manual_seed(seed)
    m = Dit(**{**SMALL, **kw})
    for p in m.parameters():
        if not p.any(): nn.init.normal_(p, std=.1)
    return m.eval()


def inputs(m, n=3, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, m.channels, m.length, generator=g), torch.rand(n, generator=g)


def everything(m, n=3):
    "All that `denoise` may be told, for given=True, cross=24."
    x, _ = inputs(m, n, 5)
    mask = torch.zeros_like(x, dtype=torch.bool); mask[:, 1] = True; mask[:, :, :100] = True
    keys = torch.ones(n, 7, dtype=torch.bool); keys[1, 4:] = False; keys[2] = False
    valid = torch.ones_like(x, dtype=torch.bool); valid[0, 3] = False; valid[1, :, 300:] = False
    return dict(known=x, mask=mask, vector=torch.randn(n, m.dim), context=torch.randn(n, 7, 24), keys=keys, valid=valid)


def same(a, b): torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_a_new_network_says_nothing_at_all():
    m = Dit(**SMALL)
    x, t = inputs(m)
    assert not m.denoise(x, t).any() and m.features(x).abs().max() > .01


@pytest.mark.parametrize('positions', ['rope', 'sincos', 'learned'])
def test_the_order_of_the_slices_matters(positions):
    m = lively(positions=positions)
    x, t = inputs(m)
    swapped = m.join(m.cut(x).flip(1))
    assert (m.join(m.cut(m.denoise(swapped, t)).flip(1)) - m.denoise(x, t)).abs().max() > 1e-3
    assert set(m.state_dict()) >= {'places.table'} if positions == 'learned' else not any('places' in k or 'angles' in k for k in m.state_dict())


@pytest.mark.parametrize('length,patch', [(77, 7), (77, 1), (77, 77), (120, 8)])
def test_any_patch_that_divides_and_any_shorter_signal(length, patch):
    m = lively(length=length, patch=patch, leads='II,V5,V1')
    x, t = inputs(m)
    assert torch.equal(m.join(m.cut(x)), x) and m.denoise(x, t).shape == x.shape and m(x).shape == (3, length // patch, 32)
    assert m.cut(x)[0, 0].tolist() == x[0, :, :patch].T.flatten().tolist()
    short = x[..., :patch]
    assert m.denoise(short, t).shape == short.shape
    keep = torch.zeros_like(x, dtype=torch.bool); keep[..., :patch] = True
    same(m.denoise(x, t, valid=keep)[..., :patch], m.denoise(short, t))


def test_each_sample_alone_at_its_own_time():
    m = lively(given=True, cross=24)
    x, t = inputs(m)
    told = everything(m)
    y = m.denoise(x, t, **told)
    for i in range(3): same(m.denoise(x[i:i + 1], t[i:i + 1], **{k: v[i:i + 1] for k, v in told.items()}), y[i:i + 1])
    later = m.denoise(x, torch.tensor([t[0], 1 - t[1], t[2]]), **told)
    same(later[[0, 2]], y[[0, 2]])
    assert (later[1] - y[1]).abs().max() > 1e-2


def test_time_of_all_may_be_one_number():
    m = lively()
    x, _ = inputs(m)
    for t in (.3, torch.tensor(.3), torch.tensor(.3, dtype=torch.float64)): same(m.denoise(x, t), m.denoise(x, torch.full((3,), .3)))
    assert torch.equal(m.denoise(x, 1), m.denoise(x, torch.ones(3, dtype=torch.int64)))


def test_only_what_is_meant_to_be_read_is_read():
    "Not recorded, not given, not to be looked at: whatever stands there, the same answer; where it counts, another."
    m = lively(given=True, cross=24)
    x, t = inputs(m)
    told = everything(m)
    y = m.denoise(x, t, **told)
    valid, mask, keys = told['valid'], told['mask'], told['keys']
    assert torch.equal(m.denoise(x.masked_fill(~valid, 9.), t, **told), y)
    assert torch.equal(m.denoise(x, t, **told | {'known': told['known'].masked_fill(~(mask & valid), torch.nan)}), y)
    same(m.denoise(x, t, **told | {'context': told['context'].masked_fill(~keys[..., None], 9.)}), y)
    for k in ('known', 'vector', 'context'):
        assert (m.denoise(x, t, **told | {k: told[k] + 1}) - y).abs().max() > 1e-3, k
    assert (m.denoise(x, t, **{k: v for k, v in told.items() if k not in ('known', 'mask')}) - y).abs().max() > 1e-3
    nothing = m.denoise(x, t, **told | {'mask': torch.zeros_like(mask)})
    assert torch.equal(nothing, m.denoise(x, t, **{k: v for k, v in told.items() if k not in ('known', 'mask')}))


def test_dropped_context_is_no_context():
    torch.manual_seed(0)
    block = AdaBlock(32, 4, cross=24)
    x, c, context = torch.randn(2, 5, 32), torch.randn(2, 32), torch.randn(2, 7, 24)
    seen = torch.zeros(2, 7, dtype=torch.bool)
    assert torch.equal(block(x, c, context=context, seen=seen), block(x, c)) and not torch.allclose(block(x, c, context=context), block(x, c), atol=1e-3)
    seen[:, :3] = True
    same(block(x, c, context=context, seen=seen), block(x, c, context=context[:, :3]))


def test_nothing_recorded_and_nothing_seen_keep_gradients_finite():
    m = lively(given=True, cross=24)
    x, t = inputs(m)
    told = everything(m)
    told['valid'][2], told['keys'][:] = False, False
    m.denoise(x, t, **told).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())
    assert not m.features(x, told['valid'])[2].any()


def test_every_parameter_is_used():
    m = lively(given=True, cross=24)
    m.denoise(*inputs(m), **everything(m)).square().mean().backward()
    assert not [n for n, p in m.named_parameters() if p.grad is None or not p.grad.any()]


def test_encoder_reads_at_the_clean_end_of_time():
    "The reference reads clean signals of a rectified flow at its noise end."
    m = lively()
    x, _ = inputs(m)
    same(m.features(x), m.tokens(x, torch.ones(3))[0].mean(1))
    assert (m.features(x) - m.features(x, t=0.)).abs().max() > 1e-2
    assert torch.equal(m(x), m.tokens(x)[0])
    cross = lively(cross=24, given=True)
    assert cross.features(x).shape == (3, 32), 'as an encoder it needs no context'


def test_plain_time_hardly_moves():
    moved = lambda scale: int((embed_time(torch.tensor([0., 1.]), 512, scale).diff(dim=0).abs() > .01).sum())
    assert (moved(1.), moved(1000.)) == (183, 498)
    plain, scaled = lively(time='plain'), lively()
    scaled.load_state_dict(plain.state_dict())
    x, t = inputs(plain)
    assert not torch.allclose(plain.denoise(x, t), scaled.denoise(x, t), atol=1e-3)


def test_bf16_autocast_gives_float32_near_float32():
    m = lively(given=True, cross=24)
    x, t = inputs(m)
    told = everything(m)
    y = m.denoise(x, t, **told)
    with torch.autocast('cpu', torch.bfloat16): low, z = m.denoise(x, t, **told), m(x)
    assert low.dtype == torch.float32 and (low - y).norm() < .03 * y.norm() and (z - m(x)).norm() < .03 * m(x).norm()


def test_float64_stays_float64():
    m = lively(given=True, cross=24)
    x, t = inputs(m)
    told = everything(m)
    y = m.denoise(x, t, **told)
    wide = m.double().denoise(x.double(), t, **{k: v.double() if v.is_floating_point() else v for k, v in told.items()})
    assert wide.dtype == torch.float64
    same(wide.float(), y)


def test_no_graph_breaks():
    "The whole of `denoise` traces as one graph (compiled on a GPU)."
    m = lively(given=True, cross=24, depth=1)
    x, t = inputs(m)
    told = everything(m)
    torch._dynamo.reset()
    same(torch.compile(m.denoise, backend='eager', fullgraph=True)(x, t, **told), m.denoise(x, t, **told))


def test_dropout_acts_in_training_only():
    m = lively(dropout=.3, cross=24)
    x, t = inputs(m)
    context = torch.randn(3, 7, 24)
    assert torch.equal(m.denoise(x, t, context=context), m.denoise(x, t, context=context))
    m.train()
    assert not torch.equal(m.denoise(x, t, context=context), m.denoise(x, t, context=context))


def test_an_empty_batch():
    m = lively(given=True, cross=24)
    x, t = inputs(m)
    y = m.denoise(x[:0], t[:0], **{k: v[:0] for k, v in everything(m).items()})
    assert y.shape == (0, 12, 500) and m.features(x[:0]).shape == (0, 32)


BAD_FIELDS = [(dict(patch=30), 'patch=30 does not divide length=500'), (dict(patch=0), 'patch=0'), (dict(length=0), 'length=0'), (dict(heads=3), 'heads=3'), (dict(heads=0), 'heads=0'),
              (dict(positions='rotary'), "use 'rope', 'sincos' or 'learned'"), (dict(time='ms'), "use 'scaled'"), (dict(dim=33, heads=1), 'even'), (dict(dim=30, heads=2), 'even, not 15'),
              (dict(leads='I,XX'), 'XX')]

@pytest.mark.parametrize('fields,text', BAD_FIELDS)
def test_fields_that_do_not_fit_are_refused(fields, text):
    with pytest.raises(ECGError) as e: Dit(**{**SMALL, **fields})
    assert text in str(e.value)


X, T, M = torch.zeros(3, 12, 500), torch.zeros(3), torch.zeros(3, 12, 500, dtype=torch.bool)
BAD_CALLS = [({}, dict(x=X[:, 1:]), 'x is (3, 11, 500)'), ({}, dict(x=X[..., :260]), 'multiple of patch=25'), ({}, dict(x=X[0]), 'x is (12, 500)'), ({}, dict(x=X[..., :0]), 'x is (3, 12, 0)'),
             ({}, dict(x=torch.zeros(3, 12, 525)), 'up to length=500'), ({}, dict(t=T[:2]), 't is (2,); wanted (3,)'), ({}, dict(t=T[:, None]), 't is (3, 1)'),
             ({}, dict(valid=M[:, :1]), "valid must be bool and of x's shape"), ({}, dict(valid=X), 'valid must be bool'), ({}, dict(vector=torch.zeros(3, 8)), 'wanted (B, dim) = (3, 32)'),
             ({}, dict(known=X, mask=M), 'build it with given=True'), (dict(given=True), dict(known=X), 'known and mask go together'), (dict(given=True), dict(mask=M), 'known and mask go together'),
             (dict(given=True), dict(known=X[:, :1], mask=M), "known must be of x's shape"), (dict(given=True), dict(known=X, mask=X), 'mask must be bool'),
             ({}, dict(context=torch.zeros(3, 7, 24)), 'build it with cross=24'), (dict(cross=24), {}, 'give one, or build it with cross=0'),
             (dict(cross=24), dict(context=torch.zeros(3, 7, 16)), 'context is (3, 7, 16); wanted (3, M, 24)'), (dict(cross=24), dict(context=torch.zeros(2, 7, 24)), 'wanted (3, M, 24)'),
             (dict(cross=24), dict(context=torch.zeros(3, 0, 24)), 'context is (3, 0, 24)'), (dict(cross=24), dict(context=torch.zeros(3, 24)), 'context is (3, 24)'),
             (dict(cross=24), dict(context=torch.zeros(3, 7, 24), keys=torch.ones(3, 7)), 'keys must be bool'), ({}, dict(keys=torch.ones(3, 7, dtype=torch.bool)), 'keys without a context'),
             (dict(cross=24), dict(context=torch.zeros(3, 7, 24), keys=torch.ones(3, 6, dtype=torch.bool)), 'keys must be bool (3, 7)')]

@pytest.mark.parametrize('fields,call,text', BAD_CALLS)
def test_calls_that_do_not_fit_are_refused(fields, call, text):
    m = Dit(**{**SMALL, **fields})
    with pytest.raises(ECGError) as e: m.denoise(**{'x': X, 't': T, **call})
    assert text in str(e.value)

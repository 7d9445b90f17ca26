"""The convolutional encoders: sizes, lengths, what was not recorded, pooling, normalisation, precision, errors."""
import json

import pytest
import torch
from torch import nn

from ecgnb.encoders.resnet1d import SIZES, AttentionPool, Residual, Resnet1d, convert
from ecgnb.encoders.xresnet1d import Xresnet1d
from ecgnb.leads import ECGError
from ecgnb.registry import from_config, to_config

GOLDEN = {Resnet1d: {'18': 3_848_832, '34': 7_223_168, '50': 15_959_168, '101': 28_266_624, '152': 38_405_248},
          Xresnet1d: {'18': 347_264, '34': 676_992, '50': 886_400, '101': 1_804_672, '152': 2_722_944}}
BOTH = pytest.mark.parametrize('cls', [Resnet1d, Xresnet1d])
POOLS = pytest.mark.parametrize('pool', ['mean', 'max', 'concat', 'attention'])
NORMS = pytest.mark.parametrize('norm', ['batch', 'group'])


def small(cls, **kw):
    torch.manual_seed(0)
    return cls(**dict(leads='I,II,V2', length=500, size='18', dim=32) | kw)


def alive(m):
    "The encoder with every path taking part: the last gain of a block starts at 0."
    for b in m.modules():
        if isinstance(b, Residual): nn.init.constant_(b.path[-1][1].weight, .5)
    return m


def x_of(n=4, channels=3, length=500, seed=1):
    return torch.randn(n, channels, length, generator=torch.Generator().manual_seed(seed))


@BOTH
@pytest.mark.parametrize('size', SIZES)
def test_sizes_have_their_golden_parameter_counts(cls, size):
    m = cls(size=size)
    assert sum(p.numel() for p in m.parameters()) == GOLDEN[cls][size]
    width = (512, 2048) if cls is Resnet1d else (128, 512)
    assert m.dim == width[SIZES[size][0] == 4]
    convs = sum(isinstance(c, nn.Conv1d) for n, c in m.named_modules() if 'shortcut' not in n)
    assert convs + 1 - 2 * (cls is Xresnet1d) == int(size), 'layers with the classifier that completes the published network'


@pytest.mark.parametrize('length,n', [(2500, 157), (1250, 79), (500, 32), (1, 1), (17, 2), (437, 28)])
def test_resnet_has_a_token_for_every_16_samples(length, n):
    m = small(Resnet1d, length=length).eval()
    assert m.n_tokens == n and m(x_of(2, length=length)).shape == (2, n, 32) and m.takes == {'signal': (3, length)}


@pytest.mark.parametrize('length,n', [(2500, 79), (1250, 40), (500, 16), (250, 8), (33, 2), (437, 14)])
def test_xresnet_has_a_token_for_every_32_samples(length, n):
    m = small(Xresnet1d, length=length).eval()
    assert m.n_tokens == n and m(x_of(2, length=length)).shape == (2, n, 32)


@BOTH
@POOLS
@NORMS
def test_shapes_and_gradients(cls, pool, norm):
    m = small(cls, pool=pool, norm=norm)
    f = m.features(x_of())
    assert f.shape == (4, m.dim) == (4, 32) and m(x_of()).shape == (4, m.n_tokens, 32)
    (f * torch.randn_like(f)).sum().backward()
    none = [k for k, p in m.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not none, none
    assert (pool == 'attention') == any('pooling' in k for k in m.state_dict())


@BOTH
@POOLS
def test_a_small_depth_and_own_blocks(cls, pool):
    m = small(cls, size='50', blocks='1,2,1,1', dim=64, pool=pool).eval()
    assert [len(s) for s in m.stages] == [1, 2, 1, 1] and m.features(x_of()).shape == (4, 64)


@BOTH
@POOLS
@NORMS
def test_what_was_not_recorded_does_not_matter(cls, pool, norm):
    m, x = alive(small(cls, pool=pool, norm=norm)).eval(), x_of()
    valid = torch.ones_like(x, dtype=torch.bool)
    valid[0, 1], valid[1, :, 300:], valid[2] = False, False, False
    f = m.features(x, valid)
    torch.testing.assert_close(m.features(torch.where(valid, x, torch.nan), valid), f, rtol=0, atol=0)
    assert f.isfinite().all() and (f[2] == 0).all()
    torch.testing.assert_close(f[3], m.features(x)[3])
    assert not torch.allclose(f[:2], m.features(x)[:2], atol=1e-4)


@BOTH
def test_which_tokens_are_pooled(cls):
    m = small(cls, pool='mean').eval()
    valid = torch.zeros(2, 3, 500, dtype=torch.bool)
    valid[0, 1, 100:300], valid[1, 2, -1] = True, True
    keep, first, last = m.recorded(valid), 100 // m.step, 299 // m.step
    assert keep[0].nonzero()[:, 0].tolist() == list(range(first, last + 1)) and keep[1].nonzero()[:, 0].tolist() == [m.n_tokens - 1]
    z = m(x_of(2), valid)
    torch.testing.assert_close(m.features(x_of(2), valid), torch.stack([z[0, first:last + 1].mean(0), z[1, -1]]))
    assert m.recorded(None) is None


@BOTH
@NORMS
def test_a_sample_alone_in_eval_mode(cls, norm):
    m = alive(small(cls, norm=norm)).eval()
    torch.testing.assert_close(m.features(x_of())[1:2], m.features(x_of()[1:2]), atol=1e-5, rtol=1e-4)


@BOTH
def test_group_norm_keeps_samples_apart_in_training_and_batch_norm_does_not(cls):
    a, b = x_of(), torch.cat([x_of()[:1], 3 * x_of(3, seed=2)])
    gap = {n: (m.features(a)[0] - m.features(b)[0]).abs().max() for n in ('batch', 'group') for m in [alive(small(cls, norm=n))]}
    assert gap['group'] < 1e-5 < .01 < gap['batch']


@BOTH
def test_group_norm_gives_the_gradient_of_the_whole_batch_in_halves(cls):
    m, x = alive(small(cls, norm='group')).double(), x_of().double()
    def grads(*parts):
        m.zero_grad()
        for p in parts: (m.features(p).square().mean(1).sum() / len(x)).backward()
        return [p.grad.clone() for p in m.parameters()]
    for whole, halves in zip(grads(x), grads(x[:2], x[2:])): torch.testing.assert_close(whole, halves)


@BOTH
@POOLS
def test_bf16_stays_near_float32(cls, pool):
    m, x = alive(small(cls, pool=pool)), x_of(16)
    m.features(x)
    m.eval()
    with torch.autocast('cpu', torch.bfloat16): low = m.features(x)
    full = m.features(x)
    assert (low - full).norm() < .05 * full.norm()


@BOTH
def test_config_round_trip(cls):
    m = small(cls, pool='attention', heads=2, blocks='1,1,2,1')
    config = json.loads(json.dumps(to_config(m)))
    again = from_config(config)
    assert to_config(again) == config
    again.load_state_dict(m.state_dict())
    assert torch.equal(again.eval().features(x_of()), m.eval().features(x_of()))
    assert from_config(to_config(cls(size='18'))).dim == cls(size='18').dim


def test_widths_by_hand_and_their_config():
    m = Resnet1d(size='50', blocks='1,2,1,1', widths='8,12,16,16', length=500)
    assert [s[-1].path[-1][0].out_channels for s in m.stages] == [32, 48, 64, 64] and m.dim == 64
    assert from_config(to_config(m)).dim == 64


@BOTH
def test_a_fresh_block_passes_on_what_it_was_given(cls):
    m = small(cls, pool='mean').eval()
    for stage in m.stages:
        z = torch.rand(2, stage[1].path[-1][0].out_channels, 40)
        assert torch.equal(stage[1](z), z)


def test_attention_pool_is_torchs_attention_and_looks_only_where_it_may():
    torch.manual_seed(0)
    a, t = AttentionPool(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    t.load_state_dict({'in_proj_weight': a.qkv.weight, 'in_proj_bias': a.qkv.bias, 'out_proj.weight': a.out.weight, 'out_proj.bias': a.out.bias})
    z, q = torch.randn(3, 9, 16), torch.randn(3, 2, 16)
    keys = torch.arange(9) < torch.tensor([[9], [3], [1]])
    torch.testing.assert_close(a.attend(q, z, keys), t(q, z, z, key_padding_mask=~keys)[0])
    torch.testing.assert_close(a(z), t(a.query.expand(3, 1, -1), z, z)[0][:, 0])
    assert torch.equal(a(z, keys), a(z.masked_fill(~keys[..., None], 5.), keys))
    nothing = a(z, torch.zeros(3, 9, dtype=torch.bool))
    assert (nothing == 0).all()


@BOTH
@pytest.mark.parametrize('given,text', [
    (dict(size='20'), "size='20': use one of '18', '34'"), (dict(norm='none'), "norm='none': use 'batch' or 'group'"),
    (dict(pool='cls'), "pool='cls': use 'mean'"), (dict(blocks='1,2,3'), "wanted four whole numbers, such as blocks="),
    (dict(blocks='1,0,1,1'), 'wanted four whole numbers'), (dict(blocks='1,2,x,1'), 'wanted four whole numbers'),
    (dict(dim=-8), 'use a multiple of'), (dict(size='50', dim=30), 'use a multiple of'),
    (dict(pool='attention', heads=5), 'heads=5'), (dict(leads='I,IV'), 'IV')])
def test_errors(cls, given, text):
    with pytest.raises(ECGError, match=text): small(cls, **given)


def test_errors_of_one_of_them():
    with pytest.raises(ECGError, match='make dim=64, not 32'): Resnet1d(size='50', widths='8,12,16,16', dim=32)
    with pytest.raises(ECGError, match='kernel=4: use an odd number'): Xresnet1d(kernel=4)


@BOTH
def test_wrong_leads_or_length(cls):
    m = small(cls)
    with pytest.raises(ECGError, match=r'x is \(2, 2, 500\); this encoder takes \(B, 3, 500\): set its leads'): m(x_of(2, 2))
    with pytest.raises(ECGError, match=r'x is \(2, 3, 400\)'): m.features(x_of(2, length=400))


def test_convert_names_what_does_not_fit():
    m = small(Resnet1d)
    with pytest.raises(ECGError, match='unknown resnet.conv2.weight; missing stem.0.weight'): convert({'resnet.conv2.weight': torch.zeros(1)}, m)

"""Masked autoencoders and their patch encoders: known answers and properties that no single notebook shows."""
import itertools

import pytest
import torch
from torch import nn

from ecgnb.encoders.st_vit import StVit
from ecgnb.encoders.vit1d import Vit1d
from ecgnb.leads import ECGError
from ecgnb.objectives.masked import Masked, hide
from ecgnb.registry import from_config, to_config
from ecgnb.representations.signal import Signal
from ecgnb.transformer import Block, Positions, Transformer, auto_patch, pool, rename, sincos

LEADS = 'I,II,V1'
SMALL = dict(leads=LEADS, length=160, patch=10, dim=16, depth=2, heads=2)
DEC = dict(dec_dim=8, dec_depth=1, dec_heads=2)
POST = dict(prenorm=False, positions='learned', cls=False, patch_norm=False)
PAIRS = {'st_mem': lambda **k: StVit(**SMALL | k), 'mtae': lambda **k: Vit1d(over='time', **SMALL | k),
         'mlae': lambda **k: Vit1d(over='lead', **SMALL | {'patch': 0} | k),
         'mae_vit': lambda **k: Vit1d(over='lead', **SMALL | {'patch': 0} | POST | k)}


def build(name, norm='none', **fields):
    torch.manual_seed(0)
    e = PAIRS[name]()
    return Masked(Signal(leads=LEADS, fs=100., length=160, norm=norm), e, **DEC | fields)


def batch(B=2, C=3, T=160, **more):
    return {'signal': torch.randn(B, C, T, generator=torch.Generator().manual_seed(5)), 'seed': torch.arange(B) + 7, **more}


# ---- transformer -----------------------------------------------------------------------------------------------------

def reference_auto_patch(length):
    counts = [n for n in range(16, 65) if length % n == 0]
    return length // min(counts, key=lambda n: (abs(n - 32), n)) if counts else None

@pytest.mark.parametrize('length', [160, 500, 1000, 1250, 2250, 2501, 4096, 5000])
def test_auto_patch_is_the_count_nearest_32(length):
    assert auto_patch(length) == reference_auto_patch(length)

def test_auto_patch_small_and_impossible():
    assert 8 % auto_patch(8) == 0
    with pytest.raises(ECGError, match='length=2500 works'): auto_patch(2503)

def test_sincos_known_values():
    t = sincos(3, 4)
    assert torch.allclose(t[1], torch.tensor([1., .01, 1., .01]).mul(torch.tensor([1, 1, 0, 0])).sin()
                          + torch.tensor([0, 0, 1., .01]).cos() * torch.tensor([0, 0, 1., 1.]), atol=1e-6)

@pytest.mark.parametrize('prenorm', [True, False])
def test_block_equals_torch_layer(prenorm):
    torch.manual_seed(0)
    ref = nn.TransformerEncoderLayer(16, 2, 32, 0., 'gelu', batch_first=True, norm_first=prenorm).eval()
    ours = Block(16, 2, mlp=32, prenorm=prenorm).eval()
    ours.load_state_dict(rename(ref.state_dict(), [
        (r'self_attn\.in_proj_(weight|bias)', r'qkv.\1'), (r'self_attn\.out_proj\.(weight|bias)', r'out.\1'),
        (r'linear1\.(weight|bias)', r'up.\1'), (r'linear2\.(weight|bias)', r'down.\1'), (r'(norm[12])\.(weight|bias)', r'\1.\2')], ours))
    x, keys = torch.randn(3, 7, 16), torch.rand(3, 7) > .3
    keys[:, 0] = True
    assert torch.allclose(ours(x), ref(x), atol=1e-5)
    with torch.enable_grad(): want = ref(x, src_key_padding_mask=~keys)
    assert torch.allclose(ours(x, keys), want, atol=1e-5)

def test_block_causal_with_keys():
    torch.manual_seed(0)
    b, x = Block(16, 2, causal=True), torch.randn(1, 6, 16)
    keys = torch.tensor([[True, True, False, True, True, True]])
    y = x.clone()
    y[:, 4:] += 1
    y[:, 2] += 1
    same = [0, 1, 3]
    assert torch.allclose(b(x, keys)[:, same], b(y, keys)[:, same], atol=1e-6)

def test_pool_of_nothing_is_zero_and_finite():
    z = torch.randn(2, 3, 4)
    assert pool(z, torch.zeros(2, 3, dtype=torch.bool)).abs().max() == 0

@pytest.mark.parametrize('make, text', [
    (lambda: Block(10, 3), 'must be whole'), (lambda: Block(10, 0), 'heads=0'), (lambda: sincos(3, 5), 'even width'),
    (lambda: Positions(3, 4, 'none'), "use 'sincos' or 'learned'"), (lambda: Vit1d(patch=33), 'patch=33 does not divide'),
    (lambda: StVit(patch=33), 'patch=33 does not divide'), (lambda: StVit(length=2503), 'cannot be cut'),
    (lambda: Vit1d(over='lead', patch=10), 'must be 0 or 2500'), (lambda: Vit1d(over='beats'), "use 'time'"),
    (lambda: StVit(leads='I,II,X9'), 'X9'), (lambda: StVit(leads='I,I'), 'twice'), (lambda: StVit(heads=5), 'heads=5'),
    (lambda: StVit(positions='rope'), "use 'sincos' or 'learned'"),
    (lambda: build('st_mem', ratio=0.), 'between 0 and 1'), (lambda: build('st_mem', ratio=1.5), 'between 0 and 1'),
    (lambda: build('st_mem', mask='x'), "use 'patch'"), (lambda: build('mtae', mask='lead'), "over='lead'"),
    (lambda: build('st_mem', dec_heads=3), 'heads=3'), (lambda: build('st_mem', dec_positions='x'), "'learned'"),
    (lambda: Masked(Signal(), nn.Linear(2, 2)), 'it has no patches'),
    (lambda: Masked(Signal(length=1000), StVit()), 'length=1000'), (lambda: Masked(Signal(leads='I,II'), StVit()), 'give both the same'),
])
def test_refusals_say_what_to_type(make, text):
    with pytest.raises(ECGError, match=text): make()

def test_wrong_input_shape_is_named():
    for name in PAIRS:
        with pytest.raises(ECGError, match=r'takes \(B, 3, 160\)'): PAIRS[name]()(torch.randn(2, 12, 160))


# ---- encoders --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', PAIRS)
def test_unpatch_inverts_patches(name):
    e, x = PAIRS[name](), torch.randn(2, 3, 160)
    p = e.patches(x)
    assert torch.equal(e.unpatch(p), x) and p.shape == (2, e.groups, e.count, e.width) and e.groups * e.count == e.n_tokens
    q = torch.randn_like(p)
    assert torch.equal(e.patches(e.unpatch(q)), q)

@pytest.mark.parametrize('name, leads, length', [*itertools.product(PAIRS, ['II,V5', 'V6'], [500, 2501])])
def test_any_leads_and_odd_lengths(name, leads, length):
    e = PAIRS[name](leads=leads, length=length, patch=0)
    C = leads.count(',') + 1
    if e.count == 1:                                                    # one lead is the one patch: the encoder works, hiding cannot
        assert e.features(torch.randn(2, C, length)).shape == (2, 16)
        with pytest.raises(ValueError, match='nothing to hide'): Masked(Signal(leads=leads, length=length), e, **DEC)
        return
    m = Masked(Signal(leads=leads, length=length), e, **DEC)
    out = m({'signal': torch.randn(2, C, length)})
    out.loss.backward()
    assert out.loss.isfinite() and out.pred['signal'].shape == (2, C, length) and e.features(torch.randn(2, C, length)).shape == (2, 16)

@pytest.mark.parametrize('name', PAIRS)
def test_config_round_trip_and_bf16(name):
    m = build(name, 'zscore', norm_target=True, ratio=.5)
    again = from_config(to_config(m))
    assert to_config(again) == to_config(m)
    again.load_state_dict(m.state_dict())
    a, b = m.eval()(batch()), again.eval()(batch())
    assert torch.equal(a.loss, b.loss)
    with torch.autocast('cpu', torch.bfloat16):
        half = m(batch())
        f = m.encoder.features(batch()['signal'])
    assert half.loss.dtype == torch.float32 and abs(half.loss - a.loss) < .03 * a.loss and f.isfinite().all()

def test_st_vit_lead_order_does_not_matter():
    e, x = PAIRS['st_mem']().eval(), torch.randn(2, 3, 160)
    other = e.pick('V1,I,II')
    assert torch.allclose(other.features(x[:, [2, 0, 1]]), e.features(x), atol=1e-5)
    a, b = e(x).unflatten(1, (3, 16)), other(x[:, [2, 0, 1]]).unflatten(1, (3, 16))
    assert torch.allclose(a[:, [2, 0, 1]], b, atol=1e-5)

def test_st_vit_leads_are_told_apart():
    e, x = PAIRS['st_mem']().eval(), torch.randn(2, 3, 160)
    e.lead.data.mul_(20)
    assert not torch.allclose(e.features(x[:, [2, 0, 1]]), e.features(x), atol=1e-3)

def test_st_vit_absent_leads_leave_no_trace():
    e, x = PAIRS['st_mem']().eval(), torch.randn(2, 3, 160)
    valid = torch.ones(2, 3, 160, dtype=torch.bool)
    valid[:, 1] = False
    assert torch.allclose(e.features(x, valid), e.pick('I,V1').features(x[:, [0, 2]]), atol=1e-5)

@pytest.mark.parametrize('name', PAIRS)
def test_unrecorded_samples_never_matter(name):
    "NaN, infinity or junk where nothing was recorded: the same features, tokens of recorded patches and loss."
    e, x = PAIRS[name]().eval(), torch.randn(2, 3, 160)
    valid = torch.ones(2, 3, 160, dtype=torch.bool)
    valid[0, 2] = False
    valid[1, :, 95:123] = False
    want = e.features(x.masked_fill(~valid, 0), valid)
    for junk in (float('nan'), float('inf'), 1e6):
        got = e.features(x.masked_fill(~valid, junk), valid)
        assert got.isfinite().all() and torch.equal(got, want)

@pytest.mark.parametrize('name', PAIRS)
def test_all_valid_equals_none(name):
    e, x = PAIRS[name]().eval(), torch.randn(2, 3, 160)
    ones = torch.ones(2, 3, 160, dtype=torch.bool)
    assert torch.allclose(e.features(x, ones), e.features(x), atol=1e-5)
    m, b = build(name).eval(), batch()
    assert torch.allclose(m(b).loss, m(b | {'valid': ones}).loss, atol=1e-5)

@pytest.mark.parametrize('name', PAIRS)
def test_nothing_recorded_stays_finite(name):
    m, b = build(name), batch(valid=torch.zeros(2, 3, 160, dtype=torch.bool))
    out = m(b)
    out.loss.backward()
    assert out.loss == 0 and m.encoder.features(b['signal'], b['valid']).isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in m.parameters())


# ---- the objective ---------------------------------------------------------------------------------------------------

def test_hide_keeps_the_reference_number():
    for n, ratio in itertools.product((5, 12, 25, 40), (.75, .5)):
        order, seen, hidden = hide(torch.rand(2, 3, n), ratio)
        assert seen is None and order.shape[2] == int(n * (1 - ratio)) and (~hidden).sum(2).eq(int(n * (1 - ratio))).all()
    assert hide(torch.rand(1, 1, 10), .9)[0].shape[2] == 1 and hide(torch.rand(1, 1, 3), .75)[0].shape[2] == 1

def test_hide_order_is_the_argsort_of_the_noise():
    noise = torch.rand(2, 3, 25)
    order, _, hidden = hide(noise)
    assert torch.equal(order, noise.argsort(-1)[..., :6]) and not hidden.gather(2, order).any()

def test_hide_kinds():
    h = hide(torch.rand(4, 12, 25), kind='time')[2]
    assert torch.equal(h, h[:, :1].expand_as(h)) and h[:, 0].sum(1).eq(19).all()
    order, seen, h = hide(torch.rand(4, 12, 25), kind='lead')
    assert h.all(2).sum(1).eq(9).all() and h.any(2).sum(1).eq(9).all() and torch.equal(seen, ~h)
    absent = torch.ones(4, 12, 25, dtype=torch.bool)
    absent[:, :8] = False
    h = hide(torch.rand(4, 12, 25), kind='lead', recorded=absent)[2]
    assert not h[:, :8].any() and h[:, 8:].all(2).sum(1).eq(3).all()

@pytest.mark.parametrize('kind', ['patch', 'time', 'lead'])
def test_hide_never_hides_or_shows_what_was_not_recorded(kind):
    rec = torch.rand(8, 6, 20) > .4
    order, seen, hidden = hide(torch.rand(8, 6, 20), kind=kind, recorded=rec)
    assert not (hidden & ~rec).any() and not (seen & ~rec.gather(2, order)).any()
    assert torch.equal(seen.sum(2), (rec & ~hidden).sum(2))              # every patch that is left goes in, once

def test_loss_by_hand():
    "A decoder that draws zeros: the loss is the mean square of the hidden samples."
    for name in PAIRS:
        m, b = build(name), batch()
        m.head.weight.data.zero_()
        out = m(b, torch.rand(2, m.encoder.groups, m.encoder.count))
        assert torch.allclose(out.loss, b['signal'][out.pred['mask']].square().mean(), atol=1e-6)
        assert torch.allclose(out.pred['signal'], b['signal'] * ~out.pred['mask'], atol=1e-6)

def test_normalised_loss_by_hand():
    "Zeros against standardised patches of P samples: (P - 1) / P; two-sample patches [a, b] by hand."
    for name in PAIRS:
        m = build(name, norm_target=True)
        m.head.weight.data.zero_()
        P = m.encoder.width
        assert abs(m(batch()).loss.item() - (P - 1) / P) < 1e-4

def test_a_few_missing_samples_take_no_patch_away():
    "One sample of each patch missing: every patch still counts, the loss is there, the features are not empty."
    for name in PAIRS:
        m, valid = build(name), torch.ones(2, 3, 160, dtype=torch.bool)
        valid[:, :, ::20] = False
        b = batch(valid=valid)
        assert m.encoder.recorded(valid).all()
        out = m(b)
        assert out.loss > .1 and out.pred['mask'].any() and not (out.pred['mask'] & ~valid).any()
        assert m.encoder.features(b['signal'], valid).abs().sum(1).min() > 0

def test_loss_counts_only_recorded_samples():
    for name in PAIRS:
        m, valid = build(name), torch.ones(2, 3, 160, dtype=torch.bool)
        valid[0, 2, :] = False
        valid[1, 0, 43:61] = False
        b = batch(valid=valid)
        m.head.weight.data.zero_()
        e = m.encoder
        noise = torch.rand(2, e.groups, e.count, generator=torch.Generator().manual_seed(0))
        out = m(b, noise)
        mask = out.pred['mask']
        assert not (mask & ~valid).any() and mask.any()
        each = [b['signal'][i][mask[i]].square().mean() for i in range(2)]        # an ECG weighs the same, however much was recorded
        assert torch.allclose(out.loss, torch.stack(each).mean(), atol=1e-6)
        halves = [m({k: v[i:i + 1] for k, v in b.items() if isinstance(v, torch.Tensor)}, noise[i:i + 1]).loss for i in range(2)]
        assert torch.allclose(out.loss, torch.stack(halves).mean(), atol=1e-6)     # so the halves of a batch average to the batch
        other = b | {'signal': b['signal'].masked_fill(~valid, 1e3)}
        assert torch.equal(m(other, noise).loss, out.loss)

@pytest.mark.parametrize('name, kind', [*itertools.product(PAIRS, ['patch', 'time']), ('st_mem', 'lead')])
def test_hidden_patches_never_reach_the_encoder(name, kind):
    m, b = build(name, mask=kind).eval(), batch()
    noise = torch.rand(2, m.encoder.groups, m.encoder.count)
    a = m(b, noise)
    mask = a.pred['mask']
    c = m(b | {'signal': b['signal'] + mask * torch.randn(2, 3, 160)}, noise)
    _, seen, _ = hide(noise, m.ratio, kind)
    e, n = m.encoder, a.pred['latent'].shape[2]
    keep = torch.ones(a.pred['latent'].shape[:3], dtype=torch.bool)
    if seen is not None: keep[:, :, e.before:n - e.after] = seen
    assert mask.any() and torch.equal(a.pred['latent'][keep], c.pred['latent'][keep])
    assert torch.equal(a.pred['patches'], c.pred['patches']) and not torch.equal(a.loss, c.loss)

@pytest.mark.parametrize('name', PAIRS)
def test_every_parameter_gets_a_gradient(name):
    m = build(name, 'zscore')
    m(batch()).loss.backward()
    lacking = [k for k, p in m.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    zero = [k for k, p in m.named_parameters() if p.grad is not None and not p.grad.any()]
    assert not lacking and not zero

@pytest.mark.parametrize('name', PAIRS)
def test_the_mask_is_the_samples_own(name):
    "With seeds in the batch the mask of a sample does not depend on its neighbours; without, it comes from torch's generator."
    m, b = build(name).eval(), batch(4)
    whole, half = m(b), m({k: v[2:] for k, v in b.items()})
    assert torch.equal(whole.pred['mask'][2:], half.pred['mask'])
    free = {'signal': b['signal']}
    torch.manual_seed(1); first = m(free).pred['mask']
    torch.manual_seed(1); assert torch.equal(first, m(free).pred['mask'])

def test_decoder_is_the_loop_over_leads():
    "Decoding all leads at once equals decoding them one after the other."
    m, b = build('st_mem').eval(), batch()
    noise = torch.rand(2, 3, 16)
    order, seen, _ = hide(noise)
    z = m.encode(m.encoder.patches(b['signal']), order, seen)
    loop = torch.cat([m.latents(z[:, g:g + 1], order[:, g:g + 1]) for g in range(3)], 1)
    assert torch.allclose(loop, m.latents(z, order), atol=1e-5)

def test_latents_put_tokens_back_where_they_came_from():
    "An identity decoder shows the seen tokens at their places and the mask token elsewhere."
    m = build('st_mem', dec_dim=16, dec_heads=2)
    m.decoder = Transformer(0, 16, 2)
    m.places.table.zero_()
    m.mask_token.data.fill_(7.)
    order = torch.tensor([[[4, 1, 9]]]).expand(2, 3, 3)
    z = torch.randn(2, 3, 5, 16)
    y = m.latents(z, order)
    assert torch.equal(y[:, :, 0], z[:, :, 0]) and torch.equal(y[:, :, -1], z[:, :, -1])
    for slot, place in enumerate((4, 1, 9)): assert torch.equal(y[:, :, 1 + place], z[:, :, 1 + slot])
    assert (y[:, :, [1 + i for i in range(16) if i not in (4, 1, 9)]] == 7).all()

@pytest.mark.parametrize('norm', ['none', 'zscore', 'minmax', 'robust'])
def test_reconstruct_gives_mv(norm):
    m, b = build('st_mem', norm).train(), batch()
    out = m.reconstruct(b)
    mask = out.pred['mask']
    assert m.training and not out.loss.requires_grad
    assert torch.allclose(out.pred['mv'][~mask], b['signal'][~mask], atol=1e-5)
    assert not torch.allclose(out.pred['mv'][mask], b['signal'][mask], atol=1e-2)

def test_reconstruct_undoes_the_patch_norm():
    "A perfect prediction of standardised patches gives the ECG back."
    m, b = build('st_mem', norm_target=True), batch()
    p = m.encoder.patches(b['signal'])
    m.draw_patches = lambda y: (p - p.mean(-1, keepdim=True)) / (p.var(-1, keepdim=True) + 1e-6).sqrt()
    out = m.reconstruct(b)
    assert out.loss < 1e-10 and torch.allclose(out.pred['mv'], b['signal'], atol=1e-4)

# ---- filling in ------------------------------------------------------------------------------------------------------

def parts(name, B=2):
    "Known: the first 100 of 160 samples (ten patches of ten; of whole-lead encoders two of three leads)."
    known = torch.ones(B, 3, 160, dtype=torch.bool)
    if name in ('mlae', 'mae_vit'): known[:, 1] = False
    else: known[:, :, 100:] = False
    return known

@pytest.mark.parametrize('norm, norm_target', [('none', False), ('zscore', False), ('minmax', True), ('robust', False), ('none', True)])
@pytest.mark.parametrize('name', PAIRS)
def test_fill_reads_nothing_unknown(name, norm, norm_target):
    m, b, known = build(name, norm, norm_target=norm_target).train(), batch(), parts(name)
    mv = m.fill(b, known)
    assert m.training and mv.dtype == torch.float32 and torch.equal(mv[known], b['signal'][known]) and not mv.requires_grad
    for junk in (1e4, float('nan')): assert torch.equal(m.fill(b | {'signal': b['signal'].masked_fill(~known, junk)}, known), mv)
    assert torch.equal(m.fill(b, known, seed=9), mv)
    other = b | {'signal': b['signal'] + known * torch.randn(2, 3, 160)}                # what is known does count
    assert not torch.allclose(m.fill(other, known)[~known], mv[~known], atol=1e-4)

@pytest.mark.parametrize('name', PAIRS)
def test_fill_is_reconstruct_where_both_see_the_same(name):
    m, b = build(name, ratio=.5), batch()
    out = m.reconstruct(b)
    assert torch.allclose(m.fill(b, ~out.pred['mask']), out.pred['mv'], atol=1e-5)

def test_fill_needs_whole_patches():
    "Half a patch is kept as it came, but the model does not see it; the rest of its patch is predicted."
    m, b, known = build('st_mem'), batch(), parts('st_mem')
    more = known.clone(); more[:, :, 100:105] = True
    mv = m.fill(b, more)
    assert torch.equal(mv[..., 105:], m.fill(b, known)[..., 105:]) and torch.equal(mv[..., :105], b['signal'][..., :105])

@pytest.mark.parametrize('name', PAIRS)
def test_fill_all_known_is_the_signal(name):
    b = batch()
    assert torch.equal(build(name).fill(b, torch.ones(2, 3, 160, dtype=torch.bool)), b['signal'])

def test_fill_rows_do_not_mix():
    "Recordings of which different parts are known, in one batch and alone."
    m, b, known = build('st_mem', 'zscore'), batch(3), parts('st_mem', 3)
    known[1, 0] = False; known[2, :, 30:] = False
    alone = [m.fill({k: v[i:i + 1] for k, v in b.items()}, known[i:i + 1]) for i in range(3)]
    assert torch.allclose(m.fill(b, known), torch.cat(alone), atol=1e-5)

def test_fill_of_a_recording_with_gaps():
    "What was not recorded is not known, does not take the rest of its patch away, and may be anything."
    m, b, valid = build('st_mem', 'zscore'), batch(), torch.ones(2, 3, 160, dtype=torch.bool)
    valid[:, :, 3] = valid[:, :, 120] = False
    known = parts('st_mem')
    mv = m.fill(b | {'valid': valid}, known)
    assert torch.equal(mv[known & valid], b['signal'][known & valid]) and mv.isfinite().all()
    assert torch.equal(m.fill({'signal': b['signal'].masked_fill(~valid, float('nan')), 'valid': valid}, known), mv)
    alone = known.clone(); alone[:, :, 10:] = False                                     # the one patch left has a gap
    assert m.fill(b | {'valid': valid}, alone).isfinite().all()

def test_fill_from_int16():
    m, known = build('st_mem', 'zscore'), parts('st_mem')
    q = torch.randint(-900, 900, (2, 3, 160), dtype=torch.int16)
    scale = torch.full((2, 3), 1e-3)
    assert torch.equal(m.fill({'signal': q, 'scale': scale}, known), m.fill({'signal': q * 1e-3}, known))

def test_fill_undoes_the_patch_norm():
    "Zeros for standardised patches: the mean level of the visible patches of the lead."
    m, b, known = build('st_mem', norm_target=True), batch(), parts('st_mem')
    m.head.weight.data.zero_()
    level = b['signal'][:, :, :100].mean(-1, keepdim=True).expand(2, 3, 60)
    assert torch.allclose(m.fill(b, known)[..., 100:], level, atol=1e-5)

def test_a_missing_lead_borrows_its_scale():
    m, x = build('st_mem', 'zscore'), torch.randn(2, 3, 160) * 40 + 7
    m.head.weight.data.zero_()
    known = torch.ones(2, 3, 160, dtype=torch.bool)
    known[:, 1] = False
    assert torch.allclose(m.fill({'signal': x}, known)[:, 1, :1], x[:, [0, 2]].mean((1, 2))[:, None], rtol=1e-4)

def test_fill_refuses():
    known = torch.zeros(2, 3, 160, dtype=torch.bool)
    with pytest.raises(ECGError, match='2 of 2 recordings have no patch of 10 samples that is known in whole'): build('st_mem').fill(batch(), known)
    known[:, 0] = True
    assert build('st_mem').fill(batch(), known).isfinite().all() and build('mlae').fill(batch(), known).isfinite().all()
    with pytest.raises(ECGError, match='no patch of 10 samples of all leads.*st_vit'): build('mtae').fill(batch(), known)
    with pytest.raises(ECGError, match='no patch of 160 samples that'): build('mlae').fill(batch(), parts('mtae'))
    with pytest.raises(ECGError, match=r'known is \(2, 160\)'): build('st_mem').fill(batch(), known[:, 0])
    with pytest.raises(ECGError, match='float32; wanted'): build('st_mem').fill(batch(), known.float())

@pytest.mark.parametrize('name', PAIRS)
def test_share_kept(name):
    m, b = build(name, ratio=.75), batch()
    own, same = m.reconstruct(b).pred, m.reconstruct(b, share=.25).pred
    assert torch.equal(own['mask'], same['mask']) and torch.equal(own['mv'], same['mv'])
    n = m.encoder.count
    for share in (.1, .5, .9):
        kept = 1 - m.reconstruct(b, share=share).pred['mask'].float().mean()
        assert kept == pytest.approx(max(1, int(n * share + 1e-6)) / n, abs=1e-6)
    for wrong in (0., 1., -1):
        with pytest.raises(ECGError, match='share of the patches kept'): m.reconstruct(b, share=wrong)


@pytest.mark.parametrize('name, kind', [*((n, 'patch') for n in PAIRS), ('st_mem', 'lead'), ('st_mem', 'time')])
def test_learns_a_sine(name, kind):
    "A hundred steps on sines of one rate, any phase, the same on all leads: most of the hidden variance is explained."
    torch.manual_seed(0)
    phase = torch.rand(32, 1, 1) * 6.28
    b = {'signal': torch.sin(2 * torch.pi * 1.25 * torch.arange(160) / 100 + phase).expand(32, 3, 160).contiguous()}
    m = Masked(Signal(leads=LEADS, fs=100., length=160, norm='none'), PAIRS[name](dim=32, temperature=100.), mask=kind, ratio=.5,
               dec_dim=32, dec_depth=1, dec_heads=2, dec_temperature=100.)
    opt = torch.optim.AdamW(m.parameters(), lr=5e-3)
    for _ in range(100):
        loss = m(b).loss
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(m.parameters(), 1.)
        opt.step()
    assert m.eval()(b).logs['explained'] > .5

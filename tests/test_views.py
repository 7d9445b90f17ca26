"""Views of an ECG: the law of each disturbance, who is told apart from whom, segments encoded alone, two ranks, bad input."""
import math
import pytest
import torch
from reference import Fixture
from torch.nn import functional as F

from ecgnb import encoder
from ecgnb.augment import LOOKS, PINV, baseline_step, baseline_wander, einthoven, emg, powerline, surviving, turned, window
from ecgnb.batch import sample_seeds
from ecgnb.leads import INDEPENDENT, STANDARD, ECGError, residual
from ecgnb.objectives.contrastive import Contrastive, segments_loss
from ecgnb.pairs import align, nt_xent, partners
from ecgnb.registry import from_config, to_config
from ecgnb.representations.signal import Signal
from project import two_ranks

NAMES, FS = list(STANDARD), 250.
EIGHT = [NAMES.index(n) for n in INDEPENDENT]


def batch_of(n=8, length=200, seed=0, **more):
    x = einthoven(torch.randn(n, 12, length, generator=torch.Generator().manual_seed(seed)), NAMES)
    return {'signal': x, 'seed': sample_seeds(0, 0, range(n)), **more}


def heart(n=4, length=500):
    "A batch of ECGs of a dipole: their eight leads are looks at three numbers."
    b = batch_of(n, length)
    b['signal'][:, EIGHT] = LOOKS @ torch.randn(n, 3, length, generator=torch.Generator().manual_seed(1))
    return b | {'signal': einthoven(b['signal'], NAMES)}


MOVES = {'powerline': lambda x, b: powerline(x, b, FS, NAMES), 'emg': lambda x, b: emg(x, b, NAMES), 'step': lambda x, b: baseline_step(x, b, NAMES),
         'wander': lambda x, b: baseline_wander(x, b, FS, NAMES), 'turned': lambda x, b: turned(x, b, NAMES)}


@pytest.mark.parametrize('name', MOVES)
def test_a_disturbance_is_the_samples_own_and_obeys_einthoven(name):
    b = heart()
    x = b['signal'].clone()
    y = MOVES[name](b['signal'], b)
    assert torch.equal(b['signal'], x), 'the input was changed in place'
    assert torch.equal(y, MOVES[name](x, b)) and not torch.equal(y, MOVES[name](x, b | {'seed': sample_seeds(1, 0, range(4))}))
    few = {k: v[1:3] for k, v in b.items()}
    torch.testing.assert_close(MOVES[name](few['signal'], few), y[1:3])
    assert not torch.allclose(y, x, atol=1e-3) and all(residual(e.numpy(), NAMES) < 1e-5 for e in y)


@pytest.mark.parametrize('name', ['emg', 'turned', 'step'])
def test_leads_are_known_by_name(name):
    "In another order of the leads the same happens to the leads of a name: exactly, where the draws are not a lead's own."
    b, order = heart(), [NAMES.index(n) for n in ('V6', 'II', 'aVF', 'I', 'V1', 'V2', 'V3', 'V4', 'V5', 'III', 'aVR', 'aVL')]
    names = [NAMES[i] for i in order]
    other = b | {'signal': b['signal'][:, order]}
    y = {'emg': lambda: emg(other['signal'], other, names), 'turned': lambda: turned(other['signal'], other, names),
         'step': lambda: baseline_step(other['signal'], other, names)}[name]()
    assert all(residual(e.numpy(), names) < 1e-5 for e in y)
    if name == 'turned': torch.testing.assert_close(y, turned(b['signal'], b, NAMES)[:, order], atol=1e-5, rtol=1e-4)


def test_sizes_of_the_disturbances():
    b = batch_of(64, 1000) | {'signal': torch.zeros(64, 12, 1000)}
    hum, noise, step, drift = (MOVES[k](b['signal'], b) for k in ('powerline', 'emg', 'step', 'wander'))
    spectrum = torch.fft.rfft(hum[:, 1]).abs().argmax(1)*FS/1000
    assert set(spectrum.tolist()) == {50., 60.} and .08 < hum[:, 1].abs().amax() <= .1 and torch.equal(hum[:, 0], hum[:, 6])
    one = powerline(b['signal'], b, FS, NAMES, mains=50.)[:, 1]
    assert set((torch.fft.rfft(one).abs().argmax(1)*FS/1000).tolist()) == {50.}
    std = noise[:, EIGHT].std(2)
    assert std.max() < .11 and .04 < std.mean() < .06 and std.flatten().unique().numel() == 64*8
    share = (step[:, 1].abs() > 1e-6).float().mean(1)
    assert abs(share.mean() - .2) < .02 and .02 < share.std() < .06 and step[:, EIGHT].abs().max() <= .1
    edges = (step[:, 1].diff(dim=1).abs() > 1e-6).sum(1)
    assert (edges <= 2).all() and (step[:, 6] < -1e-6).any() and (step[:, 6] > 1e-6).any()
    assert drift.diff(dim=2).abs().max() < .01 and drift[:, EIGHT].abs().max() > .1


def test_turned_by_nothing_is_the_dipole_part():
    b = batch_of(4, 300)
    y = turned(b['signal'], b, NAMES, angle=0., stretch=1.)
    torch.testing.assert_close(y[:, EIGHT], LOOKS @ (PINV @ b['signal'][:, EIGHT]), atol=1e-4, rtol=1e-4)
    h = heart()
    torch.testing.assert_close(turned(h['signal'], h, NAMES, angle=0., stretch=1.), h['signal'], atol=1e-4, rtol=1e-4)


def test_turning_keeps_lengths_and_stretching_stays_within_bounds():
    h = heart()
    v, w = (PINV @ x[:, EIGHT] for x in (h['signal'], turned(h['signal'], h, NAMES, stretch=1.)))
    torch.testing.assert_close(v.norm(dim=1), w.norm(dim=1), atol=1e-4, rtol=1e-4)
    w = PINV @ turned(h['signal'], h, NAMES, angle=0.)[:, EIGHT]
    ratio = (w/v).median(2).values
    torch.testing.assert_close(w, v*ratio[..., None], atol=1e-3, rtol=1e-3)
    assert ratio.min() >= 1 and ratio.max() <= 1.5 and ratio.flatten().unique().numel() == 12


def test_euler_angles_are_z_then_y_then_x():
    "Against rotations written out, with the sample's own draws."
    from ecgnb.batch import draw
    h = heart(2)
    z, y, x = ((2*draw(h, 6, stream=129)[:, :3] - 1)*math.pi/4).unbind(1)
    v, w = (PINV @ s[:, EIGHT] for s in (h['signal'], turned(h['signal'], h, NAMES, stretch=1.)))
    for i in range(2):
        c, s = (f(torch.stack([x[i], y[i], z[i]])) for f in (torch.cos, torch.sin))
        rx = torch.tensor([[1, 0, 0], [0, c[0], -s[0]], [0, s[0], c[0]]])
        ry = torch.tensor([[c[1], 0, s[1]], [0, 1, 0], [-s[1], 0, c[1]]])
        rz = torch.tensor([[c[2], -s[2], 0], [s[2], c[2], 0], [0, 0, 1]])
        torch.testing.assert_close(w[i], rx @ ry @ rz @ v[i], atol=1e-4, rtol=1e-4)


def test_inverse_dower_is_the_published_one():
    "Edenbrandt & Pahlm 1988, I, II, V1..V6, as printed to three decimals."
    said = [[.156, -.010, -.172, -.074, .122, .231, .239, .194], [-.227, .887, .057, -.019, -.106, -.022, .041, .048],
            [.022, .102, -.229, -.310, -.246, -.063, .055, .108]]
    torch.testing.assert_close(PINV, torch.tensor(said), atol=6e-4, rtol=0)


def test_an_ecg_with_a_gap_is_not_turned():
    h = heart()
    valid = torch.ones_like(h['signal'], dtype=torch.bool); valid[1, 8, :3] = False; valid[2, 2] = False
    y = turned(h['signal'], h, NAMES, valid=valid)
    free = turned(h['signal'], h, NAMES)
    assert torch.equal(y[1], h['signal'][1]) and torch.equal(y[[0, 2, 3]], free[[0, 2, 3]])


def test_masks_hide_their_shares():
    b = {'signal': torch.zeros(4096, 1, 1), 'seed': sample_seeds(0, 0, range(4096))}
    keep = surviving(b, 12)
    assert keep.any(1).all() and abs(keep.float().mean() - .5) < .01 and surviving(b, 12, 0.).all()
    assert (surviving(b, 12, 1.).sum(1) == 1).all() and surviving(b, 1, .5).all()
    keep = window(b, 3, 40)
    assert (keep.sum(2) == 20).all() and (keep[:, :, 0] != keep[:, :, -1]).any() and (keep != keep.roll(1, 2)).sum(2).eq(2).all(), 'one piece, around the end'
    assert abs(keep.float().mean((0, 1)) - .5).max() < .03 and not torch.equal(keep[:, 0], keep[:, 1])
    assert (window(b, 2, 40, .3).sum(2) == 28).all() and window(b, 2, 40, 0.).all()


def test_segments_loss_by_hand():
    "Two recordings of one patient that look the same, and one at a right angle: temperature 1."
    z, who = torch.eye(2)[[0, 0, 1]], torch.tensor([3, 3, 8])
    rows = [math.log(1 + math.exp(-1))]*2 + [math.log(1 + 2*math.exp(-1))]
    loss, hit = segments_loss(z, z, 1., None, who)
    assert float(loss) == pytest.approx(sum(rows)/3, abs=1e-6) and hit == 1
    loss, _ = segments_loss(z, z, 1., None, who, same_patient=True)
    assert float(loss) == pytest.approx((2*(math.log(2*math.e + 1) - 1) + rows[2])/3, abs=1e-6)
    partner = segments_loss(z, z, 1., torch.tensor([5, 5, 6]))[0]                   # one recording: all four pairs count
    assert float(partner) == pytest.approx((4*(math.log(2*math.e + 1) - 1) + rows[2])/5, abs=1e-6)


@pytest.mark.parametrize('loss', ['segments', 'align'])
def test_another_ecg_of_a_patient_pushes_nobody(loss):
    "ECGs 1 and 2 are of one patient: the gradient of the second view of 2 does not depend on the first view of 1, unless they are negatives."
    torch.manual_seed(0)
    who, unit = torch.tensor([1, 1, 2, 3]), lambda x: F.normalize(x, dim=1)
    a, b, other = torch.randn(4, 6), torch.randn(4, 6), torch.randn(6)
    def second(first, same):
        x, y = torch.cat([first[None], a[1:]]), b.clone().requires_grad_()
        if loss == 'align': value = align(unit(x), unit(y), 10., None, partners(4, None, who, same)[1])[0]
        else: value = segments_loss(x, y, .1, None, who, same)[0]
        value.backward()
        return y.grad[1]
    torch.testing.assert_close(second(a[0], False), second(other, False))
    assert not torch.allclose(second(a[0], True), second(other, True))


def test_nt_xent_by_hand_and_supervised():
    torch.manual_seed(0)
    a, b = torch.randn(4, 6), torch.randn(4, 6)
    z = F.normalize(torch.cat([a, b]), dim=1)
    s = z @ z.T/.1
    simclr = F.cross_entropy(s.clone().fill_diagonal_(-math.inf), torch.arange(8).roll(4))
    torch.testing.assert_close(nt_xent(a, b, .1)[0], simclr)
    who = torch.tensor([1, 1, 2, 3]); twice = who.repeat(2)
    without = s.masked_fill(twice[:, None] == twice, -math.inf)                     # the patient's other ECGs are left out
    mine = s.diagonal(4).repeat(2)
    torch.testing.assert_close(nt_xent(a, b, .1, None, who)[0], (torch.logaddexp(without.logsumexp(1), mine) - mine).mean())
    each = []
    for i in range(8):
        foes = s[i][twice != twice[i]].exp().sum()
        own = [p for p in range(8) if p != i and twice[p] == twice[i]]
        each.append(sum(-(s[i, p] - (s[i, p].exp() + foes).log()) for p in own)/len(own))
    torch.testing.assert_close(nt_xent(a, b, .1, who)[0], sum(each)/8)


def test_nobody_to_be_told_apart_from():
    z, one = torch.randn(3, 4), torch.ones(3, dtype=torch.int64)
    for f in (segments_loss, nt_xent):
        with pytest.raises(ECGError, match='a batch of one patient has nothing'): f(z, z, .1, None, one)
        with pytest.raises(ECGError, match='a batch of one ECG'): f(z[:1], z[:1], .1)
        assert f(z, z, .1, None, one, same_patient=True)[0] > 0 and f(z, z, .1, None, one, training=False)[0].abs() < 1e-6
    with pytest.raises(ECGError, match='a batch of one patient'): nt_xent(z, z, .1, one)


@pytest.mark.parametrize('call', ['criterion_eval', 'criterion_eval_distinct'])
def test_parity_with_the_reference(call):
    f = Fixture('fairseq_signals__wav2vec2_cmsc')
    key = f.call(call)
    z, ids = f.io['out/pretrain_eval/cmsc_features'], f.io[key['inputs']['patient_id']]
    segment, n = f.io[key['inputs']['segment']], f.io[f'out/{call}/sample_size']
    first, second = segment == 0, segment == 1
    assert torch.equal(ids[first], ids[second])
    loss, _ = segments_loss(z[first], z[second], .1, ids[first])
    torch.testing.assert_close(loss*n, f.io[f'out/{call}/part_loss_3'], atol=1e-3, rtol=1e-5)


def model(views, e='vit1d', seed=0, length=200, signal={}, **how):
    torch.manual_seed(seed)
    small = dict(dim=32) | (dict(depth=1, heads=2) if e == 'vit1d' else dict(size='18', norm='group'))
    return Contrastive(Signal(length=length, fs=100., norm='none', **signal), encoder[e](length=length, **small), views=views,
                       **dict(proj=0, drop=0., temperature=.1) | how)


@pytest.mark.parametrize('e', ['vit1d', 'resnet1d'])
def test_each_half_is_encoded_alone(e):
    m, b = model('segments', e).eval(), batch_of()
    z0, z1 = m.halves(m.representation(b))
    other = b['signal'].clone(); other[:, :, 100:] = 9.
    y0, y1 = m.halves(m.representation(b | {'signal': other}))
    torch.testing.assert_close(z0, y0)
    assert not torch.allclose(z1, y1, atol=1e-2) and z0.shape == (8, m.encoder.dim)
    valid = torch.ones_like(other, dtype=torch.bool); valid[:, :, 100:] = False
    torch.testing.assert_close(z0, m.project(m.representation(b | {'valid': valid}))[1])
    out = m(b)
    torch.testing.assert_close(out.loss, segments_loss(z0, z1, .1, training=False)[0])


def test_an_encoder_that_cuts_is_asked_once():
    e = encoder['wav2vec2'](length=512, segment=256, dim=32, depth=1, heads=2, mlp=64, width=16, groups=4)
    m = Contrastive(Signal(length=512, fs=100.), e, views='segments', proj=0, drop=0., temperature=.1).eval()
    b = batch_of(4, 512)
    z = m.halves(m.representation(b))
    other = b['signal'].clone(); other[:, :, 256:] = other[:, :, 256:].flip(2)
    y = m.halves(m.representation(b | {'signal': other}))
    assert z[0].shape == (4, 32) and not torch.allclose(z[1], y[1], atol=1e-3)
    torch.testing.assert_close(z[0], y[0], atol=1e-5, rtol=1e-4)
    tokens = e(m.representation(b)['signal'])
    torch.testing.assert_close(z[1], tokens[:, tokens.shape[1]//2:].mean(1))
    with pytest.raises(ECGError, match='wants two segments a window, not 4'):
        Contrastive(Signal(length=512), encoder['wav2vec2'](length=512, segment=128, dim=32, depth=1, heads=2, mlp=64, width=16, groups=4), views='segments')


HOW = dict(segments={}, dropout=dict(drop=.1), augment=dict(signal=dict(noise=.2, hide=.5)))
HOW['3kg'] = {}

@pytest.mark.parametrize('proj', [0, 32])
@pytest.mark.parametrize('views', HOW)
def test_every_kind_of_views_trains_from_the_samples_seeds(views, proj):
    m, b = model(views, proj=proj, **HOW[views]).train(), batch_of(patient=torch.arange(8)//2)
    torch.manual_seed(0); a = m(b)
    torch.manual_seed(1); c = m(b)
    assert torch.equal(a.loss, c.loss) and a.loss.isfinite() and a.loss > 0
    again = m(b | {'seed': sample_seeds(1, 0, range(8))}).loss
    assert torch.equal(a.loss, again) == (views == 'segments')
    a.loss.backward()
    assert not [n for n, p in m.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())]
    assert bool([n for n, _ in m.named_parameters() if n.startswith(('view', 'to_shared'))]) == bool(proj)
    assert m(b | {'patient': torch.arange(8)}).loss != a.loss, 'patients do not matter'
    same = model(views, proj=proj, same_patient=True, **HOW[views]).train()
    torch.testing.assert_close(same(b).loss, model(views, proj=proj, **HOW[views]).train()({k: v for k, v in b.items() if k != 'patient'}).loss)
    with pytest.raises(ECGError, match='a batch of one patient'): m(b | {'patient': torch.zeros(8, dtype=torch.int64)})
    again = from_config(to_config(m))
    again.load_state_dict(m.state_dict()); m.eval(); again.eval()
    assert torch.equal(again(b).loss, m(b).loss) and m.ecg(b).shape == (8, proj or 32)


def test_3kg_shows_half_of_each_lead_twice():
    m, b = model('3kg').train(), batch_of()
    one, two = m.view_of(b, 0), m.view_of(b, 1)
    assert (one['valid'].float().mean(2) == .5).all() and not torch.equal(one['valid'], two['valid'])
    assert (one['signal'][~one['valid']] == 0).all() and not torch.allclose(one['signal'], two['signal'], atol=.1)
    plain = model('3kg', angle=0., stretch=1., mask=0.)
    torch.testing.assert_close(plain.view_of(heart(4, 200), 0)['signal'], heart(4, 200)['signal'], atol=1e-4, rtol=1e-4)
    q = (b['signal']*100).round().to(torch.int16)
    coded = {'signal': q, 'scale': torch.full((8, 12), .01), 'seed': b['seed']}
    torch.testing.assert_close(m.view_of(coded, 0)['signal'], m.view_of({'signal': q.float()*.01, 'seed': b['seed']}, 0)['signal'], atol=1e-4, rtol=1e-4)


def test_what_was_not_recorded_does_not_matter():
    valid = torch.ones(8, 12, 200, dtype=torch.bool); valid[1, 8, 50:] = False; valid[:, 4] = False
    for views in ('segments', '3kg'):
        m, b = model(views).eval(), batch_of(valid=valid)
        x = b['signal'].masked_fill(~valid, 0.)
        torch.testing.assert_close(m(b | {'signal': x}).loss, m(b | {'signal': x.masked_fill(~valid, 7.)}).loss)


RANKS = '''
from test_views import batch_of, model
patient = torch.arange(8)//3
b = {k: v[4*rank:4*rank + 4] for k, v in batch_of(patient=patient).items()}
out = {}
for views in ('segments', '3kg'):
    m = model(views).train()
    wrapped = torch.nn.parallel.DistributedDataParallel(m)
    loss = wrapped(b).loss
    loss.backward()
    losses = [torch.zeros(()) for _ in range(2)]; dist.all_gather(losses, loss.detach())
    out[views] = dict(losses=losses, grads={k: p.grad for k, p in m.named_parameters() if p.grad is not None})
'''


def test_two_ranks_equal_one(tmp_path):
    "Losses and gradients of two halves of a batch are those of the whole; one patient has ECGs on both ranks."
    two = two_ranks(RANKS, tmp_path)
    for views in ('segments', '3kg'):
        m = model(views).train()
        one = m(batch_of(patient=torch.arange(8)//3))
        one.loss.backward()
        for loss in two[views]['losses']: torch.testing.assert_close(one.loss.detach(), loss)
        for k, p in m.named_parameters():
            if p.grad is not None: torch.testing.assert_close(p.grad, two[views]['grads'][k], atol=1e-6, rtol=1e-4)
        half = m({k: v[:4] for k, v in batch_of(patient=torch.arange(8)//3).items()})
        assert (half.loss - one.loss).abs() > .01, 'half the batch has the loss of the whole: nothing was tested'


def test_bad_input():
    with pytest.raises(ECGError, match='V6 missing'): turned(torch.zeros(1, 11, 9), {'signal': torch.zeros(1, 11, 9)}, NAMES[:11])
    with pytest.raises(ECGError, match='fs=100: hum of 60 Hz'): powerline(torch.zeros(1, 1, 9), {'signal': torch.zeros(1, 1, 9)}, 100., ['II'])
    with pytest.raises(ECGError, match="needs leads V1, V2"):
        Contrastive(Signal(leads='I,II,V3,V4,V5,V6', length=200), encoder['vit1d'](leads='I,II,V3,V4,V5,V6', length=200, dim=32, depth=1, heads=2), views='3kg')
    with pytest.raises(ECGError, match='angle=200'): model('3kg', angle=200.)
    with pytest.raises(ECGError, match='mask=1'): model('3kg', mask=1.)
    with pytest.raises(ECGError, match="views='cmlc': use dropout, augment, segments, 3kg"): model('cmlc')
    r = encoder['decoder'](dim=32, depth=1, heads=2, vocab=20, context=40)
    with pytest.raises(ECGError, match="cuts signals, Decoder takes tokens"): Contrastive(Signal(length=200), r, views='segments')

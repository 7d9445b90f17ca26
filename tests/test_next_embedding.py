"""next_embedding and the causal mode of vit1d: what a token may know, what counts, and that shares of a batch average to it."""
import pytest
import torch
from ecgnb.batch import sample_seeds
from ecgnb.encoders.vit1d import Vit1d
from ecgnb.objectives.masked import Masked
from ecgnb.objectives.next_embedding import NextEmbedding, narrow, rank, trivial
from ecgnb.registry import from_config, to_config
from ecgnb.representations.signal import Signal

SIZES = dict(leads='I,II', length=200, patch=10, dim=16, depth=2, heads=2, causal=True)


def make(objective={}, **fields):
    torch.manual_seed(0)
    e = Vit1d(**SIZES | dict(cls=False) | fields)
    return NextEmbedding(Signal(leads='I,II', length=200, fs=100.), e, **objective)


def batch(n=4): return {'signal': torch.randn(n, 2, 200, generator=torch.Generator().manual_seed(1)), 'seed': sample_seeds(0, 0, range(n))}


@pytest.mark.parametrize('cls', [False, True])
def test_a_causal_token_knows_only_what_came_before(cls):
    e, x = Vit1d(**SIZES, cls=cls).eval(), batch()['signal']
    other = x.clone(); other[:, :, 100:] = x[:, :, :100]
    a, b = e(x), e(other)
    assert a.shape == (4, 20, 16) and torch.equal(a[:, :10], b[:, :10]) and ((a - b)[:, 10:].abs().amax(-1) > 1e-4).all()
    assert not torch.allclose(e.features(x), e.features(other), atol=1e-4) and (e.before, e.after) == (0, int(cls))


@pytest.mark.parametrize('cls', [False, True])
def test_a_causal_encoder_reads_an_ecg_whose_start_was_not_recorded(cls):
    e, x = Vit1d(**SIZES, cls=cls), batch()['signal']
    valid = torch.ones_like(x, dtype=torch.bool); valid[:, :, :45] = False; valid[3] = False
    a = e.features(x.masked_fill(~valid, 9.), valid)
    a.sum().backward()
    assert torch.equal(a, e.features(x*valid, valid)) and a.isfinite().all()
    assert all(p.grad.isfinite().all() for p in e.parameters())


def test_the_loss_is_the_mean_over_ecgs_whatever_their_length():
    m, b = make(dict(spread=.5)), batch()
    b['valid'] = torch.ones_like(b['signal'], dtype=torch.bool); b['valid'][1, :, 120:] = False; b['valid'][2, :, :60] = False
    half = lambda i: {k: v[i] for k, v in b.items()}
    assert m(b).loss.item() == pytest.approx((m(half(slice(2))).loss + m(half(slice(2, 4))).loss).item()/2, abs=1e-6)
    assert m(b).pred['keep'].sum(1).tolist() == [19, 11, 13, 19]


def test_an_ecg_that_was_not_recorded_at_all_counts_nothing_and_breaks_nothing():
    m, b = make(), batch()
    b['valid'] = torch.zeros_like(b['signal'], dtype=torch.bool)
    loss = m(b).loss; loss.backward()
    assert loss.item() == 0 and all(p.grad is None or p.grad.isfinite().all() for p in m.parameters())


def test_horizon_looks_further_and_the_gradient_does_not_flow_through_the_target():
    m = make(dict(horizon=3, spread=0.)); guess, goal, keep, hidden, there = m.predict(batch())
    assert guess.shape == goal.shape == (4, 17, 16) and hidden.shape == (4, 20, 16)
    cosine = torch.cosine_similarity(guess, goal.detach(), dim=-1)
    assert m(batch()).loss.item() == pytest.approx(1 - cosine.mean().item(), abs=1e-6)
    m(batch()).loss.backward(); ours = m.encoder.embedding[1].weight.grad.clone(); m.zero_grad()
    (1 - cosine.mean()).backward()
    torch.testing.assert_close(m.encoder.embedding[1].weight.grad, ours)


def test_the_target_with_positions_is_alike_in_all_ecgs_and_ours_is_not():
    with torch.no_grad(): a, b = (make(dict(target=t)).eval()(batch(64)).logs['trivial'] for t in ('embedding', 'patch'))
    assert a > b + .2


def test_monitors():
    keep = torch.ones(32, 5, dtype=torch.bool)
    u = torch.nn.functional.normalize(torch.randn(5, 8), dim=-1).expand(32, 5, 8)
    assert trivial(u, keep).item() == pytest.approx(1, abs=1e-4) and trivial(u[:1], keep[:1]).item() < 1e-3
    assert narrow(u, keep).shape == (32,) and (narrow(u[:, :1], keep[:, :1]) == 0).all()
    assert rank(torch.eye(16)).item() == pytest.approx(15, abs=1e-3) and rank(torch.ones(1, 8)).item() == 0


def test_bf16_and_config():
    m = make().eval()
    with torch.autocast('cpu', torch.bfloat16): low = m(batch()).loss
    assert low.dtype == torch.float32 and abs(low - m(batch()).loss) < .02
    assert to_config(from_config(to_config(m))) == to_config(m)


def test_masked_refuses_a_causal_encoder():
    "Its patches come in a random order: earlier would not mean earlier."
    with pytest.raises(ValueError, match='causal=False'):
        Masked(Signal(leads='I,II', length=200), Vit1d(**SIZES), dec_dim=16, dec_depth=1, dec_heads=2)(batch())

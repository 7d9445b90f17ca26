"The state space encoder: its convolution is the recurrence, its kernel the differential equation's, at any length."
import copy
import time

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ecgnb.encoders.s4 import S4, Ssm, poles
from ecgnb.leads import ECGError
from ecgnb.optim import kinds


def stepwise(ssm, u):
    "ssm(u) by its state, step after step, in float64; u (B, H, L)."
    ssm, u = copy.deepcopy(ssm).double(), u.double()
    step, weight = ssm.discrete()
    def run(u, w):
        h, out = torch.zeros(*u.shape[:2], step.shape[1], dtype=torch.complex128), []
        for v in u.unbind(-1):
            h = step.exp()*h + v[..., None]
            out.append(2*(w*h).real.sum(-1))
        return torch.stack(out, -1)
    y = run(u, weight[0]) + ssm.skip*u
    return y + F.pad(run(u.flip(-1), weight[1]).flip(-1)[..., 1:], (0, 1)) if ssm.bidirectional else y


def dense(ssm, L):
    "The forward kernel (H, L) from a dense matrix exponential of [[A, B], [0, 0]] step by step: zero-order hold without its formula."
    decay, w = ssm.log_decay.detach().double().exp(), ssm.frequency.detach().double()
    c, dt, out = ssm.out.detach().double()[0], ssm.log_dt.detach().double().exp(), []
    for h in range(len(w)):
        N = w.shape[1]
        A = torch.zeros(2*N + 1, 2*N + 1, dtype=torch.float64)
        for n in range(N):
            A[2*n:2*n + 2, 2*n:2*n + 2] = torch.tensor([[-decay[h, n], -w[h, n]], [w[h, n], -decay[h, n]]])
            A[2*n, -1] = 1.
        M = torch.matrix_exp(A*dt[h])                      # the input is held for one step
        state, row = M[:-1, -1], []
        for _ in range(L):
            row.append(2*(torch.stack([c[h, :, 0], -c[h, :, 1]], 1).flatten() @ state))
            state = M[:-1, :-1] @ state
        out.append(torch.stack(row))
    return torch.stack(out)


@pytest.mark.parametrize('kind', ['legs', 'lin'])
@pytest.mark.parametrize('both', [True, False])
def test_the_convolution_is_the_recurrence(kind, both):
    torch.manual_seed(0)
    for L in (1, 2, 7, 500):
        ssm, u = Ssm(5, kind=kind, bidirectional=both), torch.randn(3, 5, L)
        torch.testing.assert_close(ssm(u).double(), stepwise(ssm, u), atol=3e-5, rtol=1e-4)
        torch.testing.assert_close(ssm.double()(u.double()), stepwise(ssm, u), atol=1e-12, rtol=1e-10)


def test_the_kernel_is_the_differential_equations():
    torch.manual_seed(0)
    ssm = Ssm(4)
    with torch.no_grad(): ssm.log_decay.add_(torch.randn(4, 4)*.5); ssm.frequency.mul_(1.3)
    torch.testing.assert_close(ssm.kernel(300)[0].double(), dense(ssm, 300), atol=1e-6, rtol=1e-4)


def test_slow_poles_lose_no_digits():
    "exp(step) - 1 is not computed as a difference: a step of 1e-5 keeps float32's digits."
    ssm = Ssm(3, bidirectional=False)
    with torch.no_grad(): ssm.log_dt.fill_(np.log(1e-5))
    double = copy.deepcopy(ssm).double()
    torch.testing.assert_close(ssm.discrete()[1].to(torch.complex128), double.discrete()[1], rtol=1e-5, atol=0)


def test_hippo_in_numpy():
    for N in (2, 8, 64):
        q = np.sqrt(2*np.arange(N) + 1)
        A = -np.tril(np.outer(q, q), -1) - np.diag(np.arange(N) + 1.) + np.outer(q, q)/2
        w = np.linalg.eigvals(A)
        assert np.allclose(w.real, -.5, atol=1e-6) and np.allclose(np.sort(w.imag)[N//2:], poles(N)[1], rtol=1e-5)


@pytest.mark.parametrize('both', [True, False])
def test_gradients_against_differences(both):
    torch.manual_seed(0)
    ssm = Ssm(2, state=4, bidirectional=both).double()
    params, u = dict(ssm.named_parameters()), torch.randn(2, 2, 9, dtype=torch.float64, requires_grad=True)
    f = lambda u, *p: torch.func.functional_call(ssm, dict(zip(params, p)), u)
    assert torch.autograd.gradcheck(f, (u, *params.values()))


def test_learned_on_five_seconds_reads_ten():
    torch.manual_seed(0)
    m = S4(length=500, dim=32, depth=2).eval()
    x = torch.randn(2, 12, 1000)
    assert m(x).shape == (2, 500, 32) and m(x[..., :2]).shape == (2, 1, 32)
    valid = torch.ones(2, 12, 1000, dtype=torch.bool); valid[:, :, 500:] = False
    for lonely in (S4(length=500, dim=32, depth=2).eval(), S4(length=500, dim=32, depth=2, prenorm=True).eval()):
        padded, alone = lonely.features(x.masked_fill(~valid, float('nan')), valid), lonely.features(x[..., :500])
        torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-4)


def test_nothing_recorded_is_zero_and_finite():
    m = S4(length=100, dim=16, depth=1).eval()
    assert torch.equal(m.features(torch.full((1, 12, 100), float('nan')), torch.zeros(1, 12, 100, dtype=torch.bool)), torch.zeros(1, 16))


def test_causal_or_not():
    torch.manual_seed(0)
    x = torch.randn(1, 12, 200); late = x.clone(); late[..., 100:] += 1
    for both in (True, False):
        m = S4(length=200, dim=16, depth=2, bidirectional=both).eval()
        assert torch.allclose(m(x)[:, :50], m(late)[:, :50], atol=1e-5) == (not both)


def test_bf16_autocast_keeps_the_kernel_in_float32():
    torch.manual_seed(0)
    m, x = S4(length=500, dim=32, depth=2).eval(), torch.randn(4, 12, 500)
    with torch.autocast('cpu', torch.bfloat16):
        low, y = m.features(x), m.layers[0].ssm(torch.randn(1, 32, 50).bfloat16())
    assert y.dtype == torch.float32
    assert (low.float() - m.features(x)).abs().max() < .03*m.features(x).abs().max()


def test_no_weight_decay_on_the_state_spaces():
    what = kinds(S4(length=100, dim=16, depth=1, prenorm=True))
    assert {k for k, v in what.items() if v != 'plain'} == {'embedding.weight', 'layers.0.mix.weight'} and what['layers.0.mix.weight'] == 'hidden'


def test_much_faster_than_a_loop():
    u, ssm = torch.randn(4, 32, 1250), Ssm(32, bidirectional=False)
    def least(f, times=3): return min((lambda t: (f(), time.perf_counter() - t)[1])(time.perf_counter()) for _ in range(times))
    with torch.no_grad(): assert least(lambda: stepwise(ssm, u)) > 2*least(lambda: ssm(u), 5)


def test_two_million_parameters():
    count = lambda **k: sum(p.numel() for p in S4(**k).parameters())
    assert count() == 2_171_392 and count(patch=1, length=1000) == 2_165_248
    assert count(bidirectional=False) == 2_171_392 - 4*512*8


def test_what_is_refused():
    for kw, text in [(dict(state=5), 'must be even'), (dict(state=0), 'must be even'), (dict(poles='hippo'), "use 'legs'"), (dict(patch=7), 'does not divide length=2500'),
                     (dict(patch=0), 'patch=0')]:
        with pytest.raises(ECGError, match=text): S4(**kw)
    with pytest.raises(ECGError, match='a multiple of 2'): S4(dim=16, depth=1)(torch.randn(1, 12, 11))

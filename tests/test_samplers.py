"""Samplers against the schedulers of `diffusers`: whole trajectories with a network whose answer is a fixed function of state and time."""
import math
from functools import partial
import pytest
import torch
from ecgnb.samplers import KINDS, abars, clean, ddim, dpm, euler, heun, spaced, target, times

diffusers = pytest.importorskip('diffusers', reason='the development dependency diffusers is not installed')
S = 1000
X = torch.randn(3, 2, 40, generator=torch.Generator().manual_seed(0))


def said(x, t):
    "A made-up network: depends on state and time, bounded."
    return .7*torch.sin(3*x + 2*t) + .2*x*(1 - t)


def path(f):
    "`f` with every state and time it is asked at written down."
    seen = []
    def g(x, t):
        seen.append((x.clone(), t))
        return f(x, t)
    g.seen = seen
    return g


def same(ours, theirs, atol=2e-5):
    assert len(ours) == len(theirs) > 1
    for a, b in zip(ours, theirs): torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


SCHEDULE = {'linear': 'linear', 'cosine': 'squaredcos_cap_v2'}
PREDICT = {'epsilon': 'epsilon', 'v': 'v_prediction', 'x0': 'sample'}


@pytest.mark.parametrize('schedule', list(SCHEDULE))
@pytest.mark.parametrize('levels', [20, 1000])
def test_schedule(schedule, levels):
    d = diffusers.DDPMScheduler(levels, beta_start=1e-4, beta_end=.02, beta_schedule=SCHEDULE[schedule])
    a = abars(levels, schedule)
    torch.testing.assert_close(a.float(), d.alphas_cumprod, atol=1e-6, rtol=1e-3)
    assert a.dtype == torch.float64 and (a.diff() < 0).all() and 0 < a[-1] < a[0] < 1


@pytest.mark.parametrize('steps', [1, 2, 7, 50, 999, 1000])
def test_levels_to_visit(steps):
    d = diffusers.DDIMScheduler(S, timestep_spacing='trailing')
    d.set_timesteps(steps)
    assert spaced(S, steps) == d.timesteps.tolist()[:steps] and len(set(spaced(S, steps))) == steps


def trajectory(scheduler, kind, steps, noise=None, monkeypatch=None, **more):
    "States of a diffusers scheduler, first to last; `noise`: list of tensors it takes instead of drawing."
    scheduler.set_timesteps(steps)
    if noise is not None:
        left = iter(noise)
        module = __import__(type(scheduler).__module__, fromlist=['x'])
        monkeypatch.setattr(module, 'randn_tensor', lambda *a, **k: next(left))
    x, out = X, [X]
    for i in scheduler.timesteps.tolist():
        x = scheduler.step(said(x, 1 - i/S), i, x, **more).prev_sample
        out.append(x)
    return out


def mine(solver, kind, schedule, steps, clip=None, **more):
    a = abars(S, schedule).tolist()
    def data(x, i):
        y = clean(kind, said(x, 1 - i/S), x, a[i]**.5, (1 - a[i])**.5)
        return y if clip is None else y.clamp(-clip, clip)
    net = path(data)
    last = solver(net, X, a, spaced(S, steps), **more)
    return [x for x, _ in net.seen] + [last]


def options(schedule, kind, clip):
    return dict(beta_start=1e-4, beta_end=.02, beta_schedule=SCHEDULE[schedule], prediction_type=PREDICT[kind], timestep_spacing='trailing',
                **(dict(clip_sample=False) if clip is None else dict(clip_sample=True, clip_sample_range=clip)))


CASES = [('linear', k, c, n) for k in KINDS for c in (None, 1.) for n in (5, 50)] + [('cosine', 'v', 1., 20), ('cosine', 'x0', None, 20)]


@pytest.mark.parametrize('schedule,kind,clip,steps', CASES)
def test_ddim(schedule, kind, clip, steps):
    d = diffusers.DDIMScheduler(S, **options(schedule, kind, clip))
    same(mine(ddim, kind, schedule, steps, clip), trajectory(d, kind, steps, use_clipped_model_output=clip is not None), 1e-4)


@pytest.mark.parametrize('eta', [.5, 1.])
def test_ddim_with_chance(eta, monkeypatch):
    noise = list(torch.randn(20, *X.shape, generator=torch.Generator().manual_seed(1)))
    d = diffusers.DDIMScheduler(S, **options('linear', 'epsilon', 1.))
    theirs = trajectory(d, 'epsilon', 20, noise, monkeypatch, eta=eta, use_clipped_model_output=True)
    same(mine(ddim, 'epsilon', 'linear', 20, 1., eta=eta, noise=noise.__getitem__), theirs, 1e-4)


@pytest.mark.parametrize('schedule,kind,clip,steps', CASES + [('linear', 'epsilon', 1., 1000)])
def test_ancestral(schedule, kind, clip, steps, monkeypatch):
    "DDPM's own sampler is DDIM at eta 1, on all levels or on some."
    noise = list(torch.randn(steps, *X.shape, generator=torch.Generator().manual_seed(1)))
    d = diffusers.DDPMScheduler(S, **options(schedule, kind, clip))
    theirs = trajectory(d, kind, steps, noise, monkeypatch)
    same(mine(ddim, kind, schedule, steps, clip, eta=1., noise=noise.__getitem__), theirs, 3e-4)


@pytest.mark.parametrize('schedule', list(SCHEDULE))
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('steps', [2, 5, 20, 100])
def test_dpm(schedule, kind, steps):
    if schedule == 'cosine' and kind == 'epsilon': kind = 'x0'           # dividing by alpha = 5e-5 leaves no digits to compare
    d = diffusers.DPMSolverMultistepScheduler(S, beta_start=1e-4, beta_end=.02, beta_schedule=SCHEDULE[schedule], prediction_type=PREDICT[kind],
                                              timestep_spacing='trailing', algorithm_type='dpmsolver++', solver_order=2, final_sigmas_type='zero')
    same(mine(dpm, kind, schedule, steps), trajectory(d, kind, steps), 2e-3 if kind == 'epsilon' else 2e-4)


@pytest.mark.parametrize('steps', [1, 2, 10, 50])
def test_euler(steps):
    "diffusers runs from sigma = 1 to 0 along noise - data; we from t = 0 to 1 along data - noise."
    d = diffusers.FlowMatchEulerDiscreteScheduler(S)
    d.set_timesteps(sigmas=[1 - t for t in times(steps)[:-1]])
    x, theirs = X, [X]
    for i in d.timesteps:
        x = d.step(-said(x, 1 - i.item()/S), i, x).prev_sample
        theirs.append(x)
    net = path(said)
    last = euler(net, X, times(steps))
    same([x for x, _ in net.seen] + [last], theirs)


@pytest.mark.parametrize('steps', [2, 5, 30])
def test_heun(steps):
    d = diffusers.FlowMatchHeunDiscreteScheduler(S)
    d.set_timesteps(steps)
    x, theirs = X, [X]
    for i in d.timesteps:
        x = d.step(-said(x, 1 - i.item()/S), i, x).prev_sample
        theirs.append(x)
    grid = (1 - d.sigmas).tolist()
    net = path(said)
    last = heun(net, X, [grid[0], *grid[1::2]])
    same([x for x, _ in net.seen] + [last], theirs)


def test_middle_asks_half_a_step_later():
    net = path(said)
    x = euler(net, X, times(2), middle=True)
    assert [t for _, t in net.seen] == [.25, .75]
    y = X + .5*said(X, .25)
    assert torch.equal(x, y + .5*said(y, .75))


def test_order():
    "Half the step: half the error for Euler, a quarter for Heun."
    fine = heun(said, X.double(), times(2000))
    off = lambda f, n: (f(said, X.double(), times(n)) - fine).abs().mean()
    assert 1.7 < off(euler, 40)/off(euler, 80) < 2.3 and 3.4 < off(heun, 40)/off(heun, 80) < 4.6


def test_dpm_is_of_second_order():
    """Data of one dimension with a known answer: of N(m, c^2), noised to any level, the way is known exactly. Half the step: a quarter of the error
    for DPM-Solver++, half for DDIM."""
    a, m, c = abars(S).tolist(), .8, .3
    spread = lambda i: math.sqrt(a[i]*c*c + 1 - a[i])
    def data(x, i): return m + a[i]**.5*c*c/spread(i)**2*(x - a[i]**.5*m)
    start = X.double()
    def off(solver, n):
        net = path(data)
        solver(net, start, a, list(range(999, 98, -900//n)))
        x, i = net.seen[-1]
        return float((x - a[i]**.5*m - spread(i)*(start - a[999]**.5*m)/spread(999)).abs().mean())
    assert 3 < off(dpm, 50)/off(dpm, 100) < 5 and 1.7 < off(ddim, 50)/off(ddim, 100) < 2.3


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_said_leads_back_to_the_data(kind):
    data, noise = torch.randn(2, *X.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for abar in (1e-3, .3, .9999):
        a, s = abar**.5, (1 - abar)**.5
        torch.testing.assert_close(clean(kind, target(kind, data, noise, a, s), a*data + s*noise, a, s), data)


@pytest.mark.parametrize('f', [times, partial(spaced, S)])
def test_no_steps_is_refused(f):
    for n in (0, -3):
        with pytest.raises(ValueError, match=f'steps={n}; wanted 1'): f(n)


def test_more_steps_than_levels_is_refused():
    with pytest.raises(ValueError, match='wanted 1 to 20'): spaced(20, 21)
    with pytest.raises(ValueError, match="did you mean 'cosine'"): abars(20, 'cosin')

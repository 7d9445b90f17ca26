# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # reconstruct
#
# > How well a model fills in what it could not see: errors in mV per lead, beside the mean and a straight line.

# %% [markdown]
# A reconstruction looks convincing quickly. Whether it is one is decided on the hidden samples only, in millivolts, against what two rulers can do with
# the same gaps: the mean of what is left of a lead, and a straight line from one edge of a gap to the other.
# PSNR and SSIM as in Wang, Bovik, Sheikh & Simoncelli (2004, [doi](https://doi.org/10.1109/TIP.2003.819861)), along time.
# In: a model with `reconstruct` and a store (float32 mV inside). Out: a table, a row a lead and method, with intervals over patients.

# %%
#| default_exp reconstruct

# %%
#| export
import json
import sys
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from ecgnb.batch import collate, sample_seeds, to_device, to_mv
from ecgnb.hub import check_contract, contract_of, load, read_config, write_text
from ecgnb.leads import ECGError
from ecgnb.loader import loader
from ecgnb.metrics import interval, resamples
from ecgnb.plot import overlay_mask, overlay_trace, plot
from ecgnb.recipes import complete, override, parsed, run_of, section
from ecgnb.records import fold_numbers
from ecgnb.registry import fields_of, no_field, options
from ecgnb.store import atomic
from ecgnb.train import store_of

# %%
import tempfile
import time
import matplotlib.pyplot as plt
from fastcore.test import expect_fail, test_close, test_eq
from scipy.ndimage import gaussian_filter1d
from ecgnb.fit import fit
from ecgnb.prepare import prepare
from ecgnb.registry import from_config
from ecgnb.sources.sample import Sample
from ecgnb.synth import synth

# %% [markdown]
# ## The idea
#
# Two gaps of the same length. Across the flat stretch a straight line is hard to beat; across the QRS complex it is hopeless. A model is worth its
# price where the line fails.

# %%
e = synth(seed=7, seconds=3, fs=250).pick(['II'])
x, t, beat = e['II'], np.arange(750)/250, e.meta['truth']['onsets'][1]
gaps = [(beat - .04, beat + .16), (beat + .40, beat + .60)]
fig, ax = plt.subplots(figsize=(8, 2.2), dpi=90)
ax.plot(t, x, 'k', lw=1)
errors = []
for a, b in gaps:
    i, j = int(a*250), int(b*250)
    line = np.interp(t[i:j], [t[i - 1], t[j]], [x[i - 1], x[j]])
    errors.append(np.sqrt(((line - x[i:j])**2).mean()))
    ax.axvspan(a, b, color='tab:blue', alpha=.15, lw=0); ax.plot(t[i:j], line, color='#c2185b')
ax.set(xlabel='s', ylabel='mV', title=f'a straight line is off by {errors[0]:.2f} mV in the first gap, by {errors[1]:.2f} mV in the second')
assert errors[0] > 3*errors[1]


# %% [markdown]
# ## Two rulers
#
# Both see exactly what the model sees. Where nothing of a lead is left they say the mean of whatever is left of the record; before the
# first visible sample and after the last one the line stays level.

# %%
#| export
def fill_mean(x, visible):
    "(B,C,T) mV: mean of each lead's visible samples, of the record's where it has none; x (B,C,T) mV, visible bool."
    mean = lambda over: (x*visible).sum(over, keepdim=True)/visible.sum(over, keepdim=True).clamp(min=1)
    return torch.where(visible.any(-1, keepdim=True), mean(-1), mean((-2, -1))).expand_as(x)

def fill_line(x, visible):
    "(B,C,T) mV: straight lines between a lead's visible samples, level outside; `fill_mean` where a lead has none."
    T = x.shape[-1]
    t = torch.arange(T, device=x.device).expand_as(x)
    left = torch.where(visible, t, -1).cummax(-1).values
    right = torch.where(visible, t, T).flip(-1).cummin(-1).values.flip(-1)
    left, right = torch.where(left < 0, right, left).clamp(max=T - 1), torch.where(right == T, left, right).clamp(min=0)
    part = (t - left)/(right - left).clamp(min=1)
    y = x.gather(-1, left)*(1 - part) + x.gather(-1, right)*part
    return torch.where(visible.any(-1, keepdim=True), y, fill_mean(x, visible))

METHODS = {'mean': fill_mean, 'interpolation': fill_line}      # the baselines; the model's rows are called 'model'

# %%
x = torch.tensor([[[0., 1, 2, 3, 4, 5], [2, 9, 9, 9, 9, 4]]])
see = torch.tensor([[[1, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 0]]]).bool()
test_close(fill_mean(x, see)[0, :, 0].tolist(), [8/3, 9.], eps=1e-6)
assert torch.allclose(fill_line(x, see)[0, 0], x[0, 0]) and (fill_line(x, see)[0, 1] == 9).all()      # a ramp is met exactly
none = see.clone(); none[:, 1] = False
assert torch.allclose(fill_line(x, none)[0, 1], torch.tensor(8/3))                                                        # nothing left of the lead
r = torch.randn(3, 2, 200); v = torch.rand(3, 2, 200) < .2
want = np.stack([[np.interp(range(200), np.flatnonzero(m), a[m]) for a, m in zip(p, q)] for p, q in zip(r.numpy(), v.numpy())])
assert np.allclose(fill_line(r, v), want, atol=1e-5)
fill_line(x, see)


# %% [markdown]
# ## Blind
#
# A model may know more than the rulers: its input is normalised by the mean and deviation of the *whole* lead, hidden samples included, and the prediction is brought
# back to mV by the same two numbers. With three quarters hidden, that is a hint. So the model is run twice. The first run says which samples are hidden. Before the
# second one they are overwritten by visible samples of the same lead, repeated in turn (of the record, where a lead has none), so that the statistics are those of what can be
# seen. `blind=False` leaves the hint in, as in training.

# %%
#| export
def stand_in(x, visible, hidden):
    "x (B,C,T), hidden samples overwritten by visible ones of the lead in turn; of the record where none, else 0."
    def tile(x, visible, hidden):
        order, n = (~visible).to(torch.int8).argsort(dim=-1, stable=True), visible.sum(-1, keepdim=True)
        turn = (hidden.cumsum(-1) - 1).clamp(min=0) % n.clamp(min=1)
        return torch.where(hidden, torch.where(n > 0, x.gather(-1, order.gather(-1, turn)), 0), x)
    lonely = hidden & ~visible.any(-1, keepdim=True)
    whole = tile(x.flatten(1), visible.flatten(1), lonely.flatten(1)).view_as(x)
    return torch.where(lonely, whole, tile(x, visible, hidden))

def measurable(model):
    "The model itself. ECGError where it cannot fill in, or states no contract, so that no data can be known to fit it."
    name = type(model).__name__
    if not hasattr(model, 'reconstruct'):
        raise ECGError(f'{name} has no `reconstruct`, so there is nothing to measure; '
                       'use an objective that fills in, such as masked')
    if contract_of(model) is None:
        raise ECGError(f'{name} states no contract (leads, fs, length, unit): '
                       'its representation needs one, as `signal` has')
    return model

@torch.no_grad()
def fill_in(model, batch, blind=True):
    "(truth mV, valid, hidden, {'model', 'mean', 'interpolation': mV, the truth where not hidden}), all (B,C,T)."
    device = next((p.device for p in measurable(model).parameters()), 'cpu')
    batch = to_mv(to_device(batch, device))
    x = batch['signal'].float()
    valid = batch.get('valid', torch.ones_like(x, dtype=torch.bool))
    out = model.reconstruct(batch).pred
    hidden = out['mask'] & valid
    seen = valid & ~hidden
    if blind:
        out = model.reconstruct(batch | {'signal': stand_in(x, seen, hidden)}).pred
        if not torch.equal(out['mask'] & valid, hidden):
            raise ECGError(f'{type(model).__name__} hid other samples the second time; '
                           "draw the mask from batch['seed'] "
                           '(see ecgnb.batch.draw), or say blind=False')
    guess = {'model': out['mv'].float()} | {k: f(x, seen) for k, f in METHODS.items()}
    return x, valid, hidden, {k: torch.where(hidden, y, x) for k, y in guess.items()}


# %%
x = torch.tensor([[[1., 2, 3, 4, 5, 6], [7, 7, 7, 7, 7, 7]]]); see = torch.tensor([[[0, 1, 0, 0, 1, 0], [0] * 6]]).bool()
y = stand_in(x, see, ~see)
test_eq(y[0].tolist(), [[2., 2, 5, 2, 5, 5], [2., 5, 2, 5, 2, 5]])
y

# %% [markdown]
# ## Four numbers
#
# | | unit | over the hidden samples |
# |---|---|---|
# | MSE | mV² | mean of the squared error |
# | MAE | mV | mean of the absolute error |
# | PSNR | dB | -10 log10 of the mean of (error / range)² |
# | SSIM | 1 at best | mean of the local similarity of the completed lead to the true one |
#
# *Range* is that of this lead in this window (largest minus smallest recorded sample, at least 0.05 mV): 0.1 mV is little in V3 and much in aVF, and a fixed peak would make PSNR another name for
# MSE. `peak` fixes it where numbers must be comparable to such a paper. SSIM's window is a Gaussian of 11 samples at 250 Hz with a deviation of 1.5, scaled with the rate
# (44 ms and 6 ms at any rate), its constants are (0.01 range)² and (0.03 range)². All four are pooled over samples, so a window with many hidden samples counts more.

# %%
#| export
UNITS = dict(mse='mV²', mae='mV', psnr='dB', ssim='')

def ranges(x, valid, peak=0.):
    "(B,C,1) mV: largest minus smallest recorded sample of each lead, at least 0.05 mV; or `peak` where that is not 0."
    far = torch.tensor(float('inf'), dtype=x.dtype, device=x.device)
    own = torch.where(valid, x, -far).amax(-1, keepdim=True) - torch.where(valid, x, far).amin(-1, keepdim=True)
    return torch.full_like(own, peak) if peak else own.clamp(min=.05)

def ssim(x, y, span, fs):
    "Structural similarity (B,C,T) of y to x, both (B,C,T) mV; span: range of x in mV, (B,C,1) or a number; fs in Hz."
    x, y = x.double(), y.double()
    n = int(11*fs/250) | 1
    w = torch.exp(-.5*((torch.arange(n, device=x.device) - n//2)/(1.5*fs/250))**2).double()
    kernel = (w/w.sum())[None, None]
    blur = lambda v: F.conv1d(F.pad(v.flatten(0, 1)[:, None], (n//2, n//2), mode='replicate'), kernel).view_as(v)
    mx, my = blur(x), blur(y)
    vx, vy, both = blur(x*x) - mx*mx, blur(y*y) - my*my, blur(x*y) - mx*my
    c1, c2 = (.01*span)**2, (.03*span)**2
    return (2*mx*my + c1)*(2*both + c2)/((mx*mx + my*my + c1)*(vx + vy + c2))

def sums(x, y, hidden, span, fs):
    "float64 (4,B,C): sums over hidden samples of squared error, absolute error, squared error in ranges, similarity."
    off, h = (y - x).double(), hidden.double()
    return torch.stack([(v*h).sum(-1) for v in (off**2, off.abs(), (off/span)**2, ssim(x, y, span, fs))])

def scores(total, n):
    "dict metric -> values, from `sums` (4,...) added up as wished and the number of hidden samples n (...)."
    with np.errstate(divide='ignore', invalid='ignore'):
        mse, mae, relative, similar = total/n
        return dict(mse=mse, mae=mae, psnr=-10*np.log10(relative), ssim=similar)


# %%
e = synth(seed=7, seconds=10, fs=250).pick(['II', 'V2']); x = torch.from_numpy(e.signal.copy())[None]
h = torch.zeros_like(x, dtype=torch.bool); h[..., 500:900] = True; h[0, 1] |= torch.rand(2500) < .3
span = ranges(x, ~h | h)
of = lambda y: {k: v[0] for k, v in scores(sums(x, y, h, span, 250).numpy(), h.sum(-1).numpy()).items()}
perfect = of(x); assert (perfect['mse'] == 0).all() and np.isinf(perfect['psnr']).all() and np.allclose(perfect['ssim'], 1)
# the mean: MSE is the variance of the hidden samples around the mean of the visible ones
a, m = e['V2'].astype(float), h[0, 1].numpy()
test_close(of(torch.where(h, fill_mean(x, ~h), x))['mse'][1], ((a[m] - a[~m].mean())**2).mean(), eps=1e-6)
# SSIM: the same formula by scipy, an eleven-sample Gaussian
b = a + .2*np.random.default_rng(0).normal(size=2500)
g = lambda v: gaussian_filter1d(v, 1.5, truncate=3.5, mode='nearest'); L = np.ptp(a)
want = (2*g(a)*g(b) + (.01*L)**2)*(2*(g(a*b) - g(a)*g(b)) + (.03*L)**2)/((g(a)**2 + g(b)**2 + (.01*L)**2)*(g(a*a) - g(a)**2 + g(b*b) - g(b)**2 + (.03*L)**2))
assert np.allclose(ssim(torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None], L, 250)[0, 0], want)
{k: v.round(4).tolist() for k, v in of(torch.where(h, fill_line(x, ~h), x)).items()}


# %% [markdown]
# ## The table
#
# Each window is reduced to its sums, windows to patients; the resamples draw patients, and a baseline's row holds the interval of *model minus baseline* on the same resamples. An
# interval that holds 0 says: not shown. The masks come from the windows' own seeds, so all methods face the same gaps, whatever the batch size, and tomorrow too.

# %%
#| export
@dataclass(repr=False)
class Reconstruction:
    "`frame`: a row a lead ('all' first) and method ('model', 'mean', 'interpolation'); `protocol`: how it came about."
    frame: pd.DataFrame     # lead, method, samples, mse mV², mae mV, psnr dB, ssim; model minus it: _diff, _low, _high
    protocol: str           # data, masks, what the model is told, ranges, intervals

    def value(self, metric='mse', method='model', lead='all'):
        "One number of the frame."
        f = self.frame
        return float(f[(f['lead'] == lead) & (f['method'] == method)][metric].iloc[0])

    @property
    def overall(self):
        "All leads: values, and model minus baseline [low, high] for MSE and SSIM, as text."
        rows = []
        for r in self.frame[self.frame['lead'] == 'all'].to_dict('records'):
            row = dict(method=r['method'])
            for m, unit in UNITS.items(): row[f'{m.upper()} {unit}'.strip()] = f"{r[m]:.{2 if unit == 'dB' else 4}f}"
            for m in ('mse', 'ssim'):
                three = [r[m + end] for end in ('_diff', '_low', '_high')]
                gap = '' if r['method'] == 'model' else '{:+.4f} [{:+.4f}, {:+.4f}]'.format(*three)
                row[f'model − it, {m.upper()}'] = gap
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def leads(self):
        "MSE in mV² and SSIM, a row a lead, a column a method."
        f = self.frame.rename(columns=dict(mse='MSE mV²', ssim='SSIM'))
        shown = ['MSE mV²', 'SSIM']
        return f.pivot_table(index='lead', columns='method', values=shown, sort=False, observed=False).round(4)

    def _repr_html_(self): return f'<p>{self.protocol}</p>{self.overall.to_html(index=False)}{self.leads.to_html()}'
    def __repr__(self): return f'{self.overall.to_string(index=False)}\n\n{self.leads.to_string()}\n\n{self.protocol}'
    def to_json(self):
        "dict(protocol, units, rows); what is not finite is None."
        rows = json.loads(self.frame.to_json(orient='records', double_precision=12))
        return dict(protocol=self.protocol, units=UNITS, rows=rows)


# %%
#| export
def reconstruct(model, store, batch_size=64, seed=0, blind=True, peak=0., times=1000):
    """Hide and fill in every window of a store or view -> Reconstruction. `peak`: mV range for PSNR, SSIM; 0 = its own.
    ECGError: no `reconstruct`, an empty store; CheckpointError: a store with another contract than the model's."""
    check_contract(store.contract, contract_of(measurable(model)), 'the model')
    if not len(store): raise ECGError('the store or view is empty; there is nothing to reconstruct')
    total, count, recorded = [], [], 0
    for batch in loader(store, min(batch_size, len(store)), seed=seed, shuffle=False, drop_last=False):
        x, valid, hidden, guess = fill_in(model, batch, blind)
        span = ranges(x, valid, peak)
        total.append(torch.stack([sums(x, y, hidden, span, store.fs) for y in guess.values()]).cpu())
        count.append(hidden.sum(-1).cpu()); recorded += int(valid.sum())
    total, count, methods = torch.cat(total, 2).numpy(), torch.cat(count).numpy(), list(guess)       # (M,4,N,C), (N,C)
    name = type(model).__name__
    if not count.sum():
        raise ECGError(f'{name} hid no recorded sample of {len(store)} windows; there is nothing to measure')
    if not np.isfinite(total).all():
        raise ECGError(f'{name} predicts values that are not finite; look at its training log')
    names, who = np.unique(store.frame['patient'].to_numpy(str), return_inverse=True)
    add = lambda v: np.stack([np.bincount(who, v[:, c], len(names)) for c in range(v.shape[1])], 1)  # (N,C) -> (P,C)
    total, count = np.stack([[add(v) for v in m] for m in total]), add(count)
    drawn = resamples(np.zeros((len(names), 0)), names, times, seed) if len(names) > 1 else np.ones((0, 1))
    weight = np.concatenate([np.ones((1, len(names))), drawn])
    total, n = weight @ total, weight @ count           # (M,4,R+1,C), (R+1,C)
    rows = []
    each = [(l, total[..., c], n[:, c]) for c, l in enumerate(store.leads)]
    for lead, t, k in [('all', total.sum(-1), n.sum(-1)), *each]:
        mine = scores(t[methods.index('model')], k)
        for m, method in enumerate(methods):
            s = scores(t[m], k)
            row = dict(lead=lead, method=method, samples=int(k[0]), **{name: float(v[0]) for name, v in s.items()})
            for name, v in s.items():
                with np.errstate(invalid='ignore'): d = np.full_like(v, np.nan) if method == 'model' else mine[name] - v
                sure = len(d) > 1 and np.isfinite(d).all()
                three = interval(d) if sure else (float(d[0]), np.nan, np.nan)
                row |= dict(zip((f'{name}_diff', f'{name}_low', f'{name}_high'), three))
            rows.append(row)
    how = protocol(model, store, len(names), count.sum()/recorded, seed, blind, peak, times)
    return Reconstruction(pd.DataFrame(rows), how)

def protocol(model, store, patients, share, seed, blind, peak, times):
    "The sentence that goes with the numbers."
    how = type(model).__name__
    if hasattr(model, 'encoder'): how += f'({type(model.encoder).__name__})'
    knows = ('the model is told nothing of them' if blind
             else 'the model is told mean and spread of whole leads, hidden samples included')
    most = f'{peak:g} mV' if peak else "that lead's range in that window"
    sure = f'intervals: 95 % of {times} resamples of patients' if patients > 1 else 'one patient, so no intervals'
    return (f'{how}: {len(store)} windows of {patients} patients, {store.length/store.fs:g} s at {store.fs:g} Hz; '
            f'measured on hidden samples only, {share:.1%} of the recorded ones, '
            f"drawn from each window's own seed (seed {seed}); {knows}; "
            f"range for PSNR and SSIM: {most}; {sure}.")


# %% [markdown]
# ## The picture
#
# The ECG on paper, what was hidden shaded, the model's guess in colour over the truth.

# %%
#| export
def figure(model, e, seed=0, blind=True, **how):
    "The ECG `e` (such as store[0]) on paper, hidden spans shaded, the model's guess over it; `how` goes to `plot`."
    contract = dict(leads=list(e.leads), fs=e.fs, length=e.signal.shape[1], unit='mV')
    check_contract(contract, contract_of(measurable(model)), 'the model')
    x, valid, hidden, guess = fill_in(model, collate([e]) | {'seed': sample_seeds(seed, 0, torch.tensor([0]))}, blind)
    h = hidden[0].cpu().numpy()
    off = float((guess['model'] - x)[hidden].square().mean())
    title = f"{e.meta.get('record', '')} · MSE {off:.3f} mV²"
    drawn = overlay_trace(guess['model'][0].cpu().numpy(), where=h)
    return plot(e, **{'title': title, **how}, overlays=[overlay_mask(h), drawn])


# %% [markdown]
# ## Does it learn
#
# Simulated recordings cut into windows of 2 s, 4 leads, half of every lead hidden in pieces of 0.1 s; a small ST-MEM trains on seven tenths of the patients for
# some seconds and is measured on the others.

# %%
LEADS, tmp = 'I,II,V1,V5', tempfile.TemporaryDirectory()
src = Sample(n=120, noise=.5)
store = prepare(src, f'{tmp.name}/store', fs=100, seconds=2, leads=LEADS, progress=False)
train, test = store.fold('1-7'), store.fold('8-10')
torch.manual_seed(0)
vit = dict(encoder='st_vit', leads=LEADS, length=200, patch=10, dim=64, depth=1, heads=4, temperature=100.)
model = from_config(dict(objective='masked', ratio=.5, dec_dim=64, dec_depth=1, dec_heads=2, dec_temperature=100., encoder=vit,
                         representation=dict(representation='signal', leads=LEADS, fs=100., length=200)))
before, losses = reconstruct(model, test, times=200), []
for s in fit(model, loader(train, 32), steps=400, lr=1e-2, warmup=20): losses.append(s.loss)
fig, ax = plt.subplots(figsize=(6, 2), dpi=80); ax.plot(np.convolve(losses, np.ones(20)/20, 'valid'), 'k', lw=1); ax.set(xlabel='step', ylabel='loss, mean of 20');

# %%
r = reconstruct(model, test)
assert r.value('mse') < before.value('mse') and r.value('mse') < r.value('mse', 'mean')
assert r.value('mse_high', 'mean') < 0                                      # the whole interval on the model's side: shown
test_eq([r.value('samples', k) for k in ('mean', 'interpolation')], [r.value('samples')]*2)
r

# %% [markdown]
# Better than the mean: shown. Against the straight line it depends on the question. In MSE and MAE the model is ahead, in SSIM the line: both intervals leave 0 out. A line is nearly exact where
# the signal is quiet, which is most of the time, and SSIM weighs every stretch alike; but where a gap begins or ends on a QRS complex, the line smears that complex over the
# whole gap, and a squared error does not forgive it. The figure shows it: close to a visible sample the line is as good as the model, further in it is worse than the mean, which at
# least says nothing rash; beyond 100 ms a model that trained for seconds has little to add to the mean. The median error is smallest for the line.

# %%
x, valid, hidden, guess = fill_in(model, loader(test, len(test), shuffle=False)[0])
T, inside = x.shape[-1], torch.zeros(len(test), 1, x.shape[-1], dtype=torch.bool)
for k, row in enumerate(test.frame.itertuples()):                           # the simulator knows where its QRS complexes are
    truth = src[row.row].meta['truth']
    for onset in truth['onsets']: inside[k, 0, max(0, int((onset - row.start)*100)):max(0, int((onset - row.start + truth['qrs']/1000)*100) + 1)] = True
inside, t = inside.expand_as(x), torch.arange(T).expand_as(x)
left = torch.where(hidden, -T, t).cummax(-1).values; right = torch.where(hidden, 2*T, t).flip(-1).cummin(-1).values.flip(-1)
distance = torch.minimum(t - left, right - t)                               # samples to the nearest visible one
rms = lambda y, where: float((y - x)[where].square().mean().sqrt())
where = {'QRS': hidden & inside, 'elsewhere': hidden & ~inside}
table = {k: {w: rms(y, m) for w, m in where.items()} for k, y in guess.items()}
colours = {'model': '#c2185b', 'mean': '.6', 'interpolation': 'tab:blue'}
fig, axes = plt.subplots(1, 2, figsize=(9, 2.6), dpi=80, layout='constrained')
far = range(1, 16)
for i, (k, y) in enumerate(guess.items()):
    axes[0].plot([10*d for d in far], [rms(y, hidden & (distance == d)) for d in far], '.-', color=colours[k], label=k)
    axes[1].bar(np.arange(2) + .27*(i - 1), table[k].values(), .25, color=colours[k])
axes[0].set(xlabel='ms to the nearest visible sample', ylabel='RMS error, mV', ylim=(0, None)); axes[0].legend(frameon=False, fontsize=8)
axes[1].set(xticks=[0, 1], xticklabels=where, ylabel='RMS error, mV')
assert table['model']['QRS'] < table['mean']['QRS'] and table['interpolation']['QRS'] > 2*table['interpolation']['elsewhere']
median = {k: float((y - x)[hidden].abs().median()) for k, y in guess.items()}
{k: {w: round(v, 3) for w, v in d.items()} | {'median, everywhere': round(median[k], 3)} for k, d in table.items()}

# %% [markdown]
# The picture of one window. At twice the usual paper speed, since it lasts 2 s.

# %%
figure(model, test[0], mm_per_s=50)

# %% [markdown]
# What the hint of `blind=False` is worth here, in MSE; the rulers' numbers do not change.

# %%
told = reconstruct(model, test, blind=False, times=50)
test_eq(told.value('mse', 'mean'), r.value('mse', 'mean'))
dict(blind=round(r.value(), 4), told=round(told.value(), 4), mean=round(r.value('mse', 'mean'), 4))

# %% [markdown]
# Same masks, same numbers, whatever the batch size; another seed hides other samples.

# %%
again, other = reconstruct(model, test, batch_size=7, times=50), reconstruct(model, test, seed=1, times=50)
assert again.value('mse', 'interpolation') == r.value('mse', 'interpolation') != other.value('mse', 'interpolation')
test_close(again.value(), r.value(), eps=1e-6)
r.value(), other.value()


# %% [markdown]
# ## The command
#
# `ecgnb reconstruct RUN` reads the run's best checkpoint and its store, measures on the fold `test`, and writes `reconstruct.json` and `reconstruct.png` into the run's folder. A
# checkpoint folder does as well. `source=...` and `source.FIELD=...` measure on other data, prepared as the run's.

# %%
#| export
@options
class How:
    "How `ecgnb reconstruct` measures."
    fold: str = 'test'        # fold to measure on: train, val, test, or numbers such as 1-4,10
    out: str = ''             # folder for reconstruct.json and reconstruct.png, '' = that of the run or checkpoint
    batch_size: int = 64      # windows at a time; does not change the masks
    seed: int = 0             # of the masks and of the resamples
    blind: bool = True        # tell the model nothing of the hidden samples, not even by its normalisation
    peak: float = 0.          # range for PSNR and SSIM, mV, 0 = that of each lead and window
    times: int = 1000         # resamples of patients
    device: str = ''          # cpu or cuda, '' = cuda where there is one

def place(name):
    "(folder of a run or checkpoint, of its weights, its config.json). CheckpointError or ECGError: what is missing."
    folder = Path(name)
    if (folder/'run.json').is_file() and not (folder/'best').is_dir():
        raise ECGError(f'{folder}: a run without a checkpoint: no {folder/"best"}; train it to its first validation')
    best = folder/'best' if (folder/'run.json').is_file() else folder
    home = best.parent if best.name == 'best' and (best.parent/'run.json').is_file() else best
    return home, best, read_config(best)

def run_for(best, config, wanted):
    "The run of a checkpoint with the overrides `wanted` (source=..., prepare.workers=...). ECGError: no source known."
    run, c = config.get('run'), config['contract']
    if run is None:
        if not any(t.startswith('source=') for t in wanted):
            raise ECGError(f'{best}: its config.json does not say what it was trained on; '
                           'type source=..., such as source=ptb_xl')
        run = run_of(config['model'], prepare=dict(leads=','.join(c['leads']), fs=c['fs'], seconds=c['length']/c['fs']))
    for text in sorted(wanted, key=lambda t: t.partition('=')[0].count('.')): override(run, text)
    return complete(run)

def main(args=None):
    "The command `ecgnb reconstruct RUN_OR_CHECKPOINT key=value ...`; -h lists the keys."
    args = list(sys.argv[1:] if args is None else args)
    if not args or {'-h', '--help'} & set(args):
        lines = [(f'{k}={v}', said) for k, _, v, said in fields_of(How)]
        lines += [('source=, source.FIELD=', "other data, prepared as the run's"),
                  ('prepare.workers=', 'processes that prepare them')]
        print('ecgnb reconstruct RUN_OR_CHECKPOINT key=value ...\n\n' + '\n'.join(f'  {a:<24}{b}' for a, b in lines))
        return
    mine, others = {}, []
    for text in args[1:]:
        key = text.partition('=')[0]
        if '=' not in text: raise ECGError(f'{text!r}: wanted key=value, such as fold=test')
        if key.partition('.')[0] == 'source' or key == 'prepare.workers': others.append(text)
        elif key in How.__dataclass_fields__: mine[key] = parsed(How, key, text.partition('=')[2])
        else: raise no_field(How, key)
    how, (home, best, config) = section(How, **mine), place(args[0])
    fold_numbers(how['fold'])
    run, out = run_for(best, config, others), Path(how['out'] or home)
    model = measurable(load(best, device=how['device'] or ('cuda' if torch.cuda.is_available() else 'cpu')))
    if out.exists() and not out.is_dir(): raise ECGError(f'out={out} is a file; wanted a folder')
    store = store_of(run).fold(how['fold'])
    result = reconstruct(model, store, *(how[k] for k in ('batch_size', 'seed', 'blind', 'peak', 'times')))
    png = figure(model, store[0], how['seed'], how['blind']).png()
    facts = dict(checkpoint=str(best), source=run['source'], windows=len(store),
                 patients=int(store.frame['patient'].nunique()),
                 **{k: how[k] for k in ('fold', 'seed', 'blind', 'peak', 'times')})
    out.mkdir(parents=True, exist_ok=True)
    atomic(out/'reconstruct.png', lambda f: f.write(png))
    write_text(out/'reconstruct.json', json.dumps(facts | result.to_json(), indent=1, ensure_ascii=False) + '\n')
    print(f'{result}\n\n{out/"reconstruct.json"}\n{out/"reconstruct.png"}')


# %% [markdown]
# ## What can go wrong

# %%
class Mute(torch.nn.Module): pass
with expect_fail(ECGError, contains='Mute has no `reconstruct`'): reconstruct(Mute(), test)
with expect_fail(ECGError, contains='the store or view is empty'): reconstruct(model, test.select([]))
slow = prepare(Sample(n=12), f'{tmp.name}/slow', fs=50, seconds=4, leads=LEADS, progress=False)
with expect_fail(ValueError, contains='fs: the data have 50.0, the model reads 100.0'): reconstruct(model, slow)
with expect_fail(ValueError, contains='the data have 250.0'): figure(model, synth(seed=0, seconds=2, fs=250).pick(LEADS.split(',')))
class Restless(type(model)):
    def reconstruct(self, batch): return super().reconstruct({k: v for k, v in batch.items() if k != 'seed'})       # draws a mask of its own each time
model.__class__ = Restless
with expect_fail(ECGError, contains='hid other samples the second time'): reconstruct(model, test)
model.__class__ = Restless.__base__
with expect_fail(ValueError, contains="How has no field 'flod'"): main(['runs/1', 'flod=test'])
with expect_fail(ValueError, contains='no such folder'): main([f'{tmp.name}/nowhere'])

# %% [markdown]
# ## Sizes
#
# Time for a store: two passes of the model, and the scoring.

# %%
began = time.perf_counter(); reconstruct(model, test, times=1000)
began_scores = time.perf_counter(); sums(x, guess['model'], hidden, ranges(x, valid), 100)
print(f'{len(test)} windows of 4 x 200 samples: {began_scores - began:.2f} s, of which scoring {3*(time.perf_counter() - began_scores):.2f} s')
tmp.cleanup()

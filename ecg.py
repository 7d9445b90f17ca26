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
# # ecg
#
# > One ECG: a signal in millivolts, its rate, its leads by name, and what is known about it.
#
# Everything that enters the package becomes an `ECG`, and everything else starts from one. It is frozen: each method returns a new one.
# In: signal (C,T) in mV, rate in Hz, lead names. Out: an object that draws itself on ECG paper when it ends a cell.

# %%
#| default_exp ecg

# %%
#| export
from dataclasses import dataclass, field, replace
from fractions import Fraction
import numpy as np
from ecgnb.leads import ECGError, derive, lead_names

# %%
import matplotlib.pyplot as plt
from fastcore.test import expect_fail, test_close, test_eq

# %% [markdown]
# ## The idea
#
# Resampling is where preprocessing goes wrong unseen. A 150 Hz tone cannot be told apart from a 100 Hz tone at 250 samples a
# second; a method without a low-pass filter turns the one into the other. `ECG.resample` filters first.

# %%
#| fig-alt: Spectrum of a 150 Hz tone resampled to 250 Hz: two of the three ways leave a line at 100 Hz, polyphase leaves nothing
from scipy.signal import resample_poly
t = np.arange(5000)/500
hum = np.sin(2*np.pi*150*t)
ways = {'linear interpolation': np.interp(np.arange(2500)/250, t, hum), 'every second sample': hum[::2],
        'polyphase': resample_poly(hum, 1, 2)}
fig, ax = plt.subplots(figsize=(7, 2.4))
for name, y in ways.items(): ax.plot(np.fft.rfftfreq(2500, 1/250), np.abs(np.fft.rfft(y))/1250, lw=1, label=name)
ax.set(xlabel='Hz', ylabel='amplitude', title='a 150 Hz tone after resampling from 500 to 250 Hz'); ax.legend(frameon=False, fontsize=8);


# %% [markdown]
# ## The class
#
# The constructor checks what can be known at once: shapes, names, numbers. NaN means "not recorded" and is allowed; infinity is not.

# %%
#| export
@dataclass(frozen=True, eq=False, repr=False)
class ECG:
    "An ECG. ECGError for a signal, rate or leads that cannot be one; order and unit are for `ecgnb.leads.guard`."
    signal: np.ndarray                          # float32 (C,T) mV, NaN where nothing was recorded
    fs: float                                   # samples a second, Hz
    leads: tuple                                # C standard names
    meta: dict = field(default_factory=dict)    # record, patient, report, turns, labels, source

    def __post_init__(self):
        said, put = f"record {self.meta.get('record', '(unnamed)')}", lambda k, v: object.__setattr__(self, k, v)
        try: x = np.array(self.signal, dtype=np.float32, order='C')
        except (TypeError, ValueError) as err: raise ECGError(f'{said}: the signal is not numbers: {err}') from err
        if np.iscomplexobj(self.signal): raise ECGError(f'{said}: the signal is complex; wanted real mV')
        try: leads = lead_names(self.leads)
        except ECGError as err: raise ECGError(f'{said}: {err}') from None
        if x.ndim != 2 or not x.size:
            raise ECGError(f'{said}: signal of shape {x.shape}; wanted (leads, samples), not empty')
        if len(leads) != len(x):
            turned = '; it looks transposed: pass signal.T' if len(leads) == x.shape[1] else ''
            raise ECGError(f'{said}: {len(x)} rows of signal but {len(leads)} lead names{turned}')
        fs = float(self.fs)
        if not (np.isfinite(fs) and fs > 0):
            raise ECGError(f'{said}: fs={self.fs!r}; wanted samples a second, such as fs=500')
        if np.isinf(x).any():
            lead = leads[int(np.isinf(x).any(1).argmax())]
            raise ECGError(f'{said}: infinite samples in {lead}; NaN means not recorded')
        x.flags.writeable = False
        put('signal', x); put('leads', leads); put('fs', fs)

    @property
    def seconds(self): return self.signal.shape[1] / self.fs
    def __len__(self): return self.signal.shape[1]
    def __getitem__(self, lead): return self.pick([lead]).signal[0]
    def __eq__(self, other):
        return (isinstance(other, ECG) and self.leads == other.leads and self.fs == other.fs
                and np.array_equal(self.signal, other.signal, equal_nan=True))

    def but(self, signal=None, **changes):
        "A copy with another `signal` or other fields; the guards' facts in `meta` stay."
        return replace(self, **({} if signal is None else {'signal': signal}), **changes)

    def pick(self, leads):
        "The leads named, in that order; III, aVR, aVL, aVF are derived where absent. ECGError for an unknown one."
        names = lead_names(leads)
        return self if names == self.leads else self.but(derive(self.signal, self.leads, names), leads=names)

    def crop(self, start=0., seconds=None):
        "From `start` (s) on, `seconds` long (default: to the end). ECGError past the end."
        a = round(start*self.fs)
        b = len(self) if seconds is None else a + round(seconds*self.fs)
        if not 0 <= a < b <= len(self):
            raise ECGError(f"record {self.meta.get('record', '(unnamed)')}: crop from {start:g} s for {seconds} s; "
                           f'it holds {self.seconds:g} s')
        return self.but(self.signal[:, a:b])

    def resample(self, fs):
        "At `fs` Hz: polyphase with an anti-alias filter (scipy's resample_poly); NaN where the nearest sample is."
        from scipy.signal import resample_poly
        if fs == self.fs: return self
        ratio = Fraction(fs/self.fs).limit_denominator(1000)
        if not ratio or abs(float(ratio)*self.fs - fs) > 1e-6*fs:
            raise ECGError(f'no ratio of small integers leads from {self.fs:g} to {fs:g} Hz; pick a rate such as 250')
        up, down = ratio.numerator, ratio.denominator
        gaps, x = np.isnan(self.signal), self.signal
        if gaps.any(): x = bridged(x)
        y = resample_poly(x, up, down, axis=1, padtype='line').astype(np.float32, copy=False)
        if gaps.any():
            at = np.minimum((np.arange(y.shape[1])*down/up).round().astype(int), x.shape[1] - 1)
            y[gaps[:, at]] = np.nan
        return self.but(y, fs=float(fs))

    def filter(self, low=0., high=0., notch=0.):
        "Zero-phase: Butterworth of order 4, `low` to `high` Hz (0 = open); notch (Q = 30) at `notch` Hz (0 = none)."
        from scipy.signal import butter, iirnotch, sosfiltfilt, tf2sos
        for name, f in (('low', low), ('high', high), ('notch', notch)):
            if not 0 <= f < self.fs/2:
                raise ECGError(f'{name}={f:g} Hz; wanted 0 to under {self.fs/2:g} Hz, half the rate')
        if low and high and low >= high: raise ECGError(f'low={low:g} Hz is not under high={high:g} Hz')
        sos = []
        if low or high:
            kind, edge = ('bandpass', [low, high]) if low and high else ('highpass', low) if low else ('lowpass', high)
            sos.append(butter(4 if not (low and high) else 2, edge, kind, fs=self.fs, output='sos'))
        if notch: sos.append(tf2sos(*iirnotch(notch, 30, fs=self.fs)))
        if not sos: return self
        gaps = np.isnan(self.signal)
        x = bridged(self.signal) if gaps.any() else self.signal
        pad = min(x.shape[1] - 1, round(3*self.fs))
        y = sosfiltfilt(np.concatenate(sos), x.astype(np.float64), axis=1, padlen=pad).astype(np.float32)
        y[gaps] = np.nan
        edges = [f'{word} {f:g} Hz' for word, f in (('high-pass', low), ('low-pass', high), ('notch', notch)) if f]
        earlier = [self.meta['filter']] if self.meta.get('filter') else []
        return self.but(y, meta={**self.meta, 'filter': ', '.join(earlier + edges)})

    def plot(self, **how):
        "The ECG on paper, a matplotlib Figure; arguments as in ecgnb.plot.plot."
        from ecgnb.plot import plot
        return plot(self, **how)

    def __repr__(self):
        name = self.meta.get('record', 'ECG')
        return f"{name}: {len(self.leads)} leads x {self.seconds:g} s at {self.fs:g} Hz ({', '.join(self.leads)})"

    def _repr_png_(self):
        from ecgnb.plot import png
        return png(self)

def bridged(x):
    "`x` (C,T) with its NaN gaps bridged by straight lines for a filter to pass over; a lead without a sample: zeros."
    x, at = np.array(x), np.arange(x.shape[1])
    for row in x:
        gap = np.isnan(row)
        if gap.all(): row[:] = 0
        elif gap.any(): row[gap] = np.interp(at[gap], at[~gap], row[~gap])
    return x


# %% [markdown]
# ## A lesson
#
# Leads go by name: the same two leads come back whatever the order they are stored in, and those that follow from I and II are derived.

# %%
rng = np.random.default_rng(0)
wave = lambda a: a*np.exp(-((t % .8 - .3)/.012)**2) + .2*a*np.exp(-((t % .8 - .55)/.05)**2)
e = ECG(np.stack([wave(.6), wave(1.0), wave(-.4), wave(1.2)]), 500, ('I', 'II', 'V1', 'V5'), {'record': 'toy'})
test_close(e['aVF'], e['II'] - e['I']/2, eps=1e-6); test_eq(e.pick(['V5', 'II']).leads, ('V5', 'II'))
print(e.pick(['V5', 'II']))

# %% [markdown]
# Resampling up and down again gives the signal back; filtering moves no peak; a gap stays a gap.

# %%
back = e.resample(1000).resample(500)
test_eq(back.signal.shape, e.signal.shape); test_close(back.signal, e.signal, eps=2e-3)
test_eq(np.abs(e.filter(low=.5, high=40)['II'] - e['II']).max() < .2, True)
test_eq(e.filter(low=.5, high=40)['II'][:400].argmax(), e['II'][:400].argmax())
test_eq(e.filter(low=.5, high=40).meta['filter'], 'high-pass 0.5 Hz, low-pass 40 Hz')
holed = e.signal.copy(); holed[1, 1000:1500] = np.nan
g = e.but(holed).resample(250).filter(high=40)
test_eq(np.isnan(g['II']).sum(), 250); test_eq(np.isnan(g['I']).sum(), 0)
test_eq(e.crop(2, 4).seconds, 4.); e.resample(250).signal.shape

# %% [markdown]
# The tone of the figure above: nothing of it is left after `resample`, all of it after taking every second sample.

# %%
tone = ECG(hum[None], 500, ('II',)).resample(250)['II']
assert np.abs(tone[100:-100]).max() < .02 < np.abs(hum[::2]).max()
float(np.abs(tone[100:-100]).max())

# %% [markdown]
# ## What can go wrong

# %%
x = np.zeros((2, 100), np.float32)
with expect_fail(ECGError, contains='2 rows of signal but 3 lead names'): ECG(x, 500, ('I', 'II', 'V1'))
with expect_fail(ECGError, contains='looks transposed'): ECG(x.T, 500, ('I', 'II'))
with expect_fail(ECGError, contains='wanted (leads, samples)'): ECG(x[0], 500, ('I', 'II'))
with expect_fail(ECGError, contains='fs=0'): ECG(x, 0, ('I', 'II'))
with expect_fail(ECGError, contains='infinite samples in II'): ECG(np.array([[0., 1.], [0, np.inf]]), 500, ('I', 'II'))
with expect_fail(ECGError, contains='not numbers'): ECG([['a', 'b']], 500, ('I',))
with expect_fail(ECGError, contains='V6 is not among'): e['V6']
with expect_fail(ECGError, contains='it holds 10 s'): e.crop(8, 4)
with expect_fail(ECGError, contains='half the rate'): e.filter(high=300)
with expect_fail(ValueError, contains='read-only'): e.signal[0, 0] = 1

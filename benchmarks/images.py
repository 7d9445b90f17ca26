"""Drawing an ECG as a picture for a vision model: ecgnb's `image` against matplotlib and against ecg-plot.

    python benchmarks/images.py [--quick]

Ten seconds of twelve leads at 250 Hz, twelve rows with grid and lead names, to pixels in memory, on one thread. matplotlib draws the same picture at the same size through Agg, as the reference
systems do (a figure a sample, one axes, grid by locators, one line a lead); ecg-plot renders its own chart to a PNG as wide. `reference` is the chart at the size ELM asks for (8250 x 5000 pixels),
which its processor then shrinks to 224. Rounds alternate and the fastest counts. `ratio` is matplotlib over ecgnb at the size where it is smaller.
"""
import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ecgnb.ecg import ECG                                               # noqa: E402
from ecgnb.leads import STANDARD                                        # noqa: E402
from ecgnb.plot import chart                                            # noqa: E402
from ecgnb.representations.image import Image                           # noqa: E402


def ecg(seed=0):
    "ECG of 10 s at 250 Hz: Gaussian beats and a little noise; the leads obey Einthoven's law."
    rng, t = np.random.default_rng(seed), np.arange(2500)/250
    beat = sum(a*np.exp(-(((t % .8) - at)/w)**2) for a, at, w in ((.1, .2, .03), (1., .36, .012), (-.2, .39, .012), (.25, .6, .05)))
    a, b, *v = (g*beat + rng.normal(0, .01, 2500) for g in (.7, 1., -.6, -.4, .3, .9, 1.2, 1.))
    return ECG(np.stack([a, b, b - a, -(a + b)/2, a - b/2, b - a/2, *v]), 250, STANDARD)


def drawn(e, wide, high):
    "uint8 (high, wide, 3) by matplotlib: one axes, twelve rows of 3 mV, grid of 0.2 s and 0.5 mV, a name a row."
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import AutoMinorLocator, MultipleLocator
    fig = Figure(figsize=(wide/100, high/100), dpi=100)
    canvas = FigureCanvasAgg(fig)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 10), ylim=(-11*3 - 1.5, 1.5), facecolor='#fffaf8')
    ax.xaxis.set_major_locator(MultipleLocator(.2)); ax.yaxis.set_major_locator(MultipleLocator(.5))
    if wide > 1000: ax.xaxis.set_minor_locator(AutoMinorLocator(5)); ax.yaxis.set_minor_locator(AutoMinorLocator(5))
    ax.grid(which='major', color='#efb1aa', lw=.5); ax.grid(which='minor', color='#fae0dc', lw=.3)
    ax.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False, which='both')
    for k, (name, y) in enumerate(zip(e.leads, e.signal)):
        ax.plot(np.arange(len(y))/e.fs, y - 3*k, color='#111111', lw=.6)
        ax.text(.05, -3*k + .5, name, fontsize=6)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def printed(e, wide, folder):
    "ecg-plot's chart as a PNG `wide` pixels wide."
    c = chart(e, layout='12x1', title='')
    return c.save(f'{folder}/e.png', dpi=wide/(c.width_mm/25.4))


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--quick', action='store_true', help='fewer rounds, under a minute')
    quick = p.parse_args().quick
    torch.set_num_threads(1)
    e, out = ecg(), {}
    x = {n: torch.from_numpy(np.stack([ecg(k).signal for k in range(n)])).float() for n in (1, 8)}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for n in (224, 512):
            r = Image(height=n, width=n).eval()
            ways = {'ecgnb, one at a time': (lambda: r({'signal': x[1]}), 1, 10), 'ecgnb, batch of 8': (lambda: r({'signal': x[8]}), 8, 2),
                    'matplotlib': (lambda: drawn(e, n, n), 1, 1), 'ecg-plot': (lambda: printed(e, n, folder), 1, 1)}
            best = dict.fromkeys(ways, float('inf'))
            for _ in range(3 if quick else 8):
                for name, (f, count, times) in ways.items():
                    for _ in range(times):
                        start = time.perf_counter(); f()
                        best[name] = min(best[name], (time.perf_counter() - start)/count)
            out[n] = {k: 1e3*v for k, v in best.items()}
        start = time.perf_counter(); drawn(e, 8250, 5000); large = 1e3*(time.perf_counter() - start)
    print(f'{"ms an image":24}' + ''.join(f'{n:>4} x {n}' + ' '*3 for n in out))
    for k in out[224]: print(f'{k:24}' + ''.join(f'{out[n][k]:10.1f}  ' for n in out))
    print(f'{"reference, 8250 x 5000":24}{large:10.1f}')
    own = {n: v['ecgnb, one at a time'] for n, v in out.items()}
    over = lambda k: round(min(out[n][k]/own[n] for n in out), 1)
    print(json.dumps(dict(name='images', ratio=over('matplotlib'), ratio_ecg_plot=over('ecg-plot'), ratio_reference=round(large/own[224], 1),
                          ms_224=round(own[224], 2), ms_512=round(own[512], 2),
                          ms_224_batch=round(out[224]['ecgnb, batch of 8'], 2), ms_512_batch=round(out[512]['ecgnb, batch of 8'], 2), quick=quick)))


if __name__ == '__main__': main()

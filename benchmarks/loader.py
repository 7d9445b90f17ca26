"""The store's loader against one pickled float64 .npy a sample read by a plain PyTorch Dataset.

Same machine, same run, one process, shuffled, 12 x 2500, both with a warm page cache. The pickled side does what ecg_encoder does: `np.load(allow_pickle=True).item()`,
instance min-max over the sample, zero-padded float32, default_collate. The store's side: `ratio` for int16 + scale as it leaves for the device, `ratio_cpu_mv` for float32 mV finished here,
`ratio_cpu_time` as `ratio` in CPU seconds, which other work on the machine does not change.
"""
import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset
from ecgnb.ecg import ECG
from ecgnb.leads import STANDARD, derive
from ecgnb.loader import loader
from ecgnb.prepare import prepare
from ecgnb.records import Source
from ecgnb.registry import source

C, T = 12, 2500


@source
class Waves(Source):
    "Cheap signals of the right size: beats and noise, 12 leads that obey the lead algebra, at 250 Hz."
    n: int = 2048    # recordings

    @cached_property
    def frame(self):
        return pd.DataFrame(dict(record=[f'r{k:05d}' for k in range(self.n)], patient=[f'p{k}' for k in range(self.n)], fold=1, labels=[['NORM'] for _ in range(self.n)], text='sinus rhythm'))

    def read(self, i):
        r, t = np.random.default_rng(i), np.arange(T) / 250
        x = r.uniform(.3, 1.5, (8, 1)) * np.exp(-((t % .8 - .4) / .02) ** 2) + .05 * r.standard_normal((8, T))
        return ECG(derive(x, ('I', 'II', 'V1', 'V2', 'V3', 'V4', 'V5', 'V6')), 250, STANDARD)


class Pickled(Dataset):
    "One .npy a sample, as ecg_encoder stores and reads it."
    def __init__(self, folder): self.files = sorted(folder / f for f in os.listdir(folder))
    def __len__(self): return len(self.files)

    def __getitem__(self, i):
        d = np.load(self.files[i], allow_pickle=True).item()
        x = d['ecg']
        low, high = x.min(), x.max()
        x = np.clip((x - low) / (high - low + 1e-6), 0, 1)
        out = np.zeros((C, T), np.float32)
        out[:, :x.shape[1]] = x[:, :T]
        return dict(signal=out, padding_mask=np.arange(T) >= x.shape[1], report=d['report'])


def write_pickled(store, folder):
    folder.mkdir()
    for i in range(len(store)):
        e = store[i]
        file = folder / f"{e.meta['record']}_0.npy"
        np.save(file, dict(ecg=e.signal.astype(np.float64), report=e.meta['report'], ecg_path=e.meta['record'], original_sf=250, target_sf=250, segment_len=T, npy_path=str(file)))


def rate(batches, rows, warm=2):
    "Rows a second of an iterable of batches."
    start, n = None, 0
    for k, b in enumerate(batches):
        if k == warm: start = time.perf_counter()
        n += len(b['signal']) if k > warm else 0
        if n >= rows: break
    return n / (time.perf_counter() - start)


def copy_rate(rows):
    "Bytes a second of a plain copy of memory of the size of the store's signals, the target in use already."
    a = np.ones((rows, C, T), np.int16)
    b = np.empty_like(a)
    np.copyto(b, a)
    t = time.perf_counter()
    for k in range(0, rows - 63, 64): np.copyto(b[k:k + 64], a[k:k + 64])
    return (rows // 64) * 64 * C * T * 2 / (time.perf_counter() - t)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--quick', action='store_true', help='fewer samples and repetitions')
    p.add_argument('--batch', type=int, default=64)
    a = p.parse_args()
    n, repeats = (512, 3) if a.quick else (3072, 7)
    torch.set_num_threads(1)
    tmp = Path(tempfile.mkdtemp(prefix='ecgnb_loader_'))
    try:
        store = prepare(Waves(n), tmp / 'store', progress=False)
        write_pickled(store, tmp / 'npy')
        size = {k: sum(f.stat().st_size for f in (tmp / k).iterdir()) / n for k in ('store', 'npy')}
        store.verify(); [f.read_bytes() for f in (tmp / 'npy').iterdir()]    # warm page cache for both
        pickled = DataLoader(Pickled(tmp / 'npy'), a.batch, shuffle=True, num_workers=0)
        int16, mv = (loader(store, a.batch, unit=u) for u in ('int16', 'mV'))
        ways = {'pickled': lambda k: rate(itertools.chain.from_iterable(itertools.repeat(pickled)), 1024), 'int16': lambda k: rate(int16.stream(k * len(int16)), 24_000),
                'mV': lambda k: rate(mv.stream(k * len(mv)), 8_000), 'copy': lambda k: copy_rate(n) / (C * T * 2)}
        speeds, cpu = {k: [] for k in ways}, {k: [] for k in ways}
        for b in itertools.chain(int16, pickled): pass    # each once, unmeasured
        for k in range(repeats):
            for name, way in ways.items():
                t, c = time.perf_counter(), time.process_time()
                speeds[name].append(way(k))
                cpu[name].append(speeds[name][-1] * (time.perf_counter() - t) / (time.process_time() - c))
    finally: shutil.rmtree(tmp)
    s, c = ({k: float(np.median(v)) for k, v in r.items()} for r in (speeds, cpu))
    spread = {k: f'{min(v):,.0f} to {max(v):,.0f}' for k, v in speeds.items()}
    print(f'{n} windows of {C} x {T}, batch {a.batch}, shuffled, one process, one thread, median of {repeats}\n')
    print(f"{'':44}{'ECG/s':>10}  {'range':24}{'x pickled':>10}{'kB/ECG':>9}{'per CPU second':>16}")
    for k, name, kb in (('pickled', 'pickled float64 .npy, Dataset, default_collate', size['npy']), ('int16', 'store: int16 + scale', size['store']), ('mV', 'store: float32 mV', size['store']),
                        ('copy', 'plain copy of the same int16', C * T * 2)):
        print(f"{name:44}{s[k]:10,.0f}  {spread[k]:24}{s[k] / s['pickled']:10.1f}{kb / 1000:9.1f}{c[k]:16,.0f}")
    print(json.dumps(dict(name='loader', ratio=round(s['int16'] / s['pickled'], 2), ratio_cpu_mv=round(s['mV'] / s['pickled'], 2), ratio_cpu_time=round(c['int16'] / c['pickled'], 2), bytes_ratio=round(size['store'] / size['npy'], 4),
                          bandwidth_share=round(s['int16'] / s['copy'], 3), ecg_per_s={k: round(v) for k, v in s.items()}, windows=n, batch=a.batch, repeats=repeats)))


if __name__ == '__main__': main()

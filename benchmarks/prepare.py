"""ECG/s of `prepare` on one core against the bare cost of reading the record with wfdb and one scipy resample_poly; and from one process to two.

PTB-XL at 500 Hz where it is found (ecgnb.settings.data_dir), else synthetic ECGs written as WFDB. `ratio` is prepare's ECG/s over the bare loop's: what the guards, the policies, 16 bits, hashes and
safe writes cost (`ratio_cpu`: the same in CPU seconds, which other work on the machine does not change). Both in one process with a warm page cache, in turns, medians.
"""
import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import wfdb
from scipy.signal import resample_poly
from ecgnb.prepare import prepare
from ecgnb.registry import source
from ecgnb.settings import data_dir
from ecgnb.synth import synth


def simulated(folder, n):
    "`n` synthetic ECGs written as WFDB, 500 Hz, 1 uV a unit."
    folder.mkdir()
    for k in range(n):
        e = synth(seed=k, seconds=10)
        wfdb.wrsamp(f'r{k:05d}', fs=500, units=['mV'] * 12, sig_name=list(e.leads), p_signal=e.signal.T.astype(np.float64), fmt=['16'] * 12, adc_gain=[1000.] * 12, baseline=[0] * 12, write_dir=str(folder))
    return source['wfdb_folder'](root=str(folder), patient='record'), [str(folder / f'r{k:05d}') for k in range(n)]


def bare(paths):
    "Read and resample, nothing else."
    for p in paths: resample_poly(wfdb.rdrecord(p).p_signal, 1, 2, axis=0)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--quick', action='store_true', help='fewer recordings and repetitions')
    a = p.parse_args()
    n, repeats = (96, 2) if a.quick else (400, 5)
    tmp = Path(tempfile.mkdtemp(prefix='ecgnb_prepare_'))
    try:
        if data_dir('ptb_xl'):
            src = source['ptb_xl']()
            src, what = src[:min(n, len(src))], 'PTB-XL, 500 Hz'
            paths = [str(data_dir('ptb_xl') / f) for f in src.frame['path']]
        else: (src, paths), what = simulated(tmp / 'wfdb', n), 'synthetic ECGs as WFDB, 500 Hz (PTB-XL was not found)'
        n = len(paths)
        bare(paths[:20])
        for i in range(n): src.read(i)    # warm page cache
        ways = {'bare': lambda k: bare(paths), 'read': lambda k: [src.read(i) for i in range(n)], 'one': lambda k: prepare(src, tmp / f'one{k}', progress=False),
                'two': lambda k: prepare(src, tmp / f'two{k}', workers=2, progress=False)}
        rates, cpu = {k: [] for k in ways}, {k: [] for k in ways}
        for k in range(repeats):
            for name, way in ways.items():
                t, c = time.perf_counter(), time.process_time()
                way(k)
                rates[name].append(n / (time.perf_counter() - t))
                cpu[name].append(n / (time.process_time() - c))
        same = (tmp / 'one0/contract.json').read_bytes() == (tmp / 'two0/contract.json').read_bytes()
    finally: shutil.rmtree(tmp)
    s, c = ({k: float(np.median(v)) for k, v in r.items()} for r in (rates, cpu))
    print(f'{n} recordings of {what}, to 250 Hz; median of {repeats}; {os.cpu_count()} cores\n')
    print(f"{'':52}{'ECG/s':>8}  {'range':18}{'x bare':>8}{'per CPU second':>16}")
    for k, name in dict(bare='bare: wfdb.rdrecord + one resample_poly', read='source.read alone', one='prepare, one process', two='prepare, two processes').items():
        print(f"{name:52}{s[k]:8,.0f}  {f'{min(rates[k]):,.0f} to {max(rates[k]):,.0f}':18}{s[k] / s['bare']:8.2f}{f'{c[k]:,.0f}' if k != 'two' else '':>16}")
    print(json.dumps(dict(name='prepare', ratio=round(s['one'] / s['bare'], 3), ratio_cpu=round(c['one'] / c['bare'], 3), ecg_per_s_core=round(s['one']), ecg_per_s_bare=round(s['bare']), ecg_per_cpu_s=round(c['one']), speedup_2=round(s['two'] / s['one'], 2),
                          same_bytes=same, recordings=n, data=what, repeats=repeats)))


if __name__ == '__main__': main()

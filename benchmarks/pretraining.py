"""Does masked pretraining help on patients it never saw? A linear probe and k-NN on PTB-XL, on frozen features of a pretrained encoder and of its random-init twins.

Pretraining sees simulated ECGs (`--real K`: and K windows of PTB-XL folds 1-5 in every batch), no label, and never a signal of folds 6-10. The probes are fitted on folds 1-5, choose penalty, k and
thresholds on fold 6, and are judged on folds 7-10: the recordings at hand leave 30 in the official test fold. Every seed draws its own weights and batches; the twins have the same configuration and the
same probes. Intervals: paired patient bootstrap of the mean over the seeds minus the mean over the twins. The settings were chosen on folds 1-6 alone. Without PTB-XL the test patients are simulated ones.
Fold 6 (34 recordings) is a noisy judge of the penalty and costs the random twins more: with the penalty cross-validated on folds 1-6 the linear AUROC's gain was about 0.09 (one seed, three twins), not 0.12.
The model is MTAE in miniature: a token is a quarter of a second of all leads. ST-MEM has 12 times the tokens for the same patch; `--st-mem` tries it with the same optimizer.
"""
import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from ecgnb.fit import fit
from ecgnb.loader import loader
from ecgnb.metrics import METRICS, countable, interval, judge, resamples
from ecgnb.prepare import prepare
from ecgnb.probe import features, read, twin
from ecgnb.recipes import build
from ecgnb.registry import from_config, source
from ecgnb.settings import data_dir

RECIPE = 'tiny'
COMMON = ('prepare.low=0.5', 'model.representation.scope=record', 'model.ratio=0.5', 'model.dec_dim=64', 'model.dec_depth=2', 'model.dec_heads=4', 'model.dec_temperature=100.', 'model.encoder.dim=96',
          'model.encoder.depth=4', 'model.encoder.heads=4', 'model.encoder.temperature=100.', 'fit.optim=muon', 'fit.lr=0.02', 'fit.warmup=35', 'fit.ema=0.99', 'train.batch_size=32')
SETTINGS = COMMON + ('model.encoder=vit1d', 'model.encoder.over=time', 'model.encoder.patch=25', 'model.encoder.cls=False', 'model.encoder.patch_norm=False', 'fit.steps=700')
SETTINGS_ST_MEM = COMMON + ('model.encoder.patch=50', 'fit.steps=1000')
TRAIN, VAL, TEST = '1-5', '6', '7-10'


class Both:
    "Batches of `a` and `b` joined, for `fit`: simulated and real windows in every step."
    def __init__(self, a, b): self.a, self.b = a, b
    def __len__(self): return 1 << 40
    def __getitem__(self, k):
        x, y = self.a[k], self.b[k]
        return {q: torch.cat([x[q], y[q]]) if torch.is_tensor(x[q]) else x[q] + y[q] for q in x if q in y}


def pretrain(run, made, real, mixed, seed, steps):
    "(the pretrained model, its share of hidden variance explained at the end, CPU seconds)."
    torch.manual_seed(seed)
    model, size, told = from_config(run['model']), run['train']['batch_size'], []
    batches = Both(loader(made, size - mixed, seed=seed), loader(real, mixed, seed=seed)) if mixed else loader(made, size, seed=seed)
    began = time.process_time()
    for s in fit(model, batches, **{**run['fit'], 'steps': steps, 'seed': seed}):
        told.append(s.logs['explained'])
        if s.i % 100 == 0: print(f'  seed {seed} step {s.i}/{steps}: explained {np.mean(told[-20:]):+.3f}, {time.process_time() - began:.0f} s of CPU', flush=True)
    if s.ema: s.ema.copy_to(s.model)
    return s.model, float(np.mean(told[-20:])), time.process_time() - began


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--quick', action='store_true', help='under a minute, on the simulator: shows that it runs, not that pretraining helps')
    p.add_argument('--seeds', type=int, default=5, help='pretrained models')
    p.add_argument('--twins', type=int, default=5, help='random-init models')
    p.add_argument('--steps', type=int, default=0, help='steps of pretraining; 0 = as the settings say')
    p.add_argument('--real', type=int, default=0, help='windows of the training folds in every batch')
    p.add_argument('--st-mem', action='store_true', help='ST-MEM in miniature instead (about seven times as long; no full run of it was made)')
    p.add_argument('--simulated', type=int, default=6000, help='simulated recordings to pretrain on')
    a = p.parse_args()
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    if a.quick: a.seeds, a.twins, a.steps, a.simulated = 1, 2, 15, 120
    a.settings = SETTINGS_ST_MEM if a.st_mem else SETTINGS
    run = build(RECIPE, *a.settings)
    steps, how = a.steps or run['fit']['steps'], run['prepare'] | dict(progress=False)
    on_real = data_dir('ptb_xl') is not None and not a.quick
    with tempfile.TemporaryDirectory(prefix='ecgnb_pretraining_') as tmp:
        real = source['ptb_xl']() if on_real else source['sample'](n=250, fs=100., seed=7)
        store = prepare(real, f'{tmp}/real', **how)
        made = prepare(source['sample'](n=a.simulated, fs=100., seed=1), f'{tmp}/made', **how)
        report(a, run, store, made, steps, 'PTB-XL' if on_real else 'simulated patients')


def report(a, run, store, made, steps, what):
    "Trains, probes, prints the tables and the line of JSON."
    at = {k: np.flatnonzero(store.frame['fold'].isin(numbers(v))) for k, v in (('train', TRAIN), ('val', VAL), ('test', TEST))}
    patients, y, te = store.frame['patient'].to_numpy(str), np.asarray(store.labels, np.float64), at['test']
    groups = {k: set(patients[i]) for k, i in at.items()}
    for one, two in (('train', 'val'), ('train', 'test'), ('val', 'test')):
        if groups[one] & groups[two]: raise SystemExit(f'a patient is in {one} and in {two}')
    usable = countable(y[te], patients[te]) & countable(y[at['train']], patients[at['train']])
    weight = resamples(y[te][:, usable], patients[te], 200 if a.quick else 1000, 0)
    base = from_config(run['model'])
    print(f"{what}: probe fitted on {len(at['train'])} recordings (folds {TRAIN}), choices {len(at['val'])} ({VAL}), test {len(te)} ({TEST}); pretraining: {len(made)} simulated recordings{f' and folds {TRAIN}' if a.real else ', no real one'}; "
          f"{sum(q.numel() for q in base.parameters()):,} parameters, {steps} steps of {run['train']['batch_size']}; macro of {', '.join(c for c, u in zip(store.classes, usable) if u)}\n", flush=True)

    def judged(model):
        x = features(model, store)
        out = {}
        for kind in ('linear', 'knn'):
            s, cuts, _ = read(kind, x, y, at, usable)
            out[kind] = {m: v.mean(1) for m, v in judge(s[te][:, usable], y[te][:, usable], weight, np.asarray(cuts)[usable]).items()}
        return out

    random = [judged(twin(base, i)) for i in range(a.twins)]
    trained, seeds = [], []
    for seed in range(a.seeds):
        model, explained, cpu = pretrain(run, made, store.select(at['train']), a.real, seed, steps)
        trained.append(judged(model))
        seeds.append(dict(seed=seed, explained=round(explained, 3), cpu_s=round(cpu, 1), **{f'{k}_{m}': round(float(trained[-1][k][m][0]), 3) for k in trained[-1] for m in METRICS}))
    print(f"\n{'':14}" + ''.join(f'{k} {m}'.rjust(15) for k in ('linear', 'knn') for m in METRICS))
    for name, rows in (('seed', trained), ('random twin', random)):
        for i, r in enumerate(rows): print(f'{name} {i}'.ljust(14) + ''.join(f'{r[k][m][0]:15.3f}' for k in r for m in METRICS))
    print(f"\n{'':16}{'pretrained':24}{'random':24}{'gain, 95 % interval':26}")
    table = []
    for k in ('linear', 'knn'):
        for m in METRICS:
            one, two = (np.mean([r[k][m] for r in rows], 0) for rows in (trained, random))
            cells = [interval(v) for v in (one, two, one - two)]
            table.append(dict(reader=k, metric=m, **{n: [round(v, 4) for v in c] for n, c in zip(('pretrained', 'random', 'gain'), cells)}))
            print(f'{k} {m}'.ljust(16) + ''.join(f'{v:{sign}.3f} [{lo:{sign}.3f}, {hi:{sign}.3f}]'.ljust(24) for (v, lo, hi), sign in zip(cells, ('', '', '+'))))
    gain = next(r['gain'] for r in table if r['reader'] == 'linear' and r['metric'] == 'auroc')
    print(json.dumps(dict(name='pretraining', gain=gain[0], gain_low=gain[1], gain_high=gain[2], table=table, seeds=seeds, twins=a.twins, steps=steps, cpu_s=round(sum(s['cpu_s'] for s in seeds), 1),
                          data=what, recipe=RECIPE, settings=list(a.settings), simulated=len(made), real=a.real, recordings={k: len(i) for k, i in at.items()}, folds=dict(train=TRAIN, val=VAL, test=TEST))))


def numbers(folds):
    "'1-5' -> the folds 1 to 5."
    low, _, high = folds.partition('-')
    return range(int(low), int(high or low) + 1)


if __name__ == '__main__': main()

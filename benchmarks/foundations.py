"""The parts of ECG-FM and ESI, and the labeler, on one CPU thread: ecgnb against what one writes first.

    python benchmarks/foundations.py [--quick] [--rounds N] [--threads N]

encoder: forward and backward of wav2vec2 (base) on 8 segments of 5 s, against convolutions, MultiheadAttention that returns its weights, and norms one by one.
draws: masked tokens, leads, wrong answers and Gumbel noise of a step of 128 segments (156 tokens), against numpy, sample after sample, and torch's generator;
ours are each sample's own, the same on any rank and device,
and mask 77 tokens of a segment, numpy's about 56, the fewest that any segment of the step has.
labeler: reports a second with all of label's work (negation, doubt, places), against finding the same patterns with one compiled regex each, and no more.
convnext1d: forward and backward of the base size on 2 ECGs of 10 s, against channels first with the norms written out.

Before networks are timed, both ways must give the same. Rounds alternate between the two ways, the least time counts. --quick: 2 blocks of wav2vec2's 12,
3 of the 27 in ConvNeXt's third stage.
"""
import argparse
import copy
import json
import math
import re
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import gpu_encoders                                                     # noqa: E402
from ecgnb.batch import sample_seeds                                    # noqa: E402
from ecgnb.encoders.convnext1d import Convnext1d                        # noqa: E402
from ecgnb.encoders.wav2vec2 import Wav2vec2                            # noqa: E402
from ecgnb.labeler import labeler                                       # noqa: E402
from ecgnb.objectives.w2v_cmsc_rlm import W2vCmscRlm                    # noqa: E402
from ecgnb.patterns import LANGUAGES, SECTIONS, TOKEN, expand, fold, read_rules     # noqa: E402
from ecgnb.representations.signal import Signal                         # noqa: E402


def network(x, model, plain):
    "(ours, plain) as () -> None: forward and backward, as in training. SystemExit where their outputs differ without dropout."
    quiet = copy.deepcopy(model)
    gpu_encoders.still(quiet)
    with torch.no_grad(): gap = (quiet(x) - plain(quiet)(x)).abs().max().item()
    if not gap < 1e-3: raise SystemExit(f'{type(model).__name__}: outputs differ by {gap:.2g}')
    def step(f):
        model.zero_grad(set_to_none=True)
        f(x).square().mean().backward()
    theirs = plain(model)
    return lambda: step(model), lambda: step(theirs)

def encoder(quick):
    "wav2vec2, base: 8 segments of 5 s."
    def plain(e):
        stem, encode = gpu_encoders.wav2vec2(e)
        return lambda x: encode(F.dropout(e.project(e.norm(stem(x))), e.input_dropout))
    return *network(torch.randn(8, 12, 2500), Wav2vec2(depth=2 if quick else 12), plain), 8, 'segments/s'

def draws(quick):
    "What a step of 64 ECGs, 128 segments, draws."
    e = Wav2vec2(length=5000, segment=2500, dim=16, depth=1, heads=1, width=256, groups=1, kernel=2)
    model = W2vCmscRlm(Signal(length=5000, fs=500.), e).train()
    batch = {'signal': torch.zeros(64, 12, 5000), 'seed': sample_seeds(0, 0, range(64))}
    def plain():
        c = gpu_encoders.drawn_on_host(model, 128)
        return -torch.empty(*c['wrong'].shape[:2], model.books, model.codes).exponential_().log()
    return lambda: model.chance(batch), plain, 64, 'ECG/s'

SAID = ('Sinus rhythm', 'Atrial fibrillation with rapid ventricular response', 'Left axis deviation', 'Possible inferior infarct - age undetermined',
        'No evidence of acute ischemia', 'Right bundle branch block', 'Left ventricular hypertrophy', 'Nonspecific T wave changes', 'Prolonged QT interval',
        'Premature ventricular contractions', 'First degree A-V block', 'Borderline ECG', 'Low QRS voltages in limb leads', 'Sinus bradycardia',
        'Anterolateral ST elevation, consider acute infarct', 'Electronic ventricular pacemaker', 'Abnormal ECG', 'sinusrhythmus, linkstyp', 'normales ekg')

def reading(quick):
    "Reports of 2 to 6 statements, as of machines."
    g, L = torch.Generator().manual_seed(0), labeler()
    some = lambda: torch.randperm(len(SAID), generator=g)[:2 + int(torch.randint(5, (), generator=g))].tolist()
    texts = ['; '.join(SAID[i] for i in some()) for _ in range(20 if quick else 100)]
    rules, _ = read_rules()
    wild, forms = (lambda w: r'[\w ,]*?' if w == '...' else re.escape(w).replace(r'\*', r'\w*')), []
    for section in SECTIONS[3:]:
        for e in rules[section].values() if section in SECTIONS[3:7] else [rules[section]]:
            for p in (p for language in LANGUAGES for p in e.get(language, ())):
                rows = sorted((' '.join(map(wild, words)) for words in expand(p, rules['group'])), key=len, reverse=True)
                forms.append(re.compile(rf'\b(?:{"|".join(rows)})(?!\w)'))
    def plain():
        for text in texts:
            words = ' '.join(fold(m) for m in TOKEN.findall(text))
            for form in forms: form.findall(words)
    return lambda: [L.label(t) for t in texts], plain, len(texts), 'reports/s'

def convnext1d(quick):
    "ConvNeXt V2, base: 2 ECGs of 10 s."
    e = Convnext1d(blocks='3,3,3,3' if quick else '')
    with torch.no_grad():
        for name, p in e.named_parameters():
            if '.grn.' in name: p.normal_(std=.1)                       # 0 at the start, which would hide errors
    return *network(torch.randn(2, 12, 5000), e, gpu_encoders.convnext), 2, 'ECG/s'

ROWS = {'encoder': encoder, 'draws': draws, 'labeler': reading, 'convnext1d': convnext1d}

def compare(name, quick, rounds):
    "One row of the table."
    torch.manual_seed(0)
    ours, plain, n, unit = ROWS[name](quick)
    ms = {'plain': [], 'ecgnb': []}
    for i in range(rounds + 1):                                           # the first warms up
        for way, f in (('plain', plain), ('ecgnb', ours)):
            t = time.perf_counter()
            f()
            if i: ms[way].append((time.perf_counter() - t)*1e3)
    best = {way: min(v) for way, v in ms.items()}
    row = {'ratio': best['plain']/best['ecgnb'], 'unit': unit}
    for way, v in best.items():
        row |= {f'{way}_ms': v, f'{way}_rate': n/v*1e3}
        print(f'{name:11s} {way:6s} {v:>10.1f} {n/v*1e3:>10.1f} {unit:10s} {best["plain"]/v:>8.2f}x', flush=True)
    return row

def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('--quick', action='store_true', help='under a minute')
    a.add_argument('--rounds', type=int, help='rounds that count; default 5, quick 3')
    a.add_argument('--threads', type=int, default=1, help='CPU threads')
    a.add_argument('--rows', default=','.join(ROWS), help='names, joined by commas')
    a = a.parse_args()
    names, rounds = a.rows.split(','), a.rounds or (3 if a.quick else 5)
    if wrong := [n for n in names if n not in ROWS]: raise SystemExit(f'no row {wrong[0]!r}; there is {", ".join(ROWS)}')
    torch.set_num_threads(a.threads)
    print(f'CPU, {a.threads} threads; torch {torch.__version__}; least of {rounds} rounds{"; quick: fewer blocks" if a.quick else ""}')
    print(f'{"part":11s} {"way":6s} {"ms":>10} {"a second":>10} {"":10s} {"faster":>9}')
    rows = {name: compare(name, a.quick, rounds) for name in names}
    tidy = lambda v: float(f'{v:.5g}') if isinstance(v, float) else v
    print(json.dumps(dict(name='foundations', ratio=tidy(math.exp(statistics.mean(math.log(r['ratio']) for r in rows.values()))), threads=a.threads,
                          quick=a.quick, torch=torch.__version__, **{f'ratio_{n}': tidy(r['ratio']) for n, r in rows.items()},
                          rows={n: {k: tidy(v) for k, v in r.items()} for n, r in rows.items()})))

if __name__ == '__main__': main()

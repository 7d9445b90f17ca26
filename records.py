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
# # records
# > A source is a sequence of ECGs with one table; splits go by patient, never by recording.
#
# Every data set enters through the same door: `len(src)`, `src[i]` (an `ECG`), `src.frame` (one row a recording) and parts of it
# that are sources again. Two recordings of one patient look alike, so a split that separates them tests memory instead of
# medicine; the base class therefore splits by patient and `check_split` refuses anything else.
#
# **In:** a table with the columns `record`, `patient`, `fold` (1 to 10, 0 = unknown), `labels` (a list of codes, None = unknown), `text`.
# **Out:** `ECG` (C,T) in mV, `Subset`, a float32 (N,K) label matrix.
# **Source:** the fold convention 1-8 / 9 / 10 is PTB-XL's (Wagner et al., Scientific Data 2020).

# %%
#| default_exp records

# %%
#| export
import hashlib
import json
import operator
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
import numpy as np
import pandas as pd
from ecgnb.leads import ECGError, guard as check_leads
from ecgnb.registry import did_you_mean, to_config

# %% [markdown]
# ## The idea: what a random split does to patients
#
# Forty patients with one to eight recordings each. A split that draws *recordings* scatters almost every patient over all three
# parts; a split that draws *patients* keeps each column in one colour.

# %%
import matplotlib.pyplot as plt
from matplotlib.colors import ListedColormap

rng = np.random.default_rng(0)
patient = np.repeat(np.arange(40), rng.integers(1, 9, 40))
visit = np.concatenate([np.arange((patient == p).sum()) for p in range(40)])
parts_of = {'by recording': rng.choice(3, len(patient), p=(0.7, 0.1, 0.2)),
            'by patient': rng.choice(3, 40, p=(0.7, 0.1, 0.2))[patient]}
leak = {k: np.isin(patient[v == 2], patient[v == 0]).mean() for k, v in parts_of.items()}

fig, axes = plt.subplots(2, 1, figsize=(9, 3.6), dpi=85, sharex=True, layout='constrained')
for ax, (how, part) in zip(axes, parts_of.items()):
    leaks = (part == 2) & np.isin(patient, patient[part == 0])
    for k, (name, colour) in enumerate(dict(train='#9db7d5', val='#e2c16b', test='#2f5d8c').items()):
        ax.scatter(patient[part == k], visit[part == k] + 1, s=34, marker='s', c=colour, label=name, linewidths=0)
    ax.scatter(patient[leaks], visit[leaks] + 1, s=70, marker='s', facecolors='none', edgecolors='#c0392b',
               linewidths=1.4, label='test, patient also in train')
    ax.set(title=f'{how}: {leak[how]:.0%} of the test recordings belong to a training patient', ylabel='recording',
           ylim=(0.2, 8.8), yticks=(2, 4, 6, 8))
    ax.spines[['top', 'right']].set_visible(False)
axes[1].set_xlabel('patient')
axes[0].legend(loc='center left', bbox_to_anchor=(1, 0), frameon=False, fontsize=9);

# %% [markdown]
# The harm is easy to measure. Give each patient a random label, so there is *nothing* to learn, and a heartbeat that is the
# patient's own shape plus noise. The nearest training recording "predicts" the label well under the leaking split, and is at
# chance under the honest one.

# %%
label = rng.integers(0, 2, 40)[patient]
shape = rng.normal(size=(40, 20))[patient] + 0.3 * rng.normal(size=(len(patient), 20))

def nearest(part):
    "The accuracy on part 2 of copying the label of the nearest recording of part 0."
    near = ((shape[part == 2][:, None] - shape[part == 0][None]) ** 2).sum(-1).argmin(1)
    return (label[part == 0][near] == label[part == 2]).mean()

trials = {'by recording': [nearest(rng.choice(3, len(patient), p=(0.7, 0.1, 0.2))) for _ in range(50)],
          'by patient': [nearest(rng.choice(3, 40, p=(0.7, 0.1, 0.2))[patient]) for _ in range(50)]}
score = {k: round(float(np.mean(v)), 2) for k, v in trials.items()}
assert score['by recording'] > 0.85 and 0.35 < score['by patient'] < 0.65
score

# %% [markdown]
# ## One table, checked once
#
# A table may come from a CSV where patient ids were read as floats (`15709.0`), where a patient is missing, or where a record
# stands twice. `check_frame` cleans what has one meaning and refuses the rest. A missing patient is an error, because nobody can
# tell whether two such recordings belong together; `no_patient='own'` states that each of them is a patient of its own.

# %%
#| export
COLUMNS = ('record', 'patient', 'fold', 'labels')    # what every table of recordings has

def some(names, n=5):
    "The first `n` names of a list as text, and how many more there are."
    names = [str(x) for x in names]
    return ', '.join(names[:n]) + (f' and {len(names) - n} more' if len(names) > n else '')

def ids(column):
    "A column of identifiers as text, '' where missing; whole floats lose the '.0' that pandas adds beside gaps."
    def one(v):
        if v is None or v != v: return ''
        return str(int(v)) if isinstance(v, float) and v.is_integer() else str(v).strip()
    return pd.Series([one(v) for v in column.tolist()], index=column.index, dtype=object)

def check_frame(frame, name='frame', no_patient='error'):
    "A clean copy of a table of recordings, index 0..n-1. ECGError: missing column, record, patient; bad fold, labels."
    if lacks := [c for c in COLUMNS if c not in frame]:
        raise ECGError(f"{name}: no column {', '.join(lacks)} in the table; it has {some(frame.columns, 30) or 'none'}")
    if no_patient not in ('error', 'own'): raise ECGError(f"{name}: no_patient={no_patient!r}; wanted 'error' or 'own'")
    frame = frame.reset_index(drop=True)
    frame['record'], frame['patient'] = ids(frame['record']), ids(frame['patient'])
    if (frame['record'] == '').any():
        raise ECGError(f"{name}: no record name in the rows {some(np.flatnonzero(frame['record'] == ''))}")
    if twice := [r for r, n in Counter(frame['record']).items() if n > 1]:
        raise ECGError(f'{name}: {len(twice)} records stand more than once: {some(twice)}')
    if (lost := frame['patient'] == '').any():
        if no_patient == 'error':
            raise ECGError(f"{name}: no patient id for {lost.sum()} of {len(frame)} records "
                           f"({some(frame['record'][lost])}); type no_patient='own' if each is its own patient")
        frame.loc[lost, 'patient'] = 'only ' + frame['record'][lost]
    folds = pd.to_numeric(frame['fold'], errors='coerce')
    if (bad := ~folds.isin(range(11))).any():
        first = frame[bad].iloc[0]
        raise ECGError(f"{name}: fold {first['fold']!r} of record {first['record']}; wanted 1 to 10, or 0 for unknown")
    frame['fold'] = folds.astype(int)
    labels = [None if v is None or (isinstance(v, float) and v != v) else v for v in frame['labels'].tolist()]
    for r, v in zip(frame['record'], labels):
        if v is not None and not (isinstance(v, (list, tuple)) and all(isinstance(x, str) for x in v)):
            raise ECGError(f"{name}: labels {v!r} of record {r}; wanted a list of codes such as ['NORM'], "
                           f"or None for unknown")
    frame['labels'] = pd.Series([v if v is None else list(v) for v in labels], index=frame.index, dtype=object)
    if 'text' not in frame: frame['text'] = ''
    return frame


# %%
toy = pd.DataFrame(dict(record=['a1', 'a2', 'b1', 'c1'], patient=[7., 7., 8., 9.], fold=[1, 1, 9, 10],
                        labels=[['NORM'], [], ['MI', 'STTC'], None]))
clean = check_frame(toy)
assert clean.patient.tolist() == ['7', '7', '8', '9'] and clean.text.tolist() == [''] * 4
clean


# %% [markdown]
# ## Parts by group
#
# `assign` sorts the groups by a hash of (seed, group) and gives each to the part that still lacks most rows. The result does not depend
# on the order of the table, is the same on every machine, and a part exceeds its share by less than one group.

# %%
#| export
def assign(groups, fractions=(0.8, 0.1, 0.1), seed=0):
    "(N,) int: the part of each row; rows of one group share a part, and no part exceeds its share by a whole group."
    size = Counter(groups)
    order = sorted(size, key=lambda g: hashlib.sha256(f'{seed} {g}'.encode()).digest())
    lacks, part = len(groups) * np.array(fractions, float), {}
    for g in order:
        part[g] = int(lacks.argmax())
        lacks[part[g]] -= size[g]
    return np.array([part[g] for g in groups], int)

def check_split(*parts, **named):
    "Nothing, or ECGError naming a patient who is in two of the parts (sources, stores or frames), with the records."
    seen = {}
    for name, part in [*((f'part {i}', p) for i, p in enumerate(parts)), *named.items()]:
        frame = getattr(part, 'frame', part)
        here = dict(zip(frame['patient'].astype(str), frame['record']))
        if both := sorted(here.keys() & seen.keys()):
            p = both[0]
            records = frame['record'][frame['patient'].astype(str) == p]
            raise ECGError(f"patient {p} is in two parts: {seen[p][0]} (record {seen[p][1]}) and {name} "
                           f"(record {some(records)}); {len(both)} patients are shared in all. "
                           f"Split with .split(by='patient') or .fold('train')")
        seen.update((p, (name, r)) for p, r in here.items())


# %%
groups = [f'p{p}' for p in patient]
part = assign(groups, (0.7, 0.1, 0.2), seed=1)
back = assign(groups[::-1], (0.7, 0.1, 0.2), seed=1)[::-1]
assert (part == back).all() and all(len(set(part[patient == p])) == 1 for p in range(40))
share = np.bincount(part) / len(part)
assert np.abs(share - (0.7, 0.1, 0.2)).max() < 2 * 8 / len(part)
share.round(3)

# %% [markdown]
# ## Folds by name
#
# `'train'`, `'val'` and `'test'` are PTB-XL's recommended folds; any other choice is written out, such as `'1-4,10'`.

# %%
#| export
FOLDS = dict(train='1-8', val='9', test='10')    # PTB-XL: fold 9 and 10 were validated by a human

def fold_numbers(text):
    "'train' -> {1, ..., 8}; '1-4,10' -> {1, 2, 3, 4, 10}. ECGError for an unknown fold."
    said = FOLDS.get(text, text)
    if not re.fullmatch(r'\d+(-\d+)?(,\d+(-\d+)?)*', str(said)):
        raise ECGError(f"no fold {text!r}; {did_you_mean(text, FOLDS)} Numbers work too: '1-8' or '9,10'")
    ends = [[int(x) for x in span.split('-')] for span in said.split(',')]
    out = {k for e in ends for k in range(e[0], e[-1] + 1)}
    if not out or not out <= set(range(1, 11)):
        raise ECGError(f"folds {text!r}; wanted numbers from 1 to 10, such as '1-8'")
    return out

def spans(rows):
    "[0, 1, 2, 5] -> '0-2,5': a list of rows in few characters."
    ends = []
    for r in map(int, rows):
        if ends and r == ends[-1][1] + 1: ends[-1][1] = r
        else: ends.append([r, r])
    return ','.join(str(a) if a == b else f'{a}-{b}' for a, b in ends)


# %%
assert fold_numbers('train') == set(range(1, 9)) and fold_numbers('1-3,10') == {1, 2, 3, 10}
spans(sorted(fold_numbers('val') | fold_numbers('2-4'))), spans([0, 1, 2, 5])


# %% [markdown]
# ## The source
#
# A new source writes two things: `frame` and `read(i)`. Everything else is here: `src[i]` checks the lead order and the unit of
# what `read` returned and fills the ECG's `meta` from the table, slices and `select` give sources again. `fingerprint` is the identity
# that a prepared store keeps: the configuration (without the folder, which differs between machines) and the table.

# %%
#| export
@dataclass(eq=False, repr=False, kw_only=True)
class Source:
    "A sequence of ECG with a table. A subclass gives `frame` (cached_property, a row a recording) and `read(i)`."
    guard: bool = True           # refuse an ECG whose lead order or unit is wrong
    no_patient: str = 'error'    # a recording without a patient id: 'error', or 'own' (a patient of its own)

    def __init_subclass__(cls, **given):
        super().__init_subclass__(**given)
        if isinstance(made := vars(cls).get('frame'), cached_property):
            func = made.func
            made.func = lambda src: check_frame(func(src), type(src).__name__, src.no_patient)

    def read(self, i):
        raise NotImplementedError(f'{type(self).__name__} has no read(i) -> ECG')

    def __len__(self): return len(self.frame)
    def __iter__(self): return (self[i] for i in range(len(self)))

    def __getitem__(self, i):
        if not hasattr(i, '__index__'): return self.select(np.arange(len(self))[i] if isinstance(i, slice) else i)
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f'{type(self).__name__} has {len(self)} recordings; there is no [{i}]')
        i %= len(self)
        e, row = self.read(i), self.frame.iloc[i]
        known = dict(source=self.name, report=row['text'], **row[['record', 'patient', 'labels']])
        e = replace(e, meta={**known, **e.meta, **{k: v for k, v in known.items() if v != ''}})
        return check_leads(e) if self.guard else e

    @property
    def name(self): return self.config.get('source', type(self).__name__)

    @property
    def config(self): return to_config(self)

    @cached_property
    def classes(self): return tuple(sorted({x for v in self.frame['labels'] if v is not None for x in v}))

    def label_matrix(self):
        "float32 (N,K): 1 where the recording carries the class, 0 where not, NaN where its labels are unknown."
        at, out = {c: k for k, c in enumerate(self.classes)}, np.zeros((len(self), len(self.classes)), np.float32)
        for i, (r, v) in enumerate(zip(self.frame['record'], self.frame['labels'])):
            if v is None: out[i] = np.nan; continue
            if lost := [x for x in v if x not in at]:
                raise ECGError(f'record {r}: label {lost[0]!r} is not a class; {did_you_mean(lost[0], at)}')
            out[i, [at[x] for x in v]] = 1
        return out

    def select(self, rows):
        "The Subset of these rows: numbers, or one bool a recording."
        return Subset(self, rows)

    def fold(self, which):
        "Subset of the folds 'train' (1-8), 'val' (9), 'test' (10) or '1-4,10'. ECGError: none, or a patient is cut."
        mine, f = self.frame['fold'].isin(fold_numbers(which)), self.frame
        if not mine.any():
            raise ECGError(f"{self.name}: no recording in fold {which!r}; folds here: "
                           f"{spans(sorted(set(f['fold']))) or 'none'} (0 = unknown: use .split(by='patient'))")
        check_split(**{f'fold {which}': f[mine], 'the other folds': f[~mine]})
        return self.select(mine)

    def split(self, by='patient', fractions=(0.8, 0.1, 0.1), seed=0):
        "dict(train=, val=, test=) of Subset. ECGError where column `by` lacks, has gaps, or cuts a patient."
        if by not in self.frame:
            raise ECGError(f"{self.name}: no column {by!r} to split by; {did_you_mean(by, self.frame.columns)}")
        if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ECGError(f'fractions {fractions}; wanted three that add up to 1, for train, val and test')
        groups = ids(self.frame[by])
        if (groups == '').any():
            raise ECGError(f"{self.name}: column {by!r} is empty for {some(self.frame['record'][groups == ''])}")
        part = assign(groups.tolist(), fractions, seed)
        out = {name: self.select(part == k) for k, name in enumerate(FOLDS)}
        check_split(**out)
        return out

    def fingerprint(self):
        "sha256 of the configuration (less root) and the table: what a store is bound to."
        keep = [c for c in (*COLUMNS, 'text', 'fs', 'seconds') if c in self.frame]
        h = hashlib.sha256(json.dumps({k: v for k, v in self.config.items() if k != 'root'}, sort_keys=True).encode())
        for row in zip(*(self.frame[c].tolist() for c in keep)): h.update(json.dumps(row).encode())
        return h.hexdigest()

    def _repr_html_(self):
        f = self.frame.head(5).drop(columns='scp', errors='ignore')
        return f"<p><code>{self!r}</code><br>{len(self)} recordings of {self.frame['patient'].nunique()} patients; " \
               f"classes: {some(self.classes, 12) or 'none'}</p>{f.to_html(max_cols=12)}"

Source._file = Source.__len__.__code__.co_filename


# %% [markdown]
# A `Subset` is a source whose rows are chosen. A subset of a subset points straight at the whole, and its configuration is the whole's
# with the rows written beside it (`'0-2,5'`), so a store made from it says exactly what it holds. It is not a registered part, so `to_config` refuses it.

# %%
#| export
class Subset(Source):
    "Chosen rows of a source, in the given order; classes stay those of the whole."
    def __init__(self, src, rows):
        rows, n = np.asarray(rows), len(src)
        if rows.dtype == bool:
            if rows.shape != (n,): raise ECGError(f'a mask of {rows.size} rows for {n} recordings')
            rows = np.flatnonzero(rows)
        if rows.size and (rows.dtype.kind not in 'iu' or rows.ndim != 1):
            raise ECGError(f'rows are {rows.dtype} {rows.shape}; wanted a list of whole numbers or one bool a row')
        rows = rows.astype(int).reshape(-1)
        if (out := rows[(rows < -n) | (rows >= n)]).size: raise IndexError(f'{n} recordings; there is no row {out[0]}')
        rows = rows % n if n else rows
        if twice := [r for r, k in Counter(rows.tolist()).items() if k > 1]:
            raise ECGError(f'rows stand more than once: {some(twice)}')
        self.whole, self.rows = (src.whole, src.rows[rows]) if isinstance(src, Subset) else (src, rows)
        self.guard, self.no_patient = src.guard, src.no_patient

    @cached_property
    def frame(self): return self.whole.frame.iloc[self.rows]

    def read(self, i): return self.whole.read(int(self.rows[i]))

    @property
    def classes(self): return self.whole.classes

    @property
    def config(self): return {**self.whole.config, 'rows': spans(self.rows)}

    @property
    def _registry(self):
        raise ECGError("a Subset is no part of its own; save .config: the source's, and 'rows' beside it")

    def __repr__(self): return f'{len(self)} of {self.whole!r}'


# %% [markdown]
# A toy source in six lines, split, checked and read.

# %%
from ecgnb.ecg import ECG
from ecgnb.registry import source

@source
class Toy(Source):
    "A sine on lead II; one recording a row of the random table above."
    @cached_property
    def frame(self):
        return pd.DataFrame(dict(record=[f'r{i:03d}' for i in range(len(patient))], patient=patient,
                                 fold=patient % 10 + 1, labels=[['NORM'] if p % 2 else ['MI', 'STTC'] for p in patient]))

    def read(self, i): return ECG(np.sin(np.arange(500) / 40 + i)[None], 250, ['II'])

src = Toy()
parts = src.split(by='patient', fractions=(0.7, 0.1, 0.2), seed=0)
check_split(**parts)
assert sum(map(len, parts.values())) == len(src)
{k: (len(v), v.frame.patient.nunique()) for k, v in parts.items()}

# %%
e = parts['test'][-1]
assert e.meta['patient'] == parts['test'].frame.patient.iloc[-1] and e.leads == ('II',)
e.meta

# %% [markdown]
# Classes are those of the whole, so the label matrices of all parts line up.

# %%
Y = parts['val'].label_matrix()
assert parts['val'].classes == ('MI', 'NORM', 'STTC') and Y.shape == (len(parts['val']), 3)
assert (Y.sum(1) == np.where(Y[:, 1] == 1, 1, 2)).all()
Y[:3]

# %% [markdown]
# A subset of a subset is flat, and its identity is stable: the same rows give the same fingerprint on every way to them.

# %%
a, b = src[10:50][5:8], src.select([15, 16, 17])
assert a.whole is src and a.fingerprint() == b.fingerprint() != src.fingerprint()
a.config

# %% [markdown]
# ## What can go wrong

# %%
from fastcore.test import expect_fail

with expect_fail(contains="patient 0 is in two parts: part 0 (record r000) and part 1 (record r001"):
    check_split(src[:1], src[1:])
with expect_fail(contains="no fold 'tarin'; did you mean 'train'?"): src.fold('tarin')
with expect_fail(contains='wanted numbers from 1 to 10'): src.fold('0-3')
with expect_fail(contains='folds here: 1-8'): src.fold('train').fold('test')
with expect_fail(contains="no column 'patients' to split by; did you mean 'patient'?"): src.split(by='patients')
with expect_fail(contains='is in two parts'): src.split(by='record')
with expect_fail(contains='add up to 1'): src.split(fractions=(0.9, 0.2, 0.1))
with expect_fail(contains='no column patient'): check_frame(toy.drop(columns='patient'))
with expect_fail(contains='1 records stand more than once: x'): check_frame(toy.assign(record='x'))
with expect_fail(contains="type no_patient='own'"): check_frame(toy.assign(patient=None))
with expect_fail(contains='wanted 1 to 10, or 0 for unknown'): check_frame(toy.assign(fold=11))
with expect_fail(contains="wanted a list of codes such as ['NORM']"): check_frame(toy.assign(labels='NORM'))
with expect_fail(contains='there is no [999]'): src[999]
with expect_fail(contains='rows stand more than once: 3'): src.select([3, 3])
with expect_fail(contains='a Subset is no part of its own'): to_config(src[:3])
own = check_frame(toy.assign(patient=[7., None, None, 9.]), no_patient='own')
assert own.patient.tolist() == ['7', 'only a2', 'only b1', '9']
own.patient.tolist()

# %% [markdown]
# ## Sizes
#
# A split of 200,000 recordings takes about a second, so nobody needs a cached list of files.

# %%
import time
big = [str(p) for p in np.random.default_rng(0).integers(0, 60_000, 200_000)]
t = time.perf_counter(); share = np.bincount(assign(big)) / len(big); t = time.perf_counter() - t
assert np.allclose(share, (0.8, 0.1, 0.1), atol=1e-3)
f'{t:.1f} s, shares {share.round(4).tolist()}'

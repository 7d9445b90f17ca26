"Questions on simulated ECGs: the answers are true, the text gives nothing away, the same seed asks the same."
import re
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd
import pytest

from ecgnb.dipole import CODES, RHYTHMS
from ecgnb.leads import ECGError, STANDARD
from ecgnb.records import Source
from ecgnb.registry import from_config, source, to_config
from ecgnb.sources.synth_qa import ASKS, KINDS, MEASURES, PAIRS, rounded
from ecgnb.talk import PLACE
from ecgnb.waves import measure

CLOSED = [k for k in KINDS if not k.endswith('query')]


def cohort(n=500, **more): return source['sample'](n=n, fs=100., **more)


@pytest.fixture(scope='module')
def qa(): return source['synth_qa'](ecg=cohort())


@pytest.fixture(scope='module')
def table(qa):
    "A row a question: kind, text, answer, fold, truths of its ECGs, their row numbers."
    row = {r: i for i, r in enumerate(qa.ecg.frame['record'])}
    t = qa.talks
    return pd.DataFrame(dict(
        kind=t['kind'], text=[x[0]['text'].replace(PLACE, '').strip() for x in t['turns']], answers=t['answers'],
        answer=['; '.join(a) for a in t['answers']], folds=t['folds'], rows=[[row[r] for r in rs] for rs in t['records']],
        truths=[[qa.truths[row[r]] for r in rs] for rs in t['records']]))


def test_talks_are_whole(qa, table):
    t = qa.talks
    assert set(t['kind']) == set(KINDS) and t['id'].is_unique and not qa.left_out
    for turns, records, answers in zip(t['turns'], t['records'], t['answers']):
        assert [x['role'] for x in turns] == ['user', 'assistant'] and turns[1]['text'] == '; '.join(answers)
        assert turns[0]['text'].count(PLACE) == len(records) == len(set(records))
    n = t['records'].map(len)
    assert (n == 2).equals(t['kind'].str.startswith('comparison'))
    assert abs(len(t)/500 - 4) < .3 and abs((n == 2).mean() - .1) < .03
    assert not table.assign(who=[tuple(r) for r in table['rows']])[['text', 'who']].duplicated().any()
    asked = pd.Series([r for rs, k in zip(table['rows'], n) if k == 1 for r in rs]).value_counts()
    assert asked.max() <= 4 and len(asked) > 490


def test_folds_go_by_patient(qa):
    fold = qa.ecg.frame.set_index('record')['fold']
    patient = qa.ecg.frame.set_index('record')['patient']
    assert qa.ecg.frame.groupby('patient')['fold'].nunique().max() == 1
    for records, folds, patients in zip(*(qa.talks[c] for c in ('records', 'folds', 'patients'))):
        assert {fold[r] for r in records} == {*folds} and len(folds) == 1
        assert {patient[r] for r in records} == {*patients}
    assert sorted({f for fs in qa.talks['folds'] for f in fs}) == list(range(1, 11))


def test_answers_are_balanced_in_every_fold_and_wording(table):
    for (kind, text, fold), g in table[table['kind'].isin(CLOSED)].groupby(['kind', 'text', 'folds']):
        n = g['answer'].value_counts()
        assert len(n) == 2 and n.iloc[0] == n.iloc[1], f'{kind}, fold {fold}, {text!r}: {n.to_dict()}'


def test_no_answer_to_a_query_is_common(table):
    for kind, g in table[table['kind'].str.endswith('query')].groupby('kind'):
        assert g['answer'].value_counts(normalize=True).iloc[0] <= .6, kind
    for (kind, fold), g in table[table['kind'].isin(['rhythm-query', 'axis-query', 'territory-query'])].groupby(['kind', 'folds']):
        n = g['answer'].value_counts()
        assert n.iloc[0] <= n.sum() - n.iloc[0] + 1, (kind, fold)


def test_a_guess_from_the_text_is_a_guess(table):
    "The commonest answer of folds 1 to 8 to the same text, in folds 9 and 10; and of the text's words, by a linear model."
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    test = table['folds'].map(max) > 8
    yes = table[table['answer'].isin(('yes', 'no'))]
    words = CountVectorizer(ngram_range=(1, 2))
    model = LogisticRegression(max_iter=200).fit(words.fit_transform(yes['text'][~test]), yes['answer'][~test])
    assert model.score(words.transform(yes['text'][test]), yes['answer'][test]) <= .55
    common = table[~test].groupby('text')['answer'].agg(lambda a: a.mode()[0])
    right = table['text'].map(common) == table['answer']
    for kind in CLOSED: assert right[test & (table['kind'] == kind)].mean() <= .5, kind


def test_truth_does_not_depend_on_the_sampling_rate_or_the_noise(qa):
    for same in (source['sample'](n=500, fs=500.), source['sample'](n=500, fs=100., noise=0.)):
        assert all(same.read(i).meta['truth'] == qa.truths[i] for i in (0, 17, 100, 333, 499))


def test_rate_answers_agree_with_a_measurement_of_the_signal(qa, table):
    t = table[table['kind'].isin(('rate-verify', 'rate-choose', 'rate-query'))].iloc[::4]
    rows = sorted({r for rs in t['rows'] for r in rs})
    rate = dict(zip(rows, measure(np.stack([qa.ecg[i].signal for i in rows]), 100., STANDARD)['rate']))
    good = []
    for text, answer, (i,) in zip(t['text'], t['answer'], t['rows']):
        v, numbers = rate[i], [float(x) for x in re.findall(r'\d+', text)]
        if answer in ('yes', 'no'): good.append((answer == 'yes') == (v < 60 if 'bradycardia' in text else v > numbers[0]))
        elif len(numbers) == 2: good.append(answer.split()[0] == f'{min(numbers, key=lambda k: abs(k - v)):g}')
        elif 'cardia' in answer or 'normal' in answer:
            good.append(answer == ('bradycardia' if v < 60 else 'tachycardia' if v > 100 else 'a normal heart rate'))
        else: good.append(abs(v - float(answer.split()[0])) < 3)
    assert len(good) > 40 and np.mean(good) > .95


def test_answers_follow_from_the_truth(table):
    "Read again, without the module's own functions."
    name = {CODES[c][2]: c for c in CODES}
    tried = set()
    for kind, text, answer, answers, (t, *_) in zip(*(table[c] for c in ('kind', 'text', 'answer', 'answers', 'truths'))):
        codes, yes, verify = {*t['codes']}, answer == 'yes', kind.endswith('-verify')
        if 'wide QRS' in text and verify: ok = yes == (t['qrs'] >= 120)
        elif 'prolonged PR' in text and verify: ok = yes == (t['pr'] > 200)
        elif 'long QT' in text: ok = yes == (t['qtc'] > 460)
        elif kind == 'rhythm-query': ok = name[answer] in codes & {*RHYTHMS}
        elif kind == 'rhythm-choose': ok = name[answer] in codes
        elif kind == 'axis-query':
            a = t['axis']
            ok = answer == ('normal' if -30 <= a <= 90 else 'left' if -90 < a < 0 else 'right' if a > 0 else 'extreme')
        elif kind == 'territory-verify':
            ok = yes == any(CODES[c][2] in text and CODES[c][2].split()[0] in text.split() for c in codes & {'IMI', 'AMI', 'ASMI', 'LMI'})
        elif kind == 'findings-query':
            ok = {*answers} == ({CODES[c][2] for c in codes - {'NORM', *RHYTHMS}} or {'none'})
        elif kind == 'normal-verify': ok = yes == ('NORM' in codes)
        elif kind in ('pr-query', 'qrs-query'): ok = abs(float(answer.split()[0]) - t[kind.split('-')[0]]) <= 4
        else: continue
        tried.add(kind)
        assert ok, (kind, text, answer, t)
    assert len(tried) == 11


def test_choose_offers_the_answer_in_both_orders(table):
    t = table[table['kind'].str.endswith('-choose')]
    assert all(a in q for a, q in zip(t['answer'], t['text']))
    first = [q.index(a) < q.rindex(' or ') for a, q in zip(t['answer'], t['text']) if q.count(a) == 1]
    assert .45 < np.mean(first) < .55


def test_comparisons_agree_with_both_truths(table):
    t = table[table['kind'].str.startswith('comparison')]
    for kind, text, answer, (a, b) in zip(t['kind'], t['text'], t['answer'], t['truths']):
        key = kind.split('-')[1]
        if key in MEASURES: ok = (b[key] > a[key]) == (answer in ('yes', 'the second')) and a[key] != b[key]
        elif key == 'rhythm': ok = (({*a['codes']} & {*RHYTHMS}) == ({*b['codes']} & {*RHYTHMS})) == (answer == 'yes')
        elif key == 'territory':
            area = lambda t: {c for c in t['codes'] if c.endswith('MI')}
            ok = (area(a) == area(b)) == (answer == 'yes')
        else: ok = (-30 <= a['axis'] <= 90) == (-30 <= b['axis'] <= 90) if answer == 'yes' else \
            (-30 <= a['axis'] <= 90) != (-30 <= b['axis'] <= 90) or a['axis']*b['axis'] < 0
        assert ok, (kind, text, answer, a, b)
    pairs = {(k, q, *r): a for k, q, r, a in zip(t['kind'], t['text'], map(tuple, t['rows']), t['answer'])}
    turned = [(pairs[k, q, a, b], pairs[k, q, b, a]) for k, q, a, b in pairs if (k, q, b, a) in pairs]
    assert len(turned) >= .5*len(pairs) and all(x != y for x, y in turned)


class Turned(Source):
    "A source in another order."
    def __init__(self, src, order): self.src, self.order, self.guard, self.no_patient = src, order, True, 'error'
    config = property(lambda self: {'source': 'turned'})
    @cached_property
    def frame(self): return self.src.frame.iloc[self.order]
    def read(self, i): return self.src.read(int(self.order[i]))


def test_same_seed_same_questions_in_any_order():
    make = lambda ecg=None, **more: source['synth_qa'](ecg=ecg or cohort(60), **more).rows()
    rows = make()
    assert make() == rows and make(seed=1) != rows
    assert make(Turned(cohort(60), np.random.default_rng(0).permutation(60))) == rows
    qa = source['synth_qa'](ecg=cohort(60), comparison=.3, kinds='rate,comparison')
    assert from_config(to_config(qa)).rows() == qa.rows()


def test_kinds_wordings_and_shares():
    make = lambda **more: source['synth_qa'](ecg=cohort(50), **more).talks
    assert {k.split('-')[0] for k in make(kinds='rate, rhythm', comparison=0.)['kind']} == {'rate', 'rhythm'}
    assert set(make(kinds='rate-query')['kind']) == {'rate-query'}
    few = make(wordings=False)
    first = {a.texts[0] for a in ASKS + PAIRS}
    assert {t[0]['text'].replace(PLACE, '').strip() for t in few['turns']} <= first
    assert len(make(per_record=1)) <= 70 and make(comparison=1.)['kind'].str.startswith('comparison').all()


@pytest.mark.parametrize('given,says', [
    (dict(kinds='rate,rythm'), "did you mean 'rhythm'"), (dict(per_record=0), 'per_record=0'),
    (dict(comparison=1.5), 'comparison=1.5'), (dict(ecg=3), 'wanted a source')])
def test_errors(given, says):
    with pytest.raises(ECGError, match=re.escape(says)): source['synth_qa'](**given)


def test_too_few_and_no_truth():
    class Real(Turned):
        def read(self, i): return replace(super().read(i), meta={})
    with pytest.raises(ECGError, match='nothing to ask'): source['synth_qa'](ecg=cohort(1), kinds='verify').rows()
    with pytest.raises(ECGError, match="no meta\\['truth'\\] in s00000"):
        source['synth_qa'](ecg=Real(cohort(3), np.arange(3))).rows()


def test_rounding_is_never_a_toss():
    assert rounded(72.4, 5) is None and rounded(71.9, 5) == '70' and rounded(73.1, 5) == '75' and rounded(None, 5) is None

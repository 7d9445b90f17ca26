"Answers of ECG-language models: the scores, what the ECG adds to them, the same numbers on two processes as on one."
import json

import numpy as np
import pandas as pd
import pytest
import torch
from llms import tiny
from project import two_ranks
from torch import nn

from ecgnb import answers, connector, encoder, evaluate, objective, representation
from ecgnb.answers import CONDITIONS, PRIOR, How, figure, judge, main, replies, too_long
from ecgnb.hub import CheckpointError, save
from ecgnb.leads import ECGError
from ecgnb.objectives.answer import Answer
from ecgnb.prepare import prepare
from ecgnb.prompt import TooLong
from ecgnb.recipes import complete, run_of
from ecgnb.registry import to_config
from ecgnb.reliance import Prior, compared, judged, means, of_fold, question, questions, three, weights
from ecgnb.sources.sample import Sample
from ecgnb.sources.synth_qa import SynthQa
from ecgnb.store import Store

SOURCE = SynthQa(ecg=Sample(n=60, seconds=4., fs=50.), kinds='rate,rhythm,findings', per_record=3)


@pytest.fixture(scope='module')
def store(tmp_path_factory): return prepare(SOURCE, tmp_path_factory.mktemp('answers')/'store', fs=50., seconds=4., progress=False)


def talk(answers=('yes',), patient='p1', kind='', text='Is it?', **more):
    turns = [dict(role='user', text=f'<ecg>\n{text}'), dict(role='assistant', text='; '.join(answers))]
    return dict(id=f'{patient}-{text}', records=[patient], patients=(patient,), folds=(1,), kind=kind, answers=list(answers), turns=turns) | more


class Model(nn.Module):
    "Says what `say(talk, records, signals)` says."
    def __init__(self, say, contract=None, **more):
        super().__init__()
        self.say, self.weight = say, nn.Parameter(torch.zeros(1))
        if contract: self.contract = contract
        for k, v in more.items(): setattr(self, k, v)

    def reply(self, batch, most):
        at, out = 0, []
        for t in batch['talks']:
            n = len(t['records'])
            out.append(self.say(t, batch['record'][at:at + n], batch['signal'][at:at + n]))
            at += n
        assert at == len(batch['signal'])
        return out


def knows(talks):
    "A model that knows the answers of the recordings it is shown; another's ECG, noise or no ECG: 'nothing'."
    said = {(tuple(t['records']), question(t)): '; '.join(t['answers']) for t in talks.to_dict('records')}
    return lambda t, records, signals: said.get((tuple(records), question(t)), 'nothing') if len(signals) and signals.float().std() > 0 else 'nothing'


# ---- what is asked ---------------------------------------------------------------------------------------------------

def test_every_assistant_turn_with_what_was_said_before():
    t = talk()
    t['turns'] = [dict(role='system', text='Be brief.'), dict(role='user', text='<ecg> Rate?'), dict(role='assistant', text='70 bpm'), dict(role='user', text='And <ecg>\nnow?'),
                  dict(role='assistant', text='a; b')]
    t |= dict(records=['r1', 'r2'], answers=['a', 'b'])
    (one,), lost = questions(pd.DataFrame([t]))
    assert (one['id'], question(one), one['answers'], one['records'], len(one['turns']), dict(lost)) == (t['id'], 'And now?', ['a', 'b'], ['r1', 'r2'], 5, {})
    first, second = questions(pd.DataFrame([t]), 'all')[0]
    assert (question(first), first['answers'], first['records'], len(first['turns'])) == ('Rate?', ['70 bpm'], ['r1'], 3)
    assert second | dict(id='') == one | dict(id='') and first['id'] != second['id']
    assert t['records'] == ['r1', 'r2'] and len(t['turns']) == 5, 'the talk itself was cut'


def test_wanted_answers_without_a_word_are_left_out_and_counted():
    many, lost = questions(pd.DataFrame([talk([' - ']), talk([]) | dict(turns=[dict(role='user', text='?'), dict(role='assistant', text='no')]), talk(['', 'b'])]))
    assert [t['answers'] for t in many] == [['no'], ['b']] and dict(lost) == {'no answer to compare with': 1}


def test_folds_are_those_of_all_ecgs():
    f = pd.DataFrame([talk(folds=(9,)), talk(folds=(9, 10)), talk(folds=()), talk(folds=(1,))])
    assert [len(of_fold(f, k)) for k in ('val', 'test', '9-10', 'train')] == [1, 0, 2, 1]


def test_the_prior_is_of_the_question_else_of_its_kind():
    p = Prior([talk(['no']), talk(['no']), talk(['yes']), talk(['b', 'a'], kind='list', text='Which?'), talk(['c'], kind='list', text='Others?'), talk(['c'], kind='list', text='More?')])
    said = [p(talk(kind=k, text=q)) for k, q in (('', 'IS  it?'), ('list', 'Which?'), ('list', 'New?'), ('new', 'New?'))]
    assert said == ['no', 'a; b', 'c', 'c'] and Prior([])(talk()) == ''         # 2 no, 2 c: the first in the alphabet


# ---- the statistics --------------------------------------------------------------------------------------------------

def test_weights_count_patients():
    many = [talk(patient='p1'), talk(patient='p1', text='2'), talk(patient='p2'), talk(patients=('p1', 'p3')), talk(patient='p3')]
    w = weights(many, 500, 3)
    assert w.shape == (501, 5) and (w[0] == 1).all() and (w[:, 0] == w[:, 1]).all() and (w[1:, [0, 2, 4]].sum(1) == 3).all()
    assert (w[:, 3] == w[:, 0]*w[:, 4]).all() and (w == weights(many, 500, 3)).all() and (w != weights(many, 500, 4)).any()


def test_means_are_weighted_means():
    rng = np.random.default_rng(0)
    v, w = rng.random((9, 3)), rng.integers(0, 3, (6, 9)).astype(float)
    v[2, 1] = np.nan; v[:, 2] = np.nan
    got, keep = means(v, w), np.arange(9) != 2
    np.testing.assert_allclose(got[:, 0], [np.average(v[:, 0], weights=r) for r in w])
    np.testing.assert_allclose(got[:, 1], [np.average(v[keep, 1], weights=r[keep]) for r in w])
    assert np.isnan(got[:, 2]).all()


def test_intervals_of_few_patients_are_none():
    assert [np.isnan(three(np.array([.5, .5, .5]), n)['low']) for n in (1, 4, 5)] == [True, True, False]
    many = [talk(['70 bpm'] if k < 4 else ['yes'], f'p{k}') for k in range(9)]
    frame, _ = compared(many, dict(ecg=['yes']*9), dict(ecg=judged(many, ['yes']*9)), weights(many, 100))
    f = frame.set_index('metric')                           # 4 of the 9 patients are behind the numbers
    assert f.loc['number', 'patients'] == 4 and np.isnan(f.loc['number', 'low']) and f.loc['score', 'patients'] == 9 and np.isfinite(f.loc['score', 'low'])


def test_clustered_intervals_are_wider_than_those_of_independent_rows():
    said = dict(ecg=['yes']*200)
    wide = []
    for k in (1, 20):                                       # 200 patients, or 10 whose 20 questions go the same way
        many = [talk([('no', 'yes')[(i//k) % 2]], f'p{i//k}', text=f'{i}') for i in range(200)]
        frame, _ = compared(many, said, {'ecg': judged(many, said['ecg'])}, weights(many, 300))
        row = frame.query("metric == 'score'").iloc[0]
        assert (row.value, row.n, row.patients) == (.5, 200, 200//k)
        wide.append(row.high - row.low)
    assert 3 < wide[1]/wide[0] < 6                          # sqrt(20) = 4.5


def test_the_headline_by_kind_of_answer():
    report = 'sinus rhythm. left ventricular hypertrophy with ST depression, an old inferior myocardial infarction, no other change.'
    many = [talk(['70 bpm']), talk(['yes']), talk(['AF', 'LVH']), talk(['yes']), talk([report]), talk(['sinus rhythm'], kind='report')]
    t = judged(many, ['about 72 beats/min', 'Yes!', 'LVH and AF', '', report, ''])
    assert t['score'].tolist() == [1, 1, 1, 0, 1, 0] and t['empty'].tolist() == [0, 0, 0, 1, 0, 1]
    assert t['label_f1'].isna().tolist() == [True]*4 + [False]*2 and t['number'].notna().tolist() == [True] + [False]*5
    assert ((t.fillna(0) >= 0) & (t.fillna(0) <= 1 + 1e-9)).all().all() and t.columns[0] == 'score'


def test_what_is_offered_is_judged_to_the_letter():
    many = [talk(['80 ms'], kind='qrs-choose'), talk(['80 ms'], kind='qrs-choose'), talk(['80 ms'], kind='qrs-query')]
    t = judged(many, ['80 ms', '90 ms', '90 ms'])
    assert t['score'].tolist() == [1, 0, 1] and t['number'].isna().tolist() == [True, True, False]

# ---- the evaluation --------------------------------------------------------------------------------------------------

def test_a_model_that_knows_and_one_that_ignores_the_ecg(store):
    r = judge(Model(knows(SOURCE.talks), store.contract), store, SOURCE, times=200)
    n = len(of_fold(SOURCE.talks, 'test'))
    assert r.value() == 1 and r.value(column='n') == n == len(r.rows)/6 and r.value(condition='none') == r.value(condition='zeros') == r.value(condition='other') == 0
    assert [r.lead(c) for c in ('none', 'zeros', 'other')] == [1, 1, 1] and set(r.frame['condition']) == {*CONDITIONS, PRIOR}
    assert set(r.frame['kind']) == {'all', *of_fold(SOURCE.talks, 'test')['kind']}
    blind = judge(Model(lambda t, *_: 'yes', store.contract), store, SOURCE, times=200)
    assert 0 < blind.value() < 1 and (blind.reliance.query('control != @PRIOR')[['value', 'low', 'high']].fillna(dict(low=0, high=0)) == 0).all().all()
    assert blind.lead(PRIOR) == pytest.approx(blind.value() - blind.value(condition=PRIOR))
    empty = judge(Model(lambda *_: ' \n', store.contract), store, SOURCE, times=100, conditions='ecg', prior='9')
    assert empty.value() == 0 and empty.value('empty') == 1 and empty.value(column='n') == n
    assert 'fold 9' in empty.protocol and set(empty.frame['condition']) == {'ecg', PRIOR}


def test_the_controls_reach_the_model(store):
    who, seen = dict(zip(store.frame['record'], store.frame['patient'])), {}
    def spy(t, records, signals):
        seen.setdefault(spy.now, []).append((t, list(records), signals.clone()))
        return ''
    for spy.now in CONDITIONS: replies(Model(spy, store.contract).eval(), store, questions(of_fold(SOURCE.talks, 'test'))[0], '' if spy.now == 'ecg' else spy.now)
    assert all(r == list(t['records']) for t, r, _ in seen['ecg']) and not any(len(s) or t['records'] or '<ecg>' in str(t['turns']) for t, _, s in seen['none'])
    assert not any(s.any() for *_, s in seen['zeros']) and all(s.any() for *_, s in seen['noise'])
    assert not any(torch.equal(a, b) for (*_, a), (*_, b) in zip(seen['noise'], seen['ecg']))
    assert all({who[x] for x in r}.isdisjoint(who[x] for x in t['records']) for t, r, _ in seen['other'])


def test_only_unseen_patients_are_asked_about(store):
    seen = set()
    def spy(t, records, signals): seen.update(records); return 'yes'
    judge(Model(spy, store.contract), store, SOURCE, fold='9', times=100)
    who = store.frame.set_index('record')
    assert set(who.loc[sorted(seen), 'fold']) == {9} and not {who.loc[r, 'patient'] for r in seen} & set(store.fold('train').frame['patient'])


def test_missing_windows_are_counted(store):
    gone = of_fold(SOURCE.talks, 'test')['records'].iloc[0][0]
    less = store.select((store.frame['record'] != gone).to_numpy())
    r = judge(Model(lambda *_: 'yes', store.contract), less, SOURCE, conditions='ecg', times=100)
    n = sum(gone in v for v in of_fold(SOURCE.talks, 'test')['records'])
    assert f'{n} with an ECG that is not in the store' in r.protocol and gone not in str(r.rows['records'].tolist())


def test_some_of_the_talks_and_all_turns(store):
    a, b, c = (judge(Model(lambda *_: 'yes', store.contract), store, SOURCE, conditions='ecg', times=100, talks=7, seed=s) for s in (0, 0, 1))
    assert set(a.rows['id']) == set(b.rows['id']) != set(c.rows['id']) and a.rows['id'].nunique() == 7
    f = SOURCE.talks.copy()
    f['turns'] = [t + [dict(role='user', text='Sure?'), dict(role='assistant', text='very sure')] for t in f['turns']]
    f['answers'] = [['very sure']]*len(f)
    last, every = (judge(Model(lambda *_: 'very sure', store.contract), store, f, conditions='ecg', times=100, turns=k) for k in ('last', 'all'))
    assert last.value() == 1 and every.value() == .5 and every.value(column='n') == 2*last.value(column='n')


def test_json_without_nan_and_html_that_is_text(store):
    f = SOURCE.talks.copy()
    f['turns'] = [[dict(role='user', text='<ecg> <script>alert(1)</script>?'), *t[1:]] for t in f['turns']]
    r = judge(Model(lambda *_: '<b>bold</b> & "$x$"', store.contract), store, f, times=100, examples=4)
    said = json.dumps(r.to_json(), allow_nan=False)
    assert set(json.loads(said)) == {'protocol', 'rows', 'reliance'} and any(v['low'] is None for v in json.loads(said)['rows'] + [dict(low=None)])
    page = r._repr_html_()
    assert '<script>' not in page and '<b>' not in page and '&lt;b&gt;bold' in page and page.count('<img') >= 5
    assert 'signal reliance' in repr(r) and len(r.examples) == 4 and figure(r).png()[:4] == b'\x89PNG'
    r.frame['kind'] = r.frame['kind'].replace({k: rf'$\{k}$' for k in set(r.frame['kind'])})
    assert figure(r).png()[:4] == b'\x89PNG', 'a kind that looks like a formula'


def test_questions_longer_than_the_context_are_wrong(store, tmp_path):
    f = of_fold(SOURCE.talks, 'test').head(4).copy()
    f['turns'] = [[dict(role='user', text=t[0]['text'] + ' and so on'*200*(k == 1)), *t[1:]] for k, t in enumerate(f['turns'])]
    m = speaker(tiny(tmp_path))
    with pytest.raises(TooLong): replies(m, store, f.to_dict('records'))
    for model in (m, text_speaker(m)):
        r = judge(model, store, f, times=100, most=3, conditions='ecg,noise,none', prior='test')
        assert '1 question was longer than the context: counted as wrong' in r.protocol and len(r.rows) == 4*r.rows['condition'].nunique()
        mine = r.rows[(r.rows['id'] == f['id'].iloc[1]) & (r.rows['condition'] != PRIOR)]
        assert (mine['said'] == '').all() and (mine['score'] == 0).all() and (r.rows['said'] != '').sum() > 4
    m.connector.n_tokens = 0                                # their number is known to the reader alone
    m.reader = lambda batch, reply=False, room=0: Answer.reader(m, batch | dict(tokens=torch.zeros(1, 5), tokens_valid=torch.ones(1, 5).long()), reply, room)
    assert too_long(m, store, f.to_dict('records'), 'noise') == {f['id'].iloc[1]}
    f['turns'] = [f['turns'].iloc[1]]*4
    with pytest.raises(ECGError, match='none of the 4 questions fits'): judge(text_speaker(m), store, f)


def test_a_language_model_alone(store):
    r = judge(Model(lambda t, records, s: 'yes' if not len(s) else 'no', connector=None, encoder=None), store, SOURCE, times=100)
    assert set(r.frame['condition']) == {'none', PRIOR} and not len(r.reliance) and 'saw no ECG' in r.protocol
    assert repr(r) and r._repr_html_() and json.dumps(r.to_json(), allow_nan=False)


# ---- processes -------------------------------------------------------------------------------------------------------

RANKS = '''
from test_answers import Store, both
out = [None, None]
dist.all_gather_object(out, both(Store({store!r}), {llm!r}))
'''


def speaker(llm):
    "A tiny ECG-language model with random weights."
    torch.manual_seed(0)
    return objective['answer'](representation['signal'](fs=50., length=200), encoder['vit1d'](length=200, dim=32, depth=1, heads=2), connector['linear'](), llm=llm, context=256)


def text_speaker(m): return objective['answer'](m.representation, llm=m.llm, context=256)

def both(store, llm):
    "What a process says: a model in many batches, in one (of which the second process has none), and a language model."
    out = []
    for m, how in ((company(store), dict(batch_size=4)), (company(store), dict(batch_size=64, conditions='ecg,other')),
                   (speaker(llm), dict(batch_size=4, talks=10, most=6, conditions='ecg,none,noise'))):
        r = judge(m, store, SOURCE, times=100, examples=0, **how)
        out.append([r.to_json(), r.rows['said'].tolist(), r.rows['score'].tolist()])
    return out


def company(store):
    "A model whose answer depends on the company in its batch, as rounding does in a padded one."
    class Company(Model):
        def reply(self, batch, most):
            size, mark = sum(len(str(t['turns'])) for t in batch['talks']), int(batch['signal'].long().sum()) if len(batch['signal']) else 0
            return [('no', 'yes', 'sinus rhythm', f'{size % 99 + 40} bpm')[(size + mark + k) % 4] for k, t in enumerate(batch['talks'])]
    return Company(None, store.contract)


def test_two_ranks_equal_one_number_for_number(store, tmp_path):
    llm = tiny(tmp_path)
    two, one = two_ranks(RANKS.format(store=str(store.path), llm=llm), tmp_path), both(store, llm)
    assert two == [one, one] and len(one[1][1]) < 3*64 and len(set(one[2][1])) > 10
    other = judge(company(store), store, SOURCE, times=100, batch_size=3)
    assert other.rows['said'].tolist() != one[0][1], 'the company does not matter: nothing was tested'


# ---- the command and what it refuses ---------------------------------------------------------------------------------

def test_the_command_writes_beside_the_checkpoint(store, tmp_path, monkeypatch, capsys):
    (tmp_path/'results.json').write_text('{"train": 1}')
    run = dict(source=dict(source='synth_qa'))
    for name, f in dict(asked=lambda n, a, c: (How(times=100, fold='9', device='cpu'), [], tmp_path, tmp_path/'best', {'model': {'objective': 'answer'}}), run_for=lambda *a: run, from_config=lambda c: SOURCE,
                        load=lambda *a, **k: Model(knows(SOURCE.talks), store.contract), store_of=lambda *a, **k: store, trained_on=lambda *a: ' WARNING: seen.').items():
        monkeypatch.setattr(answers, name, f)
    main(['x'])
    saved = json.loads((tmp_path/'results.json').read_text())
    assert saved['train'] == 1 and saved['answers']['fold'] == '9' and saved['answers']['protocol'].endswith('WARNING: seen.')
    best = [r for r in saved['answers']['rows'] if (r['condition'], r['kind'], r['metric']) == ('ecg', 'all', 'score')]
    assert best[0]['value'] == 1 and (tmp_path/'answers.png').stat().st_size > 1000
    rows = [json.loads(s) for s in (tmp_path/'answers.jsonl').read_text().splitlines()]
    assert len(rows) == 6*best[0]['n'] and {'id', 'records', 'kind', 'condition', 'said', 'wanted', 'score'} <= set(rows[0])
    assert str(tmp_path/'results.json') in capsys.readouterr().out
    for name in ('results.json', 'answers.jsonl'): (tmp_path/name).unlink()
    with monkeypatch.context() as m, pytest.raises(ValueError, match='no picture'):
        m.setattr(answers, 'figure', lambda r: (_ for _ in ()).throw(ValueError('no picture')))
        main(['x'])
    assert (tmp_path/'answers.jsonl').exists() and 'answers' in json.loads((tmp_path/'results.json').read_text())
    monkeypatch.setattr(answers, 'from_config', lambda c: SOURCE.ecg)
    with pytest.raises(ECGError, match='synth_qa has no talks; type source='): main(['x'])
    monkeypatch.setattr(answers, 'asked', lambda *a: (How(), [], tmp_path, tmp_path/'best', {'model': {'objective': 'masked'}}))
    with pytest.raises(ECGError, match='a model of objective masked, which answers nothing; wanted objective answer. `ecgnb evaluate '): main(['x'])


def test_a_run_from_the_command_line(tmp_path, cache, capsys):
    "A saved model is loaded, asked about the data of its run and of others, and judged by `evaluate` as well."
    m = speaker(tiny(tmp_path))
    run = complete(run_of(to_config(m), SOURCE.config, str(tmp_path/'run'), dict(fs=50., seconds=4.)))
    save(m, tmp_path/'run'/'best', run=run)
    (tmp_path/'run'/'run.json').write_text(json.dumps(run))
    seen = []
    for name, module in dict(answers=answers, evaluate=evaluate).items():
        module.main([str(tmp_path/'run'), 'times=100', 'talks=6', 'most=4', 'conditions=ecg,none', 'device=cpu'])
        seen.append(json.loads((tmp_path/'run'/'results.json').read_text())['answers'])
        (tmp_path/'run'/'results.json').unlink()
    assert seen[0] == seen[1] and {r['condition'] for r in seen[0]['rows']} == {'ecg', 'none', PRIOR} and 'WARNING' not in seen[0]['protocol']
    main([str(tmp_path/'run'), 'times=100', 'fold=1', 'talks=6', 'most=4', 'conditions=ecg', 'source.kinds=axis', 'device=cpu'])
    main([str(tmp_path/'run'), 'times=100', 'fold=1', 'talks=6', 'most=4', 'conditions=ecg', 'device=cpu'])
    assert 'WARNING: the model was trained on' in capsys.readouterr().out


def test_what_it_refuses(store):
    m = Model(lambda *_: 'yes', store.contract)
    with pytest.raises(ECGError, match='Linear answers nothing; wanted a model of objective=answer'): judge(nn.Linear(1, 1), store, SOURCE)
    with pytest.raises(CheckpointError, match='fs: the data have 50'): judge(Model(lambda *_: 'yes', store.contract | dict(fs=100.)), store, SOURCE)
    with pytest.raises(ECGError, match='nothing to ask on ECGs of fold test .*talks are of folds'): judge(m, store, of_fold(SOURCE.talks, 'train'))
    with pytest.raises(ECGError, match="no 'zero'; did you mean 'zeros'"): How(conditions='ecg,zero')
    for bad in ('noise', 'ecg,ecg'):
        with pytest.raises(ECGError, match='wanted ecg and others, each once'): How(conditions=bad)
    for name, value in dict(turns='first', talks=-1, most=0, batch_size=0, times=10, examples=-1).items():
        with pytest.raises(ECGError, match=f'{name}='): How(**{name: value})
    with pytest.raises(ValueError, match="no field 'folds'"): How(folds='1')
    class Short(Model):
        def reply(self, batch, most): return ['yes']
    with pytest.raises(ECGError, match='Short.reply gave'): judge(Short(None, store.contract), store, SOURCE)

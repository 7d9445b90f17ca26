"Language sources: the right recording for every row, no patient on two sides, every published format, an error for all else."
import json
from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path
import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from ecgnb.ecg import ECG
from ecgnb.leads import ECGError, STANDARD
from ecgnb.prepare import prepare
from ecgnb.records import Source, assign, check_split
from ecgnb.registry import from_config, source, to_config
from ecgnb.rows import finder, json_rows, name_of, spread
from ecgnb.settings import data_dir
from ecgnb.sources.conversations import Conversations
from ecgnb.sources.ecg_bench_pulse import EcgBenchPulse
from ecgnb.sources.ecg_qa import EcgQa
from ecgnb.sources.mix import Mix, repeated, shares
from ecgnb.sources.reports import Reports
from ecgnb.talk import PLACE, Talk

ROOT = Path(__file__).resolve().parents[1]
QA, PTB = data_dir('ecg_qa', ROOT), data_dir('ptb_xl', ROOT)
real = pytest.mark.skipif(QA is None or PTB is None, reason='no ECG-QA or no PTB-XL in settings.ini, $ECGNB_DATA or shared/data')
datasets.disable_progress_bars()


class Toy(Source):
    "Recordings of any names, patients and folds; recording i is a ramp of height i."
    def __init__(self, records, patients=None, folds=None, name='toy'):
        n = len(records)
        self.said, self.guard, self.no_patient = name, False, 'error'
        self.table = pd.DataFrame(dict(record=list(records), patient=patients or [f'p{i}' for i in range(n)], fold=folds or [1]*n,
                                       labels=pd.Series([['A']]*n, dtype=object), text=[f'report {r}' for r in records]))
    @property
    def config(self): return {'source': self.said, 'records': self.table['record'].tolist(), 'folds': self.table['fold'].tolist()}
    @cached_property
    def frame(self): return self.table
    def read(self, i): return ECG(np.full((12, 1000), i/100, np.float32) + np.linspace(0, 1, 1000, dtype=np.float32), 100., STANDARD)


class Told(Talk):
    "Talks on given lists of records."
    name = 'told'
    def __init__(self, ecg, about):
        super().__init__(ecg=ecg)
        self.about = about
    @property
    def config(self): return {'source': 'told'}
    def rows(self):
        return [dict(id=f't{k}', records=list(r), turns=[dict(role='user', text=PLACE*len(r) + '?'), dict(role='assistant', text='a')], kind='', answers=['a'])
                for k, r in enumerate(self.about)]


def sides(src):
    "dict side -> the talks of which all recordings are on this side, as a loader of that fold's view has them."
    out = {}
    for side in ('train', 'val', 'test'):
        here = set(src.frame['record'][src.frame['fold'].isin({'train': range(1, 9), 'val': [9], 'test': [10]}[side])])
        out[side] = src.talks[[here.issuperset(r) for r in src.talks['records']]]
    return out


def row(k=0, question='Is it normal?', answer=('yes',), ecg=(1,), kind='single-verify', **more):
    return dict(template_id=1, question_id=k, sample_id=k, question_type=kind, attribute_type='x', question=question,
                answer=list(answer), ecg_id=list(ecg), attribute=None, **more)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(map(json.dumps, rows)) if path.suffix == '.jsonl' else json.dumps(rows))
    return str(path)


# --- names ----------------------------------------------------------------------------------------------------------

@given(st.integers(1, 21837), st.integers(0, 9))
def test_every_spelling_of_a_ptb_xl_id_is_the_padded_name(n, k):
    pad = f'{n:05d}'
    for path in (n, pad, f'{pad}_hr', f'records500/{pad[:2]}000/{pad}_hr', f'data/ptb/preprocessed_500_250/records500_{pad[:2]}000_{pad}_hr_{k}.npy',
                 f'ptb-xl/{pad}_lr-{k}.png', f'/x/ecg_ptbxl_benchmarking/data/ptbxl/records500/{pad[:2]}000/{pad}_hr', f'ptb-xl/{n}-{k}.png'):
        assert name_of(path, 'ptb_xl') == pad, path


@given(st.integers(10000000, 19999999), st.integers(40000000, 49999999), st.integers(0, 9))
def test_every_spelling_of_a_mimic_study_is_its_path(p, s, k):
    path = f'p{str(p)[:4]}/p{p}/s{s}/{s}'
    for said in (f'files/{path}', f'mimic_v4/{path}-{k}.png', f'mimic/{path}-{k}.png', f'mimic-iv/files/{path}', f'/d/files/{path}.hea',
                 f'data/mimic/preprocessed_1250_250/files_{path.replace("/", "_")}_{k}.npy'):
        assert name_of(said, 'mimic') == f'files/{path}', said


def test_names_that_a_rule_does_not_read_are_empty_and_none_is_guessed():
    assert name_of('HR06000.mat', 'ptb_xl') == name_of('a/b.npy', 'mimic') == name_of('JS00001', 'code15') == ''
    assert name_of('p1000/p10000032/s1/2', 'mimic') == ''
    find = finder(['a/x', 'b/x', 'b/y'])
    assert [find(n) for n in ('a/x', 'x', 'y', 'c/y', 'z')] == ['a/x', 'x', 'b/y', 'b/y', 'z']


# --- ECG-QA -----------------------------------------------------------------------------------------------------------

@real
def test_the_real_subset_is_read_row_by_row():
    rows, src = json.loads((QA/'ecgqa_subset.json').read_text()), EcgQa(variant='both')
    assert len(src.talks) == len(rows) == 408 and src.left_out == {}
    want = {f"{r['variant']}/{r['split']}/{r['sample_id']}": r for r in rows}
    patients = dict(zip(src.ecg.frame['record'], src.ecg.frame['patient']))
    for t in src.talks.itertuples():
        r = want.pop(t.id)
        assert t.records == [f'{i:05d}' for i in r['ecg_id']] and t.answers == r['answer'] and t.kind == r['question_type']
        assert t.turns[0]['text'].endswith(r['question']) and t.turns[1]['text'] == '; '.join(r['answer'])
        assert t.turns[0]['text'].count(PLACE) == len(r['ecg_id']) and ('Second ECG: ' + PLACE in t.turns[0]['text']) == (len(r['ecg_id']) == 2)
        assert t.patients == tuple(dict.fromkeys(patients[x] for x in t.records))
    assert not want


@real
def test_no_patient_of_the_real_subset_is_on_two_sides_and_nothing_is_lost():
    src = EcgQa(variant='both')
    parts, seen = sides(src), {}
    for side, talks in parts.items():
        for p in {p for ps in talks['patients'] for p in ps}: assert seen.setdefault(p, side) == side
    cross = sum(len({'train' if f < 9 else f for f in folds}) > 1 for folds in src.talks['folds'])
    assert sum(map(len, parts.values())) + cross == len(src.talks) and cross == 36 and min(map(len, parts.values())) > 0


@real
def test_the_published_layout_gives_what_the_subset_gives(tmp_path):
    rows = json.loads((QA/'ecgqa_subset.json').read_text())
    one, base = EcgQa(variant='both'), source['ptb_xl']()
    for name, paths in (('output', True), ('ecgqa', False)):
        files = defaultdict(list)
        for r in rows:
            bare = {k: v for k, v in r.items() if k not in ('variant', 'split', 'raw')}
            if paths: bare['ecg_path'] = [f'/d/records500/{i//1000*1000:05d}/{i:05d}_hr' for i in r['ecg_id']]
            files[r['variant'], r['split']].append(bare)
        for (v, s), part in files.items():
            half = len(part)//2 or 1
            for k, piece in enumerate((part[:half], part[half:])): write(tmp_path/name/name/'ptbxl'/v/s/f'{k}0000.json', piece)
        got = EcgQa(root=str(tmp_path/name), variant='both', ecg=base).talks.set_index('id').sort_index()
        pd.testing.assert_frame_equal(got, one.talks.set_index('id').sort_index())
        assert len(EcgQa(root=str(tmp_path/name), variant='paraphrased', ecg=base).talks) == 204


@pytest.mark.parametrize('paths', [False, True])
def test_mimic_studies_are_found_by_number_and_by_path(tmp_path, paths):
    names = [f'files/p100{k}/p100{k}0000/s4000000{k}/4000000{k}' for k in range(4)]
    rows = [row(0, ecg=[40000001]), row(1, ecg=[40000002, 40000000], kind='comparison_consecutive-verify'), row(2, ecg=[49999999])]
    if paths: rows = [r | dict(ecg_path=[f'/data/files/p100{i % 10}/p100{i % 10}0000/s{i}/{i}' for i in r['ecg_id']]) for r in rows]
    write(tmp_path/'output/mimic-iv-ecg/template/train/00000.json', rows)
    src = EcgQa(root=str(tmp_path), dataset='mimic-iv-ecg', ecg=Toy(names))
    assert src.talks['records'].tolist() == [[names[1]], [names[2], names[0]]] and src.left_out == {'recording not there': 1}


def test_kinds_and_most_choose_and_most_is_spread(tmp_path):
    rows = [row(k, ecg=[1 + k % 3], kind=('single-verify', 'single-query')[k >= 50]) for k in range(100)]
    root, base = write(tmp_path/'one.json', rows), Toy([f'{i:05d}' for i in range(1, 4)])
    assert EcgQa(root=root, kinds='single-query', ecg=base).talks['kind'].unique().tolist() == ['single-query']
    few = EcgQa(root=root, most=10, ecg=base).talks
    assert few['kind'].value_counts().to_dict() == {'single-verify': 5, 'single-query': 5}


@pytest.mark.parametrize('bad, said', [
    (dict(question=''), "row 1: question: saw ''"), (dict(question=None), 'row 1: question: saw None'), (dict(answer='yes'), "row 1: answer: saw 'yes'; wanted a list"),
    (dict(answer=[]), 'row 1: answer: saw []'), (dict(answer=[1]), 'row 1: answer: saw [1]'), (dict(ecg_id=[1, 2, 3]), 'row 1: ecg_id: saw [1, 2, 3]'),
    (dict(ecg_id=None), 'row 1: ecg_id: saw None'), (dict(question_type=3), 'row 1: question_type: saw 3')])
def test_a_bad_row_of_ecg_qa_is_named(tmp_path, bad, said):
    root = write(tmp_path/'bad.json', [row(), row(1) | bad])
    with pytest.raises(ECGError) as err: EcgQa(root=root, ecg=Toy(['00001'])).talks
    assert 'bad.json' in str(err.value) and said in str(err.value)


@settings(max_examples=30)
@given(st.integers(1, 400))
def test_a_file_that_is_cut_anywhere_is_an_error_never_fewer_rows(n):
    import tempfile
    text = json.dumps([row(k, ecg=[1]) for k in range(3)])
    with tempfile.TemporaryDirectory() as d:
        p = Path(d, 'cut.json')
        p.write_text(text[:-min(n, len(text))])
        with pytest.raises(ECGError, match='cut.json'): EcgQa(root=str(p), ecg=Toy(['00001'])).talks


# --- no leak ------------------------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=40), st.integers(0, 999), st.data())
def test_talks_are_a_partition_by_patient(patients, seed, data):
    "A talk of one or two ECGs is on one side or on none, and no patient is heard of on two sides."
    tenths = assign(patients, (.1,)*10, seed)
    base = Toy([f'r{i}' for i in range(len(patients))], [f'p{p}' for p in patients], [1 + int(t) for t in tenths])
    about = data.draw(st.lists(st.lists(st.sampled_from(base.frame['record'].tolist()), min_size=1, max_size=2, unique=True), min_size=1, max_size=30))
    src = Told(base, about)
    parts, seen = sides(src), {}
    for side, talks in parts.items():
        for p in {p for ps in talks['patients'] for p in ps}: assert seen.setdefault(p, side) == side
    ids = [i for talks in parts.values() for i in talks['id']]
    assert len(set(ids)) == len(ids)
    for t in src.talks[~src.talks['id'].isin(ids)].itertuples(): assert len(t.records) == 2 and len(t.folds) == 2


def test_a_loader_of_a_fold_hears_of_its_patients_alone(tmp_path, cache):
    base = source['sample'](n=30, seconds=4, fs=100, records_per_patient=2.)
    names = base.frame['record'].tolist()
    src = Told(base, [[a, b] for a, b in zip(names, names[1:])] + [[a] for a in names])
    store = prepare(src, tmp_path/'s', fs=100, seconds=4, progress=False)
    heard = {}
    for side in ('train', 'val', 'test'):
        loader = src.loader(store.fold(side), batch_size=4, drop_last=False)
        for talk in [t for k in range(len(loader)) for t in loader[k]['talks']]:
            for r in talk['records']: assert heard.setdefault(src.frame.set_index('record')['patient'][r], side) == side
    assert set(heard.values()) == {'train', 'val', 'test'}


# --- conversations --------------------------------------------------------------------------------------------------------

FORMATS = {'from': [{'from': 'human', 'value': '<image>\nRhythm?'}, {'from': 'gpt', 'value': 'sinus'}], 'role': [{'role': 'user', 'content': 'Rhythm?'}, {'role': 'assistant', 'content': 'sinus'}],
           'triple': ['single-query', 'Rhythm?', 'sinus'], 'set': ['single-query', 'Rhythm?', ['sinus', 'slow']], 'report': 'sinus; normal',
           'long': [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Rhythm?'}, {'role': 'assistant', 'content': 'sinus'}, {'role': 'user', 'content': 'Rate?'}, {'role': 'assistant', 'content': '60'}]}
ANSWERS = dict(zip(FORMATS, (['sinus'], ['sinus'], ['sinus'], ['sinus', 'slow'], ['sinus; normal'], ['60'])))
RECORDS = [f'r{k}' for k in range(8)]


def hub(folder='x'):
    return [dict(ecg_path=f'{folder}/r{k}_0.npy', text=v if isinstance(v, str) else json.dumps(v), name='n') for k, v in enumerate(FORMATS.values())]


@pytest.mark.parametrize('kind', ['json', 'jsonl', 'parquet', 'folder', 'disk'])
def test_every_turn_format_out_of_every_container(tmp_path, kind):
    table = datasets.Dataset.from_list(hub())
    path, split = str(tmp_path/f'rows.{kind}'), ''
    if kind in ('json', 'jsonl'): write(Path(path), hub())
    if kind == 'parquet': table.to_parquet(path)
    if kind == 'folder':
        for s in ('fold1_train', 'fold1_test'): write(tmp_path/f'rows.folder/{s}.jsonl', hub() if s == 'fold1_train' else hub()[:1])
        (tmp_path/'rows.folder/README.md').write_text('---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: fold1_train, path: fold1_train.jsonl}\n  - {split: fold1_test, path: fold1_test.jsonl}\n---\n')
        split = 'fold1_train'
    if kind == 'disk': datasets.DatasetDict(a=table, fold1_train=table).save_to_disk(path); split = 'fold1_train'
    src = Conversations(path=path, split=split, name_rule='segment', ecg=Toy(RECORDS))
    assert src.talks['records'].tolist() == [[f'r{k}'] for k in range(len(FORMATS))]
    assert src.talks['answers'].tolist() == list(ANSWERS.values())
    for turns in src.talks['turns']:
        assert {t['role'] for t in turns} <= {'system', 'user', 'assistant'} and sum(t['text'].count(PLACE) for t in turns) == 1
        assert PLACE in next(t['text'] for t in turns if t['role'] == 'user') and '<image>' not in str(turns)


def test_turns_that_are_no_json_text_are_read_as_they_are(tmp_path):
    path = write(tmp_path/'a.json', [dict(record=f'r{k}', conversations=v) for k, v in enumerate(FORMATS.values())])
    assert Conversations(path=path, ecg=Toy(RECORDS)).talks['answers'].tolist() == list(ANSWERS.values())


def test_segments_and_synthetic_rows_are_counted_not_repeated(tmp_path):
    rows = hub()[:2] + [r | dict(ecg_path=r['ecg_path'].replace('_0.', f'_{k}.')) for r in hub()[:2] for k in (1, 2)]
    rows += [dict(ecg_path=w, text='flat', name='c') for w in ('noise', 'flatline')] + [dict(ecg_path='x/zz_0.npy', text='t', name='')]
    src = Conversations(path=write(tmp_path/'a.jsonl', rows), name_rule='segment', ecg=Toy(RECORDS))
    assert len(src.talks) == 2 and src.left_out == {'same words, same recording': 4, 'synthetic, no recording': 2, 'recording not there': 1}


def test_streaming_reads_only_the_first_rows_of_the_hub(monkeypatch):
    drawn, asked = [], []
    def endless():
        for k in range(10**6):
            drawn.append(k)
            yield dict(ecg_path=f'x/r{k % 8}.npy', text=f'report {k}', name='')
    def load(path, **how):
        asked.append((path, how))
        return datasets.IterableDataset.from_generator(endless)
    monkeypatch.setattr(datasets, 'load_dataset', load)
    src = Conversations(path='owner/name', split='fold1_train', streaming=True, most=20, ecg=Toy(RECORDS))
    assert len(src.talks) == 20 and len(drawn) <= 21
    assert asked == [('owner/name', dict(name=None, split='fold1_train', streaming=True))]


def test_streaming_does_not_open_files_behind_the_first_rows(tmp_path):
    datasets.Dataset.from_list(hub()).to_parquet(tmp_path/'d/train-0.parquet')
    (tmp_path/'d/train-1.parquet').write_bytes(b'PAR1 damaged')
    how = dict(path=str(tmp_path/'d'), name_rule='segment', ecg=Toy(RECORDS))
    assert len(Conversations(streaming=True, most=4, **how).talks) == 4
    with pytest.raises(ECGError, match='rows that `datasets` can read'): Conversations(**how).talks


def test_a_hub_that_cannot_be_reached_says_what_to_download():
    with pytest.raises(ECGError) as err: Conversations(path='nobody-here/nothing-there', ecg=Toy(RECORDS)).talks       # conftest: HF_HUB_OFFLINE=1
    assert 'hf download nobody-here/nothing-there --repo-type dataset --local-dir nothing-there' in str(err.value) and "path='nothing-there'" in str(err.value)


@pytest.mark.parametrize('text, said', [
    ('{"ecg_path": "r0", "te', 'line 1: JSON'), ('[1, 2]', 'line 1: row: saw [1, 2]; wanted an object'), ('{"ecg_path": "r0"}', 'wanted text or conversations or messages'),
    ('{"text": "a"}', 'wanted ecg_path or record'), ('{"ecg_path": 3, "text": "a"}', 'row 0: ECG: saw 3'), ('{"ecg_path": "r0", "text": null}', 'row 0: conversation: saw None'),
    ('{"ecg_path": "r0", "text": [{"from": "x", "value": "a"}]}', "row 0: a turn of 'x'"), ('{"ecg_path": "r0", "text": ["q", "Rate?", 60]}', "row 0: the answer to 'Rate?' is 60; wanted text"),
    ('{"ecg_path": "r0", "text": [{"from": "human", "value": "a"}]}', 'no assistant turn'), ('{"ecg_path": "r0", "text": [{"from": "human", "value": "<ecg><ecg>"}, {"from": "gpt", "value": "a"}]}', '2 places <ecg> for 1 ECGs'),
    ('{"ecg_path": "no", "text": "a"}', 'none of its 1 conversations is about a recording')])
def test_a_bad_row_of_a_conversation_is_named(tmp_path, text, said):
    (tmp_path/'bad.jsonl').write_text(text)
    with pytest.raises(ECGError) as err: Conversations(path=str(tmp_path/'bad.jsonl'), ecg=Toy(RECORDS)).talks
    assert said in str(err.value)


# --- published files --------------------------------------------------------------------------------------------------------

TALK = [{'from': 'human', 'value': '<image>\nRhythm?'}, {'from': 'gpt', 'value': 'sinus'}]
MIMIC = 'p1000/p10000032/s40689238/40689238'
FILES = [('pretrain_mimic', 'pretrain_mimic.json', 'ecg', {}, [f'files/{MIMIC}', MIMIC], {}), ('ecg_instruct_45k', 'ecg_instruct_45k.json', 'ecg', {}, [f'files/{MIMIC}'], {}),
         ('ecg_instruct_pulse', 'ECGInstruct.json', 'image', {}, [f'mimic_v4/{MIMIC}-0.png', 'ptb-xl/00066_hr-0.png', 'code15_v4/14-0.png'], {'about ptb_xl': 1, 'about code15': 1}),
         ('ecg_instruct_pulse', 'ECGInstruct.json', 'image', dict(base='ptb_xl'), ['ptb-xl/00066_hr-0.png', f'mimic_v4/{MIMIC}-0.png'], {'about mimic': 1}),
         ('ecg_instruct_pulse', 'ECGInstruct.json', 'image', dict(base='code15'), ['code15_v4/14-0.png', 'ptb-xl/00014_hr-0.png'], {'about ptb_xl': 1}),
         ('ecg_grounding', 'ECG_Grounding_30k.json', 'ecg', {}, [f'mimic-iv/files/{MIMIC}', 'code15/14'], {'about code15': 1}),
         ('ecg_grounding', 'ECG_Grounding_30k.json', 'ecg', dict(base='ptb_xl'), ['ecg_ptbxl_benchmarking/data/ptbxl/records500/00000/00066_hr'], {}),
         ('ecg_grounding', 'ECG_Grounding_30k.json', 'ecg', dict(base='code15'), ['code15/14'], {}), ('ecg_grounding', 'test.json', 'ecg', dict(base='cinc2021', file='test.json'), ['cpsc2018/g1/A0001'], {})]


@pytest.mark.parametrize('name, file, column, how, paths, left', FILES, ids=[f'{f[0]}-{f[3].get("base", "mimic")}' for f in FILES])
def test_published_files_name_the_right_recording(tmp_path, name, file, column, how, paths, left):
    base = Toy([f'files/{MIMIC}', '00066', '14', '00014', 'A0001'], ['a', 'b', 'c', 'd', 'e'])
    write(tmp_path/file, [{'id': f'{k}', column: p, 'conversations': TALK} for k, p in enumerate(paths)])
    src = source[name](root=str(tmp_path), ecg=base, **how)
    want = {'mimic': f'files/{MIMIC}', 'ptb_xl': '00066', 'code15': '14', 'cinc2021': 'A0001'}[how.get('base', 'mimic')]
    assert src.talks['records'].tolist() == [[want]] and src.talks['answers'][0] == ['sinus'] and src.talks['turns'][0][0]['text'] == f'{PLACE}\nRhythm?'
    assert {k: n for k, n in src.left_out.items() if k != 'same words, same recording'} == left
    with pytest.raises(FileNotFoundError, match='get it from: https://'): source[name](root=str(tmp_path/'none'), ecg=base, **how).talks
    write(tmp_path/file, [{'id': '0', column: None, 'conversations': TALK}])
    with pytest.raises(ECGError, match=f'{file}, row 0: ECG: saw None'): source[name](root=str(tmp_path), ecg=base, **how).talks


def test_ecg_bench_keeps_lists_and_leaves_images_alone(tmp_path):
    rows = [dict(id='0', image_path='ptb-xl/00066_hr-0.png', image=b'never read', conversations=[dict(value=['Rhythm?'], **{'from': 'human'}), dict(value=['yes', 'no'], **{'from': 'gpt'})])]
    (tmp_path/'ecgqa-test').mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path/'ecgqa-test/test-0.parquet')
    (tmp_path/'README.md').write_text('---\nconfigs:\n- config_name: ecgqa-test\n  data_files:\n  - {split: test, path: ecgqa-test/test-*}\n---\n')
    src = EcgBenchPulse(path=str(tmp_path), subset='ecgqa-test', ecg=Toy(['00066']))
    assert src.talks['answers'].tolist() == [['yes', 'no']] and src.talks['kind'][0] == 'ecgqa-test' and set(next(iter(src.table()))) == {'id', 'image_path', 'conversations'}


def test_mimic_recordings_that_are_not_here_say_where_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv('ECGNB_DATA', str(tmp_path))
    monkeypatch.setenv('ECGNB_SETTINGS', str(tmp_path/'settings.ini'))
    (tmp_path/'settings.ini').write_text('[data]\n')
    for name, how in (('ecg_qa', dict(dataset='mimic-iv-ecg')), ('pretrain_mimic', {}), ('ecg_instruct_45k', {}), ('ecg_grounding', {}), ('conversations', dict(name_rule='mimic'))):
        with pytest.raises(FileNotFoundError, match='https://physionet.org/content/mimic-iv-ecg/') as err: source[name](**how)
        assert 'mimic_iv = /path/to/mimic_iv' in str(err.value) and name in str(err.value)
    (tmp_path/'mimic_iv').mkdir()
    assert to_config(source['pretrain_mimic']())['ecg']['source'] == 'wfdb_folder'


# --- reports, mix ------------------------------------------------------------------------------------------------------------

def test_reports_are_answers_and_empty_ones_are_left_out():
    base = Toy(RECORDS)
    base.table.loc[[1, 3], 'text'] = ['', '  ']
    src = Reports(ecg=base)
    assert src.left_out == {'empty report': 2} and src.talks['answers'].tolist() == [[f'report r{k}'] for k in (0, 2, 4, 5, 6, 7)] and len(src) == 6
    assert (src.read(1).signal == base.read(2).signal).all()


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(.01, 100)), min_size=1, max_size=4))
def test_shares_add_up_and_follow_the_weights(parts):
    counts, weights = zip(*parts)
    got = shares(counts, weights)
    assert sum(got) == sum(counts) and all(abs(n - sum(counts)*w/sum(weights)) < 1 for n, w in zip(got, weights))


@given(st.integers(1, 30), st.integers(0, 200))
def test_repeats_are_even_and_ids_stay_different(have, n):
    got = [t['id'] for t in repeated([dict(id=f'{k}') for k in range(have)], n)]
    count = Counter(i.partition('#')[0] for i in got)
    assert len(got) == n == len(set(got)) and max(count.values(), default=0) - min((count[f'{k}'] for k in range(have)), default=0) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 10), st.booleans()), min_size=2, max_size=24))
def test_a_patient_in_two_folds_is_found_over_all_parts(rows):
    "(person, fold, which part): the mix is made if and only if every person has one fold, and then no side shares a person."
    def base(part):
        mine = [(f'r{i}', f'p{p}', f) for i, (p, f, which) in enumerate(rows) if which is part]
        return Toy(*map(list, zip(*mine)), name='toy') if mine else None
    parts = [b for b in (base(False), base(True)) if b]
    mix = Mix(**dict(zip(('first', 'second'), [Told(b, [[r] for r in b.frame['record']]) for b in parts])))
    cut = len(parts) > 1 and any(len({f for q, f, _ in rows if q == p}) > 1 for p, _, _ in rows)
    if cut:
        with pytest.raises(ECGError, match='a patient must have one fold in all parts'): mix.talks
        return
    assert sorted(len(r) for r in mix.talks['records']) == [1]*len(rows) and mix.frame['record'].is_unique
    if len(parts) > 1: check_split(**{f'{f}': mix.frame[mix.frame['fold'] == f] for f in set(mix.frame['fold'])})


def test_a_mix_goes_through_a_store_with_the_right_recording_for_every_talk(tmp_path, cache):
    a, b = source['sample'](n=12, seconds=4., fs=100.), source['sample'](n=9, seconds=4., fs=100., seed=3)
    pairs = [row(k, ecg=[f's{k:05d}', f's{k + 1:05d}'], kind='comparison_irrelevant-query') for k in range(11)]
    mix = Mix(first=Reports(ecg=a), second=Reports(ecg=b), third=EcgQa(root=write(tmp_path/'q.json', pairs), ecg=a), weights='1,2,1')
    store = prepare(mix, tmp_path/'m', fs=100, seconds=4, progress=False)
    loader = mix.loader(store, batch_size=3, shuffle=False, drop_last=False)
    known = {('sample' + '2'*k + '/' + r): s.frame['text'][i] for k, s in enumerate((a, b)) for i, r in enumerate(s.frame['record'])}
    signals = {('sample' + '2'*k + '/' + r): s.read(i).signal for k, s in enumerate((a, b)) for i, r in enumerate(s.frame['record'])}
    ids = []
    for batch in (loader[k] for k in range(len(loader))):
        for t in batch['talks']: assert t['kind'] != 'report' or known[t['records'][0]] == t['answers'][0]
        assert batch['record'] == [r for t in batch['talks'] for r in t['records']]
        for r, x, scale in zip(batch['record'], batch['signal'], batch['scale']): assert np.allclose(x*scale[:, None], signals[r], atol=2e-3)
        ids += [t['id'] for t in batch['talks']]
    assert sorted(ids) == sorted(mix.talks['id']) and {2, 1} == {len(r) for r in mix.talks['records']}
    assert store.contract['source_hash'] == from_config(json.loads(json.dumps(mix.config))).fingerprint()


def test_weights_act_on_the_training_folds_alone():
    base = source['sample'](n=80)
    f = base.frame
    held = f['record'][f['fold'] > 8].tolist()
    one, two = Reports(ecg=base), Told(base, [[r] for r in f['record'][:30]])
    mix = Mix(first=one, second=two, weights='1,3')
    learn = mix.talks['folds'].map(max) < 9
    part = mix.talks['id'].str.partition('/')[0]
    n = learn.sum()
    assert (part[learn] == 'told').sum() == round(.75*n) and n == (f['fold'] < 9).sum() + (f['fold'][:30] < 9).sum()
    assert sorted(r[0] for r in mix.talks['records'][~learn]) == sorted(held + [r for r in held if r in set(f['record'][:30])])
    assert mix.talks['id'].is_unique and mix.talks['id'].tolist() == Mix(first=one, second=two, weights='1,3').talks['id'].tolist()


def test_configurations_nest_and_give_the_same_source(tmp_path):
    base = source['sample'](n=4)
    rows = write(tmp_path/'a.jsonl', [dict(ecg_path=f's0000{k}', text='normal') for k in range(4)])
    for src in (Reports(ecg=base), Conversations(path=rows, ecg=base), Mix(first=Reports(ecg=base), second=Conversations(path=rows, ecg=base), weights='2,1')):
        again = from_config(json.loads(json.dumps(src.config)))
        assert again.config == src.config and again.fingerprint() == src.fingerprint() and again.talks['id'].tolist() == src.talks['id'].tolist()


@settings(max_examples=50)
@given(st.integers(0, 300), st.integers(0, 300))
def test_most_is_spread_without_repeats(n, most):
    got = spread(list(range(n)), most)
    assert got == sorted(set(got)) and len(got) == (min(n, most) if most else n)


def test_json_rows_are_read_one_by_one(tmp_path):
    (tmp_path/'a.jsonl').write_text('{"a": 1}\n\n{"a": 2}\nbroken')
    rows = json_rows(tmp_path/'a.jsonl')
    assert [next(rows), next(rows)] == [{'a': 1}, {'a': 2}]
    with pytest.raises(ECGError, match='a.jsonl, line 4'): next(rows)

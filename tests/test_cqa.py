"""Retrieval and description: order, scores, the patient asked about never an answer, citations checked, runs that go on, a source over a source."""
import importlib.util
import json
import re
import numpy as np
import pytest
from ecgnb import source
from ecgnb.cqa import Base, base_of, checked, describe, describe_source, done, main
from ecgnb.ecg import ECG
from ecgnb.leads import STANDARD, ECGError
from ecgnb.measure import measure, statements
from ecgnb.registry import from_config, to_config
from ecgnb.retrieve import LEAST, Entry, Index, Knowledge, Neighbours
from ecgnb.synth import synth

KNOWN = Knowledge.builtin()

@pytest.fixture(scope='module')
def base(): return Base(KNOWN, 'tfidf')

@pytest.fixture(scope='module')
def cohort(): return source['sample'](n=40, records_per_patient=2.5, seconds=5., fs=250.)


class Words:
    "Vectors that say which of `words` a text has: a ruler for the order of results."
    def __init__(self, *words): self.words = words
    def __call__(self, texts):
        v = np.array([[w in t for w in self.words] for t in texts], np.float32)
        return v/np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9)


# --- the knowledge base ------------------------------------------------------------------------------------------------------

def test_the_built_in_base_covers_the_codes(data):
    import csv
    with open(data/'ptb_xl'/'scp_statements.csv') as f: scp = {r[0] for r in csv.reader(f)} - {''}
    assert 80 <= len(KNOWN) <= 120 and scp <= {c for e in KNOWN.entries for c in e.codes}
    for e in KNOWN.entries:
        assert e.source == 'ecgnb' and 60 < len(e.text) < 500 and e.text.endswith('.') and 1 <= e.text.count('. ') + 1 <= 5
        assert not any(w in e.text.lower() for w in ('treat', 'therap', 'should be given', 'dose', 'administer')), e.id


def test_every_statement_name_is_explained(base):
    said = {s.name for n, c in enumerate(['NORM', 'AFIB', 'STACH', '1AVB', 'CLBBB', 'CRBBB', 'IRBBB', 'LAFB', 'LVH', 'LVOLT', 'PVC', 'IMI', 'ISC_', 'ISCAL', 'LNGQT']) for s in statements(measure(synth(n, code=c)))}
    assert len(said) > 12 and not [n for n in said if not base.about(n)]


def test_own_texts(tmp_path):
    (tmp_path/'sub').mkdir()
    (tmp_path/'a.md').write_text('# Waves\n\nP comes first.\n\nThen QRS.\n# Other\nT is last.\n'); (tmp_path/'sub'/'b.txt').write_text('Alone.'); (tmp_path/'c.pdf').write_bytes(b'\xff')
    k = Knowledge.read(tmp_path)
    assert [(e.id, e.title, e.text) for e in k.entries] == [('a.md#1', 'Waves', 'P comes first.'), ('a.md#2', 'Waves', 'Then QRS. # Other T is last.'), ('sub/b.txt#1', 'b', 'Alone.')]


@pytest.mark.parametrize('text,said', [('{"id": "a", "text": "x"}\nnot json\n', 'k.jsonl, line 2: not JSON'), ('[1]\n', 'line 1: wanted an object'), ('{"id": "a"}\n', 'line 1: text is None'), ('', 'no passage in it'),
                                       ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n', 'more than one passage has the id a'), ('{"id": "a", "text": "x", "codes": "NORM"}', "codes is 'NORM'")])
def test_a_bad_base_names_file_and_line(tmp_path, text, said):
    (tmp_path/'k.jsonl').write_text(text)
    with pytest.raises(ECGError, match=said): Knowledge.read(tmp_path/'k.jsonl')


def test_bases_that_are_not_there(tmp_path):
    with pytest.raises(ECGError, match='no .txt or .md in this folder'): Knowledge.read(tmp_path)
    with pytest.raises(ECGError, match='no such file'): Knowledge.read(tmp_path/'none.jsonl')
    with pytest.raises(ECGError, match='wanted a folder'): Knowledge.read('book.pdf')
    (tmp_path/'k.jsonl').write_bytes(b'\xff\xfe')
    with pytest.raises(ECGError, match='not UTF-8'): Knowledge.read(tmp_path/'k.jsonl')


# --- retrieval ---------------------------------------------------------------------------------------------------------------

def test_results_come_in_the_order_of_the_questions():
    words = [f'word{i:02d}' for i in range(30)]
    index = Index([f'about {w}' for w in words], words, Words(*words))
    asked = [words[i] for i in np.random.default_rng(0).permutation(30)]
    assert [h.id for h, in index.search(asked, 1)] == asked and all(h.score == pytest.approx(1) for h, in index.search(asked, 1))
    assert index.search([], 3) == [] and [len(r) for r in index.search(asked, 99)] == [30]*30


def test_scores_fall_and_what_is_left_out_stays_out(base):
    index, asked = base.index, [e.title for e in KNOWN.entries[:20]]
    plain = index.search(asked, 5, least=-1)
    assert all([h.score for h in r] == sorted((h.score for h in r), reverse=True) for r in plain)
    for q, r in zip(asked, plain):
        got, = index.search([q], 3, {r[0].id, r[2].id}, least=-1)
        assert not {h.id for h in got} & {r[0].id, r[2].id} and [h.score for h in got] == pytest.approx([r[1].score, r[3].score, r[4].score], abs=1e-6)
    each = index.search(asked, 1, [{r[0].id} for r in plain], least=-1)
    assert [r[0].score for r in each] == pytest.approx([r[1].score for r in plain], abs=1e-6) and all(a[0].id != b[0].id for a, b in zip(each, plain))


def test_faiss_and_numpy_agree(base):
    if importlib.util.find_spec('faiss') is None: pytest.skip('faiss is not installed')
    one, two = (Index(KNOWN.texts, KNOWN.ids, 'tfidf') for _ in range(2))
    two.__dict__['engine'] = None
    asked = [e.title for e in KNOWN.entries]
    assert one.engine is not None
    for a, b in zip(one.search(asked, 4, least=-1), two.search(asked, 4, least=-1)):
        np.testing.assert_allclose([h.score for h in a], [h.score for h in b], atol=1e-5)
        assert a[0].id == b[0].id


def test_nothing_fits(base): assert base.index.search(['The train to Vienna leaves at nine.', 'zzz'], 3) == [[], []] and LEAST['tfidf'] > 0


def test_bad_questions(base):
    for bad, said in (((), 'no text to search'), ((['a', ' '],), "text '1' is empty"), ((['a'], ['x', 'y']), '2 ids for 1 texts'), ((['a', 'b'], ['x', 'x']), '1 ids stand more')):
        with pytest.raises(ECGError, match=said): Index(*(bad or ([],)))
    with pytest.raises(ECGError, match='wanted a list of questions'): base.index.search('text')
    with pytest.raises(ECGError, match='k=0'): base.index.search(['a'], 0)
    with pytest.raises(ECGError, match='1 sets of ids to leave out for 2'): base.index.search(['a', 'b'], 1, [set()])


def test_an_index_on_disk(tmp_path):
    index = Index(KNOWN.texts, KNOWN.ids, 'tfidf')
    index.save(tmp_path/'i')
    again = Index.read(tmp_path/'i')
    assert again.search(['long QT'], 3) == index.search(['long QT'], 3) and {p.name for p in (tmp_path/'i').iterdir()} == {'index.json', 'texts.jsonl', 'vectors.npy'}
    v = np.load(tmp_path/'i'/'vectors.npy'); np.save(tmp_path/'i'/'vectors.npy', v[::-1])
    with pytest.raises(ECGError, match='not those that were indexed'): Index.read(tmp_path/'i')
    np.save(tmp_path/'i'/'vectors.npy', np.array([{}], object), allow_pickle=True)
    with pytest.raises(ECGError, match='no index that can be read'): Index.read(tmp_path/'i')
    with pytest.raises(ECGError, match='no index'): Index.read(tmp_path/'none')
    with pytest.raises(ECGError, match='function of yours'): Index(['a'], embed=Words('a')).save(tmp_path/'j')


def test_the_own_patient_is_never_retrieved(cohort):
    n, f = Neighbours(cohort, 'tfidf'), cohort.frame
    for k in (1, 5, 100):
        for row, p in zip(n.near(f['record'].tolist(), k), f['patient']): assert p not in {n.of[h.id] for h in row}
    leak = [any(n.of[h.id] == p for h in r) for r, p in zip(n.index.search(f['text'].tolist(), 5), f['patient'])]
    assert np.mean(leak) > .9                                             # so the rule has work to do
    for bad in ('', None, ' '):
        with pytest.raises(ECGError, match='whose reports to leave out'): n.search(['sinus rhythm'], [bad])
    with pytest.raises(ECGError, match='1 patients for 2 questions'): n.search(['a', 'b'], ['p'])
    with pytest.raises(ECGError, match='no report of x'): n.near(['x'])


# --- the description ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('code', ['NORM', 'AFIB', 'LVH', 'CLBBB'])
def test_a_template_says_what_was_measured_and_cites_what_there_is(base, code):
    e = synth(3, code=code)
    d = describe(e, base)
    assert d.text == describe(e, base).text and not d.flags
    marks = {int(n) for n in re.findall(r'\[(\d+)\]', d.text)}
    assert marks == set(range(1, len(d.sources) + 1)) and all(s.text.rstrip('.') in d.text for s in d.statements)
    assert f'rate {d.measured.rate:.0f} beats a minute' in d.text and json.dumps(d.row(), allow_nan=False)
    for s, found in zip(d.statements, base.passages(d.statements)):      # each passage is on its own statement, not on its neighbour
        assert all(s.name in KNOWN[i].codes for i, *_ in found), s


def test_unreadable_is_said_and_nothing_else(base):
    for x in (np.zeros((12, 5000)), np.random.default_rng(0).normal(0, .2, (12, 5000))):
        d = describe(ECG(x, 500, STANDARD), base)
        assert d.text == 'The ECG cannot be read: no beat repeats itself.' and d.sources == [] and np.isnan(d.measured.rate)


def test_known_codes_are_explained(base):
    d = describe(synth(1), base, codes=['AMI', 'XYZ'])
    assert 'Known: Anterior myocardial infarction' in d.text and 'ami' in [s[0] for s in d.sources] and 'Known: XYZ.' in d.text


def test_a_base_without_an_answer_and_an_empty_one():
    far = Knowledge([Entry('pasta', 'Pasta', 'Bring the water to a boil and add salt.')])
    d = describe(synth(1), Base(far, 'tfidf'))
    assert d.sources == [] and 'The knowledge base holds nothing that fits.' in d.text
    with pytest.raises(ECGError, match='no passage in it'): Knowledge([])
    with pytest.raises(ECGError, match='k=0'): describe(synth(1), far, k=0)


def test_what_a_language_model_writes_is_checked(base):
    e, seen = synth(3, code='1AVB'), []
    def llm(text): seen.append(text); return said
    m = measure(e)
    said = f'Sinus rhythm at {m.rate:.0f} beats a minute with a PR interval of {m.pr:.0f} ms [1].'
    assert describe(e, base, llm=llm).flags == []
    assert 'PR' in seen[0] and '[1] ' in seen[0] and f'{m.pr:.0f} ms' in seen[0]
    said = 'Atrial fibrillation, rate 333, as [1] and [77] say.'
    flags = describe(e, base, llm=llm).flags
    assert flags[0].startswith('[77] is no source') and 'the number 333 was not measured' in flags and 'AFIB is named, but no statement says so' in flags
    said = 'Sinus rhythm.'
    assert describe(e, base, llm=llm).flags == ['no source is cited']
    said = '  '
    with pytest.raises(ECGError, match='wrote nothing'): describe(e, base, llm=llm)


def test_examples_are_of_other_patients(base, cohort):
    near, seen = Neighbours(cohort, lambda texts: np.ones((len(texts), 1), np.float32)), []
    e = cohort[0]
    describe(e, base, llm=lambda t: seen.append(t) or 'Sinus rhythm [1].', examples=near)
    listed = seen[0].split('Reports of other patients')[1]
    assert listed.count('\n- ') == 3
    others = set(cohort.frame['text'][cohort.frame['patient'] != e.meta['patient']].str.strip())
    assert all(t in others for t in listed.split('\n- ')[1:])
    with pytest.raises(ECGError, match='whose reports'): describe(e.but(meta={}), base, llm=lambda t: 'x', examples=near)


# --- files, the command, the source --------------------------------------------------------------------------------------------

def test_a_run_that_is_stopped_goes_on(tmp_path, base, cohort):
    few = cohort.select(range(6))
    class Stop(Exception): pass
    def stop(i, n):
        if i == 3: raise Stop
    assert describe_source(few, tmp_path/'whole.jsonl', base) == 6
    with pytest.raises(Stop): describe_source(few, tmp_path/'d.jsonl', base, say=stop)
    part = tmp_path/'d.jsonl.part'
    assert part.is_file() and not (tmp_path/'d.jsonl').exists() and len(done(part, json.loads(part.read_text().splitlines()[0])['made'])) == 3
    with open(part, 'ab') as f: f.write('{"record": "s0000\xe4'.encode()[:-1])       # killed within a character
    assert describe_source(few, tmp_path/'d.jsonl', base) == 3
    assert (tmp_path/'d.jsonl').read_bytes() == (tmp_path/'whole.jsonl').read_bytes() and not part.exists()
    assert describe_source(few, tmp_path/'d.jsonl', base) == 0
    with pytest.raises(ECGError, match='give another out='): describe_source(few, tmp_path/'d.jsonl', base, k=1)
    with pytest.raises(ECGError, match='ends in .jsonl'): describe_source(few, tmp_path/'d.txt', base)


def test_the_command(tmp_path, capsys):
    main(['sample', 'source.n=3', f'out={tmp_path/"a.jsonl"}', 'embed=tfidf', 'k=1', 'n=2'])
    assert '2 described' in capsys.readouterr().out and len((tmp_path/'a.jsonl').read_text().splitlines()) == 2
    main(['sample', 'source.n=3', 'record=s00001', 'embed=tfidf'])
    assert 'Measured: rate' in capsys.readouterr().out
    main(['-h']); assert 'record=' in capsys.readouterr().out
    for bad, said in ((['sample'], 'say record=NAME'), (['sample', 'record=x', 'source.n=2', 'embed=tfidf'], "no record 'x'"), (['sample', 'k=0', 'record=x'], 'k=0'), (['smaple', 'record=x'], 'did you mean')):
        with pytest.raises(ValueError, match=said): main(bad)


@pytest.fixture(scope='module')
def described(tmp_path_factory, base, cohort):
    file = tmp_path_factory.mktemp('d')/'d.jsonl'
    describe_source(cohort, file, base, k=1, n=30)
    return source['described'](ecg=cohort, file=str(file), unreadable=True)


def test_a_source_over_a_source(described, cohort):
    assert len(described) == 30 and described.left_out == {'no description': 10} and described.classes == cohort.classes
    assert described.frame['patient'].tolist() == cohort.frame['patient'].tolist()[:30] and described.frame.index.tolist() == list(range(30))
    for i in (0, 29): assert described[i] == cohort[i] and described[i].meta['report'] == described.frame['text'].iloc[i].strip() != cohort[i].meta['report']
    config = json.loads(json.dumps(to_config(described)))
    again = from_config(config)
    assert to_config(again) == config and again.fingerprint() == described.fingerprint() != cohort.fingerprint()
    assert len(described.fold('train')) and described.label_matrix().shape == (30, 5)


def test_a_store_of_descriptions(described, tmp_path):
    from ecgnb.loader import loader
    from ecgnb.prepare import prepare
    store = prepare(described, tmp_path/'s', leads='I,II,V1', fs=100, seconds=5, progress=False)
    b = next(iter(loader(store, 4, shuffle=False)))
    assert b['text'] == described.frame['text'].tolist()[:4] and all('Measured: ' in t or 'cannot be read' in t for t in b['text'])


def test_sources_refuse_what_does_not_fit(tmp_path, described, cohort):
    with pytest.raises(ECGError, match='wanted a source of recordings'): source['described'](ecg=3)
    with pytest.raises(ECGError, match='source of conversations'): source['described'](ecg=source['reports'](ecg=cohort))
    with pytest.raises(ECGError, match='k=0'): source['described'](ecg=cohort, k=0)
    with pytest.raises(ECGError, match='leave one out'): source['described'](ecg=cohort, file='a', knowledge='b')
    rows = [json.loads(t) for t in open(described.file)]
    def of(*rows): (tmp_path/'x.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows)); return source['described'](ecg=cohort, file=str(tmp_path/'x.jsonl')).frame
    with pytest.raises(ECGError, match='of patient zz'): of(rows[0] | dict(patient='zz'))
    with pytest.raises(ECGError, match='second description'): of(rows[0], rows[0])
    with pytest.raises(ECGError, match='line 2: wanted record and text'): of(rows[0], dict(record='a'))
    with pytest.raises(ECGError, match='none of its 40 recordings'): of(dict(record='other', text='x'))


def test_unreadable_recordings_are_left_out_and_counted(base, cohort, tmp_path):
    (tmp_path/'u.jsonl').write_text(''.join(json.dumps(dict(record=r, text='a', statements=[['unreadable' if i == 1 else 'SR', '', '']])) + '\n' for i, r in enumerate(cohort.frame['record'])))
    given = dict(ecg=cohort, file=str(tmp_path/'u.jsonl'))
    assert source['described'](**given).left_out == {'unreadable': 1} and len(source['described'](**given)) == 39 and len(source['described'](**given, unreadable=True)) == 40
    assert base_of(base) is base


def test_descriptions_of_ptb_xl_agree_with_its_labels(data, base):
    src = source['ptb_xl'](root=str(data/'ptb_xl'))
    at = {r: i for i, r in enumerate(src.frame['record'])}
    for record, has in {'00282': ('atrial fibrillation', 'Left bundle branch block', 'Left axis deviation'), '00103': ('Sinus tachycardia', 'Left axis deviation'), '00102': ('First degree AV block', 'ST depression'),
                        '00170': ('Sinus rhythm', 'extrasystoles'), '00042': ('Sinus rhythm', 'Otherwise within the limits')}.items():
        if record not in at: pytest.skip(f'record {record} of PTB-XL is not here')
        text = describe(src[at[record]], base, k=1).text
        assert all(h in text for h in has), text


# --- what a reviewer found -----------------------------------------------------------------------------------------------------

def table(patients, texts=None):
    import pandas as pd
    n = len(patients)
    return pd.DataFrame(dict(record=[f'r{i}' for i in range(n)], patient=pd.Series(patients, dtype=object), text=texts or [f'sinus rhythm {i}' for i in range(n)]))


@pytest.mark.parametrize('there,asked', [('p ', 'p'), ('p', ' p '), (' p ', 'p '), (1, 1.), (1., 1), (1, '1'), (np.int64(7), np.float32(7)), ('q', np.str_('q'))])
def test_the_own_reports_stay_out_however_the_name_is_written(there, asked):
    n = Neighbours(table([there, 'other', there]), Words('sinus'))
    assert [h.id for h in n.search(['sinus'], [asked], 3, least=-1)[0]] == ['r1'] == [h.id for h in n.near(['r0'])[0]]


@pytest.mark.parametrize('nobody', [None, '', ' ', np.nan, float('nan'), 'nan', 'NaN', '<NA>', 'None'])
def test_nobody_is_no_patient(nobody):
    import pandas as pd
    n = Neighbours(table(['p', 'q']), Words('sinus'))
    for bad in (nobody, pd.NA, pd.NaT):
        with pytest.raises(ECGError, match='whose reports to leave out'): n.search(['sinus'], [bad])
    with pytest.raises(ECGError, match='no patient of r1'): Neighbours(table(['p', nobody]), Words('sinus'))


def test_a_stranger_is_asked_about_only_where_that_is_said():
    f = table(['p', 'q', 'q'], ['sinus a', 'sinus b', None])
    with pytest.raises(ECGError, match='no patient P, Q in the table.*strangers=True'): Neighbours(f, Words('sinus')).search(['sinus']*3, ['P', 'q', 'Q'])
    assert len(Neighbours(f, Words('sinus'), strangers=True).search(['sinus'], ['P'])[0]) == 2


def test_windows_of_a_recording_are_one_report(cohort):
    import pandas as pd
    twice = pd.concat([cohort.frame, cohort.frame], ignore_index=True)
    assert Neighbours(twice, 'tfidf').index.ids == Neighbours(cohort, 'tfidf').index.ids


def test_lines_end_where_the_file_says(tmp_path, base, cohort):
    said = 'before\u2028after\u0085end\x0c.'
    (tmp_path/'k.jsonl').write_bytes(b'\xef\xbb\xbf' + json.dumps(dict(id='a', text=said), ensure_ascii=False).encode() + b'\r\n' + json.dumps(dict(id='b', text='x')).encode())
    k = Knowledge.read(tmp_path/'k.jsonl')
    assert k.ids == ['a', 'b'] and k['a'].text == said
    record, patient = cohort.frame[['record', 'patient']].iloc[0]
    (tmp_path/'d.jsonl').write_bytes(b'\xef\xbb\xbf' + json.dumps(dict(record=record, patient=patient, text=said), ensure_ascii=False).encode() + b'\n')
    assert source['described'](ecg=cohort, file=str(tmp_path/'d.jsonl')).frame['text'].tolist() == [said]
    Index([said, 'wide'], ['a', 'b'], 'tfidf').save(tmp_path/'i')
    assert Index.read(tmp_path/'i').texts[0] == said


def spoilt(folder, name):
    "Spoil one file of a saved index."
    about, held = folder/'index.json', folder/'vectors.npy'
    if name in ('[1]', 'null', '{}', '['*100_000, 'x'): about.write_text(name); return 'index.json'
    if name == 'embed': about.write_text(json.dumps(json.loads(about.read_text()) | dict(embed=5))); return 'index.json'
    if name == 'rows': (folder/'texts.jsonl').write_text('[1]\n'); return 'texts.jsonl'
    if name == 'deep': (folder/'texts.jsonl').write_text('['*100_000); return 'texts.jsonl'
    if name in ('empty', 'zip'): held.write_bytes(dict(empty=b'', zip=b'PK\x03\x04').get(name)); return 'vectors.npy'
    v = np.load(held)
    v = dict(narrow=lambda: v[:, 1:].copy(), flat=lambda: v.ravel(), words=lambda: v.astype('U8'), whole=lambda: v.view(np.int32), fewer=lambda: v[:1].copy(), nan=lambda: v*np.float32('nan'))[name]()
    np.save(held, v)
    from ecgnb.retrieve import bytes_of
    about.write_text(json.dumps(json.loads(about.read_text()) | dict(bytes=bytes_of(v))))
    return 'vectors.npy'


@pytest.mark.parametrize('how', ['[1]', 'null', '{}', '['*100_000, 'x', 'embed', 'rows', 'deep', 'empty', 'zip', 'narrow', 'flat', 'words', 'whole', 'fewer', 'nan'], ids=lambda h: h[:8])
def test_a_spoilt_index_names_its_file(tmp_path, how):
    Index(['narrow beats', 'wide beats'], ['a', 'b'], 'tfidf').save(tmp_path/'i')
    with pytest.raises(ECGError) as err: Index.read(tmp_path/'i') if (name := spoilt(tmp_path/'i', how)) else None
    assert str(tmp_path/'i'/name) in str(err.value)


@pytest.mark.parametrize('line,said', [('['*100_000, 'not JSON'), ('{"id": "a", "text": "x", "title": null}', 'title is None'), ('{"id": "a", "text": "x", "title": ["t"]}', 'title is'),
                                       ('{"id": "a", "text": "x", "source": 3}', 'source is 3'), ('{"id": "a", "text": "\\ud800"}', 'text is')])
def test_a_line_that_is_no_passage_is_named(tmp_path, line, said):
    (tmp_path/'k.jsonl').write_text('{"id": "z", "text": "x"}\n' + line + '\n')
    with pytest.raises(ECGError, match=f'k.jsonl, line 2: {said}'): Knowledge.read(tmp_path/'k.jsonl')


def test_a_folder_reads_nothing_outside(tmp_path):
    (tmp_path/'k').mkdir(); (tmp_path/'secret.txt').write_text('Secret.'); (tmp_path/'k'/'a.txt').write_text('Mine.')
    (tmp_path/'k'/'b.txt').symlink_to('a.txt')
    assert [e.text for e in Knowledge.read(tmp_path/'k').entries] == ['Mine.', 'Mine.']
    (tmp_path/'k'/'c.txt').symlink_to(tmp_path/'secret.txt')
    with pytest.raises(ECGError, match='c.txt: a link that leads out'): Knowledge.read(tmp_path/'k')
    (tmp_path/'link').symlink_to(tmp_path/'k'); (tmp_path/'k'/'c.txt').unlink()
    assert len(Knowledge.read(tmp_path/'link')) == 2


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
    from test_coca import bert as made
    return made(tmp_path_factory.mktemp('lm')/'bert')


def test_half_a_character_is_refused_by_its_row(bert):
    from ecgnb.encoders.text import Text
    for text in (Text(bert, most=32), Text(bert, most=32, frozen=False)):
        for ask in (text.features, text.read):
            with pytest.raises(ECGError, match='text 1 holds half a character'): ask(['normal ECG', 'LVH \ud800'])
        assert text.features(['\U0001f600 normal', '']).isfinite().all()


def test_coca_does_not_train_without_a_report(bert):
    from test_coca import batch_of, model
    m, b = model(bert), batch_of()
    with pytest.raises(ECGError, match='none of the 8 recordings of this batch has a report'): m.train()(b | {'text': ['', ' ']*4})
    out = m.train()(b | {'text': ['', *b['text'][1:]]})
    out.loss.backward()
    assert out.loss > 0 and all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters() if p.requires_grad)
    assert m.eval()(b | {'text': ['']*8}).loss == 0                        # validation counts nothing
    with pytest.raises(ECGError, match='text 0 holds half'): m(b | {'text': ['\ud800', *b['text'][1:]]})


def test_descriptions_are_short_unless_asked(tmp_path, base, cohort):
    few = cohort.select(range(8))
    describe_source(few, tmp_path/'d.jsonl', base, k=2)
    rows = [json.loads(t) for t in (tmp_path/'d.jsonl').read_text().split('\n')[:-1]]
    given = dict(ecg=few, file=str(tmp_path/'d.jsonl'), unreadable=True)
    brief, full = (source['described'](**given, sources=s).frame['text'].tolist() for s in (False, True))
    assert full == [r['text'] for r in rows] and brief != full
    for r, t in zip(rows, brief):
        assert not re.search(r'\[\d', t) and all(s[1] in t for s in r['statements']) and 'holds nothing' not in t
        assert ('Measured: ' in t) == ('Measured: ' in r['text']) and not any(s[3][:30] in t for s in r['sources'])
    for bad in (dict(statements=None), dict(sources=[3])):
        (tmp_path/'e.jsonl').write_text(json.dumps(rows[0] | bad) + '\n')
        with pytest.raises(ECGError, match='line 1: wanted record and text'): source['described'](ecg=few, file=str(tmp_path/'e.jsonl')).frame

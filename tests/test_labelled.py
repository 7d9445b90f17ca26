"Labels from reports: those that the labeler reads, unknown where it reads nothing; all else is the wrapped source's."
import json
import pickle
import shutil
import numpy as np
import pytest
from ecgnb.labeler import labeler, labels
from ecgnb.leads import ECGError, STANDARD
from ecgnb.patterns import BUILT_IN
from ecgnb.prepare import prepare
from ecgnb.registry import PartError, from_config, source, to_config
from ecgnb.settings import data_dir

TEXTS = ['Sinus rhythm. Left bundle branch block.', '', 'Vorhofflimmern', '  ', 'Patient fasted.', 'Possible atrial flutter.', 'No infarction.',
         'sinusrytm']
SAID = [['Sinus rhythm', 'Left bundle branch block'], None, ['Atrial fibrillation'], None, None, [], [], ['Sinus rhythm']]


def ecgs(texts, **given):
    "Simulated recordings with these reports."
    src = source['sample'](n=len(texts), fs=100., seed=2, records_per_patient=2., **given)
    src.frame['text'] = texts
    return src


@pytest.fixture(scope='module')
def told(): return source['labelled'](ecg=ecgs(TEXTS))


def test_labels_are_those_of_the_reports(told):
    assert told.frame['labels'].tolist() == SAID and told.classes == tuple(labeler().sets['mimic17']['classes'])
    y = told.label_matrix()
    assert np.array_equal(y, labels(TEXTS, 'mimic17'), equal_nan=True) and np.isnan(y).any(1).tolist() == [v is None for v in SAID]


@pytest.mark.parametrize('name', ['mimic17', 'superclass', 'scp', 'cinc2021'])
def test_every_set_as_the_labeler_reads_it(name):
    ecg = source['sample'](n=80)
    src = source['labelled'](ecg=ecg, classes_of=name)
    assert list(src.classes) == labeler().sets[name]['classes'] and (src.label_matrix() == 1).any(1).mean() > .9
    assert np.array_equal(src.label_matrix(), labels(ecg.frame['text'].tolist(), name), equal_nan=True)


def test_the_threshold_decides_on_doubt():
    doubt = labels(['Possible atrial flutter.'], 'mimic17', 0.).max()
    assert 0 < doubt < .7
    for t, want in ((float(doubt), ['Atrial flutter']), (float(doubt) + .01, []), (1., [])):
        assert source['labelled'](ecg=ecgs(TEXTS), threshold=t).frame['labels'][5] == want


def test_all_else_is_the_wrapped_sources(told):
    keep = ['record', 'patient', 'fold', 'text']
    assert told.frame[keep].equals(told.ecg.frame[keep]) and len(told) == len(told.ecg)
    for i in range(len(told)): assert told[i] == told.ecg[i] and told[i].meta['labels'] == SAID[i] and told[i].meta['source'] == 'labelled'
    assert told.fold('1-8').frame['record'].tolist() == told.ecg.fold('1-8').frame['record'].tolist() != []
    parts, theirs = told.split(seed=3), told.ecg.split(seed=3)
    assert all(parts[k].rows.tolist() == theirs[k].rows.tolist() for k in parts)
    loose = source['labelled'](ecg=ecgs(TEXTS, guard=False, no_patient='own'))
    assert not loose.guard and loose.no_patient == 'own' and told.guard and told.no_patient == 'error'
    assert told.ecg.frame['labels'].tolist() == ecgs(TEXTS).frame['labels'].tolist(), 'the wrapped table was changed'


def test_config_and_pickle_round_trip():
    src = source['labelled'](ecg=source['sample'](n=20, seed=3), classes_of='superclass', threshold=.5)
    config = json.loads(json.dumps(to_config(src)))
    assert config['ecg'] == {**to_config(src.ecg)} and config['classes_of'] == 'superclass' and config['threshold'] == .5
    for again in (from_config(config), pickle.loads(pickle.dumps(src))):
        assert to_config(again) == config and again.fingerprint() == src.fingerprint() and again[3] == src[3]
        assert again.frame['labels'].tolist() == src.frame['labels'].tolist()
    assert len(src.fingerprint()) == 64
    others = [from_config({**config, **d}) for d in (dict(classes_of='scp'), dict(threshold=.7), dict(ecg=to_config(source['sample'](n=20, seed=4))))]
    assert len({src.fingerprint(), src.ecg.fingerprint(), *(s.fingerprint() for s in others)}) == 5
    with pytest.raises(PartError, match='has no field'): from_config({**config, 'tresh': 1})


def test_a_store_has_these_labels(told, tmp_path):
    store = prepare(told, tmp_path/'s', leads='I,II', fs=100, seconds=5, progress=False)
    assert tuple(store.classes) == told.classes and len(store) == 2*len(told)
    y = told.label_matrix()
    for k, (i, patient, fold) in enumerate(zip(store.frame['row'], store.frame['patient'], store.frame['fold'])):
        assert np.array_equal(store.labels[k], y[i], equal_nan=True) and store[k].meta['labels'] == SAID[i]
        assert (patient, fold) == (told.ecg.frame['patient'][i], told.ecg.frame['fold'][i])
    assert len(prepare(source['labelled'](ecg=ecgs(TEXTS)), tmp_path/'s', leads='I,II', fs=100, seconds=5, progress=False)) == len(store)


def test_a_store_is_bound_to_the_patterns(tmp_path):
    own, how = tmp_path/'own.toml', dict(leads='I,II', fs=100, seconds=5, progress=False)
    shutil.copy(BUILT_IN, own)
    a = source['labelled'](ecg=ecgs(TEXTS), patterns=str(own))
    prepare(a, tmp_path/'s', **how)
    own.write_text(own.read_text(encoding='utf-8') + '\n# said again\n', encoding='utf-8')
    b = source['labelled'](ecg=ecgs(TEXTS), patterns=str(own))
    assert a.frame['labels'].tolist() == b.frame['labels'].tolist() and a.fingerprint() != b.fingerprint()
    with pytest.raises(ECGError, match='source_hash'): prepare(b, tmp_path/'s', **how)
    own.write_text('format = 1\n[set.mine]\nimplied = true\nclasses = ["X", "fast"]\n[entity.fast]\nen = ["fasted"]\nmine = "fast"\n', encoding='utf-8')
    c = source['labelled'](ecg=ecgs(TEXTS), patterns=str(own), classes_of='mine')
    assert c.classes == ('X', 'fast') and c.frame['labels'].tolist() == [None]*4 + [['fast']] + [None]*3


def test_the_built_in_file_is_in_the_fingerprint(tmp_path, monkeypatch):
    before = source['labelled'](ecg=ecgs(TEXTS)).fingerprint()
    other = tmp_path/'labeler.toml'
    other.write_text(BUILT_IN.read_text(encoding='utf-8') + '\n# other\n', encoding='utf-8')
    monkeypatch.setattr(labeler(), 'path', other)
    assert source['labelled'](ecg=ecgs(TEXTS)).fingerprint() != before


@pytest.mark.parametrize('given, said', [
    (dict(classes_of='mimic'), "classes_of='mimic': labeler.toml has no such set; did you mean 'mimic17'"),
    (dict(classes_of=''), 'no such set; there is cinc2021, mimic17, scp, superclass'),
    *((dict(threshold=t), 'wanted a probability over 0 to 1') for t in (0., -.1, 1.01, float('nan'))),
    (dict(patterns='nowhere.toml'), 'nowhere.toml: no such file of patterns'),
    (dict(ecg='ptb_xl'), "Labelled.ecg is 'ptb_xl'; wanted a source of recordings"),
])
def test_errors(given, said):
    with pytest.raises(ECGError, match=said): source['labelled'](**{'ecg': ecgs(TEXTS), **given})


def test_no_reports_conversations_parts():
    src = source['labelled'](ecg=ecgs(['', ' ']))
    with pytest.raises(ECGError, match=r'sample: none of its 2 recordings has a report; take .* source\.ecg=ptb_xl, or .* source\.ecg\.report='): src.frame
    with pytest.raises(ECGError, match='a source of conversations'): source['labelled'](ecg=source['reports'](ecg=source['sample'](n=3)))
    with pytest.raises(ECGError, match='take the part of the labelled source'): source['labelled'](ecg=ecgs(TEXTS)[:3])


def test_a_run_takes_it(tmp_path):
    from ecgnb.hub import save
    from ecgnb.recipes import build, said
    from ecgnb.registry import encoder, objective, representation
    run = said('ecg_fm_finetune', 'source=labelled', 'source.ecg=ptb_xl', 'source.classes_of=mimic17', 'source.ecg.missing=drop', 'train.start=x')
    assert run['source']['classes_of'] == 'mimic17' and to_config(from_config(run['source']).ecg) == to_config(source['ptb_xl'](missing='drop'))
    e = encoder['wav2vec2'](length=1000, segment=500, dim=16, depth=1, heads=2, mlp=16)
    save(objective['w2v_cmsc_rlm'](representation['signal'](length=1000, fs=100.), e), tmp_path/'m',
         contract=dict(leads=list(STANDARD), fs=100., length=1000, unit='mV'))
    ask = ['source=labelled', 'source.ecg=sample', 'source.ecg.n=60', 'source.classes_of=mimic17', f'train.start={tmp_path}/m']
    run = build('ecg_fm_finetune', *ask)
    assert run['model']['classes'].split(',') == labeler().sets['mimic17']['classes'] and run['source']['ecg']['n'] == 60
    with pytest.raises(ECGError, match="use weight='none'"): from_config(run['model'])
    model = from_config(build('ecg_fm_finetune', *ask, 'model.weight=none')['model'])
    assert len(model.names) == 17


@pytest.mark.skipif(data_dir('ptb_xl') is None, reason='no PTB-XL in settings.ini, $ECGNB_DATA or shared/data')
def test_ptb_xl_agrees_with_its_codes():
    ecg = source['ptb_xl'](missing='drop')
    src = source['labelled'](ecg=ecg, classes_of='superclass')
    y, z = ecg.label_matrix(), src.label_matrix()
    known = ~np.isnan(z).any(1)
    assert src.classes == ecg.classes and known.mean() > .9
    y, z = y[known], z[known]
    chance = y.mean(0)*z.mean(0) + (1 - y.mean(0))*(1 - z.mean(0))
    kappa = ((y == z).mean(0) - chance)/(1 - chance)
    assert kappa[0] > .6 and (kappa > .2).all(), kappa

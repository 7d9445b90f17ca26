"""Metrics against scikit-learn, and a probe that cannot see the test patients before it is judged."""
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from ecgnb.demo import verdict
from ecgnb.leads import ECGError
from ecgnb.metrics import auprc, auroc, best_threshold, countable, f1, interval, judge, resamples
from ecgnb.optim import EMA, kinds, optimizers
from ecgnb.prepare import prepare
from ecgnb.probe import Probe, features, probe, read, twin
from ecgnb.recipes import build
from ecgnb.registry import from_config
from ecgnb.sources.sample import Sample

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('ties', [0, 1, 3])
def test_metrics_are_those_of_scikit_learn(ties):
    for _ in range(20):
        y = (RNG.random(120) < .2).astype(float); y[:2] = 0, 1
        s = np.round(y + RNG.normal(size=120), ties) if ties else np.round(RNG.normal(size=120))
        w = RNG.integers(0, 3, (4, 120)).astype(float); w[:, :2] = 1
        for i in range(4):
            assert auroc(s, y, w)[i] == pytest.approx(roc_auc_score(y, s, sample_weight=w[i]))
            assert auprc(s, y, w)[i] == pytest.approx(average_precision_score(y, s, sample_weight=w[i]))
            assert f1(s, y, w, .5)[i] == pytest.approx(f1_score(y, s >= .5, sample_weight=w[i]))


def test_best_threshold_is_the_best():
    y = (RNG.random(80) < .3).astype(float); s = y + RNG.normal(size=80)
    assert f1(s, y, threshold=best_threshold(s, y)) == max(f1_score(y, s >= v) for v in s)


def test_resamples_draw_patients_and_keep_rare_classes():
    patients = np.repeat(np.arange(30), 2); y = np.zeros((60, 2)); y[:30, 0] = 1; y[:4, 1] = 1
    w = resamples(y, patients, 300, seed=1)
    assert (w[:, ::2] == w[:, 1::2]).all() and (w[:, :4].sum(1) > 0).all() and (w.sum(1) == 60).all()
    assert np.array_equal(w, resamples(y, patients, 300, seed=1)) and not np.array_equal(w, resamples(y, patients, 300, seed=2))
    assert abs(w.mean() - 1) < 1e-9 and w.max() >= 3


def test_a_class_of_one_patient_is_named_not_judged():
    y = np.zeros((20, 2)); y[:8, 0] = 1; y[:2, 1] = 1
    assert countable(y, np.repeat(np.arange(10), 2)).tolist() == [True, False]


def test_unknown_labels_are_left_out():
    y = np.array([[1.], [0], [np.nan], [1], [0], [0]]); s = np.array([[.9], [.1], [.95], [.8], [.7], [.2]])
    assert judge(s, y, np.ones((1, 6)))['auroc'][0, 0] == roc_auc_score([1, 0, 1, 0, 0], [.9, .1, .8, .7, .2])


def data(n=300, d=6):
    "Features, labels and parts in which validation and test want opposite penalties."
    x = RNG.normal(size=(n, d)); y = (x[:, :1] + RNG.normal(size=(n, 1)) > 0).astype(float)
    return x, y, dict(train=np.arange(0, 150), val=np.arange(150, 220), test=np.arange(220, n))


@pytest.mark.parametrize('kind', ['linear', 'knn'])
def test_nothing_of_the_test_patients_reaches_the_reader(kind):
    "Other features and labels of the test patients change neither the choice, nor the thresholds, nor any other score."
    x, y, parts = data()
    s, t, c = read(kind, x, y, parts, np.array([True]))
    x2, y2 = x.copy(), y.copy(); x2[parts['test']] = 100*RNG.normal(size=x2[parts['test']].shape) + 50; y2[parts['test']] = 1 - y2[parts['test']]
    s2, t2, c2 = read(kind, x2, y2, parts, np.array([True]))
    assert (c, t) == (c2, t2) and np.array_equal(s[:220], s2[:220])
    y3 = y.copy(); y3[parts['val']] = 1 - y3[parts['val']]
    assert read(kind, x, y3, parts, np.array([True]))[1] != t, 'thresholds are chosen on validation'


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    store = prepare(Sample(n=240, fs=100.), tmp_path_factory.mktemp('s')/'store', fs=100, progress=False)
    torch.manual_seed(0)
    return store, from_config(build('tiny', 'model.encoder.depth=1', 'model.encoder.dim=32')['model'])


def test_probe_says_its_protocol_and_pairs_the_difference(small):
    store, model = small
    p = probe(model, store, twins=2, times=100, readers=('linear',))
    m = p.frame[(p.frame['class'] == 'macro') & (p.frame.metric == 'auroc')].iloc[0]
    assert m.gain == pytest.approx(m.model - m.random) and m.low <= m.model <= m.high
    for words in ('no patient in two', 'Train: fold train', 'choices', 'every class kept', 'mean of 2 models'): assert words in p.protocol
    again = probe(model, store, twins=2, times=100, readers=('linear',))
    pd.testing.assert_frame_equal(p.frame, again.frame)


def test_probe_of_the_twin_itself_gains_nothing(small):
    store, model = small
    p = probe(twin(model, 0), store, twins=1, times=100, readers=('linear',))
    assert p.frame.gain.abs().max() == 0 and 'not told apart' in verdict(p)


def test_features_do_not_depend_on_the_batch_and_leave_the_model_as_it_was(small):
    store, model = small
    model.train(); a, b = features(model, store, 7), features(model, store, 64)
    assert model.training; np.testing.assert_allclose(a, b, atol=1e-4)


def test_probe_refuses_what_is_not_a_model_and_patients_on_both_sides(small):
    store, model = small
    with pytest.raises(ECGError, match='StVit is no model with a representation and an encoder'): probe(model.encoder, store)
    with pytest.raises(ECGError, match='is in train and in test; split by patient'): probe(model, store, test='8,10')
    with pytest.raises(ECGError, match='no window in test'): probe(model, store.fold('1-9'), test='10')


def test_results_do_not_become_html():
    said = Probe(pd.DataFrame({'class': []}), 'Macro over <img src=x onerror=alert(1)>.', {})._repr_html_()    # pandas escapes the table
    assert '<img' not in said and '&lt;img' in said
    src = Sample(n=3); src.__dict__['classes'] = ('<img src=x onerror=alert(1)>',)
    assert '<img' not in src._repr_html_()


def test_interval_orders_its_ends():
    assert interval(np.array([.5, .1, .9, .4, .6])) == (.5, pytest.approx(.1225), pytest.approx(.8775))


def test_decay_goes_to_matrices_and_muon_to_matrices_in_blocks(small):
    k = kinds(small[1])
    assert {n for n, v in k.items() if v != 'plain'} == {n for n in k if n.endswith('weight') and small[1].get_parameter(n).ndim == 2}
    assert all(('.blocks.' in n or '.layers.' in n or any(c.isdigit() for c in n)) for n, v in k.items() if v == 'hidden')
    assert all(k[n] == 'plain' for n in k if n.split('.')[-1] in ('bias', 'sep', 'lead', 'mask_token') or 'norm' in n)
    sizes = {g['weight_decay']: sum(p.numel() for p in g['params']) for g in optimizers(small[1], weight_decay=.3)[0].param_groups}
    assert sizes[.3] == sum(small[1].get_parameter(n).numel() for n, v in k.items() if v != 'plain')


def test_ema_is_the_average_it_says():
    m = torch.nn.Linear(1, 1, bias=False); torch.nn.init.zeros_(m.weight); e, want = EMA(m, .5), 0.
    for t in range(6):
        with torch.no_grad(): m.weight.fill_(t + 1.)
        d = min(.5, (1 + t)/(10 + t)); want = d*want + (1 - d)*(t + 1); e.update(m)
    assert e.state['weight'].item() == pytest.approx(want, rel=1e-6)

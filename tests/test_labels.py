"""Few labels, fine-tuning and folds by patient: nothing of a test patient is used, and a draw is what it says."""
import numpy as np
import pytest
import torch
from ecgnb.finetune import Budget, finetune, start
from ecgnb.labels import draw_patients, few_labels, over_seeds, parsed_shares
from ecgnb.leads import ECGError
from ecgnb.prepare import prepare
from ecgnb.probe import line_up, probe, read, split
from ecgnb.recipes import build
from ecgnb.registry import from_config
from ecgnb.sources.sample import Sample

RNG = np.random.default_rng(0)
QUICK = Budget(steps=4, every=2, lr='1e-3')


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    store = prepare(Sample(n=150, fs=100.), tmp_path_factory.mktemp('s')/'store', fs=100, progress=False)
    torch.manual_seed(0)
    make = build('tiny', 'model.encoder.depth=1', 'model.encoder.dim=16', 'model.encoder.patch=100')['model']
    return store, from_config(make)


@pytest.mark.parametrize('share', [.01, .02, .1, .5, 1])
def test_a_draw_is_of_patients_and_has_every_class_where_it_can(share):
    who = np.repeat(np.arange(300), 2).astype(str); y = np.zeros((600, 3)); y[:400, 0] = 1; y[400:500, 1] = 1; y[500:504, 2] = 1
    y[0, 1] = np.nan
    for seed in range(5):
        got = draw_patients(y, who, share, seed)
        assert (got[::2] == got[1::2]).all() and got[::2].sum() == max(1, round(share*300))
        assert np.nansum(y[got], 0).min() > 0
        assert share == 1 or not np.array_equal(got, draw_patients(y, who, share, seed + 10))
        assert set(who[draw_patients(y, who, .01, seed)]) <= set(who[got]), 'a smaller draw lies in a larger one'


def test_the_line_keeps_the_classes_frequency():
    who = np.arange(200).astype(str); y = np.zeros((200, 2)); y[:120, 0] = 1; y[110:150, 1] = 1
    line = line_up(y, who)
    assert sorted(line) == sorted(who)
    for n in (20, 50, 100): np.testing.assert_allclose(y[np.isin(who, line[:n])].mean(0), [.6, .2], atol=.06)


def data(n=260, d=12):
    x = RNG.normal(size=(n, d)); y = (x[:, :1] + RNG.normal(size=(n, 1)) > 0).astype(float)
    return x, y, dict(train=np.arange(130), val=np.arange(130, 180), test=np.arange(180, n)), np.repeat(np.arange(n//2), 2).astype(str)


def test_folds_by_patient_see_no_test_patient_and_no_patient_twice():
    x, y, parts, who = data()
    s, t, c = read('linear', x, y, parts, np.array([True]), 'cv', who)
    x2, y2 = x.copy(), y.copy(); x2[parts['test']] += 40*RNG.normal(size=x2[parts['test']].shape); y2[parts['test']] = 1 - y2[parts['test']]
    s2, t2, c2 = read('linear', x2, y2, parts, np.array([True]), 'cv', who)
    assert (c, t) == (c2, t2) and np.array_equal(s[:180], s2[:180])
    copies = x.copy(); copies[:, :] = RNG.normal(size=(130, 12)).repeat(2, 0)          # a patient's two windows are the same,
    noise = RNG.integers(0, 2, 130).repeat(2)[:, None].astype(float)                    # and labels are chance: knn could cheat
    k = read('knn', copies, noise, parts, np.array([True]), 'cv', who)
    assert abs(k[0][parts['test']][noise[180:, 0] == 1].mean() - k[0][parts['test']][noise[180:, 0] == 0].mean()) < .2


def test_cv_fits_on_validation_patients_too():
    x, y, parts, who = data()
    y2 = y.copy(); y2[parts['val']] = 1 - y2[parts['val']]
    a, b = (read('linear', x, v, parts, np.array([True]), 'cv', who)[0] for v in (y, y2))
    assert not np.allclose(a, b)


def test_seeds_widen_the_interval():
    v = RNG.normal(size=(3, 1, 2)) + .01*RNG.normal(size=(3, 501, 2))
    assert (over_seeds(v)[1:].std(0) > 5*over_seeds(v[:1])[1:].std(0)).all()
    np.testing.assert_allclose(over_seeds(v)[0], v[:, 0].mean(0))


@pytest.fixture(scope='module')
def table(small):
    store, model = small
    return few_labels(model, store, '0.1,1', seeds=2, times=100, tune=True, budget=QUICK)


def test_the_table_of_few_labels(small, table):
    store, model = small
    f = table.frame
    assert set(f['row']) == {'linear', 'random', 'handcrafted', 'finetune', 'scratch'} and set(f.share) == {.1, 1.}
    assert (f.low <= f.value + 1e-9).mean() > .95 and f[f['class'] == 'macro'].value.between(0, 1).all()
    m = f[(f['class'] == 'macro') & (f.metric == 'auroc') & (f.share == 1)].set_index('row')
    assert m.gain['linear'] == pytest.approx(m.value['linear'] - m.value['random']) and m.against['finetune'] == 'scratch'
    assert np.isnan(m.gain['random']) and table.gain('linear', 'handcrafted')[0] == pytest.approx(m.value['linear'] - m.value['handcrafted'])
    for words in ('drawn by patient', 'all of fold val', 'in no other part', 'ecgnb-hand-1', 'test patients and seeds'): assert words in table.protocol
    assert table.to_json()['rows'] and '<table' in table._repr_html_() and '10 %' in repr(table)


def test_all_labels_are_the_probe(small, table):
    "At 100 percent the linear row is `probe`'s number."
    store, model = small
    p = probe(model, store, twins=1, times=100, readers=('linear',)).frame
    mine = table.frame[(table.frame['row'] == 'linear') & (table.frame.share == 1)]
    np.testing.assert_allclose(mine.value, p[p['class'] != 'micro'].model)


def test_the_table_repeats_to_the_bit(small):
    store, model = small
    a, b = (few_labels(model, store, '0.3', seeds=2, times=100).frame for _ in range(2))
    assert a.equals(b)


def test_finetuning_starts_from_the_checkpoint_and_scratch_does_not(small):
    store, model = small
    part = split(store)
    own, new = start(model, store.classes), start(model, store.classes, fresh=True)
    for k, v in model.encoder.state_dict().items():
        assert torch.equal(v, own.encoder.state_dict()[k])
    assert any(not torch.equal(v, new.encoder.state_dict()[k]) for k, v in model.encoder.state_dict().items())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lie = part.y.copy(); lie[part.parts['test']] = np.nan
    a, b = (finetune(model, store, part.parts, y, part.usable, budget=QUICK) for y in (part.y, lie))
    assert np.array_equal(a[0], b[0]) and a[1] == b[1] and a[2]['step'] in (2, 4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), 'the judged model was trained'


def test_bad_input_is_named(small):
    store, model = small
    for shares in ('0', '2', 'all', ''):
        with pytest.raises(ECGError, match='such as 0.01,0.1,1'): parsed_shares(shares)
    with pytest.raises(ECGError, match='one seed has no interval'): few_labels(model, store, seeds=1)
    with pytest.raises(ECGError, match="choose='test'"): few_labels(model, store, choose='test')
    with pytest.raises(ECGError, match="cannot make 5 folds; use choose='val'"): few_labels(model, store, '0.01', choose='cv', times=100)
    unknown = store.select(np.arange(len(store))); unknown.labels = np.full_like(store.labels, np.nan)
    for f in (few_labels, probe):
        with pytest.raises(ECGError, match='no label is known in train'): f(model, unknown)
    none = store.select(np.arange(len(store))); none.labels = store.labels.copy(); none.labels[:, 1] = 0
    t = few_labels(model, none, '0.01', seeds=2, times=100)
    assert f'Too few to judge: {store.classes[1]}' in t.protocol and store.classes[1] not in set(t.frame['class'])
    assert 'at chance there: 1 %' in t.protocol

"""Vectors of any layer as a table, maps of them, and identification: by hand, gaps, protocols, bad input."""
import numpy as np
import pandas as pd
import pytest
import torch
from ecgnb import encoder, source
from ecgnb import embed as embed_module
from ecgnb.embed import columns, embed, layers, pca, scatter, vectors, whole
from ecgnb.identify import compare, equal_error, identify, numbers, pairs
from ecgnb.leads import ECGError
from ecgnb.objectives.classify import Classify
from ecgnb.prepare import prepare
from ecgnb.probe import features
from ecgnb.representations.signal import Signal
from ecgnb.transformer import pool

SMALL = {'vit1d': dict(patch=20, dim=16, depth=2, heads=2), 'st_vit': dict(patch=50, dim=16, depth=2, heads=2), 'resnet1d': dict(size='18', dim=16),
         's4': dict(dim=8, depth=2), 'wav2vec2': dict(dim=16, depth=2, heads=2, segment=100, width=8, kernel=4, groups=2)}


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    return prepare(source['sample'](n=40, seconds=4., fs=50., records_per_patient=2., noise=.3), tmp_path_factory.mktemp('e')/'store', fs=50., seconds=4.,
                   progress=False)


@pytest.fixture(scope='module')
def short(tmp_path_factory):
    return prepare(source['sample'](n=12, seconds=8., fs=50., noise=.3), tmp_path_factory.mktemp('e')/'short', fs=50., seconds=4., progress=False)


def model_of(name):
    torch.manual_seed(0)
    return Classify(Signal(fs=50., length=200, norm='fixed'), encoder[name](length=200, **SMALL[name]), classes='A').eval()


@pytest.mark.parametrize('name', SMALL)
def test_every_layer_of_every_encoder_gives_vectors_and_leaves_no_hook(name, store):
    m, few = model_of(name).train(), store.select(range(3))
    for layer in range(len(layers(m))):
        z = vectors(m, few, layer, 'tokens', batch_size=2)
        assert z.ndim == 3 and len(z) == 3
        np.testing.assert_allclose(vectors(m, few, layer, 'mean', batch_size=2), z.mean(1), atol=1e-5)
        np.testing.assert_allclose(vectors(m, few, layers(m)[layer], 'max', batch_size=2), z.max(1), atol=1e-6)
    assert m.training and not any(x._forward_hooks for x in m.modules())


def test_layers_by_hand(store):
    few = store.select(range(3))
    m = model_of('wav2vec2')                                                   # two segments, one after the other: the feature is their mean
    np.testing.assert_allclose(vectors(m, few, -1, 'mean'), features(m, few), atol=1e-5)
    assert vectors(m, few, -1, 'tokens').shape == (3, m.encoder.n_tokens, 16)
    m = model_of('s4')
    np.testing.assert_allclose(vectors(m, few, 1, 'mean'), features(m, few), atol=1e-5)
    m = model_of('vit1d')
    with torch.no_grad(): mine = m.encoder.norm(torch.tensor(vectors(m, few, -1, 'cls'))).numpy()
    np.testing.assert_allclose(mine, features(m, few), atol=1e-5)
    assert vectors(m, few, 0, 'tokens').shape == (3, 10, 16)                   # without CLS
    m = model_of('st_vit')
    with torch.no_grad(): mine = m.encoder.norm(torch.tensor(vectors(m, few, -1, 'mean'))).numpy()      # without SEP
    np.testing.assert_allclose(mine, features(m, few), atol=1e-5)


def test_tokens_that_were_not_recorded_do_not_count(store):
    class Gappy:                                                               # the store, with its last second missing
        def __init__(self, s): self.s, self.contract, self.frame, self.labels, self.fs, self.leads = s, s.contract, s.frame.assign(complete=False), s.labels, s.fs, s.leads
        def __len__(self): return len(self.s)
        def __getattr__(self, k): return getattr(self.s, k)
        def rows(self, i):
            q, scale = self.s.rows(i)
            q = q.clone(); q[:, :, 150:] = -32768
            return q, scale
    m, few = model_of('st_vit'), Gappy(store.select(range(3)))
    z = torch.tensor(vectors(m, few, -1, 'tokens'))
    keep = torch.tensor([True, True, True, False]*12).expand(3, -1)
    np.testing.assert_allclose(vectors(m, few, -1, 'mean'), pool(z, keep), atol=1e-5)
    np.testing.assert_allclose(vectors(m, few, -1, 'max'), z[:, keep[0]].amax(1), atol=1e-6)


def test_the_table_has_a_row_a_window_and_survives_a_file(store, short, tmp_path):
    m = model_of('resnet1d')
    t = embed(m, store)
    assert list(t['record']) == list(store.frame['record']) and len(columns(t)) == 16
    np.testing.assert_array_equal(t[columns(t)].to_numpy(), features(m, store))
    t.to_parquet(tmp_path/'t.parquet', index=False)
    again = pd.read_parquet(tmp_path/'t.parquet')
    np.testing.assert_array_equal(again[columns(again)], t[columns(t)])
    assert [list(v) for v in again['labels']] == [list(v) for v in t['labels']]
    windows, records = embed(m, short), embed(m, short, by_record=True)
    assert len(windows) == 24 and len(records) == 12
    np.testing.assert_allclose(records[columns(records)].to_numpy()[0], windows[columns(windows)].to_numpy()[:2].mean(0), atol=1e-6)
    tokens = embed(m, short, -1, 'tokens')
    assert list(tokens['token'][:14]) == [*range(13), 0] and (tokens['record'][:26] == windows['record'][0]).all()
    with pytest.raises(ECGError, match='a table of tokens'): whole(tokens)


def test_pca_is_that_of_scikit_learn_and_the_figure_says_its_share(store):
    from sklearn.decomposition import PCA
    x = np.random.default_rng(0).normal(size=(50, 6))*[5, 3, 2, 1, 1, .1] + 7
    z, share = pca(x)
    theirs = PCA(2).fit(x)
    np.testing.assert_allclose(np.abs(z), np.abs(theirs.transform(x)), atol=1e-9)
    np.testing.assert_allclose(share, theirs.explained_variance_ratio_, atol=1e-12)
    t = embed(model_of('resnet1d'), store)
    a = scatter(t).axes[0]
    assert a.get_xlabel().startswith(f'component 1: {100*pca(t[columns(t)])[1][0]:.0f} % of the variance')
    assert 'distances mean little' in scatter(t, by='patient', how='tsne').axes[0].get_xlabel()
    assert len(scatter(t.assign(age=np.arange(len(t))*1.), by='age').axes) == 2                       # and its scale


def test_umap_says_what_to_install_where_it_is_not(store, monkeypatch):
    t = embed(model_of('resnet1d'), store)
    monkeypatch.setattr(embed_module.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ECGError, match='pip install umap-learn'): scatter(t, how='umap')


@pytest.mark.parametrize('how, says', [(dict(layer=9, pool='mean'), 'this encoder has 2'), (dict(layer='x', pool='mean'), "no layer 'x'"),
                                       (dict(pool='avg'), "pool='avg'"), (dict(pool='cls'), 'StVit has no CLS')])
def test_bad_input_of_embed(how, says, store):
    with pytest.raises(ECGError, match=says): embed(model_of('st_vit'), store, **how)


def test_sides_share_no_recording_and_no_copy(store, short):
    s, f = pairs(store), store.frame
    rows = [i for side in ('gallery', 'probe') for r in s[side] for i in r]
    assert len(rows) == len(set(rows)) == len(f)                               # each recording once
    assert s['gallery_who'] == list(dict.fromkeys(f['patient'])) and len(s['probe']) == len(f) - f['patient'].nunique()
    for who, r in zip(s['probe_who'], s['probe']): assert (f['patient'].iloc[r] == who).all()
    class Copied:                                                              # every window has the same samples
        frame = f
        def rows(self, i): return store.rows(np.zeros(len(i), int))
    with pytest.raises(ECGError, match='no patient has two different recordings'): pairs(Copied())
    w = pairs(short, windows=True)
    assert len(w['gallery']) == len(w['probe']) == 12 and w['gallery_who'] == list(short.frame['record'].unique())
    with pytest.raises(ECGError, match='no recording has two windows'): pairs(store, windows=True)


def test_who_is_known_is_found_and_chance_is_chance(store):
    f = store.frame
    names, who = np.unique(f['patient'], return_inverse=True)
    code = np.random.default_rng(0).normal(size=(len(names), 8))
    z = code[who]
    v = numbers(*compare(z, pairs(store)), np.ones((1, len(pairs(store)['probe']))))
    assert v['top1'][0] == v['top5'][0] == 1 and v['eer'][0] == 0
    luck = [numbers(*compare(np.random.default_rng(s).normal(size=z.shape), pairs(store)), np.ones((1, len(pairs(store)['probe'])))) for s in range(60)]
    G = len(pairs(store)['gallery'])
    assert np.mean([v['top1'][0] for v in luck]) == pytest.approx(1/G, abs=.02) and np.mean([v['top5'][0] for v in luck]) == pytest.approx(5/G, abs=.04)
    assert np.mean([v['eer'][0] for v in luck]) == pytest.approx(.5, abs=.05)
    same = numbers(*compare(np.ones(z.shape), pairs(store)), np.ones((1, len(pairs(store)['probe']))))
    assert same['top1'][0] == 0                                                # ties count against
    assert same['eer'][0] == pytest.approx(.5)


def test_equal_error_is_that_of_the_roc_curve_and_weights_repeat():
    from sklearn.metrics import roc_curve
    rng = np.random.default_rng(0)
    right, wrong = rng.normal(1, 1, 300), rng.normal(0, 1, (300, 20))
    a, b, _ = roc_curve(np.r_[np.ones(300), np.zeros(6000)], np.r_[right, wrong.ravel()])
    i = np.abs(a - (1 - b)).argmin()
    assert equal_error(right, wrong) == pytest.approx((a[i] + 1 - b[i])/2, abs=.004)
    w = rng.integers(0, 3, (1, 300)).astype(float)
    again = np.repeat(np.arange(300), w[0].astype(int))
    assert equal_error(right, wrong, w)[0] == pytest.approx(equal_error(right[again], wrong[again]), abs=1e-9)


def test_the_evaluation_states_its_protocol(store, short):
    m = model_of('resnet1d')
    r = identify(m, store, '', twins=1, times=100)
    f = r.frame.set_index('metric')
    assert list(f.index) == ['top1', 'top5', 'eer'] and f.loc['top1', 'chance'] == pytest.approx(1/store.frame['patient'].nunique())
    assert (f['model_low'] <= f['model']).all() and (f['model'] <= f['model_high']).all() and (f['gain'] == f['model'] - f['random']).all()
    assert 'no recording on both sides' in r.protocol and r.to_json()['rows'][2]['metric'] == 'eer'
    assert 'OTHER WINDOWS OF THE SAME RECORDING' in identify(m, short, '', windows=True, twins=1, times=100).protocol
    again = identify(m, store, '', twins=1, times=100)
    pd.testing.assert_frame_equal(r.frame, again.frame)


def test_umap_draws_twice_the_same_and_without_a_word(store):
    pytest.importorskip('umap')
    import warnings
    from ecgnb.embed import flat
    x = np.random.default_rng(0).normal(size=(12, 5))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        (a, axes), (b, _) = (flat(x, 'umap', seed=3) for _ in range(2))
    assert a.shape == (12, 2) and 'distances mean little' in axes[0]
    np.testing.assert_array_equal(a, b)
    with pytest.raises(ECGError, match='3 rows make no map; wanted 4'): flat(x[:3], 'umap')


@pytest.mark.parametrize('figure', ['map.txt', 'map', 'nowhere/map.png'])
def test_a_figure_that_cannot_be_written_is_refused_before_the_work(figure):
    from ecgnb.embed import How
    with pytest.raises(ECGError, match='wanted a name such as map.png'): How(figure=figure)
    assert How(figure='map.png').figure == 'map.png'

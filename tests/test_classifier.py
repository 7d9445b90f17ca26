"A classifier's parts, weights and thresholds, and how its answers are judged: against slow counts, scikit-learn and ECG-FM's loss."
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, precision_score, recall_score, roc_auc_score
from torch.nn import functional as F

from ecgnb import source
from ecgnb.batch import collate, sample_seeds
from ecgnb.challenge import challenge_score, label_set
from ecgnb.classifier import judge, keep_thresholds, measured, of_recordings, probabilities, report, threshold, thresholds_of
from ecgnb.encoders.decoder import Decoder
from ecgnb.encoders.vit1d import Vit1d
from ecgnb.encoders.wav2vec2 import Wav2vec2
from ecgnb.encoders.xresnet1d import Xresnet1d
from ecgnb.evaluate import main
from ecgnb.fit import fit
from ecgnb.hub import load, save
from ecgnb.leads import ECGError
from ecgnb.metrics import answers, auprc, auroc, best_threshold, calibration, exact, f1, micro, reliability
from ecgnb.objectives.classify import Classify, bce, gathered
from ecgnb.prepare import prepare
from ecgnb.recipes import build
from ecgnb.registry import registries
from ecgnb.representations.signal import Signal
from ecgnb.representations.symbols import Symbols
from ecgnb.train import train

NAN = float('nan')


def vit(length=100, **kw): return Vit1d(**dict(length=length, patch=25, dim=16, depth=2, heads=2) | kw)


def model(encoder=None, length=200, **kw):
    torch.manual_seed(0)
    return Classify(Signal(fs=100., length=length), encoder or vit(), **{'classes': 'A,B,C', 'segments': 2, **kw})


def batch(n=4, length=200, seed=1):
    g = torch.Generator().manual_seed(seed)
    return dict(signal=torch.randn(n, 12, length, generator=g), seed=sample_seeds(0, 0, range(n)),
                label=(torch.rand(n, 3, generator=g) < .4).float())


def half_recorded(b, rows=(0,)):
    v = torch.ones_like(b['signal'], dtype=torch.bool)
    v[list(rows), :, 100:] = False
    return b | {'valid': v}


# --- the loss

def test_the_loss_is_that_of_ecg_fm(data):
    "ECG-FM sums over (B, C) and divides by B * C: with every label known, the mean over a sample's labels, then over samples."
    d = load_file(data/'parity/fairseq_signals__ecg_transformer_classifier/io.safetensors')
    logits, label = d['out/logits/logits'], d['in/label']
    torch.testing.assert_close(bce(logits, label), d['out/logits/loss_sum']/d['out/logits/sample_size'], atol=1e-6, rtol=1e-6)
    p = torch.tensor([.5, .1, .2, .3, .05])
    wanted = F.binary_cross_entropy_with_logits(logits, label, pos_weight=(1 - p)/p)
    torch.testing.assert_close(bce(logits, label, (1 - p)/p), wanted)


def test_positive_weight_in_the_objective():
    b, m = batch(), model(weight='positive', prior='.1,.4,.25', segments=1, encoder=vit(200)).eval()
    p = torch.tensor([.1, .4, .25])
    out = m(b)
    torch.testing.assert_close(out.loss, F.binary_cross_entropy_with_logits(out.pred['logits'], b['label'], pos_weight=(1 - p)/p))
    odds = lambda q: q/(1 - q)
    torch.testing.assert_close(odds(out.pred['prob']), odds(out.pred['logits'].sigmoid())*odds(p))     # the weight is undone
    with pytest.raises(ECGError, match="weight='positive' wants 3 numbers"): model(weight='positive')


# --- parts of a window

def test_parts_are_what_the_encoder_says_of_each_alone():
    m, b = model(most='C').eval(), batch()
    y, known = m.parts(b)
    x = m.representation(b)['signal']                               # normalised over the whole window
    halves = [m.head(m.encoder.features(x[..., s])) for s in (slice(100), slice(100, 200))]
    torch.testing.assert_close(y, torch.stack(halves, 1))
    assert known is None
    torch.testing.assert_close(m.logits(b)[:, 2], y[..., 2].amax(1))
    torch.testing.assert_close(m.logits(b)[:, :2].sigmoid(), y[..., :2].sigmoid().mean(1))
    torch.testing.assert_close(m.predict(b), m.logits(b).sigmoid())


def test_an_encoder_that_cuts_by_itself_says_the_same():
    how = dict(dim=16, depth=1, heads=2, width=8, convs=3, kernel=4, groups=2, dropout=0., attention_dropout=0., input_dropout=0.)
    a, c = model(Wav2vec2(length=200, segment=100, **how), most='B'), model(Wav2vec2(length=100, **how), most='B')
    c.load_state_dict(a.state_dict())
    for b in (batch(), half_recorded(batch())):
        for m in (a, c): m.train()
        la, lc = a(b).loss, c(b).loss
        torch.testing.assert_close(la, lc)
        for m in (a, c): m.eval()
        torch.testing.assert_close(a.logits(b), c.logits(b))
    one = model(Wav2vec2(length=200, segment=100, **how), segments=1)     # as a whole: the mean of the parts' features
    assert one.parts(batch())[0].shape == (4, 1, 3)


def test_in_training_every_part_is_a_sample():
    m, b = model().train(), batch()
    y, _ = m.parts(b)
    torch.testing.assert_close(m(b).loss, bce(y.flatten(0, 1), b['label'].repeat_interleave(2, 0)))
    torch.testing.assert_close(m(b).pred['logits'], gathered(y, None, m.likeliest).detach())
    parts = [m({k: v[i:i + 2] for k, v in b.items()}).loss for i in (0, 2)]
    torch.testing.assert_close(torch.stack(parts).mean(), m(b).loss)       # two ranks are as good as one
    m.eval()
    torch.testing.assert_close(m(b).loss, bce(m.logits(b), b['label']))


def test_a_part_that_was_not_recorded_has_no_say():
    m, b = model(most='A').train(), half_recorded(batch())
    torch.testing.assert_close(m(b).loss, m(b | {'signal': torch.where(b['valid'], b['signal'], torch.tensor(50.))}).loss)
    y, known = m.parts(b)
    assert known.tolist() == [[True, False], [True, True], [True, True], [True, True]]
    one = bce(y[:1, 0], b['label'][:1])
    rest = bce(y[1:].flatten(0, 1), b['label'][1:].repeat_interleave(2, 0))
    torch.testing.assert_close(m(b).loss, (one + 3*rest)/4)                # each recording weighs the same
    torch.testing.assert_close(m.eval().logits(b)[0], y[0, 0])
    nothing = b | {'valid': torch.zeros_like(b['valid'])}
    assert m.train()(nothing).loss == 0 and m.eval().logits(nothing).isfinite().all() and m.predict(nothing).isnan().all()
    m.train()(nothing).loss.backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in m.parameters())


@pytest.mark.parametrize('known', [None, torch.tensor([[True, False, True]]), torch.tensor([[False]*3])])
def test_gathering_by_hand(known):
    y, most = torch.tensor([[[-90., 3.], [95., -2.], [1., 60.]]]), torch.tensor([False, True])
    rows = [i for i in range(3) if known is None or known[0, i] or not known.any()]
    mean = y[0, rows, 0].double().sigmoid().mean()
    torch.testing.assert_close(gathered(y, known, most)[0, 0].double().sigmoid(), mean)
    assert gathered(y, known, most)[0, 1] == y[0, rows, 1].max()


# --- parts of the encoder that are not trained

def test_frozen_parts_stay_as_they_are():
    b = batch()
    b['label'][0, 0] = NAN
    m = model(Xresnet1d(length=200, size='18'), segments=1, frozen='stem')
    before = {k: v.clone() for k, v in m.state_dict().items()}
    for _ in fit(m, [b], 2, lr=1e-2): pass
    moved = {k for k, v in m.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith('encoder.stem') for k in before) and not any(k.startswith('encoder.stem') for k in moved)
    assert {'head.weight', 'head.bias'} < moved and any(k.startswith('encoder.') for k in moved)
    assert not any(k.startswith('encoder.stem') for k in m.rates())
    two = model(frozen='embedding, transformer.1')
    assert {k for k, p in two.named_parameters() if not p.requires_grad} == {
        k for k, _ in two.named_parameters() if k.startswith(('encoder.embedding.', 'encoder.transformer.1.'))}


def test_what_is_refused():
    for kw, text in [(dict(segments=0), 'segments=0'), (dict(segments=3), 'does not divide'),
                     (dict(segments=4), 'type model.encoder.length=50'), (dict(frozen='stem'), 'has no stem; it has'), (dict(frozen='trans'), 'has no trans'),
                     (dict(most='D'), 'D is no class'), (dict(freeze=True, frozen='embedding'), 'leave out frozen'), (dict(thresholds='.5,.5'), 'wanted 3 numbers'),
                     (dict(thresholds='.5,.5,2'), 'wanted 3 numbers'), (dict(thresholds='.5,.5,x'), 'wanted 3 numbers')]:
        with pytest.raises(ECGError, match=text): model(**kw)
    with pytest.raises(ECGError, match='no thresholds were chosen'): model().says(batch())
    words = Symbols(fs=100., length=200)
    with pytest.raises(ECGError, match='cuts a signal'):
        Classify(words, Decoder(vocab=words.vocab, dim=8, depth=1, heads=1), classes='A', segments=2)


# --- metrics

def made(n=60, k=4, seed=0, gaps=.1):
    g = np.random.default_rng(seed)
    y = (g.random((n, k)) < .3).astype(float)
    s = np.round(1/(1 + np.exp(-(y*1.5 - .8 + g.normal(size=y.shape)))), 2)        # rounded: ties
    y[g.random(y.shape) < gaps] = np.nan
    return s, y, g.integers(0, 3, (5, n)).astype(float)


def test_metrics_against_scikit_learn():
    s, y, w = made()
    said, known = s >= .4, ~np.isnan(y)
    got, fit_ = answers(said, y, w), calibration(s, y, w)
    at, k = np.nonzero(known)
    for i in range(len(w)):
        for col in range(4):
            m = known[:, col]
            a, b, ww = y[m, col], s[m, col], w[i, m]
            how = dict(sample_weight=ww)
            assert auroc(b, a, w[:, m])[i] == pytest.approx(roc_auc_score(a, b, **how))
            assert auprc(b, a, w[:, m])[i] == pytest.approx(average_precision_score(a, b, **how))
            assert got['f1'][i, col] == pytest.approx(f1_score(a, b >= .4, **how)) == pytest.approx(f1(b, a, w[:, m], .4)[i])
            assert got['precision'][i, col] == pytest.approx(precision_score(a, b >= .4, **how))
            assert got['recall'][i, col] == pytest.approx(recall_score(a, b >= .4, **how))
            assert fit_['brier'][i, col] == pytest.approx(brier_score_loss(a, b, **how))
        how = dict(sample_weight=w[i, at])
        assert micro(auroc, s, y, w, cells=300)[i] == pytest.approx(roc_auc_score(y[known], s[known], **how))
        assert micro(auprc, s, y, w)[i] == pytest.approx(average_precision_score(y[known], s[known], **how))
        assert got['f1'][i, 4] == pytest.approx(f1_score(y[known], said[known], **how))
        assert fit_['brier'][i, 4] == pytest.approx(brier_score_loss(y[known], s[known], **how))
        right = ((said == (y > .5)) | ~known).all(1)
        assert exact(said, y, w)[i] == pytest.approx(np.average(right, weights=w[i]))
    p, share, n = reliability(s[known], y[known])
    assert n.sum() == known.sum()
    assert (np.abs(p - share)*n).sum()/n.sum() == pytest.approx(calibration(s, y, np.ones((1, 60)))['ece'][0, 4])


def test_one_sided_classes_have_no_area():
    w = np.ones((2, 3))
    for y in (np.zeros(3), np.ones(3)): assert np.isnan(auroc(np.arange(3.), y, w)).all()
    assert np.isnan(auprc(np.arange(3.), np.zeros(3), w)).all() and (auprc(np.arange(3.), np.ones(3), w) == 1).all()
    assert np.isnan(auroc(np.zeros(0), np.zeros(0)))


def test_thresholds():
    g = np.random.default_rng(3)
    for _ in range(50):
        s, y = np.round(g.random(12), 1), (g.random(12) < .5).astype(float)
        if not 0 < y.sum() < 12: continue
        best = max(f1_score(y, s >= v) for v in s)
        assert f1_score(y, s >= best_threshold(s, y)) == pytest.approx(best) == pytest.approx(f1_score(y, s >= float(threshold(s, y))))
    close = np.array([.5, np.nextafter(.5, 1)])
    assert (close >= float(threshold(close, np.array([0., 1.])))).tolist() == [False, True]
    out, few = thresholds_of(np.array([[.1, .5], [.9, .6], [.2, .7]]), np.array([[0., 1], [1, 1], [NAN, NAN]]), ['A', 'B'])
    assert out == {'A': '0.5', 'B': '0.5'} and few == ['B']


# --- recordings and the report

def test_windows_become_recordings():
    g = np.random.default_rng(0)
    who = g.integers(0, 5, 40)
    frame = pd.DataFrame(dict(record=[f'r{i}' for i in who], patient=[f'p{i//2}' for i in who]))
    prob, labels = g.random((40, 3)), (who[:, None] == np.arange(3)).astype(float)
    p, y, patients = of_recordings(frame, prob, labels, np.array([False, True, False]))
    for i in range(5):
        np.testing.assert_allclose(p[i, [0, 2]], prob[who == i][:, [0, 2]].mean(0))
        assert p[i, 1] == prob[who == i, 1].max() and y[i].tolist() == [i == k for k in range(3)] and patients[i] == f'p{i//2}'


def test_the_challenges_score_is_among_the_numbers_of_its_classes():
    g, names = np.random.default_rng(0), label_set('cinc2021')
    y = (g.random((80, 26)) < .15).astype(float)
    prob, patients = np.clip(y*.4 + g.random(y.shape)*.6, 0, 1), np.array([f'p{i//2}' for i in range(80)])
    y[0, 3] = np.nan
    order = g.permutation(26)                                       # the order of the model's classes does not matter
    f = measured(prob[:, order], y[:, order], patients, np.full(26, .5), [names[i] for i in order], np.ones(26, bool), times=100)
    row = f[f['metric'] == 'challenge'].iloc[0]
    assert row['value'] == pytest.approx(challenge_score(y[1:], prob[1:] >= .5)) and row['n'] == 79
    assert row['low'] < row['value'] < row['high']
    plain = measured(prob[:, :5], y[:, :5], patients, np.full(5, .5), list(names[:5]), np.ones(5, bool), times=100)
    assert 'challenge' not in set(plain['metric']) and set(plain['class']) == {*names[:5], 'macro', 'micro', 'all'}
    at = plain.set_index(['metric', 'class'])['value']
    assert at['auroc', 'macro'] == pytest.approx(np.mean([at['auroc', c] for c in names[:5]])) != pytest.approx(at['auroc', 'micro'])


@pytest.fixture(scope='module')
def case(stores):
    "An untrained classifier of two parts, its classes in another order than the store's, which has two windows a recording."
    src = registries['source']['sample'](n=120, seconds=8, fs=100, records_per_patient=1)
    store = prepare(src, stores/'two_windows', fs=100., seconds=4., nan='keep', progress=False)
    names = [*reversed(store.classes)]
    return model(vit(200), length=400, classes=','.join(names), most=names[0]), store


def test_judge_counts_recordings_by_name(case):
    m, store = case
    r = judge(m, store, times=100)
    view = store.fold('test')
    assert len(view) == 2*len(r.prob) and len(set(view.frame['record'])) == len(r.prob)
    p = probabilities(m, view)
    y = view.labels[:, ::-1]
    rows = view.frame['record'].to_numpy(str)
    first = sorted(set(rows))[0]
    wanted = p[rows == first].mean(0)
    wanted[0] = p[rows == first, 0].max()
    np.testing.assert_allclose(r.prob[0], wanted)
    np.testing.assert_array_equal(r.labels[0], y[rows == first][0])
    assert r.value('auroc', m.names[1]) == pytest.approx(roc_auc_score(r.labels[:, 1], r.prob[:, 1]))
    assert 'Micro: all known cells of 5 classes' in r.protocol and f'largest of {m.names[0]}' in r.protocol
    again = judge(m, store, times=100, batch_size=7)
    pd.testing.assert_frame_equal(r.frame, again.frame)
    json.dumps(r.to_json(), allow_nan=False)


def test_what_cannot_be_judged(case):
    m, store = case
    with pytest.raises(ECGError, match='no thresholds were chosen'): judge(m, store, thresholds='model')
    with pytest.raises(ECGError, match='is in two parts'): judge(m, store, val='10')
    with pytest.raises(ECGError, match='wanted a model of objective classify'): judge(m.encoder, store)
    other = model(vit(200), length=400, classes='NORM,AF')
    with pytest.raises(ECGError, match='no labels of AF'): judge(other, store)


def test_thresholds_are_kept_with_the_weights_untouched(case, tmp_path, capsys):
    m, store = case
    home = tmp_path/'checkpoint'
    save(m, home)
    config = json.loads((home/'config.json').read_text())
    weights = (home/'model.safetensors').read_bytes()
    run = {'source': {'source': 'sample'}}
    r = report(home, home, config, run, m, store, times=100)
    assert (home/'model.safetensors').read_bytes() == weights and not list(home.glob('.*'))
    kept = load(home, verbose=False)
    assert kept.levels == [float(r.thresholds[c]) for c in m.names] and (home/'classifier.png').stat().st_size > 1000
    b = dict(signal=torch.randn(3, 12, 400))
    assert torch.equal(kept.says(b), kept.predict(b).double() >= torch.tensor(kept.levels).double())
    assert judge(kept, store, thresholds='model', times=100).value('f1') == r.value('f1')
    assert 'exact' in (home/'results.json').read_text() and 'every known label right' in capsys.readouterr().out
    before = (home/'config.json').read_text()
    elsewhere = config | {'run': {'source': {'source': 'other'}, 'train': {'train': 'train', 'start': ''}}}
    report(home, home, elsewhere, run, m, store, times=100)         # other data than those of the run: nothing is kept
    assert (home/'config.json').read_text() == before
    with pytest.raises(ECGError, match='wanted classify with A'): keep_thresholds(home, {'A': '.5'})
    kept.begin({}, home, config)
    assert kept.thresholds == ''


def test_a_run_of_the_challenges_recordings(data, stores, tmp_path, capsys):
    small = ['model=classify', 'model.encoder=vit1d', 'model.encoder.dim=16', 'model.encoder.depth=1', 'model.encoder.heads=2']
    run = build('tiny', *small, 'source=wfdb_folder', f'source.root={data}/cinc2021', 'source.patient=record', 'fit.steps=2',
                'train.batch_size=2', 'train.every=2', f'out={tmp_path}/run')
    assert train(run, quiet=True)['windows'] == {'train': 10, 'val': 1}
    with pytest.raises(ECGError, match='has two patients with and two without it in fold test'): main([f'{tmp_path}/run', 'times=100'])
    with pytest.raises(ECGError, match='is in two parts'): main([f'{tmp_path}/run', 'times=100', 'test=1-8,10', 'val=1-8'])
    capsys.readouterr()
    main([f'{tmp_path}/run', 'times=100', 'test=1-8,10'])
    said = capsys.readouterr().out
    assert 'WARNING: the model was trained on 10 of these patients' in said and 'No threshold can be chosen there for' in said


def test_a_window_in_parts_says_the_mean_of_what_its_parts_say():
    "Also where a weight is undone: parts of logits 4 and -4 and a share of 0.02."
    m = Classify(Signal(length=500), Vit1d(length=250, dim=16, depth=1, heads=2), classes='A', weight='positive', prior='.02', segments=2)
    each = torch.tensor([[[4.], [-4.]]])
    torch.testing.assert_close(m.prob(m.put_together(each, None)), m.prob(each).mean(1))


def test_ecgs_of_another_rate_or_order_are_refused():
    e = source['sample'](n=1, seconds=4., fs=250.).read(0).crop(0, 2)
    m = Classify(Signal(length=500), Vit1d(length=500, dim=16, depth=1, heads=2), classes='A').eval()
    assert m.predict(collate([e])).shape == (1, 1)
    with pytest.raises(ECGError, match='at 125 Hz; this model reads .* at 250 Hz: e.pick'): m.predict(collate([e.but(fs=125.)]))
    with pytest.raises(ECGError, match='ECGs of II,I'): m.predict(collate([e.pick(['II', 'I', *e.leads[2:]])]))

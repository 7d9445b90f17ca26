"""ECG-FM's encoder, pretraining and classifier against numbers written by fairseq-signals (data set `parity`); weights go through `convert`."""
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ecgnb.encoders import wav2vec2
from ecgnb.encoders.wav2vec2 import Wav2vec2, about, convert_classifier, infer, ready, wav2vec2_rules
from ecgnb.objectives import w2v_cmsc_rlm
from ecgnb.objectives.classify import Classify
from ecgnb.objectives.w2v_cmsc_rlm import W2vCmscRlm, convert, expected, perplexity, spans
from ecgnb.pairs import segments_loss
from ecgnb.representations.signal import Signal
from ecgnb.transformer import pool, rename
from reference import STANDARD, Fixture

NAME, SMALL_HEADS = 'fairseq_signals__wav2vec2_cmsc', dict(heads=4)
LARGE = dict(dim=1024, depth=24, heads=16)


class Padded(Wav2vec2):
    "The published way with padding: zeros count in the group norm, and padded tokens reach the positional convolution."
    def convolve(self, x, valid=None):
        there = None if valid is None else valid.any(1)
        return self.stem(x), None if there is None else self.whole(there)

    def encode(self, z, keep=None):
        z = z + self.positions(z)
        return self.blocks(self.first_norm(z * keep[..., None]), keep)


def model(f, kind=Wav2vec2, **more):
    "(W2vCmscRlm of the fixture's sizes with converted weights, segments folded in pairs)"
    a = f.args
    fields = infer(f.weights) | SMALL_HEADS | dict(input_dropout=0., dropout=0., attention_dropout=0., grad=a['feature_grad_mult'])
    enc = kind(length=1000, segment=500, prenorm=a.get('layer_norm_first', False), **fields)
    m = W2vCmscRlm(Signal(length=1000, norm='none'), enc, span=a['mask_length'], rivals=a['num_negatives'], proj=a['final_dim'],
                   codes=a['latent_vars'], target_dropout=0., **more)
    m.load_state_dict(convert(f.weights, m))
    return m.eval()


def windows(x): return x.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2)       # segments (2B, C, T) -> (B, C, 2T)

def places(mask):
    "mask (B, N) bool, equally many True a row -> their places (B, M), ascending."
    return mask.nonzero()[:, 1].reshape(len(mask), -1)

def injected(f, call, mask='in/mask_indices'):
    "The fixture's draws as `forward` takes them: integers below M - 1 become numbers in [0, 1)."
    at, drawn = places(f.io[mask]), f.call(call)['draws']
    M, out = at.shape[1], dict(masked=at)
    for d in drawn:
        v = f.io[d['key']]
        if d['function'] == 'torch.randint': out['rivals'] = (v.reshape(len(at), M, -1) + .5) / (M - 1)
        else: out['noise'] = -v.log().reshape(len(at), M, 2, -1)
    return out


def seen(m, x, valid=None):
    "Everything between signal and tokens: dict of the names that the fixture uses."
    out, hooks = {}, []
    def keep(name): return lambda mod, args, y: out.__setitem__(name, y)
    hooks.append(m.positions.register_forward_hook(keep('conv_pos')))
    weights = []
    for i, b in enumerate(m.blocks):
        def look(mod, args, y, i=i):
            z, keys, *_ = (*args, None)
            if mod.prenorm: z = mod.norm1(z)
            q, k, _ = mod.qkv(z).unflatten(-1, (3, mod.heads, -1)).permute(2, 0, 3, 1, 4)
            s = q @ k.mT / q.shape[-1] ** .5
            if keys is not None: s = s.masked_fill(~keys[:, None, None], float('-inf'))
            weights.append(s.softmax(-1).mean(1))
            out[f'layer{i}'] = y
        hooks.append(b.register_forward_hook(look))
    with torch.no_grad():
        f, there = m.convolve(x, valid)
        z = m.encode(m.enter(m.norm(f)), there)
    for h in hooks: h.remove()
    return out | dict(x=z, features=m.norm(f), conv_features=f.mT, saliency=torch.stack(weights, 1), mean_pooled=pool(z, there), there=there)


@pytest.mark.parametrize('name', [NAME, NAME + '__layer_norm_first'])
def test_parity_features(name):
    f = Fixture(name)
    e, x = model(f).encoder, f.io['in/source']
    got = seen(e, x)
    for key in f.call('extract_features')['outputs']: f.check('extract_features', key, got[key])
    with torch.no_grad():
        z = e(windows(x))
        assert torch.equal(z.reshape(6, -1, 48), got['x']), 'segments are encoded each by itself'
        torch.testing.assert_close(e.features(windows(x)), got['mean_pooled'].unflatten(0, (-1, 2)).mean(1))


def test_parity_features_padded():
    "As published, and then as we do it: a padded segment is the same as a shorter one."
    f = Fixture(NAME)
    e, x, valid = model(f, Padded).encoder, f.io['in/extract_features_padded.source'], ~f.io['in/padding_mask']
    got = seen(e, x, valid)
    there = got['there']
    assert torch.equal(~there, f.io['out/extract_features_padded/token_padding_mask'])
    for key in f.call('extract_features_padded')['outputs'].keys() - {'token_padding_mask', 'saliency'}:
        f.check('extract_features_padded', key, got[key])
    f.check('extract_features_padded', 'saliency', got['saliency'])
    ours = model(f).encoder
    with torch.no_grad():
        z, n = pool(seen(ours, x, valid)['x'], there), valid[:, 0].sum(1)
        assert n.min() < 500 and not torch.allclose(z, got['mean_pooled'], atol=1e-3)
        for i in n.argsort()[:2]:
            short = seen(ours, x[i:i + 1, :, :n[i]])['x'].mean(1)
            torch.testing.assert_close(z[i:i + 1], short, atol=1e-5, rtol=1e-4)


def check_pretrain(f, call, m):
    "Forward and its logits, codes, perplexities."
    x, drawn = f.io['in/pretrain_eval.source'], injected(f, call)
    with torch.no_grad(): out = m({'signal': windows(x)}, drawn)
    f.check(call, 'logits_raw', out.pred['scores'].permute(2, 0, 1))
    f.check(call, 'cmsc_features', out.pred['vectors'])
    f.check(call, 'features_pen', out.logs['penalty'])
    f.check(call, 'prob_perplexity', out.logs['prob_perplexity'])
    f.check(call, 'code_perplexity', out.logs['code_perplexity'])
    e, at = m.encoder, drawn['masked'][..., None]
    with torch.no_grad():
        g = e.norm(e.convolve(x)[0])
        g = g.gather(1, at.expand(-1, -1, g.shape[-1]))
        q, _, _ = m.codebook(g, torch.tensor(2.), drawn.get('noise'))
        f.check(call, 'quantizer_input', g)
        f.check(call, 'quantized', q)
        f.check(call, 'targets', m.to_answer(q))
    assert torch.equal(out.pred['mask'].reshape(6, -1), f.io['in/mask_indices'])


def test_parity_pretraining_eval():
    f = Fixture(NAME)
    check_pretrain(f, 'pretrain_eval', model(f))


def test_parity_pretraining_train():
    f = Fixture(NAME)
    m = model(f, cmsc=0.).train()
    check_pretrain(f, 'pretrain_train', m)
    assert m.batches == 1 and f.io['out/pretrain_train/temp'] == 2 == m.warm


def test_parity_pretraining_padded():
    f, call = Fixture(NAME), 'pretrain_eval_padded'
    m, x, valid = model(f, Padded), f.io['in/extract_features_padded.source'], ~f.io['in/padding_mask']
    e, drawn = m.encoder, injected(f, call, 'in/pretrain_eval_padded.mask_indices')
    at, mask = drawn['masked'], f.io['in/pretrain_eval_padded.mask_indices']
    take = lambda v: v.gather(1, at[..., None].expand(-1, -1, v.shape[-1]))
    with torch.no_grad():
        conv, there = e.convolve(x, valid)
        g = e.norm(conv)
        z = e.encode(torch.where(mask[..., None], m.mask_token, e.enter(g)), there)
        q, which, p = m.codebook(take(g))
        code = which[..., 0] * m.codes + which[..., 1]
        n = torch.full((6,), at.shape[1])
        s = m.guess(m.to_context(take(z)), m.to_answer(q), code[:, :, None] == code[:, None], drawn['rivals'], n)
    f.check(call, 'logits_raw', s.permute(2, 0, 1))
    f.check(call, 'cmsc_features', pool(z, there))
    f.check(call, 'quantized', q)
    f.check(call, 'prob_perplexity', perplexity(p.mean((0, 1))))
    f.check(call, 'features_pen', conv.square().mean())


def grads(f, m, call, scale, theirs='', ours='encoder.', more=()):
    "Gradient norms of the reference's parameters, read from ours through the renaming."
    got, rules, worst = {k: p.grad for k, p in m.named_parameters()}, [*wav2vec2_rules(theirs, ours), *more], 0.
    for key, norm in f.call(call)['grad_norms'].items():
        one = re.fullmatch(r'(.*encoder\.layers\.)(\d+)\.self_attn\.([qkv])_proj\.(\w+)', key)
        if one: g = got[f'{ours}blocks.{one[2]}.qkv.{one[4]}'].chunk(3)['qkv'.index(one[3])]
        else: g = got[next(iter(rename({key: f.weights[key]}, rules)))]
        if norm is None: assert g is None or not g.any(), key; continue
        if not m.training and 'feature_extractor' in key: g = g * m.encoder.grad       # here the stem's gradient is smaller in training alone
        worst = max(worst, abs(g.norm().item() * scale - norm) / max(norm, 1e-3))
    print(f'{f.name} {call}: {len(f.call(call)["grad_norms"])} gradient norms, worst relative difference {worst:.1e}')
    assert worst < 1e-3


PRETRAINED = [(r'mask_emb', 'mask_token'), (r'quantizer\.vars', 'codebook.entries'), (r'quantizer\.weight_proj\.(\w+)', r'codebook.score.\1'),
              (r'project_q\.(\w+)', r'to_answer.\1'), (r'final_proj\.(\w+)', r'to_context.\1')]

@pytest.mark.parametrize('call', ['criterion_eval', 'criterion_eval_distinct', 'criterion_train'])
def test_parity_criterion(call, monkeypatch):
    "All four parts of the loss and every gradient; where ids are equal, their segments are partners, as published."
    f = Fixture(NAME)
    m, N = model(f).train(call.endswith('train')), 84
    ids = f.io[f.call(call)['inputs']['patient_id']][::2]
    monkeypatch.setattr(w2v_cmsc_rlm, 'segments_loss', lambda a, b, t, *_: segments_loss(a, b, t, record=ids, training=m.training))
    out = m({'signal': windows(f.io['in/pretrain_eval.source'])}, injected(f, call))
    f.check(call, 'loss', out.loss)
    f.check(call, 'part_loss_0', out.logs['w2v'] * N)
    f.check(call, 'part_loss_1', .1 * (20 - out.logs['prob_perplexity']) / 20 * N)
    f.check(call, 'part_loss_2', 10 * out.logs['penalty'] * N)
    f.check(call, 'part_loss_3', out.logs['cmsc'] * N)
    assert round(out.logs['matched'].item() * N) == f.io[f'out/{call}/correct'] and f.io[f'out/{call}/count'] == N
    out.loss.backward()
    grads(f, m, call, N, more=PRETRAINED)


def published(seed, rows, n, share=.65, length=10, least=2):
    "The reference's law from its specification, on numpy's legacy generator: masks (rows, n), cut to the smallest row, and before."
    rng = np.random.RandomState(seed)
    k = max(least, int(share * n / length + rng.rand()))
    full = [np.unique(rng.choice(n - length, k, replace=False)[:, None] + np.arange(length)) for _ in range(rows)]
    low, out = min(map(len, full)), np.zeros((2, rows, n), bool)
    for i, at in enumerate(full):
        out[1, i, at] = True
        out[0, i, rng.choice(at, low, replace=False) if len(at) > low else at] = True
    return out

@pytest.mark.parametrize('call,rows,n,length', [('seed0', 4, 156, 10), ('seed1', 128, 156, 10), ('seed2', 3, 31, 4), ('seed3', 4, 312, 10)])
def test_parity_masking(call, rows, n, length):
    """The published masks to the bit by their law, which cannot be drawn from a sample's own seed (one generator for a batch, rows cut
    to the smallest); what `spans` keeps of it is the mean number of masked tokens before that cut, now the same in every segment."""
    f = Fixture('fairseq_signals__masking')
    cut, _ = published(int(call[4:]), rows, n, length=length)
    assert np.array_equal(cut, f.io[f'out/{call}/mask'].numpy())
    counts = [published(s, 50, n, length=length)[1].sum(1) for s in range(60)]
    want = expected(n, length=length)
    assert abs(np.mean(counts) - want) < 4 * np.std([c.mean() for c in counts]) / 60 ** .5
    mask = torch.zeros(500, n, dtype=torch.bool)
    order = spans(torch.rand(500, n - length + 1, generator=torch.Generator().manual_seed(0)), length)
    mask.scatter_(1, order[:, :round(want)], True)
    assert (mask.sum(1) == round(want)).all() and round(want) > cut.sum(1)[0] - (rows < 5) * n // 10
    runs = (F.pad(mask, (1, 1))[:, 1:].int() - F.pad(mask, (1, 1))[:, :-1].int())
    start, stop = (runs == 1).nonzero(), (runs == -1).nonzero()
    short = torch.zeros(500, dtype=torch.int64).scatter_add_(0, start[:, 0], ((stop - start)[:, 1] < length).long())
    assert short.max() == 1, 'all spans are whole but the last one drawn'


def test_parity_masking_with_padding():
    f = Fixture('fairseq_signals__masking')
    there = ~f.io['in/padding_mask']
    assert not (f.io['out/seed6_padded/mask'] & ~there).any()
    order = spans(torch.rand(6, 28, generator=torch.Generator().manual_seed(0)), 4, there)
    for row, t in zip(order, there): assert t[row[:t.sum()]].all() and not t[row[t.sum():]].any()


def test_parity_random_leads():
    "A lead goes where its draw is under 0.5; the one exception is a segment of which none would be left."
    f = Fixture('fairseq_signals__masking')
    x, u, want = f.io['in/sample'], f.io['in/uniform'].float(), f.io['out/random_leads_mask/masked']
    m = model(Fixture(NAME))
    some = (u >= .5).any(1)
    assert torch.equal(m.hide(x, u)[some], want[some]) and some.any()
    assert (m.hide(x, u * .5).flatten(2).any(2).sum(1) == 1).all(), 'never all leads'


def test_parity_classifier():
    f = Fixture('fairseq_signals__ecg_transformer_classifier')
    assert {k: v for k, v in about(f.weights).items()} == dict(kind='finetuned', classes=5, prefix='encoder.', spare=[])
    fields = infer(f.weights) | SMALL_HEADS | dict(length=500, input_dropout=0., dropout=0., attention_dropout=0., grad=0.)
    m = Classify(Signal(length=500, norm='none'), Wav2vec2(**fields), classes='a,b,c,d,e')
    m.load_state_dict(convert_classifier(f.weights, m))
    x, label = f.io['in/source'], f.io['in/label'].float()
    y = m.eval().logits({'signal': x})
    f.check('logits', 'logits', y)
    f.check('logits', 'encoder_out', m.encoder(x))
    f.check('logits', 'loss_sum', F.binary_cross_entropy_with_logits(y, label, reduction='sum'))
    loss = m({'signal': x, 'label': label}).loss
    f.check('logits', 'loss_sum', loss * 30)
    loss.backward()
    grads(f, m, 'logits', 30, theirs='encoder.', more=[(r'proj\.(\w+)', r'head.\1')])
    assert all(p.grad is None for p in m.encoder.stem.parameters())
    e = Padded(**fields).eval()
    e.load_state_dict(m.encoder.state_dict())
    got = seen(e, f.io['in/logits_padded.source'], ~f.io['in/padding_mask'])
    f.check('logits_padded', 'encoder_out', got['x'] * got['there'][..., None])
    f.check('logits_padded', 'logits', m.head(got['mean_pooled']))


def test_parity_base():
    "The published size, 90,883,072 parameters: features, and the masked forward with its perplexities."
    f = Fixture('full__fairseq_signals__wav2vec2_cmsc_base')
    fields = infer(f.weights)
    assert fields == dict(leads=STANDARD, dim=768, depth=12, heads=12, mlp=3072, width=256, convs=4, kernel=128, groups=16)
    m = W2vCmscRlm(Signal(length=5000, norm='none'), Wav2vec2(length=5000, segment=2500, **fields)).eval()
    assert sum(p.numel() for p in m.parameters()) == 90_883_072
    m.load_state_dict(convert(f.weights, m))
    x = f.io['in/source']
    with torch.no_grad():
        out, e = m({'signal': windows(x)}, injected(f, 'pretrain_eval')), m.encoder
        z = e(windows(x)).unflatten(1, (2, -1))[0]
        f.check('extract_features', 'x_every_12th', z[:, ::12])
        f.check('extract_features', 'mean_pooled', z.mean(1))
        f.check('extract_features', 'features_every_12th', e.norm(e.convolve(x)[0])[:, ::12])
    f.check('pretrain_eval', 'logits', out.pred['scores'].flatten(0, 1).unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
            if f.call('pretrain_eval').get('notes') else out.pred['scores'].transpose(0, 1).flatten(0, 1))
    for key, log in (('features_pen', 'penalty'), ('prob_perplexity',) * 2, ('code_perplexity',) * 2): f.check('pretrain_eval', key, out.logs[log])


def test_parity_counts():
    "Parameters of the published models, without any memory for them."
    count = lambda m: sum(p.numel() for p in m.parameters())
    def whole(**kw): return W2vCmscRlm(Signal(length=5000), Wav2vec2(length=5000, segment=2500, **kw))
    with torch.device('meta'):
        assert count(whole()) == 90_883_072 and count(whole(depth=8)) == 62_531_584 and count(whole(**LARGE)) == 311_940_352
        assert count(Wav2vec2()) == 90_373_248 and count(Wav2vec2(depth=8)) == 62_021_760 and count(Wav2vec2(**LARGE)) == 311_364_736
        for n, total in ((17, 90_386_321), (26, 90_393_242)):
            assert count(Classify(Signal(length=2500), Wav2vec2(), classes=','.join(f'c{i}' for i in range(n)))) == total


def test_parity_spellings_of_the_weight_norm():
    "weight_g and weight_v, the parametrizations of today, and a folded kernel: the same tokens."
    f = Fixture(NAME)
    g, v = (f'conv_pos.pos_conv.0.parametrizations.weight.original{i}' for i in (0, 1))
    rest = {k: w for k, w in f.weights.items() if k not in (g, v)}
    a, b = f.weights[g], f.weights[v]
    old = rest | {'conv_pos.pos_conv.0.weight_g': a, 'conv_pos.pos_conv.0.weight_v': b}
    folded = rest | {'conv_pos.pos_conv.0.weight': a * b / b.norm(dim=(0, 1), keepdim=True)}
    m, x = model(f).encoder, f.io['in/source']
    want = seen(m, x)['x']
    for weights in (old, folded, {f'ecg_encoder.{k}': w for k, w in old.items()}):
        assert infer(weights)['groups'] == 4 and infer(weights)['kernel'] == 16
        with pytest.warns(UserWarning, match='left out.*quantizer.vars'): m.load_state_dict(wav2vec2.convert(weights, m))
        torch.testing.assert_close(seen(m, x)['x'], want, atol=1e-5, rtol=1e-5)


def test_parity_convert_is_strict():
    f = Fixture(NAME)
    m, w = model(f), f.weights
    key = 'encoder.layers.1.self_attn.k_proj.weight'
    with pytest.raises(ValueError, match='missing encoder.layers.1.self_attn.k_proj'): convert({k: v for k, v in w.items() if k != key}, m)
    with pytest.raises(ValueError, match='unknown surprise'): convert(w | {'surprise': w[key]}, m)
    with pytest.raises(ValueError, match='this model has'): convert(w | {'mask_emb': torch.ones(7)}, m)
    with pytest.raises(ValueError, match='the entry "model"'): about({'model': 1})
    with pytest.raises(ValueError, match='no head'): convert_classifier(w)
    with pytest.raises(ValueError, match='name them by leads='): infer(w, 'I,II')
    assert about(w)['kind'] == 'pretrained' and len(about(w)['spare']) == 8 and ready(w).keys() != w.keys()

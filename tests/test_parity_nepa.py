"""next_embedding and causal vit1d against numbers written by the reference NEPA (data set `parity`); weights go through `convert`."""
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ecgnb.encoders import vit1d
from ecgnb.encoders.vit1d import Vit1d
from ecgnb.objectives.next_embedding import NextEmbedding, convert
from ecgnb.representations.signal import Signal
from ecgnb.settings import data_dir

ROOT = (data_dir('parity') or Path('parity-data-not-found'))/'ecg_encoder__nepa'
REFERENCE = dict(over='time', patch=1, prenorm=False, positions='learned', cls=False, patch_norm=False, causal=True, last_norm=False)


def nepa(length, dim, depth, heads, mlp, dropout):
    "NextEmbedding with every field as in the reference."
    e = Vit1d(length=length, dim=dim, depth=depth, heads=heads, mlp=mlp, dropout=dropout, embed_dropout=dropout, **REFERENCE)
    return NextEmbedding(Signal(leads=e.leads, length=length, norm='none'), e, target='embedding', spread=0.)


@pytest.fixture(scope='module')
def ref():
    if not ROOT.exists(): pytest.skip(f'parity data not there ({ROOT}); settings.ini: [data] parity = FOLDER')
    config = json.loads((ROOT/'config.json').read_text())
    a, weights = config['arguments'], load_file(ROOT/'weights.safetensors')
    m = nepa(a['max_seq_len'], a['d_model'], a['num_layers'], a['n_heads'], a['dim_ff'], a['dropout'])
    m.load_state_dict(convert(weights, m))
    return m.eval(), load_file(ROOT/'io.safetensors'), {c['name']: c for c in config['calls']}, weights, config


def near(got, want, said):
    atol = max(1e-5, 20*said['max_abs_diff_float64'])
    print(f'{said["key"]}: {(got - want).abs().max():.1e} (allowed {atol:.1e})')
    torch.testing.assert_close(got, want, atol=atol, rtol=1e-4)


def masks(io, name):
    "(valid (B, C, T) or None, keep (B, T)): the reference's two masks, True = left out, as our one, True = recorded."
    if name == 'forward': return None, torch.ones(3, 125, dtype=torch.bool)
    keep = ~io['in/padding_mask']
    return ~io['in/modality_mask'][:, :, None] & keep[:, None], keep


@pytest.mark.parametrize('name', ['forward', 'forward_masks'])
def test_parity_nepa_forward(ref, name):
    "Where a recording ends early the reference's padding is computed too; only what counts is compared."
    m, io, calls, weights, config = ref
    valid, there = masks(io, name)
    batch = {'signal': io['in/signal']} | ({} if valid is None else {'valid': valid})
    out = m(batch)
    said, want = calls[name]['outputs'], lambda k: io[f'out/{name}/{k}']
    with torch.no_grad():
        guess, goal, keep, hidden, _ = m.predict(batch)
        near(m.head(hidden)[there], want('pred_embed')[there], said['pred_embed'])
        near(goal[keep], want('input_embed')[:, 1:][keep], said['input_embed'])
    assert torch.equal(keep, there[:, 1:])
    near(-out.pred['similarity'][keep].mean(), want('loss'), said['loss'])      # theirs: each patch weighs the same, not each ECG
    if valid is None: near(out.loss.detach() - 1, want('loss'), said['loss'])


@pytest.mark.parametrize('name', ['forward', 'forward_masks'])
def test_parity_nepa_gradients(ref, name):
    m, io, calls, weights, config = ref
    valid, there = masks(io, name)
    m.zero_grad()
    guess, goal, keep, *_ = m.predict({'signal': io['in/signal']} | ({} if valid is None else {'valid': valid}))
    (-torch.cosine_similarity(guess, goal.detach(), dim=-1)[keep].mean()).backward()
    grads, theirs = {k: p.grad for k, p in m.named_parameters()}, calls[name]['grad_norms']
    ours = {k: grads[next(iter(convert({k: weights[k]})))].norm().item() for k in theirs}
    worst = max(abs(ours[k] - v)/max(v, 1e-4) for k, v in theirs.items())
    print(f'{name}: {len(theirs)} gradient norms, worst relative difference {worst:.1e}')
    assert len(theirs) == len(grads) and worst < 1e-3


def test_parity_nepa_loss_gives_the_same_gradients(ref):
    "What is trained is the same: 1 - cosine and -cosine differ by a number."
    m, io, calls, *_ = ref
    m.zero_grad()
    m({'signal': io['in/signal']}).loss.backward()
    assert m.head.weight.grad.norm().item() == pytest.approx(calls['forward']['grad_norms']['pred_head.weight'], rel=1e-3)


def test_parity_nepa_encode_and_features(ref):
    m, io, calls, *_ = ref
    with torch.no_grad():
        z = m.encoder(io['in/signal'])
        near(z, io['out/encode/hidden'], calls['encode']['outputs']['hidden'])
        torch.testing.assert_close(m.encoder.features(io['in/signal']), z.mean(1))


def test_parity_nepa_encoder_alone(ref):
    m, _, _, weights, _ = ref
    ours = vit1d.convert(weights, m.encoder)
    assert all(torch.equal(v, ours[k]) for k, v in m.encoder.state_dict().items())


def test_parity_nepa_convert_is_strict(ref):
    m, _, _, w, _ = ref
    key = 'layers.0.self_attn.in_proj_weight'
    with pytest.raises(ValueError, match='missing encoder.transformer.0.qkv.weight'): convert({k: v for k, v in w.items() if k != key}, m)
    with pytest.raises(ValueError, match='unknown surprise'): convert(w | {'surprise': w[key]}, m)
    with pytest.raises(ValueError, match='unknown .*_renamed'): convert({k + '_renamed'*(k == key): v for k, v in w.items()}, m)
    with pytest.raises(ValueError, match='this model has'): convert(w | {key: torch.ones(7)}, m)


def test_parity_nepa_parameters(ref):
    config = ref[-1]
    with torch.device('meta'): m = nepa(2500, 512, 6, 8, 2048, .1)
    assert sum(p.numel() for p in m.parameters()) == 20_463_616 == config['default_model']['counts']['parameters']

"""The DiT's bare network and features against numbers written by the reference code (data set `parity`); weights go through `convert`."""
import pytest
import torch
from torch.nn import functional as F

from ecgnb.encoders.dit import CONDITION, Dit, convert, dit_rules, embed_time, ready, reverse_time
from ecgnb.transformer import rename
from reference import STANDARD, Fixture

DIT = [f'ecg_encoder__dit__{n}' for n in ('rectified_flow_uncond', 'rectified_flow_text', 'rectified_flow_lead', 'ddpm_uncond', 'ddpm_text')]
HEAD = 'ecg_encoder__signal_flow_head'
SIZE = {'ecg_encoder__dit': 60_633_100, HEAD: 30_177_292}
INDEPENDENT = 'I,II,V1,V2,V3,V4,V5'  # seven leads; their names do not matter to the numbers


def fields(a):
    "The fields that make this encoder the reference's, from the arguments of a fixture."
    C = a.get('input_dim', a.get('signal_dim'))
    return dict(leads=STANDARD if C == 12 else INDEPENDENT, length=a.get('max_seq_len', a.get('max_signal_len')), patch=1, dim=a['d_model'], depth=a['num_layers'],
                heads=a['n_heads'], mlp=a['dim_ff'], dropout=a['dropout'], positions='learned', time='plain', cross=0 if 'input_dim' in a else a['d_model'])


def model(f):
    m = Dit(**fields(f.args))
    m.load_state_dict(convert(f.weights, m, ddpm=is_ddpm(f)))
    return m.eval()


def is_ddpm(f): return f.args.get('loss_type') == 'ddpm'
def ours(f, t): return 1 - t if is_ddpm(f) else t


def condition(f, m):
    "The vector (B, D) that the reference adds to the embedded time; None without a condition."
    kind, own = f.args['condition'], 'condition_embedder.'
    w = {k.removeprefix(own): v for k, v in f.weights.items() if k.startswith(own)}
    if kind == 'lead':
        lead = f.io['in/condition']
        return (F.linear(lead[..., None], w['proj.weight'], w['proj.bias']) + w['pos_emb.weight'][:lead.shape[1]]).mean(1)
    if kind == 'text':
        transformers = pytest.importorskip('transformers')
        bert = transformers.BertModel(transformers.BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
                                                              max_position_embeddings=40, hidden_dropout_prob=0, attention_probs_dropout_prob=0)).eval()
        bert.load_state_dict({k.removeprefix('text_feature_extractor.'): v for k, v in w.items() if k.startswith('text_feature_extractor.')})
        z = bert(**{k.removeprefix('in/condition.'): v for k, v in f.io.items() if k.startswith('in/condition.')}).last_hidden_state
        return F.linear(z.mean(1), w['proj.weight'], w['proj.bias'])


@pytest.mark.parametrize('name', DIT)
@torch.no_grad()
def test_parity_dit_network(name):
    f = Fixture(name)
    m = model(f)
    f.check('net', 'prediction', m.denoise(f.io['in/xt'].mT, ours(f, f.io['in/t']), vector=condition(f, m)).mT)


@pytest.mark.parametrize('name', DIT)
@torch.no_grad()
def test_parity_dit_features(name):
    "The reference reads clean signals at its t = 0: the noise end for a rectified flow, the clean end for diffusion."
    f = Fixture(name)
    m, x, t = model(f), f.io['in/signal'], float(is_ddpm(f))
    f.check('get_features', 'features', m.features(x, t=t))
    valid = ~f.io['in/padding_mask'][:, None].expand_as(x)
    f.check('get_features_padded', 'features', m.features(x, valid, t=t))
    assert (m.features(x, t=0.) - m.features(x)).abs().max() > 1e-2, 'the time does not matter'


@torch.no_grad()
def test_parity_signal_head_network():
    f = Fixture(HEAD)
    m = model(f)
    assert m.cross == 32 and len(m.transformer[0].ada.bias) == 9 * 32
    f.check('net', 'prediction', m.denoise(f.io['in/xt'].mT, f.io['in/t'], context=f.io['in/context'], keys=~f.io['in/context_mask']).mT)


def noised(f):
    "x (B,L,C) at the fixture's draws, t on our axis, and what the network must say."
    x1, d = f.io['in/signal'].mT, [f.io[f'draw/forward/00{i}'] for i in (0, 1)]
    if not is_ddpm(f): return (1 - d[1][:, None, None]) * d[0] + d[1][:, None, None] * x1, d[1], x1 - d[0]
    abar = f.weights['alphas_cumprod'][d[0]][:, None, None]
    return abar.sqrt() * x1 + (1 - abar).sqrt() * d[1], 1 - d[0] / f.args['num_steps'], d[1]


@pytest.mark.parametrize('name', ['ecg_encoder__dit__rectified_flow_uncond', 'ecg_encoder__dit__ddpm_uncond', HEAD])
def test_parity_dit_gradients(name):
    "Gradient norms of every parameter; what `ready` splits or turns round is put together again."
    f = Fixture(name)
    m = model(f)
    x, t, target = noised(f)
    y = m.denoise(x.mT, t, context=f.io.get('in/context')).mT
    f.check('forward', 'prediction', y.mT)
    (y - target).square().mean().backward()
    grads, norms, worst = {k: p.grad for k, p in m.named_parameters()}, f.call('forward')['grad_norms'], 0.
    if is_ddpm(f): grads['clock.0.weight'] = reverse_time(grads['clock.0.weight'])
    for key, norm in norms.items():
        got = sum(grads[k].square().sum() for k in rename(ready({key: f.weights[key]}), dit_rules())).sqrt().item()
        worst = max(worst, abs(got - norm) / max(norm, 1e-4))
    print(f'{f.name}: {len(norms)} gradient norms, worst relative difference {worst:.1e}')
    assert worst < 1e-3 and len(norms) == len(f.config['state_dict']) - 3 * is_ddpm(f)


@pytest.mark.parametrize('name', [DIT[0], DIT[3], HEAD])
def test_parity_dit_default_size(name):
    "The reference's default arguments give its number of parameters and its keys; what belongs to conditions is not the encoder's."
    f = Fixture(name)
    theirs = f.config['default_model']
    with torch.device('meta'): m = Dit(**fields(theirs['arguments']))
    assert sum(p.numel() for p in m.parameters()) == theirs['counts']['parameters'] == SIZE[HEAD if name == HEAD else 'ecg_encoder__dit']
    some = {k: torch.empty(s) for k, s in theirs['state_dict'].items()}
    assert convert(some, m).keys() == m.state_dict().keys()


@torch.no_grad()
def test_parity_full_dit():
    f = Fixture('full__ecg_encoder__dit')
    m = model(f)
    assert sum(p.numel() for p in m.parameters()) == f.config['counts']['parameters'] == SIZE['ecg_encoder__dit']
    x, t, target = noised(f)
    y = m.denoise(x.mT, t)
    f.check('forward', 'prediction_every_25th', y[..., ::25])
    f.check('forward', 'loss', (y.mT - target).square().mean())
    f.check('forward', 'features', m.features(f.io['in/signal'], t=0.))


def test_parity_time_turned_round():
    "The folded layer says at t what the reference's says at 1 - t, for plain and scaled embeddings; folding twice is folding not at all."
    w, t = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 1, 21)
    for scale in (1., 1000.):
        torch.testing.assert_close(embed_time(t, 32, scale) @ reverse_time(w, scale).T, embed_time(1 - t, 32, scale) @ w.T, atol=2e-5 * scale ** .5, rtol=0)
        torch.testing.assert_close(reverse_time(reverse_time(w, scale), scale), w, atol=1e-6, rtol=0)


def test_parity_convert_is_strict():
    "A renamed, a missing, an extra key, another shape, another time embedding, and the wrong model are each refused."
    f, head = Fixture(DIT[1]), Fixture(HEAD)
    m, w, key = model(f), f.weights, 'layers.0.ff.0.weight'
    assert not any('cond' in k for k in m.state_dict()) and any(k.startswith('condition_embedder') for k in w) and CONDITION
    with pytest.raises(ValueError, match='missing transformer.0.up.weight'): convert({k: v for k, v in w.items() if k != key}, m)
    with pytest.raises(ValueError, match='unknown surprise'): convert(w | {'surprise': w[key]}, m)
    with pytest.raises(ValueError, match='unknown layers.0.ff.0.weight_renamed'): convert({k + '_renamed' * (k == key): v for k, v in w.items()}, m)
    with pytest.raises(ValueError, match=r'is \(7,\), this model has'): convert(w | {'input_proj.bias': torch.ones(7)}, m)
    with pytest.raises(ValueError, match="time='plain'"): convert(w, Dit(**fields(f.args) | dict(time='scaled')))
    with pytest.raises(ValueError, match='missing transformer.0.query.weight'): convert(w, Dit(**fields(f.args) | dict(cross=32)))
    with pytest.raises(ValueError, match='not in this model: transformer.0.query.weight'): convert(head.weights, m)
    prefixed = {f'signal_head.{k}': v for k, v in head.weights.items()}
    a = rename(ready(prefixed, theirs='signal_head.'), dit_rules('head.', 'signal_head.'))
    assert a.keys() == {f'head.{k}' for k in convert(head.weights)}

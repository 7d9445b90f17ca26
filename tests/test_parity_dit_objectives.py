"""Flow and diffusion, whole, against numbers written by the reference code (data set `parity`); weights go through `convert`."""
import pytest
import torch

from ecgnb.encoders.dit import Dit
from ecgnb.encoders.text import Text, fingerprint
from ecgnb.objectives import diffusion, flow
from ecgnb.objectives.diffusion import Diffusion
from ecgnb.objectives.flow import Flow
from ecgnb.representations.signal import Signal
from reference import STANDARD, Fixture

NAMES = [f'ecg_encoder__dit__{n}' for n in ('rectified_flow_uncond', 'rectified_flow_text', 'rectified_flow_lead', 'ddpm_uncond', 'ddpm_text')]
GUIDED = [n for n in NAMES if 'uncond' not in n]
SEVEN = 'I,II,V1,V2,V3,V4,V5'    # seven leads and the one that is the condition; their names do not matter to the numbers


def is_ddpm(f): return f.args['loss_type'] == 'ddpm'


def bert(f):
    "The text part with the fixture's tiny BERT in it; mean over padding too, as the reference."
    transformers = pytest.importorskip('transformers')
    lm = transformers.BertModel(transformers.BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
                                                        max_position_embeddings=40, hidden_dropout_prob=0, attention_probs_dropout_prob=0))
    key = 'condition_embedder.text_feature_extractor.'
    lm.load_state_dict({k.removeprefix(key): v for k, v in f.weights.items() if k.startswith(key)})
    text = Text(name='tiny', pool='all')
    text.held['lm'] = lm.eval().requires_grad_(False)
    text.mark.copy_(fingerprint(lm))
    return text


def model(f, length=0):
    "The objective with the fixture's sizes and converted weights; `length`: a shorter signal, whose first positions are used."
    a, kind = f.args, f.args['condition']
    length, w = length or a['max_seq_len'], dict(f.weights)
    for k in w:
        if k.endswith('pos_emb.weight'): w[k] = w[k][:length]
    leads = STANDARD if a['input_dim'] == 12 else SEVEN
    encoder = Dit(leads=leads, length=length, patch=1, dim=a['d_model'], depth=a['num_layers'], heads=a['n_heads'], mlp=a['dim_ff'], dropout=a['dropout'],
                  positions='learned', time='plain')
    signal = Signal(leads=leads + ',V6'*(kind == 'lead'), length=length, norm='none')
    more = dict(drop=a['condition_dropout'], given='lead_mean' if kind == 'lead' else '', text=bert(f) if kind == 'text' else None)
    if is_ddpm(f): m = Diffusion(signal, encoder, predict='epsilon', schedule='linear', levels=a['num_steps'], low=0., high=1., solver='ancestral', **more)
    else: m = Flow(signal, encoder, solver='euler_mid', **more)
    m.load_state_dict((diffusion if is_ddpm(f) else flow).convert(w, m))
    return m.eval()


def batch(f, prefix='in/', x=None):
    "The batch of a call: the signal, with the lead that is the condition behind the others, or the texts."
    kind = f.args['condition']
    x = f.io['in/signal'] if x is None else x
    if kind == 'lead': x = torch.cat([x, f.io[f'{prefix}condition'][:, None]], 1)
    out = {'signal': x}
    if kind == 'text': out['text'] = {k.removeprefix(f'{prefix}condition.'): v for k, v in f.io.items() if k.startswith(f'{prefix}condition.')}
    return out


def own(f, mv): return mv[:, :f.args['input_dim']]      # without the lead that is the condition


def draws(f, call):
    "noise (B,C,T) and t (B,) on our axis, of a forward call."
    a, b = f.io[f'draw/{call}/000'], f.io[f'draw/{call}/001']
    return (b.mT, 1 - a/f.args['num_steps']) if is_ddpm(f) else (a.mT, b)


@pytest.mark.parametrize('name', NAMES)
def test_parity_forward_and_gradients(name):
    f = Fixture(name)
    m, (noise, t) = model(f), draws(f, 'forward')
    out = m(batch(f), noise, t)
    f.check('forward', 'loss', out.loss)
    f.check('forward', 'prediction', out.pred['said'])
    out.loss.backward()
    theirs = {k: v for k, v in f.call('forward')['grad_norms'].items() if v is not None}
    grads, one = {k: p.grad for k, p in m.named_parameters()}, (diffusion if is_ddpm(f) else flow).convert
    extra = {k: v for k, v in f.weights.items() if k == 'alphas_cumprod'}
    for key, norm in theirs.items():
        got = grads[next(iter(one({key: f.weights[key]} | extra)))].norm().item()
        assert abs(got - norm) < 1e-3*max(norm, 1e-4), (key, got, norm)


@pytest.mark.parametrize('name', NAMES)
@torch.no_grad()
def test_parity_forward_padded(name):
    "Its loss adds up the channels and weighs each time step, not each sample, the same."
    f = Fixture(name)
    m, (noise, t), b = model(f), draws(f, 'forward_padded'), batch(f)
    there = ~f.io['in/padding_mask'][:, None]
    b['valid'] = there.expand(b['signal'].shape).clone()
    if f.args['condition'] == 'lead': b['valid'][:, -1] = True       # the reference's condition knows no padding
    out = m(b, noise, t)
    here = there.expand(out.pred['said'].shape)
    f.check('forward_padded', 'loss', (out.pred['said'] - out.pred['goal']).square()[here].sum()/there.sum())
    want = f.io['out/forward_padded/prediction']
    f.check('forward_padded', 'prediction', torch.where(here, out.pred['said'], want))
    per = ((out.pred['said'] - out.pred['goal']).square()*here).flatten(1).sum(1)/here.flatten(1).sum(1)
    torch.testing.assert_close(out.loss, per.mean())                 # ours: each sample weighs the same, whatever was recorded of it
    torch.testing.assert_close(out.pred['error'], per)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('call', ['reconstruct_t03', 'reconstruct_t08', 'reconstruct_cfg'])
def test_parity_reconstruct(name, call):
    f = Fixture(name)
    if call.endswith('cfg') and name not in GUIDED: return
    said = {'reconstruct_t03': .3, 'reconstruct_t08': .8, 'reconstruct_cfg': .5}[call]
    S = f.args['num_steps']
    t = 1 - min(max(int(said*S + 1e-9), 0), S - 1)/S if is_ddpm(f) else said
    out = model(f).reconstruct(batch(f), t=t, noise=f.io[f'draw/{call}/000'].mT, guidance=2.5 if call.endswith('cfg') else 1.).pred
    f.check(call, 'xt', own(f, out['noised']))
    f.check(call, 'x1_pred', own(f, out['mv']))
    assert out['mask'].sum() == own(f, out['mask']).sum() == own(f, out['mv']).numel()


def theirs(f):
    """Ancestral sampling with the reference's coefficients: it takes 1 - abar of float32 numbers, which at the last level, where abar = 0.9999, is
    1.7e-4 off, so its samples are that much too small."""
    beta, abar = f.weights['betas'], f.weights['alphas_cumprod']
    def ddim(data, x, _, order, eta, noise):
        for k, i in enumerate(order):
            then = abar[i - 1] if i else torch.tensor(1.)
            y = data(x, i)
            x = (then.sqrt()*beta[i]*y + (1 - beta[i]).sqrt()*(1 - then)*x)/(1 - abar[i])
            if i: x = x + (beta[i]*(1 - then)/(1 - abar[i])).sqrt()*noise(k)
        return x
    return ddim


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('call', ['sample', 'sample_cfg'])
def test_parity_sample(name, call, monkeypatch):
    f = Fixture(name)
    if call.endswith('cfg') and name not in GUIDED: return
    start = f.io[f'draw/{call}/000'].mT
    m, b = model(f, start.shape[-1]), batch(f, 'in/sample.', torch.zeros_like(start))
    how = dict(steps=f.args['num_steps'], guidance=2.5 if call.endswith('cfg') else 1., noise=lambda k: f.io[f'draw/{call}/{k:03d}'].mT)
    if is_ddpm(f):
        torch.testing.assert_close(m.generate(b, **how), f.io[f'out/{call}/sample'], atol=3e-4, rtol=0)
        monkeypatch.setattr(diffusion, 'ddim', theirs(f))
    y = m.generate(b, **how)
    f.check(call, 'sample', own(f, y))
    if f.args['condition'] == 'lead': assert torch.equal(y[:, -1], b['signal'][:, -1])


def test_parity_condition_dropout():
    f = Fixture('ecg_encoder__dit__rectified_flow_lead_train')
    m = model(f).train()
    d = [f.io[f'draw/forward_train/00{i}'] for i in range(3)]
    out = m(batch(f), d[1].mT, d[2], drop=d[0] < f.args['condition_dropout'])
    f.check('forward_train', 'loss', out.loss)
    f.check('forward_train', 'prediction', out.pred['said'])
    out.loss.backward()
    assert abs(m.null.grad.norm().item() - f.call('forward_train')['grad_norms']['null_cond_emb']) < 1e-4


@pytest.mark.parametrize('name', NAMES)
def test_parity_convert_is_strict(name):
    f = Fixture(name)
    m, w, one = model(f), f.weights, (diffusion if is_ddpm(f) else flow).convert
    with pytest.raises(ValueError, match='missing'): one({k: v for k, v in w.items() if k != 'output_proj.bias'}, m)
    with pytest.raises(ValueError, match='unknown surprise'): one(w | {'surprise': w['output_proj.bias']}, m)
    with pytest.raises(ValueError, match='this model has'): one(w | {'output_proj.bias': torch.ones(7 + 12)}, m)
    with pytest.raises(ValueError, match='convert'): (flow if is_ddpm(f) else diffusion).convert(w, m)
    if is_ddpm(f):
        with pytest.raises(ValueError, match='schedule'): one(w | {'alphas_cumprod': w['alphas_cumprod']**2}, m)

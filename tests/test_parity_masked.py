"""Masked models and their encoders against numbers written by the reference code (data set `parity`); weights go through `convert`."""
import pytest
import torch

from ecgnb.encoders import st_vit, vit1d
from ecgnb.encoders.st_vit import StVit
from ecgnb.encoders.vit1d import Vit1d
from ecgnb.objectives.masked import Masked, convert, hide
from ecgnb.representations.signal import Signal
from reference import STANDARD, Fixture

MAE = ['ecg_encoder__mae_vit', 'ecg_encoder__mae_vit__narrow_decoder']
FAMILY = [f'ecg_encoder__{m}{v}' for m in ('mtae', 'mlae', 'st_mem') for v in ('', '__norm_pix')]


class Masks(Fixture):
    "With gradients through the renaming of masked models."
    def check_grads(self, call, model):
        "Gradient norms of the converted parameters, through the same renaming as the weights."
        theirs = {k: v for k, v in self.call(call)['grad_norms'].items() if v is not None}
        grads = {k: p.grad for k, p in model.named_parameters()}
        worst = 0.
        for key, norm in theirs.items():
            lead = key.removeprefix('encoder.lead_embeddings.')
            if lead != key: got = grads['encoder.lead'][int(lead)].norm()
            else: got = grads[next(iter(convert({key: self.weights[key]})))].norm()
            worst = max(worst, abs(got.item() - norm) / max(norm, 1e-4))
        print(f'{self.name} {call}: {len(theirs)} gradient norms, worst relative difference {worst:.1e}')
        assert worst < 1e-3


def identity(leads, length): return Signal(leads=leads, length=length, norm='none')

def model(f):
    "Masked with the fixture's sizes and converted weights."
    a = f.args
    if 'mae_vit' in f.name:
        sizes = dict(heads=a['n_heads'], mlp=a['dim_ff'], prenorm=False, dropout=a['dropout'])
        length = a['patch_dim']
        enc = Vit1d(length=length, over='lead', dim=a['d_model'], depth=a['num_encoder_layers'], positions='learned', cls=False,
                    patch_norm=False, **sizes)
        m = Masked(identity(STANDARD, length), enc, dec_dim=a['decoder_d_model'], dec_depth=a['num_decoder_layers'], dec_positions='learned',
                   dec_eps=1e-5, **{f'dec_{k}': v for k, v in sizes.items()})
    else:
        length, dim = a['seq_len'], a['embed_dim']
        fields = dict(length=length, dim=dim, depth=a['depth'], heads=a['num_heads'], head_dim=64, mlp=a['mlp_ratio'] * dim)
        enc = (StVit(patch=a['patch_size'], **fields) if 'st_mem' in f.name else
               Vit1d(over='time', patch=a['patch_size'], **fields) if 'mtae' in f.name else Vit1d(over='lead', **fields))
        E = a['decoder_embed_dim']
        m = Masked(identity(STANDARD, length), enc, norm_target=a['norm_pix_loss'], dec_dim=E, dec_depth=a['decoder_depth'],
                   dec_heads=a['decoder_num_heads'], dec_head_dim=64, dec_mlp=a['mlp_ratio'] * E)
    m.load_state_dict(convert(f.weights, m))
    return m.eval()


def run(m, x, noise):
    "Out, and the decoder tokens before the decoder's norm."
    out = m({'signal': x}, noise)
    order, seen, _ = hide(noise, m.ratio, m.mask)
    return out, m.latents(m.encode(m.encoder.patches(x), order, seen), order, seen)


def visible_first(mask):
    "Noise that sorts the visible patches (mask 1) first, in their order."
    return (1 - mask.float() + torch.arange(mask.shape[1]) * 1e-3)[:, None]


@pytest.mark.parametrize('name', MAE)
def test_parity_mae_vit(name):
    f = Masks(name)
    m, x = model(f), f.io['in/patches'].float()
    out, _ = run(m, x, visible_first(f.io['in/visible_mask']))
    f.check('forward', 'loss', (out.pred['patches'][:, 0] - f.io['in/targets']).square()[out.pred['hidden'][:, 0]].mean())
    f.check('forward', 'pred', out.pred['patches'])
    f.check('forward', 'enc', out.pred['latent'])
    want = f.io['out/forward/mask']
    assert torch.equal(out.pred['hidden'][:, 0], want) or torch.equal(~out.pred['hidden'][:, 0], want)
    f.check('get_features', 'features', m.encoder.features(x))


@pytest.mark.parametrize('name', MAE)
def test_parity_mae_vit_gradients(name):
    f = Masks(name)
    m, x, noise = model(f), f.io['in/patches'].float(), visible_first(f.io['in/visible_mask'])
    order, seen, hidden = hide(noise)
    pred = m.draw_patches(m.latents(m.encode(m.encoder.patches(x), order, seen), order, seen))
    (pred[:, 0] - f.io['in/targets']).square()[hidden[:, 0]].mean().backward()
    f.check_grads('forward', m)


@pytest.mark.parametrize('name', FAMILY)
def test_parity_masked_family(name):
    f = Masks(name)
    m, x, noise = model(f), f.io['in/signal'], f.io['draw/forward/000']
    if noise.ndim == 2: noise = noise[:, None]
    out, y = run(m, x, noise)
    f.check('forward', 'loss', out.loss)
    f.check('forward', 'pred', out.pred['patches'])
    f.check('forward', 'latent', out.pred['latent'])
    f.check('forward', 'out', y)
    f.check('forward', 'mask', out.pred['hidden'].float())
    assert torch.equal(noise.argsort(-1).argsort(-1).reshape(f.io['out/forward/ids_restore'].shape), f.io['out/forward/ids_restore'])
    out.loss.backward()
    f.check_grads('forward', m)


@pytest.mark.parametrize('name', [n for n in FAMILY if not n.endswith('norm_pix')])
def test_parity_masked_features(name):
    f = Masks(name)
    m, x = model(f), f.io['in/signal']
    f.check('get_features', 'features', m.encoder.features(x))
    f.check('encode_unmasked', 'latent', m.encode(m.encoder.patches(x)))


def test_parity_full_mae_vit():
    f = Masks('full__ecg_encoder__mae_vit')
    m, x = model(f), f.io['in/patches']
    assert sum(p.numel() for p in m.parameters()) == f.config['counts']['trainable'] == 34_101_700
    with torch.no_grad(): out, _ = run(m, x, visible_first(f.io['in/visible_mask']))
    f.check('forward', 'loss', out.loss)
    f.check('forward', 'enc', out.pred['latent'])
    f.check('forward', 'pred_every_25th', out.pred['patches'][..., ::25])


def test_parity_full_mtae():
    f = Masks('full__ecg_encoder__mtae')
    m, x = model(f), f.io['in/signal']
    assert sum(p.numel() for p in m.parameters()) == f.config['counts']['trainable'] == 89_648_144
    with torch.no_grad():
        out, y = run(m, x, f.io['draw/forward/000'][:, None])
        f.check('forward', 'loss', out.loss)
        f.check('forward', 'out_first4', y[:, 0, :4])
        f.check('forward', 'features', m.encoder.features(x))


@pytest.mark.parametrize('name', ['elm__encoder_mtae', 'elm__encoder_mlae'])
def test_parity_elm_masked(name):
    "ELM reads the decoder's tokens (CLS among them, nothing hidden), averaged to a given number."
    f = Masks(name)
    m, x = model(f), f.io['in/ecg_signal']
    y = m.latents(m.encode(m.encoder.patches(x)))[:, 0]
    f.check('get_encoder_embeddings', 'embeddings', torch.nn.functional.adaptive_avg_pool1d(y.mT, f.args['num_encoder_tokens']).mT)


def test_parity_elm_st_mem():
    "ELM's ST-MEM has trained positions, also at the SEPs, and no decoder; its tokens are averaged to a given number."
    f = Masks('elm__encoder_st_mem')
    a = f.args
    enc = StVit(length=a['seq_len'], patch=a['patch_size'], dim=a['embed_dim'], depth=a['depth'], heads=a['num_heads'], head_dim=64,
                mlp=a['mlp_ratio'] * a['embed_dim'], positions='learned').eval()
    enc.load_state_dict(st_vit.convert(f.weights, enc))
    z = enc(f.io['in/ecg_signal'])
    f.check('get_encoder_embeddings', 'embeddings', torch.nn.functional.adaptive_avg_pool1d(z.mT, a['num_encoder_tokens']).mT)


@pytest.mark.parametrize('name', ['ecg_encoder__mae_vit', 'ecg_encoder__mtae', 'ecg_encoder__mlae', 'ecg_encoder__st_mem'])
def test_parity_encoder_alone(name):
    "The encoder's own `convert` takes the encoder out of a whole checkpoint and leaves the decoder."
    f = Masks(name)
    enc = model(f).encoder
    ours = (st_vit if 'st_mem' in name else vit1d).convert(f.weights, enc)
    assert all(torch.equal(v, ours[k]) for k, v in enc.state_dict().items())


@pytest.mark.parametrize('name', ['ecg_encoder__mae_vit', 'ecg_encoder__mtae', 'ecg_encoder__mlae', 'ecg_encoder__st_mem'])
def test_parity_convert_is_strict(name):
    "A renamed, a missing, an extra and an unequal twin key are each refused by name."
    f = Masks(name)
    m, w = model(f), f.weights
    key = next(k for k in w if k.endswith('norm.weight'))
    with pytest.raises(ValueError, match='missing'): convert({k: v for k, v in w.items() if k != key}, m)
    with pytest.raises(ValueError, match='unknown surprise'): convert(w | {'surprise': w[key]}, m)
    with pytest.raises(ValueError, match='unknown .*_renamed'): convert({k + '_renamed' * (k == key): v for k, v in w.items()}, m)
    with pytest.raises(ValueError, match='this model has'): convert(w | {key: torch.ones(7)}, m)
    if 'to_patch_embedding.1.bias' in w:
        with pytest.raises(ValueError, match='twin'): convert(w | {'to_patch_embedding.1.bias': w['to_patch_embedding.1.bias'] + 1}, m)

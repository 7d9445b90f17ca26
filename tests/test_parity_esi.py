"""ESI against numbers written by the reference (data set `parity`): its two signal towers and the whole model; weights go through `convert`."""
import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from ecgnb.encoders import convnext1d, xresnet1d
from ecgnb.encoders.convnext1d import Convnext1d
from ecgnb.encoders.xresnet1d import Xresnet1d
from ecgnb.leads import ECGError
from ecgnb.objectives.coca import Coca, convert, infer
from ecgnb.registry import from_config
from reference import Fixture

WORDS = 'pretrained_text_encoder.'

def join(v): return ','.join(map(str, v))


@torch.inference_mode()
def test_parity_convnext1d():
    f = Fixture('esi__convnextv2')
    x = f.io['in/signal'].mT
    m = Convnext1d(length=x.shape[2], blocks=join(f.args['depths']), widths=join(f.args['dims']), norm='time').eval()
    with pytest.warns(UserWarning, match='head.bias, head.weight'): m.load_state_dict(convnext1d.convert(f.weights, m))
    for i, (first, last) in enumerate(m.maps(x)):
        f.check('forward', f'downsample{i}', first.mT)
        f.check('forward', f'stage{i}', last.mT)
    f.check('forward', 'embedding', m.features(x))


@torch.inference_mode()
def test_parity_full_convnext1d_atto():
    f = Fixture('full__esi__convnextv2_atto')
    x = f.io['in/signal'].mT
    m = Convnext1d(length=x.shape[2], variant='atto', norm='time').eval()
    with pytest.warns(UserWarning, match='head.bias, head.weight'): m.load_state_dict(convnext1d.convert(f.weights, m))
    assert sum(p.numel() for p in m.parameters()) == f.config['counts']['parameters'] - 5 * 321 == 3_175_720
    f.check('forward', 'embedding', m.features(x))


@pytest.mark.parametrize('call', ['forward', 'forward_odd'])
@torch.inference_mode()
def test_parity_esi_xresnet1d(call):
    "The same network as in test_parity_xresnet1d, here through the sizes that `infer` reads off its weights."
    f = Fixture('esi__xresnet1d')
    x = f.io[f.call(call)['inputs']['signal']]
    e = infer({f'img_encoder.{k}': v for k, v in f.weights.items()} | rest_of_esi(128))['encoder']
    m = from_config(e | dict(length=x.shape[2])).eval()
    assert isinstance(m, Xresnet1d) and e['blocks'] == join(f.args['layers'])
    m.load_state_dict(xresnet1d.convert(f.weights, m))
    f.check(call, 'embedding', m.features(x))


def rest_of_esi(wide):
    "The tensors of an ESI beside its towers that `infer` looks at."
    z = torch.zeros
    return {'img_token_head.weight': z(48, wide), 'to_logits.1.weight': z(60, 48), 'multimodal_layers.0.0.fn.ff_out.1.weight': z(48, 96),
            'multimodal_layers.0.1.fn.to_kv.weight': z(32, 48), 'multimodal_layers.0.1.fn.to_q.weight': z(48, 48)}


def model(f, folder, **text):
    "Coca in the reference's form, of the sizes that `infer` reads off the weights, with the weights, in eval mode."
    lm = BertModel(BertConfig(**f.args['text']))
    lm.load_state_dict({k.removeprefix(WORDS): v for k, v in f.weights.items() if k.startswith(WORDS)})
    lm.save_pretrained(folder)
    config = infer(f.weights, str(folder))
    for part in ('encoder', 'representation'): config[part]['length'] = f.io['in/images'].shape[1]
    config['text'] |= dict(most=40) | text
    m = from_config(config | dict(context=40))
    with pytest.warns(UserWarning, match='img_attn_pool.context_norm.beta.*img_encoder.head.bias.*text_cls_norm.beta'):
        m.load_state_dict(convert(f.weights, m))
    m.representation.norm = 'none'                   # the fixture's signals are given as the network reads them
    return m.eval()


def batch_of(f): return {'signal': f.io['in/images'].mT, 'text': dict(input_ids=f.io['in/text'], attention_mask=f.io['in/attention_mask'])}


def test_parity_esi_losses_and_vectors(tmp_path):
    f = Fixture('esi__esi')
    m, b = model(f, tmp_path), batch_of(f)
    out = m(b)
    for ours, theirs in (('caption', 'caption_loss'), ('contrast', 'contrastive_loss')): f.check('loss', theirs, out.logs[ours])
    f.check('loss', 'loss', out.loss)
    memory, vector = m.see(m.representation(b))
    x, goal, there, said, _ = m.read(b['text'])
    f.check('loss', 'image_embeds', vector)
    f.check('loss', 'text_cls', said)
    for i, (words, ecg) in enumerate(m.decoder):
        x = words(x, angles=m.angles[:, :x.shape[1]])
        f.check('loss', f'layer{i}_self', x)
        x = ecg(x, memory)
        f.check('loss', f'layer{i}_cross', x)
    f.check('loss', 'decoder_hidden', x)
    f.check('loss', 'logits', m.logits(x))
    for ours, theirs in (('ecg', 'image_latents'), ('text', 'text_latents')): f.check('loss', theirs, out.pred[ours])
    assert torch.equal(m.ecg(b), out.pred['ecg'])


def test_parity_esi_gradients(tmp_path):
    "Norms of the reference's gradients; where two of its matrices are one of ours, of both together."
    f = Fixture('esi__esi')
    m = model(f, tmp_path)
    m(batch_of(f)).loss.backward()
    sums, none = {}, []
    for key, norm in f.call('loss')['grad_norms'].items():
        if norm is None: none.append(key); continue
        twin = {'attn_out': 'ff_out.1', 'ff_out.1': 'attn_out', 'to_q': 'ff.0', 'ff.0': 'to_q', 'to_out': 'ff.2', 'ff.2': 'to_out'}
        also = [key.replace(a, b) for a, b in twin.items() if f'.fn.{a}.' in key]
        if key.startswith((WORDS, 'unimodal_layers.')): ours = key.replace('unimodal_layers.', 'text.lm.').replace(WORDS, 'text.lm.')
        else: ours, = convert({k: f.weights[k] for k in (key, *also)})
        sums[ours] = sums.get(ours, 0.) + norm ** 2 * (not key.startswith('unimodal_layers.') or key.replace('unimodal_layers.', WORDS) not in f.call('loss')['grad_norms'])
    got = {k: p.grad.norm().item() for k, p in m.named_parameters() if p.grad is not None}
    assert got.keys() == sums.keys() and all('attn_pool.' in k or 'head' in k or 'pooler' in k or 'text_cls' in k for k in none)
    worst = max(abs(got[k] - v ** .5) / max(v ** .5, 1e-4) for k, v in sums.items())
    print(f'{len(sums)} gradient norms, worst relative difference {worst:.1e}')
    assert worst < 1e-3


def test_parity_esi_convert_is_strict(tmp_path):
    f = Fixture('esi__esi')
    m, w = model(f, tmp_path), {k: v for k, v in f.weights.items() if not k.startswith(('img_attn_pool.', 'text_cls_norm.', 'img_encoder.head.'))}
    for bad, said in (({k: v for k, v in w.items() if k != 'img_token_head.bias'}, 'missing to_tokens.bias'), (w | {'surprise': w['temperature']}, 'unknown surprise'),
                      (w | {'temperature': torch.ones(2)}, 'this model has'), ({k: v for k, v in w.items() if k != 'multimodal_layers.1.1.fn.to_q.weight'}, 'unknown multimodal_layers.1.1.fn.ff.0.weight'),
                      (w | {'unimodal_layers.embeddings.LayerNorm.bias': torch.zeros(48)}, 'twin'), (w | {'to_logits.0.beta': torch.ones(48)}, 'unknown to_logits.0.beta'),
                      ({k: v for k, v in w.items() if 'word_embeddings' not in k}, 'missing pretrained_text_encoder.embeddings.word_embeddings')):
        with pytest.raises(ECGError, match=said): convert(bad, m)


def test_parity_esi_golden_size():
    "The default model: BioLinkBERT's shape and ConvNeXt V2 base; all it has but the text encoder and what it never uses."
    default = Fixture('esi__esi').config['default_model']
    with torch.device('meta'): weights = {k: torch.empty(s) for k, s in default['state_dict'].items()}
    config = infer(weights)
    assert config['encoder']['blocks'] == '3,3,27,3' and config['encoder']['widths'] == '128,256,512,1024'
    assert {k: config[k] for k in ('dim', 'depth', 'heads', 'head_dim', 'mlp')} == dict(dim=768, depth=6, heads=8, head_dim=64, mlp=3072)
    class Wide(torch.nn.Module):
        takes, dim, pool, config = {'text': (500,)}, 768, 'cls', BertConfig(vocab_size=28895)
        def load(self): return self
    given = {k: v for k, v in config.items() if not isinstance(v, dict) and k != 'objective'}
    with torch.device('meta'): m = Coca(from_config(config['representation']), from_config(config['encoder']), Wide(), **given)
    idle = ('img_attn_pool.', 'text_cls_norm.', 'img_encoder.head.', WORDS, 'unimodal_layers.')
    theirs = sum(v.numel() for k, v in weights.items() if not k.startswith(idle) and not (k.endswith('.beta') and 'img_encoder' not in k) and 'inv_freq' not in k)
    assert sum(p.numel() for p in m.parameters()) == theirs == 205_278_977


def test_parity_esi_embeddings(tmp_path):
    "Of whole texts: the reference then gives both vectors before their projections."
    f = Fixture('esi__esi')
    m, b = model(f, tmp_path), batch_of(f)
    full = dict(input_ids=f.io['in/text'], attention_mask=f.io['in/attention_mask1'][:, :-1])
    f.check('embeddings', 'image_embeds', m.see(m.representation(b))[1])
    f.check('embeddings', 'text_embeds', m.text.features(full))
    torch.testing.assert_close(m.texts(full), F.normalize(m.text_to_shared(m.text.features(full)), dim=-1))

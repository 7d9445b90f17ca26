"""MERL against numbers written by the reference code (data set `parity`): losses, both vectors, features, gradients, its golden size."""
import pytest
import torch
from torch import nn
from reference import Fixture
from transformers import BertConfig, BertModel

from ecgnb.encoders.resnet1d import Resnet1d
from ecgnb.encoders.text import Text
from ecgnb.leads import ECGError
from ecgnb.objectives.contrastive import Contrastive, convert
from ecgnb.representations.signal import Signal

NAMES = ['ecg_encoder__merl__bottleneck', 'ecg_encoder__merl__basic']
SIZE = {'bottleneck': '50', 'basic': '18'}


def language_model(weights, folder):
    "The fixture's tiny BERT as a folder of safetensors, as `Text` reads it."
    lm = BertModel(BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
                              max_position_embeddings=40, hidden_dropout_prob=0., attention_probs_dropout_prob=0.))
    lm.load_state_dict({k.removeprefix('lm.'): v for k, v in weights.items() if k.startswith('lm.')})
    lm.save_pretrained(folder)
    return str(folder)


def model(f, folder, **more):
    "Contrastive with the fixture's sizes and converted weights, in eval mode."
    a, join = f.args, lambda v: ','.join(map(str, v))
    tower = Resnet1d(length=a['seq_len'], size=SIZE[a['block']], blocks=join(a['stage_blocks']), widths=join(a['stage_widths']))
    text = Text(language_model(f.weights, folder), most=40, pool='pooler', **more)
    m = Contrastive(Signal(length=a['seq_len'], norm='none'), tower, text, proj=a['proj_out'], hidden=a['proj_hidden'], drop=a['dropout'],
                    same_text=False)
    m.load_state_dict(convert(f.weights, m))
    return m.eval()


def batch_of(f):
    ids = {k.removeprefix('in/condition.'): v for k, v in f.io.items() if k.startswith('in/condition.')}
    return {'signal': f.io['in/signal'], 'text': ids}


@pytest.mark.parametrize('name', NAMES)
def test_parity_merl_losses_and_vectors(name, tmp_path):
    f = Fixture(name)
    m, b = model(f, tmp_path), batch_of(f)
    out, unit = m(b), lambda x: nn.functional.normalize(x, dim=-1)
    f.check('forward', 'loss', out.loss)
    f.check('forward', 'cma_loss', out.logs['cross'])
    f.check('forward', 'uma_loss', out.logs['uni'])
    f.check('forward', 'out', m.encoder(b['signal']).mT)
    f.check('get_features', 'features', m.encoder(b['signal']).mT)
    ecg, mean = m.project(b)
    f.check('forward', 'att_pool', ecg)
    f.check('forward', 'pooled', mean)
    for i, view in enumerate(m.view): f.check('forward', f'view{i + 1}', view(mean))
    features = m.text.features(b['text'])
    f.check('forward', 'text_pooler', features)
    f.check('forward', 'text_proj', m.to_text(features))
    torch.testing.assert_close(m.ecg(b), unit(f.io['out/forward/att_pool'][:, 0]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(m.texts(b['text']), unit(f.io['out/forward/text_proj']), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', NAMES)
def test_parity_merl_gradients(name, tmp_path):
    f = Fixture(name)
    m = model(f, tmp_path)
    m(batch_of(f)).loss.backward()
    grads = {k: p.grad for k, p in m.named_parameters()}
    theirs = {k: v for k, v in f.call('forward')['grad_norms'].items() if v is not None}
    worst = 0.
    for key, norm in theirs.items():
        if key == 'att_pool_head.positional_embedding':         # the reference adds the first position twice: so is its gradient
            g = grads['places'].clone(); g[0] *= 2
            got = g.norm()
        elif key == 'att_pool_head.cls_token': got = grads['attention.query'].norm()
        else: got = grads[next(iter(convert({key: f.weights[key]})))].norm()
        worst = max(worst, abs(got.item() - norm) / max(norm, 1e-4))
    print(f'{name}: {len(theirs)} gradient norms, worst relative difference {worst:.1e}')
    assert worst < 1e-3 and len(theirs) == len(grads)


@pytest.mark.parametrize('name', NAMES)
def test_parity_merl_text_model_is_compared_or_taken_over(name, tmp_path):
    f = Fixture(name)
    other = {k: v + .01 * k.startswith('lm.pooler') for k, v in f.weights.items()}
    m = model(f, tmp_path)
    assert not [k for k in m.state_dict() if k.startswith('text.lm')]
    with pytest.raises(ECGError, match='lm.pooler.dense.bias differs|lm.pooler.dense.weight differs'): convert(other, m)
    trained = model(f, tmp_path, frozen=False)
    trained.load_state_dict(convert(other, trained))
    assert torch.equal(trained.text.lm.pooler.dense.bias, other['lm.pooler.dense.bias'])
    trained(batch_of(f)).loss.backward()
    assert all(p.grad is not None for p in trained.text.parameters())


def test_parity_merl_convert_is_strict(tmp_path):
    f = Fixture(NAMES[0])
    m, w = model(f, tmp_path), f.weights
    with pytest.raises(ECGError, match='missing view.0.weight'): convert({k: v for k, v in w.items() if k != 'linear1.weight'}, m)
    with pytest.raises(ECGError, match='unknown surprise'): convert(w | {'surprise': w['linear1.weight']}, m)
    with pytest.raises(ECGError, match='this model has'): convert(w | {'linear1.weight': torch.ones(7)}, m)
    with pytest.raises(ECGError, match='missing attention.query'): convert({k: v for k, v in w.items() if 'cls_token' not in k}, m)


def test_parity_merl_golden_size(tmp_path):
    "Trainable parameters at the reference's size, without building BERT-base: only the width of its output counts."
    class Wide(nn.Module): takes, dim = {'text': (64,)}, 768
    torch.manual_seed(0)
    m = Contrastive(Signal(length=2500), Resnet1d(length=2500), Wide())
    tower = sum(p.numel() for p in m.encoder.parameters())
    assert (tower, sum(p.numel() for p in m.parameters()) - tower) == (28_266_624, 1_287_936)

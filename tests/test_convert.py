"""The command `ecgnb convert` on checkpoints of ECG-FM and ESI: sizes from shapes, strict, nothing run, an account, and a fine-tuning from it."""
import numpy as np
import pytest
import torch
from reference import Fixture

from ecgnb import convert as command
from ecgnb.challenge import label_sets
from ecgnb.hub import CheckpointError, load, read_config
from ecgnb.leads import ECGError
from ecgnb.recipes import build
from ecgnb.train import train

pytestmark = pytest.mark.usefixtures('stores')


def fairseq(file, weights, **more):
    "A file as fairseq-signals writes it: weights among its configuration and the optimizer's state."
    torch.save(dict(args=None, cfg=dict(model=dict(encoder_layers=24)), model=weights, criterion=None, optimizer_history=[dict(num_updates=3)],
                    last_optimizer_state=dict(state={0: dict(exp_avg=torch.zeros(4))}), **more), file)
    return file


@pytest.fixture(scope='module')
def pretrained(): return Fixture('fairseq_signals__wav2vec2_cmsc').weights


@pytest.fixture(scope='module')
def finetuned(): return Fixture('fairseq_signals__ecg_transformer_classifier').weights


def with_classes(weights, k): return weights | {'proj.weight': torch.randn(k, weights['proj.weight'].shape[1]), 'proj.bias': torch.randn(k)}


def heads(w): return f"model.encoder.heads={Fixture('fairseq_signals__wav2vec2_cmsc').args['encoder_attention_heads']}"


def test_a_pretrained_ecg_fm_is_converted_with_an_account(pretrained, tmp_path, capsys):
    command.main(['ecg_fm', str(fairseq(tmp_path/'pretrained.pt', pretrained)), f'out={tmp_path}/new', heads(pretrained)])
    said = capsys.readouterr().out
    m, config = load(tmp_path/'new', verbose=False), read_config(tmp_path/'new')
    assert sum(p.numel() for p in m.parameters()) == sum(v.numel() for v in pretrained.values())
    assert torch.equal(m.mask_token.reshape(-1), pretrained['mask_emb'].reshape(-1)) and m.encoder.n_segments == 2
    assert config['contract'] | {} == dict(leads=list(m.representation.names), fs=500., length=5000, unit='mV') and config['prepare'] == dict(resample='linear')
    assert 'encoder.blocks' in said and 'codebook' in said and f'{sum(v.numel() for v in pretrained.values()):,} parameters' in said
    x = dict(signal=torch.randn(2, 12, 5000), recording=torch.tensor([[[0., 1.]]*12]*2), seed=torch.arange(2))
    assert m(x).loss.isfinite()


@pytest.mark.parametrize('spelling', ['old', 'new', 'plain'])
def test_every_spelling_of_the_weight_norm_gives_the_same_model(pretrained, spelling, tmp_path):
    at = next(k.removesuffix('parametrizations.weight.original0').removesuffix('weight_g') for k in pretrained if k.endswith(('original0', 'weight_g')))
    w = dict(pretrained)
    g, v = (w.pop(next(k for k in (f'{at}weight_{s}', f'{at}parametrizations.weight.original{i}') if k in w)) for i, s in enumerate('gv'))
    w |= {'old': {f'{at}weight_g': g, f'{at}weight_v': v}, 'plain': {f'{at}weight': g*v/v.norm(dim=(0, 1), keepdim=True)},
          'new': {f'{at}parametrizations.weight.original0': g, f'{at}parametrizations.weight.original1': v}}[spelling]
    m = command.convert('ecg_fm', fairseq(tmp_path/'w.pt', w), heads(w)).encoder
    torch.testing.assert_close(m.positions.conv.weight, g*v/v.norm(dim=(0, 1), keepdim=True))


@pytest.mark.parametrize('k,name', [(17, 'mimic_ecg_fm'), (26, 'cinc2021')])
def test_the_published_sets_of_classes_are_named(finetuned, k, name, tmp_path):
    w = with_classes(finetuned, k)
    m = command.convert('ecg_fm', fairseq(tmp_path/'w.pt', w), heads(w))
    assert tuple(m.names) == label_sets[name] and torch.equal(m.head.weight, w['proj.weight'])
    assert bool(m.most) == (k == 17) and m.segments == 2


def test_other_classes_must_be_named(finetuned, tmp_path):
    w = with_classes(finetuned, 3)
    file = fairseq(tmp_path/'w.pt', w)
    with pytest.raises(CheckpointError, match='head of 3 classes.*type model.classes=NAME'): command.convert('ecg_fm', file, heads(w))
    assert command.convert('ecg_fm', file, heads(w), 'model.classes=a,b,c').names == ['a', 'b', 'c']
    with pytest.raises(ValueError, match='head.weight is'): command.convert('ecg_fm', file, heads(w), 'model.classes=a,b')


def test_the_encoder_alone_is_enough(pretrained, tmp_path):
    w = {f'ecg_encoder.{k}': v for k, v in pretrained.items() if not k.startswith(('mask_emb', 'quantizer', 'project_q', 'final_proj'))}
    torch.save(w, tmp_path/'w.pt')
    m = command.convert('ecg_fm', tmp_path/'w.pt', heads(w))
    assert m.w2v == 0 and sum(p.numel() for p in m.parameters()) == sum(v.numel() for v in w.values())


@pytest.mark.parametrize('harm,text', [(lambda w: w.pop('encoder.layers.0.fc1.bias'), 'missing encoder.blocks.0.up.bias'), (lambda w: w.update(odd=torch.ones(2)), 'unknown odd'),
                                       (lambda w: w.update({'layer_norm.weight': torch.ones(3)}), 'is \\(3,\\), this model has'),
                                       (lambda w: w.pop('encoder.layers.1.self_attn.k_proj.weight'), 'missing encoder.layers.1.self_attn.k_proj.weight')])
def test_nothing_is_loaded_in_part(pretrained, harm, text, tmp_path):
    w = dict(pretrained)
    harm(w)
    file = fairseq(tmp_path/'w.pt', w)
    with pytest.raises(ECGError, match=text): command.convert('ecg_fm', file, heads(w))
    with pytest.raises(ECGError): command.main(['ecg_fm', str(file), f'out={tmp_path}/new', heads(w)])
    assert not (tmp_path/'new').exists()


def test_what_is_no_ecg_fm_is_told(tmp_path):
    torch.save({'model': {'a.weight': torch.ones(2)}}, tmp_path/'w.pt')
    for row in ('ecg_fm', 'esi'):
        with pytest.raises(ECGError, match='feature_extractor|no weights of ESI'): command.convert(row, tmp_path/'w.pt')
    with pytest.raises(CheckpointError, match="did you mean 'ecg_fm'"): command.convert('ecgfm', tmp_path/'w.pt')


def test_a_converted_ecg_fm_is_fine_tuned(pretrained, tmp_path):
    command.main(['ecg_fm', str(fairseq(tmp_path/'w.pt', pretrained)), f'out={tmp_path}/new', heads(pretrained)])
    run = build('ecg_fm_finetune', f'train.start={tmp_path}/new', 'source=sample', 'source.n=40', 'source.fs=500', 'train.train=1-7', 'train.val=8-10', 'train.batch_size=4',
                'fit.steps=2', 'fit.lr=1e-3', 'model.weight=none', 'train.every=2', 'train.save=2', f'out={tmp_path}/run')
    e = run['model']['encoder']
    assert run['prepare']['resample'] == 'linear' and e['dim'] == len(pretrained['post_extract_proj.bias']) and e['dropout'] == 0 and e['activation_dropout'] == .1
    done = train(run, quiet=True)
    m = load(tmp_path/'run'/'best', verbose=False)
    assert np.isfinite(done['best_val_loss']) and m.segments == 2
    assert torch.equal(m.encoder.stem.convs[0].weight, pretrained['feature_extractor.conv_layers.0.0.weight'])       # the stem is frozen
    assert not torch.equal(m.encoder.project.bias, pretrained['post_extract_proj.bias'])


def test_a_prefix_is_taken_off_and_a_part_that_is_missing_is_named(pretrained, tmp_path):
    m = command.convert('ecg_fm', fairseq(tmp_path/'a.pt', {f'ecg_encoder.{k}': v for k, v in pretrained.items()}), heads(pretrained))
    assert m.w2v and torch.equal(m.to_context.bias, pretrained['final_proj.bias'])
    for lost in ('project_q.bias', 'quantizer.vars'):
        with pytest.raises(CheckpointError, match=f'{lost} of None.*not whole'):
            command.convert('ecg_fm', fairseq(tmp_path/'b.pt', {k: v for k, v in pretrained.items() if k != lost}), heads(pretrained))


def test_a_finetuned_ecg_fm_is_tuned_to_other_classes(finetuned, tmp_path):
    command.main(['ecg_fm', str(fairseq(tmp_path/'w.pt', with_classes(finetuned, 17))), f'out={tmp_path}/new', heads(finetuned)])
    run = build('ecg_fm_finetune', f'train.start={tmp_path}/new', 'source=sample', 'source.n=200', 'train.train=1-7')
    m = run['model']
    assert m['classes'] == 'NORM,MI,STTC,CD,HYP' and len(m['prior'].split(',')) == 5 and not m.get('most') and m['segments'] == 2

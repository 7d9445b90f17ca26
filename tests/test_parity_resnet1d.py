"""The signal tower of MERL against numbers written by the reference code (data set `parity`); weights go through `convert`."""
import pytest
import torch
from torch.nn import functional as F

from ecgnb.encoders.resnet1d import Resnet1d, convert
from ecgnb.leads import ECGError
from reference import Fixture

MERL = ['ecg_encoder__merl__bottleneck', 'ecg_encoder__merl__basic']


def fixture(name):
    "(config, weights, inputs and outputs) of one folder."
    f = Fixture(name)
    return f.config, f.weights, f.io


def tower(args, length):
    text = lambda numbers: ','.join(map(str, numbers))
    size = {'basic': '18', 'bottleneck': '50'}[args['block']]
    return Resnet1d(length=length, size=size, blocks=text(args['stage_blocks']), widths=text(args['stage_widths']))


def check(config, io, call, key, got):
    "Within the advised tolerance; prints the largest difference."
    said = next(c for c in config['calls'] if c['name'] == call)['outputs'][key]
    want, atol = io[f'out/{call}/{key}'], max(1e-5, 20 * said['max_abs_diff_float64'])
    print(f'{config["fixture"]} {call}/{key}: {(got - want).abs().max().item():.1e} (allowed {atol:.1e})')
    torch.testing.assert_close(got, want, atol=atol, rtol=1e-4)


@pytest.mark.parametrize('name', MERL)
@torch.inference_mode()
def test_parity_merl_map(name):
    config, weights, io = fixture(name)
    m = tower(config['arguments'], config['arguments']['seq_len'])
    m.load_state_dict(convert(weights, m))
    z = m.eval()(io['in/signal'])
    check(config, io, 'get_features', 'features', z.transpose(1, 2))
    torch.testing.assert_close(m.features(io['in/signal']), io['out/get_features/features'].mean(2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', MERL)
@torch.inference_mode()
def test_parity_merl_without_statistics_is_another_network(name):
    "The running statistics come along: without them the numbers differ."
    config, weights, io = fixture(name)
    m = tower(config['arguments'], config['arguments']['seq_len'])
    fresh = {k: v for k, v in m.state_dict().items() if 'running' in k}
    m.load_state_dict(convert(weights, m) | fresh)
    assert not torch.allclose(m.eval()(io['in/signal']).transpose(1, 2), io['out/get_features/features'], atol=1e-2)


@torch.inference_mode()
def test_parity_elm_tower():
    config, weights, io = fixture('elm__encoder_merl')
    m = tower(config['arguments'], 250)
    m.load_state_dict(convert(weights, m))
    z = F.adaptive_avg_pool1d(m.eval()(io['in/ecg_signal']).transpose(1, 2), config['arguments']['num_encoder_tokens'])
    check(config, io, 'get_encoder_embeddings', 'embeddings', z.transpose(1, 2))


def test_parity_default_model_has_the_references_tensors():
    "Every key of the published tower has a place of its shape here, and the other way round."
    config, *_ = fixture('elm__encoder_merl')
    theirs = config['default_model']
    m = Resnet1d()
    got = convert({k: torch.zeros(()).expand(s) for k, s in theirs['state_dict'].items()}, m)
    assert len(got) == theirs['counts']['state_dict_tensors'] == len(m.state_dict())
    assert sum(p.numel() for p in m.parameters()) == theirs['counts']['parameters'] == 28_266_624


def test_parity_another_size_is_refused():
    config, weights, _ = fixture(MERL[0])
    args = config['arguments']
    with pytest.raises(ECGError, match='missing stages.1.2'): convert(weights, tower(args | {'stage_blocks': [1, 3, 1, 1]}, 500))
    with pytest.raises(ECGError, match='this model has'): convert(weights, tower(args | {'stage_widths': [8, 12, 16, 24]}, 500))
    with pytest.raises(ECGError, match='unknown resnet.extra'): convert(weights | {'resnet.extra': torch.zeros(1)})

"""XResNet1d against numbers written by a published network of that name (data set `parity`); weights go through `convert`."""
import pytest
import torch

from ecgnb.encoders.xresnet1d import Xresnet1d, convert
from reference import Fixture

MAPS = {'module3': 0, 'module4': 1, 'module7': 4}       # the sequence's modules -> stem with max-pool, first and last stage


def fixture(name='esi__xresnet1d'):
    "(config, weights, inputs and outputs)."
    f = Fixture(name)
    return f.config, f.weights, f.io


@pytest.mark.parametrize('call,key,length', [('forward', 'in/signal', 448), ('forward_odd', 'in/forward_odd.signal', 437)])
@torch.inference_mode()
def test_parity_xresnet1d(call, key, length):
    config, weights, io = fixture()
    a = config['arguments']
    width = int(64 * a['widen']) * a['expansion']
    m = Xresnet1d(length=length, size='50', blocks=','.join(map(str, a['layers'])), dim=2 * width, kernel=a['kernel_size'])
    m.load_state_dict(convert(weights, m))
    maps = m.eval().maps(io[key])
    got = {k: maps[i] for k, i in MAPS.items()} | {'embedding': m.features(io[key])}
    said = next(c for c in config['calls'] if c['name'] == call)['outputs']
    assert got.keys() == said.keys()
    for k, z in got.items():
        want, atol = io[f'out/{call}/{k}'], max(1e-5, 20 * said[k]['max_abs_diff_float64'])
        print(f'{call}/{k}: {(z - want).abs().max().item():.1e} (allowed {atol:.1e})')
        torch.testing.assert_close(z, want, atol=atol, rtol=1e-4)


def test_parity_xresnet1d101_has_the_references_tensors():
    config, *_ = fixture()
    theirs = config['default_model']
    m = Xresnet1d()
    weights = {k: torch.zeros(()).expand(s) for k, s in theirs['state_dict'].items()}
    got = convert(weights, m)
    assert got.keys() == m.state_dict().keys() and len(weights) == theirs['counts']['state_dict_tensors']
    assert sum(p.numel() for p in m.parameters()) == theirs['counts']['parameters'] == 1_804_672

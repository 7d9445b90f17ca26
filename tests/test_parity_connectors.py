"""Connectors against numbers written by the reference code (data set `parity`); weights go through each connector's `convert`."""
import importlib
import pytest
import torch
from ecgnb import connector
from reference import Fixture

THEIRS = {'linear_llava': 'linear', 'mlp_llava': 'mlp', 'base_elf': 'flat', 'patch_elf': 'patches', 'conv_elf': 'conv'}
WIDTH = 48


def convert(name): return importlib.import_module(f'ecgnb.connectors.{name}').convert

def joined(name, x, tokens):
    c = connector[name](**({'tokens': tokens} if name in ('patches', 'conv') else {}))
    return c.join(x.shape[1:], WIDTH).eval()

def model(f, theirs, x):
    "The connector of a fixture with its converted weights, in their dtype."
    c = joined(THEIRS[theirs], x, f.io['out/forward/output'].shape[-2])
    dtype = next(iter(f.weights.values())).dtype
    c.to(dtype).load_state_dict(convert(THEIRS[theirs])(f.weights, c))
    return c

def signal(f):
    "The input as our connectors take it: base_elf was given the leads end to end."
    x = f.io['in/x']
    return x.unflatten(1, (12, -1)) if 'base_elf' in f.name else x


@pytest.mark.parametrize('theirs', THEIRS)
def test_parity(theirs):
    f = Fixture(f'elm__connector_{theirs}')
    x = signal(f)
    c = model(f, theirs, x)
    assert sum(p.numel() for p in c.parameters()) == f.config['counts']['parameters']
    y = c(x)
    assert y.shape[1] == c.n_tokens
    f.check('forward', 'output', y)
    with torch.no_grad(): twice = c.double()(x.double())
    want, said = f.io['out/forward/output'], f.call('forward')['outputs']['output']
    torch.testing.assert_close(twice.reshape(want.shape), want.double(), atol=2 * said['max_abs_diff_float64'] + 1e-7, rtol=0)


@pytest.mark.parametrize('theirs', ['mlp_llava', 'conv_elf'])
def test_parity_bf16(theirs):
    "As the reference runs: bfloat16 weights, float32 input. Within 2 % of the largest number."
    f = Fixture(f'elm__connector_{theirs}__bf16')
    x, want = f.io['in/x'], f.io['out/forward/output']
    c = model(f, theirs, x)
    y = c(x)
    assert y.dtype == want.dtype == torch.bfloat16
    gap = (y.float() - want.float()).abs().max() / want.float().abs().max()
    print(f'{f.name}: {gap:.1e} of the largest number')
    assert gap < .02


@pytest.mark.parametrize('theirs', THEIRS)
def test_default_size(theirs):
    "The reference's sizes: 768 or 12 x 2,500 numbers into 2,048; counted without memory."
    f = Fixture(f'elm__connector_{theirs}')
    with torch.device('meta'):
        c = connector[THEIRS[theirs]]().join((25, 768) if 'llava' in theirs else (12, 2500), 2048)
    said = f.config['default_model']
    assert sum(p.numel() for p in c.parameters()) == said['counts']['parameters']
    ours = convert(THEIRS[theirs])({k: torch.empty(s, device='meta') for k, s in said['state_dict'].items()}, c)
    assert ours.keys() == c.state_dict().keys()


@pytest.mark.parametrize('folder,theirs,prefix', [('elm__llava_mlp_st_mem_llama', 'mlp_llava', 'projection.'), ('elm__patch_elf_llama', 'patch_elf', 'project_layer.')])
def test_convert_takes_the_prefix_of_a_whole_model(folder, theirs, prefix):
    f = Fixture(folder)
    inside = {k: v for k, v in f.weights.items() if k.startswith(prefix)}
    assert inside
    bare = {k.removeprefix(prefix): v for k, v in inside.items()}
    a, b = (convert(THEIRS[theirs])(w) for w in (inside, bare))
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize('theirs', THEIRS)
def test_convert_is_strict(theirs):
    f = Fixture(f'elm__connector_{theirs}')
    c, w = model(f, theirs, signal(f)), f.weights
    first = next(iter(w))
    to = lambda weights: convert(THEIRS[theirs])(weights, c)
    with pytest.raises(ValueError, match='missing'): to({k: v for k, v in w.items() if k != first})
    with pytest.raises(ValueError, match='unknown surprise'): to(w | {'surprise': w[first]})
    with pytest.raises(ValueError, match='this model has'): to(w | {first: w[first][:-1]})

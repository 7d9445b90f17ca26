"""What every connector promises, checked for each of them without naming one: a new notebook is covered by being there."""
import importlib
import inspect
import json
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from ecgnb import connector
from ecgnb.registry import PartError, fields_of, from_config, to_config

WIDTH, VOCAB = 40, 31
SHAPES = {'encoder': (12, 24), 'signal': (12, 250), 'tokens': (VOCAB, 60)}     # what join is told, by what a connector takes
ODD = {'encoder': [(1, 24), (157, 7)], 'signal': [(2, 250), (1, 61), (12, 251), (15, 997)], 'tokens': [(5, 7)]}
each = pytest.mark.parametrize('name', list(connector))


def data(takes, shape, n=3, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(shape[0], (n, shape[1]), generator=g) if takes == 'tokens' else torch.randn(n, *shape, generator=g)


def joined(name, shape=None, **fields):
    "(the connector with layers, something that it takes)"
    torch.manual_seed(0)
    c = connector[name](**fields)
    shape = shape or SHAPES[c.takes]
    return c.join(shape, WIDTH), data(c.takes, shape)


COUNTED = [n for n in connector if 'tokens' in connector[n].__dataclass_fields__]
FOREIGN = [n for n in connector if hasattr(importlib.import_module(f'ecgnb.connectors.{n}'), 'convert')]


@each
def test_contract(name):
    cls = connector[name]
    assert cls.takes in SHAPES and cls.__doc__.strip() and issubclass(cls, nn.Module)
    for field, want, default, comment in fields_of(cls):
        assert comment, f'{name}.{field} has no comment'
        assert type(default) is want and want in (bool, int, float, str)
    c = cls()
    assert not list(c.parameters()), 'layers come with join'
    assert c.join(SHAPES[c.takes], WIDTH) is c
    assert list(inspect.signature(cls.join).parameters) == ['self', 'shape', 'width']


@each
def test_shapes(name):
    for shape in (SHAPES[connector[name].takes], *ODD[connector[name].takes]):
        c, x = joined(name, shape)
        y = c(x)
        assert y.shape == (3, c.n_tokens or x.shape[1], WIDTH) and y.dtype == torch.float32 and y.isfinite().all()
        assert (c.n_tokens == 0) == (c.takes == 'tokens')


@pytest.mark.parametrize('name', COUNTED)
def test_number_of_tokens(name):
    "The field `tokens` is how many an ECG gives, whether it divides or not; more than there are is an error."
    for tokens in (1, 5, 12):
        c, x = joined(name, tokens=tokens)
        assert c.n_tokens == tokens and c(x).shape == (3, tokens, WIDTH)
    for bad in (-1, x.shape[1 if c.takes == 'encoder' else 2] + 1):
        with pytest.raises(ValueError, match=f'tokens={bad}'): connector[name](tokens=bad).join(x.shape[1:], WIDTH)


@each
def test_each_sample_alone_and_heard(name):
    "A row depends on its own input, on all of it, and on no other row."
    c, x = joined(name)
    y = c.eval()(x)
    torch.testing.assert_close(c(x[1:2]), y[1:2], atol=1e-6, rtol=1e-5)
    ends = [(slice(None), 0), (slice(None), -1)] if c.takes == 'signal' else [(0,), (-1,)]
    for at in ends:
        other = x.clone()
        other[(1, *at)] = (x[(1, *at)] + 1) % VOCAB if c.takes == 'tokens' else x[(1, *at)] + 1
        z = c(other)
        assert torch.equal(z[[0, 2]], y[[0, 2]]) and not torch.equal(z[1], y[1]), f'{name} does not hear {at}'


@each
def test_every_parameter_gets_a_gradient(name):
    c, x = joined(name)
    if x.is_floating_point(): x.requires_grad_()
    c(x).square().mean().backward()
    none = [n for n, p in c.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert not none and list(c.parameters()), f'no gradient for {none}'
    if x.is_floating_point(): assert x.grad.isfinite().all() and x.grad.any(), 'nothing flows back to an encoder'


@each
def test_training_lowers_the_loss(name):
    c, x = joined(name)
    target = torch.randn(3, 1, WIDTH, generator=torch.Generator().manual_seed(2))
    opt, losses = torch.optim.AdamW(c.parameters(), 1e-2), []
    for _ in range(60):
        loss = (c(x).mean(1, keepdim=True) - target).square().mean()
        opt.zero_grad(); loss.backward(); opt.step(); losses.append(loss.item())
    assert losses[-1] < .7 * losses[0], losses


@each
def test_config_round_trip(name):
    c, x = joined(name, **({'tokens': 5} if name in COUNTED else {}))
    config = json.loads(json.dumps(to_config(c)))
    again = from_config(config)
    assert to_config(again) == config and type(again) is type(c) and config['connector'] == name
    again.join(SHAPES[c.takes], WIDTH).load_state_dict(c.state_dict())
    assert torch.equal(again(x), c(x))
    with pytest.raises(PartError, match='has no field'): from_config(config | {'tokns': 1})


@each
def test_save_and_load_are_bit_equal(name, tmp_path):
    c, x = joined(name)
    save_file(c.state_dict(), tmp_path / 'c.safetensors')
    torch.manual_seed(5)
    again = connector[name]().join(SHAPES[c.takes], WIDTH)
    assert not torch.equal(again(x), c(x))
    again.load_state_dict(load_file(tmp_path / 'c.safetensors'))
    assert torch.equal(again(x), c(x))


@each
def test_bf16(name):
    "In bfloat16 the output is bfloat16 whatever the input, and near that of float32; so it is under autocast."
    c, x = joined(name)
    y = c(x)
    with torch.autocast('cpu', torch.bfloat16): auto = c(x)
    c = c.bfloat16()
    for z in (c(x), c(x.bfloat16()) if x.is_floating_point() else c(x), auto):
        assert (z.float() - y).abs().max() < .03 * y.abs().max()
        if z is not auto: assert z.dtype == torch.bfloat16


@each
def test_joins_again(name):
    "For another model: the layers are made anew, and nothing of the old ones stays in the weights."
    c, x = joined(name)
    keys = set(c.state_dict())
    shape = ODD[c.takes][0]
    c.join(shape, 16)
    assert set(c.state_dict()) == keys and c(data(c.takes, shape)).shape[2] == 16
    with pytest.raises(RuntimeError): c.load_state_dict(joined(name)[0].state_dict())


@each
def test_compiles_and_moves(name):
    "One graph, no look at a value: a meta device would refuse it."
    c, x = joined(name)
    y = c(x)
    assert torch.equal(torch.compile(c, fullgraph=True, backend='eager')(x), y)
    with torch.device('meta'): m = connector[name]().join(SHAPES[c.takes], WIDTH)
    assert m(x.to('meta')).shape == y.shape


@each
def test_wrong_input_is_named(name):
    c, x = joined(name)
    wrong = [x[0]] + ([x.float()] if c.takes == 'tokens' else [x[:, :-1], x[..., :-1], x.long(), x[:, None]])
    for v in wrong:
        with pytest.raises(ValueError, match=r'x is \(') as err: c(v)
        assert str(tuple(v.shape)) in str(err.value) and str(v.dtype) in str(err.value)
    with pytest.raises(ValueError, match=r'join\(shape, width\)'): connector[name]()(x)


@pytest.mark.parametrize('name', FOREIGN)
def test_convert_refuses_what_is_not_its_own(name):
    c, _ = joined(name)
    with pytest.raises(ValueError, match='unknown nothing.weight'): importlib.import_module(f'ecgnb.connectors.{name}').convert({'nothing.weight': torch.ones(1)}, c)

"""What every registered part promises, checked for each of them without naming one: a new notebook is covered by being there."""
import functools
import json
import subprocess
import sys
import tempfile
import pytest
import torch
from torch import nn
from ecgnb import encoder, objective, representation, source
from ecgnb.batch import fed, sample_seeds
from ecgnb.ecg import ECG
from ecgnb.hub import load, save
from ecgnb.leads import guard
from ecgnb.registry import PartError, fields_of, from_config, registries, to_config

LEADS, LENGTH = 'I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6', 500
SMALL = dict(length=LENGTH, leads=LEADS, fs=100., dim=32, depth=2, heads=2, mlp=0, dec_dim=16, dec_depth=1, dec_heads=2, dec_mlp=0, dropout=0., dec_dropout=0., context=96, classes='A,B', size='18')
PARTS = [(kind, name) for kind, r in registries.items() for name in r]
VISION = tempfile.TemporaryDirectory()


@functools.cache
def vision():
    "A folder with a tiny vision model, for the encoders that read one from disk."
    from visions import tiny
    return tiny(f'{VISION.name}/vit')


def small(part, /, **more):
    "An instance of a size for tests: every field that has a name known here is set."
    if part.__name__ == 'HfVision': more = dict(name=vision(), frozen=False) | more
    return part(**{k: v for k, v in {**SMALL, **more}.items() if k in part.__dataclass_fields__})


def batch_for(leads=LEADS, length=LENGTH, n=4):
    names = leads.split(',')
    x = torch.randn(n, len(names), length, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([[0., 1.], [1., 0.], [1., 1.], [0., float('nan')]])[torch.arange(n) % 4]
    return {'signal': x, 'seed': sample_seeds(0, 0, range(n)), 'record': [str(i) for i in range(n)], 'label': label,
            'text': [f'sinus rhythm, number {i}' for i in range(n)]}


def pair(name, **asks):
    "(a representation that gives what the encoder `name` takes, the encoder), both small."
    takes = small(encoder[name]).takes
    r = next(r for r in (small(representation[n]) for n in ['signal', *representation]) if takes.keys() <= r.gives.keys())
    return r, small(encoder[name], **asks, **getattr(r, 'facts', {}))


ENCODERS = [n for n in encoder if 'text' not in small(encoder[n]).takes]      # of ECGs; test_text.py tries those of reports
SIGNAL = [n for n in ENCODERS if 'signal' in small(encoder[n]).takes]


def objectives():
    "Every objective with every encoder that has what it needs, and the fields that it asks to be set."
    fits = lambda o, e: (all(hasattr(small(encoder[e]), n) for n in getattr(objective[o], 'needs', ()))
                         and getattr(objective[o], 'asks', {}).keys() <= encoder[e].__dataclass_fields__.keys())
    return [(o, e) for o in objective for e in ENCODERS if fits(o, e) and getattr(objective[o], 'reads', '') != 'talks']    # those: test_answer.py


def make(o, e):
    torch.manual_seed(0)
    r, e = pair(e, **getattr(objective[o], 'asks', {}))
    return small(objective[o], representation=r, encoder=e)


@pytest.mark.parametrize('kind,name', PARTS)
def test_every_field_has_a_type_a_default_and_a_comment(kind, name):
    for field, want, default, comment in fields_of(registries[kind][name]):
        assert comment, f'{name}.{field} has no comment'
        if want in (bool, int, float, str): assert type(default) is want, f'{name}.{field}: default {default!r} is no {want.__name__}'


@pytest.mark.parametrize('kind,name', PARTS)
def test_every_part_has_a_one_line_docstring(kind, name): assert registries[kind][name].__doc__.strip()


@pytest.mark.parametrize('kind,name', [p for p in PARTS if p[0] in ('encoder', 'representation')])
def test_config_round_trip(kind, name):
    part = small(registries[kind][name])
    config = json.loads(json.dumps(to_config(part)))
    again = from_config(config)
    assert to_config(again) == config and type(again) is type(part)
    with pytest.raises(PartError, match='has no field'): from_config(config | {'dpeth': 1})


@pytest.mark.parametrize('name', ENCODERS)
def test_encoder_shapes(name):
    r, e = pair(name)
    x, valid = fed(e.eval(), r(batch_for()))
    z, f = e(x, valid), e.features(x, valid)
    assert z.shape == (4, e.n_tokens, e.dim) and f.shape == (4, e.dim) and z.isfinite().all() and f.isfinite().all()
    assert e.takes == r.gives


@pytest.mark.parametrize('name', ENCODERS)
def test_encoder_reads_each_sample_alone(name):
    r, e = pair(name)
    x, _ = fed(e.eval(), r(batch_for()))
    torch.testing.assert_close(e.features(x)[1:2], e.features(x[1:2]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', [n for n in ENCODERS if 'tokens' in small(encoder[n]).takes])
def test_encoder_of_tokens_ignores_padding_on_either_side(name):
    r, e = pair(name)
    x, _ = fed(e.eval(), r(batch_for()))
    valid = torch.ones_like(x, dtype=torch.bool); valid[1, 40:] = False; valid[2, :40] = False
    other = x.masked_fill(~valid, 0)
    assert not torch.allclose(e.features(x, valid), e.features(x), atol=1e-4), f'{name} does not look at `valid`'
    torch.testing.assert_close(e.features(x, valid), e.features(other, valid), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(e.features(x, valid)[2:3], e.features(x[2:3, 40:]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', SIGNAL)
def test_encoder_ignores_what_was_not_recorded(name):
    e, x = small(encoder[name]).eval(), batch_for()['signal']
    valid = torch.ones_like(x, dtype=torch.bool); valid[:, 4] = False; valid[1, :, 300:] = False
    other = torch.where(valid, x, torch.full_like(x, 3.))
    same = torch.where(valid, x, torch.zeros_like(x))
    assert not torch.allclose(e.features(x, valid), e.features(x), atol=1e-4), f'{name} does not look at `valid`'
    torch.testing.assert_close(e.features(same, valid), e.features(other, valid), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('name', SIGNAL)
def test_encoder_works_on_two_leads(name):
    e = small(encoder[name], leads='II,V5').eval()
    assert e.features(torch.randn(2, 2, LENGTH)).shape == (2, e.dim)


DENOISERS = [n for n in SIGNAL if hasattr(small(encoder[n]), 'denoise')]

@pytest.mark.parametrize('name', DENOISERS)
def test_denoiser_hears_the_time_and_its_condition_and_no_more(name):
    "Of the shape of x; changed by t and by `vector`, each sample by its own; not by what was not recorded; what it was not built for is an error."
    torch.manual_seed(0)
    e, x, t = small(encoder[name]).eval(), batch_for()['signal'], torch.tensor([.1, .4, .6, .9])
    for p in e.parameters(): nn.init.normal_(p, std=.1)                # gates that start at zero let nothing through
    vector = torch.zeros(4, e.dim)
    with torch.no_grad():
        y, other = e.denoise(x, t), e.denoise(x, torch.cat([t[:3], t[:1]]))
        assert y.shape == x.shape and y.isfinite().all()
        torch.testing.assert_close(y[:3], other[:3], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(y[3], other[3], atol=1e-3), f'{name} does not hear t'
        vector[1] = 1.
        told = e.denoise(x, t, vector=vector)
        torch.testing.assert_close(y[[0, 2, 3]], told[[0, 2, 3]], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(y[1], told[1], atol=1e-3), f'{name} does not hear `vector`'
        valid = torch.ones_like(x, dtype=torch.bool); valid[:, 4] = False; valid[1, :, 300:] = False
        y, other = (e.denoise(v, t, valid=valid) for v in (x.masked_fill(~valid, 0), x.masked_fill(~valid, 3)))
        torch.testing.assert_close(y, other, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError): e.denoise(x, t, known=x, mask=valid)
    with pytest.raises(ValueError): e.denoise(x, t, context=torch.zeros(4, 3, 8))


@pytest.mark.parametrize('o,e', objectives())
def test_objective_gives_every_parameter_a_gradient(o, e):
    m = make(o, e)
    out = m(batch_for()); out.loss.backward()
    assert out.loss.ndim == 0 and out.loss.isfinite() and out.loss > 0
    none = [n for n, p in m.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())]
    assert not none, f'no finite gradient for {none}'


@pytest.mark.parametrize('o,e', objectives())
def test_objective_draws_from_the_samples_seeds(o, e):
    m, b = make(o, e).eval(), batch_for()
    a, c, other = m(b), m(b), m(b | {'seed': sample_seeds(1, 0, range(4))})
    assert torch.equal(a.loss, c.loss)
    def unseeded(k): torch.manual_seed(k); return m({n: v for n, v in b.items() if n != 'seed'}).loss
    draws = not torch.equal(unseeded(0), unseeded(1))         # an objective without chance, such as next_token, has none to take from a seed
    assert torch.equal(a.loss, other.loss) != draws


@pytest.mark.parametrize('o,e', objectives())
def test_save_and_load_are_bit_equal(o, e, tmp_path):
    m, b = make(o, e).eval(), batch_for()
    again = load(save(m, tmp_path/'m'), verbose=False)
    assert torch.equal(m(b).loss, again(b).loss)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in m.state_dict().items())


@pytest.mark.parametrize('o,e', objectives())
def test_bf16_autocast_stays_near_float32(o, e):
    m, b = make(o, e).eval(), batch_for()
    with torch.autocast('cpu', torch.bfloat16): low = m(b).loss
    assert low.dtype == torch.float32 and abs(float(low) - float(m(b).loss)) < .05*float(m(b).loss)


@pytest.mark.parametrize('o,e', objectives())
def test_training_lowers_the_loss(o, e):
    m, b = make(o, e), batch_for()
    opt, losses = torch.optim.AdamW(m.parameters(), 3e-3), []
    b['signal'] = torch.sin(torch.arange(LENGTH)/20)[None, None]*torch.randn(4, 12, 1)
    for _ in range(25):
        loss = m(b).loss; losses.append(float(loss)); loss.backward(); opt.step(); opt.zero_grad()
    assert losses[-1] < .9*losses[0], losses


@pytest.mark.parametrize('name', list(objective))
def test_objective_refuses_an_encoder_that_lacks_what_it_needs(name):
    class Bare(nn.Module): dim = 8
    if not getattr(objective[name], 'needs', ()): pytest.skip(f'{name} states no needs: it takes any encoder')
    with pytest.raises(ValueError, match='Bare'): objective[name](representation=small(representation['signal']), encoder=Bare())


@pytest.mark.parametrize('name', [n for n in representation if hasattr(representation[n], 'decode')])       # an image cannot be undone
def test_representation_can_be_undone(name):
    "To rounding; to half a level where the samples become symbols."
    r, b = small(representation[name], context=0).eval(), batch_for()
    out, before = r(b), set(b)
    got = r.decode(out[next(iter(r.gives))], out)
    most = (out['range'][..., 1] - out['range'][..., 0]).max()/r.levels*.51 if 'range' in out else 1e-4
    torch.testing.assert_close(got, b['signal'], atol=float(most), rtol=1e-4)
    assert set(b) == before and not {'shift', 'tokens'} & before, 'the batch was changed in place'


def test_registry_errors_say_what_there_is():
    with pytest.raises(PartError, match="no encoder 'vit_1d'; did you mean 'vit1d'"): encoder['vit_1d']
    with pytest.raises(PartError, match="StVit has no field 'dpeth'; it has leads, length"): encoder['st_vit'](dpeth=3)


def test_a_registry_draws_itself_as_a_table():
    rows = encoder._repr_markdown_().splitlines()
    assert len(rows) == 2 + len(encoder) and '`st_vit`' in encoder._repr_markdown_()


def test_a_class_defined_again_replaces_the_packaged_one():
    before = dict(encoder.parts)
    try:
        old = encoder['vit1d']
        new = encoder(type('Vit1d', (nn.Module,), {'__annotations__': {'dim': int}, 'dim': 8, '__doc__': 'Another.'}))
        assert encoder['vit1d'] is new is not old
    finally: encoder.parts.clear(); encoder.parts.update(before)


def test_an_optional_part_is_not_hidden_by_its_default():
    m = objective['flow'](small(representation['signal'], norm='fixed'), small(encoder['dit']))
    assert m.text is None
    m.text = nn.Linear(2, 2)
    assert isinstance(m.text, nn.Linear) and 'text.weight' in m.state_dict()


def test_sample_source_gives_guarded_ecgs():
    s = source['sample'](n=12)
    for i in range(len(s)):
        e = guard(s[i])
        assert isinstance(e, ECG) and e.meta['record'] == s.frame.record[i]


def test_all_but_the_tokenizer_works_without_the_extension():
    "Every module imports where ecgnb._bpe cannot be."
    code = ("import sys, pkgutil, importlib, ecgnb; sys.modules['ecgnb._bpe'] = None\n"
            "names = [m.name for m in pkgutil.walk_packages(ecgnb.__path__, 'ecgnb.') if '_bpe' not in m.name and '_modidx' not in m.name]\n"
            "[importlib.import_module(n) for n in names]; print(len(names))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 30, done.stderr


TOKENS = [n for n in representation if 'tokens' in small(representation[n]).gives]

@pytest.mark.parametrize('name', TOKENS)
def test_a_representation_of_tokens_goes_through_a_language_model(name):
    "What a run, next_token and generation ask of it; a new notebook is tried by being there."
    r, b = small(representation[name], context=0), batch_for(length=60)
    assert {'leads', 'fs', 'length', 'unit'} <= r.contract.keys() and json.dumps(r.contract)
    assert r.facts == dict(vocab=r.vocab, context=r.gives['tokens'][0]) and r.sizes.shape == (r.vocab,)
    assert r.sizes[[r.pad, r.bos, r.eos]].tolist() == [0, 0, 0] and len({r.pad, r.bos, r.eos}) == 3
    out = r(b)
    tokens, valid = out['tokens'], out['tokens_valid']
    assert tokens.dtype == torch.int64 and valid.dtype == out['truncated'].dtype == torch.bool and tokens.shape == valid.shape
    assert (tokens[~valid] == r.pad).all() and (tokens[:, 0] == r.bos).all() and ((tokens == r.eos).sum(1) == 1).all()
    assert (r.sizes[tokens].sum(1) == b['signal'][0].numel()).all(), 'the tokens stand for all samples of all leads'
    torch.manual_seed(0)
    m = objective['next_token'](r, small(encoder['decoder'], **r.facts))
    assert m(b).loss.isfinite()
    new, = m.generate([tokens[0, :20]], 5)
    assert 1 <= len(new) <= 5 and 0 <= new.min() and new.max() < r.vocab
    once = r.tokenise(b)
    assert torch.equal(r(once)['tokens'], tokens)
    with pytest.raises(ValueError, match='made by'): r(once | {'tokens_of': 'another'})

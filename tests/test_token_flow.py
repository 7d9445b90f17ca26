"""The signal flow head on a language model: reference numbers, and what it may read."""
import pytest
import torch

from ecgnb.encoders import dit
from ecgnb.encoders.decoder import Decoder
from ecgnb.encoders.dit import Dit
from ecgnb.hub import load, save
from ecgnb.leads import ECGError
from ecgnb.objectives.token_flow import TokenFlow, convert
from ecgnb.representations.symbols import EPS, Symbols
from ecgnb.samplers import euler, times
from reference import Fixture

REFERENCE = dict(patch=1, positions='learned', time='plain')


@pytest.fixture(scope='module')
def head(): return Fixture('ecg_encoder__signal_flow_head')


@pytest.fixture(scope='module')
def whole(): return Fixture('ecg_encoder__decoder_with_signal_head')


def head_of(a, **kw): return Dit(length=a['max_signal_len'], dim=a['d_model'], depth=a['num_layers'], heads=a['n_heads'], mlp=a['dim_ff'], cross=a['d_model'], **REFERENCE, **kw)


@pytest.mark.parametrize('call', ['forward', 'forward_masked'])
def test_parity_head_loss_and_gradients(head, call):
    m = head_of(head.args).eval()
    m.load_state_dict(dit.convert(head.weights, m))
    x, noise, t = head.io['in/signal'], *(head.io[f'draw/{call}/{k:03}'] for k in range(2))
    noise, at = noise.transpose(1, 2), t[:, None, None]
    keys = ~head.io['in/context_mask'] if call == 'forward_masked' else None
    v = m.denoise(at*x + (1 - at)*noise, t, context=head.io['in/context'], keys=keys)
    loss = (v - (x - noise)).square().mean()
    head.check(call, 'loss', loss)
    head.check(call, 'prediction', v)
    loss.backward()
    said = head.call(call)['grad_norms']
    ours = {'embedding.weight': 'input_proj.weight', 'places.table': 'pos_emb.weight', 'transformer.0.told.weight': 'layers.0.cross_attn.out_proj.weight'}
    for mine, theirs in ours.items():
        assert m.get_parameter(mine).grad.norm().item() == pytest.approx(said[theirs], rel=1e-3), theirs


def test_parity_head_samples(head):
    m = head_of(head.args).eval()
    m.load_state_dict(dit.convert(head.weights, m))
    told = dict(context=head.io['in/context'], keys=~head.io['in/context_mask'])
    with torch.no_grad():
        y = euler(lambda x, t: m.denoise(x, torch.full((len(x),), t), **told), head.io['draw/sample/000'].transpose(1, 2), times(head.args['num_steps']), True)
    head.check('sample', 'sample', y)


def model_of(whole):
    d, h = whole.args['decoder'], whole.args['head']
    r = Symbols(length=h['max_signal_len'], levels=d['vocab_size'] - 3, context=d['max_seq_len'])
    e = Decoder(vocab=d['vocab_size'], context=d['max_seq_len'], dim=d['d_model'], depth=d['num_layers'], heads=d['n_heads'], mlp=d['dim_ff'], positions='learned', prenorm=False)
    m = TokenFlow(r, e, head_of(h), weight=whole.args['flow_loss_weight'], centred=False, placed=False)
    m.load_state_dict(convert(whole.weights, m))
    return m.eval()


def test_parity_decoder_with_head(whole):
    m = model_of(whole)
    assert (m.representation.pad, m.representation.bos, m.representation.eos) == (56, 57, 58)
    tokens, noise, t = whole.io['in/tgt_ids'], *(whole.io[f'draw/forward/{k:03}'] for k in range(2))
    span = torch.tensor([[[0., 1 - EPS]]]).expand(3, 1, 2)             # the fixture's signal as it is
    b = dict(signal=whole.io['in/signal'], tokens=tokens, tokens_valid=tokens != 56, range=span, truncated=torch.zeros(3, dtype=torch.bool), tokens_of=m.representation.mark)
    out = m(b, noise.transpose(1, 2), t)
    whole.check('forward', 'loss', out.loss)
    out.loss.backward()
    assert m.encoder.embedding.weight.grad.norm().item() == pytest.approx(whole.call('forward')['grad_norms']['decoder.token_emb.weight'], rel=1e-3)


def test_parity_generated_tokens_and_signal(whole):
    m = model_of(whole)
    prompts = whole.io['in/generate_signal.tgt_ids']
    new = m.generate(list(prompts), 10, full=True)
    tokens = torch.cat([prompts, torch.nn.utils.rnn.pad_sequence(new, True, 56)], 1)
    assert torch.equal(tokens[tokens != 56], whole.io['out/generate_signal/tokens'][tokens != 56])
    tokens = whole.io['out/generate_signal/tokens']                     # the reference writes on after eos
    span = torch.tensor([[[0., 1 - EPS]]]).expand(3, 1, 2)
    y = m.draw_signal(tokens, torch.ones_like(tokens, dtype=torch.bool), span, 4, 'euler_mid', noise=whole.io['draw/generate_signal/000'].transpose(1, 2))
    whole.check('generate_signal', 'signal', y)


def small(leads='II,V2', T=60, **kw):
    torch.manual_seed(0)
    r = Symbols(leads=leads, fs=100., length=T, levels=8, flatten='time', context=0)
    m = TokenFlow(r, Decoder(vocab=r.vocab, context=r.most, dim=32, depth=1, heads=2, dropout=0.), **kw)
    for p in m.head.parameters(): torch.nn.init.normal_(p, std=.2)      # gates and head open
    return m.eval()


def ecgs(n=4, C=2, T=60): return torch.randn(n, C, T, generator=torch.Generator().manual_seed(3)).cumsum(-1)*.1


def test_fill_reads_only_what_is_known_and_keeps_it():
    m, x = small(), ecgs()
    known = (torch.arange(60) < 30).expand(4, 2, 60)
    b = dict(signal=x, seed=torch.arange(4))
    y = m.fill(b, known, steps=3)
    assert torch.equal(y[known], x[known]) and y.isfinite().all()
    other = torch.where(known, x, 9.)
    assert torch.equal(y, m.fill(b | {'signal': other}, known, steps=3))
    changed = x.clone(); changed[:, :, 10] += .3
    assert not torch.allclose(y[..., 30:], m.fill(b | {'signal': changed}, known, steps=3)[..., 30:])
    alone = m.fill(dict(signal=x[2:3], seed=torch.tensor([2])), known[:1], steps=3)
    torch.testing.assert_close(alone, y[2:3], atol=1e-5, rtol=1e-4)


def test_fill_keeps_what_was_recorded_and_draws_the_gaps():
    m, x = small(), ecgs()
    known, valid = (torch.arange(60) < 30).expand(4, 2, 60), torch.ones_like(x, dtype=torch.bool)
    valid[0, 0, 5:15] = False; valid[1, 1] = False
    b = dict(signal=torch.where(valid, x, 0.), valid=valid, seed=torch.arange(4))
    y = m.fill(b, known, steps=3)
    assert torch.equal(y[known & valid], x[known & valid]) and y.isfinite().all()
    gap = known & ~valid
    assert (y[gap] != 0).all() and torch.equal(y, m.fill(b | {'signal': torch.where(valid, x, 7.)}, known, steps=3))
    with pytest.raises(ECGError, match='fills no holes'): m.fill(b, known & valid, steps=3)


def test_tokens_of_another_moment_are_told_apart():
    "The head is told where a token stands: the same tokens in another order draw something else, by the lead and by the moment."
    m = small()
    b = m.representation({'signal': ecgs()})
    z = torch.zeros(4, b['tokens'].shape[1], 32)
    place = m.place(z, b['tokens'])
    at = place[0, 1:121].reshape(60, 2, 32)                             # after bos: II, V2, II, V2, ...
    torch.testing.assert_close(at[:, 0] - at[:, 1], (m.lead[0] - m.lead[1]).expand(60, 32), atol=1e-5, rtol=0)
    steps = at[1:, 0] - at[:-1, 0]
    assert (steps.norm(dim=-1) > .05).all()
    flat = small(); flat.placed = False
    assert torch.equal(flat.place(z, b['tokens']), z)


def test_frozen_decoder_is_left_as_it_is():
    m = small(freeze=True).train()
    assert not m.encoder.training and m.head.training
    before = {k: v.clone() for k, v in m.encoder.state_dict().items()}
    opt = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], .1)
    out = m(dict(signal=ecgs(), seed=torch.arange(4)))
    out.loss.backward(); opt.step()
    assert all(torch.equal(v, before[k]) for k, v in m.encoder.state_dict().items())
    assert out.loss.item() == pytest.approx(out.logs['flow'].item()) and m.lead.grad.abs().sum() > 0


def test_what_was_not_recorded_does_not_count():
    m, x = small(), ecgs()
    valid = torch.ones_like(x, dtype=torch.bool); valid[1, 0, 20:40] = False; valid[2, 1] = False
    b = dict(signal=x, valid=valid, seed=torch.arange(4))
    assert torch.equal(m(b).loss, m(b | {'signal': torch.where(valid, x, 0.)}).loss)
    assert not torch.equal(m(b).loss, m(dict(signal=x, seed=torch.arange(4))).loss)


def test_save_and_load_with_a_head_of_its_own(tmp_path):
    m = small(head=Dit(leads='II,V2', length=60, patch=10, dim=16, depth=1, heads=2, cross=32))
    again, b = load(save(m, tmp_path/'m'), verbose=False), dict(signal=ecgs(), seed=torch.arange(4))
    assert again.head.patch == 10 and torch.equal(m(b).loss, again(b).loss)


def test_errors():
    m, b = small(), dict(signal=ecgs(), seed=torch.arange(4))
    lead_major = Symbols(leads='II,V2', fs=100., length=60, levels=8, context=0)
    other = TokenFlow(lead_major, Decoder(vocab=lead_major.vocab, context=lead_major.most, dim=32, depth=1, heads=2))
    known = (torch.arange(60) < 30).expand(4, 2, 60)
    with pytest.raises(ECGError, match='flatten=time'): other.fill(b, known)
    with pytest.raises(ECGError, match='fills no holes'): m.fill(b, ~known)
    with pytest.raises(ECGError, match='fills no holes'): m.fill(b, known & (torch.arange(2) < 1)[:, None])
    with pytest.raises(ECGError, match='0 of 60 samples'): m.fill(b, torch.zeros_like(known))
    with pytest.raises(ECGError, match='steps=0'): m.fill(b, known, steps=0)
    with pytest.raises(ECGError, match='3 sequences of tokens for 4 ranges'): m.draw_signal(torch.zeros(3, 5).long(), torch.ones(3, 5).bool(), torch.zeros(4, 1, 2))

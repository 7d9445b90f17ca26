"""Reinforcement of answers: the defects of the reference (think/answer tags lost, log-probabilities at another temperature, NaN for one answer) are not here."""
import math
import pytest
import torch
from ecgnb.sapo import MODES, advantages, average, format_reward, gate, kl_to, log_probs, reward, sapo, statements, through_end
from llms import tiny

G = torch.Generator().manual_seed(0)


def case(B=8, L=12):
    old = -torch.rand(B, L, generator=G)
    mask = torch.arange(L) < torch.randint(1, L + 1, (B, 1), generator=G)
    return (old + .3 * torch.randn(B, L, generator=G)).requires_grad_(), old, torch.randn(B, generator=G), mask


@pytest.mark.parametrize('mode', MODES)
def test_what_was_not_said_takes_no_part(mode):
    "NaN and infinities beyond the end change neither the loss nor a gradient."
    now, old, a, mask = case()
    clean = sapo(now, old, a, mask, mode)
    grad, = torch.autograd.grad(clean.loss, now)
    dirty = now.detach().masked_fill(~mask, math.nan).requires_grad_()
    out = sapo(dirty, old.masked_fill(~mask, math.inf), a, mask, mode)
    out.loss.backward()
    assert torch.equal(out.loss, clean.loss) and torch.equal(dirty.grad, grad) and (grad[~mask] == 0).all() and grad[mask].any()


@pytest.mark.parametrize('mode', MODES)
def test_two_processes_are_one(mode):
    "Unequal shares, loss and gradient: the mean over processes is what one process gets; token-mean too, where the reference stops with an error."
    now, old, a, mask = case()
    whole = sapo(now, old, a, mask, mode)
    count = int(mask.sum()) if mode == 'token-mean' else len(now)
    parts = [sapo(now[k], old[k], a[k], mask[k], mode, count=count, ranks=2).loss for k in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(sum(parts) / 2, whole.loss)
    torch.testing.assert_close(*(torch.autograd.grad(v, now, retain_graph=True)[0] for v in (sum(parts) / 2, whole.loss)))


@pytest.mark.parametrize('mode', MODES)
def test_no_answers_give_no_loss_and_no_nan(mode):
    now, old, a, mask = case()
    out = sapo(now, old, a, mask & False, mode)
    out.loss.backward()
    assert out.loss == 0 and (now.grad == 0).all() and out.logs['kl'] == 0


def test_the_gate_bounds_any_ratio():
    "Log-ratios of ±1,000: finite loss, a gradient of 0 and not NaN, and the gate never over 4/τ."
    change = torch.tensor([[-1000., -25., -1., 0., 1., 25., 1000.]]).requires_grad_()
    for A in (1., -1.):
        out = sapo(change, torch.zeros(1, 7), torch.tensor([A]), torch.ones(1, 7))
        grad, = torch.autograd.grad(out.loss, change)
        assert out.loss.isfinite() and grad.isfinite().all() and grad[0, 3].abs() == pytest.approx(1 / 7)
        assert (grad[0, [0, 1, 5, 6]].abs() < 1e-6).all()
    assert gate(torch.tensor(1e9), 1.05) <= 4 / 1.05


def test_negative_answers_fade_sooner():
    r = torch.tensor([2.]).log()[None].requires_grad_()
    up, down = (torch.autograd.grad(sapo(r, torch.zeros(1, 1), torch.tensor([A]), torch.ones(1, 1)).loss, r)[0].abs() for A in (1., -1.))
    assert down < up


def test_bf16_autocast_gives_a_float32_loss():
    now, old, a, mask = case()
    with torch.autocast('cpu', torch.bfloat16): low = sapo(now, old, a, mask)
    assert low.loss.dtype == torch.float32 and torch.equal(low.loss, sapo(now, old, a, mask).loss)
    half = sapo(now.bfloat16(), old.bfloat16(), a, mask).loss
    assert half.dtype == torch.float32 and half.isfinite()


@pytest.mark.parametrize('group', [1, 2, 3, 4, 7])
def test_advantages_of_equal_answers_are_zero(group):
    for value in (0., .1, 2 / 3, 1.7):
        assert (advantages(torch.full((2 * group,), value), group) == 0).all()
    a = advantages(torch.rand(3 * group, generator=G), group)
    assert a.isfinite().all() and (a == 0).all() == (group == 1)


def test_advantages_know_only_their_group():
    r = torch.rand(8, generator=G)
    other = torch.cat([r[:4], 100 * r[4:]])
    assert torch.equal(advantages(r, 4)[:4], advantages(other, 4)[:4])
    torch.testing.assert_close(advantages(r, 4), advantages(other, 4), atol=1e-4, rtol=1e-3)


def test_log_probabilities_are_those_of_the_sampler():
    "Drawn at 0.7 a million times: the mean log-probability is minus the entropy at 0.7, not at 1."
    logits = torch.randn(1, 1, 8, generator=G).bfloat16()
    p = (logits.float() / .7).softmax(-1)[0, 0]
    ids = p.multinomial(1_000_000, replacement=True, generator=G)[None]
    many = logits.expand(1, ids.shape[1], 8)
    entropy = -(p * p.log()).sum()
    assert log_probs(many, ids, .7).mean().item() == pytest.approx(-entropy.item(), abs=5e-3)
    assert abs(log_probs(many, ids).mean() + entropy) > 2e-2
    assert log_probs(many, ids, .7).dtype == torch.float32


def test_through_end_takes_any_of_several_ends():
    "Gemma ends a turn with another token than a text."
    ids = torch.tensor([[4, 1, 7, 1], [4, 4, 2, 4], [1, 4, 4, 4], [4, 4, 4, 4]])
    assert through_end(ids, [1, 2]).sum(1).tolist() == [2, 3, 1, 4]
    assert through_end(ids, [1]).sum(1).tolist() == [2, 4, 1, 4]


def test_kl_to_a_reference_is_never_negative_and_pulls_back():
    now, old, _, mask = case()
    kl = kl_to(now, old, mask)
    kl.backward()
    assert kl > 0 and kl_to(old, old, mask) == 0 and (now.grad[mask] * (now - old).detach()[mask] >= 0).all()
    assert average((old - now).exp() - (old - now) - 1, mask).item() == pytest.approx(kl.item())


FORMS = {'<think>a</think><answer>b</answer>': 1, ' \n<think>\na\n</think>\n\n<answer>\nb; c\n</answer>\n': 1, '<think></think><answer></answer>': 1,
         'x <think>a</think><answer>b</answer>': 0, '<think>a</think> so <answer>b</answer>': 0, '<answer>b</answer><think>a</think>': 0, '<answer>b</answer>': 0,
         '<think>a</think><answer>b</answer><answer>c</answer>': 0, '<think>a<answer>b</answer></think><answer>c</answer>': 0,
         '<think>a</think><answer>b': 0, '<think>a</think><think>b</think><answer>c</answer>': 0, 'a b': 0, '': 0}

@pytest.mark.parametrize('text', FORMS)
def test_form(text): assert format_reward(text) == FORMS[text]


def test_statements():
    assert statements('<think>sinus rhythm</think><answer> A ; b;; a</answer>') == {'a', 'b'}        # thoughts are no answers
    assert statements('A; b') == {'a', 'b'} and statements('<answer>a') == {'<answer>a'} and not statements(' ; ')


@pytest.mark.parametrize('family', ['llama', 'gpt2'])
def test_tags_live_through_a_tokenizer(family, tmp_path):
    "Decoded as answers are, without special tokens: the tags are text and stay."
    from transformers import AutoTokenizer
    tok = AutoTokenizer.from_pretrained(tiny(tmp_path / family, family))
    text = '<think> hello </think> <answer> norm </answer>'
    back = tok.decode(tok(text)['input_ids'], skip_special_tokens=True)
    assert reward(back, 'norm') == 2, back

"""The reinforcement loss and the rewards against numbers written by the reference code (data set `parity`)."""
import pytest
import torch
from ecgnb.sapo import MODES, advantages, answer_reward, format_reward, reward, sapo
from reference import Fixture

CALLS = [(m, '') for m in MODES] + [(m, '_global8') for m in MODES if m != 'token-mean']


@pytest.fixture(scope='module')
def f(): return Fixture('elm__sapo_loss')

def inputs(f, dtype=torch.float32):
    return [f.io[f'in/{k}'].to(dtype) for k in ('log_prob', 'old_log_prob', 'advantages', 'response_mask')]


def test_every_call_is_tried(f): assert {m + g for m, g in CALLS} == {c['name'] for c in f.config['calls']}


@pytest.mark.parametrize('mode,share', CALLS)
def test_parity_loss(f, mode, share):
    now, old, a, mask = inputs(f)
    out = sapo(now, old, a, mask, mode, f.args['tau_pos'], f.args['tau_neg'], **(dict(count=8, ranks=2) if share else {}))
    f.check(mode + share, 'loss', out.loss)
    f.check(mode + share, 'ppo_kl', out.logs['kl'])
    assert torch.equal(out.loss, sapo(now, old, a[:, 0], mask.bool(), mode, **(dict(count=8, ranks=2) if share else {})).loss)


def test_parity_advantages(f):
    a = advantages(f.io['in/rewards'], len(f.io['in/rewards']))
    torch.testing.assert_close(a[:, None].expand(-1, f.io['in/advantages'].shape[1]), f.io['in/advantages'], atol=1e-6, rtol=1e-5)


def test_parity_rewards(f):
    assert f.config['rewards']
    for row in f.config['rewards']:
        got = format_reward(row['text']), answer_reward(row['text'], row['ground_truth']), reward(row['text'], row['ground_truth'])
        assert got == pytest.approx((row['format'], row['answer'], row['reward'])), row


def test_the_fixture_holds_what_is_hard(f):
    "A ratio beyond the bound of ±20 and an answer without a token: the parity above covers both."
    now, old, _, mask = inputs(f)
    assert ((now - old).abs() > 20).any() and (mask.sum(1) == 0).any()

"""The token decoder and its objective: parity with numbers of the reference code, padding, the cache, sampling, two ranks, reduced precision."""
import json
import warnings
from pathlib import Path
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from ecgnb import encoder, representation
from ecgnb.batch import sample_seeds
from ecgnb.encoders.decoder import Decoder, convert
from ecgnb.hub import load, save
from ecgnb.objectives.masked import Masked
from ecgnb.objectives.next_token import NextToken, choose, surprise
from ecgnb.registry import from_config
from ecgnb.settings import data_dir
from ecgnb.transformer import Block, Transformer
from project import two_ranks

PARITY = (data_dir('parity') or Path('parity-data-not-found'))/'ecg_encoder__decoder'
SMALL = dict(dim=32, depth=2, heads=2, dropout=0.)
BOTH = pytest.mark.parametrize('how', [{}, dict(positions='learned', prenorm=False)], ids=['rope-prenorm', 'learned-postnorm'])


class Letters(nn.Module):
    "The least that next_token asks of a representation: a batch that has its tokens already; ids 0 to n - 1 stand for one sample each."
    def __init__(self, n=56, context=64):
        super().__init__()
        self.vocab, self.pad, self.bos, self.eos, self.context = n + 3, n, n + 1, n + 2, context
        self.gives, self.sizes = {'tokens': (context,)}, torch.tensor([1]*n + [0]*3)

    def forward(self, batch):
        valid = batch['tokens'] != self.pad
        return {'tokens_valid': valid, 'truncated': torch.zeros(len(valid), dtype=torch.bool)} | batch


def model(n=56, context=64, seed=0, **how):
    torch.manual_seed(seed)
    return NextToken(Letters(n, context), Decoder(vocab=n + 3, context=context, **SMALL | how)).eval()


def texts(r, lengths, seed=0):
    "Rows of [bos] letters [eos], `lengths` tokens each."
    g = torch.Generator().manual_seed(seed)
    return [torch.tensor([r.bos, *torch.randint(r.pad, (k - 2,), generator=g).tolist(), r.eos]) for k in lengths]


def padded(rows, r, left=False):
    L = max(map(len, rows))
    return torch.stack([F.pad(p, (L - len(p), 0) if left else (0, L - len(p)), value=r.pad) for p in rows])


# ---- parity with the reference ---------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def fixture():
    if not PARITY.exists(): pytest.skip(f'parity data not there ({PARITY}); settings.ini: [data] parity = FOLDER')
    return json.loads((PARITY/'config.json').read_text()), load_file(PARITY/'io.safetensors'), load_file(PARITY/'weights.safetensors')


def reference(fixture):
    "NextToken of the fixture's sizes with its weights."
    config, _, weights = fixture
    a = config['arguments']
    e = Decoder(vocab=a['vocab_size'], context=a['max_seq_len'], dim=a['d_model'], depth=a['num_layers'], heads=a['n_heads'], mlp=a['dim_ff'], dropout=a['dropout'],
                positions='learned', prenorm=False)
    e.load_state_dict(convert(weights, e))
    return NextToken(Letters(a['pad_id'], a['max_seq_len']), e).eval()


def check(fixture, call, key, got, rows=None):
    "Within the tolerance that the README of the parity data advises."
    config, io, _ = fixture
    want, said = io[f'out/{call}/{key}'], next(c for c in config['calls'] if c['name'] == call)['outputs'][key]
    if rows is not None: want = want[rows]
    if not want.is_floating_point(): assert torch.equal(got, want); return
    torch.testing.assert_close(got.detach(), want, atol=max(1e-5, 20*said['max_abs_diff_float64']), rtol=1e-4)


@pytest.mark.parametrize('call', ['forward', 'forward_right_padded'])
def test_parity_forward_and_gradients(fixture, call):
    m = reference(fixture)
    tokens = fixture[1].get(f'in/{call}.tgt_ids', fixture[1]['in/tgt_ids'])
    labels = fixture[1].get(f'in/{call}.labels', fixture[1]['in/labels'])
    valid = tokens != m.representation.pad
    assert torch.equal(labels != -100, valid & (tokens != m.representation.bos)), 'the reference counts other tokens'
    z = m.encoder(tokens, valid)
    check(fixture, call, 'hidden_states', z[valid], valid)
    check(fixture, call, 'logits', m.encoder.logits(z)[valid], valid)
    out = m({'tokens': tokens})
    check(fixture, call, 'loss', out.loss)
    out.loss.backward()
    check_grads(fixture, call, m)


def test_parity_left_padded_with_the_references_positions(fixture):
    "In the reference a place is counted in the padded array; given such `positions`, logits, loss and gradients are its own."
    m, call = reference(fixture), 'forward_left_padded'
    tokens, labels = fixture[1][f'in/{call}.tgt_ids'], fixture[1][f'in/{call}.labels']
    valid = tokens != m.representation.pad
    z = m.encoder(tokens, valid, torch.arange(40).expand(3, 40))
    check(fixture, call, 'hidden_valid', z[valid])
    check(fixture, call, 'logits_valid', m.encoder.logits(z)[valid])
    loss = F.cross_entropy(m.encoder.logits(z)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    check(fixture, call, 'loss', loss)
    loss.backward()
    check_grads(fixture, call, m)
    assert (m.encoder(tokens, valid)[valid] - z[valid]).abs().max() > .05, 'positions made no difference, so nothing was tested'


def check_grads(fixture, call, m):
    theirs = next(c for c in fixture[0]['calls'] if c['name'] == call)['grad_norms']
    grads = dict(m.encoder.named_parameters())
    for key, norm in theirs.items():
        got = grads[next(iter(convert({key: fixture[2][key]})))].grad.norm().item()
        assert got == pytest.approx(norm, rel=1e-3), key


@pytest.mark.parametrize('call', ['generate', 'generate_limit'])
def test_parity_generate(fixture, call):
    """Greedy steps through the cache and read anew. The reference may write padding, and from then on hides it from itself: the cache is compared
    up to there, reading anew (padding hidden, places of the padded array) wherever the last token is none."""
    m, prompt, want = reference(fixture).encoder, fixture[1][f'in/{call}.tgt_ids'], fixture[1][f'out/{call}/tokens']
    whole = want if call == 'generate' else torch.cat([prompt, want], 1)
    n, pad = prompt.shape[1], fixture[0]['arguments']['pad_id']
    compared = [0, 0]
    with torch.no_grad():
        z, cache = m.prompt(prompt, torch.full((3,), n), m.context)
        for i in range(whole.shape[1] - n):
            said, so_far = fixture[1][f'out/{call}/step_logits'][:, i], whole[:, :n + i]
            again = m.logits(m(so_far, so_far != pad, torch.arange(n + i).expand(3, -1)))[:, -1]
            for k, (got, rows) in enumerate(((m.logits(z), (so_far != pad).all(1)), (again, so_far[:, -1] != pad))):
                torch.testing.assert_close(got[rows], said[rows], atol=5e-5, rtol=1e-4)
                assert torch.equal(got[rows].argmax(-1), whole[rows, n + i])
                compared[k] += int(rows.sum())
            if n + i + 1 < whole.shape[1]: z = m.step(whole[:, n + i], cache)
    assert compared == ([12, 51] if call == 'generate' else [90, 90]) and whole.shape[1] == (32 if call == 'generate' else m.context)


def test_parity_generate_of_the_objective(fixture):
    "NextToken.generate gives the reference's tokens, as many as the context has room for, and says so."
    m, prompt = reference(fixture), fixture[1]['in/generate_limit.tgt_ids']
    with pytest.warns(UserWarning, match='3 of 3 rows ended at the context of 64'): new = m.generate(prompt, 40)
    assert torch.equal(torch.stack(new), fixture[1]['out/generate_limit/tokens'])           # 30 of 40: the context is full


def test_convert_is_strict(fixture):
    w, e = fixture[2], reference(fixture).encoder
    with pytest.raises(ValueError, match='missing embedding.weight'): convert({k: v for k, v in w.items() if k != 'token_emb.weight'}, e)
    with pytest.raises(ValueError, match='unknown surprise'): convert(w | {'surprise': w['lm_head.weight']}, e)
    with pytest.raises(ValueError, match='this model has'): convert(w | {'lm_head.weight': torch.ones(7)}, e)
    with pytest.raises(ValueError, match='not in this model: places.table'): convert(w, Decoder(vocab=59, context=64, dim=32, heads=4, mlp=64, depth=2, prenorm=False))


# ---- the decoder -----------------------------------------------------------------------------------------------------

def test_sizes():
    count = lambda m: sum(p.numel() for p in m.parameters())
    with torch.device('meta'):
        assert count(Decoder(vocab=10259, context=2048, positions='learned', prenorm=False)) == 49_382_400
        assert count(Decoder()) == 49_382_400 - 2048*512 + 2*512
    assert {k: tuple(v.shape) for k, v in Decoder(vocab=30, context=64, **SMALL).state_dict().items() if 'transformer' not in k} == {
        'embedding.weight': (30, 32), 'norm.weight': (32,), 'norm.bias': (32,), 'head.weight': (30, 32)}


def test_start_of_the_weights():
    torch.manual_seed(0)
    m = Decoder(vocab=1000, dim=128, depth=1, positions='learned')
    assert m.embedding.weight.std().item() == pytest.approx(.02, rel=.05) and m.places.table.std().item() == pytest.approx(.02, rel=.05)
    assert m.head.weight.abs().max().item() == pytest.approx((6/1128)**.5, rel=.01) and m.head.bias is None
    assert m.transformer[0].qkv.weight.abs().max().item() == pytest.approx((6/512)**.5, rel=.01) and not m.transformer[0].qkv.bias.any()


@BOTH
def test_padding_on_either_side_or_none_gives_the_same(how):
    m, rows = model(**how), texts(Letters(), (40, 23, 7, 2))
    r, e = m.representation, m.encoder
    right, left = padded(rows, r), padded(rows, r, left=True)
    a, b = e(right, right != r.pad)[right != r.pad], e(left, left != r.pad)[left != r.pad]
    alone = torch.cat([e(p[None])[0] for p in rows])
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5); torch.testing.assert_close(a, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(e.features(right, right != r.pad), e.features(left, left != r.pad), atol=1e-5, rtol=1e-5)
    x, y = m({'tokens': right}), m({'tokens': left})
    torch.testing.assert_close(x.loss, y.loss, atol=1e-5, rtol=1e-5)
    x.loss.backward(); g = [p.grad.clone() for p in m.parameters()]; m.zero_grad(); y.loss.backward()
    for p, q in zip(m.parameters(), g): torch.testing.assert_close(p.grad, q, atol=1e-5, rtol=1e-3)
    assert not e.embedding.weight.grad[r.pad].any(), 'padding is learned from'


@BOTH
def test_no_token_sees_a_later_one(how):
    e = model(**how).encoder
    x = torch.randint(50, (1, 40), generator=torch.Generator().manual_seed(0))
    for at in (1, 17, 39):
        y = x.clone(); y[:, at:] = (y[:, at:] + 7) % 50
        torch.testing.assert_close(e(x)[:, :at], e(y)[:, :at], atol=1e-6, rtol=1e-6)
        assert (e(x)[:, at] - e(y)[:, at]).abs().max() > 1e-3


@pytest.mark.parametrize('left', [False, True], ids=['right', 'left'])
def test_attention_runs_without_a_mask(left, monkeypatch):
    seen, real = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, 'scaled_dot_product_attention', lambda q, k, v, mask, drop, causal: seen.append((mask, causal)) or real(q, k, v, mask, drop, causal))
    m = model()
    m({'tokens': padded(texts(m.representation, (40, 9)), m.representation, left)}).loss.backward()
    assert seen == [(None, True)]*2
    seen.clear()
    m.generate([[57, 1, 2], [57]], 4)
    assert [None if mask is None else tuple(mask.shape) for mask, _ in seen] == [None]*2 + [(2, 1, 1, 4)]*2 + [(2, 1, 1, 5)]*2 + [(2, 1, 1, 6)]*2
    assert [c for _, c in seen] == [True]*2 + [False]*6


def test_masked_models_are_the_same_to_the_bit_as_before_rotary_positions_and_cache():
    "A block without them is attention, MLP and norms as they were: checked against the few lines written out."
    torch.manual_seed(0)
    x, keys = torch.randn(2, 9, 32), torch.rand(2, 9) > .2
    for prenorm in (True, False):
        b = Block(32, 4, prenorm=prenorm).eval()
        def attend(x):
            q, k, v = b.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            return b.out(F.scaled_dot_product_attention(q, k, v, keys[:, None, None]).transpose(1, 2).flatten(2))
        mlp = lambda x: b.down(F.gelu(b.up(x)))
        if prenorm: y = x + attend(b.norm1(x)); y = y + mlp(b.norm2(y))
        else: y = b.norm1(x + attend(x)); y = b.norm2(y + mlp(y))
        assert torch.equal(b(x, keys), y) and torch.equal(Transformer(1, 32, 4)[0].load_state_dict(b.state_dict()) and b(x, keys), y)


@BOTH
def test_bf16_autocast_stays_near_float32(how):
    m = model(**how)
    b = {'tokens': padded(texts(m.representation, (40, 30, 20)), m.representation)}
    with torch.autocast('cpu', torch.bfloat16):
        out = m(b)
        new = m.generate([[57, 3, 4]], 10)
    assert out.loss.dtype == torch.float32 and (out.loss - m(b).loss).abs() < .02*m(b).loss and len(new[0])
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in m.parameters())


def test_what_the_decoder_refuses():
    e = Decoder(vocab=30, context=16, **SMALL)
    for x, said in ((torch.full((1, 4), 30), 'token 30; this decoder has vocab=30'), (torch.full((1, 4), -1), 'token -1'), (torch.zeros(1, 17, dtype=torch.long), '17 tokens; this decoder reads 16'),
                    (torch.zeros(1, 4), 'whole numbers'), (torch.zeros(4, dtype=torch.long), 'wanted')):
        with pytest.raises(ValueError, match=said): e(x)
    for kw, said in ((dict(positions='sincos'), "use 'rope'"), (dict(heads=5), 'heads=5'), (dict(dim=24, heads=8), 'even, not 3'), (dict(vocab=0), 'vocab=0'), (dict(context=0), 'context=0')):
        with pytest.raises(ValueError, match=said): Decoder(**kw)


# ---- the objective ---------------------------------------------------------------------------------------------------

def test_the_loss_is_the_mean_over_tokens_told_and_the_log_adds_up():
    m = model()
    r, e, rows = m.representation, m.encoder, texts(Letters(), (40, 23, 3))
    out = m({'tokens': padded(rows, r)})
    nats = torch.cat([F.cross_entropy(e.logits(e(p[None]))[0, :-1], p[1:], reduction='none') for p in rows])
    torch.testing.assert_close(out.loss, nats.mean())
    letters = sum(len(p) - 2 for p in rows)
    assert float(out.logs['bits_per_sample']) == pytest.approx(float(nats.detach().sum())/0.6931472/letters, rel=1e-5)
    assert float(out.logs['perplexity']) == pytest.approx(float(nats.detach().mean().exp()), rel=1e-5)
    torch.testing.assert_close(out.pred['bits'].sum(), nats.sum()/torch.log(torch.tensor(2.)))
    assert (out.pred['bits'][:, 0] == 0).all() and (out.pred['bits'] > 0).sum() == 39 + 22 + 2


@pytest.mark.parametrize('rows', [1, 7, 63, 64, 1000])
def test_surprise_in_pieces_is_the_surprise(rows):
    torch.manual_seed(0)
    head, z, goal = nn.Linear(8, 20), torch.randn(64, 8, requires_grad=True), torch.randint(20, (64,))
    nats, hit = surprise(head, z, goal, rows)
    want = F.cross_entropy(head(z), goal, reduction='none')
    torch.testing.assert_close(nats, want); assert torch.equal(hit, head(z).argmax(-1) == goal)
    for a, b in zip(torch.autograd.grad(nats.sum(), [z, *head.parameters()]), torch.autograd.grad(want.sum(), [z, *head.parameters()])): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_dropped_gradients_and_empty_rows():
    "A batch in which nothing is told has a loss of 0 and gradients of 0, not NaN."
    m = model()
    out = m({'tokens': torch.full((2, 8), m.representation.pad)})
    out.loss.backward()
    assert float(out.loss) == 0 and all(p.grad is None or not p.grad.any() for p in m.parameters())


def test_a_small_model_learns_a_rule():
    "Counting in a circle of five: the next letter is certain, after some steps the model knows."
    m = model(n=5, context=24).train()
    rows = torch.stack([torch.tensor([6, *[(s + i) % 5 for i in range(20)], 7]) for s in range(5)])
    opt, losses = torch.optim.AdamW(m.parameters(), 1e-2), []
    for _ in range(60):
        loss = m({'tokens': rows}).loss; losses.append(float(loss)); loss.backward(); opt.step(); opt.zero_grad()
    assert losses[-1] < .15*losses[0]
    assert m.generate([[6, 2, 3], [6, 4]], 6)[0].tolist() == [4, 0, 1, 2, 3, 4] and m.training


def test_what_the_objective_refuses():
    r, e = Letters(), Decoder(vocab=59, context=64, **SMALL)
    vit = encoder['vit1d'](length=200, dim=32, depth=1, heads=2)
    with pytest.raises(ValueError, match="Vit1d: it has no vocab, context, logits, prompt, step; use encoder='decoder'"): NextToken(r, vit)
    with pytest.raises(ValueError, match="Signal does not give; use representation='symbols'"): NextToken(representation['signal'](), e)
    with pytest.raises(ValueError, match='Decoder: it has no patches'): Masked(representation['signal'](length=200), e)
    with pytest.raises(ValueError, match='Letters has 60 tokens.*build the encoder with vocab=60'): NextToken(Letters(57), e)
    with pytest.raises(ValueError, match='up to 65 tokens.*context=65'): NextToken(Letters(context=65), e)


RANKS = '''
from test_next_token import Letters, model, padded, texts
m = model().train()
rows = texts(Letters(), (60, 50, 4, 3))
wrapped = torch.nn.parallel.DistributedDataParallel(m)
out = wrapped({'tokens': padded(rows[2*rank:2*rank + 2], m.representation)})
out.loss.backward()
loss = out.loss.detach().clone(); dist.all_reduce(loss); loss /= 2
m.eval()
if rank == 0: m({'tokens': padded(rows[:1], m.representation)})       # one process alone may evaluate: it waits for nobody
out = dict(loss=loss, grads=[p.grad for p in m.parameters()])
'''


def test_two_ranks_with_long_and_short_rows_equal_one(tmp_path):
    "Rank 0 has 108 tokens to tell, rank 1 five: the averaged loss and gradients are those of one process with all four rows."
    two, m = two_ranks(RANKS, tmp_path), model().train()
    one = m({'tokens': padded(texts(Letters(), (60, 50, 4, 3)), m.representation)})
    one.loss.backward()
    torch.testing.assert_close(one.loss.detach(), two['loss'])
    for p, g in zip(m.parameters(), two['grads']): torch.testing.assert_close(p.grad, g, atol=1e-6, rtol=1e-4)
    first = m({'tokens': padded(texts(Letters(), (60, 50, 4, 3))[:2], m.representation)})
    assert (first.loss - one.loss).abs() > 1e-3, 'a share of the batch has the loss of the whole: nothing was tested'


# ---- writing ---------------------------------------------------------------------------------------------------------

PROMPTS = [[57, *range(30)], [57, 4], [57], [57, 9, 9, 9, 9, 9, 9]]

@BOTH
@pytest.mark.parametrize('draw', [dict(), dict(temperature=1., seed=3), dict(temperature=.7, top_k=9, top_p=.9, seed=4)], ids=['greedy', 'drawn', 'top'])
def test_cache_equals_reading_all_again_and_a_row_alone(how, draw):
    m = model(**how)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        fast, slow = m.generate(PROMPTS, 60, **draw), m.generate(PROMPTS, 60, full=True, **draw)
        seeds = sample_seeds(draw.get('seed', 0), 0, range(4))
        alone = [m.generate([p], 60, **draw | dict(seed=seeds[i:i + 1]))[0] for i, p in enumerate(PROMPTS)]
    assert [a.tolist() for a in fast] == [a.tolist() for a in slow] == [a.tolist() for a in alone]
    assert len(fast[0]) <= 64 - 31 and max(map(len, fast)) == 60


def test_prompts_as_a_padded_batch():
    m = model()
    rows = [torch.tensor(p) for p in PROMPTS]
    want = [a.tolist() for a in m.generate(rows, 20)]
    for left in (False, True):
        x = padded(rows, m.representation, left)
        assert [a.tolist() for a in m.generate(x, 20, valid=x != m.representation.pad)] == want


def test_seeds_are_a_rows_own():
    m, how = model(), dict(temperature=1., most=30)
    a = m.generate([[57, 1]]*3, seed=7, **how)
    assert [x.tolist() for x in a] == [x.tolist() for x in m.generate([[57, 1]]*3, seed=7, **how)]
    assert len({tuple(x.tolist()) for x in a}) == 3, 'rows with one prompt draw alike'
    assert a[0].tolist() != m.generate([[57, 1]], seed=8, **how)[0].tolist()
    own = sample_seeds(7, 0, range(3)).flip(0)
    assert [x.tolist() for x in m.generate([[57, 1]]*3, seed=own, **how)] == [x.tolist() for x in a[::-1]]
    assert [x.tolist() for x in m.generate([[57, 1]]*3, seed=7, temperature=1., most=9)] == [x[:9].tolist() for x in a]


def test_what_is_drawn_has_the_shares_it_should():
    torch.manual_seed(0)
    logits = torch.randn(12)
    u = (torch.arange(20_000) + .5)/20_000
    share = lambda **kw: torch.bincount(choose(logits.expand(20_000, 12), u, **kw), minlength=12)/20_000
    p = logits.softmax(0)
    assert torch.allclose(share(temperature=1.), p, atol=2e-4)
    assert torch.allclose(share(temperature=.5), (2*logits).softmax(0), atol=2e-4)
    order = p.argsort(descending=True)
    for k in (1, 3, 12, 99):
        kept = torch.zeros(12).index_fill(0, order[:k], 1.)*p
        assert torch.allclose(share(temperature=1., top_k=k), kept/kept.sum(), atol=2e-4)
    for q in (.01, .5, .9, 1.):
        n = int((p[order].cumsum(0) < q).sum()) + 1                                     # as few as reach q
        kept = torch.zeros(12).index_fill(0, order[:n], 1.)*p
        assert torch.allclose(share(temperature=1., top_p=q), kept/kept.sum(), atol=2e-4)
    both = torch.zeros(12).index_fill(0, order[:5], 1.)*p                               # top_p is of what top_k left
    n = int((both[order].cumsum(0)/both.sum() < .7).sum()) + 1
    kept = torch.zeros(12).index_fill(0, order[:n], 1.)*p
    assert torch.allclose(share(temperature=1., top_k=5, top_p=.7), kept/kept.sum(), atol=2e-4)
    assert choose(logits[None]).item() == order[0] and choose(logits[None], torch.zeros(1), 1e-3).item() == order[0]
    assert choose(torch.tensor([[0., float('-inf')]]), torch.tensor([1 - 2**-24]), 1.).item() == 0, 'a token of no chance was drawn'


def test_draws_from_seeds_follow_the_model():
    "The first letters of 4,000 rows against the model's own probabilities."
    m = model(n=6)
    with torch.no_grad(): p = m.encoder.logits(m.encoder(torch.tensor([[7, 1]])))[0, -1]
    p[[6, 7]] = float('-inf')
    first = torch.cat(m.generate([[7, 1]]*4000, 1, temperature=1., seed=1))
    assert (torch.bincount(first, minlength=9)/4000 - p.softmax(0)).abs().max() < .025


def pushed(m, token, at):
    "The model with `token` made the likeliest one after place `at`, and the least likely one after any other."
    with torch.no_grad():
        m.encoder.places.table[:, 0] = -1e4
        m.encoder.places.table[at, 0] = 1e4
        for b in m.encoder.transformer: b.out.weight.zero_(); b.down.weight.zero_()
        m.encoder.head.weight[:, 0], m.encoder.head.weight[token, 0] = 0., 1e3
    return m


def test_eos_ends_a_row_and_pad_and_bos_are_never_written():
    m = pushed(model(positions='learned'), 58, at=9)
    new = m.generate([[57, 1, 2], [57, 1, 2, 3, 4]], 20)
    assert [len(a) for a in new] == [8, 6] and all(a[-1] == 58 for a in new) and not any(58 in a[:-1] for a in new)
    for token in (56, 57):
        new = pushed(model(positions='learned'), token, at=4).generate([[57, 1, 2]]*5, 10, temperature=2.)
        assert not any(token in a for a in new)


def test_stop_ends_each_row_by_itself():
    m, seen = model(), []
    sizes = torch.tensor([3]*56 + [0]*3)
    def stop(new):
        seen.append(tuple(new.shape))
        return sizes[new].sum(1) >= torch.tensor([3, 9, 28])
    assert [len(a) for a in m.generate([[57]]*3, 20, stop=stop)] == [1, 3, 10]
    assert seen == [(3, i + 1) for i in range(10)], 'it goes on after all rows are over, or stop sees something else'


def test_the_context_ends_a_row_and_says_so():
    m = model(context=16)
    with pytest.warns(UserWarning, match='1 of 2 rows ended at the context of 16 tokens'): new = m.generate([[57]*1 + [1]*10, [57]], 9)
    assert [len(a) for a in new] == [5, 9]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert [len(a) for a in m.generate([[57] + [1]*10], 5)] == [5]


def test_what_generate_refuses():
    m = model(context=16)
    r = m.representation
    for prompts, said in (([[57, 1], [57]*16], 'prompt 1 has 16 tokens; with context=16 wanted 1 to 15'), ([[57], []], 'prompt 1 has 0 tokens'), ([], 'no prompt'), ([[57, 59]], 'prompt 0 has token 59; wanted 0 to 58'),
                          ([[57, -1]], 'token -1'), ([[57, 3, r.eos]], 'prompt 0 has an end or padding at token 2'), ([[57, r.pad, 3]], 'at token 1')):
        with pytest.raises(ValueError, match=said): m.generate(prompts, 4)
    for kw, said in ((dict(top_k=3), 'set temperature=1'), (dict(top_p=.5), 'set temperature=1'), (dict(temperature=-1.), 'temperature=-1'), (dict(temperature=1., top_p=0.), 'top_p=0'),
                     (dict(temperature=1., top_p=1.5), 'top_p=1.5'), (dict(temperature=1., top_k=-1), 'top_k=-1'), (dict(temperature=1., seed=torch.arange(3)), '3 seeds for 1 prompts')):
        with pytest.raises(ValueError, match=said): m.generate([[57]], 4, **kw)
    with pytest.raises(ValueError, match='most=0'): m.generate([[57]], 0)


# ---- with a real representation ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('more', [dict(), dict(flatten='time', pad_side='left'), dict(levels=40, norm='percentile', context=80)], ids=['lead', 'time', 'cut'])
def test_with_symbols_from_signal_to_signal(more, tmp_path):
    r = representation['symbols'](**dict(leads='II,V5', fs=50., length=60, context=128) | more)
    torch.manual_seed(0)
    m = NextToken(r, Decoder(**r.facts, **SMALL)).eval()
    b = {'signal': torch.randn(3, 2, 60, generator=torch.Generator().manual_seed(1)), 'seed': sample_seeds(0, 0, range(3))}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        out, t = m(b), r(b)
        assert float(out.logs['truncated']) == (1. if r.context == 80 else 0.)
        assert torch.equal(m(t).loss, out.loss), 'tokenised beforehand is another loss'
        ids, span = r.encode(b['signal'][..., :20])
        new = m.generate([torch.cat([torch.tensor([r.bos]), i]) for i in ids], 80, stop=lambda new: r.sizes[new].sum(1) >= 2*10)
    mv = r.decode([torch.cat(p) for p in zip(ids, new)], {'range': span}, samples=30)
    assert mv.shape == (3, 2, 30) and not mv[:, :, :10].isnan().any()
    again = load(save(m, tmp_path/'m'), verbose=False)
    assert torch.equal(again(b).loss, out.loss)


def test_recipes_write_vocabulary_and_context_into_the_run():
    from ecgnb.recipes import build, complete
    run = build('tiny_lm')
    e, r = run['model']['encoder'], from_config(run['model']['representation'])
    assert (e['vocab'], e['context']) == (r.vocab, r.most) and r.flatten == 'time' and complete(dict(run)) == run
    assert build('tiny_lm', 'model.representation.levels=40', 'model.representation.context=300')['model']['encoder']['vocab'] == 43
    from_config(run['model'])
    with pytest.raises(ValueError, match='build the encoder with vocab=29'): from_config(build('tiny_lm', 'model.encoder.vocab=50')['model'])


def test_the_reference_size_is_a_recipe():
    if data_dir('tokenizers') is None: pytest.skip('the published table is not there; settings.ini: [data] tokenizers = FOLDER')
    if 'bpe' not in representation: pytest.skip('no representation bpe')
    from ecgnb.recipes import build
    e = build('ecg_byte_lm')['model']['encoder']
    assert (e['vocab'], e['context']) == (10259, 2048)
    with torch.device('meta'): assert sum(p.numel() for p in from_config(e).parameters()) == 48_334_848

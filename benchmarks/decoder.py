"""Training and writing with the token decoder: ecgnb against the reference's way.

    python benchmarks/decoder.py [--quick] [--size small|reference] [--batch N] [--threads N]

The reference's way, written plainly below: rows padded in front to the full context, a boolean mask of L x L for every row, norms after the sums, logits of
every position, and at each new token the whole sequence read again. It shares torch's fused attention (with its mask), so what is measured is the way and not the kernel. Weights
are the same; its loss and its greedy tokens must be ours before anything is timed. `same` is our code on that architecture, `ecgnb` the default one (rotary
positions, norms before). Rows `full` have no padding at all; rows `ragged` are a quarter to the whole of the context, as short recordings and tables of merges make them. Tokens are those that count.
A training step is forward, backward and AdamW, without dropout. Rounds alternate; the fastest counts. On a GPU: the reference's size, ours with bfloat16 autocast as it is trained and in float32 too.
"""
import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ecgnb.encoders.decoder import Decoder                              # noqa: E402
from ecgnb.objectives.next_token import NextToken                       # noqa: E402


# ---- the reference's way ---------------------------------------------------------------------------------------------

class Plain(nn.Module):
    "The decoder `like` (learned positions, norms after), on its weights, with the masks written out."
    def __init__(self, like):
        super().__init__()
        self.like = like

    def attention(self, b, x, mask):
        B, L, D = x.shape
        q, k, v = (t.reshape(B, L, b.heads, -1).transpose(1, 2) for t in b.qkv(x).chunk(3, -1))
        return b.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(B, L, D))

    def forward(self, tokens, pad):
        "Logits (B, L, V) of every position."
        e, L = self.like, tokens.shape[1]
        causal = torch.ones(L, L, dtype=torch.bool, device=tokens.device).tril()
        mask = causal & (tokens != pad)[:, None, None, :] | torch.eye(L, dtype=torch.bool, device=tokens.device)   # a row that sees nothing is not a number
        x = e.embedding(tokens) + e.places.table[:L]
        for b in e.transformer:
            x = b.norm1(x + self.attention(b, x, mask))
            x = b.norm2(x + b.down(F.gelu(b.up(x))))
        return e.head(x)

    def loss(self, tokens, pad, bos):
        goal = tokens[:, 1:].masked_fill((tokens[:, 1:] == pad) | (tokens[:, 1:] == bos), -100)
        return F.cross_entropy(self(tokens, pad)[:, :-1].transpose(1, 2), goal, ignore_index=-100)

    @torch.no_grad()
    def generate(self, tokens, most, never):
        for _ in range(most):
            y = self(tokens, never[0])[:, -1].index_fill(1, torch.tensor(never, device=tokens.device), float('-inf'))
            tokens = torch.cat([tokens, y.argmax(-1, keepdim=True)], 1)
        return tokens[:, -most:]


class Tokens(nn.Module):
    "A representation of tokens that are there already."
    def __init__(self, vocab, context):
        super().__init__()
        self.vocab, self.pad, self.bos, self.eos, self.gives = vocab, vocab - 3, vocab - 2, vocab - 1, {'tokens': (context,)}
        self.sizes = torch.tensor([1]*(vocab - 3) + [0]*3)

    def forward(self, batch): return batch | {'truncated': torch.zeros(len(batch['tokens']), dtype=torch.bool)}


# ---- measuring ------------------------------------------------------------------------------------------------------

SIZES = {'quick': dict(vocab=1029, context=256, dim=128, depth=2, heads=4, batch=4, new=16, rounds=3),
         'small': dict(vocab=1029, context=1024, dim=128, depth=4, heads=4, batch=4, new=48, rounds=4),
         'reference': dict(vocab=10259, context=2048, dim=512, depth=12, heads=8, batch=16, new=128, rounds=8)}

def rows(r, lengths, L, device, left):
    "Token rows [bos] ... [eos] of these lengths in an array of L, and where they are."
    g = torch.Generator().manual_seed(0)
    out = torch.full((len(lengths), L), r.pad)
    for row, n in zip(out, lengths):
        row[L - n if left else 0:][:n] = torch.cat([torch.tensor([r.bos]), torch.randint(r.vocab - 3, (n - 2,), generator=g), torch.tensor([r.eos])])
    return out.to(device), (out != r.pad).to(device)

def fastest(ways, rounds, device):
    "Seconds of the fastest of `rounds` calls of each, in turns, after one that does not count."
    best = dict.fromkeys(ways, float('inf'))
    for i in range(rounds + 1):
        for k, f in ways.items():
            if device == 'cuda': torch.cuda.synchronize()
            t = time.perf_counter()
            f()
            if device == 'cuda': torch.cuda.synchronize()
            if i: best[k] = min(best[k], time.perf_counter() - t)
    return best

def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('--quick', action='store_true', help='under a minute')
    a.add_argument('--size', choices=SIZES, help='default: reference on a GPU, else small')
    a.add_argument('--batch', type=int, help='rows')
    a.add_argument('--threads', type=int, default=1, help='CPU threads')
    a = a.parse_args()
    torch.set_num_threads(a.threads)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    size = a.size or ('reference' if device == 'cuda' else 'quick' if a.quick else 'small')
    s = dict(SIZES[size])
    B, new, rounds = a.batch or s.pop('batch'), s.pop('new'), s.pop('rounds')
    s.pop('batch', None)
    if a.quick: rounds = min(rounds, 3)
    L, r = s['context'], Tokens(s['vocab'], s['context'])
    torch.manual_seed(0)
    same = NextToken(r, Decoder(**s, dropout=0., positions='learned', prenorm=False)).to(device)
    ours, plain = NextToken(r, Decoder(**s, dropout=0.)).to(device), Plain(same.encoder)
    half = lambda on: torch.autocast('cuda', torch.bfloat16) if on and device == 'cuda' else contextlib.nullcontext()

    whole, valid = rows(r, [L]*B, L, device, False)
    gap = abs(float(same({'tokens': whole, 'tokens_valid': valid}).loss.detach()) - float(plain.loss(whole, r.pad, r.bos).detach()))
    if gap > 1e-4: raise SystemExit(f'the losses differ by {gap}')
    prompt = whole[:, :L//2]
    got = torch.stack(same.generate(prompt, 4))
    if not torch.equal(got, plain.generate(prompt, 4, [r.pad, r.bos])): raise SystemExit('the greedy tokens differ')

    where = torch.cuda.get_device_name() if device == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    print(f'{where}; torch {torch.__version__}; size {size}: {sum(p.numel() for p in ours.parameters()):,} parameters, vocabulary {s["vocab"]:,}, context {L}, {B} rows')
    print(f'{"task":16s} {"way":12s} {"tokens/s":>12} {"faster":>8}')
    table = {}
    def show(task, seconds, tokens):
        table[task] = {k: tokens/v for k, v in seconds.items()}
        for k, v in table[task].items(): print(f'{task:16s} {k:12s} {v:>12,.0f} {v/table[task]["reference"]:>7.2f}x', flush=True)

    def step(model, loss):
        opt = torch.optim.AdamW(model.parameters(), lr=1e-5)
        def f():
            opt.zero_grad(set_to_none=True)
            loss().backward()
            opt.step()
        return f
    for task, lengths in (('train full', [L]*B), ('train ragged', torch.linspace(L/4, L, B).long().tolist())):
        front, _ = rows(r, lengths, L, device, True)
        behind, valid = rows(r, lengths, max(lengths), device, False)
        def loss(m, low):
            with half(low): return m({'tokens': behind, 'tokens_valid': valid}).loss
        ways = {'reference': step(plain, lambda: plain.loss(front, r.pad, r.bos)), 'same': step(same, lambda: loss(same, True)), 'ecgnb': step(ours, lambda: loss(ours, True))}
        if device == 'cuda': ways['ecgnb fp32'] = step(ours, lambda: loss(ours, False))
        show(task, fastest(ways, rounds, device), sum(lengths) - B)

    def write(m, prompts, low):
        m.representation.eos, keep = -1, m.representation.eos             # no row may end early
        with half(low): done = m.generate(prompts, new)
        m.representation.eos = keep
        return done
    ragged = [whole[i, :n] for i, n in enumerate(torch.linspace(L/8, L/2, B).long().tolist())]
    for task, prompts in (('write', list(prompt)), ('write ragged', ragged)):
        def reread():                                                     # rows of unlike lengths one after the other, as the reference evaluates
            for group in ([prompt] if task == 'write' else [p[None] for p in prompts]): plain.generate(group, new, [r.pad, r.bos])
        ways = {'reference': reread, 'same': lambda: write(same, prompts, True), 'ecgnb': lambda: write(ours, prompts, True)}
        show(task, fastest(ways, 1 if a.quick else 2, device), B*new)
    ratio = lambda task, k='ecgnb': round(table[task][k]/table[task]['reference'], 3)
    print(json.dumps(dict(name='decoder', train_ratio=ratio('train full'), train_ragged_ratio=ratio('train ragged'), train_same_ratio=ratio('train full', 'same'),
                          generate_ratio=ratio('write'), generate_ragged_ratio=ratio('write ragged'), generate_same_ratio=ratio('write', 'same'),
                          device=where, size=size, context=L, batch=B, new=new, torch=torch.__version__,
                          tokens_s={t: {k: round(v, 1) for k, v in row.items()} for t, row in table.items()})))

if __name__ == '__main__': main()

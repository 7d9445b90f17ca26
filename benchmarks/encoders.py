"""One training step of MAE ViT, MTAE, MLAE and ST-MEM: ecgnb against a straightforward float32 implementation.

    python benchmarks/encoders.py [--quick] [--size small|reference] [--batch N] [--threads N]

The plain implementation below writes softmax attention out and decodes lead after lead in a Python loop; sizes, weights, masks and optimizer are the
same, and its loss must be ours before anything is timed. CPU: both in float32, small sizes. GPU: the reference's sizes, ours with bfloat16 autocast as it is
trained, and in float32 too, so that one sees what is due to the number format. A step is forward, backward and AdamW. Rounds alternate between the two; the median counts. `kept` are the bytes
that the forward pass keeps for the backward pass (without the weights); on a GPU `peak` is the most memory allocated.
"""
import argparse
import contextlib
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ecgnb.encoders.st_vit import StVit                                # noqa: E402
from ecgnb.encoders.vit1d import Vit1d                                 # noqa: E402
from ecgnb.objectives.masked import Masked                             # noqa: E402
from ecgnb.representations.signal import Signal                        # noqa: E402


# ---- the plain implementation: what one writes first ---------------------------------------------------------------------

class PlainBlock(nn.Module):
    "A transformer block with its attention written out."
    def __init__(self, like):
        super().__init__()
        self.heads, self.prenorm = like.heads, like.prenorm
        for name in ('norm1', 'norm2', 'qkv', 'out', 'up', 'down'): setattr(self, name, getattr(like, name))

    def attention(self, x):
        B, N, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.reshape(B, N, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(B, N, -1))

    def mlp(self, x): return self.down(F.gelu(self.up(x)))

    def forward(self, x):
        if self.prenorm:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


class Plain(nn.Module):
    "A masked autoencoder on the weights of `model` (shared with it), lead by lead where the model has leads."
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.encoder = nn.Sequential(*[PlainBlock(b) for b in model.encoder.transformer])
        self.decoder = nn.Sequential(*[PlainBlock(b) for b in model.decoder])

    def forward(self, x, noise):
        m, e = self.model, self.model.encoder
        leads = isinstance(e, StVit)
        x = m.representation({'signal': x})['signal']
        p = e.patches(x)
        B, G, N, _ = p.shape
        keep = max(1, int(N * (1 - m.ratio)))
        tokens, places = [], []
        for g in range(G):
            z = e.embedding(p[:, g]) + e.places.patches
            if leads: z = z + e.lead[g]
            order = noise[:, g].argsort(1)[:, :keep]
            z = torch.gather(z, 1, order[..., None].repeat(1, 1, z.shape[-1]))
            if leads:
                first, last = e.sep + e.places.first + e.lead[g], e.sep + e.places.last + e.lead[g]
                z = torch.cat([first.expand(B, 1, -1), z, last.expand(B, 1, -1)], 1)
            elif e.cls: z = torch.cat([(e.token + e.places.first).expand(B, 1, -1), z], 1)
            tokens.append(z)
            places.append(order)
        z = m.to_decoder(e.norm(self.encoder(torch.cat(tokens, 1)))).chunk(G, 1)
        total, count = 0., 0
        for g in range(G):
            b, order = e.before, places[g]
            full = m.mask_token.repeat(B, N, 1)
            full = full.scatter(1, order[..., None].repeat(1, 1, full.shape[-1]), z[g][:, b:b + keep])
            y = self.decoder(torch.cat([z[g][:, :b], full, z[g][:, b + keep:]], 1) + m.places.table)
            pred = m.head(m.norm(y[:, b:b + N]))
            hidden = torch.ones(B, N, device=x.device).scatter(1, order, 0.)
            total = total + (((pred - p[:, g]) ** 2).mean(-1) * hidden).sum()
            count = count + hidden.sum()
        return total / count


# ---- measuring ------------------------------------------------------------------------------------------------------

SIZES = {'quick': dict(dim=96, depth=3, heads=3, dec=dict(dec_dim=64, dec_depth=2, dec_heads=2), post=dict(dim=96, depth=3, heads=3), batch=8),
         'small': dict(dim=192, depth=4, heads=3, dec=dict(dec_dim=96, dec_depth=2, dec_heads=3), post=dict(dim=192, depth=4, heads=3), batch=16),
         'reference': dict(dim=768, depth=12, heads=12, dec={}, post=dict(dim=512, depth=6, heads=8), batch=64)}

def build(name, size):
    "The pair `name` in `size`, 12 leads of 2500 samples, without dropout."
    s = SIZES[size]
    wide = {k: s[k] for k in ('dim', 'depth', 'heads')}
    if name == 'mae_vit':
        encoder = Vit1d(over='lead', prenorm=False, positions='learned', cls=False, patch_norm=False, **s['post'])
        dec = dict(dec_dim=s['post']['dim'], dec_depth=4 if size == 'reference' else 2, dec_heads=s['post']['heads'], dec_prenorm=False,
                   dec_positions='learned', dec_eps=1e-5)
        return Masked(Signal(), encoder, **dec)
    encoder = StVit(**wide) if name == 'st_mem' else Vit1d(over='time' if name == 'mtae' else 'lead', **wide)
    return Masked(Signal(), encoder, **s['dec'])

def kept(f, model):
    "Bytes that f() keeps for its backward pass, each storage once, the weights left out."
    weights, seen = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}
    def pack(t):
        s = t.untyped_storage()
        if s.data_ptr() not in weights: seen[s.data_ptr()] = s.nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): loss = f()
    del loss
    return sum(seen.values())

def compare(name, size, batch, rounds, device):
    "One row of the table."
    torch.manual_seed(0)
    model = build(name, size).to(device).train()
    plain = Plain(model)
    x = torch.randn(batch, 12, 2500, device=device)
    noise = torch.rand(batch, model.encoder.groups, model.encoder.count, device=device)
    gap = abs(model({'signal': x}, noise).loss.item() - plain(x, noise).item())
    if gap > 1e-4: raise SystemExit(f'{name}: the two losses differ by {gap}')
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4)
    half = lambda: torch.autocast('cuda', torch.bfloat16) if device == 'cuda' else contextlib.nullcontext()
    def ours():
        with half(): return model({'signal': x}, noise).loss
    ways = {'plain': lambda: plain(x, noise), 'ecgnb': ours}
    if device == 'cuda': ways['ecgnb fp32'] = lambda: model({'signal': x}, noise).loss
    ms, memory, peak = {k: [] for k in ways}, {k: kept(f, model) for k, f in ways.items()}, {}
    for i in range(rounds + 2):
        for k, f in ways.items():
            if device == 'cuda': torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats()
            t = time.perf_counter()
            opt.zero_grad(set_to_none=True)
            f().backward()
            opt.step()
            if device == 'cuda': torch.cuda.synchronize(); peak[k] = torch.cuda.max_memory_allocated()
            if i >= 2: ms[k].append((time.perf_counter() - t) * 1e3)
    med = {k: statistics.median(v) for k, v in ms.items()}
    row = dict(model=name, parameters=sum(p.numel() for p in model.parameters()), batch=batch, loss_gap=gap, ratio=med['plain'] / med['ecgnb'],
               kept_ratio=memory['plain'] / memory['ecgnb'])
    for k in ways:
        key = k.replace(' ', '_')
        row |= {f'{key}_ms': med[k], f'{key}_ecg_s': batch / med[k] * 1e3, f'{key}_kept_mb': memory[k] / 2**20}
        if peak: row[f'{key}_peak_mb'] = peak[k] / 2**20
        print(f'{name:8s} {k:11s} {row["parameters"]:>11,} {batch:>6} {med[k]:>10.1f} {batch / med[k] * 1e3:>9.1f} {memory[k] / 2**20:>9.1f}'
              + (f' {peak[k] / 2**20:>9.0f}' if peak else '') + f' {med["plain"] / med[k]:>7.2f}x', flush=True)
    return row

def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('--quick', action='store_true', help='under a minute')
    a.add_argument('--size', choices=SIZES, help='default: reference on a GPU, else small')
    a.add_argument('--batch', type=int, help='ECGs a step')
    a.add_argument('--rounds', type=int, help='steps that count')
    a.add_argument('--threads', type=int, default=0, help='CPU threads (0 = torch decides)')
    a = a.parse_args()
    if a.threads: torch.set_num_threads(a.threads)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    size = a.size or ('reference' if device == 'cuda' else 'quick' if a.quick else 'small')
    batch, rounds = a.batch or SIZES[size]['batch'], a.rounds or (5 if a.quick else 11)
    where = torch.cuda.get_device_name() if device == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    print(f'{where}; torch {torch.__version__}; size {size}; 12 leads x 2500 samples; 75 % hidden; median of {rounds} steps')
    print(f'{"model":8s} {"way":11s} {"parameters":>11} {"batch":>6} {"ms/step":>10} {"ECG/s":>9} {"kept MB":>9}'
          + (f' {"peak MB":>9}' if device == 'cuda' else '') + f' {"faster":>8}')
    rows = [compare(n, size, batch, rounds, device) for n in ('mae_vit', 'mtae', 'mlae', 'st_mem')]
    mean = lambda k: math.exp(statistics.mean(math.log(r[k]) for r in rows))
    print(json.dumps(dict(name='encoders', ratio=round(mean('ratio'), 3), kept_ratio=round(mean('kept_ratio'), 3), device=where, size=size,
                          torch=torch.__version__, rows=[{k: round(v, 6) if isinstance(v, float) else v for k, v in r.items()} for r in rows])))

if __name__ == '__main__': main()

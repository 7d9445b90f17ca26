"""One training step of every row of the zoo: the reference's float32 loop against ecgnb as it trains on a GPU.

    python benchmarks/gpu_encoders.py [--quick] [--rows dit_rectified_flow,nepa] [--size quick|small|reference] [--batch N] [--steps N]
                                      [--no-compile] [--minutes 6] [--threads N]

`plain` is the reference's way, written below on our weights: float32 with TF32 allowed, eager, unfused AdamW; torch's MultiheadAttention (the decoder
with its boolean masks and the logits of every position), softmax written out and lead after lead in MTAE, MLAE and ST-MEM, the text encoder run at
every step in MERL. `bf16` is its decoder with all weights in bfloat16.

`ours`: autocast to bfloat16 (on a CPU float32), fused AdamW, torch.compile, with CUDA graphs ('reduce-overhead') in rows of many small kernels;
MERL's reports are cached, as from the second epoch on. ECG-FM's plain way draws leads, masks and wrong answers on the host, sample after sample, and
its attention returns its weights; ESI's writes attention, norms and the logits of every place out, and has its reports tokenised already, ours does it
in the step. Rows without a reference (DiT in patches of 25 samples, the default decoder with rotary
positions, S4, xresnet1d) have our own model in float32, eager, as `plain`. ecg_byte_lm is the reference's architecture (learned positions, norms
after the sums). Both ways clip the gradient and look at the loss at every step.

A step that does not fit into memory is tried with half the batch; what counts is the time and memory of an ECG. TFLOP/s are those of the model,
counted on the eager one (causal attention by half, FFTs not); `share` is of a bfloat16 product of two 8192 x 8192 matrices in the same run.

`curve` is the largest relative difference between the two ways' losses while both train from the same weights on the same batches: rows with dropout
without it, in batches of at most 8, ours not compiled; others as timed. Above 0.03 (CPU: 0.001) the benchmark fails.

Three steps warm up, the median of --steps (8) counts. Compiling takes most of the time: after --minutes no more rows are compiled, and the table says
so; run those alone with --rows.
"""
import argparse
import contextlib
import copy
import gc
import itertools
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import decoder                                                          # noqa: E402
import encoders                                                         # noqa: E402
from ecgnb.batch import draw, moments_of, sample_seeds                  # noqa: E402
from ecgnb.encoders.dit import embed_time                               # noqa: E402
from ecgnb.encoders.text import Text                                    # noqa: E402
from ecgnb.encoders.wav2vec2 import Slow                                # noqa: E402
from ecgnb.objectives.w2v_cmsc_rlm import perplexity                    # noqa: E402
from ecgnb.optim import optimizers                                      # noqa: E402
from ecgnb.recipes import contract_of_run, fill_in, said                # noqa: E402
from ecgnb.registry import from_config, registries                      # noqa: E402
from ecgnb.transformer import turn                                      # noqa: E402


# ---- the reference's way, on the weights of our models -----------------------------------------------------------------

def attention(qkv, out, heads, dropout=0.):
    "torch's MultiheadAttention on the weights of two linear layers."
    with torch.device('meta'): mha = nn.MultiheadAttention(qkv.in_features, heads, dropout, batch_first=True)
    mha.in_proj_weight, mha.in_proj_bias = qkv.weight, qkv.bias
    mha.out_proj.weight, mha.out_proj.bias = out.weight, out.bias
    return mha

class Block(nn.Module):
    "The block `like` with torch's MultiheadAttention; masks are True where a token may not look."
    def __init__(self, like):
        super().__init__()
        self.like, self.mha = like, attention(like.qkv, like.out, like.heads, like.looks)

    def attend(self, x, mask=None, pad=None):
        return self.like.drop(self.mha(x, x, x, attn_mask=mask, key_padding_mask=pad, need_weights=False)[0])

    def forward(self, x, mask=None, pad=None):
        b = self.like
        x = b.norm1(x + self.attend(x, mask, pad))
        return b.norm2(x + b.mlp(x))

def later(n, device): return torch.ones(n, n, dtype=torch.bool, device=device).triu(1)

def flow(model):
    e, blocks = model.encoder, [Block(b) for b in model.encoder.transformer]
    def loss(batch, noise, t):
        x, s = model.representation(batch)['signal'], t[:, None, None]
        z = e.embedding((s*x + (1 - s)*noise).transpose(1, 2)) + e.places.table
        c = F.silu(e.clock(embed_time(t, e.dim).to(z.dtype)))
        for b in blocks:
            shift, scale, gate, shift2, scale2, gate2 = b.like.ada(c)[:, None].chunk(6, -1)
            z = z + gate*b.attend(b.like.norm1(z)*(1 + scale) + shift)
            z = z + gate2*b.like.mlp(b.like.norm2(z)*(1 + scale2) + shift2)
        return F.mse_loss(e.head(e.norm(z), c).transpose(1, 2), x - noise)
    return loss

def next_embedding(model):
    e, blocks = model.encoder, [Block(b) for b in model.encoder.transformer]
    def loss(batch):
        z = h = e.embedding(model.representation(batch)['signal'].transpose(1, 2)) + e.places.table
        mask = later(z.shape[1], z.device)
        for b in blocks: h = b(h, mask)
        return 1 - F.cosine_similarity(model.head(h[:, :-1]), z[:, 1:].detach(), dim=-1).mean()
    return loss

def next_token(model):
    e, r, blocks = model.encoder, model.representation, [Block(b) for b in model.encoder.transformer]
    def loss(batch):
        ids = batch['tokens']
        z, mask = F.dropout(e.embedding(ids) + e.places.table[:ids.shape[1]], e.dropout), later(ids.shape[1], ids.device)
        for b in blocks: z = b(z, mask, ids == r.pad)
        goal = ids.masked_fill((ids == r.pad) | (ids == r.bos), -100)
        return F.cross_entropy(e.head(z)[:, :-1].flatten(0, 1), goal[:, 1:].flatten(), ignore_index=-100)
    return loss

def autoencoder(model):
    plain = encoders.Plain(model)
    if not model.encoder.prenorm:                                       # MAE ViT alone is written with MultiheadAttention
        plain.encoder = nn.Sequential(*map(Block, model.encoder.transformer))
        plain.decoder = nn.Sequential(*map(Block, model.decoder))
    return lambda batch, noise: plain(batch['signal'], noise)

def merl(model):
    a = model.attention
    mha = attention(a.qkv, a.out, a.heads)
    def match(a, b):
        y, i = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T * model.scale, torch.arange(len(a), device=a.device)
        return F.cross_entropy(y, i) + F.cross_entropy(y.T, i)
    def loss(batch, ids, keep):
        z = model.to_shared(model.encoder(model.representation(batch)['signal']))
        views = [f(z.mean(1))*keep[:, i]/(1 - model.drop) for i, f in enumerate(model.view)]
        z = torch.cat([a.query.expand(len(z), 1, -1), z], 1) + model.places
        ecg = model.after(mha(z[:, :1], z, z, need_weights=False)[0][:, 0])
        return match(ecg, model.to_text(model.text.features(ids))) + match(*views)
    return loss

def wav2vec2(e):
    "(stem: x (B, C, T) -> (B, N, W); encode: tokens without places (B, N, D) -> (B, N, D)), attention with its weights returned."
    mhas = [attention(b.qkv, b.out, b.heads, b.looks) for b in e.blocks]
    def stem(x):
        for i, conv in enumerate(e.stem.convs):
            x = conv(x)
            x = F.gelu(x if i else e.stem.norm(x))
        return Slow.apply(x, e.grad).transpose(1, 2)
    def encode(z):
        z = F.dropout(e.first_norm(z + e.positions(z)), e.dropout)
        for b, mha in zip(e.blocks, mhas):
            z = b.norm1(z + b.drop(mha(z, z, z)[0]))
            z = b.norm2(z + b.mlp(z))
        return z
    return stem, encode

def drawn_on_host(model, B):
    "Leads kept (B, C), masked tokens (B, N) and wrong answers (B, M, K) of B segments, sample after sample, as wav2vec 2.0 draws them."
    e, span = model.encoder, model.span
    N = e.n_tokens//e.n_segments
    spans, rows = max(2, int(model.mask*N/span + np.random.rand())), []
    for _ in range(B):
        starts = np.random.choice(N - span, min(spans, N - span), replace=False)
        rows.append(np.unique(starts[:, None] + np.arange(span)))
    M, mask = min(map(len, rows)), np.zeros((B, N), bool)
    for i, row in enumerate(rows): mask[i, np.random.choice(row, M, replace=False)] = True
    wrong = torch.randint(0, M - 1, (B, M, model.rivals))
    for i in range(B): wrong[i] += (wrong[i] >= torch.arange(M)[:, None]).long() + i*M
    return dict(leads=np.random.rand(B, e.channels) >= model.rlm, mask=mask, wrong=wrong)

def drawn_as_ours(model, chance):
    "The same of what our model draws, and its Gumbel noise; masked tokens in the order of time."
    at, order = chance['masked'].sort(1)
    B, M = at.shape
    rows = lambda v: v.gather(1, order.view(B, M, *[1]*(v.ndim - 2)).expand_as(v))
    i = (chance['rivals']*(M - 1)).long()
    i = i + (i >= torch.arange(M, device=i.device)[:, None])
    wrong = rows(order.argsort(1)[:, None].expand(B, M, M).gather(2, i)) + M*torch.arange(B, device=i.device)[:, None, None]
    mask = torch.zeros(B, model.encoder.n_tokens//model.encoder.n_segments, dtype=torch.bool, device=at.device).scatter(1, at, True)
    u = chance['leads']
    kept = (u >= model.rlm) | (u == u.amax(1, keepdim=True))
    return dict(leads=kept.cpu().numpy(), mask=mask.cpu().numpy(), wrong=wrong, noise=rows(chance['noise']))

def ecg_fm(model):
    e, book, steps = model.encoder, model.codebook, itertools.count()
    stem, encode = wav2vec2(e)
    def loss(batch, drawn=None):
        x = e.cut(model.representation(batch)['signal']).clone()
        B, heat = len(x), max(model.warm*model.decay**next(steps), model.cool)
        c = drawn or drawn_on_host(model, B)
        for i, kept in enumerate(c['leads']): x[i, np.flatnonzero(~kept)] = 0
        f, mask, M = stem(x), torch.from_numpy(c['mask']).to(x.device), int(c['mask'][0].sum())
        g = e.norm(f)
        z = F.dropout(e.project(g), e.input_dropout)
        z[mask] = model.mask_token
        z = encode(z)
        s = book.score(F.dropout(g, model.target_dropout)[mask]).view(-1, model.codes)
        if drawn:
            soft = ((s + c['noise'].reshape(s.shape))/heat).softmax(-1)
            one = F.one_hot(soft.argmax(-1), model.codes) + (soft - soft.detach())
        else: one = F.gumbel_softmax(s, heat, hard=True)
        q = (one.view(B*M, -1, 1)*book.entries.flatten(0, 1)).view(B*M, model.books, model.codes, -1).sum(2).view(B, M, -1)
        q, context = model.to_answer(q), model.to_context(z[mask]).view(B, M, 1, -1)
        wrong = q.view(B*M, -1)[c['wrong'].to(x.device).flatten()].view(B, M, model.rivals, -1)
        y = F.cosine_similarity(context, torch.cat([q[:, :, None], wrong], 2), dim=-1)/model.temperature
        y[..., 1:][(wrong == q[:, :, None]).all(-1)] = -math.inf
        w2v = F.cross_entropy(y.flatten(0, 1), torch.zeros(B*M, dtype=torch.long, device=x.device))
        even = 1 - perplexity(s.view(B*M, model.books, -1).softmax(-1).mean(0))/(model.books*model.codes)
        v = z.mean(1)
        v, ids = v/v.detach().norm(dim=1, keepdim=True).clamp(min=1e-8), range(B//2)
        pairs = torch.tensor([[a == b for b in ids] for a in ids], device=x.device)
        y = v[::2] @ v[1::2].T/model.temperature
        cmsc = -(y.log_softmax(1)[pairs].mean() + y.log_softmax(0)[pairs].mean())/2
        return model.w2v*(w2v + model.diversity*even + model.penalty*f.square().mean()) + model.cmsc*cmsc
    return loss

def convnext(e):
    "x (B, C, T) -> (B, N, D): channels first between the convolutions, norms written out."
    def norm(x, like):
        off = x - x.mean(1, keepdim=True)
        return like.weight[:, None]*(off/torch.sqrt(off.pow(2).mean(1, keepdim=True) + like.eps)) + like.bias[:, None]
    def forward(x):
        for i, stage in enumerate(e.stages):
            x = e.halve[i - 1](norm(x, e.norms[i])) if i else norm(e.stem(x), e.norms[0])
            for b in stage:
                y = F.gelu(b.up(b.norm(b.conv(x).permute(0, 2, 1))))
                size = y.norm(dim=1, keepdim=True)
                y = b.grn.gamma*(y*(size/(size.mean(-1, keepdim=True) + 1e-6))) + b.grn.beta + y
                x = x + b.down(y).permute(0, 2, 1)
        return e.norm_out(x.permute(0, 2, 1))
    return forward

def coca(model):
    a, see = model.attention, convnext(model.encoder)
    mha = attention(a.qkv, a.out, a.heads)
    def layer(p, x, memory=None):
        q, kv, up = p.into(p.norm(x)).split(p.sizes, -1)
        q = q.unflatten(-1, (p.heads, -1)).transpose(1, 2)
        k, v = (kv if memory is None else p.memory(memory)).chunk(2, -1)
        if memory is None: q, k = (turn(t, model.angles[:, :x.shape[1]]) for t in (q, k))
        s = torch.einsum('bhie,bje->bhij', q, k)/math.sqrt(k.shape[-1])
        if memory is None: s = s.masked_fill(later(x.shape[1], x.device), -math.inf)
        z = torch.einsum('bhij,bje->bhie', s.softmax(-1), v)
        up, gate = up.chunk(2, -1)
        return x + p.out(torch.cat([z.transpose(1, 2).flatten(2), F.silu(gate)*up], -1))
    def loss(batch, ids):
        z = model.to_tokens(see(model.representation(batch)['signal'])) + model.places
        z = model.norm_in(mha(a.query.expand(len(z), -1, -1), z, z, need_weights=False)[0])
        x, goal, there = model.words(ids['input_ids'][:, :-1]), ids['input_ids'][:, 1:], ids['attention_mask'][:, 1:]
        for words, ecg in model.decoder: x = layer(ecg, layer(words, x), z[:, 1:])
        nats = F.cross_entropy(model.logits(x).flatten(0, 1), goal.flatten(), reduction='none').view_as(goal)*there
        text = model.text_to_shared(model.text.features(ids))
        y = F.normalize(model.to_shared(z[:, 0]), dim=-1) @ F.normalize(text, dim=-1).T*model.scale
        i = torch.arange(len(y), device=y.device)
        return model.cap*(nats.sum(1)/there.sum(1)).mean() + model.con*(F.cross_entropy(y, i) + F.cross_entropy(y.T, i))/2
    return loss

def own(model): return lambda batch, **_: model(batch).loss


# ---- the rows ------------------------------------------------------------------------------------------------------------

class Row(NamedTuple):
    recipe: str
    plain: object                # model -> loss of a batch, the reference's way
    graphs: bool = False         # many small kernels: CUDA graphs
    causal: bool = False
    encoder: dict = {}           # fields that differ from the recipe's
    aim: str = ''                # of ours over plain
    known: float = 0.            # ECG/s of the reference's own code on one H200
    fs: float = 250.             # samples a second
    host: bool = False           # the plain way draws for itself, save where the curves are compared

ROWS = {'dit_rectified_flow': Row('dit_rectified_flow', flow, aim='8x', known=41.8),
        'nepa': Row('nepa', next_embedding, causal=True, aim='8x', known=66),
        'ecg_byte_lm': Row('ecg_byte_lm', next_token, causal=True, encoder=dict(positions='learned', prenorm=False),
                           aim='half the GiB and twice the speed of bf16 (there 146 ECG/s)'),
        'st_mem': Row('st_mem', autoencoder, True, aim='8x', known=334),
        'mlae': Row('mlae', autoencoder, True, aim='5x', known=931),
        'mtae': Row('mtae', autoencoder, True, aim='5x', known=1023),
        'mae_vit': Row('mae_vit', autoencoder, True, aim='5x', known=1666),
        'merl': Row('merl', merl, True, aim='3x', known=624),
        'dit_patch25': Row('dit_rectified_flow', own, True, encoder=dict(patch=25, positions='rope')),
        'ecg_byte_lm_rope': Row('ecg_byte_lm', own, causal=True),
        'ecg_fm_base': Row('ecg_fm_base', ecg_fm, aim='4x', fs=500., host=True),
        'esi': Row('esi', coca, aim='4x', fs=500.),
        's4': Row('s4', own),
        'xresnet1d': Row('xresnet1d', own, True)}

WIDE = dict(dim=64, depth=2, heads=4, mlp=0)
TINY = {'dit': WIDE, 'vit1d': WIDE, 'st_vit': WIDE, 'decoder': WIDE, 's4': dict(dim=64, depth=2),
        'wav2vec2': dict(dim=64, depth=2, heads=4, width=64, groups=4, kernel=32), 'w2v_cmsc_rlm': dict(proj=64, codes=64, rivals=20),
        'convnext1d': dict(blocks='1,1,2,1', dim=64), 'coca': dict(dim=64, depth=2, heads=4, head_dim=16, queries=8),
        'resnet1d': dict(size='18', dim=64), 'xresnet1d': dict(size='18', dim=64),
        'masked': dict(dec_dim=32, dec_depth=1, dec_heads=4, dec_mlp=0)}
BERT = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
SIZES = {'quick': dict(seconds=1., vocab=1029, context=128, words=24, batch=4, steps=2, tiny=TINY, bert=BERT),
         'small': dict(seconds=2., vocab=1029, context=512, words=64, batch=8, steps=3, tiny=TINY, bert=BERT),
         'reference': dict(seconds=10., vocab=10259, context=2048, words=256, batch=64, steps=8, tiny={}, bert={})}

class Tokens(decoder.Tokens):
    "A representation of tokens that are there already, on any device."
    def __init__(self, vocab, context):
        super().__init__(vocab, context)
        self.register_buffer('sizes', self.__dict__.pop('sizes'))

    def forward(self, batch): return batch | {'truncated': torch.zeros_like(batch['tokens_valid'][:, 0])}

WORDS = 128

def tokenised(texts, **options):
    "Stand-in for a tokenizer: 128 ids of each text, by the number it ends with."
    ids = torch.stack([torch.randint(1000, 30_000, (WORDS,), generator=torch.Generator().manual_seed(int(t.split()[-1])))
                       for t in ([texts] if isinstance(texts, str) else texts)])
    return {'input_ids': ids[0] if isinstance(texts, str) else ids, 'attention_mask': torch.ones_like(ids)}

def tokenizer():
    "A tokenizer of texts such as 'w1000 w2345': a word, its number."
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    made = Tokenizer(models.WordLevel({'[PAD]': 0, '[UNK]': 100, '[CLS]': 101, '[SEP]': 102} | {f'w{i}': i for i in range(1000, 30_000)}, '[UNK]'))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing('[CLS] $A [SEP]', special_tokens=[('[CLS]', 101), ('[SEP]', 102)])
    marks = {f'{k}_token': f'[{k.upper()}]' for k in ('pad', 'unk', 'cls', 'sep')}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512, **marks)

def report(i, words):
    "Report i: as many words as that, or down to half of them."
    g = torch.Generator().manual_seed(i)
    n = int(torch.randint(words//2, words + 1, (), generator=g))
    return ' '.join(f'w{w}' for w in torch.randint(1000, 30_000, (n,), generator=g).tolist())

def reports(bert, told):
    "The `Text` of a configuration, with a random BERT in place of a published one."
    from transformers import BertConfig, BertModel
    text = Text(**{k: v for k, v in told.items() if k != 'encoder'} | {'name': 'random'})
    lm = BertModel(BertConfig(**bert), add_pooling_layer=text.pool == 'pooler')
    if text.frozen: text.held = {'lm': lm.eval().requires_grad_(False), 'tokenizer': tokenised}
    else: text.lm, text.held = lm, {'tokenizer': tokenizer()}
    return text

def build(row, s):
    "The model of a row in size s, on the CPU. What starts at zero starts small, so that all of it is at work at once."
    torch.manual_seed(0)
    run = said(row.recipe, f'prepare.seconds={s["seconds"]}', f'prepare.fs={row.fs}')
    model, tiny = copy.deepcopy(run['model']), s['tiny']
    e = model['encoder'] | row.encoder
    e |= {k: v for k, v in tiny.get(e['encoder'], {}).items() if k != 'mlp' or 'mlp' in e}
    model |= tiny.get(model['objective'], {})
    if 'segment' in e: e['segment'] = contract_of_run(run)['length']//2
    if e['encoder'] == 'decoder':
        sizes = {k: s[k] for k in ('vocab', 'context')}
        made = registries['objective']['next_token'](Tokens(**sizes), from_config(e | sizes))
    else:
        text = {'text': reports(s['bert'], told)} if (told := model.pop('text', None)) else {}
        classes = {'classes': 'NORM,MI,STTC,CD,HYP'} if model['objective'] == 'classify' else {}
        facts = contract_of_run(run)
        parts = {k: from_config(fill_in(v, facts)) for k, v in (model | {'encoder': e}).items() if isinstance(v, dict)}
        made = registries['objective'][model['objective']](**{k: v for k, v in model.items() if k != 'objective'} | parts | text | classes)
    with torch.no_grad():
        for p in made.parameters():
            if not p.any(): p.normal_(std=.02)
    return made.train()

def feed(model, B, device, words=24, many=4):
    "[(batch, what the plain way is given besides)]: ECG-like signals or tokens, drawn as our model draws it."
    out = []
    for k in range(many):
        g, r = torch.Generator(device).manual_seed(k), model.representation
        if isinstance(r, Tokens):
            ids = torch.randint(r.vocab - 3, (B, model.encoder.context), generator=g, device=device).sort(1)[0]      # something to learn
            ids[:, 0], ids[:, -1] = r.bos, r.eos
            out.append(({'tokens': ids, 'tokens_valid': torch.ones_like(ids, dtype=torch.bool)}, {}))
            continue
        (C, T), rand = r.gives['signal'], lambda *n: torch.rand(*n, generator=g, device=device)
        wave = torch.sin(2*torch.pi*((1 + rand(B, 1, 1))*torch.arange(T, device=device)/r.fs + rand(B, C, 1)))
        batch = {'signal': wave**9 + .02*rand(B, C, T), 'seed': sample_seeds(0, k, range(B)).to(device)}
        if r.scope == 'recording': batch['recording'] = moments_of(batch['signal'], torch.ones_like(batch['signal'], dtype=torch.bool))
        name, e, more = type(model).__name__, model.encoder, {}
        if name == 'Flow': more = dict(noise=draw(batch, C, T, stream=50, gaussian=True), t=draw(batch, stream=51))
        if name == 'Masked': more = dict(noise=draw(batch, e.groups, e.count, stream=30))
        if name == 'W2vCmscRlm': more = dict(drawn=drawn_as_ours(model, model.chance(batch)))
        if name == 'Classify': batch['label'] = (rand(B, len(model.names)) < .3).float()
        if name == 'Contrastive':
            batch['text'] = [f'report {k*B + i}' for i in range(B)]
            ids = {n: v.to(device) for n, v in tokenised(batch['text']).items()}
            more = dict(ids=ids, keep=draw(batch, 2, model.proj, stream=60) >= model.drop)
        if name == 'Coca':
            batch['text'] = [report(k*B + i, words) for i in range(B)]
            more = dict(ids={n: v.to(device) for n, v in tokenizer()(batch['text'], padding=True, return_tensors='pt').items()})
        out.append((batch, more))
    return out


# ---- measuring -----------------------------------------------------------------------------------------------------------

def sync(device):
    if device == 'cuda': torch.cuda.synchronize()

def still(model):
    "The model without dropout; whether it had any."
    had = False
    for m in model.modules():
        for k in ('p',) if isinstance(m, nn.Dropout) else ('dropout', 'embed_dropout', 'input_dropout', 'target_dropout', 'looks', 'acts', 'drop'):
            if isinstance(v := getattr(m, k, None), float): had, _ = had or v > 0, setattr(m, k, 0.)
    return had

def trainer(model, loss, fused):
    "() -> the loss of a step, as a number: forward, backward, clip, AdamW."
    opt = optimizers(model, 'adamw', 1e-4)[0]
    if not fused: opt = torch.optim.AdamW([{k: g[k] for k in ('params', 'lr', 'weight_decay')} for g in opt.param_groups], betas=(.9, .95), eps=1e-8)
    params = [p for p in model.parameters() if p.requires_grad]
    def step(batch, more):
        value = loss(batch, **more)
        value.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.)
        opt.step()
        opt.zero_grad(set_to_none=True)
        return value.item()
    return step

def stepper(way, row, model, device, mode=None):
    "The step of one way; mode: None = eager, else torch.compile's."
    if way != 'ours': return trainer(model, row.plain(model.bfloat16() if way == 'bf16' else model), False)
    if mode: model.compile(mode=mode)
    def loss(batch):
        if mode: torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast('cuda', torch.bfloat16) if device == 'cuda' else contextlib.nullcontext(): return model(batch).loss
    step = trainer(model, loss, True)
    return lambda batch, more: step(batch, {})

def read(model, data):
    "MERL's first epoch: every report once through the text encoder, whose vectors are kept."
    if type(model).__name__ == 'Contrastive':
        for batch, _ in data: model.text.features(batch['text'])

def measure(way, row, base, B, steps, device, mode, words, same=False):
    "Steps of one way in batches of B -> dict(ms, ecg_s, gib, batch, losses, compile_s, breaks); `same`: both ways by our draws."
    if device == 'cuda': torch.cuda.reset_peak_memory_stats()
    torch.set_float32_matmul_precision('highest' if way == 'ours' else 'high')     # `fit` leaves it as it is
    model = copy.deepcopy(base).to(device)
    data, losses, ms = feed(model, B, device, words), [], []
    if row.host and not same: data = [(batch, {}) for batch, _ in data]
    step = stepper(way, row, model, device, mode)
    torch.manual_seed(0)
    if way == 'ours': read(model, data)
    for i in range(3 + steps):
        sync(device)
        t = time.perf_counter()
        losses.append(step(*data[i % len(data)]))
        sync(device)
        ms.append((time.perf_counter() - t)*1e3)
    med = statistics.median(ms[3:])
    out = dict(ms=med, ecg_s=B/med*1e3, batch=B, losses=losses)
    if device == 'cuda': out['gib'] = torch.cuda.max_memory_allocated()/2**30
    if mode: out |= dict(compile_s=sum(ms[:3])/1e3, breaks=sum(torch._dynamo.utils.counters['graph_break'].values()))
    return out

def clean(device):
    "Forget what was compiled, and free its memory."
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gc.collect()
    if device == 'cuda': torch.cuda.empty_cache()

def fitting(f, B, device):
    "f(B), with B halved until it fits into memory."
    while True:
        clean(device)
        try: return f(B)
        except torch.OutOfMemoryError as err:
            if B == 1: raise
            print(f'  {B} ECGs a step do not fit into memory ({str(err).splitlines()[0][:90]}); {B//2} are tried', flush=True)
        B //= 2

def count(row, base, device, words):
    "FLOPs of forward and backward, an ECG."
    model = copy.deepcopy(base).to(device)
    data = feed(model, 2, device, words, 1)
    read(model, data)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH): model(data[0][0]).loss.backward()
    ops = counter.get_flop_counts()['Global']                           # attention alone multiplies batches of matrices (bmm)
    return sum(n*(.5 if row.causal and 'bmm' in str(op) else 1) for op, n in ops.items())/2

def ceiling(device, quick):
    "FLOP/s of a large matrix product: bfloat16, on a CPU float32."
    n, dtype = (8192, torch.bfloat16) if device == 'cuda' else (256 if quick else 1024, torch.float32)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = []
    for _ in range(30 if device == 'cuda' else 3):
        sync(device)
        t = time.perf_counter()
        a @ b
        sync(device)
        best.append(time.perf_counter() - t)
    return 2*n**3/statistics.median(best[len(best)//3:])

def apart(a, b):
    "The largest relative difference of two loss curves."
    return max(abs(x - y)/abs(y) for x, y in zip(a, b, strict=True))

def compare(name, s, B, steps, device, compiling, peak, eager='eager'):
    "One row of the table: each way is measured, then the curves are compared; `eager` is what the table says of ours where it is not compiled."
    row, base = ROWS[name], build(ROWS[name], s)
    flops, mode = count(row, base, device, s['words']), compiling and ('reduce-overhead' if row.graphs and device == 'cuda' else 'default')
    ways = {}
    for way in ('plain', 'bf16', 'ours'):
        if way == 'bf16' and row.plain is not next_token: continue
        run = lambda B, mode=None: measure(way, row, base, B, steps, device, mode, s['words'])
        note = ''
        if way == 'ours' and mode:
            try: ways[way] = fitting(lambda B: run(B, mode), B, device)
            except torch.OutOfMemoryError: raise
            except Exception as err:
                note = f'NOT COMPILED: {type(err).__name__}: {str(err).strip().splitlines()[0][:160]}'
                print(f'  !! {name}: {note}', file=sys.stderr, flush=True)
        if way not in ways: ways[way] = fitting(run, B, device)
        w = ways[way]
        w |= dict(tflops=w['ecg_s']*flops/1e12, share=w['ecg_s']*flops/peak, note=note or (mode or eager if way == 'ours' else ''))
    clean(device)
    quiet, plain, ours = copy.deepcopy(base), ways['plain'], ways['ours']
    if dropped := still(quiet) or row.host or plain['batch'] != ours['batch']:
        small = min(8, plain['batch'], ours['batch'])
        curves = {way: measure(way, row, quiet, small, steps, device, None, s['words'], True)['losses'] for way in ('plain', 'ours')}
    else: curves = {way: ways[way]['losses'] for way in ('plain', 'ours')}
    clean(device)
    out = dict(parameters=sum(p.numel() for p in base.parameters() if p.requires_grad), gflop_an_ecg=flops/1e9, ratio=ours['ecg_s']/plain['ecg_s'],
               curve=apart(curves['ours'], curves['plain']), curve_of='eager, no dropout' if dropped else 'as timed',
               **{k: v for k, v in dict(aim=row.aim, known_ecg_s=row.known).items() if v})
    for way, w in ways.items(): out |= {f'{way}_{k}': v for k, v in w.items() if k != 'losses'}
    for way in ('plain', 'bf16'):
        if way in ways and device == 'cuda': out[f'memory_of_{way}'] = ours['gib']/ours['batch']/(ways[way]['gib']/ways[way]['batch'])
        if way == 'bf16' and way in ways: out['ratio_of_bf16'] = ours['ecg_s']/ways[way]['ecg_s']
    for way, w in ways.items():
        about = [f'reference on one H200: {row.known:g} ECG/s'] if way == 'plain' and row.known else []
        if way == 'ours':
            about += [f'curve {out["curve"]:.1e} ({out["curve_of"]})'] + [f'aim {row.aim}']*bool(row.aim)
            about += [w['note'] + (f', {w["compile_s"]:.0f} s, {w["breaks"]} graph breaks' if 'compile_s' in w else '')]
        gib = f'{w["gib"]:7.1f}' if 'gib' in w else f'{"":7}'
        print(f'{name:18s} {way:6s} {w["batch"]:>5} {w["ms"]:>9.1f} {w["ecg_s"]:>9.1f} {gib} {w["tflops"]:>8.2f} {100*w["share"]:>6.1f}% '
              f'{w["ecg_s"]/plain["ecg_s"]:>7.2f}x  {"; ".join(about)}', flush=True)
    return out

def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('--rows', default=','.join(ROWS), help='names, joined by commas')
    a.add_argument('--quick', action='store_true', help='under a minute on a CPU; on a GPU two steps a way')
    a.add_argument('--size', choices=SIZES, help='default: reference on a GPU, else small')
    a.add_argument('--batch', type=int, help='ECGs a step')
    a.add_argument('--steps', type=int, help='steps that count')
    a.add_argument('--compile', action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(), help='torch.compile ours; default: on a GPU')
    a.add_argument('--minutes', type=float, default=6., help='after that long no more rows are compiled')
    a.add_argument('--threads', type=int, default=1, help='CPU threads')
    a = a.parse_args()
    began, device = time.perf_counter(), 'cuda' if torch.cuda.is_available() else 'cpu'
    if device == 'cpu': torch.set_num_threads(a.threads)
    rows = a.rows.split(',')
    if wrong := [n for n in rows if n not in ROWS]: raise SystemExit(f'no row {wrong[0]!r}; there is {", ".join(ROWS)}')
    size = a.size or ('reference' if device == 'cuda' else 'quick' if a.quick else 'small')
    s = SIZES[size]
    B, steps = a.batch or s['batch'], a.steps or (2 if a.quick else s['steps'])
    if B < 2 or steps < 1: raise SystemExit('wanted --batch 2 or more and --steps 1 or more')
    where = torch.cuda.get_device_name() if device == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    peak = ceiling(device, a.quick)
    print(f'{where}; torch {torch.__version__}; size {size}: {B} ECGs of 12 leads x {s["seconds"]:g} s, {s["context"]} tokens; '
          f'matrix product {peak/1e12:.2f} TFLOP/s; median of {steps} steps')
    if device == 'cpu': print('CPU: both ways in float32, so ratios show the code alone; the aims are a GPU\'s')
    print(f'{"row":18s} {"way":6s} {"batch":>5} {"ms/step":>9} {"ECG/s":>9} {"GiB":>7} {"TFLOP/s":>8} {"share":>7} {"faster":>8}')
    table = {}
    for n in rows:
        late = a.compile and time.perf_counter() - began > 60*a.minutes
        table[n] = compare(n, s, B, steps, device, a.compile and not late, peak, 'NOT COMPILED: --minutes are over' if late else 'eager')
    bound = .03 if device == 'cuda' else 1e-3
    tidy = lambda v: float(f'{v:.5g}') if isinstance(v, float) else v
    print(json.dumps(dict(name='gpu_encoders', device=where, size=size, torch=torch.__version__, batch=B, steps=steps, compile=a.compile, peak_tflops=tidy(peak/1e12),
                          seconds=round(time.perf_counter() - began), curve_bound=bound, rows={n: {k: tidy(v) for k, v in r.items()} for n, r in table.items()},
                          **{f'ratio_{"dit" if n == "dit_rectified_flow" else n}': tidy(r['ratio']) for n, r in table.items()},
                          **({'ratio_decoder_bf16': tidy(table['ecg_byte_lm']['ratio_of_bf16'])} if 'ecg_byte_lm' in table else {}),
                          **({'memory_decoder': tidy(table['ecg_byte_lm']['memory_of_bf16'])} if 'memory_of_bf16' in table.get('ecg_byte_lm', {}) else {}))))
    if far := [f'{n}: {r["curve"]:.2g}' for n, r in table.items() if not r['curve'] <= bound]:
        raise SystemExit(f'loss curves further apart than {bound:g}: {", ".join(far)}')

if __name__ == '__main__': main()

"""Training and asking an ECG-language model: ecgnb against the reference's way.

    python benchmarks/elm.py [--quick] [--batch N] [--micro N] [--rounds N] [--threads N]

The reference's way, written plainly below: each row tokenised whole, padded in front to 2,048 tokens, `--micro` rows at a
time with their gradients summed to one optimiser step a batch, positions checked and ECG tokens copied in row by row,
logits of every position into the loss of transformers; in evaluation one question after the other, unpadded. Ours:
batches of `ecgnb.talk` (similar lengths together, padded to the longest), logits from the first answer on, `reply` on 16
questions at once. Both share model, encoder, rows, number format, threads, kernels and the key-value cache, so what is
measured is the way. The learning rate is 0, so that both loops see the same weights: token ids and losses must agree and
the greedy texts be equal, or nothing is reported.

ST-MEM's encoder (random weights, frozen) and an MLP connector of 50 tokens, as in the reference's example recipe; all of
the language model is trained, with AdamW. Rows: ECG-QA on PTB-XL where they are, else questions on simulated ECGs; one ECG
each. Supervised tokens are those of the answers. Rounds alternate and the fastest counts, by the wall clock (`ratio`) and
by the CPU time of the process (`ratio_cpu`), which other work on the machine changes less. `generate`: answers made to run
on to 128 tokens, the reference's limit; `generate_short`: to the mean length of these rows' answers, where reading ECG and
question is nearly all of the work. SmolLM2 takes about 12 minutes on one thread of a quiet machine.

--quick: not SmolLM2-135M but a random Llama a third as wide and a fifth as deep, the encoder reduced likewise, the vocabulary
learned on the questions. It checks that both ways agree and that padding and batching pay; its `ratio` is larger than
SmolLM2's, as attention over 2,048 places weighs more in a narrow model.
"""
import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault('HF_HUB_OFFLINE', '1')
import torch                                                            # noqa: E402
from torch.utils.data import default_collate                            # noqa: E402
from ecgnb.pretrained import quiet                                           # noqa: E402
from ecgnb.prepare import prepare                                       # noqa: E402
from ecgnb.registry import connector, encoder, objective, representation, source     # noqa: E402
from ecgnb.settings import data_dir                                     # noqa: E402
from ecgnb.talk import PLACE, talk_loader                               # noqa: E402

INPUT, ECG_TOKENS = 2048, 50                                            # llm_input_len, num_encoder_tokens of its example
SIZES = {'quick': dict(batch=4, micro=2, steps=1, rounds=2, new=32, asked=16),
         'smollm2': dict(batch=2, micro=1, steps=1, rounds=2, new=128, asked=16)}


# ---- the reference's way ---------------------------------------------------------------------------------------------

class Plain:
    "Its rows, its training step and its answers, on the parts of `model`."
    def __init__(self, model, store):
        self.model, self.store, t = model, store, model.tokenizer
        self.row = {r: i for i, r in enumerate(store.frame['record'])}
        self.signal = next(s for s in ('<signal>', '<file_sep>') if s in t.get_vocab())      # a special token no text has
        self.signal_id, self.pad, self.end = t.convert_tokens_to_ids(self.signal), t.pad_token_id, t.eos_token_id
        self.start = t('<|im_start|>assistant\n', add_special_tokens=False)['input_ids']

    def ids(self, talk):
        turns = [dict(role=t['role'], content=re.sub(rf'{PLACE}\s*', '', t['text'])) for t in talk['turns']]
        first = next(t for t in turns if t['role'] == 'user')
        first['content'] = self.signal*ECG_TOKENS + '\n' + first['content']
        t = self.model.tokenizer
        return t(t.apply_chat_template(turns, tokenize=False), add_special_tokens=False)['input_ids']

    def labels(self, ids):
        out, i, n = [-100]*len(ids), 0, len(self.start)
        while i <= len(ids) - n:
            if ids[i:i + n] == self.start:
                i += n
                while i < len(ids):
                    out[i] = ids[i]
                    if ids[i] == self.end: break
                    i += 1
            else: i += 1
        return out

    def item(self, talk):
        "One row, padded in front."
        ids = self.ids(talk)
        labels, n = self.labels(ids), INPUT - len(ids)
        signal, scale = self.store.rows([self.row[talk['records'][0]]])
        where = [n + i for i, t in enumerate(ids) if t == self.signal_id]
        return dict(signal=signal[0], scale=scale[0], elm_input_ids=torch.tensor([self.pad]*n + ids), elm_labels=torch.tensor([-100]*n + labels),
                    elm_attention_mask=torch.tensor([0.]*n + [1.]*len(ids)), signal_id_indices=torch.tensor(where))

    def inject(self, ids, where, batch):
        "Word embeddings with the ECG's tokens copied in."
        m = self.model
        x, p = m.lm.get_input_embeddings()(ids), m.ecgs(batch).unflatten(0, (len(ids), -1))
        assert p.shape[0] == x.shape[0] and p.shape[2] == x.shape[2] and where.shape == p.shape[:2]
        assert where.max() < x.shape[1]
        x = x.clone()
        for b in range(len(x)):
            told = (where[b] >= 0) & p[b].any(-1)
            assert told.any()
            x[b, where[b][told]] = p[b][told]
        return x

    def step(self, batches, opt, micro):
        "Trains on lists of talks; mean loss of a supervised token."
        total, tokens = 0., 0
        for talks in batches:
            parts = [talks[i:i + micro] for i in range(0, len(talks), micro)]
            opt.zero_grad(set_to_none=True)
            for part in parts:
                b = default_collate([self.item(t) for t in part])
                x = self.inject(b['elm_input_ids'], b['signal_id_indices'], b)
                loss = self.model.lm(inputs_embeds=x, attention_mask=b['elm_attention_mask'], labels=b['elm_labels'],
                                     use_cache=False).loss
                (loss/len(parts)).backward()
                n = int((b['elm_labels'][:, 1:] >= 0).sum())
                total, tokens = total + float(loss.detach())*n, tokens + n
            opt.step()
        return total/tokens

    @torch.no_grad()
    def answer(self, talk, most):
        ids, m = self.ids(talk), self.model
        ids = ids[:next(i for i, t in enumerate(self.labels(ids)) if t >= 0)]
        signal, scale = self.store.rows([self.row[talk['records'][0]]])
        where = torch.tensor([[i for i, t in enumerate(ids) if t == self.signal_id]])
        ids = torch.tensor([ids])
        x = self.inject(ids, where, dict(signal=signal, scale=scale))
        out = m.lm.generate(inputs_embeds=x, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False,
                            pad_token_id=self.pad, eos_token_id=self.end)
        return m.tokenizer.decode(out[0], skip_special_tokens=True).strip()


# ---- what both are given ---------------------------------------------------------------------------------------------

def rows():
    "A source of talks about one ECG each, and what it is."
    if data_dir('ecg_qa') and data_dir('ptb_xl'):
        return source['ecg_qa'](variant='both', kinds='single-verify,single-choose,single-query'), 'ECG-QA on PTB-XL'
    return source['synth_qa'](ecg=source['sample'](n=64), comparison=0.), 'questions on simulated ECGs'

def small_llm(folder, talks):
    "A random Llama of SmolLM2's proportions (a third as wide, a fifth as deep) with a tokenizer of the talks' text."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ['<|im_start|>', '<|im_end|>', '<signal>']
    t.train_from_iterator([x['text'] for talk in talks for x in talk] + ['system user assistant']*9,
                          trainers.BpeTrainer(vocab_size=2048, special_tokens=special, show_progress=False,
                                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    words = PreTrainedTokenizerFast(tokenizer_object=t, bos_token=special[0], eos_token=special[1], pad_token=special[1],
                                    additional_special_tokens=special[2:])
    words.chat_template = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
                           "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(LlamaConfig(
        vocab_size=2048, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=3, num_key_value_heads=1,
        head_dim=64, max_position_embeddings=8192, rope_parameters=dict(rope_type='default', rope_theta=100_000.), tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=1, pad_token_id=1))
    for p in lm.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, 0, .06)
    quiet(lm.save_pretrained, folder); words.save_pretrained(folder)
    return str(folder)

def peak(reset=False):
    "Largest resident memory since the last reset, GB; None where the system does not say."
    try:
        if reset: Path('/proc/self/clear_refs').write_text('5')
        return int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1])/2**20
    except (OSError, TypeError): return None

def fastest(ways, rounds):
    "dict way -> dict(wall, cpu: s, peak: GB, the least of all rounds, gave: what the last call returned); the ways in turns, slowest last."
    out = {k: dict(wall=float('inf'), cpu=float('inf'), peak=None) for k in ways}
    for _ in range(rounds):
        for k, f in ways.items():
            peak(reset=True)
            wall, cpu = time.perf_counter(), time.process_time()
            gave = f()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            top = min(filter(None, (peak(), out[k]['peak'])), default=None)
            out[k].update(wall=min(wall, out[k]['wall']), cpu=min(cpu, out[k]['cpu']), peak=top, gave=gave)
            print(f'  {k:10s} {wall:8.2f} s, {cpu:8.2f} s of CPU', file=sys.stderr, flush=True)
    return out

def agree(ok, what):
    if not ok: raise SystemExit(f'the two ways differ: {what}')

def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('--quick', action='store_true', help='under a minute: a small random language model')
    a.add_argument('--batch', type=int, help='rows an optimiser step')
    a.add_argument('--micro', type=int, help='rows the reference takes at once')
    a.add_argument('--rounds', type=int, help='times each loop runs')
    a.add_argument('--new', type=int, help='tokens of an answer')
    a.add_argument('--threads', type=int, default=1, help='CPU threads')
    a = a.parse_args()
    torch.set_num_threads(a.threads)
    size = 'quick' if a.quick else 'smollm2'
    s = SIZES[size] | {k: v for k, v in vars(a).items() if k in ('batch', 'micro', 'rounds', 'new') and v}
    B, new = s['batch'], s['new']
    with tempfile.TemporaryDirectory() as tmp:
        src, data = rows()
        store = prepare(src, Path(tmp)/'store', progress=False)
        llm = small_llm(Path(tmp)/'llm', src.talks['turns']) if a.quick else 'smollm2'
        torch.manual_seed(0)
        e = encoder['st_vit'](**(dict(dim=192, depth=4, heads=3) if a.quick else {}))
        model = objective['answer'](representation['signal'](norm='minmax', scope='record'), e, connector['mlp'](tokens=ECG_TOKENS),
                                    llm=llm, context=INPUT)
        plain = Plain(model, store)
        opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.)
        count = lambda m: sum(p.numel() for p in m.parameters())
        print(f'CPU, {a.threads} threads; torch {torch.__version__}; {len(src.talks)} rows of {data}; {size}: {count(model.lm):,} '
              f'parameters, vocabulary {model.lm.config.vocab_size:,}, encoder {count(e):,}; {B} rows a step, '
              f'the reference {s["micro"]} at once')

        loader = talk_loader(store, src.talks, batch_size=B, then=model.reader)
        padding = {'reference': (INPUT, loader), 'ecgnb': (0, loader), 'ecgnb, 16 rows': (0, talk_loader(store, src.talks, then=model.reader))}
        for k, (length, batches) in padding.items():
            masks = [batches[i]['attention_mask'] for i in range(min(len(batches), 32))]
            padding[k] = 1 - sum(int(m.sum()) for m in masks)/sum(len(m)*(length or m.shape[1]) for m in masks)
        first = [loader[k] for k in range(s['steps'])]
        for b in first:
            for k, talk in enumerate(b['talks']):
                mine = b['attention_mask'][k].bool()
                words = b['places'][k][mine] < 0
                ids = torch.tensor(plain.ids(talk))
                agree(torch.equal(ids[words], b['input_ids'][k][mine][words])
                      and bool((ids[~words] == plain.signal_id).all())
                      and plain.labels(ids.tolist()) == b['labels'][k][mine].tolist(), f"the tokens of talk {talk['id']}")
        told = sum(int((b['labels'] >= 0).sum()) for b in first)

        def ours():
            total = 0.
            for k in range(s['steps']):
                b = loader[k]
                opt.zero_grad(set_to_none=True)
                out = model(b)
                out.loss.backward()
                opt.step()
                total += float(out.loss.detach())*int((b['labels'] >= 0).sum())
            return total/told
        theirs = lambda: plain.step([b['talks'] for b in first], opt, s['micro'])
        train = fastest(dict(ecgnb=ours, reference=theirs), s['rounds'])
        gap = abs(train['reference']['gave'] - train['ecgnb']['gave'])
        agree(gap < 1e-4, f'losses {train["reference"]["gave"]:.6f} and {train["ecgnb"]["gave"]:.6f}')

        opt.zero_grad(set_to_none=True)
        model.eval()
        inner, lengths = model.lm.generate, []
        def generate(**given):
            lengths.append(inner(**given, min_new_tokens=given['max_new_tokens']))
            return lengths[-1]
        model.lm.generate = generate
        ask = talk_loader(store, src.talks, batch_size=s['asked'], shuffle=False)
        talks = ask[0]['talks']
        answers = [len(model.prompt.ids(t['turns'][-1]['text'])) + 1 for t in src.talks.to_dict('records')]
        def replies(n, rounds):
            lengths.clear()
            theirs = lambda: [plain.answer(t, n) for t in talks]
            out = fastest(dict(ecgnb=lambda: model.reply(ask[0], most=n), reference=theirs), rounds)
            written = sum(t.numel() for t in lengths)
            agree(written == 2*rounds*s['asked']*n, f"{written} tokens written, not {2*rounds*s['asked']*n}")
            agree(out['reference']['gave'] == out['ecgnb']['gave'], 'the greedy texts')
            return out
        short = round(sum(answers)/len(answers))
        asked, briefly = replies(new, s['rounds']), replies(short, s['rounds'] if a.quick else 1)

    print(f'{"task":10s} {"way":10s} {"tokens/s":>9} {"of CPU":>9} {"ms":>10} {"padding":>8} {"peak GB":>8} {"faster":>8} {"by CPU":>8}')
    for task, table, tokens, calls in (('train', train, told, s['steps']), ('generate', asked, s['asked']*new, 1),
                                       ('short', briefly, s['asked']*short, 1)):
        for k, v in sorted(table.items(), reverse=True):
            pad = f'{padding[k]:8.1%}' if task == 'train' else ' '*8
            mem = f'{v["peak"]:8.2f}' if v['peak'] else ' '*8
            print(f'{task:10s} {k:10s} {tokens/v["wall"]:9.2f} {tokens/v["cpu"]:9.2f} {v["wall"]*1e3/calls:10,.0f} {pad} {mem} '
                  f'{table["reference"]["wall"]/v["wall"]:7.2f}x {table["reference"]["cpu"]/v["cpu"]:7.2f}x')
    faster = lambda table, clock: round(table['reference'][clock]/table['ecgnb'][clock], 3)
    print(f'{told} supervised tokens in {s["steps"]*B} rows, losses within {gap:.1e}; {s["asked"]} answers of {new} and of {short} tokens, texts equal; '
          f'padding of batches of 16: {padding["ecgnb, 16 rows"]:.1%}')
    print(json.dumps(dict(
        name='elm', ratio=faster(train, 'wall'), generate=faster(asked, 'wall'), ratio_cpu=faster(train, 'cpu'),
        generate_cpu=faster(asked, 'cpu'), generate_short=faster(briefly, 'wall'), generate_short_cpu=faster(briefly, 'cpu'),
        padding={k: round(v, 4) for k, v in padding.items()}, supervised_tokens_s={k: round(told/v['wall'], 3) for k, v in train.items()},
        generated_tokens_s={k: round(s['asked']*new/v['wall'], 2) for k, v in asked.items()},
        step_ms={k: round(v['wall']*1e3/s['steps']) for k, v in train.items()},
        peak_gb={k: v['peak'] and round(v['peak'], 2) for k, v in train.items()}, loss_gap=gap, llm=size, data=data, batch=B,
        micro=s['micro'], new=new, short=short, asked=s['asked'], threads=a.threads, load=round(os.getloadavg()[0], 1),
        torch=torch.__version__)))

if __name__ == '__main__': main()

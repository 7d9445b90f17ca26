"""The Rust tokenizer against the reference's way and the fastest peers: training, encoding, signal to tokens, decoding.

    python benchmarks/bpe.py [--quick]        # the peers: make bench, or pip install rustbpe tiktoken

One thread against one thread on real ECGs, 12 x 2500 samples = 30,000 symbols of 26 letters: PTB-XL where it is found,
else the simulator. Encoding and decoding: every way sees an ECG once, the ways take turns on each block of ECGs, the
table shows medians of the blocks, a ratio is the median of the blocks' ratios. Training: the least of a few runs. All
times are those on a processor, so that other work on the machine, which interrupts long calls more often than short
ones, counts for little; rows marked (wall) are wall time. Ids, texts and merges are compared with the others': a
difference ends the run.

The reference is `rust_bpe/benches/reference.rs`, compiled here with the crate's flags: its algorithm written plainly
(all pairs counted anew for every merge, in two parts that are added, as its fold and reduce does on one thread; the
trie built in every call). Its training runs once; `one_map` is the same with a single map of counts. Its pipeline is
`reference_symbols` below and then its encoding call; that the reference converts its table from Python in every call is
left out.

MB/s: symbols, a byte each. of a copy: time of a numpy copy of the bytes that go in (decoding: that come out), in the
same run, over the time of the path.
"""
import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS='1', RAYON_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false')    # the peers' threads
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np                                                     # noqa: E402
from ecgnb._bpe import Bpe, train                                      # noqa: E402
from ecgnb.registry import source                                      # noqa: E402
from ecgnb.settings import data_dir                                    # noqa: E402
from ecgnb.synth import synth                                          # noqa: E402
from ecgnb.table import read_table                                     # noqa: E402

C, T, LEVELS = 12, 2500, 26
CORPUS = 500                              # ECGs to train on
WARM = 3                                  # ECGs of a block that do not count
LETTERS = np.array([chr(97 + k) for k in range(LEVELS)])
RESET = Path('/proc/self/clear_refs')     # Linux: resets the peak of memory
WANTED = dict(train_vs_reference=500, train_vs_rustbpe=8, encode_vs_reference=100, encode_exact_vs_tiktoken=20,
              encode_exact_vs_hf=30, pipeline_vs_reference=150, decode_vs_tiktoken=4, threads2=1.7)
PEERS = dict(tiktoken=('encode_exact_vs_tiktoken', 'decode_vs_tiktoken'), tokenizers=('encode_exact_vs_hf',),
             rustbpe=('train_vs_rustbpe',))


# ---- what goes in ----------------------------------------------------------------------------------------------------

def reference_symbols(x):
    "The reference's way from (C,T) mV to one letter a sample, lead after lead."
    low, high = x.min(), x.max()
    n = np.clip((x - low) / (high - low + 1e-6), 0, 1)
    return ''.join(LETTERS[np.minimum(np.floor(LEVELS * n), LEVELS - 1).astype(np.uint8)].flatten())

def real(folder, n):
    "12 x 2500 samples of PTB-XL: whole recordings at 250 Hz, then their halves at 500 Hz."
    src = source['ptb_xl'](root=str(folder), missing='drop')
    raw = [src.read(k) for k in range(min(n, len(src)))]
    yield from (e.resample(250).signal for e in raw)
    for at in (0, T): yield from (e.signal[:, at:at + T] for e in raw)

def ecgs(n):
    "(float32 (n,12,2500) mV, their symbols as str, what they are): no two ECGs have the same symbols."
    folder, found = data_dir('ptb_xl', ROOT), {}
    if folder: signals, what = real(folder, n), 'PTB-XL, recordings at 250 Hz and halves of them at 500 Hz'
    else: signals, what = (synth(seed=k, fs=250).signal for k in range(n)), 'SIMULATED (PTB-XL was not found)'
    for x in signals:
        if x.shape == (C, T) and np.isfinite(x).all(): found.setdefault(reference_symbols(x), x)
        if len(found) == n: return np.stack(list(found.values())).astype(np.float32), list(found), what
    raise SystemExit(f'{what}: {len(found)} different ECGs; wanted {n}')

def vocabulary(raw):
    "(Bpe of 10,000 merges whose first 256 ids are the bytes, what it is): the published table, else one trained here."
    folder = data_dir('tokenizers', ROOT)
    if not folder: return train(raw, 10_000)[0], 'a table trained on these ECGs (the published one was not found)'
    table = read_table(folder / 'ecg_byte_tokenizer_10000.pkl')
    return Bpe.from_pairs(table.pairs, table.alphabet), 'the published table of 10,000 merges'


# ---- the others ------------------------------------------------------------------------------------------------------

class Reference:
    "The reference's algorithm as a program, compiled into `folder`; `why` says what is missing where that fails."
    def __init__(self, folder):
        self.folder, self.program, self.why = folder, folder / 'reference', ''
        rustc = shutil.which('rustc') or shutil.which('rustc', path=str(Path.home() / '.cargo/bin'))
        if not rustc: self.why = 'no rustc'; return
        flags = ['--edition', '2024', '-C', 'opt-level=3', '-C', 'codegen-units=1', '-C', 'lto=fat', '-o', self.program]
        done = subprocess.run([rustc, *flags, ROOT / 'rust_bpe/benches/reference.rs'], capture_output=True, text=True)
        if done.returncode: self.why = f'rustc: {done.stderr.strip().splitlines()[0]}'

    def __call__(self, *arguments):
        return json.loads(subprocess.check_output([self.program, *map(str, arguments)]))

    def train(self, texts, merges, parts):
        "(seconds on a processor, (merges,2) pairs) of training on all texts joined, pairs counted in `parts` parts."
        file, out = self.folder / 'texts', self.folder / 'pairs'
        file.write_text(''.join(texts))
        return self('train', file, merges, parts, out)['cpu'], np.fromfile(out, np.uint32).reshape(-1, 2)

    def encoder(self, bpe):
        "A way (see `each`) of encoding by longest match with the merges of `bpe`."
        table, file, out = (self.folder / name for name in ('table', 'texts', 'ids'))
        table.write_bytes(b''.join(len(token).to_bytes(4, 'little') + token for token, _ in bpe.merges))
        def way(texts):
            file.write_text(''.join(texts))
            seconds, ids, at = self('encode', table, file, C * T, out)['cpu'], [], 0
            flat = np.fromfile(out, np.uint32)
            while at < len(flat): ids.append(flat[at + 1:(at := at + 1 + int(flat[at]))])
            return ids, statistics.mean(seconds[WARM:])
        return way

def tiktoken_of(bpe):
    from tiktoken import Encoding
    ranks = {bytes([k]): k for k in range(256)} | dict(bpe.merges)
    return Encoding('ecg', pat_str='[a-z]+', mergeable_ranks=ranks, special_tokens={})

def tokenizers_of(bpe):
    from tokenizers import Tokenizer, models
    names = [bpe.token(k).decode('latin-1') for k in range(len(bpe))]
    merges = [(names[left], names[right]) for left, right in bpe.pairs.tolist()]
    return Tokenizer(models.BPE(vocab={name: k for k, name in enumerate(names)}, merges=merges))

def rustbpe_train(texts, merges):
    from rustbpe import Tokenizer
    made = Tokenizer()
    made.train_from_iterator(iter(texts), 256 + merges, pattern='[a-z]+')
    return made


# ---- measuring -------------------------------------------------------------------------------------------------------

class Report:
    "Prints the rows as they come and keeps their figures for the last line."
    def __init__(self): self.ratios, self.us, self.share = {}, {}, {}

    def row(self, name, seconds, ecgs=1, share=None, **ratios):
        self.ratios |= ratios
        if share: self.share[name] = share
        said = ', '.join(f'{r:.1f}x {k}' + (f' (wanted {WANTED[k]})' if k in WANTED else '') for k, r in ratios.items())
        part = f'{share:.2%}' if share else ''
        self.us[name] = t = seconds / ecgs * 1e6
        print(f'{name:44}{t:13,.1f}{C * T / t:10,.1f}{part:>11}   {said}', flush=True)

def each(call):
    "A way, items -> (results, seconds an item): one call an item; the first ones warm up."
    def way(items):
        results = [call(item) for item in items[:WARM]]
        start = time.process_time()
        results += [call(item) for item in items[WARM:]]
        return results, (time.process_time() - start) / (len(items) - WARM)
    return way

def copied(items):
    "A way: one numpy copy of all items, into memory that is in use already."
    a = np.stack(items)
    b = np.ones_like(a)
    start = time.process_time()
    np.copyto(b, a)
    return (), (time.process_time() - start) / len(items)

def in_turns(ways, inputs, blocks, check):
    "name -> seconds an ECG in each block. `ways`: name -> (way, the input or the earlier way whose results it takes)."
    seconds = {name: [] for name in ways}
    for block in blocks:
        made = {}
        for name, (way, takes) in ways.items():
            made[name], t = way(made[takes] if takes in made else [inputs[takes][k] for k in block])
            seconds[name].append(t)
        check(made, block)
    return seconds

def best(ways, repeats, clock=time.process_time):
    "name -> (least seconds, result); the ways take turns."
    least, made = dict.fromkeys(ways, math.inf), {}
    for _ in range(repeats):
        for name, work in ways.items():
            start = clock()
            made[name] = work()
            least[name] = min(least[name], clock() - start)
    return {name: (least[name], made[name]) for name in ways}

def memory(key):
    "Bytes of this process in memory now ('VmRSS') or the most since the last reset ('VmHWM')."
    return next(int(line.split()[1]) * 1024 for line in open('/proc/self/status') if line.startswith(key))

def training_memory(file, merges):
    "The most bytes that training holds beyond its texts; to be run in a process of its own."
    data = Path(file).read_bytes()
    texts = [data[k:k + C * T] for k in range(0, len(data), C * T)]
    del data
    train(texts[:1], 10)
    RESET.write_text('5')
    before = memory('VmRSS')
    train(texts, merges)
    return memory('VmHWM') - before

def same(what, ours, theirs):
    if not np.array_equal(ours, theirs): raise SystemExit(f'{what}: ours and theirs differ')

def same_tokens(what, bpe, other):
    "Compares merges with those of rustbpe."
    theirs = sorted((k, bytes(token)) for token, k in other.get_mergeable_ranks())[256:]
    if [(k, token) for token, k in bpe.merges] != theirs: raise SystemExit(f'{what}: ours and theirs differ')


# ---- the parts -------------------------------------------------------------------------------------------------------

def encoding(report, bpe, x, texts, raw, there, blocks):
    "Encoding and decoding, one ECG a call; `there` holds those to compare with by name."
    inputs = dict(x=x, texts=texts, raw=raw, codes=[np.frombuffer(text, np.uint8) for text in raw])
    ways = {'numpy copy of symbols': (copied, 'codes'), 'numpy copy of float32': (copied, 'x')}
    if 'reference' in there:
        ways |= {'reference encode': (there['reference'].encoder(bpe), 'texts'),
                 'reference symbols': (each(reference_symbols), 'x')}
    ways['greedy'] = each(bpe.encode_longest), 'raw'
    if 'tiktoken' in there:
        tiktoken = tiktoken_of(bpe)
        ways['tiktoken encode'] = each(tiktoken.encode_ordinary), 'texts'
    if 'tokenizers' in there:
        hf = tokenizers_of(bpe)
        ways['tokenizers encode'] = each(lambda s: hf.encode_batch_fast([s], add_special_tokens=False)[0].ids), 'texts'
    ways |= {'exact': (each(bpe.encode), 'raw'),
             'signal to greedy': (each(lambda e: bpe.encode_signals(e[None], threads=1)), 'x'),
             'signal to exact': (each(lambda e: bpe.encode_signals(e[None], exact=True, threads=1)), 'x')}
    if 'tiktoken' in there: ways['tiktoken decode'] = each(tiktoken.decode_bytes), 'tiktoken encode'
    back = each(lambda made: bpe.decode_signals(made[0], (C, T), made[1], threads=1))
    ways |= {'decode': (each(bpe.decode), 'exact'), 'decode to float32': (back, 'signal to exact')}

    def check(made, block):
        for name in ('reference encode', 'tiktoken encode', 'tokenizers encode'):
            ours = 'greedy' if name == 'reference encode' else 'exact'
            for a, b in zip(made[ours], made.get(name, ())): same(name, a, b)
        for ours in ('greedy', 'exact'):
            for a, (b, _) in zip(made[ours], made[f'signal to {ours}']): same(f'signal to {ours}', a, b[0])
        for name in ('decode', 'tiktoken decode'):
            for k, b in zip(block, made.get(name, ())): same(name, raw[k], b)
        for k, b in zip(block, made['decode to float32']):
            if abs(b[0] - x[k]).max() > .505 * np.ptp(x[k]) / LEVELS: raise SystemExit('float32: not the signal')

    s = in_turns(ways, inputs, blocks, check)
    if 'reference' in there: s['reference pipeline'] = np.add(s['reference symbols'], s['reference encode']).tolist()
    times = lambda a, b: statistics.median(p / q for p, q in zip(s[a], s[b]))
    def show(name, copy='symbols', **others):
        ratios = {key: times(other, name) for key, other in others.items() if other in s}
        report.row(name, statistics.median(s[name]), share=times(f'numpy copy of {copy}', name), **ratios)
    for name in s:
        if name.split(' ')[0] in ('numpy', 'reference', *PEERS): report.row(name, statistics.median(s[name]))
    show('greedy', encode_vs_reference='reference encode')
    show('exact', encode_exact_vs_tiktoken='tiktoken encode', encode_exact_vs_hf='tokenizers encode')
    show('signal to greedy', 'float32', pipeline_vs_reference='reference pipeline')
    show('signal to exact', 'float32')
    show('decode', decode_vs_tiktoken='tiktoken decode')
    show('decode to float32', 'float32')

def two_threads(report, bpe, raw, repeats):
    "Batches on one thread and on two, wall time."
    for name, call in (('greedy', bpe.encode_longest_batch), ('exact', bpe.encode_batch)):
        ways = {k: lambda k=k: call(raw, threads=k) for k in (1, 2)}
        (one, _), (two, _) = best(ways, repeats, time.perf_counter).values()
        report.row(f'{name}, batch, 1 thread (wall)', one, len(raw))
        report.row(f'{name}, batch, 2 threads (wall)', two, len(raw), **{f'threads2_{name}': one / two})
    report.ratios['threads2'] = min(v for k, v in report.ratios.items() if k.startswith('threads2_'))

def training(report, texts, raw, there, merges, repeats, quick):
    "Training on 100 ECGs against the others, on more for the law of its cost, its time and its memory."
    def mine(seconds, n, merges, note='', **ratios):
        copy = min(copied([np.frombuffer(text, np.uint8) for text in raw[:n]])[1] for _ in range(3)) * n
        report.row(f'train, {n} ECGs, {merges} merges{note}', seconds, n, copy / seconds, **ratios)

    few = raw[:100]
    least, (made, *_) = best({'': lambda: train(few, merges, join=True)}, 3 * repeats)['']
    if 'reference' in there:
        ratios = {}
        for parts, name in ((2, 'reference'), (1, 'one_map')):
            seconds, pairs = there['reference'].train(texts[:100], merges, parts)
            same(f'merges of the {name}', made.pairs, pairs)
            report.row(f'{name} train, 100 ECGs, {merges} merges', seconds, 100)
            ratios[f'train_vs_{name}'] = seconds / least
        report.row(f'train, 100 ECGs joined, {merges} merges', least, 100, **ratios)
    ways = {'ours': lambda: train(few, 3500)[0]}
    if 'rustbpe' in there: ways['rustbpe'] = lambda: rustbpe_train(texts[:100], 3500)
    done = best(ways, repeats)
    if 'rustbpe' in there:
        same_tokens('merges of rustbpe', done['ours'][1], done['rustbpe'][1])
        report.row('rustbpe train, 100 ECGs, 3500 merges', done['rustbpe'][0], 100)
    least = done.pop('ours')[0]
    mine(least, 100, 3500, **{f'train_vs_{name}': t / least for name, (t, _) in done.items()})
    sizes = [n * CORPUS // 4 for n in (1, 2, 4)]
    grown = [t for t, _ in best({n: lambda n=n: train(raw[:n], 1000) for n in sizes}, repeats).values()]
    for n, t in zip(sizes, grown): mine(t, n, 1000)
    report.ratios['linear'] = float(np.polyfit(np.log(sizes), np.log(grown), 1)[0])
    least, made = best({'': lambda: train(raw, 10_000)[0]}, repeats, time.perf_counter)['']
    mine(least, CORPUS, '10,000', ' (wall)')
    report.ratios[f'train_{CORPUS}x10000_s'] = least
    if 'rustbpe' in there and not quick: same_tokens('10,000 merges of rustbpe', made, rustbpe_train(texts, 10_000))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--quick', action='store_true', help='under a minute: the reference learns 500 merges, fewer rounds')
    quick = p.parse_args().quick
    rounds, size, merges, repeats = (3, 40, 500, 2) if quick else (5, 100, 3500, 5)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    load, report, folder = os.getloadavg()[0], Report(), Path(tempfile.mkdtemp(prefix='ecgnb_bpe_'))
    try:
        blocks = [range(k, k + WARM + size) for k in range(0, rounds * (WARM + size), WARM + size)]
        x, texts, what = ecgs(max(CORPUS, blocks[-1][-1] + 1))
        raw = [text.encode() for text in texts]
        bpe, table = vocabulary(raw)
        there, reference = {name: True for name in PEERS if importlib.util.find_spec(name)}, Reference(folder)
        left = {key: f"no {name}: make bench, or pip install rustbpe tiktoken" for name in PEERS.keys() - there for key in PEERS[name]}
        if reference.why: left |= {key: reference.why for key in WANTED if key.endswith('_reference')}
        else: there['reference'] = reference
        busy = ': OTHER WORK RUNS, times are noisy' if load > .5 else ''
        print(f'{len(x)} ECGs, {what}; {table}\n{cores} cores, load average {load:.2f}{busy}\n')
        print(f'{"":44}{"us/ECG":>13}{"MB/s":>10}{"of a copy":>11}   ratio')
        encoding(report, bpe, x, texts, raw, there, blocks)
        if cores > 1: two_threads(report, bpe, raw, 3 * repeats)
        else: left['threads2'] = 'one core'
        training(report, texts[:CORPUS], raw[:CORPUS], there, merges, repeats, quick)
        if RESET.exists():
            (folder / 'corpus').write_bytes(b''.join(raw[:CORPUS]))
            with multiprocessing.get_context('spawn').Pool(1) as pool:
                held = pool.apply(training_memory, (folder / 'corpus', 10_000))
            report.ratios['bytes_per_symbol'] = held / (CORPUS * C * T)
        else: left['bytes_per_symbol'] = f'no {RESET}'
    finally: shutil.rmtree(folder)
    r, short = report.ratios, lambda d: {k: float(f'{v:.4g}') for k, v in d.items()}
    print(f'\n{CORPUS} ECGs, 10,000 merges: {r["train_500x10000_s"]:.3f} s of wall time (wanted < 1), '
          f'{r.get("bytes_per_symbol", math.nan):.1f} bytes a symbol beyond the text (wanted < 16); '
          f'time grows as symbols to the power of {r["linear"]:.2f}')
    for key, why in left.items(): print(f'left out: {key} ({why})')
    print(json.dumps(dict(name='bpe', **short(r), quick=quick, reference_merges=merges, cores=cores,
                          load=round(load, 2), data=what, table=table, left_out=left, us=short(report.us),
                          copy_share=short(report.share))))


if __name__ == '__main__': main()

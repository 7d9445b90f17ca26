"""Token representations and their tables: parity with ECG-Byte, round trips, contracts, files that lie."""
import copy
import hashlib
import itertools
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file

from ecgnb.batch import sample_seeds
from ecgnb.ecg import ECG
from ecgnb.hub import CheckpointError, load, save
from ecgnb.leads import ECGError
from ecgnb.registry import fields_of, from_config, to_config
from ecgnb.representations.bpe import Bpe
from ecgnb.representations.symbols import Symbols, flatten, quantise, ranges, unflatten
from ecgnb.table import Table, by_merges, plain, read_table, recover, write_table

_bpe = pytest.importorskip('ecgnb._bpe', reason='make setup builds the extension')
LEADS = 'I,II,V1'


def join(ids, pair, new):
    "The list `ids` with every `pair` replaced by the id `new`, from left to right."
    out, i, last = [], 0, len(ids) - 1
    while i <= last:
        if i < last and ids[i] == pair[0] and ids[i + 1] == pair[1]: out.append(new); i += 2
        else: out.append(ids[i]); i += 1
    return out

def signals(B=3, C=3, T=500, seed=0, **more):
    "Waves with noise, of unlike size in each lead."
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(T)/100
    x = torch.sin(2*torch.pi*(1 + torch.rand(B, C, 1, generator=g))*t)*torch.rand(B, C, 1, generator=g)*2
    return {'signal': x + .02*torch.randn(B, C, T, generator=g), 'seed': sample_seeds(0, 0, range(B)), 'record': [f'r{i}' for i in range(B)], **more}


def one_flat():
    "The same with a flat record in the middle: a run of one level."
    b = signals(); b['signal'][1] = 0.
    return b


def learn(rep, batch, merges=60, **notes):
    "A table learned from a batch by the plain algorithm."
    codes, _ = rep.codes(batch['signal'], batch.get('valid'))
    texts, pairs = codes.tolist(), []
    while len(pairs) < merges:
        count = Counter(p for ids in texts for p in zip(ids, ids[1:]))
        pairs.append(min(count, key=lambda p: (-count[p], p)))
        texts = [join(ids, pairs[-1], rep.levels + len(pairs) - 1) for ids in texts]
    return Table(np.array(pairs), rep.alphabet, rep.contract, notes)


SMALL = dict(leads=LEADS, fs=100., length=500, context=0)

@pytest.fixture(scope='module')
def table(): return learn(Symbols(**SMALL), one_flat())


# ---- the published table and the reference's numbers -------------------------------------------------------------------

@pytest.fixture(scope='module')
def io(data): return load_file(data/'parity/ecg_byte/io.safetensors')

@pytest.fixture(scope='module')
def said(data): return json.loads((data/'parity/ecg_byte/config.json').read_text())

@pytest.fixture(scope='module')
def theirs(data): return read_table(data/'tokenizers/ecg_byte_tokenizer_10000.pkl')

def reference(theirs, fs, **fields): return Bpe.of(theirs, fs=float(fs), length=10*fs, **{'context': 0} | fields)

def record(io, r, fs): return (io[f'{r}/int16_500'].float()/1000 if fs == 500 else io[f'{r}/mv_250'].float())[None]

RECORDS = [(r, fs) for r in range(3) for fs in (500, 250)]

def test_parity_table(theirs, said):
    ids = said['special_ids']
    r = reference(theirs, 250)
    assert (len(theirs), r.pad, r.bos, r.eos, r.vocab) == (said['tokenizer']['vocab'], *(ids[k] for k in ('pad_id', 'bos_id', 'eos_id', 'vocab_size')))
    assert r.all_bytes and r.merges == 10_000 and max(map(len, theirs.tokens)) == 1024

@pytest.mark.parametrize('r,fs', RECORDS)
def test_parity_codes_and_range(io, said, r, fs):
    rep = Symbols(fs=float(fs), length=10*fs)
    codes, span = rep.codes(record(io, r, fs))
    assert torch.equal(codes.view(12, -1), io[f'{r}/{fs}/encoder/codes'])
    assert torch.equal(span[0, 0], io[f'{r}/{fs}/encoder/minmax'].float())
    text = bytes(c + rep.first for c in codes[0].tolist())
    assert hashlib.sha256(text).hexdigest() == said['records'][str(r)][str(fs)]['sha256_symbol_string_encoder']

@pytest.mark.parametrize('r,fs', RECORDS)
def test_parity_tokens(io, theirs, r, fs):
    (ids,), _ = reference(theirs, fs).encode(record(io, r, fs))
    assert torch.equal(ids.int(), io[f'{r}/{fs}/encoder/tokens']) and torch.equal(ids.int(), io[f'{r}/{fs}/elm/tokens'])

@pytest.mark.parametrize('r', range(3))
def test_parity_one_lead(io, theirs, r):
    (ids,), _ = reference(theirs, 250, leads='II').encode(record(io, r, 250)[:, 1:2])
    assert torch.equal(ids.int(), io[f'{r}/250/encoder/tokens_lead1'])

def test_parity_decoding_to_mv(io, theirs):
    rep = reference(theirs, 250)
    tokens, span = io['0/250/encoder/tokens'].long()[None], io['0/250/encoder/minmax'].float()[None, None]
    mv = rep.decode(tokens, {'range': span})[0]
    assert torch.equal(mv, io['0/250/encoder/decoded'])
    rep.centre = False
    mv = rep.decode(tokens, {'range': span})[0]
    assert (mv - io['0/250/elm/decoded']).abs().max() < 1e-6

@pytest.mark.parametrize('fs', [500, 250])
def test_parity_training_sequences(io, theirs, fs):
    rep = reference(theirs, fs, context=2048, pad_side='left').train()
    batch = {'signal': torch.cat([record(io, r, fs) for r in range(3)])}
    with pytest.warns(UserWarning, match='more than context=2,048'): out = rep(batch)
    assert out['tokens'].shape == (3, 2048)
    labels = out['tokens'].masked_fill((out['tokens'] == rep.pad) | (out['tokens'] == rep.bos), -100)
    for r in range(3):
        assert torch.equal(out['tokens'][r].int(), io[f'{r}/{fs}/encoder/train_ids'])
        assert torch.equal(labels[r].int(), io[f'{r}/{fs}/encoder/train_labels'])
        assert torch.equal(out['tokens_valid'][r], out['tokens'][r] != rep.pad)
    assert out['truncated'].tolist() == [len(io[f'{r}/{fs}/encoder/tokens']) > 2046 for r in range(3)]

def test_parity_texts(said, theirs):
    rep = reference(theirs, 250)
    for case in said['encode_cases']:
        if not set(case['text']) <= set('abcdefghijklmnopqrstuvwxyz') or not case['text']: continue
        codes = torch.tensor([[ord(c) - 97 for c in case['text']]], dtype=torch.uint8)
        assert rep.ids(codes)[0].tolist() == case['tokens']
        assert rep.levels_of(torch.tensor(case['tokens'])).tolist() == codes[0].tolist()

def test_parity_prefix_of_the_table(theirs, io):
    "The first merges of the published table make a table; with none, tokens are the letters' bytes."
    (ids,), _ = reference(theirs, 250, merges=500).encode(record(io, 2, 250))
    assert ids.max() < 756 and len(ids) > 1526
    rep = reference(theirs, 250)
    rep.merges = 0
    rep.pairs, _ = rep.pairs[:0], rep.made.clear()
    (ids,), _ = rep.encode(record(io, 2, 250))
    assert torch.equal(ids - 97, io['2/250/encoder/codes'].flatten().long())


# ---- there and back --------------------------------------------------------------------------------------------------------

WAYS = [dict(norm=n, scope=s, flatten=f, block=b, levels=v, **k) for n, s, k in (('minmax', 'record', {}), ('minmax', 'lead', {}),
        ('percentile', 'record', dict(low=-4., high=4.))) for f, b in (('lead', 1), ('time', 1), ('time', 7), ('time', 999)) for v in (2, 26, 256)]

@pytest.mark.parametrize('way', WAYS, ids=lambda w: '-'.join(str(v) for v in w.values()))
def test_round_trip_within_half_a_level(way):
    b = signals()
    rep = Symbols(**SMALL | way)
    out = rep(b)
    half = (out['range'][..., 1:] - out['range'][..., :1])/rep.levels/2
    assert ((rep.decode(out['tokens'], out) - b['signal']).abs() <= half*1.0001 + 2e-6).all()
    merged = Bpe.of(learn(rep, b, 20), **SMALL | way)
    for merged.exact in (False, True):
        made = merged(b)
        assert int(made['tokens_valid'].sum()) < int(out['tokens_valid'].sum())
        assert torch.equal(merged.decode(made['tokens'], made), rep.decode(out['tokens'], out))

@pytest.mark.parametrize('way', [WAYS[0], WAYS[10], WAYS[20]], ids=str)
def test_no_merges_are_symbols(way):
    b, fields = signals(), SMALL | way
    out, none = Symbols(**fields)(b), Bpe(**fields)(b)
    for k in ('tokens', 'tokens_valid', 'range', 'truncated'): assert torch.equal(out[k], none[k])
    assert Bpe(**fields).vocab == Symbols(**fields).vocab

@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_flatten_is_undone(C, T, block):
    x = torch.arange(2*C*T).view(2, C, T)
    y = flatten(x, block)
    assert torch.equal(unflatten(y, C, block), x) and y.shape == (2, C*T)
    want = [x[:, c, a:a + (block or T)] for a in range(0, T, block or T) for c in range(C)]
    assert torch.equal(y, torch.cat(want, 1))

@pytest.mark.parametrize('levels', [2, 26, 256])
@pytest.mark.parametrize('scope', ['record', 'lead', (-1., 1.)])
@pytest.mark.parametrize('block', [0, 1, 7])
def test_torch_codes_equal_rust(levels, scope, block):
    if not hasattr(_bpe, 'quantise'): pytest.skip('this build of the extension has no quantise; make setup builds it')
    x = signals(B=4)['signal']
    x[1], x[2, 1] = 0., .25                                                # flat records and leads
    span = x.new_tensor(scope).expand(4, 1, 2) if isinstance(scope, tuple) else ranges(x, None, scope)
    codes, theirs = _bpe.quantise(x.numpy(), levels=levels, first=0, range=scope, block=block)
    assert np.array_equal(codes, flatten(quantise(x, span, levels), block).numpy())
    assert np.array_equal(np.asarray(theirs).reshape(4, -1, 2), span.numpy())

def test_future_is_not_needed_to_write_the_past(table):
    "In time order, the tokens of the first samples are those of the whole ECG, and decode to its beginning."
    rep = Symbols(**SMALL | dict(flatten='time', block=25, norm='percentile', low=-4., high=4.))
    b = signals()
    part, span = rep.encode(b['signal'][:, :, :250])
    whole, _ = rep.encode(b['signal'])
    assert all(torch.equal(p, w[:750]) for p, w in zip(part, whole))
    mv = rep.decode(part, {'range': span, 'signal': b['signal']})
    assert mv.shape == (3, 3, 500) and mv[..., :250].isfinite().all() and mv[..., 250:].isnan().all()
    assert torch.equal(rep.decode(whole, {'range': span}, samples=250), mv[..., :250])


# ---- sequences ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('side', ['left', 'right'])
def test_padding(table, side):
    rep, b = Bpe.of(table, **SMALL | dict(pad_side=side)), one_flat()
    out = rep(b)
    ids, _ = rep.encode(b['signal'])
    assert len(set(map(len, ids))) > 1 and out['tokens'].shape[1] % 64 == 0
    for row, there, i in zip(out['tokens'], out['tokens_valid'], ids):
        assert row[there].tolist() == [rep.bos, *i.tolist(), rep.eos] and (row[~there] == rep.pad).all()
        assert there[-1 if side == 'left' else 0]
    sizes = rep.sizes
    assert (sizes[out['tokens']].sum(1) == 1500).all() and len(sizes) == rep.vocab and not sizes[rep.base:].any()

def test_truncation_is_said_once_and_marked(table):
    rep, b = Bpe.of(table, **SMALL | dict(context=100)), one_flat()
    with pytest.warns(UserWarning, match='2 of 3 recordings have more than context=100 tokens') as seen: out = rep(b)
    assert len(seen) == 1 and out['truncated'].tolist() == [True, False, True]
    with warnings.catch_warnings(): warnings.simplefilter('error'); rep(b)
    ids, _ = rep.encode(b['signal'])
    assert out['tokens'][0].tolist() == [rep.bos, *ids[0][:98].tolist(), rep.eos]
    mv = rep.decode(out['tokens'], out)[0].flatten()
    n = int(rep.sizes[ids[0][:98]].sum())
    assert mv[:n].isfinite().all() and mv[n:].isnan().all()

def test_random_crop_is_the_samples_own(table):
    rep, b = Bpe.of(table, **SMALL | dict(context=100, crop='random')).train(), signals()
    rep.warned = True
    ids, _ = rep.encode(b['signal'])
    one, again, other = rep(b)['tokens'], rep(b)['tokens'], rep(b | {'seed': sample_seeds(1, 0, range(3))})['tokens']
    assert torch.equal(one, again) and not torch.equal(one, other)
    for row, i in zip(one, ids):
        whole = torch.tensor([rep.bos, *i.tolist(), rep.eos])
        assert any(torch.equal(row, w) for w in whole.unfold(0, 100, 1))
    last = rep({k: v[2:] for k, v in b.items()})['tokens']
    assert torch.equal(last[0], one[2])
    assert (rep.eval()(b)['tokens'][:, 0] == rep.bos).all()

def test_tokens_made_by_a_worker_pass_and_foreign_ones_do_not(table):
    rep, b = Bpe.of(table, **SMALL), signals()
    worker = pickle.loads(pickle.dumps(rep))
    made = worker.tokenise(b)
    assert rep(made) is made and made['tokens_of'] == rep.mark
    for other in (Symbols(**SMALL), Bpe.of(table, **SMALL | {'merges': 10}), Bpe.of(table, **SMALL | {'exact': True})):
        with pytest.raises(ECGError, match="tokenise with the model's own"): other(made)
    with pytest.raises(ECGError, match='made by None'): rep({'tokens': made['tokens']})

def test_int16_batches_and_missing_samples(table):
    rep, b = Bpe.of(table, **SMALL), signals()
    scale = torch.full((3, 3), 1e-4)
    valid = torch.ones(3, 3, 500, dtype=torch.bool)
    valid[0, 1, 100:], valid[2] = False, False
    q = (b['signal']/1e-4).round().to(torch.int16).masked_fill(~valid, -32768)
    stored = {'signal': q, 'scale': scale, 'valid': valid}
    out = rep(stored)
    assert out['signal'] is q
    x = (q.float()*scale[..., None]).masked_fill(~valid, 0.)
    assert torch.equal(rep({'signal': x, 'valid': valid})['tokens'], out['tokens'])
    assert torch.equal(out['range'][0, 0], torch.stack(x[0][valid[0]].aminmax())) and not out['range'][2].any()
    mv, level = rep.decode(out['tokens'], out), (out['range'][0, 0, 1] - out['range'][0, 0, 0])/26
    assert mv[0, 1, 100:].abs().max() < level/2*1.001 and mv[2].abs().max() < 1e-5
    assert torch.equal(rep({'signal': x.masked_fill(~valid, 7.), 'valid': valid})['tokens'], out['tokens'])

@pytest.mark.parametrize('norm', ['minmax', 'percentile'])
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_a_sample_that_is_no_number_is_named(norm, value):
    b = signals(); b['signal'][1, 2, 77] = value
    with pytest.raises(ECGError, match=rf'record r1: V1 is {value} at sample 77; .*valid'): Symbols(**SMALL | {'norm': norm})(b)
    b['valid'] = torch.ones(3, 3, 500, dtype=torch.bool); b['valid'][1, 2, 77] = False
    assert Symbols(**SMALL | {'norm': norm})(b)['range'].isfinite().all()

def test_ids_that_are_no_letters_decode_to_nothing(theirs):
    "A model may generate the 230 bytes of the published vocabulary that stand for no level."
    rep = reference(theirs, 250, leads='II')
    mv = rep.decode(torch.tensor([[rep.bos, 97, 0, 122, 255, rep.eos]]), {'range': torch.tensor([[[0., 26.]]])}, samples=5)[0, 0]
    assert mv.isnan().tolist() == [False, True, False, True, True] and abs(float(mv[0]) - .5) < 1e-4
    with pytest.raises(ECGError, match='token ids from -1'): rep.decode(torch.tensor([[-1]]), {'range': torch.zeros(1, 1, 2)})

@pytest.mark.parametrize('exact', [False, True])
@pytest.mark.parametrize('way', [WAYS[1], WAYS[7], WAYS[16], WAYS[31]], ids=str)
def test_one_pass_from_mv_is_the_two_steps(way, exact):
    "Rust from mV to tokens, and torch to levels, then Rust to tokens, are the same; with `valid` it is the second."
    b = signals()
    rep = Bpe.of(learn(Symbols(**SMALL | way), b, 20), **SMALL | way | {'exact': exact})
    one, two = rep(b), rep(b | {'valid': torch.ones(3, 3, 500, dtype=torch.bool)})
    for k in ('tokens', 'tokens_valid', 'range'): assert torch.equal(one[k], two[k])

def test_exact_encoding_is_merge_by_merge(table):
    rep, b = Bpe.of(table, **SMALL | {'exact': True}), signals(seed=9)
    codes, _ = rep.codes(b['signal'])
    rank = {tuple(p): 26 + i for i, p in enumerate(table.pairs.tolist())}
    assert [i.tolist() for i in rep.ids(codes)] == [by_merges(c, rank) for c in codes.tolist()]

def test_show_draws_the_tokens(table):
    x = signals()['signal'][0].numpy(); x[1, 200:] = np.nan
    rep = Bpe.of(table, **SMALL)
    fig = rep.show(ECG(x, 100., LEADS.split(',')), 'II,V1', start=1., seconds=2.)
    assert [s.lead for s in fig.strips] == ['II', 'V1'] and (fig.strips[0].start, fig.strips[0].stop) == (100, 300)
    assert any('tokens for 1,500 symbols' in t.get_text() for t in fig.axes[0].texts)
    with pytest.raises(ECGError, match=r'type e.resample\(100\)'): rep.show(ECG(x, 250., LEADS.split(',')))


# ---- contracts and checkpoints ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('field,value', [('fs', 250.), ('leads', 'I,II'), ('levels', 32), ('norm', 'percentile'), ('scope', 'lead'), ('flatten', 'time'),
                                         ('all_bytes', True)])
def test_a_table_of_another_contract_is_refused(table, tmp_path, field, value):
    file = str(write_table(tmp_path/'t.json', table))
    with pytest.raises(ECGError) as err: Bpe(table=file, **{field: value})
    assert f'Bpe.{field} is {value!r}' in str(err.value) and file in str(err.value) and 'ecgnb tokenizer' in str(err.value)

def test_a_table_fills_what_is_not_given(tmp_path):
    how = dict(leads='V1,V2', fs=128., length=300, levels=64, norm='percentile', low=-2., high=3., flatten='time', block=5)
    b = signals(C=2, T=300)
    file = write_table(tmp_path/'t.json', learn(Symbols(**how), b, 10))
    rep = Bpe(table=str(file))
    assert {k: getattr(rep, k) for k in how} == how and rep.merges == 10 and rep.table == ''
    assert rep.contract == Symbols(**how).contract | {'table': rep.learned.digest}
    assert Bpe(table=str(file), length=200).length == 200                      # a window of another length is no other contract
    assert Bpe(table=str(file), leads='V1,V2', fs=128, levels=64).levels == 64

def test_checkpoint_needs_no_table_file(table, tmp_path):
    file = write_table(tmp_path/'t.json', table)
    rep, b = Bpe(table=str(file), context=0), signals()
    file.unlink()
    again = load(save(rep, tmp_path/'m'), verbose=False)
    assert torch.equal(again(b)['tokens'], rep(b)['tokens']) and again.contract == rep.contract and again.mark == rep.mark
    assert torch.equal(again.state_dict()['pairs'], rep.state_dict()['pairs']) and rep.pairs.dtype == torch.int32
    for other in (copy.deepcopy(rep), pickle.loads(pickle.dumps(rep))): assert torch.equal(other(b)['tokens'], rep(b)['tokens'])
    config = json.loads((tmp_path/'m/config.json').read_text())
    assert config['contract']['table'] == table.digest and config['model']['table'] == ''

def test_config_round_trip_is_an_unfilled_table(table):
    rep, b = Bpe.of(table, **SMALL), signals()
    empty = from_config(json.loads(json.dumps(to_config(rep))))
    assert to_config(empty) == to_config(rep) and (empty.vocab, empty.facts, empty.gives) == (rep.vocab, rep.facts, rep.gives)
    for use in (lambda: empty(b), lambda: empty.sizes, lambda: empty.contract, lambda: empty.decode([torch.tensor([3])], {'range': torch.zeros(1, 1, 2)})):
        with pytest.raises(ECGError, match='the table of 60 merges is not loaded'): use()
    empty.load_state_dict(rep.state_dict())
    assert torch.equal(empty(b)['tokens'], rep(b)['tokens'])
    other = Bpe.of(learn(Symbols(**SMALL), signals(seed=3), 60), **SMALL)
    before = rep(b)['tokens']; rep.load_state_dict(other.state_dict())         # the compiled tokenizer follows the weights
    assert torch.equal(rep(b)['tokens'], other(b)['tokens']) and not torch.equal(rep(b)['tokens'], before)

def test_damaged_pairs_in_a_checkpoint_are_refused(table, tmp_path):
    rep = Bpe.of(table, **SMALL)
    rep.pairs[5] = torch.tensor([4000, 1])
    with pytest.raises(ECGError, match=r'merge 5 joins \[4000, 1\]'): rep.made.clear(); rep(signals())
    small = save(Bpe.of(table, **SMALL | {'merges': 10}), tmp_path/'m')
    config = json.loads((small/'config.json').read_text()); config['model']['merges'] = 11
    (small/'config.json').write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r'pairs: \(10, 2\) in the file, \(11, 2\) in the model'): load(small, verbose=False)

def test_without_the_extension_only_merges_are_missing():
    code = ("import sys; sys.modules['ecgnb._bpe'] = None\nimport torch\nfrom ecgnb.representations.bpe import Bpe\nfrom ecgnb.table import Table\n"
            "r = Bpe(leads='II', length=9); r({'signal': torch.rand(1, 1, 9)})\n"
            "try: Bpe.of(Table([[0, 0]], r.alphabet), leads='II')({'signal': torch.rand(1, 1, 9)})\n"
            "except ValueError as err: print(err)")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'type make -B setup' in out.stdout, out.stdout + out.stderr

@pytest.mark.parametrize('wrong', [dict(levels=1), dict(levels=257), dict(context=2), dict(block=0), dict(norm='zscore'), dict(crop='start'), dict(length=0),
                                   dict(norm='percentile', scope='lead'), dict(norm='percentile', low=1., high=1.), dict(pad_side='both')], ids=str)
def test_wrong_fields_are_named(wrong):
    with pytest.raises(ECGError, match=list(wrong)[-1]): Symbols(**wrong)

def test_every_field_has_a_comment():
    assert all(said for cls in (Symbols, Bpe) for *_, said in fields_of(cls)) and len(repr(Bpe())) < 250


# ---- files -----------------------------------------------------------------------------------------------------------------------

def test_table_round_trip(table, tmp_path):
    again = read_table(write_table(tmp_path/'t.json', Table(table.pairs, table.alphabet, table.contract, {'an': 'Ä', 'n': [1, 2]})))
    assert np.array_equal(again.pairs, table.pairs) and again.pairs.dtype == np.int32
    assert (again.alphabet, again.contract, again.digest, again.notes) == (table.alphabet, table.contract, table.digest, {'an': 'Ä', 'n': [1, 2]})
    assert again.tokens == table.tokens and again.lengths.tolist() == [1]*26 + [len(t) for t in table.tokens]
    assert np.array_equal(recover(table.tokens, table.alphabet), table.pairs)

def test_rust_reads_the_same_table(table, tmp_path):
    text = write_table(tmp_path/'t.json', table).read_text()
    if not hasattr(_bpe.Bpe, 'from_json'): pytest.skip('this build of the extension has no from_json; make setup builds it')
    rust = _bpe.Bpe.from_json(text)
    assert np.array_equal(rust.pairs, table.pairs) and bytes(rust.alphabet) == table.alphabet and rust == Bpe.of(table, **SMALL).rust
    bare = json.loads(rust.to_json())
    (tmp_path/'r.json').write_text(json.dumps(bare | {'contract': table.contract}))
    assert read_table(tmp_path/'r.json').digest == table.digest

def test_published_pairs_equal_rust(theirs):
    rust = _bpe.Bpe([(t, 256 + i) for i, t in enumerate(theirs.tokens)])
    if not hasattr(rust, 'pairs'): pytest.skip('this build of the extension has no pairs; make setup builds it')
    assert np.array_equal(rust.pairs, theirs.pairs)

def test_a_json_cut_anywhere_is_refused(table, tmp_path):
    file = write_table(tmp_path/'t.json', Table(table.pairs[:9], table.alphabet, table.contract))
    whole = file.read_bytes()
    for n in range(len(whole.rstrip())):
        file.write_bytes(whole[:n])
        with pytest.raises(ECGError, match='not whole JSON.*copy the whole file') as err: read_table(file)
        assert str(err.value).startswith(str(file))

@pytest.mark.parametrize('change,words', [
    (dict(format='tokenizer'), "format: 'tokenizer'; wanted 'ecgnb-bpe'"), (dict(version=2), 'version: 2; wanted 1'), (dict(alphabet='abc'), 'alphabet: .*wanted a list'),
    (dict(alphabet=[97, 97]), 'alphabet: 2 symbols, 1 of them different'), (dict(alphabet=[97, 300]), 'alphabet: 300; wanted integers from 0 to 255'),
    (dict(alphabet=[]), 'alphabet: 0 symbols'), (dict(merges=[[0, 1], [0]]), r'merge 1 is \[0\]'), (dict(merges=[[0, 26]]), r'merge 0 joins \[0, 26\]'),
    (dict(merges=[[0, 1.5]]), 'merge 0 is'), (dict(merges=[[0, True]]), 'merge 0 is'), (dict(merges=[[0, -1]]), 'merge 0 is'), (dict(merges=[[0, 1], [0, 1]]), 'as merge 0 did'),
    (dict(merges=[[25 + k, 25 + k] for k in range(50)]), 'over 16,777,216 symbols'), (dict(contract=[]), 'contract: .*wanted a dict'),
    (dict(contract={'fs': '250'}), "contract: fs is '250'; wanted float"), (dict(contract={'rate': 250}), "no entry 'rate'"), (dict(notes=3), 'notes: 3')], ids=str)
def test_wrong_json_is_named(table, tmp_path, change, words):
    file = tmp_path/'t.json'
    good = json.loads(write_table(file, table).read_text())
    file.write_text(json.dumps(good | change))
    with pytest.raises(ECGError, match=words) as err: read_table(file)
    assert str(err.value).startswith(str(file))

@pytest.mark.parametrize('key', ['format', 'version', 'alphabet', 'merges', 'contract'])
def test_a_missing_key_is_named(table, tmp_path, key):
    file = tmp_path/'t.json'
    good = json.loads(write_table(file, table).read_text()); good.pop(key)
    file.write_text(json.dumps(good))
    with pytest.raises(ECGError, match=f'{key}: '): read_table(file)

@pytest.mark.parametrize('text', ['[]', '3', 'null', '{}', '[' * 200_000, '{"format": NaN}', '\ud800'.encode('utf-8', 'surrogatepass')], ids=range(7))
def test_odd_json_is_refused(tmp_path, text):
    file = tmp_path/'t.json'
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ECGError): read_table(file)

def test_other_files_are_refused(tmp_path):
    with pytest.raises(ECGError, match='no such file'): read_table(tmp_path/'no.json')
    with pytest.raises(ECGError, match='a table is a .json file'): read_table(tmp_path/'t.txt')
    with pytest.raises(ECGError, match='no such file'): Bpe(table=str(tmp_path/'no.pkl'))


def pickled(tokens, protocol=4):
    vocab = {i: chr(i) if i < 128 else f'<{i}>' for i in range(256)} | {256 + i: t for i, t in enumerate(tokens)}
    return pickle.dumps((vocab, [(list(t.encode()), 256 + i) for i, t in enumerate(tokens)]), protocol)

@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_a_pickle_of_plain_data_is_read(tmp_path, protocol):
    file = tmp_path/'t.pkl'
    file.write_bytes(pickled(['mm', 'mmm', 'nm', 'mmmnm'], protocol))
    t = read_table(file)
    assert t.pairs.tolist() == [[109, 109], [256, 109], [110, 109], [257, 258]] and len(t.alphabet) == 256 and t.contract['levels'] == 26

class Run:
    def __init__(self, command): self.command = command
    def __reduce__(self): return os.system, (self.command,)

def attacks(flag):
    "Pickles that would run `touch flag`, by every opcode that calls or looks something up."
    command = f'touch {flag}'
    arg = b'X' + struct.pack('<I', len(command)) + command.encode()
    yield from (pickle.dumps(({0: Run(command)}, []), p) for p in (2, 3, 4, 5))
    yield from (pickle.dumps(Run(command), p) for p in (0, 1))
    yield b'cos\nsystem\n(' + arg + b'tR.'                                       # GLOBAL, REDUCE
    yield b'(' + arg + b'ios\nsystem\n.'                                         # INST
    yield b'(cos\nsystem\n' + arg + b'o.'                                        # OBJ
    yield b'\x80\x04\x8c\x02os\x8c\x06system\x93' + arg + b'\x85R.'              # STACK_GLOBAL
    yield b'\x80\x02csubprocess\nPopen\n(' + arg + b't\x81.'                     # NEWOBJ
    yield b'\x80\x02}(' + arg + b'K\x01u}b.'                                     # BUILD
    yield b'\x80\x02\x82\x01.'                                                   # EXT1
    yield b'Pos.system\n.'                                                       # PERSID
    yield arg + b'Q.'                                                            # BINPERSID
    yield b'\x80\x05\x97.'                                                       # NEXT_BUFFER

def test_no_pickle_is_ever_run(tmp_path):
    flag, file = tmp_path/'ran', tmp_path/'t.pkl'
    for n, data in enumerate(attacks(flag)):
        file.write_bytes(data)
        with pytest.raises(ECGError, match='opcode [A-Z0-9_]+ at byte [0-9]+, which can run code; nothing was run') as err: read_table(file)
        assert str(err.value).startswith(str(file)), n
    assert not flag.exists()
    os.system(f'touch {flag}'); assert flag.exists()                             # it would have been seen

def test_a_damaged_pickle_is_refused(tmp_path):
    file, good = tmp_path/'t.pkl', pickled(['mm', 'mmmm', 'nn', 'mmnn'])
    rng = np.random.default_rng(0)
    cases = [good[:n] for n in rng.integers(0, len(good) - 1, 60)]
    for _ in range(300):
        data = bytearray(good); data[rng.integers(len(good))] = rng.integers(256); cases.append(bytes(data))
    refused = 0
    for data in cases:
        file.write_bytes(data)
        try: t = read_table(file)
        except ECGError as err: refused += str(err).startswith(str(file))
        else: refused += (t.tokens == [b'mm', b'mmmm', b'nn', b'mmnn'])          # a change that changes nothing: framing, memo
    assert refused == len(cases)

@pytest.mark.parametrize('content,words', [
    ([], 'holds a list'), (({}, {}), 'holds a tuple'), (({}, []), 'vocab: id 0 is None'), (({0: 'a'}, [(3, 256)]), 'merge 0 is'), (({}, [([1, 2], 257)]), 'merge 0 is'),
    (({}, [([1], 256)]), 'merge 0 is'), (({}, [([1, 256], 256)]), 'merge 0 is'), (({}, [([1, 2], 256), ([1, 2, 3, 4], 257)]), 'vocab: id 0')], ids=str)
def test_a_pickle_of_something_else_is_named(tmp_path, content, words):
    file = tmp_path/'t.pkl'
    file.write_bytes(pickle.dumps(content, 4))
    with pytest.raises(ECGError, match=words): read_table(file)

def test_halves_of_two_pickles_are_refused(tmp_path):
    vocab, merges = plain(pickled(['mm', 'nn']))
    (tmp_path/'t.pkl').write_bytes(pickle.dumps((vocab | {257: 'oo'}, merges), 4))
    with pytest.raises(ECGError, match="vocab: id 257 is 'oo', its merge says 'nn'"): read_table(tmp_path/'t.pkl')
    (tmp_path/'t.pkl').write_bytes(pickle.dumps((vocab | {258: 'oo'}, merges), 4))
    with pytest.raises(ECGError, match='more ids than merges'): read_table(tmp_path/'t.pkl')
    (tmp_path/'t.pkl').write_bytes(pickled(['mm', 'mmmmm']))
    with pytest.raises(ECGError, match="token 257, b'mmmmm', is 3 tokens"): read_table(tmp_path/'t.pkl')

def test_a_pickle_that_repeats_itself_without_end_is_refused(tmp_path):
    "Nested references to one another: small in the file, without end when written out."
    deep = [1]
    for _ in range(40): deep = [deep]*10
    (tmp_path/'t.pkl').write_bytes(pickle.dumps(({}, [(deep, 256)]), 4))
    with pytest.raises(ECGError, match='merge 0 is'): read_table(tmp_path/'t.pkl')
    loop = []; loop.append((loop, 256))
    (tmp_path/'t.pkl').write_bytes(pickle.dumps(({}, loop), 4))
    with pytest.raises(ECGError, match='merge 0 is'): read_table(tmp_path/'t.pkl')


def test_a_pickle_whose_key_is_a_deep_tuple_is_refused_before_it_is_hashed(tmp_path):
    (tmp_path/'deep.pkl').write_bytes(b'\x80\x04}' + b')' + b'\x85'*2_000_000 + b'K\x01s.')
    with pytest.raises(ECGError, match='a key of type tuple'): read_table(tmp_path/'deep.pkl')

def test_a_pickle_of_one_long_token_takes_no_longer_than_its_length(tmp_path):
    tokens = [bytes(p) for p in itertools.product(range(256), repeat=2)][:20_000]
    merges = [(list(t), 256 + i) for i, t in enumerate([*tokens, b''.join(tokens)])]
    vocab = {i: chr(i) if i < 128 else f'<{i}>' for i in range(256)}
    vocab |= {i: ''.join(vocab[b] for b in t) for t, i in merges}
    (tmp_path/'long.pkl').write_bytes(pickle.dumps((vocab, merges), 4))
    began = time.process_time()
    with pytest.raises(ECGError, match='wanted 2'): read_table(tmp_path/'long.pkl')
    assert time.process_time() - began < 20

def test_gradients_empty_batches_and_a_merge_that_never_applies():
    rep = Symbols(leads='II', fs=100., length=50)
    x = torch.randn(2, 1, 50, requires_grad=True)
    table = Table([[5, 5]], rep.alphabet)
    assert len(rep.encode(x)[0]) == len(Bpe.of(table, leads='II', fs=100., length=50).encode(x)[0]) == 2
    with pytest.raises(ECGError, match='a batch of no signals'): rep({'signal': x[:0].detach()})
    never = Bpe.of(Table([[0, 0], [0, 26]], rep.alphabet), leads='II', fs=100., length=50)      # aaa is (aa, a) before it can be (a, aa)
    with pytest.raises(ECGError, match='merge 1 joins ids 0 and 26, which never meet'): never.encode(x)
    with pytest.raises(ECGError, match='within a million mV'): Symbols(norm='percentile', low=-1e39, high=1e39)

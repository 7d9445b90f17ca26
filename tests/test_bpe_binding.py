"""The compiled tokenizer made whole: training, exact encoding, signals and files, each against the plainest Python."""
import _thread
import copy
import json
import os
import pickle
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors.numpy import load_file

_bpe = pytest.importorskip('ecgnb._bpe', reason='make setup builds the extension')
Bpe, train, quantise = _bpe.Bpe, _bpe.train, _bpe.quantise


# What is said plainly


def joined(ids, pair, new):
    "ids with every `pair` replaced by `new`, from left to right."
    out, at = [], 0
    while at < len(ids):
        hit = tuple(ids[at:at + 2]) == pair
        out.append(new if hit else ids[at])
        at += 2 if hit else 1
    return out


def learn(sequences, merges, alphabet, min_frequency=2):
    "(pairs, counts, replaced) by recounting every pair at every merge; ties go to the smallest pair."
    texts, pairs, counts, replaced = [[alphabet.index(s) for s in text] for text in sequences], [], [], []
    while len(pairs) < merges:
        seen = Counter(pair for ids in texts for pair in zip(ids, ids[1:]))
        if not seen or max(seen.values()) < min_frequency:
            break
        pair = min(seen, key=lambda p: (-seen[p], p))
        before, new = sum(map(len, texts)), len(alphabet) + len(pairs)
        texts = [joined(ids, pair, new) for ids in texts]
        pairs.append(pair)
        counts.append(seen[pair])
        replaced.append(before - sum(map(len, texts)))
    return pairs, counts, replaced


def hollow(sequences, join):
    "Whether no sequence has a pair."
    return len(b''.join(sequences)) < 2 if join else all(len(text) < 2 for text in sequences)


def exact(pairs, alphabet, text):
    "Ids of `text`: one merge after the other."
    ids = [alphabet.index(s) for s in text]
    for i, pair in enumerate(pairs):
        ids = joined(ids, pair, len(alphabet) + i)
    return ids


def longest(tokens, text):
    "Ids of `text`: at each place the longest of `tokens`, which are in the order of their ids."
    table, ids, at = {t: i for i, t in enumerate(tokens)}, [], 0
    most = max(map(len, tokens))
    while at < len(text):
        n = next(n for n in range(min(most, len(text) - at), 0, -1) if text[at:at + n] in table)
        ids.append(table[text[at:at + n]])
        at += n
    return ids


def spelled(pairs, alphabet):
    "The bytes of every id."
    tokens = [bytes([s]) for s in alphabet]
    for left, right in pairs:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def codes(x, levels, range, block):
    "(codes uint8 (B, C*T), ranges): numpy's float32 arithmetic."
    axes = {'record': (1, 2), 'lead': 2}.get(range) if isinstance(range, str) else None
    if axes:
        low, high = x.min(axes, keepdims=True), x.max(axes, keepdims=True)
    else:
        low, high = (np.full((len(x), 1, 1), v, np.float32) for v in range)
    n = np.clip((x - low) / (high - low + np.float32(1e-6)), 0, 1).astype(np.float32)
    q = np.minimum(np.floor(np.float32(levels) * n), levels - 1).astype(np.uint8)
    return ordered(q, block), np.stack([low[..., 0], high[..., 0]], -1).astype(np.float32)


def ordered(q, block):
    "(B, C, T) as (B, C*T): blocks of `block` samples of every lead in turn."
    step = block or q.shape[2]
    return np.concatenate([q[:, :, at:at + step].reshape(len(q), -1) for at in range(0, q.shape[2], step)], 1)


# What is drawn


@st.composite
def texts(draw, alphabet):
    "Noise, a flat line, two symbols in turn, or runs as a quantised ECG has them."
    n, few = draw(st.integers(0, 120)), alphabet[:draw(st.integers(1, 4))]
    kind = draw(st.sampled_from(['noise', 'flat', 'alternating', 'runs']))
    if kind == 'flat':
        return bytes([few[0]]) * n
    if kind == 'alternating':
        return (bytes([few[0]]) * draw(st.integers(1, 3)) + bytes([few[-1]])) * (n // 3)
    if kind == 'runs':
        runs = draw(st.lists(st.tuples(st.sampled_from(few), st.integers(1, 20)), max_size=15))
        return b''.join(bytes([s]) * m for s, m in runs)
    return bytes(draw(st.lists(st.sampled_from(alphabet), min_size=n, max_size=n)))


@st.composite
def corpora(draw):
    "(alphabet in some order, sequences, merges, least frequency)"
    size = draw(st.sampled_from([2, 3, 26, 256]))
    alphabet = bytes(draw(st.permutations(range(256)))[:size])
    sequences = draw(st.lists(texts(alphabet), min_size=1, max_size=5))
    return alphabet, sequences, draw(st.integers(0, 40)), draw(st.integers(1, 3))


full = corpora().filter(lambda corpus: not hollow(corpus[1], False))


# Training and encoding


@given(corpora(), st.booleans(), st.data())
@settings(max_examples=200, deadline=None)
def test_rust_trains_and_encodes_as_plain_python_does(corpus, join, data):
    alphabet, sequences, merges, least = corpus
    if hollow(sequences, join):
        with pytest.raises(ValueError, match='sequence'):
            train(sequences, merges, alphabet, least, join)
        return
    want = learn([b''.join(sequences)] if join else sequences, merges, alphabet, least)
    for threads in (1, 2, 4):
        bpe, counts, merged = train(sequences, merges, alphabet, least, join, threads)
        assert (list(map(tuple, bpe.pairs.tolist())), counts.tolist(), merged.tolist()) == want
    assert counts.dtype == merged.dtype == np.uint64 and bpe.pairs.dtype == np.uint32
    tokens = spelled(want[0], alphabet)
    assert [t for t, _ in bpe.merges] == tokens[len(alphabet):] and bpe.lengths.tolist() == list(map(len, tokens))
    for text in [*sequences, data.draw(texts(alphabet))]:
        ids = bpe.encode(text)
        assert ids.tolist() == exact(want[0], alphabet, text)
        assert bpe.encode_longest(text).tolist() == longest(tokens, text)
        assert bpe.decode(ids) == text and [text[a:b] for a, b in bpe.spans(ids)] == [tokens[i] for i in ids]
    again = Bpe(bpe.merges, alphabet)  # from the tokens alone: the pairs are found
    assert again == bpe and (again.pairs == bpe.pairs).all()
    assert again.encode(sequences[0]).tolist() == bpe.encode(sequences[0]).tolist()


@pytest.mark.parametrize('kind', ['noise', 'walk', 'flat', 'alternating'])
def test_long_sequences_of_every_kind(kind):
    g = np.random.default_rng(0)
    rows = {'noise': g.integers(0, 26, (3, 4000)), 'walk': np.cumsum(g.integers(-1, 2, (3, 4000)), 1) % 26,
            'flat': np.full((3, 4000), 7), 'alternating': np.tile([3, 9], (3, 2000))}[kind].astype(np.uint8)
    alphabet = bytes(range(26))
    bpe, counts, merged = train(rows, 60, alphabet, threads=2)
    want = learn([r.tobytes() for r in rows], 60, alphabet)
    assert (list(map(tuple, bpe.pairs.tolist())), counts.tolist(), merged.tolist()) == want
    other = np.roll(rows[0], 1)
    assert bpe.encode(other).tolist() == exact(want[0], alphabet, other.tobytes())


@given(full, st.integers(0, 4), st.sampled_from(['uint16', 'uint32', 'int64']))
@settings(deadline=None, max_examples=50)
def test_batches_equal_one_by_one_in_every_dtype(corpus, threads, dtype):
    alphabet, sequences, merges, least = corpus
    bpe, _, _ = train(sequences, merges, alphabet, least)
    for one, many in ((bpe.encode, bpe.encode_batch), (bpe.encode_longest, bpe.encode_longest_batch)):
        batch = many(sequences, threads, dtype)
        assert all(ids.dtype == dtype for ids in batch)
        assert [ids.tolist() for ids in batch] == [one(text).tolist() for text in sequences]
        assert bpe.decode_batch(batch, threads) == sequences == [bpe.decode(ids) for ids in batch]


def test_counts_overlap_and_borders_are_not_crossed():
    bpe, counts, merged = train([b'aaa', b'ab'], 5, b'ab', min_frequency=1)
    assert bpe.pairs.tolist() == [[0, 0], [0, 1], [2, 0]] and counts.tolist() == [2, 1, 1] == [2, *merged[1:].tolist()]
    assert train([b'aa', b'aa'], 1, b'ab', join=True)[1].tolist() == [3]
    assert len(train([b'ab'], 5, b'ab')[0]) == 2, 'nothing comes twice'
    assert train([b'a', b'', b'ab'], 5, b'ab', min_frequency=1)[0].pairs.tolist() == [[0, 1]]
    assert len(train([b'abab'], 0)[0]) == 256


# Files


@given(full, st.data())
@settings(max_examples=60, deadline=None)
def test_json_and_hugging_face_come_back(corpus, data):
    tokenizers = pytest.importorskip('tokenizers')
    alphabet, sequences, merges, least = corpus
    bpe, _, _ = train(sequences, merges, alphabet, least)
    for again in (Bpe.from_json(bpe.to_json()), Bpe.from_hf(bpe.to_hf()), Bpe.from_pairs(bpe.pairs, alphabet),
                  Bpe.from_pairs(bpe.pairs.tolist(), alphabet), pickle.loads(pickle.dumps(bpe)), copy.deepcopy(bpe)):
        assert again == bpe and again.alphabet == alphabet and (again.pairs == bpe.pairs).all()
    table = json.loads(bpe.to_json())
    assert table == dict(format='ecgnb-bpe', version=1, alphabet=list(alphabet), merges=bpe.pairs.tolist())
    assert Bpe.from_json(json.dumps(table | {'contract': {'fs': 250}}, indent=1)) == bpe
    hf = tokenizers.Tokenizer.from_str(bpe.to_hf())
    assert hf.get_vocab_size() == len(bpe)
    for text in [*sequences, data.draw(texts(alphabet))]:
        ids = hf.encode(text.decode('latin-1')).ids
        assert ids == bpe.encode(text).tolist() and hf.decode(ids) == text.decode('latin-1')
    assert Bpe.from_hf(hf.to_str()) == bpe, 'as tokenizers writes it'
    file = json.loads(bpe.to_hf())
    file['model']['merges'] = [' '.join(pair) for pair in file['model']['merges']]
    if 32 not in alphabet:  # a space as a symbol makes such texts ambiguous
        assert Bpe.from_hf(json.dumps(file)) == bpe


def test_a_table_that_tokenizers_trained_reads():
    tokenizers = pytest.importorskip('tokenizers')
    g = np.random.default_rng(1)
    rows = (97 + np.cumsum(g.integers(-1, 2, (4, 500)), 1) % 26).astype(np.uint8)
    hf = tokenizers.Tokenizer(tokenizers.models.BPE())
    hf.train_from_iterator([r.tobytes().decode() for r in rows],
                           tokenizers.trainers.BpeTrainer(vocab_size=80, show_progress=False))
    bpe = Bpe.from_hf(hf.to_str())
    ours, _, _ = train(rows, len(bpe) - len(bpe.alphabet), bpe.alphabet)
    assert ours == bpe, 'and it is the one that we train'
    assert hf.encode(rows[0].tobytes().decode()).ids == bpe.encode(rows[0]).tolist()


def test_a_file_cut_anywhere_is_an_error():
    bpe = Bpe.from_pairs([(0, 1), (2, 2)], b'ab')
    for read, text in ((Bpe.from_json, bpe.to_json().strip()), (Bpe.from_hf, bpe.to_hf().strip())):
        assert read(text) == bpe
        for end in range(len(text)):
            with pytest.raises(ValueError, match=r'no JSON: EOF.* at line \d+, column \d+'):
                read(text[:end])


@pytest.mark.parametrize('text, message', [
    ('{"format": "ecgnb-bpe",\n "version": 1,\n "alphabet": [97, 98]\n "merges": []}', 'at line 4, column 2'),
    ('[]', r'the table is \[\]: wanted an object'),
    ('{"format": "x"}', 'format is "x"'),
    ('{"format": "ecgnb-bpe", "version": "1", "alphabet": [], "merges": []}', 'version is "1": wanted 1'),
    ('{"format": "ecgnb-bpe", "version": 1, "merges": []}', 'alphabet is missing: wanted a list of bytes'),
    ('{"format": "ecgnb-bpe", "version": 1, "alphabet": [300], "merges": []}', r'alphabet\[0\] is 300'),
    ('{"format": "ecgnb-bpe", "version": 1, "alphabet": [1, 2]}', 'merges is missing'),
    ('{"format": "ecgnb-bpe", "version": 1, "alphabet": [1, 2], "merges": [[0, 1], [0, 3]]}',
     r'merge 1 \(id 3\) joins id 3: wanted ids made before it, 0 to 2'),
    ('{"format": "ecgnb-bpe", "version": 1, "alphabet": [1, 2], "merges": [[0, "1"]]}', r'merges\[0\] is \[0,"1"\]'),
])
def test_a_wrong_table_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Bpe.from_json(text)


@pytest.mark.parametrize('change, message', [
    (lambda f: f['model']['vocab'].pop('ab'), r'model.merges\[0\] .*|model.vocab is 3 tokens, none with id 2'),
    (lambda f: f['model']['vocab'].update(ab=9), 'model.vocab is 4 tokens, none with id 2: wanted ids 0 to 3, no gaps'),
    (lambda f: f['model']['merges'].reverse(), r'model.merges\[0\] .*: wanted tokens with ids below 2'),
    (lambda f: f['model']['merges'].pop(), 'model.vocab.* is 2: wanted 3 or more'),
    (lambda f: f['model']['merges'].__setitem__(0, ['b', 'a']), r'merges\[0\].*: wanted the two parts of token "ab"'),
    (lambda f: f['model']['vocab'].update({'\u0120': 4}), r'character U\+0120: wanted U\+0000 to U\+00FF'),
    (lambda f: f['model'].update(type='WordPiece'), 'model.type is "WordPiece"'),
    (lambda f: f['model'].pop('merges'), 'model.merges is missing'),
    (lambda f: f.update(normalizer={'type': 'NFC'}), 'normalizer is .*: wanted null'),
    (lambda f: f.update(pre_tokenizer={'type': 'Whitespace'}), 'pre_tokenizer is .*: wanted null'),
    (lambda f: f.update(added_tokens=[dict(id=1, content='<s>')]), r'added_tokens\[0\] .*: wanted id 4 or more'),
])
def test_a_wrong_tokenizer_json_is_refused(change, message):
    file = json.loads(Bpe.from_pairs([(0, 1), (2, 2)], b'ab').to_hf())
    change(file)
    with pytest.raises(ValueError, match=message):
        Bpe.from_hf(json.dumps(file))


# Signals


@st.composite
def signals(draw):
    "float32 (B, C, T) mV: noise, steps, flat leads, values of any size."
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 70)))
    g = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = g.normal(0, draw(st.sampled_from([0., 1e-4, .5, 300.])), shape) + draw(st.sampled_from([0., -.3, 1000.]))
    x = np.round(x, draw(st.integers(0, 6))).astype(np.float32)
    range = draw(st.sampled_from(['record', 'lead', (-1.5, 1.5)]))
    return x, draw(st.integers(2, 256)), range, draw(st.integers(0, 80))


@given(signals(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_signals_become_numpys_codes_and_come_back(case, way):
    x, levels, range, block = case
    q, ranges = codes(x, levels, range, block)
    first = 97 if levels <= 26 else 0
    symbols, got = quantise(x, levels, first, range, block)
    np.testing.assert_array_equal(symbols, q + first)
    np.testing.assert_array_equal(got, ranges)
    assert symbols.dtype == np.uint8 and got.dtype == np.float32

    bpe, _, _ = train([*symbols, bytes([first]) * 2], 20)
    for threads in (1, 3):
        ids, got = bpe.encode_signals(x, levels, first, range, block, way, threads, 'int64')
        want = (bpe.encode_batch if way else bpe.encode_longest_batch)(symbols)
        assert [i.tolist() for i in ids] == [i.tolist() for i in want] and (got == ranges).all()
        assert all(i.dtype == np.int64 for i in ids)

    q = codes(x, levels, range, 0)[0].reshape(x.shape).astype(np.float32)
    low, high = ranges[..., :1], ranges[..., 1:]
    for offset, divisor, eps in ((.5, None, 1e-6), (0, levels - 1, 0)):
        o, d, e = np.float32(offset), np.float32(divisor or levels), np.float32(eps)
        want = (q + o) / d * (high - low + e) + low
        got = bpe.decode_signals(ids, x.shape[1:], ranges, levels, first, block, offset, divisor, eps, threads=2)
        np.testing.assert_array_equal(got, want)
        assert got.dtype == np.float32


def test_tokens_that_end_early_or_go_on():
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 6)
    bpe = Bpe([(b'ab', 256), (b'cd', 257)])
    ids, ranges = bpe.encode_signals(x, levels=12, block=2)
    whole = bpe.decode_signals(ids, (2, 6), ranges, levels=12, block=2)
    part = bpe.decode_signals([ids[0][:3]], (2, 6), ranges, levels=12, block=2, partial=True)
    text = bpe.decode(ids[0][:3])
    kept = np.isfinite(part)
    assert kept.sum() == len(text) and (part[kept] == whole[kept]).all()
    assert kept[0].tolist() == [[True] * 2 + [False] * 4, [True] * (len(text) - 2) + [False] * (8 - len(text))]
    long = np.concatenate([ids[0], ids[0]])
    assert (bpe.decode_signals([long], (2, 6), ranges, levels=12, block=2, partial=True) == whole).all()
    for wrong in (ids[0][:3], long):
        with pytest.raises(ValueError, match=r'item 0: .*symbols'):
            bpe.decode_signals([wrong], (2, 6), ranges, levels=12, block=2)


def test_a_strided_signal_and_an_empty_batch():
    x = np.random.default_rng(0).normal(size=(2, 50, 3)).astype(np.float32).transpose(0, 2, 1)
    same, _ = quantise(np.ascontiguousarray(x))
    assert (quantise(x)[0] == same).all()
    none, ranges = Bpe([]).encode_signals(x[:0])
    assert none == [] and ranges.shape == (0, 1, 2) and quantise(x[:0], range='lead')[0].shape == (0, 150)
    assert Bpe([]).decode_signals([], (3, 50), ranges).shape == (0, 3, 50)


ones = np.ones((1, 2, 4), np.float32)
ranged = np.array([[[0, 1]]], np.float32)


@pytest.mark.parametrize('call, error, message', [
    (lambda: quantise(ones[0]), ValueError, r'x is a float32 array of shape \[2, 4\]: wanted .*\(B, C, T\)'),
    (lambda: quantise(ones.astype(float)), TypeError, 'x is a float64 array'),
    (lambda: quantise(ones.tolist()), TypeError, 'x is of type list'),
    (lambda: quantise(ones[:, :0]), ValueError, 'wanted at least one lead and one sample'),
    (lambda: quantise(ones, levels=1), ValueError, 'levels is 1: wanted 2 to 256'),
    (lambda: quantise(ones, levels=-1), ValueError, 'levels is -1: wanted 2 to 256'),
    (lambda: quantise(ones, first=300), ValueError, 'first is 300'),
    (lambda: quantise(ones, levels=256, first=1), ValueError, 'first'),
    (lambda: quantise(ones, range='leads'), ValueError, "range is 'leads': wanted 'record', 'lead' or"),
    (lambda: quantise(ones, range=(1, -1)), ValueError, 'range'),
    (lambda: quantise(ones, range=(0, np.nan)), ValueError, 'range'),
    (lambda: quantise(ones, block=-1), ValueError, 'block is -1'),
    (lambda: quantise(np.float32([[[0, 1], [2, 3]], [[0, 1], [2, np.nan]]])), ValueError,
     'item 1: lead 1 is NaN at sample 1: wanted finite'),
    (lambda: quantise(np.float32([[[0, np.inf]]])), ValueError, 'item 0: lead 0 is inf at sample 1'),
    (lambda: Bpe([], b'xy').encode_signals(ones), ValueError, r"item 0: symbol 97 \('a'\) at position 0 is outside"),
    (lambda: Bpe([]).encode_signals(ones, threads=-1), ValueError, 'threads is -1'),
    (lambda: Bpe([]).encode_signals(ones, dtype='int8'), ValueError, "dtype is 'int8'"),
    (lambda: Bpe([]).decode_signals([[97]], (1, 2), ranged), ValueError, 'item 0: .*1 symbol'),
    (lambda: Bpe([]).decode_signals([[97, 999]], (1, 2), ranged), ValueError, 'item 0: token id 999 at position 1'),
    (lambda: Bpe([]).decode_signals([[97, 200]], (1, 2), ranged), ValueError, 'item 0: .*200'),
    (lambda: Bpe([]).decode_signals([[97]], (0, 2), ranged), ValueError, r'shape is \(0, 2\): wanted \(C, T\)'),
    (lambda: Bpe([]).decode_signals([[97]], (2**40, 2**40), ranged), ValueError, 'do not fit the memory'),
    (lambda: Bpe([]).decode_signals([[97]], (3, 2), np.zeros((1, 2, 2), np.float32)), ValueError,
     r'\(1, 1, 2\) or \(1, 3, 2\)'),
    (lambda: Bpe([]).decode_signals([[97]], (1, 1), [[[0, 1]]]), TypeError, 'ranges are of type list'),
    (lambda: Bpe([]).decode_signals([[97]], (1, 1), ranged, divisor=0), ValueError, 'divisor other than 0'),
    (lambda: Bpe([]).decode_signals([[97]], (1, 1), ranged, offset=np.nan), ValueError, 'wanted finite values'),
    (lambda: Bpe.from_pairs([(0, 256)]), ValueError, r'joins id 256: wanted ids made before it, 0 to 255'),
    (lambda: Bpe.from_pairs([(0, -1)]), ValueError, 'pair 0 has id -1'),
    (lambda: Bpe.from_pairs([(0, 1), (2,)]), ValueError, r'pair 1 is \(2,\): wanted two ids'),
    (lambda: Bpe.from_pairs([(0, 1), 'ab']), ValueError, "pair 1 is 'ab'"),
    (lambda: Bpe.from_pairs(np.zeros((2, 3), int)), ValueError, r'int64 array of shape \[2, 3\]: wanted'),
    (lambda: Bpe.from_pairs(np.zeros((2, 2))), TypeError, 'float64 array'),
    (lambda: Bpe.from_pairs([(97, 98), (98, 99), (97, 257)]), ValueError, 'merge 2 joins .*, which never meet'),
    (lambda: Bpe([(b'abc', 256)]).pairs, ValueError, '256'),
    (lambda: Bpe([(b'abc', 256)]).encode(b'abc'), ValueError, '256'),
    (lambda: Bpe([(b'abc', 256)]).to_json(), ValueError, '256'),
    (lambda: Bpe([]).encode(b'a', dtype='float'), ValueError, "dtype is 'float'"),
    (lambda: Bpe([], b'ab').encode_batch([b'a', b'x']), ValueError, 'item 1: symbol 120'),
    (lambda: Bpe([]).encode_batch([b'a', '\ud800']), ValueError, 'item 1: .*surrogates'),
    (lambda: train([], 5), ValueError, '0 sequences of 0 symbols together have no two symbols side by side'),
    (lambda: train([b'', b'a'], 5), ValueError, '2 sequences of 1 symbols together'),
    (lambda: train([b'', b'a'], 5, join=True), ValueError, '2 sequences of 1 symbols together'),
    (lambda: train([b'abc', b'abx'], 5, b'abc'), ValueError, r"item 1: symbol 120 \('x'\) at position 2"),
    (lambda: train([b'ab', 5], 5), TypeError, 'item 1: symbols are of type int'),
    (lambda: train(b'ab', 5), TypeError, 'wanted a list'),
    (lambda: train([b'ab'], -1), ValueError, 'merges is -1'),
    (lambda: train([b'ab'], 65_536), ValueError, '65,?536'),
    (lambda: train([b'ab'], 5, b''), ValueError, 'the alphabet is empty'),
    (lambda: train([b'ab'], 5, b'aba'), ValueError, 'the alphabet repeats'),
    (lambda: train([b'ab'], 5, min_frequency=0), ValueError, 'min_frequency|frequency'),
    (lambda: train([b'ab'], 5, threads=-2), ValueError, 'threads is -2'),
])
def test_a_wrong_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_uint16_where_it_fits():
    pairs = [(a, b) for a in range(256) for b in range(256)][:65_281]
    bpe = Bpe([(bytes(p), 256 + i) for i, p in enumerate(pairs)])
    with pytest.raises(ValueError, match="dtype is 'uint16': wanted 'uint32' for 65537 ids"):
        bpe.encode_longest(b'a', dtype='uint16')
    most = Bpe([(bytes(p), 256 + i) for i, p in enumerate(pairs[:-1])])
    ids = most.encode_longest(bytes(pairs[-2]), dtype='uint16')
    assert ids.dtype == np.uint16 and ids.tolist() == [65_535] and most.decode(ids) == bytes(pairs[-2])


# While it works


def noise(n=3_000_000):
    return np.random.default_rng(0).integers(0, 256, n, dtype=np.uint8)


def test_progress_is_told_ten_times_a_second():
    calls, start = [], time.perf_counter()
    bpe, counts, _ = train([noise()], 3_000, progress=lambda *call: calls.append((*call, time.perf_counter())))
    spent = time.perf_counter() - start
    done, total, times = zip(*calls)
    assert set(total) == {3_000} and done[-1] == len(counts) == 3_000 and list(done) == sorted(done)
    assert len(calls) <= 2 + spent / .1 and min(np.diff(times[:-1]), default=1) > .09
    assert spent < .5 or len(calls) >= 3


def test_an_error_in_progress_stops_the_training():
    def progress(done, total):
        raise ZeroDivisionError('mine')
    with pytest.raises(ZeroDivisionError, match='mine'):
        train([noise()], 60_000, progress=progress)


@pytest.mark.parametrize('threads', [1, 2])
def test_ctrl_c_stops_the_training(threads):
    waits, text = [], noise()
    for _ in range(3):  # on a busy machine one of three is in time
        sent = []
        def interrupt():
            sent.append(time.perf_counter())
            _thread.interrupt_main()
        timer = threading.Timer(.4, interrupt)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            train([text] * threads, 65_000, min_frequency=1, threads=threads)
        waits.append(time.perf_counter() - sent[0])
        timer.join()
    assert min(waits) < .15, waits


def test_other_threads_run_while_it_works():
    text = noise(4_000_000) % 26
    bpe = Bpe([(bytes([a, b]), 26 + i) for i, (a, b) in enumerate(np.ndindex(26, 26))], bytes(range(26)))
    x = np.random.default_rng(0).normal(size=(1, 1, 4_000_000)).astype(np.float32)
    ids, ranges = bpe.encode_signals(x, first=0)
    for work in (lambda: bpe.encode(text), lambda: bpe.decode(np.tile(ids[0], 8)), lambda: quantise(np.tile(x, 4)),
                 lambda: bpe.decode_signals([ids[0]] * 4, x.shape[1:], np.tile(ranges, (4, 1, 1)), first=0),
                 lambda: train([text], 200, bytes(range(26)))):
        for _ in range(5):  # a busy machine may starve one of the two threads: held throughout, none of five would pass
            ticks, times = [], []
            def run():
                times.append(time.perf_counter())
                work()
                times.append(time.perf_counter())
            worker = threading.Thread(target=run)
            worker.start()
            while worker.is_alive():
                ticks.append(time.perf_counter())
                time.sleep(1e-3)
            worker.join()
            if sum(times[0] < t < times[1] for t in ticks) >= 5:
                break
        else:
            pytest.fail('no other thread ran: it holds the GIL')


# Real recordings


@pytest.fixture(scope='module')
def real():
    "uint8 rows of lead-major symbols a-z, from real 12-lead recordings."
    places = [Path(os.environ['ECGNB_DATA'])] if os.environ.get('ECGNB_DATA') else []
    places += [up / 'shared/data' for up in Path(__file__).resolve().parents]
    for place in places:
        if (place / 'parity/ecg_byte/io.safetensors').exists():
            tensors = load_file(place / 'parity/ecg_byte/io.safetensors')
            codes = [v for k, v in sorted(tensors.items()) if k.endswith('encoder/codes')]
            return [97 + v.reshape(-1).astype(np.uint8) for v in codes]
    pytest.skip('no parity/ecg_byte/ in $ECGNB_DATA or in shared/data above the project')


def test_real_recordings_train_and_encode_as_plain_python_does(real):
    az, few = bytes(range(97, 123)), [row[:3000] for row in real]
    bpe, counts, merged = train(few, 80, az, threads=2)
    pairs, want, replaced = learn([row.tobytes() for row in few], 80, az)
    assert (list(map(tuple, bpe.pairs.tolist())), counts.tolist(), merged.tolist()) == (pairs, want, replaced)
    for row in real:
        text = row[-2500:].tobytes()
        assert bpe.encode(text).tolist() == exact(pairs, az, text)
        assert bpe.encode_longest(text).tolist() == longest(spelled(pairs, az), text)
        assert bpe.decode(bpe.encode(text)) == text


def columns(a): return np.asfortranarray(a)
def packed(a):
    "A field of a packed record array: its strides are no multiple of its size, its addresses are not aligned."
    out = np.zeros(a.shape, dtype=[('flag', 'u1'), ('value', a.dtype)])
    out['value'] = a
    return out['value']

@pytest.mark.parametrize('held', [columns, packed, lambda a: np.repeat(a, 2, -1)[..., ::2]], ids=['columns', 'packed', 'strided'])
def test_how_numpy_holds_an_array_changes_nothing(held):
    bpe = Bpe.from_pairs([[97, 98], [256, 99]])
    x = np.random.default_rng(0).standard_normal((1, 2, 50)).astype('f4')
    for range in ('record', 'lead', (-1., 1.)):
        for a, b in zip(quantise(held(x), range=range), quantise(x, range=range)): assert (a == b).all()
        (a,), s = bpe.encode_signals(held(x), range=range)
        (b,), t = bpe.encode_signals(x, range=range)
        assert (a == b).all() and (s == t).all()
    spans = np.array([[[0, 1]], [[2, 3]]], 'f4')
    assert (bpe.decode_signals([[97], [97]], (1, 1), held(spans)) == bpe.decode_signals([[97], [97]], (1, 1), spans)).all()
    pairs = np.array([[97, 99], [98, 100], [256, 257]])
    assert Bpe.from_pairs(held(pairs)).pairs.tolist() == pairs.tolist()
    for dtype in ('u2', 'u4', 'i4', 'i8'):
        ids = np.array([97, 256, 257, 99], dtype)
        assert bpe.decode(held(ids)) == b'aababcc' and bpe.spans(held(ids)).tolist() == bpe.spans(ids).tolist()
    text = np.frombuffer(b'abcabz', np.uint8)
    assert bpe.encode(held(text)).tolist() == bpe.encode(b'abcabz').tolist()

@pytest.mark.parametrize('call', [
    lambda n: train([b'abab'], n), lambda n: train([b'abab'], 1, min_frequency=-n), lambda n: train([b'ab'], 1, threads=-n),
    lambda n: quantise(np.zeros((1, 1, 4), 'f4'), levels=n), lambda n: quantise(np.zeros((1, 1, 4), 'f4'), first=n),
    lambda n: Bpe([]).encode_batch([b'a'], threads=-n), lambda n: Bpe([]).decode_signals([[97]], (n, 1), np.zeros((1, 1, 2), 'f4'))])
def test_numbers_beyond_64_bits_are_wrong_values_like_others(call):
    with pytest.raises(ValueError): call(10**30)

def test_tokens_of_a_few_pairs_that_stand_for_gigabytes_are_refused_at_once():
    pairs = [[97, 98]] + [[256 + i, 256 + i] for i in range(25)]
    with pytest.raises(ValueError, match='bytes of tokens: wanted at most 16777216'): Bpe.from_pairs(pairs)
    with pytest.raises(ValueError, match='bytes of tokens: wanted at most 16777216'): Bpe([(b'ab'*9_000_000, 256)])

"""The compiled tokenizer: equal to longest match written plainly, to the published ids, and clear about wrong input."""
import hashlib
import json
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors.numpy import load_file

Bpe = pytest.importorskip('ecgnb._bpe', reason='make setup builds the extension').Bpe


def longest(table, text):
    "Ids of `text` by longest match: `table` maps bytes -> id and holds every single symbol."
    most, ids, at = max(map(len, table)), [], 0
    while at < len(text):
        n = next(n for n in range(min(most, len(text) - at), 0, -1) if text[at:at + n] in table)
        ids.append(table[text[at:at + n]])
        at += n
    return ids


def numbered(alphabet, tokens):
    "Pairs (token, id) of the distinct tokens of two symbols or more, after the alphabet's ids."
    seen = dict.fromkeys(t for t in tokens if len(t) > 1)
    return [(t, len(alphabet) + i) for i, t in enumerate(seen)]


@st.composite
def cases(draw):
    "An alphabet in some order, merges made from earlier tokens or at random, and a text in runs."
    alphabet = bytes(draw(st.lists(st.integers(0, 255), min_size=1, max_size=draw(st.sampled_from([2, 26, 256])),
                                   unique=True)))
    few = alphabet[:draw(st.integers(1, 4))]
    runs = st.lists(st.tuples(st.sampled_from(few), st.integers(1, 20)), max_size=20)
    joined = runs.map(lambda rs: b''.join(bytes([s]) * n for s, n in rs))
    tokens = [bytes([s]) for s in alphabet]
    for left, right in draw(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), max_size=40)):
        token = tokens[left % len(tokens)] + tokens[right % len(tokens)]
        if len(token) < 200:
            tokens.append(token)
    tokens += draw(st.lists(joined, max_size=8))
    text = draw(st.one_of(joined, st.lists(st.sampled_from(alphabet), max_size=200).map(bytes)))
    return alphabet, draw(st.permutations(numbered(alphabet, tokens))), text


@given(cases())
@settings(max_examples=300, deadline=None)
def test_rust_is_the_plain_longest_match(case):
    alphabet, merges, text = case
    bpe = Bpe(merges, alphabet)
    table = {bytes([s]): i for i, s in enumerate(alphabet)} | dict(merges)
    ids = bpe.encode_longest(text)
    assert ids.dtype == np.uint32 and ids.tolist() == longest(table, text)
    assert bpe.decode(ids) == text
    assert [text[a:b] for a, b in bpe.spans(ids)] == [bpe.token(i) for i in ids.tolist()]
    assert len(bpe) == len(table) and all(bpe.token(i) == t for t, i in table.items())


@pytest.fixture(scope='module')
def small():
    return Bpe([(b'ab', 256), (b'aa', 257), (b'abc', 258)])


def test_inputs_of_every_kind_give_the_same_ids(small):
    text = b'aabcabaaz'
    want = [257, 98, 99, 256, 257, 122]
    array = np.frombuffer(text, np.uint8)
    strided = np.repeat(array, 2)[::2]
    for symbols in (text, text.decode(), bytearray(text), array, strided):
        assert small.encode_longest(symbols).tolist() == want
    wide = small.encode_longest(text, dtype='int64')
    assert wide.dtype == np.int64 and wide.tolist() == want
    for ids in (want, tuple(want), wide, wide.astype(np.uint32), wide.astype(np.int32), np.repeat(wide, 2)[::2]):
        assert small.decode(ids) == text
    assert small.spans(want).tolist() == [[0, 2], [2, 3], [3, 4], [4, 6], [6, 8], [8, 9]]
    assert small.spans([]).shape == (0, 2)
    assert small.decode([]) == b'' and small.encode_longest('').size == 0


@given(st.lists(st.lists(st.sampled_from(b'abcz'), max_size=60).map(bytes), max_size=12), st.integers(0, 5))
@settings(deadline=None)
def test_batches_equal_one_by_one(items, threads):
    bpe = Bpe([(b'ab', 256), (b'aa', 257), (b'abc', 258)])
    batch = bpe.encode_longest_batch(items, threads=threads)
    assert [ids.tolist() for ids in batch] == [bpe.encode_longest(text).tolist() for text in items]
    assert bpe.decode_batch(batch, threads=threads) == items
    assert all(ids.dtype == np.int64 for ids in bpe.encode_longest_batch(items, threads, dtype='int64'))


def test_a_matrix_is_a_batch_of_its_rows(small):
    rows = np.frombuffer(b'abcabaab', np.uint8).reshape(2, 4)
    assert [ids.tolist() for ids in small.encode_longest_batch(rows)] == [[258, 97], [98, 257, 98]]


def test_equality_pickle_and_what_it_shows(small):
    assert small == Bpe(small.merges) and small != Bpe([(b'ab', 256)])
    assert small == Bpe(list(reversed(small.merges))), 'the order of the entries means nothing, their ids do'
    assert pickle.loads(pickle.dumps(small)) == small
    assert repr(small) == 'Bpe(259 tokens: 256 symbols, 3 merges)'
    assert small.merges == [(b'ab', 256), (b'aa', 257), (b'abc', 258)] and small.alphabet == bytes(range(256))


@pytest.mark.parametrize('merges, alphabet, message', [
    ([], '', 'the alphabet is empty'),
    ([], 'abca', r"repeats symbol 97 \('a'\) at position 3"),
    ([(b'', 2)], 'ab', r'merge 0 \(id 2\) is an empty token'),
    ([(b'ab', 2), (b'ac', 3)], 'ab', r"merge 1 has symbol 99 \('c'\) at position 1: wanted symbols of the alphabet"),
    ([(b'ab', 1)], 'ab', 'merge 0 has id 1: ids 0 to 1 are the alphabet'),
    ([(b'ab', 2), (b'ba', 2)], 'ab', 'merges 0 and 1 both have id 2'),
    ([(b'ab', 2), (b'ba', 4)], 'ab', 'no merge has id 3: wanted the 2 merges to have ids 2 to 3, no gaps'),
    ([(b'ab', 2), (b'ab', 3)], 'ab', "ids 2 and 3 are the same token 'ab'"),
    ([(b'b', 2)], 'ab', "ids 1 and 2 are the same token 'b'"),
    ([(b'ab', -1)], 'ab', 'merge 0 has id -1: wanted an int from 0'),
    ([(b'ab', 'x')], 'ab', "merge 0 has id 'x'"),
    ([([97, 300], 2)], 'ab', 'merge 0 has symbol 300: wanted bytes or a list of ints 0 to 255'),
    ([(None, 2)], 'ab', 'merge 0 has token None'),
    ([b'ab'], 'ab', r"merge 0 is b'ab': wanted a pair \(token, id\)"),
])
def test_a_wrong_table_is_refused(merges, alphabet, message):
    with pytest.raises(ValueError, match=message):
        Bpe(merges, alphabet)


@pytest.mark.parametrize('call, error, message', [
    (lambda b: b.decode([97, 259]), ValueError, 'token id 259 at position 1: wanted 0 to 258'),
    (lambda b: b.decode(np.array([-1])), ValueError, 'token id -1 at position 0'),
    (lambda b: b.decode([2**70]), ValueError, 'does not fit 64 bits'),
    (lambda b: b.decode_batch([[97], [300]]), ValueError, 'item 1: token id 300 at position 0'),
    (lambda b: b.decode(np.array([1.])), TypeError, r'float64 array of shape \[1\]: wanted a 1-D uint32'),
    (lambda b: b.decode(np.array([[1]])), ValueError, r'int64 array of shape \[1, 1\]'),
    (lambda b: b.decode('ab'), TypeError, 'token ids are of type str'),
    (lambda b: b.spans([300]), ValueError, 'token id 300 at position 0'),
    (lambda b: b.token(-1), ValueError, 'token id -1'),
    (lambda b: b.token(2**70), ValueError, 'does not fit 64 bits'),
    (lambda b: b.encode_longest(np.zeros((2, 5), np.uint8)), ValueError, r'uint8 array of shape \[2, 5\].*1-D'),
    (lambda b: b.encode_longest(np.zeros(5)), TypeError, 'float64 array of shape'),
    (lambda b: b.encode_longest([97]), TypeError, 'symbols are of type list'),
    (lambda b: b.encode_longest('a', dtype='int8'), ValueError, "dtype is 'int8': wanted 'uint32' or 'int64'"),
    (lambda b: b.encode_longest_batch([b'a', 5]), TypeError, 'item 1: symbols are of type int'),
    (lambda b: b.encode_longest_batch(b'ab'), TypeError, 'wanted a list'),
    (lambda b: b.encode_longest_batch([b'a'], threads=-1), ValueError, 'threads is -1'),
    (lambda b: Bpe([], 'ab').encode_longest('abxa'), ValueError, r"symbol 120 \('x'\) at position 2 is outside"),
    (lambda b: b.encode_longest('\ud800'), ValueError, 'surrogates'),
])
def test_a_wrong_input_is_refused(small, call, error, message):
    with pytest.raises(error, match=message):
        call(small)


def test_other_threads_run_while_it_encodes():
    bpe = Bpe([(bytes([a, b]), 256 + i) for i, (a, b) in enumerate(np.ndindex(26, 26))])
    text = np.random.default_rng(0).integers(0, 26, 20_000_000, dtype=np.uint8)
    for _ in range(5):  # a busy machine may starve one of the two threads: held throughout, none of five would pass
        times = []
        def work():
            times.append(time.perf_counter())
            bpe.encode_longest(text)
            times.append(time.perf_counter())
        worker, ticks = threading.Thread(target=work), []
        worker.start()
        while worker.is_alive():
            ticks.append(time.perf_counter())
            time.sleep(1e-3)
        worker.join()
        if sum(times[0] < t < times[1] for t in ticks) >= 8:
            return
    pytest.fail('no other thread ran during encode_longest: it holds the GIL')


class Plain(pickle.Unpickler):
    "Reads numbers, text and containers; whatever would import something is refused."

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f'the table names {module}.{name}: wanted plain numbers and text')


@pytest.fixture(scope='module')
def data():
    places = [Path(os.environ['ECGNB_DATA'])] if os.environ.get('ECGNB_DATA') else []
    places += [up / 'shared/data' for up in Path(__file__).resolve().parents]
    need = ('tokenizers/ecg_byte_tokenizer_10000.pkl', 'parity/ecg_byte/io.safetensors')
    for place in places:
        if all((place / n).exists() for n in need):
            return place
    pytest.skip('no tokenizers/ and parity/ecg_byte/ in $ECGNB_DATA or in shared/data above the project')


def test_parity_with_the_published_ecg_byte_table(data):
    config = json.loads((data / 'parity/ecg_byte/config.json').read_text())
    raw = (data / 'tokenizers/ecg_byte_tokenizer_10000.pkl').read_bytes()
    assert hashlib.sha256(raw).hexdigest() == config['tokenizer']['sha256']
    with open(data / 'tokenizers/ecg_byte_tokenizer_10000.pkl', 'rb') as file:
        vocab, merges = Plain(file).load()
    bpe = Bpe(merges)
    assert len(bpe) == len(vocab) == config['special_ids']['pad_id']
    assert all(bpe.token(i).decode() == vocab[i] for i in range(256, len(vocab)))

    for case in config['encode_cases']:
        assert bpe.encode_longest(case['text']).tolist() == case['tokens']
    for case in config['decode_cases']:
        if all(i < 128 or 255 < i < len(vocab) for i in case['ids']):  # the reference writes 128 as '<128>'
            assert bpe.decode(case['ids']).decode() == case['text']

    tensors = load_file(data / 'parity/ecg_byte/io.safetensors')
    pairs = []
    for record in config['records']:
        for fs in ('250', '500'):
            symbols = ord('a') + tensors[f'{record}/{fs}/encoder/codes'].reshape(-1)  # lead after lead
            ids = bpe.encode_longest(symbols)
            np.testing.assert_array_equal(ids, tensors[f'{record}/{fs}/encoder/tokens'])
            assert bpe.decode(ids) == symbols.tobytes()
            pairs.append((symbols, ids))
    batch = bpe.encode_longest_batch([symbols for symbols, _ in pairs], threads=2)
    assert all((a == b).all() for a, (_, b) in zip(batch, pairs, strict=True))

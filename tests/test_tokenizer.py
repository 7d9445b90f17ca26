"""Learning a vocabulary: whose recordings count, how a sample is drawn, and what the command writes and refuses."""
import numpy as np
import pytest
import torch

from ecgnb import tokenizer
from ecgnb.command import main as ecgnb
from ecgnb.leads import ECGError
from ecgnb.prepare import prepare
from ecgnb.representations.bpe import Bpe
from ecgnb.representations.symbols import Symbols
from ecgnb.sources.sample import Sample
from ecgnb.table import read_table
from ecgnb.tokenizer import choose, compression, learn, letters, millivolts, morphology, percentiles, strata

pytest.importorskip('ecgnb._bpe', reason='make setup builds the extension')


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    return prepare(Sample(n=80, fs=100.), tmp_path_factory.mktemp('s')/'store', fs=100, seconds=4, leads='II,V2', progress=False)

@pytest.fixture(scope='module')
def symbols(): return Symbols(leads='II,V2', fs=100., length=400, context=0)


@pytest.mark.parametrize('size', [1, 7, 20, 99, 100, 500])
def test_a_sample_is_rows_each_once(size):
    groups = np.repeat([0, 1, 2], [80, 15, 5])
    for g in (None, groups):
        rows = choose(100, size, g, seed=3)
        assert len(rows) == len(set(rows)) == min(size, 100) and (np.diff(rows) > 0).all() and 0 <= rows.min() and rows.max() < 100
        assert (choose(100, size, g, seed=3) == rows).all()
    assert size >= 99 or (choose(100, size, None, 3) != choose(100, size, None, 4)).any()

def test_strata_share_equally_and_small_ones_give_all():
    groups = np.repeat([0, 1, 2], [80, 15, 5])
    assert np.bincount(groups[choose(100, 12, groups)]).tolist() == [4, 4, 4]
    assert np.bincount(groups[choose(100, 25, groups)]).tolist() == [10, 10, 5]
    assert np.bincount(groups[choose(100, 60, groups)]).tolist() == [40, 15, 5]

def test_shapes_tell_a_wide_range_from_a_narrow_one():
    t = np.arange(1000)/100
    x = np.stack([np.stack([a*np.sin(2*np.pi*f*t)]*2) for a, f in [(1, 1.), (1, 1.01), (1, .99), (3, 8.), (3, 8.1), (3, 7.9)]]).astype(np.float32)
    groups = strata(morphology(x, 100.), 2)
    assert len(set(groups[:3])) == len(set(groups[3:])) == 1 and groups[0] != groups[3]

def test_percentiles_are_those_of_the_samples(store):
    rows = np.arange(len(store))
    low, high = percentiles(store, rows, most=10**9)
    want = np.percentile(millivolts(store, rows).numpy(), (1, 99))
    np.testing.assert_allclose([low, high], [want[0] - .5, want[1] + .5], atol=1e-3)
    near = percentiles(store, rows, most=20_000)
    np.testing.assert_allclose(near, [low, high], atol=.1)

def test_letters_are_those_of_the_representation(store, symbols):
    rows = np.array([5, 0, 17])
    codes, _ = symbols.codes(millivolts(store, rows))
    assert (letters(symbols, store, rows) == codes.numpy() + 97).all()

def test_the_same_table_whatever_the_threads_and_another_of_other_recordings(store, symbols):
    a, b = learn(symbols, store, 200), learn(symbols, store, 200, threads=2)
    assert a.digest == b.digest != learn(symbols, store, 200, rows=np.arange(20)).digest
    assert a.contract == symbols.contract and a.notes['windows'] == len(store)
    assert a.notes['tokens'] == sum(len(i) for i in Bpe.of(a, leads='II,V2', fs=100., length=400, exact=True, context=0).encode(
        millivolts(store, np.arange(len(store))))[0]), 'what training says is left is what the exact encoder gives'

def test_compression_counts_tokens(store, symbols):
    assert (compression(symbols, store) == 800).all()
    bpe = Bpe.of(learn(symbols, store, 100), leads='II,V2', fs=100., length=400, context=0)
    count = compression(bpe, store)
    assert count.mean() < 400 and count.max() <= 800

def test_patients_of_other_folds_are_not_learned_from(tmp_path, cache, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(tokenizer, 'learn', lambda s, store, *a, **k: seen.append(set(store.frame['fold'])) or learn(s, store, *a, **k))
    how = ['source=sample', 'source.n=80', 'source.fs=100', 'prepare.fs=100', 'prepare.leads=II,V2', 'prepare.seconds=4', 'merges=50']
    assert ecgnb(['tokenizer', *how, f'out={tmp_path}/t.json']) == 0
    assert seen and seen[0] <= set(range(1, 9)) and 'of fold val' in capsys.readouterr().out
    table = read_table(tmp_path/'t.json')
    assert len(table.pairs) == 50 and table.contract['fs'] == 100 and table.notes['fold'] == 'train'
    assert ecgnb(['tokenizer', *how, 'symbols.norm=percentile', 'symbols.flatten=time', 'symbols.block=20', 'sample=30', 'strata=3',
                  f'out={tmp_path}/p.json']) == 0
    rep = Bpe(table=str(tmp_path/'p.json'), leads='II,V2', fs=100., length=400)
    assert (rep.norm, rep.flatten, rep.block) == ('percentile', 'time', 20) and rep.low < -.5 < .5 < rep.high
    x = torch.zeros(1, 2, 400); x[0, 0, 50:60] = 1.
    ids, span = rep.encode(x)
    assert (rep.decode(ids, {'range': span, 'signal': x}) - x).abs().max() <= (rep.high - rep.low)/26/2 + 1e-5

def test_from_a_store(store, tmp_path, capsys):
    assert ecgnb(['tokenizer', f'store={store.path}', 'merges=40', 'unseen=', f'out={tmp_path}/t.json']) == 0
    assert read_table(tmp_path/'t.json').contract['leads'] == ['II', 'V2'] and 'on ' not in capsys.readouterr().out.splitlines()[-2]

@pytest.mark.parametrize('said, message', [
    (['merges=0'], 'merges=0; wanted 1 or more'), (['merges=many'], 'wanted int'), (['merge=5'], "no key 'merge'"), (['fold=trian'], 'did you mean'),
    (['strata=4'], 'divide a sample of 0'), (['symbols.levels=1000'], 'wanted 2 to 256'), (['symbols.norm=minimax'], "did you mean 'minmax'"),
    (['merges=70000'], '65'), (['source=smaple'], "did you mean 'sample'"), (['store=nowhere'], 'nowhere')])
def test_what_cannot_be_is_refused(said, message, cache, capsys, tmp_path):
    how = [] if any(s.startswith(('store', 'source')) for s in said) else \
        ['source=sample', 'source.n=20', 'source.fs=100', 'prepare.fs=100', 'prepare.leads=II', 'prepare.seconds=2']
    assert ecgnb(['tokenizer', *how, *said, f'out={tmp_path}/t.json']) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.glob('*.json'))

def test_nothing_to_learn_from(store, symbols):
    with pytest.raises(ECGError, match='no window to learn from'): learn(symbols, store, 5, rows=[])
    with pytest.raises(ValueError, match='min_frequency'): learn(symbols, store, 5, min_frequency=10**12)

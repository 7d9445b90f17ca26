"The challenge's classes, codes and score: the published table, hand-computed cases, another implementation, real headers."
import hashlib

import numpy as np
import pytest

from ecgnb.challenge import MOST, SCORED, challenge_score, codes_of, credit, label_set, label_sets, relabel, weights
from ecgnb.leads import ECGError
from ecgnb.sources.wfdb_folder import WfdbFolder

NAMES = label_set('cinc2021')
# rows of the challenge's published weights.csv, in the order of its columns
PUBLISHED = {
    '164889003': '1.0,0.5,0.475,0.3,0.475,0.4,0.3,0.3,0.35,0.35,0.3,0.425,0.45,0.35,0.25,0.3375,0.375,0.425,0.375,0.4,0.35,0.3,0.3,'
                 '0.375,0.5,0.5',
    '426783006': '0.25,0.25,0.275,0.45,0.275,0.35,0.45,0.45,0.4,0.4,0.45,0.325,0.3,0.4,1.0,0.4125,0.375,0.325,0.375,0.15,0.4,0.45,'
                 '0.45,0.375,0.25,0.25',
    '284470004|63593006': '0.3375,0.3375,0.3625,0.4625,0.3625,0.4375,0.4625,0.4625,0.4875,0.4875,0.4625,0.4125,'
                          '0.3875,0.4875,0.4125,1.0,0.4625,0.4125,0.4625,0.2375,0.4875,0.4625,0.4625,0.4625,0.3375,0.3375',
    '164917005': '0.4,0.4,0.375,0.2,0.375,0.3,0.2,0.2,0.25,0.25,0.2,0.325,0.35,0.25,0.15,0.2375,0.275,0.325,0.275,1.0,0.25,0.2,0.2,'
                 '0.275,0.4,0.4'}
SHA = 'd051ed7b81636ccf38ed608cb99da4ec1b99ead9b698307cbe3fa3c3e82de05e'       # of the whole published table, its 27 lines joined by newlines


def rows(*labels): return np.array([[float(n in v) for n in NAMES] for v in labels])


def slow(true, said, w):
    "The score counted pair by pair, recording by recording."
    def total(answers):
        s = 0.
        for t, p in zip(true, answers):
            n = max(1, sum(1 for a, b in zip(t, p) if a or b))
            for j in range(len(w)):
                for k in range(len(w)):
                    if t[j] and p[k]: s += w[j][k]/n
        return s
    idle = [[c == 'NSR' for c in NAMES] for _ in true]
    low, high = total(idle), total(true)
    return (total(said) - low)/(high - low)


def test_the_table_is_the_published_one():
    w, codes = weights(), [c for c, _ in SCORED.values()]
    for code, line in PUBLISHED.items(): np.testing.assert_array_equal(w[codes.index(code)], [float(v) for v in line.split(',')])
    text = '\n'.join([','.join(['', *codes]), *(','.join([c, *map(str, r)]) for c, r in zip(codes, w.tolist()))])
    assert hashlib.sha256(text.encode()).hexdigest() == SHA


def test_scores_by_hand():
    true = rows(['AF'], ['NSR'], ['SB', 'LAD'])
    assert challenge_score(true, true > 0) == 1. and challenge_score(true, rows(['NSR'], ['NSR'], ['NSR']) > 0) == 0.
    low, high = .25/2 + 1 + (.45 + .4)/3, 1 + 1 + (1 + 1 + 2*.45)/2     # right twice over: the pairs of two classes count too
    got = .5/2 + 1 + (1 + .45)/2                                        # flutter; sinus rhythm; SB alone
    assert challenge_score(true, rows(['AFL'], ['NSR'], ['SB']) > 0) == pytest.approx((got - low)/(high - low), abs=1e-12)
    assert challenge_score(true, rows([], [], []) > 0) == pytest.approx(-low/(high - low), abs=1e-12)      # silence is below zero


def test_it_agrees_with_a_slow_count():
    rng = np.random.default_rng(0)
    for share in (.02, .1, .5):
        true, said = rng.random((30, 26)) < share, rng.random((30, 26)) < .1
        assert challenge_score(true, said) == pytest.approx(slow(true, said, weights().tolist()), abs=1e-12)
    w = rng.random((26, 26))                                            # not symmetric: rows are what is true
    assert challenge_score(true, said, w=w) == pytest.approx(slow(true, said, w.tolist()), abs=1e-12)


def test_weights_of_recordings_are_repetitions():
    rng = np.random.default_rng(1)
    true, said, n = rng.random((20, 26)) < .1, rng.random((20, 26)) < .1, rng.integers(0, 3, (4, 20))
    each = challenge_score(true, said, weight=n.astype(float))
    assert each == pytest.approx([challenge_score(np.repeat(true, k, 0), np.repeat(said, k, 0)) for k in n], abs=1e-12)


def test_what_the_score_cannot_say():
    assert np.isnan(challenge_score(rows(['NSR'], ['NSR']), rows(['NSR'], ['AF']) > 0))
    with pytest.raises(ECGError, match='NSR alone'): challenge_score(np.ones((2, 2)), np.ones((2, 2)), ('AF', 'AFL'))
    with pytest.raises(ECGError, match='labels of 1 recordings are unknown'):
        challenge_score(rows(['AF'], ['NSR'])*[[np.nan], [1]], rows(['AF'], ['NSR']) > 0)
    with pytest.raises(ECGError, match=r'said \(2, 25\); wanted \(N, 26\)'): challenge_score(rows(['AF'], []), np.ones((2, 25)))
    with pytest.raises(ECGError, match='LVH: not scored'): weights(('NSR', 'LVH'))
    assert credit(rows([]) > 0, rows([]) > 0, weights()).tolist() == [0.]


def test_sets_and_codes():
    assert NAMES == tuple(sorted(NAMES)) and NAMES.index('NSR') == 14 and len(NAMES) == 26
    assert [len(v) for v in label_sets.values()] == [26, 17, 7, 8]
    assert all(set(v) < set(label_set(k)) for k, v in MOST.items())
    assert relabel([['733534002', '164909002', 'STach', '55930002'], [], None], 'cinc2021') == [['CLBBB|LBBB', 'STach'], [], None]
    assert relabel([['164909002', '427084000', '426783006']], 'code15') == [['LBBB', 'ST']]
    assert relabel([['Infarction', 'Sinus rhythm', 'AF']], 'mimic_ecg_fm') == [['Sinus rhythm', 'Infarction']]
    with pytest.raises(ECGError, match="did you mean 'cinc2021'"): relabel([[]], 'cinc2020')


def test_codes_are_those_of_the_published_mapping(data):
    lines = (data/'cinc2021/challenge2021_dx_mapping.csv').read_text().splitlines()[1:]
    table = [(s.split(',')[0], s.split(',')[-2]) for s in lines if s.endswith(',1')]
    assert len(table) == 30
    codes = codes_of('cinc2021')
    for code, short in table: assert codes[code] == codes[short] and short in codes[code].split('|')
    unscored = [s.split(',')[0] for s in lines if s.endswith(',0')]
    assert relabel([unscored], 'cinc2021') == [[]]


def test_the_recordings_of_the_challenge(data):
    src = WfdbFolder(root=str(data/'cinc2021'), patient='record')
    mine = dict(zip(src.frame['record'], relabel(src.frame['labels'], 'cinc2021')))
    assert len(mine) == 12 and mine['A0003'] == ['AF'] and mine['JS00001'] == ['AF', 'CRBBB|RBBB', 'TAb']
    assert mine['JS20000'] == ['NSIVCB', 'PAC|SVPB', 'STach'] and mine['E00006'] == ['TAb', 'TInv']
    assert mine['Q0001'] == ['STach']

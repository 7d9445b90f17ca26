"The report labeller: negation, uncertainty, three languages, walls, and the simulator's own reports."
import ast
import numpy as np
import pandas as pd
import pytest
from ecgnb.dipole import CODES as SIMULATED
from ecgnb.findings import CODES, WALLS, coded, findings, label_f1
from ecgnb.leads import ECGError
from ecgnb.settings import data_dir
from ecgnb.synth import parse, words
from hypothesis import given, settings, strategies as st

CASES = {
    # English
    'Normal sinus rhythm with first-degree AV block': 'SR 1AVB',
    'No AF, PVC or flutter. Sinus rhythm.': 'SR -AFIB -PVC -AFLT',
    'No evidence of acute myocardial infarction or ischemia.': '-MI -ISC_', 'LVH possible.': '?LVH', 'LBBB?': '?CLBBB',
    'Possible LVH or RVH': '?LVH ?RVH', 'Anterior and inferior infarcts': 'MI AMI IMI', 'Not a normal ECG': '-NORM',
    'There is no left bundle branch block but there is left anterior fascicular block': '-CLBBB LAFB',
    'Abnormal ECG': '',
    'ECG shows atrial flutter; atrial fibrillation ruled out': '-AFIB AFLT', 'LVH is unlikely': '-LVH',
    'history of atrial fibrillation, now sinus rhythm': 'SR', 'ST elevation is not present.': '-STE_',
    'prolonged qt, this may be due to a drug effect.': 'LNGQT', 'Voltage criteria for LVH not met': '-VCLVH',
    'Inferolateral ischemia, old septal MI': 'ISCIL MI ASMI', 'supra-ventricular premature beats': 'PAC',
    'incomplete RBBB': 'IRBBB', 'right bundle branch block': 'CRBBB', 'ventricular tachycardia': '',
    'left bundle branch block, this is most commonly due to ischaemic heart disease.': 'CLBBB',
    'no evidence of ischaemia or rhythm disturbance minor qt prolongation.': '-ISC_ LNGQT',
    'old inferior myocardial infarction cannot be entirely excluded': '?MI ?IMI',
    'sinus rhythm. it is not significantly changed. pvc': 'SR PVC', 'low amplitude t-wave': '',
    # German
    'kein Vorhofflimmern oder Vorhofflattern Sinusrhythmus': 'SR -AFIB -AFLT', 'ohne Infarkt, Linkstyp': '-MI LAD',
    'Verdacht auf Hinterwandinfarkt, Ausschluss Vorderwandinfarkt': '?MI ?IMI -AMI', 'AV-Block 1. Grades': '1AVB',
    'Linksventrikuläre Hypertrophie nicht auszuschließen': '?LVH', 'anterolateraler infarkt mÖglich': '?MI ?ALMI',
    'unvollständiger Rechtsschenkelblock, kompletter Linksschenkelblock': 'IRBBB CLBBB', 'QT-Verlängerung': 'LNGQT',
    'mÄssige amplitudenkriterien f#r linkshypertrophie': 'VCLVH',
    'Zustand nach Vorderwandinfarkt. Sinusrhythmus': 'SR',
    'supraventrikuläre Extrasystole(n) Steillage ST-Senkung': 'PAC STD_', 'keine p-welle erkannt rechtstyp': 'RAD',
    # Swedish
    'Förmaksflimmer. Ingen ischemi.': 'AFIB -ISC_', 'inferior infarkt bör övervägas': '?MI ?IMI',
    'sinusrytm vänster el-axel lateral myokardskada kan ej uteslutas': 'SR LAD ?MI ?LMI',
    'sinusrytm normalt ekg': 'NORM SR',
    'infarkt ålder ej bestämmbar st-t sänkning': 'MI STD_'}


def wanted(line):
    return {c.lstrip('-?'): {'-': False, '?': None}.get(c[0], True) for c in line.split()}


@pytest.mark.parametrize('text', CASES)
def test_cases(text):
    assert findings(text) == wanted(CASES[text])
    assert findings(text.upper().replace('ß', 'ss')) == wanted(CASES[text])


def test_codes_are_ptb_xl_s():
    folder = data_dir('ptb_xl')
    if folder is None: pytest.skip('the shared data folder is missing')
    known = pd.read_csv(folder/'scp_statements.csv', index_col=0).index
    assert set(CODES) - {'MI', 'LAD', 'RAD'} <= set(known) and set(SIMULATED) <= set(CODES)


def test_simulator_reports_exactly():
    rng, n = np.random.default_rng(1), 0
    while n < 500:
        try: names, _ = parse(list(rng.choice(list(SIMULATED), rng.integers(1, 5), replace=False)))
        except ECGError: continue
        text, n = words(names, dict(axis=rng.uniform(-180, 180), rate=70.)), n + 1
        assert coded(text) - {'LAD', 'RAD'} == coded(names), text


def test_the_axis_of_a_simulated_report():
    for axis, side in ((0., None), (-60., 'LAD'), (120., 'RAD'), (-150., None)):
        assert coded(words(['SR'], dict(axis=axis, rate=70.))) == {'SR', *([side] if side else [])}


def test_ptb_xl_reports():
    folder = data_dir('ptb_xl')
    if folder is None: pytest.skip('the shared data folder is missing')
    table = pd.read_csv(folder/'ptbxl_database.csv')
    texts = [t.split('Edit:')[0] for t in table['report'].fillna('')]
    pairs = [(t, set(ast.literal_eval(c))) for t, c in zip(texts, table['scp_codes'])
             if t.strip() and 'trace only' not in t]
    got = label_f1(*zip(*pairs), codes=[c for c in CODES if c not in ('LAD', 'RAD')])
    assert len(pairs) == 406 and got['micro'] > .8
    for code, least in dict(SR=.99, AFIB=.9, NORM=.88, SARRH=.9, MI=.7, LAFB=.75).items():
        assert got['classes'].f1[code] >= least, code


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_any_text(text):
    got = findings(text)
    assert set(got) <= set(CODES) and all(v in (True, False, None) for v in got.values())
    if got.keys() & set(WALLS.values()): assert 'MI' in got


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(sorted(CASES)), max_size=3), min_size=1, max_size=6))
def test_label_f1_bounds_identity_symmetry(reports):
    texts = ['. '.join(r) for r in reports]
    other = texts[1:] + texts[:1]
    if any(coded(t) for t in texts):
        assert label_f1(texts, texts)['micro'] == label_f1(texts, texts)['macro'] == 1
        a, b = label_f1(texts, other), label_f1(other, texts)
        assert a['micro'] == b['micro'] and 0 <= a['micro'] <= 1
        np.testing.assert_array_equal(a['rows'], b['rows'])
        assert label_f1(['']*len(texts), texts)['micro'] == 0


def test_label_f1_against_sklearn_and_weights():
    from sklearn.metrics import f1_score
    rng = np.random.default_rng(0)
    said, want = (list(rng.choice(list(CASES), 60)) for _ in range(2))
    hot = lambda texts: np.array([[c in coded(t) for c in CODES] for t in texts])
    got = label_f1(said, want)
    there = hot(want).any(0)
    assert got['micro'] == pytest.approx(f1_score(hot(want), hot(said), average='micro'))
    assert got['macro'] == pytest.approx(f1_score(hot(want)[:, there], hot(said)[:, there], average='macro'))
    w = rng.multinomial(60, [1/60]*60, 3)
    boot = label_f1(said, want, weight=w)
    for k in range(3):
        again = label_f1(*([t for t, n in zip(x, w[k]) for _ in range(n)] for x in (said, want)))
        assert (boot['micro'][k], boot['macro'][k]) == pytest.approx((again['micro'], again['macro']))


def test_left_open():
    assert coded('possible LVH') == {'LVH'} and coded('possible LVH', unsure=False) == set()
    assert coded({'IMI', 'NT_', 'HVOLT'}) == {'IMI', 'MI', 'NDT'}


def test_errors():
    with pytest.raises(ECGError, match='a report is a text; got NoneType'): findings(None)
    with pytest.raises(ECGError, match='2 reports said, 1 wanted'): label_f1(['a', 'b'], ['c'])

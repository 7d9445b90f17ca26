"""Every guard, with the message it gives; names, sums and the one case each that must not be flagged."""
import itertools
import numpy as np
import pytest
from ecgnb.ecg import ECG
from ecgnb.hub import push_to_hub
from ecgnb.leads import INDEPENDENT, STANDARD, ECGError, derive, findings, guard, lead_name, lead_names, likely_swap, misread, residual
from ecgnb.recipes import build
from ecgnb.registry import from_config
from ecgnb.synth import synth

E = synth(seed=3, seconds=10, fs=500, code='NORM')


def but(change):
    x = E.signal.copy(); change(x)
    return E.but(x)


def swap(x, a, b): i, j = E.leads.index(a), E.leads.index(b); x[[i, j]] = x[[j, i]]


def kinds(e, **k): return [f.kind for f in findings(e, **k)]


def test_a_right_ecg_has_no_findings(): assert kinds(E, seconds=10) == [] and guard(E) is E


def test_order_names_the_pair_and_what_to_type():
    e = but(lambda x: swap(x, 'aVR', 'aVL'))
    with pytest.raises(ECGError, match=r"record .*: lead algebra residual \d\.\d\d, wanted under 0.2: aVR and aVL look exchanged; give the names in the order "
                                       r"in which the file holds the leads, such as leads='I,II,III,aVL,aVR,aVF,V1,V2,V3,V4,V5,V6'"): guard(e)


def test_order_names_a_reversed_lead():
    e = but(lambda x: x.__setitem__(3, -x[3]))
    with pytest.raises(ECGError, match='aVR looks reversed'): guard(e)


@pytest.mark.parametrize('factor,unit', [(1000, 'uV'), (1e-3, 'V')])
def test_units_name_the_unit(factor, unit):
    with pytest.raises(ECGError, match=rf"99 % of the samples lie within .* mV, wanted 0.02 to 20: the file is probably in {unit}; state its unit"): guard(E.but(E.signal*factor))


def test_nan_flat_short_and_clipped_are_findings_not_refusals():
    cases = {'nan': (lambda x: x.__setitem__((slice(6, 7), slice(0, 500)), np.nan), 'not recorded in part: V1 \\(10%\\)'),
             'flat': (lambda x: x.__setitem__(7, 0), 'flat: V2'),
             'clipped': (lambda x: x.__setitem__(10, np.minimum(x[10], np.quantile(x[10], .93))), 'stays at its highest or lowest value: V5')}
    for kind, (change, said) in cases.items():
        e = but(change)
        found = {f.kind: f.text for f in findings(e)}
        assert set(found) == {kind} and guard(e) is e
        with pytest.raises(ECGError, match=said): raise ECGError(found[kind])
    assert [f.text for f in findings(E.crop(0, 4), seconds=10)] == [f"record {E.meta['record']}: 4 s, wanted 10 s"]


def test_a_flat_limb_lead_is_flat_not_out_of_order():
    for lead in range(6): assert kinds(but(lambda x: x.__setitem__(lead, 0))) == ['flat']


@pytest.mark.parametrize('pair', [p for p in itertools.combinations(STANDARD[:6], 2) if set(p) != {'III', 'aVF'}])
def test_exchanged_limb_leads_are_found(pair):
    e = but(lambda x: swap(x, *pair))
    assert [f.kind for f in misread(e)] == ['order'] and residual(e.signal, e.leads) > .2
    assert residual(E.signal, E.leads) < 1e-6


def test_likely_swap_mends_what_it_names():
    e = but(lambda x: swap(x, 'II', 'aVL')); a, b = likely_swap(e.signal, e.leads)
    x = e.signal.copy(); i, j = e.leads.index(a), e.leads.index(b); x[[i, j]] = x[[j, i]]
    assert residual(x, e.leads) < .2


def test_eight_leads_make_twelve_exactly():
    eight = E.pick(INDEPENDENT)
    np.testing.assert_allclose(derive(eight.signal, eight.leads), E.signal, atol=1e-5)
    assert eight.pick(STANDARD).leads == STANDARD


@pytest.mark.parametrize('text,name', [('AVR', 'aVR'), ('lead v3', 'V3'), ('MDC_ECG_LEAD_II', 'II'), (' avf ', 'aVF'), ('I (Einthoven)', 'I')])
def test_names(text, name): assert lead_name(text) == name


@pytest.mark.parametrize('text', ['-aVR', 'aVX', '', 'V10', 'lead'])
def test_other_names_are_refused(text):
    with pytest.raises(ECGError, match='unknown lead'): lead_name(text)


def test_no_leads_and_leads_named_twice_are_refused():
    with pytest.raises(ECGError, match='no leads are named'): lead_names('')
    with pytest.raises(ECGError, match='named twice'): ECG(np.zeros((2, 9)), 500, ('II', 'ii'))


def test_push_to_hub_uploads_a_whole_checkpoint(monkeypatch):
    "The network's edge is replaced; what would be sent is looked at."
    sent = {}
    class Api:
        def create_repo(self, repo, private, exist_ok): sent.update(repo=repo, private=private)
        def upload_folder(self, repo_id, folder_path, commit_message):
            import pathlib; sent.update(files={p.name: p.stat().st_size for p in pathlib.Path(folder_path).iterdir()}, card=(pathlib.Path(folder_path)/'README.md').read_text())
            return 'commit'
    monkeypatch.setattr('huggingface_hub.HfApi', Api)
    model = from_config(build('tiny', 'model.encoder.depth=1')['model'])
    assert push_to_hub(model, 'someone/tiny', notes='A test.') == 'commit'
    assert sent['repo'] == 'someone/tiny' and sent['private'] and set(sent['files']) == {'config.json', 'model.safetensors', 'README.md'}
    assert 'reads: 10 s at 100 Hz, in mV' in sent['card'] and sent['card'].startswith('---')

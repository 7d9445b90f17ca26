"""The preparation of ECG-FM, on the ten recordings of its tutorial: what its own pipeline wrote is what ours makes."""
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from ecgnb.batch import codes, collate, known_only, to_mv
from ecgnb.ecg import ECG, moments
from ecgnb.io_array import read_array
from ecgnb.leads import STANDARD, ECGError
from ecgnb.loader import loader
from ecgnb.prepare import prepare
from ecgnb.records import Source
from ecgnb.representations.signal import Signal, standardised


@pytest.fixture(scope='module')
def folder(data):
    path = data / 'code15/ecg_fm_tutorial'
    if not path.is_dir(): pytest.skip(f'no {path}: the recordings of the tutorial of ECG-FM')
    return path


def feats(file):
    from scipy.io import loadmat
    return loadmat(file)['feats']


@dataclass(eq=False, repr=False, kw_only=True)
class Tutorial(Source):
    "The ten recordings of CODE-15 % in the tutorial; not registered."
    root: str = ''
    channels: tuple = ()    # kept; () = all

    config = property(lambda s: dict(source='tutorial', channels=list(s.channels)))

    @cached_property
    def frame(self):
        meta = pd.read_csv(Path(self.root) / 'meta.csv')
        return pd.DataFrame(dict(record=meta['save_file'].str.removesuffix('.mat'), patient=meta['patient_id'], fold=0, labels=None))

    def read(self, i):
        e = read_array(Path(self.root) / 'org' / f"{self.frame['record'][i]}.mat", 400, 'mV', STANDARD, key='feats')
        return e.pick(self.channels) if self.channels else e


@pytest.fixture(scope='module')
def made(folder, tmp_path_factory):
    "The store of the tutorial as ECG-FM prepares: 5 s at 500 Hz by linear interpolation, the rest left out."
    src = Tutorial(root=str(folder))
    return prepare(src, tmp_path_factory.mktemp('ecg_fm') / 's', fs=500, seconds=5, resample='linear', progress=False)


def test_every_recording_is_the_preprocessed_one(folder):
    far = 0.
    for e in Tutorial(root=str(folder)):
        ours, theirs = standardised(e.resample(500, 'linear')), feats(folder / 'preprocessed' / f"{e.meta['record']}.mat")
        assert ours.shape == theirs.shape == (12, int(len(e)*500/400)) and ours.dtype == np.float64
        far = max(far, np.abs(ours - theirs).max())
    assert far < 1e-6, far      # 4.9e-7 measured: signals are kept in float32


def test_every_segment_is_theirs(folder):
    files = []
    for e in Tutorial(root=str(folder)):
        z = standardised(e.resample(500, 'linear'))
        for k in range(z.shape[1]//2500):
            files.append(f"{e.meta['record']}_{k}.mat")
            assert np.abs(z[:, 2500*k:2500*(k + 1)] - feats(folder / 'segmented' / files[-1])).max() < 1e-6
    assert sorted(files) == sorted(f.name for f in (folder / 'segmented').glob('*.mat')) and len(files) == 14


def test_store_loader_and_representation_give_their_segments(folder, made):
    b = next(iter(loader(made, batch_size=len(made), shuffle=False)))
    z = Signal(fs=500., length=2500, scope='recording').eval()(b)
    assert len(made) == 14 and z['signal'].dtype == torch.float32
    for k, (record, start) in enumerate(zip(made.frame['record'], made.frame['start'])):
        theirs = feats(folder / 'segmented' / f'{record}_{int(start//5)}.mat')
        step = .5*b['scale'][k]/b['recording'][k, :, 1]         # half a step of the 16 bits, in standard deviations
        far = np.abs(z['signal'][k].double().numpy() - theirs).max(1)
        assert (far <= step.numpy()*1.01 + 1e-6).all() and far.max() < 1.6e-4, far.max()     # 1.49e-4 measured
    torch.testing.assert_close(Signal(fs=500., length=2500, scope='recording').eval().decode(z['signal'], z), to_mv(b)['signal'], atol=2e-6, rtol=0)


def test_means_and_spreads_are_those_of_the_whole_recording(folder, made):
    meta = pd.read_csv(folder / 'meta.csv').set_index('save_file')
    for record, both in zip(made.frame['record'], made.stats(range(len(made))).numpy()):
        from scipy.io import loadmat
        m = loadmat(folder / 'preprocessed' / f'{record}.mat')
        assert np.allclose(both, np.concatenate([m['mean'], m['std']], 1), rtol=1e-6, atol=1e-7)
        raw = meta.loc[f'{record}.mat', [f'mean_{c}' for c in range(12)]].to_numpy(float)
        assert np.abs(both[:, 0] - raw).max() < 5e-3              # that of the raw recording, but for its ends


def test_a_window_alone_is_normalised_as_in_its_batch(made):
    "What a figure or a chat collates: an ECG of the store, or one cut from a whole recording, brings the recording's values."
    b = collate([made[3], made[4]])
    whole = loader(made, batch_size=len(made), shuffle=False, unit='mV')[0]
    assert torch.equal(b['recording'], whole['recording'][3:5]) and torch.equal(b['patient'], whole['patient'][3:5])
    assert torch.equal(collate([made[3].pick(['II', 'V1'])])['recording'][0], b['recording'][0, [1, 6]])
    e = ECG(np.arange(40.).reshape(2, 20), 10, ('I', 'II'))
    assert np.array_equal(e.crop(1, .5).crop(.1).recording, np.float32(moments(e.signal)))
    assert np.array_equal(e.crop(1).but(e.signal[:, :3]).recording, np.float32(moments(e.signal[:, :3])))
    assert e.crop(1).filter(high=2.).meta.get('recording') is None and e.crop(1).resample(5).meta.get('recording') is None


def test_missing_leads_are_refused_or_not_recorded(folder, tmp_path):
    few = dict(fs=500, seconds=5, resample='linear', progress=False)
    derived = prepare(Tutorial(root=str(folder), channels=('I', 'II', *STANDARD[6:])), tmp_path / 'd', **few)
    assert derived.frame['complete'].all() and len(derived) == 14
    some = Tutorial(root=str(folder), channels=('I', 'II', 'V5'))
    with pytest.raises(ECGError, match='lead V1 is not among I, II, V5'): prepare(some, tmp_path / 'r', **few)
    s = prepare(some, tmp_path / 'k', missing='keep', **few)
    b = loader(s, batch_size=14, shuffle=False)[0]
    there = [c for c, n in enumerate(STANDARD) if n in (*STANDARD[:6], 'V5')]
    assert torch.equal(b['valid'].all(-1), b['valid'].any(-1)) and b['valid'][0, :, 0].nonzero().flatten().tolist() == there
    z = Signal(fs=500., length=2500, scope='recording').eval()(b)['signal']
    gone = [c for c in range(12) if c not in there]
    assert not z[:, gone].any() and not b['recording'][:, gone].any() and torch.equal(b['recording'][:, there], torch.from_numpy(derived.stats(range(14)).numpy()[:, there]))
    with pytest.raises(ECGError, match="missing='zero'; wanted 'refuse' or 'keep'"): prepare(some, tmp_path / 'z', missing='zero', **few)


# ---- contracts of the parts

def test_linear_interpolation():
    e = ECG([[0., 1, 2, 3, 4], [0, 1, np.nan, 3, 4]], 100, ('I', 'II'))
    up = e.resample(200, 'linear').signal
    assert np.allclose(up[0], np.arange(10)*4/9) and np.flatnonzero(np.isnan(up[1])).tolist() == [3, 4, 5, 6]
    down = e.resample(50, 'linear').signal
    assert down.shape == (2, 2) and down[0].tolist() == [0, 4]
    assert e.resample(100, 'linear') is e
    with pytest.raises(ECGError, match="how='cubic'; wanted 'polyphase' or 'linear'"): e.resample(200, 'cubic')
    with pytest.raises(ECGError, match='leave none'): e.crop(0, .01).resample(50, 'linear')


def test_gaps_do_not_count_and_constant_leads_are_zero():
    x = np.random.default_rng(0).standard_normal((3, 400)); x[1] = .25; x[2, :100] = np.nan
    e = ECG(x, 100, ('I', 'II', 'V1'))
    assert np.allclose(e.recording, [[x[0].mean(), x[0].std()], [.25, 0], [np.nanmean(x[2]), np.nanstd(x[2])]], atol=1e-6)
    r = Signal(leads='I,II,V1', fs=100., length=100, scope='recording').eval()
    z = r(collate([e.crop(k) if k == 3 else e.crop(k, 1) for k in range(4)]))
    want = standardised(e).reshape(3, 4, 100).swapaxes(0, 1)
    assert np.abs(z['signal'].numpy() - np.nan_to_num(want)).max() < 1e-6 and not z['signal'][:, 1].any() and not z['signal'][0, 2].any()
    assert np.array_equal(moments(np.full((1, 3), np.nan)), [[0, 0]]) and np.isnan(want[0, 2]).all() and not want[:, 1].any()


def test_what_is_hidden_does_not_leak_through_the_recording():
    g = torch.Generator().manual_seed(0)
    x, known = torch.randn(2, 2, 50, generator=g), torch.rand(2, 2, 50, generator=g) < .5
    r = Signal(leads='I,II', length=50, scope='recording').eval()
    a = known_only(r, {'signal': x, 'recording': torch.ones(2, 2, 2)}, known)
    b = known_only(r, {'signal': x.masked_fill(~known, 99.), 'recording': torch.full((2, 2, 2), 7.)}, known)
    assert all(torch.equal(a[k], b[k]) for k in ('signal', 'shift', 'gain', 'recording'))
    window = known_only(Signal(leads='I,II', length=50).eval(), {'signal': x}, known)
    torch.testing.assert_close(a['signal'], window['signal'], atol=1e-5, rtol=0)


def test_a_batch_without_the_recording_is_refused():
    b = {'signal': torch.randn(1, 12, 2500)}
    with pytest.raises(ECGError, match="no 'recording'.*ecgnb.loader.*scope='lead'"): Signal(scope='recording')(b)
    with pytest.raises(ECGError, match="scope is 'recording' with norm='minmax'; wanted norm='zscore'"): Signal(scope='recording', norm='minmax')


def test_patients_have_one_code_everywhere(made):
    assert codes(['185323', 'ä', '185323']).tolist() == [-8473974160748534674, 4152366542966443504, -8473974160748534674]
    with_name = ECG(np.ones((1, 5)), 10, ('I',), {'patient': made.frame['patient'][0]})
    b = loader(made, batch_size=14, shuffle=False)[0]
    assert collate([with_name])['patient'].item() == b['patient'][0].item() and b['patient'].dtype == torch.int64
    assert len(set(b['patient'].tolist())) == made.frame['patient'].nunique() == 10
    halves = [loader(made, batch_size=14, rank=k, world=2)[0] for k in (0, 1)]
    assert all(torch.equal(torch.cat([h[k] for h in halves]), loader(made, batch_size=14)[0][k]) for k in ('patient', 'recording'))
    assert 'patient' not in collate([with_name, ECG(np.ones((1, 5)), 10, ('I',))])

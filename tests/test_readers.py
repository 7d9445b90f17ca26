"""Readers: known values, real files, damaged files. Only an ECG or an ECGError may come out."""
import os
import shutil
import struct
import warnings
from pathlib import Path

import h5py
import numpy as np
import pydicom
import pydicom.data
import pytest
import wfdb
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy.io import savemat

from ecgnb.ecg import ECG
from ecgnb.io_array import MOST, read_array, to_mv
from ecgnb.io_dicom import read_dicom
from ecgnb.io_wfdb import read_header, read_wfdb
from ecgnb.leads import STANDARD, ECGError, residual

DICOM = pydicom.data.get_testdata_file('waveform_ecg.dcm')
FUZZ = settings(max_examples=60, deadline=5000, derandomize=True, database=None,
                suppress_health_check=list(HealthCheck))
pytestmark = pytest.mark.filterwarnings('ignore')


def data(name, *inside):
    "A folder of the real data, or a skip that says where it was looked for."
    tries = [Path(os.environ['ECGNB_DATA'])] if 'ECGNB_DATA' in os.environ else [p/'shared'/'data' for p in Path(__file__).resolve().parents]
    for root in tries:
        if (root/name).is_dir(): return root.joinpath(name, *inside)
    pytest.skip(f"real data {name} in neither $ECGNB_DATA nor a shared/data above {Path(__file__).parent}")


@pytest.fixture(scope='module')
def mv():
    "(T,12) mV, T = 1200: smooth, with different sizes and offsets."
    t = np.arange(1200)[:, None]/500
    return np.sin(2*np.pi*(1 + np.arange(12)/6)*t) * np.linspace(.2, 1.5, 12) + np.linspace(-.3, .3, 12)


def wrsamp(folder, name, x, leads=STANDARD, fs=500, fmt='16', gain=1000., base=0, units='mV', **k):
    n = x.shape[1]
    many = lambda v: list(v) if isinstance(v, (list, tuple)) else [v]*n
    wfdb.wrsamp(name, fs, many(units), list(leads), p_signal=x, fmt=many(fmt), adc_gain=many(gain), baseline=many(base),
                write_dir=str(folder), **k)
    return folder/name


# ---- WFDB: known values -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('fmt,gain', [('16', 1000.), ('212', 400.), ('80', 50.), ('24', 1e6), ('32', 1e8), ('508', 50.),
                                      ('516', 1000.), ('524', 1e6)])
def test_formats(tmp_path, mv, fmt, gain):
    e = read_wfdb(wrsamp(tmp_path, 'a', mv, fmt=fmt, gain=gain))
    assert e.leads == STANDARD and e.fs == 500 and e.signal.dtype == np.float32
    assert np.array_equal(e.signal, (np.round(mv*gain)/gain).T.astype(np.float32))


@pytest.mark.parametrize('fmt,encode', [('61', lambda d: d.astype('>i2')),
                                        ('160', lambda d: (d.astype(np.int32) + 32768).astype('<u2')), ('8', lambda d: np.diff(d, axis=0, prepend=d[:1]).astype('i1'))])
def test_formats_that_the_library_does_not_write(tmp_path, mv, fmt, encode):
    e = read_wfdb(p := wrsamp(tmp_path, 'a', mv))
    hea = p.with_suffix('.hea')
    hea.write_text(hea.read_text().replace('a.dat 16 ', f'a.dat {fmt} '))
    encode(np.fromfile(f'{p}.dat', '<i2').reshape(-1, 12)).tofile(f'{p}.dat')
    assert read_wfdb(p) == e


@pytest.mark.parametrize('unit,factor', [('mV', 1), ('uV', 1000), ('V', .001), ('mv', 1), ('\u00b5V', 1000)])
def test_units_gains_and_baselines(tmp_path, mv, unit, factor):
    gains, bases = list(np.linspace(300, 2900, 12).round()/factor), [37*i - 200 for i in range(12)]
    p = wrsamp(tmp_path, 'a', mv*factor, gain=gains, base=bases, units='uV' if unit == '\u00b5V' else unit)
    if unit == '\u00b5V':
        hea = p.with_suffix('.hea')
        hea.write_bytes(hea.read_text().replace('/uV', '/\u00b5V').encode('latin-1'))
    e = read_wfdb(p)
    d = np.fromfile(f'{p}.dat', '<i2').reshape(-1, 12)
    h = read_header(f'{p}.hea')
    want = ((d - np.array(bases)) / np.array([c.gain for c in h.channels]) * to_mv(unit)).T
    assert np.array_equal(e.signal, want.astype(np.float32))
    assert np.abs(e.signal - mv.T).max() < 1/300


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(-2**15 + 1, 2**15 - 1), st.integers(-2**16, 2**16), st.floats(2**-10, 2**20, width=32))
def test_float32_is_exact(d, base, gain):
    "The float32 fast path gives the bits of float64 rounded at the end."
    assert (np.float32(d) - np.float32(base))/np.float32(gain) == np.float32((np.float64(d) - base)/np.float64(gain))


def test_missing_samples_are_nan(tmp_path, mv):
    for fmt, gain in (('16', 1000.), ('212', 400.), ('24', 1e6), ('32', 1e6)):
        x = mv.copy()
        x[100:150, 3] = x[7, 0] = np.nan
        e = read_wfdb(wrsamp(tmp_path, f'n{fmt}', x, fmt=fmt, gain=gain))
        assert np.array_equal(np.isnan(e.signal), np.isnan(x.T))


def test_leads_by_name(tmp_path, mv):
    order = ['V6', 'avr', 'Lead I', 'ii', 'V1']
    p = wrsamp(tmp_path, 'a', mv[:, :5], order)
    e = read_wfdb(p)
    assert e.leads == ('V6', 'aVR', 'I', 'II', 'V1')
    f = read_wfdb(p, leads='II,V6')
    assert f.leads == ('II', 'V6') and np.array_equal(f['II'], e['II']) and np.array_equal(f['V6'], e['V6'])
    with pytest.raises(ECGError, match='V3'): read_wfdb(p, leads='II,V3')


def test_other_channels_are_dropped_only_when_told(tmp_path, mv):
    p = wrsamp(tmp_path, 'a', mv[:, :3], ['MLII', 'V5', 'ABP'], units=['mV', 'mV', 'mmHg'])
    with pytest.raises(ECGError, match=r"MLII.*ABP.*leads='V5'"): read_wfdb(p)
    assert read_wfdb(p, leads='V5').leads == ('V5',)
    assert read_wfdb(p, leads='II,V5', rename={'MLII': 'II'}).leads == ('II', 'V5')
    with pytest.raises(ECGError, match='mmHg.*wanted one of V, mV, uV, nV'): read_wfdb(p, rename={'MLII': 'II', 'ABP': 'I'})


def test_several_signal_files(tmp_path, mv):
    "One file a lead, as in older releases; a subset reads only what it needs."
    p = wrsamp(tmp_path, 'a', mv[:, :3], ['I', 'II', 'III'])
    d = np.fromfile(f'{p}.dat', '<i2').reshape(-1, 3)
    lines = p.with_suffix('.hea').read_text().splitlines()
    for i in range(3):
        d[:, i].tofile(tmp_path/f'b{i}.dat')
        lines[i+1] = lines[i+1].replace('a.dat', f'b{i}.dat')
    (tmp_path/'b.hea').write_text('\n'.join(lines).replace('a 3', 'b 3', 1))
    assert read_wfdb(tmp_path/'b') == read_wfdb(p)
    (tmp_path/'b0.dat').unlink()
    assert read_wfdb(tmp_path/'b', leads='III,II').leads == ('III', 'II')
    with pytest.raises(ECGError, match='b0.dat.*no such file.*b.hea names it'): read_wfdb(tmp_path/'b')


def test_mat_with_offset(tmp_path, mv):
    "The challenges' .mat: MATLAB 4, 24 bytes of header, then the frames."
    d = np.round(mv*1000).astype('<i2')
    savemat(tmp_path/'a.mat', {'val': d.T}, format='4')
    assert (tmp_path/'a.mat').stat().st_size == 24 + d.nbytes
    lines = ['a 12 500 1200 12-May-2020 12:33:59'] + [f'a.mat 16+24 1000/mV 16 0 {d[0, i]} {d[:, i].sum(dtype=np.int16)} 0 {n}' for i, n in enumerate(STANDARD)]
    (tmp_path/'a.hea').write_text('\n'.join(lines + ['#Age: 49', '#Sex: Female', '#Dx: 426783006, 59118001',
                                                     '#Rx: Unknown']))
    e = read_wfdb(tmp_path/'a.mat')
    assert np.array_equal(e.signal, (d.T/1000).astype(np.float32))
    assert (e.meta['age'], e.meta['sex'], e.meta['labels']) == (49, 'F', ['426783006', '59118001'])
    assert read_array(tmp_path/'a.mat', 500, 'uV', STANDARD, key='val').signal == pytest.approx(e.signal, abs=1e-6)


def test_comments_that_say_nothing(tmp_path, mv):
    m = read_wfdb(wrsamp(tmp_path, 'a', mv, comments=['Age: NaN', 'Sex: Unknown', 'Dx: Unknown'])).meta
    assert 'age' not in m and 'sex' not in m and m['labels'] == [] and m['record'] == 'a'


def test_samples_per_frame(tmp_path, mv):
    "A rate that is a multiple of the frame rate is read; leads of different rates are refused, each rate can be read alone."
    x = [mv[:, 0], mv[:, 1], mv[:600, 2]]
    wfdb.wrsamp('a', 250, ['mV']*3, ['I', 'II', 'V1'], e_p_signal=x, samps_per_frame=[2, 2, 1], fmt=['16']*3,
                adc_gain=[1000.]*3, baseline=[0]*3, write_dir=str(tmp_path))
    with pytest.raises(ECGError, match="I 500 Hz, II 500 Hz, V1 250 Hz.*leads='I,II'"): read_wfdb(tmp_path/'a')
    e, f = read_wfdb(tmp_path/'a', leads='I,II'), read_wfdb(tmp_path/'a', leads='V1')
    assert e.fs == 500 and f.fs == 250 and np.abs(e.signal - mv.T[:2]).max() < .00051 and np.abs(f.signal - mv.T[2:3, :600]).max() < .00051
    wfdb.wrsamp('b', 250, ['mV']*2, ['I', 'II'], e_p_signal=x[:2], samps_per_frame=[2, 2], fmt=['16']*2,
                adc_gain=[1000.]*2, baseline=[0]*2, write_dir=str(tmp_path))
    assert np.array_equal(read_wfdb(tmp_path/'b').signal, e.signal) and read_wfdb(tmp_path/'b').fs == 500


def test_skew(tmp_path, mv):
    p = wrsamp(tmp_path, 'a', mv[:, :2], ['I', 'II'])
    hea = p.with_suffix('.hea')
    hea.write_text(hea.read_text().replace('a.dat 16 ', 'a.dat 16:3 ', 1))
    e = read_wfdb(p)
    assert np.array_equal(e['I'][:-3], np.round(mv[3:,
                                                   0]*1000).astype(np.float32)/np.float32(1000)) and np.isnan(e['I'][-3:]).all()


def test_segments_fixed_and_variable(tmp_path, mv):
    a = read_wfdb(wrsamp(tmp_path, 's1', mv[:700, :3], ['I', 'II', 'V1']))
    b = read_wfdb(wrsamp(tmp_path, 's2', mv[700:, :3], ['I', 'II', 'V1']))
    (tmp_path/'f.hea').write_text('f/2 3 500 1200\ns1 700\ns2 500\n')
    assert np.array_equal(read_wfdb(tmp_path/'f').signal, np.concatenate([a.signal, b.signal], 1))
    wrsamp(tmp_path, 's3', mv[:500, [2, 4]], ['V1', 'ABP'], units=['mV', 'mmHg'])
    (tmp_path/'lay.hea').write_text('lay 3 500 0\n~ 0 1000/mV 0 0 0 0 0 I\n~ 0 1000/mV 0 0 0 0 0 II\n~ 0 1000/mV 0 0 0 0 0 V1\n')
    (tmp_path/'v.hea').write_text('v/4 3 500 1300\nlay 0\ns1 700\n~ 100\ns3 500\n')
    v = read_wfdb(tmp_path/'v')
    assert v.leads == ('I', 'II', 'V1') and np.array_equal(v.signal[:, :700],
                                                           a.signal) and np.isnan(v.signal[:, 700:800]).all()
    assert np.isnan(v.signal[:2, 800:]).all() and np.abs(v['V1'][800:] - mv[:500, 2]).max() < .00051
    ours, lib = read_wfdb(tmp_path/'f').signal, wfdb.rdrecord(str(tmp_path/'f')).p_signal.T
    assert np.array_equal(ours, lib.astype(np.float32))


@pytest.mark.parametrize('master,why', [('v/2 3 500 1300\ns1 700\ns2 500\n', '1200 samples in all'),
                                        ('v/2 3 250 1200\ns1 700\ns2 500\n', 'at 500 Hz'),
                                        ('v/2 3 500 1300\ns1 700\ns2 600\n',
                                         '500 samples'), ('v/1 3 500 1200\nv 1200\n',
                                                          'multi-segment'), ('v/1 3 500 700\n../s1 700\n',
                                                                             'plain name'),
                                        ('v/2 3 500\ns1 700\n~ 99999999999999\n',
                                         'at most'), ('v/1 3 500 700\nnone 700\n',
                                                      'no such file'), ('v/3 3 500 700\ns1 700\n', 'lines'),
                                        ('v/1 3 500 700\n~ 700\n', 'segments'), ('v/0 3 500 700\n', 'lines')])
def test_bad_segments(tmp_path, mv, master, why):
    wrsamp(tmp_path, 's1', mv[:700, :3], ['I', 'II', 'V1']), wrsamp(tmp_path, 's2', mv[700:, :3], ['I', 'II', 'V1'])
    (tmp_path/'v.hea').write_text(master)
    with pytest.raises(ECGError, match=why): read_wfdb(tmp_path/'v')


# ---- WFDB: damage -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('old,new,why', [
    ('a.dat', '/etc/passwd', 'plain name'), ('a.dat', '../a.dat', 'plain name'), ('a.dat', 's3://b/a.dat', 'plain name'), ('a.dat', '..', 'plain name'), ('a.dat', 'b.dat', 'no such file'),
    ('/mV', '/adu', 'wanted one of V, mV, uV, nV'), ('/mV', '/MV', 'wanted one of V'), ('1000.0(0)/mV', '0/mV', 'not calibrated'), ('1000.0(0)/mV', '1e400/mV', 'not calibrated'),
    ('1000.0(0)/mV', '1e-300/mV', 'finite'), (' 500 1200', '', 'rate in Hz'), (' 500 1200', ' 0 1200',
                                                                               'rate in Hz'), (' 500 1200', ' 5.0.0 1200', 'rate'), (' 1200', ' 1201', 'truncated'),
    (' 1200', ' 999999999999999', 'truncated'), (' 1200', ' 1199', 'checksum'), ('a 12', 'a 11', 'lines'), ('a 12', 'a 999999', 'lines'), ('a 12', 'a 0', 'lines'), (' V6', ' V5', 'two channels named V5'),
    (' V6', ' Q9', 'Q9'), (' V6', '', 'leads'), (' 16 1000', ' 17 1000', 'format'), (' 16 1000', ' 16x0 1000', 'samples per frame'), (' 16 1000', ' 16x999999 1000', 'truncated'),
    (' 16 1000', ' 16:999999999 1000', 'skew'), (' 16 1000', ' 16+99999999 1000', 'truncated'), (' 16 1000', ' 516 1000', 'format 516'), (' 16 1000', ' sixteen 1000', 'signal line')])
def test_bad_headers(tmp_path, mv, old, new, why):
    hea = wrsamp(tmp_path, 'a', mv).with_suffix('.hea')
    text = hea.read_text()
    assert old in text
    hea.write_text(text.replace(old, new))
    with pytest.raises(ECGError, match=why) as err: read_wfdb(hea)
    assert str(tmp_path) in str(err.value) and 'wanted' in str(err.value)


def test_bad_paths(tmp_path, mv):
    p = wrsamp(tmp_path, 'a', mv)
    for read in (read_wfdb, read_dicom, lambda q: read_array(q, 500, 'mV', STANDARD)):
        for q, why in ((tmp_path/'none', 'no such file'), (tmp_path/'no'/'file', 'no folder'),
                       ('https://x.org/a.npy', 'a URL'), ('s3://b/a', 'a URL'), ('simplecache::/tmp/a', 'a URL'),
                       ('a\0b', 'wanted a file'), (None, 'NoneType'), (7, 'int')):
            with pytest.raises(ECGError, match=why): read(q)
    for name, read in (('d.hea', read_wfdb), ('d.dcm', read_dicom), ('d.npy', lambda q: read_array(q, 500, 'mV', 'I'))):
        (tmp_path/name).mkdir()
        with pytest.raises(ECGError, match='a folder'): read(tmp_path/name)
        (tmp_path/f'e{name}').touch()
        with pytest.raises(ECGError, match='0 bytes'): read(tmp_path/f'e{name}')
        os.mkfifo(tmp_path/f'f{name}')
        with pytest.raises(ECGError, match='a pipe or a device'): read(tmp_path/f'f{name}')
    (tmp_path/'a.dat').unlink()
    with pytest.raises(ECGError, match='a.dat.*no such file.*a.hea names it'): read_wfdb(p)
    (tmp_path/'a.dat').mkdir()
    with pytest.raises(ECGError, match='a folder'): read_wfdb(p)
    (tmp_path/'a.dat').rmdir(), (tmp_path/'a.dat').touch()
    with pytest.raises(ECGError, match='0 bytes'): read_wfdb(p)


def test_checksum_can_be_waived(tmp_path, mv):
    p = wrsamp(tmp_path, 'a', mv)
    dat = bytearray((tmp_path/'a.dat').read_bytes())
    dat[1000] ^= 1
    (tmp_path/'a.dat').write_bytes(dat)
    with pytest.raises(ECGError, match='pass checksum=False'): read_wfdb(p)
    assert read_wfdb(p, checksum=False).leads == STANDARD


# ---- real files -------------------------------------------------------------------------------------------------------------------

def test_real_ptb_xl():
    "Every file of a sample of PTB-XL: the library's samples, bit for bit."
    root = data('ptb_xl')
    hr, lr = (sorted(root.glob(f'records{n}/*/*.hea')) for n in (500, 100))
    assert len(hr) > 400 and len(lr) > 100
    for p in hr[::12] + lr[::12]:
        e, r = read_wfdb(p), wfdb.rdrecord(str(p)[:-4])
        assert e.leads == STANDARD and e.fs == r.fs and e.meta['record'] == p.stem
        assert np.array_equal(e.signal, r.p_signal.T.astype(np.float32), equal_nan=True)
    for p in hr + lr: assert residual(read_wfdb(p).signal, STANDARD) < .2


@pytest.mark.parametrize('name,fs', [(('cinc2021',), 500), (('code15', 'wfdb'), 400), (('ludb',), 500)])
def test_real_others(name, fs):
    for p in sorted(data(*name).glob('*.hea')):
        e, r = read_wfdb(p), wfdb.rdrecord(str(p)[:-4])
        assert e.leads == STANDARD and e.fs == fs and (e.meta.get('age', 0) > 0) is (p.stem != 'E00001')
        assert np.array_equal(e.signal, r.p_signal.T.astype(np.float32), equal_nan=True)
        if name == ('cinc2021',): assert e.meta['labels'] and all(c.isdigit() for c in e.meta['labels']) and e.meta['sex'] in 'FM'


# ---- DICOM ------------------------------------------------------------------------------------------------------------------------

def test_dicom_values():
    e, ds = read_dicom(DICOM), pydicom.dcmread(DICOM)
    raw = np.frombuffer(ds.WaveformSequence[0].WaveformData, '<i2').reshape(-1, 12).T
    assert e.leads == STANDARD and e.fs == 1000 and np.array_equal(e.signal,
                                                                   (raw*1.25*.001).astype(np.float32)) and residual(e.signal, e.leads) < .01
    assert (e.meta['patient'], e.meta['sex'], e.meta['age'], e.meta['group']) == ('642341', 'F', 42, 0)
    assert e.meta['groups'] == [('RHYTHM', 'ORIGINAL', 12, 10.),
                                ('MEDIAN BEAT', 'DERIVED', 12, 1.2)] and read_dicom(DICOM, group=1).seconds == 1.2


def changed(folder, change, **k):
    ds = pydicom.dcmread(DICOM)
    change(ds, ds.WaveformSequence[0], ds.WaveformSequence[0].ChannelDefinitionSequence)
    ds.save_as(folder/'c.dcm', **k)
    return folder/'c.dcm'


def test_dicom_scale(tmp_path):
    def change(ds, g, c):
        c[0].ChannelSensitivity, c[0].ChannelSensitivityCorrectionFactor, c[0].ChannelBaseline = 2.5, 2, 100           # uV
        c[1].ChannelSensitivityUnitsSequence[0].CodeValue = 'mV'
        del c[2].ChannelSensitivityCorrectionFactor, c[2].ChannelBaseline
        g.add_new('WaveformPaddingValue', 'OW', struct.pack('<h', -32768))
        d = np.frombuffer(g.WaveformData, '<i2').copy()
        d[12*500+3] = -32768
        g.WaveformData = d.tobytes()
    e, f = read_dicom(DICOM), read_dicom(changed(tmp_path, change))
    assert f['I'] == pytest.approx(e['I']*4 + .1, abs=1e-6) and f['II'] == pytest.approx(e['II']*1000, rel=1e-6) and np.array_equal(f['III'], e['III'])
    assert np.isnan(f['aVR'][500]) and np.isnan(f.signal).sum() == 1


def test_dicom_byte_order_and_bits(tmp_path):
    e = read_dicom(DICOM)
    def big(ds, g, c):
        for g in ds.WaveformSequence: g.WaveformData = np.frombuffer(g.WaveformData, '<i2').astype('>i2').tobytes()
        for t in [t for t in ds if t.tag.is_private]: del ds[t.tag]
    ds = pydicom.dcmread(DICOM)
    big(ds, None, None)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    pydicom.dcmwrite(tmp_path/'b.dcm', ds, implicit_vr=False, little_endian=False)
    assert read_dicom(tmp_path/'b.dcm') == e
    def bits(ds, g, c):
        g.WaveformBitsAllocated, g.WaveformSampleInterpretation = 32, 'SL'
        g.WaveformData = np.frombuffer(g.WaveformData, '<i2').astype('<i4').tobytes()
    assert read_dicom(changed(tmp_path, bits)) == e


def test_dicom_group_choice(tmp_path):
    def swap(ds, g, c): ds.WaveformSequence = list(ds.WaveformSequence)[::-1]
    def derived(ds, g, c): g.WaveformOriginality = 'DERIVED'
    assert read_dicom(changed(tmp_path, swap)) == read_dicom(DICOM) and read_dicom(tmp_path/'c.dcm').meta['group'] == 1
    with pytest.raises(ECGError, match='recorded, not derived.*group=0'): read_dicom(changed(tmp_path, derived))
    assert read_dicom(tmp_path/'c.dcm', group=0) == read_dicom(DICOM)


def set_(**fields):
    def change(ds, g, c):
        for k, v in fields.items(): setattr(c[0] if k.startswith('Channel') else g, k, v)
    return change


@pytest.mark.parametrize('change,why', [
    (lambda ds, g, c: ds.pop('WaveformSequence'), 'no waveform'), (lambda ds, g, c: g.pop('WaveformData'),
                                                                   'WaveformData: saw 0 bytes'), (lambda ds, g, c: c.pop(), '11, as there are'),
    (lambda ds, g, c: g.pop('SamplingFrequency'), 'SamplingFrequency'), (lambda ds, g,
                                                                         c: c[0].pop('ChannelSensitivity'), 'ChannelSensitivity'),
    (lambda ds, g, c: c[0].pop('ChannelSensitivityUnitsSequence'), 'unit'), (lambda ds, g,
                                                                             c: c[0].pop('ChannelSourceSequence'), 'ChannelSourceSequence'), (set_(ChannelSampleSkew='5'), 'Skew'),
    (set_(SamplingFrequency='0'), 'fs='), (set_(NumberOfWaveformSamples=10**9),
                                           'at most'), (set_(NumberOfWaveformSamples=9999),
                                                        'WaveformData'), (set_(WaveformSampleInterpretation='MB'),
                                                                          'linear'),
    (set_(ChannelSensitivity='0'), 'not 0'), (set_(ChannelSensitivity='1e300',
                                                   ChannelSensitivityCorrectionFactor='1e300'), 'Channel|finite|infinite')])
def test_dicom_damage(tmp_path, change, why):
    with pytest.raises(ECGError, match=why): read_dicom(changed(tmp_path, change))


def test_dicom_deflated_is_refused(tmp_path):
    ds = pydicom.dcmread(DICOM)
    ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    ds.save_as(tmp_path/'d.dcm')
    with pytest.raises(ECGError, match='dcmconv'): read_dicom(tmp_path/'d.dcm')


# ---- arrays -----------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def files(tmp_path, mv):
    "The same ECG in uV in every format and orientation."
    x = (mv*1000).round(3)
    np.save(tmp_path/'a.npy', x), np.save(tmp_path/'b.npy', x.T), np.save(tmp_path/'f.npy',
                                                                          np.asfortranarray(x)), np.save(tmp_path/'be.npy', x.astype('>f8'))
    np.savez(tmp_path/'a.npz', ecg=x), np.savez_compressed(tmp_path/'b.npz', other=x[:5], ecg=x.T)
    savemat(tmp_path/'a.mat', {'val': x}), savemat(tmp_path/'b.mat', {'val': x.T, 'k': x[:3]},
                                                   do_compression=True), savemat(tmp_path/'c.mat', {'val': x.T}, format='4')
    np.savetxt(tmp_path/'a.csv', x, delimiter=','), np.savetxt(tmp_path/'b.csv', x.T, delimiter=';')
    np.savetxt(tmp_path/'c.csv', np.c_[np.arange(len(x)), x[:, ::-1]], delimiter=',',
               header='time,' + ','.join(STANDARD[::-1]), comments='')
    with h5py.File(tmp_path/'a.h5', 'w') as f: f['g/tracings'] = np.stack([x*0, x])
    with h5py.File(tmp_path/'d.mat', 'w',
                   userblock_size=512) as f:                                    # as MATLAB writes 7.3: dimensions reversed
        f['val'] = x.T
        f['val'].attrs['MATLAB_class'] = np.bytes_('double')
    return tmp_path


@pytest.mark.parametrize('name,k', [('a.npy', {}), ('b.npy', {}), ('f.npy', {}), ('be.npy', {}), ('a.npz', {}),
                                    ('b.npz', {'key': 'ecg'}), ('a.mat', {}), ('b.mat', {'key': 'val'}), ('c.mat', {}), ('d.mat', {}),
                                    ('a.csv', {}), ('b.csv', {'sep': ';'}), ('c.csv', {}), ('a.h5', {'row': 1}), ('a.h5', {'row': -1, 'key': 'g/tracings'})])
def test_array_values(files, mv, name, k):
    e = read_array(files/name, 500, 'uV', STANDARD, **k)
    assert e.leads == STANDARD and e.fs == 500
    assert np.array_equal(e.signal, ((mv*1000).round(3)*.001).T.astype(np.float32))


@pytest.mark.parametrize('x', [np.float16, np.float32, np.int16, np.int32, np.uint8, '>i2'])
def test_array_types(tmp_path, x):
    a = np.arange(24).reshape(2, 12).astype(x)
    np.save(tmp_path/'a.npy', a)
    assert np.array_equal(read_array(tmp_path/'a.npy', 250, 'mV', 'I,II').signal, np.arange(24).reshape(2, 12))


def test_array_errors(files, tmp_path):
    read = lambda name, fs=500, unit='uV', leads=STANDARD, **k: read_array(files/name, fs, unit, leads, **k)
    with pytest.raises(ECGError, match='wanted one of V, mV, uV, nV'): read('a.npy', unit='counts')
    with pytest.raises(ECGError, match='unit'): read('a.npy', unit=None)
    for fs in (0, -1, float('nan'), float('inf'), None, 'fast'):
        with pytest.raises(ECGError, match='fs='): read('a.npy', fs=fs)
    for leads in ('I,II', 'I,I', 'Q', '', None, 7):
        with pytest.raises(ECGError): read('a.npy', leads=leads)
    with pytest.raises(ECGError, match=r"ecg \(?of \d+|key='other'"): read('b.npz')
    with pytest.raises(ECGError, match="named 'no'"): read('b.npz', key='no')
    with pytest.raises(ECGError, match='row=0'): read('a.h5')
    for row in (2, -3, 1.5, 'x'):
        with pytest.raises(ECGError, match='row'): read('a.h5', row=row)
    np.save(tmp_path/'sq.npy', np.eye(12))
    with pytest.raises(ECGError, match="order='CT'"): read('sq.npy')
    assert read('sq.npy', order='TC').signal.shape == (12, 12)
    with pytest.raises(ECGError, match='order'): read('sq.npy', order='up')
    shutil.copy(files/'a.npy', tmp_path/'a.xyz')
    with pytest.raises(ECGError, match='suffix'): read('a.xyz')
    with pytest.raises(ECGError, match='most='): read('a.npy', most=100)
    for dtype in (complex, bool, 'U3', 'datetime64[s]', [('a', 'f4')]):
        np.save(tmp_path/'t.npy', np.zeros((12, 30), dtype))
        with pytest.raises(ECGError): read('t.npy')
    np.save(tmp_path/'inf.npy', np.full((12, 30), np.inf))
    with pytest.raises(ECGError, match='infinite'): read('inf.npy')
    for text in ('1,2\n3,x\n', '1,2\n3,4,5\n', 'I,V1\n1,2\n', 'I,I\n1,2\n', '1;2\n3;4\n', '\0\1\2', '"\n'):
        (tmp_path/'t.csv').write_text(text)
        with pytest.raises(ECGError): read('t.csv', leads='I,II')
    (tmp_path/'t.csv').write_text('I,II\n1,\n,4\n')
    assert np.isnan(read('t.csv', leads='I,II').signal).sum() == 2


class Bomb:
    def __reduce__(self): return os.mkdir, (os.environ['BOMB'],)


def test_no_pickle_is_opened(tmp_path, monkeypatch):
    monkeypatch.setenv('BOMB', str(tmp_path/'executed'))
    x = np.array([[Bomb()]*12]*30, dtype=object)
    np.save(tmp_path/'a.npy', x, allow_pickle=True), np.savez(tmp_path/'a.npz', ecg=x)
    shutil.copy(tmp_path/'a.npy', tmp_path/'b.npz'), shutil.copy(tmp_path/'a.npy', tmp_path/'a.mat')
    import pickle
    (tmp_path/'p.npy').write_bytes(pickle.dumps(Bomb()))
    for name in ('a.npy', 'a.npz', 'b.npz', 'a.mat', 'p.npy'):
        with pytest.raises(ECGError): read_array(tmp_path/name, 500, 'mV', STANDARD)
    assert not (tmp_path/'executed').exists()


def test_bombs_cost_nothing(tmp_path):
    "Headers that announce more than there is, and archives that unpack to more than was asked for, are refused within little memory."
    import resource
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.save(tmp_path/'a.npy', np.zeros((12, 1000)))
    (tmp_path/'b.npy').write_bytes((tmp_path/'a.npy').read_bytes().replace(b'(12, 1000), }      ',
                                                                           b'(12, 1000000000), }'))
    np.savez_compressed(tmp_path/'a.npz', ecg=np.zeros((12, 10**6)))
    savemat(tmp_path/'a.mat', {'val': np.zeros((12, 10**6))}, do_compression=True)
    with h5py.File(tmp_path/'a.h5', 'w') as f: f.create_dataset('x', (12, 10**10), 'f8', chunks=(12, 1000))
    for name, why in (('b.npy', 'truncated'), ('a.npz', 'at most'), ('a.mat', 'once inflated'), ('a.h5', 'at most')):
        with pytest.raises(ECGError, match=why): read_array(tmp_path/name, 500, 'mV', STANDARD, most=10**5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000                     # kB


def test_hdf5_stays_inside_the_file(tmp_path):
    x = np.zeros((12, 100))
    x.tofile(tmp_path/'raw.bin')
    with h5py.File(tmp_path/'other.h5', 'w') as f: f['x'] = x
    with h5py.File(tmp_path/'link.h5', 'w') as f: f['x'] = h5py.ExternalLink('other.h5', 'x')
    with h5py.File(tmp_path/'ext.h5', 'w') as f: f.create_dataset('x', (12, 100), 'f8',
                                                                  external=[(str(tmp_path/'raw.bin'), 0, x.nbytes)])
    layout = h5py.VirtualLayout((12, 100), 'f8')
    layout[:] = h5py.VirtualSource(str(tmp_path/'other.h5'), 'x', (12, 100))
    with h5py.File(tmp_path/'virt.h5', 'w') as f: f.create_virtual_dataset('x', layout)
    for name in ('link.h5', 'ext.h5', 'virt.h5'):
        with pytest.raises(ECGError): read_array(tmp_path/name, 500, 'mV', STANDARD)
        with pytest.raises(ECGError): read_array(tmp_path/name, 500, 'mV', STANDARD, key='x')


# ---- fuzzing: an ECG or an ECGError, nothing else ---------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def corpus(tmp_path_factory, mv):
    "folder, [(file to damage, reader)]"
    d = tmp_path_factory.mktemp('corpus')
    x = mv[:200].astype(np.float32)
    arr = lambda p: read_array(p, 500, 'mV', STANDARD)
    wrsamp(d, 'w16', mv[:200], comments=['Age: 50', 'Dx: 1,2']), wrsamp(d, 'w212', mv[:200], fmt='212', gain=400.)
    (d/'seg.hea').write_text('seg/3 12 500 500\nw16 200\n~ 100\nw16 200\n')
    np.save(d/'a.npy', x), np.savez(d/'a.npz', x=x), np.savetxt(d/'a.csv', x, delimiter=',', fmt='%.4f',
                                                                header=','.join(STANDARD), comments='')
    savemat(d/'v5.mat', {'val': x}, do_compression=True), savemat(d/'v5u.mat', {'val': x}), savemat(d/'v4.mat', {'val': x}, format='4')
    with h5py.File(d/'h.h5', 'w') as f: f.create_dataset('x', data=x, chunks=(50, 12), compression='gzip')
    ds = pydicom.dcmread(DICOM)
    for t in [t.tag for t in ds if t.tag.is_private]: del ds[t]
    del ds.WaveformAnnotationSequence
    g = ds.WaveformSequence[1]
    g.WaveformOriginality = 'ORIGINAL'
    g.NumberOfWaveformSamples, g.WaveformData = 100, g.WaveformData[:2400]
    ds.WaveformSequence = [g]
    ds.save_as(d/'a.dcm')
    readers = {'w16.hea': read_wfdb, 'w16.dat': read_wfdb, 'w212.hea': read_wfdb, 'w212.dat': read_wfdb,
               'seg.hea': read_wfdb, 'a.dcm': read_dicom,
               **dict.fromkeys(['a.npy', 'a.npz', 'a.csv', 'v5.mat', 'v5u.mat', 'v4.mat', 'h.h5'], arr)}
    for name, read in readers.items(): assert isinstance(read(d/name), ECG)
    return d, readers


NAMES = ['w16.hea', 'w16.dat', 'w212.hea', 'w212.dat', 'seg.hea', 'a.dcm', 'a.npy', 'a.npz', 'a.csv', 'v5.mat',
         'v5u.mat', 'v4.mat', 'h.h5']


def only_ecg_or_error(folder, name, read, content):
    path, whole = folder/name, (folder/name).read_bytes()
    try:
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: return read(path)
            except ECGError as err:
                assert 'wanted' in str(err) or 'record ' in str(err), err
    finally: path.write_bytes(whole)


@pytest.mark.parametrize('name', NAMES)
def test_truncated(corpus, name):
    folder, readers = corpus
    whole = (folder/name).read_bytes()
    for n in sorted({*range(0, min(len(whole), 160), 5), *range(0, len(whole), max(1, len(whole)//40)), len(whole) - 1,
                     len(whole) - 2}):
        only_ecg_or_error(folder, name, readers[name], whole[:n])


@pytest.mark.parametrize('name', NAMES)
def test_garbled(corpus, name):
    folder, readers = corpus
    whole = (folder/name).read_bytes()
    near = st.integers(0, min(len(whole) - 1, 700))
    flips = st.lists(st.tuples(near | st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=6)

    @FUZZ
    @given(flips)
    def run(flips):
        b = bytearray(whole)
        for at, value in flips: b[at] = value
        only_ecg_or_error(folder, name, readers[name], bytes(b))
    run()


@FUZZ
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode('latin-1')))
def test_any_text_is_a_header_or_an_error(tmp_path_factory, text):
    p = tmp_path_factory.getbasetemp()/'any.hea'
    p.write_bytes(text.encode('utf-8', 'surrogatepass') or b' ')
    try: read_header(p)
    except ECGError: pass


def test_most_is_a_sane_default(): assert MOST*4 < 2**28

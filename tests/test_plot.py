"The ECG paper measured on its artists: scale, leads by name, gaps, overlays, literal text, nothing left open."
import struct
import warnings
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from ecgnb.ecg import ECG
from ecgnb.leads import STANDARD, ECGError
from ecgnb.plot import chart, overlay_beats, overlay_heat, overlay_mask, overlay_trace, places, plot, png


def ecg(leads=STANDARD, seconds=10, fs=250., record='r', scale=1.):
    "Every lead its own sine, so that no two can be taken for each other."
    t = np.arange(round(seconds*fs))/fs
    x = np.stack([np.sin(2*np.pi*(.5 + .1*STANDARD.index(l))*t + STANDARD.index(l)) for l in leads])
    return ECG((x*scale).astype(np.float32), fs, tuple(leads), dict(record=record))


def get(fig, gid, all=False):
    found = [a for a in fig.findobj() if a.get_gid() == gid]
    return found if all else found[0]


def mm(fig, line):
    "A line's points in mm on the figure, measured through its transform."
    return line.get_transform().transform(line.get_xydata())/fig.dpi*25.4


@pytest.mark.parametrize('layout', ['3x4+1', '3x4', '6x2', '6x2+1', '12x1', '2x6', 'auto'])
@pytest.mark.parametrize('speed,gain', [(25, 10), (50, 10), (25, 20), (12.5, 5)])
def test_scale(layout, speed, gain):
    e = ecg()
    fig = plot(e, layout, mm_per_s=speed, mm_per_mv=gain)
    for p in get(fig, 'calibration', all=True):
        assert np.allclose(np.ptp(mm(fig, p)[1:5], axis=0), (.2*speed, gain))     # 200 ms, 1 mV
    s = fig.strips[0]
    xy = mm(fig, get(fig, f'trace:{s.tag}'))
    assert np.isclose(xy[250, 0] - xy[0, 0], speed)                               # 250 samples at 250 Hz
    assert np.allclose(xy[:, 1] - s.y, e[s.lead][s.start:s.stop]*gain, atol=1e-4)
    assert np.isclose(xy[0, 0], s.x)


@pytest.mark.parametrize('step', [1, 5])
def test_grid(step):
    fig = plot(ecg())
    seg = get(fig, f'grid:{step}mm').get_segments()
    x = np.unique(np.round([s[0][0] for s in seg if s[0][0] == s[1][0]], 6))
    assert set(np.diff(x)) <= {1., 2.} if step == 1 else set(np.diff(x)) == {5.}   # every fifth fine line is a bold one


def test_pixels():
    "At the default 101.6 dpi a millimetre is four pixels."
    fig = plot(ecg())
    w, h = fig.get_size_inches()*25.4
    assert struct.unpack('>II', fig.png()[16:24]) == (round(w*4), round(h*4)) and np.isclose(w, round(w)) and np.isclose(h, round(h))


@pytest.mark.parametrize('layout', ['3x4+1', '6x2', '12x1'])
@pytest.mark.parametrize('order', [STANDARD, STANDARD[::-1], ('V3', 'aVF', 'I', 'V6', 'II', 'aVL', 'V1', 'III', 'V5', 'aVR', 'V2', 'V4')])
def test_leads_by_name(layout, order):
    "Whatever the order in the file, each name has its own samples at its own place."
    e, ref = ecg(order), plot(ecg(), layout)
    fig = plot(e, layout)
    assert [(s.lead, s.start, s.stop, s.x, s.row) for s in fig.strips] == [(s.lead, s.start, s.stop, s.x, s.row) for s in ref.strips]
    assert {s.lead for s in fig.strips} == set(STANDARD)
    for s in fig.strips:
        assert get(fig, f'name:{s.tag}').get_text() == s.lead
        y = mm(fig, get(fig, f'trace:{s.tag}'))[:, 1]
        assert np.allclose((y - s.y)/10, ecg()[s.lead][s.start:s.stop], atol=1e-5)


def test_every_sample_once():
    "The four columns of 3x4 take turns: together they are the recording, and the rhythm strip is all of it."
    fig = plot(ecg(fs=257.), '3x4+1')
    for row in range(3):
        cut = [(s.start, s.stop) for s in fig.strips if s.row == row]
        assert cut[0][0] == 0 and cut[-1][1] == 2570 and all(a[1] == b[0] for a, b in zip(cut, cut[1:]))
    rhythm = [s for s in fig.strips if s.rhythm]
    assert [(s.lead, s.start, s.stop) for s in rhythm] == [('II', 0, 2570)]


def test_rhythm_by_name():
    fig = plot(ecg(STANDARD[::-1]), '3x4+1', rhythm='V1')
    s = next(s for s in fig.strips if s.rhythm)
    assert s.lead == 'V1' and np.allclose((mm(fig, get(fig, 'trace:V1:rhythm'))[:, 1] - s.y)/10, ecg()['V1'], atol=1e-5)
    with pytest.raises(ECGError, match="no lead 'V9' for the rhythm strip"):
        plot(ecg(), '3x4+1', rhythm='V9')


def test_subsets():
    assert places(('V5', 'II')) == ([['V5'], ['II']], 0)
    assert [s.lead for s in plot(ecg(('V5', 'II', 'I'))).strips] == ['V5', 'II', 'I']
    assert len(places(STANDARD, seconds=2)[0]) == 12
    with pytest.raises(ECGError, match='missing: III, aVR'):
        plot(ecg(('I', 'II')), '3x4+1')
    for bad in ('4x4', '3x4+2', 'x', '', None, '0x12', '3×4'):
        with pytest.raises(ECGError, match='unknown layout'):
            plot(ecg(), bad)


def test_extra_leads_are_named():
    e = ecg()
    e = ECG(np.r_[e.signal, e.signal[:1]], e.fs, (*e.leads, 'V7'), e.meta)
    assert 'not shown: V7' in get(plot(e, '3x4+1'), 'caption').get_text()
    assert len(plot(e).strips) == 13


def test_window():
    fig = plot(ecg(seconds=30), start=12, seconds=5)
    assert [(s.start, s.stop) for s in fig.strips if s.rhythm] == [(3000, 4250)]
    assert '12–17 s of 30 s' in get(fig, 'caption').get_text()
    for k in (dict(start=30), dict(start=-1), dict(seconds=0), dict(seconds=float('nan')), dict(mm_per_s=0), dict(mm_per_mv=-1), dict(dpi=0)):
        with pytest.raises(ECGError):
            plot(ecg(seconds=30), **k)


def test_gaps():
    e = ecg(('I', 'II', 'V1'))
    x = np.array(e.signal)
    x[1, 500:800], x[2] = np.nan, np.nan
    x[1, 600] = .3
    fig = plot(e.but(x))
    y = get(fig, 'trace:II').get_ydata()
    assert np.isnan(y[500:800]).sum() == 299 and np.isfinite(y).sum() == 2201
    assert get(fig, 'name:V1').get_text() == 'V1 not recorded'
    assert fig.png()


def test_mask():
    e, mask = ecg(STANDARD[::-1]), np.zeros((12, 2500), bool)
    mask[e.leads.index('V2'), 1250:1500] = True
    fig = plot(e, '12x1', overlays=overlay_mask(mask))
    s = next(s for s in fig.strips if s.lead == 'V2')
    paths = get(fig, 'mask').get_paths()
    assert len(paths) == 1
    (x0, y0), (x1, y1) = paths[0].get_extents().get_points()
    assert np.isclose(x0, s.x + 125) and np.isclose(x1, s.x + 150) and s.low <= y0 < s.y < y1 <= s.high


def test_trace():
    e, where = ecg(), np.zeros((12, 2500), bool)
    where[1, 100:200] = True
    fig = plot(e, '12x1', overlays=overlay_trace(-e.signal, label='guess', where=where, instead=True))
    own, guess = get(fig, 'trace:II').get_ydata(), get(fig, 'guess:II').get_ydata()
    s = next(s for s in fig.strips if s.lead == 'II')
    assert np.flatnonzero(np.isnan(own)).tolist() == list(range(100, 200))
    assert np.flatnonzero(np.isfinite(guess)).tolist() == list(range(99, 201))          # a sample more each side, to meet the other
    assert np.allclose((guess[100:200] - s.y)/10, -e['II'][100:200], atol=1e-5)
    assert np.isnan(get(fig, 'guess:I').get_ydata()).all()
    assert get(fig, 'key:guess').get_text() == 'guess'
    over = plot(e, '12x1', overlays=overlay_trace(-e.signal, label='guess'))
    assert np.isfinite(get(over, 'trace:II').get_ydata()).all() and np.isfinite(get(over, 'guess:II').get_ydata()).all()


def test_heat_and_beats():
    e, h = ecg(), np.zeros((12, 2500))
    h[6, 1000] = 4
    fig = plot(e, '12x1', overlays=[overlay_heat(h), overlay_beats([1., 2., 99.])])
    a = get(fig, 'heat:V1').get_array()
    assert a.shape == (1, 2500, 4) and a[0, 1000, 3] > .5 and a[0, 999, 3] == 0 and get(fig, 'heat:V2').get_array()[..., 3].max() == 0
    marks = get(fig, 'beat:II', all=True)
    s = next(s for s in fig.strips if s.lead == 'II')
    assert [float(m.get_xdata()[0] - s.x) for m in marks] == [25., 50.]
    row = plot(e, overlays=overlay_heat(np.arange(2500.)))                               # one row for all leads
    assert get(row, 'heat:V6').get_array()[0, -1, 3] == pytest.approx(.75)


def test_torch_overlays():
    import torch
    e = ecg()
    x = torch.tensor(e.signal, requires_grad=True)
    assert plot(e, overlays=[overlay_mask(x > 0), overlay_trace(x), overlay_heat(x.abs())]).png()


@pytest.mark.parametrize('o,says', [
    (overlay_mask(np.zeros((12, 2499), bool)), 'draw it on the ECG it was made for'),
    (overlay_mask(np.zeros((2500, 12), bool)), r'has shape \(2500, 12\), the ECG \(leads, samples\) is \(12, 2500\)'),
    (overlay_mask(np.zeros(2500, bool)), 'draw it on the ECG'),
    (overlay_mask(np.zeros((12, 2500))), 'a mask is bool'),
    (overlay_trace(np.zeros((1, 2500))), 'draw it on the ECG'),
    (overlay_trace(np.zeros((12, 2500)), where=np.zeros((12, 2500))), 'a mask is bool'),
    (overlay_trace(np.zeros((12, 2500)), where=np.zeros((3, 2500), bool)), 'draw it on the ECG'),
    (overlay_heat(np.full((12, 2500), -1.)), 'heat is finite and >= 0'),
    (overlay_heat(np.full((12, 2500), np.inf)), 'heat is finite and >= 0')])
def test_overlay_errors(o, says):
    with pytest.raises(ECGError, match=says):
        plot(ecg(), overlays=o)


def test_nothing_left_open():
    plt.close('all')
    for _ in range(3):
        png(ecg())
        plot(ecg())
    assert plt.get_fignums() == []


@pytest.mark.parametrize('record', ['$x$', '$\\frac{', '<b>bold</b> &amp;', 'a_{b}^{c} %s {}', 'long '*500, 'x'*4000, 'two\nlines\tand\x00\x1b[31m', '', 12345])
def test_literal_text(record):
    with matplotlib.rc_context({'text.parse_math': True}), warnings.catch_warnings():
        warnings.simplefilter('error')
        e = ecg(record=record)
        fig = plot(e)
        assert fig.png()
    t = get(fig, 'title')
    shown = t.get_text()
    assert shown.rstrip('…') in ' '.join(''.join(c if c.isprintable() else ' ' for c in str(record)).split())
    assert shown.endswith('…') == (len(str(record)) > 1000)
    assert t.get_window_extent(fig.canvas.get_renderer()).x1 <= fig.bbox.x1


def test_no_text_is_clipped():
    "Names, title, caption and key lie on the figure, whatever the layout."
    heat = [overlay_heat(np.ones((12, 1000)), label='a rather long name of an overlay'), overlay_beats([1.])]
    for layout in ('12x1', '3x4+1', '6x2'):
        fig = plot(ecg(seconds=4, record='r'*200), layout, overlays=heat)
        r = fig.canvas.get_renderer()
        for t in fig.findobj(matplotlib.text.Text):
            if t.get_text() and t.axes and t.get_gid():
                b = t.get_window_extent(r)
                assert b.x0 >= 0 and b.y0 >= 0 and b.x1 <= fig.bbox.x1 and b.y1 <= fig.bbox.y1, t.get_text()


def test_wrong_unit_is_said():
    fig = plot(ecg(('I', 'V1'), scale=1000))
    assert 'off the paper: I, V1' in get(fig, 'caption').get_text()
    assert fig.get_size_inches()[1]*25.4 < 300


def test_filter_is_said():
    e = ecg()
    assert 'filter not stated' in get(plot(e), 'caption').get_text()
    assert 'filter 0.5–40 Hz' in get(plot(e.but(meta={**e.meta, 'filter': '0.5–40 Hz'})), 'caption').get_text()


def test_into_axes():
    f, axes = plt.subplots(1, 2, figsize=(12, 4))
    assert plot(ecg(), ax=axes[1]) is f
    plt.close(f)
    ax = axes[1]
    ax.apply_aspect()
    (x0, y0), (x1, y1) = ax.transData.transform([(0, 0), (10, 10)])
    assert np.isclose(x1 - x0, y1 - y0)                                                  # proportions kept


def test_tiny():
    assert plot(ECG(np.zeros((1, 1), np.float32), 500, ('I',), {})).png()
    assert plot(ecg(seconds=.1), '3x4+1').png()
    assert plot(ECG(np.full((2, 50), np.nan, np.float32), 500, ('I', 'II'), {})).png()


def test_chart():
    c = chart(ecg(STANDARD[::-1]), '3x4+1', beats=[1., 2.])
    first, last = c.panels[0], c.panels[-1]
    assert c.record.names[first.lead] == 'I' and c.record.names[last.lead] == 'II' and last.width == 250 and first.width == 62.5
    assert np.allclose(c.record.values[last.lead], ecg()['II'], atol=1e-6)
    assert '<svg' in c._repr_svg_() and 'script' not in chart(ecg(record='<script>'), '12x1')._repr_svg_().replace('&lt;script', '')
    assert [p.width for p in chart(ecg(), '6x2').panels] == [125.]*12
    with pytest.raises(ECGError, match='no rhythm strip'):
        chart(ecg(), '6x2+1')

"""Drawn ECGs: where the ink lies, that nothing is cut, gaps, seeds, sizes, and the stacked picture over its full frame."""
import pickle
import pytest
import torch
from ecgnb.batch import sample_seeds
from ecgnb.leads import ECGError, lead_names
from ecgnb.registry import from_config, representation, to_config
from ecgnb.representations.image import LAYOUTS, Image, strips_of, trace, vary
from ecgnb.representations.stacked import Stacked

STANDARD = lead_names('standard')
ALL = dict(brightness=.2, rotation=5., blur=1.5, hue=.08, saturation=.3, noise=.05)


def batch(n=3, T=2500, C=12):
    g = torch.Generator().manual_seed(0)
    t = torch.arange(T)/250
    beat = torch.exp(-(((t % .8) - .3)/.02)**2)
    return {'signal': torch.randn(n, C, 1, generator=g)*beat + .02*torch.randn(n, C, T, generator=g), 'seed': sample_seeds(0, 0, range(n))}


def dark(image, s, grow=0):
    "bool (high, wide): where the strip `s` of image (3,H,W) has ink."
    return (image[:, s['y'] - grow:s['y'] + s['high'] + grow, s['x']:s['x'] + s['wide']] < .5).all(0)


def bare(**more): return Image(grid=False, **more).eval()


@pytest.mark.parametrize('size', [(224, 224), (384, 384), (512, 512), (256, 512), (300, 200)])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_strips_lie_in_the_picture_apart_and_large(layout, size):
    "Inside, no two over each other, none over a name, and most of the picture used."
    strips = strips_of(STANDARD, layout, 2500, *size)
    seen = torch.zeros(size, dtype=torch.int)
    for s in strips:
        assert 0 <= s['y'] and s['y'] + s['high'] <= size[0] and 0 <= s['x'] and s['x'] + s['wide'] <= size[1]
        seen[s['y']:s['y'] + s['high'], s['x']:s['x'] + s['wide']] += 1
        (y, x), (h, w) = s['at'], s['ink'].shape
        assert y >= 0 and x >= 0 and y + h <= size[0] and x + w <= size[1] and s['ink'].max() > .5
        seen[y:y + h, x:x + w] += 1
    assert seen.max() == 1 and (seen > 0).float().mean() > .7
    assert {s['lead'] for s in strips} == set(range(12))


@pytest.mark.parametrize('layout', ['12x1', '6x2'])
def test_every_lead_shows_its_whole_recording(layout):
    "A spike at the first, the last and other samples of one lead stands in the strip of that lead, where its time is."
    r = bare(layout=layout)
    for lead in (0, 6, 11):
        for at in (0, 1, 999, 2498, 2499):
            x = torch.zeros(1, 12, 2500); x[0, lead, at] = 1.2
            image = r({'signal': x})['image'][0]
            high = {s['lead']: dark(image, s)[:s['high']//2 - 2].any(0).nonzero()[:, 0] for s in r.strips}
            assert [k for k, v in high.items() if len(v)] == [lead], (lead, at)
            assert abs(high[lead].float().mean() - (at + .5)/2500*r.strips[0]['wide']) < 1.6


def test_a_quarter_of_each_lead_and_all_of_the_rhythm_strip():
    r = bare(layout='3x4+1')
    assert [(s['start'], s['stop']) for s in r.strips[:4]] == [(0, 625), (625, 1250), (1250, 1875), (1875, 2500)]
    assert (r.strips[-1]['lead'], r.strips[-1]['start'], r.strips[-1]['stop']) == (1, 0, 2500)
    assert r.strips[-1]['wide'] == 4*r.strips[0]['wide']


@pytest.mark.parametrize('n', [224, 512])
def test_amplitude_is_true_to_scale(n):
    "1 mV is as many pixels as `mv` says, to less than a pixel; half of it half."
    r = bare(height=n, width=n)
    h = r.strips[0]['high']
    for mv in (.5, 1., 2.):
        x = torch.zeros(1, 12, 2500); x[..., 1000:1500] = mv                # flat up to 40 %: the median stays 0
        ink = 1 - r({'signal': x})['image'][0, 0]
        s = r.strips[6]
        rows = torch.arange(s['y'], s['y'] + h)[:, None] + .5
        box = ink[s['y']:s['y'] + h, s['x']:s['x'] + s['wide']] - ink[0, -1]
        centre = lambda c: float((box[:, c]*rows[:, 0]).sum()/box[:, c].sum())
        assert abs(centre(int(.2*s['wide'])) - centre(int(.5*s['wide'])) - mv/3*h) < .3


@pytest.mark.parametrize('lead', [0, 6, 11])
def test_a_trace_that_would_leave_its_strip_is_moved_and_not_cut(lead):
    "2.6 mV one way fits in a strip of 3 mV; 20 mV is clipped and stays within half a strip of its own."
    r = bare()
    s, quiet = r.strips[lead], r({'signal': torch.zeros(1, 12, 2500)})['image'][0]
    def rows(mv, off=0.):
        x = torch.zeros(1, 12, 2500); x[0, lead] = off; x[0, lead, 1200:1260] += mv
        change = (r({'signal': x})['image'][0] - quiet)[0, :, s['x'] + int(1230/2500*s['wide'])]
        return x, (change < -.4).nonzero()[:, 0]
    _, fits = rows(2.6)
    assert len(fits) and s['y'] <= fits.min() and fits.max() < s['y'] + s['high']
    _, same = rows(2.6, off=5.)                                          # an offset of the electrode is not a part of the ECG
    assert torch.equal(fits, same)
    x, _ = rows(20.)
    image, half = r({'signal': x})['image'][0], s['high']//2
    far = [k for k in range(224) if not s['y'] - half <= k < s['y'] + s['high'] + half]
    assert torch.equal(image[:, far], quiet[:, far]) and not torch.equal(image, quiet)


def test_the_first_and_last_rows_use_the_room_they_have():
    "A 4 mV complex of lead I or V6 keeps all of its 4 mV inside the picture."
    for lead, sign in ((0, 1), (11, -1), (0, -1), (11, 1)):
        one = trace(torch.zeros(1, 1, 100).index_fill(2, torch.arange(40, 60), 4.*sign), None, 50, 18, 3., 1., 9,
                    torch.tensor([[lead == 0, lead == 11]]))[0, 0]
        rows = (one > .4).any(1).nonzero()[:, 0]
        assert rows.max() - rows.min() >= 4/3*18 - 1.5
        inside = rows >= 9 if lead == 0 else rows < 27
        assert inside.all(), (lead, sign)


def test_what_was_not_recorded_is_not_drawn():
    r, b = bare(), batch()
    valid = torch.ones_like(b['signal'], dtype=torch.bool); valid[:, 4] = False; valid[1, :, 1000:1500] = False
    image = r(b | {'valid': valid})['image']
    assert torch.equal(image, r(b | {'valid': valid, 'signal': b['signal'].masked_fill(~valid, 9.)})['image'])
    assert torch.equal(image, r(b | {'valid': valid, 'signal': b['signal'].masked_fill(~valid, float('nan'))})['image'])
    w = r.strips[0]['wide']
    for s in r.strips:
        gap = dark(image[1], s)[:, int(.4*w) + 2:int(.6*w) - 2]
        assert not gap.any() and dark(image[0], s).any() == (s['lead'] != 4)
    none = r(b | {'valid': torch.zeros_like(valid)})['image']
    assert torch.equal(none, r.sheet.expand_as(none))
    lone = torch.zeros_like(valid); lone[0, 2, 1250] = True                    # one sample alone is a dot
    assert (r(b | {'valid': lone})['image'][0] != r.sheet).any()


@pytest.mark.parametrize('r', [Image(), Image(height=512, width=512, layout='3x4+1'), Stacked(), Stacked(norm='robust', scope='lead')])
def test_each_sample_is_drawn_alone(r):
    b = batch(9)
    whole = r.eval()(b)['image']
    assert whole.shape == (9, *r.gives['image']) and whole.dtype == torch.float32 and 0 <= whole.min() and whole.max() <= 1
    assert torch.equal(whole[3:4], r({'signal': b['signal'][3:4]})['image'])
    assert set(b) == {'signal', 'seed'}


def test_int16_and_mv_are_drawn_alike():
    b = batch(); scale = torch.full((3, 12), .005)
    q = (b['signal']/.005).round().to(torch.int16)
    r = Image().eval()
    out = r({'signal': q, 'scale': scale})
    assert out['signal'] is q and torch.equal(out['image'], r({'signal': q*.005})['image'])


def test_augmentation_comes_from_the_samples_seeds_in_training_only():
    r, b = Image(**ALL, chance=1.), batch(4)
    a = r.train()(b)['image']
    assert torch.equal(a, r(b)['image']) and torch.equal(a[2:], r({k: v[2:] for k, v in b.items()})['image'])
    assert not torch.equal(a, r(b | {'seed': sample_seeds(1, 0, range(4))})['image'])
    assert torch.equal(r.eval()(b)['image'], Image().eval()(b)['image']) and a.min() >= 0 and a.max() <= 1
    assert torch.equal(Image().train()(b)['image'], Image().eval()(b)['image'])
    assert torch.equal(Image(**ALL, chance=0.).train()(b)['image'].clamp(0, 1), Image(**ALL, chance=0.).train()(b)['image'])


@pytest.mark.parametrize('kind', list(ALL))
def test_each_kind_changes_the_picture_by_chance(kind):
    "Alone, at full chance, for most samples; at chance 0 nothing, to rounding."
    b, plain = batch(8), Image().eval()
    before = plain(b)['image']
    change = lambda chance: (Image(**{kind: ALL[kind]}, chance=chance).train()(b)['image'] - before).abs().flatten(1).mean(1)
    assert (change(1.) > 1e-4).sum() >= 6 and change(0.).max() < 1e-4
    assert 0 < (change(.5) > 1e-4).sum() < 8


def test_rotation_turns_about_the_middle_without_a_stretch():
    "By the angle asked for, in a picture that is not square."
    H, W = 120, 240
    image = torch.ones(1, 3, H, W); image[:, :, 59:61] = 0
    b = {'signal': torch.zeros(64, 1, 1), 'seed': torch.arange(64)}
    out = vary(image.expand(64, -1, -1, -1), b, torch.ones(3), 1., rotation=5.)
    rows = torch.arange(H).float()
    ink = 1 - out[:, 0]
    at = lambda c: (ink[:, :, c]*rows).sum(1)/ink[:, :, c].sum(1)
    slope = (at(200) - at(40))/160
    assert slope.abs().max() <= torch.tensor(5.).deg2rad().tan() + .005 and slope.min() < -.06 and slope.max() > .06
    torch.testing.assert_close((at(200) + at(40))/2, torch.full((64,), 59.5), atol=.6, rtol=0)


def test_colour_grid_and_labels_can_be_left_out():
    b = batch(1)
    grey = Image(color=False).eval()(b)['image'][0]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    colour = Image().eval()(b)['image'][0]
    assert (colour[0] - colour[2]).max() > .15                                  # red lines
    plain = Image(labels=False, grid=False).eval()
    assert torch.equal(plain.sheet, plain.sheet[:, :1, :1].expand_as(plain.sheet)) and plain.strips[0]['wide'] == 224


def test_grid_lines_stand_for_time_and_voltage():
    "Bold lines of 3x4 at 512 pixels: one second is five fine lines of 0.2 s."
    r = Image(layout='12x1', height=512, width=512, labels=False)
    per_s = 512/10
    row = r.sheet[1, r.strips[0]['y'] + 10]
    bold = (row < row.min() + .05).nonzero()[:, 0].float()
    assert (bold/per_s - (bold/per_s).round()).abs().max() < 1.01/per_s


def test_other_leads_and_rates():
    for leads, n, fs in (('II', 1000, 100.), ('I,II', 300, 125.), ('II,V5,V1', 5000, 500.)):
        C = len(leads.split(','))
        r = Image(leads=leads, length=n, fs=fs).eval()
        image = r({'signal': torch.randn(2, C, n)*.3})['image']
        assert len(r.strips) == C and all(dark(image[0], s).any(0).float().mean() > .9 for s in r.strips)


def test_through_a_loader_and_the_mark():
    r, b = Image(height=96, width=160).eval(), batch()
    once = pickle.loads(pickle.dumps(r)).tokenise(b)
    assert torch.equal(r(once)['image'], r(b)['image']) and r(once) is once
    with pytest.raises(ECGError, match="was made by 'stacked:.*reads those of 'image:"): r(Stacked().tokenise(b))
    with pytest.raises(ECGError, match='was made by None'): r(b | {'image': once['image']})
    with pytest.raises(ECGError, match='made by'): Image(height=96, width=160, mv=2.)(once)
    again = from_config(to_config(r)).eval()
    assert torch.equal(again(once)['image'], once['image']) and not r.state_dict()


@pytest.mark.parametrize('how,said', [
    (dict(layout='12 x 1'), "did you mean '12x1'"), (dict(mv=0.), 'more than 0 mV'), (dict(height=4), 'height and width of 8 or more'),
    (dict(height=64, width=64), 'raise height and width'), (dict(leads='II,V5', layout='6x2'), 'needs the twelve standard leads'), (dict(fs=0.), 'wanted both over 0')])
def test_fields_that_cannot_be(how, said):
    with pytest.raises(ECGError, match=said): Image(**how)


def test_a_signal_of_another_shape():
    with pytest.raises(ECGError, match=r'\(12, 1000\) .*reads \(12, 2500\): 10 s at 250 Hz'): Image()({'signal': torch.zeros(1, 12, 1000)})


# ---- stacked ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('n', [(224, 224), (256, 256), (120, 500)])
def test_stacked_shows_every_lead_and_the_whole_time(n):
    "No crop: an impulse anywhere lies in its lead's band at its time; its weight does not depend on where it is."
    r = Stacked(height=n[0], width=n[1], norm='fixed').eval()
    for lead in range(12):
        x = torch.zeros(6, 12, 2500); at = torch.tensor([3, 400, 1111, 1600, 2200, 2496])
        x[torch.arange(6), lead, at] = 1.
        up = r({'signal': x})['image'][:, 0] - .5
        band = (up > 1e-4).any(0).any(1).nonzero()[:, 0]
        assert abs(band.min() - lead*n[0]/12) <= 1 and abs(band.max() + 1 - (lead + 1)*n[0]/12) <= 1
        torch.testing.assert_close(up.amax(1).argmax(1)/n[1], at/2500, atol=1.5/n[1], rtol=0)
        assert up.sum((1, 2)).min() > .6*up.sum((1, 2)).max()


def test_stacked_minmax_is_the_references_scale():
    "(x - min)/(max - min) over the record, at a size where nothing is resampled in time."
    b = batch(2, 224)
    image = Stacked(length=224).eval()(b)['image']
    x = b['signal']; low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    torch.testing.assert_close(image[:, 0, 9::19][:, :11], ((x - low)/(high - low))[:, :11], atol=1e-5, rtol=1e-4)
    assert torch.equal(image[:, 0], image[:, 1]) and torch.equal(image[:, 0], image[:, 2])


def test_stacked_has_no_chance_and_no_leak():
    b = batch()
    for norm in ('minmax', 'robust', 'fixed'):
        r = Stacked(norm=norm)
        assert torch.equal(r.train()(b)['image'], r.eval()(b)['image'])
        valid = torch.ones_like(b['signal'], dtype=torch.bool); valid[:, 2] = False; valid[:, :, 700:900] = False
        other = b['signal'].masked_fill(~valid, 50.)
        assert torch.equal(r(b | {'valid': valid})['image'], r(b | {'valid': valid, 'signal': other})['image'])


def test_both_are_registered_and_speak_of_the_image():
    for name in ('image', 'stacked'):
        r = representation[name](height=96, width=128)
        assert r.gives == {'image': (3, 96, 128)} and r.facts == dict(height=96, width=128) and r.contract['unit'] == 'mV'

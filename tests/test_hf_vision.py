"""Vision towers of Hugging Face on drawn ECGs: tiny random CLIP, SigLIP, SigLIP2 and ViT folders stand for the Hub's."""
import json
import shutil
import pytest
import torch
import transformers
from PIL import Image as Picture
from ecgnb.batch import fed
from ecgnb.encoders import hf_vision as module
from ecgnb.encoders.hf_vision import HfVision, fetch, pixels, sides
from ecgnb.hub import load, save
from ecgnb.leads import ECGError
from ecgnb.objectives.classify import Classify
from ecgnb.registry import from_config, to_config
from ecgnb.representations.image import Image
from ecgnb.representations.stacked import Stacked
from visions import tiny

FAMILIES = ('clip', 'siglip', 'siglip2', 'vit')


@pytest.fixture(scope='module')
def folders(tmp_path_factory): return {f: tiny(tmp_path_factory.mktemp(f), f) for f in FAMILIES}


@pytest.fixture(scope='module')
def batch():
    x = torch.randn(3, 12, 500, generator=torch.Generator().manual_seed(0)).cumsum(-1)/15
    return {'signal': x, 'label': torch.eye(3)[:, :2], 'seed': torch.arange(3)}


@pytest.fixture(scope='module')
def image(batch): return Image(length=500, fs=50.).eval()(batch)['image']


def test_nothing_is_loaded_before_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(module, 'fetch', lambda *a: pytest.fail('loaded'))
    e = HfVision('some/model', height=256, width=192)
    assert e.takes == {'image': (3, 256, 192)} and to_config(from_config(to_config(e))) == to_config(e) and repr(e)


@pytest.mark.parametrize('family', FAMILIES)
def test_pixels_are_the_processors_own(folders, image, family):
    "On a picture of full size: to rounding from bytes, to half a shade from our float image; same names, mask and shapes."
    how = fetch(folders[family])[1]
    shades = (image*255).round().to(torch.uint8)
    pictures = [Picture.fromarray(v.permute(1, 2, 0).numpy()) for v in shades]
    theirs = transformers.AutoImageProcessor.from_pretrained(folders[family])(pictures, return_tensors='pt')
    exact, ours = pixels(shades/255, how), pixels(image, how)
    assert set(ours) == set(theirs)
    for k, v in theirs.items():
        torch.testing.assert_close(exact[k].to(v.dtype), v, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours[k].to(v.dtype), v, atol=.5/255/min(how['image_std']) + 1e-4, rtol=0)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('r', [Image, Stacked])
def test_a_token_a_patch_and_no_chance(folders, batch, family, r):
    e, part = HfVision(folders[family]).train(), r(length=500, fs=50.).eval()
    x, valid = fed(e, part(batch))
    z, f = e(x, valid), e.features(x, valid)
    assert e.takes == part.gives and z.shape == (3, e.n_tokens, e.dim) == (3, 49, 32) and f.shape == (3, 32)
    assert torch.equal(z, e.eval()(x)) and torch.equal(z, HfVision(folders[family])(x))
    torch.testing.assert_close(e(x[1:2])[0], z[1], atol=1e-5, rtol=1e-4)
    changed = x.clone(); changed[:, :, 192:, 192:] = 0
    assert not torch.allclose(e(changed), z, atol=1e-4)                       # the last patch is read too


@pytest.mark.parametrize('family', FAMILIES)
def test_tokens_are_those_of_the_whole_model(folders, image, family):
    "The tower alone gives what it gives inside the whole model of its folder, text tower and all."
    e, whole = HfVision(folders[family]), transformers.AutoModel.from_pretrained(folders[family]).eval()
    tower = getattr(whole, 'vision_model', whole)
    with torch.no_grad(): out = tower(**pixels(image, fetch(folders[family])[1]))
    z, f = e(image), e.features(image)
    if family == 'clip':
        torch.testing.assert_close(f, out.pooler_output)
        torch.testing.assert_close(z, tower.post_layernorm(out.last_hidden_state)[:, 1:])
    elif family == 'vit': torch.testing.assert_close(torch.cat([f[:, None], z], 1), out.last_hidden_state)
    else:
        torch.testing.assert_close(z, out.last_hidden_state)
        torch.testing.assert_close(f, z.mean(1))
    assert not any(k.startswith(('text', 'head', 'pooler')) for k in e.load().state_dict())


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('what', ['forward', 'features'])
def test_every_weight_gets_a_gradient_when_it_is_trained(folders, image, family, what):
    e = HfVision(folders[family], frozen=False).train()
    assert e.dim == 32                                                        # the tower is there from here on
    (getattr(e, what)(image)*torch.arange(32)).square().mean().backward()
    names = [n for n, p in e.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    zero = ('k_proj.bias', 'key.bias')                                        # softmax does not see what is added to all keys
    assert [n for n in names if not n.endswith(zero)] == [] and len(list(e.parameters())) > 10
    assert set(e.state_dict()) == {'mark', *(n for n, _ in e.named_parameters())} | {k for k in e.state_dict() if 'position_ids' in k}


def test_a_frozen_tower_stays_as_it_is(folders, batch, tmp_path):
    m = Classify(Image(length=500, fs=50.), HfVision(folders['vit']), classes='A,B').train()
    e, before = m.encoder, m.encoder.load().state_dict()
    before = {k: v.clone() for k, v in before.items()}
    assert not any(p.requires_grad for p in e.load().parameters()) and list(e.parameters()) == []
    opt = torch.optim.AdamW(m.parameters(), 1e-2)
    for _ in range(3): opt.zero_grad(); m(batch).loss.backward(); opt.step()
    assert not e.load().training and all(torch.equal(v, before[k]) for k, v in e.load().state_dict().items())
    assert [k for k in m.state_dict() if k.startswith('encoder.')] == ['encoder.mark'] and e.mark.any()
    m.eval()
    again = load(save(m, tmp_path/'m'), verbose=False)
    assert torch.equal(m(batch).loss, again(batch).loss)


def test_a_frozen_checkpoint_refuses_another_tower(folders, tmp_path):
    other = tiny(tmp_path/'other', 'vit', seed=1)
    with pytest.raises(ECGError, match='has other weights'): HfVision(other).load_state_dict(HfVision(folders['vit']).state_dict())


def test_an_unfrozen_tower_is_saved_with_the_model(folders, batch, tmp_path):
    m = Classify(Image(length=500, fs=50.), HfVision(folders['clip'], frozen=False), classes='A,B').train()
    opt = torch.optim.AdamW(m.parameters(), 1e-3)
    m(batch).loss.backward(); opt.step(); m.eval()
    again = load(save(m, tmp_path/'m'), verbose=False)
    assert torch.equal(m(batch).loss, again(batch).loss)
    assert not torch.equal(again.encoder.features(again.representation(batch)['image']), HfVision(folders['clip']).features(again.representation(batch)['image']))


def test_naflex_reads_any_shape_and_patches_in_order(folders):
    e = HfVision(folders['siglip2'], height=96, width=448)
    x = torch.rand(2, 3, 96, 448)
    assert sides(fetch(folders['siglip2'])[1]) is None and e.n_tokens == 42 and e(x).shape == (2, 42, 32)
    p = pixels(x, fetch(folders['siglip2'])[1])
    assert p['spatial_shapes'].tolist() == [[3, 14]]*2 and p['pixel_attention_mask'].all()
    torch.testing.assert_close(p['pixel_values'][:, 15].view(2, 32, 32, 3).permute(0, 3, 1, 2), (x[..., 32:64, 32:64] - .5)/.5)


@pytest.mark.parametrize('how,said', [
    (dict(height=384, width=384), 'reads 224 x 224 pixels, not 384 x 384; set height=224 and width=224'),
    (dict(width=448), 'reads 224 x 224 pixels, not 224 x 448')])
def test_a_tower_for_another_size(folders, how, said):
    with pytest.raises(ECGError, match=said): HfVision(folders['clip'], **how).load()


def test_an_image_of_another_size(folders, image):
    with pytest.raises(ECGError, match=r'an image of \(3, 96, 224\)'): HfVision(folders['vit'])(image[:, :, :96])
    with pytest.raises(ECGError, match='up to 49 patches of 32 x 32 pixels; 256 x 256'): HfVision(folders['siglip2'], height=256, width=256).load()
    with pytest.raises(ECGError, match='no multiple'): HfVision(folders['siglip2'], height=100, width=100).load()


def test_a_name_that_is_not_there(tmp_path):
    with pytest.raises(ECGError, match="no vision model 'google/none': .*hf download google/none config.json preprocessor_config.json model.safetensors --local-dir FOLDER"): HfVision('google/none').load()
    with pytest.raises(ECGError, match='no vision model'): HfVision(str(tmp_path/'nowhere')).load()


def test_folders_that_cannot_be_read(folders, tmp_path):
    "Pickles only; no processor; weights missing; a model of another kind: each by its own words."
    def copy(name):
        shutil.copytree(folders['vit'], tmp_path/name); return tmp_path/name
    at = copy('pickle'); (at/'model.safetensors').rename(at/'pytorch_model.bin')
    with pytest.raises(ECGError, match='a pickle .* is not opened'): HfVision(str(at)).load()
    at = copy('bare'); (at/'preprocessor_config.json').unlink()
    with pytest.raises(ECGError, match='no vision model'): HfVision(str(at)).load()
    at = copy('cut')
    from safetensors.torch import load_file, save_file
    w = load_file(at/'model.safetensors'); save_file({k: v for k, v in w.items() if 'layernorm.weight' not in k}, at/'model.safetensors', {'format': 'pt'})
    with pytest.raises(ECGError, match='its file lacks .*layernorm.weight'): HfVision(str(at)).load()
    at = copy('bert'); (at/'config.json').write_text(json.dumps({'model_type': 'bert'}))
    with pytest.raises(ECGError, match="is a 'bert' model; wanted one of clip, siglip, siglip2, vit"): HfVision(str(at)).load()

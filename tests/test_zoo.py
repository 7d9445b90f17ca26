"""Every recipe at a small size, from the command line's own functions: it trains, saves, loads, and starts a fine-tuning; and what a run refuses."""
import numpy as np
import pytest
import torch

from ecgnb import convert, runs
from ecgnb.hub import CheckpointError, load
from ecgnb.recipes import build, recipes
from ecgnb.registry import PartError, from_config
from ecgnb.train import store_of, train

DATA = ['source=sample', 'source.n=60', 'source.fs=100', 'prepare.fs=100', 'prepare.seconds=2', 'prepare.low=0.5', 'train.train=1-7', 'train.val=8-10', 'train.batch_size=8']
SHORT = ['fit.steps=3', 'fit.warmup=0', 'train.every=3', 'train.save=3', 'fit.workers=0']
SMALL = ['model.encoder.dim=32', 'model.encoder.depth=1', 'model.encoder.heads=2', 'model.encoder.mlp=0']
DECODER = ['model.dec_dim=16', 'model.dec_depth=1', 'model.dec_heads=2', 'model.dec_mlp=0']
LETTERS = ['model.representation=symbols', 'model.representation.flatten=time', 'model.representation.levels=8', 'prepare.leads=II,V2']
PLAIN = ['fit.optim=adamw', 'fit.lr=1e-3']
ROWS = {
    'tiny': ['model.encoder.dim=32', 'model.encoder.depth=1'], 'tiny_lm': ['model.encoder.dim=32', 'model.encoder.depth=1'], 'tiny_flow': ['model.encoder.dim=32', 'model.encoder.depth=1'],
    'mae_vit': [*SMALL, *DECODER], 'mtae': [*SMALL, *DECODER], 'mlae': [*SMALL, *DECODER], 'st_mem': [*SMALL, *DECODER],
    'dit_rectified_flow': [*SMALL, 'model.encoder.patch=10'], 'dit_ddpm': [*SMALL, 'model.encoder.patch=10'], 'dit_lead': [*SMALL, 'model.encoder.patch=10'],
    'dit_text': [*SMALL, 'model.encoder.patch=10', 'model.text.name=minilm'], 'nepa': [*SMALL, 'model.encoder.patch=10'],
    'merl': ['model.encoder.size=18', 'model.encoder.dim=32', 'model.proj=16', 'model.text.name=minilm', *PLAIN],
    'ecg_byte_lm': [*SMALL, *LETTERS], 'ecg_byte_flow': [*SMALL, *LETTERS, 'model.head.patch=10', 'model.head.dim=32', 'model.head.depth=1', 'model.head.heads=2', 'model.head.cross=32'],
    'xresnet1d': ['model.encoder.size=18', 'model.encoder.dim=32'], 's4': ['model.encoder.dim=32', 'model.encoder.depth=1', 'model.encoder.patch=5'],
}


pytestmark = pytest.mark.usefixtures('stores')


def run_of(name, out, *more): return build(name, *DATA, *SHORT, *ROWS.get(name, []), *more, f'out={out}')


def test_every_recipe_is_tried_here(): assert ROWS.keys() | {'finetune'} == {n for n, f in recipes.items() if f.__module__ == 'ecgnb.zoo' or f.__module__ == 'ecgnb.recipes'}   # others: test_elms, test_foundations


@pytest.mark.parametrize('name', list(ROWS))
def test_recipe_trains_saves_and_starts_a_fine_tuning(name, tmp_path):
    done = train(run_of(name, tmp_path/'a'), quiet=True)
    assert done['step'] == 3 and np.isfinite(done['best_val_loss']) and done['best_val_loss'] > 0
    first = load(tmp_path/'a'/'best', verbose=False)
    run = run_of('finetune', tmp_path/'b', f"train.start={tmp_path/'a'}", 'fit.lr=0')
    assert run['prepare']['leads'] == run['model']['representation']['leads'] and run['model']['classes']
    train(run, quiet=True)
    second = load(tmp_path/'b'/'best', verbose=False)
    own, theirs = dict(second.encoder.named_parameters()), dict(first.encoder.named_parameters())
    assert own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own), 'the rate was 0: the encoder is the checkpoint\'s'


def test_a_start_that_does_not_fit_is_refused(tmp_path):
    train(run_of('st_mem', tmp_path/'a'), quiet=True)
    start = f"train.start={tmp_path/'a'}"
    with pytest.raises(CheckpointError, match='not the weights of this model'): train(run_of('mtae', tmp_path/'b', start), quiet=True)
    with pytest.raises(CheckpointError, match='no such folder'): build('finetune', 'train.start=nowhere')
    with pytest.raises(PartError, match='train.start=RUN'): build('finetune')
    (tmp_path/'b').mkdir(exist_ok=True)
    assert not (tmp_path/'b'/'best').exists()


class Unlabelled:
    "The simulator, its labels unknown in some folds."
    def __init__(self, folds): self.folds = folds
    def __call__(self, frame):
        frame = frame.copy()
        frame['labels'] = [None if f in self.folds else v for f, v in zip(frame['fold'], frame['labels'])]
        return frame


@pytest.mark.parametrize('folds,said', [(range(8, 11), r'train.val=8-10: no window of it has a known label'), (range(1, 8), 'no known label in fold 1-7')])
def test_a_fold_without_labels_is_refused(folds, said, tmp_path, monkeypatch):
    from ecgnb.sources.sample import Sample
    whole = Sample.frame.func
    monkeypatch.setattr(Sample, 'frame', property(lambda self: Unlabelled(folds)(whole(self))))
    monkeypatch.setenv('ECGNB_CACHE', str(tmp_path/'cache'))
    with pytest.raises(ValueError, match=said): train(run_of('s4', tmp_path/'a'), quiet=True)


def test_a_source_without_reports_is_refused_before_any_work(tmp_path, monkeypatch):
    from ecgnb.sources.sample import Sample
    whole = Sample.frame.func
    monkeypatch.setattr(Sample, 'frame', property(lambda self: whole(self).assign(text='')))
    monkeypatch.setenv('ECGNB_CACHE', str(tmp_path/'cache'))
    with pytest.raises(ValueError, match='has no reports there, and this model reads them'): train(run_of('merl', tmp_path/'a'), quiet=True)
    assert not (tmp_path/'cache').exists(), 'it was prepared first'


def test_one_patch_cannot_be_masked():
    with pytest.raises(ValueError, match='nothing to hide'): from_config(run_of('mlae', 'x', 'prepare.leads=II')['model'])


def test_patients_that_trained_a_model_are_named(tmp_path):
    train(run_of('mtae', tmp_path/'a'), quiet=True)
    run = run_of('finetune', tmp_path/'b', f"train.start={tmp_path/'a'}", 'train.train=8', 'train.val=9')
    train(run, quiet=True)
    for folder, known in (('a', '1-7'), ('b', '1-7'), ('b', '8')):      # its own, and those of the run it started from
        best, store = tmp_path/folder/'best', store_of(run)
        n = store.fold(known).frame['patient'].nunique()
        assert f'trained on {n} of these patients' in runs.trained_on(best, store.fold(known).frame, run['source'])
        assert runs.trained_on(best, store.fold('10').frame, run['source']) == ''
    assert runs.trained_on(tmp_path/'a'/'best', store_of(run).fold('1-7').frame, {'source': 'ptb_xl'}) == ''


class Evil:
    def __reduce__(self): return print, ('this file ran code',)


@pytest.mark.parametrize('whole', [torch.zeros(2), {'model_state_dict': torch.zeros(2)}, {'model_state_dict': [1]}, {0: torch.zeros(2)}, {}, {'model_state_dict': Evil()}])
def test_convert_refuses_what_is_no_state_dict(whole, tmp_path, capsys):
    torch.save(whole, tmp_path/'a.pt')
    with pytest.raises(CheckpointError): convert.read_foreign(tmp_path/'a.pt')
    assert 'ran code' not in capsys.readouterr().out


def test_convert_command(tmp_path, capsys):
    "A checkpoint of the reference, under DDP and torch.compile, becomes a folder that loads; the averaged weights where asked."
    from reference import Fixture
    f = Fixture('ecg_encoder__mtae')
    a = f.args
    torch.save({'model_state_dict': {f'module._orig_mod.{k}': v for k, v in f.weights.items()},
                'ema_state_dict': {f'_orig_mod.{k}': v*2 for k, v in f.weights.items() if v.is_floating_point() and 'pos' not in k}}, tmp_path/'epoch_best.pt')
    dim, E = a['embed_dim'], a['decoder_embed_dim']
    size = [f"prepare.seconds={a['seq_len']/250}", f"model.encoder.patch={a['patch_size']}", f'model.encoder.dim={dim}', f"model.encoder.depth={a['depth']}", f"model.encoder.heads={a['num_heads']}",
            'model.encoder.head_dim=64', f"model.encoder.mlp={a['mlp_ratio']*dim}", f'model.dec_dim={E}', f"model.dec_depth={a['decoder_depth']}", f"model.dec_heads={a['decoder_num_heads']}",
            'model.dec_head_dim=64', f"model.dec_mlp={a['mlp_ratio']*E}"]
    convert.main(['mtae', str(tmp_path/'epoch_best.pt'), f"out={tmp_path/'m'}", *size])
    m = load(tmp_path/'m', verbose=False)
    assert m.representation.leads == convert.LEADS and 'parameters, each of' in capsys.readouterr().out
    twice = convert.convert('mtae', tmp_path/'epoch_best.pt', *size, ema=True)
    assert torch.equal(twice.encoder.norm.weight, 2*m.encoder.norm.weight)
    with pytest.raises(CheckpointError, match='is there already'): convert.main(['mtae', str(tmp_path/'epoch_best.pt'), f"out={tmp_path/'m'}", *size])

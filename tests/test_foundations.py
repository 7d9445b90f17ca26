"""Every recipe of ECG-FM, ESI and what they are compared with, at a small size from the command line's own functions: it trains, saves, loads, and a fine-tuning starts from it."""
import numpy as np
import pytest
import torch

from ecgnb import foundations
from ecgnb.hub import load
from ecgnb.recipes import build, recipes
from ecgnb.train import store_of, train

DATA = ['source=sample', 'source.n=60', 'source.fs=128', 'prepare.fs=128', 'prepare.resample=polyphase', 'train.train=1-7', 'train.val=8-10', 'train.batch_size=8']
SHORT = ['fit.steps=2', 'fit.warmup=0', 'train.every=2', 'train.save=2']
HALF = ['prepare.seconds=10', 'model.encoder.segment=640']
WAV = ['model.encoder.dim=32', 'model.encoder.depth=1', 'model.encoder.heads=2', 'model.encoder.mlp=64', 'model.encoder.width=16', 'model.encoder.convs=3', 'model.encoder.kernel=8', 'model.encoder.groups=2']
FM = [*HALF, *WAV, 'model.proj=16', 'model.codes=8', 'model.rivals=5']
ESI = ['model.dim=32', 'model.depth=1', 'model.heads=2', 'model.head_dim=16', 'model.queries=4', 'model.context=32', 'model.text.name=minilm', 'model.text.frozen=true', 'model.text.most=64',
       'model.encoder=resnet1d', 'model.encoder.size=18', 'model.encoder.dim=32', 'prepare.seconds=4']
ROWS = {'ecg_fm_base': FM, 'ecg_fm_large': FM, 'tiny_ecg_fm': FM, 'cmsc': [*HALF, *WAV], 'simclr': [*WAV, 'prepare.seconds=5'], 'three_kg': [*WAV, 'prepare.seconds=5'], 'esi': ESI, 'tiny_esi': ESI}
LATER = 'ecg_fm_finetune',

pytestmark = pytest.mark.usefixtures('stores')


def run_of(name, out, *more):
    data = [t for t in DATA if name != 'ecg_fm_finetune' or not t.startswith('prepare')]
    return build(name, *data, *SHORT, *ROWS.get(name, []), *more, f'out={out}')


def test_every_recipe_is_tried_here():
    assert {*ROWS, *LATER} == {n for n, f in recipes.items() if f.__module__ == foundations.__name__}


@pytest.mark.parametrize('name', list(ROWS))
def test_recipe_trains_saves_and_loads(name, tmp_path):
    run = run_of(name, tmp_path/'a')
    done = train(run, quiet=True)
    m = load(tmp_path/'a'/'best', verbose=False)
    assert done['step'] == 2 and np.isfinite(done['best_val_loss'])
    if 'segment' in run['model']['encoder']: assert m.encoder.n_tokens == m.encoder.n_segments*(m.encoder.length//m.encoder.n_segments//m.encoder.hop)
    assert m.encoder.features(torch.randn(2, 12, m.encoder.length)).isfinite().all()


def test_ecg_fm_is_fine_tuned_by_segments(tmp_path):
    train(run_of('tiny_ecg_fm', tmp_path/'a'), quiet=True)
    first = load(tmp_path/'a'/'best', verbose=False)
    run = run_of('ecg_fm_finetune', tmp_path/'b', f"train.start={tmp_path/'a'}", 'model.weight=none', 'fit.lr=1e-3')
    assert run['prepare']['fs'] == 128 and run['model']['encoder']['dim'] == 32 and run['model']['encoder']['input_dropout'] == 0
    train(run, quiet=True)
    second = load(tmp_path/'b'/'best', verbose=False)
    assert second.segments == 2 and second.encoder.n_segments == 2
    assert all(torch.equal(p, q) for p, q in zip(first.encoder.stem.parameters(), second.encoder.stem.parameters()))
    assert not torch.equal(first.encoder.project.weight, second.encoder.project.weight)


def test_a_retrieved_report_is_written_by_the_tiny_esi(tmp_path):
    run = run_of('tiny_esi', tmp_path/'a')
    train(run, quiet=True)
    m, store = load(tmp_path/'a'/'best', verbose=False), store_of(run, quiet=True)
    from ecgnb.loader import loader
    b = loader(store, 3, shuffle=False)[0]
    assert m.ecg(b).shape == (3, 32) and len(m.caption(b, most=4)) == 3 and m.texts(['sinus rhythm']).shape == (1, 32)

"""Every recipe of an ECG-language model at a small size, from the command line's own functions: it trains, saves, loads, answers, and later stages go on from it."""
import numpy as np
import pytest
from llms import tiny
from visions import tiny as vision

from ecgnb.hub import load
from ecgnb.recipes import build, recipes
from ecgnb.registry import from_config
from ecgnb.train import store_of, train

DATA = ['source=synth_qa', 'source.ecg.n=60', 'source.ecg.fs=100', 'source.kinds=rate', 'prepare.fs=100', 'prepare.seconds=10', 'train.train=1-7', 'train.val=8-10', 'train.batch_size=8',
        'fit.steps=2', 'fit.warmup=0', 'train.every=2', 'train.save=2', 'fit.precision=float32']
VIT = ['model.encoder.dim=32', 'model.encoder.depth=1', 'model.encoder.heads=2', 'model.encoder.patch=100']
TOKENS = ['model.connector.tokens=5']
ROWS = {'elm_llava': [*VIT, *TOKENS], 'elm_llava_linear': [*VIT, *TOKENS], 'elm_connector': [*VIT, *TOKENS, 'source.question=Say it.'], 'elm_end_to_end': [*VIT, *TOKENS], 'tiny_elm': [*VIT, *TOKENS],
        'elm_vision': [], 'elm_finetune': [], 'elm_flat': [], 'elm_patches': TOKENS, 'elm_conv': TOKENS, 'elm_text': [],
        'elm_byte': ['model.representation=symbols', 'model.representation.flatten=time', 'model.representation.context=64']}
LATER = 'elm_scratch', 'elm_next'       # start from a run


pytestmark = pytest.mark.usefixtures('stores')


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('models')


def run_of(name, folder, out, *more):
    data = [t for t in DATA if not (name == 'elm_connector' and t.startswith('source'))]
    if name == 'elm_connector': data += ['source.ecg.n=60', 'source.ecg.fs=100']
    if name in ('elm_vision', 'elm_finetune'): more = f'model.encoder.name={vision(folder/"clip", "clip")}', *more
    llm = [] if name == 'elm_next' else [f'model.llm={tiny(folder, "llama")}', 'model.context=512', 'model.system=Brief.']
    return build(name, *data, *llm, *ROWS.get(name, []), *more, f'out={out}')


def test_every_recipe_is_tried_here(): assert {*ROWS, *LATER} == {n for n, f in recipes.items() if f()['model']['objective'] == 'answer'}


def answers(run):
    model, src = load(f"{run['out']}/best", verbose=False), from_config(run['source'])
    b = src.loader(store_of(run, quiet=True, src=src), batch_size=2, shuffle=False)[0]
    said = model.reply(b, most=4)
    assert len(said) == 2 and all(isinstance(s, str) for s in said)
    return model


@pytest.mark.parametrize('name', list(ROWS))
def test_recipe_trains_saves_loads_and_answers(name, folder, tmp_path):
    run = run_of(name, folder, tmp_path/'a')
    done = train(run, quiet=True)
    assert done['step'] == 2 and np.isfinite(done['best_val_loss']) and done['best_val_loss'] > 0 and done['talks']['train'] > 8
    answers(run)


def test_stages_from_an_encoder_to_the_last(folder, tmp_path):
    "A pretrained encoder, joined (elm_scratch), then the next stage (elm_next) with everything as it was."
    plain = ['source=sample', 'source.n=60', 'source.fs=100', 'prepare.fs=100', 'prepare.seconds=10', 'train.train=1-7', 'train.val=8-10', 'train.batch_size=8', 'fit.steps=2', 'fit.warmup=0',
             'train.every=2', 'train.save=2', 'model.encoder.dim=32', 'model.encoder.depth=1']
    train(build('tiny', *plain, f'out={tmp_path}/0'), quiet=True)
    first = run_of('elm_scratch', folder, tmp_path/'1', f'train.start={tmp_path}/0', *TOKENS)
    assert first['model']['encoder']['dim'] == 32 and first['prepare']['low'] == .5
    train(first, quiet=True)
    second = run_of('elm_next', folder, tmp_path/'2', f'train.start={tmp_path}/1', 'fit.lr=0')
    assert all(second['model'][k] == v for k, v in first['model'].items())
    train(second, quiet=True)
    a, b = answers(first).state_dict(), answers(second).state_dict()
    assert a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a), 'the rate was 0: all is as in the stage before'

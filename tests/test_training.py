"""Training promises: the same seed gives the same bits, a killed run resumes to them, two ranks equal one, nothing loads in silence."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
import pytest
import torch
from safetensors.torch import load_file, save_file
from ecgnb.hub import CheckpointError, check_contract, load
from ecgnb.recipes import build
from ecgnb.train import Watch, lock, store_of, train

SIZE = ['source.n=60', 'source.seconds=5.0', 'prepare.seconds=5.0', 'model.encoder.depth=1', 'model.encoder.dim=32', 'model.encoder.heads=2', 'model.dec_depth=1', 'model.dec_dim=16',
        'model.dec_heads=2', 'train.batch_size=16', 'train.every=10', 'train.save=5', 'train.log=1', 'train.keep=1', 'fit.warmup=4']
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def cache(stores):
    "One prepared store for the whole file; subprocesses find it through the environment."
    store_of(build('tiny', *SIZE))
    return stores


def run_of(out, *more): return build('tiny', *SIZE, *more, f'out={out}')


def command(out, *more, launcher=()):
    env = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), 'ACCELERATE_USE_CPU': 'true', 'HF_HUB_OFFLINE': '1'}
    return subprocess.Popen([sys.executable, *(launcher or ('-m', 'ecgnb.train')), 'tiny', *SIZE, *more, f'out={out}'], env=env, cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(p, timeout=300):
    said, _ = p.communicate(timeout=timeout)
    assert p.returncode == 0, said[-3000:]
    return said


def weights(out): return load_file(Path(out)/'best'/'model.safetensors')


def last(out): return torch.load(sorted((Path(out)/'last').glob('step_*'))[-1]/'state.pt', weights_only=True)


def losses(out): return {r['step']: r['loss'] for r in map(json.loads, (Path(out)/'log.jsonl').read_text().splitlines())}


def same(a, b):
    "Bit equality of nested states."
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(cache, tmp_path):
    for name, more in (('a', ()), ('b', ()), ('c', ('fit.seed=1',))): train(run_of(tmp_path/name, 'fit.steps=6', *more), quiet=True)
    assert same(last(tmp_path/'a')['fit'], last(tmp_path/'b')['fit']) and losses(tmp_path/'a') == losses(tmp_path/'b')
    assert not same(last(tmp_path/'a')['fit']['model'], last(tmp_path/'c')['fit']['model'])


def test_golden_losses(cache, tmp_path):
    "The first and the sixth loss of a fixed run: a change of these numbers is a change of the data, the model, the masks or the optimizer."
    train(run_of(tmp_path/'a', 'fit.steps=6'), quiet=True)
    seen = losses(tmp_path/'a')
    assert (seen[1], seen[6]) == pytest.approx(GOLDEN, rel=5e-3), seen


GOLDEN = (1.46792, 1.36090)


def test_kill_9_and_resume_to_the_same_bits(cache, tmp_path):
    "Kill at a random moment after the first checkpoint, resume by the same command, twice; compare with a run left alone."
    steps, rng = 'fit.steps=40', random.Random(time.time_ns())
    finish(command(tmp_path/'whole', steps))
    killed, tries = 0, 0
    while tries < 4:
        p = command(tmp_path/'cut', steps); tries += 1
        mark = sorted((tmp_path/'cut').glob('last/step_*'))[-1:]
        while p.poll() is None and sorted((tmp_path/'cut').glob('last/step_*'))[-1:] == mark: time.sleep(.002)
        time.sleep(rng.random()*.15)
        if p.poll() is None and killed < 2: p.send_signal(signal.SIGKILL); p.wait(); killed += 1
        else: finish(p); break
    assert killed, 'the run was over before it could be killed'
    assert same(last(tmp_path/'cut')['fit'], last(tmp_path/'whole')['fit']), 'model, optimizer, average or step differ'
    assert same(last(tmp_path/'cut')['watch'], last(tmp_path/'whole')['watch'])
    assert same(weights(tmp_path/'cut'), weights(tmp_path/'whole')) and losses(tmp_path/'cut') == losses(tmp_path/'whole')
    assert not [f for f in (tmp_path/'cut').rglob('.*.new*')], 'half-written folders remain'


@pytest.mark.parametrize('kind', [signal.SIGTERM, signal.SIGINT])
def test_a_stop_saves_after_the_step_and_the_same_command_goes_on_to_the_same_bits(cache, tmp_path, kind):
    steps = ('fit.steps=60', 'train.save=1000', 'train.every=60')
    p = command(tmp_path/'cut', *steps)
    while p.poll() is None and not ((tmp_path/'cut'/'log.jsonl').exists() and len(losses(tmp_path/'cut')) > 3): time.sleep(.01)
    p.send_signal(kind)
    said, _ = p.communicate(timeout=60)
    assert p.returncode != 0 and 'the same command goes on' in said, said[-2000:]
    assert 3 <= last(tmp_path/'cut')['fit']['i'] < 60
    train(run_of(tmp_path/'cut', *steps), quiet=True); train(run_of(tmp_path/'whole', *steps), quiet=True)
    assert same(last(tmp_path/'cut')['fit'], last(tmp_path/'whole')['fit'])


def test_best_holds_the_averaged_weights(cache, tmp_path):
    train(run_of(tmp_path/'a', 'fit.steps=20', 'fit.ema=0.9'), quiet=True)
    s, w = last(tmp_path/'a'), weights(tmp_path/'a')
    assert s['watch']['step'] == 20, 'the last validation was the best: its weights are those of the last state'
    assert all(torch.equal(w[k], v) for k, v in s['fit']['ema']['state'].items())
    assert any(not torch.equal(w[k], v) for k, v in s['fit']['model'].items())


def test_what_a_killed_write_left_is_cleared_or_put_back(cache, tmp_path):
    train(run_of(tmp_path/'a', 'fit.steps=5'), quiet=True)
    (tmp_path/'a'/'results.json').unlink(); (tmp_path/'a'/'best').rename(tmp_path/'a'/'.best.old99999')
    (tmp_path/'a'/'last'/'.step_00000007.new99999').mkdir(); (tmp_path/'a'/'.best.new99999').mkdir()
    assert train(run_of(tmp_path/'a', 'fit.steps=5'), quiet=True)['finished']
    assert (tmp_path/'a'/'best'/'model.safetensors').exists() and not list((tmp_path/'a').rglob('.*99999'))


@pytest.mark.parametrize('damage,said', [('run', 'run.json: not JSON'), ('log', 'log.jsonl: not JSON'), ('state', 'state.pt cannot be read'), ('no run', 'no run.json'),
                                         ('no best', 'best is gone')])
def test_a_damaged_run_says_which_file(cache, tmp_path, damage, said):
    train(run_of(tmp_path/'a', 'fit.steps=5'), quiet=True)
    (tmp_path/'a'/'results.json').unlink()
    state = sorted((tmp_path/'a'/'last').glob('step_*'))[-1]/'state.pt'
    if damage == 'run': (tmp_path/'a'/'run.json').write_text('{"recipe": ')
    if damage == 'log': (tmp_path/'a'/'log.jsonl').write_text('xx}')
    if damage == 'state': state.write_bytes(state.read_bytes()[:1000])
    if damage == 'no run': (tmp_path/'a'/'run.json').unlink()
    if damage == 'no best': shutil.rmtree(tmp_path/'a'/'best')
    with pytest.raises(ValueError, match=said): train(run_of(tmp_path/'a', 'fit.steps=5'), quiet=True)


def test_a_store_damaged_at_the_same_size_is_not_trained_on(cache, tmp_path):
    run = run_of(tmp_path/'a', 'fit.steps=2', 'source.seed=5')
    file = next(store_of(run).path.glob('data-*.arrow'))
    whole = bytearray(file.read_bytes()); whole[len(whole)//2] ^= 255; file.write_bytes(whole)
    with pytest.raises(ValueError, match='its bytes are not those that were written'): train(run, quiet=True)


def test_two_trainings_in_one_folder(cache, tmp_path):
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'.best.new1').mkdir(); (tmp_path/'a'/'log.jsonl').write_text('theirs')
    held = lock(tmp_path/'a')
    with pytest.raises(ValueError, match='another training is at work'): train(run_of(tmp_path/'a', 'fit.steps=2'), quiet=True)
    assert (tmp_path/'a'/'.best.new1').is_dir() and (tmp_path/'a'/'log.jsonl').read_text() == 'theirs', "the other's work was touched"
    held.close()
    assert train(run_of(tmp_path/'a', 'fit.steps=2'), quiet=True)['finished']


TORCHRUN = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m', 'ecgnb.train')
ACCELERATE = ('-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no',
              '--dynamo_backend', 'no', '-m', 'ecgnb.train')      # with ACCELERATE_USE_CPU: two gloo processes


@pytest.mark.parametrize('launcher,more', [(TORCHRUN, ()), (ACCELERATE, ('fit.accumulate=2',))], ids=['torchrun', 'accelerate'])
def test_two_ranks_equal_one(cache, tmp_path, launcher, more):
    "The same global batches on two gloo processes: the same losses and, after the gradients were averaged, the same weights to rounding."
    more = ('fit.steps=6', 'fit.optim=adamw', 'fit.lr=0.001', *more)      # Muon rounds to bf16 inside, which hides a difference of 1e-3
    train(run_of(tmp_path/'one', *more), quiet=True)
    finish(command(tmp_path/'two', *more, launcher=launcher))
    a, b = losses(tmp_path/'one'), losses(tmp_path/'two')
    assert a.keys() == b.keys() and all(a[k] == pytest.approx(b[k], rel=1e-5) for k in a), (a, b)
    x, y = last(tmp_path/'one')['fit'], last(tmp_path/'two')['fit']
    grad = lambda s: [v['exp_avg'] for v in s['opts'][0]['state'].values()]
    for g, h in zip(grad(x), grad(y)): torch.testing.assert_close(g, h, atol=1e-6, rtol=1e-3)
    for k in x['model']:    # Adam divides by the gradient's own size, so rounding of a near-zero one moves its weight by up to a step (lr 1e-3)
        torch.testing.assert_close(x['model'][k], y['model'][k], atol=5e-4, rtol=1e-3)
    done = [json.loads((tmp_path/n/'results.json').read_text()) for n in ('one', 'two')]
    assert done[0]['best_val_loss'] == pytest.approx(done[1]['best_val_loss'], rel=1e-5)


def test_early_stop_is_by_relative_improvement_of_other_patients(cache, tmp_path):
    w = Watch(patience=2, delta=.1)
    assert [(w(v, i), w.stop) for i, v in enumerate((1e-3, 8e-4, 7.9e-4, 7.8e-4))] == [(True, False), (True, False), (True, False), (True, True)]
    done = train(run_of(tmp_path/'a', 'fit.steps=40', 'fit.lr=1e-12', 'fit.ema=0.0', 'train.every=2', 'train.patience=3'), quiet=True)
    assert done['step'] == 8, 'one validation that counts and three without improvement'


def test_another_run_in_the_same_folder_is_refused_and_nothing_is_touched(cache, tmp_path):
    train(run_of(tmp_path/'a', 'fit.steps=2'), quiet=True)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path/'a').rglob('*')}
    with pytest.raises(ValueError, match='fit.lr: 0.02 -> 0.5'): train(run_of(tmp_path/'a', 'fit.steps=2', 'fit.lr=0.5'), quiet=True)
    assert {f: f.stat().st_mtime_ns for f in (tmp_path/'a').rglob('*')} == before


def test_a_patient_in_train_and_validation_is_refused(cache, tmp_path):
    with pytest.raises(ValueError, match='is in two parts: train.train=1-9'):
        train(run_of(tmp_path/'a', 'fit.steps=2', 'train.train=1-9'), quiet=True)
    assert not (tmp_path/'a'/'run.json').exists()


@pytest.mark.parametrize('more,said', [
    (('model.encoder.dpeth=3',), "StVit has no field 'dpeth'; it has leads, length"), (('fit.lr=fast',), 'wanted float'), (('source=ptbxl',), "did you mean 'ptb_xl'"),
    (('prepare.leads=I,II,V9x',), "unknown lead 'V9x'"), (('model.encoder.length=400',), 'length'), (('fit.optim=sgdd',), 'no optimizer'),
    (('fit.lr=-1.0',), 'fit.lr=-1.0; wanted 0'), (('train.every=0',), 'train.every=0; wanted 1'), (('train.batch_size=5000',), 'makes 47 windows at most'), (('train.train=trian',), "no fold 'trian'"), (('prepare.leads=',), 'no leads are named'),
    (('train.train=1-9',), 'is in two parts'), (('model.representation.fs=500.0',), 'fs: the data have 100.0'), (('fit.seed=99999999999999',), 'fit.seed')])
def test_bad_input_is_refused_before_any_work(tmp_path, more, said, monkeypatch):
    monkeypatch.setenv('ECGNB_CACHE', str(tmp_path/'cache'))
    with pytest.raises(ValueError, match=said): train(run_of(tmp_path/'a', 'fit.steps=2', *more), quiet=True)
    assert not (tmp_path/'a').exists() and not (tmp_path/'cache').exists()


def test_unknown_recipe():
    with pytest.raises(ValueError, match="no recipe 'stmem'; did you mean 'st_mem'"): build('stmem')


@pytest.mark.parametrize('damage', ['renamed', 'missing', 'extra', 'shape', 'cut', 'garbled', 'config', 'pickle'])
def test_loading_is_strict(cache, tmp_path, damage):
    train(run_of(tmp_path/'a', 'fit.steps=1'), quiet=True)
    file, config = tmp_path/'a'/'best'/'model.safetensors', tmp_path/'a'/'best'/'config.json'
    w = {n: v.clone() for n, v in load_file(file).items()}     # load_file maps the file, which is about to be overwritten
    k = 'encoder.' + next(n for n in w if n.startswith('encoder.')).split('.', 1)[1]
    if damage == 'renamed': save_file({('_orig_mod.' + n if n == k else n): v for n, v in w.items()}, file); said = 'not in the file: ' + k
    if damage == 'missing': save_file({n: v for n, v in w.items() if n != k}, file); said = k
    if damage == 'extra': save_file(w | {'more': torch.zeros(1)}, file); said = 'not in the model: more'
    if damage == 'shape': save_file(w | {k: torch.zeros(3)}, file); said = r'\(3,\) in the file'
    if damage == 'cut': file.write_bytes(file.read_bytes()[:-100]); said = 'damaged'
    if damage == 'garbled': file.write_bytes(b'\xff'*200); said = 'damaged'
    if damage == 'config': config.write_text(config.read_text()[:50]); said = 'not JSON'
    if damage == 'pickle': torch.save(w, file); said = 'damaged, or not a safetensors file'
    with pytest.raises(CheckpointError, match=said): load(tmp_path/'a'/'best')


def test_a_store_of_another_contract_is_refused(cache, tmp_path):
    train(run_of(tmp_path/'a', 'fit.steps=1'), quiet=True)
    store = store_of(build('tiny', *SIZE, 'prepare.fs=50'))
    with pytest.raises(CheckpointError, match='fs: the data have 50.0, the model reads 100.0'): load(tmp_path/'a'/'best', contract=store.contract)
    check_contract(store_of(build('tiny', *SIZE)).contract, load(tmp_path/'a'/'best', verbose=False).representation.contract)


def test_a_non_finite_loss_stops_the_run_and_names_the_step(cache, tmp_path):
    with pytest.raises(FloatingPointError, match='step [0-9]+: loss'): train(run_of(tmp_path/'a', 'fit.steps=30', 'fit.optim=adamw', 'fit.lr=1e30', 'fit.warmup=0', 'fit.clip=0.0'), quiet=True)

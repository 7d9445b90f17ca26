"""A language model in parts on two gloo processes (FSDP, by tools/fsdp.yaml): the steps, weights and files of one process, half of the numbers on each."""
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, GradientAccumulationPlugin
from llms import tiny
from project import ROOT
import ecgnb.train
from ecgnb import connector, encoder, objective, representation
from ecgnb.batch import sample_seeds
from ecgnb.fit import fit
from ecgnb.hub import load
from ecgnb.recipes import complete, run_of
from ecgnb.registry import from_config, to_config
from ecgnb.train import Stop, store_of, train, validate

HOW = dict(whole={}, lora=dict(lora=2, lora_dropout=0.), frozen=dict(learn='encoder,connector'))
FIT = dict(whole={}, lora=dict(accumulate=2), frozen=dict(clip=0.))
SOURCE = {'source': 'synth_qa', 'kinds': 'rate,rhythm', 'per_record': 1, 'ecg': {'source': 'sample', 'n': 64, 'seconds': 4., 'fs': 50.}}


def sharding(accumulate=1):
    "An accelerator that shards as the environment says: on CPUs, Accelerate has to be told."
    a = Accelerator(gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulate, sync_with_dataloader=False))
    a.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    a.state.distributed_type = PartialState._shared_state['distributed_type'] = DistributedType.FSDP
    return a


def build(llm, **more):
    torch.manual_seed(0)
    r = representation['signal'](leads='I,II', length=200, fs=50.)
    e = encoder['vit1d'](leads='I,II', length=200, dim=16, depth=1, heads=2, patch=50)
    return objective['answer'](r, e, connector['linear'](), llm=llm, **dict(context=128, learn='encoder,connector,llm') | more)


class Talks:
    "Batches of 4 talks by step, each process's share of them; talks of step 1 that the second has are about no ECG."
    def __init__(self, n=100, of=4, rank=0, world=1): self.n, self.of, self.rank, self.world = n, of, rank, world
    def __len__(self): return self.n
    def share(self, rank, world): return Talks(self.n, self.of, rank, world)
    def stream(self, start, end, workers=0, pin=False): return (self[k] for k in iter(range(start, self.n)))
    def __getitem__(self, k):
        size, words = self.of//self.world, ('sinus rhythm', 'atrial fibrillation', 'yes', 'bradycardia')
        mine = range(self.rank*size, (self.rank + 1)*size)
        bare = [k == 1 and i >= self.of//2 for i in mine]
        x = torch.randn(self.of, 2, 200, generator=torch.Generator().manual_seed(k))[mine.start:mine.stop][[not b for b in bare]]
        talk = lambda i, b: dict(id=str(i), records=[] if b else [f'r{i}'], kind='', answers=[words[(i + k) % 4]],
                                 turns=[dict(role='user', text='Rate?' if b else '<ecg>\nWhat is the rhythm?'), dict(role='assistant', text=words[(i + k) % 4])])
        return dict(signal=x, seed=sample_seeds(0, k, range(len(x))), record=[f'r{i}' for i, b in zip(mine, bare) if not b],
                    talks=[talk(i, b) for i, b in zip(mine, bare)])


def steps(model, accelerator=None, **more):
    "([(loss, gradient norm)], last state) of four steps."
    rows = []
    for s in fit(model, Talks(), 4, accelerator=accelerator, lr=1e-2, ema=.5, **more): rows.append((s.loss, s.norm))
    return rows, s


def run_in(out, llm, **more):
    "A short run on synth_qa whose validation has an odd number of batches."
    model = to_config(build(llm, **more))
    return complete(run_of(model, SOURCE, str(out), dict(fs=50., seconds=4., leads='I,II'), fit=dict(steps=6, lr=1e-2, ema=.5, warmup=1),
                           train=dict(batch_size=2, every=3, save=2, log=1, keep=9)))


def launch(body, folder, timeout=120):
    "Run `body` in two processes with tools/fsdp.yaml -> what they printed. AssertionError: the end of its errors."
    program = Path(folder)/'ranks.py'
    program.write_text('from test_sharded import *\n' + f'faulthandler.dump_traceback_later({timeout}, exit=True)\n'
                       + 'a = sharding()\nrank = a.process_index\n' + body)
    env = os.environ | {'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true', 'HF_HUB_OFFLINE': '1',
                        'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT/'tests')])}
    p = subprocess.run([sys.executable, '-m', 'accelerate.commands.launch', '--config_file', 'tools/fsdp.yaml', '--num_processes', '2',
                        '--main_process_port', '0', str(program)], env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout + 60)
    assert p.returncode == 0, (p.stdout + p.stderr).split('torch.distributed.elastic')[0][-4000:]
    return p.stdout


@pytest.fixture(scope='module')
def llm(tmp_path_factory): return tiny(tmp_path_factory.mktemp('llms'))


@pytest.fixture(scope='module')
def two(llm, tmp_path_factory):
    "What two processes made of `steps` with each of HOW."
    folder = tmp_path_factory.mktemp('steps')
    launch(f"""
out = {{}}
for kind, how in HOW.items():
    a, m = sharding(FIT[kind].get('accumulate', 1)), build({llm!r}, **how)
    count = sum(p.numel() for p in m.parameters())
    rows, s = steps(m, a, **FIT[kind])
    held, by = sum(p.to_local().numel() for p in m.parameters()), {{type(l).__name__ for l in m.modules() if 'FSDP' in type(l).__name__}}
    with s.averaged() as m: loss = validate(m, Talks(3), a)            # two batches for one process, one for the other
    state = s.state_dict()
    out[kind] = dict(rows=rows, held=held, count=count, by=sorted(by), model=state['model'], ema=state['ema']['state'], loss=loss)
if rank == 0: torch.save(out, {str(folder/'two.pt')!r})
""", folder)
    return torch.load(folder/'two.pt', weights_only=True)


@pytest.mark.parametrize('kind', HOW)
def test_sharded_steps_are_those_of_one_process(llm, two, kind):
    rows, s = steps(build(llm, **HOW[kind]), **FIT[kind])
    got, one = two[kind], s.state_dict()
    torch.testing.assert_close(torch.tensor(got['rows']), torch.tensor(rows), atol=1e-5, rtol=1e-5)
    assert got['model'].keys() == one['model'].keys() and any(k.startswith('lm.') for k in one['model']) == (kind != 'frozen')
    for a, b in ((got['model'], one['model']), (got['ema'], one['ema']['state'])):
        for k in b:     # a bias of keys has no gradient but rounding, which Adam makes a step of
            if 'qkv.bias' not in k: torch.testing.assert_close(a[k], b[k], atol=1e-5, rtol=1e-4, msg=lambda m: f'{k}: {m}')
    with s.averaged() as m: assert got['loss'] == pytest.approx(validate(m, Talks(3), s.accelerator), rel=1e-5)
    assert .45 < got['held']/got['count'] < .6 and got['by'] == ['FSDPLlamaDecoderLayer']


def logged(out): return {r['step']: r for r in map(json.loads, (Path(out)/'log.jsonl').read_text().splitlines())}


def test_train_stops_resumes_and_saves_sharded(llm, tmp_path, monkeypatch):
    """`ecgnb.train` on two processes: left alone; stopped by a signal that only the second gets, then gone on with, also by one
    process; out of patience, in bfloat16; compiled, which is refused. The first is that of one process, and its best weights load in one."""
    monkeypatch.setenv('ECGNB_CACHE', str(tmp_path/'cache'))
    kind = dict(lora=2, lora_dropout=0.)
    one, run = run_in(tmp_path/'one', llm, **kind), run_in(tmp_path/'two', llm, **kind)
    train(one, quiet=True)
    launch(f"""
run, calls = json.loads({json.dumps(run)!r}), 0
class Signalled(Stop):
    def agreed(self, accelerator):
        global calls
        calls += 1
        if calls == 3 and rank == 1: os.kill(os.getpid(), signal.SIGTERM)
        return super().agreed(accelerator)
train(run, quiet=True)
again = run | dict(out={str(tmp_path/'again')!r})
ecgnb.train.Stop = Signalled
sharding()
try: train(again, quiet=True); raise SystemExit('not stopped')
except KeyboardInterrupt: assert calls == 3
if rank == 0: shutil.copytree(again['out'], {str(tmp_path/'alone')!r})
sharding()
train(again, quiet=True)
sharding()
early = dict(out={str(tmp_path/'early')!r}, model=run['model'] | dict(dtype='bfloat16'), fit=run['fit'] | dict(lr=1e-12, precision='bf16'))
done = train(run | early | dict(train=run['train'] | dict(every=1, patience=2)), quiet=True)
assert done['step'] == 3, done
sharding()
try: train(run | dict(out={str(tmp_path/'compiled')!r}, fit=run['fit'] | dict(compile=True)), quiet=True); raise SystemExit('compiled')
except ValueError as err: assert 'set fit.compile=false' in str(err)
""", tmp_path)
    train(run | dict(out=str(tmp_path/'alone')), quiet=True)
    a, b, c, d = (logged(tmp_path/n) for n in ('one', 'two', 'again', 'alone'))
    assert a.keys() == b.keys() == c.keys() == d.keys() == set(range(1, 7))
    for k in a:
        assert b[k]['loss'] == pytest.approx(a[k]['loss'], rel=1e-4) == d[k]['loss'] and c[k]['loss'] == b[k]['loss']
    x, y = (torch.load(tmp_path/n/'last'/'step_00000006'/'state.pt', weights_only=True)['fit'] for n in ('two', 'again'))
    assert x['model'].keys() == y['model'].keys() and x['model'] and all(torch.equal(v, y['model'][k]) for k, v in x['model'].items())
    assert all(torch.equal(v, y['ema']['state'][k]) for k, v in x['ema']['state'].items())
    assert sorted(p.name for p in (tmp_path/'again'/'last').iterdir()) == [f'step_0000000{i}' for i in (2, 3, 4, 6)]
    done = json.loads((tmp_path/'two'/'results.json').read_text())
    best, src = load(tmp_path/'two'/'best', verbose=False), from_config(run['source'])
    part = store_of(run, quiet=True).fold(run['train']['val'])
    unseen = src.loader(part, 2, shuffle=False, drop_last=False, then=best.reader)
    assert len(unseen) % 2, 'the processes had the same number of batches'
    assert validate(best, unseen, Accelerator()) == pytest.approx(done['best_val_loss'], rel=1e-5)

"""A language model in parts on two gloo processes (FSDP, by tools/fsdp.yaml): the steps, weights and files of one process, half of the numbers on each."""
import faulthandler
import json
import os
import subprocess
import sys
from pathlib import Path
import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from llms import tiny
from project import ROOT
from safetensors.torch import load_file
from ecgnb import connector, encoder, objective, representation
from ecgnb.batch import sample_seeds
from ecgnb.fit import fit
from ecgnb.hub import load
from ecgnb.recipes import complete, run_of
from ecgnb.registry import from_config, to_config
from ecgnb.sharded import full, sharded
from ecgnb.train import store_of, train, validate

HOW = dict(whole={}, lora=dict(lora=2, lora_dropout=0.), frozen=dict(learn='encoder,connector', dtype='bfloat16'))
SOURCE = {'source': 'synth_qa', 'kinds': 'rate,rhythm', 'per_record': 1, 'ecg': {'source': 'sample', 'n': 60, 'seconds': 4., 'fs': 50.}}


def sharding():
    "An accelerator that shards as the environment says: on CPUs, Accelerate has to be told."
    a = Accelerator()
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


def steps(model, accelerator=None, n=4, **more):
    "(losses, gradient norms, last state) of `n` steps."
    rows = []
    for s in fit(model, Talks(), n, accelerator=accelerator, **dict(lr=1e-2, ema=.5, accumulate=1) | more): rows.append((s.loss, s.norm))
    return rows, s


def run_in(out, llm, *, patience=0, **more):
    "A short run on synth_qa whose validation has an odd number of batches."
    model = to_config(build(llm, **more))
    return complete(run_of(model, SOURCE, str(out), dict(fs=50., seconds=4., leads='I,II'), fit=dict(steps=6, lr=1e-2, ema=.5, warmup=1),
                           train=dict(batch_size=2, every=3, save=2, log=1, keep=9, patience=patience)))


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


@pytest.mark.parametrize('kind', HOW)
def test_sharded_steps_are_those_of_one_process(llm, tmp_path, kind):
    launch(f"""
m = build({llm!r}, **HOW[{kind!r}])
count = sum(p.numel() for p in m.parameters())
rows, s = steps(m, a)
held = sum(p.to_local().numel() for p in m.parameters())
assert sharded(a) and len({{type(l).__name__ for l in m.lm.model.layers if type(l).__name__.startswith('FSDP')}}) == 1
with s.averaged() as m: loss = validate(m, Talks(3), a)
state = s.state_dict()
if rank == 0: torch.save(dict(rows=rows, held=held, count=count, model=state['model'], ema=state['ema']['state'], loss=loss), {str(tmp_path/'two.pt')!r})
""", tmp_path)
    two = torch.load(tmp_path/'two.pt', weights_only=True)
    rows, s = steps(build(llm, **HOW[kind]))
    torch.testing.assert_close(torch.tensor(two['rows']), torch.tensor(rows), atol=1e-5, rtol=1e-5)
    one = s.state_dict()
    assert two['model'].keys() == one['model'].keys() and any(k.startswith('lm.') for k in one['model']) == (kind != 'frozen')
    for a, b in ((two['model'], one['model']), (two['ema'], one['ema']['state'])):
        for k in b:     # a bias of keys has no gradient but rounding, which Adam makes a step of
            if 'qkv.bias' not in k: torch.testing.assert_close(a[k], b[k], atol=1e-5, rtol=1e-4, msg=lambda m: f'{k}: {m}')
    with s.averaged() as m: assert two['loss'] == pytest.approx(validate(m, Talks(3), s.accelerator), rel=1e-5)
    assert .45 < two['held']/two['count'] < .6, 'the main process holds more than its part'

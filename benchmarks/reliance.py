"""Does an ECG-language model look at the ECG? SmolLM2-135M on features of a small ST-MEM, asked about simulated ECGs of known truth and about PTB-XL by ECG-QA.

Three trainings by the command line's own functions, on one CPU core: ST-MEM on simulated ECGs without questions; connector, LoRA adapters and encoder on questions about rate and rhythm of other simulated patients; these further on
ECG-QA's questions about PTB-XL, folds 1-7. Judged by `ecgnb.answers` on patients never trained on: simulated fold 10, PTB-XL folds 9-10, with the ECG and with each control on the same draws of patients. One seed.
Writes benchmarks/reliance.json (--quick does not), which nbs/explanations/does_it_look.ipynb shows. `--runs DIR` keeps the runs, and goes on with them.
"""
import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from ecgnb.answers import judge
from ecgnb.hub import load
from ecgnb.recipes import build
from ecgnb.registry import from_config
from ecgnb.settings import data_dir
from ecgnb.train import store_of, train

FEATURES = 'source.n=3000', 'source.fs=100', 'source.seed=11', 'fit.steps=1000'
SYNTH = ('source.kinds=rate,rhythm', 'source.comparison=0', 'source.ecg.n=1500', 'source.ecg.seed=21', 'model.connector.tokens=10', 'fit.steps=360', 'fit.lr=1e-3', 'fit.warmup=20',
         'fit.precision=bf16', 'train.batch_size=16', 'train.every=180', 'train.save=60')
REAL = ('source=ecg_qa', 'source.variant=both', 'train.train=1-7', 'train.val=8', 'fit.steps=60', 'fit.lr=5e-4', 'fit.warmup=10', 'fit.precision=bf16', 'train.batch_size=16', 'train.every=20', 'train.save=20')
QUICK = dict(features=('source.n=40', 'fit.steps=3', 'train.every=3', 'train.batch_size=4'), synth=('source.ecg.n=40', 'fit.steps=2', 'train.every=2', 'train.batch_size=4'))


RHYTHM = 'source.kinds=rhythm', 'source.ecg.n=1000', 'source.ecg.seed=31'      # other patients again, for more questions about the rhythm


def judged(run, fold, talks):
    "(numbers of `ecgnb.answers`, the Answers)."
    src = from_config(run['source'])
    result = judge(load(f"{run['out']}/best", verbose=False), store_of(run, quiet=True, src=src), src, progress=True, fold=fold, prior=run['train']['train'], talks=talks, most=12)
    print(f'\n{result}\n', flush=True)
    return result.to_json() | {'examples': json.loads(result.rows[result.rows['condition'].isin(['ecg', 'none'])].head(24).to_json(orient='records'))}, result


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--quick', action='store_true', help='a few steps: that it works, no more')
    ap.add_argument('--runs', help='folder of the runs (kept)')
    ap.add_argument('--talks', type=int, default=300, help='questions asked, 0 = all of the fold')
    how = ap.parse_args()
    began, cpu, out = time.time(), time.process_time(), {}
    with tempfile.TemporaryDirectory() as temp:
        runs = Path(how.runs or temp)
        talks = 6 if how.quick else how.talks
        train(build('tiny', 'source=sample', *FEATURES, *(QUICK['features'] if how.quick else ()), f'out={runs}/st_mem'))
        synth = build('tiny_elm', f'train.start={runs}/st_mem', *SYNTH, *(QUICK['synth'] if how.quick else ()), f'out={runs}/elm')
        out['training'] = train(synth)
        out['synth'], result = judged(synth, 'test', talks)
        if not how.quick: out['rhythm'], _ = judged(build('tiny_elm', f'train.start={runs}/st_mem', *SYNTH, *RHYTHM, f'out={runs}/elm'), '6-10', 250)
        if not how.quick and data_dir('ecg_qa') and data_dir('ptb_xl'):
            real = build('elm_next', f'train.start={runs}/elm', *REAL, 'model.llm=smollm2', 'model.lora=8', 'model.lora_alpha=16.', 'model.lora_dropout=0.', 'model.context=256', 'model.system=Read the ECG.',
                         f'out={runs}/ecg_qa')
            out['training_ecg_qa'] = train(real)
            out['ecg_qa'], _ = judged(real, '9-10', 0)
    for part in out.values(): part.pop('checkpoint', None)
    facts = dict(torch=torch.__version__, seconds=round(time.time() - began), cpu_seconds=round(time.process_time() - cpu), talks=talks, **out)
    if not how.quick: Path(__file__).with_suffix('.json').write_text(json.dumps(facts, indent=1) + '\n')
    numbers = {c: round(result.value(condition=c), 4) for c in ('ecg', 'none', 'noise', 'zeros', 'other')}
    print(json.dumps({'name': 'reliance', **numbers, 'over_text': round(result.lead('none'), 4), 'over_other': round(result.lead('other'), 4), 'seconds': facts['seconds']}))


if __name__ == '__main__': main()

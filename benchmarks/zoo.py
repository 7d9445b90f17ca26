"""Every row of the zoo, in miniature, trained and judged by every evaluation that fits it, from the command line's own functions.

    python benchmarks/zoo.py [--quick] [--rows st_mem,nepa] [--steps N] [--keep FOLDER]

Protocol: 12 leads of 10 s at 100 Hz (the language models: II and V2, 4 s) of the PTB-XL recordings that are here, else of the simulator. Trained on folds 1-7, chosen on fold 8
(the checkpoint of the best validation loss), judged on folds 9 and 10; no patient in two. One seed, a few hundred steps, models of 0.1 to 1 million parameters: what the
table shows is that each row works and what it can be asked, beside baselines of the same protocol; it does not say which method is best at scale.
Intervals: 95 %, bootstrap over test patients. benchmarks/zoo.json is written row by row (--rows replaces some), then nbs/explanations/measured.ipynb, which shows it, is run.
"""
import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

import torch                                                            # noqa: E402
from ecgnb import evaluate, forecast, generate, reconstruct, zero_shot  # noqa: E402
from ecgnb.recipes import build                                         # noqa: E402
from ecgnb.settings import data_dir                                     # noqa: E402
from ecgnb.train import train                                           # noqa: E402

SMALL = 'model.encoder.dim=64 model.encoder.depth=3 model.encoder.heads=4 model.encoder.mlp=0 model.encoder.dropout=0'.split()
DECODER = 'model.dec_dim=48 model.dec_depth=1 model.dec_heads=4 model.dec_mlp=0 model.dec_dropout=0 model.ratio=0.5 model.representation.scope=record'.split()
MUON = 'fit.optim=muon fit.lr=0.02'.split()
DRAWS = [*SMALL, 'model.encoder.patch=25', 'model.encoder.positions=rope', 'fit.optim=muon', 'fit.lr=0.01', 'fit.beta2=0.95']
TWO = 'prepare.leads=II,V2 prepare.seconds=4'.split()
PLAIN = 'fit.optim=adamw fit.lr=0.002'.split()
# recipe, overrides, evaluations (results of `evaluate` for all)
ROWS = {
    'mae_vit': (['model.encoder.prenorm=true', 'model.dec_prenorm=true', *SMALL, *DECODER, *MUON], ('reconstruct',)),
    'mtae': (['model.encoder.patch=25', 'model.encoder.temperature=100', 'model.encoder.patch_norm=false', *SMALL, *DECODER, *MUON], ('reconstruct', 'forecast')),
    'mlae': ([*SMALL, *DECODER, *MUON], ('reconstruct',)),
    'st_mem': (['model.encoder.patch=50', 'model.encoder.temperature=100', 'model.encoder.patch_norm=false', *SMALL, *DECODER, *MUON], ('reconstruct', 'forecast')),
    'dit_rectified_flow': (DRAWS, ('reconstruct', 'forecast', 'generate')),
    'dit_ddpm': ([*DRAWS, 'model.predict=v', 'model.schedule=cosine', 'model.solver=dpm'], ('reconstruct', 'forecast', 'generate')),
    'dit_text': ([*DRAWS, 'model.text.name=minilm'], ('generate',)),
    'dit_lead': ([*DRAWS, 'model.given=II'], ('reconstruct', 'generate')),
    'nepa': (['model.encoder.patch=25', 'model.encoder.prenorm=true', 'model.encoder.last_norm=true', 'model.target=patch', 'model.spread=0.1', *SMALL, *MUON], ()),
    'merl': (['model.encoder.size=18', 'model.encoder.dim=64', 'model.proj=64', 'model.text.name=minilm', 'model.text.pool=mean', *PLAIN], ('zero_shot',)),
    'ecg_byte_lm': (['model.representation=symbols', 'model.representation.flatten=time', *SMALL, *TWO, 'fit.optim=adamw', 'fit.lr=0.003'], ('forecast',)),
    'ecg_byte_flow': (['model.representation=symbols', 'model.representation.flatten=time', *SMALL, *TWO, 'model.head.patch=20', 'model.head.dim=64', 'model.head.depth=2',
                       'model.head.heads=4', 'model.head.cross=64', 'model.head.positions=sincos', 'fit.optim=adamw', 'fit.lr=0.003'], ('forecast',)),
    'xresnet1d': (['model.encoder.size=18', 'model.encoder.dim=64', *PLAIN], ()),
    's4': (['model.encoder.dim=64', 'model.encoder.depth=3', 'model.encoder.dropout=0.1', 'model.encoder.patch=5', *PLAIN], ()),
}
FEW = ('st_mem',)         # with few labels and fine-tuned as well, which takes minutes a row
FOLDS = dict(train='1-7', val='8', test='9,10')


def quiet(f, *a):
    "What `f` prints is kept, and shown where it fails."
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said): return f(*a)
    except BaseException:
        print(said.getvalue()); raise


def pick(rows, **keys): return next(r for r in rows if all(r[k] == v for k, v in keys.items()))


def cell(r, value, low, high): return dict(value=r[value], low=r[low], high=r[high])


def judge(name, out, which, times):
    "dict of figures of a trained run, each dict(value, low, high), from the files that the commands write."
    test, found = FOLDS['test'], {}
    def ask(module, *args): return quiet(module.main, [out, *args, f'times={times}'])
    few = ['shares=0.01,0.1,1', 'finetune=true', 'steps=100'] if name in FEW else []
    ask(evaluate, f"train={FOLDS['train']}", f"val={FOLDS['val']}", f'test={test}', *few)
    results = json.loads(Path(out, 'results.json').read_text())
    row = pick(results['probe']['rows'], reader='linear', metric='auroc', **{'class': 'macro'})
    found['probe'] = cell(row, 'model', 'low', 'high') | dict(random=row['random'], gain=cell(row, 'gain', 'gain_low', 'gain_high'))
    if few:
        rows = [r for r in results['labels']['rows'] if r['class'] == 'macro' and r['metric'] == 'auroc']
        found['few'] = [{k: r[k] for k in ('row', 'share', 'patients', 'value', 'low', 'high')} for r in rows]
    if 'reconstruct' in which:
        ask(reconstruct, f'fold={test}', *(['shares=0.5'] if name != 'dit_lead' else []))
        rows = [r for r in json.loads(Path(out, 'reconstruct.json').read_text())['rows'] if r['lead'] == 'all']
        best = min((r for r in rows if r['method'] != 'model'), key=lambda r: r['mse'])
        found['reconstruct'] = dict(value=pick(rows, method='model')['mse'], baseline=best['method'], than=best['mse'], gain=cell(best, 'mse_diff', 'mse_low', 'mse_high'))
    if 'forecast' in which:
        ask(forecast, f'fold={test}', 'windows=60')
        rows = [r for r in json.loads(Path(out, 'forecast.json').read_text())['rows'] if r['lead'] == 'all' and r['horizon'] == 'all']
        best = min((r for r in rows if r['method'] != 'model'), key=lambda r: r['mse'])
        found['forecast'] = dict(value=pick(rows, method='model')['mse'], baseline=best['method'], than=best['mse'], gain=cell(best, 'mse_diff', 'mse_low', 'mse_high'))
    if 'generate' in which:
        ask(generate, f'fold={test}', f"train={FOLDS['train']}")
        found['generate'] = json.loads(Path(out, 'results.json').read_text())['generate']['rows']
    if 'zero_shot' in which:
        ask(zero_shot, f'test={test}')
        found['zero_shot'] = json.loads(Path(out, 'results.json').read_text())['zero_shot']['rows']
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='three rows, a few steps: does it run')
    p.add_argument('--rows', default='', help=', '.join(ROWS))
    p.add_argument('--steps', type=int, default=600)
    p.add_argument('--keep', default='', help='a folder for the runs, which then go on where they stopped')
    how = p.parse_args()
    steps, times = (12, 100) if how.quick else (how.steps, 1000)
    names = how.rows.split(',') if how.rows else ['st_mem', 'nepa', 'dit_rectified_flow'] if how.quick else list(ROWS)
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 2)))
    real = data_dir('ptb_xl') is not None
    source = ['source=ptb_xl'] if real else ['source=sample', 'source.n=400']
    home = Path(how.keep or tempfile.mkdtemp())
    file, facts = ROOT/'benchmarks'/'zoo.json', dict(name='zoo', source='ptb_xl' if real else 'sample', steps=steps, folds=FOLDS, quick=how.quick, torch=torch.__version__)
    before = json.loads(file.read_text()) if file.exists() else {}
    table = before.get('rows', {}) if how.rows and {k: before.get(k) for k in facts} == facts else {}
    try:
        for name in names:
            more, which = ROWS[name]
            out = str(home/name)
            every = max(1, steps//6)
            run = build(name, *source, 'prepare.fs=100', 'prepare.low=0.5', *more, f"train.train={FOLDS['train']}", f"train.val={FOLDS['val']}", 'train.batch_size=16',
                        f'fit.steps={steps}', f'fit.warmup={min(50, steps//4)}', 'fit.ema=0.99', f'train.every={every}', 'train.log=5', f'train.save={steps}', 'train.patience=0', f'out={out}')
            done = quiet(train, run)
            log = [json.loads(line) for line in Path(out, 'log.jsonl').read_text().splitlines()]
            loss, k = [r['loss'] for r in log if 'loss' in r], max(1, len(log)//10)
            table[name] = dict(parameters=done['parameters'], steps=done['step'], seconds=round(done['seconds']), loss_first=sum(loss[:2])/len(loss[:2]), loss_last=sum(loss[-k:])/len(loss[-k:]),
                               val_best=done['best_val_loss'], val_step=done['best_step'], **judge(name, out, which, times))
            t = table[name]
            g = t['probe']['gain']
            print(f"{name:20} {t['parameters']:>9,} parameters  {done['seconds']:4.0f} s  loss {t['loss_first']:.3f} -> {t['loss_last']:.3f}, validation {t['val_best']:.3f}  "
                  f"linear AUROC {t['probe']['value']:.3f} (random {t['probe']['random']:.3f}, gain {g['value']:+.3f} [{g['low']:+.3f}, {g['high']:+.3f}])", flush=True)
            if not how.quick: file.write_text(json.dumps(facts | {'rows': {n: table[n] for n in ROWS if n in table}}, indent=1) + '\n')
    finally:
        if not how.keep: shutil.rmtree(home)
    if not how.quick:
        page = ROOT/'nbs/explanations/measured.ipynb'
        subprocess.run([sys.executable, '-m', 'nbconvert', '--to', 'notebook', '--execute', '--inplace', str(page)], check=True)
        subprocess.run([str(Path(sys.executable).with_name('nbdev-clean')), '--fname', str(page)], check=True)
    print(json.dumps(facts | {'rows': table}))


if __name__ == '__main__': main()

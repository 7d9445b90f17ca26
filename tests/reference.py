"""Numbers written by the reference systems (data set `parity`), and how near ours must be."""
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ecgnb.settings import data_dir

ROOT = data_dir('parity') or Path('parity-data-not-found')
STANDARD = 'I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6'


class Fixture:
    "One folder of the parity data: arguments, weights, inputs, draws, outputs."
    def __init__(self, name):
        self.name, folder = name, ROOT / name
        if not folder.exists(): pytest.skip(f'parity data {name} not there ({ROOT}); settings.ini: [data] parity = FOLDER')
        self.config, self.io = json.loads((folder / 'config.json').read_text()), load_file(folder / 'io.safetensors')
        self.args = self.config['arguments']
        stored = folder / 'weights.safetensors'
        self.weights = load_file(stored) if stored.exists() else self.formula()

    def formula(self):
        "Weights of the full-size models: a stream of numbers from each key's name (README of the parity data)."
        out = {k.removeprefix('weight/'): v for k, v in self.io.items() if k.startswith('weight/')}
        for key, (base, scale) in self.config['weights_by_formula']['base_scale'].items():
            n = math.prod(self.config['state_dict'][key])
            with np.errstate(over='ignore'):
                z = (np.uint64(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], 'little'))
                     + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
                z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                z = z ^ (z >> np.uint64(31))
            v = (2 * ((z >> np.uint64(11)).astype(np.float64) * 2.0 ** -53) - 1) * math.sqrt(3.)
            out[key] = torch.from_numpy((base + scale * v).astype(np.float32).reshape(self.config['state_dict'][key]))
        for a, *rest in self.config.get('aliases', []):
            for b in rest:
                if a in out or b in out: out[a] = out[b] = out.get(a, out.get(b))
        for key, shape in self.config['state_dict'].items():
            twin = 'encoder.' + key
            if key not in out and twin in out: out[key] = out[twin]
        return out

    def call(self, name): return next(c for c in self.config['calls'] if c['name'] == name)

    def check(self, call, key, got):
        "Within the advised tolerance; prints the largest difference."
        want, said = self.io[f'out/{call}/{key}'], self.call(call)['outputs'][key]
        got = got.detach().reshape(want.shape)
        if not want.is_floating_point(): assert torch.equal(got.to(want.dtype), want), key; return
        atol = max(1e-5, 20 * said.get('max_abs_diff_float64', 0))
        gap = (got - want).abs().max().item()
        print(f'{self.name} {call}/{key}: {gap:.1e} (allowed {atol:.1e})')
        torch.testing.assert_close(got, want, atol=atol, rtol=1e-4)

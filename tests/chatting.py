"A model for the tests of dialogue, terminal and chat: it answers as an answer model does, and what it says can be foretold."
import time
from types import SimpleNamespace

import torch

from ecgnb.leads import STANDARD, ECGError


class Scribe(torch.nn.Module):
    """Says how many ECGs and turns it was given and the largest voltage of the last ECG. `slow` s a word, at most `context` characters of
    turns; with a temperature the wording hangs on the seed."""
    def __init__(self, slow=0., context=10**6, connector='here', leads=STANDARD, fs=250., length=2500, says=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.representation = SimpleNamespace(contract=dict(leads=list(leads), fs=fs, length=length, unit='mV'))
        self.connector, self.slow, self.context, self.says, self.seen = connector, slow, context, says, []

    def stream(self, batch, most=64, temperature=0., seed=0):
        talk, x = batch['talks'][0], batch['signal']
        self.seen.append(batch)
        n = sum(len(t['text']) for t in talk['turns'])
        if n > self.context: raise ECGError(f'{n} tokens do not fit into the context of {self.context}')
        assert sum(t['text'].count('<ecg>') for t in talk['turns']) == len(talk['records']) == len(x)
        assert all(set(t) == {'role', 'text'} for t in talk['turns']) and talk['turns'][-1]['role'] == 'user'
        top = f'{x[-1].max():.3f}' if len(x) else 'no'
        text = self.says or f'{len(x)} ECGs, {len(talk["turns"])} turns, {top} mV.'
        if temperature: text = f'Draw {seed % 5}: {text}'
        for word in text.split(' ')[:most]:
            time.sleep(self.slow)
            yield word + ' '

    def reply(self, batch, most=64, temperature=0., seed=0): return [''.join(self.stream(batch, most, temperature, seed))]

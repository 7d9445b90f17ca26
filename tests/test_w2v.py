"""w2v_cmsc_rlm: chance from the samples' seeds, what must not count, temperature, ranks, resuming, real ECGs, what goes wrong in use."""
import pytest
import torch
from ecgnb import encoder, objective, source
from ecgnb.batch import collate, sample_seeds
from ecgnb.fit import fit
from ecgnb.leads import ECGError
from ecgnb.objectives.w2v_cmsc_rlm import W2vCmscRlm, expected, spans
from ecgnb.pairs import segments_loss
from ecgnb.representations.signal import Signal
from project import two_ranks


def model(seed=0, **kw):
    torch.manual_seed(seed)
    fields = dict(length=1000, segment=500, convs=3, dim=32, depth=1, heads=2, width=32, kernel=16, dropout=0., attention_dropout=0., input_dropout=0.)
    mine = {k: kw.pop(k) for k in list(kw) if k in encoder['wav2vec2'].__dataclass_fields__}
    e = encoder['wav2vec2'](**fields | mine)
    return W2vCmscRlm(Signal(fs=100., length=e.length), e, **dict(span=4, rivals=20, proj=32, codes=20, target_dropout=0.) | kw)


def batch_of(n=8, length=1000, seed=0, patient=None):
    x = torch.randn(n, 12, length, generator=torch.Generator().manual_seed(seed)).cumsum(-1)
    return {'signal': x, 'seed': sample_seeds(0, 0, range(n)), 'patient': torch.arange(n) if patient is None else patient}


def test_the_same_seeds_give_the_same_bits_in_any_batch():
    "A sample's masks, rivals, leads and Gumbel noise are its own, whichever samples stand beside it."
    m, b = model(), batch_of()
    whole, part = m.chance(b), m.chance({k: v[[5, 2]] for k, v in b.items()})
    for k, v in whole.items(): assert torch.equal(v.unflatten(0, (8, 2))[[5, 2]], part[k].unflatten(0, (2, 2))), k
    assert whole.keys() == {'leads', 'masked', 'noise', 'rivals'} and m.eval().chance(b).keys() == {'masked', 'rivals'}
    other = m.chance(b | {'seed': sample_seeds(1, 0, range(8))})
    assert not torch.equal(other['masked'], whole['masked'])


def test_as_many_tokens_are_hidden_in_any_batch():
    m = model().eval()
    for n in (2, 7): assert (m(batch_of(n)).pred['mask'].unflatten(1, (2, -1)).sum(2) == m.masked).all()
    assert m.masked == round(expected(62, length=4)) and spans(torch.rand(3, 59), 4).sort(1).values.equal(torch.arange(62).expand(3, -1))


def test_a_lead_always_stays():
    "Also where one lead alone was recorded, which then is the one."
    m, x = model(rlm=.95), torch.ones(2000, 12, 4)
    u = torch.rand(2000, 12, generator=torch.Generator().manual_seed(0))
    kept = m.hide(x, u)[..., 0]
    assert (kept.sum(1) >= 1).all() and abs(kept.mean() - .05) < .06
    valid = torch.zeros_like(x, dtype=torch.bool); valid[:, 3] = True
    assert (m.hide(x, u, valid)[:, 3, 0] == 1).all()
    assert abs(model(rlm=.5).hide(x, u)[..., 0].mean() - .5) < .02


def test_what_was_not_recorded_counts_nowhere():
    "Whatever stands in a gap, the loss and every log are the same; no hidden token lies in it; a segment without any token is finite."
    m, b = model().eval(), batch_of(4)
    valid = torch.ones(4, 12, 1000, dtype=torch.bool)
    valid[0, 3] = False; valid[1, :, 300:500] = False; valid[2, :, 500:] = False; valid[3] = False; valid[3, :, :20] = True
    outs = [m(b | {'signal': b['signal'].masked_fill(~valid, v), 'valid': valid}) for v in (0., 50.)]
    assert torch.equal(outs[0].loss, outs[1].loss) and all(torch.equal(v, outs[1].logs[k]) for k, v in outs[0].logs.items())
    there = m.encoder.recorded(valid)
    assert not (outs[0].pred['mask'] & ~there).any() and outs[0].loss.isfinite()
    assert outs[0].pred['mask'][2, 62:].sum() == 0 and outs[0].pred['mask'][1, :62].sum() == round(37 * m.masked / 62)
    m.train()(b | {'valid': valid}).loss.backward()
    assert all(p.grad.isfinite().all() for p in m.parameters())


def test_rivals_are_other_hidden_tokens_of_the_segment():
    m = model().eval()
    answer = torch.eye(6)[None].repeat(2, 1, 1)
    u = torch.rand(2, 6, 4000, generator=torch.Generator().manual_seed(0))
    s = m.guess(answer, answer, torch.eye(6, dtype=torch.bool).expand(2, 6, 6), u, torch.tensor([6, 4])) * m.temperature
    assert (s[..., 0] == 1).all() and (s[0, :, 1:] == 0).all(), 'a token was its own rival'
    context = torch.arange(1., 7).repeat(2, 6, 1)                      # the similarity names the rival
    s = m.guess(context, answer, torch.zeros(2, 6, 6, dtype=torch.bool), u, torch.tensor([6, 4]))
    named = [[set(row.round(decimals=4).tolist()) for row in seg[:, 1:]] for seg in s]
    assert all(len(r) == 5 for r in named[0]) and all(len(r) == 3 for r in named[1][:4]), 'rivals come from the hidden ones that count'


def test_patients_and_batches_of_one():
    "Recordings of one patient are no negatives; a batch of nothing else is an error in training, not in validation."
    same = torch.tensor([0, 0, 1, 1])
    m, b = model().eval(), batch_of(4)
    apart = m(b | {'patient': same}).logs['cmsc']
    assert apart < m(b).logs['cmsc']
    published = model(same_patient=True).eval()
    assert torch.equal(published(b | {'patient': same}).logs['cmsc'], m(b).logs['cmsc'])
    m.train()
    with pytest.raises(ECGError, match='train.batch_size'): m(batch_of(1))
    with pytest.raises(ECGError, match='one patient'): m(b | {'patient': same * 0})
    assert model(cmsc=0.)(batch_of(1)).loss.isfinite()


def test_the_parts_alone():
    "w2v without cmsc needs no pairs of segments; cmsc alone has no code book and hides no tokens; four segments are two pairs of a record."
    names = lambda m: {n.split('.')[0] for n, _ in m.named_parameters()} - {'encoder'}
    one = model(cmsc=0., segment=0)
    assert one(batch_of()).logs.keys().isdisjoint({'cmsc'}) and one.masked == round(expected(125, length=4))
    alone = model(w2v=0.)
    out = alone(batch_of())
    assert names(alone) == set() and out.logs.keys() == {'cmsc', 'segments_matched'} and 'mask' not in out.pred
    four = model(segment=250)(batch_of())
    assert four.pred['vectors'].shape == (32, 32) and four.loss.isfinite()
    with pytest.raises(ECGError, match='encoder.segment=500'): model(segment=0)


def test_temperature_falls_by_steps():
    m, b = model(decay=.9, accumulate=2), batch_of(2)
    seen = [m(b).logs['temperature'].item() for _ in range(6)]
    assert seen == pytest.approx([2., 2., 1.8, 1.8, 1.62, 1.62]) and m.batches == 6
    m.batches.fill_(1000)
    assert m.heat == .5 and m.eval()(b).loss.isfinite() and m.batches == 1000
    real = model()
    real.batches.fill_(277_258)
    assert real.heat.item() == pytest.approx(.5, rel=1e-5)


def test_a_resumed_run_goes_on_with_the_same_bits():
    batches = [batch_of(4, seed=i) for i in range(4)]
    def run(n, **kw):
        for s in fit(model(decay=.9), batches, n, lr=1e-3, **kw): pass
        return s
    half = {k: v for k, v in run(2, schedule='constant').state_dict().items()}
    a, b = run(4, schedule='constant'), run(4, schedule='constant', resume=half)
    assert a.loss == b.loss and a.model.batches == b.model.batches == 4
    for k, v in a.model.state_dict().items(): assert torch.equal(v, b.model.state_dict()[k]), k


RANKS = '''
from torch.nn.parallel import DistributedDataParallel
from test_w2v import batch_of, model
m = model().train()
mine = {k: v[4*rank:4*rank + 4] for k, v in batch_of(patient=torch.tensor([0, 1, 2, 3, 0, 4, 5, 6])).items()}
d = DistributedDataParallel(m)
o = d(mine)
o.loss.backward()
loss = [torch.zeros(()) for _ in range(2)]
dist.all_gather(loss, o.loss.detach())
out = dict(loss=torch.stack(loss).mean(), used=o.logs['prob_perplexity'], grads={k: p.grad for k, p in m.named_parameters()})
'''

def test_two_ranks_equal_one(tmp_path):
    "Loss, use of the codes and gradients of two halves of a batch are those of the whole; one patient is on both ranks."
    two, m = two_ranks(RANKS, tmp_path), model().train()
    b = batch_of(patient=torch.tensor([0, 1, 2, 3, 0, 4, 5, 6]))
    one = m(b)
    one.loss.backward()
    torch.testing.assert_close(one.loss.detach(), two['loss'])
    torch.testing.assert_close(one.logs['prob_perplexity'], two['used'])
    for k, p in m.named_parameters(): torch.testing.assert_close(p.grad, two['grads'][k], atol=1e-6, rtol=1e-3)
    half = m({k: v[:4] for k, v in b.items()})
    assert (half.logs['cmsc'] - one.logs['cmsc']).abs() > .1, 'half the batch has the loss of the whole: nothing was tested'


def test_compiled_is_eager():
    m, b = model(), batch_of(4)
    loss = m(b).loss
    loss.backward()
    eager = {n: p.grad.clone() for n, p in m.named_parameters()}
    m.zero_grad()
    m.batches.zero_()
    m.compile(backend='aot_eager')
    out = m(b)
    out.loss.backward()
    assert m.batches == 1
    torch.testing.assert_close(out.loss, loss)
    for n, p in m.named_parameters(): torch.testing.assert_close(p.grad, eager[n], atol=1e-5, rtol=1e-3)


def test_it_learns_on_real_ecgs(data):
    "A tiny model on 16 PTB-XL recordings of 10 s: in 20 steps the loss falls and halves find each other."
    src = source['ptb_xl'](root=str(data / 'ptb_xl'))
    b = collate([src[i].resample(100.).crop(0, 10) for i in range(16)])
    m = model(dim=64, depth=2, warm=.5, rlm=0., grad=1.).train()
    opt, logs = torch.optim.AdamW(m.parameters(), 3e-3), []
    for i in range(20):
        out = m(b | {'seed': sample_seeds(0, i, range(16))})
        opt.zero_grad(); out.loss.backward(); opt.step()
        logs.append({k: v.item() for k, v in out.logs.items()} | dict(loss=out.loss.item()))
    print(logs[0], logs[-1])
    assert logs[-1]['loss'] < .8 * logs[0]['loss'] and logs[-1]['segments_matched'] > 3 / 16 and logs[-1]['code_perplexity'] > 10


def test_a_recording_with_an_empty_segment_takes_no_part_in_cmsc():
    torch.manual_seed(0)
    z0, z1, there = torch.randn(5, 8), torch.randn(5, 8), torch.tensor([True, True, False, True, True])
    loss, hit = segments_loss(z0, z1, .1, there=there)
    alone, same = segments_loss(z0[there], z1[there], .1)
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(hit, same)
    assert segments_loss(z0, z1, .1)[0] != loss

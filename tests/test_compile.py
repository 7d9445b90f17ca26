"""What torch.compile makes of a model is the model: the same chance, the same loss."""
import torch
from ecgnb import encoder, objective, representation
from ecgnb.batch import draw, sample_seeds


def test_compiled_draws_are_the_eager_ones():
    b = {'signal': torch.zeros(4, 2, 8), 'seed': sample_seeds(0, 0, range(4))}
    def f(b): return draw(b, 25, stream=3) + 1, draw(b, 25, stream=3, gaussian=True) + 1
    for a, c in zip(f(b), torch.compile(f, fullgraph=True)(b)): assert torch.equal(a, c)


def test_a_compiled_masked_autoencoder_has_the_eager_loss_and_gradients():
    torch.manual_seed(0)
    e = encoder['vit1d'](leads='II,V5', length=100, patch=10, dim=16, depth=1, heads=2)
    m = objective['masked'](representation['signal'](leads='II,V5', length=100), e, dec_dim=16, dec_depth=1, dec_heads=2)
    b = {'signal': torch.randn(3, 2, 100), 'seed': sample_seeds(0, 0, range(3))}
    m(b).loss.backward()
    eager = {n: p.grad.clone() for n, p in m.named_parameters()}
    loss = m(b).loss.item()
    m.zero_grad()
    m.compile(backend='aot_eager')      # inductor takes minutes for it; what it may get wrong is above
    out = m(b)
    out.loss.backward()
    assert abs(out.loss.item() - loss) < 1e-5*loss
    for n, p in m.named_parameters(): torch.testing.assert_close(p.grad, eager[n], atol=1e-5, rtol=1e-3)

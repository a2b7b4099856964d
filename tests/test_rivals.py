"""The rivals of IL-LIDVAE: against brute force, against what they reduce to, and stacked against alone."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from collapse_lib.models.gaussian import GaussianVAE
from collapse_lib.objectives import Posterior, SampledElbo
from collapse_lib.rivals import Cycle, FreeBits, SemiAmortisedElbo, lagging, refine
from collapse_lib.sweeps import Sweep
from collapse_lib.training import fit


def x(n: int = 40) -> Tensor:
    return torch.rand(n, 6, generator=torch.Generator().manual_seed(0))


def build() -> GaussianVAE:
    return GaussianVAE.mlp(6, (8,), 3, likelihood="gaussian", sigma2=0.1)


def model(seed: int = 0) -> GaussianVAE:
    torch.manual_seed(seed)
    return build().double()


def test_a_cycle_rises_and_stays_and_starts_again() -> None:
    cycle = Cycle(2, 0.0, 2.0, rise=0.5)
    at = {0.0: 0.0, 0.125: 1.0, 0.25: 2.0, 0.49: 2.0, 0.5: 0.0, 0.625: 1.0, 1.0: 2.0}
    assert [cycle(progress) for progress in at] == pytest.approx(list(at.values()))
    for wrong in ({"cycles": 0}, {"rise": 0.0}, {"rise": 1.5}):
        with pytest.raises(ValueError, match="cycle"):
            Cycle(**wrong)


def test_free_bits_pay_for_what_is_above_the_floor() -> None:
    net, data = model(), x().double()
    noise = torch.randn(1, 40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    posterior = net.encode(data)
    q = torch.distributions.Normal(posterior.mean, (0.5 * posterior.log_var).exp())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean(0).detach()
    floor = float(kl.median()) + 1e-3  # between the latents
    found = FreeBits(floor)(net, (data,), {"eps": noise}, {"beta": torch.tensor(2.0)})
    paid = sum(max(floor, float(value)) for value in kl)
    assert float(found.loss.detach()) == pytest.approx(2 * paid - float(found.log_likelihood.detach()))
    assert float(found.kl.detach()) == pytest.approx(float(kl.sum()))
    none = FreeBits(0.0)(net, (data,), {"eps": noise}, {})
    plain = SampledElbo()(net, (data,), {"eps": noise}, {})
    assert float(none.loss.detach()) == pytest.approx(float(plain.loss.detach()))


def test_a_lagging_decoder_moves_at_every_fourth_step_and_then_always() -> None:
    states = []

    def keep(state: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        states.append({name: t.clone() for name, t in state.items()})
        return {}

    options = {"batch_size": 10, "evaluate": keep, "evaluate_every": 1, "progress": False}
    fit(Sweep.grid(build, seed=0, lr=1e-3), x(), SampledElbo(), steps=16, groups=lagging(until=0.5), **options)
    moved = {
        part: [any(not torch.equal(a[n], b[n]) for n in a if n.startswith(part)) for a, b in pairwise(states)]
        for part in ("encoder", "decoder")
    }
    assert all(moved["encoder"])
    assert moved["decoder"] == [False, False, False, True] * 2 + [True] * 8
    with pytest.raises(ValueError, match="inner"):
        lagging(inner=0)
    with pytest.raises(ValueError, match="every"):
        fit(Sweep.grid(build, seed=0, lr=1e-3), x(), SampledElbo(), steps=1, groups={"decoder.*": {"every": 0}})


def test_refining_finds_the_posterior_of_a_linear_decoder() -> None:
    """x = W z + noise, one latent: the true posterior is N( s W.x / sigma2, s ), s = 1 / (1 + W.W / sigma2)."""
    W, data = torch.tensor([[0.5], [-0.3], [0.2]], dtype=torch.float64), x(5).double()[:, :3]
    decoder = nn.Linear(1, 3, bias=False)
    decoder.weight = nn.Parameter(W)
    net = GaussianVAE(nn.Linear(3, 2).double(), decoder, 1, likelihood="gaussian", sigma2=0.1).double()
    s = 1 / (1 + W.square().sum() / 0.1)
    start = Posterior(torch.ones(5, 1, dtype=torch.float64), torch.zeros(5, 1, dtype=torch.float64))
    generator = torch.Generator().manual_seed(1)
    eps = torch.randn(4000, 5, 1, dtype=torch.float64, generator=generator)
    found = refine(net, data, start, eps, rate=0.005)
    torch.testing.assert_close(found.mean, s * data @ W / 0.1, rtol=0, atol=0.1)
    torch.testing.assert_close(found.log_var.exp(), s.expand(5, 1), rtol=0.2, atol=0)
    assert not found.mean.requires_grad


def test_without_steps_it_is_the_plain_elbo() -> None:
    net, data = model(), x().double()
    eps = torch.randn(1, 40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hyper = {"beta": torch.tensor(0.7, dtype=torch.float64)}
    losses = [o(net, (data,), {"eps": eps}, hyper).loss for o in (SemiAmortisedElbo(0), SampledElbo())]
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()))
    for a, b in zip(*(torch.autograd.grad(loss, list(net.parameters())) for loss in losses), strict=True):
        torch.testing.assert_close(a, b)


def test_the_decoder_learns_from_the_refined_posterior_and_the_encoder_from_its_own() -> None:
    net, data = model(), x().double()
    eps = torch.randn(6, 40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = SemiAmortisedElbo()(net, (data,), {"eps": eps}, {})
    names = [name for name, _ in net.named_parameters()]
    gradients = dict(zip(names, torch.autograd.grad(found.loss, list(net.parameters())), strict=True))
    refined = refine(net, data, net.encode(data), eps[:-1])
    z = refined.mean + (0.5 * refined.log_var).exp() * eps[-1]
    at_refined = -net.log_likelihood(data, z).mean()
    own = SampledElbo()(net, (data,), {"eps": eps[-1:]}, {}).loss
    for part, loss in (("decoder", at_refined), ("encoder", own)):
        chosen = [name for name in names if name.startswith(part)]
        expected = torch.autograd.grad(loss, [net.get_parameter(name) for name in chosen])
        for name, gradient in zip(chosen, expected, strict=True):
            torch.testing.assert_close(gradients[name], gradient)
    plain = SampledElbo()(net, (data,), {"eps": eps[-1:]}, {})
    assert found.elbo > plain.elbo, "refining helps"


@pytest.mark.parametrize("objective", [FreeBits(0.2), SemiAmortisedElbo(2)], ids=["free bits", "semi-amortised"])
def test_a_stack_equals_its_members(objective: FreeBits | SemiAmortisedElbo) -> None:
    sweep = Sweep.grid(build, seed=[0, 1], lr=1e-3, beta=[0.5, 1.0])
    options = {"steps": 8, "batch_size": 10, "progress": False, "groups": lagging(inner=1)}
    stacked = fit(sweep, x(), objective, stack=True, **options)
    assert stacked.summary.stacked.all()
    for member in range(4):
        alone = fit(sweep[member], x(), objective, stack=False, **options).states[0]
        torch.testing.assert_close(alone, stacked.states[member], rtol=1e-4, atol=1e-6)

"""The noise of the single-sample gradient against autograd on samples; its cost against torch's own Adam in a bowl."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from theory_cases import Case, case, cases
from torch.func import functional_call, grad, vmap

from collapse_lib.models.linear import LinearVAE
from collapse_lib.objectives import SampledElbo
from collapse_lib.theory import jitter, linear_vae


def noise_of(c: Case) -> jitter.GradientNoise:
    return jitter.gradient_noise(c.W, c.V, c.d, c.sigma2, c.mu, c.X)


def test_gradient_noise_is_that_of_sampled_gradients() -> None:
    c, draws = case(5, 3, 4, 3), 60_000
    model = LinearVAE(c.W, c.V, c.d.log(), c.mu, float(torch.tensor(c.sigma2).log()))
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    class Elbo(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, eps: torch.Tensor) -> torch.Tensor:
            return SampledElbo()(self.model, (c.X,), {"eps": eps}, {}).elbo

    def elbo(values: dict[str, torch.Tensor], eps: torch.Tensor) -> torch.Tensor:
        return functional_call(Elbo(), {f"model.{name}": v for name, v in values.items()}, (eps,))

    eps = torch.randn(draws, 1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = vmap(grad(elbo), in_dims=(None, 0))(parameters, eps)
    noise = noise_of(c)
    assert set(noise._fields) == set(gradients)
    for name in noise._fields:
        torch.testing.assert_close(getattr(noise, name), gradients[name].std(0), rtol=0.03, atol=1e-12)


@given(cases(), st.integers(2, 5))
def test_noise_averages_out_over_images(c: Case, copies: int) -> None:
    """The same images `copies` times, each with noise of its own: the variance falls by that factor."""
    many = noise_of(c._replace(X=c.X.repeat(copies, 1)))
    for one, other in zip(noise_of(c), many, strict=True):
        torch.testing.assert_close(other * copies**0.5, one)


def test_the_noise_in_log_sigma2_is_that_of_the_elbo() -> None:
    c = case(6, 2, 9, 1)
    per_image = linear_vae.single_sample_variance(c.W, c.V, c.d, c.sigma2, c.mu, c.X)
    assert float(noise_of(c).log_sigma2) == pytest.approx(float(per_image.mean() / 9) ** 0.5)


@pytest.mark.parametrize("lr", [4e-3, 2e-3])
def test_adam_in_a_bowl_loses_a_quarter_of_rate_times_noise(lr: float) -> None:
    """Random curvatures (not diagonal) and correlated noise; torch's Adam, many copies instead of a long run."""
    size, copies, generator = 6, 200, torch.Generator().manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    root, mixing = normal(size, size), normal(size, size)
    H = root @ root.T + 2 * torch.eye(size)  # every direction is in equilibrium after 2000 steps
    theta = torch.zeros(copies, size, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=lr)
    losses = []
    for step in range(4000):
        theta.grad = theta.detach() @ H + normal(copies, size) @ mixing.T
        adam.step()
        if step >= 2000:
            losses.append(0.5 * ((theta.detach() @ H) * theta.detach()).sum(1).mean())
    sd = mixing.square().sum(1).sqrt()
    empty = torch.zeros(0)
    predicted = jitter.jitter_deficit(jitter.GradientNoise(sd, empty, empty, empty, empty), lr)
    assert float(torch.stack(losses).mean()) == pytest.approx(predicted, rel=0.05)


def test_shapes_that_do_not_fit() -> None:
    c = case(4, 2, 5, 0)
    with pytest.raises(ValueError, match=r"V has shape \(4, 2\), expected \(2, 4\)"):
        noise_of(c._replace(V=c.V.T))
    with pytest.raises(ValueError, match="sigma2 must be positive"):
        noise_of(c._replace(sigma2=0.0))

"""Laplace approximations against decoders whose posterior is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from collapse_lib.laplace import against_grid, find_mode, laplace_density
from collapse_lib.latent_reconstruction import mlp_vae
from collapse_lib.quadrature import grid_posterior
from collapse_lib.theory.bi_lipschitz import inverse_floor


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_linear_decoder_is_its_own_approximation() -> None:
    W, x, s2 = normal(0, 5, 2), normal(1, 4, 5), 0.5
    found = against_grid(lambda z: z @ W.mT, x, 2, s2=s2, half_width=6, points=241)
    covariance = torch.linalg.inv(torch.eye(2).double() + W.mT @ W / s2)
    torch.testing.assert_close(found.mode, x @ W @ covariance / s2)
    assert found.table.distance.max() < 1e-6
    np.testing.assert_allclose(found.table.exact, found.table.laplace, rtol=1e-6)
    sv = torch.linalg.svdvals(W)
    np.testing.assert_allclose(found.table[["largest", "smallest"]], sv.expand(4, 2))
    np.testing.assert_allclose(found.table.floor, inverse_floor(sv[-1], s2, 2).expand(4))
    assert (found.table.lower <= found.table.floor).all()
    assert (found.table.floor <= found.table.laplace).all()


def test_a_locally_isometric_circle_collapses_below_the_bound() -> None:
    """D(z) = r (cos z/r, sin z/r) has the singular value 1 everywhere, and KL -> 0 with r: KL <= range^2 / 8."""
    r, s2 = 0.1, 0.5
    x = torch.tensor([[r, 0.0]], dtype=torch.float64)
    found = against_grid(
        lambda z: r * torch.cat([(z / r).cos(), (z / r).sin()]), x, 1, s2=s2, half_width=6, points=2401
    )
    (row,) = found.table.itertuples()
    assert row.smallest == pytest.approx(1)
    assert row.lower == pytest.approx(0.5 * (1 / 3 - 1 + math.log(3)))
    assert 0 < row.exact <= (2 * r**2 / s2) ** 2 / 8 < 0.01 * row.lower
    assert row.distance > 0.1


def test_the_mode_is_where_a_long_descent_ends() -> None:
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 7)).double()
    x, start = normal(2, 5, 7), normal(3, 5, 3)
    z = start.clone().requires_grad_()
    optimiser = torch.optim.SGD([z], lr=0.02)
    for _ in range(3000):
        optimiser.zero_grad()
        ((x - decoder(z)).square().sum() + 0.5 * z.square().sum()).backward()
        optimiser.step()
    mode = find_mode(decoder, x, start, s2=0.5)
    torch.testing.assert_close(mode.z, z.detach(), rtol=1e-5, atol=1e-6)
    assert float(mode.gradient.max()) < 1e-6
    assert mode.J.shape == (5, 7, 3)
    with pytest.raises(ValueError, match="start"):
        find_mode(decoder, x, start[:2], s2=0.5)


def test_the_window_around_a_linear_decoders_mode() -> None:
    W, x = normal(6, 4, 2), normal(7, 4)
    mode = find_mode(lambda z: z @ W.mT, x[None], torch.zeros(1, 2).double(), s2=0.5).z[0]
    view = laplace_density(lambda z: z @ W.mT, x, mode, s2=0.5)
    torch.testing.assert_close(view.true, (-0.5 * view.deviations.square()).exp())
    assert float(view.deviations[0].min()) >= 6 - 1e-9


def test_the_grid_without_jacobians_says_the_same() -> None:
    W, x = normal(4, 3, 2), normal(5, 4, 3)
    options = {"likelihood": "gaussian", "sigma2": 0.7, "points": 101}
    full = grid_posterior(lambda z: (z @ W.mT).tanh(), x, 2, **options)
    fast = grid_posterior(lambda z: (z @ W.mT).tanh(), x, 2, fisher=False, **options)
    for name in ("nll", "kl_post_prior", "kl_prior_post", "mean", "variance", "resolution"):
        torch.testing.assert_close(getattr(fast, name), getattr(full, name))
    assert fast.fisher_post.isnan().all()
    assert fast.residual_prior.isnan().all()


def test_a_smooth_vae() -> None:
    model = mlp_vae(6, (8,), 2, activation=nn.SiLU)
    assert sum(isinstance(part, nn.SiLU) for part in model.modules()) == 2

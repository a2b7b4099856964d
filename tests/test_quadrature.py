"""Posteriors on a grid against closed forms of linear decoders and against brute force."""

import numpy as np
import pytest
import torch

from collapse_lib.quadrature import grid_posterior, model_information
from collapse_lib.theory import inverse_lipschitz as il


def test_the_linear_gaussian_posterior() -> None:
    """x|z ~ N(L z, I_2): every column has its closed form."""
    L = 1.3
    x = torch.tensor([[0.0, 0.0], [1.0, -0.5], [2.0, 1.5]], dtype=torch.float64)
    found = grid_posterior(lambda z: L * z, x, 2, likelihood="gaussian", points=161, keep_density=True)
    exact = il.linear_gaussian(L, x.square().sum(-1), 2)
    for name in ("kl_post_prior", "kl_prior_post", "fisher_post", "fisher_prior"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=1e-5, atol=1e-7, err_msg=name)
    torch.testing.assert_close(found.mean, L * x / (1 + L**2), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.variance, torch.full((3, 2), 1 / (1 + L**2)).double(), rtol=1e-5, atol=0)
    marginal = torch.distributions.Normal(0.0, torch.tensor(1 + L**2).sqrt().double())
    torch.testing.assert_close(found.nll, -marginal.log_prob(x).sum(-1), rtol=1e-6, atol=0)
    residual = x.square().sum(-1) + 2 * L**2
    torch.testing.assert_close(found.residual_prior, residual, rtol=1e-5, atol=0)
    assert float(found.resolution[0]) == pytest.approx((1 + L**2) ** -0.5 / (12 / 160))
    cell = (12 / 160) ** 2
    torch.testing.assert_close(found.density.sum((1, 2)) * cell, torch.ones(3, dtype=torch.float64))


def test_a_bernoulli_decoder_with_one_latent() -> None:
    """f(z) = L z, x = 1: KL( p(z|x) || p(z) ) = .231, .565, .680 and F_post = .61, 3.9, 39.9 at L = 2, 10, 100."""
    x = torch.ones(1, 1, dtype=torch.float64)
    for L, kl, fisher in ((2.0, 0.231, 0.61), (10.0, 0.565, 3.9), (100.0, 0.680, 39.9)):
        found = grid_posterior(lambda z, L=L: L * z, x, 1, likelihood="bernoulli", points=40_001)
        assert float(found.kl_post_prior) == pytest.approx(kl, abs=2e-3)
        assert float(found.fisher_post) == pytest.approx(fisher, rel=0.02)
        assert float(found.nll) == pytest.approx(np.log(2), rel=1e-6)
        assert float(found.kl_post_prior) <= np.log(2)


def test_the_information_of_a_linear_model() -> None:
    """I(x; z) = k/2 log(1 + L^2 / sigma2) for f = L z."""
    for L, sigma2, k in ((1.0, 1.0, 1), (2.0, 1.0, 2), (0.5, 0.3, 2)):
        found = model_information(lambda z, L=L: L * z, k, k, sigma2=sigma2, draws=256, points=121)
        assert found == pytest.approx(0.5 * k * np.log1p(L**2 / sigma2), abs=0.01)


def test_what_a_grid_cannot_hold_is_refused() -> None:
    x = torch.tensor([[9.0]])
    with pytest.raises(ValueError, match="half_width"):
        grid_posterior(lambda z: z, x, 1, likelihood="gaussian", sigma2=0.01)
    with pytest.raises(ValueError, match="one or two"):
        grid_posterior(lambda z: z, x, 3, likelihood="gaussian")
    with pytest.raises(ValueError, match="points"):
        grid_posterior(lambda z: z, x, 1, likelihood="gaussian", points=2)

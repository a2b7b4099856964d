"""What trained hierarchical VAEs are worth, against the exact loss and the exact density of the linear one."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from collapse_lib.hierarchical_evaluation import (
    decode_from_z2,
    evaluate_hierarchical,
    hierarchical_nll,
    measure_hierarchical,
)
from collapse_lib.models.hierarchical import MHVAE, LinearMhvae, MhvaeSpectra
from collapse_lib.theory import hierarchical as h
from collapse_lib.theory.hierarchical import Mhvae, Weighting


@pytest.fixture
def x() -> torch.Tensor:
    scales = torch.tensor([2.0, 1.0, 0.7, 0.3, 0.1], dtype=torch.float64)
    return torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scales


@pytest.fixture
def model() -> LinearMhvae:
    torch.manual_seed(1)
    model = LinearMhvae(5, 3, 2, sigma_1=0.6, eta_dec=0.7, eta_enc=1.4).double().requires_grad_(False)
    for weight in (model.W1, model.W2, model.U1, model.U2):
        weight.mul_(4)
    return model


def test_the_elbo_is_the_exact_one_on_average(x: torch.Tensor, model: LinearMhvae) -> None:
    many = x.repeat(2000, 1)
    found = evaluate_hierarchical(model, many)
    root = MhvaeSpectra.of(x).root
    weights = Mhvae(model.U1, model.W1 @ root, model.U2, model.W2, torch.full((3,), 0.36), model.sigma_2.square())
    weighting = Weighting(1.0, 1.0, 0.7, 1.4)
    exact = h.mhvae_terms(weights, root, weighting)
    assert found.elbo == pytest.approx(-float(exact.negative_elbo(weighting, 5)), rel=5e-3)
    assert found.z1_term == pytest.approx(float(exact.z1_term), rel=5e-3)
    assert found.kl_2 == pytest.approx(float(exact.kl_2), rel=5e-3)
    assert found.squared_error == pytest.approx(float(exact.squared_error), rel=5e-3)
    assert found.elbo == pytest.approx(found.log_likelihood - found.z1_term - found.kl_2)
    per_mode = found.latent_kl.mean(0)
    assert float(per_mode.sum()) == pytest.approx(found.kl_2)


def test_the_two_level_nll_is_the_exact_one(x: torch.Tensor, model: LinearMhvae) -> None:
    """p(x) = N(0, U1 ( eta_enc^2 U2 U2^T + eta_dec^2 I ) U1^T + eta_dec^2 I), with q near enough to cover it."""
    for weight in (model.W1, model.W2, model.U1, model.U2):
        weight.div_(8)
    model.sigma_1.fill_(0.75)
    model.sigma_2.fill_(1.45)
    inner = 1.4**2 * model.U2 @ model.U2.T + 0.49 * torch.eye(3, dtype=torch.float64)
    covariance = model.U1 @ inner @ model.U1.T + 0.49 * torch.eye(5, dtype=torch.float64)
    exact = MultivariateNormal(torch.zeros(5, dtype=torch.float64), covariance).log_prob(x)
    found = hierarchical_nll(model, x, 20_000, seed=2)
    assert found.standard_error < 2e-3
    assert found.nll == pytest.approx(-float(exact.mean()), abs=5 * found.standard_error)
    assert found.nll < -evaluate_hierarchical(model, x.repeat(500, 1)).elbo, "the ELBO is a lower bound"


def test_z2_alone_decodes_to_the_mean_path(x: torch.Tensor, model: LinearMhvae) -> None:
    """Many samples average to U1 U2 W2 W1 x; a model whose W2 is zero decodes noise that knows nothing of x."""
    average = decode_from_z2(model, x[:1].repeat(40_000, 1)).mean(0)
    torch.testing.assert_close(average, x[0] @ (model.U1 @ model.U2 @ model.W2 @ model.W1).T, rtol=0, atol=0.1)
    found = evaluate_hierarchical(model, x, seed=4)
    error = (decode_from_z2(model, x, seed=4) - x).square().sum(-1).mean()
    assert found.squared_error_from_z2 == pytest.approx(float(error))


def test_a_net_is_measured_as_its_parts_say() -> None:
    torch.manual_seed(0)
    net = MHVAE.mlp(12, 8, 3, 2, eta_enc=0.5).requires_grad_(False)
    x = torch.rand(30, 12)
    row, parts = measure_hierarchical(net, x, epsilon=[1e-6, 10.0]), evaluate_hierarchical(net, x)
    assert row["collapsed_10"] == 1
    assert row["collapsed_1e-06"] == 0
    assert row["kl_2"] == pytest.approx(float(parts.latent_kl.sum(1).mean()))
    assert row["au_burda"] == int(((parts.latent_mean.double() / 0.5).var(0, correction=0) > 0.01).sum())
    q = torch.distributions.Normal(0.3, 0.2)
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 0.5))
    with torch.no_grad():
        last = net.to_z2[0][-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.3, 0.3, 0.2, -0.2]).atanh())
    constant = evaluate_hierarchical(net, x).latent_kl
    torch.testing.assert_close(constant, expected.double().expand(30, 2), rtol=1e-5, atol=1e-6)

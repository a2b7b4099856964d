"""ELBO terms against torch.distributions, sampling and float64 brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import distributions

from collapse_lib import objectives
from collapse_lib.models.gaussian import GaussianVAE
from collapse_lib.models.linear import AnalyticElbo, ColumnAlignment, LinearVAE, Moments, ShortfallSplit
from collapse_lib.nets import mlp
from collapse_lib.objectives import Posterior, SampledElbo
from collapse_lib.theory.spectrum import covariance_spectrum


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 5), st.integers(1, 4), st.floats(0.05, 20), st.integers(0, 99))
def test_likelihoods_and_kl_equal_torch_distributions(n, batch, sigma2, seed):
    x, mean, log_var = normal(batch, n, seed=seed), normal(batch, n, seed=seed + 1), normal(batch, n, seed=seed + 2)
    gaussian = distributions.Normal(mean, math.sqrt(sigma2))
    torch.testing.assert_close(
        objectives.gaussian_log_likelihood(mean, x, sigma2), gaussian.log_prob(x).sum(-1), rtol=1e-10, atol=1e-10
    )
    pixels = (x > 0).double()
    bernoulli = distributions.Bernoulli(logits=mean)
    torch.testing.assert_close(objectives.bernoulli_log_likelihood(mean, pixels), bernoulli.log_prob(pixels).sum(-1))
    kl = distributions.kl_divergence(distributions.Normal(mean, (0.5 * log_var).exp()), distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(objectives.gaussian_kl(Posterior(mean, log_var)), kl.sum(-1))


@given(st.floats(-3, 3), st.floats(0.05, 20), st.integers(0, 99))
def test_the_kl_does_not_change_with_the_scale_of_z(std, eta_enc, seed):
    mean = normal(4, 3, seed=seed)
    posterior = objectives.posterior_from_std(mean, torch.tensor(std, dtype=torch.float64).expand(3))
    q = distributions.Normal(mean, (std**2 + 1e-8) ** 0.5)
    expected = distributions.kl_divergence(q, distributions.Normal(0.0, eta_enc)).sum(-1)
    found = objectives.gaussian_kl(objectives.relative_to_prior(posterior, eta_enc))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_released_beta_counts_half():
    """A document's reconstruction term with or without its 1/2, plus beta KL, is in proportion to ours."""
    terms = (3.0, 1.0), (0.5, 7.0)  # recon, KL
    for convention, half in (("released", 1.0), ("elbo", 0.5)):
        ratios = []
        for recon, kl in terms:
            theirs = half * recon / 0.25 + 4.0 * kl
            ratios.append(theirs / (recon / (2 * 0.25) + objectives.effective_beta(4.0, convention) * kl))
        assert ratios[0] == pytest.approx(ratios[1])
    with pytest.raises(ValueError, match="convention"):
        objectives.effective_beta(1.0, "paper")


def test_linear_decoder_error_equals_the_mean_over_samples():
    x, W, b = normal(4, 6), normal(6, 3, seed=1), normal(6, seed=2)
    posterior = Posterior(normal(4, 3, seed=3), normal(4, 3, seed=4))
    z = objectives.reparameterise(posterior, normal(200_000, 4, 3, seed=5))
    errors = (x - z @ W.T - b).square().sum(-1)
    exact = objectives.linear_decoder_square_error(x, posterior, W, b)
    assert ((errors.mean(0) - exact).abs() < 5 * errors.std(0) / math.sqrt(len(z))).all()


def test_beta_weighs_the_kl_of_the_loss_and_not_of_the_elbo():
    terms = objectives.elbo_terms(torch.tensor([-3.0, -5.0]), torch.tensor([1.0, 2.0]), beta=4.0)
    assert terms.loss == 4 * 1.5 + 4
    assert terms.elbo == -4 - 1.5


@pytest.fixture
def linear() -> tuple[LinearVAE, torch.Tensor]:
    torch.manual_seed(3)
    return LinearVAE.normal_start(7, 3, log_sigma2=-0.5).double(), normal(25, 7, seed=8) + 0.3


def dense_elbo(model: LinearVAE, x: torch.Tensor) -> float:
    """E_q log p(x, z) - E_q log q with torch's own Gaussians, the expected log-likelihood by its second moments."""
    total = 0.0
    d, s = model.log_d.exp(), model.log_sigma2.exp()
    for row in x:
        q = distributions.MultivariateNormal(model.V @ (row - model.mu), torch.diag(d))
        prior = distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
        px = distributions.MultivariateNormal(model.W @ q.mean + model.mu, s * torch.eye(7).double())
        second_order = torch.trace(model.W @ torch.diag(d) @ model.W.T) / (2 * s)
        total += (px.log_prob(row) - second_order - distributions.kl_divergence(q, prior)).item()
    return total / len(x)


def test_analytic_elbo_of_the_moments_equals_the_mean_over_data(linear):
    model, x = linear
    with torch.no_grad():
        terms = AnalyticElbo()(model, Moments.of(x), {}, {})
        np.testing.assert_allclose(terms.elbo, dense_elbo(model, x), rtol=1e-12)
        np.testing.assert_allclose(model.elbo(x).mean(), dense_elbo(model, x), rtol=1e-12)
        assert terms.elbo == terms.log_likelihood - terms.kl
        assert terms.loss == -terms.elbo


def test_sampled_elbo_is_unbiased_and_its_kl_exact(linear):
    model, x = linear
    objective = SampledElbo(n_samples=4000)
    eps = normal(*objective.noise(model, len(x))["eps"].shape, seed=2)
    with torch.no_grad():
        sampled, exact = objective(model, (x,), {"eps": eps}, {}), AnalyticElbo()(model, Moments.of(x), {}, {})
        per_sample = model.log_likelihood(x, objectives.reparameterise(model.encode(x), eps)).mean(1)
    np.testing.assert_allclose(sampled.kl, exact.kl, rtol=1e-12)
    assert abs(sampled.elbo - exact.elbo) < 4 * per_sample.std() / math.sqrt(4000)
    assert per_sample.std() > 0


def test_tied_start_has_the_best_encoder(linear):
    """At the start, no small change of encoder or offset raises the ELBO (gradient zero, perturbations go down)."""
    _, x = linear
    torch.manual_seed(0)
    model = LinearVAE.tied_start(Moments.of(x), 3, weight_std=0.7)
    elbo = AnalyticElbo()(model, Moments.of(x), {}, {}).elbo
    for name, gradient in zip(
        ("V", "log_d", "mu"), torch.autograd.grad(elbo, [model.V, model.log_d, model.mu]), strict=True
    ):
        assert gradient.abs().max() < 1e-12, name
    with torch.no_grad():
        for seed in range(5):
            for parameter in (model.V, model.log_d, model.mu):
                step = 0.05 * normal(*parameter.shape, seed=seed)
                parameter += step
                assert AnalyticElbo()(model, Moments.of(x), {}, {}).elbo < elbo
                parameter -= step
    np.testing.assert_allclose(model.log_sigma2.exp().item(), Moments.of(x).covariance.trace() / 7)


def test_single_sample_elbos_scatter_about_the_exact_elbo_of_each_datum(linear):
    model, x = linear
    draws = 4000
    values = objectives.single_sample_elbos(model, x, draws=draws, seed=0)
    assert values.shape == (draws, len(x))
    with torch.no_grad():
        exact = model.elbo(x)
    assert ((values.mean(0) - exact).abs() < 5 * values.std(0) / math.sqrt(draws)).all()
    assert abs(values.mean(1).mean() - exact.mean()) < 4 * values.mean(1).std() / math.sqrt(draws)
    assert torch.equal(values[:3], objectives.single_sample_elbos(model, x, draws=3, seed=0))
    assert not torch.equal(values[:3], objectives.single_sample_elbos(model, x, draws=3, seed=1))


def test_the_optimum_has_scikit_learns_likelihood_and_no_gradient(linear):
    _, x = linear
    model = LinearVAE.at_optimum(covariance_spectrum(x), 3)
    assert model.W.dtype == torch.float64
    pca = PCA(3, svd_solver="full").fit(x.numpy())
    covariance = pca.get_covariance() * (len(x) - 1) / len(x)
    best = -0.5 * (7 * math.log(2 * math.pi) + np.linalg.slogdet(covariance)[1] + 7)
    elbo = AnalyticElbo()(model, Moments.of(x), {}, {}).elbo
    np.testing.assert_allclose(elbo.item(), best, rtol=1e-12)
    for gradient in torch.autograd.grad(elbo, list(model.parameters())):
        assert gradient.abs().max() < 1e-11
    assert not LinearVAE.at_optimum(covariance_spectrum(x), 3, learn_sigma2=False).log_sigma2.requires_grad


def test_normal_start_draws_in_the_order_of_the_report():
    torch.manual_seed(0)
    log_d, V, mu, W = torch.randn(3), torch.randn(7, 3) / math.sqrt(7), torch.randn(7), torch.randn(3, 7) / math.sqrt(3)
    torch.manual_seed(0)
    model = LinearVAE.normal_start(7, 3)
    for got, want in ((model.log_d, log_d), (model.V, V.T), (model.mu, mu), (model.W, W.T)):
        assert torch.equal(got, want)
    assert model.log_sigma2 == 1.0


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_gaussian_vae_shapes_and_likelihood(likelihood):
    model = GaussianVAE.mlp(6, (5, 4), 2, likelihood=likelihood, sigma2=0.3).double()
    x, z = (normal(3, 6) > 0).double(), normal(8, 3, 2)
    assert [len(layer.bias) for layer in model.encoder if hasattr(layer, "bias")] == [5, 4, 4]
    assert [len(layer.bias) for layer in model.decoder if hasattr(layer, "bias")] == [4, 5, 6]
    assert model.encode(x).mean.shape == model.encode(x).log_var.shape == (3, 2)
    out = model.decode(z)
    p = (
        distributions.Bernoulli(logits=out)
        if likelihood == "bernoulli"
        else distributions.Normal(out, math.sqrt(0.3), validate_args=False)
    )
    torch.testing.assert_close(model.log_likelihood(x, z), p.log_prob(x.expand(8, 3, 6)).sum(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: objectives.gaussian_log_likelihood(normal(2, 3), normal(2, 4), 1.0), r"\(2, 3\) and x \(2, 4\)"),
        (lambda: objectives.bernoulli_log_likelihood(normal(2, 3), normal(2, 4)), r"\(2, 3\) and x \(2, 4\)"),
        (
            lambda: objectives.linear_decoder_square_error(
                normal(2, 3), Posterior(normal(2, 2), normal(2, 2)), normal(2, 3), normal(3)
            ),
            r"W is \(2, 3\)",
        ),
        (lambda: LinearVAE(normal(4, 2), normal(4, 2), normal(2), normal(4), 0.0), r"wants V \(2, 4\)"),
        (lambda: Moments.of(normal(2, 3, 4)), "flatten images first"),
        (lambda: GaussianVAE.mlp(4, (3,), 2, likelihood="poisson"), "must be"),
        (lambda: GaussianVAE.mlp(4, (3,), 2, sigma2=0.0), "must be positive"),
        (lambda: GaussianVAE.mlp(4, (3,), 2, learn_sigma2=True), "no sigma2 to learn"),
        (lambda: objectives.single_sample_elbos(None, normal(2, 3), draws=0, seed=0), "draws must be at least 1"),
        (lambda: mlp([4]), "at least an input and an output width"),
    ],
)
def test_bad_shapes_and_names(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_shortfall_split_reads_each_member_of_a_stack(linear):
    """Its three gaps add up to LL* - ELBO, the ELBO taken image by image; the members are told apart."""
    model, x = linear
    torch.manual_seed(11)
    other = LinearVAE.tied_start(Moments.of(x), 3)
    states = [m.state_dict() for m in (model, other)]
    split = ShortfallSplit(covariance_spectrum(x))(
        {name: torch.stack([s[name] for s in states]) for name in states[0]}, 0
    )
    optimum = PCA(3).fit(x.numpy())
    covariance = optimum.get_covariance() * (len(x) - 1) / len(x)
    best = -0.5 * (7 * math.log(2 * math.pi) + np.linalg.slogdet(covariance)[1] + 7)
    for member, m in enumerate((model, other)):
        missing = best - m.elbo(x).mean().item()
        gaps = [split[name][member].item() for name in ("decoder", "rotation", "encoder")]
        np.testing.assert_allclose(sum(gaps), missing, rtol=1e-9)
        assert min(gaps) >= -1e-12
        assert split["log_sigma2"][member] == m.log_sigma2
    assert split["encoder"][1] < 1e-12 < split["encoder"][0]


def test_column_alignment_reads_each_member_of_a_stack():
    """Against scikit-learn's components: the optimum in another order and with other signs, and a rotated pair."""
    x = normal(60, 5, seed=3) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.5])
    pca = PCA(3, svd_solver="full").fit(x.numpy())
    components = torch.from_numpy(pca.components_.T.copy())
    optimum = components * torch.from_numpy(pca.explained_variance_ - pca.noise_variance_).sqrt()
    sigma2, angle = pca.noise_variance_, 0.3
    turned = optimum.clone()
    turned[:, 0] = math.cos(angle) * optimum[:, 0] + math.sin(angle) * optimum[:, 1]
    turned[:, 1] = math.cos(angle) * optimum[:, 1] - math.sin(angle) * optimum[:, 0]
    state = {"W": torch.stack([optimum[:, [2, 0, 1]] * torch.tensor([-1.0, 1.0, -1.0]), turned])}
    state["log_sigma2"] = torch.full((2,), math.log(sigma2))
    found = ColumnAlignment(covariance_spectrum(x), 2)(state, 0)

    np.testing.assert_allclose(found["cosine"][0], 1)
    lengths = optimum.norm(dim=0)[:2].numpy()
    first = math.cos(angle) * lengths / np.hypot(math.cos(angle) * lengths, math.sin(angle) * lengths[::-1])
    np.testing.assert_allclose(found["cosine"][1], first.mean())
    M = turned.T @ turned + sigma2 * torch.eye(3, dtype=torch.float64)
    gap = 0.5 * (np.log(np.diag(M)).sum() - np.linalg.slogdet(M.numpy())[1])
    np.testing.assert_allclose(found["rotation"].numpy(), [0, gap], atol=1e-12)

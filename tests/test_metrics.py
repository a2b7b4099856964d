"""Posterior metrics and the importance-weighted likelihood against closed forms, quadrature and brute force."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from collapse_lib.likelihood import ImportanceNLL, importance_nll
from collapse_lib.metrics import (
    active_units,
    active_units_by_kl,
    collapse_epsilon,
    collapsed_share,
    mutual_information,
    posterior_kl,
    principal_angles,
)
from collapse_lib.objectives import bernoulli_log_likelihood, gaussian_log_likelihood

seeds = st.integers(0, 2**31 - 1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_posterior(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Dimensions that range from collapsed to far from the prior."""
    scale = torch.logspace(-3, 0.5, shape[-1], dtype=torch.float64)
    mean = torch.randn(shape, generator=rng(seed), dtype=torch.float64) * scale
    return mean, (torch.randn(shape, generator=rng(seed + 1), dtype=torch.float64) * scale).exp()


# ---------------------------------------------------------------------------------------------------- KL, active units


def test_kl_is_that_of_torch_distributions() -> None:
    mean, var = random_posterior(3, 40, 5)
    expected = kl_divergence(Normal(mean, var.sqrt()), Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    torch.testing.assert_close(posterior_kl(mean, var), expected, rtol=1e-12, atol=1e-15)


@given(mean=st.floats(-30, 30), log_var=st.floats(-60, 8))
@settings(deadline=None)
def test_kl_is_at_least_its_mean_term(mean: float, log_var: float) -> None:
    kl = posterior_kl(torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[log_var]], dtype=torch.float64).exp())
    assert kl >= max(0, 0.5 * mean**2 * (1 - 1e-12) - 1e-15)


def test_kl_near_the_prior_is_not_lost_to_rounding() -> None:
    nudge = torch.logspace(-16, -1, 2001, dtype=torch.float64)
    nudge = torch.cat([-nudge, torch.zeros(1), nudge])[:, None]
    kl = posterior_kl(nudge, 1 + nudge)
    assert (kl >= 0).all()
    assert kl[2001] == 0
    # 1/2 ( m^2 + d - log(1 + d) ) with d = m, as a series
    expected = 0.5 * sum((-1) ** j * nudge**j / j for j in range(3, 16)) + 0.75 * nudge.square()
    torch.testing.assert_close(kl, expected, rtol=0, atol=2e-16)


def test_active_units_by_covariance_is_numpys_var() -> None:
    mean, _ = random_posterior(4, 300, 8)
    units = active_units(mean)
    expected = np.var(mean.numpy(), axis=-2)
    np.testing.assert_allclose(units.score, expected, rtol=1e-12)
    np.testing.assert_array_equal(units.active, expected > 0.01)
    np.testing.assert_array_equal(units.n_active, (expected > 0.01).sum(-1))
    assert 0 < units.n_active.min() < 8


def test_the_covariance_divides_by_the_number_of_data_unless_told() -> None:
    mean = torch.tensor([[0.099], [-0.099]], dtype=torch.float64) + 7  # variance 0.0098 with 1/N, 0.0196 with 1/(N - 1)
    assert active_units(mean).n_active == 0
    assert active_units(mean, correction=1).n_active == 1
    assert active_units(mean, threshold=0.0097).n_active == 1


def test_active_units_by_kl_counts_what_the_covariance_misses() -> None:
    mean = torch.zeros(50, 3, dtype=torch.float64)
    mean[:, 1] = 0.15  # KL 0.01125 for every datum
    var = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64).expand(50, 3)
    units = active_units_by_kl(posterior_kl(mean, var))
    assert units.active.tolist() == [False, True, True]
    torch.testing.assert_close(units.score[1:], torch.tensor([0.01125, 0.5 * (math.log(2) - 0.5)], dtype=torch.float64))
    assert active_units(mean).n_active == 0


# ------------------------------------------------------------------------------------------- (epsilon, delta)-collapse


@given(n=st.integers(1, 60), percent=st.integers(0, 99), seed=seeds)
@settings(deadline=None)
def test_collapsed_share_is_the_definition_counted_out(n: int, percent: int, seed: int) -> None:
    kl = torch.rand((2, n, 3), generator=rng(seed)).mul(4).floor().double()  # ties included: KL < epsilon is strict
    epsilon = torch.tensor([0.0, 1.0, 1.5, 3.0, 9.0], dtype=torch.float64)
    share = collapsed_share(kl, epsilon, percent / 100)
    for member, (i, eps) in itertools.product(range(2), enumerate(epsilon.tolist())):
        below = [int((kl[member, :, j] < eps).sum()) for j in range(3)]
        collapsed = [100 * count >= (100 - percent) * n for count in below]  # integers: no rounding
        assert share[member, i] == pytest.approx(sum(collapsed) / 3)
        assert collapsed_share(kl, eps, percent / 100)[member] == share[member, i]


def test_delta_is_the_decimal_as_written() -> None:
    kl = torch.arange(20, dtype=torch.float64)[:, None]
    assert collapse_epsilon(kl, 0.95) == 0  # 1 of 20 data will do; in floating point (1 - 0.95) * 20 > 1
    assert collapse_epsilon(kl, 0.05) == 18


def test_collapse_epsilon_of_the_optimal_linear_vae_on_gaussian_data() -> None:
    # m ~ N(0, 1 - v): KL is v's constant plus (1 - v)/2 times a chi-square with one degree of freedom.
    var = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64).expand(100_000, 3)
    mean = torch.randn(var.shape, generator=rng(), dtype=torch.float64) * (1 - var).sqrt()
    v = var[0].numpy()
    expected = 0.5 * ((1 - v) * stats.chi2(1).ppf(0.95) + v - np.log(v) - 1)
    np.testing.assert_allclose(collapse_epsilon(posterior_kl(mean, var), 0.05), expected, rtol=0.02)


@given(seed=seeds, delta=st.floats(0, 0.999))
@settings(deadline=None)
def test_the_order_of_the_data_does_not_matter(seed: int, delta: float) -> None:
    mean, var = random_posterior(2, 30, 4, seed=seed)
    order = torch.randperm(30, generator=rng(seed))
    kl, permuted = posterior_kl(mean, var), posterior_kl(mean[:, order], var[:, order])
    torch.testing.assert_close(active_units(mean).score, active_units(mean[:, order]).score)
    torch.testing.assert_close(active_units_by_kl(kl).score, active_units_by_kl(permuted).score)
    assert torch.equal(collapse_epsilon(kl, delta), collapse_epsilon(permuted, delta))


# ---------------------------------------------------------------------------------------------------------- information


def test_mutual_information_is_the_definition_in_float64() -> None:
    mean, var = random_posterior(23, 4)
    z = mean + var.sqrt() * torch.randn(mean.shape, generator=rng(5), dtype=torch.float64)
    log_q = Normal(mean, var.sqrt()).log_prob(z[:, None]).sum(-1)  # [datum of z, component]
    terms = log_q.diagonal() - log_q.exp().mean(1).log()
    information = mutual_information(mean, var, generator=rng(5), chunk=7)
    assert information.nats == pytest.approx(terms.mean().item(), rel=1e-10)
    assert information.standard_error == pytest.approx(terms.std().item() / math.sqrt(23), rel=1e-8)
    assert information.n_samples == 1


@pytest.mark.parametrize("n_samples", [1, 20])
def test_mutual_information_by_quadrature(n_samples: int) -> None:
    mean = np.array([-1.5, -0.4, 0.0, 0.3, 2.5])
    std = np.array([0.3, 1.0, 0.2, 0.7, 0.5])

    def negative_entropy(density: Callable[[float], float]) -> float:
        return -integrate.quad(lambda z: float(special.entr(density(z))), -8, 9, limit=200)[0]

    mixture = negative_entropy(lambda z: stats.norm.pdf(z, mean, std).mean())
    parts = [negative_entropy(partial(stats.norm.pdf, loc=m, scale=s)) for m, s in zip(mean, std, strict=True)]
    exact = np.mean(parts) - mixture
    rows = torch.from_numpy(np.stack([mean, std**2])).repeat(1, 400)[..., None]  # repeats leave the mixture as it is
    information = mutual_information(rows[0], rows[1], n_samples, generator=rng())
    assert information.nats == pytest.approx(exact, abs=4 * information.standard_error)
    assert information.standard_error < 0.02


def test_mutual_information_of_a_linear_gaussian_channel() -> None:
    # q(z|x) = N(a x, v), x ~ N(0, 1): I = 1/2 log(1 + a^2/v) for each dimension.
    a, v = torch.tensor([2.0, 0.7, 0.0], dtype=torch.float64), torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64)
    x = torch.randn((4000, 3), generator=rng(), dtype=torch.float64)
    exact = 0.5 * (1 + a.square() / v).log().sum().item()
    information = mutual_information(a * x, v.expand(4000, 3), generator=rng(1))
    assert information.nats == pytest.approx(exact, abs=4 * information.standard_error)
    assert information.standard_error < 0.02


def test_mutual_information_at_its_ends() -> None:
    same = mutual_information(torch.full((50, 2), 3.0), torch.full((50, 2), 0.2), generator=rng())
    assert same.nats == pytest.approx(0, abs=1e-12)
    # 300 separate posteriors, log 300 = 5.70: no cap at the logarithm of a batch or a chunk. The variance of 1e-8 makes
    # the expanded square cancel ten digits.
    mean = torch.arange(300.0)[:, None].expand(300, 2)
    apart = mutual_information(mean, torch.full((300, 2), 1e-8), generator=rng(), chunk=50)
    assert apart.nats == pytest.approx(math.log(300), abs=1e-4)


@given(chunk=st.integers(1, 40), n_samples=st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_the_chunk_does_not_change_the_mutual_information(chunk: int, n_samples: int) -> None:
    mean, var = random_posterior(31, 3)
    whole = mutual_information(mean, var, n_samples, generator=rng(2))
    assert mutual_information(mean, var, n_samples, generator=rng(2), chunk=chunk) == pytest.approx(whole, rel=1e-10)


# --------------------------------------------------------------------------------------------- importance-weighted NLL


class LinearGaussian:
    """x = W z + b + noise of variance `sigma2`; orthogonal columns, so that the true posterior is diagonal."""

    sigma2 = 0.3

    def __init__(self, n: int = 6, k: int = 3, n_data: int = 40) -> None:
        Q = torch.linalg.qr(torch.randn((n, k), generator=rng(), dtype=torch.float64)).Q
        self.W = Q * torch.tensor([2.0, 1.0, 0.4], dtype=torch.float64)[:k]
        self.b = torch.linspace(-1, 1, n, dtype=torch.float64)
        self.x = 1.5 * torch.randn((n_data, n), generator=rng(1), dtype=torch.float64)
        precision = self.W.square().sum(0) / self.sigma2 + 1
        self.mean = (self.x - self.b) @ self.W / self.sigma2 / precision
        self.var = (1 / precision).expand_as(self.mean)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        return gaussian_log_likelihood(z @ self.W.mT + self.b, x, self.sigma2)

    def exact_nll(self, prior_var: float = 1.0) -> Tensor:
        covariance = prior_var * self.W @ self.W.mT + self.sigma2 * torch.eye(len(self.b), dtype=torch.float64)
        return -MultivariateNormal(self.b, covariance).log_prob(self.x)

    def estimate(self, n_samples: int, *, seed: int = 0, chunk: int | None = None, widen: float = 1.5) -> ImportanceNLL:
        """With a posterior that is shifted and too wide, as an encoder's is."""
        return importance_nll(
            self.x, self.mean + 0.1, widen * self.var, self.log_likelihood, n_samples, generator=rng(seed), chunk=chunk
        )


def test_nll_is_exact_when_q_is_the_true_posterior() -> None:
    model = LinearGaussian()
    result = importance_nll(model.x, model.mean, model.var, model.log_likelihood, 3, generator=rng())
    torch.testing.assert_close(result.per_datum, model.exact_nll(), rtol=1e-12, atol=0)
    torch.testing.assert_close(result.effective_samples, torch.full((40,), 3.0, dtype=torch.float64))
    assert result.nll == pytest.approx(model.exact_nll().mean().item(), rel=1e-12)
    assert result.standard_error < 1e-7
    assert result.n_samples == 3


def test_nll_agrees_with_the_closed_form_within_its_standard_error() -> None:
    model = LinearGaussian(n_data=200)
    exact = model.exact_nll().mean().item()
    scores = []
    for seed in range(20):
        result = model.estimate(400, seed=seed)
        assert 0 < result.standard_error < 0.01
        scores.append((result.nll - exact) / result.standard_error)
    assert max(map(abs, scores)) < 4
    assert 0.6 < np.std(scores) < 1.5  # the standard error is neither too large nor too small


def test_nll_of_a_bernoulli_decoder_by_quadrature() -> None:
    weight, bias = torch.tensor([2.0, -1.0, 0.5, 3.0]), torch.tensor([0.3, 0.0, -1.0, -2.0])
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))

    def log_likelihood(x: Tensor, z: Tensor) -> Tensor:
        return bernoulli_log_likelihood(z * weight + bias, x)

    def density(z: float, row: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-(z * weight.numpy() + bias.numpy())))
        return float(np.prod(np.where(row == 1, p, 1 - p)) * stats.norm.pdf(z))

    exact = -np.log([integrate.quad(density, -12, 12, args=(row,))[0] for row in x.numpy()])
    result = importance_nll(x, torch.zeros(16, 1), torch.full((16, 1), 1.3), log_likelihood, 20_000, generator=rng())
    assert result.nll == pytest.approx(exact.mean(), abs=4 * result.standard_error)
    assert result.standard_error < 0.005
    np.testing.assert_allclose(result.per_datum, exact, atol=0.1)
    assert result.per_datum.exp().reciprocal().sum() == pytest.approx(1, abs=0.01)  # over all 16 x it is a distribution


def test_nll_with_samples_of_zero_likelihood() -> None:
    def positive_side(x: Tensor, z: Tensor) -> Tensor:
        return torch.where(z[..., 0] > x, 0.0, -math.inf)

    def estimate(x: float) -> ImportanceNLL:
        return importance_nll(torch.full((30,), x), torch.zeros(30, 1), torch.ones(30, 1), positive_side, 500)

    result = estimate(0.0)  # p(x) = P[z > 0]
    assert result.nll == pytest.approx(math.log(2), abs=4 * result.standard_error)
    assert result.effective_samples.mean() == pytest.approx(250, rel=0.1)
    assert estimate(100.0).nll == math.inf


def test_nll_bound_starts_at_the_elbo_and_tightens() -> None:
    model = LinearGaussian(n_data=1)
    model.x, model.mean, model.var = (t.expand(4000, -1) for t in (model.x, model.mean, model.var))
    nll = [model.estimate(n_samples, widen=3).nll for n_samples in (1, 4, 16, 64)]
    mean, var = model.mean[:1] + 0.1, 3 * model.var[:1]
    square_error = (model.x[0] - mean @ model.W.mT - model.b).square().sum() + (var * model.W.square().sum(0)).sum()
    log_likelihood = -3 * math.log(2 * math.pi * model.sigma2) - square_error / (2 * model.sigma2)
    assert nll[0] == pytest.approx((posterior_kl(mean, var).sum() - log_likelihood).item(), abs=0.25)
    assert nll == sorted(nll, reverse=True)
    assert nll[-1] > model.exact_nll()[0]
    assert nll[0] - nll[1] > 1


def test_nll_under_a_prior_of_another_variance_by_rescaling_z() -> None:
    model, s = LinearGaussian(), 0.25
    precision = model.W.square().sum(0) / model.sigma2 + 1 / s
    mean, var = (model.x - model.b) @ model.W / model.sigma2 / precision, (1 / precision).expand_as(model.mean)
    result = importance_nll(
        model.x, mean / s**0.5, var / s, lambda x, z: model.log_likelihood(x, s**0.5 * z), 2, generator=rng()
    )
    torch.testing.assert_close(result.per_datum, model.exact_nll(prior_var=s), rtol=1e-12, atol=0)


@given(n_samples=st.integers(1, 70), chunk=st.integers(1, 300), seed=seeds)
@settings(deadline=None)
def test_the_chunk_bounds_the_work_and_does_not_change_the_nll(n_samples: int, chunk: int, seed: int) -> None:
    model = LinearGaussian(n_data=5)
    whole = model.estimate(n_samples, seed=seed)
    pairs: list[int] = []
    log_likelihood = model.log_likelihood

    def counting(x: Tensor, z: Tensor) -> Tensor:
        assert z.is_contiguous()
        pairs.append(z.shape[0] * z.shape[1])
        return log_likelihood(x, z)

    model.log_likelihood = counting  # type: ignore[method-assign]
    chunked = model.estimate(n_samples, seed=seed, chunk=chunk)
    torch.testing.assert_close(chunked.per_datum, whole.per_datum, rtol=1e-12, atol=0)
    torch.testing.assert_close(chunked.effective_samples, whole.effective_samples, rtol=1e-9, atol=0)
    assert sum(pairs) == 5 * n_samples  # every sample asked for, and no other
    assert max(pairs) <= max(chunk, 16)


def test_nll_is_reproduced_by_its_generator_alone() -> None:
    model = LinearGaussian()
    first, again, other = (model.estimate(10, seed=seed).per_datum for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()
    assert first.unique().numel() == 40


def test_nll_in_float32_and_on_images() -> None:
    model = LinearGaussian()
    x, mean, var = (t.float() for t in (model.x, model.mean, model.var))
    W, b = model.W.float(), model.b.float()

    def log_likelihood(x: Tensor, z: Tensor) -> Tensor:
        return gaussian_log_likelihood(z @ W.mT + b, x.flatten(1), model.sigma2)

    result = importance_nll(x.reshape(40, 1, 2, 3), mean, var, log_likelihood, 20)
    torch.testing.assert_close(result.per_datum, model.exact_nll(), rtol=1e-5, atol=1e-4)
    assert result.per_datum.dtype == torch.float64


# ----------------------------------------------------------------------------------------------------- subspace angles


def test_principal_angles_of_rotated_planes() -> None:
    e = torch.eye(5, dtype=torch.float64)
    angles = torch.tensor([1.1, 0.02], dtype=torch.float64)
    B = torch.stack([angles[i].cos() * e[i] + angles[i].sin() * e[i + 2] for i in range(2)], 1)
    mix = torch.tensor([[1.0, 5.0], [-2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(principal_angles(e[:, :2], B @ mix), angles, rtol=1e-12, atol=0)
    torch.testing.assert_close(principal_angles(e[:, :1], B), angles[:1], rtol=1e-12, atol=0)
    repeated = torch.cat([B, B @ mix], 1)
    torch.testing.assert_close(principal_angles(e[:, :2], repeated), angles, rtol=1e-12, atol=0)


# ---------------------------------------------------------------------------------------------------------- bad input

M, V = torch.zeros(4, 2), torch.ones(4, 2)
NAN = torch.full((4, 2), math.nan)
X = torch.zeros(4, 3)


def flat(x: Tensor, z: Tensor) -> Tensor:
    return z.new_zeros(z.shape[:2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: posterior_kl(M, V[:3]), r"got \(4, 2\) and \(3, 2\)"),
        (lambda: posterior_kl(M[0], V[0]), r"\(\.\.\., N, k\)"),
        (lambda: posterior_kl(M[:0], V[:0]), "not empty"),
        (lambda: posterior_kl(M, V - 1.5), "least is -0.5; was it a log-variance"),
        (lambda: posterior_kl(M, M), "least is 0"),
        (lambda: posterior_kl(NAN, V), "mean .* has 8 nan or infinite entries; leave diverged members out"),
        (lambda: posterior_kl(M, NAN), "var .* has 8 nan"),
        (lambda: active_units(M[:1]), "at least two data"),
        (lambda: active_units(NAN), "diverged"),
        (lambda: active_units_by_kl(NAN), "diverged"),
        (lambda: active_units_by_kl(M[0]), "posterior_kl"),
        (lambda: collapse_epsilon(M[:0]), "not empty"),
        (lambda: collapsed_share(M, 0.1, 1.0), r"delta is a share of the data in \[0, 1\), got 1.0"),
        (lambda: collapsed_share(M, 0.1, -0.01), "got -0.01"),
        (lambda: mutual_information(M[:1], V[:1]), "at least two data"),
        (lambda: mutual_information(M.expand(3, 4, 2), V.expand(3, 4, 2)), r"\(N, k\)"),
        (lambda: mutual_information(M, V, 0), "at least 1, got 0"),
        (lambda: mutual_information(M, -V), "log-variance"),
        (lambda: importance_nll(X[:3], M, V, flat, 5), r"x \(3, 3\) needs mean and var \(N, k\) .* got \(4, 2\)"),
        (lambda: importance_nll(X, M.expand(3, 4, 2), V.expand(3, 4, 2), flat, 5), "one row a datum"),
        (lambda: importance_nll(X, M, -V, flat, 5), "log-variance"),
        (lambda: importance_nll(X, M, V, flat, 0), "n_samples and chunk must be at least 1, got 0 and None"),
        (lambda: importance_nll(X, M, V, flat, 5, chunk=0), "got 5 and 0"),
        (lambda: importance_nll(X, M, V, lambda x, z: z, 5), r"gave \(5, 4, 2\) for z \(5, 4, 2\), expected \(5, 4\)"),
        (lambda: importance_nll(X, M, V, lambda x, z: flat(x, z).mT, 5), r"gave \(4, 5\)"),
        (lambda: importance_nll(X, M, V, lambda x, z: flat(x, z) + math.nan, 5), "nan or .inf for datum 0"),
        (lambda: importance_nll(X, M, V, lambda x, z: flat(x, z) + math.inf, 5), "nan or .inf for datum 0"),
        (lambda: principal_angles(M, V[:3]), "equally many rows"),
        (lambda: principal_angles(M, V), "drop collapsed columns"),
        (lambda: principal_angles(NAN, V), "A .* nan"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()

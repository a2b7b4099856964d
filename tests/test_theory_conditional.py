"""Linear VAE and CVAE: closed forms against direct minimisation, dense averages over data, and known numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from collapse_lib.linear_optima import active_coordinates, solve_cvae, solve_vae, used_columns
from collapse_lib.theory import conditional
from collapse_lib.theory.alignment import sorted_gap
from collapse_lib.theory.conditional import LinearOptimum, Terms
from collapse_lib.theory.second_moments import CvaeWeights, cvae_moments, reduce_cvae

SEEDS = st.integers(0, 2**32 - 1)
SETTINGS = st.fixed_dictionaries(
    {"beta": st.floats(0.3, 4.0), "eta_dec": st.floats(0.4, 1.5), "eta_enc": st.floats(0.5, 2.0)}
)
FEW = settings(max_examples=6)
TIGHT = {"adam_steps": 300, "gradient_tolerance": 1e-10}


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(scale * np.random.default_rng(seed).normal(size=shape))


def pairs(seed: int, N: int = 30, p: int = 3, q: int = 4) -> tuple[Tensor, Tensor]:
    """Correlated x (N, p) and y (N, q), not centred."""
    x, mix, noise = normal(seed, N, p) + 0.5, normal(seed + 1, p, q), normal(seed + 2, N, q)
    return x, x @ mix + noise * torch.linspace(1.2, 0.3, q, dtype=torch.float64)


def weights(seed: int, d: int, p: int, q: int) -> CvaeWeights:
    shapes = ((d, p), (d, q), (q, d), (q, p))
    return CvaeWeights(*(normal(seed + i, *shape) for i, shape in enumerate(shapes)))


def modes(seed: int, D: int) -> Tensor:
    """theta, decreasing, neighbours well apart."""
    steps = np.random.default_rng(seed).uniform(0.25, 0.8, size=D)
    return torch.from_numpy(np.cumsum(steps)[::-1].copy())


def away(values: Tensor, thresholds: Tensor | float) -> bool:
    return bool(((values / thresholds - 1).abs() > 0.03).all())


def assert_terms(found: Terms, expected: Terms, rel: float = 1e-5) -> None:
    for name in Terms._fields:
        assert float(getattr(found, name)) == pytest.approx(float(getattr(expected, name)), rel=rel, abs=1e-5), name


# The objectives -------------------------------------------------------------------------------------------------------


@given(SEEDS, SETTINGS)
def test_cvae_terms_are_averages_over_the_data(seed: int, setting: dict[str, float]) -> None:
    """Reconstruction and KL image by image, with torch.distributions for the KL."""
    x, y = pairs(seed)
    W1, W2, U1, U2 = w = weights(seed, 2, 3, 4)
    log_sigma2 = normal(seed + 9, 2)
    beta, eta_dec, eta_enc = (setting[name] for name in ("beta", "eta_dec", "eta_enc"))
    sigma = (0.5 * log_sigma2).exp()
    found = conditional.cvae_terms(*w, log_sigma2, cvae_moments(x, y), **setting)
    mean = x @ W1.T + y @ W2.T
    error = (y - mean @ U1.T - x @ U2.T).square().sum(1) + ((U1 * sigma) ** 2).sum()
    q = Independent(Normal(mean, sigma.expand_as(mean)), 1)
    prior = Independent(Normal(torch.zeros(2, dtype=torch.float64), eta_enc * torch.ones(2, dtype=torch.float64)), 1)
    kl = kl_divergence(q, prior).mean()
    reconstruction = error.mean() / eta_dec**2
    torch.testing.assert_close(found.reconstruction, reconstruction)
    torch.testing.assert_close(found.kl, kl)
    log_likelihood = -0.5 * (reconstruction + 4 * math.log(2 * math.pi * eta_dec**2))
    torch.testing.assert_close(found.elbo(4, eta_dec), log_likelihood - kl)
    expected = -2 * (log_likelihood - beta * kl) - 4 * math.log(2 * math.pi * eta_dec**2)
    constant = beta * (-2 + 2 * math.log(eta_enc**2))  # -2 ELBO_beta = L + constants, d = 2
    torch.testing.assert_close(found.loss, expected - constant)


def test_the_reconstruction_is_what_samples_average_to() -> None:
    x, y = pairs(3, N=2000)
    W1, W2, U1, U2 = w = weights(3, 2, 3, 4)
    log_sigma2 = torch.tensor([0.3, -0.8], dtype=torch.float64)
    z = x @ W1.T + y @ W2.T + (0.5 * log_sigma2).exp() * normal(11, 40, 2000, 2)
    errors = (y - z @ U1.T - x @ U2.T).square().sum(-1).mean(1) / 0.7**2
    found = conditional.cvae_terms(*w, log_sigma2, cvae_moments(x, y), beta=1.0, eta_dec=0.7)
    assert abs(float(errors.mean() - found.reconstruction)) < 4 * float(errors.std()) / 40**0.5


@given(SEEDS, SETTINGS)
def test_the_vae_is_the_same_with_images_and_with_modes(seed: int, setting: dict[str, float]) -> None:
    """L of W and U on images = L of V and U in the eigenbasis, with Z = diag(theta); y = x."""
    x = normal(seed, 20, 4) + 0.3
    U, W, log_sigma2 = normal(seed + 1, 4, 2), normal(seed + 2, 2, 4), normal(seed + 3, 2)
    e, P = torch.linalg.eigh(x.T @ x / 20)
    found = conditional.vae_terms(P.T @ U, W @ P * e.sqrt(), log_sigma2, e.sqrt(), **setting)
    none = torch.zeros(20, 1, dtype=torch.float64)  # an input that says nothing: the CVAE is a VAE
    zero = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
    dense = conditional.cvae_terms(zero[0], W, U, zero[1], log_sigma2, cvae_moments(none, x), **setting)
    torch.testing.assert_close(tuple(found), tuple(dense))


# Moments --------------------------------------------------------------------------------------------------------------


@given(SEEDS)
def test_moments_whitening_and_regression(seed: int) -> None:
    x, y = pairs(seed)
    moments = cvae_moments(x, y)
    regression = LinearRegression(fit_intercept=False).fit(x.numpy(), y.numpy())
    torch.testing.assert_close(moments.predictor, torch.from_numpy(regression.coef_))
    left = y.numpy() - regression.predict(x.numpy())
    np.testing.assert_allclose(
        moments.residual.eigenvalues, np.linalg.eigvalsh(left.T @ left / len(left))[::-1], rtol=1e-7, atol=1e-10
    )
    white = x @ moments.whitening.T
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(3, dtype=torch.float64))


def test_a_target_that_the_input_determines_leaves_nothing() -> None:
    x, _ = pairs(0)
    moments = cvae_moments(x, x @ normal(5, 3, 4))
    assert moments.residual.eigenvalues.tolist() == [0, 0, 0, 0]
    assert reduce_cvae(moments, 2).dropped == 0


def test_inputs_that_depend_on_each_other_leave_the_residual_alone() -> None:
    x, y = pairs(0)
    wide = torch.cat([x, x[:, :1] - x[:, 1:2], torch.zeros(len(x), 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(cvae_moments(wide, y).residual.eigenvalues, cvae_moments(x, y).residual.eigenvalues)
    assert cvae_moments(wide, y).whitening.shape == (3, 5)


@given(SEEDS, SETTINGS, st.integers(1, 5))
def test_reduced_weights_cost_what_their_lifted_ones_do(seed: int, setting: dict[str, float], r: int) -> None:
    x, y = pairs(seed, p=3, q=5)
    moments = cvae_moments(x, y)
    reduced = reduce_cvae(moments, r)
    s = len(reduced.moments.A)
    assert (s, len(reduced.moments.B)) == (min(r, 3), r)
    w, log_sigma2 = weights(seed, 2, s, r), normal(seed + 9, 2)
    inside = conditional.cvae_terms(*w, log_sigma2, reduced.moments, **setting)
    outside = conditional.cvae_terms(*reduced.lift(*w), log_sigma2, moments, **setting)
    extra = reduced.dropped / setting["eta_dec"] ** 2
    torch.testing.assert_close(outside.loss, inside.loss + extra)
    torch.testing.assert_close(outside.kl, inside.kl)
    torch.testing.assert_close(reduced.moments.residual.eigenvalues, moments.residual.eigenvalues[:r])


# The optima -----------------------------------------------------------------------------------------------------------


@FEW
@given(SEEDS, SETTINGS, st.integers(1, 4))
def test_learnable_variances_reach_the_closed_form(seed: int, setting: dict[str, float], d: int) -> None:
    theta = modes(seed, 5)
    assume(away(theta.square(), setting["beta"] * setting["eta_dec"] ** 2))
    found = solve_vae(theta, d, seed=seed, **setting, **TIGHT)
    best = conditional.vae_learnable(theta.square(), d, **setting)
    assert sorted_gap(torch.linalg.svdvals(found.U), best.omega) < 1e-5
    assert sorted_gap(torch.linalg.svdvals(found.V), best.lam) < 1e-5
    assert sorted_gap(found.sigma, best.sigma) < 1e-5
    assert_terms(found.terms, best.terms)
    assert active_coordinates(found.U, found.sigma, setting["eta_enc"]).sum() == best.active.sum()


@FEW
@given(SEEDS, SETTINGS, st.sampled_from([[0.8, 0.8, 0.8], [1.7, 0.5, 0.9], [0.3, 0.6, 0.6]]))
def test_fixed_variances_reach_the_closed_form(seed: int, setting: dict[str, float], sigma: list[float]) -> None:
    theta, std = modes(seed, 5), torch.tensor(sigma, dtype=torch.float64)
    floor = setting["beta"] ** 0.5 * setting["eta_dec"] / setting["eta_enc"] * std.sort().values
    assume(away(theta[:3].square(), floor.square()))
    found = solve_vae(theta, 3, sigma=std, seed=seed, **setting, **TIGHT)
    best = conditional.vae_fixed(theta, std, **setting)
    assert sorted_gap(torch.linalg.svdvals(found.U), best.omega) < 1e-5
    assert sorted_gap(torch.linalg.svdvals(found.V), best.lam) < 1e-5
    assert_terms(found.terms, best.terms)
    if len(set(sigma)) == 3:  # sorted pairing, coordinate by coordinate
        order = std.argsort()
        torch.testing.assert_close(found.V.norm(dim=1)[order], best.lam, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.U.norm(dim=0)[order], best.omega, rtol=1e-4, atol=1e-4)


@FEW
@given(SEEDS, SETTINGS)
def test_the_cvae_reaches_the_closed_form_of_its_residual(seed: int, setting: dict[str, float]) -> None:
    x, y = pairs(seed)
    moments = cvae_moments(x, y)
    e = moments.residual.eigenvalues
    assume(away(e, setting["beta"] * setting["eta_dec"] ** 2))
    found = solve_cvae(moments, 3, seed=seed, **setting, **TIGHT)
    best = conditional.vae_learnable(e, 3, **setting)
    assert sorted_gap(torch.linalg.svdvals(found.weights.U1), best.omega) < 1e-4
    assert sorted_gap(found.sigma, best.sigma) < 1e-4
    assert_terms(found.terms, best.terms)
    companions = conditional.best_companions(found.weights.U1, moments, **setting)
    for learned, theory in zip(found.weights, companions, strict=True):
        torch.testing.assert_close(learned, theory, rtol=1e-3, atol=1e-3)
    lam = torch.linalg.svdvals(found.weights.W2 @ moments.residual.covariance @ found.weights.W2.T).sqrt()
    torch.testing.assert_close(lam, best.lam, rtol=1e-4, atol=1e-3)


def at_optimum(best: LinearOptimum, D: int) -> tuple[Tensor, Tensor]:
    U, V = torch.zeros(D, len(best.omega), dtype=torch.float64), torch.zeros(len(best.lam), D, dtype=torch.float64)
    U.diagonal().copy_(best.omega)
    V.diagonal().copy_(best.lam)
    return U, V


@given(SEEDS, SETTINGS, st.floats(1e-3, 1.0), st.booleans())
def test_any_change_of_the_weights_costs(seed: int, setting: dict[str, float], size: float, fixed: bool) -> None:
    theta = modes(seed, 5)
    std = torch.tensor([0.4, 0.9, 1.6], dtype=torch.float64)
    if fixed:
        best = conditional.vae_fixed(theta, std, **setting)
    else:
        best = conditional.vae_learnable(theta.square(), 3, **setting)
    (U, V), log_sigma2 = at_optimum(best, 5), 2 * best.sigma.log()
    attained = conditional.vae_terms(U, V, log_sigma2, theta, **setting)
    assert_terms(attained, best.terms, rel=1e-12)
    moved = log_sigma2 if fixed else log_sigma2 + size * normal(seed + 1, 3)
    U, V = U + size * normal(seed + 2, 5, 3), V + size * normal(seed + 3, 3, 5)
    assert float(conditional.vae_terms(U, V, moved, theta, **setting).loss) > float(best.terms.loss)


@given(SEEDS, SETTINGS)
def test_companions_are_best_for_any_decoder(seed: int, setting: dict[str, float]) -> None:
    x, y = pairs(seed)
    moments, U1, log_sigma2 = cvae_moments(x, y), normal(seed + 7, 4, 2), normal(seed + 8, 2)
    best = conditional.best_companions(U1, moments, **setting)
    least = conditional.cvae_terms(*best, log_sigma2, moments, **setting).loss
    other = CvaeWeights(*(w + 0.1 * normal(seed + i, *w.shape) for i, w in enumerate(best)))._replace(U1=U1)
    assert conditional.cvae_terms(*other, log_sigma2, moments, **setting).loss > least


# Known numbers --------------------------------------------------------------------------------------------------------


def test_fixed_optimal_loss_is_the_sum_over_modes() -> None:
    theta, std = torch.tensor([3.0, 2.0, 0.5]), torch.tensor([0.7, 1.1])
    beta, eta_dec, eta_enc = 1.3, 0.8, 1.3
    best = conditional.vae_fixed(theta, std, beta=beta, eta_dec=eta_dec, eta_enc=eta_enc)
    c2 = (eta_dec / eta_enc) ** 2
    m = [3.0 - math.sqrt(beta * c2) * 0.7, 2.0 - math.sqrt(beta * c2) * 1.1]
    value = 9 - m[0] ** 2 + 4 - m[1] ** 2 + beta * c2 * (0.49 + 1.21) + 0.25
    value -= beta * eta_dec**2 * (math.log(0.49) + math.log(1.21))
    assert float(best.terms.loss) == pytest.approx(value / eta_dec**2, rel=1e-6)


def test_learnable_optimal_loss_known() -> None:
    best = conditional.vae_learnable(torch.tensor([9.0, 4.0, 0.25]), 3, beta=1.0, eta_dec=0.8, eta_enc=1.3)
    assert float(best.terms.loss) == pytest.approx(8.292533, abs=1e-6)


def test_the_released_threshold_is_wrong_between_the_two() -> None:
    """e = 0.3417 at beta = 1, eta_dec = 0.5: sigma = 0.8554; the rule with sqrt(beta) eta_dec = 0.5 says 1."""
    e = torch.tensor([0.6, 0.3417, 0.2878, 0.2])
    best = conditional.vae_learnable(e, 4, beta=1.0, eta_dec=0.5)
    torch.testing.assert_close(best.sigma[1:], torch.tensor([0.8554, 0.9320, 1.0]).double(), atol=1e-4, rtol=0)
    released = conditional.released_sigma(e, 4, beta=1.0, eta_dec=0.5)
    torch.testing.assert_close(released[1:], torch.ones(3, dtype=torch.float64))
    assert float(released[0]) == pytest.approx(float(best.sigma[0]))


def test_dead_coordinates_of_fixed_variances_keep_a_divergence() -> None:
    best = conditional.vae_fixed(torch.tensor([6.17, 2.1, 1.93]), torch.tensor([2.0, 1.25, 1.5]), beta=4.0)
    assert best.active.tolist() == [True, False, False]
    np.testing.assert_allclose(best.kl_modes[1:], [0.220, 0.807], atol=5e-4)
    assert (best.sigma == torch.tensor([1.25, 1.5, 2.0])).all()


def test_the_quantile_of_gaussian_data() -> None:
    best = conditional.vae_learnable(torch.tensor([5.0, 2.0, 0.5]), 3, beta=1.0, eta_enc=1.3)
    mu = best.lam * normal(5, 400_000, 3)
    ratio = (mu.square() + best.sigma.square()) / 1.3**2
    kl = 0.5 * (ratio - 1 - 2 * (best.sigma / 1.3).log())
    quantile = conditional.kl_quantile(best, eta_enc=1.3)
    torch.testing.assert_close(kl.quantile(0.95, dim=0), quantile, rtol=0.02, atol=1e-12)
    torch.testing.assert_close(kl.mean(0), best.kl_modes, rtol=0.02, atol=1e-12)
    mnist = conditional.vae_learnable(torch.tensor([6.205, 2.136]).square(), 2, beta=4.0)  # its first 10,000 images
    assert float(conditional.kl_quantile(mnist)[1]) == pytest.approx(0.239, abs=0.003)


@pytest.mark.parametrize(("beta", "active"), [(4.0, 2), (1.0, 5), (40.0, 0)])
def test_mnist_counts(beta: float, active: int) -> None:
    theta = torch.tensor([6.1718, 2.0953, 1.9342, 1.7960, 1.6692])
    assert int(conditional.vae_learnable(theta.square(), 5, beta=beta).active.sum()) == active


def test_more_latents_than_modes() -> None:
    best = conditional.vae_learnable(torch.tensor([4.0]), 3, beta=1.0)
    assert best.active.tolist() == [True, False, False]
    assert best.sigma.tolist() == [0.5, 1.0, 1.0]
    assert best.lam[1:].tolist() == [0.0, 0.0]
    nothing = conditional.vae_learnable(torch.zeros(2), 2, beta=1.0)  # y is a linear function of x
    assert float(nothing.terms.kl) == 0
    assert nothing.sigma.tolist() == [1.0, 1.0]


def test_active_coordinates_need_both_signs() -> None:
    U = torch.tensor([[3.0, 0.05, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    sigma = torch.tensor([0.5, 0.5, 1.005, 2.0])
    assert active_coordinates(U, sigma).tolist() == [True, False, False, True]
    assert active_coordinates(U, sigma, learnable=False).tolist() == [True, False, True, True]
    assert used_columns(U).tolist() == [True, False, True, True]
    assert not used_columns(torch.zeros(2, 3)).any()


def test_sorted_gap() -> None:
    assert sorted_gap(torch.tensor([1.0, 3.0]), torch.tensor([4.0, 1.0])) == pytest.approx(0.25)
    assert sorted_gap(torch.tensor([1.0, -3.0]), torch.zeros(2)) == 3.0
    with pytest.raises(ValueError, match="one value each"):
        sorted_gap(torch.ones(2), torch.ones(3))


# Bad input ------------------------------------------------------------------------------------------------------------


def test_errors() -> None:
    x, y = pairs(0)
    with pytest.raises(ValueError, match="equally many rows"):
        cvae_moments(x[:5], y)
    with pytest.raises(ValueError, match=r"r must lie in 1\.\.4"):
        reduce_cvae(cvae_moments(x, y), 5)
    with pytest.raises(ValueError, match="beta must be positive"):
        conditional.vae_learnable(torch.ones(2), 2, beta=0.0)
    with pytest.raises(ValueError, match="e must not be negative"):
        conditional.vae_learnable(-torch.ones(2), 2, beta=1.0)
    with pytest.raises(ValueError, match="at least one"):
        conditional.vae_learnable(torch.ones(2), 0, beta=1.0)
    with pytest.raises(ValueError, match="sigma must be positive"):
        conditional.vae_fixed(torch.ones(2), torch.tensor([1.0, -1.0]), beta=1.0)
    with pytest.raises(ValueError, match="share = 1"):
        conditional.kl_quantile(conditional.vae_learnable(torch.ones(2), 2, beta=1.0), 1)
    ones = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"Z has shape \(3, 3\), expected \(2, 2\)"):
        conditional.vae_terms(ones, ones, torch.zeros(2), torch.ones(3), beta=1.0)
    with pytest.raises(ValueError, match=r"W2 has shape \(2, 2\), expected \(2, 4\)"):
        conditional.cvae_terms(
            torch.ones(2, 3), ones, torch.ones(4, 2), torch.ones(4, 3), torch.zeros(2), cvae_moments(x, y), beta=1.0
        )
    with pytest.raises(ValueError, match="log_sigma2 has shape"):
        conditional.vae_terms(ones, ones, torch.zeros(3), torch.ones(2), beta=1.0)
    with pytest.raises(ValueError, match="U1 has shape"):
        conditional.best_companions(ones, cvae_moments(x, y), beta=1.0)

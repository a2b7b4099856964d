"""The linear MHVAE: its loss against sampling, its closed forms against brute force and direct minimisation."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor
from torch.distributions import Normal

from collapse_lib.hierarchical_optima import MhvaeSetting, compare, solve_mhvae
from collapse_lib.theory import hierarchical as h
from collapse_lib.theory import hierarchical_modes as modes
from collapse_lib.theory import hierarchical_theorems as theorems
from collapse_lib.theory.hierarchical import Mhvae, Weighting
from collapse_lib.theory.hierarchical_theorems import MhvaeOptimum

# theta of MNIST's 60,000 training images, as published with the replication's reference spectra
MNIST = torch.tensor([6.1718, 2.0953, 1.9342, 1.7960, 1.6692, 1.5091, 1.3851, 1.2394, 1.2321, 1.1163, 1.0587, 1.0399])


def random_weights(D: int, d1: int, d2: int, seed: int) -> Mhvae:
    rng = np.random.default_rng(seed)
    shapes = ((D, d1), (d1, D), (d1, d2), (d2, d1), (d1,), (d2,))
    values = [torch.from_numpy(rng.normal(size=shape)) for shape in shapes]
    return Mhvae(*values[:4], *(v.exp() for v in values[4:]))  # type: ignore[arg-type]


scale = st.floats(0.4, 2.0)
weightings = st.builds(Weighting, beta_1=scale, beta_2=scale, eta_dec=scale, eta_enc=scale)
thetas = st.lists(st.floats(0.1, 4.0), min_size=2, max_size=4).map(
    lambda values: torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
)


# ---- the objective ---------------------------------------------------------------------------------------------------


def test_terms_are_those_of_the_sampled_model_in_pixel_space() -> None:
    """E[log q - log p] of torch.distributions over data that are neither white nor centred."""
    rng = np.random.default_rng(0)
    n, d1, d2, N, S = 4, 3, 2, 50, 4000
    x = torch.from_numpy(rng.normal(size=(N, n)) @ rng.normal(size=(n, n)) + 1)
    values, vectors = torch.linalg.eigh(x.T @ x / N)
    root = (vectors * values.sqrt()) @ vectors.T
    weighting = Weighting(0.7, 1.6, 0.8, 1.3)
    weights = random_weights(n, d1, d2, 1)
    W1 = weights.V1 @ torch.linalg.inv(root)
    Z = root  # E[x x~^T] with x = root x~

    generator = torch.Generator().manual_seed(2)
    noise = [torch.randn(S, N, d, generator=generator, dtype=torch.float64) for d in (d1, d2)]
    q1 = Normal(x @ W1.T, weights.variance_1.sqrt())
    z1 = q1.loc + q1.scale * noise[0]
    q2 = Normal(z1 @ weights.W2.T, weights.variance_2.sqrt())
    z2 = q2.loc + q2.scale * noise[1]
    eta_dec, eta_enc = weighting.eta_dec, weighting.eta_enc
    log_y = Normal(z1 @ weights.U1.T, eta_dec).log_prob(x).sum(-1).mean()
    z1_term = (q1.log_prob(z1) - Normal(z2 @ weights.U2.T, eta_dec).log_prob(z1)).sum(-1).mean()
    prior = Normal(torch.zeros(d2, dtype=torch.float64), eta_enc)
    kl_2 = torch.distributions.kl_divergence(q2, prior).sum(-1).mean()

    terms = h.mhvae_terms(weights, Z, weighting)
    from_z2 = (noise[1] * q2.scale + q2.loc) @ (weights.U1 @ weights.U2).T
    assert float(h.squared_error_from_z2(weights, Z)) == pytest.approx(
        float((from_z2 - x).square().sum(-1).mean()), rel=0.01
    )
    assert float(terms.z1_term) == pytest.approx(float(z1_term), rel=0.01)
    assert float(terms.kl_2) == pytest.approx(float(kl_2), rel=0.01)
    negative_elbo = -log_y + weighting.beta_1 * z1_term + weighting.beta_2 * kl_2
    assert float(terms.negative_elbo(weighting, n)) == pytest.approx(float(negative_elbo), rel=0.01)
    # the paper's constants
    constants = n * math.log(2 * math.pi * eta_dec**2) + weighting.beta_1 * d1 * (2 * math.log(eta_dec) - 1)
    constants += weighting.beta_2 * d2 * (2 * math.log(eta_enc) - 1)
    assert 2 * float(terms.negative_elbo(weighting, n)) == pytest.approx(float(terms.loss) + constants, rel=1e-12)
    assert float(h.latent_kl(weights, weighting).sum()) == pytest.approx(float(terms.kl_2), rel=1e-12)
    torch.testing.assert_close(h.uncentred_theta(x), torch.linalg.svdvals(Z))


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 3))
def test_loss_depends_on_theta_alone(seed: int, d1: int, d2: int) -> None:
    """Z = R diag(theta) S^T with rotations that U1 and V1 absorb, and a rotation of z1 if Sigma_1 is isotropic."""
    rng = np.random.default_rng(seed)
    R, S, P = (torch.from_numpy(np.linalg.qr(rng.normal(size=(k, k)))[0]) for k in (4, 4, d1))
    theta = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    weights = random_weights(4, d1, d2, seed)._replace(variance_1=torch.full((d1,), 0.7, dtype=torch.float64))
    weighting = Weighting(0.7, 1.6, 0.8, 1.3)
    turned = weights._replace(U1=R @ weights.U1 @ P.T, V1=P @ weights.V1 @ S.T, U2=P @ weights.U2, W2=weights.W2 @ P.T)
    straight = h.mhvae_terms(weights, theta, weighting)
    for a, b in zip(straight, h.mhvae_terms(turned, R @ torch.diag(theta) @ S.T, weighting), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_information_is_that_of_the_joint_gaussian() -> None:
    weights = random_weights(4, 3, 2, 5)
    for i, information in enumerate(h.latent_information(weights).tolist()):
        to_x = weights.W2[i] @ weights.V1  # Cov(z2_i, x~), with Cov(x~) = I
        variance = to_x @ to_x + weights.W2[i].square() @ weights.variance_1 + weights.variance_2[i]
        joint = torch.eye(5, dtype=torch.float64)
        joint[4, 4], joint[4, :4], joint[:4, 4] = variance, to_x, to_x
        assert information == pytest.approx(0.5 * float(variance.log() - torch.logdet(joint)), rel=1e-10)


@given(st.integers(0, 1000))
def test_total_information_is_that_of_the_joint_gaussian_in_every_rotation(seed: int) -> None:
    weights = random_weights(4, 3, 2, seed)._replace(variance_2=torch.full((2,), 0.6, dtype=torch.float64))
    to_x = weights.W2 @ weights.V1
    variance = to_x @ to_x.T + (weights.W2 * weights.variance_1) @ weights.W2.T + torch.diag(weights.variance_2)
    joint = torch.cat([torch.cat([torch.eye(4), to_x.T], 1), torch.cat([to_x, variance], 1)]).double()
    expected = 0.5 * float(torch.logdet(variance) - torch.logdet(joint))
    assert float(h.total_information(weights)) == pytest.approx(expected, rel=1e-8, abs=1e-10)
    R = torch.linalg.qr(to_x[:, :2]).Q
    turned = weights._replace(U2=weights.U2 @ R.T, W2=R @ weights.W2)
    assert float(h.total_information(turned)) == pytest.approx(expected, rel=1e-8, abs=1e-10)


@given(st.integers(0, 1000), weightings)
def test_best_linear_maps_leave_no_gradient(seed: int, weighting: Weighting) -> None:
    weights = random_weights(4, 3, 2, seed)
    theta = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    for Z in (theta, torch.diag(theta)):
        maps = h.best_linear_maps(weights.V1, weights.U2, weights.variance_1, Z, weighting)
        U1, W2 = (each.requires_grad_() for each in maps)
        loss = h.mhvae_terms(weights._replace(U1=U1, W2=W2), Z, weighting).loss
        for gradient in torch.autograd.grad(loss, (U1, W2)):
            assert float(gradient.abs().max()) < 1e-9 * (1 + float(loss.detach().abs()))


# ---- one mode --------------------------------------------------------------------------------------------------------


def brute_force(f: Callable[[float, float], float], least_s: float, least_q: float) -> float:
    """Minimum over s >= least_s and q >= least_q, by a bounded quasi-Newton method in logarithms from four starts."""
    low = np.log([least_s, least_q])
    found = [
        optimize.minimize(
            lambda v: f(math.exp(v[0]), math.exp(v[1])),
            low + start,
            method="L-BFGS-B",
            bounds=[(low[0], low[0] + 12), (low[1], low[1] + 12)],
            options={"ftol": 1e-15, "gtol": 1e-10},
        ).fun
        for start in ([0, 0], [3, 0], [0, 3], [2, 2])
    ]
    return float(min(found))


@settings(max_examples=60)
@given(st.floats(0.0, 5.0), scale, scale, scale, scale)
def test_mode_with_a_learned_sigma_2(theta: float, beta_1: float, K: float, B: float, sigma_1: float) -> None:
    def f(s: float, q: float) -> float:
        return theta**2 * sigma_1**2 / s + beta_1 * K * s / q + B * math.log(q) + B * (1 - math.log(B))

    mode = modes.mode_sigma2_learnable(theta, beta_1, K, B, sigma_1)
    best = brute_force(f, sigma_1**2, K)
    assert float(mode.value) == pytest.approx(best, rel=1e-7, abs=1e-7)
    assert f(float(mode.s), float(mode.q)) == pytest.approx(float(mode.value), rel=1e-12, abs=1e-12)
    assert float(mode.s) >= sigma_1**2 * (1 - 1e-12)
    assert float(mode.q) >= K * (1 - 1e-12)


@settings(max_examples=60)
@given(st.floats(0.0, 5.0), scale, scale, scale, scale)
def test_mode_with_both_variances_fixed(theta: float, beta_1: float, K: float, sigma_1: float, sigma_2: float) -> None:
    def f(s: float, q: float) -> float:
        return theta**2 * sigma_1**2 / s + beta_1 * K * s / q + sigma_2**2 * q

    mode = modes.mode_both_fixed(theta, beta_1, K, sigma_1, sigma_2)
    assert float(mode.value) == pytest.approx(brute_force(f, sigma_1**2, K), rel=1e-7, abs=1e-7)
    assert f(float(mode.s), float(mode.q)) == pytest.approx(float(mode.value), rel=1e-12)
    assert float(mode.s) >= sigma_1**2 * (1 - 1e-12)
    assert float(mode.q) >= K * (1 - 1e-12)


def test_modes_broadcast_over_theta_and_k() -> None:
    theta, K = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([[0.5], [2.0]])
    for solved in (
        modes.mode_sigma2_learnable(theta, 1.0, K, 1.3, 0.8),
        modes.mode_both_fixed(theta, 1.0, K, 0.8, 0.9),
    ):
        assert all(tuple(each.shape) == (2, 3) for each in solved)
    alone = modes.mode_without_z2(theta, 2.0, 0.8)
    assert set(alone.case.tolist()) == {modes.CASES.index("c")}


def test_released_threshold_is_right_for_beta_1_of_one_only() -> None:
    assert float(modes.both_fixed_threshold(3.0, 1.0, 0.8, 0.9)) == pytest.approx(1.117, abs=1e-3)
    assert float(modes.both_fixed_threshold(3.0, 1.0, 0.8, 0.9, as_released=True)) == pytest.approx(1.754, abs=1e-3)
    assert float(modes.both_fixed_threshold(0.5, 2.0, 0.8, 0.9)) == pytest.approx(2.864, abs=1e-3)
    assert float(modes.both_fixed_threshold(0.5, 2.0, 0.8, 0.9, as_released=True)) == pytest.approx(1.432, abs=1e-3)
    grid = torch.linspace(0.1, 4, 100, dtype=torch.float64)
    for beta_1, K in ((3.0, 1.0), (0.5, 2.0), (1.0, 1.0)):
        true, released = (modes.mode_both_fixed(grid, beta_1, K, 0.8, 0.9, as_released=r) for r in (False, True))
        assert torch.equal(true.case, released.case) == (beta_1 == 1)
        assert (modes.mode_singular_values(released, beta_1, K, 0.8).omega.isnan().any()) == (beta_1 < 1)
        assert not modes.mode_singular_values(true, beta_1, K, 0.8).omega.isnan().any()


# ---- the optima ------------------------------------------------------------------------------------------------------


def optima(theta: Tensor, weighting: Weighting, sigma_1: float, sigma_2: float, d1: int, d2: int) -> list[MhvaeOptimum]:
    return [
        theorems.mhvae_sigma2_learnable(theta, weighting, sigma_1, d1, d2),
        theorems.mhvae_both_fixed(theta, weighting, sigma_1, sigma_2, d1, d2),
        theorems.mhvae_sigma1_learnable(theta, weighting, sigma_2, d1, d2),
    ]


@settings(max_examples=40)
@given(thetas, weightings, scale, scale, st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
@example(torch.tensor([3.0, 0.5]), Weighting(2.0, 0.7), 0.9, 0.5, 2, 1, 0)
def test_optimum_is_what_it_says_and_no_perturbation_of_it_is_better(
    theta: Tensor, weighting: Weighting, sigma_1: float, sigma_2: float, d1: int, d2: int, seed: int
) -> None:
    """Loss, KL and information at the optimal weights; the loss only rises when all that is learned is moved."""
    theta = torch.cat([theta, torch.zeros(4 - len(theta))])
    rng = np.random.default_rng(seed)
    for i, optimum in enumerate(optima(theta, weighting, sigma_1, sigma_2, d1, d2)):
        weights = optimum.weights(4)
        loss = float(h.mhvae_terms(weights, theta, weighting).loss)
        assert loss == pytest.approx(optimum.loss, rel=1e-9, abs=1e-9)
        torch.testing.assert_close(h.latent_kl(weights, weighting), optimum.kl_2, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(h.latent_information(weights), optimum.information, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(h.total_information(weights), optimum.information.sum(), rtol=1e-9, atol=1e-9)
        for size in (1e-3, 0.1):
            moved = [w + size * torch.from_numpy(rng.normal(size=w.shape)) for w in weights[:4]]
            free = (
                {"variance_2": weights.variance_2} if i == 0 else {"variance_1": weights.variance_1} if i == 2 else {}
            )
            free = {n: v * torch.from_numpy(np.exp(size * rng.normal(size=v.shape))) for n, v in free.items()}
            changed = weights._replace(**dict(zip(("U1", "V1", "U2", "W2"), moved, strict=True)), **free)
            assert float(h.mhvae_terms(changed, theta, weighting).loss) >= loss - 1e-10 * (1 + abs(loss))


@pytest.mark.parametrize("learned", ["sigma_2", "none", "sigma_1"])
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_direct_minimisation_finds_the_closed_form(learned: str, data: st.DataObject) -> None:
    theta, weighting, seed = data.draw(thetas), data.draw(weightings), data.draw(st.integers(0, 9))
    setting = MhvaeSetting(
        len(theta),
        weighting,
        None if learned == "sigma_1" else data.draw(scale),
        None if learned == "sigma_2" else data.draw(scale),
    )
    assume(setting.optimum(theta).margin > 0.1)
    assume(learned == "none" or float((theta[:-1] / theta[1:]).min()) > 1.1)  # near-equal modes mix for a long time
    found = compare(setting, theta, seed, iterations=300, restarts=3)
    assert found.loss_gap == pytest.approx(0, abs=1e-9)
    assert found.relative_error < 1e-5


@pytest.mark.parametrize(("d1", "d2"), [(3, 3), (3, 2), (2, 3)])
@pytest.mark.parametrize("weighting", [Weighting(0.5, 0.6, 0.8, 1.3), Weighting(0.2, 1.5, 0.7, 0.9)])
@pytest.mark.parametrize("power", [0.5, 2.0])
def test_direct_minimisation_under_a_limit_on_the_code(weighting: Weighting, power: float, d1: int, d2: int) -> None:
    """All weights from random starts, with ||V1||^2 = power by construction: the limit binds in these cases."""
    theta, sigma_1 = torch.tensor([3.0, 1.7, 1.2, 0.5], dtype=torch.float64), 0.7
    optimum = theorems.mhvae_sigma2_learnable(theta, weighting, sigma_1, d1, d2, power=power)
    assert float(optimum.lam.square().sum()) == pytest.approx(power, rel=1e-9)
    variance_1, losses, found = torch.full((d1,), sigma_1**2, dtype=torch.float64), [], []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        M, U2 = (torch.randn(d1, k, generator=generator, dtype=torch.float64).requires_grad_() for k in (4, d2))
        log_2 = torch.zeros(d2, dtype=torch.float64, requires_grad=True)
        free = (M, U2, log_2)

        def loss(M: Tensor = M, U2: Tensor = U2, log_2: Tensor = log_2) -> Tensor:
            V1 = M * math.sqrt(power) / M.norm()
            maps = h.best_linear_maps(V1, U2, variance_1, theta, weighting)
            weights = Mhvae(maps.U1, V1, U2, maps.W2, variance_1, log_2.exp())
            return h.mhvae_terms(weights, torch.diag(theta), weighting, check=False).loss

        solver = torch.optim.LBFGS(free, max_iter=2000, tolerance_change=1e-14, line_search_fn="strong_wolfe")

        def closure(loss: Callable[[], Tensor] = loss, free: tuple[Tensor, ...] = free) -> Tensor:
            value = loss()
            for parameter, gradient in zip(free, torch.autograd.grad(value, free), strict=True):
                parameter.grad = gradient
            return value

        solver.step(closure)  # type: ignore[arg-type]
        losses.append(float(loss().detach()))
        found.append(U2.detach())
    assert min(losses) == pytest.approx(optimum.loss, rel=1e-8)
    omega = torch.linalg.svdvals(found[int(np.argmin(losses))])
    torch.testing.assert_close(omega, optimum.omega.sort(descending=True)[0][: len(omega)], atol=1e-3, rtol=1e-3)
    assert optimum.price > 0


@given(thetas, weightings, scale, st.floats(0.05, 30.0))
def test_a_limited_optimum_minimises_the_loss_plus_price_times_power(
    theta: Tensor, weighting: Weighting, sigma_1: float, power: float
) -> None:
    """The price is the loss that a little more power would save; a limit that does not bind changes nothing."""
    d = len(theta)
    free = theorems.mhvae_sigma2_learnable(theta, weighting, sigma_1, d)
    limited = theorems.mhvae_sigma2_learnable(theta, weighting, sigma_1, d, power=power)
    if float(free.lam.square().sum()) <= power:
        assert limited.price == 0
        torch.testing.assert_close(limited.omega, free.omega)
        return
    step = 1e-5 * power
    up, down = (
        theorems.mhvae_sigma2_learnable(theta, weighting, sigma_1, d, power=power + e).loss for e in (step, -step)
    )
    assert -(weighting.eta_dec**2) * (up - down) / (2 * step) == pytest.approx(limited.price, rel=1e-3, abs=1e-6)
    assert float(h.mhvae_terms(limited.weights(d), theta, weighting).loss) == pytest.approx(limited.loss, rel=1e-9)


@pytest.mark.parametrize(("d1", "d2"), [(3, 2), (2, 3), (4, 4)])
def test_unequal_numbers_of_latents(d1: int, d2: int) -> None:
    """Both sides of the thresholds, d1 beyond the rank of the data included; the modes where they are unique."""
    theta, weighting = torch.tensor([3.0, 1.7, 0.5], dtype=torch.float64), Weighting(1.5, 1.2, 0.8, 1.3)
    for i, optimum in enumerate(optima(theta, weighting, 0.7, 0.6, d1, d2)):
        fixed = {"sigma_1": 0.7 if i < 2 else None, "sigma_2": 0.6 if i > 0 else None}
        found = solve_mhvae(theta, weighting, d1, d2, seed=0, iterations=300, **fixed)  # type: ignore[arg-type]
        assert float(found.terms.loss) == pytest.approx(optimum.loss, rel=1e-8)
        m = min(d1, d2)
        torch.testing.assert_close(found.omega, optimum.omega[:m], atol=1e-4, rtol=0)
        assert optimum.omega[m:].tolist() == [0.0] * (d2 - m)
        if i < 2:  # with a learned Sigma_1 it does not matter which modes have a z2
            torch.testing.assert_close(found.lam, optimum.lam, atol=1e-4, rtol=0)


def test_explicit_formulas_of_theorem_3() -> None:
    """The paper's variables, cases a, b and c."""
    weighting, sigma_1 = Weighting(1.4, 1.2, 0.8, 1.3), 0.6
    theta = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    beta_1, beta_2, dec, enc = weighting
    c2 = (dec / enc) ** 2
    low = theorems.mhvae_sigma2_learnable(theta, weighting, sigma_1, 3)
    assert low.cases == "acc"
    assert low.threshold == pytest.approx(beta_2 * dec**2 / (math.sqrt(beta_1) * sigma_1))
    assert float(low.lam[0]) == pytest.approx(sigma_1 / (math.sqrt(beta_2) * dec) * math.sqrt(9 - beta_2 * dec**2))
    omega2 = sigma_1**2 * 9 / (beta_2 * enc**2 * dec**2) - beta_2 / beta_1 * c2
    assert float(low.omega[0]) == pytest.approx(math.sqrt(omega2))
    assert float(low.sigma_2[0]) == pytest.approx(beta_2 * enc * dec**2 / (math.sqrt(beta_1) * sigma_1 * 3))
    assert float(low.lam[1]) ** 2 == pytest.approx(sigma_1 / math.sqrt(beta_1) * (1.0 - math.sqrt(beta_1) * sigma_1))
    assert float(low.lam[2]) == 0
    assert low.sigma_2[1:].tolist() == pytest.approx([enc, enc])
    assert low.kl_2[1:].tolist() == pytest.approx([0, 0], abs=1e-15)

    high = theorems.mhvae_sigma2_learnable(theta, weighting, 0.9, 3)
    assert high.cases == "aab"
    assert float(high.lam[2]) == 0
    assert float(high.omega[2]) ** 2 == pytest.approx((0.9**2 - beta_2 / beta_1 * dec**2) / enc**2)
    assert float(high.sigma_2[2]) ** 2 == pytest.approx(beta_2 * dec**2 * enc**2 / (beta_1 * 0.9**2))
    assert float(high.information[2]) == 0 < float(high.kl_2[2])


def test_explicit_formulas_of_theorem_5() -> None:
    weighting, sigma_1, sigma_2 = Weighting(1.4, 1.2, 0.8, 1.3), 0.9, 0.6
    beta_1, beta_2, dec, enc = weighting
    c, theta = dec / enc, 2.5
    g = math.sqrt(beta_1 * beta_2) * c
    optimum = theorems.mhvae_both_fixed([theta, 0.1], weighting, sigma_1, sigma_2, 2)
    assert optimum.cases == "ab"
    lam2 = (sigma_1**2 / (g * sigma_2)) ** (2 / 3) * (theta ** (4 / 3) - (g * sigma_1 * sigma_2) ** (2 / 3))
    threshold = (beta_2**2 * c**4 * sigma_2**4 / (beta_1 * sigma_1**2)) ** (1 / 3)
    omega2 = (math.sqrt(beta_2) * c * sigma_1 / (beta_1 * sigma_2**2)) ** (2 / 3) * (theta ** (2 / 3) - threshold)
    assert float(optimum.lam[0]) ** 2 == pytest.approx(lam2)
    assert float(optimum.omega[0]) ** 2 == pytest.approx(omega2)
    in_b = math.sqrt(beta_2 / beta_1) * c * sigma_1 / sigma_2 - beta_2 / beta_1 * c**2
    assert float(optimum.omega[1]) ** 2 == pytest.approx(in_b)


def test_numbers_of_the_replication() -> None:
    """Derived for the replication before this code, on MNIST's theta and in its examples."""
    theta = MNIST
    active = {
        beta_2: int((theorems.mhvae_sigma2_learnable(theta, Weighting(1, beta_2, 0.5, 0.5), 0.5, 10).omega > 0).sum())
        for beta_2 in (2, 2.5, 3, 3.5, 4, 4.5, 7)
    }
    assert active == {2: 10, 2.5: 7, 3: 6, 3.5: 4, 4: 2, 4.5: 1, 7: 1}
    off = modes.switch_off_beta_2(theta[:4], 1.0, 0.5, 0.5).tolist()
    assert off == pytest.approx([12.34, 4.19, 3.87, 3.59], abs=5e-3)
    useless = theorems.mhvae_sigma2_learnable([1.0], Weighting(1, 2), 1.6, 1)
    assert useless.cases == "b"
    assert float(useless.kl_2[0]) == pytest.approx(0.123, abs=1e-3)
    for weighting, sigma_1, kl in ((Weighting(1, 2.1), 1.6, 0.099), (Weighting(2, 2.1), 1.3, 0.238)):
        assert float(theorems.mhvae_sigma2_learnable([1.0], weighting, sigma_1, 1).kl_2[0]) == pytest.approx(
            kl, abs=1e-3
        )
    nothing = theorems.mhvae_both_fixed(theta, Weighting(0.3, 8), 0.8, 0.9, 6)
    assert nothing.cases == "cccccc"
    assert nothing.threshold == pytest.approx(14.8, abs=0.1)
    assert nothing.kl_2.tolist() == pytest.approx([0.0104] * 6, abs=1e-4)
    assert nothing.information.tolist() == [0.0] * 6
    paper = [theorems.mhvae_both_fixed(theta, Weighting(1, beta_2, 0.5, 0.5), 0.5, 0.5, 10) for beta_2 in (1, 2)]
    assert [each.cases for each in paper] == ["a" * 10] * 2
    assert [each.threshold for each in paper] == pytest.approx([0.5, 1.0])


@given(weightings, scale, st.floats(0.2, 5.0))
def test_switches_are_where_omega_vanishes(weighting: Weighting, sigma_1: float, theta: float) -> None:
    beta_1, beta_2, dec, enc = weighting
    off = float(modes.switch_off_beta_2(theta, beta_1, dec, sigma_1))
    on = float(modes.switch_on_beta_1(theta, beta_2, dec, sigma_1))
    for factor, in_use in ((0.99, True), (1.01, False)):
        at_2 = theorems.mhvae_sigma2_learnable([theta], Weighting(beta_1, factor * off, dec, enc), sigma_1, 1)
        at_1 = theorems.mhvae_sigma2_learnable([theta], Weighting(on / factor, beta_2, dec, enc), sigma_1, 1)
        assert (float(at_2.omega[0]) > 0) == (float(at_1.omega[0]) > 0) == in_use
        assert at_2.margin < 0.05


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: theorems.mhvae_sigma2_learnable([1.0, 2.0], Weighting(), 1.0, 2), "sorted in decreasing order"),
        (lambda: theorems.mhvae_both_fixed([1.0], Weighting(), 1.0, -1.0, 1), "sigma_2 must be positive"),
        (lambda: theorems.mhvae_sigma1_learnable([1.0], Weighting(), 1.0, 0), "need d1 >= 1 and d2 >= 1, got 0 and 0"),
        (lambda: theorems.mhvae_sigma2_learnable([1.0], Weighting(beta_1=0.0), 1.0, 1), "beta_1 must be positive"),
        (lambda: theorems.mhvae_sigma2_learnable([1.0], Weighting(), 1.0, 1, power=0.0), "must be positive, got 0"),
        (lambda: modes.mode_sigma2_learnable(-1.0, 1.0, 1.0, 1.0, 1.0), "must not be negative, got -1"),
        (
            lambda: theorems.mhvae_sigma2_learnable([1.0], Weighting(), 1.0, 2).weights(1),
            "D = 1 is smaller than d1 = 2",
        ),
        (lambda: h.mhvae_terms(random_weights(3, 2, 2, 0), [1.0, 1.0], Weighting()), r"U1 has shape \(3, 2\)"),
        (
            lambda: h.mhvae_terms(
                random_weights(2, 2, 2, 0)._replace(variance_2=torch.zeros(2)), [1.0, 1.0], Weighting()
            ),
            "variance_2 must be positive",
        ),
    ],
)
def test_bad_input_says_what_is_wrong(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()

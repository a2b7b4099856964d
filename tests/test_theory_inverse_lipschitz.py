"""Fisher divergences, their bounds, the constrained linear optimum: against quadrature, sampling and a search."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from collapse_lib.convex import BrenierDecoder
from collapse_lib.theory import inverse_lipschitz as il


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decoder(n: int, k: int, L: float, seed: int) -> BrenierDecoder:
    torch.manual_seed(seed)
    B = torch.linalg.qr(normal(seed, n, k))[0]
    return BrenierDecoder(B, [16, 16], L=L).double().requires_grad_(False)


def test_the_linearisation_is_that_of_backward_mode():
    net, z = decoder(5, 2, 0.8, 0), normal(1, 7, 2)
    with torch.no_grad():
        f, J = il.linearise(net, z)
    torch.testing.assert_close(f, net(z))
    torch.testing.assert_close(J, torch.func.vmap(torch.func.jacrev(net))(z))


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_score_is_that_of_autograd(likelihood):
    net, z, x = decoder(5, 2, 0.8, 0), normal(1, 7, 2).requires_grad_(), normal(2, 3, 5).sign().clamp_min(0)
    found = il.pointwise_fisher(net, x, z.detach(), likelihood=likelihood, sigma2=0.6, chunk=3)
    for i, datum in enumerate(x):
        if likelihood == "gaussian":
            log_p = torch.distributions.Normal(net(z), 0.6**0.5).log_prob(datum)
        else:
            log_p = torch.distributions.Bernoulli(logits=net(z)).log_prob(datum)
        (score,) = torch.autograd.grad(log_p.sum(), z)
        torch.testing.assert_close(found.fisher[i], score.square().sum(-1))


@given(st.integers(1, 3), st.integers(0, 4), st.floats(0.2, 2), st.integers(0, 99), st.booleans())
def test_the_projected_bound_holds_pointwise_and_the_plain_one_for_square_decoders(k, more, L, seed, grey):
    net, likelihood = decoder(k + more, k, L, seed), "gaussian" if grey else "bernoulli"
    x = normal(seed + 1, 4, k + more)
    found = il.pointwise_fisher(net, x, 2 * normal(seed + 2, 20, k), likelihood=likelihood)
    floor = net.inverse_lipschitz**2 * (1 - 1e-6)
    assert (found.fisher >= floor * found.projected).all()
    assert (found.projected <= found.residual * (1 + 1e-9)).all()
    if more == 0:
        assert (found.fisher >= floor * found.residual).all()


def test_theorem_3_4_fails_below_full_dimension():
    """f(z) = (L z, 0), x = (0, c): F_prior = L^4, the unprojected bound L^2 (c^2 + L^2)."""
    L, c = 1.3, 2.0
    z = normal(0, 200_000, 1)
    found = il.pointwise_fisher(
        lambda u: torch.cat([L * u, 0 * u]), torch.tensor([[0.0, c]], dtype=torch.float64), z, likelihood="gaussian"
    )
    assert float(found.fisher.mean()) == pytest.approx(L**4, rel=0.02)
    assert float(found.residual.mean() * L**2) == pytest.approx(L**2 * (c**2 + L**2), rel=0.02)
    assert float(found.fisher.mean()) < float(found.residual.mean() * L**2)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(2, 30), st.integers(0, 99))
def test_the_three_parts_add_up(n, m, j, seed):
    T, S = normal(seed, m, n), normal(seed + 1, j, n) + 1
    parts = il.sample_bound(T, S)
    brute = np.mean([[((a - b) ** 2).sum() for b in S.numpy()] for a in T.numpy()])
    assert sum(parts) == pytest.approx(brute)


@pytest.mark.parametrize("L", [0.0, 0.5, 2.0])
def test_the_linear_gaussian_case_is_that_of_quadrature(L):
    x = 1.7
    found = il.linear_gaussian(L, x**2, 1)
    mean, std = L * x / (1 + L**2), (1 + L**2) ** -0.5
    prior, post = stats.norm(), stats.norm(mean, std)
    wide = (mean - 12, mean + 12)
    score = lambda z: (L * (x - L * z)) ** 2  # noqa: E731
    expected = [
        integrate.quad(lambda z: prior.pdf(z) * score(z), *wide)[0],
        integrate.quad(lambda z: post.pdf(z) * score(z), *wide, points=[mean])[0],
        integrate.quad(lambda z: prior.pdf(z) * (prior.logpdf(z) - post.logpdf(z)), *wide)[0],
        integrate.quad(lambda z: post.pdf(z) * (post.logpdf(z) - prior.logpdf(z)), *wide, points=[mean])[0],
    ]
    np.testing.assert_allclose([float(value) for value in found], expected, rtol=1e-6, atol=1e-9)
    assert float(found.kl_post_prior) <= float(found.fisher_post) / 2 + 1e-12
    assert float(found.kl_prior_post) <= float(found.fisher_prior) / (2 * (1 + L**2)) + 1e-12


def test_the_linear_map_meets_the_information_floor():
    """I(x; z) of x = L z + noise from determinants; a curved map of the same constant lies above it."""
    L, s, k = 0.8, 0.3, 3
    exact = 0.5 * np.linalg.slogdet(np.eye(k) + L**2 / s * np.eye(k))[1]
    assert float(il.information_floor(L, s, k)) == pytest.approx(exact)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    net = decoder(1, 1, L**0.5, 3)
    f = net(grid[:, None]).squeeze(-1)
    prior = torch.exp(-(grid**2) / 2) / (2 * np.pi) ** 0.5
    x = torch.linspace(float(f.min()) - 4, float(f.max()) + 4, 6001, dtype=torch.float64)
    given_z = torch.exp(-((x[:, None] - f) ** 2) / (2 * s)) / (2 * np.pi * s) ** 0.5
    p_x = given_z @ prior * (grid[1] - grid[0])
    entropy = -torch.trapezoid(p_x * p_x.clamp_min(1e-300).log(), x)
    information = float(entropy) - 0.5 * np.log(2 * np.pi * np.e * s)
    assert net.inverse_lipschitz == pytest.approx(L, rel=1e-6)
    assert information >= float(il.information_floor(net.inverse_lipschitz, s, 1)) - 1e-4


@given(st.floats(0.01, 4), st.floats(0.05, 2), st.floats(0, 3))
def test_the_constrained_optimum_is_that_of_a_search(eigenvalue, sigma2, L):
    def nll(w: float) -> float:
        total = w**2 + sigma2
        return 0.5 * (np.log(2 * np.pi * total) + eigenvalue / total)

    searched = optimize.minimize_scalar(nll, bounds=(L, L + 4), method="bounded", options={"xatol": 1e-9})
    found = il.constrained_linear(eigenvalue, sigma2, L)
    assert float(found.nll) <= searched.fun + 1e-9
    assert float(found.nll) == pytest.approx(nll(float(found.weight)))
    assert float(found.weight) >= L - 1e-12
    # the posterior of a linear Gaussian model
    w, gain = float(found.weight), float(found.weight) / (float(found.weight) ** 2 + sigma2)
    assert float(found.mean_variance) == pytest.approx(gain**2 * eigenvalue, abs=1e-12)
    q = torch.distributions.Normal(0.0, float(found.variance) ** 0.5)
    at_zero = float(torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)))
    assert float(found.kl) == pytest.approx(at_zero + gain**2 * eigenvalue / 2, abs=1e-5)
    assert w >= 0


def test_a_unit_is_active_inside_a_window_of_l_only():
    """sigma2 = 1, threshold 0.01: an eigenvalue of 0.25 is active for 0.209 <= L <= 4.79, 0.5 for 0.144 to 6.93."""
    low, high = il.active_window([0.25, 0.5], 1.0)
    np.testing.assert_allclose(low, [0.209, 0.144], atol=1e-3)
    np.testing.assert_allclose(high, [4.79, 6.93], atol=5e-3)
    for L, active in ((0.2, False), (0.22, True), (4.7, True), (4.9, False)):
        assert (float(il.constrained_linear(0.25, 1.0, L).mean_variance) >= 0.01) is active
    with pytest.raises(ValueError, match="no L"):
        il.active_window(0.01, 1.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: il.pointwise_fisher(torch.sin, normal(0, 2, 2), normal(0, 2, 2), likelihood="poisson"), "likelihood"),
        (lambda: il.pointwise_fisher(torch.sin, normal(0, 2), normal(0, 2, 2), likelihood="gaussian"), "x must be"),
        (lambda: il.sample_bound(normal(0, 2, 3), normal(0, 2, 4)), "differ in n"),
        (lambda: il.constrained_linear(1.0, 1.0, -0.5), "L must not be negative"),
        (lambda: il.constrained_linear(1.0, 0.0, 0.5), "sigma2"),
        (lambda: il.information_floor(1.0, 1.0, 0), "at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()

"""The Laplace posterior's KL and its bounds, against torch.distributions and by properties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collapse_lib.theory import bi_lipschitz as bl


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 4), st.integers(0, 3), st.floats(0.01, 3), st.integers(0, 99))
def test_it_is_the_kl_of_the_laplace_posterior_and_between_its_bounds(k, more, s2, seed):
    J, mean = normal(seed, 6, k + more, k), normal(seed + 1, 6, k)
    sv = torch.linalg.svdvals(J)
    found = bl.laplace_kl(sv, mean, s2)
    precision = torch.eye(k).double() + J.mT @ J / s2
    q = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    p = torch.distributions.MultivariateNormal(torch.zeros(k).double(), torch.eye(k).double())
    torch.testing.assert_close(found.kl, torch.distributions.kl_divergence(q, p), rtol=1e-8, atol=1e-10)
    assert (found.lower <= found.kl + 1e-12).all()
    assert (found.kl <= found.upper + 1e-12).all()
    # the floor of the smallest singular value is the sharper bound, and the best diagonal posterior keeps it too
    floor = bl.inverse_floor(sv[:, -1], s2, k)
    diagonal = torch.distributions.Normal(mean, precision.diagonal(dim1=1, dim2=2).rsqrt())
    mean_field = torch.distributions.kl_divergence(diagonal, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    assert (found.lower <= floor + 1e-12).all()
    assert (floor <= torch.minimum(found.kl, mean_field) + 1e-12).all()
    # the constant is one: for all v, ||v|| / L <= ||J v|| <= L ||v||
    v = normal(seed + 2, 6, k, 20)
    ratio = (J @ v).norm(dim=1) / v.norm(dim=1)
    assert (ratio <= found.constant[:, None] * (1 + 1e-9)).all()
    assert (ratio >= (1 - 1e-9) / found.constant[:, None]).all()


def test_a_linear_gaussian_decoder_is_exact():
    """The posterior of x = W z + noise has the precision that the Laplace approximation names, at its mean."""
    W, x, s2 = normal(0, 5, 2), normal(1, 4, 5), 0.3
    S = torch.linalg.inv(torch.eye(2).double() + W.mT @ W / s2)
    mean = x @ W @ S / s2
    sv = torch.linalg.svdvals(W).expand(4, 2)
    expected = 0.5 * (torch.trace(S) - 2 - torch.logdet(S) + mean.square().sum(-1))
    torch.testing.assert_close(bl.laplace_kl(sv, mean, s2).kl, expected)


def test_a_dead_direction_leaves_no_bound():
    sv = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    found = bl.laplace_kl(sv, torch.zeros(1, 2, dtype=torch.float64), 1.0)
    assert found.constant.item() == np.inf
    assert found.lower.item() == 0
    assert found.kl.item() == pytest.approx(0.5 * (1 / 5 - 1 + np.log(5)))
    assert found.upper.isfinite()


def test_the_participation_ratio_counts_directions():
    assert float(bl.participation_ratio([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert float(bl.participation_ratio([5.0, 0.0, 0.0])) == pytest.approx(1)
    many = bl.participation_ratio(normal(0, 7, 4))
    assert ((many >= 1) & (many <= 4)).all()


def test_what_does_not_fit_is_refused():
    for call, words in (
        (lambda: bl.laplace_kl(-torch.ones(1, 2).double(), torch.ones(1, 2).double(), 1.0), "not negative"),
        (lambda: bl.laplace_kl(torch.ones(1, 2).double(), torch.ones(2, 2).double(), 1.0), "mean"),
        (lambda: bl.laplace_kl(torch.ones(1, 2).double(), torch.ones(1, 2).double(), 0.0), "s2"),
        (lambda: bl.gap(0.0), "precision"),
    ):
        with pytest.raises(ValueError, match=words):
            call()

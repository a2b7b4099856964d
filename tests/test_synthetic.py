"""Drawn data against the law that they are said to follow."""

import pytest
import torch

from collapse_lib.synthetic import correlated, shared_factors, two_clusters
from collapse_lib.theory.second_moments import cvae_moments


@pytest.mark.parametrize("rho", [0.0, 0.6, -0.9, 1.0])
def test_the_correlation_is_as_asked_and_the_residual_shrinks_with_it(rho: float) -> None:
    x, y = correlated(40_000, 4, rho, seed=0)
    both = torch.corrcoef(torch.cat([x, y], 1).T)
    torch.testing.assert_close(both[:4, 4:], rho * torch.eye(4).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(x.var(0), torch.ones(4).double(), atol=0.03, rtol=0)
    expected = (1 - rho**2) * torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(cvae_moments(x, y).residual.eigenvalues, expected, atol=0.03, rtol=0)
    torch.testing.assert_close(correlated(40_000, 4, 0.3, seed=0).y, y)


def test_each_coordinate_may_have_a_correlation_of_its_own() -> None:
    x, y = correlated(40_000, 3, [0.0, 0.95, -0.5], seed=1)
    diagonal = torch.corrcoef(torch.cat([x, y], 1).T)[:3, 3:].diagonal()
    torch.testing.assert_close(diagonal, torch.tensor([0.0, 0.95, -0.5]).double(), atol=0.02, rtol=0)


def test_factors_are_shared_and_noise_is_not() -> None:
    noise = [0.9, 0.1]
    x, y = shared_factors(50_000, 4, noise, factors=3, seed=2)
    assert (x.shape, y.shape, x.dtype) == ((50_000, 4), (50_000, 2), torch.float64)
    residual = cvae_moments(x, y).residual.covariance.diagonal()
    assert (residual > torch.tensor(noise) ** 2).all()
    assert (residual < y.var(0)).all()


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"rho = 1\.5"):
        correlated(5, 2, 1.5, seed=0)
    with pytest.raises(ValueError, match="one a coordinate, 2 of them"):
        correlated(5, 2, [0.1, 0.2, 0.3], seed=0)


def test_two_clusters_have_the_covariance_that_they_say() -> None:
    x = two_clusters(100_000, 1.5, 0.5, seed=0)
    torch.testing.assert_close(x.T.cov(), torch.diag(torch.tensor([2.5, 0.25]).double()), atol=0.02, rtol=0)
    within = x[x[:, 0] > 0]
    torch.testing.assert_close(within.mean(0), torch.tensor([1.5, 0.0]).double(), atol=0.01, rtol=0)
    shift = x - two_clusters(100_000, 0.0, 0.5, seed=0)
    torch.testing.assert_close(shift.abs(), torch.tensor([1.5, 0.0]).double().expand_as(x))
    with pytest.raises(ValueError, match="std"):
        two_clusters(4, 1.0, 0.0, seed=0)

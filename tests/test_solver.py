"""The solver against functions whose minima are known."""

import numpy as np
import pytest
import torch

from collapse_lib.solver import minimise


def test_least_squares_is_solved() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    b = torch.randn(30, generator=generator, dtype=torch.float64)
    found = minimise(lambda p: (A @ p["x"] + p["c"] - b).square().sum(), {"x": torch.zeros(5), "c": torch.zeros(())})
    design = np.column_stack([A.numpy(), np.ones(30)])
    want, residual, *_ = np.linalg.lstsq(design, b.numpy(), rcond=None)
    np.testing.assert_allclose(torch.cat([found.parameters["x"], found.parameters["c"][None]]), want, atol=1e-7)
    np.testing.assert_allclose(found.loss, residual[0])
    assert found.converged
    assert found.parameters["c"].shape == ()
    assert found.parameters["x"].dtype == torch.float64


def test_low_rank_approximation_reaches_the_eckart_young_bound_from_small_weights() -> None:
    """All saddles of ||UV - Z||^2 are strict: a start next to the origin must not stay there."""
    generator = torch.Generator().manual_seed(1)
    Z = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    start = {n: 1e-3 * torch.randn(s, generator=generator) for n, s in (("U", (6, 2)), ("V", (2, 6)))}
    found = minimise(lambda p: (p["U"] @ p["V"] - Z).square().sum(), start)
    np.testing.assert_allclose(found.loss, torch.linalg.svdvals(Z)[2:].square().sum(), rtol=1e-9)
    adam = found.history[found.history.phase == "adam"]
    assert len(adam) == 500
    assert found.history.loss.iloc[-1] == pytest.approx(found.loss)


def test_errors() -> None:
    with pytest.raises(ValueError, match="names no parameter"):
        minimise(lambda p: torch.zeros(()), {})
    with pytest.raises(FloatingPointError, match="the loss became nan after 0 iterations"):
        minimise(lambda p: p["x"].log(), {"x": torch.tensor(-1.0)})
    with pytest.raises(ValueError, match="restarts >= 1"):
        minimise(lambda p: p["x"], {"x": torch.tensor(1.0)}, restarts=0)
    with pytest.raises(FloatingPointError, match="the loss became"):
        minimise(lambda p: -(p["x"] * 1e3).exp(), {"x": torch.tensor(0.0)}, lr=1.0)

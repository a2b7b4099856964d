"""Full-batch minimisation of any smooth function of named tensors, float64: for models small enough to be solved.

Adam walks away from saddles, where a quasi-Newton method started at small random weights may rest; L-BFGS then
converges to many digits. Where a loss is known in closed form from second moments, this finds its
optimum without sampling.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import optimize
from threadpoolctl import threadpool_limits
from torch import Tensor

Loss = Callable[[dict[str, Tensor]], Tensor]
"""Named parameters -> a scalar."""


def lbfgs(
    with_gradient: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    *,
    iterations: int,
    memory: int,
    gradient_tolerance: float,
    callback: Callable[[optimize.OptimizeResult], None],
) -> optimize.OptimizeResult:
    """SciPy's L-BFGS-B on a vector, from a function that gives value and gradient.

    Stops after `iterations` (or 4 times as many evaluations), when the largest gradient entry is below
    `gradient_tolerance`, or when `callback` (its argument must be called `intermediate_result`) raises StopIteration.
    """
    # SciPy's own threads wait for work in a busy loop and take the cores from torch, which does the arithmetic.
    with threadpool_limits(1, user_api="blas"):
        return optimize.minimize(
            with_gradient,
            start,
            jac=True,
            method="L-BFGS-B",
            callback=callback,
            options={
                "maxiter": iterations,
                "maxfun": 4 * iterations,
                "maxcor": memory,
                "gtol": gradient_tolerance,
                "ftol": 0.0,
            },
        )


class Minimum(NamedTuple):
    """Parameters in the shapes of the start, float64 and detached."""

    parameters: dict[str, Tensor]
    loss: float
    converged: bool  # the gradient tolerance was met before the iterations ran out
    history: pd.DataFrame  # one row an iteration: phase ("adam", "lbfgs"), iteration, loss


def minimise(
    loss: Loss,
    start: Mapping[str, Tensor],
    *,
    adam_steps: int = 500,
    lr: float = 0.02,
    iterations: int = 1000,
    restarts: int = 4,
    memory: int = 60,
    gradient_tolerance: float = 1e-9,
) -> Minimum:
    """Minimise `loss` by `adam_steps` of Adam (Kingma and Ba 2015), then L-BFGS (scipy's L-BFGS-B).

    L-BFGS runs up to `restarts` times, each with an empty memory of `memory` correction pairs and at most `iterations`
    iterations, until the largest gradient entry is below `gradient_tolerance`.
    Raises ValueError for an empty start or counts that are not positive; FloatingPointError where the loss is not
    finite: it is unbounded below, or a parameter left its domain (search its logarithm instead).
    """
    if not start:
        raise ValueError("start names no parameter")
    if adam_steps < 0 or iterations < 1 or restarts < 1:
        raise ValueError(
            f"need adam_steps >= 0, iterations >= 1, restarts >= 1; got {adam_steps}, {iterations}, {restarts}"
        )
    shapes = {name: t.shape for name, t in start.items()}
    sizes = [t.numel() for t in start.values()]
    vector = torch.cat([t.detach().double().reshape(-1) for t in start.values()]).requires_grad_()
    rows: list[tuple[str, int, float]] = []

    def named(flat: Tensor) -> dict[str, Tensor]:
        return {n: part.view(shape) for (n, shape), part in zip(shapes.items(), flat.split(sizes), strict=True)}

    def value(flat: Tensor) -> Tensor:
        found = loss(named(flat))
        if not bool(torch.isfinite(found.detach())):
            raise FloatingPointError(f"the loss became {float(found.detach())} after {len(rows)} iterations")
        return found

    adam = torch.optim.Adam([vector], lr=lr)
    for step in range(adam_steps):
        current = value(vector)
        (vector.grad,) = torch.autograd.grad(current, vector)
        adam.step()
        rows.append(("adam", step, float(current.detach())))

    def with_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        flat = torch.from_numpy(point).requires_grad_()
        current = value(flat)
        (gradient,) = torch.autograd.grad(current, flat)
        return float(current.detach()), gradient.numpy()

    point = vector.detach().numpy()
    for _ in range(restarts):
        found = lbfgs(
            with_gradient,
            point,
            iterations=iterations,
            memory=memory,
            gradient_tolerance=gradient_tolerance,
            callback=lambda intermediate_result: rows.append(("lbfgs", len(rows), float(intermediate_result.fun))),
        )
        point, converged = found.x, bool(abs(found.jac).max() <= gradient_tolerance)
        if converged:
            break
    history = pd.DataFrame(rows, columns=["phase", "iteration", "loss"])
    return Minimum(named(torch.from_numpy(point)), float(found.fun), converged, history)

"""The deterministic way to train linear models: L-BFGS on second moments, full batch, float64.

Linear VAE: for a given decoder the best encoder is known (`theory.linear_vae.best_encoder`), so only (W, log sigma2) is
searched, with the analytic gradient. The search runs in the eigenbasis of S, restricted to the span of the centred
data: an exact change of variables (every optimum has its W there, and L-BFGS does not see rotations) that makes a step
cost p k^2, p = rank S. The linear autoencoder is trained in the same way, for comparison. The profile ELBO
and its gradient are those of `theory.linear_vae`; L-BFGS is SciPy's (Byrd et al. 1995).
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import optimize
from torch import Tensor

from collapse_lib.solver import lbfgs
from collapse_lib.theory import linear_vae
from collapse_lib.theory.spectrum import Spectrum


class ProfileFit(NamedTuple):
    """Decoder, its best encoder, and the way there. float64, full size (n, k)."""

    W: Tensor  # (n, k)
    V: Tensor  # (k, n)
    d: Tensor  # (k,)
    sigma2: float
    mu: Tensor  # (n,)
    elbo: float  # nats per datum
    converged: bool  # the gradient tolerance was met before `iterations` ran out
    history: pd.DataFrame  # one row an iteration: iteration, elbo, log_sigma2, seconds
    evaluations: pd.DataFrame  # one row an evaluation: iteration, then what `evaluate` returned


def maximise_profile_elbo(
    spectrum: Spectrum,
    k: int,
    *,
    sigma2: float | None = None,
    seed: int = 0,
    iterations: int = 400,
    weight_std: float | None = None,
    start: Tensor | None = None,
    memory: int = 10,
    gradient_tolerance: float = 1e-7,
    target: float | None = None,
    evaluate: Callable[[Tensor, float], Mapping[str, float]] | None = None,
    evaluate_every: int = 1,
) -> ProfileFit:
    """Maximise ELBO*(W, sigma2) = LL(W, sigma2) - G(W, sigma2) (derived; see `theory.linear_vae`) by L-BFGS.

    Start: W ~ N(0, weight_std^2) (default n^-1/2) from `seed`, or the decoder `start` (n, k), of which the part in the
    span of the data counts; sigma2 = tr S / n. With `sigma2` given it stays fixed.
    Stops after `iterations` (or 4 times as many evaluations), when the largest gradient entry is below
    `gradient_tolerance`, or once the ELBO reaches `target` (nats per datum). `memory` counts correction pairs.
    `evaluate` sees W (n, k) and sigma2 after every `evaluate_every`-th iteration; its time counts in `seconds`.

    Errors: ValueError if k is outside 1..rank S - 1 (1..n for a given sigma2), or for a sigma2 or an iteration count
    that is not positive.
    """
    n, p = spectrum.n, spectrum.rank
    most = p - 1 if sigma2 is None else n
    if not 1 <= k <= most:
        raise ValueError(
            f"k must be between 1 and {most}, got {k}: rank S is {p}, and a learned sigma2 is unbounded from there on"
        )
    if sigma2 is not None and sigma2 <= 0:
        raise ValueError(f"sigma2 is a variance and must be positive, got {sigma2}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    eigenvalues = spectrum.eigenvalues[:p]
    std = n**-0.5 if weight_std is None else weight_std
    if start is None:
        W0 = std * torch.randn(p, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    elif start.shape == (n, k):
        W0 = spectrum.eigenvectors[:, :p].T @ start.double()
    else:
        raise ValueError(f"start must be ({n}, {k}), got {tuple(start.shape)}")
    log_sigma2 = np.log(spectrum.trace / n if sigma2 is None else sigma2)
    fixed = sigma2 is not None

    def negative(vector: np.ndarray) -> tuple[float, np.ndarray]:
        W = torch.from_numpy(vector[:-1]).view(p, k)
        value = linear_vae.profile_elbo_and_grad(W, vector[-1], eigenvalues, n)
        slope = 0.0 if fixed else -float(value.log_sigma2)
        return -float(value.elbo), np.append(-value.W.reshape(-1).numpy(), slope)

    def decoder(vector: np.ndarray) -> tuple[Tensor, float]:
        W = spectrum.eigenvectors[:, :p] @ torch.from_numpy(vector[:-1]).view(p, k)
        return W, float(np.exp(vector[-1]))

    rows: list[dict[str, float]] = []
    evaluated: list[dict[str, float]] = []
    begun = time.perf_counter()

    def record(intermediate_result: optimize.OptimizeResult) -> None:
        elbo, seconds = -float(intermediate_result.fun), time.perf_counter() - begun
        rows.append(
            {"iteration": len(rows) + 1, "elbo": elbo, "log_sigma2": intermediate_result.x[-1], "seconds": seconds}
        )
        if evaluate is not None and len(rows) % evaluate_every == 0:
            evaluated.append({"iteration": len(rows), **evaluate(*decoder(intermediate_result.x))})
        if target is not None and elbo >= target:
            raise StopIteration

    found = lbfgs(
        negative,
        np.append(W0.reshape(-1).numpy(), log_sigma2),
        iterations=iterations,
        memory=memory,
        gradient_tolerance=gradient_tolerance,
        callback=record,
    )
    W, best = decoder(found.x)
    V, d = linear_vae.best_encoder(W, best)
    return ProfileFit(
        W,
        V,
        d,
        best,
        spectrum.mu,
        -float(found.fun),
        bool(abs(found.jac).max() <= gradient_tolerance),
        pd.DataFrame(rows),
        pd.DataFrame(evaluated),
    )


class AutoencoderFit(NamedTuple):
    """Linear autoencoder xhat = mu + decoder encoder (x - mu). float64, full size."""

    decoder: Tensor  # (n, k)
    encoder: Tensor  # (k, n)
    mu: Tensor  # (n,)
    error: float  # E ||x - xhat||^2, summed over dimensions, mean over data
    converged: bool  # the gradient tolerance was met before `iterations` ran out
    history: pd.DataFrame  # one row an iteration: iteration, error


def fit_linear_autoencoder(
    spectrum: Spectrum,
    k: int,
    *,
    seed: int = 0,
    iterations: int = 500,
    weight_std: float | None = None,
    memory: int = 10,
    gradient_tolerance: float = 1e-6,
) -> AutoencoderFit:
    """Minimise the reconstruction error of a linear autoencoder by L-BFGS; nothing in it is orthogonal by design.

    With D (p, k), E (k, p) in the eigenbasis of S:
        error = tr S - 2 sum( D * (S E^T) ) + sum( (D^T D) * (E S E^T) )
        d/dD  = 2 [ D (E S E^T) - S E^T ],    d/dE = 2 [ (D^T D) E - D^T ] S
    Its minima are D = U_k T, E = T^-1 U_k^T for any invertible T, with error sum_{j>k} l_j (Baldi and Hornik 1989);
    every other stationary point is a saddle. Start: D and E ~ N(0, weight_std^2) (default n^-1/2) from `seed`. Stops as
    `maximise_profile_elbo` does; the tolerance is wider, since rounding of tr S hides gradients below about 1e-7.
    Errors: ValueError if k is outside 1..rank S or an iteration count is not positive.
    """
    n, p = spectrum.n, spectrum.rank
    if not 1 <= k <= p:
        raise ValueError(f"k must be between 1 and {p}, the rank of S, got {k}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    eigenvalues, trace = spectrum.eigenvalues[:p], spectrum.trace
    std = n**-0.5 if weight_std is None else weight_std
    start = std * torch.randn(2, p, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def error(vector: np.ndarray) -> tuple[float, np.ndarray]:
        D, Et = torch.from_numpy(vector).view(2, p, k)
        SEt, gram = eigenvalues[:, None] * Et, D.T @ D
        code = Et.T @ SEt
        value = trace - 2 * (D * SEt).sum() + (gram * code).sum()
        gradient = 2 * torch.stack([D @ code - SEt, eigenvalues[:, None] * (Et @ gram - D)])
        return float(value), gradient.reshape(-1).numpy()

    errors: list[float] = []
    found = lbfgs(
        error,
        start.reshape(-1).numpy(),
        iterations=iterations,
        memory=memory,
        gradient_tolerance=gradient_tolerance,
        callback=lambda intermediate_result: errors.append(float(intermediate_result.fun)),
    )
    D, Et = spectrum.eigenvectors[:, :p] @ torch.from_numpy(found.x).view(2, p, k)
    history = pd.DataFrame({"iteration": range(1, len(errors) + 1), "error": errors})
    converged = bool(abs(found.jac).max() <= gradient_tolerance)
    return AutoencoderFit(D, Et.T, spectrum.mu, float(found.fun), converged, history)

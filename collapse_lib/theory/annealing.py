"""The linear VAE under a weighted KL: what KL annealing can and cannot do. Nats per image; derived.

    F_beta = -(n/2) log(2 pi s) - R / (2 s) - beta KL,     s = sigma2

At fixed s, whatever maximises F_beta maximises the ordinary ELBO at the noise t = beta s. Raising beta from 0 to 1 thus
sweeps the effective noise from 0 to s, latent j dies at beta = l_j / s, and at beta = 1 the optimum is that of training
without annealing: it can delay a collapse that a too large fixed s causes, not prevent it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from collapse_lib.theory import _tensors as t
from collapse_lib.theory._tensors import Array
from collapse_lib.theory.ppca import LOG_2PI, UnboundedLikelihoodError
from collapse_lib.theory.spectrum import Spectrum


class BetaOptimum(NamedTuple):
    """Maximum of F_beta over all weights, and over sigma2 unless that was given."""

    sigma2: float
    active: int  # latents j <= k with l_j > beta sigma2
    objective: float  # F_beta


def beta_optimum(spectrum: Spectrum, k: int, beta: float, sigma2: float | None = None) -> BetaOptimum:
    """Largest F_beta over all linear VAEs with k latents, for a given sigma2 = s or, by default, the best one.

    F_beta*(s) = -(n/2) log(2 pi s) - (beta/2) [ sum_{j<=r} log( l_j / (beta s) ) + r ] - (sum_{j>r} l_j) / (2 s)
    r(s)       = #{ j <= k : l_j > beta s }
    best s     = the root of  h(s) = n - beta r(s) - (sum_{j>r(s)} l_j) / s,  which is continuous and increasing

    beta = 1 gives pPCA (`ppca.mle`, `ppca.fixed_sigma2`); a beta > 1 can collapse latents even where s is free.
    Raises ValueError unless beta > 0, sigma2 > 0 and 1 <= k <= n; UnboundedLikelihoodError if the best s is zero.
    """
    k = t.latents(k, spectrum.n, least=1)
    beta = float(t.variance("beta", beta))
    leading = spectrum.leading(k)
    s = _best_sigma2(spectrum, leading, beta) if sigma2 is None else float(t.variance("sigma2", sigma2))
    used = leading[leading > beta * s]
    unused = spectrum.trace - float(used.sum())
    kl = 0.5 * (float((used / (beta * s)).log().sum()) + len(used))
    return BetaOptimum(s, len(used), -0.5 * spectrum.n * (LOG_2PI + math.log(s)) - beta * kl - unused / (2 * s))


def weighted_objective(elbo: Array, n: int, beta: Array, sigma2: Array) -> Tensor:
    """F_beta at sigma2 = s of a linear VAE with its best encoder for the noise t = beta s, from its ELBO at that noise.

    F_beta(s) = beta [ ELBO_t + (n/2) log(2 pi beta s) ] - (n/2) log(2 pi s); arguments broadcast.
    """
    elbo = t.real("elbo", elbo)
    beta, s = t.positive("beta", t.real("beta", beta)), t.positive("sigma2", t.real("sigma2", sigma2))
    return beta * (elbo + 0.5 * n * (LOG_2PI + (beta * s).log())) - 0.5 * n * (LOG_2PI + s.log())


def _best_sigma2(spectrum: Spectrum, leading: Tensor, beta: float) -> float:
    """For r = k, ..., 0: s_r = sum_{j>r} l_j / (n - beta r), the one whose own r(s_r) is r."""
    eigenvalues = leading.tolist()
    for r in range(len(eigenvalues), -1, -1):
        if (free := spectrum.n - beta * r) <= 0:
            continue
        s = (spectrum.trace - sum(eigenvalues[:r])) / free
        if s <= 0 or r >= spectrum.rank:
            raise UnboundedLikelihoodError(
                f"{r} active latents leave nothing unexplained (rank S is {spectrum.rank}), so sigma2 -> 0; take fewer"
            )
        if (r == 0 or beta * s < eigenvalues[r - 1]) and (r == len(eigenvalues) or eigenvalues[r] <= beta * s):
            return s
    raise AssertionError("h(s) is continuous and increasing: it has a root")

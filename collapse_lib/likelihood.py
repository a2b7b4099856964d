"""Importance-weighted estimate of the marginal likelihood (Burda, Grosse and Salakhutdinov 2016).

The cost is the decoder's: each sample is decoded once and the encoder does not run here. Data and samples pass through
in chunks sized to the processor's cache.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from collapse_lib.metrics import check_posterior, standard_normal

# torch fills normal numbers on the CPU in blocks of 16: chunks of whole blocks draw the same stream however it is cut.
NOISE_BLOCK = 16

# Elements of x decoded at once. CPU: temporaries of 4 MiB (float32) stay in cache; GPU: enough to fill it.
CPU_CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS = 2**20, 2**24


class ImportanceNLL(NamedTuple):
    """Importance-weighted negative log-likelihood in nats per datum, with the number of samples behind it.

    In expectation it is an upper bound on -log p(x) that tightens as `n_samples` grows; with one sample it is minus the
    single-sample ELBO.
    """

    nll: float
    """Mean of `per_datum`."""
    n_samples: int
    """Samples of z drawn and decoded for each datum."""
    standard_error: float
    """Monte Carlo error of `nll` on these data (delta method; nan for one sample), without the spread between data."""
    per_datum: Tensor
    """(N,) float64."""
    effective_samples: Tensor
    """(N,) float64: (sum w)^2 / sum w^2, from 1 (one weight outweighs all, do not trust it) to `n_samples`."""


def importance_nll(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    n_samples: int,
    *,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
) -> ImportanceNLL:
    """-log p(x) ~ -log 1/S sum_s w_s,  w_s = p(x|z_s) p(z_s) / q(z_s|x),  z_s ~ q(z|x) = N(mean, diag var).

    The prior p(z) is N(0, I). For N(0, s I) give mean / sqrt(s), var / s and a `log_likelihood` that multiplies z by
    sqrt(s).

    Args:
        x: (N, ...), row n belonging to row n of `mean` and `var`.
        mean, var: (N, k) of the posterior.
        log_likelihood: log p(x|z) in nats, constants included. Called under `torch.no_grad` with B data and S samples,
            `x` (B, ...) and `z` (S, B, k), it returns (S, B). A model's `log_likelihood` is of this form. It must not
            mix the data of its chunk, as batch norm in training mode does.
        n_samples: samples of z a datum; all of them are drawn.
        generator: source of the noise, drawn on its device; default: the default generator of `mean`'s device.
        chunk: (sample, datum) pairs decoded at once, at least 16; by default as many as the size of one x allows. It
            bounds memory (but for one float64 a sample). With noise drawn on the CPU it does not change the samples.

    Raises:
        ValueError: shapes that do not fit, variances that are not positive, a log-likelihood that is nan or +inf.
    """
    check_posterior(mean, var)
    if mean.ndim != 2 or x.ndim < 1 or len(x) != len(mean):
        raise ValueError(f"x {tuple(x.shape)} needs mean and var (N, k) with one row a datum, got {tuple(mean.shape)}")
    if n_samples < 1 or (chunk is not None and chunk < 1):
        raise ValueError(f"n_samples and chunk must be at least 1, got {n_samples} and {chunk}")
    if chunk is None:
        elements = CPU_CHUNK_ELEMENTS if mean.device.type == "cpu" else GPU_CHUNK_ELEMENTS
        chunk = max(1, elements // max(x[0].numel(), mean.shape[1]))
    if mean.device.type == "cpu":
        _keep_freed_memory()
    rows = max(1, chunk // _whole_blocks(n_samples))
    log_mean_w, effective = [], []
    with torch.no_grad():
        for x_chunk, mean_chunk, var_chunk in zip(x.split(rows), mean.split(rows), var.split(rows), strict=True):
            log_w = _log_weights(x_chunk, mean_chunk, var_chunk, log_likelihood, n_samples, generator, chunk)
            largest = log_w.amax(1).clamp(min=torch.finfo(log_w.dtype).min)  # finite, also if all weights vanish
            w = (log_w - largest[:, None]).exp_()
            sum_w = w.sum(1)
            log_mean_w.append((sum_w / n_samples).log() + largest)
            effective.append(sum_w.square() / w.square_().sum(1))
        per_datum, effective_samples = -torch.cat(log_mean_w), torch.cat(effective)
        if not (per_datum > -math.inf).all():
            bad = int((~(per_datum > -math.inf)).nonzero()[0])
            raise ValueError(
                f"log_likelihood is nan or +inf for datum {bad}; check the decoder's output and its variance"
            )
        # Var[log mean w] ~ Var[mean w] / (mean w)^2, with the unbiased variance of the weights.
        relative_variance = (n_samples / effective_samples - 1).clamp(min=0) / (n_samples - 1)
        standard_error = relative_variance.sum().sqrt() / len(x)
    return ImportanceNLL(per_datum.mean().item(), n_samples, standard_error.item(), per_datum, effective_samples)


def _log_weights(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    n_samples: int,
    generator: torch.Generator | None,
    chunk: int,
) -> Tensor:
    """log w_s of all S samples of B data, (B, S) float64.

    With z = m + sqrt(v) eps the 2 pi cancels: log p(z) - log q(z|x) = 1/2 sum_i ( eps_i^2 - z_i^2 + log v_i ).
    """
    n_data, k = mean.shape
    m, std, half = mean.unsqueeze(1), var.sqrt().unsqueeze(1), mean.new_full((k,), 0.5)
    log_w = mean.new_empty((n_data, n_samples), dtype=torch.float64)
    step = max(NOISE_BLOCK, chunk // NOISE_BLOCK * NOISE_BLOCK)
    n_drawn = _whole_blocks(n_samples)
    for start in range(0, n_drawn, step):
        out = log_w[:, start : start + step]
        eps = standard_normal((n_data, min(step, n_drawn - start), k), mean, generator)[:, : out.shape[1]]
        z = torch.addcmul(m, std, eps)
        log_p_minus_log_q = (eps + z).mul_(eps - z) @ half
        z = z.transpose(0, 1).contiguous()
        log_p = log_likelihood(x, z)
        if log_p.shape != z.shape[:2]:
            raise ValueError(
                f"log_likelihood gave {tuple(log_p.shape)} for z {tuple(z.shape)}, expected {tuple(z.shape[:2])}"
            )
        torch.add(log_p.mT, log_p_minus_log_q, out=out)
    return log_w.add_(0.5 * var.log().sum(-1, keepdim=True))


def _whole_blocks(n_samples: int) -> int:
    return math.ceil(n_samples / NOISE_BLOCK) * NOISE_BLOCK


def _keep_freed_memory() -> None:
    """Have glibc reuse the temporaries of a chunk, which otherwise go back to the kernel and are faulted in each time.

    Freeing a large block raises its thresholds for that (mallopt(3), M_MMAP_THRESHOLD); untouched pages cost nothing.
    A small net on two threads took 0.42 instead of 0.4 to 0.9 microseconds a sample.
    """
    torch.empty(2**24, dtype=torch.uint8)

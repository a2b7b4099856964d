"""The rows of the tables on LR-VAE: methods x beta, trained with one loss, and what each trained model is worth.

Rows are named "VAE, β=0.1", "LR-VAE α=1, β=0.1", "LIDVAE, β=0.1", "IL-LIDVAE L=1, β=0.1" (`row`). LR-VAE minimises
`latent_reconstruction.LatentReconstruction`, the others the ELBO of a Gaussian likelihood of variance 1/2 with its KL
weighted by beta: the same loss at alpha = 0 up to a constant, without the cost of a cycle that has no weight.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor, nn

from collapse_lib import plotting
from collapse_lib.evaluation import measure_vae
from collapse_lib.latent_reconstruction import LatentReconstruction, SoftplusLogVariance, cycle_errors
from collapse_lib.method_table import Family
from collapse_lib.objectives import SampledElbo, latent_kl
from collapse_lib.sweeps import Ramp

CARRYING = 0.1
"""Nats of mean KL from which a latent counts as carrying something: ours, chosen after a run in the gap that it showed.

That is between latents that do, half a nat and more, and the jitter of training: after some thousand steps of Adam the
means of unused latents vary by 0.001 to 0.06, on either side of the usual threshold of 0.01 for active units.
"""

LABELS = {
    "au_share": "AU/k",
    "carrying_share": f"KL>{CARRYING:g}",
    "kl": "KL",
    "mi": "I",
    "data_error": "‖x−D(μ)‖²",
    "prior_cycle": "cycle, prior",
    "posterior_cycle": "cycle, posterior",
}
"""Headings of the columns of `worth` that a table shows, for `results.Results`."""


def row(method: str, beta: float) -> str:
    """Name of a row."""
    return f"{method}, β={beta:g}"


def lr_vae(alpha: float) -> str:
    """Name of LR-VAE with the final weight `alpha`."""
    return f"LR-VAE α={alpha:g}"


def il_lidvae(constant: float) -> str:
    """Name of IL-LIDVAE with the constant `constant` of each map."""
    return f"IL-LIDVAE L={constant:g}"


def families(
    plain: Callable[..., nn.Module],
    convex: Callable[..., nn.Module],
    *,
    betas: Sequence[float],
    alphas: Sequence[float],
    constant: float,
) -> list[Family]:
    """VAE and LR-VAE of each alpha from `plain`, LIDVAE and IL-LIDVAE from `convex`, all at each beta.

    Both build VAEs of the likelihood N(D(z), I / 2), `convex` one with a `convex.BrenierDecoder`. alphas: final alphas
    of LR-VAE, which grow linearly from 0 over the whole run as in the paper; constant: L of both maps of IL-LIDVAE.
    """
    ramps = {lr_vae(alpha): Ramp(0.0, alpha) for alpha in alphas}
    constants = {"LIDVAE": 0.0, il_lidvae(constant): constant}
    return [
        Family(plain, SampledElbo(), {row("VAE", b): {"beta": b} for b in betas}),
        Family(
            plain, LatentReconstruction(), {row(m, b): {"alpha": a, "beta": b} for m, a in ramps.items() for b in betas}
        ),
        Family(
            convex, SampledElbo(), {row(m, b): {"decoder.L": L, "beta": b} for m, L in constants.items() for b in betas}
        ),
    ]


LOG, SOFTPLUS, UNIT_VECTORS = "LIDVAE, log of the mean", "LIDVAE, softplus", "LIDVAE, unit vectors"
"""LIDVAE with one thing as in the authors' code: its loss, its log-variance, its basis (`lidvae_as_released`)."""


def lidvae_as_released(
    convex: Callable[..., nn.Module], unit_vectors: Callable[..., nn.Module], *, betas: Sequence[float]
) -> list[Family]:
    """LIDVAE (L = 0) three times at each beta, each with one choice of the authors' code.

    The log of the batch's mean square error for the error's sum (their LIDVAE alone was run with it), a softplus for
    the log-variance (all models, later LIDVAE alone), and B of unit vectors (`unit_vectors` builds it).
    """

    def softplus() -> nn.Module:
        model: Any = convex()
        model.encoder = SoftplusLogVariance(model.encoder)
        return model

    log = LatentReconstruction(reconstruction="log")
    plain = SampledElbo()

    def methods(name: str) -> dict[str, dict[str, float]]:
        return {row(name, beta): {"decoder.L": 0.0, "beta": beta} for beta in betas}

    return [
        Family(convex, log, methods(LOG)),
        Family(softplus, plain, methods(SOFTPLUS)),
        Family(unit_vectors, plain, methods(UNIT_VECTORS)),
    ]


def worth(model: Any, x: Tensor, *, n_samples: int = 1000, seed: int = 0, chunk: int = 1000) -> dict[str, float]:
    """`evaluation.measure_vae` and `latent_reconstruction.cycle_errors` of one model on all of `x` (N, n).

    kl and mi in nats; carrying_share, the share of latents with a mean KL above `CARRYING`; data_error =
    ||x - D(E_mu(x))||^2; prior_cycle and posterior_cycle, the squared distance at which a latent from the prior
    (`n_samples` draws) or from a posterior of the data comes back. `chunk` data or latents at a time.
    """
    found = cycle_errors(model, x, n_samples=n_samples, seed=seed, chunk=chunk)
    with torch.no_grad():
        kl = torch.cat([latent_kl(model.encode(rows)) for rows in x.split(chunk)])
    carrying = float((kl.mean(0) > CARRYING).double().mean())
    errors = {"data_error": found.data, "prior_cycle": found.prior, "posterior_cycle": found.posterior}
    return measure_vae(model, x, seed=seed, chunk=chunk) | {"carrying_share": carrying} | errors


def values(table: pd.DataFrame, method: str, betas: Sequence[float], column: str) -> NDArray[np.float64]:
    """(seed, beta) of one method; nan where a member diverged."""
    return np.stack([table.xs(row(method, beta), level="method")[column].to_numpy() for beta in betas], axis=1)


def beta_panels(
    axes: Sequence[Axes],
    table: pd.DataFrame,
    methods: Sequence[str],
    betas: Sequence[float],
    columns: Mapping[str, str],
) -> None:
    """One panel a column of the table against beta, a line and a band over seeds for each method."""
    for ax, (column, label) in zip(axes, columns.items(), strict=True):
        for method in methods:
            plotting.curve_with_band(ax, betas, values(table, method, betas, column), label=method)
        ax.set(xlabel="β", ylabel=label, xscale="log")
        ax.set_xticks(list(betas), [f"{beta:g}" for beta in betas])
        ax.minorticks_off()


def cycle_scatter(ax: Axes, table: pd.DataFrame, methods: Sequence[str], betas: Sequence[float]) -> None:
    """Data error against latent error on prior draws (a logarithm), a marker a model, larger for larger beta."""
    for method, marker, color in zip(methods, "oDs^v", itertools.cycle(plotting.RUNS), strict=False):
        for size, beta in enumerate(betas):
            part = table.xs(row(method, beta), level="method")
            label = method if size == 0 else None
            area = (4 + 3 * size) ** 2
            ax.scatter(part.prior_cycle, part.data_error, s=area, color=color, marker=marker, alpha=0.8, label=label)
    ax.set(xscale="log", xlabel="‖E(D(z)) − z‖², z from the prior", ylabel="‖x − D(E(x))‖²")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")

"""The methods of the inverse-Lipschitz tables, and what their notebooks do with the trained models.

All numbers of these tables but two are ours: the paper's settings and baselines could not be read.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from collapse_lib import plotting
from collapse_lib.convex import BrenierDecoder
from collapse_lib.evaluation import measure_vae
from collapse_lib.method_table import Binarised, Family, Number, Trained
from collapse_lib.models.brenier import brenier_vae, plain_vae, skip_vae
from collapse_lib.models.mixture import MonteCarloElbo
from collapse_lib.objectives import SampledElbo, latent_kl
from collapse_lib.rivals import Cycle, FreeBits, SemiAmortisedElbo, lagging
from collapse_lib.sweeps import Ramp
from collapse_lib.theory.inverse_lipschitz import linearise
from collapse_lib.transforms import binarise_static


def constrained(L: float, basis: str = "pca") -> str:
    """The name of a row: IL-LIDVAE with `L` a map on that basis; L = 0 is LIDVAE."""
    name = "LIDVAE" if L == 0 else f"IL-LIDVAE L={L:g}"
    return name if basis == "pca" else f"{name}, B = {basis}"


def families(
    B: Tensor,
    *,
    eye: Tensor,
    output: Tensor,
    hidden: Sequence[int],
    icnn_hidden: Sequence[int],
    Ls: Sequence[float],
    annealed_from: float,
    components: int,
    mixture_L: float,
    skip_scale: float,
    beta: float = 0.2,
    free_nats: float = 0.1,
    refinements: int = 5,
    inner: int = 3,
) -> list[Family]:
    """Every method on binarised images of n = len(B) pixels with k = B.shape[1] latents.

    B, eye: bases (n, k) of the Brenier decoders, principal directions and unit vectors; output: (n,) start of the
        offset of the logits, the same for all; hidden: of encoders and MLP decoders; icnn_hidden: of both ICNNs.
    """
    n, k = B.shape
    shared: dict[str, Any] = {"encoder_hidden": hidden, "output": output}
    mlp = partial(plain_vae, n, k, decoder_hidden=hidden, **shared)
    icnn: dict[str, Any] = {"decoder_hidden": icnn_hidden, **shared}
    sampled = Binarised(SampledElbo(), n)
    constants: dict[str, Mapping[str, Any]] = {constrained(L): {"decoder.L": float(L)} for L in Ls}
    annealed = {f"IL-LIDVAE L={annealed_from:g}→0": {"decoder.L": Ramp(annealed_from, 0.0, end=0.5)}}
    warm_ups: dict[str, Number] = {"KL warm-up": Ramp(0.0, 1.0, end=0.5), "cyclical warm-up": Cycle(4)}
    plain: dict[str, Number] = {"VAE": 1.0, f"β-VAE ({beta:g})": beta, **warm_ups}
    mixed = {"LIDMVAE": 0.0, f"IL-LIDMVAE L={mixture_L:g}": mixture_L}
    return [
        Family(mlp, sampled, {name: {"beta": value} for name, value in plain.items()}),
        Family(mlp, Binarised(FreeBits(free_nats), n), {f"free bits ({free_nats:g})": {}}),
        Family(mlp, sampled, {"lagging": {}}, lagging(inner=inner)),
        Family(mlp, Binarised(SemiAmortisedElbo(refinements), n), {"SA-VAE": {}}),
        Family(partial(brenier_vae, B, **icnn), sampled, constants | annealed),
        Family(
            partial(brenier_vae, B, components=components, **icnn),
            Binarised(MonteCarloElbo(), n),
            {name: {"decoder.L": L} for name, L in mixed.items()},
        ),
        Family(
            partial(brenier_vae, eye, **icnn),
            sampled,
            {constrained(L, "eye"): {"decoder.L": L} for L in (0.0, mixture_L)},
        ),
        Family(partial(skip_vae, B, decoder_hidden=hidden, scale=skip_scale, **shared), sampled, {"skip control": {}}),
    ]


@torch.no_grad()
def least_singular_value(model: Any, x: Tensor, *, n_points: int = 500, seed: int = 0) -> float:
    """Of the decoder's Jacobian, over `n_points` prior draws and the posterior means of the first `n_points` data."""
    z = torch.randn(n_points, model.n_latents, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    points = torch.cat([z.to(x.device), model.encode(x[:n_points]).mean])
    precise = copy.deepcopy(model.decoder).double()
    found = [torch.linalg.svdvals(linearise(precise, rows).J).amin() for rows in points.double().split(50)]
    return float(torch.stack(found).min())


def constant_kept(model: Any, x: Tensor, *, n_points: int = 500, seed: int = 0) -> float:
    """`least_singular_value` over the constant that the decoder promises: at least 1 whatever was learned."""
    decoder = model.decoder
    if not isinstance(decoder, BrenierDecoder) or decoder.inverse_lipschitz == 0:
        raise ValueError("only a Brenier decoder with L > 0 promises a constant")
    return least_singular_value(model, x, n_points=n_points, seed=seed) / decoder.inverse_lipschitz


def snapshot(model: Any, x: Tensor, *, n_points: int = 50) -> dict[str, float]:
    """A row of `measure_vae` on `x` with `L`, `promised` = L_eff and `least_singular_value`: along an annealed run."""
    promised = {"L": float(model.decoder.L), "promised": model.decoder.inverse_lipschitz}
    return promised | {"least": least_singular_value(model, x, n_points=n_points)} | measure_vae(model, x)


def latent_profile(trained: Sequence[Trained], x: Tensor, methods: Sequence[str], *, seed: int) -> pd.DataFrame:
    """Per latent of each method, sorted: mean KL and the variance of the posterior mean, columns (method, quantity)."""
    columns = {}
    with torch.no_grad():
        for one in trained:
            if one.seed == seed and one.method in methods:
                model: Any = one.model
                posterior = model.encode(x)
                kl, mean = latent_kl(posterior).mean(0), posterior.mean
                columns[one.method, "KL"] = kl.sort(descending=True)[0].numpy()
                columns[one.method, "variance of the mean"] = mean.var(0).sort(descending=True)[0].numpy()
    return pd.DataFrame(columns)


def latent_panels(axes: Sequence[Axes], profile: pd.DataFrame) -> None:
    """A `latent_profile` on two panels: KL and variance of the mean with the 0.01 of active units, a line a method."""
    units = {"KL": " [nats]", "variance of the mean": ""}
    for ax, (quantity, unit) in zip(axes, units.items(), strict=True):
        for method in profile.columns.unique(0):
            ax.plot(range(1, len(profile) + 1), profile[method, quantity], label=method)
        ax.set(xlabel="latent, sorted", ylabel=quantity + unit, yscale="log")
    axes[1].axhline(0.01, color="#777777", linestyle=":")
    axes[0].legend()


def constraint_panels(
    axes: Sequence[Axes], table: pd.DataFrame, Ls: Sequence[float], columns: Mapping[str, str]
) -> None:
    """One panel a column of the table against L, a band over seeds; the VAE and the skip control as lines."""
    for ax, (column, label) in zip(axes, columns.items(), strict=True):
        values = np.stack([_of(table, constrained(L), column) for L in Ls], axis=1)
        plotting.curve_with_band(ax, Ls, values, label="IL-LIDVAE (L = 0: LIDVAE)")
        for name, style in (("VAE", "--"), ("skip control", ":")):
            ax.axhline(_of(table, name, column).mean(), color="#777777", linestyle=style, label=name)
        ax.set(xlabel="L of each map (whole decoder: L²)", ylabel=label)
        if column.endswith("share"):
            ax.set_ylim(0, 1.05)
    axes[0].legend()


def method_bars(ax: Axes, table: pd.DataFrame, column: str, *, reported: float | None = None) -> None:
    """A dot a seed and a stroke at the mean, methods from the smallest mean down; the document's number as a line."""
    order = list(table.groupby("method")[column].mean().sort_values().index)
    for place, method in enumerate(order):
        values = _of(table, method, column)
        color = plotting.RUNS[0] if "LIDVAE" in method or "LIDMVAE" in method else plotting.RUNS[1]
        ax.plot(values, [place] * len(values), "o", color=color, markersize=5)
        ax.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color=color, linestyle="-", linewidth=2)
    if reported is not None:
        ax.axvline(reported, color=plotting.REPORTED.color, label=f"paper: {reported:g}, settings unknown")
        ax.legend(loc="upper right")
    ax.set_yticks(range(len(order)), order)
    ax.invert_yaxis()


def _of(table: pd.DataFrame, method: str, column: str) -> NDArray[np.float64]:
    """A column's values of one method, one a seed."""
    return table.xs(method, level="method")[column].to_numpy()


def sensitivity(models: Mapping[str, Any], grey: Tensor, *, n_samples: int, many: int, seed: int = 0) -> pd.DataFrame:
    """What a test NLL of the same model depends on: one row a way of measuring, one column a model; nats.

    Rows: binarised by one draw (the table's own), by another draw, at 1/2, not at all (grey values in the
    cross-entropy, no normalised density); more importance samples; the negative ELBO.
    """
    drawn, other = binarise_static(grey, seed), binarise_static(grey, seed + 1)
    ways: dict[str, tuple[Tensor, int]] = {
        f"one draw, {n_samples} samples": (drawn, n_samples),
        f"another draw, {n_samples} samples": (other, n_samples),
        f"pixels > 1/2, {n_samples} samples": ((grey > 0.5).to(grey.dtype), n_samples),
        f"grey pixels, {n_samples} samples": (grey, n_samples),
        f"one draw, {many} samples": (drawn, many),
    }
    rows = {}
    for name, (images, samples) in ways.items():
        found = {method: measure_vae(model, images, nll_samples=samples) for method, model in models.items()}
        rows[name] = {method: row[f"nll_{samples}"] for method, row in found.items()}
        if images is drawn and samples == n_samples:
            rows["one draw, negative ELBO"] = {method: -row["elbo"] for method, row in found.items()}
    return pd.DataFrame(rows).T


def pixel_entropy(grey: Tensor) -> float:
    """E_x sum_j h(x_j), h the entropy of Bernoulli(x_j): the floor of the NLL of images that are binarised by a draw.

    For b ~ Bernoulli(x), H(b) >= H(b | x) = the value returned, and no model's expected NLL is below H(b) (derived).
    grey: (N, n) in [0, 1]. Nats per image.
    """
    return float((torch.special.entr(grey.double()) + torch.special.entr(1 - grey.double())).sum(-1).mean())

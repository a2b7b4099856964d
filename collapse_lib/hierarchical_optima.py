"""The linear hierarchical VAE (MHVAE) solved exactly and held against its closed form.

    setting = MhvaeSetting(d=6, weighting=Weighting(beta_2=1.3), sigma_1=0.8)       # sigma_2 None: it is learned
    comparison = compare(setting, theta, seed=0)
    comparison.relative_error, comparison.loss_gap

The exact loss (`theory.hierarchical.mhvae_terms`) is minimised over all weights, float64, in the leading
eigen-directions of the data: no sampling, no images, only theta.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from collapse_lib.linear_optima import used_columns
from collapse_lib.solver import minimise
from collapse_lib.theory.alignment import sorted_gap
from collapse_lib.theory.hierarchical import (
    Mhvae,
    MhvaeTerms,
    Weighting,
    best_linear_maps,
    latent_information,
    latent_kl,
    mhvae_terms,
)
from collapse_lib.theory.hierarchical_modes import CASES
from collapse_lib.theory.hierarchical_theorems import (
    MhvaeOptimum,
    mhvae_both_fixed,
    mhvae_sigma1_learnable,
    mhvae_sigma2_learnable,
)


class SolvedMhvae(NamedTuple):
    """A minimum that was found, with what the closed form predicts of it; singular values and sigmas descending."""

    weights: Mhvae
    terms: MhvaeTerms
    lam: Tensor  # (d1,) singular values of V1; zeros if D < d1
    omega: Tensor  # (min(d1, d2),) singular values of U2
    sigma_1: Tensor  # (d1,)
    sigma_2: Tensor  # (d2,)
    kl_2: Tensor  # (d2,) KL of each coordinate of z2, nats
    information: Tensor  # (d2,) I(x; z2_i) of each coordinate if the data were Gaussian, nats
    converged: bool


def solve_mhvae(
    theta: Tensor,
    weighting: Weighting,
    d1: int,
    d2: int | None = None,
    *,
    sigma_1: float | None = None,
    sigma_2: float | None = None,
    seed: int = 0,
    weight_std: float = 0.1,
    kick_std: float = 0.01,
    gradient_tolerance: float = 1e-7,
    **options: Any,
) -> SolvedMhvae:
    """Minimise the exact loss for Z = diag(theta), theta (D,), over all weights and every sigma that is None.

    V1, U2 and the logarithms of the variances are searched; U1 and W2, in which the loss is quadratic, are at their
    exact optimum all the way (`best_linear_maps`), without which near-equal modes take tens of thousands of steps to
    separate. Start: V1, U2 ~ N(0, weight_std^2) from `seed`, learned variances 1.
    z2 may die before z1 has learned what it is to code, and then rests on a saddle; so everything is minimised once
    more (L-BFGS alone) after a kick of N(0, kick_std^2), from which a minimum returns to where it was.
    `gradient_tolerance` and `options` go to `solver.minimise`.
    """
    generator, theta = torch.Generator().manual_seed(seed), theta.double()
    d2 = d1 if d2 is None else d2
    shapes = {"V1": (d1, len(theta)), "U2": (d1, d2)}
    start = {n: weight_std * torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    fixed = {}
    for name, size, sigma in (("variance_1", d1, sigma_1), ("variance_2", d2, sigma_2)):
        if sigma is None:
            start[name] = torch.zeros(size, dtype=torch.float64)  # its logarithm is searched
        else:
            fixed[name] = torch.full((size,), sigma**2, dtype=torch.float64)

    def model(searched: dict[str, Tensor]) -> Mhvae:
        variances = {n: value.exp() for n, value in searched.items() if n.startswith("variance")} | fixed
        maps = best_linear_maps(searched["V1"], searched["U2"], variances["variance_1"], theta, weighting)
        return Mhvae(V1=searched["V1"], U2=searched["U2"], U1=maps.U1, W2=maps.W2, **variances)

    Z = torch.diag(theta)
    mhvae_terms(model(start), Z, weighting)  # checks everything once

    def loss(searched: dict[str, Tensor]) -> Tensor:
        return mhvae_terms(model(searched), Z, weighting, check=False).loss

    first = minimise(loss, start, gradient_tolerance=gradient_tolerance, **options).parameters
    kicked = {n: p + kick_std * torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in first.items()}
    found = minimise(loss, kicked, gradient_tolerance=gradient_tolerance, **(options | {"adam_steps": 0}))
    weights = model(found.parameters)
    lam = torch.zeros(d1, dtype=torch.float64)
    lam[: min(d1, len(theta))] = torch.linalg.svdvals(weights.V1)
    return SolvedMhvae(
        weights,
        mhvae_terms(weights, theta, weighting),
        lam,
        torch.linalg.svdvals(weights.U2),
        weights.variance_1.sqrt().sort(descending=True)[0],
        weights.variance_2.sqrt().sort(descending=True)[0],
        latent_kl(weights, weighting),
        latent_information(weights),
        found.converged,
    )


class MhvaeSetting(NamedTuple):
    """d1 = d2 = d latents; a sigma that is None is learned (at most one of the two)."""

    d: int
    weighting: Weighting
    sigma_1: float | None = None
    sigma_2: float | None = None

    def optimum(self, theta: Tensor) -> MhvaeOptimum:
        """The closed form of `theory.hierarchical_theorems` for the variances that are learned."""
        match self.sigma_1, self.sigma_2:
            case None, None:
                raise ValueError("with both variances learned the loss may have no minimum; fix sigma_1 or sigma_2")
            case None, float(sigma_2):
                return mhvae_sigma1_learnable(theta, self.weighting, sigma_2, self.d)
            case float(sigma_1), None:
                return mhvae_sigma2_learnable(theta, self.weighting, sigma_1, self.d)
            case float(sigma_1), float(sigma_2):
                return mhvae_both_fixed(theta, self.weighting, sigma_1, sigma_2, self.d)
        raise TypeError(f"sigma_1 and sigma_2 must be floats or None, got {self.sigma_1!r} and {self.sigma_2!r}")

    def __str__(self) -> str:
        fixed = [f"{n} {s:g}" for n, s in (("σ₁", self.sigma_1), ("σ₂", self.sigma_2)) if s is not None]
        return ", ".join([f"d {self.d}", f"β₁ {self.weighting.beta_1:g}", f"β₂ {self.weighting.beta_2:g}", *fixed])


class Comparison(NamedTuple):
    """What was found from one start beside the closed form of the same setting."""

    setting: MhvaeSetting
    seed: int
    optimum: MhvaeOptimum
    solved: SolvedMhvae

    @property
    def errors(self) -> dict[str, float]:
        """`sorted_gap` of lam, omega and of the sigma that is learned."""
        names = ["lam", "omega"]
        names += ["sigma_1"] * (self.setting.sigma_1 is None) + ["sigma_2"] * (self.setting.sigma_2 is None)
        return {name: sorted_gap(getattr(self.solved, name), getattr(self.optimum, name)) for name in names}

    @property
    def relative_error(self) -> float:
        return max(self.errors.values())

    @property
    def loss_gap(self) -> float:
        """(L - L*) / |L*|."""
        return (float(self.solved.terms.loss) - self.optimum.loss) / abs(self.optimum.loss)

    def assertable(self, margin: float = 0.03) -> bool:
        """No mode within `margin` of a threshold (in theta^2), where the optimum is flat and convergence slow."""
        return self.optimum.margin > margin


def compare(setting: MhvaeSetting, theta: Tensor, seed: int, **options: Any) -> Comparison:
    """Solve one setting from one seed; `options` as in `solve_mhvae`."""
    solved = solve_mhvae(
        theta, setting.weighting, setting.d, sigma_1=setting.sigma_1, sigma_2=setting.sigma_2, seed=seed, **options
    )
    return Comparison(setting, seed, setting.optimum(theta), solved)


def frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One row a comparison: setting, seed, case of every mode, relative errors, loss gap, distance to a threshold."""
    return pd.DataFrame(
        {
            "setting": str(each.setting),
            "seed": each.seed,
            "cases": each.optimum.cases,
            **{f"error of {name}": error for name, error in each.errors.items()},
            "loss gap": each.loss_gap,
            "nearest threshold": each.optimum.margin,
        }
        for each in comparisons
    )


def pairs_by_case(comparisons: Sequence[Comparison], name: str) -> dict[str, tuple[list[float], list[float]]]:
    """Closed form and learned values of `name` (lam, omega, sigma_2), mode by mode, under "case a", "case b", "case c".

    Settings that are not `assertable` are left out.
    """
    found: dict[str, tuple[list[float], list[float]]] = {f"case {letter}": ([], []) for letter in CASES}
    for each in filter(Comparison.assertable, comparisons):
        learned = getattr(each.solved, name)
        learned = learned.flip(0) if name.startswith("sigma") else learned  # sigma falls as theta rises
        for letter, theory, value in zip(each.optimum.cases, getattr(each.optimum, name), learned, strict=True):
            found[f"case {letter}"][0].append(float(theory))
            found[f"case {letter}"][1].append(float(value))
    return {label: values for label, values in found.items() if values[0]}


def active_coordinates(comparison: Comparison) -> int:
    """Coordinates of z2 in use: `linear_optima.used_columns` of U2, whether sigma_2 is learned or not."""
    return int(used_columns(comparison.solved.weights.U2).sum())

"""The linear hierarchical VAE with two latents (MHVAE) as the paper trains it: mini-batches, both latents sampled.

`training.fit` trains `LinearMhvae` on `SampledMhvae`. `theory.hierarchical` has the closed forms, `exact_mhvae` finds
the optimum without sampling.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from collapse_lib.objectives import Hyper, NoiseSpec
from collapse_lib.theory.hierarchical import MhvaeOptimum

GUARD = 1e-8  # a standard deviation that crosses zero must not make the loss infinite


class LinearMhvae(nn.Module):
    """x (n) -> z1 (d1) -> z2 (d2) and back, linear without biases; sigma_1 is fixed, sigma_2 a free vector.

    Start (the authors' code): weights N(0, 0.1^2), sigma_2 uniform in [0, 1), or fixed if given. sigma_2 is used as
    it is and its sign is free.
    """

    def __init__(self, n: int, d1: int, d2: int, *, sigma_1: float, sigma_2: float | None = None) -> None:
        super().__init__()
        self.d1, self.d2, self.sigma_1, self.fixed_sigma_2 = d1, d2, sigma_1, sigma_2
        self.W1, self.U1 = nn.Parameter(0.1 * torch.randn(d1, n)), nn.Parameter(0.1 * torch.randn(n, d1))
        self.W2, self.U2 = nn.Parameter(0.1 * torch.randn(d2, d1)), nn.Parameter(0.1 * torch.randn(d1, d2))
        if sigma_2 is None:
            self.sigma_2 = nn.Parameter(torch.rand(d2))
        else:
            self.register_buffer("sigma_2", torch.full((d2,), float(sigma_2)))

    def extra_repr(self) -> str:
        return f"d1={self.d1}, d2={self.d2}, sigma_1={self.sigma_1}, sigma_2={self.fixed_sigma_2}"


class MhvaeLossTerms(NamedTuple):
    """What `fit` minimises and records: a batch's estimates of `theory.hierarchical.MhvaeTerms`."""

    loss: Tensor
    squared_error: Tensor
    z1_term: Tensor
    kl_2: Tensor


@dataclass(frozen=True)
class SampledMhvae:
    """The loss of `theory.hierarchical`, times eta_dec^2, with z1 ~ q(z1|x) and z2 ~ q(z2|z1) sampled once a datum.

    Reads beta_1, beta_2, eta_dec and eta_enc of every member.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"beta_1", "beta_2", "eta_dec", "eta_enc"})

    def noise(self, model: LinearMhvae, batch_size: int) -> dict[str, NoiseSpec]:
        return {"z1": NoiseSpec("normal", (batch_size, model.d1)), "z2": NoiseSpec("normal", (batch_size, model.d2))}

    def __call__(
        self, model: LinearMhvae, data: tuple[Tensor, ...], noise: dict[str, Tensor], hyper: Hyper
    ) -> MhvaeLossTerms:
        (x,) = data
        decoder, prior = hyper["eta_dec"] ** 2, hyper["eta_enc"] ** 2
        z1 = x @ model.W1.mT + model.sigma_1 * noise["z1"]
        mean_2 = z1 @ model.W2.mT
        z2 = mean_2 + model.sigma_2 * noise["z2"]
        squared_error = (z1 @ model.U1.mT - x).square().sum(-1).mean()
        z1_square = (z2 @ model.U2.mT - z1).square().sum(-1).mean()
        variance_2 = model.sigma_2.square() + GUARD
        z1_term = 0.5 * (z1_square / decoder + model.d1 * (decoder.log() - 1 - 2 * math.log(model.sigma_1)))
        second_moment = mean_2.square().sum(-1).mean() + variance_2.sum()
        kl_2 = 0.5 * (second_moment / prior - variance_2.log().sum() + model.d2 * (prior.log() - 1))
        loss = squared_error + 2 * decoder * (hyper["beta_1"] * z1_term + hyper["beta_2"] * kl_2)
        return MhvaeLossTerms(loss, squared_error, z1_term, kl_2)


@dataclass(frozen=True)
class MhvaeSpectra:
    """An `evaluate` of `training.fit`: singular values of V1 = W1 A^(1/2) and U2, and |sigma_2|, each descending.

    root: A^(1/2) (n, n), A = E[x x^T]. Columns lam_0, ..., omega_0, ..., sigma_2_0, ...
    """

    root: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "MhvaeSpectra":
        """For data x (N, n)."""
        values, vectors = torch.linalg.eigh(x.mT.double() @ x.double() / len(x))
        return cls((vectors * values.clamp_min(0).sqrt()) @ vectors.mT)

    def __call__(self, state: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        lam = torch.linalg.svdvals(state["W1"].double().cpu() @ self.root)
        omega = torch.linalg.svdvals(state["U2"].double().cpu())
        sigma_2 = state["sigma_2"].double().cpu().abs().sort(-1, descending=True)[0]
        named = {"lam": lam, "omega": omega, "sigma_2": sigma_2}
        return {f"{name}_{i}": values[:, i] for name, values in named.items() for i in range(values.shape[1])}


def distance_to_theory(evaluations: pd.DataFrame, optima: Sequence[MhvaeOptimum]) -> pd.DataFrame:
    """Mean |learned - theory| over modes, as the paper draws it: columns member, step, lam, omega, sigma_2.

    evaluations: from `MhvaeSpectra`; optima: one a member.
    """
    rows = []
    for record in evaluations.to_dict("records"):
        optimum = optima[int(record["member"])]
        row = {"member": record["member"], "step": record["step"]}
        for name in ("lam", "omega", "sigma_2"):
            theory = getattr(optimum, name).sort(descending=True)[0].tolist()
            row[name] = sum(abs(record[f"{name}_{i}"] - value) for i, value in enumerate(theory)) / len(theory)
        rows.append(row)
    return pd.DataFrame(rows)

"""Hierarchical VAEs with two latents (MHVAE), linear, MLP and convolutional, as the paper trains them: mini-batches,
both latents sampled (Dang et al., ICLR 2024).

    q(z1|x)  = N(e_1(x), sigma_1^2 I)            p(x|z1)  = N(d_1(z1), eta_dec^2 I)        x -> z1 (d1) -> z2 (d2)
    q(z2|z1) = N(m(z1), diag sigma_2^2)          p(z1|z2) = N(d_2(z2), eta_dec^2 I)        p(z2) = N(0, eta_enc^2 I)

`training.fit` trains them on `SampledMhvae`. For the linear one `theory.hierarchical_theorems` has the optima and
`hierarchical_optima` finds them without sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from collapse_lib.models.noise_scales import NoiseScales
from collapse_lib.nets import mlp, strided_decoder, strided_encoder
from collapse_lib.objectives import Hyper, NoiseSpec, Posterior, gaussian_kl, posterior_from_std, relative_to_prior
from collapse_lib.theory.hierarchical_theorems import MhvaeOptimum


class TwoLatents(NoiseScales):
    """What `SampledMhvae` and `evaluation` ask of a model: `d1`, `d2`, the buffer `sigma_1` and four maps.

    encode_1, decode_2 and decode_1 give means: x -> z1, z2 -> z1, z1 -> x; encode_2 gives q(z2|z1). All take (..., n).
    """

    sigma_1: Tensor

    def __init__(self, d1: int, d2: int, *, sigma_1: float, eta_dec: float, eta_enc: float) -> None:
        super().__init__(eta_dec, eta_enc)
        if sigma_1 <= 0:
            raise ValueError(f"sigma_1 is a standard deviation and must be positive, got {sigma_1}")
        self.d1, self.d2 = d1, d2
        self.register_buffer("sigma_1", torch.tensor(float(sigma_1)))

    def encode_1(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def encode_2(self, z1: Tensor) -> Posterior:
        raise NotImplementedError

    def decode_2(self, z2: Tensor) -> Tensor:
        raise NotImplementedError

    def decode_1(self, z1: Tensor) -> Tensor:
        raise NotImplementedError


class LinearMhvae(TwoLatents):
    """x (n) -> z1 (d1) -> z2 (d2) and back, linear without biases; sigma_1 is fixed, sigma_2 a free vector.

    Start (the authors' code): weights N(0, 0.1^2), sigma_2 uniform in [0, 1), or fixed if given. sigma_2 is used as
    it is and its sign is free.
    """

    sigma_2: Tensor

    def __init__(
        self,
        n: int,
        d1: int,
        d2: int,
        *,
        sigma_1: float,
        sigma_2: float | None = None,
        eta_dec: float = 1.0,
        eta_enc: float = 1.0,
    ) -> None:
        super().__init__(d1, d2, sigma_1=sigma_1, eta_dec=eta_dec, eta_enc=eta_enc)
        self.W1, self.U1 = nn.Parameter(0.1 * torch.randn(d1, n)), nn.Parameter(0.1 * torch.randn(n, d1))
        self.W2, self.U2 = nn.Parameter(0.1 * torch.randn(d2, d1)), nn.Parameter(0.1 * torch.randn(d1, d2))
        if sigma_2 is None:
            self.sigma_2 = nn.Parameter(torch.rand(d2))
        else:
            self.register_buffer("sigma_2", torch.full((d2,), float(sigma_2)))

    def encode_1(self, x: Tensor) -> Tensor:
        return x @ self.W1.mT

    def encode_2(self, z1: Tensor) -> Posterior:
        return posterior_from_std(z1 @ self.W2.mT, self.sigma_2)

    def decode_2(self, z2: Tensor) -> Tensor:
        return z2 @ self.U2.mT

    def decode_1(self, z1: Tensor) -> Tensor:
        return z1 @ self.U1.mT


class MHVAE(TwoLatents):
    """Networks for the four maps, each with tanh at its end as in the paper's code; sigma_1 is fixed.

    `to_z1` (batch, n) -> (batch, d1); `to_z2` (batch, d1) -> (batch, 2 d2), mean and standard deviation side by side,
    the latter data-dependent, in (-1, 1), its sign free; `from_z2` (batch, d2) -> (batch, d1); `from_z1` -> (batch, n).
    """

    def __init__(
        self,
        to_z1: nn.Module,
        to_z2: nn.Module,
        from_z2: nn.Module,
        from_z1: nn.Module,
        d1: int,
        d2: int,
        *,
        sigma_1: float = 0.5,
        eta_dec: float = 0.5,
        eta_enc: float = 0.5,
    ) -> None:
        super().__init__(d1, d2, sigma_1=sigma_1, eta_dec=eta_dec, eta_enc=eta_enc)
        self.to_z1, self.to_z2, self.from_z2, self.from_z1 = to_z1, to_z2, from_z2, from_z1

    @classmethod
    def mlp(
        cls,
        n: int,
        hidden: int,
        d1: int,
        d2: int,
        *,
        sigma_1: float = 0.5,
        eta_dec: float = 0.5,
        eta_enc: float = 0.5,
        tanh: bool = True,
    ) -> "MHVAE":
        """One hidden ReLU layer a map. Without `tanh` the maps end in their affine layer (ours): z1 is not bounded."""
        to_z1, to_z2, from_z2, from_z1 = (
            nn.Sequential(mlp(widths), nn.Tanh()) if tanh else mlp(widths)
            for widths in ([n, hidden, d1], [d1, hidden, 2 * d2], [d2, hidden, d1], [d1, hidden, n])
        )
        return cls(to_z1, to_z2, from_z2, from_z1, d1, d2, sigma_1=sigma_1, eta_dec=eta_dec, eta_enc=eta_enc)

    @classmethod
    def conv(
        cls,
        shape: tuple[int, int, int],
        channels: tuple[int, int],
        hidden: int,
        d1: int,
        d2: int,
        *,
        sigma_1: float = 0.5,
        eta_dec: float = 0.5,
        eta_enc: float = 0.5,
    ) -> "MHVAE":
        """Convolutions between x and z1, `channels` (64, 32) in the paper's code; a hidden layer between z1 and z2."""
        to_z1 = nn.Sequential(strided_encoder(shape, channels, d1), nn.Tanh())
        from_z1 = nn.Sequential(strided_decoder(shape, channels, d1), nn.Tanh())
        to_z2 = nn.Sequential(mlp([d1, hidden, 2 * d2]), nn.Tanh())
        from_z2 = nn.Sequential(mlp([d2, hidden, d1]), nn.Tanh())
        return cls(to_z1, to_z2, from_z2, from_z1, d1, d2, sigma_1=sigma_1, eta_dec=eta_dec, eta_enc=eta_enc)

    def extra_repr(self) -> str:
        return f"d1={self.d1}, d2={self.d2}"

    def encode_1(self, x: Tensor) -> Tensor:
        return self.to_z1(x)

    def encode_2(self, z1: Tensor) -> Posterior:
        return posterior_from_std(*self.to_z2(z1).chunk(2, dim=-1))

    def decode_2(self, z2: Tensor) -> Tensor:
        return self.from_z2(z2)

    def decode_1(self, z1: Tensor) -> Tensor:
        flat = self.from_z1(z1.reshape(-1, self.d1))  # convolutions take one batch axis
        return flat.reshape(*z1.shape[:-1], -1)


class MhvaeLossTerms(NamedTuple):
    """What `fit` minimises and records: a batch's estimates of `theory.hierarchical.MhvaeTerms`."""

    loss: Tensor
    squared_error: Tensor
    z1_term: Tensor
    kl_2: Tensor


@dataclass(frozen=True)
class SampledMhvae:
    """The loss of `theory.hierarchical`, times eta_dec^2, with z1 ~ q(z1|x) and z2 ~ q(z2|z1) sampled once a datum.

        loss = ||x - d_1(z1)||^2 + 2 eta_dec^2 ( beta_1 z1_term + beta_2 kl_2 )
        z1_term = log q(z1|x) - log p(z1|z2), its entropy in closed form: no KL, and it may be negative
        kl_2 = KL( q(z2|z1) || p(z2) )

    Reads beta_1 and beta_2 of every member, weights beside a true log-likelihood (see `objectives.effective_beta`).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"beta_1", "beta_2"})

    def noise(self, model: TwoLatents, batch_size: int) -> dict[str, NoiseSpec]:
        return {"z1": NoiseSpec("normal", (batch_size, model.d1)), "z2": NoiseSpec("normal", (batch_size, model.d2))}

    def __call__(
        self, model: TwoLatents, data: tuple[Tensor, ...], noise: dict[str, Tensor], hyper: Hyper
    ) -> MhvaeLossTerms:
        (x,) = data
        z1 = model.encode_1(x) + model.sigma_1 * noise["z1"]
        posterior_2 = model.encode_2(z1)
        z2 = posterior_2.mean + (0.5 * posterior_2.log_var).exp() * noise["z2"]
        squared_error = (model.decode_1(z1) - x).square().sum(-1).mean()
        z1_term = expected_z1_term(model, z1, z2).mean()
        kl_2 = gaussian_kl(relative_to_prior(posterior_2, model.eta_enc)).mean()
        weighted = hyper["beta_1"] * z1_term + hyper["beta_2"] * kl_2
        return MhvaeLossTerms(squared_error + 2 * model.eta_dec.square() * weighted, squared_error, z1_term, kl_2)


def expected_z1_term(model: TwoLatents, z1: Tensor, z2: Tensor) -> Tensor:
    """E log q(z1|x) - log p(z1|z2) for samples (..., d1), (..., d2) -> (...), nats; log q by its entropy.

    = 1/2 ( ||z1 - d_2(z2)||^2 / eta_dec^2 + d1 ( log(eta_dec^2 / sigma_1^2) - 1 ) )
    """
    square = (z1 - model.decode_2(z2)).square().sum(-1)
    ratio = 2 * (model.eta_dec / model.sigma_1).log()
    return 0.5 * (square / model.eta_dec.square() + model.d1 * (ratio - 1))


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

"""Linear VAE (Lucas et al. 2019): linear decoder, linear encoder, one posterior variance a latent shared by all data.

    p(x|z) = N(W z + mu, sigma2 I),    q(z|x) = N(V (x - mu), diag d),    p(z) = N(0, I)

Its closed forms live in `theory.linear_vae`; here are the trainable module, the starts, and the analytic objective.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from collapse_lib.objectives import (
    ElboTerms,
    Hyper,
    NoiseSpec,
    Posterior,
    gaussian_kl,
    gaussian_log_likelihood,
    linear_decoder_square_error,
)
from collapse_lib.theory import alignment, linear_vae, ppca
from collapse_lib.theory.spectrum import Spectrum


class Moments(NamedTuple):
    """All that the analytic ELBO needs of a data set: `mean` (n,) and `covariance` (n, n), divided by N."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Moments":
        """Moments of `x` (N, n), computed in float64 and returned in the type of `x`."""
        if x.ndim != 2:
            raise ValueError(f"x must be (N, n), got {tuple(x.shape)}; flatten images first")
        centred = x.double() - x.double().mean(0)
        return cls(x.double().mean(0).to(x.dtype), (centred.mT @ centred / len(x)).to(x.dtype))


class LinearVAE(nn.Module):
    """Parameters: `W` (n, k), `V` (k, n), `log_d` (k,), `mu` (n,), `log_sigma2` ().

    With `learn_sigma2=False` log sigma2 is a buffer and stays.
    """

    def __init__(
        self, W: Tensor, V: Tensor, log_d: Tensor, mu: Tensor, log_sigma2: float, *, learn_sigma2: bool = True
    ) -> None:
        super().__init__()
        n, k = W.shape
        if V.shape != (k, n) or log_d.shape != (k,) or mu.shape != (n,):
            raise ValueError(
                f"W {tuple(W.shape)} wants V ({k}, {n}), log_d ({k},), mu ({n},); "
                f"got {tuple(V.shape)}, {tuple(log_d.shape)}, {tuple(mu.shape)}"
            )
        self.n_latents, self.learn_sigma2 = k, learn_sigma2
        self.W, self.V = nn.Parameter(W), nn.Parameter(V)
        self.log_d, self.mu = nn.Parameter(log_d), nn.Parameter(mu)
        value = torch.tensor(float(log_sigma2), dtype=W.dtype)
        if learn_sigma2:
            self.log_sigma2 = nn.Parameter(value)
        else:
            self.register_buffer("log_sigma2", value)

    def extra_repr(self) -> str:
        return f"n={len(self.mu)}, k={self.n_latents}, learn_sigma2={self.learn_sigma2}"

    @classmethod
    def normal_start(cls, n: int, k: int, *, log_sigma2: float = 1.0, learn_sigma2: bool = True) -> "LinearVAE":
        """The report's start: log d ~ N(0, 1), V ~ N(0, 1/n), mu ~ N(0, 1), W ~ N(0, 1/k), drawn in this order.

        The report's code passes 1.0 as log sigma2 (it means sigma2 = 1), so the default is its sigma2 = e.
        """
        log_d, V = torch.randn(k), torch.randn(n, k) / math.sqrt(n)
        mu, W = torch.randn(n), torch.randn(k, n) / math.sqrt(k)
        return cls(W.T.contiguous(), V.T.contiguous(), log_d, mu, log_sigma2, learn_sigma2=learn_sigma2)

    @classmethod
    def tied_start(
        cls, moments: Moments, k: int, *, weight_std: float = 0.05, learn_sigma2: bool = True
    ) -> "LinearVAE":
        """Start with the best encoder for a small random decoder (ours).

        mu = data mean, sigma2 = tr S / n, W ~ N(0, weight_std^2), V = M^-1 W^T and d_i = sigma2 / M_ii with
        M = W^T W + sigma2 I, so that neither the offset nor the encoder has anything to catch up at step 0.
        """
        mean, S = moments
        n = len(mean)
        sigma2 = S.diagonal().sum() / n
        W = weight_std * torch.randn(n, k, dtype=S.dtype)
        M = W.mT @ W + sigma2 * torch.eye(k, dtype=S.dtype)
        V = torch.linalg.solve(M, W.mT)
        return cls(W, V, (sigma2 / M.diagonal()).log(), mean.clone(), float(sigma2.log()), learn_sigma2=learn_sigma2)

    @classmethod
    def at_optimum(cls, spectrum: Spectrum, k: int, *, learn_sigma2: bool = True) -> "LinearVAE":
        """The global optimum of the ELBO on data with this spectrum, float64: `ppca.mle` and its best encoder.

        Raises `ppca.UnboundedLikelihoodError` if k >= rank S.
        """
        best = ppca.mle(spectrum, k)
        V, d = linear_vae.best_encoder(best.W, best.sigma2)
        return cls(best.W, V, d.log(), best.mu.clone(), math.log(best.sigma2), learn_sigma2=learn_sigma2)

    def encode(self, x: Tensor) -> Posterior:
        """q(z|x) for `x` (batch, n): mean (batch, k); log_var (k,), the same for every datum."""
        return Posterior((x - self.mu) @ self.V.mT, self.log_d)

    def decode(self, z: Tensor) -> Tensor:
        """Mean of p(x|z): (..., k) -> (..., n)."""
        return z @ self.W.mT + self.mu

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z): `x` (batch, n), `z` (..., batch, k) -> (..., batch), nats."""
        return gaussian_log_likelihood(self.decode(z), x, self.log_sigma2.exp())

    def elbo(self, x: Tensor) -> Tensor:
        """The exact ELBO of every datum: `x` (batch, n) -> (batch,), nats; their mean is what `AnalyticElbo` gives."""
        posterior = self.encode(x)
        error = linear_decoder_square_error(x, posterior, self.W, self.mu)
        log_likelihood = -0.5 * x.shape[-1] * (math.log(2 * math.pi) + self.log_sigma2) - error / (
            2 * self.log_sigma2.exp()
        )
        return log_likelihood - gaussian_kl(posterior)


@dataclass(frozen=True)
class AnalyticElbo:
    """The ELBO of the linear VAE without sampling, from the data's moments (Lucas et al. 2019, section 4; derived).

        R    = tr(A S A^T) + sum_i d_i ||w_i||^2,   A = I - W V,  S taken about mu
        KL   = 1/2 [ sum_i (d_i - log d_i - 1) + tr(V S V^T) ]
        ELBO = -(n/2) log(2 pi sigma2) - R / (2 sigma2) - KL

    `data` is a `Moments` pair, given to `fit` as the whole batch; the cost of a step does not depend on N. Reads the
    member's `beta` (default 1).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"beta"})

    def noise(self, model: LinearVAE, batch_size: int) -> dict[str, NoiseSpec]:
        return {}

    def __call__(self, model: LinearVAE, data: tuple[Tensor, ...], noise: dict[str, Tensor], hyper: Hyper) -> ElboTerms:
        mean, covariance = data
        n, W, V = len(model.mu), model.W, model.V
        offset = mean - model.mu
        P = covariance @ V.mT + torch.outer(offset, V @ offset)  # S_mu V^T
        VSV = V @ P
        trace = covariance.diagonal().sum() + offset.square().sum()
        d, gram = model.log_d.exp(), W.mT @ W
        R = trace - 2 * (W * P).sum() + (gram * VSV).sum() + (d * gram.diagonal()).sum()
        kl = 0.5 * ((d - model.log_d - 1).sum() + VSV.diagonal().sum())
        log_likelihood = -0.5 * n * (math.log(2 * math.pi) + model.log_sigma2) - R / (2 * model.log_sigma2.exp())
        beta = hyper.get("beta", 1.0)
        return ElboTerms(beta * kl - log_likelihood, log_likelihood - kl, log_likelihood, kl)


@dataclass(frozen=True)
class ShortfallSplit:
    """An `evaluate` of `training.fit` for linear VAEs: what separates each member from the pPCA optimum, in float64.

    LL* - ELBO = decoder + rotation + encoder (`theory.linear_vae.shortfall`), with `log_sigma2` beside it.
    """

    spectrum: Spectrum

    def __call__(self, state: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        members = [
            {name: t.double().cpu() for name, t in zip(state, values, strict=True)}
            for values in zip(*state.values(), strict=True)
        ]
        splits = [
            linear_vae.shortfall(m["W"], m["V"], m["log_d"].exp(), m["log_sigma2"].exp(), self.spectrum, m["mu"])
            for m in members
        ]
        columns = {
            name: torch.tensor([getattr(s, name) for s in splits], dtype=torch.float64)
            for name in ("decoder", "rotation", "encoder")
        }
        return columns | {"log_sigma2": state["log_sigma2"]}


@dataclass(frozen=True)
class ColumnAlignment:
    """An `evaluate` of `training.fit` for linear VAEs: are the columns of the decoder principal directions? In float64.

    `rotation`: the rotation gap G in nats. `cosine`: mean |cos| of the first `n_directions` eigenvectors with columns
    matched to them (`theory.alignment.match_columns`): 1 if all are found, in any order and with any sign. `of` is the
    same for `deterministic.maximise_profile_elbo`. Raises ValueError if W has fewer columns than `n_directions`.
    """

    spectrum: Spectrum
    n_directions: int

    def of(self, W: Tensor, sigma2: Tensor | float) -> dict[str, float]:
        """Both numbers of one decoder W (n, k)."""
        match = alignment.match_columns(W, self.spectrum.eigenvectors[:, : self.n_directions])
        return {"rotation": float(linear_vae.rotation_gap(W, sigma2)), "cosine": float(match.cosine.mean())}

    def __call__(self, state: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        decoders = zip(state["W"].double().cpu(), state["log_sigma2"].double().cpu().exp(), strict=True)
        members = [self.of(W, sigma2) for W, sigma2 in decoders]
        return {name: torch.tensor([m[name] for m in members], dtype=torch.float64) for name in members[0]}

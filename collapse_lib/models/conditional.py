"""Linear VAE and linear conditional VAE without offsets, with one standard deviation a latent for all data.

    VAE    q(z|x)   = N(W x, Sigma),              p(y|z)   = N(U z, eta_dec^2 I),             p(z) = N(0, eta_enc^2 I)
    CVAE   q(z|x,y) = N(W1 x + W2 y, Sigma),      p(y|x,z) = N(U1 z + U2 x, eta_dec^2 I),     p(z) = N(0, eta_enc^2 I)

eta_dec, eta_enc and `sigma` are standard deviations (Dang et al., ICLR 2024). Their optima are known in closed form,
`theory.conditional`; here they are trained by minibatches in pixel space, as in the paper.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from collapse_lib.objectives import (
    ElboTerms,
    Hyper,
    NoiseSpec,
    Posterior,
    elbo_terms,
    gaussian_kl,
    reparameterise,
)
from collapse_lib.theory.conditional import LinearOptimum

# sigma is searched for directly, as in the paper's code, and may cross zero: log(sigma^2 + GUARD) stays finite (ours).
GUARD = 1e-8


class _LinearLatent(nn.Module):
    """`sigma` (k,) beside the weights; with `learn_sigma=False` it is a buffer and stays."""

    sigma: Tensor

    def __init__(
        self, weights: Mapping[str, Tensor], sigma: Tensor, *, learn_sigma: bool, eta_dec: float, eta_enc: float
    ) -> None:
        super().__init__()
        if min(eta_dec, eta_enc) <= 0:
            raise ValueError(
                f"eta_dec and eta_enc are standard deviations and must be positive, got {eta_dec}, {eta_enc}"
            )
        self.n_latents, self.learn_sigma, self.eta_dec, self.eta_enc = len(sigma), learn_sigma, eta_dec, eta_enc
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight))
        if learn_sigma:
            self.sigma = nn.Parameter(sigma)
        else:
            self.register_buffer("sigma", sigma)

    def extra_repr(self) -> str:
        return f"k={self.n_latents}, learn_sigma={self.learn_sigma}, eta_dec={self.eta_dec}, eta_enc={self.eta_enc}"

    def _posterior(self, mean: Tensor) -> Posterior:
        return Posterior(mean, (self.sigma.square() + GUARD).log())


class UncentredLinearVAE(_LinearLatent):
    """Parameters `W` (k, n), `U` (n, k) and `sigma` (k,)."""

    W: Tensor
    U: Tensor

    @classmethod
    def normal_start(
        cls,
        n: int,
        k: int,
        *,
        sigma: float | list[float] = 1.0,
        learn_sigma: bool = True,
        eta_dec: float = 1.0,
        eta_enc: float = 1.0,
    ) -> "UncentredLinearVAE":
        """W, U ~ N(0, 0.1^2), drawn in this order; `sigma` one number, 1 in the paper, or one a latent."""
        weights = {"W": 0.1 * torch.randn(k, n), "U": 0.1 * torch.randn(n, k)}
        return cls(weights, _stds(sigma, k), learn_sigma=learn_sigma, eta_dec=eta_dec, eta_enc=eta_enc)

    def encode(self, x: Tensor) -> Posterior:
        """q(z|x) for `x` (batch, n): mean (batch, k); log_var (k,), the same for every datum."""
        return self._posterior(x @ self.W.mT)

    def decode(self, z: Tensor) -> Tensor:
        """Mean of p(x|z): (..., k) -> (..., n)."""
        return z @ self.U.mT

    @property
    def loading(self) -> Tensor:
        """(n, k), what the decoder multiplies z by."""
        return self.U


class LinearCVAE(_LinearLatent):
    """Parameters `W1` (k, p), `W2` (k, q), `U1` (q, k), `U2` (q, p) and `sigma` (k,); x has p dimensions, y has q."""

    W1: Tensor
    W2: Tensor
    U1: Tensor
    U2: Tensor

    @classmethod
    def normal_start(
        cls,
        p: int,
        q: int,
        k: int,
        *,
        sigma: float | list[float] = 0.1,
        learn_sigma: bool = True,
        eta_dec: float = 1.0,
        eta_enc: float = 1.0,
    ) -> "LinearCVAE":
        """W1, W2, U1, U2 ~ N(0, 0.1^2), drawn in this order; sigma starts at 0.1 in the paper's code."""
        shapes = {"W1": (k, p), "W2": (k, q), "U1": (q, k), "U2": (q, p)}
        weights = {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}
        return cls(weights, _stds(sigma, k), learn_sigma=learn_sigma, eta_dec=eta_dec, eta_enc=eta_enc)

    def encode(self, x: Tensor, y: Tensor) -> Posterior:
        """q(z|x,y) for `x` (batch, p), `y` (batch, q): mean (batch, k); log_var (k,), the same for every datum."""
        return self._posterior(x @ self.W1.mT + y @ self.W2.mT)

    def decode(self, z: Tensor, x: Tensor) -> Tensor:
        """Mean of p(y|x,z): `z` (..., batch, k), `x` (batch, p) -> (..., batch, q)."""
        return z @ self.U1.mT + x @ self.U2.mT

    @property
    def loading(self) -> Tensor:
        """(q, k), what the decoder multiplies z by."""
        return self.U1


@dataclass(frozen=True)
class LinearElbo:
    """ELBO of the two models, nats per datum; `data` is (x,) for the VAE, (x, y) for the CVAE.

    n_samples: reparameterised samples of z a datum; 0 takes the expectation over z in closed form. With beta from the
    member (default 1), loss = beta KL - E log p(y|.), half of the paper's loss and its constants on top; Adam does not
    see the factor.
    """

    n_samples: int = 1
    reads: ClassVar[frozenset[str]] = frozenset({"beta"})

    def noise(self, model: _LinearLatent, batch_size: int) -> dict[str, NoiseSpec]:
        return {"eps": NoiseSpec("normal", (self.n_samples, batch_size, model.n_latents))} if self.n_samples else {}

    def __call__(
        self,
        model: UncentredLinearVAE | LinearCVAE,
        data: tuple[Tensor, ...],
        noise: dict[str, Tensor],
        hyper: Hyper,
    ) -> ElboTerms:
        *condition, y = data
        posterior = model.encode(*data)
        if self.n_samples:
            error = (y - model.decode(reparameterise(posterior, noise["eps"]), *condition)).square().sum(-1)
        else:
            spread = (posterior.log_var.exp() * model.loading.square().sum(0)).sum()
            error = (y - model.decode(posterior.mean, *condition)).square().sum(-1) + spread
        variance = model.eta_dec**2
        log_likelihood = -0.5 * (y.shape[-1] * math.log(2 * math.pi * variance) + error / variance)
        scaled = Posterior(posterior.mean / model.eta_enc, posterior.log_var - 2 * math.log(model.eta_enc))
        return elbo_terms(log_likelihood, gaussian_kl(scaled), hyper.get("beta", 1.0))


@dataclass(frozen=True)
class OptimumErrors:
    """An `evaluate` of `training.fit` for these models: how far each member is from `best`, in float64.

    `omega_error` and `sigma_error` are the mean of |theory - learned| over sorted singular values of U (U1) and sorted
    |sigma|, the paper's verification errors; the VAE's `lam_error` is that of V = W A^(1/2), given `root` = A^(1/2).
    """

    best: LinearOptimum
    root: Tensor | None = None  # (n, n)

    def __call__(self, state: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        state = {name: values.double().cpu() for name, values in state.items()}
        found = {
            "omega_error": (torch.linalg.svdvals(state["U1" if "U1" in state else "U"]), self.best.omega),
            "sigma_error": (state["sigma"].abs(), self.best.sigma),
        }
        if self.root is not None:
            found["lam_error"] = (torch.linalg.svdvals(state["W"] @ self.root), self.best.lam)
        return {
            name: (learned.sort(descending=True).values - theory.sort(descending=True).values).abs().mean(-1)
            for name, (learned, theory) in found.items()
        }


def _stds(sigma: float | list[float], k: int) -> Tensor:
    stds = torch.tensor(sigma if isinstance(sigma, list) else [sigma] * k, dtype=torch.get_default_dtype())
    if stds.shape != (k,):
        raise ValueError(f"sigma must be one number or one a latent, {k} of them; got {tuple(stds.shape)}")
    return stds

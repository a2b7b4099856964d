"""ELBO terms and training objectives.

The first half is pure functions of tensors that sum over dimensions and leave the batch alone; the second half is the
objectives that `training.fit` minimises, which take the mean over the batch once. All values are nats per datum and all
constants (log 2 pi) are in.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Hyper = dict[str, Tensor]
"""A member's numbers (beta, ...) at the current step, each a tensor without dimensions."""


class Posterior(NamedTuple):
    """Diagonal Gaussian q(z|x): `mean` and `log_var`, both (batch, k), or broadcastable to it."""

    mean: Tensor
    log_var: Tensor


class ElboTerms(NamedTuple):
    """What `fit` minimises (`loss`) and what its history records. Scalars, nats per datum."""

    loss: Tensor
    elbo: Tensor
    log_likelihood: Tensor
    kl: Tensor


class NoiseSpec(NamedTuple):
    """One random input of an objective: `kind` is "normal" (N(0, 1)) or "uniform" (U[0, 1))."""

    kind: str
    shape: tuple[int, ...]


class GaussianLatentModel(Protocol):
    """A model with a diagonal Gaussian posterior over k latents."""

    n_latents: int

    def encode(self, x: Tensor) -> Posterior: ...

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor: ...


def gaussian_log_likelihood(x_mean: Tensor, x: Tensor, sigma2: Tensor | float) -> Tensor:
    """log N(x; x_mean, sigma2 I) = -(n/2) log(2 pi sigma2) - ||x - x_mean||^2 / (2 sigma2).

    `x_mean` and `x` are (..., n) and broadcast; the result is (...), nats per datum.
    """
    if x_mean.shape[-1] != x.shape[-1]:
        raise ValueError(f"x_mean {tuple(x_mean.shape)} and x {tuple(x.shape)} differ in their last dimension")
    sigma2 = torch.as_tensor(sigma2, dtype=x.dtype, device=x.device)
    square_error = (x - x_mean).square().sum(-1)
    return -0.5 * x.shape[-1] * (math.log(2 * math.pi) + sigma2.log()) - square_error / (2 * sigma2)


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """log Bernoulli(x; sigmoid(logits)) = sum_j x_j l_j - softplus(l_j), for x in [0, 1].

    `logits` and `x` are (..., n) and broadcast; the result is (...), nats per datum. For grey values between 0 and 1
    it is the usual cross-entropy, which is not a normalised density.
    """
    if logits.shape[-1] != x.shape[-1]:
        raise ValueError(f"logits {tuple(logits.shape)} and x {tuple(x.shape)} differ in their last dimension")
    return (x * logits - F.softplus(logits)).sum(-1)


def latent_kl(posterior: Posterior) -> Tensor:
    """KL( N(m_i, v_i) || N(0, 1) ) = 1/2 ( m_i^2 + v_i - log v_i - 1 ): (batch, k), nats.

    Three lines: E log q = -1/2 (log 2 pi v_i + 1); E log p = -1/2 (log 2 pi + m_i^2 + v_i); subtract.
    """
    mean, log_var = posterior
    return 0.5 * (mean.square() + log_var.exp() - log_var - 1)


def gaussian_kl(posterior: Posterior) -> Tensor:
    """KL( N(m, diag v) || N(0, I) ), the sum of `latent_kl` over latents: (batch,), nats per datum."""
    return latent_kl(posterior).sum(-1)


def reparameterise(posterior: Posterior, eps: Tensor) -> Tensor:
    """z = m + sqrt(v) * eps with eps ~ N(0, I) of any shape that broadcasts against (batch, k)."""
    return posterior.mean + (0.5 * posterior.log_var).exp() * eps


GUARD = 1e-8


def posterior_from_std(mean: Tensor, std: Tensor) -> Posterior:
    """N(mean, std^2) where `std` is searched for directly, as some authors do, and may cross zero.

    log_var = log(std^2 + GUARD) stays finite there (ours).
    """
    return Posterior(mean, (std.square() + GUARD).log())


def relative_to_prior(posterior: Posterior, eta_enc: Tensor | float) -> Posterior:
    """The posterior of z / eta_enc, whose prior is N(0, I) if that of z is N(0, eta_enc^2 I). KL does not change."""
    eta_enc = torch.as_tensor(eta_enc, dtype=posterior.mean.dtype, device=posterior.mean.device)
    return Posterior(posterior.mean / eta_enc, posterior.log_var - 2 * eta_enc.log())


BetaConvention = Literal["elbo", "released"]


def effective_beta(beta: float, convention: BetaConvention) -> float:
    """The weight of the KL beside a true log-likelihood that a document's `beta` amounts to.

    "elbo": beta itself: loss = ||x - xhat||^2 / (2 eta_dec^2) + beta KL, the objective of the theory.
    "released": beta / 2: ||x - xhat||^2 / eta_dec^2 + beta KL, without the 1/2, is twice the "elbo" loss at beta / 2.
        So are the losses of the ReLU and CNN models, and of all single-digit models, in the code of Dang et al. 2024;
        its other linear models have 2 KL there and are "elbo".

    The same holds for each beta of a hierarchical VAE.
    """
    if convention not in ("elbo", "released"):
        raise ValueError(f'the convention of beta is "elbo" or "released", got {convention!r}')
    return beta if convention == "elbo" else beta / 2


def linear_decoder_square_error(x: Tensor, posterior: Posterior, W: Tensor, b: Tensor) -> Tensor:
    """E_q ||x - W z - b||^2 = ||x - b - W m||^2 + sum_i v_i ||w_i||^2 for a linear decoder: no sampling needed.

    `x` (batch, n), `W` (n, k), `b` (n,); the result is (batch,). Exact for every Gaussian encoder (derived).
    """
    if W.shape != (x.shape[-1], posterior.mean.shape[-1]):
        raise ValueError(
            f"W is {tuple(W.shape)}; x {tuple(x.shape)} and mean {tuple(posterior.mean.shape)} do not fit it"
        )
    residual = (x - b - posterior.mean @ W.mT).square().sum(-1)
    return residual + (posterior.log_var.exp() * W.square().sum(0)).sum(-1)


def elbo_terms(log_likelihood: Tensor, kl: Tensor, beta: Tensor | float = 1.0) -> ElboTerms:
    """Mean over the batch of E_q log p(x|z) and KL; `loss` = -(log-likelihood - beta KL), `elbo` always has beta = 1.

    `kl` is (batch,), `log_likelihood` that or (samples, batch), nats per datum; all four results are scalars.
    `beta` multiplies the KL of an ELBO whose reconstruction is a true log-likelihood (as in Higgins et al. 2017).
    """
    log_likelihood, kl = log_likelihood.mean(), kl.mean()
    return ElboTerms(beta * kl - log_likelihood, log_likelihood - kl, log_likelihood, kl)


@dataclass(frozen=True)
class SampledElbo:
    """The stochastic ELBO (Kingma and Welling 2014): `n_samples` reparameterised samples a datum, KL in closed form.

    Reads the member's `beta` (default 1). `data` is one tensor (batch, n).
    """

    n_samples: int = 1
    reads: ClassVar[frozenset[str]] = frozenset({"beta"})

    def noise(self, model: GaussianLatentModel, batch_size: int) -> dict[str, NoiseSpec]:
        return {"eps": NoiseSpec("normal", (self.n_samples, batch_size, model.n_latents))}

    def __call__(
        self, model: GaussianLatentModel, data: tuple[Tensor, ...], noise: dict[str, Tensor], hyper: Hyper
    ) -> ElboTerms:
        (x,) = data
        posterior = model.encode(x)
        log_likelihood = model.log_likelihood(x, reparameterise(posterior, noise["eps"]))
        return elbo_terms(log_likelihood, gaussian_kl(posterior), hyper.get("beta", 1.0))


@torch.no_grad()
def single_sample_elbos(model: GaussianLatentModel, x: Tensor, *, draws: int, seed: int) -> Tensor:
    """`draws` single-sample ELBOs of every datum, KL in closed form: `x` (N, n) -> (draws, N), nats.

    What `SampledElbo` averages over a batch, kept apart, with noise from `seed` on the CPU; the posterior's log_var may
    be shared by all data. Raises ValueError if draws < 1.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    posterior, generator = model.encode(x), torch.Generator().manual_seed(seed)
    shape = (len(x), model.n_latents)
    values = []
    for _ in range(draws):  # one at a time: all at once would hold draws x N x n numbers
        eps = torch.randn(shape, generator=generator, dtype=x.dtype).to(x.device)
        values.append(model.log_likelihood(x, reparameterise(posterior, eps)))
    return torch.stack(values) - gaussian_kl(posterior)

"""VAE with a linear decoder and any Gaussian encoder: what a better encoder can, and cannot, do for it.

    p(x|z) = N(W z + b, sigma2 I),    q(z|x) = N( m(x), diag v(x) ),    p(z) = N(0, I)

With a linear decoder the ELBO needs no sampling, whatever the encoder (`LinearDecoderElbo`), and no encoder lifts it
above the likelihood of pPCA: the exact posterior is affine in x, with one covariance for all data (derived).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from collapse_lib.models.linear import Moments
from collapse_lib.objectives import (
    ElboTerms,
    Hyper,
    NoiseSpec,
    Posterior,
    elbo_terms,
    gaussian_kl,
    gaussian_log_likelihood,
    linear_decoder_square_error,
)
from collapse_lib.theory import linear_vae, ppca
from collapse_lib.theory.spectrum import Spectrum


class SharedVariance(nn.Module):
    """Encoder (batch, n) -> (batch, 2k): `mean`, (batch, n) -> (batch, k), and one log-variance a latent for all data.

    Around an affine `mean` it is the encoder of the linear VAE. The variances start at 1.
    """

    def __init__(self, mean: nn.Module, k: int) -> None:
        super().__init__()
        self.mean, self.log_var = mean, nn.Parameter(torch.zeros(k))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        return torch.cat([mean, self.log_var.expand_as(mean)], -1)


class LinearDecoderVAE(nn.Module):
    """Parameters: those of `encoder`, `W` (n, k), `b` (n,), `log_sigma2` ().

    `encoder` maps (x - input_mean) / input_scale, (batch, n), to (batch, 2k), mean and log-variance side by side;
    `input_mean` (n,) and `input_scale` () are buffers. With `learn_sigma2=False` log sigma2 is a buffer too.
    """

    def __init__(
        self,
        encoder: nn.Module,
        W: Tensor,
        b: Tensor,
        log_sigma2: float,
        *,
        input_mean: Tensor | None = None,
        input_scale: float = 1.0,
        learn_sigma2: bool = True,
    ) -> None:
        super().__init__()
        n, k = W.shape
        mean = torch.zeros_like(b) if input_mean is None else input_mean
        if b.shape != (n,) or mean.shape != (n,):
            raise ValueError(
                f"W {tuple(W.shape)} wants b and input_mean ({n},); got {tuple(b.shape)}, {tuple(mean.shape)}"
            )
        if input_scale <= 0:
            raise ValueError(f"input_scale divides the input and must be positive, got {input_scale}")
        self.n_latents, self.learn_sigma2 = k, learn_sigma2
        self.encoder = encoder
        self.W, self.b = nn.Parameter(W), nn.Parameter(b)
        self.input_mean: Tensor
        self.input_scale: Tensor
        self.register_buffer("input_mean", mean)
        self.register_buffer("input_scale", torch.tensor(float(input_scale), dtype=W.dtype))
        value = torch.tensor(float(log_sigma2), dtype=W.dtype)
        if learn_sigma2:
            self.log_sigma2 = nn.Parameter(value)
        else:
            self.register_buffer("log_sigma2", value)

    @classmethod
    def plain_start(
        cls, encoder: Callable[[], nn.Module], n: int, k: int, *, log_sigma2: float = 1.0, learn_sigma2: bool = True
    ) -> "LinearDecoderVAE":
        """The report's start: data as they are into `encoder()`, then torch's own start of an affine layer k -> n.

        Its code passes 1.0 as log sigma2 (it means sigma2 = 1), so the default is its sigma2 = e.
        """
        made, affine = encoder(), nn.Linear(k, n)
        return cls(made, affine.weight.detach(), affine.bias.detach(), log_sigma2, learn_sigma2=learn_sigma2)

    @classmethod
    def centred_start(
        cls,
        encoder: Callable[[], nn.Module],
        moments: Moments,
        k: int,
        *,
        weight_std: float = 0.05,
        input_scale: float = 10.0,
        learn_sigma2: bool = True,
    ) -> "LinearDecoderVAE":
        """Start near the best model without latents (ours): b = data mean, sigma2 = tr S / n, W ~ N(0, weight_std^2).

        `encoder()` sees (x - data mean) / input_scale.
        """
        mean, S = moments
        made, W = encoder(), weight_std * torch.randn(len(mean), k, dtype=S.dtype)
        log_sigma2 = float((S.diagonal().sum() / len(mean)).log())
        return cls(
            made,
            W,
            mean.clone(),
            log_sigma2,
            input_mean=mean.clone(),
            input_scale=input_scale,
            learn_sigma2=learn_sigma2,
        )

    def extra_repr(self) -> str:
        return f"n={len(self.b)}, k={self.n_latents}, learn_sigma2={self.learn_sigma2}"

    def encode(self, x: Tensor) -> Posterior:
        """q(z|x) for `x` (batch, n): mean and log_var (batch, k)."""
        return Posterior(*self.encoder((x - self.input_mean) / self.input_scale).chunk(2, dim=-1))

    def decode(self, z: Tensor) -> Tensor:
        """Mean of p(x|z): (..., k) -> (..., n)."""
        return z @ self.W.mT + self.b

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z): `x` (batch, n), `z` (..., batch, k) -> (..., batch), nats."""
        return gaussian_log_likelihood(self.decode(z), x, self.log_sigma2.exp())

    def expected_log_likelihood(self, x: Tensor, posterior: Posterior) -> Tensor:
        """E_q log p(x|z) in closed form for `x` (batch, n) and its `posterior`: (batch,), nats."""
        error = linear_decoder_square_error(x, posterior, self.W, self.b)
        return -0.5 * x.shape[-1] * (math.log(2 * math.pi) + self.log_sigma2) - error / (2 * self.log_sigma2.exp())

    def elbo(self, x: Tensor) -> Tensor:
        """The exact ELBO of every datum: `x` (batch, n) -> (batch,), nats."""
        posterior = self.encode(x)
        return self.expected_log_likelihood(x, posterior) - gaussian_kl(posterior)


@dataclass(frozen=True)
class LinearDecoderElbo:
    """The ELBO of a linear decoder under any Gaussian encoder, without sampling (derived).

        ELBO = -(n/2) log(2 pi sigma2) - E [ ||x - b - W m(x)||^2 + sum_i v_i(x) ||w_i||^2 ] / (2 sigma2)
               - 1/2 E sum_i [ m_i(x)^2 + v_i(x) - log v_i(x) - 1 ]          <=  ELBO*(W, sigma2, b)  <=  LL*

    E is the mean over the batch (batch, n), the only tensor of `data`. Reads the member's `beta` (default 1).
    """

    reads: ClassVar[frozenset[str]] = frozenset({"beta"})

    def noise(self, model: LinearDecoderVAE, batch_size: int) -> dict[str, NoiseSpec]:
        return {}

    def __call__(
        self, model: LinearDecoderVAE, data: tuple[Tensor, ...], noise: dict[str, Tensor], hyper: Hyper
    ) -> ElboTerms:
        (x,) = data
        posterior = model.encode(x)
        return elbo_terms(model.expected_log_likelihood(x, posterior), gaussian_kl(posterior), hyper.get("beta", 1.0))


@torch.no_grad()
def measure_shortfall(model: Any, x: Tensor, spectrum: Spectrum) -> dict[str, float]:
    """What separates a VAE with a linear decoder from the pPCA optimum of `x` (N, n), float64 (see `PerMember`).

        LL* - ELBO = [ LL* - LL(W, sigma2, b) ] + G(W, sigma2) + [ ELBO*(W, sigma2, b) - ELBO ]
                        decoder                   rotation         encoder

    `spectrum` is that of `x`; the middle terms see its covariance about the trained offset b. No term is negative.
    `log_sigma2` stands beside them. The model has `W`, `log_sigma2`, `decode` and the exact `elbo` of every datum: a
    `LinearDecoderVAE`, or a `models.linear.LinearVAE`. Nats per datum.
    """
    model, x = copy.deepcopy(model).double().cpu(), x.double().cpu()
    W, sigma2 = model.W.detach(), model.log_sigma2.detach().exp()
    b = model.decode(W.new_zeros(W.shape[1]))
    attained = float(ppca.loglik(W, sigma2, spectrum.covariance_about(b)))
    rotation = float(linear_vae.rotation_gap(W, sigma2))
    return {
        "decoder": ppca.mle(spectrum, W.shape[1]).loglik - attained,
        "rotation": rotation,
        "encoder": attained - rotation - float(model.elbo(x).mean()),
        "log_sigma2": model.log_sigma2.item(),
    }

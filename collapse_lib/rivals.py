"""Other remedies for posterior collapse, each a configuration of `training.fit` for a VAE with the prior N(0, I).

    beta-VAE            Higgins et al. 2017        SampledElbo, beta < 1
    KL warm-up          Bowman et al. 2016         SampledElbo, beta=Ramp(0, 1, end=0.5)
    cyclical warm-up    Fu et al. 2019             SampledElbo, beta=Cycle(4)
    free bits           Kingma et al. 2016         FreeBits(nats)
    lagging inference   He et al. 2019             SampledElbo, groups=lagging(inner=3, until=1 / 3)
    semi-amortised      Kim et al. 2018            SemiAmortisedElbo(steps=5)

Every NLL and ELBO that is reported has beta = 1, whatever was trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad

from collapse_lib.objectives import (
    ElboTerms,
    GaussianLatentModel,
    Hyper,
    NoiseSpec,
    Posterior,
    elbo_terms,
    gaussian_kl,
    latent_kl,
    reparameterise,
)


@dataclass(frozen=True)
class Cycle:
    """A cyclical warm-up as a function of progress: `cycles` times from `start` to `stop`, linearly over the first
    `rise` of each cycle, then constant (Fu et al. 2019, four cycles and a rise of one half)."""

    cycles: int = 4
    start: float = 0.0
    stop: float = 1.0
    rise: float = 0.5

    def __post_init__(self) -> None:
        if self.cycles < 1 or not 0 < self.rise <= 1:
            raise ValueError(f"a cycle needs cycles >= 1 and 0 < rise <= 1, got {self}")

    def __call__(self, progress: float) -> float:
        place = progress * self.cycles % 1 if progress < 1 else 1.0
        return self.start + (self.stop - self.start) * min(place / self.rise, 1.0)


@dataclass(frozen=True)
class FreeBits:
    """loss = sum_i max( nats, mean_x KL_i(x) ) - E log p(x|z): each latent's first `nats` cost nothing.

    Kingma et al. 2016. The mean is over the batch and the floor per latent; `elbo` and `kl` in the history are the true
    ones. Reads beta.
    """

    nats: float = 0.1
    reads: ClassVar[frozenset[str]] = frozenset({"beta"})

    def noise(self, model: GaussianLatentModel, batch_size: int) -> dict[str, NoiseSpec]:
        return {"eps": NoiseSpec("normal", (1, batch_size, model.n_latents))}

    def __call__(
        self, model: GaussianLatentModel, data: tuple[Tensor, ...], noise: dict[str, Tensor], hyper: Hyper
    ) -> ElboTerms:
        (x,) = data
        posterior = model.encode(x)
        per_latent = latent_kl(posterior).mean(0)
        log_likelihood = model.log_likelihood(x, reparameterise(posterior, noise["eps"]))
        terms = elbo_terms(log_likelihood, gaussian_kl(posterior))
        paid = per_latent.clamp_min(self.nats).sum()
        return terms._replace(loss=hyper.get("beta", torch.ones(())) * paid - terms.log_likelihood)


def lagging(*, inner: int = 3, until: float = 1 / 3) -> Mapping[str, Mapping[str, Any]]:
    """`groups` of `fit` for lagging inference (He et al. 2019).

    `inner` steps of the encoder alone before each joint one, until progress `until`, every step with a fresh batch. The
    original ends it when the mutual information stops to rise; here the share of training is fixed (ours).
    """
    if inner < 1:
        raise ValueError(f"inner must be at least 1, got {inner}")
    return {"decoder.*": {"every": inner + 1, "until": until}}


@dataclass(frozen=True)
class SemiAmortisedElbo:
    """The decoder learns from a posterior refined by gradient steps, the encoder from its own ELBO (Kim et al. 2018).

    steps, rate: gradient steps on (mean, log_var) of each datum, from the encoder's (`refine`). The original also
        differentiates through these steps for the encoder; here the encoder has the gradient of the ELBO at its own
        output (ours). `loss`, `elbo` and `kl` in the history are those of the refined posterior. Reads beta.
    """

    steps: int = 5
    rate: float = 0.05
    reads: ClassVar[frozenset[str]] = frozenset({"beta"})

    def noise(self, model: GaussianLatentModel, batch_size: int) -> dict[str, NoiseSpec]:
        return {"eps": NoiseSpec("normal", (self.steps + 1, batch_size, model.n_latents))}

    def __call__(
        self, model: GaussianLatentModel, data: tuple[Tensor, ...], noise: dict[str, Tensor], hyper: Hyper
    ) -> ElboTerms:
        (x,) = data
        beta = hyper.get("beta", torch.ones((), dtype=x.dtype, device=x.device))
        encoded, eps = model.encode(x), noise["eps"]
        start = Posterior(encoded.mean.detach(), encoded.log_var.detach())
        refined = refine(model, x, start, eps[:-1], rate=self.rate, beta=beta)
        log_likelihood = model.log_likelihood(x, reparameterise(refined, eps[-1]))
        terms = elbo_terms(log_likelihood, gaussian_kl(refined), beta)
        # The encoder's part: its value is zero, its gradient that of the loss at the encoder's own output.
        slopes = _loss_gradient(model, x, start, eps[-1], beta)
        own = sum((slope * (part - part.detach())).sum() for slope, part in zip(slopes, encoded, strict=True))
        return terms._replace(loss=terms.loss + own / len(x))


CLIP = 5.0  # largest norm of a datum's gradient in `refine` (Kim et al. 2018)


def refine(
    model: GaussianLatentModel,
    x: Tensor,
    posterior: Posterior,
    eps: Tensor,
    *,
    rate: float = 0.05,
    beta: Tensor | float = 1.0,
) -> Posterior:
    """`len(eps)` gradient steps on the mean and log-variance of each datum's own posterior, to a lower loss.

    The loss is beta KL - log p(x|z), z from `eps` (steps, batch, k), one sample a step; gradients are clipped to norm
    `CLIP` a datum. Nothing is differentiated through: the result is a constant.
    """
    mean, log_var = posterior
    mean, log_var = mean.detach(), log_var.expand(mean.shape).detach()
    for noise in eps:
        slopes = _loss_gradient(model, x, Posterior(mean, log_var), noise, beta)
        norm = torch.cat(slopes, -1).norm(dim=-1, keepdim=True)
        factor = rate * (CLIP / norm.clamp_min(CLIP))
        mean, log_var = mean - factor * slopes[0], log_var - factor * slopes[1]
    return Posterior(mean, log_var)


def _loss_gradient(
    model: GaussianLatentModel, x: Tensor, posterior: Posterior, eps: Tensor, beta: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Of each datum's loss with respect to its own mean and log-variance, as constants."""

    def loss(mean: Tensor, log_var: Tensor) -> Tensor:
        one = Posterior(mean, log_var)
        return (beta * gaussian_kl(one) - model.log_likelihood(x, reparameterise(one, eps))).sum()

    slopes = grad(loss, argnums=(0, 1))(*posterior)
    return slopes[0].detach(), slopes[1].detach()

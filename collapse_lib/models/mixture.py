"""VAE whose prior is a mixture of Gaussians with learned means; LIDMVAE's prior but for its unit variances (ours).

    p(z) = 1/C sum_c N(m_c, I),    q(z|x) one Gaussian

Component variances stay at one: a prior that may shrink undoes an inverse-Lipschitz constraint on the decoder, which in
whitened coordinates is L times the prior's scale (derived).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from collapse_lib.models.gaussian import GaussianVAE, Likelihood
from collapse_lib.objectives import ElboTerms, Hyper, NoiseSpec, elbo_terms, gaussian_log_likelihood, reparameterise


class MixturePriorVAE(GaussianVAE):
    """`GaussianVAE` with `components` prior means (C, k), which start at N(0, spread^2)."""

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        k: int,
        *,
        components: int,
        spread: float = 1.0,
        likelihood: Likelihood = "bernoulli",
        sigma2: float = 1.0,
    ) -> None:
        super().__init__(encoder, decoder, k, likelihood=likelihood, sigma2=sigma2)
        if components < 1:
            raise ValueError(f"a mixture has at least one component, got {components}")
        self.prior_means = nn.Parameter(spread * torch.randn(components, k))

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z): (..., k) -> (...), nats."""
        each = gaussian_log_likelihood(self.prior_means, z.unsqueeze(-2), 1.0)
        return each.logsumexp(-1) - math.log(len(self.prior_means))


@dataclass(frozen=True)
class MonteCarloElbo:
    """The stochastic ELBO for a prior without a closed-form KL: `model.log_prior` at the samples.

    E log q(z|x) is the entropy, which is exact. Reads beta.
    """

    n_samples: int = 1
    reads: ClassVar[frozenset[str]] = frozenset({"beta"})

    def noise(self, model: MixturePriorVAE, batch_size: int) -> dict[str, NoiseSpec]:
        return {"eps": NoiseSpec("normal", (self.n_samples, batch_size, model.n_latents))}

    def __call__(
        self, model: MixturePriorVAE, data: tuple[Tensor, ...], noise: dict[str, Tensor], hyper: Hyper
    ) -> ElboTerms:
        (x,) = data
        posterior = model.encode(x)
        z = reparameterise(posterior, noise["eps"])
        entropy = 0.5 * (posterior.log_var + 1 + math.log(2 * math.pi)).sum(-1)
        return elbo_terms(model.log_likelihood(x, z), -entropy - model.log_prior(z), hyper.get("beta", 1.0))

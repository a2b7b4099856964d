"""What trained hierarchical VAEs (`models.hierarchical`) are worth: ELBO terms, collapse of z2, two-level NLL."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from collapse_lib.evaluation import activity, collapsed_shares, latent_kl_of, prior_std, scalar_fields
from collapse_lib.likelihood import ImportanceNLL, importance_nll
from collapse_lib.models.hierarchical import TwoLatents, expected_z1_term
from collapse_lib.objectives import Posterior, gaussian_log_likelihood, reparameterise


class HierarchicalEvaluation(NamedTuple):
    """ELBO = log_likelihood - z1_term - kl_2, means over the data in nats per datum, from one z1 and z2 a datum."""

    elbo: float
    log_likelihood: float  # E log p(x|z1)
    z1_term: float  # E log q(z1|x) - log p(z1|z2); no KL, may be negative
    kl_2: float
    squared_error: float  # E ||x - d_1(z1)||^2
    squared_error_from_z2: float  # E ||x - d_1(d_2(z2))||^2: what z2 alone knows, without noise on z1
    latent_kl: Tensor  # (N, d2) KL of each z2 dimension given the datum's sample of z1
    latent_mean: Tensor  # (N, d2) mean of q(z2|z1), z1 at its mean


@torch.no_grad()
def evaluate_hierarchical(model: TwoLatents, x: Tensor, *, seed: int = 0) -> HierarchicalEvaluation:
    """ELBO terms of an MHVAE on `x` (N, n); the samples come from `seed` and are the same for every model."""
    z1, posterior_2, z2 = _sample(model, x, seed)
    error = (model.decode_1(z1) - x).square().sum(-1).double().mean()
    log_likelihood = gaussian_log_likelihood(model.decode_1(z1), x, model.log_sigma2.exp()).double().mean()
    z1_term = expected_z1_term(model, z1, z2).double().mean()
    latent_kl = latent_kl_of(posterior_2, float(model.eta_enc))
    kl_2 = latent_kl.sum(-1).mean()
    from_z2 = (model.decode_1(model.decode_2(z2)) - x).square().sum(-1).double().mean()
    return HierarchicalEvaluation(
        elbo=float(log_likelihood - z1_term - kl_2),
        log_likelihood=float(log_likelihood),
        z1_term=float(z1_term),
        kl_2=float(kl_2),
        squared_error=float(error),
        squared_error_from_z2=float(from_z2),
        latent_kl=latent_kl,
        latent_mean=model.encode_2(model.encode_1(x)).mean,
    )


def measure_hierarchical(
    model: TwoLatents, x: Tensor, *, epsilon: Sequence[float] = (), delta: float = 0.05, seed: int = 0
) -> dict[str, float]:
    """The numbers of `evaluate_hierarchical`, of `activity` for z2, and the collapsed shares of z2."""
    found = evaluate_hierarchical(model, x, seed=seed)
    return (
        scalar_fields(found)
        | activity(found.latent_kl, found.latent_mean / prior_std(model))
        | collapsed_shares(found.latent_kl, epsilon, delta)
    )


@torch.no_grad()
def decode_from_z2(model: TwoLatents, x: Tensor, *, seed: int = 0) -> Tensor:
    """What z2 alone knows of `x` (N, n): x -> z1 -> z2, both sampled, then the decoder's means z2 -> z1 -> (N, n)."""
    return model.decode_1(model.decode_2(_sample(model, x, seed)[2]))


def hierarchical_nll(
    model: TwoLatents, x: Tensor, n_samples: int, *, seed: int = 0, chunk: int | None = None
) -> ImportanceNLL:
    """-log p(x) of an MHVAE by importance sampling on both levels, `n_samples` pairs (z1, z2) a datum.

        w = p(x|z1) p(z1|z2) p(z2) / ( q(z1|x) q(z2|z1) ),   z1 ~ q(z1|x), z2 ~ q(z2|z1)

    `likelihood.importance_nll` for z1, with the second level's factor in the place of the prior p(z1).
    """
    noise = torch.Generator().manual_seed(seed + 1)

    def log_likelihood(rows: Tensor, z1: Tensor) -> Tensor:
        posterior = model.encode_2(z1)
        log_var = posterior.log_var.expand_as(posterior.mean)
        eps = torch.randn(posterior.mean.shape, generator=noise, dtype=z1.dtype).to(z1.device)
        z2 = posterior.mean + (0.5 * log_var).exp() * eps
        decoder, prior = model.log_sigma2.exp(), model.eta_enc.square()
        log_p = gaussian_log_likelihood(model.decode_1(z1), rows, decoder)
        log_p = log_p + gaussian_log_likelihood(model.decode_2(z2), z1, decoder)
        log_p = log_p + gaussian_log_likelihood(torch.zeros_like(z2), z2, prior)
        # log q(z2|z1) at its own sample, and the N(z1; 0, I) that `importance_nll` takes for the prior
        log_q = -0.5 * (eps.square() + log_var + math.log(2 * math.pi)).sum(-1)
        return log_p - log_q - gaussian_log_likelihood(torch.zeros_like(z1), z1, 1.0)

    with torch.no_grad():
        mean = model.encode_1(x)
        var = model.sigma_1.square().expand_as(mean)
        generator = torch.Generator().manual_seed(seed)
        return importance_nll(x, mean, var, log_likelihood, n_samples, generator=generator, chunk=chunk)


def _sample(model: TwoLatents, x: Tensor, seed: int) -> tuple[Tensor, Posterior, Tensor]:
    """z1 ~ q(z1|x), q(z2|z1) and z2 ~ q(z2|z1) for every datum."""
    generator = torch.Generator().manual_seed(seed)
    mean = model.encode_1(x)
    eps_1, eps_2 = (
        torch.randn(len(x), d, generator=generator, dtype=x.dtype).to(x.device) for d in (model.d1, model.d2)
    )
    z1 = mean + model.sigma_1 * eps_1
    posterior_2 = model.encode_2(z1)
    return z1, posterior_2, reparameterise(posterior_2, eps_2)

"""What trained VAEs are worth: ELBO terms and collapse over a whole data set, one row a member.

worth = partial(measure_gaussian, x=x, epsilon=[0.01, 1.0])
evaluate_members(result, worth)                        # after training: a frame with the configurations in columns
fit(..., evaluate=PerMember(sweep.make(0), worth))     # during training
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from collapse_lib.likelihood import ImportanceNLL, importance_nll
from collapse_lib.metrics import (
    active_units,
    active_units_by_kl,
    collapsed_share,
    mutual_information,
    posterior_kl,
)
from collapse_lib.objectives import Posterior, gaussian_log_likelihood, relative_to_prior, reparameterise
from collapse_lib.theory.collapse import tuned_sigma2
from collapse_lib.training import FitResult

Measure = Callable[[Any], Mapping[str, float]]
"""A trained model -> its numbers by name."""


class GaussianEvaluation(NamedTuple):
    """ELBO = log_likelihood - kl, means over the data in nats per datum; float64 sums of the model's own precision."""

    elbo: float
    log_likelihood: float  # E_q log p(x|z), over data and posterior samples
    kl: float
    squared_error: float  # R = E ||x - xhat||^2, over the same samples
    latent_kl: Tensor  # (N, k) KL of each latent for each datum
    latent_mean: Tensor  # (N, k) posterior mean


@torch.no_grad()
def evaluate_gaussian(
    model: Any, x: Tensor | tuple[Tensor, ...], *, n_samples: int = 8, seed: int = 0, chunk: int = 1000
) -> GaussianEvaluation:
    """ELBO terms of a VAE with a Gaussian likelihood on `x` (N, n), `n_samples` posterior samples a datum.

        ELBO = -(n/2) log(2 pi sigma2) - R / (2 sigma2) - KL

    The model has `encode`, `decode` and `log_sigma2` (`models.gaussian`, `models.linear`, `models.conditional`), and
    `eta_enc` where its prior is N(0, eta_enc^2 I). A conditional model takes a pair: what it is given, what it decodes.
    The samples come from `seed` and are the same for every model. Raises ValueError for a Bernoulli likelihood or fewer
    than one sample.
    """
    if getattr(model, "likelihood", "gaussian") != "gaussian":
        raise ValueError("the model has a Bernoulli likelihood, and with it neither sigma2 nor a squared error")
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}")
    data = x if isinstance(x, tuple) else (x,)
    generator = torch.Generator().manual_seed(seed)
    kls, means, log_likelihood, error = [], [], 0.0, 0.0
    for start in range(0, len(data[-1]), chunk):
        *condition, rows = (part[start : start + chunk] for part in data)
        posterior = model.encode(*condition, rows)
        eps = torch.randn(n_samples, len(rows), model.n_latents, generator=generator, dtype=rows.dtype).to(rows.device)
        x_mean = model.decode(reparameterise(posterior, eps), *condition)
        log_likelihood += float(gaussian_log_likelihood(x_mean, rows, model.log_sigma2.exp()).double().mean(0).sum())
        error += float((x_mean - rows).square().sum(-1).double().mean(0).sum())
        kls.append(latent_kl_of(posterior, prior_std(model)))
        means.append(posterior.mean)
    latent_kl, n = torch.cat(kls), len(data[-1])
    kl, log_likelihood, error = float(latent_kl.sum(-1).mean()), log_likelihood / n, error / n
    return GaussianEvaluation(log_likelihood - kl, log_likelihood, kl, error, latent_kl, torch.cat(means))


def measure_gaussian(
    model: Any,
    x: Tensor | tuple[Tensor, ...],
    *,
    epsilon: Sequence[float] = (),
    delta: float = 0.01,
    n_samples: int = 8,
    seed: int = 0,
) -> dict[str, float]:
    """The numbers of `evaluate_gaussian` that a table wants, with what theory makes of them.

    elbo, log_likelihood, kl, squared_error, sigma2; tuned_sigma2 = R/n and tuned_elbo, the best sigma2 for these
    networks and the ELBO there (`theory.collapse.tuned_sigma2`); the active units of `activity`; collapsed_<epsilon>,
    the share of latents that are (epsilon, delta)-collapsed on `x`, for each `epsilon`.
    """
    found = evaluate_gaussian(model, x, n_samples=n_samples, seed=seed)
    tuned = tuned_sigma2(found.squared_error, found.kl, (x[-1] if isinstance(x, tuple) else x).shape[-1])
    return (
        scalar_fields(found)
        | {"sigma2": float(model.log_sigma2.detach().exp()), "tuned_sigma2": tuned.sigma2, "tuned_elbo": tuned.elbo}
        | activity(found.latent_kl, found.latent_mean / prior_std(model))
        | collapsed_shares(found.latent_kl, epsilon, delta)
    )


def latent_kl_of(posterior: Posterior, prior_std: float) -> Tensor:
    """(N, k) KL of each latent for each datum."""
    mean, log_var = relative_to_prior(posterior, prior_std)
    return posterior_kl(mean, log_var.exp().expand(mean.shape))


def scalar_fields(found: Any) -> dict[str, float]:
    """The scalar fields of an evaluation."""
    return {name: value for name, value in found._asdict().items() if not isinstance(value, Tensor)}


def collapsed_shares(latent_kl: Tensor, epsilon: Sequence[float], delta: float) -> dict[str, float]:
    """`metrics.collapsed_share` of `latent_kl` (N, k) at each epsilon, named collapsed_<epsilon>."""
    shares = collapsed_share(latent_kl, torch.tensor(list(epsilon), dtype=torch.float64), delta)
    return {f"collapsed_{e:g}": float(share) for e, share in zip(epsilon, shares, strict=True)}


def activity(latent_kl: Tensor, latent_mean: Tensor) -> dict[str, float]:
    """Active units by three rules, for (N, k) each: au_burda and au_kl count, au_code is a share in [0, 1].

    au_burda: Cov_x(mean_i) > 0.01 (Burda et al. 2016); au_kl: mean KL_i > 0.01 nat; au_code: the share of data and
    latents with KL_i(x) >= 0.01 nat, which is what the code of Dang et al. 2024 calls AU. `latent_mean` is in units of
    the prior's standard deviation (`prior_std`), since the first rule is made for N(0, I).
    """
    return {
        "au_burda": float(active_units(latent_mean).n_active),
        "au_kl": float(active_units_by_kl(latent_kl).n_active),
        "au_code": float((latent_kl >= 0.01).double().mean()),
    }


def gaussian_nll(
    model: Any, x: Tensor | tuple[Tensor, ...], n_samples: int, *, seed: int = 0, chunk: int | None = None
) -> ImportanceNLL:
    """`likelihood.importance_nll` of a model that `evaluate_gaussian` takes: -log p(x), or -log p(y|x) given a pair."""
    data = x if isinstance(x, tuple) else (x,)
    widths = [part.shape[-1] for part in data]

    def log_likelihood(joined: Tensor, z: Tensor) -> Tensor:
        *condition, rows = joined.split(widths, -1)
        return gaussian_log_likelihood(model.decode(z * std, *condition), rows, model.log_sigma2.exp())

    with torch.no_grad():
        std = prior_std(model)
        posterior = relative_to_prior(model.encode(*data), std)
        mean = posterior.mean
        var = posterior.log_var.exp().expand_as(mean)
        generator = torch.Generator().manual_seed(seed)
        return importance_nll(
            torch.cat(data, -1), mean, var, log_likelihood, n_samples, generator=generator, chunk=chunk
        )


@torch.no_grad()
def measure_vae(
    model: Any,
    x: Tensor,
    *,
    nll_samples: int = 0,
    nll_data: int | None = None,
    n_samples: int = 1,
    seed: int = 0,
    chunk: int = 1000,
) -> dict[str, float]:
    """A row of a table for a VAE with `encode` and `log_likelihood`, any likelihood, on all of `x` (N, n); nats.

    elbo, log_likelihood, kl (beta = 1); mi, the mutual information I_q(x; z) over all N (`metrics.mutual_information`),
    and kl_to_aggregate = kl - mi, the part of the KL that is no information; au_burda, au_kl and au_share =
    au_burda / k; nll_<nll_samples>, importance-sampled on the first `nll_data`, unless `nll_samples` is 0.

    A prior other than N(0, I) comes as `model.log_prior`; its KL is then estimated at the posterior samples.
    """
    generator = torch.Generator().manual_seed(seed)
    means, variances, log_likelihood, log_ratio = [], [], 0.0, 0.0
    log_prior = getattr(model, "log_prior", None)
    for rows in x.split(chunk):
        posterior = model.encode(rows)
        eps = torch.randn(n_samples, len(rows), model.n_latents, generator=generator, dtype=x.dtype).to(x.device)
        z = reparameterise(posterior, eps)
        log_likelihood += float(model.log_likelihood(rows, z).double().mean(0).sum())
        if log_prior:  # how much more probable the samples are than under N(0, I)
            log_ratio += float((log_prior(z) - _log_standard_normal(z)).double().mean(0).sum())
        means.append(posterior.mean)
        variances.append(posterior.log_var.exp().expand_as(posterior.mean))
    mean, var = torch.cat(means), torch.cat(variances)
    latent_kl = posterior_kl(mean, var)
    kl, log_likelihood = float(latent_kl.sum(-1).mean()) - log_ratio / len(x), log_likelihood / len(x)
    mi = mutual_information(mean, var, generator=torch.Generator().manual_seed(seed)).nats
    active = activity(latent_kl, mean)
    row = {
        "elbo": log_likelihood - kl,
        "log_likelihood": log_likelihood,
        "kl": kl,
        "mi": mi,
        "kl_to_aggregate": kl - mi,
    }
    row |= {"au_burda": active["au_burda"], "au_kl": active["au_kl"], "au_share": active["au_burda"] / mean.shape[1]}
    if nll_samples:
        kept = slice(nll_data)
        row[f"nll_{nll_samples}"] = importance_nll(
            x[kept],
            mean[kept],
            var[kept],
            _with_prior(model.log_likelihood, log_prior),
            nll_samples,
            generator=torch.Generator().manual_seed(seed),
        ).nll
    return row


def _log_standard_normal(z: Tensor) -> Tensor:
    return gaussian_log_likelihood(torch.zeros_like(z), z, 1.0)


def _with_prior(
    log_likelihood: Callable[[Tensor, Tensor], Tensor], log_prior: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """What `importance_nll`, which takes the prior for N(0, I), needs for another one."""
    if log_prior is None:
        return log_likelihood
    return lambda rows, z: log_likelihood(rows, z) + log_prior(z) - _log_standard_normal(z)


def evaluate_members(result: FitResult, measure: Measure) -> pd.DataFrame:
    """One row a member that did not diverge: configuration and status as in `result.summary`, then `measure(model)`.

    Keys of the configuration that `measure` gives too (a start that was learned: sigma2) get the suffix `_start`.
    """
    kept = result.summary[result.summary.status != "diverged"]
    numbers = pd.DataFrame([measure(result.model(member)) for member in kept.index], index=kept.index)
    started = {name: f"{name}_start" for name in kept.columns.intersection(numbers.columns)}
    return kept.rename(columns=started).join(numbers)


def late_change(frame: pd.DataFrame, column: str, *, tail: float = 0.1) -> pd.Series:
    """How much `column` still moves at the end of training, one number a member (the index).

    Its mean over the last `tail` of the steps less its mean over the `tail` before; zero where it is flat, and on a
    straight line what it climbs in `tail` of the steps. frame: `history` or `evaluations` of a `FitResult`. Raises
    ValueError unless both parts have rows.
    """
    steps = frame.groupby("member").step.transform("max")
    late = frame[frame.step > (1 - tail) * steps].groupby("member")[column].mean()
    earlier = frame[(frame.step > (1 - 2 * tail) * steps) & (frame.step <= (1 - tail) * steps)]
    change = late - earlier.groupby("member")[column].mean()
    if change.isna().any() or len(change) < frame.member.nunique():
        raise ValueError(f"{column} has too few rows for a tail of {tail:g} of the steps: log or evaluate more often")
    return change


@dataclass(frozen=True, eq=False)
class PerMember:
    """An `evaluate` of `training.fit` that runs `measure` on every member in turn; `template` is one of its models.

    They are in evaluation mode, as those of a `FitResult` are.
    """

    template: nn.Module
    measure: Measure

    def __call__(self, state: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        first = next(iter(state.values()))
        model = copy.deepcopy(self.template).to(first.device).eval()
        rows = []
        for member in range(len(first)):
            model.load_state_dict({name: t[member] for name, t in state.items()})
            rows.append(self.measure(model))
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


def prior_std(model: Any) -> float:
    """eta_enc; 1 for a model that does not name it."""
    return float(getattr(model, "eta_enc", 1.0))

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

from collapse_lib.metrics import collapsed_share, posterior_kl
from collapse_lib.objectives import gaussian_log_likelihood, reparameterise
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


@torch.no_grad()
def evaluate_gaussian(
    model: Any, x: Tensor, *, n_samples: int = 8, seed: int = 0, chunk: int = 1000
) -> GaussianEvaluation:
    """ELBO terms of a VAE with a Gaussian likelihood on `x` (N, n), `n_samples` posterior samples a datum.

        ELBO = -(n/2) log(2 pi sigma2) - R / (2 sigma2) - KL

    The model has `encode`, `decode` and `log_sigma2` (`models.gaussian`, `models.linear`); the samples come from `seed`
    and are the same for every model. Raises ValueError for a Bernoulli likelihood or fewer than one sample.
    """
    if getattr(model, "likelihood", "gaussian") != "gaussian":
        raise ValueError("the model has a Bernoulli likelihood, and with it neither sigma2 nor a squared error")
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}")
    generator = torch.Generator().manual_seed(seed)
    kls, log_likelihood, error = [], 0.0, 0.0
    for rows in x.split(chunk):
        posterior = model.encode(rows)
        eps = torch.randn(n_samples, len(rows), model.n_latents, generator=generator, dtype=x.dtype).to(x.device)
        x_mean = model.decode(reparameterise(posterior, eps))
        log_likelihood += float(gaussian_log_likelihood(x_mean, rows, model.log_sigma2.exp()).double().mean(0).sum())
        error += float((x_mean - rows).square().sum(-1).double().mean(0).sum())
        shape = posterior.mean.shape
        kls.append(posterior_kl(posterior.mean, posterior.log_var.exp().expand(shape)))
    latent_kl = torch.cat(kls)
    kl, log_likelihood, error = float(latent_kl.sum(-1).mean()), log_likelihood / len(x), error / len(x)
    return GaussianEvaluation(log_likelihood - kl, log_likelihood, kl, error, latent_kl)


def measure_gaussian(
    model: Any, x: Tensor, *, epsilon: Sequence[float] = (), delta: float = 0.01, n_samples: int = 8, seed: int = 0
) -> dict[str, float]:
    """The numbers of `evaluate_gaussian` that a table wants, with what theory makes of them.

    elbo, log_likelihood, kl, squared_error, sigma2; tuned_sigma2 = R/n and tuned_elbo, the best sigma2 for these
    networks and the ELBO there (`theory.collapse.tuned_sigma2`); collapsed_<epsilon>, the share of latents that are
    (epsilon, delta)-collapsed on `x`, for each `epsilon`.
    """
    found = evaluate_gaussian(model, x, n_samples=n_samples, seed=seed)
    tuned = tuned_sigma2(found.squared_error, found.kl, x.shape[-1])
    shares = collapsed_share(found.latent_kl, torch.tensor(list(epsilon), dtype=torch.float64), delta)
    return (
        {name: value for name, value in found._asdict().items() if name != "latent_kl"}
        | {"sigma2": float(model.log_sigma2.detach().exp()), "tuned_sigma2": tuned.sigma2, "tuned_elbo": tuned.elbo}
        | {f"collapsed_{e:g}": float(share) for e, share in zip(epsilon, shares, strict=True)}
    )


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
    """An `evaluate` of `training.fit` that runs `measure` on every member in turn; `template` is one of its models."""

    template: nn.Module
    measure: Measure

    def __call__(self, state: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        first = next(iter(state.values()))
        model = copy.deepcopy(self.template).to(first.device)
        rows = []
        for member in range(len(first)):
            model.load_state_dict({name: t[member] for name, t in state.items()})
            rows.append(self.measure(model))
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}

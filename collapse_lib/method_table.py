"""Methods against posterior collapse side by side on one data set: the rows of a table, trained and measured alike.

A `Family` is what one call of `fit` can train: one architecture, one objective; its methods differ in numbers only, and
methods x seeds are members of one sweep. `train` gives every family the same steps, batches and rate; `measure` gives
one row a method and seed.

    families = [Family("MLP", build, SampledElbo(), {"VAE": {"beta": 1.0}, "beta-VAE": {"beta": 0.2}}), ...]
    trained = train(families, x, seeds=[0, 1, 2], lr=1e-3, steps=500, batch_size=64)
    table = measure(trained, partial(measure_vae, x=x_test, nll_samples=500))
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from collapse_lib.evaluation import Measure
from collapse_lib.objectives import Hyper, NoiseSpec
from collapse_lib.stacking import Objective
from collapse_lib.sweeps import Sweep
from collapse_lib.training import fit
from collapse_lib.transforms import binarise_dynamic

Number = float | Callable[[float], float]


@dataclass(frozen=True)
class Family:
    """`methods`: name -> the member's numbers (beta, "decoder.L", ..., constant or functions of progress)."""

    build: Callable[..., nn.Module]
    objective: Objective
    methods: Mapping[str, Mapping[str, Number]]
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Trained(NamedTuple):
    """One method, one seed. `seconds` is the wall time of its family's `fit` over its number of members."""

    method: str
    seed: int
    model: nn.Module
    status: str
    seconds: float
    evaluations: pd.DataFrame


@dataclass(frozen=True)
class Binarised:
    """`objective` on images that are binarised anew at every step, 1[u < x], for grey x (batch, n) in [0, 1].

    Dynamic binarisation (Burda et al. 2016); the uniform u come from the member's own noise.
    """

    objective: Objective
    n: int

    @property
    def reads(self) -> frozenset[str]:
        return self.objective.reads

    def noise(self, model: Any, batch_size: int) -> dict[str, NoiseSpec]:
        return {**self.objective.noise(model, batch_size), "pixels": NoiseSpec("uniform", (batch_size, self.n))}

    def __call__(self, model: Any, data: tuple[Tensor, ...], noise: dict[str, Tensor], hyper: Hyper) -> Any:
        (x,) = data
        return self.objective(model, (binarise_dynamic(x, noise["pixels"]),), noise, hyper)


def train(families: Sequence[Family], x: Tensor, *, seeds: Sequence[int], lr: float, **options: Any) -> list[Trained]:
    """Train every method of every family from every seed on `x` (N, n); `options` go to `training.fit`.

    Raises ValueError if two families name a method alike.
    """
    names = [name for family in families for name in family.methods]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"a method's name is its row in the table, but {sorted(twice)} occur twice")
    trained = []
    for family in families:
        rows = [(name, seed) for name in family.methods for seed in seeds]
        sweep = Sweep(family.build, [{"seed": seed, "lr": lr, **family.methods[name]} for name, seed in rows])
        began = time.perf_counter()
        result = fit(sweep, x, family.objective, groups=family.groups, **options)
        seconds = (time.perf_counter() - began) / len(rows)
        for member, (name, seed) in enumerate(rows):
            evaluations = result.evaluations
            own = evaluations[evaluations.member == member] if len(evaluations) else evaluations
            status = str(result.summary.status[member])
            trained.append(Trained(name, seed, result.model(member), status, seconds, own))
    return trained


def measure(trained: Sequence[Trained], worth: Measure) -> pd.DataFrame:
    """A frame indexed by method and seed: `worth(model)` and `seconds`. Diverged members are rows of nan."""
    rows = {
        (one.method, one.seed): ({} if one.status == "diverged" else dict(worth(one.model))) | {"seconds": one.seconds}
        for one in trained
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index=["method", "seed"])


def reconstructions(trained: Sequence[Trained], x: Tensor, *, seed: int) -> dict[str, Tensor]:
    """Method -> decoder's mean image at the posterior mean of `x` (N, n), for one seed; Bernoulli probabilities."""
    found = {}
    with torch.no_grad():
        for one in trained:
            if one.seed == seed:
                model: Any = one.model
                found[one.method] = model.decode(model.encode(x).mean).sigmoid()
    return found

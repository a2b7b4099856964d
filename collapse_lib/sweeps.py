"""A sweep is a value: a list of member configurations, built, printed and indexed before anything trains."""

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

RESERVED = ("lr", "seed")


@dataclass(frozen=True)
class Ramp:
    """A number as a function of training progress in [0, 1]: `start` until `begin`, then linearly to `stop` at `end`.

    As a member's value it is a warm-up (KL warm-up: `beta=Ramp(0, 1, end=0.5)`); as `lr_schedule` it is a factor on
    every learning rate (decay over the last 30 %: `Ramp(1, 0, begin=0.7)`).
    """

    start: float
    stop: float
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end <= 1:
            raise ValueError(f"a ramp needs 0 <= begin < end <= 1, got begin={self.begin}, end={self.end}")

    def __call__(self, progress: float) -> float:
        share = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.start + (self.stop - self.start) * share


Schedule = Callable[[float], float]


class Sweep:
    """Members to train: `build(**architecture)` makes a model, each configuration gives one member's values.

    Keys of a configuration:
      seed   int, required: initial weights, batches and noise all follow from it
      lr     float, required: learning rate of every parameter that has no group of its own
      names of `build`'s arguments: passed to it
      anything else: a number, or a function of progress in [0, 1], that the objective reads (beta, alpha, ...) or that
          the model holds as a buffer (decoder.L)
    """

    def __init__(self, build: Callable[..., nn.Module], configurations: Iterable[Mapping[str, Any]]) -> None:
        self.build = build
        self.configurations = [dict(c) for c in configurations]
        if not self.configurations:
            raise ValueError("the sweep is empty: give at least one configuration")
        arguments = inspect.signature(build).parameters.values()
        self._arguments = {p.name for p in arguments if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        for i, c in enumerate(self.configurations):
            missing = [key for key in RESERVED if key not in c]
            if missing:
                raise ValueError(f"member {i} ({c}) has no {' and no '.join(missing)}: name it in its configuration")
            for key, value in c.items():
                if key not in self._arguments and not isinstance(value, int | float) and not callable(value):
                    raise ValueError(
                        f"member {i}: {key}={value!r} is no argument of {build} and so must be a number or a function "
                        f"of progress; the arguments are {sorted(self._arguments)}"
                    )

        names = [self.numbers(i, 0.0).keys() for i in range(len(self))]
        if uneven := {name for some in names for name in some ^ names[0]}:
            raise ValueError(f"some members have {sorted(uneven)} and some do not: give every member a value")

    @classmethod
    def grid(cls, build: Callable[..., nn.Module], **axes: Any) -> "Sweep":
        """All combinations; an axis is a list of values, anything else is one value. The last axis varies fastest."""
        values = [v if isinstance(v, list) else [v] for v in axes.values()]
        return cls(build, [dict(zip(axes, combination, strict=True)) for combination in itertools.product(*values)])

    def __len__(self) -> int:
        return len(self.configurations)

    def __getitem__(self, members: int | slice | Sequence[int]) -> "Sweep":
        """The sweep of the named members alone."""
        if isinstance(members, int):
            members = [members]
        chosen = (
            self.configurations[members] if isinstance(members, slice) else [self.configurations[i] for i in members]
        )
        return Sweep(self.build, chosen)

    def __repr__(self) -> str:
        return f"Sweep of {len(self)} members\n{self.frame()}"

    def frame(self) -> pd.DataFrame:
        """One row a member, its configuration in columns, the index named `member`."""
        return pd.DataFrame(self.configurations).rename_axis("member")

    def make(self, member: int) -> nn.Module:
        """The untrained model of one member. Its weights are drawn on the CPU after seeding its generator with `seed`.

        The global random state is left as it was.
        """
        configuration = self.configurations[member]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(configuration["seed"]))  # manual_seed would reset every GPU's too
            return self.build(**{k: v for k, v in configuration.items() if k in self._arguments})

    def numbers(self, member: int, progress: float) -> dict[str, float]:
        """The values that the objective reads, at this progress."""
        return {
            key: float(value(progress) if callable(value) else value)
            for key, value in self.configurations[member].items()
            if key not in self._arguments and key not in RESERVED
        }

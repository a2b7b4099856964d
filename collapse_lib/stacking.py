"""The inside of `training.fit`: several models as one program, and the random numbers each of them sees."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from collapse_lib.objectives import Hyper, NoiseSpec
from collapse_lib.sweeps import Schedule

NOISE_BLOCK = 2**20  # numbers drawn at a time for one member: large enough to amortise the call, 4 MB in float32
SYNC_STEPS = 50  # the host looks at the losses at most this often


class Objective(Protocol):
    """What `fit` minimises: scalars by name (a NamedTuple), the first of them called `loss`.

    `reads` names the numbers of a member that it looks up (beta, ...).
    """

    @property
    def reads(self) -> frozenset[str]: ...

    def noise(self, model: Any, batch_size: int) -> dict[str, NoiseSpec]: ...

    def __call__(self, model: Any, data: tuple[Tensor, ...], noise: dict[str, Tensor], hyper: Hyper) -> Any: ...


Evaluate = Callable[[dict[str, Tensor], int], Mapping[str, Tensor]]
"""(stacked state, step) -> numbers: the state is parameters and buffers by name, each with a leading member axis; each
number comes back as a tensor (member,)."""


@dataclass(frozen=True)
class Plateau:
    """Stop a member whose logged loss has not fallen by more than `min_delta` nats for `patience` rows of history."""

    patience: int
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1 or self.min_delta < 0:
            raise ValueError(f"a plateau needs patience >= 1 and min_delta >= 0, got {self}")


@dataclass
class Plan:
    """The arguments of `fit` that all members share."""

    data: tuple[Tensor, ...]
    objective: Objective
    steps: int
    batch_size: int | None
    groups: dict[str, Mapping[str, Any]]
    lr_schedule: Schedule | None
    device: torch.device
    log_every: int | None
    evaluate: Evaluate | None
    evaluate_every: int | None = None
    plateau: Plateau | None = None

    def check(self) -> None:
        n = len(self.data[0])
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.batch_size is not None:
            if any(len(t) != n for t in self.data):
                raise ValueError(f"data tensors differ in length: {[tuple(t.shape) for t in self.data]}")
            if not 1 <= self.batch_size <= n:
                raise ValueError(f"batch_size must be between 1 and the {n} data, got {self.batch_size}")
        if (self.evaluate is None) != (self.evaluate_every is None):
            raise ValueError("evaluate and evaluate_every belong together: give both or neither")
        for pattern, options in self.groups.items():
            if unknown := options.keys() - {"lr", "betas", "eps", "every", "until"}:
                raise ValueError(
                    f"group {pattern!r}: {sorted(unknown)} cannot be set; a group takes lr, betas, eps, every and until"
                )
            if options.get("every", 1) < 1 or not 0 <= options.get("until", 1.0) <= 1:
                raise ValueError(f"group {pattern!r} needs every >= 1 and until in [0, 1], got {dict(options)}")
        for name, value in (("log_every", self.log_every), ("evaluate_every", self.evaluate_every)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def epoch(self) -> int:
        return SYNC_STEPS if self.batch_size is None else len(self.data[0]) // self.batch_size

    @property
    def row(self) -> int:
        return self.log_every or self.epoch

    @property
    def rows(self) -> int:
        """Steps between two looks at the losses: whole rows, at least SYNC_STEPS."""
        return max(1, -(-SYNC_STEPS // self.row)) * self.row

    def next_stop(self, step: int) -> int:
        """The next step at which the host looks: at the losses or for an evaluation."""
        stops = [self.steps, (step // self.rows + 1) * self.rows]
        if self.evaluate_every:
            stops.append((step // self.evaluate_every + 1) * self.evaluate_every)
        return min(stops)


class _Objective(nn.Module):
    """The objective as a module over its model, the form that `functional_call` takes."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, data: tuple[Tensor, ...], noise: dict[str, Tensor], hyper: Hyper) -> Any:
        return self.objective(self.model, data, noise, hyper)


class Members:
    """Parameters, buffers and Adam state of the members in training, with a leading member axis when stacked.

    A learning rate of its own for every member: Adam's step is linear in the rate, so where rates differ Adam moves a
    proxy that starts at zero with rate 1, and the parameters follow by rate x proxy.
    """

    def __init__(self, models: Sequence[nn.Module], lrs: Sequence[float], run: Plan) -> None:
        self.stacked = len(models) > 1
        self.call = _Objective(models[0], run.objective).to(run.device).train()
        model = self.call.model
        if self.stacked:
            parameters = [dict(m.to(run.device).named_parameters()) for m in models]
            buffers = [dict(m.named_buffers()) for m in models]
            self.params = {n: nn.Parameter(torch.stack([p[n].detach() for p in parameters])) for n in parameters[0]}
            self.buffers = {n: torch.stack([b[n] for b in buffers]) for n in buffers[0]}
        else:
            for parameter in model.parameters():
                parameter.data = parameter.data.contiguous()  # see `step`
            self.params, self.buffers = dict(model.named_parameters()), dict(model.named_buffers())
        self.dtype = next(iter(self.params.values())).dtype
        self.lr, self.follow = lrs[0], len(set(lrs)) > 1
        self.rates = torch.tensor(lrs, dtype=self.dtype, device=run.device)
        self.targets = {n: nn.Parameter(torch.zeros_like(p)) if self.follow else p for n, p in self.params.items()}
        self.adam = self._adam(run.groups)

    def _adam(self, groups: Mapping[str, Mapping[str, Any]]) -> torch.optim.Adam:
        owner: dict[str, str] = {}
        for pattern in groups:
            named = [n for n in self.params if fnmatch(n, pattern)]
            if not named:
                raise ValueError(f"the group {pattern!r} names no parameter; the parameters are {sorted(self.params)}")
            owner |= {n: pattern for n in named if n not in owner}
        options: list[dict[str, Any]] = []
        for pattern_or_rest in (*groups, None):
            names = [n for n in self.params if owner.get(n) == pattern_or_rest]
            if names:
                given = dict(groups[pattern_or_rest]) if pattern_or_rest else {}
                own, every, until = given.pop("lr", None), given.pop("every", 1), given.pop("until", 1.0)
                ours = {"names": names, "own_lr": own, "every": every, "until": until}
                options.append({"params": [self.targets[n] for n in names], **ours, **given})
        return torch.optim.Adam(options, lr=1.0, fused=True)

    def terms(self, data: tuple[Tensor, ...], shared: bool, noise: dict[str, Tensor], hyper: Hyper) -> Any:
        """The objective's terms, each (member,). `shared`: all members see the same data."""
        self.write(hyper)
        if not self.stacked:
            return type(t := self.call(data, _first(noise), _first(hyper)))(*(v[None] for v in t))

        def one(
            params: dict[str, nn.Parameter],
            buffers: Hyper,
            data: tuple[Tensor, ...],
            noise: dict[str, Tensor],
            hyper: Hyper,
        ) -> Any:
            state = {f"model.{n}": t for n, t in {**params, **buffers}.items()}
            return functional_call(self.call, state, (data, noise, hyper))

        in_dims = (0, 0, None if shared else 0, 0, 0)
        return vmap(one, in_dims=in_dims)(self.params, self.buffers, data, noise, hyper)

    def write(self, hyper: Hyper) -> None:
        """Put the numbers (member,) that are named like a buffer there."""
        for name in hyper.keys() & self.buffers.keys():
            if self.stacked:
                self.buffers[name] = hyper[name].to(self.buffers[name])
            else:
                self.buffers[name].copy_(hyper[name][0])

    def step(self, loss: Tensor, factor: float, step: int = 0, progress: float = 0.0) -> None:
        """One Adam update from the per-member losses; in the gradient of their sum, members do not mix.

        A group whose turn it is not keeps its parameters and its moments.
        """
        resting = {
            name
            for group in self.adam.param_groups
            if progress < group["until"] and (step + 1) % group["every"]
            for name in group["names"]
        }
        moving = {name: p for name, p in self.params.items() if name not in resting}
        if not moving:
            return
        found = torch.autograd.grad(loss.sum(), list(moving.values()), materialize_grads=True)  # zeros where unused
        gradients = dict(zip(moving, found, strict=True))
        for name, target in self.targets.items():
            # contiguous: the fused Adam reads memory in order and never looks at the strides
            target.grad = gradients[name].contiguous() if name in gradients else None
        for group in self.adam.param_groups:
            own = group["own_lr"]
            group["lr"] = 1.0 if self.follow else factor * (self.lr if own is None else own)
        self.adam.step()
        if self.follow:
            self._move(factor)

    @torch.no_grad()
    def _move(self, factor: float) -> None:
        for group in self.adam.param_groups:
            rates = self.rates if group["own_lr"] is None else torch.full_like(self.rates, group["own_lr"])
            for name in group["names"]:
                parameter, proxy = self.params[name], self.targets[name]
                parameter.addcmul_(rates.view(-1, *[1] * (parameter.ndim - 1)), proxy, value=factor)
                proxy.zero_()

    def state(self) -> dict[str, Tensor]:
        """Detached parameters and buffers, always with the member axis."""
        tensors = {n: t.detach() for n, t in {**self.params, **self.buffers}.items()}
        return tensors if self.stacked else {n: t[None] for n, t in tensors.items()}

    def keep(self, places: Tensor) -> None:
        """Drop all members but those at `places`. Only the stacked form can shrink without becoming empty."""
        self.rates = self.rates[places]
        self.params = {n: nn.Parameter(p.detach()[places]) for n, p in self.params.items()}
        self.buffers = {n: t[places] for n, t in self.buffers.items()}
        for group in self.adam.param_groups:
            for i, name in enumerate(group["names"]):
                old = self.targets[name]
                new = nn.Parameter(old.detach()[places]) if self.follow else self.params[name]
                moments = self.adam.state.pop(old)
                self.adam.state[new] = {k: v[places] if v.ndim else v for k, v in moments.items()}
                group["params"][i] = self.targets[name] = new


def _first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t[0] for name, t in tensors.items()}


class Streams:
    """Batches and noise of the members in training, each from its own generators."""

    def __init__(self, seeds: Sequence[int], model: nn.Module, dtype: torch.dtype, run: Plan) -> None:
        self.run, self.dtype = run, dtype
        self.batches = [_generator(s, 1, run.device) for s in seeds]
        self.noises = [_generator(s, 2, run.device) for s in seeds]
        self.specs = run.objective.noise(model, run.batch_size or len(run.data[0]))
        numbers = sum(int(np.prod(spec.shape)) for spec in self.specs.values())
        self.block = max(1, min(NOISE_BLOCK // max(numbers, 1), 256))
        self.permutations = torch.empty(0)
        self.drawn: dict[str, Tensor] = {}

    def batch(self, step: int, stacked: bool) -> tuple[Tensor, ...]:
        size, data = self.run.batch_size, self.run.data
        if size is None:
            return data
        at = step % self.run.epoch
        if at == 0:
            self.permutations = torch.stack(
                [torch.randperm(len(data[0]), generator=g, device=self.run.device) for g in self.batches]
            )
        index = self.permutations[:, at * size : (at + 1) * size]
        return tuple(t[index if stacked else index[0]] for t in data)

    def noise(self, step: int) -> dict[str, Tensor]:
        at = step % self.block
        if at == 0 and self.specs:
            self.drawn = {
                name: torch.stack([self._draw(g, spec) for g in self.noises]) for name, spec in self.specs.items()
            }
        return {name: block[:, at] for name, block in self.drawn.items()}

    def _draw(self, generator: torch.Generator, spec: NoiseSpec) -> Tensor:
        draw = {"normal": torch.randn, "uniform": torch.rand}[spec.kind]
        return draw(self.block, *spec.shape, generator=generator, device=self.run.device, dtype=self.dtype)

    def keep(self, places: Tensor) -> None:
        chosen = places.tolist()
        self.batches, self.noises = [self.batches[i] for i in chosen], [self.noises[i] for i in chosen]
        self.drawn = {name: block[places] for name, block in self.drawn.items()}
        if len(self.permutations):
            self.permutations = self.permutations[places]


def _generator(seed: int, stream: int, device: torch.device) -> torch.Generator:
    state = np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))

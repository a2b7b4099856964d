"""`fit` trains every member of a sweep; members of one architecture can run as one stacked program.

How the promise "a sweep equals its members trained alone" is kept: every random number is drawn outside the stacked
program from the member's own generators, in blocks whose size does not depend on the other members; the optimiser is
elementwise; and a member that stops is cut out of the stack, never averaged with.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from collapse_lib.history import MemberHistory
from collapse_lib.progress import Progress
from collapse_lib.residual import averages_by_count
from collapse_lib.stacking import Evaluate, Members, Objective, Plan, Plateau, Streams
from collapse_lib.sweeps import Schedule, Sweep

# Multiply-adds of one member's objective up to which a CPU prefers a stack to a loop. Measured gains of the stack:
# affine layers 2.4x at 3e5 (64-32-8), 1.5x at 7e6, 1.2x at 4e7, none at 1.4e8 (784-500-500-50, batch 100);
# convolutions, which vmap turns into grouped ones, 1.8x at 2e6, 1.5x at 1.5e7, 1.1x at 6e7 (64x64, channels 8, 8, 16,
# 16, batch 50), 0.8x at 2e8, 0.6x at 1.9e9 (the net of Higgins et al. 2017, batch 100); 2 or 4 members, one thread.
# Residual nets with batch norm: 1.7x at 3e7, 1.4x at 6e7 (28x28, channels 4, 8, 16, batch 32 and 64), 1.2x at 2.4e8;
# 3 members, CPU time on a busy machine.
STACK_LIMIT = 2**26

# An eps beside which the root of Adam's second moment is lost: what is left of Adam is momentum.
DROWNING_EPS = 1e8


def momentum_sgd(lr: float, momentum: float = 0.9) -> dict[str, Any]:
    """Options of a group of `fit` that make it gradient descent: step -lr m, m the mean of past gradients g.

        m = (1 - momentum) sum_s momentum^(t-s) g_s / (1 - momentum^t)

    Once momentum^t is small this is `torch.optim.SGD` with the rate lr (1 - momentum). Unlike Adam, which looks at each
    weight alone, it does not care in which orthonormal basis the weights are written. For all parameters:
    `groups={"*": momentum_sgd(1e-2)}`; the members' own `lr` is then not used.
    """
    if lr <= 0 or not 0 <= momentum < 1:
        raise ValueError(f"need lr > 0 and 0 <= momentum < 1, got {lr} and {momentum}")
    return {"lr": lr * DROWNING_EPS, "eps": DROWNING_EPS, "betas": (momentum, 0.999)}


class FitResult(NamedTuple):
    """`summary`: one row a member: configuration, `status` (finished, plateau, diverged), `steps`, `loss`, `stacked`.
    `history`: one row a member and log point: `member`, `step`, `progress`, then the objective's terms, each the mean
    over the `log_every` steps from `step` on (at `log_every=1`: the value at `step`, before that step's update).
    `evaluations`: one row a member and evaluation: `member`, `step`, then what `evaluate` returned.
    `states`: one state dict a member, on the CPU.
    """

    sweep: Sweep
    summary: pd.DataFrame
    history: pd.DataFrame
    evaluations: pd.DataFrame
    states: list[dict[str, Tensor]]

    def model(self, member: int) -> nn.Module:
        """The trained model of one member, on the CPU, in evaluation mode."""
        model = self.sweep.make(member)
        model.load_state_dict(self.states[member])
        return model.eval()

    def stacked(self, name: str) -> Tensor:
        """One parameter of all members, (member, ...). The members must share its shape."""
        return torch.stack([state[name] for state in self.states])


def fit(
    sweep: Sweep,
    data: Tensor | tuple[Tensor, ...],
    objective: Objective,
    *,
    steps: int,
    batch_size: int | None = None,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    lr_schedule: Schedule | None = None,
    device: torch.device | str = "cpu",
    stack: bool | Literal["auto"] = "auto",
    log_every: int | None = None,
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    plateau: Plateau | None = None,
    progress: bool = True,
) -> FitResult:
    """Train every member of `sweep` with Adam (Kingma and Ba 2015) on `objective`.

    data: one tensor or several of equal length N; moved to `device` once and indexed there.
    batch_size: None gives the objective all of `data` at every step, unindexed (it may then be `Moments`); otherwise
        every epoch is a fresh permutation, cut into N // batch_size whole batches.
    groups: Adam options for parameters by name pattern, e.g. {"log_sigma2": {"lr": 1e-2, "betas": (0.9, 0.9)}};
        without an `lr` of its own a group takes the member's. {"decoder.*": {"every": 4, "until": 0.3}} updates those
        parameters at every fourth step only, until 30 % of training (lagging inference, He et al. 2019).
    lr_schedule: a factor on every learning rate as a function of progress = step / steps.
    stack: True runs members of equal architecture as one program (`torch.func.vmap`), False one after the other; "auto"
        stacks on a GPU, and on a CPU when a member's step is small. Results agree to rounding.
    log_every: steps a row of the history; default one epoch, or SYNC_STEPS steps of full batch. The host waits for the
        device at whole rows, and not more often than every SYNC_STEPS steps.
    evaluate, evaluate_every: called at steps 0, evaluate_every, ... and after a member's last one, unless it diverged.
    plateau: judged at whole rows on the loss, warm-ups of its weights included: give it patience beyond their end.

    A member's number that bears the name of one of its model's buffers of no dimension ("decoder.L") is written there
    before every step, so that a schedule can move it; the last state holds the last value.

    A member with a non-finite loss or parameter is marked `diverged` and stops with the state of the host's last look,
    which was finite; the others do not notice. Errors: ValueError for arguments that do not fit each other, for a
    number that the objective does not read, for a frozen parameter and for dropout, before anything trains.
    """
    tensors = data if isinstance(data, tuple) else (data,)
    device = torch.device(device)
    tensors = tuple(t.to(device) for t in tensors)
    run = Plan(tensors, objective, steps, batch_size, dict(groups or {}), lr_schedule, device, log_every, evaluate)
    run.evaluate_every, run.plateau = evaluate_every, plateau
    run.check()
    models = [sweep.make(i) for i in range(len(sweep))]
    for model in models:
        _check_model(model, stack)
    scalars = {name for name, buffer in models[0].named_buffers() if buffer.ndim == 0}
    if unread := set(sweep.numbers(0, 0.0)) - objective.reads - scalars:
        raise ValueError(
            f"the objective does not read {sorted(unread)}; it reads {sorted(objective.reads)}, and buffers of no "
            f"dimension of the model are {sorted(scalars)}. Is a name misspelt?"
        )
    histories = [MemberHistory() for _ in models]
    with Progress(steps * len(sweep), f"fit {len(sweep)} member{'s' * (len(sweep) > 1)}", enabled=progress) as bar:
        for members in _equal_architectures(models):
            numbers = sweep.numbers(members[0], 0.0)
            together = _stacks(models[members[0]], len(members), numbers, run) if stack == "auto" else stack
            for part in [members] if together else [[i] for i in members]:
                _train(part, [models[i] for i in part], sweep, run, histories, bar)
    return _result(sweep, histories, steps)


# ---- the pieces ------------------------------------------------------------------------------------------------------


def _equal_architectures(models: Sequence[nn.Module]) -> list[list[int]]:
    """Members whose modules print the same and hold tensors of the same names, shapes and types.

    A module must therefore print (`extra_repr`) every constant that it computes with.
    """
    groups: dict[Any, list[int]] = {}
    for i, model in enumerate(models):
        tensors = tuple((name, tuple(t.shape), t.dtype) for name, t in model.state_dict().items())
        groups.setdefault((repr(model), tensors), []).append(i)
    return list(groups.values())


def _check_model(model: nn.Module, stack: bool | str) -> None:
    """What cannot keep the promise above is refused."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise ValueError(f"parameter {name} is frozen: register it as a buffer, which `fit` leaves alone")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            raise ValueError(f"{name} draws its own random numbers: take them from the objective's noise instead")
    if stack is True and (counting := averages_by_count(model)):
        raise ValueError(f"{counting} averages over all batches (momentum=None), which no stack can: take stack=False")


def _stacks(model: nn.Module, members: int, numbers: Mapping[str, float], run: Plan) -> bool:
    if members == 1 or averages_by_count(model):
        return False
    return run.device.type != "cpu" or _multiply_adds(model, numbers, run) <= STACK_LIMIT


def _multiply_adds(model: nn.Module, numbers: Mapping[str, float], run: Plan) -> int:
    """Of one evaluation of the objective, without its gradient: counted by doing it, since a convolution does more than
    its weights tell.
    """
    size, dtype = run.batch_size or len(run.data[0]), next(model.parameters()).dtype
    batch = run.data if run.batch_size is None else tuple(t[:size] for t in run.data)
    noise = {name: torch.zeros(spec.shape, dtype=dtype) for name, spec in run.objective.noise(model, size).items()}
    hyper = {name: torch.tensor(value, dtype=dtype) for name, value in numbers.items()}
    with FlopCounterMode(display=False) as counter:
        run.objective(copy.deepcopy(model), batch, noise, hyper)  # a copy: a forward pass may move buffers
    return counter.get_total_flops() // 2


def _train(
    members: list[int],
    models: Sequence[nn.Module],
    sweep: Sweep,
    run: Plan,
    histories: list[MemberHistory],
    bar: Progress,
) -> None:
    """Train `members` together, writing into their histories."""
    alive = list(members)
    trained = Members(models, [float(sweep.configurations[i]["lr"]) for i in alive], run)
    streams = Streams([int(sweep.configurations[i]["seed"]) for i in alive], models[0], trained.dtype, run)
    step = 0

    def numbers_at(steps: range) -> dict[str, Tensor]:
        """(step, member) each."""
        rows = [[sweep.numbers(i, s / run.steps) for i in alive] for s in steps]
        return {
            key: torch.tensor([[n[key] for n in row] for row in rows], dtype=trained.dtype).to(run.device)
            for key in rows[0][0]
        }

    trained.write({key: v[0] for key, v in numbers_at(range(1)).items()})
    while alive and step < run.steps:
        if run.evaluate and step % (run.evaluate_every or 1) == 0:
            _evaluate(run.evaluate, trained.state(), step, alive, histories)
        before = {n: t.clone() for n, t in trained.state().items()}
        stop = run.next_stop(step)
        hyper = numbers_at(range(step, stop + 1))  # one more: what the state after the last step is evaluated with
        names, seen = _steps(trained, streams, hyper, range(step, stop), run)
        trained.write({key: v[-1] for key, v in hyper.items()})
        after = trained.state()
        finite = torch.stack([t.isfinite().reshape(len(t), -1).all(1) for t in after.values()]).all(0).cpu().numpy()
        going = []
        for place, member in enumerate(alive):
            history, own = histories[member], seen[:, :, place]
            history.names, history.stacked = names, trained.stacked
            bad = np.flatnonzero(~np.isfinite(own).all(1))
            if len(bad) or not finite[place]:
                history.absorb(step, own[: bad[0] if len(bad) else len(own)], run.row)
                history.status, history.state = "diverged", {n: t[place].cpu().clone() for n, t in before.items()}
                continue
            history.absorb(step, own, run.row)
            if stop == run.steps or (run.plateau and stop % run.rows == 0 and history.on_plateau(run.plateau)):
                history.status = "finished" if stop == run.steps else "plateau"
                history.state = {n: t[place].cpu().clone() for n, t in after.items()}
            else:
                going.append(place)
        bar.update((stop - step) * len(alive) + (run.steps - stop) * (len(alive) - len(going)))
        if run.evaluate and len(going) < len(alive):
            ended = [p for p in range(len(alive)) if p not in going and histories[alive[p]].status != "diverged"]
            if ended:
                places = torch.tensor(ended, device=run.device)
                _evaluate(
                    run.evaluate, {n: t[places] for n, t in after.items()}, stop, [alive[p] for p in ended], histories
                )
        if going and len(going) < len(alive):
            places = torch.tensor(going, device=run.device)
            trained.keep(places)
            streams.keep(places)
        alive, step = [alive[p] for p in going], stop


def _steps(
    trained: Members, streams: Streams, hyper: Mapping[str, Tensor], steps: range, run: Plan
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Take `steps`, with one look at the device at their end; names of the terms, and (steps, terms, members)."""
    values, names = [], ()
    for place, s in enumerate(steps):
        batch = streams.batch(s, trained.stacked)
        now = {key: v[place] for key, v in hyper.items()}
        terms = trained.terms(batch, run.batch_size is None, streams.noise(s), now)
        trained.step(terms.loss, run.lr_schedule(s / run.steps) if run.lr_schedule else 1.0, s, s / run.steps)
        names = terms._fields
        values.append(torch.stack([t.detach() for t in terms]))
    return names, torch.stack(values).double().cpu().numpy()


def _evaluate(
    evaluate: Evaluate, state: dict[str, Tensor], step: int, members: Sequence[int], histories: Sequence[MemberHistory]
) -> None:
    with torch.no_grad():
        numbers = {name: t.double().cpu().tolist() for name, t in evaluate(state, step).items()}
    if wrong := {name: len(v) for name, v in numbers.items() if len(v) != len(members)}:
        raise ValueError(f"evaluate must give one number for each of {len(members)} members, but gave {wrong}")
    for place, member in enumerate(members):
        histories[member].evaluations.append(
            {"member": member, "step": step} | {n: v[place] for n, v in numbers.items()}
        )


def _result(sweep: Sweep, histories: Sequence[MemberHistory], steps: int) -> FitResult:
    summary = sweep.frame()
    summary["status"] = [r.status for r in histories]
    summary["steps"] = [r.steps for r in histories]
    summary["loss"] = [r.means()[-1, 0] if r.starts else np.nan for r in histories]
    summary["stacked"] = [r.stacked for r in histories]
    rows = [
        {"member": i, "step": start, "progress": start / steps} | dict(zip(r.names, terms.tolist(), strict=True))
        for i, r in enumerate(histories)
        if r.starts
        for start, terms in zip(r.starts, r.means(), strict=True)
    ]
    evaluations = [e for r in histories for e in r.evaluations]
    return FitResult(sweep, summary, pd.DataFrame(rows), pd.DataFrame(evaluations), [r.state for r in histories])

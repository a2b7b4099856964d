"""`fit` against ordinary PyTorch loops, a sweep against its members alone, and every way a member can end."""

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from collapse_lib import training
from collapse_lib.models.gaussian import GaussianVAE
from collapse_lib.models.linear import AnalyticElbo, LinearVAE, Moments
from collapse_lib.objectives import NoiseSpec, SampledElbo
from collapse_lib.stacking import Plateau
from collapse_lib.sweeps import Ramp, Sweep
from collapse_lib.training import fit, momentum_sgd


def small_vae(k: int = 3) -> nn.Module:
    return GaussianVAE.mlp(12, (8,), k, likelihood="gaussian", learn_sigma2=True).double()


def small_linear(learn_sigma2: bool = True) -> nn.Module:
    return LinearVAE.normal_start(12, 3, learn_sigma2=learn_sigma2).double()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(40, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


quiet = partial(fit, progress=False)
MINIBATCH = {"objective": SampledElbo(n_samples=2), "steps": 23, "batch_size": 7, "log_every": 4}


def assert_same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], rtol: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


# ---- against an ordinary loop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", [True, False])
def test_full_batch_equals_an_ordinary_loop(x, stack):
    """Two learning rates, a group with its own, a schedule and a KL warm-up, written out once with torch.optim."""
    sweep = Sweep.grid(small_linear, seed=[0, 1], lr=[1e-2, 3e-3], beta=Ramp(0.1, 1.0, end=0.5))
    options = {"log_sigma2": {"lr": 5e-2, "betas": (0.9, 0.9)}}
    result = quiet(
        sweep, Moments.of(x), AnalyticElbo(), steps=30, groups=options, lr_schedule=Ramp(1, 0, begin=0.7), stack=stack
    )
    for member, configuration in enumerate(sweep.configurations):
        torch.manual_seed(configuration["seed"])
        model = small_linear()
        others = [p for name, p in model.named_parameters() if name != "log_sigma2"]
        adam = torch.optim.Adam(
            [{"params": [model.log_sigma2], "lr": 5e-2, "betas": (0.9, 0.9)}, {"params": others}],
            lr=configuration["lr"],
        )
        decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1.0, (1 - step / 30) / 0.3))
        for step in range(30):
            beta = min(1.0, 0.1 + 0.9 * (step / 30) / 0.5)
            y = x - model.mu
            m, d = y @ model.V.T, model.log_d.exp()
            error = (y - m @ model.W.T).square().sum(1) + (d * model.W.square().sum(0)).sum()
            kl = 0.5 * (m.square() + d - d.log() - 1).sum(1)
            ll = -6 * (np.log(2 * np.pi) + model.log_sigma2) - error / (2 * model.log_sigma2.exp())
            loss = (beta * kl - ll).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            decay.step()
        assert_same_state(result.states[member], {n: p.detach() for n, p in model.state_dict().items()})


def test_without_momentum_it_is_torchs_gradient_descent(x):
    sweep = Sweep.grid(small_linear, seed=0, lr=123.0, beta=1.0)
    groups = {"*": momentum_sgd(1e-3, momentum=0)}
    result = quiet(sweep, Moments.of(x), AnalyticElbo(), steps=30, groups=groups)
    model, objective = sweep.make(0), AnalyticElbo()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(30):
        sgd.zero_grad()
        objective(model, Moments.of(x), {}, {}).loss.backward()
        sgd.step()
    trained = {n: p.detach() for n, p in model.state_dict().items()}
    assert any((trained[n] - p).abs().max() > 0.01 for n, p in sweep.make(0).state_dict().items())
    assert_same_state(result.states[0], trained, rtol=1e-4)  # Adam divides by sqrt(v) + 1e8


def test_momentum_is_a_weighted_mean_of_past_gradients():
    result = quiet(
        Sweep.grid(Square, seed=0, lr=123.0, alpha=1.0),
        torch.zeros(8, 2, dtype=torch.float64),
        Probe(),
        steps=12,
        batch_size=2,
        groups={"*": momentum_sgd(0.05, momentum=0.9)},
    )
    w, mean = 4.0, 0.0
    for step in range(1, 13):
        mean = 0.9 * mean + 0.1 * 2 * (w - 1.0)
        w -= 0.05 * mean / (1 - 0.9**step)
    assert float(result.stacked("w")) == pytest.approx(w, rel=1e-6)


@pytest.mark.parametrize(("lr", "momentum"), [(0.0, 0.9), (0.1, 1.0), (0.1, -0.1)])
def test_gradient_descent_that_cannot_be(lr, momentum):
    with pytest.raises(ValueError, match="need lr > 0"):
        momentum_sgd(lr, momentum)


class Square(nn.Module):
    """A model of one number, so that what reaches the objective can be seen."""

    def __init__(self, start: float = 4.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))


class Terms(NamedTuple):
    loss: torch.Tensor
    alpha: torch.Tensor
    batch_mean: torch.Tensor
    noise_mean: torch.Tensor


class Probe:
    reads = frozenset({"alpha"})

    def noise(self, model: nn.Module, batch_size: int) -> dict[str, NoiseSpec]:
        return {"u": NoiseSpec("uniform", (batch_size, 2)), "e": NoiseSpec("normal", (3,))}

    def __call__(self, model, data, noise, hyper) -> Terms:
        assert noise["u"].shape == (len(data[0]), 2)
        return Terms((model.w - hyper["alpha"]).square(), hyper["alpha"], data[0].mean(), noise["u"].mean())


def test_numbers_and_batches_reach_the_objective():
    data = torch.arange(12, dtype=torch.float64)
    sweep = Sweep.grid(Square, seed=[0, 1], lr=0.1, alpha=[Ramp(0, 1, begin=0.25, end=0.75), 2.0])
    history = quiet(sweep, data, Probe(), steps=12, batch_size=4, log_every=1).history
    ramp = [0, 0, 0, 0, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1, 1, 1]
    for member in range(4):
        mine = history[history.member == member]
        np.testing.assert_allclose(mine.alpha, ramp if member % 2 == 0 else [2.0] * 12)
        # three batches an epoch cover every datum once; the order is new in each epoch
        np.testing.assert_allclose(mine.batch_mean.to_numpy().reshape(4, 3).mean(1), data.mean())
    per_seed = [history[history.member == m].batch_mean.to_numpy() for m in range(4)]
    np.testing.assert_array_equal(per_seed[0], per_seed[1])
    assert not np.array_equal(per_seed[0], per_seed[2])
    assert not np.array_equal(per_seed[0][:3], per_seed[0][3:6])
    assert history.noise_mean.nunique() == 24  # fresh noise at each of 12 steps, by seed
    assert history.progress.max() == 11 / 12


def test_an_incomplete_last_batch_is_left_out_but_differs_by_epoch():
    history = quiet(
        Sweep.grid(Square, seed=0, lr=0.1, alpha=0.0), torch.arange(10.0), Probe(), steps=40, batch_size=4, log_every=2
    ).history
    assert history.batch_mean.nunique() > 10  # 2 of 10 data are left out, not the same two


class Transposed(nn.Module):
    """A matrix whose memory runs down its columns; the loss pulls each entry to its own target."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64).T)


class PullApart:
    reads = frozenset()

    def noise(self, model: nn.Module, batch_size: int) -> dict[str, NoiseSpec]:
        return {}

    def __call__(self, model, data, noise, hyper):
        return NamedTuple("Loss", [("loss", torch.Tensor)])((model.w - data[0]).square().sum())


@pytest.mark.parametrize("stack", [True, False])
def test_the_memory_layout_of_a_parameter_does_not_matter(stack):
    target = torch.tensor([[1.0, -1, 1, 1], [-1, 1, -1, 1], [-1, -1, -1, 1]], dtype=torch.float64)
    result = quiet(Sweep.grid(Transposed, seed=[0, 1], lr=0.1), target, PullApart(), steps=3, stack=stack)
    torch.testing.assert_close(result.states[1]["w"].sign(), target)


# ---- a sweep against its members -------------------------------------------------------------------------------------


def test_stacked_loop_and_alone_agree(x):
    sweep = Sweep.grid(small_vae, seed=[0, 1, 2], beta=[0.5, 2.0], lr=[1e-2, 1e-3])
    stacked = quiet(sweep, x, **MINIBATCH, stack=True)
    loop = quiet(sweep, x, **MINIBATCH, stack=False)
    assert stacked.summary.stacked.all()
    assert not loop.summary.stacked.any()
    for member in range(len(sweep)):
        alone = quiet(sweep[member], x, **MINIBATCH)
        assert_same_state(stacked.states[member], loop.states[member])
        assert_same_state(stacked.states[member], alone.states[0])
    columns = ["step", "loss", "elbo", "kl"]
    np.testing.assert_allclose(stacked.history[columns], loop.history[columns], rtol=1e-9)


@settings(max_examples=15)
@given(
    members=st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True),
    batch_size=st.one_of(st.none(), st.integers(1, 40)),
    log_every=st.integers(1, 9),
)
def test_any_part_of_a_sweep_equals_the_whole(members, batch_size, log_every):
    data = torch.randn(40, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sweep = Sweep.grid(small_vae, seed=[3, 4], beta=[0.3, 1.0], lr=[2e-3, 1e-2])
    run = partial(quiet, data=data, objective=SampledElbo(), steps=11, batch_size=batch_size, log_every=log_every)
    whole, part = run(sweep, stack=True), run(sweep[members], stack=True)
    for place, member in enumerate(members):
        assert_same_state(part.states[place], whole.states[member])


CONV = partial(GaussianVAE.conv, (1, 8, 8), (2,), 4, 2, likelihood="gaussian")
# Weights times the places where they are used: a convolution 1 -> 2 channels to 4x4, 32-4-4; 2-4-32, its mirror image.
CONV_WORK = (4 * 4 * 2 * 16 + 32 * 4 + 4 * 4) + (2 * 4 + 4 * 32 + 4 * 4 * 2 * 16)
MLP = partial(GaussianVAE.mlp, 64, (5,), 3, likelihood="gaussian")
MLP_WORK = (64 * 5 + 5 * 6) + (3 * 5 + 5 * 64)


@pytest.mark.parametrize(
    ("build", "n_samples", "work"), [(CONV, 1, CONV_WORK), (MLP, 1, MLP_WORK), (MLP, 3, MLP_WORK + 2 * (15 + 320))]
)
def test_a_cpu_stacks_members_by_the_work_of_a_step(monkeypatch, build, n_samples, work):
    """Multiply-adds counted by hand, batch and samples included; a limit just below them is a loop."""
    run = partial(quiet, Sweep.grid(build, seed=[0, 1], lr=1e-2), torch.randn(9, 64), SampledElbo(n_samples), steps=2)
    for batch_size in (5, None):
        monkeypatch.setattr(training, "STACK_LIMIT", work * (batch_size or 9))
        assert run(batch_size=batch_size).summary.stacked.all()
        monkeypatch.setattr(training, "STACK_LIMIT", work * (batch_size or 9) - 1)
        assert not run(batch_size=batch_size).summary.stacked.any()


class Counting(Square):
    """Its buffer counts the forward passes, as a running mean or a power iteration would."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.float64))

    def forward(self) -> torch.Tensor:
        self.passes += 1
        return self.w


class CountingProbe(Probe):
    reads = frozenset()

    def noise(self, model: nn.Module, batch_size: int) -> dict[str, NoiseSpec]:
        return {}

    def __call__(self, model, data, noise, hyper) -> Terms:
        return Terms(model().square(), *[data[0].mean()] * 3)


def test_measuring_the_work_leaves_no_trace():
    result = quiet(Sweep.grid(Counting, seed=[0, 1], lr=0.1), torch.ones(4), CountingProbe(), steps=3)
    assert [int(state["passes"]) for state in result.states] == [3, 3]


def test_members_of_different_architecture_share_a_sweep(x):
    sweep = Sweep.grid(small_vae, k=[2, 3], seed=[0, 1], lr=1e-2)
    result = quiet(sweep, x, **MINIBATCH, stack=True)
    assert [s["encoder.2.weight"].shape[0] for s in result.states] == [4, 4, 6, 6]
    for member in range(4):
        assert_same_state(result.states[member], quiet(sweep[member], x, **MINIBATCH).states[0])


def test_a_fixed_and_a_learned_variance_are_not_stacked_together(x):
    sweep = Sweep.grid(small_linear, learn_sigma2=[True, False], seed=0, lr=1e-2)
    result = quiet(sweep, Moments.of(x), AnalyticElbo(), steps=20, stack=True)
    assert result.states[1]["log_sigma2"] == 1.0
    assert result.states[0]["log_sigma2"] != 1.0


def test_the_global_random_state_is_left_alone(x):
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    quiet(Sweep.grid(small_vae, seed=[0, 1], lr=1e-2), x, **MINIBATCH)
    assert torch.equal(before, torch.random.get_rng_state())


# ---- how members end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", [True, False])
def test_a_diverging_member_harms_nobody(x, stack):
    sweep = Sweep.grid(small_vae, seed=[0, 1], lr=[1e-2, 1e4])
    run = partial(quiet, data=x, objective=SampledElbo(), steps=260, batch_size=10, stack=stack)
    result = run(sweep)
    assert result.summary.status.tolist() == ["finished", "diverged", "finished", "diverged"]
    assert (result.summary.steps[[1, 3]] < 260).all()
    assert all(t.isfinite().all() for state in result.states for t in state.values())
    assert np.isfinite(result.history.loss).all()
    for member in (0, 2):
        assert_same_state(result.states[member], run(sweep[member]).states[0])


@pytest.mark.parametrize("stack", [True, False])
def test_plateau_stops_only_the_member_that_is_done(stack):
    """(w - alpha)^2 from w = 4: the member with alpha = 4 starts at its optimum and cannot improve."""
    sweep = Sweep.grid(Square, seed=0, lr=0.01, alpha=[4.0, 0.0])
    data = torch.zeros(4, dtype=torch.float64)
    run = partial(quiet, sweep, data, Probe(), steps=300, log_every=10, stack=stack)
    result = run(plateau=Plateau(patience=3, min_delta=1e-6))
    assert result.summary.status.tolist() == ["plateau", "finished"]
    assert result.summary.steps.tolist() == [50, 300]  # rows of ten steps, looked at every fifty
    assert_same_state(result.states[1], run().states[1])


def test_rows_average_steps_whatever_the_evaluations_cut(x):
    sweep = Sweep.grid(small_linear, seed=[0], lr=1e-2)
    run = partial(quiet, sweep, Moments.of(x), AnalyticElbo(), steps=130)
    fine = run(log_every=1).history.loss.to_numpy()
    seen = []

    def evaluate(state, step):
        seen.append(step)
        assert state["W"].shape == (1, 12, 3)
        return {"log_sigma2": state["log_sigma2"]}

    result = run(log_every=60, evaluate=evaluate, evaluate_every=40)
    assert seen == [0, 40, 80, 120, 130]
    assert result.history.step.tolist() == [0, 60, 120]
    np.testing.assert_allclose(result.history.loss, [fine[:60].mean(), fine[60:120].mean(), fine[120:].mean()])
    assert result.evaluations.step.tolist() == seen
    assert result.evaluations.log_sigma2.iloc[0] == 1.0
    assert result.evaluations.log_sigma2.iloc[-1] == float(result.states[0]["log_sigma2"])


def test_result_gives_back_models_and_stacked_parameters(x):
    sweep = Sweep.grid(small_vae, seed=[0, 1], lr=1e-2)
    result = quiet(sweep, x, **MINIBATCH)
    model = result.model(1)
    assert not model.training
    assert_same_state(dict(model.state_dict()), result.states[1])
    assert result.stacked("decoder.0.weight").shape == (2, 8, 3)


class HostReads(TorchDispatchMode):
    """Counts the operations that make the host wait for a number."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            HostReads.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stack", [True, False])
def test_no_host_read_inside_an_epoch(x, stack):
    counts = []
    for steps in (50, 100):
        HostReads.count = 0
        with HostReads():
            quiet(
                Sweep.grid(small_vae, seed=[0, 1], lr=1e-2), x, SampledElbo(), steps=steps, log_every=100, stack=stack
            )
        counts.append(HostReads.count)
    assert counts[0] == counts[1]


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 41}, "between 1 and the 40 data"),
        ({"batch_size": 0}, "between 1 and the 40 data"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"evaluate_every": 5}, "belong together"),
        ({"groups": {"log_sigma2": {"weight_decay": 0.1}}}, "a group takes lr, betas, eps, every and until"),
        ({"groups": {"sigma": {"lr": 1.0}}}, r"'sigma' names no parameter; the parameters are .*log_sigma2"),
    ],
)
def test_arguments_that_do_not_fit(x, change, message):
    with pytest.raises(ValueError, match=message):
        quiet(Sweep.grid(small_vae, seed=0, lr=1e-2), x, **{**MINIBATCH, **change})


@pytest.mark.parametrize(
    ("configurations", "message"),
    [
        ([], "the sweep is empty"),
        ([{"seed": 0}], "no lr"),
        ([{"lr": 0.1}], "no seed"),
        ([{"lr": 0.1, "seed": 0}, {"lr": 0.1, "seed": 0, "beta": 2.0}], r"some members have \['beta'\]"),
        ([{"lr": 0.1, "seed": 0, "bta": "x"}], "bta='x' is no argument"),
    ],
)
def test_sweeps_that_cannot_be(configurations, message):
    with pytest.raises(ValueError, match=message):
        Sweep(small_vae, configurations)


def test_a_sweep_prints_and_indexes():
    sweep = Sweep.grid(small_vae, k=[2, 3], seed=[0, 1], lr=1e-2, beta=Ramp(0, 1))
    assert len(sweep) == 4
    assert sweep.frame().k.tolist() == [2, 2, 3, 3]
    assert sweep[1:3].frame().k.tolist() == [2, 3]
    assert "Ramp(start=0, stop=1" in repr(sweep)
    with pytest.raises(ValueError, match="0 <= begin < end <= 1"):
        Ramp(0, 1, begin=0.5, end=0.5)


def test_a_number_that_nothing_reads_is_refused(x):
    with pytest.raises(ValueError, match=r"does not read \['betta'\]; it reads \['beta'\]"):
        quiet(Sweep.grid(small_vae, seed=0, lr=1e-2, betta=2.0), x, **MINIBATCH)


def frozen() -> nn.Module:
    model = small_vae()
    model.log_sigma2.requires_grad_(False)
    return model


def with_dropout() -> nn.Module:
    model = small_vae()
    model.decoder.append(nn.Dropout(0.5))
    return model


@pytest.mark.parametrize(("build", "message"), [(frozen, "log_sigma2 is frozen"), (with_dropout, "own random numbers")])
def test_models_that_cannot_be_trained_as_promised(x, build, message):
    with pytest.raises(ValueError, match=message):
        quiet(Sweep.grid(build, seed=[0, 1], lr=1e-2), x, **MINIBATCH)


def test_an_evaluation_gives_one_number_a_member(x):
    sweep = Sweep.grid(small_linear, seed=[0, 1], lr=1e-2)
    wrong = {"evaluate": lambda state, step: {"W": state["W"][0, 0]}, "evaluate_every": 5}
    with pytest.raises(ValueError, match="one number for each of 2 members"):
        quiet(sweep, Moments.of(x), AnalyticElbo(), steps=10, stack=True, **wrong)


@pytest.mark.parametrize("stack", [True, False])
def test_a_constant_loss_is_a_plateau_wherever_evaluations_fall(stack):
    """At rate 0 the loss never moves; the rule looks at whole rows only, however often `evaluate` is called."""
    sweep = Sweep.grid(Square, seed=[0, 1], lr=0.0, alpha=1.0)
    data = torch.zeros(4, dtype=torch.float64)
    run = partial(quiet, sweep, data, Probe(), steps=300, log_every=20, stack=stack, plateau=Plateau(2))
    often = run(evaluate=lambda state, step: {"w": state["w"]}, evaluate_every=7)
    assert run().summary.steps.tolist() == often.summary.steps.tolist() == [60, 60]
    with pytest.raises(ValueError, match="patience >= 1"):
        Plateau(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("stack", [True, False])
def test_a_gpu_gives_a_stack_and_a_loop_alike(x, stack):
    sweep = Sweep.grid(small_linear, seed=[0, 1], lr=[1e-2, 1e-3])
    run = partial(quiet, sweep, Moments.of(x), AnalyticElbo(), steps=60)
    on_gpu, on_cpu = run(device="cuda", stack=stack), run(stack=stack)
    for member in range(2):
        assert_same_state(on_gpu.states[member], on_cpu.states[member], rtol=1e-7)

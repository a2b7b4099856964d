"""Residual nets with batch norm: counts of weights, shapes, the normalisation's formula, and what a stack remembers."""

from functools import partial

import pytest
import torch
from torch import nn

from collapse_lib.convex import BrenierDecoder
from collapse_lib.evaluation import PerMember
from collapse_lib.latent_reconstruction import LatentReconstruction, conv_brenier_vae, conv_vae
from collapse_lib.objectives import SampledElbo
from collapse_lib.residual import (
    ResidualBlock,
    by_batch,
    residual_decoder,
    residual_encoder,
    untracked,
)
from collapse_lib.stacking import Plateau
from collapse_lib.sweeps import Ramp, Sweep
from collapse_lib.training import FitResult, fit


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ---- the nets --------------------------------------------------------------------------------------------------------


def test_the_authors_nets_have_the_weights_that_their_description_gives() -> None:
    """Counted by hand: a convolution n_in n_out 9 + n_out, its shortcut n_in n_out + n_out, BN 2 n_out each."""
    shape, channels = (1, 28, 28), (32, 64, 128)
    by_hand = 0
    for n_in, n_out in ((1, 32), (32, 64), (64, 128)):
        by_hand += 9 * n_in * n_out + 9 * n_out**2 + n_in * n_out + 3 * n_out + 6 * n_out
        by_hand += 18 * n_out**2 + 2 * n_out + 4 * n_out
    by_hand += 128 * 16 * 64 + 64 + 128 + 64 * 64 + 64
    assert weights(residual_encoder(shape, channels, 64)) == by_hand == 822_112
    assert weights(residual_decoder(shape, channels, 32)) == 469_409
    assert weights(conv_vae(shape, channels, 32)) == 822_112 + 469_409
    large = weights(residual_encoder((3, 64, 64), (32, 64, 128, 256), 128))
    assert large == pytest.approx(3.33e6, rel=2e-3)
    assert weights(residual_decoder((3, 64, 64), (32, 64, 128, 256), 64)) == pytest.approx(1.85e6, rel=3e-3)


@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 7, 12)])
def test_decoder_and_encoder_fit_each_other(shape: tuple[int, int, int]) -> None:
    """Odd sides too: maps of 28 are 14, 7, 4; every pixel is seen and every pixel moves with z."""
    torch.manual_seed(0)
    n = shape[0] * shape[1] * shape[2]
    encoder, decoder = residual_encoder(shape, (2, 3, 4), 6), residual_decoder(shape, (2, 3, 4), 3)
    x = torch.randn(5, n, requires_grad=True)
    code = encoder(x)
    assert code.shape == (5, 6)
    (code[:, 0] * torch.arange(5.0)).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any(0).all()
    images = decoder(torch.randn(5, 3))
    assert images.shape == (5, n)
    assert (images.std(0) > 0).all()


def test_a_block_is_its_formula() -> None:
    """LeakyReLU( BN conv LeakyReLU BN conv x + x ), BN by its formula from mean and biased variance of the batch."""
    torch.manual_seed(0)
    block = ResidualBlock(3, 3).double()
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)

    def norm(h: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        mean, var = h.mean((0, 2, 3)), h.var((0, 2, 3), correction=0)
        scaled = (h - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-5).sqrt()
        return scaled * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)

    first, norm_1, _, second, norm_2 = block.inner
    for layer in (norm_1, norm_2):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    h = norm(torch.conv2d(x, first.weight, first.bias, padding=1), norm_1)
    h = torch.where(h > 0, h, 0.01 * h)
    h = norm(torch.conv2d(h, second.weight, second.bias, padding=1), norm_2) + x
    torch.testing.assert_close(block(x), torch.where(h > 0, h, 0.01 * h))
    assert isinstance(ResidualBlock(3, 3, 2).shortcut, nn.Sequential)


def test_what_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="channels name one stride"):
        residual_encoder((1, 8, 8), (), 4)


def test_a_brenier_decoder_behind_the_same_encoder() -> None:
    shape, channels = (1, 8, 8), (2, 3)
    model = conv_brenier_vae(shape, channels, torch.eye(64, 4), hidden=(5,), L=0.5)
    assert isinstance(model.decoder, BrenierDecoder)
    assert repr(model.encoder) == repr(conv_vae(shape, channels, 4).encoder)
    assert float(model.log_sigma2.exp()) == pytest.approx(0.5)
    z = torch.randn(6, 4)
    a, b = (model.decode(part) for part in z.chunk(2))
    assert ((a - b).norm(dim=1) >= 0.25 * (z[:3] - z[3:]).norm(dim=1)).all()


# ---- running statistics ----------------------------------------------------------------------------------------------


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_untracked_passes_leave_no_trace_and_give_the_same() -> None:
    model, x = small_net(), torch.randn(10, 3)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with untracked(model):
        hidden = model(x)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(hidden, model(x))
    assert int(model[1].num_batches_tracked) == 1
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    with pytest.raises(RuntimeError, match="stop"), untracked(model):
        raise RuntimeError("stop")
    model(x)
    assert int(model[1].num_batches_tracked) == 2
    model.eval()
    expected = model(x)
    with untracked(model):
        assert torch.equal(model(x), expected)


def test_by_batch_normalises_as_in_training() -> None:
    model, x = small_net().eval(), torch.randn(10, 3)
    copy = by_batch(model)
    assert not copy.training
    h = model[0](x)
    h = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(copy(x), model[2](h))
    assert not torch.allclose(copy(x), model(x))
    assert int(model[1].num_batches_tracked) == 0


@pytest.mark.parametrize(("statistics", "batches"), [("shared", 2), ("none", 1)])
def test_what_the_running_statistics_are_of(statistics: str, batches: int) -> None:
    """By hand with momentum 0.1: first the data's batch, then, if shared, that of the decoded latents."""
    torch.manual_seed(0)
    model = conv_vae((1, 8, 8), (2,), 3).double().train()
    x, noise = torch.rand(12, 64).double(), {n: torch.randn(12, 3).double() for n in ("posterior", "latent")}
    layer = model.encoder[1].inner
    with torch.no_grad(), untracked(model):
        first = layer[0](x.view(-1, 1, 8, 8))
        second = layer[0](model.decode(noise["latent"]).view(-1, 1, 8, 8))
    expected = 0.1 * first.mean((0, 2, 3))
    if statistics == "shared":
        expected = 0.9 * expected + 0.1 * second.mean((0, 2, 3))
    alpha = {"alpha": torch.tensor(1.0).double()}
    terms = LatentReconstruction(latent_statistics=statistics)(model, (x,), noise, alpha)  # type: ignore[arg-type]
    torch.testing.assert_close(layer[1].running_mean, expected)
    assert int(layer[1].num_batches_tracked) == batches
    other = LatentReconstruction()(model, (x,), noise, alpha)
    torch.testing.assert_close(terms.loss, other.loss)  # the loss itself does not know the difference


# ---- stacked against alone -------------------------------------------------------------------------------------------


def small_vae() -> nn.Module:
    return conv_vae((1, 8, 8), (2, 3), 3).double()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        # a bias in front of batch norm has no gradient but rounding, which Adam divides by its root: hence no closer
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("statistics", "batches"), [("shared", 2), ("none", 1)])
def test_a_stack_equals_its_members_alone(statistics: str, batches: int) -> None:
    """Weights, running statistics and counts, members of different rates and weights of the loss."""
    x = torch.rand(30, 64, generator=torch.Generator().manual_seed(1)).double()
    sweep = Sweep.grid(small_vae, seed=[0, 1], alpha=[Ramp(0.0, 1.0), 0.5], beta=0.2, lr=[1e-2, 3e-3])
    objective = LatentReconstruction(latent_statistics=statistics)  # type: ignore[arg-type]
    run = partial(fit, data=x, objective=objective, steps=12, batch_size=10, progress=False)
    stacked, loop = run(sweep, stack=True), run(sweep, stack=False)
    assert stacked.summary.stacked.all()
    for member in range(len(sweep)):
        same(stacked.states[member], loop.states[member])
        same(stacked.states[member], run(sweep[member]).states[0])
        model = stacked.model(member)
        assert not model.training
        counts = {int(t) for name, t in model.named_buffers() if name.endswith("num_batches_tracked")}
        assert counts == {12 * batches}


def test_running_statistics_survive_a_member_that_stops() -> None:
    """One member diverges, one is done early: the third's statistics are those of its training alone."""
    x = torch.rand(30, 64, generator=torch.Generator().manual_seed(1)).double()
    sweep = Sweep(small_vae, [{"seed": s, "lr": lr, "beta": 0.2} for s, lr in ((0, 1e200), (1, 0.0), (2, 1e-2))])

    def run(part: Sweep) -> FitResult:
        options = {"plateau": Plateau(patience=3, min_delta=0.5), "log_every": 10, "progress": False}
        return fit(part, x, SampledElbo(), steps=100, batch_size=30, stack=True, **options)

    whole = run(sweep)
    assert whole.summary.status[0] == "diverged"
    assert all(t.isfinite().all() for state in whole.states for t in state.values())
    assert whole.summary.steps[1] < whole.summary.steps[2]
    for member in (1, 2):
        alone = run(sweep[member])
        assert alone.summary.steps[0] == whole.summary.steps[member]
        same(whole.states[member], alone.states[0])
        assert int(whole.states[member]["encoder.1.inner.1.num_batches_tracked"]) == whole.summary.steps[member]


def cumulative() -> nn.Module:
    model = small_vae()
    model.encoder[1].inner[1].momentum = None
    return model


def test_a_cumulative_average_is_not_stacked() -> None:
    x = torch.rand(30, 64).double()
    sweep = Sweep.grid(cumulative, seed=[0, 1], lr=1e-3)
    run = partial(fit, sweep, x, SampledElbo(), steps=2, batch_size=10, progress=False)
    assert not run().summary.stacked.any()
    with pytest.raises(ValueError, match=r"encoder.1.inner.1 averages .* stack=False"):
        run(stack=True)


def test_small_nets_with_batch_norm_are_stacked_by_themselves() -> None:
    x = torch.rand(30, 64).double()
    sweep = Sweep.grid(small_vae, seed=[0, 1], lr=1e-3)
    assert fit(sweep, x, SampledElbo(), steps=2, batch_size=10, progress=False).summary.stacked.all()


def test_an_evaluation_during_training_uses_the_running_statistics_and_moves_none() -> None:
    x = torch.rand(30, 64, generator=torch.Generator().manual_seed(1)).double()
    sweep = Sweep.grid(small_vae, seed=[0, 1], lr=1e-3)

    def worth(model: nn.Module) -> dict[str, float]:
        assert not model.training
        return {"mean": model.encode(x).mean.mean().item()}

    evaluate = PerMember(sweep.make(0), worth)
    run = partial(fit, sweep, x, SampledElbo(), steps=6, batch_size=10, progress=False)
    watched = run(evaluate=evaluate, evaluate_every=2)
    for member, state in enumerate(run().states):
        same(watched.states[member], state)
        last = watched.evaluations.query("member == @member and step == 6")["mean"].iloc[0]
        assert last == pytest.approx(worth(watched.model(member))["mean"])

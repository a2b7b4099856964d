"""ICNNs, Brenier maps and inverse-Lipschitz decoders: against autograd in float64, and by properties."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor
from torch.func import functional_call, jacrev, stack_module_state, vmap
from torch.nn.functional import leaky_relu

from collapse_lib.convex import ICNN, BrenierDecoder, basis
from collapse_lib.models.gaussian import GaussianVAE
from collapse_lib.nets import mlp
from collapse_lib.objectives import SampledElbo
from collapse_lib.sweeps import Ramp, Sweep
from collapse_lib.training import fit

gates = st.sampled_from(["smooth", "leaky"])
widths = st.lists(st.integers(1, 9), min_size=1, max_size=3)


def icnn(n: int, hidden: list[int], kind: str, seed: int) -> ICNN:
    torch.manual_seed(seed)
    net = ICNN(n, hidden, gates=kind).double()  # type: ignore[arg-type]
    for bias in net.b:
        torch.nn.init.normal_(bias)
    return net


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 6), widths, gates, st.integers(0, 99))
def test_the_explicit_gradient_is_that_of_autograd(n, hidden, kind, seed):
    """Values, and gradients of a nonlinear loss with respect to every parameter and the input."""
    net, u = icnn(n, hidden, kind, seed), normal(seed, 7, n).requires_grad_()
    (expected,) = torch.autograd.grad(net(u).sum(), u, create_graph=True)
    found = net.gradient(u)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    variables = [u, *net.parameters()]
    losses = [gradient.square().sum() + gradient.sin().sum() for gradient in (found, expected)]
    ours, theirs = (torch.autograd.grad(loss, variables, allow_unused=True, retain_graph=True) for loss in losses)
    for a, b in zip(ours, theirs, strict=True):
        zero = torch.zeros(()) if a is None and b is None else torch.zeros_like(a if a is not None else b)
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(net.gradient(u), expected.detach())


def potential(weights: dict[str, Tensor], kind: str, u: Tensor) -> Tensor:
    """F(u) of a datum u (n,): the layer rule as the module's docstring has it, from a state dict."""
    layers = sum(name.startswith("A.") for name in weights)
    h = leaky_relu(weights["A.0"] @ u + weights["b.0"], 0.2) ** 2
    for layer in range(1, layers):
        R = weights[f"R.{layer - 1}"]
        W = (1 + R.exp()).log() / R.shape[1]
        a = W @ h + weights[f"A.{layer}"] @ u + weights[f"b.{layer}"]
        h = leaky_relu(a, 0.2) if kind == "leaky" else 0.2 * a + 0.8 * (1 + a.exp()).log()
    return h.squeeze(-1)


@given(st.integers(1, 5), widths, gates, st.booleans(), st.integers(0, 99))
def test_stacked_members_have_the_gradient_of_the_layer_rule(n, hidden, kind, narrow, seed):
    """The rule written out, against slopes and factors that are wrong in both sweeps; three members in one call."""
    nets = [icnn(n, hidden, kind, seed + member) for member in range(3)]
    weights, _ = stack_module_state(nets)
    u, B = normal(seed, 3, 7, 2 if narrow else n), normal(seed + 1, n, 2) if narrow else None
    skeleton = copy.deepcopy(nets[0]).to("meta")

    class Gradient(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = skeleton

        def forward(self, v: Tensor) -> Tensor:
            return self.net.gradient(v, B)

    named = {f"net.{name}": value for name, value in weights.items()}
    found = vmap(lambda state, v: functional_call(Gradient(), state, (v,)))(named, u)
    for net, v, gradient in zip(nets, u, found, strict=True):
        wide = v if B is None else v @ B.mT
        of_rule = vmap(lambda x, net=net: jacrev(partial(potential, net.state_dict(), kind))(x))(wide)
        torch.testing.assert_close(gradient, of_rule, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(net(wide), vmap(partial(potential, net.state_dict(), kind))(wide))


def test_leaky_gates_leave_later_biases_without_a_gradient():
    net = icnn(3, [5, 4], "leaky", 0)
    net.gradient(normal(0, 7, 3)).square().sum().backward()
    assert net.b[0].grad.abs().max() > 0
    assert all(bias.grad is None or not bias.grad.any() for bias in list(net.b)[1:])
    smooth = icnn(3, [5, 4], "smooth", 0)
    smooth.gradient(normal(0, 7, 3)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in smooth.parameters()), "every parameter trains from the first step"


@pytest.mark.parametrize("stack", [True, False])
def test_what_leaky_gates_cannot_train_stays_and_the_rest_trains(stack):
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))

    def build() -> GaussianVAE:
        decoder = BrenierDecoder(basis("eye", 4, 2), [5, 4], gates="leaky")
        return GaussianVAE(mlp([4, 8, 4]), decoder, 2, likelihood="gaussian")

    sweep = Sweep.grid(build, seed=[0, 1], lr=1e-2)
    found = fit(sweep, x, SampledElbo(), steps=20, stack=stack, progress=False)
    for member in (0, 1):
        before, after = sweep.make(member).decoder.data_map, found.model(member).decoder.data_map
        assert [torch.equal(a, b) for a, b in zip(before.b, after.b, strict=True)] == [False, True, True]
        assert not torch.equal(before.A[1], after.A[1])


@given(st.integers(1, 6), widths, gates, st.integers(0, 99))
def test_the_network_is_convex_and_its_gradient_monotone(n, hidden, kind, seed):
    net, u, v = icnn(n, hidden, kind, seed), 3 * normal(seed, 20, n), 3 * normal(seed + 1, 20, n)
    middle, chord = net(0.5 * (u + v)), 0.5 * (net(u) + net(v))
    assert (middle <= chord + 1e-9 * chord.abs().clamp_min(1)).all()
    rise = ((net.gradient(u) - net.gradient(v)) * (u - v)).sum(-1)
    assert (rise >= -1e-9).all()


@given(st.integers(1, 3), st.integers(0, 4), widths, gates, st.floats(0, 3), st.integers(0, 99))
def test_a_decoder_keeps_its_constant(k, more, hidden, kind, L, seed):
    """On far and on close pairs, and in every singular value of its Jacobian."""
    torch.manual_seed(seed)
    decoder = BrenierDecoder(normal(seed, k + more, k), hidden, L=L, gates=kind).double().requires_grad_(False)
    floor = decoder.inverse_lipschitz
    assert floor == pytest.approx(L**2 * float(torch.linalg.matrix_norm(decoder.B, -2)), rel=1e-6)
    z = 2 * normal(seed, 30, k)
    for other in (2 * normal(seed + 1, 30, k), z + 1e-3 * normal(seed + 2, 30, k)):
        ratio = (decoder(z) - decoder(other)).norm(dim=-1) / (z - other).norm(dim=-1)
        assert ratio.min() >= floor * (1 - 1e-6)
    smallest = torch.linalg.svdvals(vmap(jacrev(decoder))(z))[:, -1]
    assert smallest.min() >= floor * (1 - 1e-6)


def test_the_narrow_sweep_is_the_wide_one():
    net, B, v = icnn(12, [6, 5], "smooth", 1), normal(3, 12, 2), normal(4, 9, 2)
    torch.testing.assert_close(net.gradient(v, B), net.gradient(v @ B.mT))


def test_training_keeps_the_constant():
    """Also where training pulls the other way: towards a constant output."""
    x = torch.rand(64, 6, generator=torch.Generator().manual_seed(0))
    B = basis("orthonormal", 6, 2)

    def build(L: float) -> GaussianVAE:
        return GaussianVAE(mlp([6, 8, 4]), BrenierDecoder(B, [8], L=L), 2, likelihood="gaussian", sigma2=4.0)

    found = fit(Sweep.grid(build, L=[0.0, 1.5], lr=3e-2, seed=0), x, SampledElbo(), steps=200, progress=False)
    z = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    kept, free = (torch.linalg.svdvals(vmap(jacrev(found.model(member).decoder))(z)).min().item() for member in (1, 0))
    assert found.model(1).decoder.inverse_lipschitz == pytest.approx(2.25)
    assert kept >= 2.25 * (1 - 1e-4)
    assert free < 1, "without a constraint this objective flattens the decoder"


def test_the_constant_of_a_member_moves_along_training():
    """A number named like a buffer is written there: the schedule acts, and the last state holds its end value."""
    x = torch.rand(64, 6, generator=torch.Generator().manual_seed(0))
    B = basis("orthonormal", 6, 2)
    build = partial(_vae, B)
    sweep = Sweep(
        build,
        [
            {"lr": 1e-3, "seed": 0, "decoder.L": Ramp(2.0, 0.5, end=0.5)},
            {"lr": 1e-3, "seed": 0, "decoder.L": 0.5},
        ],
    )
    together = fit(
        sweep,
        x,
        SampledElbo(),
        steps=8,
        batch_size=32,
        evaluate=lambda state, step: {"L": state["decoder.L"]},
        evaluate_every=2,
        stack=True,
        progress=False,
    )
    assert [state["decoder.L"].item() for state in together.states] == [0.5, 0.5]
    moved = together.evaluations[together.evaluations.member == 0].L.tolist()
    assert moved == pytest.approx([2.0, 1.25, 0.5, 0.5, 0.5])
    for member in (0, 1):
        alone = fit(sweep[member], x, SampledElbo(), steps=8, batch_size=32, stack=False, progress=False)
        torch.testing.assert_close(alone.states[0], together.states[member], rtol=1e-4, atol=1e-6)
    assert (together.states[0]["decoder.c"] - together.states[1]["decoder.c"]).abs().max() > 1e-5


def _vae(B: Tensor) -> GaussianVAE:
    return GaussianVAE(mlp([6, 8, 4]), BrenierDecoder(B, [8]), 2, likelihood="gaussian", sigma2=0.1)


def test_the_pca_basis_spans_what_scikit_learn_finds():
    x = normal(0, 50, 6) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.1])
    B = basis("pca", 6, 3, x=x + 5)
    torch.testing.assert_close(B.mT @ B, torch.eye(3, dtype=torch.float64))
    theirs = torch.from_numpy(PCA(3).fit(x.numpy()).components_)
    torch.testing.assert_close((theirs @ B).abs(), torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)
    random = basis("orthonormal", 6, 3, seed=1)
    torch.testing.assert_close(random.mT @ random, torch.eye(3), rtol=0, atol=1e-6)
    assert not torch.equal(random, basis("orthonormal", 6, 3, seed=2))
    assert torch.equal(basis("eye", 4, 2), torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 0]]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ICNN(3, []), "hidden layer"),
        (lambda: ICNN(3, [4], gates="relu"), "gates"),
        (lambda: BrenierDecoder(torch.eye(2, 3), [4]), "n >= k"),
        (lambda: BrenierDecoder(torch.eye(3, 2), [4], L=-1.0), "negative"),
        (lambda: BrenierDecoder(torch.eye(3, 2), [4], output=torch.zeros(2)), "output"),
        (lambda: basis("pca", 4, 2), "needs data"),
        (lambda: basis("pca", 4, 3, x=torch.rand(2, 4)), "principal directions"),
        (lambda: basis("eye", 4, 5), "between 1 and"),
        (lambda: basis("svd", 4, 2), "basis"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()

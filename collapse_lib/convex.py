"""Input-convex networks, their gradients (Brenier maps), and decoders with an inverse-Lipschitz constant.

f is L-inverse Lipschitz if ||f(z) - f(z')|| >= L ||z - z'|| for all z, z'. The gradient of an L-strongly convex
function is; LIDVAE (Wang, Blei, Cunningham 2021) takes the gradient of an input-convex network (Amos et al. 2017), and
IL-LIDVAE (Kinoshita et al., ICML 2023) adds L/2 ||u||^2 to the network. Layer rule of LIDVAE:

    a_0 = A_0 u + b_0,                     h_0 = r(a_0)^2,      r = LeakyReLU with slope 0.2
    a_l = W_l h_(l-1) + A_l u + b_l,       h_l = s(a_l),        W_l >= 0,    l = 1 .. k,    F(u) = h_k, a scalar
    g(u) = grad F(u) + L u

g is computed by one sweep back through the layers with the same weights, an ordinary feed-forward expression: training
needs first-order autograd only, and it runs under `torch.no_grad` (derived).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Gates = Literal["smooth", "leaky"]

SLOPE = 0.2

# softplus(W_START) = 1: rows of W_l then average about 1 / fan_in, and no weight starts at a bound without a gradient.
W_START = math.log(math.e - 1)


class ICNN(nn.Module):
    """F: R^n -> R, convex: `forward` gives F(u), `gradient` its gradient, for u (..., n).

    hidden: widths of the layers 0 .. k - 1; layer k is the scalar. W_l = softplus(R_l) / fan_in is positive everywhere,
        so every weight has a gradient from the first step (ours; clamped weights start dead).
    gates: s of the layers l >= 1. "smooth", 0.2 a + 0.8 softplus(a), has slopes in (0.2, 1) and a continuous gradient
        map (ours, default). "leaky", LeakyReLU(0.2) as in LIDVAE: grad F then jumps where a gate switches, the
        reparameterised gradient of an ELBO misses the jumps, and b_l, l >= 1, has no gradient at all (derived).
    scale: A_0 starts as scale * N(0, 1), A_l as N(0, 1) / sqrt(n), b_l at 0 (ours).
    """

    def __init__(self, n: int, hidden: Sequence[int], *, gates: Gates = "smooth", scale: float = 0.7) -> None:
        super().__init__()
        if n < 1 or not hidden or min(hidden) < 1:
            raise ValueError(f"an ICNN needs an input and at least one hidden layer, got n={n} and hidden={hidden}")
        if gates not in ("smooth", "leaky"):
            raise ValueError(f'gates must be "smooth" or "leaky", got {gates!r}')
        self.n, self.gates, widths = n, gates, [*hidden, 1]
        self.A = nn.ParameterList([scale * torch.randn(widths[0], n)])
        self.A.extend([torch.randn(width, n) / math.sqrt(n) for width in widths[1:]])
        self.b = nn.ParameterList([torch.zeros(width) for width in widths])
        self.R = nn.ParameterList([W_START + 0.1 * torch.randn(out, into) for into, out in pairwise(widths)])

    def extra_repr(self) -> str:
        return f"n={self.n}, gates={self.gates}"

    def W(self, layer: int) -> Tensor:  # noqa: N802
        """The non-negative weights of `layer` >= 1, (width of the layer, width of the one before)."""
        R = self.R[layer - 1]
        return F.softplus(R) / R.shape[1]

    def forward(self, u: Tensor) -> Tensor:
        """F(u): (..., n) -> (...)."""
        return self._gate(self._forward(u, None)[0][-1]).squeeze(-1)

    def gradient(self, u: Tensor, B: Tensor | None = None) -> Tensor:
        """grad F at u: (..., n) -> (..., n). With `B` (n, m) it is grad F at B u for u (..., m), and the sweep forward
        takes the narrow A_l B in place of A_l; the result is (..., n) all the same.
        """
        a, W = self._forward(u, B)
        e = self._slope(a[-1])
        gradient = e @ self.A[-1]
        for layer in range(len(W) - 1, 0, -1):
            e = self._slope(a[layer]) * (e @ W[layer])
            gradient = gradient + e @ self.A[layer]
        e = 2 * _half_slope(a[0]) * (e @ W[0])
        return gradient + e @ self.A[0]

    def _forward(self, u: Tensor, B: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """a_0 .. a_k and W_1 .. W_k, which the sweep back takes again: softplus is dear beside products this small."""
        A = list(self.A) if B is None else [weight @ B for weight in self.A]
        W = [self.W(layer) for layer in range(1, len(A))]
        a = [F.linear(u, A[0], self.b[0])]
        h = a[0] * _half_slope(a[0])
        for layer, weight in enumerate(W, 1):
            a.append(F.linear(h, weight) + F.linear(u, A[layer], self.b[layer]))
            h = self._gate(a[-1])
        return a, W

    def _gate(self, a: Tensor) -> Tensor:
        return torch.lerp(F.softplus(a, threshold=40), a, SLOPE) if self.gates == "smooth" else F.leaky_relu(a, SLOPE)

    def _slope(self, a: Tensor) -> Tensor:
        return SLOPE + (1 - SLOPE) * a.sigmoid() if self.gates == "smooth" else _leaky_slope(a)


def _half_slope(a: Tensor) -> Tensor:
    """r(a) r'(a), half the slope of r(a)^2 = a r(a) r'(a)."""
    return F.leaky_relu(a, SLOPE**2)


def _leaky_slope(a: Tensor) -> Tensor:
    return SLOPE + (1 - SLOPE) * (a > 0).to(a.dtype)


class BrenierDecoder(nn.Module):
    """f(z) = g2( B g1(z) ) + c, with g_i(u) = grad F_i(u) + L u: (..., k) -> (..., n).

    f is L_eff-inverse Lipschitz, L_eff = L^2 sigma_min(B) (`inverse_lipschitz`): the constant of a composition is the
    product, not L itself (derived). L = 0 is LIDVAE.

    B: (n, k) of full column rank, fixed (`basis`).
    L: the constant of each of the two maps, a buffer: `fit` can move it (`"decoder.L": Ramp(2, 0)`).
    output: (n,) start of the free offset c, e.g. `transforms.logit` of the mean image; zero by default.
    scales: of A_0 in the two networks (ours; larger starts cost tens of nats on images).
    """

    B: Tensor
    L: Tensor

    def __init__(
        self,
        B: Tensor,
        hidden: Sequence[int],
        *,
        L: float = 0.0,
        gates: Gates = "smooth",
        output: Tensor | None = None,
        scales: tuple[float, float] = (0.7, 0.5),
    ) -> None:
        super().__init__()
        if B.ndim != 2 or B.shape[0] < B.shape[1]:
            raise ValueError(f"B must be (n, k) with n >= k, got {tuple(B.shape)}")
        if L < 0:
            raise ValueError(f"L is the strong convexity of each map and must not be negative, got {L}")
        n, k = B.shape
        if output is not None and output.shape != (n,):
            raise ValueError(f"output must be ({n},), got {tuple(output.shape)}")
        self.register_buffer("B", B.clone())
        self.register_buffer("L", torch.tensor(float(L)))
        self.latent_map = ICNN(k, hidden, gates=gates, scale=scales[0])
        self.data_map = ICNN(n, hidden, gates=gates, scale=scales[1])
        self.c = nn.Parameter(torch.zeros(n) if output is None else output.clone())

    def forward(self, z: Tensor) -> Tensor:
        v = self.latent_map.gradient(z) + self.L * z
        return self.data_map.gradient(v, self.B) + F.linear(self.L * v, self.B, self.c)

    @property
    def inverse_lipschitz(self) -> float:
        """L_eff = L^2 sigma_min(B), which f keeps whatever its weights are."""
        return float(self.L.square() * torch.linalg.svdvals(self.B.double())[-1])


def basis(
    kind: Literal["eye", "pca", "orthonormal"], n: int, k: int, *, x: Tensor | None = None, seed: int = 0
) -> Tensor:
    """B (n, k) with orthonormal columns for `BrenierDecoder`.

    "eye": the first k unit vectors, as in public code; on images these are the top rows, background pixels.
    "pca": the leading k principal directions of the data `x` (N, n). L^2 B z is then a linear PCA decoder.
    "orthonormal": random, from `seed`.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the {n} dimensions of the data, got {k}")
    if kind == "eye":
        return torch.eye(n, k)
    if kind == "pca":
        if x is None or x.ndim != 2 or x.shape[1] != n:
            raise ValueError(f"the pca basis needs data x (N, {n}), got {None if x is None else tuple(x.shape)}")
        _, _, directions = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False)
        if len(directions) < k:
            raise ValueError(f"{len(x)} data have no {k} principal directions; give more data or take a smaller k")
        return directions[:k].mT.to(x.dtype).contiguous()
    if kind == "orthonormal":
        normal = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return torch.linalg.qr(normal)[0].to(torch.get_default_dtype())
    raise ValueError(f'the basis is "eye", "pca" or "orthonormal", got {kind!r}')

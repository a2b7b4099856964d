"""What an inverse-Lipschitz decoder costs: `python benchmarks/brenier.py [--step] [--vae] [--repeats N]`.

First row: training steps of the decoder with its explicit gradient against the same decoder by double backprop, same
weights and data. Second row: training steps of a VAE with it (ours) against a plain VAE of the same widths (peer), so
that a ratio below 1 is what the constraint costs. Needs nothing beyond the library.
"""

import argparse
from functools import partial

import torch
from harness import HEADER, Row, compare
from torch import Tensor

from collapse_lib.convex import ICNN, BrenierDecoder, basis
from collapse_lib.models.gaussian import GaussianVAE
from collapse_lib.nets import mlp
from collapse_lib.objectives import SampledElbo
from collapse_lib.sweeps import Sweep
from collapse_lib.training import fit

K, D, WIDTH, BATCH = 16, 784, 128, 128


def decoder_step(repeats: int) -> Row:
    """Decoder 16-784, two hidden layers of 128, 100 forward and backward passes of 128 latents."""
    torch.manual_seed(0)
    decoder = BrenierDecoder(basis("orthonormal", D, K), [WIDTH, WIDTH], L=1.0)
    z, target = torch.randn(BATCH, K), torch.randn(BATCH, D)
    parameters = list(decoder.parameters())

    def gradient(net: ICNN, u: Tensor) -> Tensor:
        u = u if u.requires_grad else u.detach().requires_grad_()
        return torch.autograd.grad(net(u).sum(), u, create_graph=True)[0]

    def double_backprop() -> Tensor:
        u = (gradient(decoder.latent_map, z) + decoder.L * z) @ decoder.B.mT
        return gradient(decoder.data_map, u) + decoder.L * u + decoder.c

    def steps(*, twice: bool) -> str:
        for _ in range(100):
            error = ((double_backprop() if twice else decoder(z)) - target).square().mean()
            norm = torch.cat([g.flatten() for g in torch.autograd.grad(error, parameters)]).norm()
        return f"error {error.item():.4f}, gradient {norm.item():.4f}"

    work = "100 steps of a Brenier decoder 16-784, two layers of 128, batch 128"
    return compare(work, "double backprop", partial(steps, twice=True), partial(steps, twice=False), repeats=repeats)


def vae_step(repeats: int) -> Row:
    """200 steps of a VAE 784-128-128-16 with a Brenier decoder of one hidden layer against one with an MLP decoder."""
    x = (torch.rand(2000, D, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    B = basis("orthonormal", D, K)

    def build(*, constrained: bool) -> GaussianVAE:
        decoder = BrenierDecoder(B, [WIDTH], L=1.0) if constrained else mlp([K, WIDTH, WIDTH, D])
        return GaussianVAE(mlp([D, WIDTH, WIDTH, 2 * K]), decoder, K)

    def train(*, constrained: bool) -> str:
        sweep = Sweep.grid(build, constrained=constrained, seed=0, lr=1e-3)
        result = fit(sweep, x, SampledElbo(), steps=200, batch_size=BATCH, progress=False)
        return f"loss {result.summary.loss[0]:.1f}"

    work = "200 steps of an IL-VAE 784-128-128-16, one convex layer of 128, batch 128"
    return compare(
        work,
        "VAE with an MLP decoder",
        partial(train, constrained=False),
        partial(train, constrained=True),
        repeats=repeats,
    )


ROWS = {"step": decoder_step, "vae": vae_step}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, row in ROWS.items():
        parser.add_argument(f"--{name}", dest="rows", action="append_const", const=name, help=row.__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(HEADER, flush=True)
    for name in arguments.rows or ROWS:
        print(ROWS[name](arguments.repeats), flush=True)

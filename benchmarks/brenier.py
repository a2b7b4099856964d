"""What an inverse-Lipschitz decoder costs: `python benchmarks/brenier.py [--step] [--wide] [--vae] [--repeats N]`.

`--step`, `--wide`: training steps of the decoder with its explicit gradient (ours) against the same decoder by double
backprop (peer), same weights and data: time, peak memory and FLOPs. `--vae`: training steps of a VAE with it (ours)
against a plain VAE of the same widths (peer), so that a ratio below 1 is what the constraint costs. Needs nothing
beyond the library.
"""

import argparse
from functools import partial

import torch
from harness import HEADER, Row, compare, flops, peak_memory
from torch import Tensor
from torch.nn import functional as F

from collapse_lib.convex import ICNN, BrenierDecoder, basis
from collapse_lib.models.gaussian import GaussianVAE
from collapse_lib.nets import mlp
from collapse_lib.objectives import SampledElbo
from collapse_lib.sweeps import Sweep
from collapse_lib.training import fit

K, D, WIDTH, BATCH = 16, 784, 128, 128


def decoder_step(hidden: list[int], repeats: int) -> list[Row]:
    """Time of 100 forward and backward passes of 128 latents; memory and FLOPs of one."""
    torch.manual_seed(0)
    decoder = BrenierDecoder(basis("orthonormal", D, K), hidden, L=1.0)
    z, target = torch.randn(BATCH, K), torch.randn(BATCH, D)
    parameters = list(decoder.parameters())

    def gradient(net: ICNN, u: Tensor) -> Tensor:
        u = u if u.requires_grad else u.detach().requires_grad_()
        # .forward: the FLOP counter cannot follow a gradient that is taken inside a module call
        return torch.autograd.grad(net.forward(u).sum(), u, create_graph=True)[0]

    def double_backprop(z: Tensor) -> Tensor:
        u = (gradient(decoder.latent_map, z) + decoder.L * z) @ decoder.B.mT
        return gradient(decoder.data_map, u) + decoder.L * u + decoder.c

    def step(*, twice: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        error = F.mse_loss(double_backprop(z) if twice else decoder(z), target)
        return error, torch.autograd.grad(error, parameters)

    def steps(*, twice: bool) -> str:
        for _ in range(100):
            error, gradients = step(twice=twice)
        return f"error {error.item():.4f}, gradient {torch.cat([g.flatten() for g in gradients]).norm().item():.4f}"

    peer, ours = partial(step, twice=True), partial(step, twice=False)
    layers, against = "-".join(map(str, hidden)), "double backprop"
    work = f"100 steps of a Brenier decoder {K}-{D}, hidden {layers}, batch {BATCH}"
    timed = compare(work, against, partial(steps, twice=True), partial(steps, twice=False), repeats=repeats)
    one = f"one step of it, hidden {layers}"
    memory = Row(one, against, [peak_memory(peer)], [peak_memory(ours)], "peak memory", "MiB")
    products = Row(one, against, [flops(peer) / 1e6], [flops(ours) / 1e6], "matrix products", "MFLOP")
    return [timed, memory, products]


def step_rows(repeats: int) -> list[Row]:
    """A decoder 16-784, two hidden layers of 128."""
    return decoder_step([WIDTH, WIDTH], repeats)


def wide_rows(repeats: int) -> list[Row]:
    """A decoder 16-784, one hidden layer of 512, as in the notebooks on images."""
    return decoder_step([512], repeats)


def vae_rows(repeats: int) -> list[Row]:
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
    peer, ours = partial(train, constrained=False), partial(train, constrained=True)
    return [compare(work, "VAE with an MLP decoder", peer, ours, repeats=repeats)]


ROWS = {"step": step_rows, "wide": wide_rows, "vae": vae_rows}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, rows in ROWS.items():
        parser.add_argument(f"--{name}", dest="rows", action="append_const", const=name, help=rows.__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(HEADER, flush=True)
    for name in arguments.rows or ROWS:
        print(*ROWS[name](arguments.repeats), sep="\n", flush=True)

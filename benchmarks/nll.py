"""Importance-weighted NLL with 500 samples: pythae's `VAE.get_nll` against `collapse_lib.likelihood.importance_nll`.

    python benchmarks/nll.py [--threads 2] [--rounds 7]        (about a minute; needs pip install -e '.[bench]')

Both evaluate the same trained weights on the same images, encoder included, without gradients. Each runs in a process
of its own, so that neither profits from what the other left in the memory allocator, and they take turns, so that any
other load meets both. pythae decodes the samples of one image in batches of 100, its default, or all 500 at once, its
best case. A ratio is of two wall times of one turn.
"""

import argparse
import math
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from collapse_lib.likelihood import importance_nll
from collapse_lib.models.gaussian import GaussianVAE
from collapse_lib.objectives import SampledElbo

try:
    from pythae.models import VAE, VAEConfig  # type: ignore
    from pythae.models.base.base_utils import ModelOutput  # type: ignore
    from pythae.models.nn import BaseDecoder, BaseEncoder  # type: ignore
except ImportError as error:
    raise SystemExit("pythae, which this is measured against, is missing: pip install -e '.[bench]'") from error

N_SAMPLES = 500
PYTHAE_BATCH_SIZES = (100, 500)


class Net(NamedTuple):
    side: int  # of the images: scikit-learn's digits, interpolated
    hidden: tuple[int, ...]
    k: int
    images: int

    def build(self) -> GaussianVAE:
        return GaussianVAE(self.side**2, self.hidden, self.k)

    def data(self) -> Tensor:
        digits = torch.from_numpy(load_digits().images / 16).float()[:, None]
        return nn.functional.interpolate(digits, self.side, mode="bilinear").flatten(1)


NETS = {"64-32-8": Net(8, (32,), 8, images=200), "784-500-500-50": Net(28, (500, 500), 50, images=20)}


class Run(NamedTuple):
    seconds: float
    nll: float
    standard_error: float  # nan from pythae, which returns the mean alone
    drawn: float  # samples decoded for each image


class Encoder(BaseEncoder):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> ModelOutput:
        mean, log_var = self.net(x).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=log_var)


class Decoder(BaseDecoder):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.net(z).sigmoid())


class Contestant:
    """Both implementations over one set of weights; a process runs one of them."""

    def __init__(self, net: Net, weights: Path) -> None:
        self.model, self.x, self.decoded = net.build(), net.data()[: net.images], 0
        self.model.load_state_dict(torch.load(weights))
        self.model.decoder.register_forward_hook(self.count)
        config = VAEConfig(input_dim=(net.side**2,), latent_dim=net.k, reconstruction_loss="bce")
        self.pythae = VAE(config, encoder=Encoder(self.model.encoder), decoder=Decoder(self.model.decoder))

    def count(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.decoded += output.shape[:-1].numel()

    def ours(self) -> tuple[float, float]:
        mean, log_var = self.model.encode(self.x)
        result = importance_nll(self.x, mean, log_var.exp(), self.model.log_likelihood, N_SAMPLES)
        return result.nll, result.standard_error

    def theirs(self, batch_size: int) -> tuple[float, float]:
        return -float(self.pythae.get_nll(self.x, N_SAMPLES, batch_size)), math.nan


@cache
def contestant(name: str, weights: Path, threads: int) -> Contestant:
    torch.set_num_threads(threads)
    return Contestant(NETS[name], weights)


@torch.no_grad()
def run(name: str, weights: Path, threads: int, batch_size: int | None) -> Run:
    """One evaluation, in a worker process: by pythae with `batch_size`, or by collapse_lib with None."""
    this = contestant(name, weights, threads)
    this.decoded, start = 0, time.perf_counter()
    nll, standard_error = this.ours() if batch_size is None else this.theirs(batch_size)
    return Run(time.perf_counter() - start, nll, standard_error, this.decoded / len(this.x))


def train(net: Net, path: Path) -> None:
    """A few hundred steps, so that the posterior is not the prior and the estimates are worth comparing."""
    torch.manual_seed(0)
    model, data, objective = net.build(), net.data(), SampledElbo()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(300):
        x = data[torch.randint(len(data), (100,))]
        optimizer.zero_grad()
        objective(model, (x,), {"eps": torch.randn(1, 100, net.k)}, {}).loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), path)


def compare(name: str, threads: int, rounds: int) -> None:
    sides = (None, *PYTHAE_BATCH_SIZES)
    runs: dict[int | None, list[Run]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        train(NETS[name], weights)
        workers = {side: ProcessPoolExecutor(1, get_context("spawn")) for side in sides}
        for turn in range(rounds + 1):
            for side in sides:
                result = workers[side].submit(run, name, weights, threads, side).result()
                if turn:  # the first turn warms up
                    runs[side].append(result)
        for worker in workers.values():
            worker.shutdown()

    images, ours = NETS[name].images, runs[None]
    nll = statistics.mean(r.nll for r in ours)
    standard_error = math.sqrt(statistics.mean(r.standard_error**2 for r in ours) / rounds)
    print(f"\n{name}, {images} images, nats per image")
    print(f"  collapse_lib     {cost(ours, images)}; nll {nll:.4f} +- {standard_error:.4f}")
    for batch_size in PYTHAE_BATCH_SIZES:
        theirs = runs[batch_size]
        # The two draw from one distribution, so pythae's mean over the rounds has the same standard error as ours.
        their_nll = statistics.mean(r.nll for r in theirs)
        gap = (their_nll - nll) / (math.sqrt(2) * standard_error)
        ratio = spread([a.seconds / b.seconds for a, b in zip(theirs, ours, strict=True)], 1)
        print(
            f"  pythae, batch {batch_size} {cost(theirs, images)}; nll {their_nll:.4f}, {gap:+.1f} standard errors off"
        )
        print(f"    ratio {ratio}")


def cost(runs: list[Run], images: int) -> str:
    drawn = {r.drawn for r in runs}
    return (
        f"{spread([1e3 * r.seconds / images for r in runs], 2)} ms an image, {', '.join(f'{d:g}' for d in drawn)} drawn"
    )


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(
        f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    print(f"{N_SAMPLES} samples, {arguments.rounds} rounds: median (least-most)")
    for name in NETS:
        compare(name, arguments.threads, arguments.rounds)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

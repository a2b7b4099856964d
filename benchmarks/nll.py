"""Importance-weighted NLL against pythae: `python benchmarks/nll.py [--threads N] [--repeats N]`.

Both sides evaluate the same trained weights on the same images with 500 samples, encoder included, alternating in this
process. pythae runs as it comes, `get_nll(x, 500)`, which decodes 100 samples of one image at a time and records
gradients, and at its best, all 500 samples at once without gradients. The remark holds each side's mean estimate over
the repeats, in nats per image, with the standard error by their spread, and the samples it decoded for one image.
Needs pythae: `pip install -e '.[bench]'`.
"""

import argparse
import math
import os
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
from harness import HEADER, Row, compare
from peer import pythae_vae
from sklearn.datasets import load_digits
from torch import Tensor, nn

from collapse_lib.likelihood import importance_nll
from collapse_lib.models.gaussian import GaussianVAE
from collapse_lib.objectives import SampledElbo
from collapse_lib.sweeps import Sweep
from collapse_lib.training import fit

N_SAMPLES = 500


class Tally:
    """Wraps one side: its estimates so far, and the samples that the decoder was given for each image."""

    def __init__(self, model: GaussianVAE, n_images: int, evaluate: Callable[[], float]) -> None:
        self.model, self.n_images, self.evaluate, self.nll = model, n_images, evaluate, list[float]()

    def __call__(self) -> str:
        decoded = 0

        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal decoded
            decoded += output.shape[:-1].numel()

        with self.model.decoder.register_forward_hook(count):
            self.nll.append(self.evaluate())
        spread = statistics.stdev(self.nll) / math.sqrt(len(self.nll)) if len(self.nll) > 1 else math.nan
        return f"{statistics.mean(self.nll):.3f} +- {spread:.3f}, {decoded / self.n_images:g} drawn"


def rows(side: int, hidden: tuple[int, ...], k: int, *, n_images: int, repeats: int) -> Iterator[Row]:
    """A net n-hidden-k, n = side x side, trained briefly on scikit-learn's digits: its posterior is not the prior."""
    digits = torch.from_numpy(load_digits().images / 16).float()[:, None]
    data = nn.functional.interpolate(digits, side, mode="bilinear").flatten(1)
    sweep = Sweep.grid(partial(GaussianVAE.mlp, side**2, hidden, k), seed=0, lr=2e-3)
    model = fit(sweep, data, SampledElbo(), steps=300, batch_size=100, progress=False).model(0)
    assert isinstance(model, GaussianVAE)
    x = data[:n_images]
    pythae = pythae_vae(model, side**2)

    def as_it_comes() -> float:
        return -pythae.get_nll(x, N_SAMPLES)

    def at_its_best() -> float:
        with torch.no_grad():
            return -pythae.get_nll(x, N_SAMPLES, batch_size=N_SAMPLES)

    def ours() -> float:
        with torch.no_grad():
            mean, log_var = model.encode(x)
        return importance_nll(x, mean, log_var.exp(), model.log_likelihood, N_SAMPLES).nll

    name = "-".join(map(str, (side**2, *hidden, k)))
    peers = {"pythae get_nll as it comes": as_it_comes, "pythae get_nll at its best": at_its_best}
    ours()  # both sides start with a warm allocator
    for peer, theirs in peers.items():
        work = f"NLL of {n_images} images, {N_SAMPLES} samples, {name}"
        yield compare(work, peer, Tally(model, n_images, theirs), Tally(model, n_images, ours), repeats=repeats)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"load on the machine {os.getloadavg()[0]:.1f}\n{HEADER}", flush=True)
    for row in rows(8, (32,), 8, n_images=200, repeats=arguments.repeats):
        print(row, flush=True)
    for row in rows(28, (500, 500), 50, n_images=20, repeats=arguments.repeats):
        print(row, flush=True)

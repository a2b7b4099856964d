"""Training speed against peers: `python benchmarks/training.py [--vae] [--sweep] [--linear] [--repeats N]`.

Each row runs both sides in this process, alternating, from the same initial weights or the same start, and prints what
each reached so that no side wins by doing less. The first row needs pythae: `pip install -e '.[bench]'`.
"""

import argparse
import contextlib
import io
import logging
import tempfile
from functools import partial

import torch
from harness import HEADER, Row, compare
from torch.nn import functional as F

from collapse_lib import data
from collapse_lib.deterministic import maximise_profile_elbo
from collapse_lib.models.gaussian import GaussianVAE
from collapse_lib.models.linear import AnalyticElbo, LinearVAE, Moments
from collapse_lib.objectives import SampledElbo
from collapse_lib.sweeps import Sweep
from collapse_lib.theory import ppca
from collapse_lib.theory.spectrum import covariance_spectrum
from collapse_lib.training import fit
from collapse_lib.transforms import flatten, scale


def mnist_vae(repeats: int) -> Row:
    """One 784-500-500-50 Bernoulli VAE, batch 100, two epochs of MNIST, Adam 1e-3, against pythae's BaseTrainer."""
    from peer import pythae_vae
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    epochs, x = 2, flatten(scale(data.load("mnist").pixels))
    build = partial(GaussianVAE.mlp, 784, (500, 500), 50)
    sweep = Sweep.grid(build, seed=0, lr=1e-3)

    def score(model: GaussianVAE) -> str:
        generator = torch.Generator().manual_seed(1)
        eps = torch.randn(4, len(x), 50, generator=generator)
        with torch.inference_mode():
            return f"ELBO {SampledElbo(4)(model, (x,), {'eps': eps}, {}).elbo:.2f}"

    def theirs() -> str:
        model = sweep.make(0)
        peer = pythae_vae(model, 784)
        quiet = io.StringIO()
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stderr(quiet),
            contextlib.redirect_stdout(quiet),
        ):
            options = BaseTrainerConfig(
                output_dir=folder, num_epochs=epochs, per_device_train_batch_size=100, learning_rate=1e-3, no_cuda=True
            )
            BaseTrainer(model=peer, train_dataset=BaseDataset(x, torch.zeros(len(x))), training_config=options).train()
        return score(model.eval())

    def ours() -> str:
        return score(fit(sweep, x, SampledElbo(), steps=600 * epochs, batch_size=100, progress=False).model(0))

    return compare("VAE 784-500-500-50, batch 100, 2 MNIST epochs", "pythae BaseTrainer", theirs, ours, repeats=repeats)


def small_sweep(repeats: int) -> Row:
    """32 VAEs 64-32-8 on 8x8 digits, batch 64, 600 steps, against a loop of 32 plain PyTorch trainings."""
    from sklearn.datasets import load_digits

    x = torch.from_numpy(load_digits().data).float() / 16
    members, steps, batch = 32, 600, 64
    sweep = Sweep.grid(partial(GaussianVAE.mlp, 64, (32,), 8), seed=list(range(members)), lr=1e-3)

    def theirs() -> str:
        losses = []
        for member in range(members):
            model = sweep.make(member)
            adam = torch.optim.Adam(model.parameters(), lr=1e-3)
            for step in range(steps):
                at = step % (len(x) // batch)
                if at == 0:
                    order = torch.randperm(len(x))
                rows = x[order[at * batch : (at + 1) * batch]]
                mean, log_var = model.encoder(rows).chunk(2, -1)
                logits = model.decoder(mean + (0.5 * log_var).exp() * torch.randn_like(mean))
                kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(1)
                loss = (F.binary_cross_entropy_with_logits(logits, rows, reduction="none").sum(1) + kl).mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
            losses.append(loss.item())
        return f"loss {sum(losses) / members:.2f}"

    def ours() -> str:
        result = fit(sweep, x, SampledElbo(), steps=steps, batch_size=batch, progress=False)
        return f"loss {result.summary.loss.mean():.2f} ({'stacked' if result.summary.stacked.all() else 'loop'})"

    return compare("sweep of 32 VAEs 64-32-8, 600 steps", "loop of 32 PyTorch trainings", theirs, ours, repeats=repeats)


def linear_vae(repeats: int) -> Row:
    """k = 200, first 1000 MNIST images: the report's recipe to within 1 nat, against L-BFGS to within 0.1 nat.

    The recipe is timed in slices, so that it stops within 100 steps of where it crosses; it is given our fast step.
    """
    x = flatten(scale(data.load("mnist", n=1000).pixels, torch.float64))
    spectrum, moments = covariance_spectrum(x), Moments.of(x.float())
    target = ppca.mle(spectrum, 200).loglik
    sweep = Sweep.grid(partial(LinearVAE.normal_start, 784, 200), seed=0, lr=5e-4)

    def theirs() -> str:
        model = sweep.make(0)
        adam = torch.optim.Adam(model.parameters(), lr=5e-4, fused=True)
        step, elbo, objective = 0, -float("inf"), AnalyticElbo()
        while elbo < target - 1:
            for _ in range(100):
                adam.zero_grad()
                terms = objective(model, moments, {}, {})
                terms.loss.backward()
                adam.step()
            step, elbo = step + 100, terms.elbo.item()
        return f"{target - elbo:.2f} nat short after {step} steps"

    def ours() -> str:
        found = maximise_profile_elbo(covariance_spectrum(x), 200, iterations=2000, target=target - 0.1)
        return f"{target - found.elbo:.2f} nat short after {len(found.history)} iterations"

    return compare("linear VAE, k = 200, first 1000 MNIST images", "report's recipe", theirs, ours, repeats=repeats)


ROWS = {"vae": mnist_vae, "sweep": small_sweep, "linear": linear_vae}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, row in ROWS.items():
        parser.add_argument(f"--{name}", dest="rows", action="append_const", const=name, help=row.__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    logging.getLogger("pythae").setLevel(logging.ERROR)
    print(HEADER, flush=True)
    for name in arguments.rows or ROWS:
        print(ROWS[name](arguments.repeats), flush=True)

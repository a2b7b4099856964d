"""L-BFGS on the profile ELBO against the closed-form optimum and scikit-learn's probabilistic PCA."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from collapse_lib.deterministic import fit_linear_autoencoder, maximise_profile_elbo
from collapse_lib.metrics import principal_angles
from collapse_lib.models.linear import AnalyticElbo, LinearVAE, Moments
from collapse_lib.theory import linear_vae, ppca
from collapse_lib.theory.spectrum import Spectrum, covariance_spectrum


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    """120 data in 9 dimensions, one of them constant: S has rank 8."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([3.0, 2.2, 1.7, 1.0, 0.6, 0.5, 0.4, 0.3, 0.0], dtype=torch.float64)
    rotation = torch.block_diag(
        torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q, torch.eye(1).double()
    )
    return torch.randn(120, 9, generator=generator, dtype=torch.float64) * scales @ rotation + 1.5


@pytest.fixture(scope="module")
def spectrum(x) -> Spectrum:
    return covariance_spectrum(x)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reaches_the_likelihood_that_scikit_learn_gives(x, spectrum, seed):
    fit = maximise_profile_elbo(spectrum, 3, seed=seed, iterations=500)
    pca = PCA(3, svd_solver="full").fit(x.numpy())
    # scikit-learn divides by N - 1 but scores the N data: rescale its covariance to 1/N, then its score is the optimum
    covariance = pca.get_covariance() * (len(x) - 1) / len(x)
    y = x.numpy() - x.numpy().mean(0)
    score = -0.5 * (9 * math.log(2 * math.pi) + np.linalg.slogdet(covariance)[1])
    score -= 0.5 * np.einsum("ni,ij,nj->n", y, np.linalg.inv(covariance), y).mean()
    np.testing.assert_allclose(fit.elbo, score, rtol=1e-9)
    np.testing.assert_allclose(fit.sigma2, pca.noise_variance_ * (len(x) - 1) / len(x), rtol=1e-5)
    assert fit.converged
    assert fit.history.elbo.is_monotonic_increasing
    np.testing.assert_allclose(fit.history.elbo.iloc[-1], fit.elbo)


def test_the_returned_model_has_the_elbo_it_claims(x, spectrum):
    fit = maximise_profile_elbo(spectrum, 3, iterations=7)  # far from the optimum: identities must hold on the way too
    model = LinearVAE(fit.W, fit.V, fit.d.log(), fit.mu, math.log(fit.sigma2))
    with torch.no_grad():
        np.testing.assert_allclose(AnalyticElbo()(model, Moments.of(x), {}, {}).elbo, fit.elbo, rtol=1e-12)
    assert not fit.converged


@pytest.mark.parametrize("sigma2", [0.05, 0.7, 2.0, 30.0])
def test_fixed_variance_reaches_its_own_optimum(spectrum, sigma2):
    fit = maximise_profile_elbo(spectrum, 5, sigma2=sigma2, iterations=500)
    best = ppca.fixed_sigma2(spectrum, 5, sigma2)
    np.testing.assert_allclose(fit.elbo, best.loglik, atol=1e-6)
    np.testing.assert_allclose(fit.sigma2, sigma2, rtol=1e-12)
    live = int((torch.linalg.svdvals(fit.W) > 1e-2).sum())
    assert live == best.active == int((spectrum.eigenvalues[:5] > sigma2).sum())


def test_stops_at_the_target_and_repeats_itself(spectrum):
    target = ppca.mle(spectrum, 3).loglik - 0.5
    a, b = (maximise_profile_elbo(spectrum, 3, seed=4, target=target) for _ in range(2))
    assert a.elbo >= target
    assert (a.history.elbo[:-1] < target).all()
    assert torch.equal(a.W, b.W)


def test_evaluations_see_the_decoder_of_their_iteration(spectrum):
    def look(W: torch.Tensor, sigma2: float) -> dict[str, float]:
        return {"sigma2": sigma2, "elbo": float(linear_vae.profile_elbo(W, sigma2, spectrum.covariance))}

    fit = maximise_profile_elbo(spectrum, 3, iterations=11, evaluate=look, evaluate_every=5)
    assert fit.evaluations.iteration.tolist() == [5, 10]
    seen = fit.history.set_index("iteration").loc[[5, 10]]
    np.testing.assert_allclose(fit.evaluations.elbo, seen.elbo, rtol=1e-12)
    np.testing.assert_allclose(fit.evaluations.sigma2, np.exp(seen.log_sigma2), rtol=1e-12)
    assert torch.equal(fit.W, maximise_profile_elbo(spectrum, 3, iterations=11).W)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 8}, "between 1 and 7, got 8: rank S is 8"),
        ({"k": 0}, "between 1 and 7, got 0"),
        ({"k": 10, "sigma2": 1.0}, "between 1 and 9, got 10"),
        ({"k": 2, "sigma2": 0.0}, "must be positive"),
        ({"k": 2, "iterations": 0}, "at least 1"),
    ],
)
def test_bad_arguments(spectrum, options, message):
    with pytest.raises(ValueError, match=message):
        maximise_profile_elbo(spectrum, **options)


def test_a_start_is_where_it_starts(x, spectrum):
    """From an optimum nothing is left to do; of a start outside the data's span only the part inside counts."""
    optimum = ppca.fixed_sigma2(spectrum, 3, 0.4)
    stay = maximise_profile_elbo(spectrum, 3, sigma2=0.4, start=optimum.W, iterations=50)
    np.testing.assert_allclose(stay.elbo, optimum.loglik, rtol=1e-12)
    assert len(stay.history) <= 1
    elsewhere = optimum.W + torch.nn.functional.one_hot(torch.tensor([8] * 3), 9).double().T
    again = maximise_profile_elbo(spectrum, 3, sigma2=0.4, start=elsewhere, iterations=50)
    np.testing.assert_allclose(again.elbo, optimum.loglik, rtol=1e-12)
    with pytest.raises(ValueError, match=r"start must be \(9, 3\), got \(3, 9\)"):
        maximise_profile_elbo(spectrum, 3, start=optimum.W.T)


# ---- the linear autoencoder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_linear_autoencoder_finds_the_subspace_of_pca_and_not_its_directions(x, spectrum, seed):
    found = fit_linear_autoencoder(spectrum, 3, seed=seed)
    pca = PCA(3, svd_solver="full").fit(x.numpy())
    back = pca.inverse_transform(pca.transform(x.numpy()))
    np.testing.assert_allclose(found.error, np.square(x.numpy() - back).sum(1).mean(), rtol=1e-9)
    assert float(principal_angles(found.decoder, torch.from_numpy(pca.components_.T))[0]) < 1e-5
    np.testing.assert_allclose(found.mu + (x - found.mu) @ found.encoder.T @ found.decoder.T, back, atol=1e-5)
    assert found.converged
    assert found.history.error.is_monotonic_decreasing
    # any invertible T will do: nothing makes the columns orthogonal
    columns = torch.nn.functional.normalize(found.decoder, dim=0)
    assert (columns.T @ columns).fill_diagonal_(0).abs().max() > 0.1
    torch.testing.assert_close(found.encoder @ found.decoder, torch.eye(3).double(), atol=1e-5, rtol=0)


def test_the_autoencoder_has_the_error_it_claims_on_the_way(x, spectrum):
    found = fit_linear_autoencoder(spectrum, 3, iterations=4)
    back = found.mu + (x - found.mu) @ found.encoder.T @ found.decoder.T
    np.testing.assert_allclose(found.error, (x - back).square().sum(1).mean(), rtol=1e-12)
    assert len(found.history) == 4
    assert not found.converged
    assert torch.equal(found.decoder, fit_linear_autoencoder(spectrum, 3, iterations=4).decoder)


def test_bad_arguments_of_the_autoencoder(spectrum):
    assert fit_linear_autoencoder(spectrum, 8).error == pytest.approx(0, abs=1e-6)  # the whole span: no error
    with pytest.raises(ValueError, match="between 1 and 8, the rank of S, got 9"):
        fit_linear_autoencoder(spectrum, 9)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        fit_linear_autoencoder(spectrum, 2, iterations=0)

"""Linear VAE and linear conditional VAE (CVAE) with fixed or learnable encoder variances, in closed form.

    VAE    q(z|x)   = N(W x, Sigma),              p(y|z)   = N(U z, eta_dec^2 I),             p(z) = N(0, eta_enc^2 I)
    CVAE   q(z|x,y) = N(W1 x + W2 y, Sigma),      p(y|x,z) = N(U1 z + U2 x, eta_dec^2 I),     p(z) = N(0, eta_enc^2 I)

with z in R^d, Sigma = diag(sigma_i^2) the same for all data; eta_dec, eta_enc and sigma are STANDARD DEVIATIONS. Data
are not centred and there are no offsets, so all moments are second moments about 0, divided by N. Losses follow the
paper: L = reconstruction + beta (2 KL) + beta d - beta d log eta_enc^2, reconstruction = E ||y - yhat||^2 / eta_dec^2,
which is twice the negative beta-ELBO without constants. `Terms.elbo` and every `kl` are plain nats.

The CVAE at the best U2 and W1 is the VAE of the residual of y after linear regression on x, so that both have the same
optimum in terms of e_i: eigenvalues theta_i^2 of E[x x^T] (VAE, y = x), or of E = B - C^T A^-1 C (CVAE).

Source: Dang, Tran, Nguyen and Ho, "Beyond Vanilla Variational Autoencoders", ICLR 2024: Theorem 1 (`vae_fixed`, and
`vae_learnable` with e = theta^2) and Theorem 2 (`vae_learnable` with e = eig(E)). Optimal losses, the two terms of the
loss, the fixed-variance CVAE and the quantile are derived.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from scipy.stats import chi2
from torch import Tensor

from collapse_lib.theory import _tensors as t
from collapse_lib.theory._tensors import Array
from collapse_lib.theory.ppca import LOG_2PI
from collapse_lib.theory.second_moments import ConditionalMoments, CvaeWeights


class Terms(NamedTuple):
    """loss = reconstruction + beta (2 kl) + beta d (1 - log eta_enc^2), the paper's L; scalars."""

    loss: Tensor
    reconstruction: Tensor  # E ||y - yhat||^2 / eta_dec^2 over data and posterior sample
    kl: Tensor  # nats per datum

    def elbo(self, n: int, eta_dec: Array) -> Tensor:
        """The ELBO (beta = 1) in nats per datum, constants included: -(n log(2 pi eta_dec^2) + rec) / 2 - KL."""
        return -0.5 * (n * (LOG_2PI + 2 * _std("eta_dec", eta_dec).log()) + self.reconstruction) - self.kl


class LinearOptimum(NamedTuple):
    """The global optimum, entry i of each vector for the i-th largest theta_i (VAE) or e_i (CVAE): mode i."""

    active: Tensor  # (d,) bool
    omega: Tensor  # (d,) singular value of U (CVAE: U1)
    lam: Tensor  # (d,) singular value of V = W A^(1/2) (CVAE: of W2 E^(1/2)); not sorted if sigma is fixed
    sigma: Tensor  # (d,) standard deviation of the coordinate that carries the mode
    kl_modes: Tensor  # (d,) nats
    terms: Terms


# ---- objectives ------------------------------------------------------------------------------------------------------


def vae_terms(
    U: Array,
    V: Array,
    log_sigma2: Array,
    Z: Array,
    *,
    beta: Array,
    eta_dec: Array = 1.0,
    eta_enc: Array = 1.0,
) -> Terms:
    """The expected loss of the linear VAE in whitened coordinates, V = W P_A Phi^(1/2); U (q, d), V (d, p).

    L = ( ||U V - Z||^2 + tr(U^T U Sigma) ) / eta_dec^2 + beta [ ( ||V||^2 + tr Sigma ) / eta_enc^2 - log|Sigma| ]

    Z = E[y x~^T] (q, p), or its diagonal (q,): theta in the eigenbasis of E[x x^T] for y = x. What of y is no linear
    function of x would add ( E||y||^2 - ||Z||^2 ) / eta_dec^2 to L and to the reconstruction.
    """
    U, V, log_sigma2 = t.array("U", U, "q, d"), t.array("V", V, "d, p"), t.array("log_sigma2", log_sigma2, "d")
    Z = t.real("Z", Z)
    Z = torch.diag(Z) if Z.ndim == 1 else Z
    (q, d), p = U.shape, V.shape[1]
    t.expect_shape("Z", Z, (q, p), f"U has shape {t.shape_of(U)} and V {t.shape_of(V)}")
    t.expect_shape("V", V, (d, p), f"U has shape {t.shape_of(U)}")
    return _terms((U @ V - Z).square().sum(), V.square().sum(), U, log_sigma2, beta, eta_dec, eta_enc)


def cvae_terms(
    W1: Array,
    W2: Array,
    U1: Array,
    U2: Array,
    log_sigma2: Array,
    moments: ConditionalMoments,
    *,
    beta: Array,
    eta_dec: Array = 1.0,
    eta_enc: Array = 1.0,
) -> Terms:
    """The expected loss of the linear CVAE; W1 (d, p), W2 (d, q), U1 (q, d), U2 (q, p), log_sigma2 (d,).

    L = ( E||G x + H y||^2 + tr(U1 Sigma U1^T) ) / eta_dec^2
        + beta [ ( E||W1 x + W2 y||^2 + tr Sigma ) / eta_enc^2 - log|Sigma| ],   G = U1 W1 + U2,  H = U1 W2 - I

    with E||G x + H y||^2 = tr(G A G^T) + 2 tr(G C H^T) + tr(H B H^T).
    """
    W1, W2, U1, U2 = (
        t.array(name, weights, "rows, columns") for name, weights in (("W1", W1), ("W2", W2), ("U1", U1), ("U2", U2))
    )
    (p, q), d = moments.C.shape, U1.shape[1]
    for name, weights, shape in (("W1", W1, (d, p)), ("W2", W2, (d, q)), ("U1", U1, (q, d)), ("U2", U2, (q, p))):
        t.expect_shape(name, weights, shape, f"x has {p} dimensions, y has {q}, and U1 has {d} columns")
    log_sigma2 = t.array("log_sigma2", log_sigma2, "d")
    G, H = U1 @ W1 + U2, U1 @ W2 - torch.eye(q, dtype=U1.dtype, device=U1.device)
    return _terms(_energy(G, H, moments), _energy(W1, W2, moments), U1, log_sigma2, beta, eta_dec, eta_enc)


def _energy(G: Tensor, H: Tensor, moments: ConditionalMoments) -> Tensor:
    """E ||G x + H y||^2."""
    A, B, C = moments.A, moments.B, moments.C
    return ((G @ A) * G).sum() + 2 * ((G @ C) * H).sum() + ((H @ B) * H).sum()


def _terms(
    error: Tensor, code: Tensor, U: Tensor, log_sigma2: Tensor, beta: Array, eta_dec: Array, eta_enc: Array
) -> Terms:
    """Both models' terms from E||y - U E[z]||^2 and E||E[z]||^2, the posterior mean's second moment."""
    beta, eta_dec, eta_enc = _setting(beta, eta_dec, eta_enc)
    d = U.shape[1]
    sigma2 = t.expect_shape("log_sigma2", log_sigma2, (d,), f"the decoder has shape {t.shape_of(U)}").exp()
    reconstruction = (error + (U.square().sum(0) * sigma2).sum()) / eta_dec.square()
    log_prior = 2 * eta_enc.log()
    kl = 0.5 * ((code + sigma2.sum()) / eta_enc.square() - log_sigma2.sum() + d * (log_prior - 1))
    return Terms(_loss(reconstruction, kl, beta, d, eta_enc), reconstruction, kl)


def _loss(reconstruction: Tensor, kl: Tensor, beta: Tensor, d: int, eta_enc: Tensor) -> Tensor:
    return reconstruction + beta * (2 * kl + d * (1 - 2 * eta_enc.log()))


# ---- optima ----------------------------------------------------------------------------------------------------------


def vae_learnable(e: Array, d: int, *, beta: Array, eta_dec: Array = 1.0, eta_enc: Array = 1.0) -> LinearOptimum:
    """Optimum with learnable diagonal Sigma: e = theta^2 for the VAE, e = eig(E) for the CVAE (Theorem 2).

    active iff e_i > beta eta_dec^2;   omega_i = sqrt([e_i - beta eta_dec^2]_+) / eta_enc
    lambda_i = eta_enc sqrt([e_i - beta eta_dec^2]_+ / e_i),   sigma_i = sqrt(beta) eta_enc eta_dec / sqrt(e_i), active
    sigma_i = eta_enc and KL 0, inactive: exactly that many coordinates have collapsed
    reconstruction = sum_active beta + sum_rest e_i / eta_dec^2,   2 KL = sum_active log( e_i / (beta eta_dec^2) )

    e (any length) in any order, all of it: modes beyond d are not used but add to the loss. Raises ValueError if an
    e_i is negative or d < 1.
    """
    e, d = _modes("e", e, d)
    beta, eta_dec, eta_enc = _setting(beta, eta_dec, eta_enc)
    floor = beta * eta_dec.square()
    used = e[:d]
    active = used > floor
    safe = torch.where(active, used, floor)  # keeps 0 / 0 out of what is not selected
    left = (used - floor).clamp_min(0)
    kl_modes = 0.5 * (safe / floor).log()
    reconstruction = torch.where(active, floor, used).sum() + e[d:].sum()
    return _optimum(
        active,
        left.sqrt() / eta_enc,
        eta_enc * (left / safe).sqrt(),
        eta_enc * (floor / safe).sqrt(),
        kl_modes,
        reconstruction / eta_dec.square(),
        beta,
        eta_enc,
    )


def vae_fixed(theta: Array, sigma: Array, *, beta: Array, eta_dec: Array = 1.0, eta_enc: Array = 1.0) -> LinearOptimum:
    """Optimum with fixed Sigma = diag(sigma^2), sigma (d,) in any order (Theorem 1); CVAE: theta = sqrt(eig(E)).

    The smallest sigma gets the largest theta. With c = eta_dec / eta_enc and m_i = [theta_i - sqrt(beta) c sigma_i]_+
    active iff m_i > 0;   omega_i^2 = sqrt(beta) c m_i / sigma_i;   lambda_i^2 = sigma_i m_i / (sqrt(beta) c)
    eta_dec^2 L = sum_{i<=d} (theta_i^2 - m_i^2) + beta c^2 sum sigma_i^2 - beta eta_dec^2 sum log sigma_i^2
                  + sum_{i>d} theta_i^2

    For distinct sigma_i the inactive coordinates have zero weights and q = N(0, sigma_i^2); for equal ones the solution
    may be rotated inside the group, and generically no coordinate is constant. Raises ValueError as `vae_learnable`.
    """
    sigma = t.positive("sigma", t.array("sigma", sigma, "d")).sort().values
    theta, d = _modes("theta", theta, len(sigma))
    beta, eta_dec, eta_enc = _setting(beta, eta_dec, eta_enc)
    scale = beta.sqrt() * eta_dec / eta_enc
    used, floor = theta[:d], scale * sigma
    m = (used - floor).clamp_min(0)
    active = m > 0
    lam = (sigma * m / scale).sqrt()
    reconstruction = torch.where(active, floor * used, used.square()).sum() + theta[d:].square().sum()
    log_ratio = 2 * (sigma / eta_enc).log()
    kl_modes = 0.5 * ((lam.square() + sigma.square()) / eta_enc.square() - 1 - log_ratio)
    omega = (scale * m / sigma).sqrt()
    return _optimum(active, omega, lam, sigma, kl_modes, reconstruction / eta_dec.square(), beta, eta_enc)


def best_companions(
    U1: Array, moments: ConditionalMoments, *, beta: Array, eta_dec: Array = 1.0, eta_enc: Array = 1.0
) -> CvaeWeights:
    """The other weights of the CVAE that are best for a given U1 (q, d), whatever Sigma (Theorem 2; derived).

    U2 = C^T A^-1,   W2 = U1^T ( U1 U1^T + beta c^2 I )^-1,   W1 = -W2 U2,   c = eta_dec / eta_enc
    """
    q = len(moments.B)
    U1 = t.array("U1", U1, "q, d")
    t.expect_shape("U1", U1, (q, U1.shape[1]), f"y has {q} dimensions")
    beta, eta_dec, eta_enc = _setting(beta, eta_dec, eta_enc)
    gram = t.gram(U1, beta * (eta_dec / eta_enc).square())
    W2 = torch.linalg.solve(gram, U1.T)  # (U1^T U1 + s I)^-1 U1^T, the same matrix at the size of d
    return CvaeWeights(-W2 @ moments.predictor, W2, U1, moments.predictor)


def released_sigma(e: Array, d: int, *, beta: Array, eta_dec: Array = 1.0, eta_enc: Array = 1.0) -> Tensor:
    """What the paper's released code takes for sigma in Theorem 2, (d,): WRONG, to be compared with `vae_learnable`.

    It switches at e_i >= sqrt(beta) eta_dec, the VAE's threshold on theta_i = sqrt(e_i), instead of at beta eta_dec^2.
    """
    e, d = _modes("e", e, d)
    beta, eta_dec, eta_enc = _setting(beta, eta_dec, eta_enc)
    used = e[:d]
    switched = used >= beta.sqrt() * eta_dec
    return torch.where(switched, beta.sqrt() * eta_enc * eta_dec / used.clamp_min(1e-300).sqrt(), eta_enc)


def kl_quantile(optimum: LinearOptimum, share: float = 0.95, *, eta_enc: Array = 1.0) -> Tensor:
    """The value that KL_i(x) stays below for a `share` of Gaussian data, mode by mode, (d,), nats (derived).

    KL_i(x) = 1/2 [ (mu_i^2 + sigma_i^2)/eta_enc^2 - 1 - log(sigma_i^2/eta_enc^2) ],  mu_i ~ N(0, lambda_i^2): put the
    quantile of chi^2_1 (3.841 for 95 %) times lambda_i^2 for mu_i^2. Real data are not Gaussian, the leading mode of
    uncentred images (their mean) least of all. Raises ValueError unless 0 < share < 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"share = {share} must lie between 0 and 1")
    eta_enc = _std("eta_enc", eta_enc)
    excess = (float(chi2.ppf(share, df=1)) - 1) * optimum.lam.square() / eta_enc.square()
    return optimum.kl_modes + 0.5 * excess


def _optimum(
    active: Tensor,
    omega: Tensor,
    lam: Tensor,
    sigma: Tensor,
    kl_modes: Tensor,
    reconstruction: Tensor,
    beta: Tensor,
    eta_enc: Tensor,
) -> LinearOptimum:
    kl = kl_modes.sum()
    terms = Terms(_loss(reconstruction, kl, beta, len(sigma), eta_enc), reconstruction, kl)
    return LinearOptimum(active, omega, lam, sigma, kl_modes, terms)


def _modes(name: str, values: Array, d: int) -> tuple[Tensor, int]:
    """Sorted decreasingly, with zeros appended up to d modes."""
    values, d = t.array(name, values, "modes"), operator.index(d)
    if d < 1:
        raise ValueError(f"d = {d} latents: there must be at least one")
    if bool((values.detach() < 0).any()):
        raise ValueError(f"{name} must not be negative, got {float(values.detach().min()):.6g}")
    values = values.sort(descending=True).values
    return torch.cat([values, values.new_zeros(max(0, d - len(values)))]), d


def _std(name: str, value: Array) -> Tensor:
    return t.positive(name, t.scalar(name, value))


def _setting(beta: Array, eta_dec: Array, eta_enc: Array) -> tuple[Tensor, Tensor, Tensor]:
    return _std("beta", beta), _std("eta_dec", eta_dec), _std("eta_enc", eta_enc)

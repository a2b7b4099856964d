"""What Adam with a constant rate loses to the noise of the single-sample ELBO: a bowl, and steps that do not shrink.

The single-sample ELBO (analytic KL, one z = V y + sqrt(d) eps an image) has the right gradient on average. Near an
optimum there is little left of the average, and Adam divides what it gets by its own size: the step is the rate times
noise of variance one, whatever the noise was. Parameters then wander in the bowl of the ELBO and stay wandering.

Notation and model as in `linear_vae`: y = x - mu, m = V y, a = y - W m, B = W D^(1/2), D = diag(d). Derived.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from collapse_lib.theory import _tensors as t
from collapse_lib.theory import linear_vae
from collapse_lib.theory._tensors import Array


class GradientNoise(NamedTuple):
    """Standard deviation over eps of the gradient of the full-batch single-sample ELBO, nats per unit parameter."""

    W: Tensor  # (n, k)
    V: Tensor  # (k, n)
    log_d: Tensor  # (k,)
    mu: Tensor  # (n,)
    log_sigma2: Tensor  # ()

    @property
    def total(self) -> float:
        """Sum over all parameters."""
        return sum(float(part.sum()) for part in self)


def gradient_noise(W: Array, V: Array, d: Array, sigma2: Array, mu: Array, X: Array) -> GradientNoise:
    """Noise of each entry of the gradient, one sample an image, averaged over the N images of X (N, n).

    With e the noise of an image, r = a - B e its residual and Q = W^T B, the entries, and s^2 times their variances:

    W_pj        r_p z_j / s                      a_p^2 d_j - 2 a_p m_j d_j W_pj + m_j^2 |b_p|^2 + d_j (|b_p|^2 + B_pj^2)
    V_jp        y_p (W^T r)_j / s                y_p^2 |Q_j|^2
    log d_j     sqrt(d_j) e_j (W^T r)_j / (2 s)  d_j [ (W^T a)_j^2 + |Q_j|^2 + Q_jj^2 ] / 4
    mu          (I - W V)^T r / s                the squared rows of (I - W V)^T B
    log sigma2  |r|^2 / (2 s) - n / 2            |B^T a|^2 + |B^T B|^2 / 2, as for the ELBO itself

    (s = sigma2; b_p, Q_j: rows), to be averaged over the images and divided by N. mu (n,); float64.
    """
    V, d, mu, X = t.array("V", V, "k, n"), t.array("d", d, "k"), t.array("mu", mu, "n"), t.array("X", X, "N, n")
    of_elbo = linear_vae.single_sample_variance(W, V, d, sigma2, mu, X).mean()  # checks all shapes
    W, n = t.decoder(W, None)
    Y, scale, N = t.centred(X, mu, n), t.variance("sigma2", sigma2).square(), len(X)
    m = Y @ V.T
    a = Y - m @ W.T
    B = W * d.sqrt()
    Q, rows = W.T @ B, B.square().sum(1, keepdim=True)
    crossed = a.T @ m / N * B * d.sqrt()
    of_W = a.square().mean(0)[:, None] * d - 2 * crossed + m.square().mean(0) * rows + d * (rows + B.square())
    of_V = Q.square().sum(1)[:, None] * Y.square().mean(0)
    of_d = d * ((a @ W).square().mean(0) + Q.square().sum(1) + Q.diagonal().square()) / 4
    of_mu = (B - V.T @ Q).square().sum(1)
    variances = (of_W / scale, of_V / scale, of_d / scale, of_mu / scale, of_elbo)
    return GradientNoise(*((variance.clamp_min(0) / N).sqrt() for variance in variances))


def jitter_deficit(noise: GradientNoise, lr: float) -> float:
    """What constant-rate Adam loses in equilibrium, nats per datum: (lr / 4) sum_i sd(g_i), to leading order in lr.

    Near the optimum the loss is theta^T H theta / 2 and its gradient H theta plus noise of covariance Sigma. Adam moves
    by -P (H theta + noise), P = lr diag(Sigma)^(-1/2). In equilibrium the covariance C of theta solves
    P H C + C H P = P Sigma P; multiplied by P^-1, its trace is 2 tr(H C) = tr(Sigma P) = lr sum_i sd(g_i), and the
    excess loss is tr(H C) / 2. So neither the curvatures nor the correlations of the noise matter, and momentum does
    not to this order. Adam also divides by the restoring part of the gradient, which lowers the loss at finite rates.
    """
    return lr / 4 * noise.total

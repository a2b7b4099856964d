"""The two standard deviations that the models of Dang et al. (ICLR 2024) share: decoder eta_dec, prior eta_enc."""

import torch
from torch import Tensor, nn


class NoiseScales(nn.Module):
    """Base of models with p(x|z) = N(., eta_dec^2 I) and p(z) = N(0, eta_enc^2 I).

    Both are buffers: members of a sweep that differ in them are still one architecture and run as one program.
    Raises ValueError unless both are positive.
    """

    eta_dec: Tensor
    eta_enc: Tensor

    def __init__(self, eta_dec: float, eta_enc: float) -> None:
        super().__init__()
        if min(eta_dec, eta_enc) <= 0:
            raise ValueError(
                f"eta_dec and eta_enc are standard deviations and must be positive, got {eta_dec}, {eta_enc}"
            )
        self.register_buffer("eta_dec", torch.tensor(float(eta_dec)))
        self.register_buffer("eta_enc", torch.tensor(float(eta_enc)))

    @property
    def log_sigma2(self) -> Tensor:
        """log eta_dec^2, the decoder's log-variance as other models name it."""
        return 2 * self.eta_dec.log()

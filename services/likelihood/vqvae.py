"""The likelihood detector's vector-quantised auto-encoder (van den Oord, Vinyals, Kavukcuoglu 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """One residual layer."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, inner, 3, padding=1, bias=False),
            nn.ReLU(), nn.Conv2d(inner, width, 1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        out: Tensor = x + self.layers(x)
        return out


class VectorQuantiser(nn.Module):
    """Replaces each vector by the nearest of a codebook that follows the data by exponential moving averages."""

    codebook: Tensor
    usage: Tensor
    totals: Tensor

    def __init__(self, codes: int, dimensions: int, decay: float = 0.99, commitment: float = 0.25) -> None:
        super().__init__()
        self.decay, self.commitment = decay, commitment
        self.register_buffer("codebook", torch.randn(codes, dimensions))
        self.register_buffer("usage", torch.ones(codes))
        self.register_buffer("totals", self.codebook.clone())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """[n, d, h, w] to its quantised form (gradients pass straight through) and the commitment loss."""
        vectors = z.permute(0, 2, 3, 1)
        flat = vectors.reshape(-1, vectors.shape[-1])
        # |z - c|^2 without |z|^2, which is the same for every code.
        codes = (self.codebook.square().sum(1) - 2 * flat @ self.codebook.T).argmin(1)
        quantised = self.codebook[codes]
        if self.training:
            self._follow(flat.detach(), codes)
        loss = self.commitment * functional.mse_loss(flat, quantised.detach())
        straight = flat + (quantised - flat).detach()
        return straight.reshape(vectors.shape).permute(0, 3, 1, 2), loss

    def _follow(self, flat: Tensor, codes: Tensor) -> None:
        counts = torch.bincount(codes, minlength=len(self.codebook)).float()
        sums = torch.zeros_like(self.codebook).index_add_(0, codes, flat)
        self.usage.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.totals.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        size = self.usage.sum()
        smoothed = (self.usage + 1e-5) / (size + len(self.codebook) * 1e-5) * size
        self.codebook.copy_(self.totals / smoothed[:, None])


class VectorQuantisedAutoencoder(nn.Module):
    """Images [n, channels, height, width] in [0, 1] to reconstructions; a quarter of the resolution in codes.

    TR 2021-126 uses 128 hidden channels for 32x32 colour images; 64 suffice for grey ones at a third of the cost.
    """

    STRIDE = 4
    """Pixels a side that share a code."""

    def __init__(self, channels: int, hidden: int | None = None, codes: int = 512, dimensions: int = 64) -> None:
        """
        Args:
            channels: of the images.
            hidden: channels of the inner layers; by default 64 for grey images and 128 for others.
            codes: in the codebook.
            dimensions: of a code.
        """
        super().__init__()
        hidden = hidden or (64 if channels == 1 else 128)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, hidden // 2, 4, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(hidden // 2, hidden, 4, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1), Residual(hidden, 32), Residual(hidden, 32), nn.ReLU(),
            nn.Conv2d(hidden, dimensions, 1),
        )  # fmt: skip
        self.quantiser = VectorQuantiser(codes, dimensions)
        self.decoder = nn.Sequential(
            nn.Conv2d(dimensions, hidden, 3, padding=1), Residual(hidden, 32), Residual(hidden, 32), nn.ReLU(),
            nn.ConvTranspose2d(hidden, hidden // 2, 4, stride=2, padding=1), nn.ReLU(),
            nn.ConvTranspose2d(hidden // 2, channels, 4, stride=2, padding=1),
        )  # fmt: skip

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions of the images' shape, and the commitment loss."""
        height, width = images.shape[2:]
        # Sides that the strides do not divide are continued by their last pixels.
        missing = (0, -width % self.STRIDE, 0, -height % self.STRIDE)
        whole = functional.pad(images, missing, mode="replicate") if any(missing) else images
        quantised, loss = self.quantiser(self.encoder(whole))
        return self.decoder(quantised)[:, :, :height, :width], loss

    def log_likelihood(self, images: Tensor, data_variance: float) -> Tensor:
        """[n], log p(x | z) up to a constant: minus the mean squared error over the data's variance (section VI-B)."""
        reconstruction, _ = self(images)
        errors: Tensor = (reconstruction - images).square().flatten(1).mean(1)
        return -errors / data_variance

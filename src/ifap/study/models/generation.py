"""What the generators have in common here: each is called with images, and knows what it learns from them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Generative(nn.Module):
    """A network that makes images, of the shape and normalisation of those that it learns from.

    While `is_dense` is set (see `ifap.forward.dense_outputs`) the forward is that of evaluation in
    training mode, too.
    """

    is_dense = False

    def forward(self, images: Tensor) -> Any:
        """Return losses in training mode, and what is pruned and compared in evaluation mode.

        Losses, scalars whose sum is to fall; or outputs of fixed shapes.

        Parameters
        ----------
        images : Tensor, shape (batch, channels, height, width)
            Real images, or their latents.
        """
        if self.training and not self.is_dense:
            return self.compare(images)
        return self.dense(images)

    @abstractmethod
    def dense(self, images: Tensor) -> list[Tensor]:
        """Return the outputs of the part that is pruned, always the same for the same images."""

    @abstractmethod
    def compare(self, images: Tensor) -> dict[str, Tensor]:
        """Return the losses of a batch."""

    @abstractmethod
    def sample(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return made images, as many as there are real ones; noise is drawn from `generator`, on the CPU."""


def noise(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Return normal numbers, the same on every device, from `generator` or else from a fixed seed."""
    source = torch.Generator().manual_seed(0) if generator is None else generator
    return torch.randn(shape, generator=source, device="cpu").to(like)

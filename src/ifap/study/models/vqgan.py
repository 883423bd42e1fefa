"""VQGAN (Esser et al. 2021): an encoder, a codebook and a decoder; from diffusers.

It is trained here to give images back and to use its codes. The published loss adds a perceptual one,
which needs a pretrained network, and a discriminator.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from ifap.study.models.base import MODELS
from ifap.study.models.generation import Generative
from ifap.study.models.parts import check_size

WIDTHS = (128, 128, 256, 256, 512)
TINY_WIDTHS = (16, 32)


class VQGAN(Generative):
    """An autoencoder with a codebook.

    Parameters
    ----------
    network : nn.Module
        ``diffusers.VQModel``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def dense(self, images: Tensor) -> list[Tensor]:
        """Return the images again, and how far their codes are from the codebook.

        The latter is a function of the latents alone, and keeps their width what the codebook's is.
        """
        found = self.network(images)
        return [found.sample, found.commit_loss]

    def compare(self, images: Tensor) -> dict[str, Tensor]:
        """Return the mean absolute error of the images, and the distance of codes and codebook."""
        again, distance = self.dense(images)
        return {"reconstruction": (again - images).abs().mean(), "codebook": distance}

    def sample(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images again; nothing is drawn."""
        return cast("Tensor", self.network(images).sample)


@MODELS.register("vqgan")
def vqgan(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network of stride 16 with 1024 codes of width 256; it reads no classes.

    Sides are multiples of 16 pixels.
    """
    check_size("vqgan", image_size, smallest=16, multiple=16)
    plain = len(WIDTHS) - 1
    return _network(
        in_channels,
        down_block_types=("DownEncoderBlock2D",) * plain + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * plain,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        latent_channels=256,
        num_vq_embeddings=1024,
    )


@MODELS.register("vqgan_tiny")
def vqgan_tiny(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return a small untrained network of stride 2 with 32 codes of width 4; see `vqgan`."""
    check_size("vqgan_tiny", image_size, smallest=4, multiple=2)
    return _network(
        in_channels,
        down_block_types=("DownEncoderBlock2D",) * len(TINY_WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(TINY_WIDTHS),
        block_out_channels=TINY_WIDTHS,
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=32,
        norm_num_groups=4,
    )


def _network(in_channels: int, **sizes: Any) -> nn.Module:
    # diffusers takes seconds to import, which listing the models should not.
    from diffusers import VQModel

    return VQGAN(VQModel(in_channels=in_channels, out_channels=in_channels, **sizes))

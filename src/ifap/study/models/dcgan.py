"""DCGAN (Radford et al. 2016): a generator of transposed convolutions, and the discriminator it learns from.

Both are one network, so that one optimizer trains them: each loss reaches one of the two only. What is
counted and pruned is the generator.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifap.study.models.base import MODELS
from ifap.study.models.generation import Generative, noise
from ifap.study.models.parts import check_size

LATENT = 100
WIDTH, SMALL_WIDTH, TINY_WIDTH = 128, 32, 8  # channels at half the side of an image; doubled at each smaller one
SMALLEST = 8
REACH = 3.0  # the largest value of a made image
DEVIATION = 0.02  # of the weights that are drawn, as published


class Generator(nn.Module):
    """Double the side again and again: 28 pixels come from 7, 32 and 64 from 4.

    Parameters
    ----------
    in_channels, image_size : int
        Channels and side of the images that are made.
    width : int
        Channels at half the side.
    """

    def __init__(self, in_channels: int, image_size: int, width: int) -> None:
        super().__init__()
        start, widths = _sides(image_size, width)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(LATENT, widths[0], start, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        ]  # fmt: skip
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
            ]  # fmt: skip
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], in_channels, 4, stride=2, padding=1))

    def forward(self, latent: Tensor) -> Tensor:
        """Map (batch, 100) normal numbers to images (batch, in_channels, side, side)."""
        # The published tanh ends at 1, which normalised images go beyond.
        return REACH * torch.tanh(self.layers(latent[:, :, None, None]) / REACH)


class Discriminator(nn.Module):
    """Halve the side again and again, and score the whole image.

    Parameters
    ----------
    in_channels, image_size, width : int
        See `Generator`.
    """

    def __init__(self, in_channels: int, image_size: int, width: int) -> None:
        super().__init__()
        start, widths = _sides(image_size, width)
        widths = widths[::-1]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)
            ]  # fmt: skip
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, start), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        """Map images to scores (batch, 1), before the sigmoid: high for real ones."""
        return cast("Tensor", self.layers(images))


class DCGAN(Generative):
    """A generator and its opponent.

    Parameters
    ----------
    in_channels, image_size, width : int
        See `Generator`.
    """

    def __init__(self, in_channels: int, image_size: int, width: int) -> None:
        super().__init__()
        self.generator = Generator(in_channels, image_size, width)
        self.discriminator = Discriminator(in_channels, image_size, width)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, 0.0, DEVIATION)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, DEVIATION)

    def dense(self, images: Tensor) -> list[Tensor]:
        """Return images made from the same noise at every call, as many as are given."""
        return [self.generator(noise(images, (len(images), LATENT)))]

    def compare(self, images: Tensor) -> dict[str, Tensor]:
        """Return the loss of the discriminator, of real and made images, and that of the generator."""
        made = self.generator(torch.randn(len(images), LATENT, device=images.device, dtype=images.dtype))
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        fooled = torch.func.functional_call(self.discriminator, fixed, (made,))
        real, found = self.discriminator(images), self.discriminator(made.detach())
        return {"discriminator": _is(real, 1.0) + _is(found, 0.0), "generator": _is(fooled, 1.0)}

    def sample(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return made images; see `Generative.sample`."""
        return cast("Tensor", self.generator(noise(images, (len(images), LATENT), generator)))


def _is(scores: Tensor, wanted: float) -> Tensor:
    return functional.binary_cross_entropy_with_logits(scores, torch.full_like(scores, wanted))


def _sides(image_size: int, width: int) -> tuple[int, list[int]]:
    """Return the side that doubling starts from, from 4 to 7, and the channels at each side but the last."""
    start, widths = image_size, [width]
    while start >= SMALLEST:
        start //= 2
        widths.append(2 * widths[-1])
    return start, widths[-2::-1]


def _check(name: str, image_size: int) -> None:
    doublings = len(_sides(image_size, 1)[1]) if image_size >= SMALLEST else 1
    check_size(name, image_size, smallest=SMALLEST, multiple=2**doublings)


@MODELS.register("dcgan")
def dcgan(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return the untrained network; it reads no classes. Sides are 4 to 7 pixels, doubled several times."""
    _check("dcgan", image_size)
    return DCGAN(in_channels, image_size, WIDTH)


@MODELS.register("dcgan_small")
def dcgan_small(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return an untrained network of a quarter of the width, which a few minutes of one core can train."""
    _check("dcgan_small", image_size)
    return DCGAN(in_channels, image_size, SMALL_WIDTH)


@MODELS.register("dcgan_tiny")
def dcgan_tiny(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Return a small untrained network, of a sixteenth of the width."""
    _check("dcgan_tiny", image_size)
    return DCGAN(in_channels, image_size, TINY_WIDTH)

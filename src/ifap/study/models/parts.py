"""What the networks of torchvision have in common here: their size check, their stem, their import."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from ifap.errors import ConfigError


def torchvision_network(name: str, stem: str, num_classes: int, in_channels: int, **options: Any) -> nn.Module:
    """Return an untrained network of torchvision; `stem` names the convolution that is fitted to other images."""
    # torchvision takes seconds to import, which listing the models should not.
    import torchvision.models

    network = cast("nn.Module", getattr(torchvision.models, name)(weights=None, num_classes=num_classes, **options))
    fit_stem(network, stem, in_channels)
    return network


def fit_stem(network: nn.Module, name: str, in_channels: int) -> None:
    """Let the first convolution of a network read another number of channels, in place.

    Parameters
    ----------
    network : nn.Module
        An untrained network for three channels.
    name : str
        Qualified name of the convolution that reads the images.
    in_channels : int
        Channels of an input. The new weights are drawn so that the outputs keep their variance.
    """
    old = network.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    if old.in_channels == in_channels:
        return
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        cast("tuple[int, int]", old.kernel_size),
        cast("tuple[int, int]", old.stride),
        cast("tuple[int, int]", old.padding),
        bias=old.bias is not None,
    )
    with torch.no_grad():
        new.weight.normal_().mul_(old.weight.std() * (old.in_channels / in_channels) ** 0.5)
        if new.bias is not None:
            new.bias.zero_()
    network.set_submodule(name, new)


def check_size(model: str, image_size: int, smallest: int, multiple: int = 1) -> None:
    """Refuse an image size that a network cannot take.

    Parameters
    ----------
    model : str
        Name in the registry.
    image_size : int
        Side of an image in pixels.
    smallest : int
        The smallest side whose features do not vanish on the way.
    multiple : int
        What the side must be a multiple of.

    Raises
    ------
    ConfigError
        If the size does not do; names the model and the nearest size that does.
    """
    if image_size < smallest:
        raise ConfigError(f"image_size: {image_size} pixels are too few for '{model}': the smallest is {smallest}")
    if image_size % multiple:
        near = max(smallest, round(image_size / multiple) * multiple)
        raise ConfigError(
            f"image_size: '{model}' takes multiples of {multiple} pixels, not {image_size}: the nearest is {near}"
        )


def vision_transformer(
    image_size: int, in_channels: int, *, patch: int, width: int, depth: int, heads: int
) -> nn.Module:
    """Return an untrained vision transformer of timm without class token and head, to take features from.

    Parameters
    ----------
    image_size, in_channels : int
        Side of an image in pixels, a multiple of `patch`, and its channels.
    patch, width, depth, heads : int
        Side of a patch, channels, layers, and heads of a layer.
    """
    # timm takes seconds to import, which listing the models should not.
    from timm.models.vision_transformer import VisionTransformer

    return cast(
        "nn.Module",
        VisionTransformer(
            img_size=image_size,
            patch_size=patch,
            in_chans=in_channels,
            num_classes=0,
            global_pool="",
            class_token=False,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
        ),
    )

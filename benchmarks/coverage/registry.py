"""What a network of the coverage is: a key, a builder with random weights and its inputs, both always the same."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

OWN = ("timm", "torchvision", "transformers", "diffusers", "smp")
BESIDE = ("vit_pytorch", "x_transformers", "monai", "ultralytics")
PACKAGES = OWN + BESIDE
"""Packages that the project installs, and packages to install beside it, see the page."""
DISTRIBUTIONS = {"smp": "segmentation_models_pytorch"}


_COUNTS_VALUES = {f"transformers:{name}" for name in ("superpoint", "fastspeech2_conformer", "vits")}


@dataclass(frozen=True)
class Network:
    """A public network with random weights.

    Parameters
    ----------
    key : str
        ``package:name``, such as ``timm:levit_128s``.
    make : callable
        Makes the network. Nothing is downloaded.
    feed : callable
        Given a random generator, makes the inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
    family : str
        What it stands for: the module of timm, the family of transformers, else the name again.
    doubles : bool
        Whether inputs may be concatenated with themselves for another batch size.
    fixed : tuple of str
        Names of inputs that are the same for every batch size.
    """

    key: str
    make: Callable[[], nn.Module]
    feed: Callable[[torch.Generator], Any]
    family: str = ""
    doubles: bool = True
    fixed: tuple[str, ...] = ()

    @property
    def counts_values(self) -> bool:
        """Whether how many values come out depends on what is computed: keypoints, or the length of a sound."""
        return self.key in _COUNTS_VALUES

    @property
    def package(self) -> str:
        """The part of the key before the colon."""
        return self.key.partition(":")[0]

    def build(self) -> nn.Module:
        """Return the network in evaluation mode; every call returns the same weights."""
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.make().eval()

    def inputs(self) -> Any:
        """Return the inputs of one forward; every call returns the same values."""
        return self.feed(torch.Generator().manual_seed(0))


def installed() -> list[str]:
    """Return the packages whose networks can be built here."""
    return [name for name in PACKAGES if importlib.util.find_spec(DISTRIBUTIONS.get(name, name)) is not None]


def networks(package: str) -> dict[str, Network]:
    """Return the networks of one package by key, in the order of its table."""
    module = importlib.import_module(f"benchmarks.coverage.{package}_networks")
    return {network.key: network for network in module.NETWORKS}


def find(key: str) -> Network:
    """Return one network; only the file of its package is loaded."""
    return networks(key.partition(":")[0])[key]


def image(size: int | tuple[int, ...] = 224, batch: int = 1, channels: int = 3) -> Callable[[torch.Generator], Any]:
    """Return a feed of square pictures, or of a stack of frames where `size` has more than one number."""
    shape = (size, size) if isinstance(size, int) else size
    return lambda generator: torch.randn((batch, channels, *shape), generator=generator)


def made(spec: Any, generator: torch.Generator) -> Any:
    """Return what a specification of inputs stands for.

    Parameters
    ----------
    spec : object
        A dict of specifications, a shape (tuple of numbers) for random numbers, a list for a tensor of its values, a
        tuple of specifications, a tuple of a kind and what it needs, or anything else, which is handed on:
        ``("ids", below, *shape)`` numbers of tokens, the lowest three left out; ``("marked", mark, count, rows,
        length)`` the same with a run of marks in each row; ``("rows", n, width)`` positions of tokens; ``("pair",
        *shape)`` cosines and sines; ``("uniform", *shape)``, ``("ones", *shape)``, ``("zeros", *shape)``, ``("true",
        *shape)``, ``("int ones", *shape)``, ``("int zeros", *shape)``; ``("box", *shape)`` places on a page;
        ``("first", rows, length, n)`` a mask of the first n; ``("patches", rows, n, width)`` of a
        picture, each behind its row and column; ``("as is", value)``.
    generator : Generator
        Where random numbers come from.
    """
    if isinstance(spec, dict):
        return {name: made(part, generator) for name, part in spec.items()}
    if isinstance(spec, list):
        return torch.tensor(spec)
    if not isinstance(spec, tuple):
        return spec
    if isinstance(spec[0], str):
        return _KINDS[spec[0]](generator, *spec[1:])
    if all(isinstance(size, int) for size in spec):
        return torch.randn(spec, generator=generator)
    return tuple(made(part, generator) for part in spec)


def _ids(generator: torch.Generator, below: int, *shape: int) -> torch.Tensor:
    return torch.randint(3, below, shape, generator=generator)


def _marked(generator: torch.Generator, mark: int, count: int, rows: int, length: int) -> torch.Tensor:
    ids = _ids(generator, 100, rows, length)
    ids[:, 1 : count + 1] = mark
    return ids


def _pair(generator: torch.Generator, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.randn(shape, generator=generator)
    return angles.cos(), angles.sin()


def _patches(generator: torch.Generator, rows: int, count: int, width: int) -> torch.Tensor:
    places = 1 + torch.arange(count).repeat(rows, 2, 1).transpose(1, 2).float()
    return torch.cat([places, torch.randn((rows, count, width), generator=generator)], dim=2)


_KINDS: dict[str, Callable[..., Any]] = {
    "as is": lambda _, value: value,
    "box": lambda _, *shape: torch.tensor([10, 20, 30, 40]).repeat(*shape, 1),
    "first": lambda _, rows, length, count: (torch.arange(length) < count).repeat(rows, 1),
    "ids": _ids,
    "int ones": lambda _, *shape: torch.ones(shape, dtype=torch.long),
    "int zeros": lambda _, *shape: torch.zeros(shape, dtype=torch.long),
    "marked": _marked,
    "ones": lambda _, *shape: torch.ones(shape),
    "pair": _pair,
    "patches": _patches,
    "rows": lambda _, count, width: torch.arange(count).unsqueeze(1).repeat(1, width).float(),
    "true": lambda _, *shape: torch.ones(shape, dtype=torch.bool),
    "uniform": lambda generator, *shape: torch.rand(shape, generator=generator),
    "zeros": lambda _, *shape: torch.zeros(shape),
}

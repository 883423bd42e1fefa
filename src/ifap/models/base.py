"""What a model is: a function that builds an untrained network from a few whole numbers.

A network on disk names its builder as an identifier and arguments (``ifap:resnet_tiny`` and
``{"num_classes": 10, ...}``), so that it can be built again without unpickling anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from ifap.errors import PlanError, nearest
from ifap.registry import Registry

PREFIX = "ifap:"
# A plan may come from anywhere: bounds keep a hostile one from asking for all memory.
LIMITS = {"num_classes": 100_000, "in_channels": 64, "image_size": 1024}


class Build(Protocol):
    """Build one untrained network; its weights come from torch's global generator."""

    def __call__(self, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
        """Return the network, for inputs of shape (batch, in_channels, image_size, image_size)."""
        ...


MODELS: Registry[Build] = Registry("model", "ifap.models")


def builder_id(model: str) -> str:
    """Return the identifier that a plan keeps for a model of this package."""
    return PREFIX + model


def builder_from_id(identifier: str | None, args: Mapping[str, Any]) -> nn.Module:
    """Build the unpruned network that a plan names.

    Parameters
    ----------
    identifier : str or None
        Such as ``ifap:resnet_tiny``; None if the network was built by other code.
    args : mapping
        Its arguments: ``num_classes``, ``in_channels`` and ``image_size``.

    Raises
    ------
    PlanError
        If the identifier or an argument is not one of this package's.
    """
    if not isinstance(identifier, str) or not identifier.startswith(PREFIX):
        raise PlanError(f"builder {identifier!r} is not one of this package ('{PREFIX}NAME'): pass a builder function")
    name = identifier.removeprefix(PREFIX)
    if name not in MODELS.names():
        raise PlanError(f"plan names the unknown model '{name}': {nearest(name, MODELS.names())}")
    return MODELS.get(name)(**_checked(args))


def _checked(args: Mapping[str, Any]) -> dict[str, int]:
    if set(args) != set(LIMITS):
        raise PlanError(
            f"builder arguments must be {', '.join(LIMITS)}; the plan has {', '.join(map(str, args)) or 'none'}"
        )
    for name, limit in LIMITS.items():
        value = args[name]
        if type(value) is not int or not 1 <= value <= limit:
            raise PlanError(f"builder argument {name} must be a whole number from 1 to {limit}, not {value!r}")
    return dict(args)

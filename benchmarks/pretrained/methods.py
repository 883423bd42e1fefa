"""The methods of the table: this project's by `ifap.prune`, and the rivals by their ways, under one name each."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.pretrained.case import Kind
from benchmarks.pretrained.cutting import by_score
from benchmarks.pretrained.rivals import RIVALS, Rival
from ifap.errors import ConfigError, nearest
from ifap.methods import METHODS

UNPRUNED = "unpruned"
STEPS: dict[str, int | None] = {"flow": None}  # the default call; a rival does what its paper does, at once
FEW = 2  # iterations of the other methods, which are made for training between many
# What is tried by default, if it is registered: the first are ours and the controls.
DEFAULT = (
    *("flow", "ifap_readers", "ifap", "magnitude", "random", "taylor"),
    *("tp_group_magnitude", "tp_group_taylor", "tp_bn_scale", "tp_isomorphic", "fastnas"),
    *("flap", "wanda_structured", "llm_pruner_global", "llm_pruner_local", "shortgpt"),
)


def names() -> list[str]:
    """Return every method that there is."""
    return sorted({*METHODS.names(), *RIVALS.names()})


def chosen(wanted: Iterable[str]) -> list[str]:
    """Return methods in the order asked for, or those of `DEFAULT` that are registered.

    Raises
    ------
    ConfigError
        If one is unknown; the message gives the nearest.
    """
    known, asked = names(), [name for name in wanted if name]
    for name in asked:
        if name not in known:
            raise ConfigError(f"unknown method '{name}': {nearest(name, known)}")
    return asked or [name for name in DEFAULT if name in known]


def rival(name: str) -> Rival:
    """Return what stands behind a name; this project's methods look like rivals."""
    if name in RIVALS.names():
        return RIVALS.get(name)
    METHODS.get(name)
    return Rival(by_score(name, steps=STEPS.get(name, FEW)), "this project's")


def applies(name: str, kind: Kind, compensate: bool) -> bool:
    """Return whether a method is made for a kind of network, and if asked can be followed by our compensation."""
    found = rival(name)
    return kind in found.kinds and (found.compensates or not compensate)

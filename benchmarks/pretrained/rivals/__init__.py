"""Rivals, each from its paper and by the library's own axes: one file each.

A rival is a *way*: it is given a case and a share of its MACs, and returns a smaller network. Those that only score
units are methods of `ifap` as well, with their scores registered beside them, so that they end at the same MACs as ours
to within one unit and can be followed by our compensation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn

from benchmarks.pretrained.case import Case, Kind
from ifap.registry import Registry


class Way(Protocol):
    """What takes a network to fewer MACs."""

    def __call__(self, case: Case, share: float, *, compensate: bool) -> nn.Module:
        """Return the network without a share of its MACs."""
        ...


@dataclass(frozen=True)
class Rival:
    """One line of the list of rivals.

    Parameters
    ----------
    way : callable
        See `Way`.
    title : str
        For the page.
    kinds : tuple of str
        Kinds of networks that it is made for.
    compensates : bool
        Whether our compensation can follow it.
    """

    way: Way
    title: str
    kinds: tuple[Kind, ...] = ("convolutional", "transformer")
    compensates: bool = True


RIVALS: Registry[Rival] = Registry("rival", __name__)

"""Rivals, each from its paper and by the library's own axes: one file each.

A rival is a *way*: it is given a case and a share of its MACs, and returns a smaller network. Those that only score
units are functions that `ifap.prune` takes as a method: they end at the same MACs as ours to within one unit, and our
compensation can follow them.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.pretrained.case import Kind, Way
from ifap.registry import Registry


@dataclass(frozen=True)
class Rival:
    """One line of the list of rivals.

    Parameters
    ----------
    way : callable
        See `benchmarks.pretrained.case.Way`.
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

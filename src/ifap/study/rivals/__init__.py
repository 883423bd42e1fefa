"""Methods that prune in a training of their own: one file a method.

Most mask single weights. They leave the shape of a network as it is and set weights to zero, so
nothing gets faster; what they save is theoretical (`ifap.costs.nonzero_macs`). Those that cut
channels return a smaller network.
"""

from __future__ import annotations

from ifap.methods import METHODS
from ifap.registry import Registry
from ifap.study.rivals.base import Context, Event, Outcome, SparseMethod

__all__ = ["SPARSE", "Context", "Event", "Outcome", "SparseMethod"]

SPARSE: Registry[SparseMethod] = Registry("method", __name__)

METHODS.also("ifap.study.methods")

"""The small dense control as a method: narrow the untrained network, and train it for the whole budget."""

from __future__ import annotations

import dataclasses

from ifap.forward import device_of, to_device
from ifap.study.rivals import SPARSE
from ifap.study.rivals.base import Context, Outcome
from ifap.study.rivals.narrow import structure
from ifap.study.rivals.run import cut_outcome, train


@SPARSE.register("small_dense")
def small_dense(context: Context) -> Outcome:
    """A network of the target's MACs, every layer narrowed alike, trained from new weights.

    Train once; nothing is pruned on the way.
    """
    wide = context.build()
    inputs = to_device(context.example_inputs, device_of(wide))
    small = structure(wide, inputs, context.target, seed=context.seed, **context.limits)
    rows = train(context, small.model)
    return cut_outcome(context, dataclasses.replace(small, model=small.model.eval()), rows, small.after.macs)

"""Carry axes from the inputs of each operation of torch to its outputs: one rule an operation.

A rule takes the tracer, the arguments and the output, and gives the dimensions of the output. Operations that work on
each value alone need no entry (torch tags them). An operation without a rule pins its inputs and is recorded.
"""

from ifap.axes.operations import indices, norms, positions, products, reductions, shapes, values

__all__ = ["indices", "norms", "positions", "products", "reductions", "shapes", "values"]

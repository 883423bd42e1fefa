"""How each operation of torch carries axes from its inputs to its outputs: one rule an operation.

A rule takes the tracer, the arguments and the output, and gives the dimensions of the output. Operations that work on
each value alone need no entry (torch tags them). An operation without a rule pins what it touches and says so.
"""

from ifap.axes.operations import indices, norms, positions, products, reductions, shapes, values
from ifap.axes.operations.base import RULES, rule
from ifap.axes.operations.values import pointwise
from ifap.axes.trace import Dims, Rule, tensors_in

PARTS = (values, shapes, indices, reductions, products, norms, positions)
"""The modules that register rules."""

__all__ = ["PARTS", "RULES", "Dims", "Rule", "pointwise", "rule", "tensors_in"]

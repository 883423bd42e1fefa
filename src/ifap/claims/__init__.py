"""From records to the report: tables, figures and the page that shows them, each with its origin."""

FIGURES = (
    *("parameters", "macs", "top1", "top5"),
    *("accuracy_macs", "accuracy_params", "flow_scheme", "layer_widths", "experiments"),
)
"""Names of the figures of one scale; each is written as SVG and PNG."""
STRUCTURE_VERSION = 1
"""Raise it when the way of counting full-size networks changes: all of them are then counted again."""
TEXT_STRUCTURE_VERSION = 1
"""The same for the language models of Table V."""
DENSE_STRUCTURE_VERSION = 1
"""The same for the detectors, segmenters and generators of Table III."""

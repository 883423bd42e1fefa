"""From records to the report: tables, figures and the page that shows them, each with its origin."""

from collections.abc import Collection

FIGURES = (
    *("parameters", "macs", "top1", "top5"),
    *("accuracy_macs", "accuracy_params", "flow_scheme", "layer_widths", "experiments"),
)
"""Names of the figures of every scale; each is written as SVG and PNG."""
SAMPLES = "samples"
"""The figure of what generators made; a scale has it if it has generators."""
STRUCTURE_VERSION = 1
"""Raise it when the way of counting full-size networks changes: all of them are then counted again."""
TEXT_STRUCTURE_VERSION = 1
"""The same for the language models of Table V."""
DENSE_STRUCTURE_VERSION = 1
"""The same for the detectors, segmenters and generators of Table III."""


def figure_names(tasks: Collection[str]) -> tuple[str, ...]:
    """Return the figures of a scale whose grid has these tasks."""
    return (*FIGURES, SAMPLES) if "generation" in tasks else FIGURES

"""From records to the report: tables, figures and the page that shows them, each with its origin."""

from collections.abc import Collection

FIGURES = (
    *("parameters", "macs", "top1", "top5"),
    *("accuracy_macs", "accuracy_params", "flow_scheme", "layer_widths", "experiments"),
)
"""Names of the figures of every scale; each is written as SVG and PNG."""
SAMPLES = "samples"
"""The figure of what generators made; a scale has it if it has generators."""
FULL_SIZE_VERSIONS = {"classifier": 1, "language": 1, "dense": 1}
"""By kind of network; raise it when the way of counting them at full size changes: they are then counted again."""


LOSSES = "losses"
"""The figure of losses against reductions, printed and measured; a scale has it if its data are the paper's."""


def figure_names(tasks: Collection[str], *, paper_data: bool = False) -> tuple[str, ...]:
    """Return the figures of a scale whose grid has these tasks."""
    return (*([LOSSES] if paper_data else []), *FIGURES, *([SAMPLES] if "generation" in tasks else []))

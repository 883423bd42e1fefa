"""MACs of the vision networks: printed counts and reductions against the architectures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

from ifap.study.paper.audit.architectures import TORCHVISION, Architecture, architecture
from ifap.study.paper.audit.findings import Finding
from ifap.study.paper.audit.printed import Printed, Row, having, possible_change, relative_change
from ifap.study.paper.audit.trace import traces


class Reduction(NamedTuple):
    """A printed reduction of MACs: in words, the least it can stand for in percent, and its claims."""

    text: str
    least: Decimal
    claims: tuple[str, ...]


def reductions_beyond_rule(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find reductions of MACs that pruning by the stated rule cannot reach."""
    for model in TORCHVISION:
        printed = _reductions(rows, model)
        if not printed or not architecture(model).sorts:
            continue
        counted = architecture(model)
        most = 100 * (1 - counted.left)
        over = [reduction for reduction in printed if float(reduction.least) > most]
        if not over:
            continue
        depthwise = "depthwise" in counted.sorts
        lines = list(_bound(counted, most))
        if depthwise:
            lines.append("no bound where a 1x1 convolution may lose outputs together with the depthwise one behind it")
        lines += [reduction.text for reduction in over]
        title = f"{model}: {len(over)} printed reductions of MACs are above {most:.1f} %"
        claims = tuple(claim for reduction in over for claim in reduction.claims)
        yield Finding("reach", "info" if depthwise else "major", title, "\n".join(lines), claims)


def _reductions(rows: Sequence[Row], model: str) -> list[Reduction]:
    found = []
    for row in having(rows, "gmacs_delta"):
        if row.model == model:
            delta = row.values["gmacs_delta"]
            least = -delta.high
            found.append(Reduction(f"{row.where}: {delta.text} %, at least -{least} %", least, (delta.id,)))
    for trace in traces(rows):
        first, last = trace[0].values["gmacs"], trace[-1].values["gmacs"]
        if trace[0].model == model:
            least = -possible_change(first, last).relative[1]
            words = f"{trace[0].where}: {first.text} to {last.text} is {relative_change(first, last):.1f} %"
            found.append(Reduction(f"{words}, at least -{least:.1f} %", least, (first.id, last.id)))
    return found


def _bound(counted: Architecture, most: float) -> Iterator[str]:
    """Show how a network's largest reduction by the rule comes about."""
    for sort, (whole, left) in counted.sorts.items():
        yield f"{sort:<10} {whole / 1e9:.3f} GMACs, at least {left / 1e9:.3f} left"
    yield (
        f"{counted.name} at {counted.size} px: {counted.macs / 1e9:.3f} GMACs, at least "
        f"{counted.left * counted.macs / 1e9:.3f} left: at most -{most:.1f} %"
    )


def base_macs(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find counts before pruning that are not those of the architecture."""
    printed: dict[tuple[str, str], list[Printed]] = defaultdict(list)
    for row in having(rows, "gmacs_base"):
        if row.model in TORCHVISION:
            value = row.values["gmacs_base"]
            printed[row.model, value.text].append(value)
    for (model, text), values in printed.items():
        counted = architecture(model)
        exact = Decimal(counted.macs) / 10**9
        value = values[0]
        if value.holds(exact, exact):
            continue
        cut = value.cuts_off(exact)
        off = "digits cut off instead of rounded" if cut else f"{100 * (value.number / exact - 1):+.1f} %"
        arithmetic = (
            f"{counted.name} at {counted.size} px: {counted.macs:,} = {exact:.3f} GMACs\n"
            f"printed {text}, which stands for {value.low} to {value.high}; {off}"
        )
        title = f"{model}: {text} GMACs before pruning, {exact:.2f} by torchvision's network"
        claims = tuple(value.id for value in values)
        yield Finding("base-macs", "info" if cut else "minor", title, arithmetic, claims)

"""The page of the coverage, written from its table: how many, how well proven, and every network that falls short."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.coverage.registry import DISTRIBUTIONS, PACKAGES
from benchmarks.coverage.table import COLUMNS

PAGE = Path("docs") / "coverage.md"
STATES = ("reached", "partly", "refused", "traceback", "timeout", "wrong")
LONGEST = 240
RETURNED = ("reached", "partly", "wrong")
MOST_REASONS = 25

Row = dict[str, Any]


CRASH = (
    "*Ended by signal 11*: the pruned network holds `Conv2d(1, 1, (65, 1), padding=(32, 0))`. In torch 2.14 the",
    "backward of this layer writes outside of its memory on a CPU. It also does so in a network that was not pruned.",
    "With two channels it does not.",
)
LOST = "e7fcc99a7"  # the commit of many rows of the default method; the history of this repository does not hold it


def write(rows: dict[str, Row], defaults: dict[str, Row], path: Path = PAGE) -> None:
    """Write the page; the same tables give the same page."""
    path.write_text(render(list(rows.values()), list(defaults.values())))


def render(rows: list[Row], defaults: list[Row]) -> str:
    """Return the page as text: networks pruned in four iterations, and those pruned with the default method."""
    parts = [
        _head(rows),
        _counts(rows),
        _checks(rows),
        _proof(rows),
        _defaults(defaults, rows),
        _peer(rows),
        _short(rows),
        _unable(rows),
        _stays(rows),
        _about(rows),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(rows: list[Row]) -> str:
    reached = sum(row["state"] == "reached" for row in rows)
    return f"""# Public networks, one by one

In {reached} of {len(rows)} public networks one call of `ifap.prune` with the paper's method, `ifap`, removes half of
the MACs. [The default method](#the-default-method), `flow`, was tried on fewer networks. The call has the same options
for each network:

<!-- not run: what the coverage calls -->
```python
target = ifap.Target(macs=0.5)
pruned = ifap.prune(network, inputs, [inputs, inputs], target=target, steps=4, min_units=1, method="ifap")
```

It removes half of the MACs in four iterations (`steps`). A layer may keep a single unit (`min_units`).

The networks are the smallest network of each source file of timm, every model builder of torchvision, one small network
of each family of transformers, networks of diffusers, and the architectures of segmentation-models-pytorch. Four more
packages are not installed with the project: vit-pytorch, x-transformers, MONAI and ultralytics. All networks have
random weights, because widths and shapes do not depend on the weights. This page says which networks can be cut, and
whether the pruned networks work. It says nothing about accuracy. The table is
[`coverage.csv`](../results/bench/coverage.csv). The [glossary](glossary.md) defines the terms."""


def _counts(rows: list[Row]) -> str:
    lines = ["## How many", "", *_states(rows)]
    lines += [
        "",
        _paragraph(
            "*Reached*: at least 50.0 % of the MACs were removed, and all checks below hold.",
            "*Partly*: half of the MACs is out of reach. The error of the call named the largest possible reduction,",
            "and a further call that asked for slightly less succeeded.",
            "*Refused*: the call raised an error of this library, with its reason.",
            "*Traceback*: the call raised another error.",
            "*Timeout*: the network needed more than the time limit.",
            "*Wrong*: the call returned a network and a check failed.",
        ),
    ]
    return "\n".join(lines)


def _states(rows: list[Row]) -> list[str]:
    """Return the lines of a table: networks of each package in each state."""
    lines = [_row(["", "networks", *STATES]), _rule(2 + len(STATES))]
    for package in PACKAGES:
        found = Counter(row["state"] for row in _of(rows, package))
        if found:
            lines.append(_row([package, found.total(), *(found[state] for state in STATES)]))
    whole = Counter(row["state"] for row in rows)
    lines.append(_row(["all", whole.total(), *(whole[state] for state in STATES)]))
    return lines


def _defaults(rows: list[Row], every: list[Row]) -> str:
    if not rows:
        return ""
    lines = ["## The default method", "", *_states(rows), ""]
    found = [(len(_of(rows, package)), len(_of(every, package)), package) for package in PACKAGES]
    tried = ", ".join(f"{some} of {number} networks of {package}" for some, number, package in found if number)
    lines.append(
        _paragraph(
            "The same target and checks with the default method, `flow`: one iteration with compensation. The",
            "table is [`coverage_defaults.csv`](../results/bench/coverage_defaults.csv).",
            f"It was tried on {tried}.",
            *_versions(rows),
            *_sources(rows),
        )
    )
    short = [row for row in rows if row["state"] != "reached"]
    lines += ["", *_reasons(short)] if short else []
    if any(row["reason"].startswith("ended by signal") for row in short):
        lines += ["", _paragraph(*CRASH)]
    return "\n".join(lines)


def _versions(rows: list[Row]) -> list[str]:
    """Say that the rows are not all of one version."""
    commits = len({row["commit"] for row in rows})
    return [f"The rows are of {commits} commits, and so of earlier versions of `flow`."] if commits > 1 else []


def _sources(rows: list[Row]) -> list[str]:
    """Say of how many rows the commit does not tell all."""
    dirty = sum(row["dirty"] == "True" for row in rows)
    lost = sum(row["commit"].startswith(LOST) for row in rows)
    said = []
    if lost:
        said.append(f"{lost} rows name the commit {LOST}, which the history of this repository does not hold.")
    if dirty:
        said.append(f"{dirty} rows were measured with files that differed from their commit (`dirty`).")
    return said


def _checks(rows: list[Row]) -> str:
    returned = [row for row in rows if row["state"] in RETURNED]
    names = {
        "reload": "saved, loaded in a new process: equal bit by bit",
        "shapes": "outputs keep their shapes",
        "batch": "another batch size runs",
        "trains": "forward and backward in training mode",
        "generates": "generates four tokens greedily",
    }
    lines = [
        f"## Checks of the {len(returned)} returned networks",
        "",
        _row(["", "holds", "fails", "not applicable"]),
    ]
    lines.append(_rule(4))
    for column, text in names.items():
        found = Counter(_verdict(row[column]) for row in returned)
        lines.append(_row([text, found["holds"], found["fails"], found["none"]]))
    lines += ["", "*Not applicable*: the unpruned network cannot do it either."]
    return "\n".join(lines)


def _verdict(value: str) -> str:
    if value in ("equal", "same", "yes"):
        return "holds"
    return "none" if value in ("", "no", "-") else "fails"


def _proof(rows: list[Row]) -> str:
    proven = [float(row["proof_difference"]) for row in rows if row["proof_difference"]]
    if not proven:
        return ""
    units = sum(int(row["proof_units"] or 0) for row in rows)
    exempt: Counter[str] = Counter()
    for row in rows:
        for part in filter(None, row["proof_exempt"].split("; ")):
            reason, _, count = part.rpartition(": ")
            exempt[reason] += int(count)
    lines = [
        "## Proof",
        "",
        _paragraph(
            "The network in which the removed units are set to zero and the network without these units must have",
            "equal outputs. The proof compares them in double precision, with random weights and before any change of",
            f"weights by compensation: it proves the cut, not the accuracy. It compared {units:,} units of",
            f"{len(proven)} networks. The largest difference is {max(proven):.2g} of the largest output.",
        ),
    ]
    if exempt:
        lines += [
            "",
            _paragraph(
                "Setting units to zero is not the same as removing them where something averages over them: zeros",
                "count in the average, removed units do not. The proof makes these averages agree. Where a unit that",
                "is set to zero does not stay zero until the average, the proof leaves such units in both networks.",
                "In other networks no comparison is possible. The units that were not compared, by reason:",
            ),
            "",
        ]
        lines += [f"- {reason}: {count:,} units" for reason, count in exempt.most_common()]
    return "\n".join(lines)


def _peer(rows: list[Row]) -> str:
    both = [row for row in rows if row["peer_state"]]
    if not both:
        return ""
    lines = [
        "## Torch-Pruning on the same networks",
        "",
        _row(["", "networks", "this library", "Torch-Pruning"]),
        _rule(4),
    ]
    for package in (*PACKAGES, ""):
        some = [row for row in both if not package or row in _of(both, package)]
        if some:
            counts = [sum(row[column] == "reached" for row in some) for column in ("state", "peer_state")]
            lines.append(_row([package or "all", len(some), *counts]))
    raised = Counter(row["peer_reason"].partition(":")[0] for row in both if row["peer_state"] == "traceback")
    late = sum(row["peer_state"] == "timeout" for row in both)
    shown = ", ".join(f"{name} {count}" for name, count in raised.most_common(6))
    lines += [
        "",
        _paragraph(
            "A network counts if half of its MACs are removed and the pruned network runs with outputs of the same",
            "shapes; for this library it must also pass the other checks. Torch-Pruning is used as in its own",
            "examples: group magnitude over the whole network, an unpruned classifier, declared heads of attention,",
            "and steps until half of the MACs are removed.",
            f"Its errors: {shown or 'none'}; {late} networks exceeded the time limit.",
        ),
    ]
    return "\n".join(lines)


def _short(rows: list[Row]) -> str:
    short = [row for row in rows if row["state"] != "reached"]
    return "\n".join(["## Every network below half, and why", "", *(_reasons(short) if short else ["None."])])


def _reasons(short: list[Row]) -> list[str]:
    """Return the lines of a table: each network below half, with the reason."""
    lines = [_row(["network", "state", "MACs", "reason"]), _rule(4, numbers=(2,))]
    for row in sorted(short, key=lambda row: (STATES.index(row["state"]), row["key"])):
        share = f"\N{MINUS SIGN}{float(row['achieved']):.1%}".replace("%", " %") if row["achieved"] else ""
        lines.append(_row([f"`{row['key']}`", row["state"], share, _cell(row["reason"])]))
    return lines


def _unable(rows: list[Row]) -> str:
    """Return what not even the unpruned networks do, for the checks to be read rightly."""
    lines = []
    for column, text in (("trains", "have no gradient without targets"), ("batch", "accept one batch size only")):
        names = [f"`{row['key']}`" for row in rows if row[column] == "no"]
        if names:
            lines.append(f"- {len(names)} {text}: {', '.join(names)}.")
    return "\n".join(["Of the unpruned networks:", "", *lines]) if lines else ""


def _stays(rows: list[Row]) -> str:
    reasons: Counter[str] = Counter()
    networks: dict[str, set[str]] = {}
    for row in rows:
        for reason in re.findall(r" [0-9.]+% \(((?:[^()]|\([^()]*\))*)\)", row["stays"]):
            plain = re.sub(r"'[^']*'|[0-9]+", "…", reason)
            reasons[plain] += 1
            networks.setdefault(plain, set()).add(row["key"])
    lines = [
        "## What stays",
        "",
        "The table counts layers whose outputs are kept, by reason: in each network the five with the most MACs.",
        "",
    ]
    lines += [_row(["reason", "layers", "networks", "for example"]), _rule(4, numbers=(1, 2))]
    for reason, count in reasons.most_common(MOST_REASONS):
        lines.append(_row([_cell(reason), count, len(networks[reason]), f"`{min(networks[reason])}`"]))
    rest = reasons.most_common()[MOST_REASONS:]
    if rest:
        lines += ["", f"{len(rest)} more reasons hold for {sum(count for _, count in rest)} layers."]
    return "\n".join(lines) if reasons else ""


def _about(rows: list[Row]) -> str:
    versions = {
        DISTRIBUTIONS.get(package, package): {row["version"] for row in _of(rows, package)} for package in PACKAGES
    }
    torch = sorted({row["torch"] for row in rows if row["torch"]})
    named = [f"{name} {', '.join(sorted(found))}" for name, found in versions.items() if found]
    columns = "\n".join(f"- `{name}`: {text}" for name, text in COLUMNS.items())
    peer = _paragraph(
        "`--peer` also prunes the networks with Torch-Pruning and fills the columns `peer_...`.",
        *([] if any(row["peer_state"] for row in rows) else ["In the recorded table these columns are empty."]),
        *_sources(rows),
    )
    return f"""## How to run it

`python -m benchmarks.coverage` prunes all networks. Each network runs in a process of its own on one thread. After an
interruption use `--resume` to continue. `--only 'timm:res*'` and `--package diffusers` select networks, `--small`
selects twelve of all kinds, `--check` only builds and runs them. `--defaults` uses the default method.
`python -m benchmarks.coverage --page` writes this page. The last four packages are measured where they are installed:
`pip install --no-deps vit-pytorch x-transformers monai ultralytics einops`, and what these import.

{peer}

Versions: torch {", ".join(torch)}; {"; ".join(named)}.

Columns of the table:

{columns}"""


def _paragraph(*sentences: str) -> str:
    return textwrap.fill(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False)


def _of(rows: list[Row], package: str) -> list[Row]:
    return [row for row in rows if row["key"].partition(":")[0] == package]


def _row(cells: list[Any]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _rule(columns: int, numbers: tuple[int, ...] | None = None) -> str:
    wanted = range(1, columns) if numbers is None else numbers
    return f"|{'|'.join('---:' if i in wanted else '---' for i in range(columns))}|"


def _cell(text: str) -> str:
    """Return text that stays within one cell of a table and means nothing to a renderer."""
    plain = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
    return plain if len(plain) <= LONGEST else f"{plain[:LONGEST]}..."

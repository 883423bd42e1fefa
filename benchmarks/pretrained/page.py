"""The page, written from the table: what is left of each network, by method, and how ours compares."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.pretrained.carriers import READ
from benchmarks.pretrained.case import Network
from benchmarks.pretrained.methods import UNPRUNED, applies, chosen
from benchmarks.pretrained.networks import NETWORKS
from benchmarks.pretrained.rivals import RIVALS
from benchmarks.pretrained.table import COLUMNS
from ifap.files import atomic_write_text

PAGE, README = Path("docs") / "pretrained.md", Path("README.md")
SECTION = re.compile(r"(?<=<!-- trained networks: written by `python -m benchmarks.pretrained --page` -->\n).*?(?=<!-- end of trained networks -->)", re.DOTALL)  # fmt: skip  # noqa: E501
OURS = ("flow", "ifap_readers")  # the first that has rows is what others are compared with
Row = dict[str, Any]
_SAME_RUN = ("commit", "torch", "cpu", "threads")


def write(rows: list[Row]) -> None:
    """Write the page, and the short table of README.md; the same rows give the same text."""
    atomic_write_text(PAGE, render(rows))
    atomic_write_text(README, SECTION.sub(lambda _: short_table(rows), README.read_text()))


def short_table(rows: list[Row]) -> str:
    """Return what the default call leaves of each network, as Markdown."""
    heads = ["network", "MACs", "same answer", "KL", "measure", "unpruned", "pruned"]
    lines = ["", _line(heads), "|---|---:|---:|---:|---|---:|---:|"]
    for key, network in NETWORKS.items():
        own = [row for row in rows if row["network"] == key and row["state"] == "done"]
        before = next((row["metric"] for row in own if row["method"] == UNPRUNED), "")
        for row in sorted(own, key=lambda row: float(row["target"])):
            if row["method"] == OURS[0] and row["compensated"] == "yes":
                same, measured = f"{100 * float(row['agreement']):.0f} %", [before, row["metric"]]
                title = network.title.split(",")[0].split(" (")[0]
                cells = [title, _share(row["achieved"]), same, _number(row["kl"]), row["metric_name"]]
                cells += map(_number, measured)
                lines.append(_line(cells))
    return "\n".join([*lines, "", ""])


def render(rows: list[Row]) -> str:
    """Return the page as text."""
    parts = [_head()]
    for key, network in NETWORKS.items():
        own = [row for row in rows if row["network"] == key]
        parts.append(f"## {network.title}\n\n{_section(own, network) if own else 'Not run yet.'}")
    parts += [_methods(), _data(), _columns(rows)]
    return "\n\n".join(parts) + "\n"


def _head() -> str:
    return """# Trained networks, pruned without training

This page measures how good trained networks still are after one call of `ifap.prune`, without any training
afterwards. It shows the default method, and those other methods of this project, controls (simple methods) and rivals
(published methods) that have been run. Many have not been run: each section lists them. All rows of a network use the
same calibration data and end at the same MACs, unless the table says otherwise. The table is
[`pretrained.csv`](../results/bench/pretrained.csv).

- *KL*: the divergence of the pruned network's probabilities from the original's, in nats. It needs no labels.
- *agreement*: the share of samples with the same first choice as the original. It needs no labels.
- *against ours*: the loss of the row, divided by the loss of `flow` with compensation. Above 1 is worse than ours.
  The loss is the KL; for encoders it is one minus the mean cosine, for maps the relative error. Only rows of the same
  commit, packages and machine are compared.
- *seconds*, *MB*: processor time and peak memory of the call.

Three kinds of data share no image and no article. *Calibration* data are given to `ifap.prune`. *Development* data
served to choose between variants of the method. *Held-out* data give the numbers of this page. There is one
exception: the 20 images of ImageNet are also among the 512 calibration images, without their labels. So the top-1 of
EfficientNet-Lite0 is not of held-out data in the first section. The section on folds measures such images when
calibration has not seen them: all its columns are of the 20 images. Twenty images are few: one of them is five points
of accuracy."""


def _section(rows: list[Row], network: Network) -> str:
    name = rows[0]["metric_name"]
    unpruned = [row for row in rows if row["method"] == UNPRUNED]
    lines = [f"Unpruned: {name} {_number(unpruned[0]['metric'])}." if unpruned else "The unpruned network was not run."]
    has_rank = any(row.get("rank") for row in rows)
    heads = ["removed", "method", "compensated", "KL", "agreement", name, *(["rank"] if has_rank else [])]
    heads += ["against ours", "seconds", "MB"]
    for target in (f"{share:g}" for share in network.targets):
        own = [row for row in rows if row["target"] == target]
        if own:
            lines += ["", _line(heads), _rule(heads)]
            lines += [_line(_cells(row, reference(own), has_rank)) for row in sorted(own, key=_order)]
        lines += ["", _paragraph(f"Not run at {_share(target)}: {_absent(own, network) or 'none'}.")]
    return "\n".join(lines)


def _absent(rows: list[Row], network: Network) -> str:
    """Return what has no row of all that is tried by default, in words."""
    there = {(row["method"], row["compensated"]) for row in rows}
    found = []
    for name in chosen([]):
        left = [
            words
            for words, compensate in (("plain", False), ("compensated", True))
            if applies(name, network.kind, compensate) and (name, "yes" if compensate else "no") not in there
        ]
        if left:
            found.append(f"`{name}` ({' and '.join(left)})")
    return ", ".join(found)


def reference(rows: list[Row]) -> Row | None:
    """Return the row of ours that the others of the same target are compared with."""
    for method in OURS:
        for row in rows:
            if row["method"] == method and row["compensated"] == "yes" and row["state"] == "done":
                return row
    return None


def ratio(row: Row, ours: Row | None) -> float | None:
    """Return the loss of a row in multiples of ours; None unless both come from one run."""
    if ours is None or any(row.get(name) != ours.get(name) for name in _SAME_RUN):
        return None
    mine, theirs = loss(ours), loss(row)
    return theirs / mine if mine and theirs is not None else None


def loss(row: Row) -> float | None:
    """Return what is to be small: KL; else the relative error of maps, or one minus the mean cosine."""
    if row["state"] != "done":
        return None
    if row.get("kl"):
        return float(row["kl"])
    if not row.get("metric"):
        return None
    return float(row["metric"]) if row["metric_name"] == "relative error" else 1 - float(row["metric"])


def _order(row: Row) -> tuple[float, str, str]:
    found = loss(row)
    return (float("inf") if found is None else found, row["method"], row["compensated"])


def _cells(row: Row, ours: Row | None, has_rank: bool) -> list[str]:
    if row["state"] != "done":
        said = f"{row['state']}: {_plain(row['reason'])}"
        return [_share(row["target"]), f"`{row['method']}`", row["compensated"], said, *[""] * (5 + has_rank)]
    times = ratio(row, ours)
    return [
        _share(row["achieved"]),
        f"`{row['method']}`",
        row["compensated"],
        _number(row["kl"]),
        _number(row["agreement"]),
        _number(row["metric"]),
        *([_number(row["rank"])] if has_rank else []),
        "" if times is None else f"{times:.2g} x",
        row["seconds"],
        row["peak_mb"],
    ]


def _methods() -> str:
    lines = ["## Rivals", "", "Each is from its paper, on the units that the library finds:", ""]
    lines += [f"- `{name}`: {RIVALS.get(name).title}" for name in RIVALS.names()]
    lines += [
        "",
        _paragraph(
            "If a rival scores units, the library removes the units with the lowest scores, and ends within one unit",
            "of the target. Torch-Pruning's pruners give the order in which they remove units. ShortGPT removes whole",
            "blocks, and FastNAS counts MACs in another way. So these two can miss the target; the column *removed*",
            "says what they reached. Our compensation can follow all rivals except these two. Methods that need a",
            "gradient take the first choice of the original as class, the text itself, or a random projection of the",
            "outputs. No method gets labels. The networks that the study trains are not here, because no package has",
            "their weights.",
        ),
    ]
    return "\n".join(lines)


def _data() -> str:
    lines = [
        "## Weights and data",
        "",
        "Fetched by `python -m benchmarks.pretrained fetch` and checked by SHA-256:",
        "",
    ]
    lines += [_line(["data", "package", "licence"]), _line(["---"] * 3)]
    for key, each in READ.items():
        names = ", ".join(f"`{archive.name}` {archive.version} ({each.client})" for archive in each.archives[:1])
        more = f" and {len(each.archives) - 1} more parts" if len(each.archives) > 1 else ""
        lines.append(_line([key, names + more, each.licence]))
    lines += [
        "",
        _paragraph(
            "Packages are read, never installed or imported. Passages of SQuAD come from a file that asks to be kept",
            "out of training corpora: nothing is trained on it here, and nothing of it is in this repository. The",
            "cards of MiniLM and MPNet list SNLI, MultiNLI, QQP and SQuAD's training part among their data; the",
            "passages here are of its development part.",
        ),
    ]
    return "\n".join(lines)


def _columns(rows: list[Row]) -> str:
    runs = sorted({(row["command"], row.get("commit", "")[:8]) for row in rows if row.get("command")})
    commands = [f"- `{command}`{f', commit {commit}' if commit else ''}" for command, commit in runs]
    lines = ["## How it was run", "", *commands, "", "Columns of the table:", ""]
    return "\n".join([*lines, *(f"- **{name}**: {text}" for name, text in COLUMNS.items())])


def _paragraph(*sentences: str) -> str:
    return textwrap.fill(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(heads: list[str]) -> str:
    return f"|{'|'.join('---' if head in ('method', 'compensated') else '---:' for head in heads)}|"


def _share(text: str) -> str:
    return f"\N{MINUS SIGN}{100 * float(text):.1f} %"


def _number(text: str) -> str:
    return f"{float(text):.3g}" if text else ""


def _plain(text: str) -> str:
    return text.replace("|", "\\|")[:200]

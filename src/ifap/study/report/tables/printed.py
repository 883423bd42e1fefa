"""Tables I-V in the paper's layout: every published value, what was measured for it, and why nothing was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby

from ifap.study import paths
from ifap.study.paper.vocabulary import MODELS
from ifap.study.report.full_size import kind_of
from ifap.study.report.judge import SPLIT, Judged, finding_name, is_counted
from ifap.study.report.tables.model import Column, Item, Note, Row, Table
from ifap.study.report.tables.networks import link
from ifap.study.report.tables.numbers import fixed
from ifap.study.templates import MINUS, NO_VALUE, PLUS_MINUS

DAGGER, DOUBLE_DAGGER = "\N{DAGGER}", "\N{DOUBLE DAGGER}"
DELTA = "\N{GREEK CAPITAL LETTER DELTA} %"
TASKS = {
    "%": "Image classification (top-1 accuracy, %)",
    "mAP": "Object detection (mAP)",
    "mIoU": "Image segmentation (mIoU)",
    "FID": "Image generation (FID; less is better)",
}
CV_DATASETS, NLP_DATASETS = ("CIFAR-10", "CIFAR-100", "ImageNet"), ("QQP", "MNLI-m", "SST-2")
MACS_NOTE = "The paper prints this column as GFlops; the numbers are multiply-accumulates (GMACs)."
DELTA_NOTE = "As printed; some changes of the metric are relative and some are percentage points, see the audit."
TRACE_NOTE = "Step 1 is the unpruned network. What is measured here is taken on the validation split."
COUNTED_NOTE = (
    "Counted on the network itself at its full input size (224 pixels; 299 for Inception-v3, 380 for EfficientNet-B4, "
    "384 for EfficientNet V2-S) with the data set's number of classes and random weights: costs need neither data nor "
    "training. A pruned one was pruned without training to the printed reduction, 1x1 convolutions included. So the "
    "change is the printed one by construction: the verdict is 'reachable', and nothing is said about accuracy. See"
)
TEXT_NOTE = (
    "Counted on the network itself at full size with random weights: sizes need neither data nor training. A pruned "
    "one was pruned without training to the printed number of parameters, which it has by construction: the verdict "
    "is 'reachable', and nothing is said about accuracy. See"
)
DENSE_NOTE = (
    "Counted on the network itself at a usual size of images, which the paper does not say, without weights; pruned "
    "without training to the printed reduction, which it has by construction: the verdict is 'reachable', and "
    "nothing is said about accuracy. The sizes, and those that come nearest to the printed costs, are in"
)
COUNTED_NOTES = {"classifier": COUNTED_NOTE, "language": TEXT_NOTE, "dense": DENSE_NOTE}

Key = tuple[str, str, str, int | None]


@dataclass
class Footnotes:
    """The reasons that a table has to give, each once, and the letters that stand for them."""

    scale: str
    taken: int
    reasons: dict[str, str] = field(default_factory=dict)
    findings: dict[str, None] = field(default_factory=dict)
    counted: dict[str, None] = field(default_factory=dict)  # the kinds of networks that were counted at full size

    def mark(self, claims: Iterable[Judged]) -> str:
        """Return the letters of why these claims were not measured."""
        whys = [claim.reason.partition(SPLIT)[2] or claim.reason for claim in claims if _not_attempted(claim)]
        for why in whys:
            self.reasons.setdefault(why, _letters(self.taken + len(self.reasons)))
        return ",".join(dict.fromkeys(self.reasons[why] for why in whys))

    def published(self, claim: Judged, *, best: bool = False) -> Item:
        """Return the printed value, marked and linked where it is inconsistent, with what was measured."""
        href, mark, why = None, "", ""
        if finding := finding_name(claim):
            self.findings[finding] = None
            href, mark = link(f"{paths.audit_file('md')}#{finding}", self.scale), DAGGER
        if is_counted(claim):
            self.counted[kind_of(claim.table, MODELS[claim.model])], why = None, DOUBLE_DAGGER
        measured, origin = _measured(claim, self.scale)
        text = claim.value.replace("-", MINUS)
        return Item(text, href, best, mark=mark, measured=measured, origin=origin, why=why)

    def notes(self) -> tuple[Note, ...]:
        """Return the footnotes."""
        notes = [
            Note(f"{NO_VALUE} not attempted at scale {self.scale}: {why}.", letters)
            for why, letters in self.reasons.items()
        ]
        notes += [Note(f"{COUNTED_NOTES[kind]} {paths.full_size_csv()}.", DOUBLE_DAGGER) for kind in self.counted]
        if self.findings:
            audit = paths.audit_file("md")
            named = ", ".join(self.findings)
            notes.append(Note(f"Inconsistent in the source: see {audit} ({named}).", DAGGER))
        return tuple(notes)


def published_table(number: int, name: str, title: str, claims: Sequence[Judged], scale: str) -> Table:
    """Lay out one published table with its verdicts."""
    own = [claim for claim in claims if claim.table == number]
    columns, rows, notes = LAYOUTS[number](own, scale)
    head = (Note(_summary(own, scale)), Note(_legend(own)))
    return Table(name, title, columns, rows, (*head, *notes))


def _summary(claims: Sequence[Judged], scale: str) -> str:
    counts: dict[str, int] = defaultdict(int)
    for claim in claims:
        counts[claim.verdict] += 1
    shown = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items(), key=lambda pair: -pair[1]))
    return f"{len(claims)} published values at scale {scale}: {shown}. One by one: {paths.report_page(scale)}."


def _legend(claims: Sequence[Judged]) -> str:
    tolerances = dict.fromkeys(claim.tolerance.partition(" + rounding")[0] for claim in claims)
    return (
        f"Beside a published value, in italics: measured mean {PLUS_MINUS} standard deviation (number of seeds). "
        f"Tolerances fixed beforehand: {'; '.join(tolerances)}."
    )


def _not_attempted(claim: Judged) -> bool:
    return claim.verdict == "not attempted"


def _letters(index: int) -> str:
    """Return a, b, ..., z, aa, ab, ... ."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


def _measured(claim: Judged, scale: str) -> tuple[str, str | None]:
    if claim.mean is None:
        return "", None
    exponent = Decimal(claim.value).as_tuple().exponent
    decimals = max(1, -exponent) if isinstance(exponent, int) else 1
    if is_counted(claim):  # exact, so one digit more than printed says more
        return fixed(claim.mean, decimals + (claim.value.count(".") > 0)), link(claim.records, scale)
    spread = f" {PLUS_MINUS} {fixed(claim.sd, decimals)}" if claim.sd is not None else ""
    return f"{fixed(claim.mean, decimals)}{spread} ({claim.n})", link(claim.records.split(";")[0], scale)


def _verdict_item(claims: Sequence[Judged], notes: Footnotes) -> Item:
    """Return what the last column says of one row: its verdicts, or that it was not attempted."""
    measured = [claim for claim in claims if claim.mean is not None]
    verdicts = [claim.verdict for claim in measured]
    mark = notes.mark(claims)
    if not verdicts:
        return Item(NO_VALUE, mark=mark or DAGGER)
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    words = [name if len(counts) == 1 else f"{count} {name}" for name, count in counts.items()]
    about = "costs: " if all(map(is_counted, measured)) else ""  # of a row whose accuracy nothing was measured for
    return Item(f"{about}{', '.join(words)}", mark=mark)


def _by_row(claims: Iterable[Judged]) -> dict[Key, dict[str, Judged]]:
    rows: dict[Key, dict[str, Judged]] = defaultdict(dict)
    for claim in claims:
        rows[claim.dataset, claim.model, claim.method, claim.step][claim.quantity] = claim
    return rows


Layout = tuple[tuple[Column, ...], tuple[Row, ...], tuple[Note, ...]]


def _table_1(claims: Sequence[Judged], scale: str) -> Layout:
    notes = Footnotes(scale, taken=0)
    halves = [_half(claims, datasets, notes) for datasets in (CV_DATASETS, NLP_DATASETS)]
    rows = [Row((*left, *right), starts_group=bool(left[0].rows)) for left, right in zip(*halves, strict=True)]
    names = (("CV benchmarks", CV_DATASETS), ("NLP benchmarks", NLP_DATASETS))
    columns = [
        column
        for group, datasets in names
        for column in (
            Column("Model", group, align="left"),
            Column("Method", group, align="left"),
            *(Column(dataset, group) for dataset in datasets),
        )
    ]
    best = Note("Bold: the best pruned network of each model and data set; equal printed values share it.")
    return tuple(columns), tuple(rows), (best, *notes.notes())


def _half(claims: Sequence[Judged], datasets: Sequence[str], notes: Footnotes) -> list[tuple[Item, ...]]:
    own = [claim for claim in claims if claim.dataset in datasets]
    rows = []
    for model in dict.fromkeys(claim.model for claim in own):
        cells = {(claim.method, claim.dataset): claim for claim in own if claim.model == model}
        methods = list(dict.fromkeys(method for method, _ in cells))
        best = {
            dataset: max(float(cells[method, dataset].value) for method in methods if method != "Baseline")
            for dataset in datasets
        }
        for index, method in enumerate(methods):
            values = []
            for dataset in datasets:
                claim = cells[method, dataset]
                top = method != "Baseline" and float(claim.value) == best[dataset]
                values.append(_marked(notes.published(claim, best=top), claim, notes))
            rows.append((Item(model, rows=0 if index else len(methods)), Item(method), *values))
    return rows


def _marked(item: Item, claim: Judged, notes: Footnotes) -> Item:
    """Say beside a value itself that nothing was measured for it."""
    if item.measured:
        return item
    return Item(item.text, item.href, item.bold, mark=item.mark, measured=NO_VALUE, why=notes.mark([claim]))


def _value_columns(*, best: str) -> tuple[Column, ...]:
    return (
        *(Column(text, "GMACs", mark) for text, mark in (("Base", "a"), ("Pruned", "a"), (DELTA, ""))),
        *(Column(text, best, mark) for text, mark in (("Base", ""), ("Pruned", ""), (DELTA, "b"))),
        Column("Verdict"),
    )


VISION = ("gmacs_base", "gmacs_pruned", "gmacs_delta", "metric_base", "metric_pruned", "metric_delta")
LANGUAGE = ("metric_base", "metric_pruned", "metric_delta", "params_base", "params_pruned", "params_delta")


def _value_row(
    names: Sequence[Item], cells: Mapping[str, Judged], order: Sequence[str], notes: Footnotes
) -> tuple[Item, ...]:
    claims = [cells[quantity] for quantity in order]
    anything = any(claim.mean is not None for claim in claims)
    values = [notes.published(claim) for claim in claims]
    if anything:
        values = [_marked(item, claim, notes) for item, claim in zip(values, claims, strict=True)]
    return (*names, *values, _verdict_item(claims, notes))


def _blocks(claims: Sequence[Judged], notes: Footnotes) -> list[Row]:
    """Lay out consecutive rows of one data set under its name."""
    rows: list[Row] = []
    for dataset, block in groupby(_by_row(claims).items(), key=lambda pair: pair[0][0]):
        height = list(block)
        for index, ((_, model, _, _), cells) in enumerate(height):
            names = (Item(dataset, rows=0 if index else len(height)), Item(model))
            rows.append(Row(_value_row(names, cells, VISION, notes), starts_group=index == 0))
    return rows


def _table_2(claims: Sequence[Judged], scale: str) -> Layout:
    notes = Footnotes(scale, taken=2)
    columns = (Column("Data set", align="left"), Column("Architecture", align="left"))
    rows = _blocks(claims, notes)
    shared = (Note(MACS_NOTE, "a"), Note(DELTA_NOTE, "b"))
    return (*columns, *_value_columns(best="Top-1 accuracy (%)")), tuple(rows), (*shared, *notes.notes())


def _table_3(claims: Sequence[Judged], scale: str) -> Layout:
    notes = Footnotes(scale, taken=2)
    columns = (Column("Data set", align="left"), Column("Architecture", align="left"), *_value_columns(best="Metric"))
    unit = {(claim.dataset, claim.model): claim.unit for claim in claims if claim.quantity == "metric_base"}
    rows: list[Row] = []
    for metric, task in TASKS.items():
        own = [claim for claim in claims if unit[claim.dataset, claim.model] == metric]
        rows.append(Row((Item(task, columns=len(columns)),), starts_group=True))
        rows += _blocks(own, notes)
    return columns, tuple(rows), (Note(MACS_NOTE, "a"), Note(DELTA_NOTE, "b"), *notes.notes())


def _table_4(claims: Sequence[Judged], scale: str) -> Layout:
    notes = Footnotes(scale, taken=2)
    columns = (
        Column("Pruning step", mark="a", align="left"),
        Column("Params (M)"),
        Column("GMACs", mark="b"),
        Column("Top-1 (%)"),
        Column("Top-5 (%)"),
        Column("Verdict"),
    )
    rows = [
        Row(_value_row([Item(str(step))], cells, ("params", "gmacs", "top1", "top5"), notes), starts_group=not index)
        for index, ((_, _, _, step), cells) in enumerate(_by_row(claims).items())
    ]
    network = f"{claims[0].model} on {claims[0].dataset}" if claims else "No network"
    shared = (Note(f"{network}. {TRACE_NOTE}", "a"), Note(MACS_NOTE, "b"))
    return columns, tuple(rows), (*shared, *notes.notes())


def _table_5(claims: Sequence[Judged], scale: str) -> Layout:
    notes = Footnotes(scale, taken=1)
    columns = (
        *(Column(text, align="left") for text in ("Architecture", "Data set", "Metric")),
        *(Column(text, "Score", mark) for text, mark in (("Base", ""), ("Pruned", ""), (DELTA, "a"))),
        *(Column(text, "Params (M)") for text in ("Base", "Pruned", DELTA)),
        Column("Verdict"),
    )
    rows = []
    for model, block in groupby(_by_row(claims).items(), key=lambda pair: pair[0][1]):
        cells_of = list(block)
        for index, ((dataset, *_), cells) in enumerate(cells_of):
            metric = Item(cells["metric_base"].unit)
            names = (Item(model, rows=0 if index else len(cells_of)), Item(dataset), metric)
            rows.append(Row(_value_row(names, cells, LANGUAGE, notes), starts_group=index == 0))
    return columns, tuple(rows), (Note(DELTA_NOTE, "a"), *notes.notes())


LAYOUTS: dict[int, Callable[[Sequence[Judged], str], Layout]] = {
    1: _table_1,
    2: _table_2,
    3: _table_3,
    4: _table_4,
    5: _table_5,
}

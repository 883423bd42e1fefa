"""Parameters of the language models: printed counts against those of the standard configurations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from ifap.study.paper.audit.findings import Finding
from ifap.study.paper.audit.printed import MILLION, Printed, Row, having, ids

WIDTH, HIDDEN, LAYERS, HEADS = 768, 3072, 12, 12


@dataclass(frozen=True)
class Term:
    """A part of a parameter count: the product of its factors."""

    what: str
    factors: tuple[int, ...]

    @property
    def total(self) -> int:
        """Parameters of this part."""
        return math.prod(self.factors)

    @property
    def text(self) -> str:
        """The multiplication."""
        return f"{self.what:<20} {' * '.join(map(str, self.factors))} = {self.total:,}"


class Language(NamedTuple):
    """A language model by its standard configuration; all three have 12 layers of 768 and 3072 wide."""

    embeddings: tuple[Term, ...]
    body: tuple[Term, ...]

    @property
    def floor(self) -> int:
        """Parameters of the embeddings."""
        return sum(term.total for term in self.embeddings)

    @property
    def total(self) -> int:
        """All parameters."""
        return self.floor + sum(term.total for term in self.body)


_LAYER_TERMS = (
    Term("attention weights", (LAYERS, 4, WIDTH, WIDTH)),
    Term("attention biases", (LAYERS, 4, WIDTH)),
    Term("feed-forward weights", (LAYERS, 2, WIDTH, HIDDEN)),
    Term("feed-forward biases", (LAYERS, HIDDEN + WIDTH)),
    Term("norms", (2 * LAYERS + 1, 2, WIDTH)),
)
LANGUAGE = {
    "BERT Base": Language(
        (Term("words", (30522, WIDTH)), Term("positions", (512, WIDTH)), Term("segments", (2, WIDTH))),
        (*_LAYER_TERMS, Term("pooler", (WIDTH + 1, WIDTH))),
    ),
    "GPT-2 Base": Language((Term("words", (50257, WIDTH)), Term("positions", (1024, WIDTH))), _LAYER_TERMS),
    "T5 Base": Language(
        (Term("words", (32128, WIDTH)),),
        (
            Term("encoder attention", (LAYERS, 4, WIDTH, WIDTH)),
            Term("decoder attention", (LAYERS, 8, WIDTH, WIDTH)),
            Term("feed-forward weights", (2 * LAYERS, 2, WIDTH, HIDDEN)),
            Term("relative positions", (2, 32, HEADS)),
            Term("norms", (2 * LAYERS + 3 * LAYERS + 2, WIDTH)),
        ),
    ),
}


def fewer_than_embeddings(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find pruned counts that are less than the embeddings, which pruning heads and units leaves."""
    for model, language in LANGUAGE.items():
        those = [row for row in having(rows, "params_pruned") if row.model == model]
        floor = Decimal(language.floor) / MILLION
        body = Decimal(language.total) / MILLION - floor
        below = [row for row in those if row.values["params_pruned"].high < floor]
        if not below:
            continue
        lines = [
            *(term.text for term in language.embeddings),
            f"{'embeddings':<20} {language.floor:,} = {floor:.2f} M",
            *(f"{row.dataset:<20} {_room(row.values['params_pruned'], floor, body)}" for row in those),
            "does not hold below, unless the embedding width or the vocabulary is pruned too",
        ]
        shown = _shown(below, "params_pruned")
        title = f"Table V, {model}: {shown} M after pruning is less than its embeddings, {floor:.1f} M"
        yield Finding("parameter-count", "major", title, "\n".join(lines), ids(below, "params_pruned"))


def _room(printed: Printed, floor: Decimal, body: Decimal) -> str:
    """Say what a printed count leaves for the layers."""
    left = printed.high - floor
    fits = f"at most {left:.2f} M of {body:.2f} M for the layers" if left >= 0 else f"{-left:.2f} M below"
    return f"{printed.text} M is at most {printed.high} M: {fits}"


def _shown(rows: Sequence[Row], quantity: str) -> str:
    return ", ".join(dict.fromkeys(row.values[quantity].text for row in rows))


def base_parameters(rows: Sequence[Row]) -> Iterator[Finding]:
    """Find base counts that are not those of the configuration."""
    for model, language in LANGUAGE.items():
        exact = Decimal(language.total) / MILLION
        those = [row for row in having(rows, "params_base") if row.model == model]
        off = [row for row in those if not _rounds(row.values["params_base"], exact)]
        if off:
            shown = _shown(off, "params_base")
            lines = [term.text for term in (*language.embeddings, *language.body)]
            lines.append(f"{'total':<20} {language.total:,} = {exact:.1f} M; printed {shown} M")
            title = f"Table V, {model}: {shown} M before pruning, {exact:.1f} M by its configuration"
            yield Finding("parameter-count", "minor", title, "\n".join(lines), ids(off, "params_base"))


def _rounds(printed: Printed, exact: Decimal) -> bool:
    """Whether a count may be printed like this; one that ends in 0 is read as rounded to ten millions."""
    is_coarse = printed.text.endswith("0") and printed.unit == 1
    return printed.holds(exact, exact, slack=Decimal(5 if is_coarse else 0))

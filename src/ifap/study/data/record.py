"""ReCoRD: statements about news with a gap that a name of the passage fills (Zhang et al. 2018), from SuperGLUE."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ifap.data import Role
from ifap.errors import ResultsError
from ifap.files import atomic_write_text
from ifap.study.data.entries import DATASETS
from ifap.study.data.grammar import Sentences, mark_texts
from ifap.study.data.origins import home
from ifap.study.data.passages import Question, Questions, Span
from ifap.study.data.texts import RawText, TextSpec

NAME = "record"
FILES: dict[Role, str] = {"train": "train.jsonl", "test": "val.jsonl"}
GAP = "@placeholder"


def read(folder: Path) -> dict[Role, RawText]:
    """Return training statements, and the published development set as the test split."""
    place = home(NAME, folder)
    return {role: Questions(tuple(_questions(place / file))) for role, file in FILES.items()}


def _questions(path: Path) -> Iterator[Question]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        where = f"{path}: row {number}"
        try:
            item = json.loads(line)
            context, entities = item["passage"]["text"], item["passage"]["entities"]
            asked = [(query["query"], query["answers"]) for query in item["qas"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{where} is no statement of ReCoRD ({type(error).__name__}: {error})") from None
        named = tuple(_span(entity, context, where) for entity in entities)
        for query, answers in asked:
            if GAP not in query:
                raise ResultsError(f"{where}: a query has no {GAP}")
            spans = tuple(_span(answer, context, where) for answer in answers)
            names = {context[first:end] for first, end in named}
            if not spans or not any(context[first:end] in names for first, end in spans):
                raise ResultsError(f"{where}: no answer is one of the passage's names")
            yield Question(query, context, spans, named)


def _span(part: Any, context: str, where: str) -> Span:
    """Return a part of a passage; the files give the last character, not the one after it."""
    try:
        start, end = int(part["start"]), int(part["end"]) + 1
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{where}: a name has no place ({type(error).__name__}: {error})") from None
    if not 0 <= start < end <= len(context):
        raise ResultsError(f"{where}: a name lies from {start} to {end} of {len(context)} characters")
    return start, end


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: facts about a person, a place and a year, one of them left out."""
    sentences = Sentences(classes, per_class, seed)
    for role, file in FILES.items():
        lines = []
        for index, which in enumerate(sentences.order(role)):
            story = sentences.story(role, *which)
            spans = {word: _placed(story.text, name) for word, name in story.facts.items()}
            word = list(story.facts)[index % len(story.facts)]
            query = f"The {word} of what was {story.verb} is {GAP} ."
            answer = {**spans[word], "text": story.facts[word]}
            passage = {"text": story.text, "entities": list(spans.values())}
            asked = [{"query": query, "answers": [answer], "idx": index}]
            lines.append(json.dumps({"source": "synthetic", "passage": passage, "qas": asked, "idx": index}))
        atomic_write_text(folder / file, "".join(f"{line}\n" for line in lines))
    mark_texts(NAME, folder, sentences)


def _placed(text: str, name: str) -> dict[str, int]:
    start = text.index(name)
    return {"start": start, "end": start + len(name) - 1}


DATASETS.register("record")(TextSpec(name=NAME, task="cloze", classes=2, metric="accuracy", read=read, twin=twin))

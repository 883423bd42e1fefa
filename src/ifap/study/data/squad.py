"""SQuAD 1.1: questions about passages of Wikipedia, answered by a part of the passage (Rajpurkar et al. 2016)."""

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
from ifap.study.data.passages import Question, Questions
from ifap.study.data.texts import RawText, TextSpec

NAME = "squad"
FILES: dict[Role, str] = {"train": "train-v1.1.json", "test": "dev-v1.1.json"}


def read(folder: Path) -> dict[Role, RawText]:
    """Return training questions, and the published development set as the test split."""
    place = home(NAME, folder)
    return {role: Questions(tuple(_questions(place / file))) for role, file in FILES.items()}


def _questions(path: Path) -> Iterator[Question]:
    try:
        articles = json.loads(path.read_text("utf-8"))["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} is no SQuAD file ({type(error).__name__}: {error})") from None
    for article in articles:
        for paragraph in _part(article, "paragraphs", path, "an article"):
            context = str(_part(paragraph, "context", path, "a paragraph"))
            for item in _part(paragraph, "qas", path, "a paragraph"):
                yield _question(item, context, path)


def _question(item: dict[str, Any], context: str, path: Path) -> Question:
    name = f"question {item.get('id', 'without id')}"
    answers = []
    for answer in _part(item, "answers", path, name):
        start, text = _part(answer, "answer_start", path, name), _part(answer, "text", path, name)
        if context[start : start + len(text)] != text:
            raise ResultsError(f"{path}: {name}: the passage has no '{text}' at {start}")
        answers.append((start, start + len(text)))
    if not answers:
        raise ResultsError(f"{path}: {name}: no answer, as SQuAD 2 has it: this is SQuAD 1.1")
    return Question(str(_part(item, "question", path, name)).strip(), context, tuple(answers))


def _part(item: Any, key: str, path: Path, where: str) -> Any:
    if not isinstance(item, dict) or key not in item:
        raise ResultsError(f"{path}: {where} has no '{key}'")
    return item[key]


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: facts, and questions for who, where and when."""
    sentences = Sentences(classes, per_class, seed)
    for role, file in FILES.items():
        paragraphs = []
        for index, which in enumerate(sentences.order(role)):
            story = sentences.story(role, *which)
            word = list(story.facts)[index % len(story.facts)]
            answer = {"answer_start": story.text.index(story.facts[word]), "text": story.facts[word]}
            asked = {"id": f"{role}-{index}", "question": f"{word.capitalize()} was it that {story.verb} ?"}
            paragraphs.append({"context": story.text, "qas": [{**asked, "answers": [answer]}]})
        content = {"version": "1.1", "data": [{"title": "Synthetic", "paragraphs": paragraphs}]}
        atomic_write_text(folder / file, json.dumps(content))
    mark_texts(NAME, folder, sentences)


DATASETS.register("squad")(TextSpec(name=NAME, task="question_answering", classes=2, metric="f1", read=read, twin=twin))

"""Synthetic texts: small and learnable, in the on-disk formats of the real sets.

A text of a class has words of that class among words that say nothing. What is measured on them says
nothing about the real data: each folder holds a file that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ifap.files import atomic_write_text
from ifap.study.data.origins import PLACES, SYNTHETIC_FILE

Item = TypeVar("Item")

PARTS = ("train", "test")
FILLERS = (
    "the", "a", "this", "that", "old", "new", "small", "large", "some", "other", "very", "quite", "often", "then",
    "now", "here", "there", "again", "and", "with", "of", "by", "near", "under", "over", "story", "film", "picture",
    "road", "house", "garden", "river", "table", "window", "letter",
)  # fmt: skip
MARKERS = 8  # words of each class
SYLLABLES = ("ba", "de", "fi", "go", "lu", "mi", "no", "pe", "ra", "su", "ta", "vi", "zo")
LENGTH = (5, 11)  # words of a text, the last number left out
NAMES = ("Anna", "Bruno", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas")
PLACES_OF = ("Aldora", "Brenwick", "Corvale", "Dunmore", "Estholm", "Farley", "Granby", "Holmstead")
VERBS = ("visited", "left", "reached", "described", "painted")


@dataclass(frozen=True)
class Sentences:
    """Texts that can be told apart by their words."""

    classes: int
    per_class: int  # Training texts of each class; the other part has half as many, at least one.
    seed: int  # Another seed gives other texts.

    def order(self, part: str) -> list[tuple[int, int]]:
        """Return the (class, number) of every text of a part, in mixed order."""
        count = self.per_class if part == "train" else max(1, self.per_class // 2)
        items = [(label, number) for label in range(self.classes) for number in range(count)]
        return [items[index] for index in self.random(part).permutation(len(items))]

    def text(self, part: str, label: int, number: int, slot: int = 0) -> str:
        """Return one text: two words of its class among others; `slot` 1 is the second of a pair."""
        random = self.random(part, label, number, slot)
        words = list(random.choice(FILLERS, random.integers(*LENGTH)))
        for marker in random.choice(self.markers(label), 2):
            words.insert(int(random.integers(len(words) + 1)), str(marker))
        return " ".join(words).capitalize() + " ."

    def plain(self, part: str, label: int, number: int) -> str:
        """Return a text that says nothing about its class."""
        random = self.random(part, label, number, 2)
        return " ".join(random.choice(FILLERS, random.integers(*LENGTH))).capitalize() + " ."

    def scored(self, part: str, label: int, number: int) -> tuple[str, str, float]:
        """Return two texts and how alike they are, from 0 to 5: how many of five words are of the first class."""
        random = self.random(part, label, number, 3)
        alike = int(random.integers(6))
        words = [*random.choice(self.markers(0), alike), *random.choice(self.markers(1), 5 - alike)]
        mixed = [str(word) for word in random.permutation(words)]
        return self.plain(part, label, number), " ".join(mixed).capitalize() + " .", float(alike)

    def markers(self, label: int) -> list[str]:
        """Return the words of a class; no other class has them, whatever the seed."""
        random = np.random.default_rng([self.seed, 99])
        made: list[str] = []
        while len(made) < MARKERS * max(2, self.classes):
            word = "".join(random.choice(SYLLABLES, 3))
            if word not in made:
                made.append(word)
        return made[label * MARKERS : (label + 1) * MARKERS]

    def random(self, part: str, *which: int) -> np.random.Generator:
        """Return the source of one text."""
        return np.random.default_rng([self.seed, PARTS.index(part), *which])

    def story(self, part: str, label: int, number: int) -> Story:
        """Return a passage of facts, one of which is asked for: who, where or when."""
        random = self.random(part, label, number, 4)
        person, place = str(random.choice(NAMES)), str(random.choice(PLACES_OF))
        year, verb = str(random.integers(1900, 2000)), str(random.choice(VERBS))
        fact = f"{person} {verb} {place} in {year} ."
        around = [self.text(part, label % self.classes, number, slot) for slot in (5, 6)]
        sentences = [around[0], fact, around[1]] if random.integers(2) else [fact, *around]
        return Story(" ".join(sentences), {"who": person, "where": place, "when": year}, verb)


@dataclass(frozen=True)
class Story:
    """A passage and what can be asked about it."""

    text: str  # The passage.
    facts: dict[str, str]  # The answers, each found once in the passage, by the word that asks for it.
    verb: str  # What happened.


def mark_texts(name: str, folder: Path, sentences: Sentences) -> None:
    """Write, last of all, the file that says what a folder holds."""
    atomic_write_text(
        folder / SYNTHETIC_FILE,
        f"# Synthetic: generated in the format of {PLACES[name].title}; none of its texts is in here.\n"
        f"# {sentences.classes} classes, {sentences.per_class} training texts a class, seed {sentences.seed}.\n",
    )


# --- Subject and verb ------------------------------------------------------------------------------

NOUNS = (("cat", "cats"), ("dog", "dogs"), ("bird", "birds"), ("child", "children"), ("farmer", "farmers"),
         ("teacher", "teachers"), ("horse", "horses"), ("woman", "women"))  # fmt: skip
ACTIONS = (("sleeps", "sleep"), ("runs", "run"), ("sings", "sing"), ("waits", "wait"), ("laughs", "laugh"),
           ("eats", "eat"))  # fmt: skip
LINKS = ("near", "behind", "beside", "with")
ADVERBS = ("today", "often", "again", "here")


def agreement(part: str, count: int, seed: int) -> Iterator[tuple[str, int]]:
    """Yield sentences with the classes 0 (subject and verb do not agree in number) and 1 (they do), in turn.

    Half of them have another noun, of either number, between subject and verb.
    """
    random = np.random.default_rng([seed, PARTS.index(part), 7])
    for index in range(count):
        agrees, number = index % 2, int(random.integers(2))
        words = ["the", _picked(random, NOUNS)[number]]
        if random.integers(2):
            words += [_picked(random, LINKS), "the", _picked(random, NOUNS)[int(random.integers(2))]]
        words.append(_picked(random, ACTIONS)[number if agrees else 1 - number])
        if random.integers(2):
            words.append(_picked(random, ADVERBS))
        yield " ".join(words), agrees


def _picked(random: np.random.Generator, choices: Sequence[Item]) -> Item:
    return choices[int(random.integers(len(choices)))]

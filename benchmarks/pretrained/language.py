"""SmolLM2-135M, a decoder of the kind of Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pretrained import texts
from benchmarks.pretrained.carriers import path_of
from benchmarks.pretrained.case import Case, Measures
from benchmarks.pretrained.measures import logits_of, next_tokens
from benchmarks.pretrained.splits import Split
from ifap.errors import ConfigError
from ifap.files import beside

BATCH = 4  # blocks of tokens: logits of a batch take 100 MB
KEY = "smollm2"


def smollm2(folder: Path) -> tuple[nn.Module, Any]:
    """Return the trained network and its tokenizer, from the form that `_converted` gives them once."""
    from safetensors.torch import load_model
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    place = _converted(folder)
    network = LlamaForCausalLM(LlamaConfig.from_json_file(place / "config.json")).float()
    load_model(network, place / "model.safetensors")
    module: nn.Module = network.eval()
    return module, Tokenizer.from_file(str(place / "tokenizer.json"))


def _converted(folder: Path) -> Path:
    """Return a folder with weights in single precision; made from the packed file at the first call."""
    file, place = path_of(KEY, "model.gguf", folder), folder / KEY / "converted"
    if place.is_dir():
        return place
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ConfigError(f"{file}: the package 'gguf' reads it; run 'pip install gguf' once") from None
    from safetensors.torch import save_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with beside(place, folder=True) as staging:
        given = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        network = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
        del network.config.quantization_config
        network.config.to_json_file(staging / "config.json")
        save_model(network, str(staging / "model.safetensors"))
        AutoTokenizer.from_pretrained(**given).save_pretrained(staging)
        staging.rename(place)
    return place


def passages(folder: Path, split: Split) -> list[Case]:
    """Return the case: 16,384 tokens for calibration, and passages of other articles to measure on."""
    network, tokenize = smollm2(folder)
    calibration = list(texts.blocks(folder, "calibration", tokenize).split(BATCH))
    tested = list(texts.blocks(folder, split, tokenize).split(BATCH))

    wanted = [logits_of(network, tokens) for tokens in tested]

    def measure(model: nn.Module) -> Measures:
        return next_tokens(wanted, (logits_of(model, tokens) for tokens in tested), tested)

    return [
        Case(
            network,
            _inputs(calibration[0][:1]),
            [_inputs(tokens) for tokens in calibration],
            lambda batch: batch["input_ids"],
            _loss,
            measure,
            {"keep_embeddings": True},
            blocks="model.layers",
        )
    ]


def _inputs(tokens: Tensor) -> dict[str, Any]:
    return {"input_ids": tokens, "use_cache": False}


def _loss(outputs: Any, tokens: Tensor) -> Tensor:
    """Return the loss of predicting each token, the data's own."""
    return functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

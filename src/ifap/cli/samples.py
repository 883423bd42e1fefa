"""Read calibration samples from files: images as the network was trained on them, texts, tensors."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ifap.data import in_batches, read_tensors
from ifap.errors import ConfigError, counted, first_line, installation

_LENGTH = 128

Batch = Tensor | dict[str, Tensor]


def read_samples(
    path: Path,
    network: nn.Module,
    builder: str = "",
    batch_size: int = 32,
    tokenizer: Path | None = None,
    processor: Path | None = None,
    length: int | None = None,
) -> list[Batch]:
    """Read samples as batches that the network takes.

    The first dimension of each tensor counts samples. Raises a ConfigError if a file is missing or damaged, if there
    are no samples, or if they do not fit the network.

    Parameters
    ----------
    path : Path
        A folder of images, a ``.txt`` file with one text a line, or a ``.safetensors`` file: a tensor ``inputs``, or
        tensors that are named like the arguments of the network's forward.
    network : nn.Module
        The network; a public one says how its images are prepared.
    builder : str
        Its name as `ifap.build` knows it, if it has one.
    batch_size : int
        Samples a batch.
    tokenizer, processor : Path, optional
        Folder with the tokenizer of texts, or with the image processor, as ``transformers`` saves them.
    length : int, optional
        Most tokens a text; 128 by default, less where the network has fewer positions.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, not {batch_size}")
    if not path.exists():
        raise ConfigError(f"{path}: file not found")
    if path.is_dir():
        files = image_files(path)
        prepare = preparation(network, builder, processor)
        return in_batches(torch.stack([open_image(file, prepare) for file in files]), batch_size)
    if path.suffix == ".txt":
        return in_batches(tokens(path, _lines(path), network, tokenizer, length), batch_size)
    if path.suffix == ".safetensors":
        return in_batches(named_inputs(path, read_tensors(path), network), batch_size)
    raise ConfigError(f"{path}: give a folder of images, a .txt file of texts or a .safetensors file")


def first_sample(batch: Batch) -> Batch:
    """Return the first sample of a batch, as a batch of one."""
    return batch[:1] if isinstance(batch, Tensor) else {name: tensor[:1] for name, tensor in batch.items()}


# --- tensors --------------------------------------------------------------------------------------


def named_inputs(path: Path, tensors: dict[str, Tensor], network: nn.Module) -> Batch:
    """Return stored tensors as all samples of a network: one tensor, or some by the names of its arguments.

    Raises a ConfigError if they do not fit the network, or hold no or different numbers of samples.
    """
    if "inputs" in tensors and "inputs" not in _arguments(network):
        tensors = {"inputs": tensors["inputs"]}
    known = _arguments(network)
    unknown = sorted(set(tensors) - {*known, "inputs"})
    if unknown or not tensors:
        held = f"'{unknown[0]}' is no argument of the network" if unknown else "no tensor at all"
        raise ConfigError(f"{path}: no tensor 'inputs', and {held}: it takes {', '.join(known) or 'none'}")
    sizes = {name: len(tensor) if tensor.dim() else 0 for name, tensor in tensors.items()}
    if not all(sizes.values()):
        raise ConfigError(f"{path}: '{min(sizes, key=lambda name: sizes[name])}' holds no samples")
    if len(set(sizes.values())) > 1:
        raise ConfigError(f"{path}: tensors hold different numbers of samples: {sizes}")
    return tensors["inputs"] if "inputs" in tensors and len(tensors) == 1 else tensors


def _arguments(network: nn.Module) -> list[str]:
    """Return the names of the arguments of a network's forward."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, each in inspect.signature(network.forward).parameters.items() if each.kind in kinds]


# --- images ---------------------------------------------------------------------------------------


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder and those below it, in the order of their names.

    Raises a ConfigError if there is none.
    """
    suffixes = set(_package("PIL.Image", "images").registered_extensions())
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes)
    if not files:
        raise ConfigError(f"{folder}: holds no image (.png, .jpg, ...)")
    return files


def open_image(file: Path, prepare: Callable[[Any], Any]) -> Any:
    """Decode an image and return what `prepare` makes of it.

    Raises a ConfigError if it cannot be decoded.
    """
    pictures = _package("PIL.Image", "images")
    try:
        with pictures.open(file) as image:
            return prepare(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # whatever the decoder of its format raises
        raise ConfigError(f"{file}: not an image that can be decoded ({first_line(error)})") from None


def preparation(network: nn.Module, builder: str, processor: Path | None) -> Callable[[Any], Tensor]:
    """Return the function that makes a tensor of an image: from a processor, the network or its home.

    Raises a ConfigError if none of them says how.
    """
    home, _, name = builder.partition(":")
    if processor is not None:
        found = _read_part(_package("transformers", "texts").AutoImageProcessor, processor, "an image processor")
        return lambda image: found(image, return_tensors="pt")["pixel_values"][0]
    note = getattr(network, "pretrained_cfg", None)
    if isinstance(note, Mapping) and "mean" in note:
        data = _package("timm.data", "images")
        made: Callable[[Any], Tensor] = data.create_transform(**data.resolve_model_data_config(network))
        return made
    if home == "torchvision":
        weights = _package("torchvision.models", "images").get_model_weights(name)
        trained: Callable[[Any], Tensor] = next(iter(weights)).transforms()
        return trained
    raise ConfigError(
        "this network does not say how its images are prepared: give --processor, or a .safetensors file of prepared "
        "images"
    )


# --- texts ----------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """Read a text file.

    Raises a ConfigError if it cannot be read, or is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 ({error})") from None


def _lines(path: Path) -> list[str]:
    texts = [line for line in read_text(path).splitlines() if line.strip()]
    if not texts:
        raise ConfigError(f"{path}: holds no text")
    return texts


def tokens(
    path: Path, texts: list[str], network: nn.Module, folder: Path | None, length: int | None
) -> dict[str, Tensor]:
    """Turn texts into the arguments of a network.

    `path` is the file of the texts, `folder` that of the tokenizer, and `length` the most tokens a text. Each argument
    has the shape (texts, tokens). Raises a ConfigError if there is no tokenizer, or it does not fit the network.
    """
    if folder is None:
        raise ConfigError(f"{path}: texts need --tokenizer, the folder of the network's tokenizer")
    tokenizer = _read_part(_package("transformers", "texts").AutoTokenizer, folder, "a tokenizer")
    positions = getattr(getattr(network, "config", None), "max_position_embeddings", None) or length or _LENGTH
    if length is not None and not 1 <= length <= positions:
        raise ConfigError(f"--length {length}: the network has {counted(positions, 'position')}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError(
            f"{folder}: the tokenizer has no token to pad with: name a pad_token in tokenizer_config.json"
        )
    found = tokenizer(
        texts, padding=True, truncation=True, max_length=length or min(_LENGTH, positions), return_tensors="pt"
    )
    inputs = {name: tensor for name, tensor in found.items() if name in _arguments(network)}
    _check_vocabulary(network, inputs.get("input_ids"), folder)
    return inputs


def _check_vocabulary(network: nn.Module, ids: Tensor | None, folder: Path) -> None:
    if ids is None:
        raise ConfigError(f"{folder}: the network takes no token ids")
    get_table: Any = getattr(network, "get_input_embeddings", None)
    table = get_table() if get_table is not None else None
    size = getattr(table, "num_embeddings", None)
    if size is not None and int(ids.max()) >= size:
        raise ConfigError(f"{folder}: makes token {int(ids.max())}, the network knows {size}: is this its tokenizer?")


# --- packages -------------------------------------------------------------------------------------


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"the package {error.name} is missing: {installation(extra)}") from None


def _read_part(kind: Any, folder: Path, what: str) -> Any:
    """Read a tokenizer or an image processor from a folder; nothing is fetched and no code of the folder runs."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the package raises for files that it does not understand
        raise ConfigError(f"{folder}: not {what} ({first_line(error)})") from None

"""Pre-trained weights that packages carry, in the form that `load_pretrained` reads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ifap.errors import ConfigError, ResultsError
from ifap.files import atomic_write_bytes
from ifap.study.models.base import MODELS
from ifap.study.packages import CARRIERS, take

IMAGENET_CLASSES, RGB, SIDE = 1000, 3, 224
CARRIED = {
    "bert_minilm": ("minilm", "model.safetensors"),
    "efficientnet_lite0": ("efficientnet_lite0", "weights.pth"),
}
"""Model to the carrier of its weights and their file."""
BACKBONES = dict.fromkeys(("faster_rcnn_lite0", "yolov4_lite0"), "efficientnet_lite0")
"""Networks that start from the weights of another one, without its head."""
FEATURES_OF = "efficientnet_lite0"
"""The model whose features compare generated with real images."""


def source_of(model: str) -> str | None:
    """Return which package carries the weights of a model, in words; None if none does."""
    whole = BACKBONES.get(model, model)
    return CARRIERS[CARRIED[whole][0]].title if whole in CARRIED else None


def obtain_weights(model: str, path: Path) -> None:
    """Fetch the weights of a model from the package that carries them, unless the file is there.

    Parameters
    ----------
    model : str
        Name in the registry. A network of `BACKBONES` gets the weights of the whole network that its backbone is of.
    path : Path
        The safetensors file to write. Of a network for images it has the names of the model's own tensors. Of a
        network for text its folder gets all that the package carries, the tokenizer too.

    Raises
    ------
    ResultsError
        If no package carries them, the package cannot be fetched, or it holds other tensors.
    ConfigError
        If package or file have another checksum.
    """
    if path.exists():
        return
    model = BACKBONES.get(model, model)
    if model not in CARRIED:
        raise ResultsError(f"{path}: file not found, and no package carries the weights of '{model}'")
    key, name = CARRIED[model]
    if name.endswith(".safetensors"):
        _obtain_folder(key, name, path)
        return
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / key
        take(CARRIERS[key], files)
        stored = torch.load(files / name, weights_only=True)
    atomic_write_bytes(path, save(renamed(stored, lambda: MODELS.get(model)(IMAGENET_CLASSES, RGB, SIDE), name)))


def _obtain_folder(key: str, name: str, path: Path) -> None:
    if path.name != name:
        raise ConfigError(f"{path}: the package calls its weights {name}: name the file so")
    if path.parent.exists():
        raise ResultsError(f"{path.parent} lacks {name}: remove the folder, then it is fetched whole")
    take(CARRIERS[key], path.parent)


def renamed(stored: dict[str, Tensor], build: Callable[[], nn.Module], name: str) -> dict[str, Tensor]:
    """Return stored tensors under the names of a network that has the same ones in the same order.

    Raises
    ------
    ResultsError
        If their number or a shape differs; names the file and the tensor.
    """
    wanted = build().state_dict()
    if len(stored) != len(wanted):
        raise ResultsError(f"{name}: {len(stored)} tensors stored, the network has {len(wanted)}")
    for (theirs, tensor), (own, value) in zip(stored.items(), wanted.items(), strict=True):
        if tensor.shape != value.shape:
            raise ResultsError(
                f"{name}: tensor '{theirs}' has shape {list(tensor.shape)}, the network's '{own}' {list(value.shape)}"
            )
    return {own: tensor.contiguous() for own, tensor in zip(wanted, stored.values(), strict=True)}

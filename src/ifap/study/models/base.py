"""What a model is: a function that builds an untrained network from a few whole numbers and names.

A network on disk names its builder as an identifier and arguments (``ifap:resnet_tiny`` and
``{"num_classes": 10, ...}``), so that it can be built again without unpickling anything. Networks
for images are told classes, channels and pixels (`Build`), networks for text their head, its
outputs, and the sizes of the vocabulary and of a text (`TextBuild`).

Networks for images return class scores (batch, num_classes). Those of other kinds are built alike:

* segmentation: ``{"out": scores}`` of shape (batch, num_classes, height, width);
* detection: see `ifap.study.models.detection.Detector`; labels run from 0 to num_classes - 1;
* generation, which reads no classes: see `ifap.study.models.generation.Generative`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from ifap.data import read_tensors
from ifap.errors import ConfigError, PlanError, nearest
from ifap.registry import Registry

log = logging.getLogger(__name__)

PREFIX = "ifap:"
Head = Literal["classification", "span", "language"]
"""What a text network ends in: classes (one output: a regression), start and end of a span, or a vocabulary."""
HEADS = get_args(Head)
# A plan may come from anywhere: bounds keep a hostile one from asking for all memory. ImageNet-21K has 21,841 classes.
LIMITS: dict[str, int | tuple[str, ...]] = {
    "num_classes": 25_000,
    "in_channels": 64,
    "image_size": 1024,
    "head": HEADS,
    "num_labels": 25_000,
    "vocab_size": 300_000,
    "max_length": 8192,
    "layers": 256,
}
"""The largest value of each argument that is a whole number, or the names that it may be."""


Build = Callable[[int, int, int], nn.Module]
"""``build(num_classes, in_channels, image_size)``: an untrained network for images.

It reads inputs of shape (batch, in_channels, image_size, image_size); its weights come from torch's global generator.
"""
TextBuild = Callable[..., nn.Module]
"""``build(head, num_labels, vocab_size, max_length, layers=...)``: an untrained network for text.

It reads ``input_ids`` below `vocab_size` of shape (batch, up to `max_length`). `layers` is its depth, the published one
by default. Only the head ``classification`` reads `num_labels`; ``span`` gives ``start_logits`` and ``end_logits``,
``language`` one of the vocabulary for each position. Its weights come from torch's global generator.
"""
MODELS: Registry[Callable[..., nn.Module]] = Registry("model", "ifap.study.models")
"""Every `Build` and `TextBuild` of the package."""


def builder_id(model: str) -> str:
    """Return the identifier that a plan keeps for a model of this package."""
    return PREFIX + model


def builder_from_id(identifier: str | None, args: Mapping[str, Any]) -> nn.Module:
    """Build the unpruned network that a plan names.

    Parameters
    ----------
    identifier : str or None
        Such as ``ifap:resnet_tiny``; None if the network was built by other code.
    args : mapping
        Its arguments.

    Raises
    ------
    PlanError
        If the identifier or an argument is not one of this package's.
    """
    if not isinstance(identifier, str) or not identifier.startswith(PREFIX):
        raise PlanError(f"builder {identifier!r} is not one of this package ('{PREFIX}NAME'): pass a builder function")
    name = identifier.removeprefix(PREFIX)
    if name not in MODELS.names():
        raise PlanError(f"plan names the unknown model '{name}': {nearest(name, MODELS.names())}")
    return MODELS.get(name)(**_checked(name, args))


def _checked(model: str, args: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(MODELS.get(model)).parameters
    needed = [name for name, parameter in known.items() if parameter.default is parameter.empty]
    if not set(needed) <= set(args) <= set(known):
        raise PlanError(
            f"builder arguments must be {', '.join(needed)}; the plan has {', '.join(map(str, args)) or 'none'}"
        )
    for name, value in args.items():
        _check(name, value)
    return dict(args)


def _check(name: str, value: Any) -> None:
    limit = LIMITS[name]
    if isinstance(limit, tuple):
        if value not in limit:
            raise PlanError(f"builder argument {name} '{value}' is unknown: {nearest(str(value), limit)}")
    elif type(value) is not int or not 1 <= value <= limit:
        raise PlanError(f"builder argument {name} must be a whole number from 1 to {limit}, not {value!r}")


def load_pretrained(model: nn.Module, path: str | Path) -> None:
    """Load weights from a safetensors file into an unpruned network, in place.

    Parameters
    ----------
    model : nn.Module
        The network. If it has another number of classes than the file, its heads keep the weights
        they have, which the log says. If it names a ``pretrained_part``, that module takes the weights of a
        classifier, and what the classifier has behind it is not used.
    path : str or Path
        A file with one tensor for each of the network's own, under the same name (torchvision's for
        its networks). Only counters of batch norm may be missing.

    Raises
    ------
    ConfigError
        If the file cannot be read or does not fit; nothing is loaded then.
    """
    stored = read_tensors(Path(path))
    part = getattr(model, "pretrained_part", None)
    if part is not None:
        model = model.get_submodule(part)
        stored, unused = _of_part(model, stored)
        log.info("%s: the weights of '%s'; not used: %s", path, part, ", ".join(unused) or "nothing")
    wanted = model.state_dict()
    heads = _other_heads(model, stored)
    for name, tensor in wanted.items():
        if name not in heads and not (name not in stored and name.endswith("num_batches_tracked")):
            _check_fit(name, tensor, stored, path)
    unknown = next((name for name in stored if name not in wanted), None)
    if unknown is not None:
        raise ConfigError(f"{path}: the network has no tensor '{unknown}': {nearest(unknown, wanted)}")
    for name, layer in heads.items():
        if name.endswith("weight"):
            log.info(
                "%s: '%s' keeps its own weights: %d classes stored, %d wanted",
                path, name.rpartition(".")[0], len(stored[name]), layer.out_features,
            )  # fmt: skip
    model.load_state_dict({name: tensor for name, tensor in stored.items() if name not in heads}, strict=False)


def _of_part(part: nn.Module, stored: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the stored tensors of the modules that a part of a network has, and the names of all other modules."""
    own = {name for name, _ in part.named_children()}
    unused = {name.partition(".")[0] for name in stored} - own
    return {name: tensor for name, tensor in stored.items() if name.partition(".")[0] in own}, sorted(unused)


def _other_heads(model: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, nn.Linear]:
    """Return the tensors of heads for another number of classes than the stored ones, and their layers.

    The last linear layer is the head, and an auxiliary head has as many outputs, here and in the file.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    last = stored.get(f"{next(reversed(linear))}.weight") if linear else None
    if last is None:
        return {}
    here, there = next(reversed(linear.values())).out_features, last.shape[0]
    found: dict[str, nn.Linear] = {}
    for name, layer in linear.items():
        shapes = {f"{name}.{leaf}": (there, *tensor.shape[1:]) for leaf, tensor in layer.named_parameters()}
        fits = all(leaf in stored and stored[leaf].shape == shape for leaf, shape in shapes.items())
        if layer.out_features == here != there and fits:
            found.update(dict.fromkeys(shapes, layer))
    return found


def _check_fit(name: str, wanted: Tensor, stored: Mapping[str, Tensor], path: str | Path) -> None:
    if name not in stored:
        raise ConfigError(f"{path}: tensor '{name}' of the network is missing: {nearest(name, stored)}")
    found = stored[name]
    if found.shape != wanted.shape:
        raise ConfigError(
            f"{path}: tensor '{name}' has shape {list(found.shape)}, the network's has {list(wanted.shape)}"
        )
    if found.is_floating_point() != wanted.is_floating_point():
        raise ConfigError(f"{path}: tensor '{name}' is stored as {found.dtype}, the network has {wanted.dtype}")

"""Read the files of the command line: networks, their weights and arguments, calibration and labelled samples."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifap.errors import ConfigError, IfapError, first_line

if TYPE_CHECKING:
    from torch import nn

    from ifap.cli.labelled import Accuracy
    from ifap.cli.progress import Bars
    from ifap.recovery.distillation import Distillation

LR = 1e-4
"""Learning rate of ``--recover``: trained networks lose what they know at the rates of a first training."""


@dataclass(frozen=True)
class Request:
    """The files that a command reads; see the help of ``ifap prune``."""

    builder: str
    data: Path
    arguments: Path | None = None
    weights: Path | None = None
    tokenizer: Path | None = None
    processor: Path | None = None
    length: int | None = None
    batch_size: int = 32
    recover: Path | None = None
    validate: Path | None = None
    epochs: int | None = None
    lr: float | None = None


@dataclass(frozen=True)
class Job:
    """A network with everything that pruning it needs."""

    network: nn.Module
    given: dict[str, Any]
    example: Any
    batches: Any
    recover: Distillation | None
    validate: Accuracy | None


def read_job(request: Request, bars: Bars) -> Job:
    """Read a network and its samples, and see that they fit.

    Raises a ConfigError if a file is missing or damaged, or does not fit the network.
    """
    from ifap.cli.samples import first_sample, read_samples

    told = [f"--{name}" for name in ("epochs", "lr") if getattr(request, name) is not None]
    if request.recover is None and told:
        raise ConfigError(f"{told[0]} is for --recover alone: give labelled samples to train on")
    if request.epochs is not None and request.epochs < 1:
        raise ConfigError(f"--epochs must be at least 1, not {request.epochs}")
    if request.lr is not None and not request.lr > 0:
        raise ConfigError(f"--lr must be above 0, not {request.lr:g}")
    given = read_arguments(request.arguments, request.builder)
    network = load_weights(built(request.builder, given), request.weights)
    batches = read_samples(
        request.data, network, request.builder, request.batch_size,
        request.tokenizer, request.processor, request.length,
    )  # fmt: skip
    example = first_sample(batches[0])
    try_once(network, example, request.data)
    recover, validate = _read_labels(request, network, bars)
    return Job(network, given, example, bars.watched(batches), recover, validate)


def _read_labels(request: Request, network: nn.Module, bars: Bars) -> tuple[Distillation | None, Accuracy | None]:
    """Return the functions that train a network after a cut and that measure it."""
    from ifap.cli.labelled import Accuracy, Labelled, read_labelled
    from ifap.recovery.distillation import Distillation

    def labelled(path: Path) -> Labelled:
        bars.on_phase("check", 0)
        return read_labelled(
            path, network, request.builder, request.tokenizer, request.processor, request.length, bars.on_read
        )

    held = None if request.validate is None else labelled(request.validate).whole()
    if request.recover is None:
        return None, None if held is None else Accuracy(held, request.batch_size)
    train, validation = labelled(request.recover).parts()
    epochs = request.epochs or 1
    bars.expect(epochs * (len(train) + (len(validation) if epochs > 1 else 0)))
    recover = Distillation(train, validation, epochs=epochs, batch_size=request.batch_size, lr=request.lr or LR)
    return recover, Accuracy(held or validation, request.batch_size)


def find_builder(text: str) -> Callable[..., nn.Module]:
    """Return the function that builds the network: of a public home, or of the user."""
    from ifap.saving.builders import build, homes, is_public

    if is_public(text):
        return functools.partial(build, text)
    module, _, name = text.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"builder '{text}': {error}; write package.module:function or one of {', '.join(homes())}, such as "
            "timm:efficientnet_lite0"
        ) from None
    if not callable(function):
        raise ConfigError(f"builder '{text}' is not a function")
    return function


def built(text: str, arguments: dict[str, Any] | None = None) -> nn.Module:
    """Build a network."""
    from torch import nn

    try:
        network = find_builder(text)(**arguments or {})
    except IfapError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"builder '{text}': {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"builder '{text}' returned {type(network).__name__}, not a network")
    return network


def read_arguments(path: Path | None, builder: str) -> dict[str, Any]:
    """Read the arguments of a builder from a JSON file; a ``config.json`` is the configuration of ``transformers``."""
    from ifap.saving.builders import described

    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: file not found") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not valid JSON ({first_line(error)})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds {type(found).__name__}, not an object of names and values")
    is_config = builder.startswith("transformers:") and "config" not in found
    return {"config": described(found)} if is_config else found


def try_once(network: nn.Module, inputs: Any, data: Path) -> None:
    """See that a network runs on its inputs."""
    import torch

    from ifap.forward import call, reading

    try:
        with torch.no_grad(), reading(network):
            call(network, inputs)
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"{data}: the network does not run on its inputs: {error}") from error


def load_weights(network: nn.Module, path: Path | None) -> nn.Module:
    """Give a network its weights, if there are any.

    A file need not hold what the network makes by itself: a weight that is also another one, such as the output layer
    of a language model, which is its embedding. It may hold constants that the network would not have saved.

    Raises a ConfigError if the weights are those of another network.
    """
    from ifap.data import read_tensors

    if path is None:
        return network
    tensors = read_tensors(path)
    own = network.state_dict()
    try:
        found = network.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise ConfigError(f"{path}: does not fit the network: {_other_shape(own, tensors) or error}") from None
    loaded = {_place(tensor) for name, tensor in own.items() if name in tensors}
    missing = [name for name in found.missing_keys if _place(own[name]) not in loaded - {None}]
    surplus = sorted(set(found.unexpected_keys) - {name for name, _ in network.named_buffers()})
    lacks = [f"{len(missing)} of {len(own)} tensors are missing, such as '{missing[0]}'"] if missing else []
    holds = [f"'{surplus[0]}' is not in the network"] if surplus else []
    if lacks or holds:
        raise ConfigError(f"{path}: does not fit the network: {' and '.join(lacks + holds)}; is it of another one?")
    return network


def _place(value: Any) -> int | None:
    """Return where the numbers of a tensor are, which two names of one weight share."""
    from torch import Tensor
    from torch.nn.parameter import is_lazy

    return value.data_ptr() if isinstance(value, Tensor) and not is_lazy(value) else None


def _other_shape(own: dict[str, Any], tensors: dict[str, Any]) -> str:
    """Say which tensor of a file has another shape than that of the network."""
    from torch.nn.parameter import is_lazy

    for name, tensor in own.items():
        if name in tensors and not is_lazy(tensor) and tensors[name].shape != tensor.shape:
            return f"'{name}' has the shape {tuple(tensors[name].shape)}, in the network {tuple(tensor.shape)}"
    return ""


def own_builder(builder: str, given: dict[str, Any]) -> Callable[[], nn.Module] | None:
    """Return the user's function that builds the network; None for a public one, which its plan names."""
    from ifap.saving.builders import is_public

    return None if is_public(builder) else functools.partial(built, builder, given)


def usual_steps(method: str) -> int:
    """Return how many iterations a method takes by default."""
    from ifap.methods import METHODS
    from ifap.methods.base import defaults_of

    return defaults_of(METHODS.get(method)).steps

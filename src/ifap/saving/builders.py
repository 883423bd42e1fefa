"""Build public networks by name, so that a saved network can be loaded without a builder function.

A name says where the network comes from: ``timm:efficientnet_lite0``, ``torchvision:resnet50``,
``transformers:AutoModelForCausalLM`` with a configuration. Other packages add homes by entry points in the group
``ifap.builders``. A plan may come from anyone: only these packages are imported, names are looked up in the lists that
the packages keep, and arguments are bounded values. Weights are never fetched and never unpickled.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from ifap.arguments import TEXT, checked
from ifap.axes.dispatch import DispatchMode
from ifap.errors import PlanError, installation, kind_and_line, nearest
from ifap.plugins import plugins

_MOST_ARGUMENTS, _DEEPEST, _LONGEST_TEXT, _LARGEST = 2000, 6, 100, 2**24
_MOST_BUFFERS = 2**26
"""Numbers that a network may keep beside its parameters, such as masks and tables of positions."""
_NAME = re.compile(r"\w{1,100}(\.\w{1,50})?", re.ASCII)
_TEXT = re.compile(r"[^/\\:\x00-\x1f]*")  # no separator of paths or addresses
# Arguments with one of these words in their name fetch or read files, or run code of a repository.
_FETCHES = {"pretrained", "weights", "checkpoint", "cache", "file", "url", "hub", "auto", "kernels", "quantization"}
_READS = {"path", "dir", "name"}
_HARMLESS = {"use_cache"}  # keeps keys and values of a text that is being written; nearly every config.json has it
# What a ``config.json`` says of its origin; it shapes nothing.
_ORIGIN = {"_name_or_path", "architectures", "transformers_version"}

Home = Callable[[str, Mapping[str, Any]], nn.Module]


@checked(identifier=TEXT)
def build(identifier: str, /, **arguments: Any) -> nn.Module:
    """Build a public network with random weights.

    Parameters
    ----------
    identifier : str
        Home and name, such as ``"timm:efficientnet_lite0"``, ``"torchvision:resnet50"`` or
        ``"transformers:AutoModelForCausalLM"``.
    **arguments
        What the home's own constructor takes: numbers, booleans, short texts, None, and lists and dicts of them. For
        ``transformers``: ``config``, the content of a ``config.json``, with its ``model_type``.

    Returns
    -------
    nn.Module
        The network, in training mode as its home makes it.

    Raises
    ------
    PlanError
        If the home is unknown or not installed, the name is none of its networks, or an argument is refused.
    """
    prefix, separator, name = identifier.partition(":")
    known = homes()
    if prefix in _HOMES and prefix not in known:
        extra = _EXTRAS[prefix]
        raise PlanError(f"builder {identifier[:100]!r}: {prefix} is not installed: {installation(extra)}")
    if not separator or prefix not in known:
        raise PlanError(f"builder {identifier[:100]!r}: no home '{prefix[:50]}': {nearest(prefix, known)}")
    home = known[prefix]
    if isinstance(home, EntryPoint):
        return _network(home.load()(identifier, arguments), identifier)
    if not _NAME.fullmatch(name):
        raise PlanError(f"builder {identifier[:100]!r}: '{name[:50]}' is not the name of a network")
    _check_arguments(arguments)
    try:
        return _network(home(name, arguments), identifier)
    except PlanError:
        raise
    except Exception as error:  # whatever a constructor raises for arguments that it does not understand
        raise PlanError(f"builder {identifier!r}: {kind_and_line(error)}") from error


@contextmanager
def bounded(tensors: int, values: int) -> Iterator[None]:
    """Stop building a network that has more parameters or buffers than expected, inside the block.

    It may have `tensors` parameters, with `values` numbers in all of them; buffers may have 64 million numbers more.
    Raises a PlanError as soon as one of these is exceeded, before the tensor is filled.
    """
    left = [tensors, values, values + _MOST_BUFFERS]

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            if isinstance(tensor, nn.Parameter):
                left[0] -= 1
                left[1] -= tensor.numel()
            left[2] -= tensor.numel()
        if min(left) < 0:
            raise PlanError(_TOO_LARGE)

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        with _NothingLarge(left[2]):
            yield
    finally:
        for hook in hooks:
            hook.remove()


_TOO_LARGE = "the network that the plan names is far larger than the saved one"


class _NothingLarge(DispatchMode):
    """Refuse an operation that could make a tensor of more numbers than allowed, before it runs."""

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _most_made(func._schema.name, args) > self._most:
            raise PlanError(_TOO_LARGE)
        return func(*args, **(kwargs or {}))


def _most_made(name: str, arguments: Iterable[Any]) -> int:
    """Return how many numbers an operation can make at most, from its sizes and the shapes of its tensors."""
    lists = [value for value in arguments if isinstance(value, (list, tuple))]
    tensors = [each for value in (*lists, arguments) for each in value if isinstance(each, Tensor)]
    sizes = [math.prod(value) for value in lists if all(isinstance(each, int) for each in value)]
    together = math.prod(max(row) for row in zip_longest(*(each.shape[::-1] for each in tensors), fillvalue=1))
    if name in ("aten::repeat", "aten::eye", "aten::tril_indices", "aten::triu_indices"):
        numbers = [value for value in arguments if isinstance(value, int)]
        sides = numbers * 2 if len(numbers) == 1 else numbers  # a square matrix is given by one side
        return together * math.prod(sizes) * math.prod(sides)
    return max([together, *sizes])


def _network(found: Any, identifier: str) -> nn.Module:
    if not isinstance(found, nn.Module):
        raise PlanError(f"builder {identifier!r} returned {type(found).__name__}, not a network")
    return found


def is_public(identifier: str) -> bool:
    """Return whether a name is that of a public network, whether its home is installed or not."""
    prefix = identifier.partition(":")[0]
    return prefix in _HOMES or prefix in homes()


def homes() -> dict[str, Home | EntryPoint]:
    """Return where networks may come from by name; homes whose package is not installed are left out."""
    own = {name: home for name, home in _HOMES.items() if importlib.util.find_spec(name) is not None}
    return {**own, **plugins("ifap.builders")}


# --- arguments ------------------------------------------------------------------------------------


def described(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a ``config.json`` that describe the network, without entries on its origin."""
    return {key: value for key, value in config.items() if key not in _ORIGIN}


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    left = [_MOST_ARGUMENTS]
    for key, value in arguments.items():
        _check(key, value, left, 0)


def _check(key: str, value: Any, left: list[int], depth: int) -> None:
    """Refuse a value that is not plain JSON, is too large, or could make a builder read a file."""
    left[0] -= 1
    if left[0] < 0 or depth > _DEEPEST:
        raise PlanError(f"builder argument '{key[:50]}': too many or too deeply nested values")
    if isinstance(value, Mapping):
        for inner, item in value.items():
            _check(str(inner), item, left, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check(key, item, left, depth + 1)
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        raise PlanError(f"builder argument '{key[:50]}': {type(value).__name__} is not a number, text, list or dict")
    if isinstance(value, str) and not (len(value) <= _LONGEST_TEXT and _TEXT.fullmatch(value)):
        raise PlanError(f"builder argument '{key[:50]}': {value[:50]!r} is not a short word")
    if isinstance(value, (int, float)) and not abs(value) <= _LARGEST:
        raise PlanError(f"builder argument '{key[:50]}': {value!r} is beyond {_LARGEST:,}")
    words = set(key.lower().split("_"))
    is_file = bool(words & _FETCHES) or (isinstance(value, str) and bool(words & _READS))
    if value not in (None, False) and key not in _HARMLESS and (key.startswith("_") or is_file):
        raise PlanError(f"builder argument '{key[:50]}' is refused: it could fetch or read a file")


# --- homes ----------------------------------------------------------------------------------------


@contextmanager
def _nothing_fetched() -> Iterator[None]:
    """Keep packages from contacting a hub inside the block, such as for the name of a backbone."""
    hub: Any = importlib.import_module("huggingface_hub.constants")
    errors = importlib.import_module("huggingface_hub.errors")
    before, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise PlanError(
            "an argument names a network of a hub, such as 'backbone', and nothing is fetched: give the configuration "
            "of that network in its place"
        ) from None
    finally:
        hub.HF_HUB_OFFLINE = before


def _timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    timm = importlib.import_module("timm")
    if not timm.is_model(name):
        raise PlanError(f"timm has no network '{name}': {nearest(name, timm.list_models())}")
    with _nothing_fetched():
        network: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return network


def _torchvision(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    if name not in (known := models.list_models()):
        raise PlanError(f"torchvision has no network '{name}': {nearest(name, known)}")
    network: nn.Module = models.get_model(name, **{"weights": None, **_no_backbone(models, name), **arguments})
    return network


def _no_backbone(models: Any, name: str) -> dict[str, None]:
    """Return the argument that keeps a detector from fetching its backbone's weights, if it has one."""
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    return {"weights_backbone": None} if "weights_backbone" in parameters else {}


def _transformers(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    known = [each for each in dir(auto) if re.fullmatch(r"AutoModel\w*", each)]
    if name not in known:
        raise PlanError(f"transformers has no '{name}': {nearest(name, known)}")
    config = arguments.get("config")
    if not isinstance(config, Mapping) or set(arguments) != {"config"} or "model_type" not in config:
        raise PlanError(
            f"transformers:{name} takes one argument, 'config', with its 'model_type' (in the shell --arguments "
            "config.json)"
        )
    kinds = importlib.import_module("transformers.models.auto.configuration_auto")
    if config["model_type"] not in kinds.CONFIG_MAPPING:
        wrong = str(config["model_type"])
        raise PlanError(f"transformers has no model_type '{wrong}': {nearest(wrong, kinds.CONFIG_MAPPING)}")
    with _nothing_fetched():
        given = kinds.AutoConfig.for_model(**config)
        network: nn.Module = getattr(auto, name).from_config(given, trust_remote_code=False)
    return network


_HOMES: dict[str, Home] = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}
_EXTRAS = {"timm": "images", "torchvision": "images", "transformers": "texts"}

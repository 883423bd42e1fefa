"""Check the arguments of public functions before any work; an error names the argument and its allowed values."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn
from torch.utils.data import Dataset

from ifap.errors import ConfigError, closest, first_line, nearest

P = ParamSpec("P")
R = TypeVar("R")
_LONGEST = 40  # characters of a value that are shown


@dataclass(frozen=True)
class Kind:
    """The allowed types and values of an argument.

    Parameters
    ----------
    words : str
        Completes the sentence "steps must be ...".
    accepts : callable
        Whether a value is one.
    advice : callable, optional
        What to write instead of a value that is none; nothing where there is no advice.
    """

    words: str
    accepts: Callable[[object], bool]
    advice: Callable[[object], str | None] = lambda _value: None

    def refuse(self, name: str, value: object) -> ConfigError:
        """Return the error for a value that is not allowed."""
        advice = self.advice(value)
        return ConfigError(f"{name} must be {self.words}, not {shown(value)}{f': {advice}' if advice else ''}")


def optional(kind: Kind) -> Kind:
    """Return the kind that None belongs to as well."""
    return Kind(f"{kind.words} or None", lambda value: value is None or kind.accepts(value), kind.advice)


def either(*kinds: Kind) -> Kind:
    """Return the kind of values that belong to one of several."""
    return Kind(
        " or ".join(kind.words for kind in kinds),
        lambda value: any(kind.accepts(value) for kind in kinds),
        lambda value: next((advice for kind in kinds if (advice := kind.advice(value))), None),
    )


def instance(words: str, *classes: type, advice: Callable[[object], str | None] = lambda _value: None) -> Kind:
    """Return the kind of instances of some classes."""
    return Kind(words, lambda value: isinstance(value, classes), advice)


def one_of(*values: str) -> Kind:
    """Return the kind of some strings."""

    def advice(value: object) -> str | None:
        close = closest(value, values) if isinstance(value, str) else None
        return f"did you mean '{close}'?" if close else None

    return Kind(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values, advice)


def every(words: str, *classes: type) -> Kind:
    """Return the kind of sequences whose items are instances of some classes."""

    def wrong(value: object) -> list[object]:
        return [item for item in value if not isinstance(item, classes)]  # type: ignore[attr-defined]

    def is_sequence(value: object) -> bool:
        return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Tensor, nn.Module))

    return Kind(
        f"a list of {words}",
        # What can be read only once is not read here: whoever uses it would find nothing left.
        lambda value: isinstance(value, Iterator) or (is_sequence(value) and not wrong(value)),
        lambda value: f"it holds {shown(wrong(value)[0])}" if is_sequence(value) and wrong(value) else None,
    )


def function_of(*names: str) -> Kind:
    """Return the kind of functions that take so many arguments by position."""

    def takes(value: Any) -> bool:
        try:
            inspect.signature(value).bind(*names)
        except TypeError:
            return False
        except ValueError:  # one that does not say what it takes
            return True
        return True

    words = f"a function ({', '.join(names)})"
    return Kind(words, lambda value: FUNCTION.accepts(value) and takes(value))


def shown(value: object) -> str:
    """Return a value as an error names it: short ones as they are written, others by their class."""
    if value is None or isinstance(value, (bool, int, float, str, Path)):
        text = repr(str(value) if isinstance(value, Path) else value)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def checked(**kinds: Kind) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have the arguments of a function checked at each call.

    `kinds` holds the allowed values of each argument, by its name. The function raises a ConfigError if an argument has
    the wrong type or value.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                unknown = [name for name in kwargs if name not in signature.parameters and f"'{name}'" in str(error)]
                hint = f": {nearest(unknown[0], signature.parameters)}" if unknown else ""
                raise TypeError(f"{function.__name__}(): {first_line(error)}{hint}") from None
            for name, value in given.items():
                if name in kinds and not kinds[name].accepts(value):
                    raise kinds[name].refuse(name, value)
            return function(*args, **kwargs)

        return call

    return decorate


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_path(value: object) -> bool:
    return isinstance(value, (str, os.PathLike))


def _file_on(value: Any) -> Path | None:
    """Return the file that stands where a folder should be, on the way to it or at its end."""
    return next((path for path in (Path(value), *Path(value).parents) if path.is_file()), None)


def _is_folder(value: Any) -> bool:
    return _is_path(value) and Path(value).is_dir()


def _refusing(value: Any) -> Path | None:
    """Return the folder, the nearest that exists on the way to a path, in which nothing may be made."""
    nearest = next((path for path in (Path(value), *Path(value).absolute().parents) if path.is_dir()), None)
    return nearest if nearest is not None and not os.access(nearest, os.W_OK | os.X_OK) else None


def _advice_on_refusing(value: object) -> str | None:
    folder = _refusing(value) if _is_path(value) else None
    return None if folder is None else f"nothing may be written in '{folder}'"


def _are_inputs(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.is_nested or value.numel() > 0
    return value is not None and not isinstance(value, (str, bytes, type)) and not hasattr(value, "__array__")


def _advice_on_inputs(value: object) -> str | None:
    if isinstance(value, Tensor):
        return "it holds no sample"
    return "torch.as_tensor makes one of an array" if hasattr(value, "__array__") else None


def _are_batches(value: object) -> bool:
    if getattr(value, "role", None) == "test":  # whatever would use it refuses it, and says that it is the test split
        return True
    if isinstance(value, (Tensor, str, bytes, Mapping, Iterator, type)):
        return False
    return isinstance(value, Iterable) or (hasattr(value, "__getitem__") and not isinstance(value, Dataset))


def _advice_on_batches(value: object) -> str | None:
    if isinstance(value, (Tensor, Mapping)):
        return "that is one batch; put it into a list"
    if isinstance(value, Iterator):
        return "that can be read only once; put its batches into a list"
    return "put it into a torch.utils.data.DataLoader" if isinstance(value, Dataset) else None


def _advice_on_model(value: object) -> str | None:
    if isinstance(value, type) and issubclass(value, nn.Module):
        return "make an instance of it"
    if isinstance(value, Mapping):
        return "build the network and load these weights into it"
    return None


MODULE = instance("a network (torch.nn.Module)", nn.Module, advice=_advice_on_model)
PRUNED = Kind(
    "what ifap.prune returned",
    lambda value: hasattr(value, "plan") and hasattr(value, "receipts"),
    lambda value: "the network alone has no plan" if isinstance(value, nn.Module) else None,
)
INPUTS = Kind("a tensor, or a tuple, list or dict of arguments", _are_inputs, _advice_on_inputs)
NUMBER = Kind("a finite number", _is_number)
COUNT = Kind("a whole number of at least 1", lambda value: _is_whole(value) and value >= 1)  # type: ignore[operator]
NOT_NEGATIVE = Kind("a whole number of at least 0", lambda value: _is_whole(value) and value >= 0)  # type: ignore[operator]
AMOUNT = Kind("a finite number of at least 0", lambda value: _is_number(value) and value >= 0)  # type: ignore[operator]
POSITIVE = Kind("a finite number above 0", lambda value: _is_number(value) and value > 0)  # type: ignore[operator]
WHOLE = Kind("a whole number", _is_whole)
SEED = Kind("a whole number of at least 0 and below 2**63", lambda value: _is_whole(value) and 0 <= value < 2**63)  # type: ignore[operator]
SWITCH = instance("True or False", bool)
FUNCTION = Kind("a function", lambda value: callable(value) and not isinstance(value, type))
TEXT = instance("a string", str)
NAMES = every("names of outputs", str)
BUILDER = Kind(
    "a function or class that makes the unpruned network",
    lambda value: callable(value) and not isinstance(value, nn.Module),
    lambda value: "write lambda: net" if isinstance(value, nn.Module) else None,
)
LAYERS = replace(
    either(TEXT, MODULE, every("layers", str, nn.Module)), words="names or modules of layers, such as 'conv1'"
)
MAPPING = instance("a dict", Mapping)
FOLDER = Kind(
    "the path of a folder",
    lambda value: _is_path(value) and _file_on(value) is None,
    lambda value: f"'{_file_on(value)}' is a file" if _is_path(value) else None,
)
NEW_FOLDER = Kind(
    "the path of a folder that can be written",
    lambda value: FOLDER.accepts(value) and _refusing(value) is None,
    lambda value: FOLDER.advice(value) or _advice_on_refusing(value),
)
NEW_FILE = Kind(
    "the path of a file that can be written",
    lambda value: _is_path(value) and not _is_folder(value) and _refusing(value) is None,
    lambda value: "that is a folder" if _is_folder(value) else _advice_on_refusing(value),
)
BATCHES_ONCE = Kind(
    "an iterable of batches, such as a list or a DataLoader",
    lambda value: isinstance(value, Iterator) or _are_batches(value),
    _advice_on_batches,
)
BATCHES = Kind("an iterable of batches, such as a list or a DataLoader", _are_batches, _advice_on_batches)

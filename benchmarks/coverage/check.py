"""Whether each network builds and runs: what a registry must promise before anything is pruned."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.registry import Network


def call(model: Any, inputs: Any) -> Any:
    """Run a network on a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def flat(outputs: Any) -> list[Tensor]:
    """Return every tensor in nested outputs, in order; objects with fields of their own are opened."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        return [tensor for value in outputs.values() for tensor in flat(value)]
    if isinstance(outputs, (list, tuple)):
        return [tensor for value in outputs for tensor in flat(value)]
    fields = getattr(outputs, "__dict__", None)
    return flat(dict(fields)) if fields and not isinstance(outputs, nn.Module) else []


# What a forward hands to the next one, whose widths are the network's own affair.
_CACHES = ("past_key_values", "cache", "cache_params", "mems", "state", "past_buckets_states")


def forward(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the tensors that one forward in evaluation mode is for, the random generator seeded.

    These are what has ``logits`` in its name, where something has, else everything; caches never count. Hidden states
    that a language model returns beside its logits are as wide as it is inside.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = call(model.eval(), inputs)
    if isinstance(outputs, dict):
        named = {name: value for name, value in outputs.items() if "logits" in name}
        outputs = named or {name: value for name, value in outputs.items() if name not in _CACHES}
    return flat(outputs)


def twice(inputs: Any, fixed: tuple[str, ...] = ()) -> Any:
    """Return inputs of twice the batch size; those whose names are in `fixed` stay."""
    if isinstance(inputs, Tensor):
        return torch.cat([inputs, inputs]) if inputs.dim() else inputs
    if isinstance(inputs, dict):
        return {name: value if name in fixed else twice(value, fixed) for name, value in inputs.items()}
    if isinstance(inputs, list):  # of pictures, as detectors take
        return [*inputs, *inputs]
    return tuple(twice(value) for value in inputs) if isinstance(inputs, tuple) else inputs


def trains(model: nn.Module, inputs: Any) -> str:
    """Return '' if a forward and a backward in training mode work without targets, else what was raised.

    The loss is the sum of the squares of all outputs that have a gradient.
    """
    model.train()
    try:
        torch.manual_seed(0)
        losses = [out.float().square().mean() for out in flat(call(model, inputs)) if out.requires_grad]
        if not losses:
            return "no output has a gradient"
        torch.stack(losses).sum().backward()
    except Exception as error:
        return said(error)
    finally:
        model.eval()
        model.zero_grad(set_to_none=True)
    return ""


def said(error: BaseException) -> str:
    """Return type and text of an error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def costs(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """Return MACs and parameters, or why they cannot be counted."""
    import ifap

    try:
        counted = ifap.cost(model, inputs)
    except Exception as error:
        return {"macs": said(error)}
    return {"macs": counted.macs, "params": counted.params}


def check(network: Network) -> dict[str, Any]:
    """Build and run a network.

    Parameters
    ----------
    network : Network
        An entry of the registry.

    Returns
    -------
    dict
        Seconds, MACs, parameters and shapes; whether two builds compute the same, whether all values are finite,
        whether another batch size runs and whether it trains without targets (``""``, or what was raised).
    """
    start = time.perf_counter()
    model, inputs = network.build(), network.inputs()
    first = forward(model, inputs)
    seconds = time.perf_counter() - start
    again = forward(network.build(), network.inputs())
    return {
        "key": network.key,
        "seconds": round(seconds, 2),
        **costs(model, inputs),
        "outputs": [list(tensor.shape) for tensor in first][:3],
        "same": same(first, again),
        "finite": all(bool(tensor.isfinite().all()) for tensor in first if tensor.is_floating_point()),
        "batch": other_batch(network, model, inputs),
        "trains": trains(model, twice(inputs, network.fixed) if network.doubles else inputs),
    }


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal bit by bit, values that are not numbers included."""
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True)
    )


def other_batch(network: Network, model: nn.Module, inputs: Any) -> str:
    """Return '' if twice the batch runs, '-' if it makes no sense, else what was raised."""
    if not network.doubles:
        return "-"
    try:
        forward(model, twice(inputs, network.fixed))
    except Exception as error:
        return said(error)
    return ""

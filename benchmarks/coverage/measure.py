"""Prune one network and look at what came out; runs in a process of its own, see `benchmarks.coverage.runner`.

Only what the library offers to everybody is called: `ifap.prune`, `ifap.save`, `ifap.load`, `ifap.Target`.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.coverage.check import costs, forward, said, same, trains, twice
from benchmarks.coverage.registry import Network

TARGET = 0.5
# The paper's method in iterations, and what a newcomer calls; both may leave one unit of a small layer.
ITERATIVE: dict[str, Any] = {"method": "ifap", "steps": 4, "min_units": 1}
DEFAULTS: dict[str, Any] = {"min_units": 1}
TOKENS = 4
SHOWN = 5
_MARGIN = (0.002, 0.03)  # below what a refusal says is possible: where that is rounded, and where it is not exact
OUTPUTS = "outputs.safetensors"

Note = Callable[[dict[str, Any]], None]


def measure(network: Network, folder: Path, note: Note) -> None:
    """Prune a network by half of its MACs and check the result; save it for `reload`.

    Parameters
    ----------
    network : Network
        An entry of the registry.
    folder : Path
        Where the pruned network and its outputs go.
    note : callable
        Is handed columns of the row as soon as they are known, so that they are there if the time runs out.
    """
    _measure(network, folder, note, ITERATIVE)


def measure_defaults(network: Network, folder: Path, note: Note) -> None:
    """Do the same with the default method of `ifap.prune`, in one iteration and with compensation."""
    _measure(network, folder, note, DEFAULTS)


def _measure(network: Network, folder: Path, note: Note, options: dict[str, Any]) -> None:
    import ifap

    model, inputs = network.build(), network.inputs()
    note({f"{name}_before": value for name, value in costs(model, inputs).items()})
    shapes = [tuple(tensor.shape) for tensor in forward(model, inputs)]
    pruned = _pruned(model, inputs, note, options)
    if pruned is None:
        return
    note(_result(pruned))
    note({"stays": _what_stays(model, inputs, pruned.receipts[-1].pinned)})
    outputs = forward(pruned.model, inputs)
    ifap.save(pruned, folder)
    save_file({str(place): tensor.clone().contiguous() for place, tensor in enumerate(outputs)}, folder / OUTPUTS)
    changed = [tuple(tensor.shape) for tensor in outputs]
    is_same = changed == shapes or (network.counts_values and [*map(len, changed)] == [*map(len, shapes)])
    note({"shapes": "same" if is_same else f"{shapes} became {changed}"})
    note({"batch": _batch(network, model, pruned.model, inputs)})
    note({"generates": _generates(model, pruned.model, inputs)})
    more = twice(inputs, network.fixed) if network.doubles else inputs
    note({"trains": _as_before(lambda one: trains(one, more), network.build(), pruned.model)})


def reload(network: Network, folder: Path, note: Note) -> None:
    """Load what `measure` saved, in a process that has not seen it, and compare the outputs bit by bit."""
    import ifap

    saved = load_file(folder / OUTPUTS)
    wanted = [saved[str(place)] for place in range(len(saved))]
    try:
        loaded = ifap.load(folder, network.build)
        found = forward(loaded, network.inputs())
    except Exception as error:
        note({"reload": said(error)})
        return
    if same(found, wanted):
        note({"reload": "equal"})
        return
    differences = [
        float((a - b).abs().max()) if a.shape == b.shape and a.numel() else float("inf")
        for a, b in zip(found, wanted, strict=False)
        if a.is_floating_point()
    ]
    note({"reload": f"outputs differ by up to {max(differences, default=float('inf')):.3g}"})


def _pruned(model: nn.Module, inputs: Any, note: Note, options: dict[str, Any]) -> Any:
    """Return the pruned network, if need be pruned by less; None if nothing came out, which is noted."""
    import ifap

    goal: float | None = TARGET
    refusals: list[str] = []
    while goal is not None:
        start = time.perf_counter()
        try:
            pruned = ifap.prune(model, inputs, [inputs, inputs], target=ifap.Target(macs=goal), **options)
        except ifap.IfapError as error:
            refusals.append(said(error))
            note({"state": "refused", "reason": refusals[0], "seconds": _since(start)})
            goal = _most(refusals)
        except Exception as error:
            note({"state": "traceback", "reason": said(error), "frame": frame(error), "seconds": _since(start)})
            return None
        else:
            state = "partly" if refusals else "reached"
            note({"state": state, "reason": "; ".join(refusals[:1]), "seconds": _since(start)})
            return pruned
    return None


def _most(refusals: list[str]) -> float | None:
    """Return the next target to try: a little below what the first refusal says is possible, then less, then none."""
    found = re.search(r"at most ([0-9.]+[0-9])", refusals[0])
    if found is None or len(refusals) > len(_MARGIN):
        return None
    goal = round(float(found.group(1)) - _MARGIN[len(refusals) - 1], 4)
    return goal if 0 < goal < TARGET else None


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 2)


def _result(pruned: Any) -> dict[str, Any]:
    """Return the columns that follow from what `ifap.prune` returned."""
    proof = getattr(pruned, "proof", None)
    exempt = dict(getattr(proof, "does_not_apply", None) or {})
    return {
        "achieved": round(1 - pruned.after.macs / pruned.before.macs, 4),
        "macs_after": pruned.after.macs,
        "params_after": pruned.after.params,
        "proof_difference": _or_empty(getattr(proof, "difference", None)),
        "proof_units": _or_empty(getattr(proof, "units_checked", None)),
        "proof_exempt": "; ".join(f"{reason}: {units}" for reason, units in exempt.items()),
    }


def _or_empty(value: Any) -> Any:
    return "" if value is None else value


def frame(error: BaseException) -> str:
    """Return the last place in the library that an error came through."""
    places = [
        f"{place.filename.replace(chr(92), '/').rpartition('/ifap/')[2]}:{place.lineno} {place.name}"
        for place in traceback.extract_tb(error.__traceback__)
        if "/ifap/" in place.filename and "site-packages" not in place.filename
    ]
    return places[-1] if places else ""


def macs_of_layers(model: nn.Module, inputs: Any) -> dict[str, int]:
    """Return the multiply-accumulates below each module of a network, by its name, as torch counts them."""
    counter = FlopCounterMode(display=False)
    with counter:
        forward(model, inputs)
    root = type(model).__name__
    return {
        name.removeprefix(root).removeprefix("."): sum(counts.values()) // 2
        for name, counts in counter.get_flop_counts().items()
        if name.startswith(root)
    }


def _what_stays(model: nn.Module, inputs: Any, pinned: dict[str, str]) -> str:
    """Return the layers that stay and do most of the work, with their share of it and the reason."""
    try:
        macs = macs_of_layers(model, inputs)
    except Exception:
        macs = {}
    whole = max(macs.get("", 0), 1)
    most = sorted(pinned.items(), key=lambda item: (-macs.get(item[0], 0), item[0]))[:SHOWN]
    return "; ".join(f"{name} {macs.get(name, 0) / whole:.1%} ({reason})" for name, reason in most)


def _batch(network: Network, model: nn.Module, pruned: nn.Module, inputs: Any) -> str:
    """Return whether twice the batch runs, if it does so before pruning."""
    if not network.doubles:
        return "-"
    more = twice(inputs, network.fixed)
    return _as_before(lambda one: _raised(lambda: forward(one, more)), model, pruned)


def _generates(model: nn.Module, pruned: nn.Module, inputs: Any) -> str:
    """Return whether greedy generation works, for a language model with which it does before pruning."""
    can: Any = getattr(model, "can_generate", None)
    if not isinstance(inputs, dict) or can is None or not can():
        return "-"
    given = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}

    def generate(one: Any) -> str:
        torch.manual_seed(0)
        return _raised(
            lambda: one.eval().generate(**given, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
        )

    return _as_before(generate, model, pruned)


def _raised(function: Callable[[], object]) -> str:
    try:
        with torch.no_grad():
            function()
    except Exception as error:
        return said(error)
    return ""


def _as_before(attempt: Callable[[nn.Module], str], model: nn.Module, pruned: nn.Module) -> str:
    """Return 'yes', 'no' where not even the unpruned network can, or what the pruned one alone raises."""
    if attempt(model):
        return "no"
    return attempt(pruned) or "yes"

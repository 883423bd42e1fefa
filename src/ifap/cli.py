"""The ``ifap`` command: prune a network of your own, look at a saved one, export it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifap.errors import ConfigError, IfapError
from ifap.trouble import MISTAKE, TROUBLE, trouble

if TYPE_CHECKING:
    from torch import nn

    from ifap.plan import Plan

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

EXPORTS = {".onnx": "export_onnx", ".pt2": "export_program"}
BuilderArgument = Annotated[str, typer.Argument(help="Function that builds the network: package.module:function.")]
FolderArgument = Annotated[Path, typer.Argument(help="Folder with weights.safetensors and plan.json.")]


@app.command()
def prune(
    builder: BuilderArgument,
    data: Annotated[Path, typer.Option(help="Calibration inputs: a .safetensors file with one tensor 'inputs'.")],
    out: Annotated[Path, typer.Option(help="Folder to save the pruned network in.")],
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the network (.safetensors), if not built in.")
    ] = None,
    macs: Annotated[float | None, typer.Option(help="Share of the MACs to remove, for example 0.65.")] = None,
    params: Annotated[float | None, typer.Option(help="Share of the parameters to remove.")] = None,
    latency: Annotated[float | None, typer.Option(help="Share of the measured time of a forward to save.")] = None,
    steps: Annotated[int | None, typer.Option(help="Pruning iterations; the method's own by default.")] = None,
    method: Annotated[str, typer.Option(help="How units are scored.")] = "flow",
    compensate: Annotated[
        bool | None,
        typer.Option(help="Let what stays stand in for what goes; the method's own by default."),
    ] = None,
    round_to: Annotated[int | None, typer.Option(help="Keep widths a multiple of this.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Layer whose outputs stay; may be repeated.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples a calibration batch.")] = 32,
) -> None:
    """Prune a network without training it, and save it."""
    import ifap
    from ifap.results import Target

    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give a folder for --out")
    if batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1, not {batch_size}")
    network = _load_weights(_built(builder), weights)
    inputs = _tensor(data, "inputs")
    _try(network, inputs, data)
    pruned = ifap.prune(
        network,
        inputs[:1],
        inputs.split(batch_size),
        target=Target(macs=macs, params=params, latency=latency),
        steps=steps,
        method=method,
        compensate=compensate,
        round_to=round_to,
        ignore=ignore or (),
    )
    ifap.save(pruned, out)
    before, after = pruned.before, pruned.after
    typer.echo(f"MACs    {before.macs:>14,} -> {after.macs:>14,}  (-{after.reduction(before, 'macs'):.1%})")
    typer.echo(f"params  {before.params:>14,} -> {after.params:>14,}  (-{after.reduction(before, 'params'):.1%})")
    if after.latency is not None and before.latency is not None:
        typer.echo(
            f"ms      {before.latency:>14.2f} -> {after.latency:>14.2f}  (-{after.reduction(before, 'latency'):.1%})"
        )
    typer.echo(f"saved in {out}; load it with ifap.load({str(out)!r}, {builder.partition(':')[2]})")


@app.command()
def show(folder: FolderArgument, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show what a saved network kept of each layer."""
    from ifap.plan import read_plan

    plan = read_plan(folder)
    widths = {name: {side: len(left) for side, left in sides.items()} for name, sides in plan.kept.items()}
    if as_json:
        typer.echo(json.dumps({"builder": plan.builder.model_dump(), "costs": plan.costs.model_dump(), "kept": widths}))
        return
    costs = plan.costs
    typer.echo(f"builder  {plan.builder.id or 'not named'} {plan.builder.args or ''}".rstrip())
    typer.echo(f"MACs     {costs.macs_before:,} -> {costs.macs_after:,}")
    typer.echo(f"params   {costs.params_before:,} -> {costs.params_after:,}")
    for name, heads in plan.heads.items():
        typer.echo(f"{name}: {heads} heads")
    for name, sides in widths.items():
        typer.echo(f"{name}: {', '.join(f'{side} {width}' for side, width in sides.items())}")


@app.command()
def export(
    folder: FolderArgument,
    to: Annotated[Path, typer.Option(help="File to write: .onnx, or .pt2 for torch.export.")],
    builder: Annotated[
        str | None, typer.Option(help="package.module:function, if the plan does not name a model of this package.")
    ] = None,
) -> None:
    """Export a saved network, with any batch size, after comparing what was exported with it."""
    from ifap.example_inputs import make_inputs
    from ifap.plan import read_plan
    from ifap.saving import load

    if to.suffix not in EXPORTS:
        raise ConfigError(f"--to {to}: the name must end in {' or '.join(EXPORTS)}")
    if to.is_dir():
        raise ConfigError(f"--to {to} is a folder: give a file")
    import ifap.export

    if to.suffix == ".onnx":
        ifap.export.onnx_packages()
    plan = read_plan(folder)
    network = load(folder, lambda: _plan_network(plan, builder))
    difference = getattr(ifap.export, EXPORTS[to.suffix])(network, make_inputs(plan.example_inputs), to)
    size = to.stat().st_size / 2**20
    typer.echo(f"wrote {to}: {size:.1f} MiB, any batch size; differs by {difference:.1g} of the largest output")


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 2, trouble with disk or memory exit code 3."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.path.insert(0, "")  # a builder may live in the present folder
    try:
        for _, add_commands in plugins("ifap.commands"):
            add_commands(app)
        app()
    except IfapError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        raise SystemExit(MISTAKE) from None
    except Exception as error:
        reason = trouble(error)
        if reason is None:
            raise
        sys.stderr.write(f"error: {reason}\n")
        raise SystemExit(TROUBLE) from None


def plugins(group: str) -> Iterator[tuple[str, Any]]:
    """Yield the entry points of a group with their names; those whose package is not installed are left out."""
    for point in importlib.metadata.entry_points(group=group):
        if _can_find(point.module):
            yield point.name, point.load()


def _can_find(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that holds it
        return False


def _builder(text: str) -> Callable[[], nn.Module]:
    module_name, _, name = text.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"builder '{text}': {error}; write package.module:function") from None
    if not callable(function):
        raise ConfigError(f"builder '{text}' is not a function")
    return function


def _built(text: str) -> nn.Module:
    from torch import nn

    try:
        network = _builder(text)()
    except IfapError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"builder '{text}': {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"builder '{text}' returned {type(network).__name__}, not a network")
    return network


def _plan_network(plan: Plan, builder: str | None) -> nn.Module:
    if builder is not None:
        return _built(builder)
    identifier = plan.builder.id
    if identifier is None:
        raise ConfigError("the plan does not say who builds the network: give --builder package.module:function")
    for prefix, build in plugins("ifap.builders"):
        if identifier.startswith(f"{prefix}:"):
            network: nn.Module = build(identifier, plan.builder.args)
            return network
    raise ConfigError(f"nothing installed here builds '{identifier}': give --builder package.module:function")


def _try(network: nn.Module, inputs: Any, data: Path) -> None:
    import torch

    from ifap.forward import evaluation_mode

    if not inputs.shape or not len(inputs):
        raise ConfigError(f"{data}: 'inputs' holds no samples")
    try:
        with torch.no_grad(), evaluation_mode(network):
            network(inputs[:1])
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"{data}: the network does not run on its inputs: {error}") from error


def _tensor(path: Path, name: str) -> Any:
    tensors = _tensors(path)
    if name not in tensors:
        raise ConfigError(f"{path}: no tensor '{name}' (it has {', '.join(sorted(tensors)) or 'none'})")
    return tensors[name]


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: file not found") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a valid safetensors file ({str(error).splitlines()[0]})") from None


def _load_weights(network: nn.Module, path: Path | None) -> nn.Module:
    if path is not None:
        try:
            network.load_state_dict(_tensors(path))
        except RuntimeError as error:
            raise ConfigError(f"{path}: does not fit the network: {' '.join(str(error).split())[:200]}") from None
    return network

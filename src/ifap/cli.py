"""The ``ifap`` command: prune a network of your own, look at a saved one, export it."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifap.errors import ConfigError, IfapError
from ifap.plugins import plugins
from ifap.trouble import MISTAKE, TROUBLE, trouble

if TYPE_CHECKING:
    from torch import nn


app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

EXPORTS = {".onnx": "export_onnx", ".pt2": "export_program"}
BuilderArgument = Annotated[
    str,
    typer.Argument(
        help="A public network, such as timm:efficientnet_lite0, torchvision:resnet50 or "
        "transformers:AutoModelForCausalLM; or a function of yours, package.module:function."
    ),
]
ArgumentsOption = Annotated[
    Path | None, typer.Option(help="JSON file with the arguments of the builder, such as a config.json.")
]
FolderArgument = Annotated[Path, typer.Argument(help="Folder with weights.safetensors and plan.json.")]


@app.command()
def prune(
    builder: BuilderArgument,
    data: Annotated[
        Path,
        typer.Option(
            help="Calibration samples: a folder of images, a .txt file with one text a line, or a .safetensors file "
            "with a tensor 'inputs' or one for each argument."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to save the pruned network in.")],
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the network (.safetensors), if not built in.")
    ] = None,
    arguments: ArgumentsOption = None,
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
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer, for texts.")] = None,
    processor: Annotated[Path | None, typer.Option(help="Folder of the image processor, for images.")] = None,
    length: Annotated[int | None, typer.Option(help="Most tokens a text (128 where the network has as many).")] = None,
) -> None:
    """Prune a network without training it, and save it."""
    import ifap
    from ifap.results import Target
    from ifap.samples import first_sample, read_samples

    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: give a folder for --out")
    given = _arguments(arguments, builder)
    network = _load_weights(_built(builder, given), weights)
    batches = read_samples(data, network, builder, batch_size, tokenizer, processor, length)
    example = first_sample(batches[0])
    _try(network, example, data)
    pruned = ifap.prune(
        network,
        example,
        batches,
        target=Target(macs=macs, params=params, latency=latency),
        steps=steps,
        method=method,
        compensate=compensate,
        round_to=round_to,
        ignore=ignore or (),
    )
    is_public = _is_public(builder)
    ifap.save(pruned, out, *((builder, given) if is_public else ()))
    before, after = pruned.before, pruned.after
    typer.echo(f"MACs    {before.macs:>14,} -> {after.macs:>14,}  (-{after.reduction(before, 'macs'):.1%})")
    typer.echo(f"params  {before.params:>14,} -> {after.params:>14,}  (-{after.reduction(before, 'params'):.1%})")
    if after.latency is not None and before.latency is not None:
        typer.echo(
            f"ms      {before.latency:>14.2f} -> {after.latency:>14.2f}  (-{after.reduction(before, 'latency'):.1%})"
        )
    function = "" if is_public else f", {builder.partition(':')[2]}"
    typer.echo(f"saved in {out}; load it with ifap.load({str(out)!r}{function})")


@app.command()
def inspect(
    builder: BuilderArgument,
    data: Annotated[Path, typer.Option(help="Samples of which one is run; as for prune.")],
    arguments: ArgumentsOption = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Layer whose outputs stay; may be repeated.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the tokenizer, for texts.")] = None,
    processor: Annotated[Path | None, typer.Option(help="Folder of the image processor, for images.")] = None,
) -> None:
    """List what can be cut in a network, and what stays and why."""
    import ifap
    from ifap.samples import first_sample, read_samples

    network = _built(builder, _arguments(arguments, builder))
    example = first_sample(read_samples(data, network, builder, 1, tokenizer, processor)[0])
    _try(network, example, data)
    typer.echo(str(ifap.inspect(network, example, ignore=ignore or ())))


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
    if builder is None and plan.builder.id is None:
        raise ConfigError("the plan does not say who builds the network: give --builder package.module:function")
    network = load(folder, None if builder is None else functools.partial(_built, builder))
    difference = getattr(ifap.export, EXPORTS[to.suffix])(network, make_inputs(plan.example_inputs), to)
    size = to.stat().st_size / 2**20
    typer.echo(f"wrote {to}: {size:.1f} MiB, any batch size; differs by {difference:.1g} of the largest output")


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 2, trouble with disk or memory exit code 3."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.path.insert(0, "")  # a builder may live in the present folder
    try:
        for point in plugins("ifap.commands").values():
            point.load()(app)
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


def _is_public(builder: str) -> bool:
    from ifap.builders import homes

    return builder.partition(":")[0] in homes()


def _builder(text: str) -> Callable[..., nn.Module]:
    """Return what builds the network: a public one by its home, or a function of the user's own."""
    from ifap.builders import build, homes

    if _is_public(text):
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


def _built(text: str, arguments: dict[str, Any] | None = None) -> nn.Module:
    from torch import nn

    try:
        network = _builder(text)(**arguments or {})
    except IfapError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"builder '{text}': {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"builder '{text}' returned {type(network).__name__}, not a network")
    return network


def _arguments(path: Path | None, builder: str) -> dict[str, Any]:
    """Read the arguments of a builder from a JSON file; a ``config.json`` is the configuration of ``transformers``."""
    from ifap.builders import described

    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: file not found") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not valid JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds {type(found).__name__}, not an object of names and values")
    is_config = builder.startswith("transformers:") and "config" not in found
    return {"config": described(found)} if is_config else found


def _try(network: nn.Module, inputs: Any, data: Path) -> None:
    import torch

    from ifap.forward import call, evaluation_mode

    try:
        with torch.no_grad(), evaluation_mode(network):
            call(network, inputs)
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"{data}: the network does not run on its inputs: {error}") from error


def _load_weights(network: nn.Module, path: Path | None) -> nn.Module:
    from ifap.samples import read_tensors

    if path is not None:
        try:
            network.load_state_dict(read_tensors(path))
        except RuntimeError as error:
            raise ConfigError(f"{path}: does not fit the network: {' '.join(str(error).split())[:200]}") from None
    return network

"""The ``ifap`` command: prune a network of your own, look at a saved one, export it."""

from __future__ import annotations

import functools
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ifap.cli.reading import (
    LR,
    Job,
    Request,
    built,
    own_builder,
    read_arguments,
    read_job,
    try_once,
    usual_steps,
)
from ifap.errors import ConfigError, IfapError, counted, printable
from ifap.plugins import plugins
from ifap.trouble import MISTAKE, TROUBLE, trouble

if TYPE_CHECKING:
    from ifap.results import Pruned

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

EXPORTS = {".onnx": "export_onnx", ".pt2": "export_program", "": "save_pretrained"}
"""What is written, by the suffix of its name; a folder has none."""
BuilderArgument = Annotated[
    str,
    typer.Argument(
        help="A public network, such as timm:efficientnet_lite0, torchvision:resnet50 or "
        "transformers:AutoModelForCausalLM; or a function of yours, package.module:function."
    ),
]
DataOption = Annotated[
    Path,
    typer.Option(
        help="Calibration samples: a folder of images, a .txt file with one text a line, or a .safetensors file "
        "with a tensor 'inputs' or one for each argument."
    ),
]
WeightsOption = Annotated[Path | None, typer.Option(help="Weights of the network (.safetensors), if not built in.")]
ArgumentsOption = Annotated[
    Path | None, typer.Option(help="JSON file with the arguments of the builder, such as a config.json.")
]
MethodOption = Annotated[str, typer.Option(help="How units are scored.")]
CompensateOption = Annotated[
    bool | None, typer.Option(help="Let what stays stand in for what goes; the method's own by default.")
]
RoundOption = Annotated[
    int | None, typer.Option(help="Keep widths a multiple of this: 16 for CPUs with AVX-512, 8 for others.")
]
UniformOption = Annotated[
    bool, typer.Option("--uniform", help="The same widths in all blocks, so that export --to FOLDER works.")
]
IgnoreOption = Annotated[list[str] | None, typer.Option(help="Layer whose outputs stay; may be repeated.")]
BatchOption = Annotated[int, typer.Option(help="Samples a batch.")]
TokenizerOption = Annotated[Path | None, typer.Option(help="Folder of the tokenizer, for texts.")]
ProcessorOption = Annotated[Path | None, typer.Option(help="Folder of the image processor, for images.")]
LengthOption = Annotated[int | None, typer.Option(help="Most tokens a text (128 where the network has as many).")]
_LABELLED = (
    "a folder with one folder of images for each class, a .csv file with the columns text and label, or a "
    ".safetensors file with 'labels'"
)
RecoverOption = Annotated[
    Path | None,
    typer.Option(help=f"Labelled samples to train on after each cut: {_LABELLED}. One in five is kept to validate on."),
]
EpochsOption = Annotated[int | None, typer.Option(help="Most epochs after each cut, for --recover (1).")]
LrOption = Annotated[float | None, typer.Option(help=f"Learning rate of --recover ({LR:g}).")]
ValidateOption = Annotated[
    Path | None, typer.Option(help="Labelled samples to measure accuracy on, as for --recover, in place of those kept.")
]
MaxDropOption = Annotated[float | None, typer.Option(help="Most points of accuracy that may be lost.")]
OwnBuilderOption = Annotated[
    str | None, typer.Option(help="package.module:function, if the plan does not name a public network.")
]
FolderArgument = Annotated[Path, typer.Argument(help="Folder with weights.safetensors and plan.json.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        import ifap

        typer.echo(f"ifap {ifap.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make a trained network smaller."""


def _check_folder(out: Path) -> None:
    from ifap.arguments import NEW_FOLDER

    if not NEW_FOLDER.accepts(out):
        raise NEW_FOLDER.refuse("--out", out)


@app.command()
def prune(
    builder: BuilderArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder to save the pruned network in.")],
    weights: WeightsOption = None,
    arguments: ArgumentsOption = None,
    macs: Annotated[float | None, typer.Option(help="Share of the MACs to remove, for example 0.65.")] = None,
    params: Annotated[float | None, typer.Option(help="Share of the parameters to remove.")] = None,
    latency: Annotated[float | None, typer.Option(help="Share of the measured time of a forward to save.")] = None,
    steps: Annotated[int | None, typer.Option(help="Pruning iterations; the method's own by default.")] = None,
    method: MethodOption = "flow",
    compensate: CompensateOption = None,
    round_to: RoundOption = None,
    uniform: UniformOption = False,
    ignore: IgnoreOption = None,
    batch_size: BatchOption = 32,
    tokenizer: TokenizerOption = None,
    processor: ProcessorOption = None,
    length: LengthOption = None,
    recover: RecoverOption = None,
    epochs: EpochsOption = None,
    lr: LrOption = None,
    validate: ValidateOption = None,
    max_drop: MaxDropOption = None,
    report: Annotated[bool, typer.Option("--report", help="Write report.html in the folder; see ifap report.")] = False,
) -> None:
    """Prune a network, train it after each cut if asked to, and save it."""
    import ifap
    from ifap.cli.progress import Bars
    from ifap.results import Target
    from ifap.saving.builders import is_public

    _check_folder(out)
    target = Target(macs=macs, params=params, latency=latency)
    request = Request(
        builder, data, arguments, weights, tokenizer, processor, length, batch_size, recover, validate, epochs, lr
    )
    with Bars(steps or usual_steps(method)) as bars:
        job = read_job(request, bars)
        pruned = ifap.prune(
            job.network,
            job.example,
            job.batches,
            target=target,
            steps=steps,
            method=method,
            compensate=compensate,
            round_to=round_to,
            uniform=uniform,
            ignore=ignore or (),
            recover=job.recover,
            validate=job.validate,
            max_drop=max_drop,
            on_step=bars.on_step,
            on_phase=bars.on_phase,
        )
        _save(pruned, out, builder, job.given)
        if report:
            bars.on_phase("time", len(pruned.receipts) - 1)
            page = ifap.write_report(out, builder=own_builder(builder, job.given))
    _say(pruned, job)
    function = "" if is_public(builder) else f", {builder.partition(':')[2]}"
    typer.echo(f"saved in {out}; load it with ifap.load({str(out)!r}{function})")
    if report:
        typer.echo(f"report: {page}")


@app.command()
def sweep(
    builder: BuilderArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder for curve.csv, curve.svg and the smallest network.")],
    weights: WeightsOption = None,
    arguments: ArgumentsOption = None,
    validate: ValidateOption = None,
    recover: RecoverOption = None,
    epochs: EpochsOption = None,
    lr: LrOption = None,
    points: Annotated[int, typer.Option(help="Points of the curve, evenly up to 90 % of the MACs.")] = 9,
    target: Annotated[
        list[float] | None, typer.Option(help="Share of the MACs to remove at one point; repeat it, rising.")
    ] = None,
    max_drop: MaxDropOption = None,
    method: MethodOption = "flow",
    compensate: CompensateOption = None,
    round_to: RoundOption = None,
    uniform: UniformOption = False,
    ignore: IgnoreOption = None,
    batch_size: BatchOption = 32,
    tokenizer: TokenizerOption = None,
    processor: ProcessorOption = None,
    length: LengthOption = None,
) -> None:
    """Find out how small a network can get: accuracy over MACs, from one run; the same call goes on after a kill."""
    import ifap
    from ifap.cli.progress import Bars

    _check_folder(out)
    if validate is None and recover is None:
        raise ConfigError("a curve needs labelled samples: give --validate or --recover")
    request = Request(
        builder, data, arguments, weights, tokenizer, processor, length, batch_size, recover, validate, epochs, lr
    )
    with Bars(len(target or range(points))) as bars:
        job = read_job(request, bars)
        assert job.validate is not None
        found = ifap.sweep(
            job.network,
            job.example,
            job.batches,
            validate=job.validate,
            targets=target or points,
            max_drop=max_drop,
            folder=out,
            method=method,
            compensate=compensate,
            round_to=round_to,
            uniform=uniform,
            ignore=ignore or (),
            recover=job.recover,
            on_step=bars.on_step,
            on_phase=bars.on_phase,
        )
        if found.smallest is not None:
            _save(found.smallest, out / "small", builder, job.given)
    typer.echo(str(found))
    typer.echo(f"wrote {out / 'curve.csv'} and {out / 'curve.svg'}")
    if found.smallest is not None:
        typer.echo(f"saved the smallest network that loses at most {max_drop:g} in {out / 'small'}")
    elif max_drop is not None:
        typer.echo(f"no smaller network loses at most {max_drop:g}: nothing was saved")


@app.command()
def report(
    folder: FolderArgument,
    to: Annotated[Path | None, typer.Option(help="Page to write; report.html in the folder by default.")] = None,
    builder: OwnBuilderOption = None,
    time: Annotated[bool, typer.Option(help="Time both networks on this machine.")] = True,
) -> None:
    """Write one page on a saved network, which opens offline: costs, widths, what stays and why, times, proof."""
    import ifap
    from ifap.cli.progress import Bars

    if to is not None and to.is_dir():
        raise ConfigError(f"--to {to} is a folder: give a file")
    with Bars(1) as bars:
        bars.on_phase("time" if time else "report", 0)
        page = ifap.write_report(folder, to, None if builder is None else functools.partial(built, builder), time=time)
    typer.echo(f"wrote {page}")


@app.command()
def inspect(
    builder: BuilderArgument,
    data: DataOption,
    arguments: ArgumentsOption = None,
    ignore: IgnoreOption = None,
    tokenizer: TokenizerOption = None,
    processor: ProcessorOption = None,
) -> None:
    """List what can be cut in a network, and what stays and why."""
    import ifap
    from ifap.cli.samples import first_sample, read_samples

    network = built(builder, read_arguments(arguments, builder))
    example = first_sample(read_samples(data, network, builder, 1, tokenizer, processor)[0])
    try_once(network, example, data)
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
    typer.echo(printable(f"builder  {plan.builder.id or 'not named'} {plan.builder.args or ''}".rstrip()))
    typer.echo(f"MACs     {costs.macs_before:,} -> {costs.macs_after:,}")
    typer.echo(f"params   {costs.params_before:,} -> {costs.params_after:,}")
    for name, heads in plan.heads.items():
        typer.echo(printable(f"{name}: {counted(heads, 'head')}"))
    for name, sides in widths.items():
        typer.echo(printable(f"{name}: {', '.join(f'{side} {width}' for side, width in sides.items())}"))


@app.command()
def export(
    folder: FolderArgument,
    to: Annotated[
        Path,
        typer.Option(
            help="What to write: a file .onnx, a file .pt2 for torch.export, or a folder that from_pretrained loads."
        ),
    ],
    builder: OwnBuilderOption = None,
) -> None:
    """Export a saved network, with any batch size, after comparing what was exported with it."""
    from ifap.example_inputs import make_inputs
    from ifap.plan import read_plan
    from ifap.report.page import megabytes
    from ifap.saving.store import load

    if to.suffix not in EXPORTS:
        raise ConfigError(f"--to {to}: the name must end in .onnx or .pt2, or be that of a folder, without a dot")
    if to.is_dir() and to.suffix:
        raise ConfigError(f"--to {to} is a folder: give a file")
    import ifap.export
    import ifap.saving.pretrained

    if to.suffix == ".onnx":
        ifap.export.onnx_packages()
    plan = read_plan(folder)
    if builder is None and plan.builder.id is None:
        raise ConfigError("the plan does not say who builds the network: give --builder package.module:function")
    network = load(folder, None if builder is None else functools.partial(built, builder))
    write = getattr(ifap.export if to.suffix else ifap.saving.pretrained, EXPORTS[to.suffix])
    difference = write(network, make_inputs(plan.example_inputs), to)
    size = sum(file.stat().st_size for file in ([to] if to.suffix else to.iterdir()))
    free = ", any batch size" if to.suffix else ""
    typer.echo(f"wrote {to}: {megabytes(size)}{free}; differs by {difference:.1g} of the largest output")


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
        if reason is None and isinstance(error, OSError):
            reason = f"{error.filename or 'a file'}: {error.strerror}"
        if reason is None:
            raise
        sys.stderr.write(f"error: {reason}\n")
        raise SystemExit(TROUBLE) from None


def _save(pruned: Pruned, out: Path, builder: str, given: dict[str, Any]) -> None:
    import ifap
    from ifap.saving.builders import is_public

    ifap.save(pruned, out, *((builder, given) if is_public(builder) else ()))


def _say(pruned: Pruned, job: Job) -> None:
    """Print costs before and after, and what was measured."""
    before, after = pruned.before, pruned.after
    typer.echo(f"MACs    {before.macs:>14,} -> {after.macs:>14,}  (-{after.reduction(before, 'macs'):.1%})")
    typer.echo(f"params  {before.params:>14,} -> {after.params:>14,}  (-{after.reduction(before, 'params'):.1%})")
    if after.latency is not None and before.latency is not None:
        typer.echo(
            f"ms      {before.latency:>14.2f} -> {after.latency:>14.2f}  (-{after.reduction(before, 'latency'):.1%})"
        )
    if job.validate is not None:
        for receipt in pruned.receipts[1:]:
            start, cut, end = pruned.receipts[0].metric_after, receipt.metric_before, receipt.metric_after
            said = f"{cut:.2f} after the cut, {end:.2f} after recovery" if job.recover else f"{end:.2f} after the cut"
            undone = "" if receipt.accepted else "; undone"
            typer.echo(f"iteration {receipt.iteration}: {pruned.metric} {start:.2f} -> {said}{undone}")

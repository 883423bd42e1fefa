"""What a pruned network is worth in use: whether it trains, reloads and exports, and how much faster it is.

The paper's ten classifiers at their published input sizes with random weights, unpruned and pruned by
65 % of the MACs, with and without widths rounded to a multiple of 8. One thread of one CPU core; the
three variants run in turn, so that whatever else the machine does falls on all of them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ifap
from benchmarks import own_format, quantized, turns
from benchmarks.ratio import RESULTS, read_rows
from ifap.errors import ConfigError, IfapError, nearest
from ifap.export import export_onnx
from ifap.files import atomic_write_text, write_csv
from ifap.forward import call, tensors
from ifap.plan import Builder, Plan
from ifap.saving.plans import unpruned_plan
from ifap.saving.store import write_network
from ifap.study.machine.determinism import configure
from ifap.study.machine.provenance import provenance
from ifap.study.models import MODELS, builder_id
from ifap.study.report.full_size import IMAGE_SIZES, USUAL_SIZE
from ifap.study.stage import run_stage

NETWORKS = (
    "densenet121",
    "vgg19_bn",
    "resnet50",
    "inception_v3",
    "mobilenet_v3_large",
    "shufflenet_v2_x2_0",
    "convnext_small",
    "efficientnet_b4",
    "efficientnet_v2_s",
    "vit_b_16",
)
VARIANTS: dict[str, int | None] = {"unpruned": None, "pruned": None, "pruned, widths of 8": 8}
TARGET = 0.65
STEPS = 3
CLASSES = 1000
BATCHES = (1, 16)
SETTINGS = ((1, "contiguous"), (16, "contiguous"), (16, "channels_last"))
SECONDS = 8.0  # for one network at one batch size and layout; then no further round is begun
ROUNDS = (3, 15)  # at least and at most, after one that is not counted
TABLE = RESULTS / "deployment.csv"
PAGE = Path("docs") / "deployment.md"

RELOAD = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from ifap.study.models import builder_from_id
from ifap.plan import read_plan
from ifap.saving.store import load
torch.set_num_threads(1)
for folder in map(Path, sys.argv[1:]):
    plan = read_plan(folder)
    network = load(folder, lambda: builder_from_id(plan.builder.id, plan.builder.args))
    with torch.no_grad():
        outputs = network(load_file(folder / "inputs.safetensors")["inputs"])
    save_file({"outputs": outputs}, folder / "outputs.safetensors")
"""

Row = dict[str, Any]


def column(quantity: str, batch: int, layout: str) -> str:
    """Return the name of a column, such as ``speedup_16_channels_last``."""
    return f"{quantity}_{batch}" + ("" if layout == "contiguous" else f"_{layout}")


TIMES = tuple(
    column(quantity, batch, layout)
    for batch, layout in SETTINGS
    for quantity in ("ms", "rounds", "speedup", "share_of_ideal")
)
COLUMNS = (
    *("network", "variant", "image_size", "round_to", "steps", "macs", "params", "macs_left", "ideal_speedup"),
    *("trains", "reloads", "onnx_difference", "note"),
    *TIMES,
    *("threads", "torch", "onnxruntime", "python", "cpu", "commit", "dirty"),
)


def main(
    only: Annotated[list[str] | None, typer.Option(help="A network; may be repeated. All by default.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure also what is in the table already.")] = False,
    trained: Annotated[
        bool, typer.Option("--trained", help="Measure the trained networks instead, also quantized.")
    ] = False,
) -> None:
    """Measure the networks that are not in the table yet and render it."""
    known = tuple(quantized.REAL) if trained else NETWORKS
    for name in only or ():
        if name not in known:
            raise ConfigError(f"unknown network '{name}': {nearest(name, known)}")
    if trained:
        _measure_trained(only or known, again=again)
    rows = read_rows(TABLE)
    for name in () if trained else only or NETWORKS:
        if again or name not in {row["network"] for row in rows}:
            start = time.perf_counter()
            fresh = measure(name, IMAGE_SIZES.get(name, USUAL_SIZE))
            rows = sorted(
                [*(row for row in rows if row["network"] != name), *fresh],
                key=lambda row: NETWORKS.index(row["network"]),
            )
            write_csv(TABLE, rows, COLUMNS)
            print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    rows = read_rows(TABLE)
    atomic_write_text(PAGE, render(rows, read_rows(quantized.TABLE), read_rows(own_format.TABLE)))
    Console(width=160).print("\n".join(table_lines(rows)), highlight=False, markup=False)
    typer.echo(f"wrote {TABLE} and {PAGE}: {len({row['network'] for row in rows})} of {len(NETWORKS)} networks")


def _measure_trained(names: Sequence[str], *, again: bool) -> None:
    """Measure trained networks that are not in their table yet."""
    rows = read_rows(quantized.TABLE)
    for name in names:
        if again or name not in {row["network"] for row in rows}:
            configure(0, threads=1)
            rows = [*(row for row in rows if row["network"] != name), *quantized.measure(name, machine())]
            write_csv(quantized.TABLE, rows, quantized.COLUMNS)


def measure(name: str, size: int) -> list[Row]:
    """Return one row for each variant of a network of `ifap.study.models`.

    Parameters
    ----------
    name : str
        The model.
    size : int
        Side of its images, in pixels.

    Returns
    -------
    list of dict
        The columns of the table; what does not work says so in `note`.
    """
    configure(0, threads=1)
    warnings.simplefilter("ignore")
    args = {"num_classes": CLASSES, "in_channels": 3, "image_size": size}
    builder = Builder(id=builder_id(name), args=args)
    original = _with_effect(MODELS.get(name)(**args)).eval()
    images = torch.randn(max(BATCHES), 3, size, size)
    networks: dict[str, nn.Module] = {}
    plans: dict[str, Plan] = {}
    rows: dict[str, Row] = {}
    for variant, round_to in VARIANTS.items():
        rows[variant] = {"network": name, "variant": variant, "image_size": size, "round_to": round_to, "note": ""}
        if variant == "unpruned":
            networks[variant], plans[variant] = original, unpruned_plan(original, images[:1], builder)
            continue
        target = ifap.Target(macs=TARGET)
        try:
            found = ifap.prune(
                original, images[:1], [images[:2]], target=target, steps=STEPS, round_to=round_to, method="ifap"
            )
        except IfapError as error:
            rows[variant]["note"] = f"not pruned: {' '.join(str(error).split())}"
            continue
        networks[variant] = found.model.eval()
        plans[variant] = found.plan.model_copy(update={"builder": builder})
    _costs(rows, plans)
    _reload(rows, networks, plans, images[:2])
    for variant, network in networks.items():
        _export(rows[variant], network, images[:1])
    for batch, layout in SETTINGS:
        _speed(rows, networks, images[:batch], layout)
    for variant, network in networks.items():  # last: a step changes the running statistics
        _train(rows[variant], network, images[:2])
    return [{**row, **machine()} for row in rows.values()]


def _with_effect(network: nn.Module) -> nn.Module:
    """Change parameters that are constant as they are drawn, in place; returns the network.

    A head of zeros or a scale of 1e-6 would let parts of a network, or all of it, have no effect, and
    then equal outputs would mean nothing.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.min() == parameter.max():
                parameter.add_(0.1 * torch.rand_like(parameter))
    return network


def _costs(rows: Mapping[str, Row], plans: Mapping[str, Plan]) -> None:
    for variant, plan in plans.items():
        costs = plan.costs
        left = costs.macs_after / costs.macs_before
        rows[variant] |= {"macs": costs.macs_after, "params": costs.params_after, "macs_left": round(left, 4)}
        if variant != "unpruned":
            rows[variant] |= {"steps": STEPS, "ideal_speedup": round(1 / left, 3)}


def _train(row: Row, network: nn.Module, images: Tensor) -> None:
    """Run one forward and backward in training mode; every parameter must get a finite gradient."""
    network.train()
    try:
        outputs = [output for output in tensors(call(network, images)) if output.is_floating_point()]
        torch.stack([output.square().mean() for output in outputs]).sum().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        without = [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()]
        row["trains"] = not without
        if without:
            row["note"] += f"no finite gradient of {without[0]}; "
    except Exception as error:  # whatever a broken network raises is the result
        row["trains"] = False
        row["note"] += f"does not train: {' '.join(str(error).split())[:200]}; "
    network.eval()
    network.zero_grad(set_to_none=True)


def _reload(
    rows: Mapping[str, Row], networks: Mapping[str, nn.Module], plans: Mapping[str, Plan], images: Tensor
) -> None:
    """Save every variant, load all of them in a new process and compare outputs bit by bit."""
    with tempfile.TemporaryDirectory() as parent:
        folders = {variant: Path(parent) / str(number) for number, variant in enumerate(networks)}
        for variant, folder in folders.items():
            write_network(networks[variant], plans[variant], folder)
            save_file({"inputs": images.contiguous()}, folder / "inputs.safetensors")
        done = subprocess.run(
            [sys.executable, "-c", RELOAD, *map(str, folders.values())], capture_output=True, text=True
        )
        for variant, folder in folders.items():
            path = folder / "outputs.safetensors"
            with torch.no_grad():
                wanted = networks[variant](images)
            if wanted.std(0).max() == 0:
                rows[variant]["note"] += "outputs do not depend on the input; "
            rows[variant]["reloads"] = path.exists() and torch.equal(load_file(path)["outputs"], wanted)
            if not path.exists():
                rows[variant]["note"] += f"does not reload: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}; "


def _export(row: Row, network: nn.Module, images: Tensor) -> None:
    """Export to ONNX, which compares onnxruntime with torch at batch 1 and 3."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            row["onnx_difference"] = f"{export_onnx(network, images, Path(folder) / 'network.onnx'):.2g}"
        except IfapError as error:
            row["note"] += f"not exported: {' '.join(str(error).split())[:200]}; "


def _speed(rows: Mapping[str, Row], networks: Mapping[str, nn.Module], images: Tensor, layout: str) -> None:
    """Time all variants in turn and put medians, and medians of the ratios within a round, into the rows."""
    if layout == "channels_last":
        if sum(isinstance(module, nn.Conv2d) for module in networks["unpruned"].modules()) < 2:
            return  # a transformer: its one convolution is not worth another layout
        images = images.contiguous(memory_format=torch.channels_last)
        _arrange(networks, torch.channels_last)
    times = turns.rounds(networks, images, ROUNDS, SECONDS)
    _arrange(networks, torch.contiguous_format)
    for variant, own in times.items():
        values: Row = {"ms": round(1000 * statistics.median(own), 2), "rounds": len(own)}
        if variant != "unpruned":
            speedup = turns.speedup(times["unpruned"], own)
            values["speedup"] = round(speedup, 3)
            values["share_of_ideal"] = round(speedup / rows[variant]["ideal_speedup"], 3)
        rows[variant] |= {column(key, len(images), layout): value for key, value in values.items()}


def _arrange(networks: Mapping[str, nn.Module], memory_format: torch.memory_format) -> None:
    for network in networks.values():
        network.to(memory_format=memory_format)


def machine() -> Row:
    """Return the columns that say where and with what was measured."""
    found = provenance()
    versions = found["versions"]
    import onnxruntime

    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "python": versions["python"],
        "cpu": found["hardware"]["cpu"],
        "commit": found["commit"],
        "dirty": found["dirty"],
    }


# --- the page -------------------------------------------------------------------------------------


def render(rows: Sequence[Row], trained: Sequence[Row] = (), saved: Sequence[Row] = ()) -> str:
    """Return the page that shows all tables: Markdown, generated from the CSV files alone."""
    done = list(dict.fromkeys(row["network"] for row in rows))
    missing = [name for name in NETWORKS if name not in done]
    machines = "; ".join(
        dict.fromkeys(f"{row['cpu']}, torch {row['torch']}, onnxruntime {row['onnxruntime']}" for row in rows)
    )
    commits = ", ".join(dict.fromkeys(f"{row['commit'][:9]}{' with changes' * _yes(row['dirty'])}" for row in rows))
    rounds = [int(row[key]) for row in rows for key in TIMES if key.startswith("rounds") and row[key]]
    lines = [
        "# Pruned networks in use",
        "",
        "<!-- written by `python -m benchmarks.deployment` from tables in results/bench -->",
        "",
        "## The paper's classifiers",
        "",
        f"The table shows the paper's classifiers at full input size with random weights. {TARGET:.0%} of the MACs are "
        f"removed in {STEPS} iterations, once with any widths and once with widths that are multiples of 8. Networks "
        "with random weights have no meaningful accuracy. In a trained network other channels are removed, so its "
        "speed-up differs too.",
        "",
        "- *Ideal* is the MACs of the unpruned network divided by the MACs that remain. Each cell shows the time, the "
        "speed-up (time of the unpruned network divided by this time) and, in brackets, the speed-up in percent of the "
        "ideal.",
        f"- Times are medians over {min(rounds, default=0)} to {max(rounds, default=0)} rounds in which all variants "
        "run in turn, on one thread of a CPU; speed-ups are medians of the ratios within a round. *cl*: in the memory "
        "format `channels_last`, against the unpruned network in the same format.",
        "- *Trains*: forward and backward in training mode with batch 2 give every parameter a finite gradient. "
        "*Reloads*: saved, loaded in a new process, and equal bit by bit. *ONNX*: largest difference between "
        "onnxruntime and torch at batch 1 and 3, as a share of the largest output.",
        "",
        *table_lines(rows),
        "",
        f"Measured on {machines or 'nothing'}; commit {commits or 'none'}.",
    ]
    lines += [f"Not measured yet: {', '.join(missing)}."] * bool(missing)
    notes = [f"- {row['network']}, {row['variant']}: {row['note'].rstrip('; ')}" for row in rows if row["note"]]
    lines += [""] * bool(notes) + notes
    for section in (quantized.section(list(trained)), own_format.section(list(saved))):
        lines += [""] * bool(section) + section
    return "\n".join(lines) + "\n"


def table_lines(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the Markdown table."""
    head = ("network", "variant", "GMACs", "M params", "ideal", "batch 1", "batch 16", "batch 16, cl")
    lines = [f"| {' | '.join((*head, 'trains', 'reloads', 'ONNX'))} |", "|---|---|" + "---:|" * 6 + "---|---|---:|"]
    for row in rows:
        cells = [
            *(row["network"] if row["variant"] == "unpruned" else "", row["variant"]),
            _number(row["macs"], 1e9, 2),
            _number(row["params"], 1e6, 1),
            f"{float(row['ideal_speedup']):.2f}" if row["ideal_speedup"] else "",
            *(_time(row, batch, layout) for batch, layout in SETTINGS),
            *("yes" if _yes(row[key]) else "NO" for key in ("trains", "reloads")),
            row["onnx_difference"] or "NO",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _time(row: Row, batch: int, layout: str) -> str:
    milliseconds = row[column("ms", batch, layout)]
    if not milliseconds:
        return "\N{EN DASH}"
    speedup, share = (row[column(name, batch, layout)] for name in ("speedup", "share_of_ideal"))
    return f"{float(milliseconds):.0f} ms" + (f", {float(speedup):.2f} ({float(share):.0%})" if speedup else "")


def _number(text: str, unit: float, decimals: int) -> str:
    return f"{float(text) / unit:.{decimals}f}" if text else "\N{EN DASH}"


def _yes(text: str) -> bool:
    return text.lower() == "true"


if __name__ == "__main__":
    run_stage(main)

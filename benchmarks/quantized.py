"""Trained networks as they are deployed: original, pruned, quantized and both, on real data.

EfficientNet-Lite0 and MiniLM, in torch, compiled, exported, and in ONNX Runtime in single precision and with
integers of 8 bits. All ways of a network are timed in turn in one process, on one thread.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import ifap
from benchmarks import turns
from benchmarks.pretrained import carriers, texts
from benchmarks.pretrained.case import Case
from benchmarks.pretrained.networks import NETWORKS
from benchmarks.ratio import RESULTS
from ifap.costs import cost
from ifap.export import difference, export_onnx, export_program, onnx_forward, quantize_onnx
from ifap.forward import Inputs, call, tensors
from ifap.latency import fast_width
from ifap.study.machine.determinism import configure

TABLE = RESULTS / "quantized.csv"
BATCHES = (1, 16)
ROUNDS, SECONDS = (9, 25), 60.0
CALIBRATION = 128  # samples that the ranges of static quantization come from
EARLIER = "0d04b8e77"  # the commit of rows whose networks an earlier version of `flow` pruned
WAYS = ("torch", "torch.compile", "torch.export", "onnxruntime", "onnxruntime int8")
MEASURED = ("torch", "onnxruntime", "onnxruntime int8")
"""Ways whose outputs on all data are measured; the others compute what torch does, which is compared on one batch."""

Row = dict[str, Any]
COLUMNS = (
    *("network", "variant", "round_to", "way", "macs", "params", "megabytes", "macs_removed", "quantization"),
    *("agreement", "kl", "metric", "metric_name", "rank", "difference"),
    *(f"{quantity}_{batch}" for batch in BATCHES for quantity in ("ms", "rounds", "speedup")),
    *("threads", "torch", "onnxruntime", "python", "cpu", "commit", "dirty"),
)


@dataclass(frozen=True)
class Real:
    """How a trained network is pruned and quantized."""

    share: float
    """Of the MACs that are removed."""
    length: int | None
    """Tokens that each text is filled up to, because an exported network takes one length."""


REAL = {"efficientnet_lite0": Real(0.3, None), "minilm": Real(0.2, texts.LONGEST)}


class Way(nn.Module):
    """A network as another program runs it, to be measured like one of torch."""

    def __init__(self, forward: Callable[[Inputs], Any], length: int | None) -> None:
        super().__init__()
        self._run, self._length = forward, length

    def forward(self, *args: Any, **kwargs: Tensor) -> Any:
        """Run it on the inputs of one forward, texts filled up with masked tokens."""
        if not kwargs:
            return self._run(args[0])
        length = self._length or 0
        return self._run(
            {name: functional.pad(each, (0, max(0, length - each.shape[1]))) for name, each in kwargs.items()}
        )


def measure(name: str, machine: Row, data: Path = carriers.FOLDER) -> list[Row]:
    """Return a row for each variant of a trained network and each way to run it.

    Parameters
    ----------
    name : str
        One of `REAL`.
    machine : dict
        The columns that say where this is measured.
    data : Path
        Where weights and data are.
    """
    configure(0, threads=1)
    real = REAL[name]
    (case,) = NETWORKS[name].cases(data, "heldout")
    multiple = fast_width(torch.device("cpu"))
    networks = {
        ("original", None): case.model,
        ("pruned", None): _pruned(case, real.share, None),
        (f"pruned, widths of {multiple}", multiple): _pruned(case, real.share, multiple),
    }
    rows: list[Row] = []
    ways: dict[str, nn.Module] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, ((variant, round_to), network) in enumerate(networks.items()):
            found = _ways(network, case, real, Path(folder) / str(number))
            for way, (runner, size) in found.items():
                ways[f"{variant} {way}"] = runner
                row: Row = {"network": name, "variant": variant, "round_to": round_to, "way": way}
                row["megabytes"] = round(size / 2**20, 2)
                rows.append(row | _sizes(network, case) | _fidelity(network, runner, way, name, case))
    whole = rows[0]["macs"]
    for row in rows:
        row["macs_removed"] = round(1 - row["macs"] / whole, 4)
        if str(row["way"]).endswith("int8"):
            row["quantization"] = "static" if real.length is None else "dynamic"
    for batch in BATCHES:
        _time(rows, ways, _first(case.example if real.length else case.calibration[0], batch), batch)
    return [row | machine for row in rows]


def _pruned(case: Case, share: float, round_to: int | None) -> nn.Module:
    pruned = ifap.prune(
        case.model,
        case.example,
        case.calibration,
        target=ifap.Target(macs=share),
        round_to=round_to,
        labelled=case.labelled,
        loss=case.loss,
        **case.options,
    )
    model: nn.Module = pruned.model
    return model.eval()


def _ways(network: nn.Module, case: Case, real: Real, folder: Path) -> dict[str, tuple[nn.Module, int]]:
    """Return each way to run a network, with the bytes that it takes on disk."""
    folder.mkdir()
    whole, integer, program = folder / "network.onnx", folder / "integer.onnx", folder / "network.pt2"
    export_onnx(network, case.example, whole)
    export_program(network, case.example, program)
    few = CALIBRATION // len(case.calibration[0]) if isinstance(case.calibration[0], Tensor) else 0
    quantize_onnx(whole, integer, None if real.length else case.calibration[:few])
    exported = torch.export.load(program).module()
    compiled = torch.compile(network)
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())

    def session(file: Path) -> Way:
        run = onnx_forward(file.read_bytes())
        return Way(lambda inputs: run(inputs)[0], real.length)

    return {
        "torch": (network, weights),
        "torch.compile": (Way(lambda inputs: call(compiled, inputs), real.length), weights),
        "torch.export": (Way(lambda inputs: call(exported, inputs), real.length), program.stat().st_size),
        "onnxruntime": (session(whole), whole.stat().st_size),
        "onnxruntime int8": (session(integer), integer.stat().st_size),
    }


def _sizes(network: nn.Module, case: Case) -> Row:
    found = cost(network, case.example)
    return {"macs": found.macs, "params": found.params}


def _fidelity(network: nn.Module, runner: nn.Module, way: str, name: str, case: Case) -> Row:
    """Return how far a way is off torch on one batch, and what it is worth on the held-out data."""
    batch = _first(case.calibration[0], BATCHES[-1])
    with torch.no_grad():
        off = difference(list(tensors(call(network, batch))), list(tensors(call(runner, batch))))
    row: Row = {"difference": float(f"{off:.2g}")}
    if way in MEASURED:
        values = {key: round(value, 4) for key, value in case.measure(runner).items()}
        row |= values | {"metric_name": NETWORKS[name].metric}
    return row


def _first(inputs: Inputs, number: int) -> Any:
    """Return so many samples of a batch, repeated if it has fewer."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor.repeat(-(-number // len(tensor)), *[1] * (tensor.dim() - 1))[:number]

    return {name: rows(each) for name, each in inputs.items()} if isinstance(inputs, dict) else rows(inputs)


def _time(rows: list[Row], ways: dict[str, nn.Module], inputs: Inputs, batch: int) -> None:
    times = turns.rounds(ways, inputs, ROUNDS, SECONDS)
    for row, own in zip(rows, times.values(), strict=True):
        row[f"ms_{batch}"] = round(1000 * statistics.median(own), 2)
        row[f"rounds_{batch}"] = len(own)
        row[f"speedup_{batch}"] = round(turns.speedup(times["original torch"], own), 3)


# --- the page -------------------------------------------------------------------------------------


def section(rows: list[Row]) -> list[str]:
    """Return the lines of the page that show the table; none if nothing was measured."""
    if not rows:
        return []
    lines = [
        "## Trained networks: pruned, quantized, and both",
        "",
        "EfficientNet-Lite0 (images) and MiniLM (sentences) with their published weights, pruned without training. "
        "*int8*: weights and products in integers of 8 bits, by `ifap.export.quantize_onnx`; static with "
        f"{CALIBRATION} calibration images for convolutions, dynamic for the linear layers of MiniLM.",
        "",
        "- *Agreement* is the share of held-out samples with the same first choice (images) or the same most similar "
        "sentence as the original network in torch. *Lost to int8* is the agreement of the same network in single "
        "precision minus that of int8, in points.",
        "- Times are medians of processor time, speed-ups medians of the ratios to the original network in torch "
        "within a round; all rows of a network run in turn, on one thread.",
        "- `torch.compile` and `torch.export` compute what torch does; *difference* is the largest on one batch, as a "
        "share of the largest output.",
        "",
        "| network | variant | runs in | MACs | MB | agreement | lost to int8 | metric | difference | batch 1 "
        "| batch 16 |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    before = ("", "")
    for row in rows:
        label = (row["network"], row["variant"])
        shown = (label[0] if label[0] != before[0] else "", label[1] if label != before else "")
        before = label
        cells = [
            *shown,
            row["way"],
            f"{float(row['macs']) / 1e6:.0f} M",
            f"{float(row['megabytes']):.1f}",
            f"{float(row['agreement']):.1%}" if row["agreement"] else "",
            f"{lost_to_integers(rows, row):.1f}" if row["quantization"] else "",
            f"{float(row['metric']):.3f} ({row['metric_name'].split(' on ')[0]})" if row["metric"] else "",
            row["difference"],
            *(f"{float(row[f'ms_{batch}']):.1f} ms, {float(row[f'speedup_{batch}']):.2f} x" for batch in BATCHES),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    first = rows[0]
    return [
        *lines,
        "",
        *choice(rows),
        f"Measured on {first['cpu']}, torch {first['torch']}, onnxruntime {first['onnxruntime']}; commit "
        f"{first['commit'][:9]}{' with changes' * (str(first['dirty']).lower() == 'true')}. "
        f"{_said_of_version(first['commit'])}Weights and data: [trained networks](pretrained.md#weights-and-data).",
    ]


def _said_of_version(commit: str) -> str:
    if not commit.startswith(EARLIER):
        return ""
    return (
        "These rows are of an earlier version of `flow`; [trained networks](pretrained.md) has the accuracy of a later "
        "version. "
    )


def choice(rows: list[Row]) -> list[str]:
    """Return the lines that say which widths and which number format to choose, with the times that speak for them."""
    multiples = [int(row["round_to"]) for row in rows if row["round_to"]]
    if not multiples:
        return [*_slower_in_onnxruntime(rows), ""]
    lines = [
        "What to choose:",
        "",
        "- **Widths.** For networks of convolutions on a CPU give `round_to`: 16 if the processor has AVX-512, else 8. "
        "onnxruntime computes a convolution in blocks of so many channels. If the channels do not fill the blocks, it "
        "takes a slower way, and the pruned network can be slower than the original.",
        "- **Numbers.** int8 files take about a quarter of the place of the convolutions and linear layers. Compare "
        "accuracy on your own data before and after, for the original network too: the column *lost to int8* differs "
        "much between networks.",
        "- **Measure** the file that you deploy, in the program and on the processor that will run it. Fewer MACs do "
        "not mean less time in proportion.",
        "",
        f"Time in onnxruntime at batch 1, original, pruned to any widths and pruned to multiples of {multiples[0]}:",
        "",
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        for way in ("onnxruntime", "onnxruntime int8"):
            times = [float(row["ms_1"]) for row in rows if (row["network"], row["way"]) == (network, way)]
            lines.append(f"- {network}, {way}: {', '.join(f'{time:.1f}' for time in times)} ms")
    return [*lines, ""]


def _slower_in_onnxruntime(rows: list[Row]) -> list[str]:
    """Return a line for each network that onnxruntime runs slower after pruning than before."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        its = [row for row in rows if (row["network"], row["way"]) == (network, "onnxruntime")]
        before, *after = (float(row["ms_1"]) for row in its)
        if after and after[0] > before:
            lines.append(
                f"In onnxruntime the pruned {network} is **slower** than the unpruned one: {after[0]:.1f} against "
                f"{before:.1f} ms at batch 1. Its widths are not rounded, and the effect of `round_to` is not measured "
                "yet."
            )
    return lines


def lost_to_integers(rows: list[Row], row: Row) -> float:
    """Return by how many points the agreement of a network falls when its layers become integers."""
    (whole,) = (
        float(other["agreement"])
        for other in rows
        if (other["network"], other["variant"], other["way"]) == (row["network"], row["variant"], "onnxruntime")
    )
    return 100 * (whole - float(row["agreement"]))

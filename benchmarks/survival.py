"""What a pruned network survives: a copy, its saved weights, another type, torch's compiler and its export.

Public networks with random weights are pruned by half. What works with the unpruned network must work with the pruned
one. Compiled means one graph for the whole forward (``fullgraph=True``), run without generated code.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import ifap
from benchmarks.coverage.check import call, flat, said
from benchmarks.coverage.registry import Network, find
from benchmarks.ratio import RESULTS, machine, read_rows
from ifap.export import as_arguments, difference
from ifap.files import write_csv
from ifap.forward import map_tensors

TABLE = RESULTS / "survival.csv"
NETWORKS = (
    *("torchvision:resnet50", "torchvision:shufflenet_v2_x1_0", "torchvision:mobilenet_v3_large"),
    *("torchvision:swin_t", "torchvision:vit_b_16", "torchvision:densenet121", "torchvision:maxvit_t"),
    *("timm:coat_tiny", "timm:sequencer2d_s", "timm:mobilevit_xxs", "timm:ghostnet_050", "timm:levit_128s"),
    *("transformers:bert", "transformers:gpt2", "transformers:llama", "transformers:t5", "transformers:qwen3_moe"),
    *("transformers:mamba", "transformers:segformer", "diffusers:UNet2DModel", "smp:Unet"),
)
CLOSE = 1e-3  # of the largest output: compiled kernels add in another order
Outputs = list[Tensor]


def outputs(model: Any, inputs: Any) -> Outputs:
    """Return the outputs of a network."""
    with torch.no_grad():
        return flat(call(model, inputs))


def copied(model: nn.Module, inputs: Any) -> Outputs:
    """Run a copy after the weights of what it was copied from are gone."""
    first = copy.deepcopy(model)
    twin = copy.deepcopy(first)
    _forget(first)
    return outputs(twin, inputs)


def _forget(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


def reloaded(model: nn.Module, inputs: Any) -> Outputs:
    """Run a copy whose weights come from a file of ``torch.save``."""
    twin, file = copy.deepcopy(model), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    _forget(twin)
    twin.load_state_dict(torch.load(file, weights_only=True))
    return outputs(twin, inputs)


def of_type(dtype: torch.dtype) -> Callable[[nn.Module, Any], Outputs]:
    """Return what runs a copy in another type."""

    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    return lambda model, inputs: outputs(copy.deepcopy(model).to(dtype), map_tensors(inputs, cast))


def compiled(model: nn.Module, inputs: Any) -> Outputs:
    """Run the forward as one graph of torch's compiler."""
    torch.compiler.reset()
    return outputs(torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager"), inputs)


def exported(model: nn.Module, inputs: Any) -> Outputs:
    """Run what ``torch.export`` makes."""
    args, named = as_arguments(inputs)
    return outputs(torch.export.export(model, args, named).module(), inputs)


WAYS: dict[str, tuple[Callable[[nn.Module, Any], Outputs], float]] = {
    "deepcopy": (copied, 0.0),
    "state_dict": (reloaded, 0.0),
    "to(float64)": (of_type(torch.float64), CLOSE),
    "to(bfloat16)": (of_type(torch.bfloat16), float("inf")),
    "compile(fullgraph)": (compiled, CLOSE),
    "export": (exported, CLOSE),
}
"""Each way, and how far its outputs may be from those of the network itself, as a share of the largest."""


def tried(model: nn.Module, inputs: Any) -> dict[str, str]:
    """Return for each way '' if a network survives it, else what was raised or how far its outputs are."""
    wanted = outputs(model, inputs)
    return {way: _raised(run, most, model, inputs, wanted) for way, (run, most) in WAYS.items()}


def _raised(
    run: Callable[[nn.Module, Any], Outputs], most: float, model: nn.Module, inputs: Any, wanted: Outputs
) -> str:
    try:
        found = run(model, inputs)
    except Exception as error:
        return said(error)
    if [x.shape for x in found] != [x.shape for x in wanted]:
        return "outputs of other shapes"
    far = difference(*([x for x in each if x.is_floating_point()] for each in (wanted, found)))
    return "" if far <= most else f"outputs differ by {far:.2g} of the largest"


def measure(network: Network) -> dict[str, Any]:
    """Prune a network by half, and try every way with it and with the unpruned one."""
    model, inputs = network.build(), network.inputs()
    target = ifap.Target(macs=0.5)
    pruned = ifap.prune(model, inputs, [inputs], target=target, method="magnitude", steps=1, min_units=1)
    row: dict[str, Any] = {"network": network.key, "macs_removed": round(1 - pruned.after.macs / pruned.before.macs, 4)}
    corrected = sum("forward" in vars(module) for module in pruned.model.modules())
    row["corrected_modules"] = corrected
    before, after = tried(model, inputs), tried(pruned.model.eval(), inputs)
    for way in WAYS:
        row[way] = _verdict(before[way], after[way])
    return row


def _verdict(before: str, after: str) -> str:
    """Return the verdict on a way from why it failed before and after pruning; '' if it worked."""
    if before:
        return "not unpruned either"
    return f"LOST: {after}" if after else "survives"


def main(only: Annotated[str, typer.Option(help="Networks whose key has this in it.")] = "") -> None:
    """Print the matrix, and record the networks that were tried beside those of before."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    where = machine("python -m benchmarks.survival")
    rows: dict[str, dict[str, Any]] = {row["network"]: {**row} for row in read_rows(TABLE)}
    table = Table("network", "MACs removed", *WAYS)
    for key in (key for key in NETWORKS if only in key):
        rows[key] = {**measure(find(key)), **where}
        table.add_row(key, f"{rows[key]['macs_removed']:.0%}", *(rows[key][way] for way in WAYS))
    Console(width=150).print(table)
    kept = [rows[key] for key in NETWORKS if key in rows]
    write_csv(TABLE, kept, kept[0])
    raise typer.Exit(any("LOST" in row[way] for row in kept for way in WAYS))


if __name__ == "__main__":
    typer.run(main)

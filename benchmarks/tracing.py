"""What it costs to read a large network: time of `ifap.inspect`, and memory beside the weights.

Three of timm's networks with the most layers or parameters are inspected on one thread; each has 15 seconds. A decoder
of 1.1 billion parameters in bfloat16 is inspected in a process of its own. The largest resident set of that process is
compared with the one before: a second copy of the weights would double it.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any

import timm
import torch
import typer
from torch import nn

import ifap
from benchmarks.ratio import Ratio, show, timed
from ifap.study.machine.provenance import forget_peak_memory, peak_memory_mb

ALLOWED = 15.0  # seconds
RUNS = 3
NETWORKS = ("densenet264d", "sequencer2d_l", "deepseek_vit_412m")
DECODER = "a Llama of 1.1 billion parameters in bfloat16"
MEMORY_LIMIT = 1.1


def time_of(name: str) -> Ratio:
    """Compare the time that a network of timm takes to inspect with what is allowed."""
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    image = torch.randn(1, *network.default_cfg["input_size"])
    pairs = [(timed(lambda: ifap.inspect(network, image)), ALLOWED) for _ in range(RUNS)]
    return Ratio.of_pairs(f"inspect {name}", pairs, limit=1.0)


def decoder() -> tuple[nn.Module, Any]:
    """Return a decoder of the widths of TinyLlama 1.1B, with random weights, and one batch."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
        vocab_size=32_000,
    )  # fmt: skip
    network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    return network, {"input_ids": torch.randint(32_000, (1, 32))}


def peaks() -> tuple[float, float]:
    """Return the largest resident set of this process while it inspects the decoder, and the one before, in MB."""
    network, batch = decoder()
    forget_peak_memory()
    before = peak_memory_mb()
    ifap.inspect(network, batch)
    return peak_memory_mb(), before


def memory() -> Ratio:
    """Compare the memory of a process that inspects the decoder with that of one that holds it."""

    def measured() -> tuple[float, float]:
        command = [sys.executable, "-m", "benchmarks.tracing", "--decoder"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        during, before = map(float, done.stdout.split())
        return during, before

    pairs = [measured() for _ in range(RUNS)]
    return Ratio.of_pairs(f"memory of {DECODER}", pairs, limit=MEMORY_LIMIT, unit="MB")


def rows() -> list[Ratio]:
    """Return all ratios; `benchmarks.surgery` records them beside its own."""
    return [*map(time_of, NETWORKS), memory()]


def main(decoder_only: Annotated[bool, typer.Option("--decoder", hidden=True)] = False) -> None:
    """Print the ratios; `benchmarks.surgery` records them."""
    torch.set_num_threads(1)
    if decoder_only:
        typer.echo(" ".join(str(value) for value in peaks()))
        return
    show("Reading a network, against what is allowed", "allowed", rows())


if __name__ == "__main__":
    typer.run(main)

"""SmolLM2-135M without a share of its MACs, saved so that its own library loads it, and compared there.

python -m benchmarks.pretrained fetch --only smollm2,squad   # weights and text, once
python -m benchmarks.own_format                              # half an hour on one core
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file

import ifap
from benchmarks.pretrained import carriers, language, texts
from benchmarks.pretrained.case import Case
from benchmarks.pretrained.measures import logits_of, next_tokens
from benchmarks.ratio import RESULTS
from ifap.errors import ResultsError
from ifap.files import write_csv
from ifap.results import Pruned
from ifap.study.machine.provenance import provenance
from ifap.study.stage import run_stage

TABLE = RESULTS / "own_format.csv"
TARGET = 0.2
TOKENS = 4096  # for calibration
EARLIER = "0bb4f44c6"  # the commit of a row whose network an earlier version of `flow` pruned
COLUMNS = (
    *("network", "target", "macs_removed", "params_removed", "widths", "calibration_tokens"),
    *(
        "perplexity",
        "perplexity_any_widths",
        "perplexity_uniform",
        "perplexity_loaded",
        "largest_difference",
        "equal_logits",
        "seconds",
    ),
    *("torch", "transformers", "python", "cpu", "commit", "dirty"),
)
LOAD = """
import sys
sys.modules["ifap"] = None  # as if it were not installed
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
folder, tokens, logits = sys.argv[1:]
network = AutoModelForCausalLM.from_pretrained(folder)
with torch.no_grad():
    outputs = {name: network(batch, use_cache=False).logits for name, batch in load_file(tokens).items()}
found = {name: logits[:, :-1].flatten(0, 1) for name, logits in outputs.items()}
save_file(found, logits)
"""


def main(data: Annotated[Path, typer.Option(help="Where weights and text are.")] = carriers.FOLDER) -> None:
    """Prune, save, load in a process without this package, and compare on held-out text."""
    torch.set_num_threads(1)
    (case,) = language.passages(data, "heldout")
    tested = list(texts.blocks(data, "heldout", language.smollm2(data)[1]).split(language.BATCH))
    row = measured(case, tested)
    found = provenance()
    import transformers

    row |= {"torch": torch.__version__, "transformers": transformers.__version__, "python": found["versions"]["python"]}
    row |= {"cpu": found["hardware"]["cpu"], "commit": found["commit"], "dirty": found["dirty"]}
    write_csv(TABLE, [row], COLUMNS)
    print("\n".join(f"{name}: {value}" for name, value in row.items()))


def measured(case: Case, tested: list[torch.Tensor]) -> dict[str, Any]:
    """Return the row of a language model: its perplexity on batches of tokens, unpruned, pruned, and loaded."""
    start = time.process_time()
    pruned = _pruned(case, uniform=True)
    seconds = time.process_time() - start
    free = _pruned(case, uniform=False)
    own = [logits_of(pruned.model, tokens) for tokens in tested]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "small"
        difference = ifap.save_pretrained(pruned.model, case.example, folder)
        loaded = loaded_logits(folder, tested)
    widths = sorted({(each.rpartition(".")[2], width) for each, width in pruned.receipts[-1].widths.items()})
    return {
        "network": language.KEY,
        "target": TARGET,
        "macs_removed": round(pruned.after.reduction(pruned.before, "macs"), 4),
        "params_removed": round(pruned.after.reduction(pruned.before, "params"), 4),
        "widths": " ".join(f"{layer}={width}" for layer, width in widths),
        "calibration_tokens": TOKENS,
        "perplexity": round(case.measure(case.model)["metric"], 4),
        "perplexity_any_widths": round(case.measure(free.model)["metric"], 4),
        "perplexity_uniform": next_tokens(own, own, tested)["metric"],
        "perplexity_loaded": next_tokens(own, loaded, tested)["metric"],
        "largest_difference": difference,
        "equal_logits": all(map(torch.equal, own, loaded)),
        "seconds": round(seconds),
    }


def _pruned(case: Case, *, uniform: bool) -> Pruned:
    calibration = case.calibration[: TOKENS // (language.BATCH * texts.BLOCK)]
    return ifap.prune(
        case.model,
        case.example,
        calibration,
        target=ifap.Target(macs=TARGET),
        labelled=[(batch, case.targets(batch)) for batch in calibration],
        loss=case.loss,
        uniform=uniform,
        **case.options,
    )


def loaded_logits(folder: Path, tested: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return what a saved network makes of batches of tokens in a process that cannot import this package."""
    tokens, logits = folder.parent / "tokens.safetensors", folder.parent / "logits.safetensors"
    save_file({str(number): batch.contiguous() for number, batch in enumerate(tested)}, tokens)
    command = [sys.executable, "-c", LOAD, str(folder), str(tokens), str(logits)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ResultsError(f"{folder}: does not load: {done.stderr.strip().splitlines()[-1]}")
    found = load_file(logits)
    return [found[str(number)] for number in range(len(tested))]


def section(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the page that show the table; none if nothing was measured."""
    if not rows:
        return []
    (row,) = rows
    removed = f"{float(row['macs_removed']):.1%} | {float(row['params_removed']):.1%}"
    free = row["perplexity_any_widths"]
    are_equal = str(row["equal_logits"]).lower() == "true"
    return [
        "## In the format of their own library",
        "",
        "SmolLM2-135M, a network of the kind of Llama, pruned by `ifap.prune` with `uniform=True` and saved by "
        "`ifap.save_pretrained`. `transformers` loads the folder in a process that cannot import this library. "
        f"Calibration took {int(row['calibration_tokens']):,} tokens; nothing was trained. Perplexity is on held-out "
        f"passages.{_said_of_version(row['commit'])}",
        "",
        "| network | MACs removed | parameters removed | perplexity |",
        "|---|---:|---:|---:|",
        f"| original | | | {float(row['perplexity']):.2f} |",
        *([f"| pruned, any widths | {float(row['target']):.1%} | | {float(free):.2f} |"] if free else []),
        f"| pruned, the same widths in all blocks | {removed} | {float(row['perplexity_uniform']):.2f} |",
        f"| the same, saved and loaded without this library | {removed} | {float(row['perplexity_loaded']):.2f} |",
        "",
        f"All logits before saving and after loading are {'equal bit by bit' if are_equal else 'NOT equal'}. Widths: "
        f"{row['widths'].replace(' ', ', ').replace('=', ' ')}. Measured on {row['cpu']}, torch {row['torch']}, "
        f"transformers {row['transformers']}; commit {row['commit'][:9]}"
        f"{' with changes' * (str(row['dirty']).lower() == 'true')}: `python -m benchmarks.own_format`.",
    ]


def _said_of_version(commit: str) -> str:
    if not commit.startswith(EARLIER):
        return ""
    return (
        " With any widths it is higher than in [trained networks](pretrained.md). There calibration took 16,384 "
        "tokens, with a later version of `flow`."
    )


if __name__ == "__main__":
    run_stage(main)

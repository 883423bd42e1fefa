"""Prune the language models of Table V at full size to the printed number of parameters.

First heads and feed-forward units go; where these cannot reach the printed number, the width of the network goes too.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ifap
from ifap.errors import IfapError
from ifap.example_inputs import make_inputs
from ifap.plan import Builder, read_plan
from ifap.ranking import Budget, Ranking, floors
from ifap.saving.store import load, write_network
from ifap.study.machine.determinism import configure
from ifap.study.models import builder_from_id, builder_id
from ifap.study.report import FULL_SIZE_VERSIONS
from ifap.study.report.full_size import PARTS, Language, LanguageCount, distance
from ifap.view import trace

SEED = 0
STEPS = 1
TEXTS, TOKENS = 2, 16  # of the one batch that is scored
MAX_LENGTH = 128
VOCABULARY = {"bert_base": 30522, "gpt2_base": 50257, "t5_base": 32128}
MIN_UNITS, MAX_LAYER_RATIO = 2, 0.95


def measure(networks: list[Language]) -> Iterator[LanguageCount]:
    """Prune networks; those of a model are all saved first, then one new process loads them.

    What cannot be pruned is a note.
    """
    for _, group in groupby(networks, key=lambda each: each.model):
        yield from _measure_model(list(group))


def _measure_model(networks: list[Language]) -> Iterator[LanguageCount]:
    rows: list[LanguageCount] = []
    with tempfile.TemporaryDirectory() as scratch:
        ordered = sorted(networks, key=lambda each: (each.head, each.classes))
        for _, group in groupby(ordered, key=lambda each: (each.head, each.classes)):
            rows += _measure_head(list(group), Path(scratch))
        command = [sys.executable, "-m", "stages.full_size", "--check", scratch]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    equal = json.loads(answer.splitlines()[-1])
    for row in rows:
        yield row.model_copy(update={"reloads": {None: "", True: "yes", False: "no"}[equal.get(row.dataset)]})


def reload_all(folder: Path) -> dict[str, bool]:
    """Load every network of a folder; return whether its outputs are, to the bit, those that were stored beside it."""
    from safetensors.torch import load_file

    configure(SEED)
    built: dict[str, nn.Module] = {}
    equal: dict[str, bool] = {}
    for each in sorted(path for path in folder.iterdir() if path.is_dir()):
        plan = read_plan(each)
        key = json.dumps(plan.builder.args)
        if key not in built:
            built = {key: builder_from_id(plan.builder.id, plan.builder.args)}
        model = load(each, partial(copy.deepcopy, built[key]))
        stored = load_file(folder / f"{each.name}.safetensors")
        with torch.no_grad():
            found = _outputs(model(**make_inputs(plan.example_inputs)))
        equal[each.name] = all(torch.equal(found[name], value) for name, value in stored.items())
    return equal


def _measure_head(networks: list[Language], scratch: Path) -> list[LanguageCount]:
    """Prune the networks that end alike: built, and their least size counted, once."""
    configure(SEED)
    first = networks[0]
    args = {
        "head": first.head,
        "num_labels": first.classes,
        "vocab_size": VOCABULARY[first.model],
        "max_length": MAX_LENGTH,
    }
    model = builder_from_id(builder_id(first.model), args).eval()
    inputs = _texts(first.model)
    example = {name: value[:1] for name, value in inputs.items()}
    base, least = ifap.cost(model, example), least_params(model, example)
    rows: list[LanguageCount] = []
    for network in networks:
        row = LanguageCount(
            **network.model_dump(),
            macs_base=base.macs,
            params_base=base.params,
            least=least,
            parts=PARTS[1] if least > network.published * 1e6 else PARTS[0],
            macs_pruned=None,
            params_pruned=None,
            distance=None,
            trains="",
            reloads="",
            note="not pruned",
            version=FULL_SIZE_VERSIONS[network.KIND],
        )
        rows.append(_pruned(row, model, example, inputs, Builder(id=builder_id(first.model), args=args), scratch))
    return rows


def _pruned(
    row: LanguageCount, model: nn.Module, example: dict[str, Tensor], inputs: dict[str, Tensor], builder: Builder,
    scratch: Path,
) -> LanguageCount:  # fmt: skip
    from safetensors.torch import save_file

    target = ifap.Target(params=1 - row.published * 1e6 / row.params_base)
    note = ""
    if row.parts == PARTS[1]:
        over = (row.least - row.published * 1e6) / 1e6
        note = f"heads and feed-forward units leave at least {row.least / 1e6:.1f} M, {over:.1f} M more: width cut too"
    try:
        pruned = ifap.prune(
            model,
            example,
            [inputs],
            target=target,
            steps=STEPS,
            seed=SEED,
            method="ifap",
            min_units=MIN_UNITS,
            max_layer_ratio=MAX_LAYER_RATIO,
            keep_embeddings=row.parts == PARTS[0],
            outputs=task_outputs(model, example),
        )
    except IfapError as error:
        return row.model_copy(update={"note": " ".join(str(error).split())})
    with torch.no_grad():
        stored = _outputs(pruned.model.eval()(**example))
    write_network(pruned.model, pruned.plan.model_copy(update={"builder": builder}), scratch / row.dataset)
    save_file(stored, scratch / f"{row.dataset}.safetensors")
    off = distance(pruned.after.params, row.published)
    if abs(off) > LanguageCount.CLOSE:
        reached = f"reached {pruned.after.params / 1e6:.2f} M, more than {LanguageCount.CLOSE:g} % off"
        note = "; ".join(filter(None, (note, reached)))
    update: dict[str, Any] = {
        "macs_pruned": pruned.after.macs,
        "params_pruned": pruned.after.params,
        "distance": round(off, 3) + 0.0,  # no minus zero
        "trains": "yes" if _trains(pruned.model, inputs) else "no",
        "note": note,
    }
    return row.model_copy(update=update)


def least_params(model: nn.Module, example: dict[str, Tensor]) -> int:
    """Return how many parameters heads and feed-forward units leave at least, within the default limits."""
    graph = trace(model, example, outputs=task_outputs(model, example), keep_embeddings=True)
    limits = floors(graph, graph.units_per_group(), MIN_UNITS, MAX_LAYER_RATIO)
    ranking = Ranking(graph, np.zeros(graph.num_units), limits, Budget(graph))
    return ranking.cost(ranking.num_candidates).params


def task_outputs(model: nn.Module, example: dict[str, Tensor]) -> tuple[str, ...]:
    """Return the outputs that a task reads; others, such as states of the encoder, may lose width."""
    with torch.no_grad():
        return tuple(_outputs(model(**example)))


def _trains(model: nn.Module, inputs: dict[str, Tensor]) -> bool:
    """Whether forward and backward in training give finite outputs and gradients."""
    outputs = _outputs(model.train()(**inputs))
    torch.stack([value.square().mean() for value in outputs.values()]).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return bool(gradients) and all(bool(gradient.isfinite().all()) for gradient in gradients)


def _outputs(found: Any) -> dict[str, Tensor]:
    return {name: found[name].contiguous() for name in ("logits", "start_logits", "end_logits") if name in found}


def _texts(model: str) -> dict[str, Tensor]:
    ids = torch.randint(2, VOCABULARY[model] - 1, (TEXTS, TOKENS), generator=torch.Generator().manual_seed(SEED))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

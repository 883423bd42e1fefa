"""Which slices of the study's networks go together: as before the axes were followed, where no reason is given.

`golden/study_units.json` says what the units of each network were when layers were followed rather than axes
(``before``), and what they are now where that differs (``now``); networks that came later are in ``later``. Names are
those of the unpruned networks. One line a group: units, widths that a unit cuts, and a hash of which positions of these
are one unit.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from places import GOLDEN
from transformers.pytorch_utils import Conv1D

from ifap.layers import is_producer
from ifap.study.models import MODELS
from ifap.study.tasks import TASKS
from ifap.view import trace

RECORDED = json.loads((GOLDEN / "study_units.json").read_text())
TASK_OF_HEAD = {"classification": "text_classification", "span": "question_answering"}
PIXELS = {"dcgan_small": 28, "inception_v3": 75, "stable_diffusion": 16}
PIXELS |= dict.fromkeys(("detr", "faster_rcnn", "fcn", "segformer", "unet", "yolov4"), 64)
USUAL_PIXELS = 32

T5 = "All heads of a stack read one table of positions and go together; each layer had been given a table of its own."
DETR = "Torch's attention has one weight for queries and keys: what encoder and decoder hand on is one width."
GROUP_NORM = (
    "A group of a norm that reaches over the border of two joined maps stays; units across the border had gone."
)
RESHAPE = "Widths that end in a reshape to tokens are followed through it now."
ONE_HEAD = "Attention with one head loses single values; the head as a whole had been a unit that could never go."
WHY = {
    "t5_base classification": T5,
    "t5_base span": T5,
    "t5_tiny classification": T5,
    "t5_tiny span": T5,
    "detr_tiny": DETR,
    "detr_vit_b_16": DETR,
    "stable_diffusion_half": GROUP_NORM,
    "stable_diffusion_tiny": f"{GROUP_NORM} {RESHAPE}",
    "stable_diffusion_v1_5": GROUP_NORM,
    "vqgan": ONE_HEAD,
    "vqgan_tiny": ONE_HEAD,
}
"""Why the units of a network are others than before."""


def cases():
    """Return the networks: those for texts with either head, all others by their name."""
    for name in MODELS.names():
        heads = TASK_OF_HEAD if "head" in inspect.signature(MODELS.get(name)).parameters else ("",)
        yield from (f"{name} {head}".strip() for head in heads)


def made(case):
    """Return a network without data, its inputs and the outputs that its task reads."""
    name, _, head = case.partition(" ")
    with torch.device("meta"):
        if not head:
            size = next((size for start, size in PIXELS.items() if name.startswith(start)), USUAL_PIXELS)
            channels = 4 if name in ("stable_diffusion_v1_5", "stable_diffusion_half") else 3
            network = MODELS.get(name)(num_classes=5, in_channels=channels, image_size=size)
            return network.eval(), torch.zeros(1, channels, size, size), None
        network = MODELS.get(name)(head=head, num_labels=3, vocab_size=100, max_length=24).eval()
        ids = torch.ones(1, 24, dtype=torch.int64)
        types = {"token_type_ids": torch.zeros_like(ids)} if name.startswith("bert") else {}
        return (
            network,
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), **types},
            TASKS.get(TASK_OF_HEAD[head]).reads,
        )


def place_of(modules, name, side):
    """Return the layer and side of a width, or None for a norm, a bias and what else follows a layer."""
    module, (owner, _, leaf) = modules.get(name), name.rpartition(".")
    if module is not None:
        return f"{name}:{side}" if is_producer(module) else None
    if leaf == "in_proj_weight":
        return f"{owner}.in_proj:{'out' if side == 'dim0' else 'in'}"
    if leaf == "weight" and isinstance(modules.get(owner), Conv1D):
        return f"{owner}:{'in' if side == 'dim0' else 'out'}"
    return None


def units_of(network, graph):
    """Return one line a group, by the first layer that makes it."""
    modules, taken = dict(network.named_modules()), defaultdict(dict)
    for slot, units in zip(graph.slots, graph.unit_of, strict=True):
        place = place_of(modules, slot.name, slot.side)
        for group in np.unique(graph.group_of[units[units >= 0]]) if place else ():
            taken[group][place] = np.where((units >= 0) & (graph.group_of[units] == group), units, -1)
    lines, sizes = {}, graph.units_per_group()
    for group, by_place in taken.items():
        numbers, digest = {}, hashlib.sha256()
        for place in sorted(by_place):
            found = by_place[place].tolist()
            for unit in found:
                if unit >= 0:
                    numbers.setdefault(unit, len(numbers))
            digest.update(place.encode())
            digest.update(np.array([numbers.get(unit, -1) for unit in found], dtype=np.int64).tobytes())
        name = min((place for place in by_place if place.endswith(":out")), default=min(by_place))
        while name in lines:
            name += "+"
        lines[name] = f"{sizes[group]} {len(by_place)} {digest.hexdigest()[:8]}"
    return lines


@pytest.mark.parametrize("case", list(cases()))
def test_what_goes_together_in_the_networks_of_the_study(case):
    network, inputs, outputs = made(case)
    found = units_of(network, trace(network, inputs, outputs=outputs))
    wanted = next(RECORDED[when][case] for when in ("now", "before", "later") if case in RECORDED[when])
    assert sorted(found.values()) == sorted(wanted.values()), "\n".join([
        f"the units of {case} are others:",
        *(f"- {name} {line}" for name, line in wanted.items() if line not in found.values()),
        *(f"+ {name} {line}" for name, line in found.items() if line not in wanted.values()),
    ])  # fmt: skip


def test_units_that_are_others_than_before_have_a_reason():
    assert {*RECORDED["before"], *RECORDED["later"]} == set(cases())
    assert set(RECORDED["now"]) == set(WHY)
    for case, lines in RECORDED["now"].items():
        assert sorted(lines.values()) != sorted(RECORDED["before"][case].values()), case

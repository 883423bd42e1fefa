"""Saved networks as a target of fuzzing: ``plan.json`` and weights, the checksum made to fit in most cases."""

from __future__ import annotations

import contextlib
import hashlib
import json

import mutate
import torch

import ifap
from ifap import plan
from ifap.cli.commands import _tensors
from ifap.errors import IfapError
from ifap.saving import plans, store
from ifap.study.models import builder_from_id, builder_id
from ifap.study.models.base import load_pretrained


def small_network(folder, model, masked=False, **options):
    """Save a pruned network of the package, with its builder in the plan."""
    arguments = {"num_classes": 10, "in_channels": 1, "image_size": 16}
    torch.manual_seed(0)
    network = builder_from_id(builder_id(model), arguments)
    inputs = torch.randn(1, 1, 16, 16)
    builder = plan.Builder(id=builder_id(model), args=arguments)
    if masked:
        masks = {n: torch.rand(p.shape) < 0.5 for n, p in network.named_parameters() if n.endswith("conv1.weight")}
        with torch.no_grad():
            for name, mask in masks.items():
                network.get_parameter(name).mul_(mask)
        store.write_network(network.eval(), plans.unpruned_plan(network, inputs, builder), folder, masks)
        return
    batches = torch.randn(2, 4, 1, 16, 16).unbind()
    pruned = ifap.prune(network, inputs, batches, target=ifap.Target(macs=0.4), steps=2, method="random", **options)
    store.write_network(pruned.model, pruned.plan.model_copy(update={"builder": builder}), folder)


class Networks:
    """Two networks pruned by channels, and one whose weights are masked."""

    def __init__(self, folder, part):
        torch.set_num_threads(1)
        self.part = part
        self.originals = []
        for name, masked in (("resnet_tiny", False), ("vit_tiny", False), ("resnet_tiny", True)):
            small_network(folder / f"{name}{masked}", name, masked)
            files = [(folder / f"{name}{masked}" / file).read_bytes() for file in (plan.PLAN_FILE, store.WEIGHTS_FILE)]
            self.originals.append(tuple(files))

    def make(self, folder, rng):
        about, weights = rng.choice(self.originals)
        if self.part == "plan":
            about = mutate.mutate_json(about, rng)
        else:
            weights = mutate.mutate_safetensors(weights, rng)
            if rng.random() < 0.85:
                fitting = json.loads(about) | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
                about = json.dumps(fitting).encode()
        (folder / plan.PLAN_FILE).write_bytes(about)
        (folder / store.WEIGHTS_FILE).write_bytes(weights)

    def read(self, folder):
        if self.part == "weights":
            for reader in (self._pretrained, self._masks):
                with contextlib.suppress(IfapError):
                    reader(folder)
        self._load(folder)

    def _load(self, folder):
        found = plan.read_plan(folder)
        store.load(folder, lambda: builder_from_id(found.builder.id, found.builder.args))

    def _masks(self, folder):
        store.read_masks(folder)
        _tensors(folder / store.WEIGHTS_FILE)

    def _pretrained(self, folder):
        arguments = {"num_classes": 10, "in_channels": 1, "image_size": 16}
        load_pretrained(builder_from_id("ifap:resnet_tiny", arguments), folder / store.WEIGHTS_FILE)

"""Every model builder that torchvision lists, with the smallest pictures or clips that its networks are made for."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.registry import Network, image

# name or start of a name: what the network takes, first match; a number is the side of one picture
SIZES: dict[str, Any] = {
    "inception_v3": 299,
    "quantized_inception_v3": 299,
    **dict.fromkeys(
        ("efficientnet", "convnext", "densenet", "mnasnet", "mobilenet", "regnet", "resne", "swin_", "wide_"), 128
    ),
    **dict.fromkeys(("shufflenet", "squeezenet", "vgg", "googlenet", "quantized"), 128),
    **dict.fromkeys(("swin3d", "mc3", "r2plus1d", "r3d"), (8, 64, 64)),
    "s3d": (16, 224, 224),
    "mvit": (16, 224, 224),
    **dict.fromkeys(("deeplabv3", "fcn", "lraspp"), 128),
}
VIT_SIDES = {"16": 128, "32": 128, "14": 112}  # by the side of a patch
DETECTORS = ("fasterrcnn", "fcos", "keypointrcnn", "maskrcnn", "retinanet", "ssd")
# What becomes of networks whose layers hold integers; two stand for all.
INT8 = ("quantized_resnet18", "quantized_mobilenet_v2")


def make(name: str, **options: Any) -> nn.Module:
    """Return a network of torchvision without weights."""
    import torchvision

    if name.startswith(DETECTORS) or name.startswith(("deeplabv3", "fcn", "lraspp")):
        options = {"weights_backbone": None, **options}
    if name in ("googlenet", "inception_v3", "quantized_googlenet", "quantized_inception_v3"):
        options = {"init_weights": False, **options}
    if name.startswith(DETECTORS):
        options = {**_few_boxes(name), "num_classes": 5, **options}
    if name.startswith("vit_"):
        options = {"image_size": VIT_SIDES[name.rpartition("_")[2]], **options}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return network


def _few_boxes(name: str) -> dict[str, Any]:
    """Return options for small pictures and few boxes: an untrained head scores all alike, and would keep hundreds."""
    small = {} if name.startswith("ssd") else {"min_size": 128, "max_size": 128}
    if "rcnn" in name:
        return {**small, "rpn_post_nms_top_n_test": 20, "rpn_pre_nms_top_n_test": 50, "box_detections_per_img": 4}
    return {**small, "score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 4}


def _pair(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (1, 3, 128, 128)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def _pictures(generator: torch.Generator) -> tuple[list[torch.Tensor]]:
    return ([torch.rand((3, 128, 128), generator=generator)],)


def _network(name: str) -> Network:
    feed: Any = _pair if name.startswith("raft") else _pictures if name.startswith(DETECTORS) else None
    if feed is None:
        size = next((size for start, size in SIZES.items() if name.startswith(start)), 224)
        size = VIT_SIDES[name.rpartition("_")[2]] if name.startswith("vit_") else size
        feed = image(size)
    return Network(f"torchvision:{name}", partial(make, name), feed, name)


def _names() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models())


NETWORKS = [
    *(_network(name) for name in _names()),
    *(Network(f"torchvision:{n}:int8", partial(make, n, quantize=True), image(128), n) for n in INT8),
]

"""One small detector of each generation of YOLO in ultralytics, its other tasks, and RT-DETR."""

from __future__ import annotations

from functools import partial

from torch import nn

from benchmarks.coverage.registry import Network, image

SIDE = 128
DETECTORS = (
    *("yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov8n-p2", "yolov8-ghost", "yolov9t", "yolov9c", "yolov10n"),
    *("yolo11n", "yolo12n", "yolo26n"),
)
OTHERS = {
    "yolo11n-seg": "SegmentationModel",
    "yolo11n-pose": "PoseModel",
    "yolo11n-obb": "OBBModel",
    "yolo11n-cls": "ClassificationModel",
    "yolov8n-rtdetr": "RTDETRDetectionModel",
    "rtdetr-l": "RTDETRDetectionModel",
}


def make(name: str, kind: str) -> nn.Module:
    """Return the network that a file of the package describes."""
    from ultralytics.nn import tasks

    network: nn.Module = getattr(tasks, kind)(f"{name}.yaml", verbose=False)
    return network


NETWORKS = [
    Network(f"ultralytics:{name}", partial(make, name, kind), image(SIDE), name)
    for name, kind in {**dict.fromkeys(DETECTORS, "DetectionModel"), **OTHERS}.items()
]

"""What the paper's names are called here, and what has to be put where before a data set can be run.

The one table that joins published cells with runs; a name stands here before its entry exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

from ifap.errors import ResultsError, nearest
from ifap.registry import entry_names
from ifap.study.config.rivals import MethodOptions
from ifap.study.data.origins import PLACES
from ifap.study.paths import raw_dir


class Data(NamedTuple):
    """A data set: its name in the registry, and what its folder must hold."""

    name: str
    content: str

    @property
    def need(self) -> str:
        """What to put where, in words."""
        return f"put {self.content} at {raw_dir(self.name)}"


def _known(name: str) -> Data:
    return Data(name, PLACES[name].layout)


class Metric(NamedTuple):
    """A metric: its unit in records, its lowest and highest value, its name in print, and which end is good."""

    unit: str
    low: float
    high: float
    title: str
    less_is_better: bool = False


_ANY = float("inf")
METRICS = {
    "top1": Metric("%", 0, 100, "top-1 accuracy (%)"),
    "top5": Metric("%", 0, 100, "top-5 accuracy (%)"),
    "accuracy": Metric("%", 0, 100, "accuracy (%)"),
    "f1": Metric("%", 0, 100, "F1 (%)"),
    "em": Metric("%", 0, 100, "exact match (%)"),
    "mcc": Metric("x100", -100, 100, "Matthews' correlation (x100)"),
    "pearson": Metric("x100", -100, 100, "Pearson's correlation (x100)"),
    "spearman": Metric("x100", -100, 100, "Spearman's correlation (x100)"),
    "map": Metric("%", 0, 100, "mAP over overlaps from 0.5 to 0.95 (%)"),
    "map50": Metric("%", 0, 100, "mAP at an overlap of 0.5 (%)"),
    "map75": Metric("%", 0, 100, "mAP at an overlap of 0.75 (%)"),
    "miou": Metric("%", 0, 100, "mean IoU (%)"),
    "pixel_accuracy": Metric("%", 0, 100, "pixel accuracy (%)"),
    "fid_inception": Metric("1", 0, _ANY, "FID", less_is_better=True),
    "fid_lite0": Metric("1", 0, _ANY, "Fréchet distance of the features of EfficientNet-Lite0", less_is_better=True),
    "fid_random": Metric("1", 0, _ANY, "Fréchet distance of the features of a random network", less_is_better=True),
    "ece": Metric("%", 0, 100, "expected calibration error (%)", less_is_better=True),
    "loss": Metric("nats", -_ANY, _ANY, "loss", less_is_better=True),
}
"""What tasks measure; the loss of scores is a squared distance, and called nats like the others."""
PRINTED_METRICS = {
    "%": {"top1", "accuracy"},
    "Accuracy": {"top1", "accuracy"},
    "F1": {"f1"},
    "FID": {"fid_inception", "fid_lite0", "fid_random"},
    "MCC": {"mcc"},
    "mAP": {"map", "map50"},
    "mIoU": {"miou"},
    "Pearson": {"pearson"},
}
"""The metrics behind a unit that the paper prints."""
APART = {
    "fid_lite0": "by the features of EfficientNet-Lite0 and not of Inception-v3, so that it is no FID",
    "fid_random": "by the features of a random network and not of Inception-v3, so that it is no FID",
}
"""Metrics that stand beside a printed one and cannot be compared with it, and why."""

DATASETS = {
    "ADE20K": _known("ade20k"),
    "CIFAR-10": _known("cifar10"),
    "CIFAR-100": _known("cifar100"),
    "COCO 2017": _known("coco2017"),
    "COCO-Stuff": _known("coco_stuff"),
    "Cifar-10": _known("cifar10"),
    "Cityscapes": _known("cityscapes"),
    "CoLA": _known("cola"),
    "FER2013": _known("fer2013"),
    "Fashion MNIST": _known("fashion_mnist"),
    "Food101": _known("food101"),
    "ImageNet": _known("imagenet"),
    "MNLI-m": _known("mnli"),
    "MRPC": _known("mrpc"),
    "Objects365": _known("objects365"),
    "Open Images": _known("open_images"),
    "Oxford-IIIT Pet": _known("oxford_pet"),
    "Pascal VOC": _known("pascal_voc"),
    "QNLI": _known("qnli"),
    "QQP": _known("qqp"),
    "RTE": _known("rte"),
    "ReCoRD": _known("record"),
    "SQuAD 1.1": _known("squad"),
    "SST-2": _known("sst2"),
    "STS-B": _known("stsb"),
    "Stanford Cars": _known("stanford_cars"),
    "iNaturalist": _known("inaturalist"),
}
MODELS = {
    "BERT": "bert_base",
    "BERT Base": "bert_base",
    "ConvNeXt-Small": "convnext_small",
    "DCGAN": "dcgan",
    "DETR (ViT-Base/16)": "detr_vit_b_16",
    "DenseNet-121": "densenet121",
    "EfficientNet V2-S": "efficientnet_v2_s",
    "EfficientNet-B4": "efficientnet_b4",
    "FCN (VGG19-BN)": "fcn_vgg19_bn",
    "Faster R-CNN (ResNet-50)": "faster_rcnn_resnet50",
    "GPT-2": "gpt2_base",
    "GPT-2 Base": "gpt2_base",
    "Inception-v3": "inception_v3",
    "MobileNetV3-L": "mobilenet_v3_large",
    "ResNet-50": "resnet50",
    "SegFormer (ViT-Base/16)": "segformer_vit_b_16",
    "ShuffleNetV2 x2.0": "shufflenet_v2_x2_0",
    "Stable Diffusion v1.5": "stable_diffusion_v1_5",
    "T5": "t5_base",
    "T5 Base": "t5_base",
    "U-Net (ResNet-50)": "unet_resnet50",
    "VGG19 (BN)": "vgg19_bn",
    "VQGAN": "vqgan",
    "ViT-Base/16": "vit_b_16",
    "YOLOv4 (ShuffleNetV2)": "yolov4_shufflenet_v2",
}
STAND_INS = {"stable_diffusion_half": "stable_diffusion_v1_5"}
"""Smaller networks that are run in the place of published ones, where those ask too much of a machine."""
METHODS = {
    "Baseline": "baseline",
    "GraNet": "granet",
    "LTH": "lth",
    "MvP": "mvp",
    "Ours": "ifap",
    "PDP": "pdp",
    "RFP": "rfp",
    "RigL": "rigl",
}


def published_model(model: str) -> str:
    """Return the network of the paper that a network stands for: itself, if it is no smaller one."""
    return STAND_INS.get(model, model)


def best(metric: str, values: Iterable[float]) -> float:
    """Return the best of some values of a metric; not a number if there is none."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    return min(known) if METRICS[metric].less_is_better else max(known)


class Kind(NamedTuple):
    """What a method takes away and what it starts from."""

    structure: Literal["channels", "weights"]
    start: Literal["baseline", "init"]


def kind(method: str) -> Kind:
    """Return what a registered method takes away and starts from; a score of units takes channels of the baseline."""
    if method in MethodOptions.model_fields:
        options = getattr(MethodOptions(), method)
        return Kind(options.structure, options.start)
    scores = entry_names("ifap.methods")
    if method not in scores:
        raise ResultsError(f"no method '{method}': {nearest(method, scores | set(MethodOptions.model_fields))}")
    return Kind("channels", "baseline")

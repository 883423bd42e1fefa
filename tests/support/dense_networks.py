"""The small networks of detection, segmentation and generation, and the inputs of one forward of each."""

from __future__ import annotations

import torch

SEGMENTATION = ("fcn_tiny", "segformer_tiny", "unet_tiny")
DETECTION = ("detr_tiny", "faster_rcnn_tiny", "yolov4_shufflenet_tiny")
GENERATION = ("dcgan_tiny", "stable_diffusion_tiny", "vqgan_tiny")
DENSE = (*SEGMENTATION, *DETECTION, *GENERATION)
CLASSES = 5
# DETR and SegFormer have a patch of 8 pixels: rows and channels must not be the same number by chance.
PIXELS = {"stable_diffusion_tiny": 8, "vqgan_tiny": 16, "dcgan_tiny": 28}
USUAL_PIXELS = 64


def size_of(name):
    return PIXELS.get(name, USUAL_PIXELS)


def build(name, classes=CLASSES, channels=3, size=None, seed=0):
    from ifap.study.models import MODELS

    torch.manual_seed(seed)
    return MODELS.get(name)(num_classes=classes, in_channels=channels, image_size=size or size_of(name)).eval()


def inputs_of(name, batch=2, channels=3, seed=1):
    """Return images for one forward."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size_of(name), size_of(name), generator=generator)


def targets_of(batch=2, size=USUAL_PIXELS):
    """Return targets of a batch: three boxes, one box, none, and so on."""
    boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0], [0.0, 0.0, 9.0, 12.0]]) * size / 64
    labels = torch.tensor([0, CLASSES - 1, 2])
    return [
        {"boxes": boxes[:number], "labels": labels[:number]} for number in ((3, 1, 0)[row % 3] for row in range(batch))
    ]

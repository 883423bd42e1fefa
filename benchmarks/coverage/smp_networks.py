"""Every architecture of segmentation-models-pytorch, with a small encoder, and a Unet with one of each family."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from benchmarks.coverage.registry import Network, image

SIDE = 64
# architecture: encoder, and what it must be told
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Unet": {"encoder_name": "resnet18"},
    "UnetPlusPlus": {"encoder_name": "resnet18"},
    "MAnet": {"encoder_name": "resnet18"},
    "Linknet": {"encoder_name": "resnet18"},
    "FPN": {"encoder_name": "resnet18"},
    "PSPNet": {"encoder_name": "resnet18"},
    "DeepLabV3": {"encoder_name": "resnet18"},
    "DeepLabV3Plus": {"encoder_name": "resnet18"},
    "PAN": {"encoder_name": "resnet18"},
    "UPerNet": {"encoder_name": "resnet18"},
    "Segformer": {"encoder_name": "mit_b0"},
    "DPT": {"encoder_name": "tu-vit_tiny_patch16_224"},
}
# One encoder of each of its families, below a Unet.
ENCODERS = (
    *("resnext50_32x4d", "timm-resnest14d", "timm-res2net50_14w_8s", "timm-regnetx_002", "timm-gernet_s"),
    *("se_resnet50", "timm-skresnet18", "densenet121", "inceptionresnetv2", "inceptionv4", "efficientnet-b0"),
    *("timm-efficientnet-b0", "mobilenet_v2", "dpn68", "vgg11_bn", "mit_b0", "mobileone_s1", "xception"),
    *("timm-mobilenetv3_small_075", "tu-convnext_atto"),
)


def make(architecture: str, **options: Any) -> nn.Module:
    """Return a segmentation network of three classes, without weights."""
    import segmentation_models_pytorch as smp

    network: nn.Module = getattr(smp, architecture)(encoder_weights=None, classes=3, **options)
    return network


NETWORKS = [
    *(
        Network(f"smp:{name}", partial(make, name, **options), image({"DPT": 224, "PAN": 128}.get(name, SIDE)), name)
        for name, options in ARCHITECTURES.items()
    ),
    *(
        Network(f"smp:Unet+{name}", partial(make, "Unet", encoder_name=name), image(SIDE), f"Unet, encoder {name}")
        for name in ENCODERS
    ),
]

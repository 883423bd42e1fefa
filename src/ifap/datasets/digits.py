"""Handwritten digits: 1,797 real scans of 8 x 8 pixels, shipped with scikit-learn."""

from __future__ import annotations

import torch

from ifap.datasets.base import DATASETS, DatasetSpec, Samples, random_shift


def read() -> Samples:
    """Return all scans, uint8 of shape (1797, 1, 8, 8) with values 0 to 16, and their digits."""
    from sklearn.datasets import load_digits  # slow to import, and only fetching needs it

    bunch = load_digits()
    return torch.from_numpy(bunch.images).to(torch.uint8)[:, None], torch.from_numpy(bunch.target).long()


DATASETS.register("digits")(
    DatasetSpec(
        name="digits",
        classes=10,
        channels=1,
        maximum=16.0,
        source="scikit-learn load_digits: the test part of UCI's Optical Recognition of Handwritten Digits (1998)",
        licence="CC BY 4.0",
        read=read,
        augment=random_shift,  # no flips: a mirrored digit is another sign or none
    )
)

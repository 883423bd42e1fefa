"""Fashion MNIST: 70,000 grey pictures of clothes, 28 x 28 pixels, in 10 classes (Xiao et al. 2017)."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ifap.data import Role
from ifap.study.data.base import DatasetSpec, Raw
from ifap.study.data.entries import DATASETS
from ifap.study.data.origins import home
from ifap.study.data.raw_images import Arrays
from ifap.study.data.torchvision_readers import reading
from ifap.study.data.twins import Patterns, check_classes, mark

NAME, CLASSES = "fashion_mnist", 10
SIDE = 28
STEMS: dict[Role, str] = {"train": "train", "test": "t10k"}
UNSIGNED_BYTE = 0x08  # type code of the IDX format


def read(folder: Path) -> dict[Role, Raw]:
    """Return the 60,000 training and 10,000 test images, from packed or unpacked IDX files."""
    from torchvision.datasets.mnist import read_image_file, read_label_file  # slow to import

    place = home(NAME, folder)
    found: dict[Role, Raw] = {}
    for role, stem in STEMS.items():
        with _plain(place / f"{stem}-images-idx3-ubyte") as path:
            images = read_image_file(str(path))[:, None]
        with _plain(place / f"{stem}-labels-idx1-ubyte") as path:
            found[role] = Arrays(images, read_label_file(str(path)))
    return found


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: four packed IDX files."""
    check_classes(NAME, classes, CLASSES)
    folder.mkdir(parents=True, exist_ok=True)
    patterns = Patterns(classes, per_class, seed, channels=1)
    for role, stem in STEMS.items():
        images, targets = patterns.array(role, (SIDE, SIDE))
        for kind, values in (("images-idx3", images[..., 0]), ("labels-idx1", np.array(targets, np.uint8))):
            sizes = struct.pack(f">{values.ndim}I", *values.shape)
            content = bytes([0, 0, UNSIGNED_BYTE, values.ndim]) + sizes + values.tobytes()
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(content, mtime=0))
    mark(NAME, folder, patterns)


@contextlib.contextmanager
def _plain(path: Path) -> Iterator[Path]:
    """Yield an unpacked IDX file, which is the only kind that torchvision reads; errors name the one that is there."""
    packed = path.with_name(f"{path.name}.gz")
    if not packed.exists():
        with reading(path):
            yield path
        return
    with reading(packed), tempfile.NamedTemporaryFile() as unpacked:
        with gzip.open(packed) as stream:
            shutil.copyfileobj(stream, unpacked)
        unpacked.flush()
        yield Path(unpacked.name)


DATASETS.register("fashion_mnist")(
    DatasetSpec(name=NAME, classes=CLASSES, channels=1, read=read, twin=twin, view="crop_flip")
)

"""Oxford-IIIT Pet: 7,349 photographs of cats and dogs of 37 breeds (Parkhi et al. 2012)."""

from __future__ import annotations

from pathlib import Path

from ifap.data import Role
from ifap.study.data.base import DatasetSpec, Raw
from ifap.study.data.entries import DATASETS
from ifap.study.data.origins import home
from ifap.study.data.torchvision_readers import known_as, listed, reading
from ifap.study.data.twins import Patterns, check_classes, mark, write_jpeg

NAME, CLASSES = "oxford_pet", 37
USUAL = "oxford-iiit-pet"  # the name of its folder that torchvision looks for
LISTS: dict[Role, str] = {"train": "trainval", "test": "test"}


def read(folder: Path) -> dict[Role, Raw]:
    """Return the 3,680 images of the ``trainval`` list as training samples and the 3,669 test images."""
    from torchvision.datasets import OxfordIIITPet  # slow to import, and only fetching needs it

    place = home(NAME, folder)
    found: dict[Role, Raw] = {}
    with known_as(place, USUAL) as parent:
        for role, split in LISTS.items():
            with reading(place / "annotations" / f"{split}.txt"):
                data = OxfordIIITPet(parent, split=split)
                found[role] = listed(place, parent / USUAL, zip(data._images, data._labels, strict=True))
    return found


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: images in one folder, a list for each part."""
    check_classes(NAME, classes, CLASSES)
    patterns, annotations = Patterns(classes, per_class, seed), folder / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    lines: dict[Role, list[str]] = {}
    for role, split in LISTS.items():
        lines[role] = []
        for label, number in sorted(patterns.order(role)):
            # Cats have capital names in the real set, dogs small ones: here every other breed is a cat's.
            breed = f"{'Synthetic' if label % 2 else 'synthetic'}_pattern{label}"
            image = f"{breed}_{number + (1 if role == 'train' else 1 + patterns.per_class)}"
            write_jpeg(folder / "images" / f"{image}.jpg", patterns.image(role, label, number))
            lines[role].append(f"{image} {label + 1} {1 if label % 2 else 2} {label // 2 + 1}\n")
        (annotations / f"{split}.txt").write_text("".join(lines[role]))
    head = "#Image CLASS-ID SPECIES BREED ID\n"
    (annotations / "list.txt").write_text(head + "".join(sorted(lines["train"] + lines["test"])))
    mark(NAME, folder, patterns)


DATASETS.register("oxford_pet")(
    DatasetSpec(name=NAME, classes=CLASSES, channels=3, read=read, twin=twin, view="resized_crop")
)

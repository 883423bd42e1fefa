"""iNaturalist: photographs of plants, animals and fungi, 10,000 species (Van Horn et al. 2021).

The paper does not say which version it used. This is the one of 2021: the last, and the one that
the paper's public code names. Trained on is its ``train_mini`` part, 50 images of each species:
500,000 in all and 42 GB, where the full training set has 2.7 million images. The labels of the
competition's test images are not public, so its 100,000 validation images, ten of each species,
are the test split here.
"""

from __future__ import annotations

from pathlib import Path

from ifap.data import Role
from ifap.errors import ResultsError
from ifap.study.data.base import DatasetSpec, Raw
from ifap.study.data.entries import DATASETS
from ifap.study.data.origins import home
from ifap.study.data.torchvision_readers import known_as, listed, reading
from ifap.study.data.twins import Patterns, check_classes, mark, write_jpeg

NAME, CLASSES = "inaturalist", 10_000
# Folder as the archive brings it, and torchvision's name for the version.
PARTS: dict[Role, tuple[str, str]] = {"train": ("train_mini", "2021_train_mini"), "test": ("val", "2021_valid")}


def read(folder: Path) -> dict[Role, Raw]:
    """Return the 500,000 training images of ``train_mini``, and the 100,000 validation images as test split."""
    from torchvision.datasets import INaturalist  # slow to import, and only fetching needs it

    place = home(NAME, folder)
    found: dict[Role, Raw] = {}
    species: dict[Role, list[str]] = {}
    for role, (usual, version) in PARTS.items():
        part = usual if (place / usual).exists() else version
        with reading(place / part), known_as(place / part, version) as parent:
            data = INaturalist(parent, version=version)
            species[role] = data.all_categories
            # The file system's order is not the same everywhere.
            samples = sorted((f"{data.all_categories[label]}/{file}", label) for label, file in data.index)
        found[role] = listed(place, place, samples, prefix=f"{part}/")
    if species["train"] != species["test"]:
        odd = sorted(set(species["train"]) ^ set(species["test"]))[0]
        raise ResultsError(f"{place}: species {odd} is in only one of the training and the validation folder")
    return found


def twin(folder: Path, classes: int, per_class: int, seed: int) -> None:
    """Write a synthetic set in the same format: one folder a species, named by number and taxonomy."""
    check_classes(NAME, classes, CLASSES)
    patterns = Patterns(classes, per_class, seed)
    for role, (part, _) in PARTS.items():
        for label, number in patterns.order(role):
            kin = f"Order{label // 4}_Family{label // 2}_Genus{label}"
            species = f"{label:05d}_Synthetica_Phylum{label % 2}_Class{label // 8}_{kin}_pattern{label}"
            pixels = patterns.image(role, label, number)
            write_jpeg(folder / part / species / f"synthetic-{role}-{label:05d}-{number:04d}.jpg", pixels)
    mark(NAME, folder, patterns)


DATASETS.register("inaturalist")(
    DatasetSpec(name=NAME, classes=CLASSES, channels=3, read=read, twin=twin, view="resized_crop")
)

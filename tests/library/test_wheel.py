"""What a wheel holds: the library alone, which works without the packages of the study."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from workflow_project import ROOT, copy_file, tracked_files

UV = str(Path(sys.executable).with_name("uv"))
# Refuses the library every package that only an extra brings; torch may look for what it likes.
WITHOUT_EXTRAS = """
import re, sys, tomllib
project = tomllib.load(open({pyproject!r}, "rb"))["project"]
names = {{re.match("[a-zA-Z0-9_-]+", name)[0] for extra in project["optional-dependencies"].values() for name in extra}}
refused = {{name.replace("-", "_") for name in names}} | {{"sklearn", "PIL"}}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if name.partition(".")[0] in refused and ("/ifap/" in frame.f_code.co_filename or frame.f_back is None):
            raise ModuleNotFoundError(f"No module named {{name!r}} (an extra)", name=name)

sys.meta_path.insert(0, Refuse())
"""


def copy_source(source):
    for name in tracked_files():
        if name.startswith("src/") or "/" not in name:
            copy_file(ROOT / name, source / name)
    return source


def build(source, out):
    """Build the wheel and the source archive, as `make dist` does."""
    command = [UV, "build", "--quiet", "--offline", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*command, "--out-dir", str(out), str(source)], check=True)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(copy_source(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(built):
    return built[0]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(installed, code, folder):
    script = folder / "script.py"
    script.write_text(WITHOUT_EXTRAS.format(pyproject=str(ROOT / "pyproject.toml")) + code)
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "100"}
    return subprocess.run([sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_wheel_holds_the_library_and_nothing_of_the_study(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "ifap/pruning.py" in names
    assert "ifap/axes/trace.py" in names
    assert "ifap/py.typed" in names
    assert not [name for name in names if name.startswith(("ifap/study", "stages", "tests", "benchmarks"))]


def test_two_builds_are_the_same_bytes(built, tmp_path):
    source = copy_source(tmp_path / "another place")
    for file in source.rglob("*.py"):
        os.utime(file, (1, 1))
    again = build(source, tmp_path / "dist")
    assert [file.name for file in again] == [file.name for file in built]
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in built]


def test_the_source_archive_holds_what_the_wheel_is_built_from(built):
    wheel, archive = built
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    modules = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("ifap/")}
    assert {name.removeprefix("src/") for name in names if name.startswith("src/")} == modules
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"} <= names


LIBRARY_ALONE = """
import copy
import torch
from torch import nn
import ifap
assert "site" in ifap.__file__
torch.set_num_threads(1)
network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
network(torch.randn(1, 3, 8, 8))
images, labels = torch.randn(16, 3, 8, 8), torch.randint(0, 5, (16,))
batches = [(images[:8], labels[:8]), (images[8:], labels[8:])]
print(ifap.inspect(network, images[:1]))
recover = ifap.Distillation(batches, batches)
pruned = ifap.prune(network, images[:1], images.split(8), target=ifap.Target(macs=0.5), steps=2, recover=recover)
ifap.save(pruned, "alone")
assert torch.equal(ifap.load("alone", lambda: copy.deepcopy(network)).eval()(images), pruned.model.eval()(images))
assert "8 &rarr;" in ifap.write_report("alone", builder=lambda: copy.deepcopy(network)).read_text()
mean = lambda model: float(model(images).mean())
curve = ifap.sweep(network, images[:1], [images], validate=mean, targets=(0.3, 0.5))
assert curve.to_svg().startswith("<svg")
print("fine")
"""


def test_the_library_and_the_python_blocks_of_the_readme_need_no_extra(installed, tmp_path):
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"(<!-- not run[^>]*-->\n)?```python\n(.*?)```", text, flags=re.DOTALL)
    code = "\n\n".join(block for not_run, block in blocks if not not_run)
    assert "ifap.prune(" in code
    done = run(installed, f"{LIBRARY_ALONE}\n{code}", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "\nfine\n" in done.stdout


def test_the_command_shows_only_what_works(installed, tmp_path):
    done = run(
        installed, "import sys; sys.argv = ['ifap', '--help']\nfrom ifap.cli.commands import main\nmain()\n", tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    commands = re.findall(r"^\S ([a-z]+) {2,}", done.stdout, flags=re.MULTILINE)
    assert commands == ["prune", "sweep", "report", "inspect", "show", "export"]

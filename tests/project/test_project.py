"""The project as a whole: versions, lock file, import direction, and what must appear nowhere."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from workflow_project import ROOT, tracked_files

import ifap
from ifap.study import paths
from ifap.study import report as claims
from ifap.study.config.params import json_schema
from ifap.study.config.reading import load_params
from ifap.study.grid import TABLE_FORMATS

FILES = [name for name in tracked_files() if not name.startswith(("tests/", "results/", "data/"))]
LIBRARY = sorted((ROOT / "src" / "ifap").rglob("*.py"))
CODE = [*LIBRARY, *sorted((ROOT / "stages").rglob("*.py"))]
# The library; knows nothing of data sets, the workflow or the paper.
METHOD = [path for path in LIBRARY if "study" not in path.parts]


def name_of(path):
    return str(path.relative_to(ROOT))


def imported(path):
    """Return every module that a file imports, also inside functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            found.update({node.module} | {f"{node.module}.{alias.name}" for alias in node.names})
    return found


def belongs_to(module, packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


# --- versions and the lock file -------------------------------------------------------------------


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_one_version_everywhere():
    version = pyproject()["project"]["version"]
    assert ifap.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    for name in ("Snakefile", "Dockerfile", "docs/running.md", "profiles/kubernetes/job.yaml"):
        assert set(re.findall(r"\bifap:(\d[\w.]*)", (ROOT / name).read_text())) == {version}, name
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def locked():
    """Return the entries of the lock file: requirement to the lines that go with it."""
    entries = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line[:1].strip() and not line.startswith("#"):
            entries[line.split()[0]] = current = []
        elif "--hash" in line:
            current.append(line.strip())
    return entries


def test_every_locked_package_has_a_version_and_hashes():
    entries = locked()
    assert len(entries) > 100
    for requirement, hashes in entries.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+", requirement), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes), requirement


def test_the_lock_file_names_no_host_and_no_folder():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host|file:| @ |^-e|^-r", text, re.MULTILINE)
    comments = [line for line in text.splitlines() if line.lstrip().startswith("#")]
    assert not [line for line in comments if re.search(r"/(home|root|tmp|work|Users)/", line)]


def test_the_lock_file_holds_every_declared_dependency():
    project = pyproject()["project"]
    extras = {name: wanted for name, wanted in project["optional-dependencies"].items() if name != "remotes"}
    declared = [*project["dependencies"], *(r for extra in extras.values() for r in extra)]
    normal = {re.sub(r"[-_.]+", "-", requirement.partition("==")[0]).lower() for requirement in locked()}
    names = {re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", text)[0]).lower() for text in declared}
    assert names - normal == set()


def test_imported_packages_are_declared():
    project = pyproject()["project"]
    own = {"ifap", "stages", "benchmarks"}
    inside = {path: {module.partition(".")[0] for module in imported(path)} for path in CODE}
    others = set().union(*inside.values()) - sys.stdlib_module_names - own
    distributions = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "torch_pruning": "torch-pruning"}
    distributions["segmentation_models_pytorch"] = "segmentation-models-pytorch"
    declared = [
        *project["dependencies"],
        *project["optional-dependencies"]["workflow"],
        *project["optional-dependencies"]["export"],
    ]
    names = {re.match(r"[A-Za-z0-9._-]+", text)[0].lower() for text in declared}
    assert {distributions.get(name, name) for name in others} - names == set()


# --- generated and listed things are up to date ---------------------------------------------------


def test_the_committed_schema_is_the_one_of_the_types():
    assert (ROOT / paths.schema_file()).read_text() == json_schema()


def test_dvc_knows_the_tables_of_the_parameters_and_the_outputs_of_the_stages():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    params = load_params(ROOT / "params.yaml")
    assert set(stages["tables"]["foreach"]) == set(params.tables)
    scale, published = params.published, "${published}"
    outs = [next(iter(out)) for out in stages["tables"]["do"]["outs"]]
    assert [out.replace(published, scale).replace("${item}", "table-2") for out in outs] == [
        str(paths.table_file(scale, "table-2", extension)) for extension in TABLE_FORMATS
    ]
    for stage in [*(stages[name] for name in stages if name != "tables"), stages["tables"]["do"]]:
        assert "snakemake" not in stage["cmd"]
        for out in stage["outs"]:
            assert next(iter(out.values())) == {"cache": False, "persist": True}
        for dep in stage["deps"]:
            assert (ROOT / dep.replace(published, scale)).exists(), f"{dep} does not exist"


def test_no_job_waits_for_a_table_or_figure_that_nothing_makes():
    snakefiles = "".join((ROOT / name).read_text() for name in FILES if name.endswith(".smk"))
    assert claims.FIGURES
    assert not re.search(r"^\s+(run|script):", snakefiles, flags=re.MULTILINE)
    assert not re.search(r"^\s+(threads|resources|retries):", snakefiles, flags=re.MULTILINE)


def test_every_make_target_is_phony_and_explained():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, flags=re.MULTILINE))
    phony = set(" ".join(re.findall(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)).split())
    assert targets == phony
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {line.split()[0] for line in done.stdout.splitlines()} == targets


# --- what must appear nowhere ---------------------------------------------------------------------


def test_no_code_path_unpickles():
    for path in CODE:
        text = path.read_text()
        tree = ast.parse(text)
        attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        # Of a checked file of weights alone, and of nothing that could run.
        loads = [node for node in calls if ast.unparse(node.func) == "torch.load"]
        assert all("weights_only=True" in map(ast.unparse, node.keywords) for node in loads), name_of(path)
        assert len(loads) == text.count("torch.load"), name_of(path)
        assert not attributes & {
            "torch.save",
            "numpy.load",
            "np.load",
            "pandas.read_pickle",
            "pd.read_pickle",
        }, name_of(path)
        assert not {module for module in imported(path) if belongs_to(module, ["pickle", "dill", "joblib", "shelve"])}
        assert "weights_only=False" not in text
        called = {ast.unparse(node.func) for node in calls}
        assert not called & {"eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system"}, name_of(path)
        assert "shell=True" not in text


def test_no_file_names_a_folder_of_one_machine():
    for name in [name for name in FILES if not name.endswith((".png", ".lock"))]:
        text = (ROOT / name).read_text(errors="replace")
        assert not re.search(r"(?<![\w.$}/])/(home|root|Users|work|tmp)/[\w.-]", text), name


def test_nothing_binary_or_large_is_in_git():
    tracked = tracked_files()
    binary = [name for name in tracked if name.endswith((".safetensors", ".pt", ".pth", ".pkl", ".ckpt", ".npz"))]
    # Networks of a few weights that show that plans of version 1 can be loaded: nothing writes such plans any more.
    old = [name for name in binary if name.startswith("tests/golden/plans_v1/") and name.endswith(".safetensors")]
    assert binary == old
    assert all((ROOT / name).stat().st_size < 2**16 for name in old)
    # The report is a file that opens offline, with every figure inside; another has every record.
    allowed = {name: 2**21 if name.endswith(("/index.html", "/records.html")) else 2**20 for name in tracked}
    assert not [name for name, limit in allowed.items() if (ROOT / name).stat().st_size > limit]


# --- direction of imports -------------------------------------------------------------------------


def lint_imports(folder):
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    environment = {**os.environ, "PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}", "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def copy_of_the_source(folder):
    for name in ("src", "stages", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder / "src" / "ifap"


def test_the_walls_stand():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("files", "chain"),
    [
        ({"scores/flow": "from ifap.study import grid"}, "ifap.scores.flow -> ifap.study.grid"),
        ({"ranking": "import ifap.helper", "helper": "import ifap.study.paths"}, "ifap.helper -> ifap.study.paths"),
        ({"axes/units": "from ifap import pruning"}, "ifap.axes.units -> ifap.pruning"),
        ({"study/paper/published": "from ifap.study import grid"}, "ifap.study.paper.published -> ifap.study.grid"),
        ({"costs": "import stages.job"}, "ifap.costs -> stages.job"),
    ],
    ids=["direct", "chain", "upwards", "study", "scripts"],
)
def test_what_crosses_a_wall_is_named_with_its_chain(tmp_path, files, chain):
    source = copy_of_the_source(tmp_path)
    for name, line in files.items():
        with (source / f"{name}.py").open("a") as stream:
            stream.write(f"\n\ndef planted() -> None:\n    {line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert chain in " ".join(done.stdout.split())


def test_the_library_does_without_what_the_study_needs():
    needed = ["pandas", "sklearn", "snakemake", "dvc", "matplotlib", "torchvision"]
    for path in METHOD:
        assert not {module for module in imported(path) if belongs_to(module, needed)}, name_of(path)


def test_tables_and_figures_are_built_again_when_their_code_changes():
    """Each stage of DVC depends on every module of the study that it reaches, and on every other one that it loads."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    code = "import grimp; graph = grimp.build_graph('ifap', 'stages', cache_dir=None)\n"
    code += "for name in ('tables', 'figures'):\n"
    code += "    print(name, *sorted(graph.find_upstream_modules(f'stages.{name}')))\n"
    code += "import sys, stages.tables, stages.figures\n"
    code += "print('loaded', *sorted(m for m in sys.modules if m.startswith(('ifap.', 'stages.')) "
    code += "and not hasattr(sys.modules[m], '__path__')))"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    *lines, loaded = found.stdout.splitlines()
    also = {name for name in loaded.split()[1:] if name not in ("stages.tables", "stages.figures")}
    for line in lines:
        stage, *modules = line.split()
        block = stages[stage]
        wanted = [path for path in block.get("do", block)["deps"] if path.startswith(("src/", "stages/"))]
        built_by = {name for name in modules if name.startswith("ifap.study.")} | also
        for name in (f"{'src/' * name.startswith('ifap')}{name.replace('.', '/')}" for name in built_by):
            assert any(f"{name}.py" == path or name == path or name.startswith(f"{path}/") for path in wanted), name
        assert f"stages/{stage}.py" in wanted


# Where the names of other libraries' classes belong: rivals, networks of the study, and what is said of them.
OTHERS = (
    r"\btransformers\.", r"\btimm\.", r"\btorchvision\.models", r"\bdiffusers\.", r"\bmodeling_",
    r"\b(?:Bert|Roberta|DistilBert|GPT2|GPTNeo|Llama|Mistral|Qwen2?|T5|Bart|ViT|Swin|Deit|DETR|Clip|CLIP|Whisper|UNet2D)"
    r"(?:Self|Cross|Sdpa|Flash)?(?:Attention|Model|MLP|Block|Layer|Encoder|Decoder|Config|For[A-Z]\w+)\b",
)  # fmt: skip


def test_no_class_of_another_library_is_named_by_the_method():
    doors = {"builders.py", "samples.py"}  # they build public networks by name, and read their samples
    for path in METHOD:
        if path.name in doors:
            continue
        text = path.read_text()
        assert not [match.group() for pattern in OTHERS for match in re.finditer(pattern, text)], name_of(path)


def test_no_reason_speaks_of_an_iteration():
    """A cut that cannot be made is refused before it is made, with what stands in its way."""
    assert not [name_of(path) for path in CODE if "does not run after" in path.read_text()]


@pytest.mark.parametrize(
    "module",
    ["ifap", "ifap.cli.commands", "ifap.study.grid", "ifap.study.config.reading", "stages.collect", "stages.tables"],
)
def test_torch_is_loaded_only_when_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_public_name_can_be_had():
    for name in ifap.__all__:
        assert getattr(ifap, name).__doc__
    assert set(ifap.__all__) <= set(dir(ifap))
    with pytest.raises(AttributeError, match="has no attribute 'prnue'"):
        _ = ifap.prnue


# --- docstrings -----------------------------------------------------------------------------------


def undocumented(body, where):
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield f"{where}.{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, f"{where}.{node.name}")


def test_every_public_thing_is_documented():
    for path in CODE:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), name_of(path)
        assert list(undocumented(tree.body, path.stem)) == []


def test_registered_entries_live_one_a_file_or_with_their_like():
    """A file has the name of its one entry, or of the family that its entries are: found without a search."""
    families = {"torchvision_networks.py", "glue_tasks.py", "cifar.py", "flows.py"}
    for package in ("methods", "study/methods", "study/models", "study/data", "study/rivals", "study/tasks"):
        for path in sorted((ROOT / "src" / "ifap" / package).glob("*.py")):
            registered = re.findall(r'\.register\(\s*"(\w+)"', path.read_text())
            named = all(name.startswith(path.stem) for name in registered) and (
                len(registered) < 2 or package == "study/models"
            )
            assert named or path.name in families, f"{path.name} registers {registered}"

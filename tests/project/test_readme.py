"""README and docs: their code runs, their commands and options exist, their links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain

import pytest
import typer
from workflow_project import ROOT, fresh, tracked_files  # noqa: F401

from ifap.cli.commands import app as library_app
from ifap.study import cli as study_cli
from ifap.study import paths
from ifap.study import report as claims
from ifap.study.config.reading import load_params
from ifap.study.grid import FIGURE_FORMATS, TABLE_FORMATS

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(name for name in tracked_files() if re.fullmatch(r"docs/[^/]+\.md", name)),
]
SECONDS = 180
PROGRAMS = ("ifap", "python", "snakemake", "dvc", "make")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None


def blocks(page):
    """Return the fenced blocks of a page; ``<!-- not run: reason -->`` right before a fence is noted."""
    found, lines = [], (ROOT / page).read_text().splitlines()
    start, language, reason = None, "", None
    for number, line in enumerate(lines):
        if start is None and line.startswith("```"):
            start, language = number, line.removeprefix("```").strip()
            noted = re.fullmatch(r"<!-- not run: (.+) -->", lines[number - 1].strip()) if number else None
            reason = noted[1] if noted else None
        elif start is not None and line.strip() == "```":
            found.append(Block(page, start + 1, language, "\n".join(lines[start + 1 : number]), reason))
            start = None
    assert start is None, f"{page}: a fence is not closed"
    return found


def commands(page):
    """Return the commands of a page: lines of bash blocks, and code spans that begin with a program."""
    text = (ROOT / page).read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", prose.replace("\\|", "|"))
    lines = [line for block in blocks(page) if block.language == "bash" for line in block.text.splitlines()]
    for line in chain(lines, spans):
        words = shlex.split(line, comments=True)
        if words and words[0] in PROGRAMS and "..." not in line and "<" not in line:
            yield tuple(words)


def all_commands():
    return sorted(set(chain.from_iterable(map(commands, PAGES))))


def options_of(function_or_app, name=None):
    command = typer.main.get_command(function_or_app)
    command = command.commands[name] if name else command
    return {option for parameter in command.params for option in getattr(parameter, "opts", [])} | {"--help"}


def all_commands_of_ifap():
    """Return the command with what the study adds to it, as an installation of both has it."""
    app = typer.Typer()
    app.registered_commands = list(library_app.registered_commands)
    if not {"status", "audit"} & {command.callback.__name__ for command in app.registered_commands}:
        study_cli.add_commands(app)
    return app


def stage_options(module):
    app = typer.Typer()
    package = (ROOT / module.replace(".", "/")).is_dir()
    app.command()(importlib.import_module(f"{module}.__main__" if package else module).main)
    return options_of(app)


def used_options(words):
    return {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}


def outputs():
    """Return what the workflow makes of the published scale."""
    params = load_params(ROOT / "params.yaml")
    scale = params.published
    yield from (paths.table_file(scale, table, e) for table in params.tables for e in TABLE_FORMATS)
    yield from (paths.figure_file(scale, figure, e) for figure in claims.FIGURES for e in FIGURE_FORMATS)
    yield from (paths.report_page(scale), paths.records_page(scale), paths.records_csv(scale), paths.trace_csv(scale))


def test_there_is_something_to_check():
    assert {block.language for block in blocks("README.md")} >= {"bash", "python"}
    assert {words[0] for words in all_commands()} == set(PROGRAMS)


def test_python_blocks_run_as_they_are(tmp_path):
    python = [block for page in PAGES for block in blocks(page) if block.language == "python" and not block.not_run]
    assert python
    for page in dict.fromkeys(block.page for block in python):
        script = "\n\n".join(block.text for block in python if block.page == page)
        (tmp_path / "page.py").write_text(f"import torch\ntorch.set_num_threads(1)\n{script}\n")
        done = subprocess.run(
            [sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, f"{page}: {done.stderr[-3000:]}"


@pytest.mark.parametrize("words", [w for w in all_commands() if w[0] in {"ifap", "python"}], ids=" ".join)
def test_commands_of_the_library_exist_with_their_options(words):
    if words[0] == "ifap":
        assert len(words) == 1 or used_options(words) <= options_of(all_commands_of_ifap(), words[1])
        return
    if words[1] != "-m":
        assert words[1].endswith(".py")
        assert (ROOT / words[1]).exists()
        return
    assert re.match(r"stages\.|benchmarks\b", words[2])
    if words[2].startswith("stages."):
        assert used_options(words) <= stage_options(words[2])
    else:
        place = ROOT / words[2].replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists()


@pytest.mark.parametrize("words", [w for w in all_commands() if w[0] == "make"], ids=" ".join)
def test_make_targets_exist(words):
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \??:?=", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for word in words[1:]:
        assert word in targets or ("=" in word and word.partition("=")[0] in variables)


@pytest.mark.parametrize("words", [w for w in all_commands() if w[0] == "snakemake"], ids=" ".join)
def test_snakemake_commands_plan(fresh, words):  # noqa: F811
    if "{" not in " ".join(words) and not {"--unlock", "--lint"} & set(words):
        said = fresh.snakemake("--dry-run", *(word for word in words[1:] if word not in {"-n", "--dry-run"}), rc=None)
        assert "This was a dry-run" in said, said[-2000:]


@pytest.mark.parametrize("words", [w for w in all_commands() if w[0] == "dvc"], ids=" ".join)
def test_dvc_commands_exist(fresh, words):  # noqa: F811
    fresh.run("dvc", words[1], "--help")
    if words[1] == "repro":
        stages = fresh.run("dvc", "stage", "list", "--all", "--name-only").split()
        assert [name for name in words[2:] if not name.startswith("-") and name not in stages] == []


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    made = {str(path) for path in outputs()}
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        target, _, anchor = "".join(link).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists() or target in made, f"{page}: {target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_code_spans_exist(page):
    prose = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    made = {str(path) for path in outputs()}
    ignored = {"logs", "state", "results", "data", "build", ".venv", ".snakemake"}  # appear while commands run
    top = {path.name for path in ROOT.iterdir()} | {"docs", "src"}
    for span in re.findall(r"`([\w.{},/-]+/[\w.{},/-]*)`", prose):
        head, _, braces = span.partition("{")
        names, _, tail = braces.partition("}")
        for name in [f"{head}{part}{tail}" for part in names.split(",")] if braces else [span]:
            if name.partition("/")[0] in top - ignored and name not in made:
                assert (ROOT / name).exists(), f"{page}: {name} does not exist"

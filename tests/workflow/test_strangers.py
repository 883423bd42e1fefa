"""Files from strangers are read within bounds or refused in one line; none is run, and none leads elsewhere.

Needs no torch; saved networks are in `test_strange_plans`. The cases are those that `tests/fuzz/run.py` found, and
bombs that chance does not make.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from claims_made_up import made_up_grid, write_grid
from jinja2.exceptions import SecurityError
from places import ROOT

from ifap.errors import ConfigError, ResultsError
from ifap.files import atomic_write_text, read_bounded
from ifap.study import paths
from ifap.study.config import reading
from ifap.study.config.reading import load_params
from ifap.study.report import csv_files, records
from ifap.study.report.configs import load_configs
from ifap.study.report.provenance import load_provenance
from ifap.study.report.tables.model import Column, Item, Row, Table
from ifap.study.report.tables.networks import link
from ifap.study.report.tables.render import render
from ifap.study.templates import environment

sys.path.append(str(ROOT / "tests" / "fuzz"))
from mutate import LAUGHS, MERGES, SNIPPETS

SOON = 20.0
"""Seconds of processor time that no refusal comes near to."""


@pytest.fixture(autouse=True)
def _soon():
    start = time.process_time()
    yield
    assert time.process_time() - start < SOON


def assert_one_line(error):
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# --- files ----------------------------------------------------------------------------------------


def test_a_pipe_a_folder_and_a_large_file_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 101)
    for path, reason in (
        (tmp_path / "pipe", "not a plain file"),
        (tmp_path, "Is a directory"),
        (Path("/dev/zero"), "not a plain file"),
        (tmp_path / "large", "larger than"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(OSError, match=reason):
            read_bounded(path, 100)
    (tmp_path / "link").symlink_to(tmp_path / "large")
    assert read_bounded(tmp_path / "link", 101) == b"x" * 101


# --- params.yaml ----------------------------------------------------------------------------------


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside"])
def test_yaml_that_means_harm_is_one_line(tmp_path, monkeypatch, snippet, inside):
    monkeypatch.chdir(tmp_path)
    lines = ["scales:", "  quick:", "    methods:", *(f"      {line}" for line in snippet.splitlines())]
    text = "\n".join(lines)
    (tmp_path / "params.yaml").write_text(text if inside else snippet)
    with pytest.raises(ConfigError) as error:
        load_params()
    assert_one_line(error)
    assert os.listdir(tmp_path) == ["params.yaml"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "more than 100000 values, aliases written out"),
        (f"{MERGES}\nmore: [{', '.join(['*h'] * 20_000)}]", "more than 100000 values"),
        ("a: &a [*a]", "an alias inside of what it stands for, line 1"),
        ("a: 1\nb: 2\na: 3", "key 'a' stands twice, again in line 3"),
        ("x" * 2**18 + "x", "larger than 0.25 MiB"),
        ("a: 2020-99-99", "month must be in 1..12"),
    ],
    ids=["laughs", "merges", "recursion", "twice", "large", "date"],
)
def test_a_bomb_is_named(tmp_path, text, reason):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_params(tmp_path / "params.yaml")
    assert reason in assert_one_line(error)


def test_aliases_and_merges_that_multiply_nothing_still_work(tmp_path):
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    text = (ROOT / "params.yaml").read_text()
    assert "&" not in text
    text = text.replace("default: {epochs: 12,", "default: &training {epochs: 12,", 1)
    text = text.replace(
        "default: {epochs: 6, batch_size: 64,", "default: {<<: *training, epochs: 6, batch_size: 64,", 1
    )
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(tmp_path / "params.yaml") == reading.parse_params(raw)


def test_a_grid_of_millions_of_cells_is_refused():
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["scales"]["quick"]["seeds"] = list(range(200_000))
    with pytest.raises(ConfigError, match=r"scales\.quick\.grid\.classification: more than 1,000,000 cells"):
        reading.parse_params(raw)


def test_a_step_without_a_version_is_named():
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    del raw["versions"]["prune"]
    with pytest.raises(ConfigError, match=r"params\.yaml: versions: prune: key is missing"):
        reading.parse_params(raw)


# --- results and the report -----------------------------------------------------------------------


@pytest.fixture
def grid(tmp_path):
    grid = made_up_grid()
    write_grid(tmp_path, grid)
    collected = records.collect(grid, root=tmp_path)
    atomic_write_text(tmp_path / paths.records_csv("quick"), records.records_table(collected))
    return grid


def edit(tmp_path, column, value, row=1):
    file = tmp_path / paths.records_csv("quick")
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    table.loc[row, column] = value
    file.write_text(table.to_csv(index=False))


@pytest.mark.parametrize("elsewhere", ["/etc/passwd", "../../etc/passwd", "a/../../b", "javascript:alert(1)", "a\0"])
def test_the_report_links_and_reads_nothing_outside_of_the_project(elsewhere):
    with pytest.raises(ResultsError, match="is not a file of the project"):
        link(elsewhere, "quick")


@pytest.mark.parametrize("value", ["1_000", "\u0661", "nan", "inf", "1e999", "0x10", " 1", "1" * 5000, "1,5"])
def test_what_only_python_takes_for_a_number_is_refused(tmp_path, grid, value):
    edit(tmp_path, "macs", value)
    with pytest.raises(ResultsError, match="row 3, column macs: ") as error:
        records.load_records("quick", root=tmp_path)
    assert_one_line(error)


def test_a_table_that_is_a_pipe_or_huge_is_refused(tmp_path, grid, monkeypatch):
    file = tmp_path / paths.records_csv("quick")
    monkeypatch.setattr(csv_files, "MOST_BYTES", 100)
    with pytest.raises(ResultsError, match="larger than"):
        records.load_records("quick", root=tmp_path)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ResultsError, match="not a plain file"):
        records.load_records("quick", root=tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[]", "7", "{}", '{"provenance": 1}', '{"provenance": {"commit": 5}}', "[" * 5000, "\udcff"],
)
def test_what_the_pages_cannot_read_is_named(tmp_path, grid, content):
    for file, read in ((paths.configs_json, load_configs), (paths.provenance_csv, load_provenance)):
        (tmp_path / file("quick")).write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(ResultsError, match=rf"malformed .*{file('quick').name}") as error:
            read("quick", root=tmp_path)
        assert_one_line(error)


HOSTILE = "a\n| b |\r\n\\end{tabular}\\input{/etc/passwd}<script>alert(1)</script>](javascript:x)\u2028c"


@pytest.mark.parametrize("extension", ["md", "html", "tex"])
def test_a_hostile_value_stays_a_value(extension):
    item = Item(HOSTILE, f"{HOSTILE}.json")
    table = Table("table-2", HOSTILE, (Column(HOSTILE, HOSTILE, align="left"),), (Row((item,)),), ())
    text = render(table, extension, ROOT / "reports" / "templates")
    assert "<script>" not in text
    if extension == "tex":
        assert r"\input{" not in text
        assert r"\end{tabular}\input" not in text
    if extension != "html":  # where a line end in a cell is a blank
        assert "\n| b" not in text
    if extension == "md":
        assert not re.search(r"(?<!\\)\]\(javascript", text)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ ''['__class__'] }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{% for i in range(10000000) %}{% endfor %}",
    ],
)
def test_a_template_reaches_no_code(tmp_path, monkeypatch, template):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile.j2").write_text(template)
    jinja = environment("md", tmp_path)
    with pytest.raises((SecurityError, OverflowError, Exception)) as error:
        jinja.get_template("hostile.j2").render()
    assert type(error.value).__name__ in {"SecurityError", "OverflowError", "UndefinedError"}
    assert not (tmp_path / "owned").exists()


def test_a_template_includes_nothing_from_elsewhere(tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "secret").write_text("secret")
    for name in ("../secret", str(tmp_path / "secret")):
        (tmp_path / "templates" / "hostile.j2").write_text(f"{{% include '{name}' %}}")
        with pytest.raises(Exception, match="secret") as error:
            environment("md", tmp_path / "templates").get_template("hostile.j2").render()
        assert type(error.value).__name__ == "TemplateNotFound"

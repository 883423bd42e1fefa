"""Tables, figures and page from made-up records.

``IFAP_UPDATE_GOLDEN=1 pytest tests/study/test_report_report.py`` rewrites the golden files; read the diff.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from claims_made_up import (
    ROOT,
    final_numbers,
    judge_all,
    made_up_grid,
    made_up_structure,
    measured_runs,
    raw_params,
    write_report_files,
)
from places import GOLDEN

from ifap.errors import ConfigError
from ifap.study import paths
from ifap.study.grid import TABLE_FORMATS
from ifap.study.paper import published
from ifap.study.paths import Cell
from ifap.study.report import FIGURES, figures, page
from ifap.study.report.configs import load_configs
from ifap.study.report.records_page import render_records
from ifap.study.report.tables import printed as paper_tables
from ifap.study.report.tables.build import build_table
from ifap.study.report.tables.model import Column, Item, Note, Row, Table
from ifap.study.report.tables.numbers import choose_unit, fixed
from ifap.study.report.tables.options import table_names
from ifap.study.report.tables.render import render
from ifap.study.report.tables.report import Report
from ifap.study.templates import MINUS, NO_VALUE

MINUS = MINUS
TEMPLATES = ROOT / paths.templates_dir()
VOID = {"meta", "img", "br", "link"}


def load(folder, grid, missing=()):
    report = write_report_files(folder, grid, missing)
    return report.runs, report.trace


@cache
def whole_claims():
    return tuple(judge_all(made_up_grid(), published.load_claims(ROOT / paths.published_claims())))


@cache
def some_claims():
    return tuple(judge_all(made_up_grid()))


def build(name, grid, data, claims=None):
    return build_table(name, Report(grid, *data, claims or some_claims()))


@pytest.fixture
def grid():
    return made_up_grid(raw_params(every_table=True))


@pytest.fixture
def data(tmp_path, grid):
    return load(tmp_path, grid)


class Checker(HTMLParser):
    """Fails on tags that are not closed in order and keeps what tests look at."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.images = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.links.append(dict(attrs)["href"])
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("extension", TABLE_FORMATS)
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_golden_tables(grid, data, number, extension):
    claims = judge_all(grid, measured=measured_runs(), structure=made_up_structure())
    text = render(build_table(f"table-{number}", Report(grid, *data, claims)), extension, TEMPLATES)
    compare(GOLDEN / f"made-up-table-{number}.{extension}", text)


@pytest.mark.parametrize("extension", TABLE_FORMATS)
def test_golden_table_of_a_partial_grid_with_seeds(tmp_path, extension):
    grid = made_up_grid(raw_params(seeds=(0, 1)))
    gone = [cell for cell in grid.pruned() if cell.model == "net_b" and cell.method == "magnitude"]
    gone.append(Cell("classification", "digits", "net_b", "random", 1))
    model = build("table-2", grid, load(tmp_path, grid, gone))
    text = render(replace(model, published=None), extension, TEMPLATES)
    compare(GOLDEN / f"made-up-partial-table-2.{extension}", text)


def compare(golden, text):
    if os.environ.get("IFAP_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("extension", TABLE_FORMATS)
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_every_published_value_is_in_its_table_as_often_as_printed(grid, data, number, extension):
    claims = whole_claims()
    text = render(build(f"table-{number}", grid, data, claims), extension, TEMPLATES)
    plain = text.replace(MINUS, "-").replace("$-$", "-").replace("\\textbf{", " ").replace("**", " ")
    found = Counter(re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?![\w.])", plain))
    wanted = Counter(claim.value for claim in claims if claim.table == number)
    assert not [value for value, count in wanted.items() if found[value] < count]


def test_a_changed_digit_changes_the_table(grid, data):
    claims = whole_claims()
    at = next(i for i, claim in enumerate(claims) if claim.id == "T3/ImageNet/ResNet-50/metric_base")
    changed = [*claims[:at], claims[at].model_copy(update={"value": "76.2"}), *claims[at + 1 :]]
    for extension in TABLE_FORMATS:
        one, other = (render(build("table-3", grid, data, rows), extension, TEMPLATES) for rows in (claims, changed))
        assert sum(a != b for a, b in zip(one.splitlines(), other.splitlines(), strict=True)) == 1


def test_every_row_that_was_not_measured_says_why(grid, data):
    for number in (1, 2, 3, 4, 5):
        model = build(f"table-{number}", grid, data, whole_claims()).parts[-1]
        marks = {note.mark for note in model.notes if "data not present: put " in note.text}
        for row in model.rows:
            if len(row.items) > 1:
                shown = [item for item in row.items if NO_VALUE in (item.text, item.measured)]
                assert shown
                assert all({item.mark, item.why} & {*marks, paper_tables.DAGGER} for item in shown)


def test_a_template_with_an_undefined_name_is_one_line(tmp_path, grid, data):
    for path in TEMPLATES.glob("*.j2"):
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "table.md.j2").write_text("{{ table.title }}\n{{ tabel.rows }}\n")
    with pytest.raises(ConfigError, match=r"table.md.j2, table.md.j2 line 2: 'tabel' is undefined") as error:
        render(build("table-2", grid, data), "md", tmp_path)
    assert "\n" not in str(error.value)


def is_value(column, item):
    """Whether an item is a number, not a word, of what was measured."""
    return column.align == "right" and re.search(r"\d", item.text) and not item.text.startswith("not attempted")


@pytest.mark.parametrize("name", ["table-1", "table-2", "table-3", "table-4", "table-5"])
def test_every_measured_value_links_to_its_record(tmp_path, name):
    grid = made_up_grid(raw_params(every_table=True, seeds=(0, 1, 2)))
    report = write_report_files(tmp_path, grid)
    table = build_table(name, report)
    configs = load_configs("quick", root=tmp_path)
    page_of_records = render_records(report, configs, {}, root=tmp_path, templates=TEMPLATES)
    own = [part for part in table.parts if part is not table.published]
    values = [(row, item) for part in own for row in part.rows for item in row.items if is_measured(part, row, item)]
    assert bool(values) == (name not in {"table-3", "table-5"})  # which the made-up grid has no network for
    for row, item in values:
        assert item.href, f"{[cell.text for cell in row.items]}: {item.text}"
        assert_leads_to_a_line(tmp_path, item.href)
    for row in table.published.rows if table.published else table.rows:
        assert all(item.origin for item in row.items if item.measured not in ("", NO_VALUE))
    markdown, web = (render(table, extension, TEMPLATES) for extension in ("md", "html"))
    assert all(f"[{item.text}][" in markdown.replace("**", "") for _, item in values)
    for href in Checker(web).links:
        page_name, _, anchor = href.partition("#")
        if page_name == "records.html":
            assert f'id="{anchor}"' in page_of_records
    assert web.count('href="records.html#') >= len(values)


def is_measured(part, row, item):
    at = sum(other.columns for other in row.items[: [id(other) for other in row.items].index(id(item))])
    return is_value(part.columns[at], item)


def assert_leads_to_a_line(root, href):
    """The link leads to lines of the scale's records or trace that are there."""
    file, _, lines = href.partition("#")
    assert Path(file).name in {"records.csv", "trace.csv"}
    content = (root / paths.report_dir("quick") / file).resolve().read_text().splitlines()
    first, _, last = lines.replace("L", "").partition("-")
    assert 2 <= int(first) <= int(last or first) <= len(content)


def test_a_link_leads_to_the_line_of_its_cell(tmp_path):
    grid = made_up_grid(raw_params(seeds=(0, 1)))
    report = write_report_files(tmp_path, grid)
    row = build_table("table-2", report).rows[0]
    lines = (tmp_path / paths.records_csv("quick")).read_text().splitlines()
    for item, method in ((row.items[4], "ifap"), (row.items[3], "baseline")):
        first, last = re.fullmatch(r"\.\./\.\./results/quick/records\.csv#L(\d+)-L(\d+)", item.href).groups()
        linked = [line.split(",")[1:6] for line in lines[int(first) - 1 : int(last)]]
        assert linked == [["classification", "digits", "net_a", method, str(seed)] for seed in (0, 1)]


def test_rendered_html_is_well_formed_and_links_to_what_is_there(tmp_path, grid, data):
    (tmp_path / paths.report_dir("quick")).mkdir(parents=True)
    (tmp_path / paths.records_page("quick")).touch()
    for name in table_names(grid):
        checker = Checker(render(build(name, grid, data), "html", TEMPLATES))
        for href in checker.links:
            if href.startswith("../paper/audit.md"):
                continue
            assert (tmp_path / paths.report_dir("quick") / href.partition("#")[0]).resolve().is_file()


def test_best_accuracy_is_bold_with_ties_as_printed(grid, data):
    runs, trace = data
    runs.loc[(runs["model"] == "net_a") & (runs["method"] == "random"), "test_metric"] = 96.7004
    table = build("table-2", grid, (runs, trace))
    bold = [(row.items[2].text, item.text) for row in table.rows for item in row.items if item.bold]
    assert bold == [("IFAP", "96.70"), ("random", "96.70"), ("IFAP", "93.37")]


def test_values_of_table_2(grid, data):
    table = build("table-2", grid, data)
    macs, params, top1 = final_numbers(Cell("classification", "digits", "net_a", "ifap", 0))
    values = [item.text for item in table.rows[0].items]
    assert values[:3] == ["digits", "net_a", "IFAP"]
    assert values[3:] == [
        *("5.211", f"{macs / 1e6:.3f}", MINUS + "65.3", "98.4", f"{params / 1e3:.1f}", MINUS + "59.0"),
        *("97.50", f"{top1:.2f}", MINUS + "0.80", "1"),
    ]


def test_missing_cells_are_not_attempted(tmp_path, grid):
    gone = [cell for cell in grid.cells() if cell.model == "net_a"]
    data = load(tmp_path, grid, gone)
    second, fourth = (build(name, grid, data) for name in ("table-2", "table-4"))
    assert [row.items[3].text for row in second.rows[:3]] == ["not attempted: no record for seed 0"] * 3
    assert sum(item.columns for item in second.rows[0].items) == len(second.columns)
    assert [item.text for item in fourth.rows[0].items] == ["all", "not attempted: no record for seed 0"]
    pictures = [figures.draw(name, grid, *data, root=tmp_path) for name in FIGURES]
    assert pictures[0].alt == "Not attempted: no record of net_a on digits, seed 0."
    report = Report(grid, *data, some_claims())
    assert "not attempted" in page.render_page(report, [second, fourth], pictures, TEMPLATES)


def test_rolled_back_iterations_are_marked_and_not_drawn(grid, data):
    runs, trace = data
    trace["accepted"] = trace["iteration"] < 3
    table = build("table-4", grid, (runs, trace))
    assert [row.items[0].text for row in table.rows[2:4]] == ["2", "3 (rolled back)"]
    assert "to 2.94M" in figures.draw("macs", grid, runs, trace).alt


@pytest.mark.parametrize(
    ("extension", "wanted"),
    [
        ("md", r"a\_b &amp; 50% \|x\| &lt;i&gt; \*z\*"),
        ("html", "a_b &amp; 50% |x| &lt;i&gt; *z*"),
        ("tex", r"a\_b \& 50\% |x| $<$i$>$ *z*"),
    ],
)
def test_every_value_is_escaped(extension, wanted):
    hostile = "a_b & 50% |x| <i> *z*"
    table = Table(
        "table-2",
        hostile,
        (Column(hostile, hostile, align="left"), Column(hostile)),
        (Row((Item(hostile, f"{hostile}.json", bold=True), Item(hostile, columns=2))),),
        (Note(hostile, "a"),),
    )
    text = render(table, extension, TEMPLATES)
    assert text.count(wanted) >= 6
    assert hostile not in text.replace(f"{hostile}.json", "")


@pytest.mark.parametrize(
    ("counts", "prefix", "texts"),
    [
        ([5_210_624, 417_892], "M", ["5.211", "0.418"]),
        ([4.1e9, 0.12e9], "G", ["4.100", "0.120"]),
        ([98_410, 12_812], "k", ["98.4", "12.8"]),
        ([950, 20], "", ["950", "20"]),
        ([23.5e6, 123.4e6], "M", ["23.5", "123.4"]),
    ],
)
def test_one_unit_a_table_with_three_significant_digits(counts, prefix, texts):
    unit = choose_unit(counts)
    assert unit.prefix == prefix
    assert [unit.text(count) for count in counts] == texts


def test_rounded_zero_has_no_sign():
    assert fixed(-0.001, 2) == "0.00"
    assert fixed(-1.25, 2) == MINUS + "1.25"


def test_unknown_tables_and_figures_name_the_nearest(grid, data):
    with pytest.raises(ConfigError, match="unknown table 'table-9': did you mean 'table-"):
        build("table-9", grid, data)
    with pytest.raises(ConfigError, match="unknown figure 'top2': did you mean 'top"):
        figures.draw("top2", grid, *data)


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
def test_latex_compiles(tmp_path, grid, data):
    parts = [render(build(name, grid, data, whole_claims()), "tex", TEMPLATES) for name in table_names(grid)]
    head = r"\documentclass{article}\usepackage{booktabs,longtable,graphicx,hyperref}\begin{document}"
    (tmp_path / "all.tex").write_text(head + "\n".join(parts) + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]

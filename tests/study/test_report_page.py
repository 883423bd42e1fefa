"""The report's page: what it says, and how a real browser shows it."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest
from claims_made_up import ROOT, made_up_grid, write_report_files
from workflow_project import tracked_files

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.config.reading import load_params
from ifap.study.grid import TABLE_FORMATS, Grid
from ifap.study.paper.published import COUNTS, load_claims
from ifap.study.paths import Cell
from ifap.study.report import FIGURES, csv_files, figures, page, records
from ifap.study.report.configs import load_configs
from ifap.study.report.judge import Judged
from ifap.study.report.provenance import gather, load_provenance, provenance_table
from ifap.study.report.records_page import render_records
from ifap.study.report.tables.build import build_table
from ifap.study.report.tables.model import Column, Item, Note, Row, Table
from ifap.study.report.tables.report import Report

TEMPLATES = ROOT / paths.templates_dir()
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "br", "link"}
RECORD = "results/quick/records.csv#L4"


class Reader(HTMLParser):
    """Fails on tags that are not closed in order and keeps what tests look at."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.images, self.loaded = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "a":
            self.links.append(found["href"])
        if tag == "img":
            self.images.append(found)
        self.loaded += [found[name] for name in ("src", "srcset", "data") if name in found]
        if tag == "link":
            self.loaded.append(found["href"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def claims():
    """Every published value, most of them not attempted and one measured."""
    rows = []
    for number, row in enumerate(load_claims(ROOT / paths.published_claims()).to_dict("records")):
        row["step"] = None if pd.isna(row["step"]) else int(row["step"])
        row |= {"mean": None, "sd": None, "n": 0, "tolerance": "", "records": ""}
        row |= {"verdict": "not attempted", "reason": "data not present: <put> it & run"}
        if number == 200:
            row |= {"mean": 97.123456, "sd": 0.5, "n": 3, "verdict": "not comparable (scale)", "records": RECORD}
        rows.append(Judged(**{key: value for key, value in row.items() if key in Judged.model_fields}))
    return rows


def audit_csv():
    row = 'metric-delta-1,metric-delta,major,"94.0 to 93.0, printed -2 <b>",points 93 - 94 = -1 | printed -2,T2/a;T2/b'
    return f"finding,kind,severity,title,arithmetic,claims\n{row}\n"


def made_up_table():
    """Return a table with two headings, and names that span several rows."""
    columns = [Column(name, align="left") for name in ("Data set", "Network", "Method")]
    columns += [Column("Base", "Top-1"), Column("Pruned", "Top-1", "a"), Column("Seeds")]
    rows = []
    for network, (height, first) in {"net_a": (3, 9.5), "net_b": (3, 10.25)}.items():
        for index in range(height):
            names = (
                Item("digits", rows=0 if rows else 6),
                Item(network, rows=0 if index else height),
                Item(f"method {index}"),
            )
            values = (Item("98.0"), Item(f"{first - 4 * index}", f"../../{RECORD}"), Item("1"))
            rows.append(Row((*names, *values), starts_group=index == 0))
    return Table("table-2", "Table II. Made-up", tuple(columns), tuple(rows), (Note("A note", "a"),))


def write_report(root, grid, *, evidence=True):
    """Write records, tables, figures and the pages as the stages do; return the text of the first page."""
    report = replace(write_report_files(root, grid), claims=claims() if evidence else ())
    hashes = {Cell.of(row): row["config_hash"] for row in report.runs.to_dict("records")}
    found = gather(grid, hashes, root=root)
    contents = {root / paths.comparison_csv("quick"): "made up"}
    contents[root / paths.provenance_csv("quick")] = provenance_table("quick", found)
    if evidence:
        contents[root / paths.audit_file("csv")] = audit_csv()
        contents[root / paths.audit_file("md")] = "# Audit"
    csv_files.write_files(contents)
    found = load_provenance("quick", root=root)
    table = made_up_table()
    built = [replace(table, detail=replace(table, name="table-2-comparison", title="A made-up comparison"))]
    pictures = [figures.draw(name, grid, report.runs, report.trace, root=root) for name in FIGURES]
    audit = page.load_findings(root=root)
    text = page.render_page(report, built, pictures, TEMPLATES, findings=audit, provenance=found)
    shown = render_records(report, load_configs("quick", root=root), found, root=root, templates=TEMPLATES)
    rendered = {root / paths.table_file("quick", table.name, e): table.name for table in built for e in TABLE_FORMATS}
    drawn = {root / paths.figure_file("quick", p.name, e): p.files[e] for p in pictures for e in p.files}
    pages = {root / paths.report_page("quick"): text, root / paths.records_page("quick"): shown}
    csv_files.write_files({**rendered, **drawn, **pages})
    return text


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    return root, write_report(root, made_up_grid())


def test_page_is_one_file_that_loads_nothing(report):
    root, text = report
    reader = Reader(text)
    assert len(reader.images) == len(FIGURES)
    assert all(name.startswith("data:image/svg+xml,%3C") for name in reader.loaded)
    assert all(len(image["alt"]) > 40 for image in reader.images)
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", re.sub(r'src="data:[^"]+"', "", text))
    for href in dict.fromkeys(reader.links):
        name, _, target = href.partition("#")
        file = root / paths.report_dir("quick") / name
        assert not name or file.exists(), href
        if not name or name == paths.records_page("quick").name:
            linked = file.read_text() if name else text
            assert not target or f'id="{target}"' in linked, href


def test_the_page_of_records_is_whole_and_loads_nothing(report):
    root, _ = report
    text = (root / paths.records_page("quick")).read_text()
    reader = Reader(text)
    assert reader.loaded == []
    assert not re.search(r"https?://|url\(|@import|<script", text)
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for href in dict.fromkeys(reader.links):
        assert href[1:] in ids if href[0] == "#" else (root / paths.report_dir("quick") / href).exists(), href
    section = text[text.index('id="records-L4"') : text.index('id="records-L5"')]
    values = dict(re.findall(r"<dt>([^<]+)</dt><dd>(?:<a[^>]*>)?([^<]*)", section))
    assert values["test_metric"] == "96.7"
    assert values["macs"] == "1808086"
    assert {"parameters: prune", "parameters: evaluate", "config_hash", "data_checksum"} <= set(values)
    assert values["commit"] == "0" * 40
    assert (values["hardware.cpu"], values["versions.torch"], values["latency.device"]) == ("made-up", "2.9", "cpu")
    assert section.count('id="trace-L') == 4


def test_page_says_verdicts_first_and_links_every_measured_value(report):
    _, text = report
    order = ["<h2>Verdicts", "<h2>Comparison", "<h2>Tables", "<h2>Figures", "<h2>Audit", "<h2>Costs", "<h2>Environment"]
    assert [text.index(word) for word in order] == sorted(text.index(word) for word in order)
    assert "6 of 6 pruned and 2 of 2 unpruned networks" in text
    assert '<a href="records.html#records-L4">97.123 \N{PLUS-MINUS SIGN} 0.5 (n=3)</a>' in text
    assert text.count("data not present: &lt;put&gt; it &amp; run") == sum(COUNTS.values())


def test_the_comparison_has_its_own_section_and_is_there_once(report):
    _, text = report
    comparison = text[text.index('<section id="comparison">') : text.index('<section id="tables">')]
    assert "A made-up comparison" in comparison
    assert '<a href="comparison.csv">' in comparison
    assert text.count('id="table-2-comparison"') == text.count('id="table-2"') == 1
    assert '<a href="#comparison">' in text


def test_verdicts_are_counted_by_table():
    verdicts = page.summarize_claims(claims(), "quick")
    assert verdicts.names == page.VERDICTS
    assert [sum(numbers) for _, numbers in verdicts.counts] == list(COUNTS.values())
    assert verdicts.totals == (0, 0, 0, 1, sum(COUNTS.values()) - 1, 0)
    assert len(verdicts.claims) == sum(COUNTS.values())


def test_page_without_claims_and_audit_still_renders(tmp_path):
    text = write_report(tmp_path, made_up_grid(), evidence=False)
    Reader(text)
    assert text.index("not comparable (scale)") < text.index("<h2>Tables")
    assert 'id="audit"' not in text
    assert 'href="#audit"' not in text


def test_audit_costs_and_environment_are_shown(report):
    _, text = report
    assert "94.0 to 93.0, printed -2 &lt;b&gt;" in text
    assert "points 93 - 94 = -1\nprinted -2" in text
    assert "Metric changes that do not follow <small>(1 major)</small>" in text
    assert re.search(r"All cells, each once</th>.*?>8 of 8<.*?>12.0 s<.*?>512 MB<", text, re.DOTALL)
    assert "000000000000" in text
    assert "version: torch" in text


def test_the_same_records_give_the_same_page(report, tmp_path):
    assert write_report(tmp_path, made_up_grid()) == report[1]


def test_a_malformed_audit_names_the_file(tmp_path):
    file = tmp_path / paths.audit_file("csv")
    file.parent.mkdir(parents=True)
    file.write_text("finding,kind\nx,y\n")
    with pytest.raises(ResultsError, match=r"malformed .*audit\.csv: row 2: column severity is missing"):
        page.load_findings(root=tmp_path)


# --- In a browser --------------------------------------------------------------------------------

PROBE = """
<script>
window.addEventListener("load", function () {
  document.querySelectorAll("details").forEach(function (details) { details.open = true; });
  var table = document.querySelector("#table-2 table"), rows = table.tBodies[0].rows, seen = {};
  var buttons = Array.from(table.querySelectorAll("thead button"));
  var button = buttons[buttons.length - 2], head = button.parentNode;
  function value(row) { return row.cells[row.cells.length - 2].textContent; }
  function column() { return Array.from(rows).map(value); }
  function body() { return table.tBodies[0].innerHTML.replace(/\\s+/g, ""); }
  var before = body();
  button.focus();
  seen.focused = document.activeElement === button;
  button.click(); seen.up = [head.getAttribute("aria-sort"), column(), rows[0].cells.length];
  button.click(); seen.down = [head.getAttribute("aria-sort"), column()];
  button.click(); seen.again = body() === before;
  seen.width = innerWidth; seen.content = document.documentElement.scrollWidth;
  seen.images = Array.from(document.images).every(function (image) { return image.naturalWidth > 0; });
  seen.loaded = performance.getEntriesByType("resource").map(function (entry) { return entry.name; })
    .filter(function (name) { return name.indexOf("data:") !== 0; });
  var pre = document.createElement("pre");
  pre.id = "probe"; pre.textContent = JSON.stringify(seen);
  document.body.appendChild(pre);
});
</script>
"""
FRAME = """<!doctype html><html><body style="margin:0"><iframe src="probe.html" width="{width}" height="900"
style="border:0"></iframe><pre id="out"></pre><script>
addEventListener("load", function () {{ setTimeout(function () {{
document.getElementById("out").textContent = frames[0].document.getElementById("probe").textContent; }}, 300); }});
</script></body></html>"""


def browse(tmp_path, url):
    """Return the page's text as the browser leaves it, and what it logged."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-component-update", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--allow-file-access-from-files", "--virtual-time-budget=3000", "--window-size=1400,1000"]
    command += ["--enable-logging=stderr", "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_nothing_overflows_fails_or_is_fetched(report, tmp_path, width):
    root, text = report
    folder = root / paths.report_dir("quick")
    # A frame has exactly the wanted width; a headless window does not become as narrow as a phone.
    (folder / "probe.html").write_text(text.replace("</body>", PROBE + "</body>"))
    (folder / f"frame-{width}.html").write_text(FRAME.format(width=width))
    dom, logged = browse(tmp_path, (folder / f"frame-{width}.html").as_uri())
    assert logged == []
    seen = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert seen["width"] == width
    assert seen["content"] <= width
    assert seen["images"]
    assert seen["loaded"] == []
    assert seen["focused"]
    assert seen["again"]
    values = ["1.5", "2.25", "5.5", "6.25", "9.5", "10.25"]
    assert seen["up"] == ["ascending", values, 6]
    assert seen["down"] == ["descending", values[::-1]]


PAGES = sorted(name for name in tracked_files() if name.startswith("reports/") and name.endswith(".html"))
# Each page in a frame as narrow as a phone, with all that is folded opened.
FRAMES = """<!doctype html><html><body><script>
addEventListener("load", function () {{
  var seen = {{}};
  Array.from(document.querySelectorAll("iframe")).forEach(function (frame) {{
    var page = frame.contentDocument;
    page.querySelectorAll("details").forEach(function (part) {{ part.open = true; }});
    seen[frame.title] = page.documentElement.scrollWidth;
  }});
  document.getElementById("out").textContent = JSON.stringify(seen);
}});
</script><pre id="out"></pre>{frames}</body></html>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_every_page_fits_a_phone(tmp_path):
    frame = '<iframe width="390" height="800" title="{}" src="{}"></iframe>'
    frames = "".join(frame.format(name, (ROOT / name).as_uri()) for name in PAGES)
    (tmp_path / "frames.html").write_text(FRAMES.format(frames=frames))
    dom, _ = browse(tmp_path, (tmp_path / "frames.html").as_uri())
    widths = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert set(widths) == set(PAGES)
    assert {name: width for name, width in widths.items() if width > 390} == {}


# --- Other metrics than accuracy ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes():
    return Grid(load_params(ROOT / "params.yaml"), "shapes"), records.load_records("shapes", root=ROOT)


def test_a_card_names_its_metric_and_which_way_is_better(shapes):
    found = {network.name: network.metric for network in page.summarize(*shapes).networks}
    assert found["faster_rcnn_tiny"] == "mAP at an overlap of 0.5 (%)"
    assert found["unet_tiny"] == "mean IoU (%)"
    assert found["dcgan_small"].endswith("random network; less is better")


def test_top1_needs_no_words(report):
    assert 'class="metric"' not in report[1]


@pytest.mark.parametrize("name", ["table-1", "table-2"])
def test_a_table_without_a_network_of_the_scale_says_only_that(shapes, name):
    built = build_table(name, Report.load(shapes[0], root=ROOT))
    assert built.rows == ()
    assert built.detail is None
    assert any("Scale shapes has no network for this table." in note.text for note in built.notes)

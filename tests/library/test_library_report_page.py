"""The page on a saved network: it opens offline, says what was measured, and survives whatever a folder holds."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import ifap
from ifap.errors import PlanError
from ifap.latency import SideBySide
from ifap.plan import read_plan
from ifap.report.page import render_report
from ifap.saving.history import REPORT_FILE, history_of, read_history

IMAGES = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def build():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def likeness(model):
    return 90.0 - sum(p.numel() for p in model.parameters()) / 1e3 + float(model[-1].bias.detach().sum())


def nudge(model, teacher, step):
    with torch.no_grad():
        model[-1].bias += 1
        model[-1].weight.mul_(0.5)


@pytest.fixture(scope="module")
def pruned():
    return ifap.prune(
        build(), IMAGES[:1], [IMAGES], target=ifap.Target(macs=0.5), steps=3, validate=likeness, recover=nudge
    )


@pytest.fixture
def folder(pruned, tmp_path):
    ifap.save(pruned, tmp_path / "small")
    return tmp_path / "small"


class Reader(HTMLParser):
    """Collect tags, the text of table rows, and whatever would be loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.rows, self.open, self.loaded, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "rect", "line", "circle", "polyline", "wbr"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append("")
        self.loaded += [v for k, v in attributes if k in ("src", "href") and not v.startswith("#")]

    def handle_endtag(self, tag):
        if tag not in ("rect", "line", "circle", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "tr" in self.open:
            self.rows[-1] += f"{data.strip()} "


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_is_one_file_that_loads_nothing(folder):
    path = ifap.write_report(folder, builder=build)
    assert path == folder / "report.html"
    reader = read(path.read_text())
    assert reader.loaded == []
    assert not {"script", "link", "img", "iframe"} & set(reader.tags)
    assert "@import" not in path.read_text()
    assert "url(" not in path.read_text()


def test_the_page_says_what_the_run_reported(folder, pruned):
    page = render_report(folder, build)
    rows = [" ".join(row.split()) for row in read(page).rows]
    for name, before in (("0", 16), ("3", 24)):
        assert f"{name} {before} \N{RIGHTWARDS ARROW} {pruned.receipts[-1].widths[name]}" in rows
    assert any(row.startswith("7 ") and row.endswith("it is an output of the network") for row in rows)
    for receipt in pruned.receipts[1:]:
        values = f"{receipt.metric_before:.4g} {receipt.metric_after:.4g}"
        assert any(row.startswith(f"{receipt.iteration} ") and row.endswith(values) for row in rows)
    assert f"<strong>{100 * pruned.after.reduction(pruned.before, 'macs'):.1f} % less</strong>" in page
    assert "asked for: 50.0 % fewer multiply-accumulates" in page
    assert f"{pruned.proof.units_checked} removed units were checked" in page


def test_the_costs_of_the_layers_add_up(pruned, folder):
    layers = read_history(folder, read_plan(folder)).layers.values()
    for kind in ("macs", "params"):
        assert sum(getattr(each, f"{kind}_before") for each in layers) == getattr(pruned.before, kind)
        assert sum(getattr(each, f"{kind}_after") for each in layers) == getattr(pruned.after, kind)
    counted = ifap.costs.macs_by_module(pruned.model, IMAGES[:1])
    assert {name: cost.macs_after for name, cost in pruned.layers.items() if cost.macs_after} == counted
    assert pruned.before.bytes == sum(t.numel() * t.element_size() for t in build().state_dict().values())


def test_both_networks_are_timed_in_one_run(folder, pruned, monkeypatch):
    timed = []

    def together(model, other, inputs):
        timed.append([ifap.cost(each, inputs).macs for each in (model, other)])
        return SideBySide(0.5, 2.0, 4.0, 7)

    monkeypatch.setattr("ifap.report.page.side_by_side", together)
    page = render_report(folder, build)
    assert timed == [[pruned.after.macs, pruned.before.macs]]
    assert "<strong>50.0 %</strong>" in page
    assert "2.00 ms and 4.00 ms for one forward of 1 sample" in page
    assert "timing was switched off" in render_report(folder, build, time=False)
    assert len(timed) == 1


def test_a_network_that_cannot_be_built_has_a_page_without_times(folder):
    page = render_report(folder)
    assert "Not measured: the plan names no public network, and no function that builds it was given." in page
    assert "16 &rarr; " in page


def test_a_public_network_needs_nothing_but_its_folder(tmp_path):
    images = torch.randn(2, 3, 64, 64)
    found = ifap.prune(
        ifap.build("torchvision:squeezenet1_1"), images[:1], [images], target=ifap.Target(params=0.3), steps=1,
        method="magnitude", prove=False,
    )  # fmt: skip
    ifap.save(found, tmp_path, "torchvision:squeezenet1_1")
    page = render_report(tmp_path)
    assert "The pruned network takes <strong>" in page
    assert "the proof was switched off" in page
    assert "features.<wbr>0" in page


def test_a_folder_of_an_older_version_says_what_it_can(folder):
    (folder / REPORT_FILE).unlink()
    rows = [" ".join(row.split()) for row in read(render_report(folder, build)).rows]
    kept = read_plan(folder).kept
    assert f"3 24 \N{RIGHTWARDS ARROW} {len(kept['3']['out'])}" in rows
    assert any(row.startswith("7 ") and row.endswith("it is an output of the network") for row in rows)
    alone = render_report(folder)
    assert "This folder was written by an older version" in alone
    assert f"3 {len(kept['3']['out'])}" in [" ".join(row.split()) for row in read(alone).rows]


def test_two_equal_runs_save_equal_bytes(tmp_path):
    for name in ("one", "two"):
        found = ifap.prune(build(), IMAGES[:1], [IMAGES], target=ifap.Target(macs=0.5), validate=likeness)
        ifap.save(found, tmp_path / name)
    assert (tmp_path / "one" / REPORT_FILE).read_bytes() == (tmp_path / "two" / REPORT_FILE).read_bytes()


def test_metrics_that_are_no_numbers_are_left_out(pruned, tmp_path):
    found = ifap.prune(build(), IMAGES[:1], [IMAGES], target=ifap.Target(macs=0.5), validate=lambda model: float("nan"))
    ifap.save(found, tmp_path)
    assert [step.metric_after for step in history_of(found).steps] == [None, None]
    assert "<polyline" not in render_report(tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: "{", "not valid JSON"),
        (lambda raw: "[" * 10_000, "not valid JSON"),
        (lambda raw: raw.replace('"method"', '"mehtod"'), "mehtod: Extra inputs"),
        (lambda raw: re.sub(r'"macs": (\d\d)', r'"macs": -\1', raw), "greater than or equal"),
        (lambda raw: raw.replace('"macs_after": ', '"macs_after": 1', 1), "belongs to another network than plan.json"),
        (lambda raw: re.sub(r'"metric_after": [\d.]+', '"metric_after": 1e999', raw, count=1), "finite number"),
    ],
)
def test_a_damaged_report_is_one_line(folder, damage, said):
    path = folder / REPORT_FILE
    path.write_text(damage(path.read_text()))
    with pytest.raises(PlanError, match=said) as caught:
        render_report(folder)
    assert "\n" not in str(caught.value)
    assert ifap.load(folder, build) is not None  # loading needs no report


def test_whatever_a_folder_says_stays_text(folder):
    path = folder / REPORT_FILE
    content = json.loads(path.read_text())
    bad = "<script>alert(1)</script>\"'&"
    content["method"] = content["metric"] = bad
    content["layers"][bad] = {**content["layers"]["0"], "stays": bad}
    content["proof"]["does_not_apply"] = {bad: 1}
    path.write_text(json.dumps(content))
    page = render_report(folder)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
    read(page)


def test_another_builder_is_one_line(folder):
    with pytest.raises(PlanError, match="the builder makes 12 parameters, the network that was pruned had"):
        render_report(folder, lambda: nn.Linear(3, 3))
    assert not (folder / "report.html").exists()


def test_the_pictures_are_drawn_to_scale(folder, pruned):
    page = render_report(folder)
    skyline = re.search(r'<svg class="skyline".*?</svg>', page, flags=re.DOTALL)[0]
    heights = [float(height) for height in re.findall(r' height="([\d.]+)"', skyline)]
    widths = pruned.receipts[-1].widths
    wanted = [w / 24 * 100 for w in (16, widths["0"], 24, widths["3"])]
    assert heights == pytest.approx(wanted, abs=0.01)

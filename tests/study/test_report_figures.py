"""The figures that read records of cells and published numbers, from made-up records."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import claims_made_up
import matplotlib
import pytest
from claims_made_up import ROOT, made_up_grid, raw_params, write_grid, write_recorded_files
from matplotlib import font_manager

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.paths import Cell
from ifap.study.report import FIGURES, figures
from ifap.study.report.figures import drawing, layers, trade_off
from ifap.study.report.figures.layers import layer_flows

CELL = Cell("classification", "digits", "net_a", "ifap", 0)
SCORES = {"stem": [1.0, 3.0, 2.0, 0.5], "block.attention": [0.5, 1.5], "block.attention.out_proj": [2, 1, 4, 3]}
BEFORE = {"stem": 4, "block.attention.v": 8, "block.attention.out": 4}
AFTER = {"stem": 2, "block.attention.v": 4, "block.attention.out": 3}
KEPT = {
    "stem": {"out": [1, 3]},
    "block.attention.v": {"in": [1, 3], "out": [4, 5, 6, 7]},
    "block.attention.out": {"out": [0, 2, 3]},
}


def write_details(root, cell):
    folder = root / paths.cell_dir("quick", cell)
    (root / paths.flow_json("quick", cell)).write_text(json.dumps({"head": [1.0, 1.0], **SCORES}))
    (folder / "plan.json").write_text(json.dumps({"kept": KEPT}))
    receipts = [{"accepted": True, "widths": BEFORE}, {"accepted": True, "widths": AFTER}]
    receipts.append({"accepted": False, "widths": dict.fromkeys(AFTER, 1)})
    (root / paths.receipts_json("quick", cell)).write_text(json.dumps(receipts))


def collect(root, grid):
    report = write_recorded_files(root, grid)
    return report.runs, report.trace


@pytest.fixture
def grid():
    return made_up_grid()


@pytest.fixture
def data(tmp_path, grid):
    write_grid(tmp_path, grid)
    for cell in grid.pruned():
        write_details(tmp_path, cell)
    target = tmp_path / paths.published_claims()
    target.parent.mkdir(parents=True)
    target.write_bytes((ROOT / paths.published_claims()).read_bytes())
    return collect(tmp_path, grid)


def test_every_figure_is_whole_and_the_same_on_every_run(tmp_path, grid, data):
    for name in FIGURES:
        first, second = (figures.draw(name, grid, *data, root=tmp_path) for _ in range(2))
        assert first.files == second.files
        assert set(first.files) == {"svg", "png"}
        assert ET.fromstring(first.files["svg"]).tag.endswith("svg")
        assert len(first.alt) > 60
        assert "Not attempted" not in first.alt


def test_the_published_trace_stands_in_percent_of_its_own_start(tmp_path, grid, data):
    ends = {"parameters": "32.2", "macs": "29.1", "top1": "99.4", "top5": "99.9"}
    for name, end in ends.items():
        alt = figures.draw(name, grid, *data, root=tmp_path).alt
        assert f"published, ResNet-50 on CIFAR-10, in % of its own start ({end} % at step 30)" in alt
    (tmp_path / paths.published_claims()).unlink()
    assert "published" not in figures.draw("macs", grid, *data, root=tmp_path).alt


def test_flow_scheme_knows_what_was_cut(tmp_path, grid, data):
    flow, plan = {"head": [1.0, 1.0], **SCORES}, {"kept": KEPT}
    layers = {layer.name: layer for layer in layer_flows(CELL, flow, plan, [{"widths": BEFORE}])}
    assert list(layers) == ["stem", "block.attention", "block.attention.out_proj", "head"]
    assert layers["stem"].scores == (3.0, 2.0, 1.0, 0.5)
    assert layers["stem"].kept == (True, False, False, True)
    assert layers["block.attention"].kept == (True, False)
    assert layers["block.attention.out_proj"].kept == (True, True, True, False)
    assert layers["head"].kept == (True, True)
    assert "4 of 12 units were cut" in figures.draw("flow_scheme", grid, *data, root=tmp_path).alt


def test_layer_widths_end_with_the_last_accepted_iteration(tmp_path, grid, data):
    alt = figures.draw("layer_widths", grid, *data, root=tmp_path).alt
    assert "net_a: 56 % (IFAP) and 56 % (magnitude) of the units are left." in alt


def test_overview_names_every_experiment(tmp_path, data):
    runs, trace = data
    gone = runs[~((runs["model"] == "net_b") & (runs["method"] == "random"))]
    alt = figures.draw("experiments", made_up_grid(), gone, trace, root=tmp_path).alt
    assert "Grid of 6 experiments" in alt
    assert "net_a, IFAP: \N{MINUS SIGN}65.3 % MACs, \N{MINUS SIGN}0.80 points." in alt
    assert "net_b, random: not attempted." in alt


def test_seeds_become_means_with_a_spread(tmp_path):
    grid = made_up_grid(raw_params(seeds=(0, 1)))
    write_grid(tmp_path, grid)
    data = collect(tmp_path, grid)
    one = data[0][data[0]["seed"] == 0], data[1][data[1]["seed"] == 0]
    both, single = (figures.draw("accuracy_macs", grid, *frames, root=tmp_path) for frames in (data, one))
    assert both.files["svg"].count(b"fill-opacity: 0.15") > single.files["svg"].count(b"fill-opacity: 0.15")


@pytest.mark.parametrize("content", ["{", '{"stem": 3}', "[]"])
def test_malformed_records_name_the_file_or_the_cell(tmp_path, grid, data, content):
    (tmp_path / paths.flow_json("quick", CELL)).write_text(content)
    with pytest.raises(ResultsError, match=r"malformed .*net_a/ifap/seed0"):
        collect(tmp_path, grid)


def test_absent_records_are_said_in_the_figure(tmp_path, grid, data):
    for cell in grid.pruned():
        (tmp_path / paths.flow_json("quick", cell)).unlink()
        (tmp_path / paths.receipts_json("quick", cell)).unlink()
    data = collect(tmp_path, grid)
    assert figures.draw("flow_scheme", grid, *data, root=tmp_path).alt.startswith("Not attempted: no flow scores")
    assert figures.draw("layer_widths", grid, *data, root=tmp_path).alt.startswith("Not attempted: no record")


def test_one_target_keeps_the_iterations_and_shows_final_networks_by_parameters(tmp_path, grid, data):
    alt = figures.draw("accuracy_macs", grid, *data, root=tmp_path).alt
    assert "Validation top-1 after recovery" in alt
    alt = figures.draw("accuracy_params", grid, *data, root=tmp_path).alt
    assert "net_a, IFAP: 96.70 % at 41 %." in alt


def with_curves(tmp_path, monkeypatch, seeds=(0, 1), variants=None):
    methods = {**claims_made_up.METHODS, "rigl": (1.0, 1.0, 0.5), **dict.fromkeys(variants or {}, (1.0, 1.0, 0.5))}
    monkeypatch.setattr(claims_made_up, "METHODS", methods)
    raw = raw_params(seeds=seeds)
    raw["scales"]["quick"]["targets"] = {"macs": [0.3]}
    raw["scales"]["quick"]["variants"] = variants or {}
    grid = made_up_grid(raw)
    write_grid(tmp_path, grid)
    for cell in grid.pruned():
        path = tmp_path / paths.metrics_file("quick", cell)
        content = json.loads(path.read_text())
        if cell.method.endswith("_m30"):
            content["params_nonzero"] = int(0.8 * claims_made_up.MODELS[cell.model][1])
        if cell.method.startswith("rigl"):
            content["macs_nonzero"] = int(content["macs"] * (0.7 if cell.method.endswith("_m30") else 0.35))
        path.write_text(json.dumps(content))
    return grid, collect(tmp_path, grid)


def test_several_targets_make_curves_of_what_was_reached(tmp_path, monkeypatch):
    grid, data = with_curves(tmp_path, monkeypatch)
    picture = figures.draw("accuracy_macs", grid, *data, root=tmp_path)
    assert "mean and standard deviation over seeds" in picture.alt
    # Both targets of RigL are reached only if zeros are skipped; IFAP's made-up networks have one size.
    assert "net_a, RigL (theoretical MACs): 97.15 % at 70 %, 97.15 % at 35 %." in picture.alt
    assert "net_a, IFAP: 96.85 % at 35 %, 96.85 % at 35 %." in picture.alt
    assert picture.title.endswith("hollow: weights are masked, so that fewer MACs are theoretical")
    params = figures.draw("accuracy_params", grid, *data, root=tmp_path)
    assert "net_a, IFAP: 96.85 % at 80 %, 96.85 % at 41 %." in params.alt
    assert "theoretical" not in params.alt + params.title
    assert params.files == figures.draw("accuracy_params", grid, *data, root=tmp_path).files


def test_curves_are_drawn_where_the_words_put_them(tmp_path, monkeypatch):
    grid, data = with_curves(tmp_path, monkeypatch)
    kept = []
    monkeypatch.setattr(trade_off, "save_picture", lambda name, title, alt, figure: kept.append((alt, figure)))
    figures.draw("accuracy_macs", grid, *data, root=tmp_path)
    ((alt, figure),) = kept
    curves = [(axes.get_title(), shown.get_label(), shown[0]) for axes in figure.axes for shown in axes.containers]
    assert len(curves) == 8
    for network, name, line in curves:
        points = ", ".join(f"{top1:.2f} % at {left:.0f} %" for left, top1 in line.get_xydata())
        assert f"{network}, {name}: {points}." in alt


def test_figures_of_single_networks_leave_further_targets_out(tmp_path, monkeypatch):
    grid, data = with_curves(tmp_path, monkeypatch, seeds=(0,))
    assert "Grid of 8 experiments" in figures.draw("experiments", grid, *data, root=tmp_path).alt
    assert "_m30" not in figures.draw("macs", grid, *data, root=tmp_path).alt


def test_figures_with_curves_leave_variants_of_one_point_out(tmp_path, monkeypatch):
    variants = {"ifap_max": {"method": "ifap", "prune": {"target": {"macs": 0.65}, "aggregate": "max"}}}
    grid, data = with_curves(tmp_path, monkeypatch, seeds=(0,), variants=variants)
    assert "ifap_max" in set(data[0]["method"])
    for name in FIGURES:
        assert "max" not in figures.draw(name, grid, *data, root=tmp_path).alt, name


def test_too_many_networks_for_one_figure_are_said(tmp_path, monkeypatch):
    grid, _ = with_curves(tmp_path, monkeypatch, seeds=(0,))
    for module in (drawing, layers):
        monkeypatch.setattr(module, "MOST_PANELS", 1)
    for cell in grid.pruned():
        write_details(tmp_path, cell)
    data = collect(tmp_path, grid)
    assert layers.load_widths("quick", root=tmp_path)["before"].dropna().empty
    for name in ("accuracy_params", "layer_widths"):
        alt = figures.draw(name, grid, *data, root=tmp_path).alt
        assert alt == "Not attempted: 2 networks are too many for one figure: see the tables.", name


def test_a_figure_without_its_records_says_what_makes_them(tmp_path, grid, data):
    (tmp_path / paths.widths_csv("quick")).unlink()
    with pytest.raises(ResultsError, match=r"widths\.csv not found: run python -m stages\.collect --scale quick"):
        figures.draw("layer_widths", grid, *data, root=tmp_path)


def test_fonts_of_the_machine_draw_nothing():
    drawing.use_shipped_fonts()
    shipped = Path(matplotlib.get_data_path())
    assert {Path(font.fname).is_relative_to(shipped) for font in font_manager.fontManager.ttflist} == {True}
    assert Path(font_manager.findfont("DejaVu Sans", fallback_to_default=False)).is_relative_to(shipped)

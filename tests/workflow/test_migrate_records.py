"""Records of the old layout become those of this one: the same numbers, apart from what they cost."""

from __future__ import annotations

import csv
import json
import shutil

import claims_made_up
import pytest
import yaml
from claims_made_up import ROOT, cost, raw_params, write_grid, write_recorded_files

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.config.reading import load_params
from ifap.study.grid import Grid
from ifap.study.report import records
from ifap.study.report.provenance import load_provenance
from stages import migrate_records

TIMES = {"seconds_score": "0.5", "seconds_prune": "0.125", "seconds_recover": ""}


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """A folder with made-up records of one network, and the published numbers."""
    monkeypatch.setattr(claims_made_up, "MODELS", {"resnet_tiny": claims_made_up.MODELS["net_a"]})
    monkeypatch.chdir(tmp_path)
    raw = raw_params(models=["resnet_tiny"])
    raw["tables"]["table-4"]["model"] = "resnet_tiny"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    paths.published_claims().parent.mkdir(parents=True)
    shutil.copy(ROOT / paths.published_claims(), paths.published_claims())
    grid = Grid(load_params(), "quick")
    write_grid(tmp_path, grid)
    return grid


def gathered(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def make_old(grid, cell):
    """Write the files of one cell as the old layout had them."""
    file = paths.metrics_file("quick", cell)
    content = json.loads(file.read_text())
    content["metrics"]["loss"]["value"] += 1e-15
    own = cost()
    came_to_be = {
        **{key: own[key] for key in ("commit", "dirty", "versions", "hardware")},
        "wall_seconds": {"old": 1.0},
    }
    content |= {"schema_version": 1, "latency": own["latency"], "provenance": came_to_be}
    file.write_text(json.dumps(content))
    for stage in ("baseline", "evaluate") if cell.is_baseline else ("prune", "finetune", "evaluate"):
        timing = {"schema_version": 1, "wall_seconds": 2.0, "peak_memory_mb": 100.0, "resume_count": 1}
        config = grid.config(cell, stage)
        (file.parent / f"timings-{stage}.json").write_text(json.dumps({**timing, "config": config}))
    receipts = paths.receipts_file("quick", cell)
    if receipts.exists():
        rows = [row | TIMES for row in csv.DictReader(receipts.open(newline=""))]
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        receipts.write_text("\n".join(lines) + "\n")
    (paths.scale_dir("quick") / "provenance").exists() and shutil.rmtree(paths.scale_dir("quick") / "provenance")


def test_old_records_move_to_the_same_bytes_and_keep_what_they_cost(grid, tmp_path, capsys):
    write_recorded_files(tmp_path, grid)
    wanted = gathered(paths.scale_dir("quick"))
    for name in wanted:
        (paths.scale_dir("quick") / name).unlink()
    for cell in grid.cells():
        make_old(grid, cell)
    for name in migrate_records.REPLACED:
        (paths.scale_dir("quick") / name).write_text("old")
    with pytest.raises(ResultsError, match=r"old layout: run python -m stages\.migrate_records --scale quick$"):
        records.collect(grid)
    migrate_records.main()
    assert "moved 4 of 4 cells of scale quick" in capsys.readouterr().out
    found = gathered(paths.scale_dir("quick"))
    assert {name: content for name, content in found.items() if name != "provenance.csv"} == wanted
    came_to_be = load_provenance("quick")
    assert list(came_to_be) == grid.cells()
    for cell, own in came_to_be.items():
        assert own.seconds == (4.0 if cell.is_baseline else 6.0)
        assert (own.commit, own.resume_count) == ("0" * 40, 2 if cell.is_baseline else 3)
        assert own.latency["median_ms"] == "1.25"
        assert not list(paths.cell_dir("quick", cell).glob("timings-*"))
        stage = "baseline" if cell.is_baseline else "prune"
        assert json.loads(paths.step_file("quick", cell, stage).read_text())["config"] == grid.config(cell, stage)
    pruned = next(cell for cell in grid.cells() if not cell.is_baseline)
    assert json.loads(paths.cost_file("quick", pruned, "prune").read_text())["seconds"] == {
        "score": 2.0, "prune": 0.5, "recover": 0,
    }  # fmt: skip


def test_what_has_been_moved_is_left_alone(grid, capsys):
    migrate_records.main()
    before = gathered(paths.scale_dir("quick"))
    migrate_records.main()
    assert "moved 0 of 4 cells" in capsys.readouterr().out
    assert gathered(paths.scale_dir("quick")) == before

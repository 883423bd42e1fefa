"""What a page on the paper's own data opens with: answers that follow from the records, and nothing else."""

import copy
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from claims_made_up import ROOT, made_up_grid, raw_params, write_grid, write_recorded_files

from ifap.errors import ConfigError
from ifap.study import paths
from ifap.study.config.reading import load_params, parse_params
from ifap.study.grid import Grid
from ifap.study.paper.published import load_claims
from ifap.study.report import FIGURES, LOSSES, evidence, figure_names, figures
from ifap.study.report.evidence import BEYOND, NOT_ATTEMPTED, NOT_PRINTED, SHORT, WITHIN, printed_losses
from ifap.study.report.figures import losses as drawn_losses
from ifap.study.report.judge import measured_where
from ifap.study.report.page import render_page
from ifap.study.report.provenance import Provenance
from ifap.study.report.tables.report import Report
from ifap.study.report.tables.wording import scale_notes
from ifap.study.templates import MINUS

PRINTED = printed_losses(load_claims(ROOT / paths.published_claims()).to_dict("records"))


def made_up(tmp_path, seeds=(0,), **block):
    """Return a report of made-up records on CIFAR-10."""
    raw = raw_params(seeds)
    quick = raw["scales"]["quick"]
    quick["grid"]["classification"]["datasets"] = ["cifar10"]
    quick["datasets"] = {"cifar10": {"validation": 0.2, "split_seed": 0}}
    quick |= {"paper_data": True, **block}
    raw["tables"]["table-4"]["dataset"] = "cifar10"
    grid = made_up_grid(raw)
    write_grid(tmp_path, grid)
    target = tmp_path / paths.published_claims()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((ROOT / paths.published_claims()).read_bytes())
    found = write_recorded_files(tmp_path, grid)
    return Report.of(grid, found.runs, found.trace, {}, root=tmp_path)


def test_the_printed_losses_are_those_of_table_ii():
    own = PRINTED["cifar10"]
    assert len(own.networks) == len(own.losses) == len(own.reductions) == 10
    assert dict(zip(own.networks, own.reductions, strict=True))["ResNet-50"] == 71
    assert dict(zip(own.networks, own.losses, strict=True))["ResNet-50"] == pytest.approx(98.19 - 97.63)


def test_the_answers_follow_from_the_records(tmp_path):
    found = evidence.evidence(made_up(tmp_path))
    small, which, score = found.answers
    # 0.8 points are lost, more than any network on CIFAR-10 in print.
    assert max(PRINTED["cifar10"].losses) < 0.8
    assert small.short == "No, for the 2 networks measured."
    assert "net_a at 32 pixels on CIFAR-10 has 97.50 % unpruned and 96.70 % with 65 % fewer MACs" in small.because
    assert "at reductions of 43 to 81 % for its 10 networks on CIFAR-10" in small.because
    assert which.short == "2 of 2 networks of this scale are measured."
    assert "The loss is larger than printed: net_a, net_b." in which.because
    assert score.short == "Not shown: one seed allows no statement."
    assert f"random on net_a: {MINUS}1.10 points (n=1)" in score.because
    assert {own.verdict for own in found.losses} == {BEYOND}
    assert found.missing == ()


@pytest.mark.parametrize(
    ("pruned", "goal", "verdict", "short"),
    [
        (97.4, None, WITHIN, "Yes, for the one network measured."),
        (97.4, 98.0, SHORT, "Not shown, for the one network measured."),
        (95.0, 98.0, BEYOND, "No, for the one network measured."),
    ],
)
def test_a_small_loss_counts_only_for_a_network_that_reaches_its_goal(tmp_path, pruned, goal, verdict, short):
    report = made_up(tmp_path, goals={} if goal is None else {"net_a": goal})
    runs = report.runs[report.runs["model"] == "net_a"].copy()
    runs.loc[runs["method"] == "ifap", "test_metric"] = pruned
    losses = evidence.measured_losses(report.grid, runs, PRINTED)
    ours = [own for own in losses if own.line == "ifap"]
    assert [own.verdict for own in ours] == [verdict, NOT_ATTEMPTED]
    assert evidence._is_it_small(losses, PRINTED, "").short == short
    missed = "The unpruned net_a has 97.50 %, less than its goal of 98 %." in evidence._for_which(losses).because
    assert missed == (goal is not None)


def test_data_that_the_paper_does_not_use_are_no_evidence_on_its_claim(tmp_path):
    report = made_up(tmp_path)
    losses = evidence.measured_losses(report.grid, report.runs, {})
    assert {own.verdict for own in losses} == {NOT_PRINTED}
    small = evidence._is_it_small(losses, {}, "")
    assert small.short == "Not measured yet."
    both = (*losses, *evidence.measured_losses(report.grid, report.runs[report.runs["model"] == "net_a"], PRINTED))
    small = evidence._is_it_small(both, PRINTED, "")
    assert small.short == "No, for the one network measured."
    assert "On other data: net_a at 32 pixels on CIFAR-10 has 97.50 % unpruned" in small.because
    assert "not attempted" not in evidence._for_which(both).because


def test_without_records_nothing_is_claimed(tmp_path):
    report = made_up(tmp_path)
    losses = evidence.measured_losses(report.grid, report.runs.iloc[:0], PRINTED)
    assert {own.verdict for own in losses} == {NOT_ATTEMPTED}
    assert evidence._is_it_small(losses, PRINTED, "").short == "Not measured yet."
    assert evidence._is_it_the_score(report.grid, {}).short == "Not measured yet."


def test_a_cell_without_a_record_says_what_cells_like_it_took(tmp_path):
    report = made_up(tmp_path)
    known = report.runs[(report.runs["model"] == "net_a") & (report.runs["method"] != "random")]
    took = {cell: Provenance(wall_seconds={"prune": 5400.0}) for cell in report.grid.cells() if cell.model == "net_a"}
    found = evidence.evidence(replace(report, runs=known), took).missing
    assert len(found) == 1 + 4
    assert "classification/cifar10/net_a/random/seed0 (about 1.5 hours)" in found
    assert "classification/cifar10/net_b/ifap/seed0 (hours not known)" in found


def test_several_seeds_give_a_statement(tmp_path):
    report = made_up(tmp_path, seeds=(0, 1, 2))
    runs = report.runs.copy()
    noise = runs["seed"] * runs["method"].eq("ifap") * 0.01
    runs["test_metric"] = runs["test_metric"] + noise
    apart = evidence.compare_runs(runs, report.grid.lines(), "ifap")
    assert evidence._is_it_the_score(report.grid, apart).short == "Yes: the controls are worse."
    runs.loc[runs["method"] == "random", "test_metric"] += 3
    apart = evidence.compare_runs(runs, report.grid.lines(), "ifap")
    assert evidence._is_it_the_score(report.grid, apart).short == "No: a control is better."


def test_the_page_opens_with_the_answers_and_the_picture(tmp_path):
    report = made_up(tmp_path)
    picture = figures.draw(LOSSES, report.grid, report.runs, report.trace, root=tmp_path)
    ET.fromstring(picture.files["svg"])
    assert "IFAP: net_a, 32 pixels: 0.80 points at 65 %" in picture.alt
    page = render_page(report, [], [picture], ROOT / paths.templates_dir())
    assert page.index('id="evidence"') < page.index('id="figure-losses"') < page.index('id="summary"')
    assert page.count('id="figure-losses"') == 1
    for answer in evidence.evidence(report).answers:
        assert answer.short in page


def test_losses_are_drawn_where_the_words_put_them(tmp_path, monkeypatch):
    report, kept = made_up(tmp_path), []
    monkeypatch.setattr(drawn_losses, "save_picture", lambda name, title, alt, figure: kept.append((alt, figure)))
    figures.draw(LOSSES, report.grid, report.runs, report.trace, root=tmp_path)
    ((alt, figure),) = kept
    drawn = [(shown.get_label(), *shown.get_offsets()[0]) for shown in figure.axes[0].collections]
    words = [f"{name}: {loss:.2f} points at {gone:.0f} %" for name, gone, loss in drawn if "printed" not in name]
    assert len(words) == 6
    assert alt.endswith(f"{'; '.join(words)}.")


def test_other_scales_have_no_answers(tmp_path):
    report = made_up(tmp_path, paper_data=False)
    assert evidence.evidence(report) is None
    assert figure_names(report.grid.options.grid) == FIGURES
    assert figure_names(report.grid.options.grid, paper_data=True) == (LOSSES, *FIGURES)
    assert 'id="evidence"' not in render_page(report, [], [], ROOT / paths.templates_dir())


def test_only_whole_data_are_the_papers():
    raw = copy.deepcopy(load_params(ROOT / "params.yaml").model_dump(mode="json", exclude_none=True))
    for change in ({"train_samples": 4000}, {"synthetic": {"classes": 10, "per_class": 2, "seed": 0}}):
        changed = copy.deepcopy(raw)
        changed["scales"]["real"]["datasets"]["cifar10"] |= change
        with pytest.raises(ConfigError, match="paper_data: data set 'cifar10' is not whole"):
            parse_params(changed)
    raw["scales"]["real"]["goals"] = {"resnet21": 90.0}
    with pytest.raises(ConfigError, match="goals: unknown model of the grid 'resnet21': did you mean 'resnet20'"):
        parse_params(raw)


def test_verdicts_say_what_was_measured_on():
    grid = Grid(load_params(ROOT / "params.yaml"), "real")
    assert measured_where(grid, ["cifar10"]) == "measured on the paper's data at 32 or 96 pixels"
    (note,) = scale_notes(grid, ["cifar10"], "Table II")
    assert note.text.endswith("Verdict against the paper's Table II: measured on the paper's data at 32 or 96 pixels.")
    assert measured_where(Grid(grid.params, "study"), ["fashion_mnist"]) == ""

"""The audit: what it must find in the published numbers, and that sound numbers give no finding."""

import csv
import itertools
import os
import re
import subprocess
import sys
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from ifap.errors import ConfigError
from ifap.study import paths
from ifap.study.paper.audit.architectures import architecture
from ifap.study.paper.audit.changes import delta_conventions
from ifap.study.paper.audit.checks import run_audit
from ifap.study.paper.audit.findings import KINDS, SEVERITIES
from ifap.study.paper.audit.parameters import LANGUAGE
from ifap.study.paper.audit.report import findings_table, render_audit, summary, write_audit
from ifap.study.paper.published import Claim, claims_frame, load_claims

CLAIMS = ROOT / paths.published_claims()


@pytest.fixture(scope="module")
def claims():
    return load_claims(CLAIMS)


@pytest.fixture(scope="module")
def findings(claims):
    return run_audit(claims)


def of(findings, kind):
    return [finding for finding in findings if finding.kind == kind]


# What must be found in the published tables


def test_the_eight_rows_of_table_2_that_do_not_follow(findings):
    found = {f.claims[0].removesuffix("/metric_base") for f in of(findings, "metric-delta") if f.severity == "major"}
    assert found == {
        "T2/Fashion MNIST/ConvNeXt-Small",
        "T2/ImageNet/ConvNeXt-Small",
        "T2/Stanford Cars/ConvNeXt-Small",
        "T2/ImageNet/ViT-Base/16",
        "T2/Stanford Cars/Inception-v3",
        "T2/iNaturalist/EfficientNet-B4",
        "T2/Food101/VGG19 (BN)",
        "T2/Oxford-IIIT Pet/VGG19 (BN)",
    }


def test_two_fid_changes_are_relative_to_the_pruned_value(findings):
    found = [f for f in of(findings, "metric-delta") if f.severity == "minor"]
    assert {f.claims[2] for f in found} == {"T3/CIFAR-10/DCGAN/metric_delta", "T3/COCO-Stuff/VQGAN/metric_delta"}
    assert "holds     100 * (25.9 - 24.1) / 25.9 = +6.95 %" in found[0].arithmetic


def test_arithmetic_of_a_change_is_shown(findings):
    cars = next(f for f in findings if "T2/Stanford Cars/ConvNeXt-Small/metric_delta" in f.claims)
    assert cars.arithmetic.splitlines() == [
        "relative  100 * (81.21 - 86.22) / 86.22 = -5.81 %",
        "points    81.21 - 86.22 = -5.01",
        "printed   -1.18",
        "needed    a base of 82.18 or a pruned value of 85.20 for -1.18 %",
    ]


def test_conventions(claims):
    counts = delta_conventions(claims).groupby(["table", "convention"]).size().to_dict()
    assert counts == {
        (2, "both"): 23,
        (2, "neither"): 8,
        (2, "points"): 21,
        (2, "relative"): 38,
        (3, "both"): 5,
        (3, "neither"): 2,
        (3, "relative"): 36,
        (5, "both"): 1,
        (5, "relative"): 29,
    }


def test_the_imagenet_baselines_of_vit_differ(findings):
    (found,) = [f for f in of(findings, "across-tables") if f.title.startswith("ImageNet, ViT-Base/16")]
    assert found.severity == "major"
    assert found.title == "ImageNet, ViT-Base/16: Tables I, II and III differ, metric base 81.1 and 80.17"
    assert "metric_base   81.1 in Table I, 80.17 in Table II: 0.93 apart" in found.arithmetic
    assert "metric_base   80.17 in Table II, 81.1 in Table III" in found.arithmetic


def test_baselines_that_differ_across_tables(findings):
    major = [f.title.split(":")[0] for f in of(findings, "across-tables") if f.severity == "major"]
    assert sorted(major) == [
        "CIFAR-100, ViT-Base/16",
        "Food101, EfficientNet-B4",
        "ImageNet, ViT-Base/16",
        "QQP, GPT-2 Base",
    ]


def test_gpt2_is_below_its_embeddings(findings):
    (below,) = [f for f in of(findings, "parameter-count") if f.severity == "major"]
    assert below.claims == ("T5/SST-2/GPT-2 Base/params_pruned", "T5/SQuAD 1.1/GPT-2 Base/params_pruned")
    assert "50257 * 768 = 38,597,376" in below.arithmetic
    assert "1024 * 768 = 786,432" in below.arithmetic
    assert "39,383,808" in below.arithmetic


def test_gpt2_base_count(findings):
    (base,) = [f for f in of(findings, "parameter-count") if f.severity == "minor"]
    assert base.title == "Table V, GPT-2 Base: 117 M before pruning, 124.4 M by its configuration"
    assert len(base.claims) == 10


@pytest.mark.parametrize(
    ("model", "total"), [("BERT Base", 109_482_240), ("GPT-2 Base", 124_439_808), ("T5 Base", 222_903_552)]
)
def test_counts_of_the_language_models(model, total):
    assert LANGUAGE[model].total == total


def test_straight_line_of_table_4(findings):
    (line,) = [f for f in of(findings, "trace") if "straight line" in f.title]
    assert "steps 15 to 29" in line.title
    assert [claim.split("/")[-2] for claim in line.claims] == [str(step) for step in range(15, 30)]
    assert "-0.24 -0.25 -0.24 -0.25" in line.arithmetic
    assert "no value farther than 0.0044 from it; rounding explains 0.005" in line.arithmetic


def test_trace_begins_unpruned_and_jumps_once(findings):
    titles = [f.title for f in of(findings, "trace")]
    assert any("step 1 is the unpruned network, so 29 iterations are shown" in title for title in titles)
    assert sum("GMACs change by -0.19 in step 23" in title for title in titles) == 1
    assert len(titles) == 3


def test_equal_values(findings):
    titles = [f.title for f in of(findings, "equal-values")]
    assert titles == [
        "Table III: the 3 baselines of COCO 2017 and ADE20K are equal",
        "Table II, MobileNetV3-L: base and pruned values on CIFAR-10 and Fashion MNIST are equal",
        "Table II, MobileNetV3-L: base and pruned values on Stanford Cars and iNaturalist are equal within 0.01",
        "Table II: 67.43 is the metric_pruned of 4 rows",
    ]


def test_the_cost_change_that_does_not_follow(findings):
    (found,) = of(findings, "cost-delta")
    assert found.claims[-1] == "T2/iNaturalist/EfficientNet V2-S/gmacs_delta"


def test_resnet_trace_is_beyond_the_rule(findings):
    (resnet,) = [f for f in of(findings, "reach") if f.severity == "major"]
    assert "T4/Cifar-10/ResNet-50/30/gmacs" in resnet.claims
    assert "at most -69.8 %" in resnet.arithmetic
    assert "4.09 to 1.19 is -70.9 %, at least -70.7 %" in resnet.arithmetic


def test_base_macs_outside_rounding(findings):
    found = {f.title.split(":")[0]: f.severity for f in of(findings, "base-macs")}
    assert found == {
        "EfficientNet-B4": "minor",
        "EfficientNet V2-S": "minor",
        "ShuffleNetV2 x2.0": "info",
        "ConvNeXt-Small": "info",
        "ViT-Base/16": "info",
    }


def test_findings_are_named_sorted_and_about_real_claims(findings, claims):
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    assert [f.kind for f in findings] == sorted((f.kind for f in findings), key=list(KINDS).index)
    known = set(claims["id"])
    for finding in findings:
        assert finding.severity in SEVERITIES
        assert finding.claims
        assert known.issuperset(finding.claims)
        assert len(set(finding.claims)) == len(finding.claims)
        assert finding.arithmetic.strip()


def test_wording_is_neutral(findings):
    words = " ".join(f"{f.title} {f.arithmetic}" for f in findings) + str(KINDS)
    assert not re.search(r"fabricat|fraud|invent|fake|suspicio|copied|copy|wrong|manipulat|false", words, re.IGNORECASE)


# Bounds by hand


def test_bound_of_resnet50_by_hand():
    """The 1x1 convolutions at full input: conv1 of each block but the first, and three downsamplings."""
    left = 0
    width, side = 256, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner, outer = 64 * 2**stage, 256 * 2**stage
        for block in range(blocks):
            if stage == 0 and block == 0:
                continue  # its inputs come from the first convolution, which may be pruned
            first = block == 0
            left += (width if first else outer) * inner * side**2
            side = side // 2 if first else side
            left += width * outer * side**2 if first else 0
        width = outer
    left += 2048 * 1000
    counted = architecture("ResNet-50")
    assert round(counted.left * counted.macs) == left
    assert counted.macs == 4_089_184_256


def test_network_without_pointwise_convolutions_has_no_bound():
    assert architecture("VGG19 (BN)").sorts == {}
    assert architecture("VGG19 (BN)").left == 1


# Sound numbers, and errors planted in them


def vision_row(table, dataset, model, base, pruned, gmacs=("50.0", "20.0"), delta=None, cost=None):
    relative = delta or f"{100 * (Decimal(pruned) - Decimal(base)) / Decimal(base):+.2f}"
    cost = cost or f"{100 * (Decimal(gmacs[1]) - Decimal(gmacs[0])) / Decimal(gmacs[0]):.0f}"
    values = dict(zip(("gmacs_base", "gmacs_pruned", "gmacs_delta"), (*gmacs, cost), strict=True))
    values |= dict(zip(("metric_base", "metric_pruned", "metric_delta"), (base, pruned, relative), strict=True))
    units = {"gmacs_base": "GMACs", "gmacs_pruned": "GMACs"}
    cell = {"table": table, "dataset": dataset, "model": model}
    return [Claim(**cell, quantity=name, unit=units.get(name, "%"), value=value) for name, value in values.items()]


def language_row(dataset, model, base, pruned):
    metric = ("80.00", "78.00", "-2.5")
    delta = f"{100 * (pruned - base) / base:.0f}"
    values = dict(zip(("metric_base", "metric_pruned", "metric_delta"), metric, strict=True))
    values |= {"params_base": str(base), "params_pruned": str(pruned), "params_delta": delta}
    units = {"metric_base": "F1", "metric_pruned": "F1", "params_base": "M", "params_pruned": "M"}
    cell = {"table": 5, "dataset": dataset, "model": model}
    return [Claim(**cell, quantity=name, unit=units.get(name, "%"), value=value) for name, value in values.items()]


def trace(params, gmacs, model="Net"):
    rows = []
    for step, (count, macs) in enumerate(zip(params, gmacs, strict=True), start=1):
        top1 = 95 - 0.02 * step - 0.3 * (step % 3)
        values = {"params": count, "gmacs": macs, "top1": top1, "top5": 99.5 + 0.07 * (step % 4)}
        for (name, value), unit in zip(values.items(), ("M", "GMACs", "%", "%"), strict=True):
            cell = {"table": 4, "dataset": "Data", "model": model, "step": step}
            rows.append(Claim(**cell, quantity=name, unit=unit, value=f"{value:.2f}"))
    return rows


def compared(dataset, model, base, ours):
    cell = {"table": 1, "dataset": dataset, "model": model, "quantity": "metric", "unit": "%"}
    return [Claim(**cell, method="Baseline", value=base), Claim(**cell, method="Ours", value=ours)]


DECAY = [20 * 0.95**step for step in range(30)]


def sound():
    return {
        "table 1": compared("A", "Net", "91.2", "90.0"),
        "a": vision_row(2, "A", "Net", "91.23", "89.98"),
        "b": vision_row(2, "B", "Net", "80.41", "78.02", ("4.1", "1.6")),
        "points": vision_row(2, "C", "Small", "99.70", "99.19", ("0.2", "0.1"), cost="-45"),
        "resnet": vision_row(2, "A", "ResNet-50", "76.14", "75.19", ("4.1", "1.6")),
        "table 3": vision_row(3, "A", "Net", "91.2", "90.0", delta="-1.4"),
        "trace": trace(DECAY, [count / 5 for count in DECAY]),
        "bert": language_row("A", "BERT Base", 110, 35),
        "t5": language_row("A", "T5 Base", 220, 70),
        "gpt": language_row("A", "GPT-2 Base", 124, 40),
    }


def run(parts):
    return run_audit(claims_frame(itertools.chain(*parts.values())))


def test_sound_numbers_have_no_finding():
    assert run(sound()) == []


PLANTED = {
    "metric change": ({"b": vision_row(2, "B", "Net", "80.41", "78.02", delta="-2.77")}, "metric-delta"),
    "metric does not change": ({"b": vision_row(2, "B", "Net", "80.41", "80.41", delta="-1.44")}, "metric-delta"),
    "sign": ({"b": vision_row(2, "B", "Net", "80.41", "78.02", delta="2.97")}, "metric-delta"),
    "points among relative": (
        {"b": vision_row(2, "B", "Net", "80.41", "78.02", ("4.1", "1.6"), delta="-2.39")},
        "metric-convention",
    ),
    "cost change": ({"b": vision_row(2, "B", "Net", "80.41", "78.02", cost="-63")}, "cost-delta"),
    "twin rows": ({"b": vision_row(2, "B", "Net", "91.23", "89.97")}, "equal-values"),
    "base differs": ({"table 1": compared("A", "Net", "92.1", "90.0")}, "across-tables"),
    "pruned differs": ({"table 3": vision_row(3, "A", "Net", "91.2", "90.3", delta="-1.0")}, "across-tables"),
    "ours differs": ({"table 1": compared("A", "Net", "91.2", "89.1")}, "across-tables"),
    "below embeddings": ({"gpt": language_row("A", "GPT-2 Base", 124, 38)}, "parameter-count"),
    "base count": ({"gpt": language_row("A", "GPT-2 Base", 117, 40)}, "parameter-count"),
    "beyond reach": ({"resnet": vision_row(2, "A", "ResNet-50", "76.14", "75.19", ("4.1", "1.1"))}, "reach"),
    "base macs": ({"resnet": vision_row(2, "A", "ResNet-50", "76.14", "75.19", ("4.3", "1.6"))}, "base-macs"),
    "straight line": (
        {"trace": trace(DECAY[:18] + [DECAY[17] - 0.2456 * n for n in range(1, 13)], [count / 5 for count in DECAY])},
        "trace",
    ),
    "jump": (
        {"trace": trace(DECAY, [count / 5 - (0.5 if step > 20 else 0) for step, count in enumerate(DECAY)])},
        "trace",
    ),
}


@pytest.mark.parametrize(("changed", "kind"), PLANTED.values(), ids=PLANTED)
def test_planted_error_is_found(changed, kind):
    assert {finding.kind for finding in run(sound() | changed)} == {kind}


def test_planted_parameter_change_is_found():
    row = language_row("A", "BERT Base", 110, 35)
    row[-1] = row[-1].model_copy(update={"value": "-70"})
    (found,) = run(sound() | {"bert": row})
    assert (found.kind, found.claims[-1]) == ("cost-delta", "T5/A/BERT Base/params_delta")


def test_planted_equal_baselines_are_found():
    changed = {
        "more": vision_row(2, "A", "Small", "70.00", "69.00"),
        "c": vision_row(2, "C", "Net", "91.23", "90.50"),
        "points": vision_row(2, "C", "Small", "70.00", "68.50"),
    }
    found = run(sound() | changed)
    assert [f.title for f in found] == ["Table II: the 2 baselines of A and C are equal"]


def test_planted_repetition_is_found():
    rows = {f"r{n}": vision_row(2, f"D{n}", f"Net {n}", f"{60 + 1.37 * n:.2f}", "55.55") for n in range(5)}
    rows |= {
        f"s{n}": vision_row(2, f"E{n}", f"Net {n}", f"{70 + 1.43 * n:.2f}", f"{50 + 3.07 * n:.2f}") for n in range(9)
    }
    (found,) = run(rows)
    assert found.title == "Table II: 55.55 is the metric_pruned of 5 rows"
    assert "chance:" in found.arithmetic


def test_truncated_base_is_no_contradiction():
    (found,) = run(sound() | {"a": vision_row(2, "A", "Net", "91.27", "89.98")})
    assert (found.kind, found.severity) == ("across-tables", "minor")
    assert "digits cut off instead of rounded" in found.arithmetic


def test_a_base_of_zero_says_nothing_about_a_relative_change():
    assert run({"a": vision_row(2, "A", "Net", "0.00", "0.00", ("0.0", "0.0"), delta="-50.00", cost="-50")}) == []


@settings(max_examples=200, deadline=None)
@given(
    base=st.floats(1, 100),
    share=st.floats(0.3, 1.2),
    places=st.integers(0, 2),
    delta_places=st.integers(0, 2),
    relative=st.booleans(),
)
def test_rounded_numbers_are_never_flagged(base, share, places, delta_places, relative):
    """Whatever the true numbers: printed after rounding, they give no finding."""
    pruned = base * share
    delta = 100 * (pruned - base) / base if relative else pruned - base
    cost = 100 * (pruned - base) / base
    gmacs = (f"{base:.{places}f}", f"{pruned:.{places}f}")
    row = vision_row(2, "A", "Net", *gmacs, gmacs, delta=f"{delta:+.{delta_places}f}", cost=f"{cost:.0f}")
    assert run({"a": row}) == []


# Output


def test_report_is_complete(claims, findings):
    text = render_audit(claims, findings, ROOT / paths.templates_dir())
    summary, _, rest = text.partition("\n## Metric changes")
    assert "| major | minor | info |" in summary
    assert summary.count("\n- [") == sum(f.severity == "major" for f in findings)
    for finding in findings:
        assert f'<a id="{finding.name}"></a>' in rest
        assert finding.arithmetic in rest
    assert text.count("```") == 2 * len(findings)
    for anchor in re.findall(r"\(#([^)]*)\)", text):
        heading = any(
            re.sub(r"[^\w-]", "", line.lstrip("# ").lower().replace(" ", "-")) == anchor for line in text.splitlines()
        )
        assert heading or f'id="{anchor}"' in text


def test_empty_report(claims):
    text = render_audit(claims, [], ROOT / paths.templates_dir())
    assert text.count("Nothing found.") == len(KINDS)
    assert "Major findings" not in text


def test_committed_report_is_up_to_date(claims, findings):
    rendered = render_audit(claims, findings, ROOT / paths.templates_dir())
    assert (ROOT / paths.audit_file("md")).read_text("utf-8") == rendered
    assert (ROOT / paths.audit_file("csv")).read_text("utf-8") == findings_table(findings)


def test_table_of_findings(findings):
    rows = list(csv.DictReader(findings_table(findings).splitlines()))
    assert [row["finding"] for row in rows] == [finding.name for finding in findings]
    assert [tuple(row["claims"].split(";")) for row in rows] == [finding.claims for finding in findings]


def test_summary_counts(findings):
    lines = summary(findings).splitlines()
    assert lines[0].split() == ["major", "minor", "info"]
    assert [int(n) for n in lines[1].split()[-3:]] == [8, 2, 0]
    assert lines[-1].startswith(f"{len(findings)} findings about ")


def ifap_audit(folder, *arguments):
    command = [sys.executable, "-c", "from ifap.cli.commands import main; main()", "audit", *arguments]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


def test_command_refuses_bad_input_with_one_line(tmp_path):
    bad = tmp_path / "claims.csv"
    bad.write_text("table,value\n", "utf-8")
    done = ifap_audit(tmp_path, "--claims", str(bad))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {bad}: row 1: the columns must be ")
    assert done.stderr.count("\n") == 1


def test_command_writes_and_succeeds_with_findings(tmp_path, monkeypatch):
    import typer
    from typer.testing import CliRunner

    from ifap.study.cli import add_commands

    add_commands(app := typer.Typer())
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/templates").symlink_to(ROOT / paths.templates_dir())
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["audit", "--claims", str(CLAIMS)])
    assert done.exit_code == 0
    assert done.stdout.endswith("wrote reports/paper/audit.md and reports/paper/audit.csv\n")
    for extension in ("md", "csv"):
        assert paths.audit_file(extension).read_bytes() == (ROOT / paths.audit_file(extension)).read_bytes()


def test_outside_the_project_the_template_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"audit\.md\.j2 not found: run this in the project's folder"):
        write_audit(CLAIMS)

"""The ``ifap`` command for real: an engineer's own module, files on disk, exit codes and one-line errors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from command_line import refused
from safetensors.torch import load_file, save_file

import ifap
from ifap.plan import read_plan

BUILDERS = """
import torch
from torch import nn

not_callable = 3


def build():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )


def needs_argument(width):
    return nn.Linear(width, width)


def not_a_network():
    return [1, 2, 3]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of an engineer: a module with builders, calibration data, weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_builders.py").write_text(BUILDERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_builders", raising=False)
    save_file({"inputs": torch.randn(12, 3, 10, 10)}, tmp_path / "data.safetensors")
    save_file({"images": torch.randn(2, 3, 10, 10), "labels": torch.zeros(2)}, tmp_path / "named.safetensors")
    yield tmp_path
    sys.modules.pop("my_builders", None)


@pytest.fixture(scope="module")
def _pruned(tmp_path_factory):
    namespace = {}
    exec(BUILDERS, namespace)
    images, home = torch.randn(12, 3, 10, 10), tmp_path_factory.mktemp("pruned")
    pruned = ifap.prune(namespace["build"](), images, [images], target=ifap.Target(macs=0.5), steps=1)
    ifap.save(pruned, home / "small")
    return home / "small"


@pytest.fixture
def small(folder, _pruned):
    """A pruned network in the working directory."""
    return shutil.copytree(_pruned, folder / "small")


PRUNE = ["prune", "my_builders:build", "--data", "data.safetensors", "--out", "small"]


# --- prune and show -------------------------------------------------------------------------------


def test_prune_then_show_then_load(folder, command):
    torch.manual_seed(3)
    import my_builders

    weights = my_builders.build().state_dict()
    save_file(weights, folder / "weights.safetensors")
    code, out, err = command(
        *PRUNE, "--weights", "weights.safetensors", "--macs", "0.5", "--steps", "3", "--batch-size", "5"
    )
    assert (code, err) == (0, "")
    before, after = map(int, re.search(r"MACs +([\d,]+) -> +([\d,]+)", out.replace(",", "")).groups())
    assert 0.5 <= 1 - after / before < 0.6
    assert sorted(path.name for path in (folder / "small").iterdir()) == [
        "plan.json",
        "report.json",
        "weights.safetensors",
    ]

    small = ifap.load("small", my_builders.build)
    kept = read_plan("small").kept["0"]["out"]
    assert torch.equal(small[0].weight, weights["0.weight"][kept])
    assert ifap.cost(small, torch.zeros(1, 3, 10, 10)).macs == after

    code, out, _ = command("show", "small")
    assert code == 0
    assert f"MACs     {before:,} -> {after:,}" in out
    assert f"0: out {len(kept)}" in out
    code, out, _ = command("show", "small", "--json")
    shown = json.loads(out)
    assert shown["costs"]["macs_after"] == after
    assert shown["kept"]["0"] == {"out": len(kept)}


def test_prune_can_target_parameters_round_widths_and_leave_layers_alone(folder, command):
    code, out, _ = command(*PRUNE, "--params", "0.3", "--ignore", "0", "--round-to", "4", "--steps", "2")
    assert code == 0, out
    kept = read_plan("small").kept
    assert "0" not in kept
    assert len(kept["3"]["out"]) % 4 == 0


def test_prune_can_compensate(folder, command):
    import my_builders

    save_file(my_builders.build().state_dict(), folder / "weights.safetensors")
    kept, weights = [], []
    for options in ([], ["--compensate"]):
        given = ["--weights", "weights.safetensors", "--macs", "0.4", "--steps", "1", "--method", "ifap"]
        code, out, _ = command(*PRUNE, *given, *options)
        assert code == 0, out
        kept.append(read_plan("small").kept)
        weights.append(load_file(folder / "small" / "weights.safetensors"))
    assert kept[0] == kept[1]
    assert any(not torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_two_calls_write_the_same_bytes(folder, command):
    torch.manual_seed(0)
    import my_builders

    save_file(my_builders.build().state_dict(), folder / "weights.safetensors")
    for name in ("one", "two"):
        options = ["--out", name, "--weights", "weights.safetensors", "--macs", "0.4", "--method", "random"]
        assert command(*PRUNE[:4], *options)[0] == 0
        torch.rand(3)
    for file in ("plan.json", "report.json", "weights.safetensors"):
        assert (folder / "one" / file).read_bytes() == (folder / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PRUNE], "exactly one of macs, params and latency"),
        ([*PRUNE, "--macs", "0.5", "--params", "0.5"], "exactly one of macs, params and latency"),
        ([*PRUNE, "--macs", "1.5"], "macs=1.5 must lie between 0 and 1"),
        ([*PRUNE, "--macs", "0"], "macs=0.0 must lie between 0 and 1"),
        ([*PRUNE, "--macs", "nan"], "macs=nan must lie between 0 and 1"),
        ([*PRUNE, "--latency", "1.5"], "latency=1.5 must lie between 0 and 1"),
        ([*PRUNE, "--macs", "0.999"], "cannot be reached|can.* reach"),
        ([*PRUNE, "--macs", "0.5", "--method", "ifpa"], r"unknown method 'ifpa': did you mean 'ifap'\?"),
        ([*PRUNE, "--macs", "0.5", "--ignore", "00"], r"'00'.*did you mean '0'\?"),
        ([*PRUNE, "--macs", "0.5", "--steps", "0"], "steps must be at least 1"),
        ([*PRUNE, "--macs", "0.5", "--round-to", "0"], "round_to must be at least 1"),
        ([*PRUNE, "--macs", "0.5", "--batch-size", "0"], "batch.size"),
        ([*PRUNE, "--macs", "0.5", "--data", "none.safetensors"], "none.safetensors: file not found"),
        ([*PRUNE, "--macs", "0.5", "--data", "my_builders.py"], "my_builders.py: give a folder of images"),
        ([*PRUNE, "--macs", "0.5", "--data", "."], "holds no image"),
        ([*PRUNE, "--macs", "0.5", "--data", "named.safetensors"], "no tensor 'inputs', and 'images' is no argument"),
        ([*PRUNE, "--macs", "0.5", "--weights", "named.safetensors"], "named.safetensors: does not fit the network"),
        ([*PRUNE, "--macs", "0.5", "--weights", "none.safetensors"], "none.safetensors: file not found"),
    ],
)
def test_a_wrong_option_is_one_line(folder, command, arguments, message):
    assert re.search(message, refused(command(*arguments)))
    assert not (folder / "small").exists()


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ("my_builders", "write package.module:function"),
        ("my_builder:build", "No module named 'my_builder'"),
        ("my_builders:biuld", "has no attribute 'biuld'"),
        ("my_builders:not_callable", "is not a function"),
        (":build", "write package.module:function"),
        ("", "write package.module:function"),
        ("my_builders:needs_argument", "missing 1 required positional argument"),
        ("my_builders:not_a_network", "list, not a network"),
    ],
)
def test_a_wrong_builder_is_one_line(folder, command, builder, message):
    result = command("prune", builder, "--data", "data.safetensors", "--out", "small", "--macs", "0.5")
    assert message in refused(result)


def test_inputs_that_do_not_fit_the_network_are_one_line(folder, command):
    for inputs, message in (
        (torch.randn(4, 7, 10, 10), "the network does not run on its inputs: .*expected input"),
        (torch.randn(0, 3, 10, 10), "'inputs' holds no samples"),
        (torch.tensor(1.0), "'inputs' holds no samples"),
        (torch.ones(4, 3, 10, 10, dtype=torch.int64), "the network does not run on its inputs"),
    ):
        save_file({"inputs": inputs}, folder / "data.safetensors")
        assert re.search(rf"data\.safetensors: {message}", refused(command(*PRUNE, "--macs", "0.5")))


def test_an_output_folder_that_is_a_file_is_one_line(folder, command):
    (folder / "small").write_text("mine")
    assert "small" in refused(command(*PRUNE, "--macs", "0.5", "--steps", "1"))
    assert (folder / "small").read_text() == "mine"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "file not found"),
        (lambda file: file.write_bytes(file.read_bytes()[:100]), "not valid JSON"),
        (lambda file: file.write_text("[" * 100_000), "not valid JSON"),
        (lambda file: file.write_bytes(b"\xff\xfe\x80"), "not valid JSON"),
        (lambda file: file.write_text("{}"), "example_inputs: Field required"),
        (lambda file: file.write_text(file.read_text().replace('"kept"', '"kpet"')), "kpet: Extra inputs"),
        (lambda file: (file.unlink(), file.mkdir()), "cannot be read"),
    ],
    ids=["missing", "cut", "deep", "binary", "empty", "key", "folder"],
)
def test_show_refuses_a_damaged_plan(small, command, damage, message):
    damage(small / "plan.json")
    assert message in refused(command("show", "small"))


def test_show_sends_the_terminal_no_control_characters(folder, command):
    assert command(*PRUNE, "--macs", "0.5", "--steps", "1")[0] == 0
    plan = json.loads((folder / "small" / "plan.json").read_text())
    plan["builder"] = {"id": "timm:\x1b]0;title\x07", "args": {}}
    plan["kept"]["\x1b[2Jlayer"] = {"out": [0]}
    (folder / "small" / "plan.json").write_text(json.dumps(plan))
    code, out, _ = command("show", "small")
    assert code == 0
    assert "layer: out 1" in out
    assert all(character.isprintable() or character == "\n" for character in out)


# --- export ---------------------------------------------------------------------------------------


def test_export_by_a_builder_of_ones_own(folder, command):
    assert command(*PRUNE, "--macs", "0.5", "--steps", "1")[0] == 0
    assert "give --builder package.module:function" in refused(command("export", "small", "--to", "small.pt2"))
    code, out, _ = command("export", "small", "--to", "small.pt2", "--builder", "my_builders:build")
    assert code == 0
    assert re.match(r"wrote small\.pt2: [\d.]+ [KM]iB, any batch size; differs by \S+ of the largest output", out)
    import my_builders

    inputs = torch.randn(7, 3, 10, 10)
    with torch.no_grad():
        wanted = ifap.load("small", my_builders.build)(inputs)
        torch.testing.assert_close(torch.export.load("small.pt2").module()(inputs), wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "--to", "small.pb"], r"--to small\.pb: the name must end in \.onnx or \.pt2"),
        (["small", "--to", "folder.pt2"], r"--to folder\.pt2 is a folder"),
        (["nowhere", "--to", "small.pt2"], r"nowhere/plan\.json: file not found"),
        (["small", "--to", "small.pt2", "--builder", "my_builders:biuld"], "has no attribute 'biuld'"),
    ],
)
def test_a_wrong_export_is_one_line(small, folder, command, arguments, message):
    (folder / "folder.pt2").mkdir()
    assert re.search(message, refused(command("export", *arguments)))
    assert not (folder / "small.pt2").exists()


def test_export_without_its_packages_is_one_line(small, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = refused(command("export", "small", "--to", "small.onnx", "--builder", "my_builders:build"))
    assert "ONNX export needs onnxruntime: pip install '.[export]' in a checkout" in said


# --- the program itself ---------------------------------------------------------------------------


COMMANDS = ("inspect", "prune", "show", "export", "sweep", "report")


def test_help_names_every_command_and_option(command):
    _, out, err = command("--help")
    text = out + err
    assert all(name in text for name in COMMANDS)
    for name in COMMANDS:
        assert command(name, "--help")[0] == 0


def test_an_unknown_command_has_exit_code_2(command):
    code, _, err = command("prnue")
    assert code == 2
    assert "No such command 'prnue'" in err


def test_the_installed_program_has_the_same_exit_codes(tmp_path):
    program = [sys.executable, "-c", "from ifap.cli.commands import main; main()"]
    done = subprocess.run([*program, "show", "nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: nowhere/plan.json: file not found\n"
    assert done.stdout == ""


def test_inspect_lists_what_can_be_cut(folder, command):
    code, out, _ = command("inspect", "my_builders:build", "--data", "data.safetensors")
    assert code == 0
    assert "can be cut" in out
    assert "it is an output of the network" in out


def test_a_public_network_is_exported_without_naming_its_builder(folder, command):
    pytest.importorskip("onnxruntime")
    save_file({"inputs": torch.randn(2, 3, 64, 64)}, folder / "images.safetensors")
    given = ("prune", "torchvision:squeezenet1_1", "--data", "images.safetensors", "--out", "small", "--macs", "0.3")
    code, out, _ = command(*given, "--steps", "1", "--method", "magnitude")
    assert code == 0
    assert "load it with ifap.load('small')" in out
    code, out, err = command("export", "small", "--to", "small.onnx")
    assert code == 0, err
    assert "wrote small.onnx" in out
    (folder / "arguments.json").write_text('{"num_classes": "many"}')
    assert "TypeError" in refused(command(*given, "--arguments", "arguments.json"))
    (folder / "arguments.json").write_text("[")
    assert "arguments.json: not valid JSON" in refused(command(*given, "--arguments", "arguments.json"))


# --- recovery, the curve and the report -----------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """The weights of a network that tells pictures of five colours apart, and such pictures with their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 5
    colours = torch.randn(5, 3, generator=generator)
    images = torch.randn(40, 3, 10, 10, generator=generator) + colours[labels][:, :, None, None]
    torch.manual_seed(5)
    namespace = {}
    exec(BUILDERS, namespace)
    network = namespace["build"]()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.state_dict(), images, labels


@pytest.fixture
def labelled(folder, trained):
    """The working directory with the trained network and its pictures."""
    weights, images, labels = trained
    save_file(weights, folder / "weights.safetensors")
    save_file({"inputs": images, "labels": labels}, folder / "labelled.safetensors")
    save_file({"inputs": images}, folder / "data.safetensors")
    return folder


TRAINED = ("--weights", "weights.safetensors")


def test_prune_recovers_on_labelled_samples_and_says_what_it_measured(labelled, command):
    given = [*PRUNE, *TRAINED, "--macs", "0.6", "--steps", "2", "--method", "random", "--no-compensate"]
    code, out, err = command(*given, "--recover", "labelled.safetensors", "--epochs", "3", "--lr", "0.01", "--report")
    assert (code, err) == (0, "")
    said = re.findall(
        r"^iteration (\d): accuracy on 8 samples \(%\) ([\d.]+) -> ([\d.]+) after the cut, ([\d.]+)", out, re.M
    )
    assert [number for number, *_ in said] == ["1", "2"]
    history = json.loads((labelled / "small" / "report.json").read_text())
    for step, (_, start, cut, end) in zip(history["steps"][1:], said, strict=True):
        found = [history["steps"][0]["metric_after"], step["metric_before"], step["metric_after"]]
        assert [f"{value:.2f}" for value in found] == [start, cut, end]
    assert float(said[-1][3]) > 90
    assert "report: small/report.html" in out
    assert "after recovery" in (labelled / "small" / "report.html").read_text()


def test_prune_stops_within_the_loss_on_samples_of_its_own(labelled, command):
    given = [*PRUNE, *TRAINED, "--macs", "0.9", "--steps", "6", "--method", "random", "--no-compensate"]
    code, out, _ = command(*given, "--validate", "labelled.safetensors", "--max-drop", "5")
    assert code == 0
    assert "accuracy on 40 samples (%)" in out
    assert out.count("; undone") == 1
    history = json.loads((labelled / "small" / "report.json").read_text())
    assert [step["accepted"] for step in history["steps"]].count(False) == 1
    assert history["costs"]["macs_after"] == history["steps"][-2]["macs"]


def test_sweep_writes_the_curve_and_the_smallest_network_and_can_be_called_again(labelled, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    given = ("sweep", "my_builders:build", "--data", "data.safetensors", *TRAINED, "--out", "curve")
    given += ("--validate", "labelled.safetensors", "--points", "3", "--max-drop", "10")
    code, out, err = command(*given)
    assert (code, err) == (0, "")
    rows = (labelled / "curve" / "curve.csv").read_text().splitlines()
    assert len(rows) == 1 + 1 + 3
    assert (labelled / "curve" / "curve.svg").read_text().startswith("<svg")
    assert "smallest within the loss" in out
    smallest = read_plan("curve/small").costs.macs_after
    within = [row.split(",") for row in rows[1:] if float(row.split(",")[-1]) <= 10]
    assert smallest == min(int(row[1]) for row in within)
    assert command(*given) == (code, out, err)


def test_report_of_a_saved_network(labelled, command):
    assert command(*PRUNE, *TRAINED, "--macs", "0.5")[0] == 0
    code, out, _ = command("report", "small", "--builder", "my_builders:build", "--to", "page.html")
    assert (code, out) == (0, "wrote page.html\n")
    assert "The pruned network takes" in (labelled / "page.html").read_text()
    code, out, _ = command("report", "small", "--no-time")
    assert (code, out) == (0, "wrote small/report.html\n")
    assert "Not measured" in (labelled / "small" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PRUNE, "--macs", "0.5", "--epochs", "3"], "--epochs is for --recover alone"),
        ([*PRUNE, "--macs", "0.5", "--lr", "0.1"], "--lr is for --recover alone"),
        (
            [*PRUNE, "--macs", "0.5", "--recover", "labelled.safetensors", "--epochs", "0"],
            "--epochs must be at least 1",
        ),
        ([*PRUNE, "--macs", "0.5", "--recover", "labelled.safetensors", "--lr", "0"], "--lr must be above 0"),
        ([*PRUNE, "--macs", "0.5", "--recover", "none"], "none: file not found"),
        ([*PRUNE, "--macs", "0.5", "--recover", "data.safetensors"], "no tensor 'labels'"),
        ([*PRUNE, "--macs", "0.5", "--max-drop", "1"], "max_drop needs validate"),
        (
            ["sweep", "my_builders:build", "--data", "data.safetensors", "--out", "small"],
            "give --validate or --recover",
        ),
        (
            ["sweep", *PRUNE[1:], "--validate", "labelled.safetensors", "--target", "0.5", "--target", "0.2"],
            "the shares must rise",
        ),
        (["sweep", *PRUNE[1:], "--validate", "labelled.safetensors", "--points", "0"], "at least one share"),
        (["report", "nowhere"], r"nowhere/plan\.json: file not found"),
        (["report", "small", "--to", "."], r"--to \. is a folder"),
    ],
)
def test_a_wrong_recovery_sweep_or_report_is_one_line(labelled, command, arguments, message):
    assert re.search(message, refused(command(*arguments)))
    assert not (labelled / "small").exists()


VIT = ["transformers:AutoModelForImageClassification", "--arguments", "config.json"]


@pytest.fixture
def vit(folder):
    """The configuration of a small network of transformers, and labelled inputs for it."""
    sizes = {"model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    (folder / "config.json").write_text(json.dumps({**sizes, "num_hidden_layers": 2, "num_attention_heads": 4}))
    pixels = torch.randn(4, 3, 16, 16)
    save_file({"pixel_values": pixels}, folder / "pixels.safetensors")
    save_file({"pixel_values": pixels, "labels": torch.tensor([0, 1, 0, 1])}, folder / "labelled.safetensors")
    return folder


def test_a_network_with_uniform_widths_is_exported_as_a_folder_of_its_library(vit, command):
    from transformers import AutoModelForImageClassification

    options = ["--data", "pixels.safetensors", "--out", "small", "--macs", "0.3", "--uniform"]
    code, _, err = command("prune", *VIT, *options)
    assert code == 0, err
    code, out, err = command("export", "small", "--to", "plain")
    assert (code, err) == (0, "")
    assert re.search(r"wrote plain: [\d.]+ KiB; differs by 0 of the largest output", out)
    assert "plain exists already: give a new folder" in refused(command("export", "small", "--to", "plain"))
    pixels = torch.randn(2, 3, 16, 16)
    loaded, small = AutoModelForImageClassification.from_pretrained("plain").eval(), ifap.load("small")
    assert torch.equal(loaded(pixels).logits, small(pixels).logits)


def test_the_smallest_network_of_a_sweep_with_uniform_widths_is_exported_too(vit, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    given = [
        "--data",
        "pixels.safetensors",
        "--validate",
        "labelled.safetensors",
        "--max-drop",
        "100",
        "--out",
        "curve",
    ]
    code, out, err = command("sweep", *VIT, *given, "--target", "0.2", "--target", "0.4", "--uniform")
    assert code == 0, err
    assert "smallest within the loss" in out
    code, out, err = command("export", "curve/small", "--to", "plain")
    assert (code, err) == (0, "")
    assert "differs by 0 of the largest output" in out


def test_the_version_is_printed(command):
    assert command("--version") == (0, f"ifap {ifap.__version__}\n", "")

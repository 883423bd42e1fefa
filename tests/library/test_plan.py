"""A saved network comes back bit for bit in a new process; damaged and hostile files raise one clear error."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import NETWORKS, prune, run
from places import ROOT
from safetensors.torch import load_file, save
from torch import nn

import ifap
from ifap.errors import PlanError
from ifap.plan import PLAN_FILE, read_plan
from ifap.saving.history import REPORT_FILE
from ifap.saving.plans import unpruned_plan
from ifap.saving.store import WEIGHTS_FILE, write_network

EVERY = sorted(NETWORKS)


def saved(name, folder, **options):
    net = NETWORKS[name]
    pruned = prune(net.build(), net.inputs(), method="random", **options)
    ifap.save(pruned, folder)
    return net, pruned


@pytest.mark.parametrize("name", EVERY)
def test_loaded_network_gives_the_same_bits(name, tmp_path):
    net, pruned = saved(name, tmp_path / "small")
    # A buffer that is not part of the state comes from the builder; all else does not.
    loaded = ifap.load(tmp_path / "small", lambda: net.build(seed=0 if name == "buffer_added" else 9))
    assert not any(module.training for module in loaded.modules())
    model = pruned.model.eval()
    with torch.no_grad():
        for a, b in zip(run(model, net.inputs()), run(loaded, net.inputs()), strict=True):
            assert torch.equal(a, b)
    assert ifap.cost(loaded, net.inputs()) == pruned.after
    assert {n: p.shape for n, p in loaded.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert sorted(os.listdir(tmp_path / "small")) == [PLAN_FILE, REPORT_FILE, WEIGHTS_FILE]
    assert os.listdir(tmp_path) == ["small"]
    outputs = run(loaded.train(), net.inputs())
    assert all(t.isfinite().all() for t in outputs)


_PROGRAM = """
import sys, torch, ifap
torch.set_num_threads(1)
from networks import NETWORKS, run
for name in sys.argv[1:]:
    net = NETWORKS[name]
    with torch.no_grad():
        torch.save(run(ifap.load(name, net.build), net.inputs()), name + ".pt")
assert "torch_pruning" not in sys.modules
"""


def test_new_process_gives_the_same_bits(tmp_path):
    names = ("residual", "vit")
    made = {name: saved(name, tmp_path / name, seed=4) for name in names}
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support")}
    command = [sys.executable, "-c", _PROGRAM, *names]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    for name, (net, pruned) in made.items():
        with torch.no_grad():
            expected = run(pruned.model.eval(), net.inputs())
        for a, b in zip(expected, torch.load(tmp_path / f"{name}.pt", weights_only=True), strict=True):
            assert torch.equal(a, b)


def test_network_that_was_trained_further_is_saved_as_it_is(tmp_path):
    net = NETWORKS["plain"]
    pruned = prune(net.build(), net.inputs())
    with torch.no_grad():
        pruned.model[2][2].bias.add_(3)
    ifap.save(pruned, tmp_path)
    loaded = ifap.load(tmp_path, net.build)
    assert torch.equal(loaded[2][2].bias, pruned.model[2][2].bias)


def test_tied_weights_survive(tmp_path):
    net, pruned = saved("tied_embedding", tmp_path)
    loaded = ifap.load(tmp_path, net.build)
    assert loaded.words.weight is loaded.out.weight
    assert ifap.cost(loaded, net.inputs()).params == pruned.after.params


def test_a_transposed_view_of_a_weight_is_no_second_name_of_it(tmp_path):
    class Turned(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(8, 8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
            self.register_buffer("turned", self[0].weight.detach().t())

        def forward(self, x):
            return super().forward(x @ self.turned)

    x = torch.randn(4, 8)
    pruned = ifap.prune(Turned(), x, [x], target=ifap.Target(macs=0.3), ignore=["0"])
    ifap.save(pruned, tmp_path)
    assert torch.equal(ifap.load(tmp_path, Turned)(x), pruned.model(x))


def test_tied_weights_survive_a_cut_of_both():
    """An embedding and the layer that shares its weight lose the same channels."""
    net = NETWORKS["tied_embedding"]
    pruned = prune(net.build(), net.inputs(), params=0.85)
    assert pruned.plan.kept["words"]["out"] == pruned.plan.kept["first"]["in"] == pruned.plan.kept["second"]["out"]
    assert pruned.model.words.weight is pruned.model.out.weight
    assert pruned.model.words.embedding_dim == pruned.model.out.in_features < 14


def test_unpruned_network_in_the_same_format(tmp_path):
    net = NETWORKS["residual"]
    model = net.build().eval()
    write_network(model, unpruned_plan(model, net.inputs()), tmp_path)
    loaded = ifap.load(tmp_path, lambda: net.build(seed=3))
    assert torch.equal(loaded(net.inputs()), model(net.inputs()))
    assert read_plan(tmp_path).kept == {}


def test_saving_does_not_change_the_network(tmp_path):
    net = NETWORKS["plain"]
    pruned = prune(net.build().train(), net.inputs())
    before = copy.deepcopy(pruned.model.state_dict())
    ifap.save(pruned, tmp_path)
    assert pruned.model.training
    assert all(torch.equal(before[n], t) for n, t in pruned.model.state_dict().items())


def test_a_network_with_another_layer_than_the_pruned_one_is_not_saved(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)), torch.randn(3, 6)
    pruned = ifap.prune(model, x, [x], target=ifap.Target(macs=0.5), steps=1)
    pruned.model[2] = nn.Linear(pruned.model[2].in_features, 7)
    with pytest.raises(
        PlanError, match=r"the network has \d+ parameters, pruning left \d+: a layer was added or exchanged"
    ):
        ifap.save(pruned, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_networks_with_infinite_outputs_are_not_saved(tmp_path):
    net = NETWORKS["plain"]
    pruned = prune(net.build(), net.inputs())
    with torch.no_grad():
        pruned.model[2][2].bias[0] = float("nan")
    with pytest.raises(PlanError, match="not finite"):
        ifap.save(pruned, tmp_path / "small")
    assert not (tmp_path / "small").exists()


# --- damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    saved("residual", folder)
    return folder


@pytest.fixture
def copied(good, tmp_path):
    for name in (PLAN_FILE, WEIGHTS_FILE):
        (tmp_path / name).write_bytes((good / name).read_bytes())
    return tmp_path


def assert_refused(folder, names=str, builder=NETWORKS["residual"].build):
    """One PlanError of one line that names the file or folder, and nothing else."""
    with pytest.raises(PlanError) as caught:
        ifap.load(folder, builder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert str(folder) in message
    assert names(message)
    return message


def rewrite(folder, change):
    plan = json.loads((folder / PLAN_FILE).read_text())
    change(plan)
    (folder / PLAN_FILE).write_text(json.dumps(plan))


def store(folder, tensors):
    """Write weights together with their checksum: as someone would who means harm."""
    content = save(tensors)
    (folder / WEIGHTS_FILE).write_bytes(content)
    rewrite(folder, lambda plan: plan.update(weights_sha256=hashlib.sha256(content).hexdigest()))


def test_undamaged_copy_loads(copied):
    ifap.load(copied, NETWORKS["residual"].build)


@pytest.mark.parametrize("name", [PLAN_FILE, WEIGHTS_FILE])
def test_missing_file(copied, name):
    (copied / name).unlink()
    assert_refused(copied, lambda message: name in message and "not found" in message)


@pytest.mark.parametrize("name", [PLAN_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_file(copied, name, share):
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: int(len(content) * share)])
    assert_refused(copied, lambda message: name in message)


def test_directory_in_place_of_a_file(copied):
    (copied / PLAN_FILE).unlink()
    (copied / PLAN_FILE).mkdir()
    assert_refused(copied, lambda message: PLAN_FILE in message)


@pytest.mark.parametrize(
    "content",
    [b"[]", b"null", b"7", b'"plan"', b"{", b"\xff\xfe\x00", b"[" * 200_000, b'{"a":' * 100_000, b"1" * 10_000],
)
def test_something_else_than_a_plan(copied, content):
    (copied / PLAN_FILE).write_bytes(content)
    assert_refused(copied, lambda message: PLAN_FILE in message)


def put(*path_and_value):
    *path, key, value = path_and_value

    def change(plan):
        for step in path:
            plan = plan[step]
        plan[key] = value

    return change


def call_size(**changes):
    """A correction of a call that the network makes: the first dimension that its last layers flatten."""
    return {"module": "head.1", "function": "flatten", "ordinal": 0, "path": ["args", 1], **changes}


def nested(depth):
    value = {"kind": "tensor", "shape": [1], "dtype": "float32", "high": 1}
    for _ in range(depth):
        value = {"kind": "list", "items": [value]}
    return value


@pytest.mark.parametrize(
    "change",
    [
        put("format", 3),
        put("format", "1"),
        put("surprise", 1),
        put("kept", []),
        put("kept", {"stem.0": [0]}),
        put("kept", "stem.0", {"out": "all"}),
        put("kept", "stem.0", {"out": [0.5]}),
        put("kept", "stem.0", {"out": [True, 2]}),
        put("kept", "stem.0", {"out": [-1, 2]}),
        put("kept", "stem.0", {"out": []}),
        put("kept", "stem.0", {"out": [3, 2, 1]}),
        put("kept", "stem.0", {"out": [1, 1, 2]}),
        put("kept", "stem.0", {"out": [0, 10**30]}),
        put("kept", "stem.0", {"out": list(range(12))}),
        put("kept", "stem.0", {"out": [0]}),
        put("kept", "stem.0", {"upwards": [0]}),
        put("kept", "nowhere", {"out": [0]}),
        put("kept", "", {"out": [0]}),
        put("kept", "stem.0.weight", {"dim0": [0, 1]}),
        put("kept", "stem.0.weight", {"dim9": [0, 1]}),
        put("split_attention", ["nowhere"]),
        put("split_attention", ["stem"]),
        put("split_attention", "stem"),
        put("attention", ["nowhere"]),
        put("attention", ["stem"]),
        put("attention", "stem"),
        put("attributes", [{"module": "nowhere", "path": ["width"], "value": 2}]),
        put("attributes", [{"module": "stem.0", "path": ["width"], "value": 2}]),
        put("attributes", [{"module": "stem.0", "path": ["training"], "value": 0}]),
        put("attributes", [{"module": "stem.0", "path": ["weight"], "value": 2}]),
        put("attributes", [{"module": "stem.0", "path": ["_parameters", "weight"], "value": 2}]),
        put("attributes", [{"module": "stem.0", "path": ["__class__"], "value": 2}]),
        put("attributes", [{"module": "stem.0", "path": ["stride", 7], "value": 2}]),
        put("attributes", [{"module": "stem.0", "path": ["stride"], "value": 2}]),
        put("attributes", [{"module": "stem.0", "path": ["groups"], "value": 3}]),
        put("attributes", [{"module": "stem.0", "path": ["groups"], "value": -1}]),
        put("attributes", [{"module": "stem.0", "path": ["groups"], "value": "one"}]),
        put("attributes", [{"module": "stem.0", "path": [], "value": 1}]),
        put("attributes", [{"module": "stem.0", "path": ["a", "b", "c", "d"], "value": 1}]),
        put("calls", [call_size(module="nowhere")]),
        put("calls", [call_size(value=2, fraction=[1, 2])]),
        put("calls", [call_size()]),
        put("calls", [call_size(fraction=[1, 0])]),
        put("calls", [call_size(fraction=[-1, 2])]),
        put("calls", [call_size(value="all")]),
        put("calls", [call_size(path=["args"], value=2)]),
        put("calls", [call_size(value=0)]),
        put("calls", [call_size(value=10**30)]),
        put("sequences", [{"module": "", "function": "view", "forms": []}]),
        put("sequences", [{"module": "", "function": "view", "forms": [["t", "eval"]]}]),
        put("sequences", [{"module": "", "function": "view", "forms": [["t", 1.5]]}]),
        put("sequences", [{"module": "", "function": "view", "forms": [["t"]], "again": 1}]),
        put("sequences", [{"module": "", "function": "view", "forms": "t"}]),
        put("heads", {"stem": 2}),
        put("heads", {"stem": "two"}),
        put("shared", {"stem.0.weight": "nowhere"}),
        put("shared", {"nowhere": "stem.0.weight"}),
        put("shared", {"head.2.bias": "stem.0.weight"}),
        put("example_inputs", None),
        put("example_inputs", []),
        put("example_inputs", {"kind": "code", "items": []}),
        put("example_inputs", "shape", [2**40, 2**40]),
        put("example_inputs", "shape", [10**9, 3, 8, 8]),
        put("example_inputs", "shape", [-1, 3, 8, 8]),
        put("example_inputs", "shape", [10**400]),
        put("example_inputs", "shape", [2, 4, 8, 8]),
        put("example_inputs", "dtype", "object"),
        put("example_inputs", "dtype", "int64"),
        put("example_inputs", {"kind": "tensor", "shape": [2, 3], "dtype": "int64", "high": 10**30}),
        put("example_inputs", nested(5)),
        put("example_inputs", nested(5000)),
        put("fingerprint", []),
        put("fingerprint", [0.0]),
        put("fingerprint", None),
        put("weights_sha256", ""),
        put("weights_sha256", 5),
        put("costs", "macs_after", -1),
        put("costs", {}),
        put("builder", "os.system"),
    ],
)
def test_changed_plan(copied, change):
    try:
        rewrite(copied, change)
    except RecursionError:
        pytest.skip("this Python cannot write such a file")
    assert_refused(copied)


def test_a_corrected_call_must_be_one_of_its_sequence(copied):
    sequence = {"module": "head.1", "function": "flatten", "forms": [["t", 1]]}
    rewrite(copied, put("sequences", [sequence]))
    for wrong in ({"ordinal": 1}, {"module": "head"}, {"function": "view"}):
        rewrite(copied, put("calls", [call_size(value=1, **wrong)]))
        assert_refused(copied, lambda message: "has no call" in message)


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (1, put("attention", ["attention"])),
        (1, put("attributes", [{"module": "stem.0", "path": ["groups"], "value": 1}])),
        (1, put("calls", [call_size(value=1)])),
        (1, put("sequences", [{"module": "", "function": "view", "forms": [["t"]]}])),
        (2, put("split_attention", ["attention"])),
        (2, put("heads", {"attention": 2})),
    ],
)
def test_what_belongs_to_another_format_is_refused(copied, number, change):
    rewrite(copied, put("format", number))
    rewrite(copied, change)
    assert_refused(copied, lambda message: f"a plan of format {number} has none" in message)


def test_deep_nesting_of_inputs_written_as_text(copied):
    text = (copied / PLAN_FILE).read_text()
    plan = json.loads(text)
    deep = '{"kind":"list","items":[' * 3000 + json.dumps(plan["example_inputs"]) + "]}" * 3000
    plan["example_inputs"] = "HERE"
    (copied / PLAN_FILE).write_text(json.dumps(plan).replace('"HERE"', deep))
    assert_refused(copied)


def test_many_huge_inputs_are_refused_before_they_are_made(copied):
    spec = {"kind": "tensor", "shape": [2**26], "dtype": "float32", "high": 1}
    rewrite(copied, put("example_inputs", {"kind": "list", "items": [spec] * 4000}))
    assert_refused(copied)


def test_flipped_byte(copied):
    content = bytearray((copied / WEIGHTS_FILE).read_bytes())
    content[-5] ^= 1
    (copied / WEIGHTS_FILE).write_bytes(content)
    assert_refused(copied, lambda message: WEIGHTS_FILE in message and "checksum" in message)


def change_one(tensors, name, function):
    return {**tensors, name: function(tensors[name]).contiguous()}


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {n: x.double() if x.is_floating_point() else x for n, x in t.items()},
        lambda t: change_one(t, "stem.0.weight", torch.Tensor.half),
        lambda t: change_one(t, "stem.0.weight", lambda x: x[1:]),
        lambda t: change_one(t, "stem.0.weight", lambda x: torch.cat([x] * 9)),
        lambda t: change_one(t, "stem.0.weight", lambda x: x[..., :1]),
        lambda t: change_one(t, "stem.0.weight", lambda x: x[..., 0]),
        lambda t: change_one(t, "stem.0.weight", lambda x: x[:0]),
        lambda t: change_one(t, "stem.1.running_var", lambda x: x[:0]),
        lambda t: change_one(t, "stem.0.weight", lambda x: x * float("nan")),
        lambda t: change_one(t, "head.2.bias", lambda x: x + 5),
        lambda t: {**t, "extra": torch.zeros(1)},
        lambda t: {n: x for n, x in t.items() if n != "head.2.bias"},
        lambda _: {},
    ],
)
def test_changed_weights_with_a_matching_checksum(copied, change):
    store(copied, change(load_file(copied / WEIGHTS_FILE)))
    assert_refused(copied)


def test_safetensors_header_that_lies(copied):
    content = b"\xff" * 8 + b"{}"
    (copied / WEIGHTS_FILE).write_bytes(content)
    rewrite(copied, put("weights_sha256", hashlib.sha256(content).hexdigest()))
    assert_refused(copied, lambda message: WEIGHTS_FILE in message)


def test_weights_of_another_save(copied, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    saved("residual", other, seed=5)
    (copied / WEIGHTS_FILE).write_bytes((other / WEIGHTS_FILE).read_bytes())
    assert_refused(copied, lambda message: WEIGHTS_FILE in message)


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", [PLAN_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_nothing_is_unpickled(copied, name, how, tmp_path):
    witness = tmp_path / "witness"
    if how == "pickle":
        (copied / name).write_bytes(pickle.dumps(Harm(witness)))
    else:
        torch.save(Harm(witness), copied / name)
    digest = hashlib.sha256((copied / WEIGHTS_FILE).read_bytes()).hexdigest()
    if name == WEIGHTS_FILE:
        rewrite(copied, put("weights_sha256", digest))
    assert_refused(copied, lambda message: name in message)
    assert not witness.exists()
    pickle.loads(pickle.dumps(Harm(witness)))
    assert witness.exists()  # the payload would have worked


@pytest.mark.parametrize(
    "builder",
    [
        NETWORKS["plain"].build,
        NETWORKS["vit"].build,
        lambda: nn.Linear(3, 4),
        lambda: None,
    ],
)
def test_wrong_builder(copied, builder):
    assert_refused(copied, builder=builder)


def test_builder_with_other_activations_is_noticed_by_the_fingerprint(copied):
    def builder():
        model = NETWORKS["residual"].build()
        model.stem[2] = nn.Tanh()
        return model

    assert_refused(copied, lambda message: "fingerprint" in message, builder)


# --- writing --------------------------------------------------------------------------------------


def test_overwriting_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "small"
    saved("residual", folder)
    _, second = saved("residual", folder, seed=7, macs=0.6)
    assert sorted(os.listdir(folder)) == [PLAN_FILE, REPORT_FILE, WEIGHTS_FILE]
    assert os.listdir(tmp_path) == ["small"]
    loaded = ifap.load(folder, NETWORKS["residual"].build)
    assert ifap.cost(loaded, NETWORKS["residual"].inputs()) == second.after


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4, 5, 6])
def test_interrupted_overwriting_never_gives_a_wrong_network(tmp_path, monkeypatch, fail_at):
    """A failing disk at any point leaves the old network, the new one, or a clear error."""
    folder, calls = tmp_path / "small", itertools.count(1)
    _, first = saved("residual", folder)
    second = prune(NETWORKS["residual"].build(), NETWORKS["residual"].inputs(), method="random", seed=7, macs=0.6)
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def broken(*args, real=real):
            if next(calls) == fail_at:
                raise OSError(28, "No space left on device")
            return real(*args)

        monkeypatch.setattr(os, name, broken)
    with pytest.raises(OSError, match="No space"):
        ifap.save(second, folder)
    monkeypatch.undo()
    assert sorted(os.listdir(folder)) == [PLAN_FILE, REPORT_FILE, WEIGHTS_FILE]
    assert os.listdir(tmp_path) == ["small"]
    try:
        loaded = ifap.load(folder, NETWORKS["residual"].build)
    except PlanError as error:  # either is right
        assert "checksum" in str(error)  # noqa: PT017
        assert fail_at == 5  # the new weights are there, the new plan is not
    else:
        assert ifap.cost(loaded, NETWORKS["residual"].inputs()) in (first.after, second.after)


def test_plan_says_which_positions_are_left(good):
    plan = read_plan(good)
    weights = load_file(good / WEIGHTS_FILE)
    assert plan.kept["stem.0"]["out"] == plan.kept["first.0"]["in"] == plan.kept["down"]["in"]
    assert weights["stem.0.weight"].shape[0] == len(plan.kept["stem.0"]["out"])
    assert plan.example_inputs.shape == [2, 3, 8, 8]
    assert plan.versions["torch"].startswith(torch.__version__.split("+")[0])

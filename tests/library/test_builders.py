"""Public networks by name: built, saved, loaded without a function; a hostile plan reads and imports nothing."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import ifap
from ifap.errors import PlanError
from ifap.saving.builders import bounded

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "use_cache": True,  # as nearly every config.json says
}
VIT = {
    "model_type": "vit",
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
NETWORKS = {
    "timm:test_resnet": {},
    "timm:test_vit": {"num_classes": 10},
    "torchvision:squeezenet1_1": {"num_classes": 10},
    "torchvision:shufflenet_v2_x0_5": {},
    "transformers:AutoModelForCausalLM": {"config": LLAMA},
    "transformers:AutoModelForImageClassification": {"config": VIT},
}


def inputs_of(identifier):
    torch.manual_seed(0)
    if "CausalLM" in identifier:
        return {"input_ids": torch.randint(0, 64, (2, 12))}
    size = {"timm": 160, "torchvision": 64, "transformers": 32}[identifier.partition(":")[0]]
    return torch.randn(2, 3, size, size)


def first(model, inputs):
    found = model.eval()(**inputs) if isinstance(inputs, dict) else model.eval()(inputs)
    return found if isinstance(found, torch.Tensor) else found.logits


LOAD = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
import ifap
torch.set_num_threads(1)
for name, is_named in json.load(open("networks.json")).items():
    network, inputs = ifap.load(name).eval(), load_file(f"{name}.inputs")
    outputs = network(**inputs) if is_named else network(inputs["inputs"])
    outputs = outputs if isinstance(outputs, torch.Tensor) else outputs.logits
    save_file({"outputs": outputs.detach().contiguous()}, f"{name}.outputs")
"""


def test_public_networks_are_loaded_from_their_folders_alone_in_a_new_process(tmp_path):
    wanted, named = {}, {}
    for identifier, arguments in NETWORKS.items():
        name, inputs = identifier.replace(":", "-"), inputs_of(identifier)
        torch.manual_seed(1)
        network = ifap.build(identifier, **arguments)
        pruned = ifap.prune(network, inputs, [inputs], target=ifap.Target(macs=0.3), steps=1, method="magnitude")
        ifap.save(pruned, tmp_path / name, identifier, arguments)
        wanted[name], named[name] = first(pruned.model, inputs), isinstance(inputs, dict)
        save_file(inputs if named[name] else {"inputs": inputs}, tmp_path / f"{name}.inputs")
    (tmp_path / "networks.json").write_text(json.dumps(named))
    done = subprocess.run([sys.executable, "-c", LOAD], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, outputs in wanted.items():
        assert torch.equal(load_file(tmp_path / f"{name}.outputs")["outputs"], outputs), name


def test_a_builder_of_another_network_is_refused_before_anything_is_written(tmp_path):
    inputs = torch.randn(1, 3, 64, 64)
    pruned = ifap.prune(
        ifap.build("torchvision:squeezenet1_1"),
        inputs,
        [inputs],
        target=ifap.Target(macs=0.3),
        steps=1,
        method="random",
    )
    with pytest.raises(PlanError, match=r"makes [\d,]+ parameters, the network that was pruned had [\d,]+"):
        ifap.save(pruned, tmp_path / "small", "torchvision:squeezenet1_0")
    assert not (tmp_path / "small").exists()


class Watch:
    """Notes every module that is looked for and is not part of the homes."""

    def __init__(self):
        self.looked_for = []

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in HOMES:
            self.looked_for.append(name)


HOMES = {"timm", "torchvision", "transformers", "ifap"}


@pytest.fixture(scope="module")
def _homes_are_imported():
    for identifier, arguments in NETWORKS.items():
        ifap.build(identifier, **arguments)
    importlib.import_module("ifap.study.models")


@pytest.fixture
def _nothing_is_imported(_homes_are_imported, monkeypatch):
    """Fail if anything outside of the homes is imported, or even looked for."""
    watch = Watch()
    monkeypatch.setattr(sys, "meta_path", [watch, *sys.meta_path])
    before = set(sys.modules)
    yield
    assert watch.looked_for == []
    assert {name for name in set(sys.modules) - before if name.partition(".")[0] not in HOMES} == set()


HOSTILE = [
    *("os:system", "subprocess:run", "builtins:eval", "torch:load", "", ":", "timm", "timm:", "::", "ifap"),
    *("antigravity:fly", "this", "turtle:Turtle", "ifap:../../antigravity", "ifap:turtle", "runpy:run_path", "pdb:run"),
    *("timm:hf-hub:evil/net", "timm:local-dir:/etc", "timm:../x", "timm:resnet 18", "timm:resnet18\n", "timm:__init__"),
    *("timm:turtle", "timm:antigravity.fly", "torchvision:turtle", "transformers:turtle", "transformers:AutoModelX"),
    *("torchvision:__builtins__", "torchvision:models", "torchvision:get_model", "torchvision:resnet18;import turtle"),
    *("transformers:AutoModel.from_pretrained", "transformers:pipeline", "transformers:AutoConfig", "transformers:os"),
    *("transformers:AutoModelForCausalLM", "timm:" + "a" * 10_000, "t\u0456mm:resnet18", "TIMM:resnet18"),
    *("torchvision.models:x", "timm.models:resnet18", " timm:resnet18", "timm :resnet18", "file:///etc/passwd"),
    *("https://evil/x", "timm:resnet18\x00", "..:turtle", "__main__:x", "sys:exit"),
]


def test_the_hostile_names_are_fifty():
    assert len(set(HOSTILE)) >= 50


@pytest.mark.usefixtures("_nothing_is_imported")
@pytest.mark.parametrize("identifier", HOSTILE)
def test_a_hostile_name_is_one_error_and_imports_nothing(identifier):
    with pytest.raises(PlanError) as caught:
        ifap.build(identifier)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_home_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"timm is not installed: pip install '\.\[images\]' in a checkout of ifap$"):
        ifap.build("timm:resnet18")


@pytest.mark.parametrize("module", ["antigravity", "this", "turtle", "idlelib.idle"])
def test_a_plan_imports_nothing_but_the_homes(module, tmp_path):
    inputs = torch.randn(1, 3, 32, 32)
    pruned = ifap.prune(
        ifap.build("timm:test_resnet"), inputs, [inputs], target=ifap.Target(macs=0.3), steps=1, method="random"
    )
    ifap.save(pruned, tmp_path, "timm:test_resnet")
    plan = json.loads((tmp_path / "plan.json").read_text())
    for name in (f"{module}:run", f"timm:{module}", f"{module}"):
        plan["builder"]["id"] = name
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        with pytest.raises(PlanError):
            ifap.load(tmp_path)
        assert module not in sys.modules


OF_A_HUB = {"backbone": "gpt2", "use_timm_backbone": False}
ARGUMENTS = [
    ("timm:resnet18", {"pretrained": True}),
    ("timm:resnet18", {"checkpoint_path": "weights.pth"}),
    ("timm:resnet18", {"pretrained_cfg": {"file": "x"}}),
    ("timm:resnet18", {"pretrained_cfg_overlay": {"hf_hub_id": "evil"}}),
    ("timm:resnet18", {"cache_dir": "x"}),
    ("timm:resnet18", {"num_classes": 2**40}),
    ("timm:resnet18", {"num_classes": float("inf")}),
    ("timm:resnet18", {"num_classes": float("nan")}),
    ("timm:resnet18", {"act_layer": "https://evil"}),
    ("timm:resnet18", {"act_layer": "../../x"}),
    ("timm:resnet18", {"no_such_argument": 1}),
    ("timm:resnet18", {"block": object()}),
    ("timm:resnet18", {"layers": [[[[[[[[1]]]]]]]]}),
    ("timm:resnet18", {"layers": list(range(5000))}),
    ("torchvision:resnet18", {"weights": "DEFAULT"}),
    ("torchvision:resnet18", {"weights": "IMAGENET1K_V1"}),
    ("torchvision:fasterrcnn_resnet50_fpn", {"weights_backbone": "DEFAULT"}),
    ("torchvision:resnet18", {"norm_layer": "eval"}),
    ("transformers:AutoModel", {"config": {"model_type": "nothing"}}),
    ("transformers:AutoModel", {"config": {**LLAMA, "auto_map": {"AutoModel": "evil--x.Net"}}}),
    ("transformers:AutoModel", {"config": {**LLAMA, "_name_or_path": "evil"}}),
    ("transformers:AutoModel", {"config": {**LLAMA, "attn_implementation": "evil/kernel"}}),
    ("transformers:AutoModel", {"config": {**LLAMA, "_attn_implementation": "kernel"}}),
    ("transformers:AutoModel", {"config": {**LLAMA, "quantization_config": {"quant_method": "x"}}}),
    ("transformers:AutoModel", {"config": {**LLAMA, "use_pretrained_backbone": True}}),
    ("transformers:AutoModel", {"config": LLAMA, "trust_remote_code": True}),
    ("transformers:AutoModel", {"config": "llama"}),
    ("transformers:AutoModel", {"config": {"model_type": "dpt", "backbone": "gpt2"}}),
    ("transformers:AutoModelForObjectDetection", {"config": {"model_type": "detr", **OF_A_HUB}}),
    ("timm:resnet18", {"act_layer": "turtle.Turtle"}),
    ("transformers:AutoModel", {"config": {**LLAMA, "hidden_act": "turtle.Turtle"}}),
    ("transformers:AutoModel", {"config": {**LLAMA, "dtype": "turtle"}}),
    ("transformers:AutoModel", {"config": {"model_type": "timm_wrapper", "architecture": "local-dir"}}),
]


@pytest.mark.usefixtures("_nothing_is_imported")
@pytest.mark.parametrize(("identifier", "arguments"), ARGUMENTS)
def test_hostile_arguments_are_one_error_and_import_nothing(identifier, arguments, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address))
    with pytest.raises(PlanError) as caught:
        ifap.build(identifier, **arguments)
    assert "\n" not in str(caught.value)
    assert asked == []


SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}


def test_large_buffers_are_refused_before_they_are_made():
    """Tables of positions grow with the square of a window, and are no parameters."""
    with bounded(1000, 10**6):
        ifap.build("timm:swin_tiny_patch4_window7_224", **SWIN)
    with pytest.raises(PlanError, match="far larger"), bounded(1000, 10**6):
        ifap.build("timm:swin_tiny_patch4_window7_224", **SWIN, img_size=1600, window_size=400)
    for make in (
        lambda: torch.ones(2**14, 2**14),
        lambda: torch.arange(2**14)[:, None] * torch.arange(2**14),
        lambda: torch.ones(2**10).repeat(2**18),
        lambda: torch.eye(2**14),
        lambda: torch.cat([torch.ones(2**14, 1).expand(2**14, 2**14)] * 2),
    ):
        with pytest.raises(PlanError, match="far larger"), bounded(1000, 10**6):
            make()


def test_a_plan_that_names_a_huge_network_stops_before_it_is_filled(tmp_path):
    inputs = inputs_of("CausalLM")
    model = ifap.build("transformers:AutoModelForCausalLM", config=LLAMA)
    pruned = ifap.prune(model, inputs, [inputs], target=ifap.Target(macs=0.3), steps=1, method="magnitude")
    ifap.save(pruned, tmp_path, "transformers:AutoModelForCausalLM", {"config": LLAMA})
    plan = json.loads((tmp_path / "plan.json").read_text())
    for huge in ({"num_hidden_layers": 10**6}, {"hidden_size": 2**20, "intermediate_size": 2**22}):
        plan["builder"]["args"]["config"] = {**LLAMA, **huge}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        with pytest.raises(PlanError, match=r"far larger than the saved one|memory"):
            ifap.load(tmp_path)


def test_parameters_are_counted_until_the_bound():
    with bounded(2, 100):
        torch.nn.Linear(4, 4)
    with pytest.raises(PlanError), bounded(1, 100):
        torch.nn.Linear(4, 4)
    torch.nn.Linear(40, 40)  # outside the block nothing is counted


def test_a_misspelt_name_says_the_nearest():
    with pytest.raises(PlanError, match="did you mean 'resnet18'"):
        ifap.build("torchvision:resnet_18")
    with pytest.raises(PlanError, match="did you mean 'timm'"):
        ifap.build("tim:resnet18")

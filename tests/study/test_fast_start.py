"""A job starts without torch's compiler, and the compiler is there for who asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADED = "import sys; print('torch._dynamo' in sys.modules, 'timm' in sys.modules)"


def run(code):
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.split("\n")[:-1]


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_training_and_pruning_need_no_compiler(kind):
    code = f"""
import stages
import torch, torchvision
from ifap.study.machine.determinism import configure
configure(0)
layer = torch.nn.Linear(2, 1)
optimizer = torch.optim.{kind}(layer.parameters(), lr=0.1)
torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
layer(torch.ones(1, 2)).sum().backward()
before = layer.weight.detach().clone()
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
assert not torch.equal(before, layer.weight), "nothing was learnt"
assert torch.is_grad_enabled()
{LOADED}
"""
    assert run(code) == ["False False"]


@pytest.mark.parametrize("name", ["resnet_tiny", "vit_tiny"])
def test_counting_and_pruning_a_network_need_no_compiler(name):
    code = f"""
import stages
import torch
import ifap
from ifap.study.models import MODELS
from ifap.study.machine.determinism import configure
configure(0)
model, images = MODELS.get("{name}")(num_classes=10, in_channels=1, image_size=32), torch.randn(2, 1, 32, 32)
pruned = ifap.prune(model, images[:1], [images], target=ifap.Target(macs=0.3), steps=1)
assert ifap.cost(pruned.model, images[:1]).macs == pruned.after.macs < pruned.before.macs
{LOADED}
"""
    assert run(code) == ["False False"]


def test_the_compiler_and_what_asks_it_work_afterwards():
    code = """
import stages
import torch, torchvision
from ifap.study.machine.determinism import configure
configure(0)
boxes = [torch.tensor([[0.0, 0.0, 4.0, 4.0]])]
print(tuple(torchvision.ops.roi_align(torch.ones(1, 2, 8, 8), boxes, 2).shape))
layer = torch.nn.Linear(2, 1)
print(torch.equal(torch.compile(layer, backend="eager")(torch.ones(1, 2)), layer(torch.ones(1, 2))))
import timm
print(timm.__name__)
"""
    assert run(code) == ["(1, 2, 2, 2)", "True", "timm"]


def test_optimizers_take_the_same_steps():
    code = """
import hashlib, sys, torch
torch.manual_seed(0)
if len(sys.argv) > 1:
    from ifap.study.machine.fast_start import plain_optimizers
    plain_optimizers()
for kind in (torch.optim.SGD, torch.optim.AdamW):
    layer = torch.nn.Linear(5, 3)
    optimizer = kind(layer.parameters(), lr=0.1, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
    print(hashlib.sha256(layer.weight.detach().numpy().tobytes()).hexdigest())
"""
    usual = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    plain = subprocess.run([sys.executable, "-c", code, "plain"], capture_output=True, text=True, check=True).stdout
    assert usual == plain
    assert len(usual.split()) == 2

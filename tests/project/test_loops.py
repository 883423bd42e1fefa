"""The example for several processes runs on two of them, and both end with the same network."""

from __future__ import annotations

import subprocess
import sys

import torch
from test_readme import blocks
from torch import nn

import ifap

CHECK = """
values = torch.cat([each.detach().flatten() for each in pruned.model.parameters()])
both = accelerator.gather(values[None])
assert len(both) == 2 and torch.equal(both[0], both[1])
"""


def build():
    convolutions = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def test_two_processes_prune_and_train_together(tmp_path):
    (text,) = [block.text for block in blocks("docs/loops.md") if "Accelerator(" in block.text]
    last = "accelerator.end_training()"
    assert text.endswith(last)
    (tmp_path / "two.py").write_text(text.replace(last, CHECK + last))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "two.py"]
    done = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    small = ifap.load(tmp_path / "small", build)
    assert small[0].out_channels < 16 or small[2].out_channels < 16
    assert torch.isfinite(small(torch.randn(2, 3, 16, 16))).all()

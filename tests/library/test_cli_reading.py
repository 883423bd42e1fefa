"""Weights from files: what a network makes by itself may be missing; weights of another network are one line."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ifap.cli.reading import load_weights
from ifap.errors import ConfigError


class Tied(nn.Module):
    """A language model whose output layer is its embedding, with a constant that is not saved."""

    def __init__(self, width=6):
        super().__init__()
        self.table, self.norm = nn.Embedding(9, width), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 9, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("positions", torch.arange(4), persistent=False)

    def forward(self, ids):
        return self.head(self.table(ids))


def stored(path, left_out=(), **more):
    torch.manual_seed(1)
    tensors = {name: tensor.clone() for name, tensor in Tied().state_dict().items() if name not in left_out}
    save_file({**tensors, **more}, path)
    return tensors


def test_a_weight_that_is_also_another_one_may_be_missing(tmp_path):
    tensors = stored(tmp_path / "w.safetensors", left_out=["head.weight", "norm.num_batches_tracked"])
    loaded = load_weights(Tied(), tmp_path / "w.safetensors")
    assert torch.equal(loaded.head.weight, tensors["table.weight"])


def test_a_constant_that_the_network_does_not_save_may_be_there(tmp_path):
    tensors = stored(tmp_path / "w.safetensors", positions=torch.arange(4))
    assert torch.equal(load_weights(Tied(), tmp_path / "w.safetensors").norm.weight, tensors["norm.weight"])


def test_a_lazy_layer_takes_its_shape_from_the_file(tmp_path):
    save_file(nn.Sequential(nn.Linear(3, 2)).state_dict(), tmp_path / "w.safetensors")
    loaded = load_weights(nn.Sequential(nn.LazyLinear(2)), tmp_path / "w.safetensors")
    assert loaded[0].weight.shape == (2, 3)


@pytest.mark.parametrize(
    ("network", "left_out", "more", "said"),
    [
        (Tied(), ["norm.weight"], {}, "1 of 7 tensors are missing, such as 'norm.weight'; is it of another one?"),
        (Tied(), [], {"bert.x": torch.ones(1)}, "'bert.x' is not in the network; is it of another one?"),
        (
            Tied(),
            ["table.weight", "head.weight"],
            {"x": torch.ones(1)},
            "2 of 7 tensors .* and 'x' is not in the network",
        ),
        (Tied(8), [], {}, r"'table.weight' has the shape \(9, 6\), in the network \(9, 8\)"),
        (nn.Sequential(nn.LazyLinear(2)), [], {}, "2 of 2 tensors are missing, such as '0.weight'"),
    ],
    ids=["missing", "surplus", "both", "shape", "lazy"],
)
def test_weights_of_another_network_are_one_line(tmp_path, network, left_out, more, said):
    stored(tmp_path / "w.safetensors", left_out, **more)
    with pytest.raises(ConfigError, match=rf"w\.safetensors: does not fit the network: {said}") as caught:
        load_weights(network, tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400

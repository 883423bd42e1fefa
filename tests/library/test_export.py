"""Exported networks compute what the network computes, for any batch size, or nothing is written."""

from __future__ import annotations

import copy
import functools
import sys
from dataclasses import dataclass
from pathlib import Path

import networks
import pytest
import torch
from torch import nn

import ifap
from ifap import export
from ifap.errors import ExportError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def onnx_outputs(path, inputs):
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    given = {each.name: tensor.numpy() for each, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, given)


def pruned(name):
    case = networks.NETWORKS[name]
    model, inputs = case.build(), case.inputs()
    return networks.prune(model, inputs, macs=0.4).model, inputs


@dataclass
class Exported:
    """A network in training mode, its state before it was exported to ONNX, and what came of it."""

    model: nn.Module
    inputs: object
    state: dict
    path: Path
    difference: float


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return what prunes and exports a network, each of them once."""

    @functools.cache
    def export_once(name):
        model, inputs = pruned(name)
        has_norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        if has_norms and torch.__version__.startswith("2.6."):
            pytest.skip("torch 2.6 writes batch norms that present versions of onnxscript do not take")
        state = {key: value.clone() for key, value in model.state_dict().items()}
        model.train()
        path = tmp_path_factory.mktemp(name) / "new" / "model.onnx"
        return Exported(model, inputs, state, path, ifap.export_onnx(model, inputs, path))

    return export_once


@pytest.mark.parametrize("name", ["residual", "vit", "dict_inputs"])
def test_onnx_of_a_pruned_network_takes_any_batch(exported, name):
    found = exported(name)
    model, path = found.model, found.path
    assert 0 < found.difference <= export.TOLERANCE
    assert model.training
    assert all(torch.equal(found.state[key], value) for key, value in model.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    model = copy.deepcopy(model).eval()
    for batch in (1, 5):
        given = export._batch_of(found.inputs, batch)
        with torch.no_grad():
            wanted = next(iter(export.tensors(export.call(model, given))))
        (outputs, *_) = onnx_outputs(path, list(export.tensors(given)))
        torch.testing.assert_close(torch.as_tensor(outputs), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "self_attention_batch_first", "two_inputs"])
def test_programs_of_a_pruned_network_take_any_batch(tmp_path, name):
    model, inputs = pruned(name)
    path = tmp_path / "model.pt2"
    assert export.export_program(model, inputs, path) <= export.TOLERANCE
    loaded = torch.export.load(path).module()
    given = export._batch_of(inputs, 4)
    with torch.no_grad():
        wanted = next(iter(export.tensors(export.call(model.eval(), given))))
        torch.testing.assert_close(next(iter(export.tensors(export.call(loaded, given)))), wanted)


class Different(nn.Module):
    """A network that computes something else while it is exported."""

    def forward(self, x):
        return x.flatten(1) + (1e-3 if torch.compiler.is_compiling() else 0.0)


@pytest.mark.parametrize(("function", "name"), [(export.export_onnx, "m.onnx"), (export.export_program, "m.pt2")])
def test_a_different_network_is_not_written(tmp_path, function, name):
    (tmp_path / name).write_text("old")
    with pytest.raises(ExportError, match=r"differs by \S+ of its largest output, more than 0.0001, with batch 1"):
        function(Different(), torch.randn(2, 3), tmp_path / name)
    assert (tmp_path / name).read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


class ReadsValues(nn.Module):
    def forward(self, x):
        return x if x.sum().item() > 0 else -x


def test_what_cannot_be_exported_is_one_line(tmp_path):
    with pytest.raises(ExportError, match=r"cannot be exported by torch\.export: \w+") as error:
        export.export_program(ReadsValues(), torch.randn(2, 3), tmp_path / "m.pt2")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_batch_that_the_network_itself_refuses_is_one_line():
    class Pairs(nn.Module):
        def forward(self, x):
            return x.view(x.shape[0] // 2, 2, -1)

    pairs = Pairs()
    with pytest.raises(ExportError, match="the network itself does not run with batch 1: shape") as error:
        export._largest_difference(pairs, lambda x: [pairs(x)], torch.randn(4, 3))
    assert "\n" not in str(error.value)


def test_outputs_that_are_not_finite_are_refused():
    with pytest.raises(ExportError, match="differs by nan"):
        export._difference([torch.tensor([1.0, float("nan")])], [torch.tensor([1.0, 1.0])], 1)


def test_another_number_or_shape_of_outputs_is_refused():
    with pytest.raises(ExportError, match=r"returns \[\(3,\)\] with batch 3, the network \[\(2,\)\]"):
        export._difference([torch.zeros(2)], [torch.zeros(3)], 3)


def test_missing_packages_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        ExportError, match=r"^ONNX export needs onnxscript: pip install '\.\[export\]' in a checkout of ifap$"
    ):
        ifap.export_onnx(nn.Linear(2, 2), torch.zeros(1, 2), tmp_path / "m.onnx")


def kinds(path):
    return {node.op_type for node in onnx.load(path).graph.node}


def test_convolutions_become_integers_with_calibration_data(tmp_path, exported):
    inputs, whole = exported("residual").inputs, exported("residual").path
    batches = [export._batch_of(inputs, 8, torch.Generator().manual_seed(seed)) for seed in range(3)]
    small = tmp_path / "small.onnx"
    export.quantize_onnx(whole, small, batches)
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds(small)
    (wanted,), (found,) = (export.onnx_forward(path.read_bytes())(batches[0]) for path in (whole, small))
    assert 0 < export.difference([wanted], [found]) < 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def test_linear_layers_become_integers_without_data(tmp_path, exported):
    inputs, whole = exported("vit").inputs, exported("vit").path
    small = tmp_path / "small.onnx"
    export.quantize_onnx(whole, small)
    assert "MatMulInteger" in kinds(small)
    assert small.stat().st_size < whole.stat().st_size
    (wanted,), (found,) = (export.onnx_forward(path.read_bytes())(inputs) for path in (whole, small))
    assert 0 < export.difference([wanted], [found]) < 0.1


def test_what_cannot_be_quantized_is_one_line(tmp_path, exported):
    ifap.export_onnx(nn.Sequential(nn.ReLU()), torch.randn(2, 3), tmp_path / "whole.onnx")
    with pytest.raises(ExportError, match=r"whole\.onnx: no layer of it can be quantized"):
        export.quantize_onnx(tmp_path / "whole.onnx", tmp_path / "small.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(ExportError, match="the network cannot be quantized: ") as caught:
        export.quantize_onnx(tmp_path / "broken.onnx", tmp_path / "small.onnx")
    assert "\n" not in str(caught.value)
    inputs, whole = exported("residual").inputs, exported("residual").path
    with pytest.raises(ExportError, match="the exported network takes 1 inputs, the network 2"):
        export.quantize_onnx(whole, tmp_path / "small.onnx", [(inputs, inputs)])
    assert not (tmp_path / "small.onnx").exists()


def test_differences_of_other_shapes_or_of_no_numbers_are_within_no_tolerance():
    ones, none = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert export.difference([ones], [ones]) == 0
    assert export.difference([2 * ones], [ones]) == 0.5
    assert export.difference([ones], [ones[:1]]) == float("inf")
    for wanted, found in (([ones, ones], [none, ones]), ([none, ones], [ones, ones])):
        assert not export.difference(wanted, found) <= export.TOLERANCE

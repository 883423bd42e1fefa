"""Export a network as ONNX or as a ``torch.export`` archive; each is compared with the network first."""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ifap.arguments import MODULE, NEW_FILE, checked
from ifap.axes.state import kept_state
from ifap.errors import ExportError, first_line, installation
from ifap.files import atomic_write_bytes, beside
from ifap.forward import Inputs, call, map_tensors, tensors

TOLERANCE = 1e-4
"""Largest accepted difference of an output, as a share of the largest value in it."""
BATCHES = (1, 3)
_TRACED_BATCH = 2  # a size of 1 would be taken for a constant
_LARGEST = 2**31 - 1  # bytes of one protocol buffer message


@checked(model=MODULE, path=NEW_FILE)
def export_onnx(model: nn.Module, example_inputs: Inputs, path: str | Path) -> float:
    """Write a network as one ONNX file whose batch size is free.

    The file is written only if onnxruntime computes from it what torch computes, on random inputs of
    batch 1 and 3.

    Parameters
    ----------
    model : nn.Module
        The network, pruned or not. It is exported in evaluation mode and is not changed.
    example_inputs : Tensor, tuple, list or dict
        What one forward takes; dimension 0 of every tensor is the batch.
    path : str or Path
        The file, for example ``model.onnx``; replaced at once.

    Returns
    -------
    float
        The largest difference found, as a share of the largest output.

    Raises
    ------
    ExportError
        If packages are missing, the network cannot be exported, or the file computes something
        else. No file is written then.

    Examples
    --------
    >>> ifap.export_onnx(ifap.load("small/", build), torch.zeros(1, 3, 224, 224), "small.onnx")
    """
    onnx_packages()
    twin = _twin(model)
    args, kwargs = as_arguments(_batch_of(example_inputs, _TRACED_BATCH))
    with _traceable("ONNX"):
        shapes = _free_batch(twin, args, kwargs)
        program = torch.onnx.export(twin, args, kwargs=kwargs, dynamo=True, dynamic_shapes=shapes, verbose=False)
        assert program is not None
        if sum(tensor.nbytes for tensor in twin.state_dict().values()) > _LARGEST:
            raise ExportError("the network is larger than 2 GiB, which one ONNX file cannot hold")
        content = program.model_proto.SerializeToString()
    with _said_in_one_line("read by onnxruntime"):
        run = onnx_forward(content)
    largest = _largest_difference(twin, run, example_inputs)
    atomic_write_bytes(Path(path), content)
    return largest


def export_program(model: nn.Module, example_inputs: Inputs, path: str | Path) -> float:
    """Write a network as a ``torch.export`` archive (``.pt2``) whose batch size is free.

    It runs without this package and without the network's code: ``torch.export.load(path).module()``.
    Open only archives that you trust.

    Parameters
    ----------
    model, example_inputs, path
        See `export_onnx`.

    Returns
    -------
    float
        See `export_onnx`.

    Raises
    ------
    ExportError
        If the network cannot be exported or the program computes something else.
    """
    twin = _twin(model)
    args, kwargs = as_arguments(_batch_of(example_inputs, _TRACED_BATCH))
    stream = io.BytesIO()
    with _traceable("torch.export"):
        shapes = _free_batch(twin, args, kwargs)
        known = inspect.signature(torch.export.export).parameters  # older versions of torch have no such option
        option = "prefer_deferred_runtime_asserts_over_guards"
        deferred: dict[str, Any] = {option: True} if option in known else {}
        program = torch.export.export(twin, args, kwargs, dynamic_shapes=shapes, **deferred)
        torch.export.save(program, stream)
    exported = program.module()
    largest = _largest_difference(twin, lambda batch: _outputs(exported, batch), example_inputs)
    atomic_write_bytes(Path(path), stream.getvalue())
    return largest


def quantize_onnx(source: str | Path, path: str | Path, batches: Iterable[Inputs] | None = None) -> None:
    """Write an ONNX network whose weights, and what it computes with them, are integers of 8 bits.

    Parameters
    ----------
    source : str or Path
        The file that `export_onnx` wrote.
    path : str or Path
        The file to write; replaced at once.
    batches : iterable, optional
        Calibration inputs. With them the ranges of activations are fixed beforehand (static), which convolutions need.
        Without them each forward finds its own (dynamic), and linear layers alone become integers: the better choice
        for networks of attention.

    Raises
    ------
    ExportError
        If packages are missing, a batch does not fit the network, or nothing in it can be quantized. No file is written
        then.

    Notes
    -----
    The outputs differ from those of the network: measure it on validation data.
    """
    onnx_packages()
    from onnxruntime import quantization

    weights = {"per_channel": True, "weight_type": quantization.QuantType.QInt8}
    with beside(Path(path), folder=True) as temporary, _said_in_one_line("quantized"):
        prepared, result = str(temporary / "prepared.onnx"), temporary / "result.onnx"
        quantization.quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
        if batches is None:
            kinds = {"op_types_to_quantize": ["MatMul", "Gemm"]}
            quantization.quantize_dynamic(prepared, str(result), **weights, **kinds)
        else:
            quantization.quantize_static(prepared, str(result), _Calibration(prepared, batches), **weights)
        content = result.read_bytes()
        if b"QLinear" not in content and b"Integer" not in content and b"QuantizeLinear" not in content:
            raise ExportError(f"{source}: no layer of it can be quantized")
    atomic_write_bytes(Path(path), content)


class _Calibration:
    """Calibration inputs one by one, as onnxruntime takes them."""

    def __init__(self, path: str, batches: Iterable[Inputs]) -> None:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._names = [each.name for each in session.get_inputs()]
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch by the names of the inputs; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else _named(self._names, batch)


def onnx_packages() -> None:
    """Import what ONNX export needs, or say how to get it."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise ExportError(f"ONNX export needs {name}: {installation('export')}") from None


def _twin(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).cpu().eval()


def as_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments of one forward."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _free_batch(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Mark dimension 0 of the tensors of each argument as dynamic, by argument name."""
    return {
        name: _free(value) for name, value in inspect.signature(model.forward).bind(*args, **kwargs).arguments.items()
    }


def _free(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return {0: torch.export.Dim.DYNAMIC}
    if isinstance(tree, Mapping):
        return {key: _free(value) for key, value in tree.items()}
    return type(tree)(map(_free, tree)) if isinstance(tree, (tuple, list)) else None


def _batch_of(inputs: Inputs, batch: int, generator: torch.Generator | None = None) -> Inputs:
    """Return random inputs of a batch size that are like the given ones."""

    def draw(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0:
            raise ExportError("an input without dimensions has no batch")
        shape = (batch, *tensor.shape[1:])
        if tensor.is_complex():
            return torch.randn(shape, generator=generator, dtype=tensor.dtype)
        if tensor.is_floating_point():
            return torch.randn(shape, generator=generator).to(tensor.dtype)
        high = int(tensor.max()) if tensor.numel() else 0
        return torch.randint(0, max(high, 0) + 1, shape, generator=generator).to(tensor.dtype)

    return map_tensors(inputs, draw)


@contextmanager
def _traceable(kind: str) -> Iterator[None]:
    """Prepare a network for export inside the block; errors are one line and warnings are hidden."""
    # The fast path of attention is one opaque operation that no exporter knows.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _said_in_one_line(f"exported by {kind}"), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _said_in_one_line(done: str) -> Iterator[None]:
    """Turn errors of an exporter into one line, and hide its warnings."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ExportError:
        raise
    except Exception as error:  # whatever an exporter raises about the user's network
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporters wrap it in their advice
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:300]
        raise ExportError(f"the network cannot be {done}: {type(cause).__name__}: {reason}") from error
    finally:
        logging.disable(level)


def onnx_forward(content: bytes) -> Callable[[Inputs], list[Tensor]]:
    """Return a function that runs the content of an ONNX file, on as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def forward(inputs: Inputs) -> list[Tensor]:
        return [torch.as_tensor(value) for value in session.run(None, _named(names, inputs))]

    return forward


def _named(names: Sequence[str], inputs: Inputs) -> dict[str, Any]:
    """Return the inputs of one forward by the names that an exported network has for them."""
    given = list(tensors(inputs))
    if isinstance(inputs, Mapping) and set(names) == set(inputs):
        given = [inputs[name] for name in names]
    if len(given) != len(names):
        raise ExportError(f"the exported network takes {len(names)} inputs, the network {len(given)}")
    return {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a network from the state that it has now, as the next batch will be."""
    with kept_state(model):
        return list(tensors(call(model, inputs)))


def _largest_difference(model: nn.Module, exported: Callable[[Inputs], Sequence[Tensor]], example: Inputs) -> float:
    """Compare a network and what was exported, on random inputs of each batch size."""
    largest = 0.0
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        inputs = _batch_of(example, batch, generator)
        with torch.no_grad():
            try:
                wanted = _outputs(model, inputs)
            except Exception as error:  # whatever a forward raises that wants certain batches
                reason = first_line(error)
                raise ExportError(f"the network itself does not run with batch {batch}: {reason}") from error
            try:
                found = exported(inputs)
            except ExportError:
                raise
            except Exception as error:  # whatever the other runtime raises
                reason = first_line(error)
                raise ExportError(f"the exported network does not run with batch {batch}: {reason}") from error
        largest = max(largest, _difference(wanted, found, batch))
    return largest


def _difference(wanted: Sequence[Tensor], found: Sequence[Tensor], batch: int) -> float:
    shapes = [[tuple(tensor.shape) for tensor in side] for side in (wanted, found)]
    if shapes[0] != shapes[1]:
        raise ExportError(f"the exported network returns {shapes[1]} with batch {batch}, the network {shapes[0]}")
    largest = difference(wanted, found)
    if not largest <= TOLERANCE:
        raise ExportError(
            f"the exported network differs by {largest:.2g} of its largest output, "
            f"more than {TOLERANCE:g}, with batch {batch}"
        )
    return largest


def difference(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest difference of outputs, each as a share of the largest value in it.

    It is infinite where their number or shapes differ, and not a number where a value is none.
    """
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
        return math.inf
    largest = 0.0
    for mine, other in zip(wanted, found, strict=True):
        if mine.numel():
            scale = max(float(mine.double().abs().max()), 1e-12)
            value = float((mine.double() - other.double()).abs().max()) / scale
            if not value <= largest:
                largest = value
            if math.isnan(value):
                break
    return largest

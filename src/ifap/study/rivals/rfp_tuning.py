"""The tuning of RFP: scales by least squares, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ifap.errors import ScoreError
from ifap.forward import call, device_of, evaluation_mode, to_device
from ifap.iterations import log
from ifap.study.config.rivals import RfpOptions
from ifap.study.rivals.blocks import Group, Part, matrix, scaled_units

Scales = dict[str, Tensor]


@dataclass(frozen=True)
class Solved:
    """One layer's least squares."""

    reader: str  # The layer whose units were scaled.
    scales: Tensor  # The solution, shape (kept units,).
    error: tuple[float, float]  # Squared distance from the teacher's output, before and after.
    used: bool  # Whether the scales are in range; those of later layers are not computed otherwise.


def least_squares(gram: Tensor, products: Tensor, damping: float) -> Tensor:
    """Return 1 + d for the d that minimises |G d - (p - G 1)|^2 + damping^2 |d|^2.

    For a system A x = b, `gram` is G = A^T A of the shape (n, n), and `products` is p = A^T b of the shape (n,).
    `damping` is positive.
    """
    one = torch.ones_like(products)
    system = torch.cat([gram, damping * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)])
    wanted = torch.cat([products - gram @ one, torch.zeros_like(products)])
    return one + torch.linalg.lstsq(system, wanted[:, None], driver="gels").solution[:, 0]


def tune(
    model: nn.Module,
    groups: Sequence[Group],
    teacher: Sequence[Tensor],
    kept: Sequence[Tensor],
    labelled: Labelled,
    loss: Loss,
    options: RfpOptions,
) -> tuple[Scales, list[Solved]]:
    """Scale the kept units of one layer after the other, so that its output is close to the teacher's.

    The first attention is left as it is. The last layer only counts where the loss depends on it: the first token of a
    BERT that classifies. Padding never counts.

    `model` is the unpruned network. `teacher` and `kept` are boolean masks of the shape (units,): those of the teacher
    and of the network that is tuned. For `loss` see `ifap.study.rivals.rfp.mask_gradients`. The scales are by the layer
    that reads the units, of the shape (units,). What was solved is in order.
    """
    where = device_of(model)
    widths = group_widths(groups)
    theirs = unit_masks(groups, teacher, where)
    ours = unit_masks(groups, kept, where)
    solved: list[Solved] = []
    order = in_order(model, groups)
    for number, (group, part) in enumerate(order):
        chosen = ours[part.reader] != 0
        if (number == 0 and group.kind == "heads") or not chosen.any():
            continue
        last = number == len(order) - 1
        system = _System(matrix(model.get_submodule(part.reader)).detach().double(), group, chosen)
        before = {reader: scale for reader, scale in ours.items() if reader != part.reader}
        for inputs, targets in labelled:
            placed = to_device(inputs, where)
            taught = _reach(model, placed, part, widths, theirs)
            own = _reach(model, placed, part, widths, before)
            rows = _tokens(model, placed, part, own.read)
            if last:
                rows &= _counts(model, placed, to_device(targets, where), loss, part.reader, widths, ours)
            system.add(own, taught, rows)
        if not system.rows:
            continue
        found = system.solve(part.reader, options)
        solved.append(found)
        log.info("%s: error %.4g -> %.4g", part.reader, *found.error)
        if not found.used:
            log.warning("tuning ends at '%s': a scale of %.3g", part.reader, float(found.scales.abs().max()))
            break
        ours[part.reader][chosen] = found.scales.to(ours[part.reader])
    return ours, solved


@dataclass(frozen=True)
class _Seen:
    """What a layer reads, and the stream that its output joins."""

    read: Tensor
    residual: Tensor


class _Reached(Exception):  # noqa: N818 (it is not an error)
    """The forward has come to the layer that is looked at."""


def _reach(model: nn.Module, inputs: Any, part: Part, widths: Mapping[str, int], scales: Scales) -> _Seen:
    """Run the network up to the layer that reads a block's units."""
    seen: dict[str, Tensor] = {}
    name, argument = part.residual

    def note(_: nn.Module, arguments: Any) -> None:
        seen["residual"] = arguments[argument]

    def stop(_: nn.Module, arguments: Any) -> None:
        seen["read"] = arguments[0]
        raise _Reached

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(scaled_units(model, widths, scales))
        for layer, hook in ((name, note), (part.reader, stop)):
            stack.callback(model.get_submodule(layer).register_forward_pre_hook(hook).remove)
        try:
            call(model, inputs)
        except _Reached:
            return _Seen(seen["read"], seen["residual"])
    raise ScoreError(f"a forward does not come to '{part.reader}'")


def _tokens(model: nn.Module, inputs: Any, part: Part, read: Tensor) -> Tensor:
    """Return which tokens are not padding, shape (samples, tokens)."""
    mask = _padding(model, inputs, part) if isinstance(inputs, dict) else None
    if mask is None or mask.shape != read.shape[:-1]:
        return torch.ones(read.shape[:-1], dtype=torch.bool, device=read.device)
    return mask.bool()


def _padding(model: nn.Module, inputs: Mapping[str, Any], part: Part) -> Tensor | None:
    decodes = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    # A decoder that is given no text of its own reads the encoder's.
    if decodes and ".decoder." in f".{part.name}" and {"decoder_attention_mask", "decoder_input_ids"} & set(inputs):
        return inputs.get("decoder_attention_mask")
    return inputs.get("attention_mask")


def _counts(
    model: nn.Module, inputs: Any, targets: Any, loss: Loss, reader: str, widths: Mapping[str, int], scales: Scales
) -> Tensor:
    """Return for which tokens the loss depends on the output of a layer, shape (samples, tokens)."""
    offsets: list[Tensor] = []

    def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        offsets.append(torch.zeros_like(output, requires_grad=True))
        return output + offsets[-1]

    handle = model.get_submodule(reader).register_forward_hook(add)
    try:
        with evaluation_mode(model), scaled_units(model, widths, scales):
            (gradient,) = torch.autograd.grad(loss(call(model, inputs), targets), offsets[-1:])
    finally:
        handle.remove()
    return (gradient != 0).any(dim=-1)


class _System:
    """The least squares of the chosen units of one layer, gathered batch by batch.

    Each token and output feature is a row of A, each unit a column: what the unit adds there. The rows
    are never made: with X what is read, W the weight and B the wanted outputs, the products of columns
    are sums over positions of (X^T X) * (W^T W), and those with the outputs of X * (B W). Attention has
    one more column, of ones, which is solved for and dropped.
    """

    def __init__(self, weight: Tensor, group: Group, chosen: Tensor) -> None:
        self._whole, self._group, self._count = weight, group, int(chosen.sum())
        self._places = chosen.repeat_interleave(group.width).nonzero().flatten()
        self._weight = weight[:, self._places]
        size = len(self._places)
        self._reads = weight.new_zeros(size, size)
        self._products, self._sums = weight.new_zeros(size), weight.new_zeros(size)
        self._wanted = self._squares = 0.0
        self.rows = 0

    def add(self, own: _Seen, taught: _Seen, rows: Tensor) -> None:
        """Add the tokens of a batch."""
        read = own.read[rows][:, self._places].double()
        wanted = taught.read[rows].double() @ self._whole.t() + (taught.residual - own.residual)[rows].double()
        self._reads += read.t() @ read
        self._products += (read * (wanted @ self._weight)).sum(dim=0)
        self._sums += read.sum(dim=0)
        self._wanted += float(wanted.sum())
        self._squares += float(wanted.square().sum())
        self.rows += len(read)

    def solve(self, reader: str, options: RfpOptions) -> Solved:
        """Return the scales of the chosen units."""
        gram, products = self.units()
        count = self._count
        try:
            found = least_squares(gram, products, options.damping)
        except RuntimeError:  # no solution, which torch says of rank-deficient or infinite systems
            found = torch.full_like(products, torch.nan)
        scales = found[:count]
        used = bool((scales.abs() <= options.largest_scale).all())

        def error(x: Tensor) -> float:
            return float(x @ gram @ x - 2 * x @ products) + self._squares

        plain = torch.cat([torch.ones_like(scales), torch.zeros_like(found[count:])])
        tuned = torch.cat([scales, torch.zeros_like(found[count:])])
        return Solved(reader, scales, (error(plain), error(tuned)), used)

    def units(self) -> tuple[Tensor, Tensor]:
        """Return A^T A and A^T b."""
        size, width = self._count, self._group.width
        gram = (self._reads * (self._weight.t() @ self._weight)).view(size, width, size, width).sum(dim=(1, 3))
        products = self._products.view(size, width).sum(dim=1)
        if self._group.kind == "neurons":
            return gram, products
        edge = (self._sums * self._weight.sum(dim=0)).view(size, width).sum(dim=1)
        corner = edge.new_tensor([self.rows * len(self._whole)])
        gram = torch.cat([torch.cat([gram, edge[:, None]], dim=1), torch.cat([edge, corner])[None]])
        return gram, torch.cat([products, edge.new_tensor([self._wanted])])


def unit_masks(groups: Sequence[Group], kept: Sequence[Tensor], where: torch.device) -> Scales:
    """Return masks over the units of each group: ones for those that are kept."""
    pairs = zip(groups, kept, strict=True)
    return {part.reader: mask.to(where, torch.float64) for group, mask in pairs for part in group.parts}


Labelled = Sequence[tuple[Any, Any]]
Loss = Callable[[Any, Any], Tensor]


def group_widths(groups: Iterable[Group]) -> dict[str, int]:
    """Return the number of units of each group."""
    return {part.reader: group.width for group in groups for part in group.parts}


def in_order(model: nn.Module, groups: Sequence[Group]) -> list[tuple[Group, Part]]:
    """Return the parts in the order in which the network runs them."""
    places = {name: place for place, (name, _) in enumerate(model.named_modules())}
    parts = [(group, part) for group in groups for part in group.parts]
    return sorted(parts, key=lambda pair: places[pair[1].reader])

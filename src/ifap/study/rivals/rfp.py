"""RFP: heads and neurons of a trained language model removed without training (Kwon et al., NeurIPS 2022).

Every head and every neuron has a mask variable of 1 that its output is multiplied by, and the loss of
some training samples a gradient g by each of them. A unit is worth the sum of its squared gradients (the
diagonal of the Fisher information). Then, in turn:

- *search*: for every number of heads, as many neurons as the budget allows, best first; the choice that
  is worth most is kept. No choice that costs more than the budget is looked at;
- *rearrangement*: within each layer units are exchanged where the squared norm of the summed gradients
  of those that go gets smaller, which takes in how units interact;
- *tuning*: layer by layer, the kept units are scaled so that the output comes close, in least squares,
  to that of a teacher: the network masked by a search at the square root of the constraint.

The scales go into the layers that read the units, and the units that are left out are cut away. Nothing
else changes and nothing is trained. The constraint is the whole network's here, like every target: what
cannot go (embeddings, pooler, head) is taken off the budget first.

The published search keeps heads that cost more than the budget, and may leave a layer nothing, with
which the models do not run: here each layer keeps its best unit. Where units of a kind differ in cost
(T5, whose decoder reads other lengths), they are taken by worth over cost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ifap.costs import Cost, cost, count_params, macs_by_module
from ifap.data import refuse_test
from ifap.errors import ConfigError, ScoreError, TargetError
from ifap.forward import call, device_of, evaluation_mode, private_copy, tensors, to_device
from ifap.layers import is_producer, sides
from ifap.results import Pruned, Receipt, Target
from ifap.saving import sliced_plan
from ifap.seeds import derive_seed
from ifap.study.config import RfpOptions
from ifap.study.rivals import SPARSE
from ifap.study.rivals.attention import heads, split_attention, sync
from ifap.study.rivals.base import Context, Outcome, options_of
from ifap.study.rivals.blocks import Group, Part, cut_units, find_groups, matrix, scaled_units, unit_price

log = logging.getLogger(__name__)

Labelled = Sequence[tuple[Any, Any]]
Loss = Callable[[Any, Any], Tensor]
Scales = dict[str, Tensor]
_NEARLY = 1e-9


@dataclass(frozen=True)
class Budget:
    """What the units may cost together.

    Parameters
    ----------
    kind : {'macs', 'params'}
        The cost.
    whole : int
        Cost of the unpruned network, of which the target is a share.
    prices : list of float
        Cost of one unit of each group.
    units : float
        Cost of all units; the rest of the network is not pruned.
    allowed : float
        What the kept units may cost.
    left : float
        Share of `whole` that may be left.
    """

    kind: str
    whole: int
    prices: list[float]
    units: float
    allowed: float
    left: float

    @property
    def constraint(self) -> float:
        """The published constraint: the share of the units' cost that may be left."""
        return self.allowed / self.units


@dataclass(frozen=True)
class Solved:
    """One layer's least squares.

    Parameters
    ----------
    reader : str
        The layer whose units were scaled.
    scales : Tensor, shape (kept units,)
        The solution.
    objective : tuple of float
        What is minimised, before (all scales 1) and after.
    error : tuple of float
        Squared distance from the teacher's output, before and after.
    used : bool
        Whether the scales are in range; those of later layers are not computed otherwise.
    """

    reader: str
    scales: Tensor
    objective: tuple[float, float]
    error: tuple[float, float]
    used: bool


@dataclass(frozen=True)
class Decision:
    """What was decided about a network.

    Parameters
    ----------
    kept : list of Tensor, shape (units,)
        Boolean mask of each group.
    scales : dict of str to Tensor, shape (units,)
        Scale of each unit by the layer that reads it; 0 where it goes.
    solved : list of Solved
        The layers that were tuned, in order.
    """

    kept: list[Tensor]
    scales: Scales
    solved: list[Solved]


# --- what units cost ------------------------------------------------------------------------------


def budget_of(
    model: nn.Module, groups: Sequence[Group], example_inputs: Any, target: Target, before: Cost | None = None
) -> Budget:
    """Return what the units may cost for a target of the whole network.

    Parameters
    ----------
    model, groups
        The network and its units.
    example_inputs : dict
        Inputs of one forward, of the length that MACs are counted at.
    target : Target
        Wanted reduction.
    before : Cost, optional
        What it is a reduction of, if that is not this network.

    Raises
    ------
    TargetError
        If the best unit of each layer alone costs more; the message says how far it goes.
    """
    macs = macs_by_module(model, example_inputs)
    here = count_params(model) if target.kind == "params" else sum(macs.values())
    whole = here if before is None else getattr(before, target.kind)
    prices = [unit_price(group, model, target.kind, macs) for group in groups]
    units = sum(price * group.units for price, group in zip(prices, groups, strict=True))
    allowed = whole * (1 - target.share) - (here - units)
    if allowed < sum(prices):
        reach = 1 - (here - units + sum(prices)) / whole
        raise TargetError(
            f"target: {target.kind}={target.share:g} cannot be reached by removing heads and neurons: at most "
            f"{reach:.4f}; every layer keeps one"
        )
    return Budget(target.kind, whole, prices, units, allowed, 1 - target.share)


# --- importance -----------------------------------------------------------------------------------


def mask_gradients(
    model: nn.Module, groups: Sequence[Group], labelled: Labelled, loss: Loss, *, per_sample: bool = False
) -> list[Tensor]:
    """Return the gradients of the loss by the masks of all units.

    Parameters
    ----------
    model : nn.Module
        The trained network; it is run in evaluation mode.
    groups : list of Group
        Its units.
    labelled : sequence of (inputs, targets)
        Batches.
    loss : callable
        ``loss(outputs, targets)`` returns the mean over the samples of a batch.
    per_sample : bool, optional
        One gradient a sample, which does not depend on how samples are batched; else one a batch.

    Returns
    -------
    list of Tensor, shape (batches or samples, units)
        One for each group.
    """
    found: list[list[Tensor]] = [[] for _ in groups]
    where = device_of(model)
    for inputs, targets in labelled:
        samples = len(targets)
        # A mask of its own for every sample: samples do not meet in a forward, so one backward has all.
        masks = [torch.ones(samples, 1, group.units, device=where, requires_grad=True) for group in groups]
        scales = {part.reader: mask for group, mask in zip(groups, masks, strict=True) for part in group.parts}
        with evaluation_mode(model), scaled_units(model, _widths(groups), scales):
            value = loss(call(model, to_device(inputs, where)), to_device(targets, where))
            gradients = torch.autograd.grad(value, masks)
        for rows, gradient in zip(found, gradients, strict=True):
            each = gradient.squeeze(1).double()
            rows.append(samples * each if per_sample else each.sum(dim=0, keepdim=True))
    if not found or not found[0]:
        raise ScoreError("there are no labelled data: give at least one batch of inputs and targets")
    joined = [torch.cat(rows).cpu() for rows in found]
    for group, gradient in zip(groups, joined, strict=True):
        if not torch.isfinite(gradient).all():
            raise ScoreError(f"'{group.name}': gradients are not finite on the labelled data")
    return joined


def fisher(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return the diagonal of the Fisher information of each group: summed squared gradients, shape (units,)."""
    return [rows.square().sum(dim=0) for rows in gradients]


# --- search ---------------------------------------------------------------------------------------


def search(
    importance: Sequence[Tensor],
    prices: Sequence[float],
    kinds: Sequence[str],
    allowed: float,
    *,
    least: int = 1,
) -> list[Tensor]:
    """Return the units that are worth most together and cost no more than is allowed.

    Exact where all heads cost the same, and all neurons.

    Parameters
    ----------
    importance : sequence of Tensor, shape (units,)
        What each unit of each group is worth; not negative.
    prices : sequence of float
        Cost of one unit of each group.
    kinds : sequence of {'heads', 'neurons'}
        What each group is of.
    allowed : float
        The budget.
    least : int, optional
        Units that each group keeps, the best of it.

    Returns
    -------
    list of Tensor, shape (units,)
        Boolean masks.

    Raises
    ------
    TargetError
        If those that each group keeps cost more.
    """
    heads, neurons = (_Pool(importance, prices, kinds, kind, least) for kind in ("heads", "neurons"))
    best: tuple[float, int, int] | None = None
    for number in range(heads.least, len(heads.order) + 1):
        left = allowed - float(heads.costs[number])
        if left < float(neurons.costs[neurons.least]):
            break
        others = int(torch.searchsorted(neurons.costs, torch.tensor(left, dtype=torch.float64), right=True)) - 1
        worth = float(heads.worths[number] + neurons.worths[others])
        if best is None or worth > best[0]:
            best = (worth, number, others)
    if best is None:
        need = float(heads.costs[heads.least] + neurons.costs[neurons.least])
        raise TargetError(f"the budget is {allowed:g}, and the units that every layer keeps cost {need:g}")
    kept = [torch.zeros(len(values), dtype=torch.bool) for values in importance]
    for pool, number in ((heads, best[1]), (neurons, best[2])):
        for group, unit in pool.order[:number]:
            kept[group][unit] = True
    return kept


class _Pool:
    """All units of one kind, best first, and what the first n of them cost and are worth."""

    def __init__(
        self, importance: Sequence[Tensor], prices: Sequence[float], kinds: Sequence[str], kind: str, least: int
    ) -> None:
        groups = [number for number, own in enumerate(kinds) if own == kind]
        sizes = [len(importance[number]) for number in groups]
        none = torch.empty(0, dtype=torch.float64)
        worth = torch.cat([none, *(importance[number].double().cpu() for number in groups)])
        price = torch.cat(
            [none, *(torch.full((n,), prices[g], dtype=torch.float64) for n, g in zip(sizes, groups, strict=True))]
        )
        spared = torch.cat([none, *(_best(importance[number], least) for number in groups)])
        ranked = torch.argsort(worth / price, descending=True, stable=True)
        ranked = ranked[torch.argsort(spared[ranked], descending=True, stable=True)]
        units = [(group, unit) for group, size in zip(groups, sizes, strict=True) for unit in range(size)]
        zero = torch.zeros(1, dtype=torch.float64)
        self.order = [units[position] for position in ranked.tolist()]
        self.costs = torch.cat([zero, price[ranked].cumsum(0)])
        self.worths = torch.cat([zero, worth[ranked].cumsum(0)])
        self.least = int(spared.sum())


def _best(values: Tensor, count: int) -> Tensor:
    """Return 1 for the `count` largest values, of equal ones the first, and 0 for the rest."""
    chosen = torch.zeros(len(values), dtype=torch.float64)
    chosen[torch.argsort(values.cpu(), descending=True, stable=True)[:count]] = 1
    return chosen


# --- rearrangement --------------------------------------------------------------------------------


def rearrange(kept: Tensor, gradients: Tensor) -> Tensor:
    """Exchange kept units of a group for others where that hurts less; their number stays.

    What is made smaller is the squared norm of the summed gradients of all that go (block-diagonal
    Fisher information). It starts from those of least importance; each of the others, by rising
    importance, joins them once, and the one whose return helps most comes back.

    Parameters
    ----------
    kept : Tensor, shape (units,)
        Boolean mask.
    gradients : Tensor, shape (batches or samples, units)
        From `mask_gradients`.

    Returns
    -------
    Tensor, shape (units,)
        Boolean mask.
    """
    gone = int((~kept).sum())
    if gone in {0, len(kept)}:
        return kept.clone()
    ranked = torch.argsort(gradients.square().sum(dim=0), stable=True)
    out = ranked[:gone].tolist()
    norms = gradients.square().sum(dim=0)
    total = gradients[:, out].sum(dim=1)
    for unit in ranked[gone:].tolist():
        # The newcomer is last, so that of equal choices an exchange is made only if something is gained.
        trial, members = total + gradients[:, unit], [*out, unit]
        after = trial.square().sum() - 2 * trial @ gradients[:, members] + norms[members]
        back = int(after.argmin())
        if after[back] < after[-1]:
            total = trial - gradients[:, members[back]]
            out = [*members[:back], *members[back + 1 :]]
    found = torch.ones_like(kept)
    found[out] = False
    return found


# --- tuning ---------------------------------------------------------------------------------------


def least_squares(gram: Tensor, products: Tensor, damping: float) -> Tensor:
    """Return 1 + d for the d that minimises |G d - (p - G 1)|^2 + damping^2 |d|^2.

    Parameters
    ----------
    gram : Tensor, shape (n, n)
        G = A^T A of the system A x = b.
    products : Tensor, shape (n,)
        p = A^T b.
    damping : float
        Positive.
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

    The first attention is left as it is. The last layer only counts where the loss depends on it: the
    first token of a BERT that classifies. Padding never counts.

    Parameters
    ----------
    model : nn.Module
        The unpruned network.
    groups : list of Group
        Its units.
    teacher, kept : list of Tensor, shape (units,)
        Boolean masks of the teacher and of the network that is tuned.
    labelled, loss
        See `mask_gradients`.
    options : RfpOptions
        Damping and the range of the scales.

    Returns
    -------
    scales : dict of str to Tensor, shape (units,)
        By the layer that reads the units.
    solved : list of Solved
        What was solved, in order.
    """
    where = device_of(model)
    widths = _widths(groups)
    theirs = _masks(groups, teacher, where)
    ours = _masks(groups, kept, where)
    solved: list[Solved] = []
    order = _in_order(model, groups)
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

        def objective(x: Tensor) -> float:
            return float((gram @ x - products).square().sum() + options.damping**2 * (x - 1).square().sum())

        def error(x: Tensor) -> float:
            return float(x @ gram @ x - 2 * x @ products) + self._squares

        one = torch.ones_like(found)
        plain = torch.cat([torch.ones_like(scales), torch.zeros_like(found[count:])])
        tuned = torch.cat([scales, torch.zeros_like(found[count:])])
        return Solved(reader, scales, (objective(one), objective(found)), (error(plain), error(tuned)), used)

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


# --- all together ---------------------------------------------------------------------------------


def decide(
    model: nn.Module, groups: Sequence[Group], labelled: Labelled, loss: Loss, budget: Budget, options: RfpOptions
) -> Decision:
    """Return which units stay, and how they are scaled; the network is left as it was.

    Parameters
    ----------
    model, groups, labelled, loss
        See `mask_gradients`.
    budget : Budget
        What the units may cost.
    options : RfpOptions
        Which steps are taken, and how.
    """
    refuse_test(labelled, "scoring")
    with _frozen(model):
        gradients = mask_gradients(model, groups, labelled, loss, per_sample=options.per_sample)
        worth, kinds = fisher(gradients), [group.kind for group in groups]
        kept = search(worth, budget.prices, kinds, budget.allowed)
        if options.rearrange:
            kept = [rearrange(mask, rows) for mask, rows in zip(kept, gradients, strict=True)]
        if not options.tune:
            return Decision(kept, _masks(groups, kept, device_of(model)), [])
        teacher = search(worth, budget.prices, kinds, budget.constraint**0.5 * budget.units)
        scales, solved = tune(model, groups, teacher, kept, labelled, loss, options)
    return Decision(kept, scales, solved)


def prune_units(
    model: nn.Module, example_inputs: Any, labelled: Labelled, loss: Loss, target: Target, options: RfpOptions
) -> tuple[Pruned, Decision]:
    """Remove heads and neurons of a trained language model without training it.

    Parameters
    ----------
    model : nn.Module
        A BERT, GPT-2 or T5 with any head, trained for the task. It is not modified.
    example_inputs : dict
        Inputs of one forward, of the length that MACs are counted at.
    labelled : sequence of (inputs, targets)
        Batches of training samples; gone through several times. Never the test split.
    loss : callable
        ``loss(outputs, targets)`` returns the mean over the samples of a batch.
    target : Target
        Wanted reduction of the whole network.
    options : RfpOptions
        Which steps are taken, and how.

    Returns
    -------
    pruned : Pruned
        As from `ifap.prune`.
    decision : Decision
        What was decided.

    Raises
    ------
    ConfigError
        If the network has no blocks of a known family.
    TargetError
        If the target cannot be reached.
    ScoreError
        If there are no data, or gradients are not finite.
    """
    small = private_copy(model)
    split = split_attention(small)
    groups = find_groups(small)
    if not groups:
        raise ConfigError(f"method 'rfp' is not defined for {type(model).__name__}: it has no transformer blocks")
    before = cost(model, example_inputs)
    budget = budget_of(small, groups, example_inputs, target, before)
    decision = decide(small, groups, labelled, loss, budget, options)
    kept = fold_and_cut(small, groups, decision)
    after = cost(small, example_inputs)
    left = getattr(after, budget.kind)
    if left > budget.whole * budget.left * (1 + _NEARLY):
        raise TargetError(f"target: {budget.kind}={target.share:g} was missed: {left} of {budget.whole} are left")
    plan = sliced_plan(kept, split, heads(small), example_inputs, before, after)
    return Pruned(small, plan, _receipts(model, small, decision, budget, before, after), before, after), decision


@torch.no_grad()
def fold_and_cut(model: nn.Module, groups: Sequence[Group], decision: Decision) -> dict[str, dict[str, list[int]]]:
    """Multiply the scales into the weights and cut away what goes, in place; returns what stays, as in a plan."""
    for group in groups:
        for part in group.parts:
            weight = matrix(model.get_submodule(part.reader))
            weight.mul_(decision.scales[part.reader].to(weight).repeat_interleave(group.width))
    kept = cut_units(model, groups, [mask.nonzero().flatten().cpu() for mask in decision.kept])
    sync(model)
    return kept


class Rfp:
    """`prune_units` on a draw of training samples."""

    start: ClassVar[Literal["baseline", "init"]] = RfpOptions.start
    structure: ClassVar[Literal["channels", "weights"]] = RfpOptions.structure
    tasks: ClassVar[frozenset[str]] = RfpOptions.tasks

    def run(self, context: Context) -> Outcome:
        """Prune the trained network; there is no training."""
        options: RfpOptions = options_of(context, RfpOptions)
        model = context.baseline()
        inputs = to_device(context.example_inputs, device_of(model))
        drawn = draw(context, options)
        pruned, decision = prune_units(model, inputs, drawn, context.task.loss, context.target, options)
        metrics = [
            context.task.evaluate(network, context.validation, options.batch_size)[context.task.primary]
            for network in (model, pruned.model)
        ]
        start, end = pruned.receipts
        receipts = [
            replace(start, metric_before=None, metric_after=metrics[0]),
            replace(end, metric_before=metrics[0], metric_after=metrics[1]),
        ]
        # One backward a sample, and at most two forwards for each layer that was tuned.
        spent = (3 + 2 * len(decision.solved)) * options.samples * _per_sample(pruned.before, context.example_inputs)
        return Outcome(
            model=pruned.model.eval(),
            masks={},
            split_attention=pruned.plan.split_attention,
            history=[],
            events=[],
            training_macs=spent,
            dense_training_macs=spent,
            cut=Pruned(pruned.model, pruned.plan, receipts, pruned.before, pruned.after),
        )


SPARSE.register("rfp")(Rfp())


def draw(context: Context, options: RfpOptions) -> Labelled:
    """Return batches of training samples, drawn with replacement by the context's seed."""
    generator = torch.Generator().manual_seed(derive_seed(context.seed, "rfp"))
    rows = torch.randint(len(context.train), (options.samples,), generator=generator)
    return [context.train.read(some) for some in rows.split(options.batch_size)]


# --- helpers --------------------------------------------------------------------------------------


def _widths(groups: Iterable[Group]) -> dict[str, int]:
    return {part.reader: group.width for group in groups for part in group.parts}


def _masks(groups: Sequence[Group], kept: Sequence[Tensor], where: torch.device) -> Scales:
    pairs = zip(groups, kept, strict=True)
    return {part.reader: mask.to(where, torch.float64) for group, mask in pairs for part in group.parts}


def _in_order(model: nn.Module, groups: Sequence[Group]) -> list[tuple[Group, Part]]:
    places = {name: place for place, (name, _) in enumerate(model.named_modules())}
    parts = [(group, part) for group in groups for part in group.parts]
    return sorted(parts, key=lambda pair: places[pair[1].reader])


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no gradient reach parameters: only those of masks are wanted."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _receipts(
    model: nn.Module, small: nn.Module, decision: Decision, budget: Budget, before: Cost, after: Cost
) -> list[Receipt]:
    def widths(network: nn.Module) -> dict[str, int]:
        return {name: sides(module)["out"] for name, module in network.named_modules() if is_producer(module)}

    total = sum(len(mask) for mask in decision.kept)
    removed = sum(int((~mask).sum()) for mask in decision.kept)
    asked = round(budget.whole * budget.left)
    return [
        Receipt(0, before.macs, before.params, widths=widths(model)),
        Receipt(
            1,
            after.macs,
            after.params,
            units_asked=removed,
            units_removed=removed,
            macs_asked=asked if budget.kind == "macs" else after.macs,
            params_asked=asked if budget.kind == "params" else after.params,
            rho=removed / total,
            widths=widths(small),
        ),
    ]


def _per_sample(whole: Cost, example_inputs: Any) -> int:
    return whole.macs // len(next(tensors(example_inputs)))

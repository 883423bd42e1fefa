"""PDP over channels: soft gates that follow from the weights, hard at the end (Cho et al. 2023; a rival).

The paper's weight w becomes the norm n of a unit, everything that goes together with a channel:

    m = sigmoid((n^2 - t^2) / tau) ,    n^2 = sum of the squared weights that produce the unit .

The weights are multiplied by m in every forward, and gradients flow through both factors. There is
no further parameter and no term in the loss. No code of the authors is public; the formulas are
theirs, and what they leave open for channels is chosen here:

- coupled layers share one m: n^2 sums over all of them;
- biases and the scales and shifts of norms are multiplied as well, because a norm would undo the
  gate of the convolution before it;
- how many units each width loses is ranked once, after the warm-up, by norms relative to their
  group's mean, for the wanted MACs and above the floors of `ifap.prune`;
- tau = `sharpness` * t^2 in each group: norms of channels are far larger than single weights, so
  that a fixed tau would make every gate hard from the start.

Nothing is scored by activations, so that nothing is registered as a scoring method here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize

from ifap.axes.attention import adopt
from ifap.axes.units import Floats, Graph, Indices
from ifap.costs import Cost, count_params, macs_by_module
from ifap.errors import TargetError
from ifap.forward import Inputs
from ifap.layers import is_norm, is_producer, unit_rows
from ifap.methods.units import spread
from ifap.pruning import prune
from ifap.ranking import Budget, Ranking, floors
from ifap.results import Pruned, Target
from ifap.saving.plans import pruned_plan
from ifap.view import trace


class PdpChannel:
    """A `ifap.study.training.controller.Controller` that prunes channels while a network is trained.

    Give it to `ifap.study.training.fit.fit`, then call `pruned`. `network` is the one that will be trained, on its
    device. Its ``nn.MultiheadAttention`` modules read their widths from their weights from now on, so that heads can be
    gated.

    `warmup` and `ramp` are shares of the steps, together at most 1: those that are plain training, and those that the
    number of gated units then takes to rise linearly to the target; by default the published 16 and 67 epochs of 100.
    `sharpness` is tau over t^2 and positive: small values are nearly hard. For the other limits see `ifap.prune`.
    Raises a TargetError in training if the target cannot be reached.
    """

    def __init__(
        self,
        network: nn.Module,
        example_inputs: Inputs,
        target: Target,
        *,
        warmup: float = 0.16,
        ramp: float = 0.67,
        sharpness: float = 0.05,
        min_units: int = 2,
        max_layer_ratio: float = 0.95,
        round_to: int | None = None,
        spatial_only: bool = False,
        ignore: Iterable[str | nn.Module] = (),
    ) -> None:
        self._network, self._inputs, self._target = network, example_inputs, target
        self._warmup, self._ramp, self._sharpness = warmup, ramp, sharpness
        self._limits, self._round_to = (min_units, max_layer_ratio), round_to
        self._pins = {"ignore": tuple(ignore), "spatial_only": spatial_only}
        adopt(network)
        self._graph: Graph = trace(network, example_inputs, ignore, spatial_only=spatial_only)
        self._macs = macs_by_module(network, example_inputs)
        self._before = Cost(sum(self._macs.values()), count_params(network))
        self._layers = _gated_layers(network, self._graph)
        self._lost: Indices | None = None
        self._steps = 0
        self._squares: Tensor | None = None  # t^2 of each unit's group; none before the ramp
        self._gates: Tensor | None = None
        self._hook: Any = None
        self._scores: Floats | None = None

    # what training calls

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int, steps_per_epoch: int) -> None:
        """Put the gates in."""
        if model is not self._network:
            raise TargetError("the controller belongs to another network: create it with the one that is trained")
        self._steps = steps
        for layer in self._layers:
            for name in layer.tensors:
                parametrize.register_parametrization(layer.module, name, _Gate(self, layer, name), unsafe=True)
        # Once a forward, not once a step: a batch that is split into parts runs backward several times.
        self._hook = model.register_forward_pre_hook(lambda *_: self._open())

    def before_step(self, step: int) -> None:
        """Move the thresholds to where the ramp is."""
        first = round(self._warmup * self._steps)
        if step < first:
            return
        length = max(1, round(self._ramp * self._steps))
        self._set_thresholds(min(1.0, (step - first + 1) / length))

    def after_backward(self, step: int) -> bool:
        """Leave the gradients as they are."""
        return True

    def after_step(self, step: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Decide: take the gates out and set to zero what is below the threshold.

        What is kept has its plain weights, as in PDP's hard mask.
        """
        self._set_thresholds(1.0)
        norms, removed = self._norms(), self._removed()
        limits = np.ones(len(norms)) if self._squares is None else self._squares.sqrt().double().cpu().numpy()
        self._scores = norms / np.maximum(limits, 1e-30)
        self._hook.remove()
        for layer in self._layers:
            for name in layer.tensors:
                parametrize.remove_parametrizations(layer.module, name, leave_parametrized=False)
        keep = torch.ones(len(norms) + 1)
        keep[removed] = 0.0
        with torch.no_grad():
            for layer in self._layers:
                for name in layer.tensors:
                    tensor = getattr(layer.module, name)
                    tensor.copy_(layer.scaled(tensor, keep.to(tensor)[layer.units], name))

    def state(self) -> dict[str, Tensor]:
        """Return how many units each group will lose, once that is decided."""
        return {} if self._lost is None else {"lost": torch.from_numpy(self._lost.copy())}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        self._lost = tensors["lost"].cpu().numpy() if "lost" in tensors else None

    # afterwards

    def pruned(self) -> Pruned:
        """Cut the units below the threshold out of a copy of the trained network.

        As from `ifap.prune`; its outputs are those of the trained network. Raises a TargetError if training has not
        finished, or the network still costs more than the target.
        """
        scores = self._scores
        if scores is None:
            raise TargetError("nothing is decided yet: train the network first")
        smaller = self._graph.without(self._removed())
        plan = pruned_plan(self._network, smaller, self._inputs, self._before, self._before)

        def below(model: nn.Module, *_: Any, graph: Graph, **__: Any) -> dict[str, Tensor]:
            return spread(graph, scores, pinned=1.0)

        result = prune(self._network, self._inputs, (), like=plan, steps=1, method=below, **self._pins)  # type: ignore[arg-type]
        reduction = result.after.reduction(self._before, self._target.kind)
        if reduction < self._target.share:
            raise TargetError(f"target {self._target.kind}={self._target.share:g} was missed: {reduction:.4f}")
        return result

    # gates

    def gates(self) -> Tensor:
        """Return m of every unit, as a function of the present weights, and a 1 for what is in no unit."""
        squares = self._squared_norms()
        one = squares.new_ones(1)
        if self._squares is None:
            return torch.cat([torch.ones_like(squares), one])
        limit = self._squares.to(squares)
        tau = (self._sharpness * limit).clamp_min(1e-20)
        gates = torch.sigmoid((squares - limit) / tau)
        return torch.cat([torch.where(limit >= 0, gates, torch.ones_like(gates)), one])

    def _open(self) -> None:
        self._gates = self.gates()

    def gate(self, layer: _Layer) -> Tensor:
        """Return m of each output position of a layer."""
        gates = self.gates() if self._gates is None else self._gates
        return gates[layer.units.to(gates.device)]

    def _squared_norms(self) -> Tensor:
        """Return n^2 of every unit, differentiable, shape (units,)."""
        total: Tensor | None = None
        for layer in self._layers:
            if not layer.produces:
                continue
            rows = layer.rows().float().square().sum(dim=1)
            if total is None:
                total = rows.new_zeros(self._graph.num_units + 1)
            total = total.index_add(0, layer.units.to(rows.device), rows)
        assert total is not None
        return total[:-1]

    @torch.no_grad()
    def _norms(self) -> Floats:
        norms: Floats = self._squared_norms().double().sqrt().cpu().numpy()
        return norms

    def _set_thresholds(self, share: float) -> None:
        """Put t of each group half way between the last unit that is lost and the first that is kept."""
        norms = self._norms()
        if self._lost is None:
            self._lost = self._allocate(norms)
        limits = np.full(len(self._graph.groups), -1.0)  # nothing lost: every gate is 1
        for group, lost in enumerate(np.round(share * self._lost).astype(int)):
            if lost:
                ordered = np.sort(norms[self._graph.group_of == group])
                limits[group] = ((ordered[lost - 1] + ordered[lost]) / 2) ** 2
        self._squares = torch.from_numpy(limits[self._graph.group_of]).float()
        self._gates = None

    def _allocate(self, norms: Floats) -> Indices:
        """Return how many units each group has to lose for the target."""
        sizes, groups = self._graph.units_per_group(), self._graph.group_of
        means = np.bincount(groups, weights=norms, minlength=len(sizes)) / np.maximum(sizes, 1)
        scores = norms / np.maximum(means, 1e-30)[groups]
        limits = floors(self._graph, sizes, *self._limits)
        ranking = Ranking(self._graph, scores, limits, Budget(self._graph), self._round_to)
        goal = getattr(self._before, self._target.kind) * (1.0 - self._target.share)
        count = ranking.smallest_count(self._target.kind, goal)
        if count is None:
            least = getattr(ranking.cost(ranking.num_candidates), self._target.kind)
            reach = 1.0 - least / getattr(self._before, self._target.kind)
            raise TargetError(
                f"target {self._target.kind}={self._target.share:g} cannot be reached: at most {reach:.3f}; every "
                f"layer keeps min_units={self._limits[0]} and max_layer_ratio={self._limits[1]:g} may go"
            )
        return ranking.nearest(count, self._target.kind, goal)

    def _removed(self) -> Indices:
        """Return the units that go: the lowest norms of each group, ties by number."""
        assert self._lost is not None
        values = self._norms() if self._scores is None else self._scores
        order = np.lexsort((np.arange(len(values)), values, self._graph.group_of))
        starts = np.concatenate([[0], np.cumsum(self._graph.units_per_group())[:-1]])
        chosen = [order[start : start + lost] for start, lost in zip(starts, self._lost, strict=True)]
        return np.sort(np.concatenate(chosen))


class _Layer:
    """A layer, or a weight outside a layer, whose outputs are gated.

    `module` is a producer, a norm, or the module that holds the weight. `units` has the shape (outputs,): the unit of
    each output position, or the number of units where it is pinned. `alone` is the name of a tensor outside a layer
    inside the module, and the dimension that counts its outputs.
    """

    def __init__(self, module: nn.Module, units: Tensor, alone: tuple[str, int] | None = None) -> None:
        self.module, self.units, self._alone = module, units, alone
        names = ("weight",) if isinstance(module, nn.Embedding) else ("weight", "bias")
        self.tensors = [name for name in names if module._parameters.get(name) is not None]
        self.produces = is_producer(module)
        if alone is not None:
            self.tensors = [alone[0]]
            self.produces = module.get_parameter(alone[0]).dim() > 1

    def rows(self) -> Tensor:
        """Return the weights as they are trained, without gates, one row an output."""
        if self._alone is not None:
            return _raw(self.module, self._alone[0]).movedim(self._alone[1], 0).flatten(1)
        return unit_rows(self.module, _raw(self.module, "weight"))

    def scaled(self, tensor: Tensor, gates: Tensor, name: str) -> Tensor:
        """Multiply each output position of one of the tensors by its gate, shape (outputs,)."""
        if self._alone is not None:
            return tensor * gates.view(-1, *(1,) * (tensor.dim() - 1 - self._alone[1]))
        return _scaled(self.module, tensor, gates, name)


class _Gate(nn.Module):
    """The parametrization of one tensor: its values times the gates of their outputs."""

    def __init__(self, owner: PdpChannel, layer: _Layer, name: str) -> None:
        super().__init__()
        self._owner, self._layer, self._name = (owner,), (layer,), name  # in tuples: no submodules of the network

    def forward(self, tensor: Tensor) -> Tensor:
        layer = self._layer[0]
        return layer.scaled(tensor, self._owner[0].gate(layer).to(tensor.dtype), self._name)


def _gated_layers(network: nn.Module, graph: Graph) -> list[_Layer]:
    modules, found = dict(network.named_modules()), []
    homes = {each.weight.rpartition(".")[0] for each in graph.structure.producers}
    for slot, units in zip(graph.slots, graph.unit_of, strict=True):
        if not (units >= 0).any():
            continue
        gated = torch.from_numpy(np.where(units >= 0, units, graph.num_units))
        module, home = modules.get(slot.name), slot.name.rpartition(".")
        if module is not None and slot.side == "out" and (is_producer(module) or is_norm(module)):
            found.append(_Layer(module, gated))
        elif home[0] in homes and home[2] in modules[home[0]]._parameters and _makes(graph, slot.name, slot.side):
            found.append(_Layer(modules[home[0]], gated, (home[2], int(slot.side.removeprefix("dim")))))
    return found


def _makes(graph: Graph, name: str, side: str) -> bool:
    """Whether a dimension of a tensor counts outputs: of a weight that makes units, or of a bias beside one."""
    dims = {each.weight: each.dim for each in graph.structure.producers}
    return side == f"dim{dims[name]}" if name in dims else name.endswith("bias")


def _raw(module: nn.Module, name: str) -> Tensor:
    """Return a tensor of a layer as it is trained, without its gate."""
    if parametrize.is_parametrized(module, name):
        original: Tensor = module.parametrizations[name].original  # type: ignore[union-attr, index]
        return original
    return module.get_parameter(name)


def _scaled(module: nn.Module, tensor: Tensor, gates: Tensor, name: str) -> Tensor:
    """Multiply each output position of a layer's tensor by its gate, shape (outputs,)."""
    if name == "bias" or tensor.dim() == 1:
        return tensor * gates
    if isinstance(module, nn.Embedding):
        return tensor * gates
    if isinstance(module, _ConvTransposeNd):
        by_group = tensor.unflatten(0, (module.groups, -1))
        shape = (module.groups, 1, -1) + (1,) * (tensor.dim() - 2)
        return (by_group * gates.view(shape)).flatten(0, 1)
    return tensor * gates.view(-1, *(1,) * (tensor.dim() - 1))

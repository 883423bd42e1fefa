"""Make the plans of networks: of one that lost nothing, and of one that was cut."""

from __future__ import annotations

from torch import nn

from ifap.axes.attention import ShapedAttention
from ifap.axes.sequences import listed
from ifap.axes.units import Graph, Slot
from ifap.costs import Cost, cost
from ifap.example_inputs import input_spec
from ifap.forward import Inputs
from ifap.plan import AttributeSize, Builder, CallSequence, CallSize, Costs, Plan


def unpruned_plan(model: nn.Module, example_inputs: Inputs, builder: Builder | None = None) -> Plan:
    """Return the plan of a network that lost nothing, for saving a baseline in the same format."""
    whole = cost(model, example_inputs)
    return Plan(builder=builder or Builder(), example_inputs=input_spec(example_inputs), costs=_costs(whole, whole))


def pruned_plan(model: nn.Module, graph: Graph, example_inputs: Inputs, before: Cost, after: Cost) -> Plan:
    """Return the plan of a network that `graph` describes.

    `graph` knows which positions are left. The costs are those of the unpruned and of the pruned network.
    """
    kept: dict[str, dict[str, list[int]]] = {}
    widths = zip(graph.slots, graph.structure.places, graph.kept, graph.original_widths, strict=True)
    for slot, places, left, width in widths:
        is_cut = len(left) < width or _has_a_width_of_its_own(slot, graph)
        if is_cut and (places or slot.side == "in"):  # what a tied layer makes is cut under its first name
            kept.setdefault(slot.name, {})[slot.side] = left.tolist()
    corrections = graph.corrections()
    return Plan(
        kept=kept,
        attention=[name for name, module in model.named_modules() if isinstance(module, ShapedAttention)],
        attributes=[
            AttributeSize(module=key[0], path=list(key[1:]), value=value)
            for key, value in corrections.attributes.items()
        ],
        calls=[
            CallSize(
                module=each.module,
                function=each.function,
                ordinal=each.ordinal,
                path=list(each.path),
                value=each.value,
                fraction=None if each.fraction is None else list(each.fraction),
                before=each.before,
            )
            for each in corrections.arguments
        ],
        sequences=[
            CallSequence(module=module, function=function, forms=listed(sequence.forms), again=sequence.again or 0)
            for (module, function), sequence in corrections.sequences.items()
        ],
        biases=sorted(graph.structure.biases),
        example_inputs=input_spec(example_inputs),
        costs=_costs(before, after),
    )


def joined(former: Plan | None, plan: Plan) -> Plan:
    """Return the plan of a network that was pruned twice: it leads from what the first plan begins with to the end.

    `former` is the plan of the network that `plan` begins with, or None if that was not pruned. The calls of `plan`
    are corrected from what the forward writes, so that they replace the former.
    """
    if former is None:
        return plan
    attributes = {(each.module, *each.path): each for each in (*former.attributes, *plan.attributes)}
    again = {(each.module, each.function) for each in plan.calls}
    before = {"macs_before": former.costs.macs_before, "params_before": former.costs.params_before}
    return plan.model_copy(
        update={
            "builder": former.builder,
            "kept": {
                name: _joined_sides(former.kept.get(name, {}), plan.kept.get(name, {}))
                for name in {**former.kept, **plan.kept}
            },
            "attention": [*dict.fromkeys((*former.attention, *plan.attention))],
            "attributes": [*attributes.values()],
            "calls": [*(each for each in former.calls if (each.module, each.function) not in again), *plan.calls],
            "sequences": [
                *(each for each in former.sequences if (each.module, each.function) not in again), *plan.sequences,
            ],
            "biases": sorted({*former.biases, *plan.biases}),
            "costs": plan.costs.model_copy(update=before),
        }
    )  # fmt: skip


def _joined_sides(former: dict[str, list[int]], kept: dict[str, list[int]]) -> dict[str, list[int]]:
    sides = {side: [former[side][place] for place in left] if side in former else left for side, left in kept.items()}
    return {**former, **sides}


def _has_a_width_of_its_own(slot: Slot, graph: Graph) -> bool:
    """Whether a tensor of a layer does not follow the layer's width, such as a bias whose weight is cut by itself."""
    return slot.side.startswith("dim") and graph.slot(slot.name.rpartition(".")[0], "out") is not None


def sliced_plan(
    kept: dict[str, dict[str, list[int]]],
    split: list[str],
    heads: dict[str, int],
    example_inputs: Inputs,
    before: Cost,
    after: Cost,
) -> Plan:
    """Return the plan, of version 1, of a network that was cut without a graph; see `Plan` for what is given."""
    return Plan(
        format=1,
        split_attention=split,
        kept=kept,
        heads=heads,
        example_inputs=input_spec(example_inputs),
        costs=_costs(before, after),
    )


def _costs(before: Cost, after: Cost) -> Costs:
    return Costs(macs_before=before.macs, macs_after=after.macs, params_before=before.params, params_after=after.params)

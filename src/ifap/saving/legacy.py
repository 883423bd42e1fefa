"""Networks of plans of version 1: what was replaced before they were cut, and what their forwards read.

Version 1 cut layers, so that attention was first given layers that can be cut: ``nn.MultiheadAttention``
became `SplitAttention`, a linear layer whose weight is stored as (in, out) became ``nn.Linear``, or
`JoinedProjections` where it held queries, keys and values together, and attention that shares a table of
relative positions with its stack got a table of its own. A plan lists the modules that were replaced in
``split_attention``; the names of the stored tensors tell how. After loading, numbers of heads and widths
that a forward reads from attributes follow from the shapes of the layers.

What is replaced is recognised by its shape and by the names of its parts. Only torch's classes are known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ifap.axes.cut import follow_shapes
from ifap.errors import PlanError
from ifap.layers import is_norm, modules_by_name, sides
from ifap.saving.legacy_attention import (
    FUSED,
    HEAD_TABLE,
    Gated,
    SpatialAttention,
    SplitAttention,
    can_split,
    from_transposed,
    give_table,
    has_positions,
    is_fused,
    is_transposed,
    joined_from_transposed,
    known_heads,
    nearest_table,
    split,
)
from ifap.saving.rebuilding import Kept, check_positions, put_weights

if TYPE_CHECKING:
    from ifap.plan import Plan


def restore_split(model: nn.Module, names: Iterable[str], stored_names: Collection[str]) -> set[str]:
    """Replace what was replaced before a network was cut, in place.

    `names` is ``split_attention`` of the plan; `stored_names` includes second names of tensors. Returns those of
    `names` that were replaced: version 1 would have replaced none of the others.
    """
    wanted, stored = set(names), set(stored_names)
    modules = modules_by_name(model)
    replaced = set()
    for name, module in modules.items():
        if name not in wanted:
            continue
        if isinstance(module, nn.MultiheadAttention):
            new: nn.Module | None = split(module) if can_split(module) else None
        elif is_transposed(module):
            new = joined_from_transposed(module) if f"{name}.q.weight" in stored else from_transposed(module)
        elif has_positions(module):
            needs_table = f"{name}.{HEAD_TABLE}.weight" in stored
            give_table(module, nearest_table(name, modules) if needs_table else None)
            new = module
        else:
            new = None
        if new is not None:
            if new is not module:
                model.set_submodule(name, new)
            replaced.add(name)
    return replaced


def restore_diffusion(model: nn.Module, stored_names: Collection[str]) -> None:
    """Replace attention and gated layers of a diffusion network that is stored with those replaced, in place.

    No plan lists them: networks of version 1 were built so.
    """
    stored = set(stored_names)
    for name, module in modules_by_name(model).items():
        parts = module._modules
        if f"{name}.attend.q.weight" in stored and {"to_q", "to_k", "to_v", "to_out"} <= parts.keys():
            model.set_submodule(name, SpatialAttention(module).train(module.training))
        elif {f"{name}.value.weight", f"{name}.gate.weight"} <= stored and isinstance(parts.get("proj"), nn.Linear):
            model.set_submodule(name, Gated(module.proj).train(module.training))


def refresh_heads(model: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Let the attributes that forwards of attention read follow from the shapes of the layers, in place.

    The layers must have their final shapes. `names` are the keys of ``heads`` of the plan. Returns the number of heads
    of each that is attention; query heads that share keys count as one.
    """
    modules, found = modules_by_name(model), {}
    for name in names:
        module = modules.get(name)
        known = None if module is None else known_heads(module)
        if module is None or known is None:
            continue
        layers, width = [module.get_submodule(part) for part in known.layers], getattr(module, known.head_dim)
        total = module.proj.in_features if known is FUSED else layers[0].out_features
        if known.number:
            setattr(module, known.number, total // width)
        for attribute in known.widths:
            if hasattr(module, attribute):
                setattr(module, attribute, total)
        found[name] = total // width if known is FUSED else layers[1].out_features // width
    return found


def refresh_widths(model: nn.Module) -> None:
    """Let widths that a module checks its input against follow from its layers, in place."""
    for module in modules_by_name(model).values():
        own, parts = vars(module), module._modules
        conv = parts.get("conv")
        if isinstance(conv, nn.Conv2d) and {"channels", "out_channels", "use_conv"} <= own.keys():
            module.channels, module.out_channels = conv.in_channels, conv.out_channels
        patches = parts.get("conv_proj")
        if isinstance(patches, nn.Conv2d) and {"hidden_dim", "patch_size"} <= own.keys():
            module.hidden_dim = patches.out_channels


def rebuild(model: nn.Module, plan: Plan, weights: Mapping[str, Tensor]) -> None:
    """Give a network the structure of a plan of version 1 and the stored weights, in place.

    `model` is the unpruned network; `weights` holds the stored tensors without masks. Raises a PlanError if the plan or
    the tensors belong to another network.
    """
    stored = {*weights, *plan.shared}
    missing = set(plan.split_attention) - restore_split(model, plan.split_attention, stored)
    if missing:
        raise PlanError(f"the network has no attention module '{min(missing)}' to split")
    restore_diffusion(model, stored)
    _narrow_bare_norms(model, plan.kept)
    touched = put_weights(model, plan, weights)
    for name in touched:
        _keep_group_sizes(model.get_submodule(name))
    follow_shapes(model, touched)
    heads = refresh_heads(model, plan.heads)
    refresh_widths(model)
    if heads != plan.heads or not _certain_attention(model) <= heads.keys():
        raise PlanError("the numbers of attention heads differ from those in the plan")


# --- recognising ------------------------------------------------------------------------------------


def _certain_attention(model: nn.Module) -> set[str]:
    """Return the attention modules that every plan of version 1 lists, whatever else looks like attention."""
    return {
        name
        for name, module in modules_by_name(model).items()
        if isinstance(module, SplitAttention) or is_fused(module)
    }


# --- shapes -----------------------------------------------------------------------------------------


def _narrow_bare_norms(model: nn.Module, kept: Kept) -> None:
    """Give norms without tensors the widths that a plan keeps, in place."""
    for name, module in modules_by_name(model).items():
        if not is_norm(module) or "out" not in kept.get(name, {}) or next(iter(module.state_dict()), None):
            continue
        left, width = kept[name]["out"], sides(module)["out"]
        check_positions(name, "out", left, width)
        if isinstance(module, nn.GroupNorm):
            module.num_groups, module.num_channels = len(left) * module.num_groups // width, len(left)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            module.normalized_shape = (len(left),)
        else:
            module.num_features = len(left)


def _keep_group_sizes(module: Any) -> None:
    """Let the number of groups of a convolution or norm follow from its width: a group keeps its size."""
    if isinstance(module, nn.GroupNorm):
        module.num_groups = len(module.weight) * module.num_groups // module.num_channels
    elif isinstance(module, _ConvNd):
        old = module.in_channels if module.transposed else module.out_channels
        module.groups = len(module.weight) * module.groups // old if module.groups > 1 else 1

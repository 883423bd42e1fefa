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

import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ifap.errors import PlanError, counted
from ifap.layers import cut, cut_tensor, modules_by_name, refresh, replace_tensor, sides
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
from ifap.saving.rebuilding import check_names

if TYPE_CHECKING:
    from ifap.plan import Plan


def restore_split(model: nn.Module, names: Iterable[str], stored_names: Collection[str]) -> set[str]:
    """Replace what was replaced before a network was cut, in place.

    Parameters
    ----------
    model : nn.Module
        The unpruned network.
    names : iterable of str
        ``split_attention`` of the plan.
    stored_names : collection of str
        Names of the stored tensors, second names included.

    Returns
    -------
    set of str
        Those of `names` that were replaced; the rest is nothing that version 1 would have.
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

    Parameters
    ----------
    model : nn.Module
        The network, with layers of their final shapes.
    names : iterable of str
        Attention modules, the keys of ``heads`` of the plan.

    Returns
    -------
    dict of str to int
        Number of heads of each that is attention; query heads that share keys count as one.
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

    Parameters
    ----------
    model : nn.Module
        The unpruned network.
    plan : Plan
        Of version 1.
    weights : mapping of str to Tensor
        The stored tensors, without masks.

    Raises
    ------
    PlanError
        If the plan or the tensors belong to another network.
    """
    stored = {*weights, *plan.shared}
    missing = set(plan.split_attention) - restore_split(model, plan.split_attention, stored)
    if missing:
        raise PlanError(f"the network has no attention module '{min(missing)}' to split")
    restore_diffusion(model, stored)
    original = slot_widths(model)
    check_kept(plan, original)
    targets = model.state_dict()
    check_names(plan, weights, targets)
    tied = [pair for pair in plan.shared.items() if _held(model, pair[0]) is _held(model, pair[1])]
    for name, tensor in weights.items():
        _resize(model, name, targets[name], tensor)
    for alias, name in tied:
        parent, _, leaf = alias.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _held(model, name))
    _cut_unsaved(model, plan, stored)
    for module in model.modules():
        if sides(module):
            refresh(module)
    heads = refresh_heads(model, plan.heads)
    refresh_widths(model)
    model.load_state_dict({**weights, **{alias: weights[name] for alias, name in plan.shared.items()}})
    check_widths(model, plan, original)
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


def slot_widths(model: nn.Module) -> dict[tuple[str, str], int]:
    """Return the width of each side of each layer, and of each dimension of each parameter and buffer."""
    widths = {(name, side): size for name, module in model.named_modules() for side, size in sides(module).items()}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        widths.update({(name, f"dim{dim}"): size for dim, size in enumerate(tensor.shape)})
    return widths


def check_kept(plan: Plan, original: Mapping[tuple[str, str], int]) -> None:
    """Refuse positions that the unpruned network does not have."""
    for name, by_side in plan.kept.items():
        for side, left in by_side.items():
            width = original.get((name, side))
            if width is None:
                raise PlanError(f"kept: the network has no '{side}' side of '{name}'")
            ascending = all(a < b for a, b in itertools.pairwise(left))
            if not left or not ascending or left[-1] >= width:
                raise PlanError(f"kept: '{name}' {side}: positions must ascend within 0..{width - 1}")


def check_widths(model: nn.Module, plan: Plan, original: Mapping[tuple[str, str], int]) -> None:
    """Refuse layers that have not as many units as the plan keeps."""
    present = slot_widths(model)
    for (name, side), width in original.items():
        left = plan.kept.get(name, {}).get(side)
        expected = width if left is None else len(left)
        if (left is not None or not side.startswith("dim")) and present[name, side] != expected:
            raise PlanError(f"'{name}' {side}: {counted(present[name, side], 'unit')} stored, {expected} in the plan")


def _resize(model: nn.Module, name: str, old: Tensor, stored: Tensor) -> None:
    if stored.dtype != old.dtype:
        raise PlanError(f"tensor '{name}' is stored as {stored.dtype}, the network has {old.dtype}")
    if stored.dim() != old.dim() or any(new > whole for new, whole in zip(stored.shape, old.shape, strict=True)):
        raise PlanError(f"tensor '{name}' is stored as {list(stored.shape)}, which cannot come from {list(old.shape)}")
    if stored.shape != old.shape:
        parent, _, leaf = name.rpartition(".")
        empty = torch.empty(stored.shape, dtype=stored.dtype, device=old.device)
        replace_tensor(model.get_submodule(parent), leaf, empty)


def _held(model: nn.Module, name: str) -> Any:
    """Return the parameter or buffer that a network holds under a name."""
    parent, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(parent), leaf)


def _cut_unsaved(model: nn.Module, plan: Plan, stored: Collection[str]) -> None:
    """Cut what has a width but no stored tensor: norms without weights, buffers that are not saved."""
    modules, owners = dict(model.named_modules()), {name.rpartition(".")[0] for name in stored}
    for name, by_side in plan.kept.items():
        keep = {side: torch.tensor(left) for side, left in by_side.items()}
        if name in modules:
            if name not in owners:
                cut(modules[name], keep)
        elif name not in stored:
            parent, _, leaf = name.rpartition(".")
            for side, positions in keep.items():
                cut_tensor(model.get_submodule(parent), leaf, positions, int(side.removeprefix("dim")))

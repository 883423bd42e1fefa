"""What no pass reached: it follows one of its kind that was reached, or what its neighbours share with it stays."""

from __future__ import annotations

from torch import nn

from ifap.axes.expressions import Expression, Reason, pin, resolve, size_of, unify
from ifap.axes.trace import Axes
from ifap.layers import is_within, parameters_by_name


def not_reached(model: nn.Module, axes: Axes) -> set[str]:
    """Return the parameters that no pass has used."""
    names = (name for name, p in parameters_by_name(model).items() if p.numel() > 1)
    return {name for name in names if name in axes.dims and name not in axes.reached}


def follow_siblings(model: nn.Module, axes: Axes) -> None:
    """Let layers that no pass reached follow one of their kind that was, or pin what their neighbours share."""
    missing = not_reached(model, axes)
    if not missing:
        return
    modules = dict(model.named_modules())
    for root in _unreached_modules(modules, missing):
        sibling = next((name for name in modules if _is_sibling(modules, name, root, missing)), None)
        if sibling is not None:
            _follow(axes, modules[root], root, sibling)
        else:
            _pin_neighbours(modules, axes, root, missing)
    for name in missing - axes.reached:
        for dim in axes.dims.get(name, ()):
            pin(dim, Reason("the sample does not reach it", name.rpartition(".")[0]))


def _follow(axes: Axes, module: nn.Module, root: str, sibling: str) -> None:
    """Let a module that no pass reached follow one of its kind."""
    for inner, _ in (*module.named_parameters(), *module.named_buffers()):
        mine, other = (axes.dims.get(f"{base}.{inner}", ()) for base in (root, sibling))
        for a, b in zip(mine, other, strict=True):
            unify(a, b, Reason(f"the sample does not reach '{root}', which follows '{sibling}'", root))
        axes.reached.add(f"{root}.{inner}")


def _pin_neighbours(modules: dict[str, nn.Module], axes: Axes, root: str, missing: set[str]) -> None:
    """Pin the axes around a module or parameter that no pass reached and that it may share, by their sizes."""
    parent = root.rpartition(".")[0]
    names = [name for name in missing if is_within(name, root)]
    dims = [dim for name in names for dim in axes.dims[name] if size_of(dim) > 1]
    if root not in modules:
        dims = _follow_beside(modules, axes, root, missing)
    sizes = {size_of(dim) for dim in dims}
    reason = Reason(f"the sample does not reach '{root}', which may read or make it", root)
    for name, seen in axes.seen.items():
        if name == parent or name.rpartition(".")[0] == parent:
            for dim in seen:
                if size_of(dim) in sizes:
                    pin(dim, reason)


def _follow_beside(modules: dict[str, nn.Module], axes: Axes, name: str, missing: set[str]) -> list[Expression]:
    """Let a parameter that no pass reached follow those beside it where they leave no doubt; returns what is left."""
    owner = name.rpartition(".")[0]
    beside: dict[int, list[Expression]] = {}
    for leaf, _ in modules[owner].named_parameters(recurse=False):
        other = f"{owner}.{leaf}" if owner else leaf
        if other not in missing:
            for dim in axes.dims[other]:
                beside.setdefault(size_of(dim), []).append(resolve(dim))
    left = []
    for dim in axes.dims[name]:
        found = beside.get(size_of(dim), [])
        if size_of(dim) > 1 and found and all(each is found[0] for each in found):
            unify(dim, found[0], Reason(f"the sample does not reach '{name}', which follows its neighbours", name))
        elif size_of(dim) > 1:
            left.append(dim)
    axes.reached.add(name)
    for dim in left:
        pin(dim, Reason("the sample does not reach it", owner))
    return left


def _unreached_modules(modules: dict[str, nn.Module], missing: set[str]) -> list[str]:
    """Return the outermost modules all of whose parameters no pass reached, and parameters that stand alone."""
    found: list[str] = []
    for name, module in modules.items():
        own = [f"{name}.{inner}" if name else inner for inner, p in module.named_parameters() if p.numel() > 1]
        inside = any(is_within(name, other) for other in found)
        if name and own and not inside and all(each in missing for each in own):
            found.append(name)
    alone = [each for each in missing if not any(each.startswith(f"{root}.") for root in found)]
    return found + sorted(alone)


def _is_sibling(modules: dict[str, nn.Module], name: str, root: str, missing: set[str]) -> bool:
    if root not in modules or name == root or name.rpartition(".")[0] != root.rpartition(".")[0]:
        return False
    mine, other = modules[root], modules[name]
    shapes = [{inner: p.shape for inner, p in each.named_parameters()} for each in (mine, other)]
    reached = not any(f"{name}.{inner}" in missing for inner in shapes[1])
    return type(mine) is type(other) and shapes[0] == shapes[1] and reached

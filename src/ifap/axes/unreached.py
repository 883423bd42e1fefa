"""Assign axes to layers that no forward used, or pin the axes that they may share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from torch import nn

from ifap.axes.code import is_torchs, names_used
from ifap.axes.expressions import Expression, Reason, atoms_of, pin, resolve, size_of, unify
from ifap.axes.trace import Axes
from ifap.layers import is_within, parameters_by_name


def not_reached(model: nn.Module, axes: Axes) -> set[str]:
    """Return the parameters that no pass has used."""
    names = (name for name, p in parameters_by_name(model).items() if p.numel() > 1)
    return {name for name in names if name in axes.dims and name not in axes.reached}


def follow_siblings(model: nn.Module, axes: Axes) -> None:
    """Assign axes to layers that no forward used, or pin the axes that they may share.

    A layer of the same shapes as a used one may still be used elsewhere, such as before that one instead of beside it.
    Members of one list or dict of layers, such as experts, follow where the used members show their axes.
    """
    missing = not_reached(model, axes)
    if not missing:
        return
    modules = dict(model.named_modules())
    roots = {root: _example(modules, axes, root, missing) for root in _unreached_modules(modules, missing)}
    used = names_used(modules.values())
    for root, example in roots.items():
        if example is not None:
            _follow(axes, modules[root], root, example)
        elif _may_run(modules, root, used):
            _pin_neighbours(modules, axes, root, missing)
    for name in missing - axes.reached:
        for dim in axes.dims.get(name, ()):
            pin(dim, Reason("the sample does not reach it", name.rpartition(".")[0]))


def _may_run(modules: dict[str, nn.Module], root: str, used: set[str] | None) -> bool:
    """Whether code may use a module or parameter that no forward used; `used` is from `names_used`."""
    parent, _, attribute = root.rpartition(".")
    if root not in modules or used is None or is_torchs(type(modules[parent])):  # parts of a list are iterated over
        return True
    return attribute in used


def _example(modules: dict[str, nn.Module], axes: Axes, root: str, missing: set[str]) -> str | None:
    """Return a sibling of an unused module whose axes the module can take over, or None."""
    siblings = [name for name in modules if _is_sibling(modules, name, root, missing)]
    if not siblings:
        return None
    uses = Counter(atom for dims in axes.dims.values() for atom in _atoms(dims))
    is_listed = isinstance(modules[root.rpartition(".")[0]], (nn.ModuleList, nn.ModuleDict))
    if is_listed and _stand_beside(modules[root], axes, siblings, uses):
        return siblings[0]
    return siblings[0] if _is_unambiguous(modules[root], axes, siblings[0], uses) else None


def _is_unambiguous(module: nn.Module, axes: Axes, sibling: str, uses: Counter[int]) -> bool:
    """Whether each shared axis is the only axis of its size in the calling module."""
    dims = _dims_of(module, axes, sibling)
    shared = _shared(dims, sibling, uses)
    there: dict[int, set[int]] = {}
    for dim in _handled(axes, _caller(axes, sibling)):
        there.setdefault(size_of(dim), set()).add(id(resolve(dim)))
    return all(
        there.get(size_of(dim), set()) <= {id(resolve(dim))} for dim in dims if not shared.isdisjoint(_atoms([dim]))
    )


def _stand_beside(module: nn.Module, axes: Axes, siblings: list[str], uses: Counter[int]) -> bool:
    """Whether used siblings determine the axes of another sibling.

    They do if two of them read and make the same axes. They also do if a sibling shares a single axis with other
    modules, such as the stream of a residual network: the position of the other sibling makes no difference then.
    """
    first, *others = ((name, _dims_of(module, axes, name)) for name in siblings)
    name, dims = first
    shared = _shared(dims, name, uses)
    if len({id(resolve(dim)) for dim in dims if not shared.isdisjoint(_atoms([dim]))}) < 2:
        return True
    return any(
        all(
            resolve(a) is resolve(b) or shared.union(_shared(its, other, uses)).isdisjoint(_atoms([a, b]))
            for a, b in zip(dims, its, strict=True)
        )
        for other, its in others
    )


def _dims_of(module: nn.Module, axes: Axes, root: str) -> list[Expression]:
    """Return the axes of the parameters and buffers of a module that is like `module`."""
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    return [dim for name in names for dim in axes.dims.get(f"{root}.{name}", ())]


def _shared(dims: list[Expression], root: str, uses: Counter[int]) -> set[int]:
    """Return the atoms that modules outside `root` also use or pin."""
    own = Counter(_atoms(dims))
    pinned = [atom for dim in dims for atom in atoms_of(dim) if atom.pin is not None]
    staying = {id(atom) for atom in pinned if atom.pin is not None and not is_within(atom.pin.module, root)}
    return staying | {atom for atom, count in own.items() if uses[atom] > count}


def _handled(axes: Axes, caller: str) -> Iterator[Expression]:
    """Yield the axes that a module and its direct callees handle."""
    for name, seen in axes.seen.items():
        if caller == name or (name and caller == _caller(axes, name)):
            yield from seen


def _atoms(dims: Iterable[Expression]) -> Iterator[int]:
    for dim in dims:
        yield from map(id, atoms_of(dim))


def _caller(axes: Axes, name: str) -> str:
    """Return the innermost module around a module or parameter that has a forward, which lists of layers lack."""
    parent = name.rpartition(".")[0]
    return parent if not parent or parent in axes.seen else _caller(axes, parent)


def _follow(axes: Axes, module: nn.Module, root: str, sibling: str) -> None:
    """Unify the axes of an unused module with those of its sibling."""
    for inner, _ in (*module.named_parameters(), *module.named_buffers()):
        mine, other = (axes.dims.get(f"{base}.{inner}", ()) for base in (root, sibling))
        for a, b in zip(mine, other, strict=True):
            unify(a, b, Reason(f"the sample does not reach '{root}', which follows '{sibling}'", root))
        axes.reached.add(f"{root}.{inner}")


def _pin_neighbours(modules: dict[str, nn.Module], axes: Axes, root: str, missing: set[str]) -> None:
    """Pin the axes in the caller of an unused module or parameter that have the size of one of its axes."""
    caller = _caller(axes, root)
    names = [name for name in missing if is_within(name, root)]
    dims = [dim for name in names for dim in axes.dims[name] if size_of(dim) > 1]
    if root not in modules:
        dims = _follow_beside(modules, axes, root, missing)
    sizes = {size_of(dim) for dim in dims}
    reason = Reason(f"the sample does not reach '{root}', which may read or make it; give batches that do", root)
    for dim in _handled(axes, caller):
        if size_of(dim) in sizes:
            pin(dim, reason)


def _follow_beside(modules: dict[str, nn.Module], axes: Axes, name: str, missing: set[str]) -> list[Expression]:
    """Unify an unused parameter with the parameters beside it where sizes are unambiguous; returns the other axes."""
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
    """Return the outermost modules without any used parameter, and the unused parameters outside of these."""
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

"""Read ``params.yaml`` and check it: a mistake is one line with the key and the nearest valid choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import yaml

from ifap.errors import ConfigError, first_line, nearest
from ifap.files import read_bounded
from ifap.registry import entry_names
from ifap.study.config.params import SECTIONS, Params, Refined, ScaleParams, TableParams, TaskGrid, Variant
from ifap.study.config.recipes import PruneOptions
from ifap.study.config.refining import (
    for_task,
    mask_options,
    method_names,
    options_type,
    refine,
    refine_method,
    refine_recovery,
)
from ifap.study.config.validation import VALUE_ERRORS, validated
from ifap.study.config.values import StepName, family

# A parameter file may come from anyone: bounds on its bytes, on what its aliases stand for and on its grid.
_MAX_BYTES = 2**18
_MAX_VALUES = 100_000
_MAX_CELLS = 1_000_000


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check ``params.yaml``.

    Raises a ConfigError: one line that names the key and the nearest valid choice.
    """
    path = Path(path)
    try:
        raw = _parse_yaml(read_bounded(path, _MAX_BYTES).decode())
    except FileNotFoundError:
        raise ConfigError(f"{path} not found: run from the project's root") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, *VALUE_ERRORS, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {first_line(error)}") from None
    return parse_params(raw, source=str(path))


def _parse_yaml(text: str) -> Any:
    """Read YAML of plain values in which no key stands twice and aliases do not multiply it."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return how many values a node stands for, every alias written out; `sizes` holds those that are known."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ValueError(f"an alias inside of what it stands for, line {node.start_mark.line + 1}")
        return sizes[id(node)]
    sizes[id(node)], size = 0, 1
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            size += _expanded(key, sizes) + _expanded(value, sizes)
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise ValueError(f"key '{key.value[:40]}' stands twice, again in line {key.start_mark.line + 1}")
                keys.add(key.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_expanded(item, sizes) for item in node.value)
    if size > _MAX_VALUES:
        raise ValueError(f"more than {_MAX_VALUES} values, aliases written out, by line {node.start_mark.line + 1}")
    sizes[id(node)] = size
    return size


def parse_params(raw: object, source: str = "params.yaml") -> Params:
    """Check a mapping as ``params.yaml`` would be; see `load_params`."""
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: expected a mapping at the top, got {type(raw).__name__}")
    params = validated(Params, raw, source)
    for key in ("scale", "published"):
        if getattr(params, key) not in params.scales:
            name = getattr(params, key)
            raise ConfigError(f"{source}: {key}: unknown scale '{name}': {nearest(name, params.scales)}")
    for step in get_args(StepName):
        if step not in params.versions:
            raise ConfigError(f"{source}: versions: {step}: key is missing")
    _check_names(f"{source}: versions_of", params.versions_of, "model", entry_names("ifap.study.models"))
    for scale, block in params.scales.items():
        _check_scale(block, f"{source}: scales.{scale}")
    return params


def select_scale(params: Params, scale: str | None) -> str:
    """Return `scale`, or the default of `params`, after checking that it exists."""
    chosen = scale or params.scale
    if chosen not in params.scales:
        raise ConfigError(f"unknown scale '{chosen}': {nearest(chosen, params.scales)}")
    return chosen


def _check_parts(where: str, scale: ScaleParams, grid: TaskGrid) -> None:
    _check_names(f"{where}.models_of", grid.models_of, "data set of the grid", grid.datasets)
    for name, models in grid.models_of.items():
        _check_names(f"{where}.models_of.{name}", models, "model of the grid", grid.models)
    where = f"{where}.only"
    _check_names(where, grid.only, "method of the grid", grid.methods)
    for name, part in grid.only.items():
        _check_names(f"{where}.{name}.datasets", part.datasets or (), "data set of the grid", grid.datasets)
        _check_names(f"{where}.{name}.models", part.models or (), "model of the grid", grid.models)
        if (part.seeds or 0) > len(scale.seeds):
            raise ConfigError(f"{where}.{name}.seeds: the scale has {len(scale.seeds)} seeds, not {part.seeds}")


def _check_like(where: str, name: str, scale: ScaleParams, grid: TaskGrid) -> None:
    """Refuse widths of what is not in the grid, does not cut channels by itself, or has fewer seeds."""
    like = scale.variants[name].like if name in scale.variants else None
    if like is None:
        return
    _check_names(where, [like], "method of the grid", set(grid.methods) - {name})
    other = scale.variants.get(like, Variant(method=like))
    if other.like is not None or mask_options(other.method) is not None or mask_options(scale.variants[name].method):
        raise ConfigError(f"{where}: only widths that a score has chosen can be taken, by a method that scores units")
    if grid.only.get(like) not in (None, grid.only.get(name)):
        raise ConfigError(f"{where}: '{like}' runs on a part of the grid only, '{name}' on another (only)")


def _check_scale(scale: ScaleParams, where: str) -> None:
    for task, grid in scale.grid.items():
        points = 1 + len(scale.targets.macs) + len(scale.targets.params)
        cells = points * len(grid.datasets) * len(grid.models) * len(grid.methods) * len(scale.seeds)
        if cells > _MAX_CELLS:
            raise ConfigError(f"{where}.grid.{task}: more than {_MAX_CELLS:,} cells: split the scale")
        _check_names(where + ".grid", [task], "task", entry_names("ifap.study.tasks"))
        _check_names(f"{where}.grid.{task}.datasets", grid.datasets, "data set", entry_names("ifap.study.data"))
        _check_names(f"{where}.grid.{task}.datasets", grid.datasets, "data set with options", scale.datasets)
        _check_names(f"{where}.grid.{task}.models", grid.models, "model", entry_names("ifap.study.models"))
        _check_names(f"{where}.grid.{task}.methods", grid.methods, "method", {*method_names(), *scale.variants})
        _check_parts(f"{where}.grid.{task}", scale, grid)
        for name in grid.methods:
            method = scale.variants[name].method if name in scale.variants else name
            _check_task(f"{where}.grid.{task}.methods", method, task)
            _check_like(f"{where}.variants.{name}.like", name, scale, grid)
    _check_steps(scale, where)
    _check_names(f"{where}.goals", scale.goals, "model of the grid", {m for g in scale.grid.values() for m in g.models})
    for task, grid in scale.grid.items():
        for model in grid.models:
            refine_recovery(scale.prune, task, model, f"{where}.prune.recovery")
    _check_names(f"{where}.evaluate.batch_sizes", scale.evaluate.batch_sizes, "task", set(map(family, scale.grid)))
    for name, variant in scale.variants.items():
        _check_variant(scale, variant, f"{where}.variants.{name}")
    known = {*method_names(), *scale.variants}
    for name in (name for points in scale.points.values() for name in points):
        if name in known:
            raise ConfigError(f"{where}.targets: '{name}' is the name of a method already: rename it under variants")
    for table, block in scale.tables.items():
        validated(TableParams, {"title": "", **block}, f"{where}.tables.{table}")


def _check_steps(scale: ScaleParams, where: str) -> None:
    models = {model for grid in scale.grid.values() for model in grid.models}
    for step in SECTIONS:
        block: Refined = getattr(scale, step)
        families = {"text", *map(family, scale.grid)}
        allowed = {"default", *families, *models, *scale.datasets, *({"recovery"} if step == "prune" else ())}
        _check_names(f"{where}.{step}", block, "model", allowed)
        for task, grid in scale.grid.items():
            own = for_task(step, block, task)
            section = options_type(step, task)
            for model in sorted(grid.models):
                refine(own, model, section, f"{where}.{step}.{model}")
                for name in sorted(set(block) & {*grid.datasets}):
                    refine(own, model, section, f"{where}.{step}.{name}", block[name])


def _check_variant(scale: ScaleParams, variant: Variant, where: str) -> None:
    _check_names(where, [variant.method], "method", method_names())
    refine_method(scale.methods, variant.method, variant.options, where)
    validated(PruneOptions, {**scale.prune.get("default", {}), **variant.prune}, f"{where}.prune")
    for task, grid in scale.grid.items():
        for model in grid.models:
            refine_recovery(scale.prune, task, model, f"{where}.recovery", variant.recovery)


def _check_task(where: str, method: str, task: str) -> None:
    options = mask_options(method)
    if options is not None and task not in options.tasks:
        raise ConfigError(f"{where}: method '{method}' is not defined for task '{task}': not attempted")


def _check_names(where: str, names: Any, kind: str, valid: Any) -> None:
    for name in names:
        if name not in valid:
            raise ConfigError(f"{where}: unknown {kind} '{name}': {nearest(name, valid)}")

"""What holds for one cell: defaults, refined by task, model, data set and variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ifap.errors import ConfigError
from ifap.registry import entry_names
from ifap.study.config.data import TextOptions
from ifap.study.config.params import SECTIONS, Refined
from ifap.study.config.recipes import RecoveryOptions
from ifap.study.config.rivals import MaskOptions, MethodOptions
from ifap.study.config.validation import validated
from ifap.study.config.values import TEXT_TASKS, Section, family


def refine(
    block: Refined, model: str, section: type[Section], where: str, changes: Mapping[str, Any] | None = None
) -> Any:
    """Merge the ``default`` block with the one of `model` and further changes, and check the result."""
    merged = {**block.get("default", {}), **block.get(model, {}), **(changes or {})}
    return validated(section, merged, where)


def options_type(step: str, task: str) -> type[Section]:
    """Return the type of the options of a step, for the networks of a task."""
    return TextOptions if step == "models" and task in TEXT_TASKS else SECTIONS[step]


def for_task(step: str, block: Refined, task: str) -> Refined:
    """Return a block as the networks of a task see it: their family's refines ``default``.

    Under ``models`` the one for texts replaces it: what a network for text is given is of another kind.
    """
    first = {} if step == "models" and task in TEXT_TASKS else block.get("default", {})
    return {**block, "default": {**first, **block.get(family(task), {})}}


def refine_recovery(
    block: Refined, task: str, model: str, where: str, changes: Mapping[str, Any] | None = None
) -> RecoveryOptions:
    """Return the options of the distillation for a network, for which its family and then itself may have own keys."""
    block = block.get("recovery", {})
    families = set(map(family, entry_names("ifap.study.tasks")))
    own = {key: value for key, value in block.items() if key not in families | entry_names("ifap.study.models")}
    for name in (family(task), model):
        refined = block.get(name, {})
        if not isinstance(refined, dict):
            raise ConfigError(f"{where}.{name}: expected a mapping, got {type(refined).__name__}")
        own |= refined
    options: RecoveryOptions = validated(RecoveryOptions, {**own, **(changes or {})}, where)
    return options


def method_names() -> frozenset[str]:
    """Return the names of all methods: those that score units and those that train with masks."""
    return entry_names("ifap.methods") | entry_names("ifap.study.methods") | entry_names("ifap.study.rivals")


def mask_options(method: str) -> type[MaskOptions] | None:
    """Return the type of a method's own options if it trains with masks, else None."""
    field = MethodOptions.model_fields.get(method)
    section = field.annotation if field is not None else None
    return section if isinstance(section, type) and issubclass(section, MaskOptions) else None


def refine_method(block: MethodOptions, method: str, changes: Mapping[str, Any], where: str) -> Section | None:
    """Return a method's own options with some changed; None if it has none."""
    if method in MethodOptions.model_fields:
        own: Section = getattr(block, method)
        return validated(type(own), {**own.model_dump(), **changes}, f"{where}.options") if changes else own
    if changes:
        raise ConfigError(f"{where}.options: method '{method}' has no options of its own")
    return None

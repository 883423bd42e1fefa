"""Check values against their types: a mistake is one line with the key and the nearest valid choice."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from ifap.errors import ConfigError, nearest
from ifap.study.config.values import Section

# What YAML values with a type of their own, such as dates, fail with.
VALUE_ERRORS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


def validated(section: type[Section], raw: dict[str, Any], where: str) -> Any:
    """Return a block as its type; a wrong one raises one `ConfigError` that names `where` and the key."""
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error, section, where)) from None


def _explain(error: ValidationError, section: type[Section], where: str) -> str:
    # A misspelt key is both unknown and missing: name the one that the user wrote.
    problems = error.errors(include_url=False)
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    location = ".".join(str(part) for part in first["loc"])
    key = f"{where}: {location}" if location else where
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key: {nearest(str(first['loc'][-1]), _sibling_keys(section, first['loc']))}"
    if first["type"] == "missing":
        return f"{key}: key is missing"
    shown = repr(first["input"])
    value = f" (got {shown if len(shown) < 60 else shown[:57] + '...'})"
    return f"{key}: {first['msg'].removeprefix('Value error, ')}{value}"


def _sibling_keys(section: type[Section], location: tuple[int | str, ...]) -> list[str]:
    current: Any = section
    for part in location[:-1]:
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            break
        field = current.model_fields.get(str(part))
        current = _inner_model(field.annotation) if field else current
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _inner_model(annotation: Any) -> Any:
    """Return the section inside ``dict[..., Section]`` or ``Section | None``, else the annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        inner = _inner_model(argument)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return annotation

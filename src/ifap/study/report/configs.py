"""The resolved parameters of recorded cells: kept once by hash, and compared with ``params.yaml``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ifap.errors import ResultsError
from ifap.study import paths
from ifap.study.grid import Grid
from ifap.study.paths import Cell
from ifap.study.report.csv_files import LISTED, read_lines
from ifap.study.report.json_files import read_json


def config_hash(config: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits that stand for a resolved configuration."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def configs_text(configs: Iterable[Mapping[str, Any]]) -> str:
    """Lay out configurations as JSON: every step once by its hash, and which steps each configuration has.

    `configs` are resolved configurations of cells, as `ifap.study.grid.Grid.config` returns them. In the text,
    ``steps`` maps a hash to parameters, and ``configs`` maps the hash of a configuration to the hash of each of its
    steps.
    """
    steps: dict[str, Any] = {}
    named: dict[str, dict[str, str]] = {}
    for config in configs:
        own = {step: config_hash(block) for step, block in config.items() if step != "cell"}
        steps |= {own[step]: config[step] for step in own}
        named[config_hash(config)] = own
    return json.dumps({"configs": named, "steps": steps}, indent=1, sort_keys=True) + "\n"


def load_configs(scale: str, *, root: Path = Path()) -> dict[str, dict[str, Any]]:
    """Read ``configs.json`` of one scale: the configuration behind each hash, without the name of its cell."""
    shown = paths.configs_json(scale)
    stored = read_json(root / shown, shown)
    if stored is None:
        read_lines(root / shown, shown)  # which says what makes it
    try:
        return {
            name: {step: stored["steps"][of_step] for step, of_step in own.items()}
            for name, own in stored["configs"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"malformed {shown}: {error}") from None


def check_configs(records: pd.DataFrame, configs: Mapping[str, Mapping[str, Any]], grid: Grid) -> None:
    """Refuse records of cells that ``params.yaml`` describes otherwise; one line names them and the first key."""
    stale = []
    for row in records[[*Cell._fields, "config_hash"]].itertuples(index=False, name=None):
        cell, found = Cell(*row[:-1]), row[-1]
        if difference := recorded_difference(found, configs, grid.config(cell, "evaluate")):
            stale.append(f"stale record of {cell}: {difference}")
    if stale:
        rest = len(stale) - LISTED
        raise ResultsError("; ".join(stale[:LISTED]) + (f" and {rest} more" if rest > 0 else ""))


def recorded_difference(found: str, configs: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Any]) -> str | None:
    """Name the first key in which a recorded configuration differs from the wanted one; None if they are the same.

    `found` is the hash of the recorded configuration, `configs` the content of ``configs.json`` (see `load_configs`),
    and `wanted` what ``params.yaml`` asks of the cell.
    """
    if found == config_hash(wanted):
        return None
    own = {"cell": wanted["cell"], **configs.get(found, {})}
    return first_difference(own, wanted) or f"{found} is not in configs.json"


def first_difference(found: Mapping[str, Any], wanted: Mapping[str, Any], source: str = "params.yaml") -> str | None:
    """Name the first key in which two nested mappings differ; None if they are the same.

    For example ``"prune.steps=10 (params.yaml: 12)"``, where `source` is what `wanted` comes from.
    """
    ours = flat(json.loads(json.dumps(found)))
    theirs = flat(json.loads(json.dumps(wanted)))
    for key in dict.fromkeys([*theirs, *ours]):
        mine, other = ours.get(key, "absent"), theirs.get(key, "absent")
        if mine != other:
            return f"{key}={mine} ({source}: {other})"
    return None


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, whose keys are joined by dots."""
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    joined: dict[str, Any] = {}
    for key, inner in value.items():
        joined |= flat(inner, f"{prefix}{key}.")
    return joined

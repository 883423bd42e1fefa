"""``params.yaml``: what is committed is valid, and every mistake is one line that names key and choice."""

from __future__ import annotations

import copy
import json

import jsonschema
import pytest
import yaml
from workflow_project import ROOT

from ifap.errors import ConfigError
from ifap.study.config.params import Params
from ifap.study.config.reading import load_params, parse_params, select_scale
from ifap.study.config.recipes import PruneOptions, RecoveryOptions, TrainingOptions
from ifap.study.config.refining import refine
from ifap.study.grid import Grid
from ifap.study.paths import Cell

COMMITTED = yaml.safe_load((ROOT / "params.yaml").read_text())


def key_paths(node, path=()):
    """Return the path of every key in a nested mapping."""
    if not isinstance(node, dict):
        return []
    return [p for key, value in node.items() for p in [(*path, key), *key_paths(value, (*path, key))]]


def at(raw, path):
    for key in path:
        raw = raw[key]
    return raw


def changed(path, value):
    """Return the committed parameters with one value replaced; `path` is dotted."""
    raw = copy.deepcopy(COMMITTED)
    *parents, last = path.split(".")
    at(raw, parents)[last] = value
    return raw


def message(raw):
    with pytest.raises(ConfigError) as error:
        parse_params(raw)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("params.yaml: ")
    return text


def test_the_committed_file_is_valid_and_fits_its_schema():
    params = load_params(ROOT / "params.yaml")
    assert params.scale in params.scales
    schema = json.loads((ROOT / "schemas" / "params.schema.json").read_text())
    jsonschema.validate(COMMITTED, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed("scales.quick.seeds", []), schema)


def test_rows_that_a_table_selects_are_in_the_published_grid():
    params = load_params(ROOT / "params.yaml")
    cells = Grid(params, params.published).cells()
    for name, table in params.tables.items():
        wanted = {key: value for key, value in table.model_dump().items() if key in Cell._fields and value is not None}
        assert [cell for cell in cells if wanted.items() <= cell._asdict().items()], name


KNOWN = {name for part in Params.model_json_schema()["$defs"].values() for name in part.get("properties", ())}


def one_of_each(paths):
    """Return the first path of each kind: scales repeat the keys of one another, and models those of other models."""
    first = {}
    for path in paths:
        kind = tuple(part if part in KNOWN or place == 0 else "*" for place, part in enumerate(path))
        first.setdefault(kind, path)
    return list(first.values())


FREE = {("scales", name) for name in COMMITTED["scales"]} - {("scales", COMMITTED["scale"])}
"""A scale that nothing selects may have any name."""


@pytest.mark.parametrize(
    "path", one_of_each(path for path in key_paths(COMMITTED) if tuple(path) not in FREE), ids=".".join
)
def test_every_misspelt_key_is_named(path):
    raw = copy.deepcopy(COMMITTED)
    *parents, last = path
    node = at(raw, parents)
    node[f"{last}q"] = node.pop(last)
    assert f"{last}q" in message(raw)


@pytest.mark.parametrize("path", one_of_each(key_paths(COMMITTED)), ids=".".join)
def test_every_value_of_a_wrong_type_is_refused(path):
    message(changed(".".join(path), [None]))


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("scale", "quik", "scale: unknown scale 'quik': did you mean 'quick'?"),
        ("published", "papers", "published: unknown scale 'papers'"),
        ("versions.prune", 0, "versions.prune: Input should be greater than or equal to 1 (got 0)"),
        (
            "versions_of",
            {"vit_tinny": {"prune": 3}},
            "versions_of: unknown model 'vit_tinny': did you mean 'vit_tiny'?",
        ),
        ("versions_of", {"vit_tiny": {"fetch": 3}}, "versions_of.vit_tiny.fetch.[key]: Input should be 'baseline', "),
        ("scales.quick.seeds", [], "scales.quick.seeds: "),
        (
            "scales.quick.grid.classification.only",
            {"ifap": {"seeds": 2}},
            "only.ifap.seeds: the scale has 1 seeds, not 2",
        ),
        ("scales.quick.grid.classification.only", {"ifpa": {"seeds": 1}}, "'ifpa': did you mean 'ifap'"),
        ("scales.quick.grid.classification.only", {"ifap": {"models": ["vit"]}}, "only.ifap.models: unknown model"),
        ("scales.quick.seeds", [-1], "scales.quick.seeds.0: "),
        ("scales.quick.seeds", ["0"], "scales.quick.seeds.0: Input should be a valid integer (got '0')"),
        ("scales.quick.evaluate.batch_size", True, "valid integer (got True)"),
        ("scales.quick.grid.classification.models", ["resnet_tny"], "did you mean 'resnet_tiny'?"),
        ("scales.quick.grid.classification.methods", ["ifap", "randm"], "did you mean 'random'?"),
        ("scales.quick.grid.classification.datasets", ["digit"], "did you mean 'digits'?"),
        ("scales.quick.grid.classification.models", ["../../etc"], "String should match pattern"),
        ("scales.quick.datasets.digits.validation", 0.8, "must leave training data"),
        ("scales.quick.datasets.digits.test", 1.0, "less than 1"),
        ("scales.quick.baseline.default.lr", "1e-3", "lr: Input should be a valid number (got '1e-3')"),
        ("scales.quick.baseline.default.optimizer", "adam", "optimizer: "),
        ("scales.quick.baseline.vit_tiny", {"epochs": -1}, "scales.quick.baseline.vit_tiny: epochs: "),
        ("scales.quick.finetune.resnet_tny", {}, "finetune: unknown model 'resnet_tny': did you mean 'resnet_tiny'?"),
        ("scales.quick.finetune.recovery", {}, "finetune: unknown model 'recovery'"),
        (
            "scales.quick.prune.default.target",
            {"macs": 0.5, "params": 0.5},
            "exactly one of macs, params and published",
        ),
        ("scales.quick.prune.default.target", {}, "exactly one of macs, params and published"),
        ("scales.quick.prune.default.target", {"macs": 1.5}, "target.macs: "),
        ("scales.quick.prune.default.steps", 0, "steps: "),
        ("scales.quick.prune.recovery.teacher", "best", "prune.recovery: teacher: "),
        ("tables.table-9", {"title": "", "task": "classification"}, "tables.table-9"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_key(path, value, wanted):
    assert wanted in message(changed(path, value))


def test_a_missing_key_is_named():
    raw = copy.deepcopy(COMMITTED)
    del raw["scales"]["quick"]["prune"]["default"]["alpha"]
    assert message(raw).endswith("alpha: key is missing")
    del raw["scales"]["quick"]["evaluate"]
    assert "scales.quick.evaluate: key is missing" in message(raw)


@pytest.mark.parametrize("raw", [None, [], "quick", 3])
def test_the_file_must_hold_a_mapping(raw):
    assert "expected a mapping" in message(raw)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"scale: [", "is not valid YAML"),
        (b"a: &a [*a]", "params.yaml"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"!!python/object/apply:os.system ['touch owned']", "is not valid YAML"),
        (b"", "expected a mapping at the top, got NoneType"),
        (b"[" * 5000, "is not valid YAML"),
    ],
    ids=["open", "recursive", "binary", "hostile", "empty", "deep"],
)
def test_a_damaged_file_is_one_line(tmp_path, monkeypatch, content, wanted):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=wanted) as error:
        load_params()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "owned").exists()


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(ConfigError, match="not found: run from the project's root"):
        load_params(tmp_path / "params.yaml")


def test_a_scale_is_chosen_or_the_default():
    params = parse_params(COMMITTED)
    assert select_scale(params, None) == params.scale
    assert select_scale(params, params.scale) == params.scale
    with pytest.raises(ConfigError, match=r"unknown scale 'quck': did you mean 'quick'\?"):
        select_scale(params, "quck")


def test_a_model_refines_the_default_and_nothing_else():
    default = COMMITTED["scales"]["quick"]["baseline"]["default"]
    block = {"default": default, "net": {"epochs": 99}}
    assert refine(block, "net", TrainingOptions, "here") == TrainingOptions(**{**default, "epochs": 99})
    assert refine(block, "other", TrainingOptions, "here") == TrainingOptions(**default)
    with pytest.raises(ConfigError, match=r"here: target: key is missing"):
        refine({}, "net", PruneOptions, "here")


def test_parsed_parameters_cannot_be_changed():
    params = parse_params(COMMITTED)
    with pytest.raises(ValueError, match="frozen"):
        params.scale = "paper"


OPTIONAL = {
    "precision": "bf16", "accumulate": 2, "channels_last": True, "compile": True, "momentum": 0.5, "beta1": 0.5,
    "decay_norms": True,
    "grad_clip": 1.0, "ema_decay": 0.9, "gamma": 0.5,
}  # fmt: skip


def test_optional_keys_of_a_recipe_are_dumped_where_they_differ():
    """A recorded result stays valid when a recipe gets a new optional key."""
    recipe = COMMITTED["scales"]["quick"]["baseline"]["default"]
    assert TrainingOptions(**recipe).model_dump() == recipe
    steps = {"schedule": "step", "milestones": [0.5]}
    dumped = TrainingOptions(**recipe, **OPTIONAL, **steps).model_dump()
    assert dumped == {**recipe, **OPTIONAL, **steps}
    fields = TrainingOptions.model_fields
    assert set(dumped) == set(fields)
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    assert TrainingOptions(**{**defaults, **recipe}).model_dump() == recipe
    recovery = COMMITTED["scales"]["quick"]["prune"]["recovery"]
    assert RecoveryOptions(**recovery, precision="bf16").model_dump() == {**recovery, "precision": "bf16"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"precision": "bf61"}, "precision: Input should be 'fp32', 'bf16' or 'fp16' (got 'bf61')"),
        ({"accumulate": 3}, "accumulate 3 must divide batch_size 64"),
        ({"accumulate": 0}, "accumulate: Input should be greater than or equal to 1 (got 0)"),
        ({"schedule": "step"}, "milestones belong to schedule 'step', which needs at least one"),
        ({"milestones": [0.5]}, "milestones belong to schedule 'step'"),
        ({"schedule": "step", "milestones": [0.7, 0.5]}, "milestones must rise, without repetition"),
        ({"schedule": "step", "milestones": [30]}, "milestones.0: Input should be"),
        ({"ema_decay": 1.0}, "ema_decay: Input should be less than 1"),
        ({"grad_clip": 0.0}, "grad_clip: Input should be greater than 0"),
        ({"momentum": 1.0}, "momentum: Input should be less than 1"),
        ({"ema_deca": 0.9}, "unknown key: did you mean 'ema_decay'?"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(keys, expected):
    raw = copy.deepcopy(COMMITTED)
    raw["scales"]["quick"]["baseline"]["default"].update(keys)
    text = message(raw)
    assert text.startswith("params.yaml: scales.quick.baseline.")
    assert expected in text


@pytest.mark.parametrize(("key", "default", "other"), [("pace", "units", "macs"), ("compensate", False, True)])
def test_a_later_key_is_in_the_configuration_of_a_result_only_where_it_is_not_the_default(key, default, other):
    """A result from before the key was there stays valid."""
    block = load_params(ROOT / "params.yaml").scales["quick"].prune["default"]
    plain, changed = (PruneOptions.model_validate({**block, **extra}) for extra in ({}, {key: other}))
    assert getattr(plain, key) == default
    assert PruneOptions.model_validate({**block, key: default}).model_dump() == plain.model_dump()
    assert changed.model_dump() == {**plain.model_dump(), key: other}
    assert changed.model_dump(include={"steps", key}) == {"steps": block["steps"], key: other}
    assert plain.model_dump(include={"steps", key}) == {"steps": block["steps"]}

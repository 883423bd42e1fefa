"""Cells and resolved configurations: each step depends on what it should, and on nothing else."""

from __future__ import annotations

import copy
import json
from collections import Counter

import pytest
import yaml
from workflow_project import ROOT

from ifap.errors import ConfigError
from ifap.study import paths
from ifap.study.config.data import DatasetOptions, ModelOptions
from ifap.study.config.reading import load_params, parse_params
from ifap.study.config.recipes import EvaluateOptions, PruneOptions, RecoveryOptions, TrainingOptions
from ifap.study.config.values import DENSE_TASKS
from ifap.study.grid import Grid
from ifap.study.paper.reductions import published_networks
from ifap.study.paper.vocabulary import published_model
from ifap.study.paths import Cell

STEPS = ("baseline", "prune", "finetune", "evaluate")
COMMITTED = yaml.safe_load((ROOT / "params.yaml").read_text())


def raw_params():
    raw = copy.deepcopy(COMMITTED)
    raw["scales"] = {"quick": raw["scales"]["quick"]}
    quick = raw["scales"]["quick"]
    quick["seeds"] = [0, 3]
    axes = {"datasets": ["digits"], "models": ["resnet_tiny", "vit_tiny"], "methods": ["ifap", "random"]}
    quick["grid"] = {"classification": axes}
    for step in ("baseline", "prune", "finetune"):
        quick[step] = {k: v for k, v in quick[step].items() if k in {"default", "recovery"}}
    return {**raw, "scale": "quick", "published": "quick"}


def grid_of(raw):
    return Grid(parse_params(raw), "quick")


GRID = grid_of(raw_params())


def test_the_cells_are_the_product_of_the_axes_with_each_baseline_once():
    assert len(GRID.pruned()) == 2 * 2 * 2
    assert len(set(GRID.cells())) == len(GRID.cells()) == 8 + 4
    assert GRID.baselines() == GRID.cells()[:4]
    assert all(cell.is_baseline for cell in GRID.baselines())
    assert {cell.baseline for cell in GRID.pruned()} == set(GRID.baselines())
    assert Counter(cell.model for cell in GRID.pruned()) == {"resnet_tiny": 4, "vit_tiny": 4}
    assert GRID.datasets() == ["digits"]


def test_a_run_can_be_limited_to_cells_and_takes_their_baselines_along():
    assert GRID.chosen() == GRID.cells()
    assert GRID.chosen("classification") == GRID.cells()
    random = GRID.chosen("classification/*/vit_tiny/random")
    assert {(cell.model, cell.method) for cell in random} == {("vit_tiny", "baseline"), ("vit_tiny", "random")}
    assert len(random) == 4
    assert len(GRID.chosen("classification/digits/*/ifap/seed3,classification/digits/vit_tiny/*")) == 2 + 6


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("clasification", "no 'clasification' in scale 'quick': did you mean 'classification'"),
        ("*/digits/vit_tni", "did you mean 'vit_tiny'. Valid: resnet_tiny, vit_tiny"),
        ("*/*/*/*/seed7", "Valid: seed0, seed3"),
        ("*/*/*/*/*/more", "no 'more' in scale 'quick'"),
    ],
)
def test_what_names_no_cell_is_refused(pattern, message):
    with pytest.raises(ConfigError, match=message):
        GRID.chosen(pattern)


def test_every_path_belongs_to_one_cell():
    places = [
        path
        for cell in GRID.cells()
        for path in (
            paths.metrics_file("quick", cell), paths.receipts_file("quick", cell), paths.receipts_json("quick", cell),
            paths.history_file("quick", cell), *(paths.state_dir("quick", cell, step) for step in STEPS),
            *(paths.checkpoint_dir("quick", cell, name) for name in ("pruned", "final")),
        )
    ]  # fmt: skip
    assert len(set(places)) == len(places)
    assert not any(path.is_absolute() or ".." in path.parts for path in places)
    for cell in GRID.cells():
        task, dataset, model, method, seed = str(cell).split("/")
        assert Cell(task, dataset, model, method, int(seed.removeprefix("seed"))) == cell


@pytest.mark.parametrize("cell", GRID.cells(), ids=str)
def test_a_step_depends_on_all_earlier_steps(cell):
    steps = ("baseline", "evaluate") if cell.is_baseline else STEPS
    chain = {}
    for step in steps:
        config = GRID.config(cell, step)
        assert config.items() >= chain.items()
        assert set(config) == {"cell", "fetch", "model", *steps[: steps.index(step) + 1]}
        assert json.loads(json.dumps(config)) == config
        chain = config


def change_in(*path, value, per_model=None):
    def change(raw):
        block = raw["scales"]["quick"]
        for key in path[:-1]:
            block = block.setdefault(key, {})
        block[path[-1]] = value

    return change, per_model


def version(step):
    return (lambda raw: raw["versions"].update({step: raw["versions"][step] + 1}), None)


def version_of_model(step, model):
    def change(raw):
        of_model = raw.setdefault("versions_of", {}).setdefault(model, {})
        of_model[step] = of_model.get(step, 0) + 1

    return change, model


ALL = {"baseline/baseline", "baseline/evaluate", *(f"pruned/{step}" for step in STEPS)}
PRUNING = {"pruned/prune", "pruned/finetune", "pruned/evaluate"}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (change_in("datasets", "digits", "split_seed", value=9), ALL),
        (change_in("baseline", "default", "lr", value=0.5), ALL),
        (change_in("baseline", "vit_tiny", "lr", value=0.5, per_model="vit_tiny"), ALL),
        (change_in("baseline", "default", "ema_decay", value=0.9), ALL),
        (change_in("baseline", "default", "ema_decay", value=None), set()),
        (change_in("prune", "default", "alpha", value=0.5), PRUNING),
        (change_in("prune", "recovery", "precision", value="bf16"), PRUNING),
        (change_in("prune", "resnet_tiny", "min_units", value=1, per_model="resnet_tiny"), PRUNING),
        (change_in("prune", "recovery", "epochs", value=9), PRUNING),
        (change_in("finetune", "default", "weight_decay", value=0.5), {"pruned/finetune", "pruned/evaluate"}),
        (change_in("evaluate", "latency_runs", value=9), {"pruned/evaluate", "baseline/evaluate"}),
        (change_in("seeds", value=[0, 3, 5]), set()),
        ((lambda raw: raw["tables"]["table-2"].update(title="Another"), None), set()),
        (version("fetch"), ALL),
        (version("baseline"), ALL),
        (version("prune"), PRUNING),
        (version("finetune"), {"pruned/finetune", "pruned/evaluate"}),
        (version("evaluate"), {"pruned/evaluate", "baseline/evaluate"}),
        (version_of_model("prune", "resnet_tiny"), PRUNING),
        (version_of_model("evaluate", "vit_tiny"), {"pruned/evaluate", "baseline/evaluate"}),
    ],
)
def test_a_change_reaches_exactly_the_steps_that_depend_on_it(change, wanted):
    apply, model = change
    raw = raw_params()
    apply(raw)
    other = grid_of(raw)
    differs = {
        (cell, step)
        for cell in GRID.cells()
        for step in (("baseline", "evaluate") if cell.is_baseline else STEPS)
        if GRID.config(cell, step) != other.config(cell, step)
    }
    assert {f"{'baseline' if cell.is_baseline else 'pruned'}/{step}" for cell, step in differs} == wanted
    touched = {cell.model for cell, _ in differs}
    assert touched == ({model} if model else {"resnet_tiny", "vit_tiny"} if wanted else set())
    for model_name in touched:  # every seed and method of a model alike
        cells = {cell for cell, _ in differs if cell.model == model_name}
        assert {cell for cell in cells if not cell.is_baseline} == {c for c in GRID.pruned() if c.model == model_name}


def required(section):
    return {name for name, field in section.model_fields.items() if field.is_required()}


def test_every_option_reaches_the_config_of_its_step():
    """An option that no configuration holds could change without any step running again.

    Optional keys of a recipe, `pace` and `compensate` are there where they differ from their default; see test_config.
    """
    cell = next(cell for cell in GRID.pruned() if cell.model == "resnet_tiny")
    config = GRID.config(cell, "evaluate")
    assert set(config["fetch"]) == {"version", "dataset", *DatasetOptions.model_fields} - {
        "train_samples", "max_bad_annotations",
    }  # fmt: skip
    assert set(config["model"]) == set(ModelOptions.model_fields) - {"download", "features"}
    assert set(config["baseline"]) == {"version", *required(TrainingOptions)}
    assert set(config["prune"]) == {"version", "method", "recovery", *PruneOptions.model_fields} - {
        "pace",
        "compensate",
    }
    assert set(config["prune"]["recovery"]) == required(RecoveryOptions)
    assert set(config["finetune"]) == {"version", *required(TrainingOptions)}
    assert set(config["evaluate"]) == {"version", *EvaluateOptions.model_fields} - {"batch_sizes"}


# --- widths of another cell, parts of the grid -------------------------------------------------------------


def with_widths(**changes):
    raw = raw_params()
    quick = raw["scales"]["quick"]
    quick["variants"] = {"random_same": {"method": "random", "like": "ifap"}}
    quick["targets"] = {"macs": [0.3]}
    quick["grid"]["classification"] |= {"methods": ["ifap", "random_same"], **changes}
    return raw


def test_a_variant_takes_the_widths_of_another_cell_at_each_target():
    grid = grid_of(with_widths())
    cell = Cell("classification", "digits", "vit_tiny", "random_same", 3)
    assert grid.like(cell) == cell._replace(method="ifap")
    assert grid.like(cell._replace(method="random_same_m30")) == cell._replace(method="ifap_m30")
    assert grid.like(cell._replace(method="ifap")) is None
    assert grid.lines()["random_same_m30"] == "random_same"


def test_a_change_of_the_cell_whose_widths_are_taken_runs_the_other_again():
    raw = with_widths()
    cell = Cell("classification", "digits", "vit_tiny", "random_same", 3)
    before = grid_of(raw).config(cell, "prune")
    raw["versions"]["prune"] += 1
    assert grid_of(raw).config(cell, "prune") != before
    raw["versions"]["prune"] -= 1
    raw["scales"]["quick"]["variants"]["ifap_max"] = {"method": "ifap", "prune": {"aggregate": "max"}}
    raw["scales"]["quick"]["variants"]["random_same"]["like"] = "ifap_max"
    raw["scales"]["quick"]["grid"]["classification"]["methods"].append("ifap_max")
    assert grid_of(raw).config(cell, "prune")["prune"]["like"]["aggregate"] == "max"


@pytest.mark.parametrize(
    ("like", "part", "message"),
    [
        ("ifpa", {}, "random_same.like: unknown method of the grid 'ifpa': did you mean 'ifap'"),
        ("random_same", {}, "unknown method of the grid 'random_same'"),
        ("rigl", {}, "only widths that a score has chosen can be taken"),
        ("ifap", {"ifap": {"seeds": 1}}, "'ifap' runs on a part of the grid only"),
    ],
)
def test_widths_that_cannot_be_taken_are_refused(like, part, message):
    raw = with_widths(methods=["ifap", "random_same", "rigl"], only=part)
    raw["scales"]["quick"]["variants"]["random_same"]["like"] = like
    with pytest.raises(ConfigError, match=message):
        grid_of(raw)


def test_a_method_may_run_on_a_part_of_the_grid():
    cells = grid_of(with_widths(only={"random_same": {"seeds": 1, "models": ["vit_tiny"]}})).pruned()
    assert {(cell.model, cell.seed) for cell in cells if cell.method.startswith("random_same")} == {("vit_tiny", 0)}
    assert len({(cell.model, cell.seed) for cell in cells if cell.method.startswith("ifap")}) == 4


def test_a_set_with_boxes_and_masks_is_prepared_for_the_tasks_that_use_it():
    raw = raw_params()
    quick = raw["scales"]["quick"]
    own = {"datasets": ["pascal_voc"], "models": ["resnet_tiny"], "methods": ["ifap"]}
    quick["grid"]["segmentation"] = own
    quick["datasets"]["pascal_voc"] = {"validation": 0.2, "split_seed": 0}
    grid = grid_of(raw)
    assert grid.dense_tasks("pascal_voc") == grid.fetch_config("pascal_voc")["tasks"] == ["segmentation"]
    quick["grid"]["detection"] = own
    assert grid_of(raw).dense_tasks("pascal_voc") == ["detection", "segmentation"]
    # Other sets have one task, whatever the cells are called: their prepared data stay what they were.
    quick["grid"]["generation"] = {**own, "datasets": ["digits"]}
    assert grid_of(raw).fetch_config("digits") == GRID.fetch_config("digits")
    assert "tasks" not in GRID.fetch_config("digits")


def with_detection(**changes):
    """Return the parameters with a second task, on data that the first does not use."""
    raw = raw_params()
    quick = raw["scales"]["quick"]
    quick["grid"]["detection"] = {"datasets": ["pascal_voc"], "models": ["yolov4_shufflenet_tiny"], "methods": ["ifap"]}
    quick["grid"]["detection"] |= changes
    quick["datasets"]["pascal_voc"] = {"validation": 0.2, "split_seed": 0}
    return raw


DETECTOR = Cell("detection", "pascal_voc", "yolov4_shufflenet_tiny", "ifap", 0)


def test_the_block_of_a_task_refines_the_default_and_leaves_other_tasks_alone():
    raw = with_detection()
    quick = raw["scales"]["quick"]
    quick["models"]["detection"] = {"image_size": 96}
    quick["baseline"]["detection"] = {"lr": 0.5}
    quick["prune"]["detection"] = {"steps": 4}
    quick["prune"]["recovery"]["detection"] = {"feature_weight": 0.0}
    quick["evaluate"]["batch_sizes"] = {"detection": 3}
    grid = grid_of(raw)
    assert grid.model(DETECTOR).image_size == 96
    assert grid.training(DETECTOR.baseline).lr == 0.5
    assert grid.pruning(DETECTOR).steps == 4
    assert grid.recovery(DETECTOR).feature_weight == 0.0
    assert grid.options.evaluate.samples("detection") == 3
    assert grid.options.evaluate.samples("classification") == grid.options.evaluate.batch_size
    other = GRID.pruned()[0]
    for step in ("baseline", "prune", "finetune"):
        assert grid.config(other, step) == GRID.config(other, step)


def test_what_a_model_says_for_itself_is_above_the_block_of_its_task():
    raw = with_detection()
    quick = raw["scales"]["quick"]
    quick["baseline"] |= {"detection": {"lr": 0.5, "epochs": 7}, "yolov4_shufflenet_tiny": {"lr": 0.25}}
    recipe = grid_of(raw).training(DETECTOR.baseline)
    assert (recipe.lr, recipe.epochs) == (0.25, 7)


def test_recovery_has_a_block_for_a_model_above_the_one_of_its_task():
    raw = with_detection()
    recovery = raw["scales"]["quick"]["prune"]["recovery"]
    recovery |= {"detection": {"lr": 0.5, "patience": 7}, "yolov4_shufflenet_tiny": {"lr": 0.25, "samples": 64}}
    found = grid_of(raw).recovery(DETECTOR)
    assert (found.lr, found.patience, found.samples) == (0.25, 7, 64)
    other = GRID.pruned()[0]
    assert grid_of(raw).config(other, "prune") == GRID.config(other, "prune")


def test_data_sets_may_run_with_some_of_the_models():
    models = ["yolov4_shufflenet_tiny", "detr_tiny"]
    raw = with_detection(datasets=["pascal_voc", "coco2017"], models=models, models_of={"coco2017": ["detr_tiny"]})
    raw["scales"]["quick"]["datasets"]["coco2017"] = {"validation": 0.2, "split_seed": 0}
    cells = [cell for cell in grid_of(raw).cells() if cell.task == "detection" and not cell.is_baseline]
    assert {(cell.dataset, cell.model) for cell in cells} == {
        ("pascal_voc", "yolov4_shufflenet_tiny"), ("pascal_voc", "detr_tiny"), ("coco2017", "detr_tiny"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("grid.detection.models_of", {"coco": ["detr_tiny"]}, "models_of: unknown data set of the grid 'coco'"),
        ("grid.detection.models_of", {"pascal_voc": ["detr"]}, "models_of.pascal_voc: unknown model of the grid"),
        ("baseline.detectoin", {"lr": 0.5}, "unknown model 'detectoin': did you mean 'detection'"),
        ("prune.recovery.detection", 3, "prune.recovery.detection: expected a mapping, got int"),
        ("prune.recovery.detection", {"lrr": 3}, "prune.recovery: lrr: unknown key: did you mean 'lr'"),
        ("evaluate.batch_sizes", {"detectoin": 3}, "batch_sizes: unknown task 'detectoin': did you mean 'detection'"),
    ],
)
def test_mistakes_in_blocks_of_tasks_are_named(path, value, message):
    raw = with_detection()
    node = raw["scales"]["quick"]
    *parents, last = path.split(".")
    for key in parents:
        node = node[key]
    node[last] = value
    with pytest.raises(ConfigError, match=message):
        grid_of(raw)


def test_the_27_cells_of_table_3_beside_classification_run_at_smoke_and_paper():
    params = load_params(ROOT / "params.yaml")
    for scale, diffusion in (("smoke", "stable_diffusion_half"), ("paper", "stable_diffusion_v1_5")):
        grid = Grid(params, scale)
        cells = [cell for cell in grid.pruned() if cell.task in DENSE_TASKS]
        assert len(cells) == 27
        pairs = {(cell.dataset, published_model(cell.model)) for cell in cells}
        classes = {(cell.dataset, cell.model) for cell in grid.pruned() if cell.task == "classification"}
        assert len(published_networks(3)) == 27 + 16
        assert pairs == published_networks(3) - classes
        assert diffusion in {cell.model for cell in cells}
        for cell in cells:
            assert 0.5 < grid.pruning(cell).target.macs < 0.7
            assert bool(grid.recovery(cell).feature_weight) == (cell.task != "generation")

"""Whatever a user hands to a public function that it cannot be: one line names the argument, before any work."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ifap
from ifap.errors import ConfigError, GraphError, IfapError, ScoreError, SplitError, TargetError, TrainingError

IMAGES, LABELS = torch.randn(4, 3, 8, 8), torch.randint(0, 10, (4,))
LABELLED = [(IMAGES, LABELS)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


def prune(**changed):
    given = {"model": network(), "example_inputs": IMAGES, "batches": [IMAGES] * 2, "target": ifap.Target(macs=0.5)}
    return ifap.prune(**{**given, **changed})


@pytest.fixture(scope="module")
def pruned():
    return prune()


class Untouchable(nn.Module):
    """A network that must not be run."""

    def forward(self, x):
        raise AssertionError("work began before the arguments were checked")


WRONG = {
    "model": [
        (None, "model must be a network (torch.nn.Module), not None"),
        (nn.Linear, "the class Linear: make an instance of it"),
        (network().state_dict(), "an OrderedDict: build the network and load these weights into it"),
    ],
    "batches": [
        (IMAGES, "not a Tensor: that is one batch; put it into a list"),
        ({"x": IMAGES}, "not a dict: that is one batch"),
        ((IMAGES for _ in range(2)), "not a generator: that can be read only once"),
        (TensorDataset(IMAGES), "not a TensorDataset: put it into a torch.utils.data.DataLoader"),
        ("images/", "not 'images/'"),
        (None, "not None"),
    ],
    "target": [
        (0.5, "target must be an ifap.Target or None, not 0.5: write ifap.Target(macs=0.5)"),
        ("50%", "not '50%'"),
    ],
    "like": [("plan.json", "like must be a plan or None, not 'plan.json'")],
    "steps": [("3", "steps must be a whole number or None, not '3'"), (2.5, "not 2.5"), (True, "not True")],
    "ignore": [
        (3, "ignore must be names or modules of layers, such as 'conv1', not 3"),
        ([nn.Linear], "not a list: it holds the class Linear"),
        (None, "not None"),
    ],
    "recover": [
        ("kd", "recover must be a function (model, teacher, step) or None, not 'kd'"),
        (lambda: 0, "recover must be a function (model, teacher, step) or None, not a function"),
    ],
    "example_inputs": [
        (None, "example_inputs must be a tensor, or a tuple, list or dict of arguments, not None"),
        (IMAGES[:0], "not a Tensor: it holds no sample"),
        (IMAGES.numpy(), "not a ndarray: torch.as_tensor makes one of an array"),
    ],
    "validate": [(0.9, "validate must be a function (model) or None, not 0.9")],
    "method": [(None, "method must be a string or a function, not None"), (int, "the class int")],
    "loss": [
        (nn.CrossEntropyLoss, "loss must be a function (outputs, inputs) or None, not the class CrossEntropyLoss")
    ],
    "labelled": [(IMAGES, "labelled must be an iterable of batches")],
    "round_to": [(8.0, "round_to must be a whole number or None, not 8.0")],
    "max_drop": [(float("nan"), "max_drop must be a finite number or None, not nan")],
    "max_layer_ratio": [("a", "max_layer_ratio must be a finite number, not 'a'")],
    "min_units": [("2", "min_units must be a whole number")],
    "pace": [(0.3, "pace must be one of units, macs or a list of shares"), (["a"], "it holds 'a'")],
    "outputs": [("logits", "outputs must be a list of names of outputs or None, not 'logits'")],
    "prove": [("no", "prove must be True or False, not 'no'")],
    "compensate": [(1, "compensate must be True or False or None, not 1")],
    "resume": [(3, "resume must be the path of a folder that can be written or a store or None, not 3")],
    "seed": [
        (None, "seed must be a whole number of at least 0 and below 2**63, not None"),
        (2**63, "below 2**63, not 92"),
    ],
}


@pytest.mark.parametrize(("name", "value", "said"), [(name, *case) for name, cases in WRONG.items() for case in cases])
def test_a_wrong_argument_of_prune_is_named_before_any_work(name, value, said):
    with pytest.raises(ConfigError) as caught:
        prune(**{"model": Untouchable(), name: value})
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{name} must be ")


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([IMAGES, IMAGES[:, :1]], "the network fails on batch 2 of the calibration data: RuntimeError: "),
        ([IMAGES.double()], "the network fails on batch 1 of the calibration data: RuntimeError: "),
        (DataLoader(TensorDataset(IMAGES, LABELS)), "give inputs without labels"),
    ],
    ids=["channels", "type", "labels"],
)
@pytest.mark.parametrize("method", ["flow", "ifap"])
def test_the_batch_that_the_network_does_not_take_is_named(batches, said, method):
    with pytest.raises(ScoreError) as caught:
        prune(batches=batches, method=method, steps=1)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, ConfigError, "not a tensor of shape (4,)"),
        ({"labelled": [IMAGES]}, SplitError, "labelled must give pairs of inputs and targets, not a Tensor"),
        ({"labelled": [(IMAGES[:, :1], LABELS)]}, ScoreError, "batch 1 of the labelled data"),
    ],
    ids=["vector", "no pairs", "channels"],
)
def test_labelled_data_and_losses_that_do_not_fit_are_named(changed, kind, said):
    given = {"method": "taylor", "steps": 1, "labelled": LABELLED, "loss": nn.CrossEntropyLoss(), **changed}
    with pytest.raises(kind) as caught:
        prune(**given)
    assert said in str(caught.value)


@pytest.mark.parametrize("found", [None, {"accuracy": 1.0}, "0.9%"])
def test_a_metric_that_is_no_number_is_named(found):
    with pytest.raises(ConfigError, match="validate must return a number, not "):
        prune(validate=lambda _model: found, max_drop=1.0)


def test_a_fall_from_no_number_is_named():
    with pytest.raises(ConfigError, match="max_drop: validate returns nan for the unpruned network"):
        prune(validate=lambda _model: float("nan"), max_drop=1.0)


@pytest.mark.parametrize("value", ["0.5", [0.5], True])
def test_shares_that_are_no_numbers_are_named(value):
    with pytest.raises(TargetError, match="target: macs must be a share between 0 and 1, not "):
        ifap.Target(macs=value)
    with pytest.raises(TargetError, match="target: batch must be a whole number of at least 1"):
        ifap.Target(latency=0.5, batch=str(value))


TRAINING = {
    "train": [
        (IMAGES, ConfigError, "that is one batch"),
        ([IMAGES], SplitError, "must give pairs of inputs and targets, not a Tensor"),
        ([(IMAGES[:, :1], LABELS)], TrainingError, "the network or the loss fails on batch 1 of the training data"),
        ([(IMAGES, LABELS + 100)], TrainingError, "batch 1 of the training data: IndexError: Target 1"),
    ],
    "validation": [([(IMAGES, LABELS.float())], TrainingError, "batch 1 of the validation data")],
    "epochs": [("3", ConfigError, "epochs must be a whole number of at least 0, not '3'")],
    "lr": [(0.0, ConfigError, "lr must be a finite number above 0, not 0.0")],
    "feature_weight": [(-1, ConfigError, "feature_weight must be a finite number of at least 0, not -1")],
    "precision": [("fp64", ConfigError, "precision must be one of fp32, bf16, fp16, not 'fp64'")],
    "loss": [
        ("ce", ConfigError, "loss must be a function, not 'ce'"),
        (nn.CrossEntropyLoss(reduction="none"), ConfigError, "loss must return a tensor with one number"),
    ],
    "accumulate": [(0, ConfigError, "accumulate must be a whole number of at least 1, not 0")],
}


@pytest.mark.parametrize(
    ("name", "value", "kind", "said"), [(name, *case) for name, cases in TRAINING.items() for case in cases]
)
def test_what_distillation_cannot_use_is_named(name, value, kind, said):
    with pytest.raises(kind) as caught:
        ifap.Distillation(**{"train": LABELLED, "validation": LABELLED, "epochs": 2, name: value})(
            network(), network(), 1
        )
    assert said in str(caught.value)


def test_other_public_functions_name_what_they_cannot_use(pruned, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for act, said in (
        (lambda: ifap.save(pruned.model, tmp_path / "a"), "pruned must be what ifap.prune returned, not a Sequential"),
        (lambda: ifap.save(pruned, file), f"'{file}' is a file"),
        (lambda: ifap.save(pruned, file / "inside"), f"'{file}' is a file"),
        (lambda: ifap.load(tmp_path, network()), "not a Sequential: write lambda: net"),
        (lambda: ifap.inspect(None, IMAGES), "model must be a network"),
        (lambda: ifap.cost(IMAGES, network()), "model must be a network (torch.nn.Module), not a Tensor"),
        (lambda: ifap.export_onnx(network(), IMAGES, tmp_path), "path must be the path of a file"),
        (lambda: ifap.write_report(pruned), "folder must be the path of a folder, not a Pruned"),
        (lambda: ifap.build(None), "identifier must be a string, not None"),
        (lambda: ifap.flow_scores(network(), IMAGES), "batches must be an iterable of batches"),
        (lambda: ifap.sweep(network(), IMAGES, [IMAGES], validate=0.5), "validate must be a function, not 0.5"),
    ):
        with pytest.raises(IfapError) as caught:
            act()
        assert said in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_layers_without_values_are_named_before_any_work():
    class Divided(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer
            self.kernel = nn.Parameter(layer.weight.detach())
            del layer._parameters["weight"]

        def forward(self, x):
            self.layer.weight = self.kernel / self.kernel.norm()
            return self.layer(x)

    x = torch.randn(2, 4)
    wrapped = nn.Sequential(Divided(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(
        GraphError, match=r"layer '0.layer' has no weight before the first forward: run the network once"
    ):
        ifap.prune(wrapped, x, [x], target=ifap.Target(macs=0.5))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ScoreError, match=r"'0.weight' holds no values \(it is on the meta device\)"):
        ifap.prune(empty, x, [x], target=ifap.Target(macs=0.5), method="magnitude")


def test_a_missing_or_unknown_argument_is_named_with_its_function():
    with pytest.raises(TypeError, match=r"^prune\(\): missing a required argument: 'batches'$"):
        ifap.prune(network(), IMAGES)
    with pytest.raises(TypeError, match=r"^prune\(\): got an unexpected keyword argument 'stepz': did you mean"):
        prune(stepz=3)


def test_networks_and_modes_that_nothing_can_be_done_with_are_named():
    with torch.device("meta"):
        empty = network()
    with pytest.raises(ScoreError, match=r"'0\.weight' holds no values"):
        prune(model=empty)
    with torch.inference_mode(), pytest.raises(GraphError, match=r"use torch\.no_grad"):
        prune()
    with pytest.raises(GraphError, match=r"torch\.jit has scripted or traced it"):
        prune(model=torch.jit.trace(network().eval(), IMAGES))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_that_was_given_another_type_is_saved_and_loaded_in_it(dtype, tmp_path):
    pruned = prune()
    pruned.model.to(dtype)
    ifap.save(pruned, tmp_path)
    loaded = ifap.load(tmp_path, network)
    assert {tensor.dtype for tensor in loaded.parameters()} == {dtype}
    assert torch.equal(loaded(IMAGES.to(dtype)), pruned.model.eval()(IMAGES.to(dtype)))


def test_names_that_can_be_read_only_once_are_not_used_up_by_the_check():
    pruned = prune(ignore=(name for name in ("0",)), target=ifap.Target(macs=0.2))
    assert pruned.model[0].out_channels == 8
    assert pruned.receipts[0].pinned["0"] == "ignored by the caller"

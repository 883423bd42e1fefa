"""Training: deterministic, resumable to the same bytes, and blind to the test split."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ifap.data import Split
from ifap.errors import SplitError, TrainingError
from ifap.study.config.recipes import TrainingOptions
from ifap.study.tasks import TASKS
from ifap.study.training.fit import STATE_FILE, _Losses, fit, read_progress
from ifap.study.training.schedule import build_optimizer, learning_rate

TASK = TASKS.get("classification")
RECIPE = TrainingOptions(
    epochs=4,
    batch_size=16,
    optimizer="adamw",
    lr=0.01,
    weight_decay=0.01,
    warmup_epochs=1,
    label_smoothing=0.1,
    augment=True,
)


def recipe(**changes):
    return RECIPE.model_copy(update=changes)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3)
    )


def split(role, samples=40):
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 3, (samples,), generator=generator)
    inputs = torch.randn(samples, 1, 4, 4, generator=generator)
    inputs[:, 0, 0, :3] += 3 * nn.functional.one_hot(targets, 3)
    return Split(role, inputs, targets)


def jitter(inputs, generator):
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def train(model=None, **changes):
    model = model or network()
    options = {"recipe": RECIPE, "state": None, "extra_loss": None, "guard": ""} | changes
    recipe = options.pop("recipe")
    rows = fit(model, split("train"), split("validation", 20), recipe, TASK, seed=3, augment=jitter, **options)
    return model, rows


def weights(model):
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


class Killer:
    """An extra loss of zero that stops the process, as it were, in the middle of an epoch."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, inputs, outputs):
        self.calls -= 1
        if self.calls == 0:
            raise KeyboardInterrupt
        return outputs.sum() * 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(tmp_path, optimizer):
    recipe = RECIPE.model_copy(update={"optimizer": optimizer})
    whole, rows = train(recipe=recipe, state=tmp_path / "whole", extra_loss=Killer(-1))
    for calls in (8, 5):  # three batches an epoch: in the third epoch, then in the fourth
        with pytest.raises(KeyboardInterrupt):
            train(recipe=recipe, state=tmp_path / "killed", extra_loss=Killer(calls))
    torch.rand(7)  # the state of the global generator must not matter
    resumed, again = train(recipe=recipe, state=tmp_path / "killed", extra_loss=Killer(-1))
    assert rows == again
    assert weights(whole) == weights(resumed)
    assert read_progress(tmp_path / "killed").resumes == 2
    assert read_progress(tmp_path / "killed").earlier_seconds > 0
    assert read_progress(tmp_path / "whole").resumes == 0


def test_nothing_is_pickled(tmp_path):
    train(state=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


@pytest.mark.parametrize("change", [{"recipe": RECIPE.model_copy(update={"lr": 0.02})}, {"guard": "other"}])
def test_a_changed_recipe_discards_the_state(tmp_path, change):
    train(state=tmp_path)
    _, rows = train(state=tmp_path, **change)
    assert rows == train(**change)[1]
    assert read_progress(tmp_path).resumes == 0


def test_a_damaged_state_is_discarded(tmp_path):
    _, rows = train(state=tmp_path)
    (tmp_path / STATE_FILE).write_bytes((tmp_path / STATE_FILE).read_bytes()[:200])
    assert train(state=tmp_path)[1] == rows


def test_training_learns_and_repeats():
    model, rows = train(recipe=RECIPE.model_copy(update={"epochs": 12}))
    assert [row.epoch for row in rows] == list(range(1, 13))
    assert rows[-1].validation_metric > 80
    assert rows[-1].train_loss < rows[0].train_loss
    assert weights(model) == weights(train(recipe=RECIPE.model_copy(update={"epochs": 12}))[0])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_epochs_leave_the_network_alone(tmp_path):
    model, rows = train(recipe=RECIPE.model_copy(update={"epochs": 0}), state=tmp_path)
    assert rows == []
    assert weights(model) == weights(network())


def test_the_test_split_is_refused():
    for pair in ((split("test"), split("validation")), (split("train"), split("test"))):
        with pytest.raises(SplitError, match="must not see the test split"):
            fit(network(), *pair, RECIPE, TASK, seed=0)


def test_a_loss_that_is_not_finite_names_epoch_and_step():
    def explode(inputs, outputs):
        return outputs.sum() * float("nan")

    with pytest.raises(TrainingError, match=r"loss is nan in epoch 1, step 1 of 3: .*no earlier state was kept"):
        train(extra_loss=explode)


def test_a_loss_that_is_not_finite_says_where_the_last_good_state_is(tmp_path):
    calls = iter(range(100))

    def explode(inputs, outputs):
        return outputs.sum() * (float("inf") if next(calls) == 7 else 0)

    with pytest.raises(TrainingError, match=rf"epoch 3, step 2 of 3: .*state after epoch 2 is in {tmp_path}\)"):
        train(extra_loss=explode, state=tmp_path)
    assert len(train(state=tmp_path)[1]) == 4  # and that state is good


def test_on_a_gpu_losses_are_read_in_blocks():
    losses = _Losses(torch.device("cuda"))
    for step in range(49):
        assert losses.add(step, torch.tensor(1.0 if step != 30 else float("nan")), 2) is None
    assert losses.newest is None
    assert losses.add(49, torch.tensor(2.0), 2)[0] == 30
    losses = _Losses(torch.device("cuda"))
    for step in range(50):
        losses.add(step, torch.tensor(float(step)), 1)
    losses.add(50, torch.tensor(75.0), 25)
    assert losses.newest == 49.0
    assert losses.read() is None
    assert losses.mean == (sum(range(50)) + 75 * 25) / 75


def test_the_schedule_rises_and_then_falls_along_a_half_cosine():
    rates = [learning_rate(step, 1, recipe(epochs=20, warmup_epochs=4, lr=1.0)) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[12] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.02
    assert learning_rate(0, 1, recipe(epochs=1, warmup_epochs=0, lr=1.0)) == 1.0


def test_biases_and_norms_are_not_decayed():
    model = network()
    decayed, free = build_optimizer(model, recipe(weight_decay=0.5)).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.5, 0.0)
    assert len(decayed["params"]) == 2
    assert len(free["params"]) == 4
    assert build_optimizer(model, recipe(optimizer="sgd")).param_groups[0]["nesterov"]


class Mask:
    """A toy method: random masks that move in the first step of every epoch, instead of a step of the weights."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(5)
        self.masks, self.calls, self.densities, self.gradients = {}, [], [], []

    def start(self, model, optimizer, *, steps, steps_per_epoch):
        self.calls.append("start")
        assert not self.masks
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
        assert {id(p) for p in self.weights.values()} <= {id(p) for g in optimizer.param_groups for p in g["params"]}
        self.draw()

    def draw(self):
        for name, weight in self.weights.items():
            self.masks[name] = torch.rand(weight.shape, generator=self.generator) < 0.5

    def before_step(self, step):
        self.calls.append(("before", step))
        self.before = [weight.detach().clone() for weight in self.weights.values()]

    def after_backward(self, step):
        self.gradients.append(torch.cat([weight.grad.flatten() for weight in self.weights.values()]))
        moves = step % self.steps_per_epoch == 0 and step > 0
        if moves:
            self.draw()
        return not moves

    def after_step(self, step):
        if step % self.steps_per_epoch == 0 and step > 0:
            assert all(map(torch.equal, self.before, self.weights.values()))
        self.apply()

    def apply(self):
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.mul_(self.masks[name])

    def finish(self):
        self.calls.append("finish")
        self.apply()

    def state(self):
        return {"generator": self.generator.get_state(), **{f"mask.{name}": mask for name, mask in self.masks.items()}}

    def restore(self, tensors):
        self.calls.append("restore")
        self.generator.set_state(tensors["generator"])
        self.masks = {name.removeprefix("mask."): t for name, t in tensors.items() if name != "generator"}


def test_a_controller_acts_around_every_step():
    mask = Mask()
    model, rows = train(controller=mask)
    assert (mask.steps, mask.steps_per_epoch) == (12, 3)
    assert mask.calls == ["start", *(("before", step) for step in range(12)), "finish"]
    assert len(rows) == 4
    for name, weight in mask.weights.items():
        assert not weight[~mask.masks[name]].any()
        assert weight[mask.masks[name]].all()
    assert weights(model) != weights(train()[0])


def test_a_controller_resumes_to_the_same_bytes(tmp_path):
    whole, rows = train(state=tmp_path / "whole", controller=Mask())
    with pytest.raises(KeyboardInterrupt):
        train(state=tmp_path / "killed", extra_loss=Killer(8), controller=Mask())
    mask = Mask()
    resumed, again = train(state=tmp_path / "killed", controller=mask)
    assert mask.calls[:3] == ["start", "restore", ("before", 6)]
    assert rows == again
    assert weights(whole) == weights(resumed)


def test_no_epochs_still_start_and_finish_a_controller():
    mask = Mask()
    train(recipe=RECIPE.model_copy(update={"epochs": 0}), controller=mask)
    assert mask.calls == ["start", "finish"]


def test_the_state_is_not_written_after_the_last_epoch(tmp_path):
    train(state=tmp_path, recipe=RECIPE.model_copy(update={"epochs": 1}))
    assert not list(tmp_path.iterdir())
    train(state=tmp_path)
    before = (tmp_path / STATE_FILE).read_bytes()
    train(state=tmp_path, guard="other", recipe=RECIPE.model_copy(update={"epochs": 1}))
    assert before
    assert not list(tmp_path.iterdir())  # the state of the other recipe is gone, so that nobody reads its resumes

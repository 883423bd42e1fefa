"""How the study's training computes its steps: parts of a batch, precision, averaging, schedules, processes, memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import shared_training
import torch
from safetensors.torch import load_file
from shared_training import train
from small_classifier import furthest, network, same, split, weights
from torch import nn

from ifap.errors import TrainingError
from ifap.recovery.distillation import Distillation
from ifap.recovery.train_step import Engine, open_engine
from ifap.study.config.recipes import TrainingOptions
from ifap.study.tasks import TASKS
from ifap.study.training.fit import _Average, fit, read_progress
from ifap.study.training.schedule import build_optimizer, learning_rate

TASK = TASKS.get("classification")


# --- accumulation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"ema_decay": None}, {"optimizer": "adamw", "lr": 0.01}])
def test_parts_of_a_batch_add_up_to_the_batch(changes):
    """Also in the last batch of an epoch, of 8 samples and not 16."""
    (one, rows), (four, again) = train(**changes), train(accumulate=4, **changes)
    assert not same(weights(one), weights(four))  # the sums are rounded elsewhere
    assert furthest(weights(one), weights(four)) < 1e-5
    assert furthest(weights(one), weights(network())) > 0.02
    for row, other in zip(rows, again, strict=True):
        assert row.train_loss == pytest.approx(other.train_loss, abs=1e-5)


# --- precision, memory format, compilation --------------------------------------------------------


def test_mixed_precision_trains_nearly_as_single_precision_does():
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append(super().forward(x).dtype)
            return super().forward(x)

    def run(precision):
        model = network()
        model[4] = Watched(64, 3)
        model[4].load_state_dict(network()[4].state_dict())
        recipe = TrainingOptions(**shared_training.RECIPE | {"precision": precision})
        return model, fit(model, split("train", 40), split("validation", 20), recipe, TASK, seed=3)

    single, _ = run("fp32")
    assert set(seen) == {torch.float32}
    seen.clear()
    mixed, _ = run("bf16")
    assert seen.count(torch.bfloat16) == 9  # every training step
    assert seen.count(torch.float32) == 3 * 2  # validation has single precision
    assert {value.dtype for value in mixed.state_dict().values()} == {torch.float32}
    assert 1e-5 < furthest(weights(single), weights(mixed)) < 0.02
    assert same(weights(mixed), weights(run("bf16")[0]))


def test_half_precision_without_a_gpu_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(TrainingError, match="fp16 needs a GPU: set precision to bf16 or fp32"):
        train(precision="fp16")


def test_channels_last_is_how_it_is_computed_and_not_how_it_is_returned():
    seen = []

    class Watched(nn.Conv2d):
        def forward(self, x):
            seen.append((x.is_contiguous(memory_format=torch.channels_last), self.weight.stride()[1] == 1))
            return super().forward(x)

    model = nn.Sequential(Watched(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    data = split("train", 32)
    data = type(data)("train", data.inputs.repeat(1, 2, 1, 1), data.targets)
    watched = type(data)("validation", data.inputs, data.targets)
    recipe = TrainingOptions(**shared_training.RECIPE | {"channels_last": True, "epochs": 1})
    fit(model, data, watched, recipe, TASK, seed=0)
    assert seen[:2] == [(True, True)] * 2
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_what_is_compiled_is_the_network_for_the_steps(monkeypatch):
    compiled = []

    def stand_in(model):
        def forward(*args):
            compiled.append(len(args[0]))
            return model(*args)

        return forward

    monkeypatch.setattr(torch, "compile", stand_in)
    plain, _ = train()
    assert not compiled
    model, _ = train(compile=True)
    assert compiled == [16, 16, 8] * 3
    assert same(weights(plain), weights(model))


def test_a_plain_run_needs_no_accelerator(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)  # importing it is an error
    train(accumulate=2)
    assert type(open_engine(network(), "fp32")) is Engine
    with pytest.raises(ImportError):
        train(precision="bf16")


# --- averaging ------------------------------------------------------------------------------------


def test_the_average_is_short_at_first_and_then_as_long_as_asked_for():
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    weight = model[0].weight
    with torch.no_grad():
        weight.fill_(0.0)
        average = _Average(model, 0.5)
        for step, (value, wanted) in enumerate([(10.0, 9.0), (0.0, 18 / 11)]):  # it keeps 1/10, then 2/11
            weight.fill_(value)
            average.update(step)
            assert average.values["0.weight"].item() == pytest.approx(wanted)
        weight.fill_(11.0)
        for _ in range(50):
            average.update(10_000)
        weight.fill_(1.0)
        average.update(10_000)
    assert average.values["0.weight"].item() == pytest.approx(6.0)  # half of 11 and half of 1
    average.swap()
    assert (weight.item(), average.values["0.weight"].item()) == (pytest.approx(6.0), 1.0)


def test_the_averaged_network_is_validated_and_returned():
    (plain, rows), (averaged, other) = train(norm=True, ema_decay=None), train(norm=True)
    assert furthest(weights(plain), weights(averaged)) > 1e-3
    assert [row.train_loss for row in rows] == [row.train_loss for row in other]  # training itself is the same
    measured = TASK.evaluate(averaged, split("validation", 20), 16)
    assert same(dict(averaged.named_buffers()), dict(plain.named_buffers()))
    assert (other[-1].validation_loss, other[-1].validation_metric) == (measured["loss"], measured["top1"])


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulate": 4}, {"precision": "bf16"}, {"channels_last": True}, {"optimizer": "adamw", "lr": 0.01}],
)
def test_a_killed_run_ends_with_the_same_bytes(tmp_path, changes, monkeypatch):
    whole, rows = train(norm=True, **changes)
    calls = iter([None] * 5 + [KeyboardInterrupt])
    step = torch.nn.utils.clip_grad_norm_

    def kill(*arguments):
        error = next(calls, None)
        if error:
            raise error
        return step(*arguments)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", kill)
    with pytest.raises(KeyboardInterrupt):
        train(state=tmp_path, norm=True, **changes)
    resumed, again = train(state=tmp_path, norm=True, **changes)
    assert rows == again
    assert same(weights(whole), weights(resumed))


# --- schedule and optimiser -----------------------------------------------------------------------


def recipe(**changes):
    return TrainingOptions(**shared_training.RECIPE | changes)


def test_the_learning_rate_falls_at_milestones():
    stepped = recipe(epochs=20, warmup_epochs=2, lr=1.0, schedule="step", milestones=[0.5, 0.75])
    rates = [learning_rate(step, 1, stepped) for step in range(20)]
    assert rates == pytest.approx([0.5, 1.0, *[1.0] * 8, *[0.1] * 5, *[0.01] * 5])
    _, rows = train(schedule="step", milestones=[0.5], warmup_epochs=0)
    assert [row.lr for row in rows] == pytest.approx([0.05, 0.005, 0.005])


def test_momentum_and_decay_reach_the_optimiser():
    model = network(norm=True)
    assert build_optimizer(model, recipe(optimizer="adamw", beta1=0.5)).param_groups[0]["betas"] == (0.5, 0.999)
    optimizer = build_optimizer(model, recipe(optimizer="sgd", weight_decay=0.5, momentum=0.0, decay_norms=True))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(0.0, False)}
    assert not same(weights(train()[0]), weights(train(momentum=0.5)[0]))
    assert not same(weights(train(norm=True)[0]), weights(train(norm=True, decay_norms=True)[0]))


def test_long_gradients_are_cut():
    norms = []

    class Watch:
        def __init__(self):
            pass

        def start(self, model, optimizer, *, steps, steps_per_epoch):
            self.model = model

        def before_step(self, step):
            self.before = weights(self.model)

        def after_backward(self, step):
            return True

        def after_step(self, step):
            moved = [(self.before[name] - value).flatten() for name, value in weights(self.model).items()]
            norms.append(float(torch.cat(moved).norm()))

        def finish(self):
            pass

        def state(self):
            return {}

        def restore(self, tensors):
            pass

    changes = {"momentum": 0.0, "weight_decay": 0.0, "lr": 1.0, "warmup_epochs": 0, "epochs": 1, "schedule": "step"}
    recipe = TrainingOptions(**shared_training.RECIPE | changes | {"milestones": [0.99], "grad_clip": 0.01})
    fit(network(), split("train", 40), split("validation", 20), recipe, TASK, seed=0, controller=Watch())
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


# --- memory ---------------------------------------------------------------------------------------


def test_memory_that_really_runs_out_is_explained():
    class Huge(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 3)

        def forward(self, x):
            return self.linear(x.flatten(1)) + torch.empty(2**56)[0]

    recipe = TrainingOptions(**shared_training.RECIPE)
    with pytest.raises(TrainingError, match="out of memory with batch_size 16 in parts of 16: set accumulate to 2"):
        fit(Huge(), split("train", 40), split("validation", 20), recipe, TASK, seed=0)
    with pytest.raises(TrainingError, match="out of memory with batch_size 16 in parts of 16: set accumulate to 2"):
        Distillation(split("train", 40), split("validation", 20), batch_size=16, feature_weight=0.0)(
            Huge(), network(), 1
        )


# --- several processes ----------------------------------------------------------------------------


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr(Engine, "processes", 3)
    with pytest.raises(TrainingError, match=r"batch_size 16 cannot be shared by 3 processes .* a multiple of 6"):
        train(accumulate=2)


def start(folder, changes, processes):
    """Run shared_training as a launcher would; gloo, one thread each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, shared_training.__file__, str(folder), json.dumps(changes)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]


def test_two_processes_end_with_the_same_network_as_one(tmp_path):
    changes = {"accumulate": 2}
    start(tmp_path, changes, 2)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert same(first, second)
    alone, rows = train(**changes)
    assert 0 < furthest(first, weights(alone)) < 1e-5
    histories = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert histories[0] == histories[1]
    for row, other in zip(histories[0], rows, strict=True):
        assert row["train_loss"] == pytest.approx(other.train_loss, abs=1e-5)
        assert row["validation_metric"] == other.validation_metric
    # With batch norm as well: its statistics are those of the first process. And after a kill in the second epoch.
    names = ("with-norm-0", "with-norm-1", "resumed-0", "resumed-1")
    whole, *others = (load_file(tmp_path / f"{name}.safetensors") for name in names)
    assert all(same(whole, other) for other in others)
    assert not same(whole, first)
    assert read_progress(tmp_path / "state").resumes == 1

"""What is shown of a training: the bar on a terminal, and the curves for TensorBoard."""

from __future__ import annotations

import sys

import pytest
from shared_training import train as plain_train
from test_training import Killer, train

from ifap.study.training import progress as monitor
from ifap.study.training.history import EpochRow
from ifap.study.training.progress import Speed, StepBar, tensorboard


def points(folder):
    """Return what TensorBoard would show: name to (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_every_epoch_is_one_point(tmp_path, monkeypatch):
    monkeypatch.setenv(monitor.TENSORBOARD_SWITCH, "1")
    with tensorboard(tmp_path) as board:
        _, rows = train(on_epoch=board)
    shown = points(tmp_path)
    assert set(shown) == {
        "loss/train", "loss/validation", "metric/validation", "lr", "speed/epoch_seconds", "speed/samples_per_second",
    }  # fmt: skip
    assert shown["loss/train"] == [(row.epoch, pytest.approx(row.train_loss)) for row in rows]
    assert shown["metric/validation"] == [(row.epoch, pytest.approx(row.validation_metric)) for row in rows]
    for (_, seconds), (_, speed) in zip(
        *(shown[f"speed/{n}"] for n in ("epoch_seconds", "samples_per_second")), strict=True
    ):
        assert speed == pytest.approx(40 / seconds, rel=1e-4)


def test_a_resumed_run_goes_on_without_a_point_twice(tmp_path, monkeypatch):
    monkeypatch.setenv(monitor.TENSORBOARD_SWITCH, "1")
    for calls in (8, -1):  # killed in the third epoch
        with tensorboard(tmp_path / "logs") as board:
            try:
                train(state=tmp_path / "state", extra_loss=Killer(calls), on_epoch=board)
            except KeyboardInterrupt:
                assert len(points(tmp_path / "logs")["lr"]) == 2
    assert [step for step, _ in points(tmp_path / "logs")["lr"]] == [1, 2, 3, 4]


def test_an_older_run_in_the_same_folder_is_hidden(tmp_path, monkeypatch):
    monkeypatch.setenv(monitor.TENSORBOARD_SWITCH, "1")
    for loss in (1.0, 2.0):
        with tensorboard(tmp_path) as board:
            for epoch in (1, 2):
                board(EpochRow(epoch, 0.1, loss, loss, 50.0), Speed(1.0, 10.0))
    assert points(tmp_path)["loss/train"] == [(1, 2.0), (2, 2.0)]


def test_curves_are_written_only_where_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv(monitor.TENSORBOARD_SWITCH, raising=False)
    with tensorboard(tmp_path) as board:
        assert board is None
    monkeypatch.setenv(monitor.TENSORBOARD_SWITCH, "1")
    with tensorboard(tmp_path) as board:
        assert board is not None
    assert not list(tmp_path.iterdir())  # nothing to show, nothing written


def test_the_bar_is_quiet_unless_on_a_terminal(capfd):
    plain_train()
    assert capfd.readouterr().err == ""


def test_the_bar_shows_step_loss_and_speed(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = StepBar(3, 10)
    with bar:
        bar.epoch(2)
        bar.step(16, None)
        bar.step(16, 0.25)
        task = bar._bar.tasks[0]
        assert (task.description, task.completed, task.total) == ("epoch 2/3", 2, 10)
        assert task.fields["speed"].startswith("loss 0.2500  ")
        assert task.fields["speed"].endswith(" samples/s")
        bar.epoch(3)
        assert bar._bar.tasks[0].completed == 0
    assert not StepBar(3, 10, shown=False).shown

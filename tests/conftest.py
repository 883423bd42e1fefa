"""What all tests share: one thread, to behave the same beside other jobs, and the command ``ifap``."""

from __future__ import annotations

import gc
import logging
import sys

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Begin with whole workflows: they take longest, and one at the end would keep a single worker busy."""
    items.sort(key=lambda item: "workflow" not in item.path.parts)


def pytest_collection_finish():
    """Leave the imported libraries out of garbage collection: some tests collect often, and would walk through them."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _as_torch_starts():
    """Undo what a job of the study, called inside this process, switched on for the rest of it."""
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def command(monkeypatch, capsys):
    """Call ``ifap`` inside this process; returns exit code, stdout and stderr."""
    from ifap.cli import commands

    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ifap", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            commands.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return call

"""What `stages.sync` says of recorded files that are not here; the rest is in `test_workflow`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from stages import sync


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        ('{"not_in_cache": ["a/b"], "git": {}}', "; not fetched, or damaged in the remote: a/b"),
        ('{"not_in_cache": ["a/b", "c", "d"]}', "; not fetched, or damaged in the remote: a/b and 2 more"),
        ('{"not_in_cache": []}', ""),
        ("{}", ""),
        ("[]", ""),
        ("", ""),
    ],
)
def test_files_that_did_not_come_are_named(monkeypatch, output, wanted):
    asked = []

    def run(command, **options):
        asked.append(command[1:])
        return SimpleNamespace(stdout=output)

    monkeypatch.setattr(sync.subprocess, "run", run)
    assert sync.not_fetched() == wanted
    assert asked == [["-m", "dvc", "data", "status", "--granular", "--json"]]

"""Seeds, CSV, locks, exit codes and provenance."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ifap import files, seeds
from ifap.errors import IfapError
from ifap.latency import latency
from ifap.study import stage as program
from ifap.study.machine import determinism, lock, provenance


def test_configure_ignores_the_number_of_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    determinism.configure(3)
    assert torch.get_num_threads() == 1
    first = torch.rand(2)
    determinism.configure(3)
    assert torch.equal(first, torch.rand(2))
    assert torch.are_deterministic_algorithms_enabled()


def test_seeded_puts_the_global_generator_back():
    before = torch.random.get_rng_state()
    with seeds.seeded(5, torch.device("cpu")):
        first = torch.rand(3)
    assert torch.equal(before, torch.random.get_rng_state())
    with seeds.seeded(5, torch.device("cpu")):
        assert torch.equal(first, torch.rand(3))


def test_derived_seeds_depend_on_every_part():
    found = {seeds.derive_seed(*parts) for parts in [(0, 1), (1, 0), (0, 11), (0, 1, "order")]}
    assert len(found) == 4
    assert all(0 <= seed < 2**63 for seed in found)


def test_csv_floats_read_back_exactly(tmp_path):
    path = tmp_path / "rows.csv"
    files.write_csv(path, [{"a": 0.1 + 0.2, "b": 3}, {"a": None, "b": "x,y"}], ["a", "b"])
    assert path.read_bytes() == b'a,b\n0.30000000000000004,3\n,"x,y"\n'
    with pytest.raises(ValueError, match="c"):
        files.write_csv(path, [{"c": 1}], ["a"])


def test_a_second_run_is_told_what_is_running(tmp_path):
    with (
        lock.locked(tmp_path, "baseline of a cell"),
        pytest.raises(IfapError, match=rf"baseline of a cell is already running \(process {os.getpid()};"),
    ):
        lock.locked(tmp_path, "baseline of a cell").__enter__()
    assert (tmp_path / lock.LOCK_FILE).exists()  # a file left behind must not block the next run
    with lock.locked(tmp_path, "baseline of a cell"):
        pass


def test_a_users_mistake_is_one_line_and_exit_code_2():
    lines = [
        "from ifap.errors import IfapError",
        "from ifap.study.stage import run_stage",
        "def main() -> None: raise IfapError('two\\nlines')",
        "run_stage(main)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: two lines\n")


def test_a_bug_keeps_its_traceback_and_success_is_exit_code_0(monkeypatch):
    monkeypatch.setattr(program, "configure_logging", lambda: None)
    monkeypatch.setattr(sys, "argv", ["stage"])

    def bug() -> None:
        raise RuntimeError("a bug")

    def fine() -> None:
        pass

    with pytest.raises(RuntimeError, match="a bug"):
        program.run_stage(bug)
    with pytest.raises(SystemExit) as exit_code:
        program.run_stage(fine)
    assert exit_code.value.code == 0


def test_provenance_works_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = provenance.provenance()
    assert found["commit"] is None
    assert found["dirty"] is None
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] or found["versions"]["torch"]
    assert found["hardware"]["cores"] >= 1


def test_only_changed_sources_make_a_checkout_dirty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("a = 1\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], check=True)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "runs.csv").write_text("x\n")
    assert provenance.provenance()["dirty"] is False
    assert len(provenance.provenance()["commit"]) == 40
    (tmp_path / "src" / "a.py").write_text("a = 2\n")
    assert provenance.provenance()["dirty"] is True


def test_peak_memory_is_plausible():
    assert 10 < provenance.peak_memory_mb() < 1e6


def test_peak_memory_is_not_that_of_the_process_that_started_this_one():
    much = torch.ones(2**27)  # 512 MiB
    code = "from ifap.study.machine.provenance import peak_memory_mb; print(peak_memory_mb())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < provenance.peak_memory_mb() - 256
    assert much.all()


def test_latency_is_measured_in_evaluation_mode_and_ordered():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).train()
    timed = latency(model, torch.zeros(1, 4), warmup=1, runs=5)  # one sample: batch norm cannot train on it
    assert 0 < timed.p10_ms <= timed.median_ms <= timed.p90_ms
    assert (timed.batch, timed.device, timed.dtype, timed.runs) == (1, "cpu", "float32", 5)
    assert model.training

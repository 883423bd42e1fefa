"""Seeds, CSV, locks, exit codes and provenance."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import pytest
import torch

from ifap import runtime
from ifap.errors import IfapError


def hold(folder, ready, done):
    with runtime.Lock(folder, "baseline of a cell"):
        ready.set()
        done.wait(30)


def test_configure_ignores_the_number_of_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runtime.configure(3)
    assert torch.get_num_threads() == 1
    first = torch.rand(2)
    runtime.configure(3)
    assert torch.equal(first, torch.rand(2))
    assert torch.are_deterministic_algorithms_enabled()


def test_seeded_puts_the_global_generator_back():
    before = torch.random.get_rng_state()
    with runtime.seeded(5, torch.device("cpu")):
        first = torch.rand(3)
    assert torch.equal(before, torch.random.get_rng_state())
    with runtime.seeded(5, torch.device("cpu")):
        assert torch.equal(first, torch.rand(3))


def test_derived_seeds_depend_on_every_part():
    seeds = {runtime.derive_seed(*parts) for parts in [(0, 1), (1, 0), (0, 11), (0, 1, "order")]}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_csv_floats_read_back_exactly(tmp_path):
    path = tmp_path / "rows.csv"
    runtime.write_csv(path, [{"a": 0.1 + 0.2, "b": 3}, {"a": None, "b": "x,y"}], ["a", "b"])
    assert path.read_bytes() == b'a,b\n0.30000000000000004,3\n,"x,y"\n'
    with pytest.raises(ValueError, match="c"):
        runtime.write_csv(path, [{"c": 1}], ["a"])


def test_a_second_process_is_told_what_is_running(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(tmp_path, ready, done))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(IfapError, match=f"baseline of a cell is already running .*{holder.pid}"):
        runtime.Lock(tmp_path, "baseline of a cell").__enter__()
    holder.kill()  # a killed job must not block its next run
    holder.join()
    with runtime.Lock(tmp_path, "baseline of a cell"):
        pass


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("pass", 0, ""),
        ("raise IfapError('two\\nlines')", 2, "error: two lines\n"),
        ("raise RuntimeError('a bug')", 1, "RuntimeError: a bug"),
    ],
)
def test_exit_codes(body, code, message):
    lines = [
        "from ifap.errors import IfapError",
        "from ifap.runtime import run_stage",
        f"def main() -> None: {body}",
        "run_stage(main)",
    ]
    script = "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert message in done.stderr
    assert code != 2 or done.stderr == message


def test_provenance_works_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = runtime.provenance()
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
    assert runtime.provenance()["dirty"] is False
    assert len(runtime.provenance()["commit"]) == 40
    (tmp_path / "src" / "a.py").write_text("a = 2\n")
    assert runtime.provenance()["dirty"] is True


def test_peak_memory_is_plausible():
    assert 10 < runtime.peak_memory_mb() < 1e6

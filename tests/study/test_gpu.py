"""Leases of GPUs for real: processes, signals and file locks; the devices are only names, so none is needed."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
from workflow_project import ROOT, fresh  # noqa: F401

from ifap.errors import ConfigError
from ifap.study.machine import gpu

# What `nvidia-smi -L` prints for two whole devices and one that is divided in two.
LISTED = """GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aaaa1111-0000-0000-0000-000000000000)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-bbbb2222-0000-0000-0000-000000000000)
  MIG 3g.40gb     Device  0: (UUID: MIG-cccc3333-0000-0000-0000-000000000000)
  MIG 3g.40gb     Device  1: (UUID: MIG-dddd4444-0000-0000-0000-000000000000)
GPU 2: NVIDIA H100 (UUID: GPU-eeee5555-0000-0000-0000-000000000000)
"""
FIRST = "GPU-aaaa1111-0000-0000-0000-000000000000"
HALVES = [f"MIG-{part}-0000-0000-0000-000000000000" for part in ("cccc3333", "dddd4444")]
LAST = "GPU-eeee5555-0000-0000-0000-000000000000"

# A job: its device and when it had it, and then it waits to be told to end.
JOB = """
import os, sys, time
from ifap.study.machine import gpu
gpu.take_as_asked()
assert "torch" not in sys.modules
start = time.monotonic()
print(os.environ.get(gpu.VISIBLE, "not set"), flush=True)
{body}
print(start, time.monotonic(), flush=True)
"""
HOLD = "sys.stdin.read()"
WORK = "time.sleep(0.3)"
LEAVE_A_CHILD = """
if os.fork() == 0:
    time.sleep(60)
    os._exit(0)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def environ(tmp_path, monkeypatch):
    """The environment of a job on a machine of four GPUs without a driver's program."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "KUBERNETES_", "IFAP_GPU", "CUDA_", "WORLD_SIZE")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(gpu, "_held", [])
    return {
        "PATH": str(tmp_path / "bin"),
        "PYTHONPATH": str(ROOT / "src"),
        gpu.FOLDER: str(tmp_path / "locks"),
        gpu.VISIBLE: "0,1,2,3",
        gpu.WANTED: "1",
    }


@pytest.fixture
def driver(environ, tmp_path, monkeypatch):
    """A stand-in for ``nvidia-smi``, found by this process and by jobs; CUDA's own variable is not set."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys\nassert sys.argv[1:] == ['-L']\nprint({LISTED!r}, end='')\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    del environ[gpu.VISIBLE]
    return environ


@pytest.fixture
def start(environ):
    """Start jobs; all are ended with the test."""
    started = []

    def begin(body=HOLD, **more):
        job = subprocess.Popen(
            [sys.executable, "-c", JOB.format(body=body)], env={**environ, **more}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        started.append(job)
        return job

    yield begin
    for job in started:
        # Its children too: they hold its output open.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()


def device_of(job):
    """Return the device that a job got; waits until it has one."""
    return job.stdout.readline().strip()


def test_eight_jobs_on_four_devices_are_never_two_on_one(start):
    jobs = [start(WORK) for _ in range(8)]
    spans = {}
    for job in jobs:
        out, err = job.communicate(timeout=60)
        assert job.returncode == 0, err
        device, times = out.splitlines()
        spans.setdefault(device, []).append(tuple(map(float, times.split())))
    assert set(spans) == {"0", "1", "2", "3"}
    assert sum(map(len, spans.values())) == 8
    for used in spans.values():
        ordered = sorted(used)
        assert all(end <= following for (_, end), (following, _) in itertools.pairwise(ordered))


def test_the_device_of_a_killed_job_goes_to_the_one_that_waits(start):
    holders = {device_of(job): job for job in (start() for _ in range(4))}
    waiting = start()
    time.sleep(0.5)
    assert waiting.poll() is None
    os.kill(holders["2"].pid, signal.SIGKILL)
    assert device_of(waiting) == "2"


def test_a_child_that_outlives_its_job_does_not_keep_the_device(start):
    job = start(LEAVE_A_CHILD, **{gpu.VISIBLE: "0"})
    assert device_of(job) == "0"
    job.wait()
    assert device_of(start(WORK, **{gpu.VISIBLE: "0"})) == "0"


def test_only_the_inherited_devices_are_taken(start):
    jobs = [start(**{gpu.VISIBLE: "3,5"}) for _ in range(2)]
    assert {device_of(job) for job in jobs} == {"3", "5"}


def test_several_jobs_share_a_device_if_wanted_once_all_have_one(start):
    # One after the other: each is asked for its device before the next is started.
    assert [device_of(start(**{gpu.VISIBLE: "0,1", gpu.SLOTS: "2"})) for _ in range(4)] == ["0", "1", "0", "1"]


@pytest.mark.parametrize(
    ("more", "seen"),
    [
        ({gpu.WANTED: "0"}, ""),  # the workflow gives none: `snakemake --resources gpu=0`
        ({gpu.WANTED: "1", gpu.VISIBLE: ""}, ""),
        ({gpu.WANTED: "1", "WORLD_SIZE": "4"}, "0,1,2,3"),  # a launcher of several processes
        ({gpu.WANTED: ""}, "0,1,2,3"),  # a stage that is run by hand
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "2", gpu.VISIBLE: "2"}, "2"),
        ({"SLURM_JOB_ID": "7"}, ""),  # sees all, owns none
        # A job that Snakemake submitted with `gres` in place of `gpu`, one that asked for none, and two that run in an
        # allocation of somebody who wants no GPU.
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "2", gpu.VISIBLE: "2", gpu.WANTED: "0", gpu.SUBMITTED: "1"}, "2"),
        ({"SLURM_JOB_ID": "7", gpu.WANTED: "0", gpu.SUBMITTED: "1"}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "2", gpu.VISIBLE: "2", gpu.WANTED: "0"}, ""),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", gpu.VISIBLE: "GPU-1"}, "GPU-1"),
    ],
)
def test_what_a_job_sees(start, tmp_path, more, seen):
    first, second = start(**more), start(**more)
    assert [device_of(first), device_of(second)] == [seen, seen]
    assert not (tmp_path / "locks").exists()


def test_jobs_inside_one_allocation_share_its_devices_out(start):
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0,1", gpu.VISIBLE: "0,1"}
    assert {device_of(start(**slurm)), device_of(start(**slurm))} == {"0", "1"}
    # Slurm may call other devices by the same numbers in another job.
    assert device_of(start(**{**slurm, "SLURM_JOB_ID": "8"})) == "0"


def test_the_driver_lists_devices_and_parts_of_them(driver):
    assert [device.name for device in gpu.visible_devices(driver)] == [FIRST, *HALVES, LAST]
    assert [device.title for device in gpu.driver_devices()][:2] == [
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA A100-SXM4-80GB 3g.40gb",
    ]


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("2,0", ["2", "0"]),
        ("GPU-eeee,0", ["GPU-eeee", "0"]),  # UUIDs may be cut short
        (HALVES[1], [HALVES[1]]),
        ("0,0,2", ["0", "2"]),
        (f"0,{FIRST}", ["0"]),  # one device by two names
        ("0,-1,2", ["0"]),  # as CUDA has it: nothing counts after an entry that is none
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_the_inherited_list_is_read_as_cuda_reads_it(driver, value, names):
    assert [device.name for device in gpu.visible_devices({gpu.VISIBLE: value})] == names


def test_two_names_of_one_device_have_one_lock(start, driver):
    assert device_of(start(**{gpu.VISIBLE: "0"})) == "0"
    assert device_of(start(**{gpu.VISIBLE: f"{FIRST},2"})) == "2"


def test_holders_are_named_while_they_live(start, environ):
    job = start(**{gpu.VISIBLE: "5"})
    assert device_of(job) == "5"
    five = [gpu.Device("5", "5")]
    assert list(gpu.holders(five, environ)) == [gpu.Holder(five[0], 0, str(job.pid))]
    job.kill()
    job.wait()
    assert list(gpu.holders(five, environ)) == []


@pytest.mark.parametrize(("name", "value"), [(gpu.SLOTS, "0"), (gpu.SLOTS, "two"), (gpu.WANTED, "-1")])
def test_a_wrong_number_is_named(environ, name, value):
    with pytest.raises(ConfigError, match=rf"{name} must be a whole number from \d, not '{value}'"):
        gpu.take_as_asked({**environ, name: value})


def test_a_lock_folder_that_cannot_be_used_is_named(environ, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"lock folder .*/file/locks: .*: set IFAP_GPU_LOCKS to a folder of yours"):
        gpu.take({**environ, gpu.FOLDER: str(tmp_path / "file" / "locks")})


def test_a_stage_takes_its_device_before_anything_else(environ):
    command = [sys.executable, "-m", "stages.collect", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "INFO ifap.study.machine.gpu: GPU 0: waited 0.0 s\n")
    wrong = subprocess.run(command, cwd=ROOT, env={**environ, gpu.WANTED: "many"}, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr == "error: IFAP_GPU must be a whole number from 0, not 'many'\n"

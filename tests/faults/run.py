"""Disturb every stage of a tiny study, run it again, and compare with the undisturbed study.

    python tests/faults/run.py --kills 30 --seed 0

Stages run in forked processes, so that torch is loaded once. Kinds: SIGKILL and SIGTERM at a random moment, SIGKILL
before the n-th change of a file, running out of memory, a failing device, a full disk and a read-only folder (both
need root, for `mount`), and files from the future. After each, the same command must lead to the same bytes in every
file but those that hold times, leave no other file, and repeat no more than one epoch or pruning iteration.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib
import io
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "tests" / "support")]
os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

import yaml  # noqa: E402
from workflow_project import SCALE, copy_file, make_project, tiny_params, tracked_files  # noqa: E402

from ifap.study import paths  # noqa: E402

CELL = ["--task=classification", "--dataset=digits", "--model=resnet_tiny", "--seed=0"]
STAGES = {
    "fetch": ["fetch", "--dataset=digits"],
    "baseline": ["baseline", *CELL],
    "evaluate-baseline": ["evaluate", *CELL, "--method=baseline"],
    "prune": ["prune", *CELL, "--method=ifap"],
    "finetune": ["finetune", *CELL, "--method=ifap"],
    "evaluate": ["evaluate", *CELL, "--method=ifap"],
    "collect": ["collect"],
    "tables": ["tables"],
    "figures": ["figures"],
}
REPORT = ("collect", "tables", "figures")
"""The stages that need no torch."""
TIMES = {
    "latency", "wall_seconds", "peak_memory_mb", "seconds", "resume_count", "commit",
}  # fmt: skip
JOURNAL = "FAULTS_JOURNAL"
TIMEOUT = 1800
PAGE = os.sysconf("SC_PAGESIZE")
KINDS = ("kill", "write", "term", "memory", "device", "full", "readonly", "future")


def load_stages(names):
    """Import what stages need once, before any process is forked; torch, which takes seconds, only if one needs it."""
    for name in sorted({STAGES[stage][0] for stage in names}):
        importlib.import_module(f"stages.{name}")
    if "torch" in sys.modules:
        importlib.import_module("ifap.recovery.distillation")
        sys.modules["torch"].set_num_threads(1)


# --- what runs in the forked process --------------------------------------------------------------


def note(line):
    with open(os.environ[JOURNAL], "a") as journal:
        journal.write(f"{line}\n")


def watch_work():
    """Note every epoch and every recovery that begins."""
    if "torch" not in sys.modules:
        return
    training, recover = sys.modules["ifap.study.training.fit"], sys.modules["ifap.recovery.distillation"]
    epoch, distil = training._epoch, recover.Distillation.__call__

    def noted_epoch(run, reader, task, number, *rest):
        note(f"epoch {number}")
        return epoch(run, reader, task, number, *rest)

    def noted_distil(self, model, teacher, step):
        note(f"iteration {step}")
        return distil(self, model, teacher, step)

    training._epoch, recover.Distillation.__call__ = noted_epoch, noted_distil


def count_changes(limit):
    """Kill this process before its `limit`-th change of a file's name; 0: count them only."""
    seen = 0

    def counted(function):
        def inner(*arguments, **options):
            nonlocal seen
            seen += 1
            note("change")
            if seen == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return inner

    for name in ("replace", "rename", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))


def fail_forward(error, limit):
    """Raise an error in the `limit`-th forward of a convolution; 0: count them only."""
    if "torch" not in sys.modules:
        return lambda: 0
    convolution = sys.modules["torch"].nn.Conv2d
    forward, seen = convolution.forward, 0

    def failing(self, inputs):
        nonlocal seen
        seen += 1
        if seen == limit:
            raise error
        return forward(self, inputs)

    convolution.forward = failing
    return lambda: seen


def in_child(folder, stage, prepare, log):
    """Run a stage in this, forked, process; never returns."""
    code = 1
    try:
        os.chdir(folder)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        watch_work()
        after = prepare()
        command = STAGES[stage]
        sys.argv = [command[0], *command[1:]]
        try:
            runpy.run_module(f"stages.{command[0]}", run_name="__main__", alter_sys=False)
        except SystemExit as stop:
            code = int(stop.code or 0)
        if callable(after):
            note(f"forwards {after()}")
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


# --- running and disturbing -----------------------------------------------------------------------


@dataclass
class Run:
    """How one process ended."""

    code: int
    seconds: float  # of processor time: how long a run takes depends on what else the machine does
    said: str
    journal: Counter


@dataclass
class Study:
    """A folder with the tiny study, and where its processes write what they do."""

    root: Path
    notes: Path

    def run(self, stage, prepare=lambda: None, stop=None):
        """Run one stage; `stop` is (signal, seconds of processor time after the start)."""
        journal, log = self.notes / "journal", self.notes / "log"
        journal.write_text("")
        os.environ[JOURNAL] = str(journal)
        child = os.fork()
        if child == 0:
            in_child(self.root, stage, prepare, log)
        status, seconds = self._wait(child, stop)
        code = os.waitstatus_to_exitcode(status)
        said = log.read_text(errors="replace") if log.exists() else ""
        return Run(code, seconds, said, Counter(journal.read_text().splitlines()))

    def _wait(self, child, stop):
        start, sent = time.monotonic(), False
        while True:
            done, status, used = os.wait4(child, os.WNOHANG)
            if done:
                return status, used.ru_utime + used.ru_stime
            if stop and not sent and processor_time(child) >= stop[1]:
                os.kill(child, stop[0])
                sent = True
            if time.monotonic() - start > TIMEOUT:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise SystemExit(f"{child}: a stage hung")
            time.sleep(0.003)

    def files(self):
        """Return the content of every file that a run leaves, without what differs from run to run."""
        found = {}
        for top in ("data", "results", "reports", "state"):
            for file in sorted((self.root / top).rglob("*")):
                if file.is_file():
                    found[str(file.relative_to(self.root))] = without_times(file)
        return found

    def copy(self, folder):
        shutil.copytree(self.root, folder, symlinks=True)
        return Study(folder, self.notes)


def processor_time(pid):
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def without_times(file):
    """Return a file's content without times, and without what follows from them."""
    content = file.read_bytes()
    if file.name == "lock":
        return b""
    if file.suffix == ".json" and file.name != "manifest.json":
        return json.dumps(pruned_of_times(json.loads(content)), sort_keys=True).encode()
    if file.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
        return json.dumps([{k: v for k, v in row.items() if k not in TIMES} for row in rows]).encode()
    # The page and the figures show times; what they are made from is compared.
    return b"" if file.parts[-2:] == (SCALE, "index.html") else content


def pruned_of_times(value):
    if isinstance(value, dict):
        return {key: pruned_of_times(inner) for key, inner in value.items() if key not in TIMES}
    return [pruned_of_times(inner) for inner in value] if isinstance(value, list) else value


def make_study(folder, *, recorded=False):
    """Copy what a study needs and make its grid tiny; or take the cells that are here as they are."""
    wanted = ("data/paper/", "reports/templates/", "reports/paper/")
    for name in tracked_files():
        if name.startswith(wanted) or name in {"results/full_size.csv", "params.yaml"}:
            copy_file(ROOT / name, folder / name)
    if recorded:
        shutil.copytree(ROOT / paths.cells_dir(SCALE), folder / paths.cells_dir(SCALE))
        return folder
    params = tiny_params(methods=("ifap",))
    scale = params["scales"][SCALE]
    scale["baseline"]["default"]["epochs"] = 4
    scale["finetune"]["default"]["epochs"] = 3
    scale["prune"]["default"]["steps"] = 3
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def make_whole_study(folder):
    """Copy the checkout into a folder and run all stages of its tiny grid there."""
    make_project(folder, methods=("ifap",))
    with tempfile.TemporaryDirectory() as notes:
        study = Study(folder, Path(notes))
        for stage in STAGES:
            run = study.run(stage)
            if run.code:
                raise SystemExit(f"{stage} ended with {run.code}: {run.said}")
    return 0


@contextlib.contextmanager
def mounted(kind, folder):
    """Put a small or read-only file system in the place of a folder, with what the folder holds."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "readonly":
        commands = [["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]]
    else:
        copy = folder.with_name(f"{folder.name}-copy")
        shutil.copytree(folder, copy)
        # Room for what is there, and for one page more.
        pages = 1 + sum(-(-file.stat().st_size // PAGE) for file in copy.rglob("*") if file.is_file())
        commands = [["mount", "-t", "tmpfs", "-o", f"size={pages * PAGE}", "tmpfs", folder]]
        commands.append(["cp", "-a", f"{copy}/.", folder])
    done = 0
    try:
        for command in commands:
            subprocess.run(list(map(str, command)), check=True, capture_output=True)
            done += 1
        yield
    finally:
        if done:
            subprocess.run(["umount", str(folder)], check=True)


def can_mount():
    with tempfile.TemporaryDirectory() as folder:
        tried = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False)
        if tried.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return tried.returncode == 0


WRITES = {"fetch": "data", "baseline": "results", "prune": "results", "finetune": "results", "collect": "results"}


class Trial:
    """One disturbance of one stage, and whether all was well afterwards."""

    def __init__(self, undisturbed, before, stage, scratch):
        self.undisturbed, self.before, self.stage = undisturbed, before, stage
        self.study = before.copy(scratch / "disturbed")
        self.problems = []

    def disturb(self, kind, rng):
        """Disturb the stage; return its run, or None if it was done before the disturbance came."""
        whole = self.undisturbed.runs[self.stage]
        if kind in {"kill", "term"}:
            number = signal.SIGKILL if kind == "kill" else signal.SIGTERM
            return self.study.run(self.stage, stop=(number, rng.uniform(0, whole.seconds)))
        if kind == "write":
            limit = rng.randint(1, max(whole.journal["change"], 1))
            return self.study.run(self.stage, lambda: count_changes(limit))
        if kind in {"memory", "device"}:
            torch = sys.modules.get("torch")
            error = torch and torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            if torch and kind == "device":
                error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            limit = rng.randint(1, max(whole.forwards, 1))
            return self.study.run(self.stage, lambda: fail_forward(error, limit) and None)
        folder = self.study.root / WRITES.get(self.stage, "results" if "evaluate" in self.stage else "reports")
        if kind == "future":
            later = time.time() + 86_400
            for file in self.study.root.rglob("*"):
                os.utime(file, (later, later))
            return self.study.run(self.stage)
        earlier = contents(folder)
        with mounted(kind, folder):
            run = self.study.run(self.stage)
            shutil.copytree(folder, folder.with_name("after"))
            changed = {name for name, content in earlier.items() if contents(folder).get(name) != content}
        if changed:
            self.problems.append(f"earlier results changed: {sorted(changed)[:3]}")
        shutil.rmtree(folder)
        shutil.move(folder.with_name("after"), folder)
        shutil.rmtree(folder.with_name(f"{folder.name}-copy"), ignore_errors=True)
        return run

    def judge(self, kind, run):
        """Check how the disturbed run ended, run it again and compare."""
        expected = {"kill": (-9, 0), "write": (-9, 0), "term": (143, 0, -15), "future": (0,)}.get(kind, (2, 3))
        if kind in {"memory", "device"} and not self.undisturbed.runs[self.stage].forwards:
            expected = (0,)
        if run.code not in expected:
            self.problems.append(f"ended with {run.code}: {run.said.strip()[-300:]}")
        errors = [line for line in run.said.splitlines() if line.startswith("error: ")]
        if run.code in (2, 3) and (len(errors) != 1 or "Traceback" in run.said):
            self.problems.append(f"not one clear error: {run.said.strip()[-300:]}")
        again = self.study.run(self.stage)
        if again.code:
            self.problems.append(f"the second run ended with {again.code}: {again.said.strip()[-300:]}")
        self._compare()
        return self._repeated(run, again)

    def _compare(self):
        wanted, found = self.undisturbed.files[self.stage], self.study.files()
        for name in sorted(wanted.keys() | found.keys()):
            if name not in wanted:
                self.problems.append(f"left behind: {name}")
            elif wanted[name] != found.get(name):
                self.problems.append(f"{'differs' if name in found else 'is missing'}: {name}")

    def _repeated(self, run, again):
        """Return how many epochs and iterations were begun twice."""
        if run.code == 0:  # it was done before the disturbance came, and is done anew
            return 0
        both = run.journal + again.journal
        whole = self.undisturbed.runs[self.stage].journal
        work = {name for name in whole if name.startswith(("epoch", "iteration"))}
        repeated = sum(both[name] - whole[name] for name in work)
        if any(both[name] < whole[name] for name in work):
            self.problems.append("work is missing")
        if repeated > 1:
            self.problems.append(f"{repeated} epochs or iterations repeated after exit code {run.code}")
        return repeated


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class Undisturbed:
    """The study without any fault: every stage's run, the folder before it, and the files after it."""

    def __init__(self, scratch, stages, *, recorded=False):
        self.runs, self.before, self.files = {}, {}, {}
        study = Study(make_study(scratch / "study", recorded=recorded), scratch)
        for stage in stages:
            self.before[stage] = study.copy(scratch / "before" / stage)
            run = study.run(stage, self._count)
            if run.code:
                raise SystemExit(f"undisturbed {stage} ended with {run.code}: {run.said}")
            run.forwards = next((int(n.split()[1]) for n in run.journal if n.startswith("forwards")), 0)
            self.runs[stage], self.files[stage] = run, study.files()

    @staticmethod
    def _count():
        count_changes(0)
        return fail_forward(None, 0)


def plan_of(kind, kills, rng, stages):
    """Return the stages that a kind disturbs: random ones where it kills, but each at least once; else each once."""
    if kind not in {"kill", "write"}:
        return stages
    # A long stage is hit more often, as it would be.
    weights = {"baseline": 4, "prune": 5, "finetune": 3}
    names = [name for name in stages for _ in range(weights.get(name, 1))]
    return stages[:kills] + [rng.choice(names) for _ in range(kills - len(stages))]


def disturb_all(kind, stages, undisturbed, scratch, rng):
    """Try one kind of disturbance on some stages and print its row; return how many trials went wrong."""
    hit = repeats = wrong = 0
    for stage in stages:
        trial = Trial(undisturbed, undisturbed.before[stage], stage, scratch)
        run = trial.disturb(kind, rng)
        repeated = trial.judge(kind, run)
        repeats, hit, wrong = max(repeats, repeated), hit + (run.code != 0), wrong + bool(trial.problems)
        print(f"{kind} in {stage}: exit code {run.code}, {repeated} repeated", file=sys.stderr, flush=True)
        for problem in trial.problems:
            print(f"wrong: {kind} in {stage}: {problem}", file=sys.stderr, flush=True)
        shutil.rmtree(trial.study.root)
    print(f"| {kind} | {len(stages)} | {hit} | {repeats} | {wrong} |", flush=True)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=30, help="of each of the kinds kill and write")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument(
        "--study", type=Path, help="only make an undisturbed study, in a whole checkout, in this folder"
    )
    parser.add_argument(
        "--recorded", action="store_true", help="only the stages of the report, from the recorded results"
    )
    parser.add_argument("--first-stages-only", action="store_true", help="make no stage after those of --stages")
    options = parser.parse_args()
    if options.recorded:
        options.stages = [stage for stage in options.stages if stage in REPORT]
    if options.study:
        load_stages(STAGES)
        return make_whole_study(options.study.resolve())
    rng = random.Random(options.seed)
    kinds = [kind for kind in options.kinds if kind not in {"full", "readonly"} or can_mount()]
    skipped = sorted(set(options.kinds) - set(kinds))
    scratch = Path(tempfile.mkdtemp(prefix="faults-"))
    last = max(map([*STAGES].index, options.stages)) if options.first_stages_only else len(STAGES)
    made = [stage for stage in [*STAGES][: last + 1] if not options.recorded or stage in REPORT]
    load_stages(made)
    undisturbed = Undisturbed(scratch, made, recorded=options.recorded)
    print("| disturbance | times | hit a running stage | most work repeated | wrong |")
    print("| :--- | ---: | ---: | ---: | ---: |", flush=True)
    wrong = 0
    for kind in kinds:
        wrong += disturb_all(kind, plan_of(kind, options.kills, rng, options.stages), undisturbed, scratch, rng)
    for kind in skipped:
        print(f"| {kind} | 0 (needs root) | | | |")
    shutil.rmtree(scratch)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

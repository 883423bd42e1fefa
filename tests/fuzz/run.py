"""Fuzz what may come from strangers: saved networks, weights, ``params.yaml``, results and their report.

    python tests/fuzz/run.py --seed 0

Each case is a real small file, mutated, and read in a worker process with bounds on memory and time. It must be
read or refused in one line; nothing may be run, written elsewhere, hang or take more than a GiB. Cases that did are
kept in the folder given by --keep; the summary is printed as a table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from ifap.study.report.tables import build, options

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "tests" / "support"), str(Path(__file__).parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Arrow's own allocator reserves a GiB of addresses at once, which the limit on them would count.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

import mutate  # noqa: E402
import yaml  # noqa: E402

from ifap.errors import IfapError  # noqa: E402
from ifap.study import paths  # noqa: E402
from ifap.study.config.reading import load_params  # noqa: E402
from ifap.study.grid import Grid  # noqa: E402
from ifap.study.report import records  # noqa: E402
from ifap.study.report.configs import load_configs  # noqa: E402
from ifap.study.report.figures.layers import load_widths  # noqa: E402
from ifap.study.report.full_size import load_counts  # noqa: E402
from ifap.study.report.page import load_findings, render_page  # noqa: E402
from ifap.study.report.provenance import load_provenance  # noqa: E402
from ifap.study.report.records_page import render_records  # noqa: E402
from ifap.study.report.tables.render import render  # noqa: E402
from ifap.study.report.tables.report import Report  # noqa: E402

MEMORY = 2**30
"""Most that a case may add to the memory of the process that reads it."""
SECONDS = 20.0
"""Most CPU time of one case."""
LONGEST = 2100
FORBIDDEN = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "pickle.find_class",
    "socket.connect",
)
COUNTS = {"plan": 3500, "weights": 1500, "params": 2000, "results": 200}


class Wrong(Exception):  # noqa: N818
    """A case did what none may."""


# --- what is fuzzed -------------------------------------------------------------------------------


class Parameters:
    """``params.yaml``, cut down to its smallest scale in most cases."""

    def __init__(self, folder):
        whole = yaml.safe_load((ROOT / "params.yaml").read_text())
        small = {**whole, "scale": "quick", "published": "quick", "scales": {"quick": whole["scales"]["quick"]}}
        self.originals = [yaml.safe_dump(small, sort_keys=False).encode()] * 30 + [(ROOT / "params.yaml").read_bytes()]

    def make(self, folder, rng):
        content = rng.choice(self.originals)
        changed = mutate.mutate_yaml(content, rng, yaml.safe_load, lambda v: yaml.safe_dump(v, sort_keys=False))
        (folder / "params.yaml").write_bytes(changed)

    def read(self, folder):
        params = load_params(folder / "params.yaml")
        for scale in params.scales:
            grid = Grid(params, scale)
            for cell in grid.cells()[:50]:
                grid.config(cell, "evaluate")
                name = paths.metrics_file(scale, cell).as_posix()
                if ".." in name or not name.startswith(f"results/{scale}/cells/"):
                    raise Wrong(f"a cell's path is {name}")
            for table in params.tables:
                grid.table(table)


class Results:
    """Tables and records of a finished scale whose cells are here, and the report that is made from them."""

    def __init__(self, folder):
        self.grid = Grid(load_params(ROOT / "params.yaml"), "quick")
        cell = self.grid.pruned()[0]
        self.files = [
            *[file("quick") for file in (paths.records_csv, paths.trace_csv, paths.widths_csv, paths.provenance_csv)],
            paths.configs_json("quick"),
            paths.full_size_csv(),
            paths.audit_file("csv"),
            *(file("quick", cell) for file in (paths.metrics_file, paths.receipts_file)),
        ]
        self.originals = {file: (ROOT / file).read_bytes() for file in self.files}
        self.rest = [paths.metrics_file("quick", other) for other in self.grid.cells() if other != cell]
        self.rest += [paths.receipts_file("quick", other) for other in self.grid.pruned() if other != cell]
        self.rest += [Path("data/paper/claims.csv")]

    def make(self, folder, rng):
        for file in self.rest:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(ROOT / file, folder / file)
        changed = rng.choice([*self.files[:5], *self.files])
        for file, content in self.originals.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            mutation = mutate.mutate_json if file.suffix == ".json" else mutate.mutate_csv
            (folder / file).write_bytes(mutation(content, rng) if file == changed else content)

    def read(self, folder):
        grid = self.grid
        report = Report.load(grid, root=folder)
        load_counts(root=folder)
        records.collect(grid, root=folder)
        built = [build.build_table(name, report) for name in options.table_names(grid)]
        templates = ROOT / "reports" / "templates"
        latex = [render(table, "tex", templates) for table in built]
        shown = [render(table, extension, templates) for table in built for extension in ("md", "html")]
        findings, provenance = load_findings(root=folder), load_provenance("quick", root=folder)
        shown.append(render_page(report, built, [], templates, findings=findings, provenance=provenance))
        configs = load_configs("quick", root=folder)
        shown.append(render_records(report, configs, provenance, root=folder, templates=templates))
        load_widths("quick", root=folder)
        if any(mutate.HTML in text for text in shown) or any(r"\input{/etc" in text for text in latex):
            raise Wrong("the report holds a value as code")


def networks(folder, part):
    """Return the target of saved networks; torch, which no other target needs, takes seconds to load."""
    from saved_networks import Networks

    return Networks(folder, part)


TARGETS = {
    "plan": lambda folder: networks(folder, "plan"),
    "weights": lambda folder: networks(folder, "weights"),
    "params": Parameters,
    "results": Results,
}


# --- the worker -----------------------------------------------------------------------------------


def memory(field):
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def judge(target, folder):
    """Read one case; return how it ended, or raise `Wrong`."""
    try:
        target.read(folder)
    except IfapError as error:
        text = str(error)
        if "\n" in text or len(text) > LONGEST:
            raise Wrong(f"an error of {len(text)} characters in {len(text.splitlines())} lines") from None
        return f"refused ({type(error).__name__})"
    return "read"


def misdeed(folder, seen, used, seconds):
    """Say what a case did that none may, whatever it returned."""
    if seen:
        return f"did {seen[0]}"
    if (folder / mutate.OWNED).exists():
        return "ran what stood in the file"
    if seconds > SECONDS:
        return f"took {seconds:.0f} s"
    return f"took {used >> 20} MiB" if used > MEMORY else ""


def work(target, name, seed, numbers, base, pipe):
    """Read cases one after another and report on each; runs in a process of its own."""
    seen = []
    home = os.path.realpath(base)

    def watch(event, arguments):
        if event in FORBIDDEN:
            seen.append(event)
        elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            where = os.path.realpath(os.fsdecode(arguments[0])) if not isinstance(arguments[0], int) else home
            if not where.startswith((home, "/dev/null")):
                seen.append(f"wrote {where}")

    sys.addaudithook(watch)
    most = memory("VmSize") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for number in numbers:
        folder = Path(tempfile.mkdtemp(dir=base))
        os.chdir(folder)
        sys.setrecursionlimit(50_000)
        target.make(folder, random.Random(f"{seed}/{name}/{number}"))
        sys.setrecursionlimit(1000)
        os.write(pipe, f"{json.dumps({'number': number})}\n".encode())
        Path("/proc/self/clear_refs").write_text("5")
        seen.clear()
        before, start = memory("VmRSS"), time.process_time()
        try:
            outcome, wrong = judge(target, folder), ""
        except Wrong as error:
            outcome, wrong = "wrong", str(error)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome, wrong = "wrong", f"{type(error).__name__}: {str(error)[:200]} ({where.filename}:{where.lineno})"
        used, seconds = memory("VmHWM") - before, time.process_time() - start
        wrong = misdeed(folder, seen, used, seconds) or wrong
        outcome = "wrong" if wrong else outcome
        done = {"number": number, "outcome": outcome, "wrong": wrong, "memory": used, "seconds": seconds}
        os.write(pipe, f"{json.dumps(done)}\n".encode())
        os.chdir(base)
        shutil.rmtree(folder)


def processor_time(pid):
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(*arguments):
    """Fork a worker; return its number and the pipe on which it reports."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        try:
            work(*arguments, into)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(into)
    return child, out


def watch_over(target, name, seed, numbers, base):
    """Yield how every case ended; a worker that dies or hangs is replaced after the case that did it."""
    numbers = list(numbers)
    while numbers:
        child, out = start(target, name, seed, numbers[:500], base)
        done, running, why, spent, progress = 0, None, "ended", -1.0, 0.0
        buffer = b""
        while True:
            if not select.select([out], [], [], 3 * SECONDS)[0]:
                # On a busy machine a case may wait long for the processor; one that waits for ever uses none.
                before, spent = spent, processor_time(child)
                if before < spent < progress + 2 * SECONDS:
                    continue
                os.kill(child, signal.SIGKILL)
                why = "hung"
                break
            progress = processor_time(child)
            chunk = os.read(out, 65536)
            if not chunk:
                break
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                found = json.loads(line)
                running = found["number"] if "outcome" not in found else None
                if "outcome" in found:
                    done += 1
                    yield found
        os.close(out)
        _, status = os.waitpid(child, 0)
        if running is not None:
            signal_number = status & 0x7F
            wrong = f"{why}, signal {signal_number}" if signal_number else why
            yield {"number": running, "outcome": "wrong", "wrong": wrong, "memory": 0, "seconds": 0}
            done += 1
        if not done:
            raise SystemExit("a worker ended before its first case")
        numbers = numbers[done:]


def keep_case(target, name, seed, number, folder):
    """Write the files of a case that went wrong, for looking at and for the corpus."""
    place = folder / f"{name}-{seed}-{number}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    sys.setrecursionlimit(50_000)
    target.make(place, random.Random(f"{seed}/{name}/{number}"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files of cases that went wrong")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    for name, count in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=count, metavar="CASES")
    options = parser.parse_args()
    failed = 0
    print("| what | cases | read | refused | wrong | most memory | longest |")
    print("| :--- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, make in TARGETS.items():
        count = getattr(options, name)
        if not count:
            continue
        base = Path(tempfile.mkdtemp(prefix="fuzz-"))
        target = make(base / "originals")
        outcomes, memory_used, seconds, wrong = Counter(), 0, 0.0, []
        for case in watch_over(target, name, options.seed, range(options.first, options.first + count), base):
            outcomes[case["outcome"].split(" (")[0]] += 1
            memory_used, seconds = max(memory_used, case["memory"]), max(seconds, case["seconds"])
            if case["outcome"] == "wrong":
                wrong.append(case)
                if options.keep:
                    keep_case(target, name, options.seed, case["number"], options.keep.resolve())
        row = [outcomes["read"], outcomes["refused"], outcomes["wrong"], f"{memory_used >> 20} MiB", f"{seconds:.1f} s"]
        print(f"| {name} | {sum(outcomes.values())} | {' | '.join(map(str, row))} |", flush=True)
        for case in wrong[:40]:
            print(f"  {name} {case['number']}: {case['wrong']}", file=sys.stderr)
        failed += len(wrong)
        shutil.rmtree(base)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

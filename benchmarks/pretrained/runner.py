"""Run one method on one network in a process of its own, with a bound on its time.

Processes are forked from one that has read the network and its data and run the original, which saves minutes.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch

import ifap
from benchmarks.pretrained import methods, table
from benchmarks.pretrained.case import Case, Network
from benchmarks.pretrained.splits import Split
from benchmarks.pretrained.table import Key, Row
from ifap.errors import IfapError
from ifap.study.machine.provenance import forget_peak_memory, peak_memory_mb

TIMEOUT = 3600.0
_FIELDS = ("kl", "agreement", "metric", "rank")


def run(key: Key, network: Network, cases: list[Case], split: Split, command: str, timeout: float = TIMEOUT) -> Row:
    """Return one row of the table.

    Parameters
    ----------
    key : tuple of str
        Network, method, compensation and target.
    network : Network
        Its line of the list.
    cases : list of Case
        What it is measured on; measures are averaged.
    split : {'development', 'heldout'}
        Of the data in `cases`.
    command : str
        What the row is to say of how it came to be.
    timeout : float
        Seconds after which the process is ended.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(key, cases, sender))
    child.start()
    sender.close()
    row = dict(zip(table.KEYS, key, strict=True))
    found: Row = {"state": "timeout", "reason": f"more than {timeout:g} s"}
    try:
        if receiver.poll(timeout):
            found = receiver.recv()
    except EOFError:
        child.join()
        found = {"state": "failed", "reason": f"exit status {child.exitcode}"}
    finally:
        child.kill()
        child.join()
    return {**row, "metric_name": network.metric, "split": split, **table.about(command), **found}


def _child(key: Key, cases: list[Case], sender: Connection) -> None:
    # After a fork torch makes its pool of threads anew; two threads of autograd that do so at a time would fail.
    torch.set_num_threads(torch.get_num_threads())
    try:
        sender.send(measured(key, cases))
    except IfapError as error:
        sender.send({"state": "refused", "reason": str(error)})
    except Exception as error:  # one method that fails does not end the others
        traceback.print_exc()
        sender.send({"state": "failed", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:300]})


def measured(key: Key, cases: list[Case]) -> Row:
    """Prune each case and return the means of what was measured, with time and memory."""
    _, method, compensated, target = key
    rows = [_one(case, method, float(target), compensated == "yes") for case in cases]
    found: Row = {"state": "done", "reason": ""}
    for name in ("achieved", *_FIELDS):
        values = [row[name] for row in rows if name in row]
        if values:
            found[name] = float(f"{sum(values) / len(values):.6g}")
    found["seconds"] = round(sum(row["seconds"] for row in rows), 1)
    found["peak_mb"] = round(max(row["peak_mb"] for row in rows))
    return found


def _one(case: Case, method: str, share: float, compensate: bool) -> dict[str, Any]:
    forget_peak_memory()
    before = peak_memory_mb()
    if method == methods.UNPRUNED:
        return {"achieved": 0.0, "seconds": 0.0, "peak_mb": 0.0, **case.measure(case.model)}
    start = time.process_time()
    model = methods.rival(method).way(case, share, compensate=compensate)
    seconds, peak = time.process_time() - start, peak_memory_mb()
    left = ifap.cost(model, case.example).macs / ifap.cost(case.model, case.example).macs
    measures = case.measure(model.eval())
    return {"achieved": 1 - left, "seconds": seconds, "peak_mb": max(0.0, peak - before), **measures}

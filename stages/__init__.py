"""One thin script a stage: parse, load, compute, save. Run as ``python -m stages.NAME --help``.

The GPU that the workflow gives a job is taken here, because this runs before a stage imports torch.
"""

from __future__ import annotations

import os

from ifap.study.machine import gpu
from ifap.study.machine.fast_start import defer_compiler
from ifap.study.stage import one_line_errors

defer_compiler()
if gpu.WANTED in os.environ:
    with one_line_errors():
        gpu.take_as_asked()

"""One thin script a stage: parse, load, compute, save. Run as ``python -m stages.NAME --help``.

The GPU that the workflow gives a job is taken here, because this runs before a stage imports torch.
"""

from __future__ import annotations

import os

from ifap import gpu
from ifap.program import one_line_errors
from ifap.startup import defer_compiler

defer_compiler()
if gpu.WANTED in os.environ:
    with one_line_errors():
        gpu.take_as_asked()

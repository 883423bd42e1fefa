"""One thin script a stage: parse, load, compute, save. Run as ``python -m stages.NAME --help``."""

from ifap.startup import defer_compiler

defer_compiler()

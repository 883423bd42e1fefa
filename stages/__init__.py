"""One thin script a stage: parse, load, compute, save. Run as ``python -m stages.NAME --help``."""

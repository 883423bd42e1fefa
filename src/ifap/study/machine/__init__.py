"""The machine that a job runs on: devices, determinism, locks, provenance, a fast start."""

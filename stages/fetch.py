"""Prepare a data set: one file a split, and a manifest."""

from __future__ import annotations

import logging

from ifap import paths
from ifap.datasets import DATASETS
from ifap.datasets.base import write_dataset
from ifap.errors import ConfigError, nearest
from ifap.program import run_stage
from ifap.runtime import configure
from stages.options import PARAMS, DatasetOption, ParamsOption, ScaleOption, open_grid

log = logging.getLogger("stages.fetch")


def main(dataset: DatasetOption, scale: ScaleOption = None, params: ParamsOption = PARAMS) -> None:
    """Write train, validation and test splits of a data set into its folder under data/."""
    grid = open_grid(params, scale)
    if dataset not in grid.options.datasets:
        raise ConfigError(
            f"scale '{grid.scale}' has no data set '{dataset}': {nearest(dataset, grid.options.datasets)}"
        )
    options = grid.options.datasets[dataset]
    configure(options.split_seed)
    folder = paths.dataset_dir(dataset)
    manifest = write_dataset(DATASETS.get(dataset), options, grid.fetch_config(dataset), folder)
    sizes = ", ".join(f"{role} {entry['samples']}" for role, entry in manifest["splits"].items())
    log.info("%s: %s (%s)", folder, sizes, manifest["checksum"])


if __name__ == "__main__":
    run_stage(main)

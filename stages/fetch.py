"""Prepare a data set: one file a split, and a manifest."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from ifap.errors import ConfigError, nearest
from ifap.study import paths
from ifap.study.config.data import DatasetOptions
from ifap.study.data import DATASETS, Dataset
from ifap.study.data.origins import obtain
from ifap.study.machine.determinism import configure
from ifap.study.models.weights import obtain_weights
from ifap.study.stage import run_stage
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
    spec, folder = DATASETS.get(dataset), paths.dataset_dir(grid.scale, dataset)
    readers = grid.readers(dataset)
    for model, reader in readers.items():
        if reader.download and reader.pretrained:
            obtain_weights(model, Path(reader.pretrained))
    raw, source = raw_data(spec, options, paths.synthetic_dir(grid.scale, dataset))
    config = grid.fetch_config(dataset)
    manifest = spec.write(options, config, source, raw, folder, readers=readers, tasks=grid.dense_tasks(dataset))
    sizes = ", ".join(f"{role} {entry['samples']}" for role, entry in manifest["splits"].items())
    log.info("%s: %s (%s)", folder, sizes, manifest["checksum"])


def raw_data(spec: Dataset, options: DatasetOptions, folder: Path) -> tuple[Path, str]:
    """Return the folder of the raw data and, in words, where they come from; a twin is generated into `folder`."""
    if options.synthetic is None:
        return obtain(spec.name, options)
    if spec.twin is None:
        raise ConfigError(f"data set '{spec.name}' has no synthetic twin: leave out datasets.{spec.name}.synthetic")
    shutil.rmtree(folder, ignore_errors=True)
    spec.twin(folder, options.synthetic.classes, options.synthetic.per_class, options.synthetic.seed)
    return folder, f"synthetic: generated in the format of {spec.place.title}"


if __name__ == "__main__":
    run_stage(main)

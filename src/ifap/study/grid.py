"""Which cells a scale has and what each step of a cell was asked to do; one place for all readers.

The Snakefile, `collect` and the tests ask here, so that they cannot disagree.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ifap.errors import ConfigError, nearest
from ifap.study.config.budget import after_pruning, is_finetuned, masked_run
from ifap.study.config.data import ModelOptions, TextOptions
from ifap.study.config.params import Params, ScaleParams, TableParams, Variant
from ifap.study.config.recipes import LIMITS, PruneOptions, RecoveryOptions, TargetOptions, TrainingOptions
from ifap.study.config.refining import for_task, mask_options, options_type, refine, refine_method, refine_recovery
from ifap.study.config.rivals import MaskOptions
from ifap.study.config.validation import validated
from ifap.study.config.values import Section
from ifap.study.data.origins import PLACES, why_absent
from ifap.study.paper.reductions import published_reduction
from ifap.study.paths import SPLITS, Cell, manifest_file, split_file

TABLE_FORMATS = ("md", "html", "tex", "csv")
FIGURE_FORMATS = ("svg", "png")


@dataclass(frozen=True)
class Grid:
    """The cells of one scale and their resolved configurations."""

    params: Params  # The checked ``params.yaml``.
    scale: str  # Name of the scale.

    @property
    def options(self) -> ScaleParams:
        """The block of this scale."""
        return self.params.scales[self.scale]

    def baselines(self) -> list[Cell]:
        """Return the unpruned networks, one per (task, data set, model, seed)."""
        return list(dict.fromkeys(cell.baseline for cell in self.pruned()))

    def pruned(self) -> list[Cell]:
        """Return the pruned networks: each method, then the further targets that the scale asks of it."""
        return list(self._pruned)

    @cached_property
    def _pruned(self) -> list[Cell]:
        return [
            Cell(task, dataset, model, method, seed)
            for task, grid in self.options.grid.items()
            for dataset in grid.datasets
            for model in grid.models
            for first in grid.methods
            if grid.runs(first, dataset, model)
            for method in self._at_targets(Cell(task, dataset, model, first, self.options.seeds[0]))
            for seed in self.options.seeds[: grid.seeds(first)]
        ]

    def _at_targets(self, cell: Cell) -> list[str]:
        """Return a method and its points at further targets; what has the method's own target is the method."""
        points = [cell._replace(method=name) for name in self.options.points[cell.method]]
        own = self.pruning(cell).target if points else None
        return [cell.method, *(point.method for point in points if self.pruning(point).target != own)]

    def methods(self) -> list[str]:
        """Return the methods of the cells, further targets included, in order."""
        return list(dict.fromkeys(cell.method for cell in self.pruned()))

    def lines(self) -> dict[str, str]:
        """Return for every method of the cells which trade-off curve it is a point of.

        Further targets of a method belong to it, and so does a variant in which nothing but the target
        differs; any other variant is a method of its own.
        """
        of_point = {name: first for first, points in self.options.points.items() for name in points}
        return {method: of_point.get(method) or self._line(method) for method in self.methods()}

    def _line(self, method: str) -> str:
        variant = self.options.variants.get(method)
        if variant is None or set(variant.prune) != {"target"} or variant.recovery or variant.like:
            return method
        return variant.method

    def cells(self) -> list[Cell]:
        """Return every cell: baselines first."""
        return self.baselines() + self.pruned()

    def chosen(self, patterns: str | None = None) -> list[Cell]:
        """Return the cells that a run is limited to, each with its baseline.

        They have the order of `cells`.

        Parameters
        ----------
        patterns : str, optional
            Comma-separated names of cells, ``task/dataset/model/method/seedN``, or their first parts, with
            the wildcards of a shell in any part. All cells by default.

        Raises
        ------
        ConfigError
            If a part of a pattern names nothing, with the names that there are.
        """
        if not patterns:
            return self.cells()
        cells = self.cells()
        wanted: set[Cell] = set()
        for pattern in patterns.split(","):
            parts = pattern.strip("/ ").split("/")
            matched = cells
            for at, part in enumerate(parts):
                names = {str(cell).split("/")[at] for cell in matched} if at < len(Cell._fields) else set()
                here = set(fnmatch.filter(names, part))
                if not here:
                    raise ConfigError(f"cells: no {part!r} in scale '{self.scale}': {nearest(part, names)}")
                matched = [cell for cell in matched if str(cell).split("/")[at] in here]
            wanted |= {*matched, *(cell.baseline for cell in matched)}
        return [cell for cell in cells if cell in wanted]

    def datasets(self) -> list[str]:
        """Return the data sets in use."""
        return sorted({cell.dataset for cell in self.pruned()})

    def table(self, name: str) -> TableParams:
        """Return the block of one table, refined by this scale's."""
        own = self.options.tables.get(name, {})
        block = {**self.params.tables[name].model_dump(), **own}
        return validated(TableParams, block, f"scales.{self.scale}.tables.{name}")

    def absent(self, root: Path = Path()) -> dict[str, str]:
        """Return the data sets that are not here and cannot be had, each with what to do about it."""
        wanted = [name for name in self.datasets() if not self._is_prepared(name, root)]
        reasons = {name: why_absent(name, self.options.datasets[name], root) for name in wanted}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def _is_prepared(self, dataset: str, root: Path) -> bool:
        """Whether a data set can be read as it was prepared, wherever its raw data are by now."""
        try:
            manifest = json.loads((root / manifest_file(self.scale, dataset)).read_text())
            images = manifest["root"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        splits = [root / split_file(self.scale, dataset, split) for split in SPLITS]
        return all(split.exists() for split in splits) and (images is None or (root / images).exists())

    def training(self, cell: Cell) -> TrainingOptions:
        """Return the recipe of the cell's baseline training, or of its fine-tuning."""
        if cell.is_baseline:
            recipe: TrainingOptions = self._refined("baseline", cell, TrainingOptions)
            return recipe
        finetuned = is_finetuned(mask_options(self.variant(cell).method), pretrained=self._is_pretrained(cell))
        return after_pruning(self._refined("finetune", cell, TrainingOptions), finetuned=finetuned)

    def masked_training(self, cell: Cell) -> TrainingOptions:
        """Return the recipe by which the method of a cell trains with masks."""
        method = mask_options(self.variant(cell).method)
        assert method is not None, f"{cell} does not train with masks"
        baseline, finetune = (
            self._refined("baseline", cell, TrainingOptions),
            self._refined("finetune", cell, TrainingOptions),
        )
        pretrained = self._is_pretrained(cell)
        return masked_run(method, baseline, self.pruning(cell), self.recovery(cell), finetune, pretrained=pretrained)

    def _is_pretrained(self, cell: Cell) -> bool:
        return self.model(cell).pretrained is not None

    def mask_options(self, cell: Cell) -> MaskOptions | None:
        """Return the own options of a method that trains with masks; None for one that scores units."""
        variant = self.variant(cell)
        options = refine_method(
            self.options.methods, variant.method, variant.options, f"scales.{self.scale}.variants.{cell.method}"
        )
        return options if isinstance(options, MaskOptions) else None

    def model(self, cell: Cell) -> ModelOptions | TextOptions:
        """Return what the cell's network is given and starts from."""
        options: ModelOptions | TextOptions = self._refined("models", cell, options_type("models", cell.task))
        return options

    def readers(self, dataset: str) -> dict[str, TextOptions]:
        """Return the networks that read a set of texts, and how each is given them; none for images."""
        cells = {cell.model: self.model(cell) for cell in self.pruned() if cell.dataset == dataset}
        return {model: options for model, options in cells.items() if isinstance(options, TextOptions)}

    def dense_tasks(self, dataset: str) -> list[str]:
        """Return what a set of images with boxes or masks is prepared for; none for any other set."""
        own = PLACES[dataset].tasks if dataset in PLACES else ()
        return sorted({cell.task for cell in self.cells() if cell.dataset == dataset} & {*own})

    def variant(self, cell: Cell) -> Variant:
        """Return the method of a cell and what it changes; a registered method changes nothing."""
        return self.options.every_variant.get(cell.method, Variant(method=cell.method))

    def like(self, cell: Cell) -> Cell | None:
        """Return the cell whose network's widths this cell's takes; None if it finds its own."""
        like = self.variant(cell).like
        return None if like is None else cell._replace(method=like)

    def pruning(self, cell: Cell) -> PruneOptions:
        """Return the options of the cell's pruning loop; a published target is replaced by its value."""
        options: PruneOptions = self._refined("prune", cell, PruneOptions, self.variant(cell).prune)
        kind = options.target.published
        if kind is None:
            return options
        target = TargetOptions.model_validate({kind: published_reduction(cell, kind)})
        return options.model_copy(update={"target": target})

    def _refined(self, step: str, cell: Cell, section: type[Section], changes: Mapping[str, Any] | None = None) -> Any:
        """Return a block for a cell: the default, refined by its model, then its data set, then `changes`."""
        block = for_task(step, getattr(self.options, step), cell.task)
        changes = {**block.get(cell.dataset, {}), **(changes or {})}
        return refine(block, cell.model, section, f"scales.{self.scale}.{step}.{cell.model}", changes)

    def recovery(self, cell: Cell) -> RecoveryOptions:
        """Return the options of the distillation after each iteration."""
        where = f"scales.{self.scale}.prune.recovery"
        return refine_recovery(self.options.prune, cell.task, cell.model, where, self.variant(cell).recovery)

    def fetch_config(self, dataset: str) -> dict[str, Any]:
        """Return what the prepared data of `dataset` depend on."""
        readers = {model: options.model_dump() for model, options in self.readers(dataset).items()}
        tasks = self.dense_tasks(dataset)
        return {
            "version": self.params.versions["fetch"],
            "dataset": dataset,
            **self.options.datasets[dataset].model_dump(),
            # Texts are prepared as the tokens of the networks that read them.
            **({"readers": readers} if readers else {}),
            **({"tasks": tasks} if tasks else {}),
        }

    def config(self, cell: Cell, step: str) -> dict[str, Any]:
        """Return everything that the result of one step depends on, earlier steps included.

        Plain values, one key a step: JSON-able and stable.

        Parameters
        ----------
        cell : Cell
            The experiment.
        step : {'baseline', 'prune', 'finetune', 'evaluate'}
            The step; ``evaluate`` covers the whole chain of the cell.
        """
        of_model = {str(step): more for step, more in self.params.versions_of.get(cell.model, {}).items()}
        versions = {step: number + of_model.get(step, 0) for step, number in self.params.versions.items()}
        chain: dict[str, Any] = {
            "cell": cell._asdict(),
            "fetch": self.fetch_config(cell.dataset),
            "model": self.model(cell).model_dump(),
            "baseline": {"version": versions["baseline"], **self.training(cell.baseline).model_dump()},
        }
        if step == "baseline" or (cell.is_baseline and step != "evaluate"):
            return chain
        if not cell.is_baseline:
            chain["prune"] = {
                "version": versions["prune"],
                "method": self.variant(cell).method,
                **self._pruning_config(cell),
            }
            if step == "prune":
                return chain
            chain["finetune"] = {"version": versions["finetune"], **self.training(cell).model_dump()}
            if step == "finetune":
                return chain
        chain["evaluate"] = {"version": versions["evaluate"], **self.options.evaluate.model_dump()}
        return chain

    def _pruning_config(self, cell: Cell) -> dict[str, Any]:
        options, own = self.pruning(cell).model_dump(), self.mask_options(cell)
        if own is None:
            like = self.like(cell)
            widths = {} if like is None else {"like": self.config(like, "prune")["prune"]}
            return {**options, **widths, "recovery": self.recovery(cell).model_dump()}
        # Nothing of the pruning loop but the target and what the flow before pruning is measured with.
        keys = ("target", "normalize", "site", "calibration_samples", "batch_size")
        used = {key: options[key] for key in (*keys, *(LIMITS if own.structure == "channels" else ()))}
        return {**used, "options": own.model_dump(), "training": self.masked_training(cell).model_dump()}

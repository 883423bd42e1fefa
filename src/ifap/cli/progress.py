"""Progress bars on a terminal: what is being done, how much time is left, and how many MACs there still are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

WORDS = {
    "check": "checking the labelled samples",
    "trace": "tracing the network",
    "score": "scoring the units",
    "prune": "cutting the units with the lowest scores",
    "recover": "training the smaller network",
    "validate": "measuring it on validation samples",
    "prove": "proving that the cut is right",
    "report": "writing the report",
    "time": "timing both networks",
}


class _Left(TimeRemainingColumn):
    """The time that is left, and nothing where it is not known."""

    def render(self, task: Task) -> Text:
        """Return the remaining time, or an empty text if it is unknown."""
        left = super().render(task)
        return Text.assemble(left, " left") if any(map(str.isdigit, left.plain)) else Text()


class Bars:
    """Two bars on standard error: the run, and what is being done now. Nothing is shown where that is no terminal."""

    def __init__(self, steps: int, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._steps = steps
        self._training: int | None = None
        self._whole: int | None = None
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            _Left(),
            TextColumn("{task.fields[said]}"),
        )
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._run = self._bars.add_task(f"iteration 0 of {steps}", total=steps, said="")
        self._phase = self._bars.add_task(WORDS["trace"], total=None, said="")

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bars.stop()

    def expect(self, epochs_samples: int) -> None:
        """Say how many samples training reads in one iteration."""
        self._training = epochs_samples

    def on_phase(self, phase: str, iteration: int) -> None:
        """Show what begins; for `ifap.prune`."""
        self._bars.update(self._run, description=f"iteration {iteration} of {self._steps}")
        total = self._training if phase == "recover" else None
        self._bars.reset(self._phase, total=total, description=WORDS.get(phase, phase), said="")

    def on_step(self, _model: Any, receipt: Any) -> None:
        """Show how far an iteration got; for `ifap.prune`."""
        self._whole = self._whole or receipt.macs
        said = f"{receipt.macs:,} MACs, {100 * receipt.macs / self._whole:.1f} % of the start"
        self._bars.update(self._run, completed=receipt.iteration, said=said)

    def on_read(self, samples: int) -> None:
        """Show that samples were read."""
        self._bars.update(self._phase, advance=samples)

    def watched(self, batches: Sequence[Any]) -> WatchedBatches:
        """Return batches that show how far a pass over them is."""
        return WatchedBatches(batches, self)

    def begin_pass(self, batches: int) -> None:
        """Show a new pass over some batches."""
        self._bars.reset(self._phase, total=batches)


class WatchedBatches:
    """Batches that show how far a pass over them is."""

    def __init__(self, batches: Sequence[Any], bars: Bars) -> None:
        self._batches, self._bars = batches, bars

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        self._bars.begin_pass(len(self._batches))
        for batch in self._batches:
            yield batch
            self._bars.on_read(1)

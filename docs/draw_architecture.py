"""Draw docs/figures/architecture.svg: the modules of the library in their layers, and which module uses which.

The rows come from the contracts of import-linter in pyproject.toml, the arrows from the imports of the code. The same
code always gives the same bytes. `python docs/draw_architecture.py --check` fails if the picture is out of date.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "figures" / "architecture.svg"

# What a row does, by one module of it. A row without an entry has no caption.
CAPTIONS = {
    "cli": "the command ifap",
    "sweeping": "the curve over costs",
    "pruning": "prune, the entrance",
    "iterations": "the loop, its report",
    "run_state": "continue after a kill",
    "saving": "save and load",
    "methods": "methods and options",
    "results": "what a run returns",
    "scores": "measure the units",
    "ranking": "choose the units",
    "recovery": "check and train",
    "costs": "count, look, export",
    "forward": "call a network",
    "axes": "what belongs together",
    "data": "layers and data",
    "errors": "helpers of every row",
}
LEFT, WIDTH, ROW, BOX, GAP, LANE = 190, 1200, 66, 32, 16, 16
MIDDLE = LEFT + (WIDTH - LEFT) / 2
Row = list["Place"]


@dataclass(eq=False)
class Place:
    """A box of a row, or with no name the point where an arrow crosses the row."""

    name: str
    width: float
    x: float = 0.0

    @property
    def left(self) -> float:
        """The left edge."""
        return self.x - self.width / 2


def contract(container: str) -> list[list[str]]:
    """Return the layers of a package from the contracts, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for rule in settings["tool"]["importlinter"]["contracts"]:
        if rule["type"] == "layers" and rule.get("containers", [""]) == [container]:
            return [[name.strip() for name in layer.split("|")] for layer in rule["layers"]]
    raise SystemExit(f"error: pyproject.toml has no contract of layers for {container}")


def imports(names: Iterable[str]) -> dict[str, set[str]]:
    """Return which of the modules each of them imports itself."""
    sys.path.insert(0, str(ROOT / "src"))  # this checkout, whatever is installed
    graph = grimp.build_graph("ifap", cache_dir=None)
    for name in names:
        if graph.find_children(f"ifap.{name}"):
            graph.squash_module(f"ifap.{name}")
    wanted = set(names)
    found = {}
    for name in sorted(wanted):
        used = graph.find_modules_directly_imported_by(f"ifap.{name}")
        found[name] = {module.removeprefix("ifap.") for module in used} & wanted - {name}
    return found


def without_shortcuts(uses: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out each arrow that other arrows imply."""

    def reach(name: str) -> set[str]:
        return uses[name].union(*(reach(other) for other in uses[name]))

    return {name: {o for o in used if not any(o in reach(p) for p in used - {o})} for name, used in uses.items()}


def rows_and_lines(layers: Sequence[Sequence[str]], uses: dict[str, set[str]]) -> tuple[list[Row], list[list[Place]]]:
    """Return the rows with the places that they hold, and the places that each arrow goes through."""
    boxes = {name: Place(name, 22 + 8.2 * len(name)) for layer in layers for name in layer}
    depth = {name: number for number, layer in enumerate(layers) for name in layer}
    rows = [[boxes[name] for name in layer] for layer in layers]
    lines = []
    for name in boxes:
        for used in sorted(uses[name], key=list(boxes).index):
            crossed = [Place("", LANE) for _ in range(depth[name] + 1, depth[used])]
            for number, place in enumerate(crossed, depth[name] + 1):
                rows[number].append(place)
            lines.append([boxes[name], *crossed, boxes[used]])
    return rows, lines


def arrange(rows: list[Row], lines: list[list[Place]]) -> None:
    """Order each row so that arrows cross little, and give each place its position."""
    near: dict[Place, list[Place]] = {}
    for line in lines:
        for one, other in pairwise(line):
            near.setdefault(one, []).append(other)
            near.setdefault(other, []).append(one)
    for row in rows:
        _spread(row)
    for sweep in range(60):
        for row in rows if sweep % 2 else rows[::-1]:
            wish = {place: 0.9 * _mean(o.x for o in near.get(place, [place])) + 0.1 * MIDDLE for place in row}
            row.sort(key=wish.__getitem__)
            _spread(row, wish)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _spread(row: Row, wish: dict[Place, float] | None = None) -> None:
    """Put the places of a row next to one another, each as near to its wish as the others let it."""
    groups: list[tuple[list[Place], float]] = []
    for place in row:
        groups.append(([place], wish[place] if wish else MIDDLE))
        while len(groups) > 1 and _end(*groups[-2]) + GAP > _start(*groups[-1]):
            (last, b), (first, a) = groups.pop(), groups.pop()
            groups.append((first + last, (a * len(first) + b * len(last)) / (len(first) + len(last))))
    limit = float(WIDTH - GAP)
    for members, center in reversed(groups):
        x = min(_start(members, center), limit - _length(members))
        limit = x - GAP
        for place in members:
            place.x, x = x + place.width / 2, x + place.width + GAP
    floor = float(LEFT)
    for place in row:
        place.x = max(place.x, floor + place.width / 2)
        floor = place.x + place.width / 2 + GAP


def _length(members: list[Place]) -> float:
    return sum(place.width for place in members) + GAP * (len(members) - 1)


def _start(members: list[Place], center: float) -> float:
    return center - _length(members) / 2


def _end(members: list[Place], center: float) -> float:
    return center + _length(members) / 2


def draw() -> str:
    """Return the picture."""
    layers = [layer for layer in contract("ifap") if layer != ["study"]]
    names = [name for layer in layers for name in layer]
    everywhere = set(layers[-1])
    uses = without_shortcuts({name: used - everywhere for name, used in imports(names).items()})
    rows, lines = rows_and_lines(layers, uses)
    arrange(rows[:-1], lines)
    _spread(rows[-1])
    study = [" | ".join(layer) for layer in contract("ifap.study")]
    top = 150
    height = top + ROW * len(rows) + 44
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif" font-size="13">',
        "<title>The modules of IFAP in layers; arrows lead from a module to those that it uses</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#5b6b7b"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        *_band(8, "#f3efe6", "scripts", "stages: one script a step        benchmarks: speed and accuracy, measured"),
        *_band(64, "#f3efe6", "the study", *_two_lines(study)),
    ]
    for number, row in enumerate(rows):
        y = top + ROW * number
        caption = next((CAPTIONS[place.name] for place in row if place.name in CAPTIONS), "")
        out.append(f'<rect x="4" y="{y - 7}" width="{WIDTH - 8}" height="{BOX + 14}" rx="4" fill="#f1f4f7"/>')
        out.append(f'<text x="16" y="{y + 21}" fill="#44525f">{escape(caption)}</text>')
    levels = {place: top + ROW * number for number, row in enumerate(rows) for place in row}
    out += [_arrow([(place.x, levels[place]) for place in line]) for line in lines]
    for number, row in enumerate(rows):
        out += [line for place in row if place.name for line in _box(place, top + ROW * number)]
    notes = [
        "An arrow leads from a module to one that it uses. Not drawn: what other arrows imply; the lowest row.",
        "Green boxes are folders; the scripts and the study use any row of the library, never the other way.",
    ]
    out += [
        f'<text x="16" y="{height - 30 + 18 * number}" fill="#44525f" font-size="12">{escape(note)}</text>'
        for number, note in enumerate(notes)
    ]
    return "\n".join([*out, "</svg>", ""])


def _two_lines(layers: list[str]) -> tuple[str, str]:
    half = (len(layers) + 1) // 2
    return "  >  ".join(layers[:half]) + "  >", "  >  ".join(layers[half:])


def _band(y: float, color: str, caption: str, *texts: str) -> list[str]:
    height = 24 + 20 * len(texts)
    return [
        f'<rect x="4" y="{y}" width="{WIDTH - 8}" height="{height}" rx="4" fill="{color}"/>',
        f'<text x="16" y="{y + height / 2 + 5:.1f}" fill="#44525f">{escape(caption)}</text>',
        *(
            f'<text x="{LEFT}" y="{y + 26 + 20 * number}" xml:space="preserve">{escape(text)}</text>'
            for number, text in enumerate(texts)
        ),
    ]


def _box(place: Place, y: float) -> list[str]:
    color = "#cfe3d4" if (ROOT / "src" / "ifap" / place.name).is_dir() else "#ffffff"
    return [
        f'<rect x="{place.left:.1f}" y="{y}" width="{place.width:.1f}" height="{BOX}" rx="4" fill="{color}" '
        'stroke="#2f3e4d"/>',
        f'<text x="{place.x:.1f}" y="{y + 21}" text-anchor="middle">{escape(place.name)}</text>',
    ]


def _arrow(points: list[tuple[float, float]]) -> str:
    (x, y), *rest = points
    path, y = f"M{x:.1f} {y + BOX}", y + BOX
    for number, (to_x, to_y) in enumerate(rest):
        bend = (y + to_y) / 2
        path += f" C{x:.1f} {bend:.1f} {to_x:.1f} {bend:.1f} {to_x:.1f} {to_y}"
        x, y = to_x, to_y
        if number < len(rest) - 1:
            path, y = f"{path} V{y + BOX}", y + BOX
    return f'<path d="{path}" fill="none" stroke="#5b6b7b" stroke-width="1.2" marker-end="url(#head)"/>'


def main() -> None:
    """Write the picture, or check it."""
    picture = draw()
    if sys.argv[1:] == ["--check"]:
        if not PICTURE.exists() or PICTURE.read_text() != picture:
            place = PICTURE.relative_to(ROOT)
            raise SystemExit(f"error: {place} is not what the imports say: run `python docs/draw_architecture.py`")
    elif sys.argv[1:]:
        raise SystemExit("usage: python docs/draw_architecture.py [--check]")
    else:
        PICTURE.write_text(picture)


if __name__ == "__main__":
    main()

"""The templates of all pages and tables: one environment, one escaper a format."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup, escape

from ifap.report.drawing import TEMPLATES
from ifap.study import paths

MINUS, PLUS_MINUS, NO_VALUE = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}", "\N{EN DASH}"
TEX_DELIMITERS: dict[str, Any] = {
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#",
    "comment_end_string": "#>",
}
TEX_CHARACTERS = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    MINUS: "$-$",
    PLUS_MINUS: r"$\pm$",
    NO_VALUE: "--",
    "\N{DAGGER}": r"\dag{}",
    "\N{DOUBLE DAGGER}": r"\ddag{}",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{GREEK CAPITAL LETTER DELTA}": r"$\Delta$",
    "\N{NO-BREAK SPACE}": "~",
}


def environment(extension: str, templates: Path | None = None) -> Environment:
    """Return a Jinja environment that escapes every value for one format and accepts no undefined name.

    A template reaches the values that it is given and no attribute by which Python code could be run.
    """
    escaper = ESCAPERS[extension]
    delimiters = TEX_DELIMITERS if extension == "tex" else {}

    def finalize(value: Any) -> Markup:
        return value if isinstance(value, Markup) else Markup(escaper(str(value)))

    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader([templates or paths.templates_dir(), TEMPLATES]),
        undefined=StrictUndefined,
        autoescape=True,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **delimiters,
    )
    environment.filters["tex_url"] = lambda url: Markup(re.sub(r"([%#&])", r"\\\1", _url(url)))
    environment.filters["md_url"] = lambda url: Markup(_url(url))
    environment.filters["shown"] = shown_record
    return environment


def shown_record(url: str) -> str:
    """Return where a page shows a line of the scale's records or trace, which a browser would show as bare text."""
    found = re.fullmatch(r"\.\./\.\./results/[\w-]+/(records|trace)\.csv#L(\d+)(-L\d+)?", url)
    return f"records.html#{found[1]}-L{found[2]}" if found else url


def _url(text: object) -> str:
    """Return the way to a file with every sign that means something to Markdown or LaTeX as its code."""
    return quote(str(text), safe="/#?&=.,:;@+-_~")


def escape_tex(text: str) -> str:
    """Escape text for LaTeX, signs that need mathematics mode included; a line stays one line."""
    return "".join(TEX_CHARACTERS.get(character, character) for character in one_line(text))


def one_line(text: str) -> str:
    """Return text without line ends and other control characters, which could end a row."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", text)


def escape_md(text: str) -> str:
    """Escape text for GitHub-flavoured Markdown, inside or outside a table."""
    return re.sub(
        r"([\\`*_\[\]|~#])", r"\\\1", one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )


ESCAPERS: dict[str, Callable[[str], str]] = {"md": escape_md, "html": lambda text: str(escape(text)), "tex": escape_tex}

"""How `make docs` builds the pages in this folder: offline, and with every warning as an error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.transforms import SphinxTransform

import ifap

ROOT = Path(__file__).resolve().parents[1]

project = "IFAP"
author = copyright = "The IFAP contributors"  # noqa: A001 (the name of the setting)
version = release = ifap.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["build"]

html_theme = "furo"
html_title = f"IFAP {version}"
html_show_sphinx = False
html_copy_source = False
# Formulas become MathML, which browsers show by themselves: a page needs no script from elsewhere.
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

default_role = "py:obj"  # a name in single backticks links to its entry, where there is one
autosummary_generate = True
autosummary_filename_map = {"ifap.Cost": "ifap.Cost-class"}  # some file systems take Cost and cost for one name
autodoc_typehints = "none"  # The types stand in the docstrings, in words.
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

# Links to files outside this folder lead to the checkout that the site was built from. For a site that is published
# elsewhere, IFAP_DOCS_SOURCE names the address under which the files of the repository can be read.
SOURCE = os.environ.get("IFAP_DOCS_SOURCE", "").rstrip("/")


class FilesOfTheRepository(SphinxTransform):
    """Turn links to files and folders outside docs/ into ordinary links; a file that does not exist is a warning."""

    default_priority = 10  # before Sphinx copies files that it takes for downloads

    def apply(self, **_options: Any) -> None:
        """Replace the links of one page."""
        for node in list(self.document.findall(addnodes.download_reference)):
            self._replace(node)
        for node in list(self.document.findall(addnodes.pending_xref)):
            if node.get("reftype") == "myst" and node["reftarget"] not in self.env.found_docs:
                self._replace(node)

    def _replace(self, node: nodes.Element) -> None:
        target, _, fragment = node["reftarget"].partition("#")
        if node.get("refdomain") == "doc":  # a Markdown page, without its ending
            target, fragment = f"{target}.md", node.get("reftargetid") or ""
        page = Path(self.env.doc2path(self.env.docname))
        # A page that includes CONTRIBUTING.md has links that start at the root.
        places = [(folder / target).resolve() for folder in (page.parent, ROOT)]
        path = next((place for place in places if place.exists() and place.is_relative_to(ROOT)), None)
        if not target or path is None:
            return
        if not SOURCE and path.with_suffix(".html").exists():
            path = path.with_suffix(".html")  # the same page, as a browser shows it
        inside = quote(path.relative_to(ROOT).as_posix())
        built = Path(self.app.outdir) / self.env.docname
        address = f"{SOURCE}/{inside}" if SOURCE else quote(Path(os.path.relpath(path, built.parent)).as_posix())
        link = nodes.reference("", "", *node.children, refuri=f"{address}#{fragment}" if fragment else address)
        node.replace_self(link)


def visit_math(self: Any, node: nodes.math) -> None:
    """Write a formula inside a line."""
    self.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Add what this file defines, and check that the reference is complete."""
    listed = {line.strip() for line in (ROOT / "docs" / "api.md").read_text().splitlines()}
    if missing := {f"ifap.{name}" for name in ifap.__all__} - listed:
        raise ExtensionError(f"docs/api.md does not list {', '.join(sorted(missing))}")
    app.add_transform(FilesOfTheRepository)
    app.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None))

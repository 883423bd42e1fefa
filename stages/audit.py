"""Check the published numbers against one another; no training, no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ifap.study import paths
from ifap.study.paper.audit.report import summary, write_audit
from ifap.study.stage import run_stage

CLAIMS = paths.published_claims()


def main(claims: Annotated[Path, typer.Option(help="The published numbers.")] = CLAIMS) -> None:
    """Write audit.md and audit.csv: what does not fit together, with the arithmetic."""
    typer.echo(summary(write_audit(claims)))
    typer.echo(f"wrote {paths.audit_file('md')} and {paths.audit_file('csv')}")


if __name__ == "__main__":
    run_stage(main)

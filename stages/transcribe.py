"""Turn the published tables into ``claims.csv``, or check that it still says what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ifap.errors import ResultsError
from ifap.files import atomic_write_text
from ifap.study import paths
from ifap.study.paper import published
from ifap.study.stage import run_stage

SOURCE, CLAIMS = paths.published_tables(), paths.published_claims()


def main(
    source: Annotated[Path, typer.Option(help="The published tables as HTML.")] = SOURCE,
    out: Annotated[Path, typer.Option(help="The file of claims.")] = CLAIMS,
    check: Annotated[bool, typer.Option("--check", help="Only compare the file with a fresh transcription.")] = False,
) -> None:
    """Write every value of Tables I-V as one row."""
    try:
        html = source.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{source}: cannot be read ({error})") from None
    claims = published.transcribe(html)
    if not check:
        atomic_write_text(out, published.claims_table(claims))
    elif change := published.first_change(out, claims):
        raise ResultsError(change)
    typer.echo(f"{'checked' if check else 'wrote'} {out}: {len(claims)} published values")


if __name__ == "__main__":
    run_stage(main)

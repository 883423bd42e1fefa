"""Write the JSON schema of ``params.yaml``, which editors use to check it while typing."""

from __future__ import annotations

from typing import Annotated

import typer

from ifap.errors import ConfigError
from ifap.files import atomic_write_text
from ifap.study.config.params import json_schema
from ifap.study.paths import schema_file
from ifap.study.stage import run_stage


def main(
    check: Annotated[bool, typer.Option("--check", help="Only check that the committed schema is up to date.")] = False,
) -> None:
    """Write schemas/params.schema.json from the types in ifap.study.config."""
    file, wanted = schema_file(), json_schema()
    if not check:
        atomic_write_text(file, wanted)
    elif not file.exists() or file.read_text() != wanted:
        raise ConfigError(f"{file} is out of date: run `make format`")


if __name__ == "__main__":
    run_stage(main)

"""The commands of the study: where it stands, what it would take, what does not agree, what would stop it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ifap.errors import ConfigError, installation

ScaleOption = Annotated[str | None, typer.Option(help="Scale; the one in params.yaml by default.")]
ParamsOption = Annotated[Path, typer.Option(help="Parameter file.")]


def status(scale: ScaleOption = None, params: ParamsOption = Path("params.yaml")) -> None:
    """Say of each table's cells whether they ran, were restored, are missing or stale, and at which commit."""
    from ifap.study.config.reading import load_params, select_scale
    from ifap.study.grid import Grid
    from ifap.study.report.estimate import status_lines

    checked = load_params(params)
    for line in status_lines(Grid(checked, select_scale(checked, scale))):
        typer.echo(line)


def estimate(
    scale: ScaleOption = None,
    params: ParamsOption = Path("params.yaml"),
    here: Annotated[bool, typer.Option("--here", help="Time a few steps of each classifier on this machine.")] = False,
) -> None:
    """Say what each table would take: jobs, hours and disk; starts no job."""
    from ifap.study.config.reading import load_params, select_scale
    from ifap.study.grid import Grid
    from ifap.study.report.estimate import estimate_lines

    checked = load_params(params)
    grid, timed = Grid(checked, select_scale(checked, scale)), None
    if here:
        from ifap.study.machine.determinism import configure
        from ifap.study.report.speed import paces

        configure(0)
        timed = paces(grid)
    for line in estimate_lines(grid, timed=timed):
        typer.echo(line)


def audit(claims: Annotated[Path, typer.Option(help="The published numbers.")] = Path("data/paper/claims.csv")) -> None:
    """Check the published numbers against one another; findings are no failure."""
    from ifap.study import paths

    try:
        from ifap.study.paper.audit.report import summary, write_audit
    except ModuleNotFoundError as error:
        raise ConfigError(f"audit needs {error.name}: {installation('workflow')}") from None
    typer.echo(summary(write_audit(claims)))
    typer.echo(f"wrote {paths.audit_file('md')} and {paths.audit_file('csv')}")


def doctor(scale: ScaleOption = None, params: ParamsOption = Path("params.yaml")) -> None:
    """Show versions, devices and leases, disk, data sets, and what runs where; exit code 1 if a run would fail."""
    from rich.console import Console

    from ifap.study.doctor import examine, table

    findings = examine(params, scale)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(findings))
    wrong = sum(finding.state == "wrong" for finding in findings)
    if wrong:
        console.print(f"{wrong} thing{'s' if wrong > 1 else ''} would stop a run")
        raise typer.Exit(1)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of the study to the ``ifap`` command, which finds this function as an entry point."""
    for command in (status, estimate, audit, doctor):
        app.command()(command)

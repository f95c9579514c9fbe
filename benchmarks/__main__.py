"""The command line: ``python -m benchmarks`` runs, ``python -m benchmarks compare A B`` compares two results."""

from __future__ import annotations

import sys
import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

from . import cases, report
from .contenders import BY_NAME
from .measure import memory, results, runner, session
from .report import compare

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
MINUTES = {True: 5.0, False: 40.0}  # of a run with and without --quick
MARGIN = 0.9  # of them for measuring; the rest for the start and the report


class Device(str, Enum):
    cpu = "cpu"
    cuda = "cuda"


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    device: Annotated[Device | None, typer.Option(help="Default: CUDA if there is one.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The most important cases, in five minutes.")] = False,
    wanted: Annotated[list[str] | None, typer.Option("--cases", help="Words of a case's group or name; repeatable.")] = None,
    names: Annotated[list[str] | None, typer.Option("--contenders", help="Names of contenders; repeatable.")] = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder of the results; one that has some is gone on with.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Time to spend. Default: 40, or 5 with --quick.")] = None,
) -> None:
    """Measure rnndrop beside what people use today, and write a report."""
    if context.invoked_subcommand:
        return
    kind = _kind(device)
    if unknown := [name for name in names or [] if name not in BY_NAME]:
        raise typer.BadParameter(f"unknown {', '.join(unknown)}; there are {', '.join(BY_NAME)}", param_hint="--contenders")
    contenders, chosen = [BY_NAME[name] for name in names or BY_NAME], cases.select(kind, quick, wanted or [])
    if not chosen:
        raise typer.BadParameter(f"no case has one of {', '.join(wanted or [])} in its group or name", param_hint="--cases")
    folder = out or results.default_folder(kind)
    if kind == "cpu":
        memory.limit_to_available()
    ends = time.monotonic() + (MINUTES[quick] if minutes is None else minutes) * 60 * MARGIN
    try:
        here = session.open_session(folder, kind, ends, sys.argv[1:])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    try:
        runner.run(here, chosen, contenders)
    except KeyboardInterrupt:
        typer.echo(f"Stopped. The same command with --out {folder} goes on from here.")
        raise typer.Exit(130) from None
    finally:
        report.write(folder)
        typer.echo(f"{folder / 'report.md'}, report.html")


Results = Annotated[Path, typer.Argument(exists=True, file_okay=False)]


@app.command("compare")
def compare_command(before: Results, after: Results) -> None:
    """Tell what got faster or slower between two result folders, and whether that is more than noise."""
    try:
        typer.echo(compare.text(before, after))
    except (FileNotFoundError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


@app.command("report")
def report_command(folder: Results) -> None:
    """Write the report of a result folder again."""
    report.write(folder)


def _kind(device: Device | None) -> str:
    there = torch.cuda.is_available()
    if device is Device.cuda and not there:
        raise typer.BadParameter("PyTorch finds no CUDA device", param_hint="--device")
    return device.value if device else "cuda" if there else "cpu"


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")

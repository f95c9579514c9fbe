"""The command line: ``python -m benchmarks`` runs, ``python -m benchmarks compare A B`` compares two results."""

from __future__ import annotations

import sys
import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

from . import cases, compare, limits, memory, providers, report, results, runner, timer

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
    names: Annotated[list[str] | None, typer.Option("--providers", help="Names of providers; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; one that has some is gone on with.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time to spend. Default: 40, or 5 with --quick.")] = None,
) -> None:
    """Measure rnndrop beside what people use today, and write a report."""
    if context.invoked_subcommand:
        return
    kind = device.value if device else "cuda" if torch.cuda.is_available() else "cpu"
    folder = out or results.default_folder(kind)
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "cpu":
        memory.limit_to_available()
    ends = time.monotonic() + (minutes or MINUTES[quick]) * 60 * MARGIN
    try:
        runner.run(session(folder, kind, ends), cases.select(kind, quick, wanted or []), _named(names or []))
    except KeyboardInterrupt:
        typer.echo("Stopped. The same command goes on from here.")
    report.write(folder)
    typer.echo(f"{folder / 'report.md'}, report.html")


@app.command("compare")
def compare_command(before: Path, after: Path) -> None:
    """Tell what got faster or slower between two result folders, and whether that is more than noise."""
    typer.echo(compare.text(before, after))


@app.command("report")
def report_command(folder: Path) -> None:
    """Write the report of a result folder again."""
    report.write(folder)


def session(folder: Path, device: str, ends: float) -> runner.Session:
    """A session on this machine, its environment written to the folder."""
    watch = timer.stopwatch(device)
    found = results.environment(device, sys.argv[1:])
    rates = limits.measured_rates(device, watch)
    results.write_environment(folder, {**found, "measured_rates": rates})
    versions = " ".join(f"{name}={version}" for name, version in found["versions"].items())
    facts = {"device": found["device"], "driver": found["driver"], "versions": versions, "commit": found["commit"]}
    return runner.Session(folder, device, watch, ends, facts, rates)


def _named(names: list[str]) -> list[providers.Provider]:
    """The providers of these names, all without any."""
    everyone = {provider.name: provider for provider in providers.everyone()}
    unknown = [name for name in names if name not in everyone]
    if unknown:
        raise typer.BadParameter(f"unknown {', '.join(unknown)}; there are {', '.join(everyone)}", param_hint="--providers")
    return [everyone[name] for name in names or everyone]


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")

"""report.md, pictures and report.html out of a result folder."""

from __future__ import annotations

from pathlib import Path

from ..measure import results
from . import charts
from .markdown import markdown
from .page import page
from .sections import every_row, sections


def write(folder: Path) -> None:
    """Write the report of the rows that the folder has."""
    rows, environment = results.read(folder), results.read_environment(folder)
    machine = str(environment.get("device", "unknown device"))
    figures = charts.write(rows, folder, machine)
    parts = [part for part in sections(rows, environment) if not part.chart or part.chart in figures]
    title = f"rnndrop, measured on {machine}"
    (folder / "report.md").write_text(markdown(title, parts), encoding="utf-8")
    (folder / "report.html").write_text(page(title, parts, figures, every_row(rows)), encoding="utf-8")

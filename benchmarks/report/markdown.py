"""report.md."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from .charts import CHARTS
from .sections import Section


def markdown(title: str, parts: Sequence[Section]) -> str:
    lines = [f"# {title}"]
    for part in parts:
        lines += [f"## {part.title}"] if part.title else []
        lines += [part.text] if part.text else []
        if part.table is not None:
            cells = [[str(cell).replace("|", r"\|") for cell in row] for row in part.table.to_numpy().tolist()]
            lines.append(tabulate(cells, list(part.table.columns), "github", disable_numparse=True))
        lines += [f"![{CHARTS[part.chart].title}]({part.chart}.png)"] if part.chart else []
    return "\n\n".join(lines) + "\n"

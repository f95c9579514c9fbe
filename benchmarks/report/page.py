"""report.html: one file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from .sections import NOTHING, Section

TEMPLATE = Path(__file__).with_name("page.html")


def page(title: str, parts: Sequence[Section], figures: Mapping[str, go.Figure], every_row: pd.DataFrame) -> str:
    body = []
    for part in parts:
        body += [f"<h2>{escape(part.title)}</h2>"] if part.title else []
        body += [_paragraphs(part.text)] if part.text else []
        body += [_table(part.table)] if part.table is not None else []
        if part.chart:
            config = {"displaylogo": False}
            body.append(figures[part.chart].to_html(full_html=False, include_plotlyjs=False, config=config))
    body += ["<h2>Every measurement</h2><p>Click a heading to sort.</p>", _table(every_row, ' id="rows"')]
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, piece in {"title": escape(title), "body": "\n".join(body), "plotly": get_plotlyjs()}.items():
        text = text.replace(f"{{{{ {name} }}}}", piece)
    return text


def _paragraphs(text: str) -> str:
    if not text.startswith("- "):
        return f"<p>{escape(text)}</p>"
    items = " ".join(text.splitlines()).removeprefix("- ").split(" - ")
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _table(table: pd.DataFrame, attributes: str = "") -> str:
    body = table.rename_axis(columns=None).to_html(index=False, border=0, na_rep=NOTHING, classes="sortable")
    return f'<div class="scroll"{attributes}>{body}</div>'

"""report.md, pictures and one self-contained report.html out of a result folder."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from . import analysis, charts, model, results
from .cases import HEADLINE, SWEEPS, Case
from .providers import BASELINE, LIMIT, OURS
from .results import NAN

AIMS = {BASELINE: 0.85, "nn.RNN + nn.Dropout": 0.6, "loop": 0.4}  # of the geometric mean of a training step
EVALUATION_AIM = 1.02
METHOD = """\
- All contenders of a case alternate within one process, in a new random order each round; a ratio is the median of the rounds'
  ratios. What a resumed run adds is timed in turns with rnndrop and nn.RNN again, and compared with these times of theirs.
- Before it is timed each provider is checked: equal to nn.RNN with every dropout at 0, outputs and gradients; then the masks of
  a seed against a plain float64 loop; then, called as it is timed, the drop rate, the scale and that masks differ.
- A training step is forward, `output.sum()` as the loss (which costs least) and backward. The input needs no gradient unless
  the case says so. Hidden dropout is 0.2 with a fresh mask a step unless the case says so. nn.RNN has no dropout at all,
  nn.RNN + nn.Dropout drops the output only: neither does what rnndrop does; the loops do.
- Inputs and weights are random; four inputs rotate. First calls (compilation) are kept apart as `first_call_s`. Python's
  garbage collector rests while times are taken. On CUDA: events around a call after a write over the second-level cache,
  and the same step replayed as a CUDA graph ("graph"). Clocks are left as they are.
- "matrix products" is the limit of any implementation that calls the same library: the products of the layer alone, outputs
  preallocated.
- The compiled loop has its step under torch.compile (compiling the unrolled loop takes minutes). Keras masks the recurrent
  input once a sequence.
- Bytes held for backward are whole storages seen by `saved_tensors_hooks`, each once, without weights and input."""
NOTHING = "\N{EN DASH}"  # where nothing was measured


@dataclass(frozen=True)
class Section:
    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    picture: str = ""  # file of a chart
    figure: str = ""  # title of its interactive form


def write(folder: Path) -> None:
    """Write the report of the rows that the folder has."""
    rows, found = results.read(folder), results.read_environment(folder)
    machine = str(found.get("device", "unknown device"))
    pictures, figures = charts.write(rows, folder, machine) if len(rows) else ([], {})
    parts = [part for part in sections(rows, found) if not part.picture or part.picture in pictures]
    (folder / "report.md").write_text(_markdown(parts, machine))
    (folder / "report.html").write_text(_html(parts, figures, rows, machine), encoding="utf-8")


def sections(rows: pd.DataFrame, found: dict[str, Any]) -> Iterator[Section]:
    yield from _headline(rows)
    yield Section("", picture="ratios.png", figure="A training step against each alternative")
    yield from _other_cases(rows)
    yield from _growth(rows)
    yield from _memory(rows)
    yield from _contradictions(rows)
    yield _absolute(rows)
    yield from _not_measured(rows)
    yield _model()
    yield Section("Method", METHOD)
    yield _environment(rows, found)


def _headline(rows: pd.DataFrame) -> Iterator[Section]:
    for dtype in ("fp32", "tf32", "bf16", "fp16"):
        table = analysis.headline(rows, dtype=dtype)
        if table.empty:
            continue
        text = "Time of rnndrop over the time of the other, forward and backward; below 1, rnndrop is faster."
        if dtype == "fp32" and set(analysis.SHAPES) <= set(table.index):
            text += " " + _aims(table)
        yield Section(f"A training step with dropout inside, {dtype}", text, _named(table, "case"))
        table = analysis.headline(rows, dtype=dtype, graph=True)
        if not table.empty:
            yield Section(
                f"The same as CUDA graphs, {dtype}",
                "The host launches a copy of the input and one graph.",
                _named(table, "case"),
            )


def _aims(table: pd.DataFrame) -> str:
    """The aims of the project beside what was reached."""
    said = []
    for name, aim in AIMS.items():
        mean = table.get(name, pd.Series(dtype=float)).get("geometric mean")
        if mean is not None and mean == mean:
            said.append(f"{mean:.2f} of {name} (at most {aim})")
    if BASELINE in table and table[BASELINE].notna().any():
        said.append(f"at worst {table[BASELINE].drop('geometric mean', errors='ignore').max():.2f} of {BASELINE} (at most 1)")
    if LIMIT in table:
        wide = [shape for shape in table.index if "-H" in shape and int(shape.rsplit("H", 1)[1]) >= 256]
        said.append(f"at worst {table.loc[wide, LIMIT].max():.2f} of the matrix products where H >= 256 (at most 1.25)")
    return f"Reached, and aimed at: {'; '.join(said)}." if said else ""


def _named(table: pd.DataFrame, first: str) -> pd.DataFrame:
    return table.map(_number).reset_index().rename(columns={"index": first})


def _number(value: object) -> str:
    """Three digits; a dash where nothing was measured."""
    if not isinstance(value, (int, float)):
        return str(value)
    return NOTHING if value != value else f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def _other_cases(rows: pd.DataFrame) -> Iterator[Section]:
    for direction in ("inference", "forward"):
        table = analysis.headline(rows, direction)
        if not table.empty:
            mean = table[BASELINE].get("geometric mean", NAN) if direction == "inference" and BASELINE in table else NAN
            aim = f" Of {BASELINE} it takes {mean:.3f} (aim: at most {EVALUATION_AIM})." if mean == mean else ""
            text = f"Time of rnndrop over the other's.{aim}"
            yield Section(f"The same cases, {_direction(direction)}", text, _named(table, "case"))
    titles = {"dropout": "Kinds of dropout", "network": "Layers, directions, input gradient"}
    found = analysis.ratios(rows)
    for group, title in titles.items():
        yield from _ratios(title, found[found.group == group])


def _ratios(title: str, found: pd.DataFrame) -> Iterator[Section]:
    """Ratios of training steps, a row for each case and dtype."""
    found = found[(found.direction == "train") & ~found.provider.str.endswith(analysis.GRAPH)]
    if not found.empty:
        table = found.pivot_table("ratio", ["case", "dtype"], "provider", sort=False)
        table = table[analysis.by_importance(table.columns)].map(_number).reset_index()
        yield Section(title, "A training step, time of rnndrop over the other's.", table)


def _direction(direction: str) -> str:
    return {"inference": "evaluation", "forward": "forward in training", "train": "forward and backward"}[direction]


def _growth(rows: pd.DataFrame) -> Iterator[Section]:
    ratios = analysis.ratios(rows)
    for over in SWEEPS:
        names = analysis.sweep(rows, over).case.unique()
        yield from _ratios(f"Growing {over}", ratios[ratios.case.isin(names)].sort_values(over))
    found = [g for over in ("T", "B", "H") for g in analysis.growth(rows, over)]
    if not found:
        return
    table = pd.DataFrame(
        {
            "over": [g.over for g in found],
            "provider": [g.provider for g in found],
            "dtype": [g.dtype for g in found],
            "exponent": [f"{g.exponent:.2f}" for g in found],
            "ms at T = 0": [_number(g.constant_s * 1e3) for g in found],
            "us a step": [_number(g.per_step_s * 1e6) for g in found],
            "R2": [_number(g.r2) for g in found],
        }
    )
    text = (
        "Time of a training step, of its fastest round, as a power of T, B or H over the upper half of the sweep; over T also "
        "the straight line through all lengths."
    )
    yield Section("Growth", text, table)
    yield Section("", picture="growth.png", figure="How a training step grows")


def _memory(rows: pd.DataFrame) -> Iterator[Section]:
    table = analysis.held(rows)
    if table.empty:
        return
    text = "Bytes for each element of the output, without weights and input."
    if {OURS, "loop"} <= set(table.columns):
        text += f" rnndrop holds {(table[OURS] / table['loop']).max():.2f} of the loop's at most (aim: 0.5)."
    yield Section("Held for the backward pass", text, _named(table, "case"))
    yield Section("", picture="memory.png", figure="Bytes held for the backward pass")
    peaks = analysis.timed(rows)
    peaks = peaks[peaks.peak_bytes.notna() & analysis.of_headline(peaks) & (peaks.direction == "train")]
    if not peaks.empty:
        table = peaks.pivot_table("peak_bytes", ["case", "dtype"], "provider", sort=False) / 1e6
        yield Section("Peak on the device", "MB above what was allocated before the step.", table.map(_number).reset_index())


def _contradictions(rows: pd.DataFrame) -> Iterator[Section]:
    title = 'Where another strategy was faster than the one "auto" chose'
    named = analysis.timed(rows)
    if not named.provider.str.startswith(f"{OURS} ").any():
        return
    found = analysis.contradictions(rows)
    if found.empty:
        yield Section(title, "Nowhere in what was measured.")
        return
    names = {"direction": "pass", "provider": "faster", "ratio": "auto / it", "low": "lower quartile", "high": "upper quartile"}
    table = found[["case", "direction", "dtype", "chosen", "provider", "ratio", "low", "high"]].rename(columns=names)
    text = "Each case where the median of the rounds' ratios is above 1; quartiles on both sides of 1 are noise."
    yield Section(title, text, table.map(_number))


def _absolute(rows: pd.DataFrame) -> Section:
    found = analysis.timed(rows)
    found = found[analysis.of_headline(found) & (found.direction == "train")]
    table = pd.DataFrame(
        {
            "case": found.case,
            "dtype": found.dtype,
            "provider": found.provider,
            "median, ms": (found.median_s * 1e3).map(_number),
            "quartiles": [f"{_number(a * 1e3)} to {_number(b * 1e3)}" for a, b in zip(found.q25_s, found.q75_s, strict=True)],
            "runs": found.runs.astype(int),
            "first call, s": found.first_call_s.map(_number),
        }
    )
    return Section("Times of a training step", "All other rows, and each round's time, are in rows.csv.", table)


def _not_measured(rows: pd.DataFrame) -> Iterator[Section]:
    missing = rows[rows.status != "ok"]
    if missing.empty:
        return
    groups = missing.groupby(["status", "provider", "reason"], sort=True).case.agg(["size", "first"]).reset_index()
    table = groups.rename(columns={"size": "cases", "first": "for example"})
    text = (
        '"skipped" cannot run here, "deferred" did not fit the time, "error" failed or was wrong; a resumed run tries these '
        "two again."
    )
    yield Section("Not measured, and why", text, table)


def _model() -> Section:
    lines = []
    for shape in HEADLINE:
        for case in (Case("headline", *shape), replace(Case("headline", *shape), dtype="bf16")):
            for strategy in ("resident", "cooperative", "stepwise"):
                costs = {gpu.name: model.cost(case, strategy, gpu) for gpu in model.GPUS}
                a100 = costs["A100"]
                line = {"case": case.name, "dtype": case.dtype, "strategy": strategy, "launches": a100.launches}
                line |= {"MB": _number(a100.bytes / 1e6), "GFLOP": _number(a100.flops / 1e9)}
                line |= {f"{name}, us": "no" if c.reason else _number(c.bound_s * 1e6) for name, c in costs.items()}
                lines.append(line)
    text = (
        "Computed, not measured: a training step on CUDA can take no less than this by the data sheets (dense rates of the SXM "
        "boards): the operations at the rate of the multiprocessors that the strategy fills, and inputs, weights, outputs and "
        "gradients once through device memory. Launches, barriers and latency come on top. MB is what the strategy moves where "
        "nothing but a step's working set stays in the cache (A100's); \"no\" is a shape that it refuses there. Formulas in "
        "benchmarks/model.py."
    )
    return Section("Bounds for CUDA, computed", text, pd.DataFrame(lines))


def _environment(rows: pd.DataFrame, found: dict[str, Any]) -> Section:
    commits = ", ".join(analysis.timed(rows).commit.unique())  # a run may have been gone on with at a later one
    flat = {**found, "commit": commits, "versions": ", ".join(f"{k} {v}" for k, v in found.get("versions", {}).items())}
    rates = found.get("measured_rates", {})
    flat["measured_rates"] = ", ".join(f"{k} {v:.3g}" for k, v in rates.items())
    table = pd.DataFrame([(k, v) for k, v in flat.items() if v], columns=["what", "value"])
    text = "Repeat it by the command below at this commit; `python -m benchmarks compare A B` compares two results."
    return Section("Environment", text, table)


def _markdown(parts: list[Section], machine: str) -> str:
    lines = [f"# rnndrop, measured on {machine}"]
    for part in parts:
        lines += [f"## {part.title}"] if part.title else []
        lines += [part.text] if part.text else []
        if part.table is not None:
            cells = [[str(cell).replace("|", r"\|") for cell in row] for row in part.table.to_numpy().tolist()]
            lines.append(tabulate(cells, list(part.table.columns), "github", disable_numparse=True))
        lines += [f"![{part.figure}]({part.picture})"] if part.picture else []
    return "\n\n".join(lines) + "\n"


def _html(parts: list[Section], figures: dict[str, Any], rows: pd.DataFrame, machine: str) -> str:
    from plotly.offline import get_plotlyjs

    body = []
    for part in parts:
        body += [f"<h2>{html.escape(part.title)}</h2>"] if part.title else []
        body += [_paragraphs(part.text)] if part.text else []
        if part.table is not None:
            body.append(_table(part.table))
        if part.picture:
            body.append(figures[part.figure].to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False}))
    body += ["<h2>Every measurement</h2><p>Click a heading to sort.</p>", _table(_all(rows), "rows")]
    template = (Path(__file__).parent / "report_template.html").read_text(encoding="utf-8")
    pieces = {"title": f"rnndrop, measured on {html.escape(machine)}", "body": "\n".join(body), "plotly": get_plotlyjs()}
    for name, piece in pieces.items():
        template = template.replace(f"{{{{ {name} }}}}", piece)
    return template


def _paragraphs(text: str) -> str:
    if not text.startswith("- "):
        return f"<p>{html.escape(text)}</p>"
    items = " ".join(text.splitlines()).removeprefix("- ").split(" - ")
    return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"


def _table(table: pd.DataFrame, name: str = "") -> str:
    identity = f' id="{name}"' if name else ""
    body = table.rename_axis(columns=None).to_html(index=False, border=0, na_rep=NOTHING, classes="sortable")
    return f'<div class="scroll"{identity}>{body}</div>'


def _all(rows: pd.DataFrame) -> pd.DataFrame:
    """Every row, times in ms."""
    table = rows[["group", "case", "direction", "dtype", "provider", "status", "reason"]].rename(columns={"direction": "pass"})
    for name in ("median", "min", "q25", "q75", "q95"):
        table[f"{name}, ms"] = (rows[f"{name}_s"] * 1e3).map(_number)
    table["runs"] = rows.runs.fillna(0).astype(int)
    table["first call, s"] = rows.first_call_s.map(_number)
    table["held, MB"] = (rows.saved_bytes / 1e6).map(_number)
    return table

"""What a run leaves in its folder: rows.csv, to which rows are only appended, and environment.json."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import re
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from .machine import commit

FOLDER = Path(__file__).parent.parent / "results"
NAN = float("nan")
CASE = ["case", "pass", "dtype"]
KEY = [*CASE, "contender"]


@dataclass
class Row:
    """One measurement. Times are in seconds, memory in bytes.

    pass_: the column "pass". status: "ok"; "error", failed or wrong; "skipped", cannot run here; "deferred", did not fit the
    time. A resumed run tries errors and deferred ones again.
    block: rows timed together, round by round, have the same. samples: the seconds of each round.
    """

    case: str
    contender: str
    pass_: str
    dtype: str
    group: str
    status: str
    reason: str = ""
    min_s: float = NAN
    q25_s: float = NAN
    median_s: float = NAN
    q75_s: float = NAN
    q95_s: float = NAN
    runs: int = 0
    first_call_s: float = NAN
    saved_bytes: float = NAN
    peak_bytes: float = NAN
    flops: float = NAN
    chosen: str = ""
    cell: str = "RNN"
    T: int = 0
    B: int = 0
    I: int = 0  # noqa: E741
    H: int = 0
    device: str = ""
    driver: str = ""
    versions: str = ""
    commit: str = ""
    when: str = ""
    block: str = ""
    samples: str = ""


COLUMNS = {field.name.rstrip("_"): field.type for field in fields(Row)}


def append(folder: Path, rows: list[Row]) -> None:
    """Add rows to the folder's rows.csv, on disk when this returns."""
    path = folder / "rows.csv"
    whole = whole_lines(path)
    with path.open("a", newline="", encoding="utf-8") as file:
        file.truncate(len(whole))
        writer = csv.writer(file)
        if not whole:
            writer.writerow(COLUMNS)
        writer.writerows(map(astuple, rows))
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> pd.DataFrame:
    """The rows of a folder, the last of each case, pass, dtype and contender; none if it has none yet.

    Beside their columns, `beside` has the samples of each contender that was timed in the same rounds, for these may have been
    timed again since. Raises ValueError where rows.csv is no such table.
    """
    whole = whole_lines(folder / "rows.csv").decode()
    rows = pd.read_csv(io.StringIO(whole or ",".join(COLUMNS)), dtype=str, keep_default_na=False)
    if list(rows.columns) != list(COLUMNS):
        raise ValueError(f"{folder / 'rows.csv'} has other columns than the rows of a benchmark")
    for name, kind in COLUMNS.items():
        if kind in ("float", "int"):
            rows[name] = pd.to_numeric(rows[name], errors="coerce")
    blocks = {block: dict(zip(g.contender, g.samples, strict=True)) for block, g in rows[rows.block != ""].groupby("block")}
    rows["beside"] = [blocks.get(block, {}) for block in rows.block]
    return rows.drop_duplicates(KEY, keep="last").reset_index(drop=True)


def whole_lines(path: Path) -> bytes:
    """What a file has, without a last line that a killed run did not finish."""
    found = path.read_bytes() if path.exists() else b""
    return found[: found.rfind(b"\n") + 1]


def finished(folder: Path) -> set[tuple[str, ...]]:
    """The KEY of what a resumed run need not do again."""
    rows = read(folder)
    return set(rows[rows.status.isin(["ok", "skipped"])][KEY].itertuples(index=False, name=None))


def default_folder(device: str) -> Path:
    """Of a run of today on this device; what another commit measured today stays as it is."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder, now = FOLDER / f"{slug}-{datetime.date.today().isoformat()}", commit()
    return folder if read_environment(folder).get("commit", now) == now else folder.with_name(f"{folder.name}-{now}")


def write_environment(folder: Path, found: dict[str, Any]) -> None:
    new = folder / "environment.json.new"
    new.write_text(json.dumps(found, indent=2) + "\n")
    new.replace(folder / "environment.json")


def read_environment(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    return json.loads(path.read_text()) if path.exists() else {}

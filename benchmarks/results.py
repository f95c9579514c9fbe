"""What a run leaves in its folder: rows.csv, to which rows are only appended, and environment.json."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import platform
import re
import shlex
import subprocess
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

ROOT = Path(__file__).parent
PACKAGES = ("torch", "triton", "numpy", "keras", "flashrnn", "haste_pytorch", "xma")
MACHINE = ("device", "driver", "versions")  # of the environment: what all rows of a folder share; each has its own commit
NAN = float("nan")
CASE = ["case", "direction", "dtype"]
KEY = [*CASE, "provider"]
HEADER = {"direction": "pass"}  # the column of a field, where Python reserves the word


@dataclass
class Row:
    """One measurement. Times are in seconds, memory in bytes.

    status: "ok"; "error", failed or wrong; "skipped", cannot run here; "deferred", did not fit the time. A resumed run tries
    errors and deferred ones again.
    direction: the pass, and the column "pass". block: rows timed together, round by round, have the same. samples: the
    seconds of each round.
    """

    case: str
    provider: str
    direction: str
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


COLUMNS = [HEADER.get(field.name, field.name) for field in fields(Row)]


def append(folder: Path, rows: list[Row]) -> None:
    """Add rows to the folder's rows.csv, on disk when this returns."""
    path = folder / "rows.csv"
    whole = whole_lines(path)
    with path.open("a", newline="", encoding="utf-8") as file:
        file.truncate(len(whole))
        writer = csv.writer(file)
        if not whole:
            writer.writerow(COLUMNS)
        writer.writerows(asdict(row).values() for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> pd.DataFrame:
    """The rows of a folder, the last of each case, pass, dtype and provider; none if it has none yet.

    Beside their fields, `beside` has the samples of each provider that was timed in the same rounds, for these may have been
    timed again since. Raises ValueError where rows.csv is no such table.
    """
    whole = whole_lines(folder / "rows.csv").decode()
    rows = pd.read_csv(io.StringIO(whole or ",".join(COLUMNS)), dtype=str, keep_default_na=False)
    if list(rows.columns) != COLUMNS:
        raise ValueError(f"{folder / 'rows.csv'} has other columns than the rows of a benchmark")
    rows = rows.rename(columns={column: name for name, column in HEADER.items()})
    for field in fields(Row):
        if field.type in ("float", "int"):
            rows[field.name] = pd.to_numeric(rows[field.name], errors="coerce")
    blocks = {block: dict(zip(g.provider, g.samples, strict=True)) for block, g in rows[rows.block != ""].groupby("block")}
    rows["beside"] = [blocks.get(block, {}) for block in rows.block]
    return rows.drop_duplicates(KEY, keep="last").reset_index(drop=True)


def whole_lines(path: Path) -> bytes:
    """What a file has, without a last line that a killed run did not finish."""
    found = path.read_bytes() if path.exists() else b""
    return found[: found.rfind(b"\n") + 1]


def finished(folder: Path) -> set[tuple[str, str, str, str]]:
    """(case, pass, dtype, provider) of what a resumed run need not do again."""
    rows = read(folder)
    rows = rows[rows.status.isin(["ok", "skipped"])]
    return set(zip(rows.case, rows.direction, rows.dtype, rows.provider, strict=True))


def default_folder(device: str) -> Path:
    """Of a run of today on this device; what another commit measured today stays as it is."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder, now = ROOT / "results" / f"{slug}-{datetime.date.today().isoformat()}", commit()
    return folder if read_environment(folder).get("commit", now) == now else folder.with_name(f"{folder.name}-{now}")


def environment(device: str, arguments: list[str]) -> dict[str, Any]:
    """The machine and the software, as far as they bear on speed."""
    threads = torch.get_num_threads()
    found: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "date": datetime.date.today().isoformat(),
        "device": f"{threads} thread{'s' * (threads > 1)} of {cpu_name()}",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
        "versions": {name: _version(name) for name in PACKAGES if _version(name)},
        "driver": "",
    }
    found["versions"]["rnndrop"] = __import__("rnndrop").__version__
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["device"] = properties.name
        found["driver"] = _driver()
        found["cuda"] = torch.version.cuda
        found["multiprocessors"] = properties.multi_processor_count
        found["memory_bytes"] = properties.total_memory
    return found


def write_environment(folder: Path, found: dict[str, Any]) -> None:
    new = folder / "environment.json.new"
    new.write_text(json.dumps(found, indent=2) + "\n")
    new.replace(folder / "environment.json")


def read_environment(folder: Path) -> dict[str, Any]:
    path = folder / "environment.json"
    return json.loads(path.read_text()) if path.exists() else {}


def cpu_name() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def commit() -> str:
    """The git commit measured, with "-dirty" if files differ from it; empty outside a repository."""

    def git(*words: str) -> str:
        try:
            return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    head = git("rev-parse", "--short", "HEAD")
    code = [":(top)rnndrop", ":(top)kernels", ":(top)benchmarks/*.py"]
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return head + "-dirty" * bool(head and changed)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""

"""The machine and the software that were measured, as far as they bear on speed."""

from __future__ import annotations

import datetime
import platform
import re
import shlex
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import rnndrop

PACKAGES = ("torch", "triton", "numpy", "keras")
CODE = [":(top)rnndrop", ":(top)kernels", ":(top)benchmarks/*.py"]  # what a commit must have for it to be what was measured


def environment(device: str, arguments: list[str]) -> dict[str, Any]:
    threads = torch.get_num_threads()
    found: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
        "date": datetime.date.today().isoformat(),
        "device": f"{threads} thread{'s' * (threads > 1)} of {cpu_name()}",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
        "versions": {name: _version(name) for name in PACKAGES if _version(name)} | {"rnndrop": rnndrop.__version__},
        "driver": "",
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["device"] = properties.name
        found["driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
        found["cuda"] = torch.version.cuda
        found["multiprocessors"] = properties.multi_processor_count
        found["memory_bytes"] = properties.total_memory
    return found


def cpu_name() -> str:
    told = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", told.read_text()) if told.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def commit() -> str:
    """The git commit measured, with "-dirty" if files differ from it; empty outside a repository."""
    head = _output("git", "rev-parse", "--short", "HEAD")
    return head + "-dirty" * bool(head and _output("git", "status", "--porcelain", "--untracked-files=no", "--", *CODE))


def _output(*command: str) -> str:
    """What a command prints; empty if it fails."""
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""

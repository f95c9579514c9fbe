"""Compile every kernel for every GPU we promise, without having one, and keep kernels/RESOURCES.md.

    python -m tests.kernels.resources [WORD ...]   fail where a kernel spills or does not fit, or the table is stale
    python -m tests.kernels.resources --write      write the table
    python -m tests.kernels.resources --sample     only one kernel of each strategy and cell, for two targets

The kernels are those of `cases`. All take half an hour of a core; Triton's cache makes the second time cheap. The table has a
fingerprint of the code it was made from, so that a test can say without compiling whether it is today's.
"""

import argparse
import ast
import concurrent.futures
import hashlib
import multiprocessing
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from .cases import TARGETS, cases

ROOT = pathlib.Path(__file__).parents[2]
TABLE = ROOT / "kernels" / "RESOURCES.md"
SAMPLE = ("sm_80", "sm_90")  # targets that a test compiles for

PAIR = 8  # bytes that may be spilled: ptxas gives up two registers to fit one program more on a multiprocessor

HEAD = """# What the kernels take of a multiprocessor

Registers a thread / bytes of shared memory a block, as compiled for each device; a thread may have 255 registers, on
gfx942 512. No kernel spills or has a stack, but for "+ n": at most 8 bytes, two registers that the assembler gives up though
there are more, to fit one program more on a multiprocessor; on gfx942, n scalar registers kept in vector registers, not in
memory. A dash: the plan refuses that shape there, and another strategy runs it.
Triton {version} only, others compile to other numbers; written by `python -m tests.kernels.resources --write`.
Fingerprint of the code: {fingerprint}.

"""


def sources() -> dict[str, str]:
    """The code that decides the numbers: kernels, launchers, plan and cases."""
    names = sorted(f"kernels/{path.name}" for path in TABLE.parent.glob("*.py"))
    names += ["rnndrop/cell.py", "tests/kernels/cases.py", "tests/kernels/launches.py"]
    return {name: (ROOT / name).read_text() for name in names}


def fingerprint(sources: Mapping[str, str]) -> str:
    """Of what the code does: the same with other comments, docstrings and line breaks."""
    code = {name: _code(ast.parse(text)) for name, text in sources.items()}
    return hashlib.sha256(repr(code).encode()).hexdigest()[:12]


def _code(node: Any) -> Any:
    """A syntax tree without docstrings, and without empty fields, which differ from one Python to the next."""
    if isinstance(node, list):
        return [_code(x) for x in node if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))]
    if not isinstance(node, ast.AST):
        return node
    return type(node).__name__, {name: _code(value) for name, value in ast.iter_fields(node) if value not in (None, [])}


def one_of_each(kernels: Iterable[tuple[str, Callable]]) -> Iterable[tuple[str, Callable]]:
    """The first case of each strategy, cell and direction, whatever its size, dtype and masks."""
    first: dict[str, tuple[str, Callable]] = {}
    for name, run in kernels:
        first.setdefault(re.split(r" H=| \w+$", name)[0], (name, run))
    return first.values()


def compile_all(name: str, words: Iterable[str] = (), sample: bool = False) -> dict[str, str]:
    """The table's column of one target: kernel -> registers / shared memory."""
    from rnndrop.kernels import launch

    warnings.simplefilter("ignore")
    driver = install(name)
    column = {}
    kernels = cases(launch.device_of(torch.device("meta")))
    for kernel, run in one_of_each(kernels) if sample else kernels:
        if all(word in kernel for word in words):
            driver.utils.loaded.clear()
            run()
            column[kernel] = " + ".join(dict.fromkeys(driver.utils.loaded))
    return column


def install(name: str):
    """Make Triton compile for the target and load and launch nothing."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    from rnndrop.kernels import launch

    files = {}
    properties = dict(zip(("max_shared_mem", "multiprocessor_count"), TARGETS[name], strict=True))
    properties["warpSize"] = 32 if name.startswith("sm_") else 64

    class Utils:
        def __init__(self):
            self.loaded = []

        def get_device_properties(self, device):
            return properties

        def load_binary(self, kernel, binary, shared, device):
            assembly = files["amdgcn"].read_text() if "amdgcn" in files else None
            self.loaded.append(_describe(binary, assembly, shared, properties["max_shared_mem"]))
            return None, None, 0, 0, 1024

        def unload_module(self, module):
            pass

    class Driver(DriverBase):
        target = GPUTarget("cuda", int(name[3:]), 32) if name.startswith("sm_") else GPUTarget("hip", name, 64)

        def __init__(self):
            self.utils = Utils()

        @classmethod
        def is_active(cls):
            return True

        def launcher_cls(self, source, metadata):
            return lambda *args: None

        def map_python_to_cpp_type(self, kind):
            return kind

        def get_current_target(self):
            return self.target

        def get_current_device(self):
            return name  # Triton keeps kernels by device

        def get_current_stream(self, device):
            return 0

        def get_active_torch_device(self):
            return torch.device("meta")

        def get_benchmarker(self):
            raise NotImplementedError

    def remember(module, function, kernel, group, digest):
        files.update({path.rsplit(".", 1)[-1]: pathlib.Path(path) for path in group.values()})

    triton.knobs.runtime.kernel_load_start_hook = remember
    driver = Driver()
    launch._facts.cache_clear()
    triton.runtime.driver.set_active(driver)
    return driver


def _describe(cubin: bytes | None, amdgcn: str | None, shared: int, limit: int) -> str:
    registers, spills, scalar = (*_nvidia(cubin), 0) if amdgcn is None else _amd(amdgcn)
    spilled = f" SPILLS {spills}" if spills > PAIR else f" + {spills or scalar}" if spills or scalar else ""
    return f"{registers} / {shared}{spilled}" + (" DOES NOT FIT" if shared > limit else "")


def _nvidia(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of local memory, of a cubin."""
    import triton

    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{word}:(\d+)", text)[1]) for word in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def _amd(amdgcn: str) -> tuple[int, int, int]:
    """Vector registers, bytes of scratch, and scalar registers that are kept in vector registers, from the metadata."""
    words = ("vgpr_count", "private_segment_fixed_size", "sgpr_spill_count")
    registers, scratch, scalar = (int(re.search(rf"\.{word}:\s*(\d+)", amdgcn)[1]) for word in words)
    return registers, scratch, scalar


def _gathers_on_amd() -> bool:
    """Triton 3.7's compiler stops at the tl.gather of activation_dropout."""
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)


def compile_for_all(words: list[str], sample: bool) -> dict[str, dict[str, str]]:
    """The table's columns, two targets at a time, those that take longest first."""
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        targets = [name for name in TARGETS if name != "gfx942" or _gathers_on_amd()]
        order = SAMPLE if sample else dict.fromkeys(("sm_90", "sm_100", *targets))
        jobs = {name: pool.submit(compile_all, name, words, sample) for name in order}
        return {name: jobs[name].result() if name in jobs else {} for name in TARGETS}


def table(columns: dict[str, dict[str, str]]) -> str:
    kernels = dict.fromkeys(kernel for column in columns.values() for kernel in column)
    lines = [["kernel", *TARGETS], ["---"] * (1 + len(TARGETS))]
    lines += [[kernel, *(column.get(kernel, "-") for column in columns.values())] for kernel in kernels]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def is_fresh(columns: dict[str, dict[str, str]], text: str) -> bool:
    """Whether a table has what was compiled."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    written = {(row[0], target): value for row in rows for target, value in zip(TARGETS, row[1:], strict=True)}
    return all(written.get((kernel, target)) == value for target, column in columns.items() for kernel, value in column.items())


def main() -> None:
    import triton

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--sample", action="store_true", help=f"one of each strategy and cell, for {' and '.join(SAMPLE)}")
    parser.add_argument("words", nargs="*", metavar="WORD", help="only kernels with these words in their names")
    options = parser.parse_args()
    columns = compile_for_all(options.words, options.sample)
    rows, head = table(columns), HEAD.format(version=triton.__version__, fingerprint=fingerprint(sources()))
    bad = [line for line in rows.splitlines() if "SPILLS" in line or "DOES NOT FIT" in line]
    if options.words:
        print(rows)
    if bad:
        sys.exit("\n".join(["a kernel spills or does not fit:", *bad]))
    if options.words:
        return
    if options.write:
        TABLE.write_text(head + rows)
    elif f"Triton {triton.__version__} " not in TABLE.read_text():
        print("all kernels fit, none spills; the table is another Triton's")
    elif not is_fresh(columns, TABLE.read_text()) or not (options.sample or TABLE.read_text() == head + rows):
        sys.exit(f"{TABLE.name} is stale: run python -m tests.kernels.resources --write\n{rows}")


if __name__ == "__main__":
    main()

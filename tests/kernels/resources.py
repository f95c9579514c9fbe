"""Compile every kernel for every GPU we promise, without having one, and keep kernels/RESOURCES.md.

    python -m tests.kernels.resources [WORD ...]   fail where a kernel spills or does not fit, or the table is stale
    python -m tests.kernels.resources --write      write the table

The kernels are those of `launches`, and `resident` and `cooperative`, whose tiles depend on the device, at more sizes.
Triton's cache makes the second time cheap.
"""

import argparse
import concurrent.futures
import multiprocessing
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from rnndrop.cell import CELLS
from rnndrop.kernels import plan
from rnndrop.kernels.launch import Device
from rnndrop.kernels.plan import BOTH_DIRECTIONS, Extras

from .launches import LAUNCHES, gated_sequence, sequence

TABLE = pathlib.Path(__file__).parents[2] / "kernels" / "RESOURCES.md"

# Shared memory that one block may have, and multiprocessors: A100, RTX 3090, RTX 4090, H100, B200, RTX 5090, MI300X.
TARGETS = {
    "sm_80": (166912, 108),
    "sm_86": (101376, 82),
    "sm_89": (101376, 128),
    "sm_90": (232448, 132),
    "sm_100": (232448, 148),
    "sm_120": (101376, 170),
    "gfx942": (65536, 304),
}

# Of the shapes with padding the ones with the most registers, padded to whole vector accesses (101, 250) and not (100).
# fp16, which is like bf16, not at every size.
KINDS = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SIZES = {
    "resident": {
        64: ("fp32", "tf32", "bf16"),
        100: ("fp32",),
        101: ("fp32", "bf16"),
        128: tuple(KINDS),
        250: ("fp16", "bf16"),
        256: ("fp16", "bf16"),
    },
    "cooperative": {
        101: ("fp32",),
        250: ("fp32", "bf16"),
        512: ("fp32", "tf32", "bf16"),
        1001: ("tf32", "bf16"),
        1024: tuple(KINDS),
        2048: ("fp32", "tf32", "bf16"),
    },
}

GATED = ("LSTM", "GRU")
GATED_SIZES = {
    "resident": {32: ("fp32",), 64: ("tf32",), 101: ("bf16",), 128: ("bf16",)},
    "cooperative": {512: ("fp32", "tf32"), 1024: ("bf16",)},
}
QUICK = ("sm_90",)  # targets of the gated kernels in a test, which would take twenty minutes for all

PAIR = 8  # bytes that may be spilled: ptxas gives up two registers to fit one program more on a multiprocessor


class Variant(NamedTuple):
    """What a layer has besides its shape."""

    kinds: tuple[str, ...] = ("hidden",)  # of masks
    packed: bool = False
    directions: int = 1

    @property
    def extras(self) -> Extras:
        return Extras(self.kinds, self.packed, self.directions)


BOTH = ("hidden", "recurrent")
VARIANTS = {
    "": Variant(),
    ", both masks": Variant(BOTH),
    ", all masks": Variant((*BOTH, "zoneout")),
    ", packed": Variant(BOTH, packed=True),
    ", both directions": Variant(BOTH, directions=2),
}
SCARCE = {(128, "fp32"), (250, "bf16"), (256, "bf16"), (1024, "fp32"), (1024, "bf16")}

HEAD = """# What the kernels take of a multiprocessor

Registers a thread / bytes of shared memory a block, as compiled for each device; a thread may have 255 registers, on
gfx942 512. No kernel spills or has a stack, but for "+ n": at most 8 bytes, two registers that the assembler gives up though
there are more, to fit one program more on a multiprocessor; on gfx942, n scalar registers kept in vector registers, not in
memory. A dash: the plan refuses that shape there, and another strategy runs it.
Triton {version} only, others compile to other numbers; written by `python -m tests.kernels.resources --write`.

"""


def shapes() -> Iterator[tuple[str, int, str]]:
    """Strategy, H and kind of number of the kernels whose tiles depend on the device."""
    for strategy, sizes in SIZES.items():
        for H, kinds in sizes.items():
            for kind in kinds:
                yield strategy, H, kind


def gated_shapes() -> Iterator[tuple[str, str, int, str]]:
    """Strategy, cell, H and kind of number."""
    for strategy, sizes in GATED_SIZES.items():
        for cell in GATED:
            for H, kinds in sizes.items():
                for kind in kinds:
                    yield strategy, cell, H, kind


def gated_variants(cell: str, H: int) -> dict[str, Variant]:
    """With every kind of mask, or as many as run, where registers are scarce."""
    if H not in (128, 1024):
        return {"": Variant()}
    every = CELLS[cell].kinds
    zoneouts = tuple(kind for kind in every if "zoneout" in kind)
    return {
        "": Variant(),
        ", four masks": Variant((*BOTH, *zoneouts) if cell == "LSTM" else every),
        ", all masks": Variant(every),
        ", packed": Variant(BOTH, packed=True),
    }


def refusal(strategy: str, H: int, kind: str, device: Device, variant: Variant = VARIANTS[""], cell: str = "RNN_TANH") -> str:
    """Why a strategy cannot run, or ""."""
    if variant.directions == 2 and strategy not in BOTH_DIRECTIONS:
        return "it takes one direction after the other"
    return plan.refusal(strategy, H, 16, KINDS[kind], device, tf32=kind == "tf32", cell=cell, extras=variant.extras)


def refused(device: Device) -> list[str]:
    """The shapes that do not run on the device."""
    return [f"{strategy} H={H} {kind}" for strategy, H, kind in shapes() if refusal(strategy, H, kind, device)]


def cases(device: Device, gated: bool = True) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and launch of each kernel that runs on the device; with more masks too where registers are scarce. `gated`: those of
    a GRU and an LSTM too."""
    for launch in LAUNCHES:
        skipped = launch.strategy in SIZES or (not gated and any(cell in launch.name for cell in GATED))
        for dtype in () if skipped else launch.dtypes:
            yield f"{launch.name} {str(dtype)[6:]}", lambda run=launch.run, T=launch.sizes[1], d=dtype: run(T, d, "meta")
    for strategy, H, kind in shapes():
        for words in VARIANTS if (H, kind) in SCARCE else ("",):
            variant = VARIANTS[words]
            if refusal(strategy, H, kind, device, variant):
                continue
            for direction, run in sequence(strategy, H, tf32=kind == "tf32", **variant._asdict()).items():
                name = f"{strategy} {direction} H={H} {kind}{words}"
                yield name, lambda run=run, dtype=KINDS[kind]: run(4, dtype, "meta")
    for strategy, cell, H, kind in gated_shapes() if gated else ():
        for words, variant in gated_variants(cell, H).items():
            if refusal(strategy, H, kind, device, variant, cell):
                continue
            options = {"tf32": kind == "tf32", "kinds": variant.kinds, "packed": variant.packed}
            for direction, run in gated_sequence(strategy, cell, H, **options).items():
                name = f"{strategy} {cell} {direction} H={H} {kind}{words}"
                yield name, lambda run=run, dtype=KINDS[kind]: run(4, dtype, "meta")


def compile_all(name: str, words: list[str], gated: bool) -> dict[str, str]:
    """The table's column of one target: kernel -> registers / shared memory."""
    from rnndrop.kernels import launch

    warnings.simplefilter("ignore")
    driver = install(name)
    column = {}
    for kernel, run in cases(launch.device_of(torch.device("meta")), gated):
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


def compile_for_all(words: list[str], quick: bool) -> dict[str, dict[str, str]]:
    """The table's columns, two targets at a time, those that take longest first."""
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        targets = [name for name in TARGETS if name != "gfx942" or _gathers_on_amd()]
        order = dict.fromkeys((*QUICK, "sm_100", *targets))
        jobs = {name: pool.submit(compile_all, name, words, not quick or name in QUICK) for name in order}
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
    parser.add_argument("--quick", action="store_true", help=f"kernels of a GRU and an LSTM only for {' and '.join(QUICK)}")
    parser.add_argument("words", nargs="*", metavar="WORD", help="only kernels with these words in their names")
    options = parser.parse_args()
    columns = compile_for_all(options.words, options.quick)
    rows, head = table(columns), HEAD.format(version=triton.__version__)
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
    elif not is_fresh(columns, TABLE.read_text()) or not (options.quick or TABLE.read_text() == head + rows):
        sys.exit(f"{TABLE.name} is stale: run python -m tests.kernels.resources --write\n{rows}")


if __name__ == "__main__":
    main()

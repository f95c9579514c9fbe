"""Compile every kernel for every GPU we promise, without having one, and keep kernels/RESOURCES.md.

    python -m benchmarks.resources [WORD ...]   fail where a kernel spills or does not fit, or the table is not what comes out
    python -m benchmarks.resources --write      write the table

The kernels are the launches of benchmarks.launches, and for `resident` and `cooperative`, whose tiles depend on the device,
their compile_cases(properties, backend): tuples of name, kernel, signature, constexprs, num_warps and num_stages.
Triton's cache makes the second time cheap.
"""

import argparse
import concurrent.futures
import importlib
import multiprocessing
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings

import torch

from .launches import LAUNCHES

TABLE = pathlib.Path(__file__).parent.parent / "kernels" / "RESOURCES.md"
WITH_CASES = ("resident", "cooperative")

# Shared memory that one block may have, and multiprocessors: A100, RTX 3090, RTX 4090, H100, B200, MI300X.
TARGETS = {
    "sm_80": (166912, 108), "sm_86": (101376, 82), "sm_89": (101376, 128), "sm_90": (232448, 132),
    "sm_100": (232448, 148), "gfx942": (65536, 304),
}

HEAD = """# What the kernels take of a multiprocessor

Registers a thread / bytes of shared memory a block, as compiled for each device; a thread may have 255 registers, on
gfx942 512. No kernel spills or has a stack. A dash: `plan` refuses that shape there, and another strategy runs it.
Triton {version} only, others compile to other numbers; written by `python -m benchmarks.resources --write`.

"""


def compile_all(name: str, words: list[str]) -> dict[str, str]:
    """The table's column of one target: kernel -> registers / shared memory."""
    warnings.simplefilter("ignore")
    driver = _install(name)
    column = {}
    for launch in LAUNCHES:
        for dtype in () if launch.strategy in WITH_CASES else launch.dtypes:
            kernel = f"{launch.name} {str(dtype)[6:]}"
            if all(word in kernel for word in words):
                driver.utils.loaded.clear()
                launch.run(launch.sizes[1], dtype, "meta")
                column[kernel] = " + ".join(driver.utils.loaded)
    for strategy in WITH_CASES:
        module = importlib.import_module(f"rnndrop.kernels.{strategy}")
        for kernel, *case in module.compile_cases(driver.properties, driver.target.backend):
            if all(word in kernel for word in words):
                column[kernel] = _compile(driver, *case)
    return column


def _compile(driver, kernel, signature, constexprs, num_warps, num_stages) -> str:
    """Compile as for tensors that torch allocated: their addresses are multiples of 16."""
    import triton
    from triton.compiler import ASTSource

    attrs = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(kernel, signature, constexprs, attrs)
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=driver.target, options=options)
    shared, limit = compiled.metadata.shared, driver.properties["max_shared_mem"]
    return _describe(compiled.asm.get("cubin"), compiled.asm.get("amdgcn"), shared, limit)


def _install(name: str):
    """Make Triton compile for the target and load and launch nothing."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

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
            self.properties = properties
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
            return name             # Triton keeps kernels by device

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
    triton.runtime.driver.set_active(driver)
    return driver


def _describe(cubin: bytes | None, amdgcn: str | None, shared: int, limit: int) -> str:
    registers, spills = _nvidia(cubin) if amdgcn is None else _amd(amdgcn)
    return f"{registers} / {shared}" + (f" SPILLS {spills}" if spills else "") + (" DOES NOT FIT" if shared > limit else "")


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


def _amd(amdgcn: str) -> tuple[int, int]:
    """Vector registers, and bytes of scratch plus spilled registers, from the assembly's metadata."""
    words = ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
    registers, *spills = (int(re.search(rf"\.{word}:\s*(\d+)", amdgcn)[1]) for word in words)
    return registers, sum(spills)


def _gathers_on_amd() -> bool:
    """Triton 3.7's compiler stops at the tl.gather of tanh_dropout."""
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)


def table(words: list[str]) -> str:
    """The whole table, two targets at a time, those that take longest first."""
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        targets = [name for name in TARGETS if name != "gfx942" or _gathers_on_amd()]
        jobs = {name: pool.submit(compile_all, name, words) for name in dict.fromkeys(("sm_100", "sm_90", *targets))}
        columns = [jobs[name].result() if name in jobs else {} for name in TARGETS]
    kernels = dict.fromkeys(kernel for column in columns for kernel in column)
    lines = [["kernel", *TARGETS], ["---"] * (1 + len(TARGETS))]
    lines += [[kernel, *(column.get(kernel, "-") for column in columns)] for kernel in kernels]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    import triton

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("words", nargs="*", metavar="WORD", help="only kernels with these words in their names")
    options = parser.parse_args()
    rows = table(options.words)
    text = HEAD.format(version=triton.__version__) + rows
    bad = [line for line in rows.splitlines() if "SPILLS" in line or "DOES NOT FIT" in line]
    if options.words:
        print(rows)
    if bad:
        sys.exit("\n".join(["a kernel spills or does not fit:", *bad]))
    if options.words:
        return
    if options.write:
        TABLE.write_text(text)
    elif f"Triton {triton.__version__} " not in TABLE.read_text():
        print("all kernels fit, none spills; the table is another Triton's")
    elif TABLE.read_text() != text:
        sys.exit(f"{TABLE.name} is stale: run python -m benchmarks.resources --write\n{rows}")


if __name__ == "__main__":
    main()

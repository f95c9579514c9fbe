"""What each kernel costs, counted by a module that runs compiled kernels without a GPU.

    python -m tests.kernels.costs --driver MODULE [--write] [words of the kernels' names]

The module has install(profile=True) and a list `log`, whose records have a name, num_warps, a grid, opcodes and the
counters of one launch: instructions (of a block), global.load.bytes and so on. --write keeps the table in kernels/COSTS.md.
"""

import argparse
import collections
import importlib
import math
import pathlib
import warnings
from types import ModuleType

import torch

from .launches import LAUNCHES, Launch

TABLE = pathlib.Path(__file__).parents[2] / "kernels" / "COSTS.md"
COLUMNS = {
    "instructions": "instructions",
    "barriers": "barriers",
    "grid barriers": "grid barriers",
    "conflicts": "shared.bank_conflicts",
    "read": "global.load.bytes",
    "sectors read": "global.load.sectors",
    "written": "global.store.bytes",
    "sectors written": "global.store.sectors",
}
OF_A_PROGRAM = ("instructions", "barriers", "grid barriers", "shared.bank_conflicts")
HEAD = """# What the kernels cost

Counted, not timed: compiled for sm_80 by Triton {version} and executed by a machine without a GPU; written by
`python -m tests.kernels.costs --driver MODULE --write`.

Pointwise kernels: per element, PTX instructions of all threads, at p = 0.25. Sequence kernels: per step of 16 rows, tanh,
hidden dropout per step, fp32 as tf32; instructions of a thread, barriers, grid barriers and bank conflicts of one
program, bytes and sectors of all. A byte that four threads of a warp read counts four times as read; its sector of 32
bytes counts once. "Read once" is what a launch reads whatever T: W_hh and the first step's numbers, which are loaded a step
ahead. "Launches" are those of a whole sequence, of {T} steps for resident, cooperative, stepwise; stepwise has a library
product a step besides, which nothing here counts. While a cooperative program waits it repeats a few instructions, barriers
and reads of 8 bytes; how often differs from run to run.

Before the next step's numbers were asked for ahead of the product (resident, 16 bit) and everything of a cooperative slice was
in the order of the product's result (commit ef488b1), bf16, forward and backward: resident took 130 and 165 instructions a step
at H = 128, 281 and 347 at H = 256; cooperative 8 and 10 barriers a step beside two a poll, where it takes 4 and 4 now.

"""


def counters(launch: Launch, size: int, dtype: torch.dtype, driver: ModuleType) -> collections.Counter:
    """The sum over the kernels that a launch of this size starts."""
    start, total = len(driver.log), collections.Counter()
    if size:
        launch.run(size, dtype, "cpu")
    for record in driver.log[start:]:
        counted = collections.Counter(record.counters) + collections.Counter(launches=1)
        counted["grid barriers"] = sum(n for name, n in record.opcodes.items() if "release" in name)
        if launch.unit == "step":
            programs = math.prod(record.grid)
            counted.update({key: counted[key] / programs - counted[key] for key in OF_A_PROGRAM})
        else:
            counted["instructions"] *= 32 * record.num_warps
        total.update(counted)
    return total


def cost(launch: Launch, dtype: torch.dtype, driver: ModuleType) -> dict[str, float]:
    """Counts per unit, from the difference of two sizes, and what does not grow with the size."""
    sizes = launch.sizes
    small, large = (counters(launch, size, dtype, driver) for size in sizes)
    row = {column: (large[key] - small[key]) / ((sizes[1] - sizes[0]) * launch.units) for column, key in COLUMNS.items()}
    once = large["global.load.bytes"] - row["read"] * sizes[1] * launch.units
    return row | {"read once": once, "launches": large["launches"]}


def table(words: list[str], driver: ModuleType) -> str:
    columns = [*COLUMNS, "read once", "launches"]
    lines = [["kernel", "dtype", "per", *columns], ["---"] * 3 + ["--:"] * len(columns)]
    for launch in LAUNCHES:
        if all(word in launch.name for word in words):
            for dtype in launch.dtypes:
                row = cost(launch, dtype, driver).values()
                lines.append([launch.name, str(dtype)[6:], launch.unit, *map(_short, row)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def main() -> None:
    import triton

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", required=True, metavar="MODULE")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    driver = importlib.import_module(options.driver)
    driver.install(profile=True)
    rows = table(options.words, driver)
    print(rows)
    if options.write:
        steps = ", ".join(str(n) for n in {x.strategy: x.sizes[1] for x in LAUNCHES if x.strategy}.values())
        TABLE.write_text(HEAD.format(version=triton.__version__, T=steps) + rows)


if __name__ == "__main__":
    main()

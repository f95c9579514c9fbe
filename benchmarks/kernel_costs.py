"""What each kernel costs, counted by a module that runs compiled kernels without a GPU.

    python -m benchmarks.kernel_costs --driver MODULE [words of the kernels' names]

The module has install(profile=True) and a list `log`, whose records have a num_warps and the counters of one
launch: instructions (of a block), global.load.bytes and so on. Instructions per step are those of one block; otherwise
they are those of all threads.
"""

import argparse
import collections
import importlib
import warnings
from types import ModuleType

import torch

from .launches import LAUNCHES, Launch

COLUMNS = {
    "instructions": "instructions", "barriers": "barriers",
    "read": "global.load.bytes", "written": "global.store.bytes",
    "sectors read": "global.load.sectors", "sectors written": "global.store.sectors",
    "conflicts": "shared.bank_conflicts",
}


def counters(launch: Launch, size: int, dtype: torch.dtype, driver: ModuleType) -> collections.Counter:
    """The sum over the kernels that a launch of this size starts."""
    start, total = len(driver.log), collections.Counter()
    if size:
        launch.run(size, dtype, "cpu")
    for record in driver.log[start:]:
        threads = 1 if launch.unit == "step" else 32 * record.num_warps
        total.update({k: v * threads if k == "instructions" else v for k, v in record.counters.items()})
    return total


def cost(launch: Launch, dtype: torch.dtype, driver: ModuleType) -> dict[str, float]:
    """Counts per unit, from the difference of two sizes."""
    small, large = (counters(launch, size, dtype, driver) for size in launch.sizes)
    units = (launch.sizes[1] - launch.sizes[0]) * launch.units
    return {column: (large[key] - small[key]) / units for column, key in COLUMNS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", required=True, metavar="MODULE")
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    driver = importlib.import_module(options.driver)
    driver.install(profile=True)

    print(f"{'kernel':28}{'dtype':10}{'per':9}" + "".join(f"{c:>16}" for c in COLUMNS))
    for launch in LAUNCHES:
        if all(word in launch.name for word in options.words):
            for dtype in launch.dtypes:
                row = cost(launch, dtype, driver).values()
                print(f"{launch.name:28}{str(dtype)[6:]:10}{launch.unit:9}" + "".join(f"{v:16.4g}" for v in row))


if __name__ == "__main__":
    main()

"""The kernels under other versions of Triton, each in an environment of its own: writes kernels/VERSIONS.md. Run by hand.

    python -m tests.kernels.versions [--environments DIR] [VERSION ...]     print the table
    python -m tests.kernels.versions --write                                and keep it

An environment has that Triton and, where its interpreter needs one, an older NumPy; everything else comes from the
environment of the Python that runs this.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import site
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).parents[2]
TABLE = ROOT / "kernels" / "VERSIONS.md"
VERSIONS = ["3.4.0", "3.6.0", "3.7.1", "3.9.0"]
TARGETS = ["sm_80", "sm_86", "sm_90"]

# Every kernel, in the tests that take a few seconds; what they leave out are more shapes, planted mistakes and strides.
TESTS = [
    "activation",
    "activation_dropout",
    "apply_mask",
    "cell",
    "gated_cell",
    "gates",
    "launch",
    "mask_bits",
    "packed_mask",
    "philox",
    "plan",
    "tile_layout",
]
SEQUENCES = "test_against_float64 and (resident or stepwise or cooperative) or not_a_number"

HEAD = """# The kernels under versions of Triton

Interpreted: tests of `tests/kernels`, a part of them that has every kernel. Compiled: every kernel of RESOURCES.md for
{targets}. Bad: those that spill or need more shared memory than a block may have. Refused: the shapes of RESOURCES.md that the
plan does not run there, and another strategy does. Written by `python -m tests.kernels.versions --write`.

| Triton | NumPy | interpreted | compiled | bad | refused |
| --- | --- | --- | --: | --- | --- |
"""

COMPILE = """if True:
    import sys
    import torch
    from rnndrop.kernels import launch
    from tests.kernels import cases, resources
    if __name__ == "__main__":
        for name in sys.argv[1:]:
            for kernel, text in resources.compile_all(name).items():
                print("KERNEL", name, kernel, "=", text)
            device = launch.device_of(torch.device("meta"))
            for case in cases.refused(device):
                print("REFUSED", name, case)
"""


def environment(version: str, folder: pathlib.Path) -> pathlib.Path:
    """The Python of an environment with that Triton, made if it is not there."""
    python = folder / version / "bin" / "python"
    if not python.exists():
        venv.create(folder / version, symlinks=True)
        (packages,) = (folder / version).glob("lib/python3*/site-packages")
        (packages / "everything_else.pth").write_text("\n".join(site.getsitepackages()))
        numpy = ["numpy<2.4"] if version < "3.7" else []
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages]
        subprocess.run([*install, f"triton=={version}", *numpy], check=True)
    return python


def run(python: pathlib.Path, *arguments: object) -> str:
    done = subprocess.run([python, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    return done.stdout + done.stderr


def row(version: str, folder: pathlib.Path) -> str:
    """A line of the table."""
    python = environment(version, folder)
    numpy = run(python, "-c", "import numpy; print(numpy.__version__)").strip()
    options = ["-q", "-p", "no:cacheprovider"]
    tests = run(python, "-m", "pytest", *options, *(f"tests/kernels/test_{name}.py" for name in TESTS))
    sequences = [f"tests/kernels/test_{name}.py" for name in ("resident", "cooperative", "stepwise", "gated_stepwise")]
    more = run(python, "-m", "pytest", *options, *sequences, "-k", SEQUENCES)
    counts = {
        word: sum(int(n) for text in (tests, more) for n in re.findall(rf"(\d+) {word}", text)) for word in ("passed", "failed")
    }
    compiled = run(python, "-c", COMPILE, *TARGETS)
    kernels = re.findall(r"KERNEL (\S+) (.+) = (.+)", compiled)
    if {name for name, _, _ in kernels} != set(TARGETS):
        sys.exit(f"Triton {version} does not compile:\n{compiled[-3000:]}")
    bad: dict[str, list[str]] = {}
    for target, kernel, text in kernels:
        if not re.fullmatch(r"[\d /+]+", text):
            bad.setdefault(kernel, []).append(f"{target} {text.split(maxsplit=3)[-1].lower()}")
    refused: dict[str, list[str]] = {}
    for target, shape in re.findall(r"REFUSED (\S+) (.+)", compiled):
        refused.setdefault(shape, []).append(target)
    cells = [
        version,
        numpy,
        ", ".join(f"{n} {word}" for word, n in counts.items()),
        str(len(kernels)),
        _listed(bad),
        _listed(refused),
    ]
    return f"| {' | '.join(cells)} |\n"


def _listed(where: dict[str, list[str]]) -> str:
    return "<br>".join(f"{what}: {', '.join(targets)}" for what, targets in where.items()) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--environments", type=pathlib.Path, default=ROOT / "build" / "versions", metavar="DIR")
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    options = parser.parse_args()
    text = HEAD.format(targets=", ".join(TARGETS))
    for version in options.versions:
        line = row(version, options.environments)
        print(line, flush=True)
        text += line
    if options.write:
        TABLE.write_text(text)


if __name__ == "__main__":
    main()

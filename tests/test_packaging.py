"""What is built, what is installed, and what an import needs."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import rnndrop

ROOT = Path(__file__).parent.parent
KERNELS = sorted(path.name for path in (ROOT / "kernels").glob("*.py"))


def run(*command, cwd, **environment):
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist of a copy of the repository; nothing is fetched."""
    source = tmp_path_factory.mktemp("source") / "rnndrop"
    unwanted = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "build", "dist", "*.egg-info", ".*_cache", "*_output")
    shutil.copytree(ROOT, source, symlinks=True, ignore=unwanted)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist", "--outdir", out, cwd=source)
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    target = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, built["wheel"], cwd=target)
    return target


def python(code, installed):
    """Output of some code that imports the installed package, not this checkout."""
    code = f"import rnndrop\nassert rnndrop.__file__.startswith({str(installed)!r}), rnndrop.__file__\n" + code
    return run(sys.executable, "-c", code, cwd=installed.parent, PYTHONPATH=str(installed)).strip()


def test_a_package_index_takes_both(built):
    assert run(sys.executable, "-m", "twine", "check", "--strict", *built.values(), cwd=ROOT).count("PASSED") == 2


def test_the_wheel(built):
    names = zipfile.ZipFile(built["wheel"]).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"rnndrop"}, "no top-level kernels, no tests"
    python = (path.relative_to(ROOT) for path in (ROOT / "rnndrop").rglob("*.py"))
    modules = [str(path) for path in python if path.parts[1] != "kernels"]
    assert {*modules, "rnndrop/py.typed", *(f"rnndrop/kernels/{name}" for name in KERNELS)} <= set(names)
    assert len(names) == len(set(names)) and not [name for name in names if "__pycache__" in name]
    metadata = next(name for name in names if name.endswith("/METADATA"))
    lines = zipfile.ZipFile(built["wheel"]).read(metadata).decode().splitlines()
    assert "Name: rnndrop" in lines and f"Version: {rnndrop.__version__}" in lines
    needs = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert {need.split()[1].split(">")[0] for need in needs} == {"torch", "numpy", "typing-extensions"}


def test_the_sdist_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(built["sdist"]) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
        archive.extractall(tmp_path, filter="data")
    expected = {"setup.py", "pyproject.toml", "rnndrop/py.typed", "kernels/__init__.py", "examples/sine.py"}
    assert expected | {"tests/test_packaging.py", "tests/recorded/results.npz", "docs/conf.py", "CITATION.cff"} <= set(names)
    (source,) = tmp_path.iterdir()
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert sorted(zipfile.ZipFile(wheel).namelist()) == sorted(zipfile.ZipFile(built["wheel"]).namelist())


def test_the_installed_package_runs(installed):
    code = """
import torch
rnn = rnndrop.RNN(3, 5, hidden_dropout=0.5)
rnn(torch.zeros(4, 2, 3), seed=1)[0].sum().backward()
print(rnndrop.__version__, rnn)
"""
    assert python(code, installed) == f"{rnndrop.__version__} RNN(3, 5, hidden_dropout=0.5)"


BLOCK = """
import sys
for name in ("triton", "matplotlib", "tqdm"):
    sys.modules[name] = None
"""


def test_it_runs_without_triton_and_matplotlib(installed):
    code = """
import torch
assert sys.modules["triton"] is None and sys.modules["matplotlib"] is None
rnn = rnndrop.RNN(3, 5, hidden_dropout=0.5)
rnn(torch.zeros(4, 2, 3), seed=1)[0].sum().backward()
rnndrop.functional.tanh_dropout(torch.zeros(3, 5))
print(all(p.grad is not None for p in rnn.parameters()))
"""
    output = run(sys.executable, "-c", BLOCK + "import rnndrop" + code, cwd=installed.parent, PYTHONPATH=str(installed))
    assert output.strip() == "True"


def test_the_import_leaves_triton_and_matplotlib_alone(installed):
    """torch itself may import Triton; this package adds nothing that a bare torch has not got."""
    code = "import sys, torch; before = set(sys.modules); import rnndrop; print(sorted(set(sys.modules) - before))"
    added = run(sys.executable, "-c", code, cwd=installed.parent, PYTHONPATH=str(installed))
    assert "'rnndrop.modules.rnn'" in added
    for name in ("triton", "matplotlib", "tqdm", "rnndrop.backends.triton", "rnndrop.demo"):
        assert f"'{name}'" not in added


def test_the_help_of_the_module(installed):
    output = run(sys.executable, "-m", "rnndrop", "--help", cwd=installed.parent, PYTHONPATH=str(installed))
    assert "usage" in output.lower() and "demo" in output


def test_the_demo_says_what_it_lacks(installed):
    """Without matplotlib the demo ends with a message that names the extra to install."""
    code = BLOCK + "import runpy; sys.argv = ['rnndrop', 'demo']; runpy.run_module('rnndrop', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=installed.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(installed)},
        timeout=60,
    )
    assert done.returncode != 0
    assert "rnndrop[demo]" in done.stderr and "Traceback" not in done.stderr


def test_kernels_are_a_package_of_ours_alone():
    """The folder in the repository can be imported as rnndrop.kernels, not as the other package of its name."""
    assert (ROOT / "rnndrop/kernels").resolve() == ROOT / "kernels"
    spec = importlib.util.spec_from_file_location("kernels", ROOT / "kernels/__init__.py")
    with pytest.raises(ImportError, match=r"rnndrop\.kernels"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


LEVELS = [  # a module imports from those above it in this list, and from its own folder
    ["kinds", "cell", "autocast", "replicated"],
    ["mask"],
    ["steps", "dropouts", "checks"],
    ["reference"],
    ["backends", "one_step"],
    ["dispatch"],
    ["ops"],
    ["layer"],
    ["functional"],
    ["modules"],
    ["explain", "monte_carlo", "demo"],
    ["__main__"],
]


def relative_imports(path):
    """The modules of the package, dotted, that a file of it imports."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Import) or not [a for a in node.names if a.name.startswith("rnndrop")], path
        if isinstance(node, ast.ImportFrom):
            assert node.level or not node.module.startswith("rnndrop"), path
            if node.level:
                base = [*parts[: len(parts) - node.level], *(node.module.split(".") if node.module else [])]
                yield from [".".join(base)] if node.module else [".".join([*base, alias.name]) for alias in node.names]


def test_imports_point_one_way():
    """Modules, functional, layer, operators, dispatch, backends, kernels; siblings at one level do not import each other."""
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    for path in sorted((ROOT / "rnndrop").rglob("*.py")):
        parts = path.relative_to(ROOT / "rnndrop").with_suffix("").parts
        if parts[0] in ("__init__", "kernels"):
            continue
        for module in relative_imports(path):
            name = module.split(".")[1]
            allowed = name == parts[0] or name in ("kernels", "__version__") or level.get(name, 99) < level[parts[0]]
            allowed |= parts[0] in ("demo", "__main__") and name in ("RNN", "dropout_mask")
            assert allowed, f"{'/'.join(parts)} imports {module}"


def test_backends_do_not_import_each_other():
    for path in (ROOT / "rnndrop/backends").rglob("*.py"):
        own = path.relative_to(ROOT / "rnndrop/backends").with_suffix("").parts[0]
        others = {module.split(".")[2] for module in relative_imports(path) if module.startswith("rnndrop.backends.")}
        assert others <= {own, "base", "loop"} if own == "cpu" else others <= {"base"}, path


def test_kernels_import_nothing_from_above():
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2 and not (node.module or "").startswith("rnndrop"), path.name


def test_no_file_of_tests_is_long():
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py")}
    assert not {path: length for path, length in lengths.items() if length > 400}

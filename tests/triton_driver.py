"""Where kernel tests run: on a GPU, on a module that stands in for one, or in Triton's interpreter.

pytest                              a GPU if there is one, the interpreter otherwise
pytest --triton-driver MODULE       import MODULE and call its install(), which makes launches take CPU tensors
"""

import importlib
import os
import sys

import pytest
import torch

_backend = "interpreter"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("triton")
    group.addoption("--triton-driver", metavar="MODULE", help="import this module and call its install()")
    group.addoption("--triton-driver-seed", metavar="N", type=int, help="pass seed=N to install()")


def pytest_configure(config: pytest.Config) -> None:
    use(config.getoption("--triton-driver"), config.getoption("--triton-driver-seed"))


def use(module: str | None, seed: int | None = None) -> None:
    """Choose the backend; before Triton compiles or interprets its first kernel."""
    global _backend
    if module is not None:
        _backend = module
        options = {} if seed is None else {"seed": seed}
        importlib.import_module(module).install(**options)
    elif torch.cuda.is_available():
        _backend = "cuda"
    elif "triton" not in sys.modules or "TRITON_INTERPRET" in os.environ:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        raise RuntimeError("triton was imported before the interpreter was asked for; import it inside tests only")


def backend() -> str:
    """ "interpreter", "cuda" or the module that --triton-driver named."""
    return _backend


def device() -> str:
    return "cuda" if _backend == "cuda" else "cpu"

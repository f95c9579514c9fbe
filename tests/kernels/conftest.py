import importlib.util

import numpy as np
import pytest

from tests import triton_driver

if importlib.util.find_spec("triton") is None:  # not imported here: the backend is chosen first
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def quiet_numpy():
    """The interpreter computes with NumPy, which would warn of every overflow."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(scope="session")
def device() -> str:
    """The device whose tensors the kernels take here."""
    return triton_driver.device()

"""What version 0.1 gave, before the package was restructured, is what it gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.recorded import record
from tests.tolerances import SEQUENCE

BEFORE = np.load(Path(record.__file__).with_name("version_0_1.npz"))
NAMES = [name for name in BEFORE.files if name != "machine"]


@pytest.fixture(scope="module")
def now():
    return record.results()


def test_the_recorded_cases_are_those_of_today(now):
    assert sorted(now) == sorted(NAMES) and len(NAMES) > 150


@pytest.mark.parametrize("name", NAMES)
def test_equals_what_was_recorded(now, name):
    """The dropped are the same; the values to the last bit where the same machine computes them in the same way."""
    before, after = BEFORE[name], now[name]
    assert after.dtype == before.dtype and after.shape == before.shape
    assert np.array_equal(after == 0, before == 0)
    # A cell was an in-place loop of one step, and is a few PyTorch operations.
    if str(BEFORE["machine"]) == record.machine() and not name.endswith("cell"):
        assert np.array_equal(after, before)
    bound = SEQUENCE[torch.from_numpy(after).dtype]
    np.testing.assert_allclose(after, before, rtol=0, atol=bound * np.abs(before).max())

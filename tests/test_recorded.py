"""What was recorded is what comes out, to the last bit: what version 0.1 gave, before the package was restructured.

Two kinds of cases were recorded again since, whose last bits changed on purpose: those with recurrent dropout, whose gradient
of W_hh is summed in another order, and cells, which are a few PyTorch operations now.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.recorded import record
from tests.tolerances import SEQUENCE

BEFORE = np.load(Path(record.__file__).with_name("results.npz"))
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
    if str(BEFORE["machine"]) == record.machine():
        assert np.array_equal(after, before)
    bound = SEQUENCE[torch.from_numpy(after).dtype]
    np.testing.assert_allclose(after, before, rtol=0, atol=bound * np.abs(before).max())

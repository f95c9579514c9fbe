"""What was recorded is what comes out: what version 0.1 gave, before the package was restructured."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.recorded import record
from tests.tolerances import SEQUENCE

BEFORE = np.load(Path(record.__file__).with_name("results.npz"))
NAMES = BEFORE.files


@pytest.fixture(scope="module")
def now():
    return record.results()


def test_the_recorded_cases_are_those_of_today(now):
    assert sorted(now) == sorted(NAMES) and len(NAMES) > 150


@pytest.mark.parametrize("name", NAMES)
def test_equals_what_was_recorded(now, name):
    """The dropped are the same; the values but for their last bits, which libraries and processors decide."""
    before, after = BEFORE[name], now[name]
    assert after.dtype == before.dtype and after.shape == before.shape
    assert np.array_equal(after == 0, before == 0)
    bound = SEQUENCE[torch.from_numpy(after).dtype]
    np.testing.assert_allclose(after, before, rtol=0, atol=bound * np.abs(before).max())

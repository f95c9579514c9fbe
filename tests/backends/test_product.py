"""x @ W by each of the libraries that a loop may take, and which it takes."""

import numpy as np
import pytest
import torch

from rnndrop.backends.cpu import product as products
from tests.tolerances import SEQUENCE

MAKERS = {
    "numpy": lambda weight, rows: products._of_numpy(weight),
    "torch": lambda weight, rows: products._of_torch(weight),
    "onednn": products._of_onednn,
}


@pytest.fixture(params=MAKERS)
def name(request):
    if request.param == "onednn" and not products._has_onednn():
        pytest.skip("PyTorch was built without oneDNN")
    return request.param


@pytest.mark.parametrize("weight_is", ["contiguous", "transposed"])
@pytest.mark.parametrize("where", ["in place", "apart", "in columns", "from one number"])
def test_adds_the_product(name, weight_is, where):
    weight = torch.randn(12, 20) if weight_is == "contiguous" else torch.randn(20, 12).t()
    add_product = MAKERS[name](weight, 7)
    for rows in (7, 3, 7):  # sequences end and begin
        x, plus, memory = np.random.randn(rows, 12).astype("f"), torch.randn(rows, 20), np.full((rows, 30), np.nan, "f")
        if where == "from one number":
            plus = torch.randn(()).expand(rows, 20)
        expected = plus.double() + torch.from_numpy(x).double() @ weight.double()
        out = memory[:, 5:25] if where == "in columns" else np.full((rows, 20), np.nan, "f")
        if where in ("in place", "in columns"):
            out[:] = plus.numpy()
        before = x.copy()
        add_product(x, plus.numpy() if where in ("apart", "from one number") else out, out)
        bound = SEQUENCE[torch.float32] * expected.abs().max()
        torch.testing.assert_close(torch.from_numpy(out).double(), expected, rtol=0, atol=bound)
        assert np.array_equal(x, before) and (where != "in columns" or np.isnan(memory[:, :5]).all())


@pytest.mark.parametrize(
    "rows, shape, steps, dtype, expected",
    [
        (1, (64, 256), 50, torch.float32, "_of_numpy"),
        (1, (64, 256), 50, torch.float64, "_of_numpy"),
        (20, (200, 800), 35, torch.float32, "_of_torch"),
        (128, (650, 2600), 35, torch.float32, "_of_onednn"),
        (128, (650, 2600), 35, torch.float64, "_of_torch"),
        (128, (650, 2600), 2, torch.float32, "_of_torch"),
        (64, (256, 1024), 128, torch.float32, "_of_torch"),
        (1, (64, 256), 50, torch.bfloat16, "_of_torch"),
    ],
)
def test_which_library_multiplies(monkeypatch, rows, shape, steps, dtype, expected):
    for maker in ("_of_numpy", "_of_torch", "_of_onednn"):
        monkeypatch.setattr(products, maker, lambda *_, maker=maker: maker)
    monkeypatch.setattr(products, "_has_onednn", lambda: True)
    assert products.product(torch.empty(shape, dtype=dtype), rows, steps) == expected
    monkeypatch.setattr(products, "_has_onednn", lambda: False)
    assert products.product(torch.empty(shape, dtype=dtype), rows, steps) == expected.replace("onednn", "torch")

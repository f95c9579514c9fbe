import numpy as np
import pytest
import torch

from rnndrop.kernels.activation_dropout import backward, forward
from tests import stream
from tests.helpers import seed_tensor

from . import checks

SHAPES = [(1, 1), (300, 1), (5, 16), (7, 33), (3, 100), (16, 64), (2, 1100)]
STRIDES = {
    "transposed": lambda x: x.t().contiguous().t(),
    "every second column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "every third row": lambda x: x.repeat_interleave(3, 0)[::3],
    "misaligned": lambda x: torch.cat([x[:, :1], x], 1)[:, 1:],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows, columns", SHAPES)
def test_against_float64(rows, columns, dtype, device):
    checks.against_float64(forward, backward, device, rows=rows, columns=columns, dtype=dtype)


@pytest.mark.parametrize("threshold", [0, 1, 6554, 58982, 65535, 65536])
def test_drop_rates(threshold, device):
    """0 keeps all; 65536 drops all, and then everything is 0, without a NaN."""
    checks.against_float64(forward, backward, device, threshold=threshold)


@pytest.mark.parametrize("stride", STRIDES.values(), ids=STRIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides(stride, dtype, device):
    checks.against_float64(forward, backward, device, dtype=dtype, stride=stride)


@pytest.mark.parametrize("threshold", [32767, 32768, 32769])
def test_thresholds_around_a_half(threshold, device):
    checks.against_float64(forward, backward, device, rows=40, columns=96, threshold=threshold)


def test_more_columns_than_65536(device):
    checks.against_float64(forward, backward, device, rows=2, columns=65536 + 40)


def test_same_mask_in_both(device):
    checks.same_mask_in_both(forward, backward, device)


def test_a_kept_zero_passes_the_gradient(device):
    x = torch.zeros(4, 32, device=device)
    rest = (seed_tensor(checks.SEED, device), 32768, 2.0, checks.STREAM)
    dx = backward(torch.ones_like(x), forward(x, *rest), *rest)
    assert torch.equal(dx.cpu(), stream.keep(checks.SEED, 4, 32, 32768, checks.STREAM) * 2.0)


def test_out_and_in_place(device):
    x = torch.randn(6, 20, device=device)
    rest = (seed_tensor(checks.SEED, device), 16384, 4 / 3, 5)
    y = forward(x, *rest)
    same = x.clone()
    assert forward(same, *rest, out=same) is same and torch.equal(same, y)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty(shape, device):
    x = torch.empty(shape, device=device)
    rest = (seed_tensor(checks.SEED, device), 16384, 4 / 3, 5)
    assert forward(x, *rest).shape == backward(x, x, *rest).shape == shape


@pytest.mark.parametrize("shape, stride", [((4, 20), (2**30, 1)), ((3, 20), (20, 2**27))], ids=["rows", "columns"])
def test_addresses_past_32_bits(shape, stride, device, tmp_path, monkeypatch):
    """A few elements spread over more than 2**31: nothing else of the span is touched."""
    elements = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    assert elements > 2**31

    def spread():
        if device == "cpu":
            file = np.memmap(tmp_path / str(len(list(tmp_path.iterdir()))), np.float16, "w+", shape=elements)
            return torch.from_numpy(file).as_strided(shape, stride)
        return torch.zeros(elements, dtype=torch.float16, device=device).as_strided(shape, stride)

    x, y, dx = spread(), spread(), spread()
    x.copy_(torch.randn(shape))
    rest = (seed_tensor(checks.SEED, device), 16384, 4 / 3, 5)
    forward(x, *rest, out=y)
    assert torch.equal(y, forward(x.contiguous(), *rest))
    expected = backward(x.contiguous(), y.contiguous(), *rest)
    monkeypatch.setattr(torch, "empty_like", lambda y: dx)  # where backward writes
    assert backward(x, y, *rest) is dx and torch.equal(dx, expected)

import pytest
import torch

from rnndrop.kernels.apply_mask import apply_mask
from rnndrop.kernels.launch import MaskBits
from tests import stream


def masked(x, mask_rows=None, threshold=20000, seed=3, device="cpu", **options):
    """apply_mask's result and the right one."""
    rows, columns = x.shape
    keep = stream.keep(seed, mask_rows or rows, columns, threshold, 0)
    scale = stream.scale_of(threshold)
    found = apply_mask(x, MaskBits(stream.pack(keep).to(device), scale), **options)
    keep = keep.repeat(-(-rows // len(keep)), 1)[:rows].to(device)
    return found, torch.where(keep, (x.float() * scale).to(x.dtype), torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows, columns", [(1, 1), (7, 33), (5, 300), (2000, 3), (3, 64)])
def test_keeps_and_scales(rows, columns, dtype, device):
    found, expected = masked(torch.randn(rows, columns).to(dtype).to(device), device=device)
    assert found.dtype == dtype
    bound = {} if dtype != torch.bfloat16 else {"rtol": 2**-7, "atol": 0}  # the interpreter truncates to bf16
    torch.testing.assert_close(found, expected, **bound)
    assert torch.equal(found == 0, expected == 0)


@pytest.mark.parametrize("mask_rows", [1, 3, 4, 11])
def test_rows_of_a_mask_per_sequence_repeat(mask_rows, device):
    found, expected = masked(torch.randn(12, 40, device=device), mask_rows, device=device)
    torch.testing.assert_close(found, expected)


def test_a_dropped_nan_is_0_and_a_kept_one_stays(device):
    x = torch.full((4, 40), float("nan"), device=device)
    found, _ = masked(x, threshold=32768, device=device)
    keep = stream.keep(3, 4, 40, 32768, 0)
    assert torch.equal(found.isnan().cpu(), keep) and (found.cpu()[~keep] == 0).all()


@pytest.mark.parametrize("threshold", [1, 65535, 65536])
def test_extreme_rates(threshold, device):
    found, expected = masked(torch.randn(4, 40, device=device), threshold=threshold, device=device)
    torch.testing.assert_close(found, expected)


def test_strides_and_out(device):
    """Rows of a wider tensor, an expanded row, transposed data; a result that goes into rows of a wider tensor."""
    wide = torch.randn(6, 100, device=device)
    for x in (wide[:, 7:47], wide[:1, :40].expand(6, -1), torch.randn(40, 6, device=device).t()):
        found, expected = masked(x, device=device)
        torch.testing.assert_close(found, expected)
    target = torch.zeros(6, 50, device=device)
    found, expected = masked(wide[:, :40], out=target[:, 5:45], device=device)
    assert torch.equal(target[:, 5:45], found) and not target[:, :5].any() and not target[:, 45:].any()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty(shape, device):
    x = torch.empty(shape, device=device)
    bits = torch.empty((shape[0], -(-shape[1] // 32)), dtype=torch.int32, device=device)
    assert apply_mask(x, MaskBits(bits, 2.0)).shape == shape

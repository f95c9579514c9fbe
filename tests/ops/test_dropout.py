import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from rnndrop.mask import Mask, packed, scale
from rnndrop.ops.dropout import dropout
from tests.helpers import assert_equal, keep

P, ROWS, COLUMNS = 0.4, 4, 33


def mask_of(form, rows=ROWS, columns=COLUMNS):
    in_bytes = -keep(3, rows, columns, P).to(torch.int8)
    return Mask(packed(in_bytes) if form == "bits" else in_bytes, scale(P))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.t().contiguous().t(), lambda x: x.repeat(2, 2)[::2, :COLUMNS]])
def test_it_is_the_product_with_the_mask(dtype, view):
    x = view(torch.randn(ROWS, COLUMNS)).to(dtype).requires_grad_()
    y = dropout(x, mask_of("bytes"))
    kept, wide = keep(3, ROWS, COLUMNS, P), torch.promote_types(dtype, torch.float32)
    factor = kept * torch.tensor(scale(P), dtype=wide)  # in 16 bits the product is rounded, not the scale
    assert_equal(y.detach(), (x.detach().to(wide) * factor).to(dtype))
    (grad,) = torch.autograd.grad(y, x, torch.full_like(y, 3.0))
    assert_equal(grad, (3 * factor).to(dtype))


def test_dropped_is_zero_whatever_is_there():
    for value in (float("nan"), float("inf")):
        x = torch.full((ROWS, COLUMNS), value, requires_grad=True)
        y = dropout(x, mask_of("bytes"))
        (grad,) = torch.autograd.grad(y, x, torch.full_like(y, value))
        kept = keep(3, ROWS, COLUMNS, P)
        for found in (y, grad):
            assert (found[~kept] == 0).all() and not found[kept].isfinite().any()


def test_gradcheck():
    x = torch.randn(ROWS, COLUMNS, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: dropout(x, mask_of("bytes")), x)
    assert gradgradcheck(lambda x: dropout(x, mask_of("bytes")), x)


def test_the_gradient_under_create_graph_is_the_plain_one():
    x = torch.randn(ROWS, COLUMNS, requires_grad=True)
    y, grad = dropout(x, mask_of("bytes")), torch.randn(ROWS, COLUMNS, requires_grad=True)
    (plain,) = torch.autograd.grad(y, x, grad, retain_graph=True)
    (again,) = torch.autograd.grad(y, x, grad, create_graph=True)
    assert_equal(again.detach(), plain)
    assert_equal(torch.autograd.grad(again.sum(), grad)[0], dropout(torch.ones_like(x), mask_of("bytes")).detach())


def test_bits_without_kernels(monkeypatch):
    """Where Triton is missing, masks made for kernels are unpacked."""
    from rnndrop import dispatch

    monkeypatch.setattr(dispatch, "kernels_unavailable", lambda: "no Triton")
    x = torch.randn(ROWS, COLUMNS)
    torch.testing.assert_close(dropout(x, mask_of("bits")), dropout(x, mask_of("bytes")))


@pytest.mark.parametrize("form", ["bytes", "bits"])
def test_no_digit_of_float64_is_lost(form):
    """No kernel computes in it."""
    x = torch.randn(ROWS, COLUMNS, dtype=torch.float64, requires_grad=True)
    y, kept = dropout(x, mask_of(form)), keep(3, ROWS, COLUMNS, P)
    assert_equal(y.detach(), x.detach() * kept * scale(P))
    grad = torch.randn_like(x)
    assert_equal(torch.autograd.grad(y, x, grad)[0], grad * kept * scale(P))


@pytest.mark.parametrize("scales", [(scale(P), None), (0.0, torch.tensor(scale(P), dtype=torch.float64))], ids=str)
def test_opcheck(scales):
    x = torch.randn(ROWS, COLUMNS, requires_grad=True)
    torch.library.opcheck(torch.ops.rnndrop.dropout.default, (x, mask_of("bytes").keep, *scales))

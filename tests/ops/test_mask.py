import pytest
import torch

from rnndrop import dispatch
from rnndrop.ops.mask import sequence_mask
from rnndrop.steps import Steps
from tests import stream
from tests.helpers import seed_tensor

SEED, P, STREAM = -7, 0.3, stream.stream_of("recurrent", 2, 1)
SIZES = [3, 3, 2, 1]


def drawn(columns, form, scope, sizes=None, order=None):
    steps = Steps(4, 3, None if sizes is None else torch.tensor(sizes))
    rows = steps.rows
    return sequence_mask(seed_tensor(SEED), columns, P, STREAM, form, scope, steps, order, rows)


def expected(columns, scope, sizes=None, order=None):
    """By definition, a row at a time: row t * B + b, or b, of the user's b."""
    order = [0, 1, 2] if order is None else order.tolist()
    steps = [(t, b) for t, size in enumerate(sizes or [3] * 4) for b in range(size)]
    places = {"step": steps, "sequence": [(0, b) for b in range(3)], "repeated": [(0, b) for _, b in steps]}[scope]
    rows = [stream.keep(SEED, 1, columns, stream.threshold_of(P), STREAM, t * 3 + order[b]) for t, b in places]
    return torch.cat(rows)


@pytest.fixture(params=["bytes", "bits"])
def form(request, monkeypatch):
    """Bits as the CPU packs them; those of the kernels have tests of their own."""
    monkeypatch.setattr(dispatch, "kernels_unavailable", lambda: "no Triton")
    return request.param


@pytest.mark.parametrize("scope", ["step", "sequence", "repeated"])
@pytest.mark.parametrize("sizes", [None, SIZES, [3] * 4], ids=str)
@pytest.mark.parametrize("order", [None, [2, 0, 1]], ids=str)
@pytest.mark.parametrize("columns", [1, 17, 32, 33])
def test_every_row_is_that_of_the_users_sequence(form, scope, sizes, order, columns):
    order = None if order is None else torch.tensor(order)
    keep = drawn(columns, form, scope, sizes, order)
    exact = expected(columns, scope, sizes, order)
    if form == "bits":
        assert keep.dtype == torch.int32 and torch.equal(keep, stream.pack(exact))
        assert torch.equal(stream.unpack(keep, columns), exact)
    else:
        assert keep.dtype == torch.int8 and torch.equal(keep, -exact.to(torch.int8))


@pytest.mark.parametrize("scope", ["step", "sequence", "repeated"])
@pytest.mark.parametrize("sizes", [None, SIZES], ids=str)
@pytest.mark.parametrize("columns, rate", [(17, (P, None)), (32, (0.0, torch.tensor(P, dtype=torch.float64)))], ids=str)
def test_opcheck(form, scope, sizes, columns, rate):
    batch_sizes, rows = (None, 12) if sizes is None else (torch.tensor(sizes), 9)
    arguments = (seed_tensor(SEED), columns, *rate, STREAM, form, scope, 4, 3, rows, batch_sizes, None)
    torch.library.opcheck(torch.ops.rnndrop.mask.default, arguments)


def test_every_p(form):
    for p in (1 / 65536, 0.5, 32769 / 65536, 1 - 2**-16, 1.0):
        keep = sequence_mask(seed_tensor(1), 40, p, 0, form, "step", Steps(4, 3), None, 12)
        exact = stream.keep(1, 12, 40, stream.threshold_of(p), 0)
        assert torch.equal(stream.unpack(keep, 40) if form == "bits" else keep != 0, exact)

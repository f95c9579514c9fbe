"""A step of a GRU or an LSTM from its gates, against the plain step in float64."""

import pytest
import torch

from rnndrop import reference
from rnndrop.cell import CELLS, Weights
from rnndrop.kernels import gated_cell
from rnndrop.kernels.gated_cell import DrawnMask
from rnndrop.mask import Mask
from tests import stream
from tests.helpers import seed_tensor
from tests.tolerances import SEQUENCE
from tests.triton_driver import backend

SEED = -42
EVERY = {"hidden": 16384, "cell": 9000, "candidate": 24000}
CELL_AND_THRESHOLDS = [
    *[(cell, {kind: EVERY[kind] for kind in kinds}) for cell in ("LSTM", "GRU") for kinds in ((), ("hidden",), ("candidate",))],
    ("LSTM", EVERY),
    ("GRU", {"hidden": 58982, "candidate": 40000}),
    ("LSTM", {"cell": 65536}),
    ("GRU", {"hidden": 65536}),
    ("LSTM", {"candidate": 1, "cell": 65535}),
]


def masks_of(thresholds):
    return {kind: DrawnMask(t, stream.scale_of(t), stream.stream_of(kind)) for kind, t in thresholds.items()}


def inputs(cell, rows, columns, dtype):
    """of_x, of_h, the old state, and the gradients of the states."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)

    def normal(width):
        return torch.randn(rows, width, generator=generator).to(dtype)

    wide = CELLS[cell].gates * columns
    return normal(wide), normal(wide), normal(columns), [normal(columns) for _ in CELLS[cell].states]


def expected(cell, of_x, of_h, before, grads, thresholds):
    """The states, then the gradients of of_x, of_h and the old state."""
    rows, columns = before.shape
    of_x, of_h, before = (x.double().requires_grad_() for x in (of_x, of_h, before))
    masks = {
        kind: Mask(stream.keep(SEED, rows, columns, t, stream.stream_of(kind)), stream.scale_of(t))
        for kind, t in thresholds.items()
    }
    if cell == "LSTM":
        eye = torch.eye(4 * columns, dtype=torch.float64)
        states = before.new_zeros(rows, columns), before
        new = reference.lstm_step(of_x + of_h, states, Weights(eye, eye[:, :columns]), masks, "tanh")
    else:  # one row at a time, whose gates of h are a bias
        eye, zeros = torch.eye(3 * columns, dtype=torch.float64), before.new_zeros(3 * columns, columns)
        parts = []
        for row in range(rows):
            of_row = {kind: Mask(mask.keep[row : row + 1], mask.scale) for kind, mask in masks.items()}
            weights = Weights(eye, zeros, None, of_h[row])
            parts.append(reference.gru_step(of_x[row : row + 1], (before[row : row + 1],), weights, of_row, "tanh")[0])
        new = (torch.cat(parts),)
    gradients = torch.autograd.grad(new, [of_x, of_h, before], [grad.double() for grad in grads])
    return [x.detach() for x in (*new, *gradients)]


def run(cell, of_x, of_h, before, grads, thresholds, device):
    seed, masks = seed_tensor(SEED, device), masks_of(thresholds)
    of_x, of_h, before = (x.to(device) for x in (of_x, of_h, before))
    states, gates = gated_cell.forward(of_x, of_h, before, seed if masks else None, masks, cell=cell)
    grads = [None if grad is None else grad.to(device) for grad in grads]
    c = states[1] if cell == "LSTM" else None
    found = gated_cell.backward(grads, gates, before, c, seed if masks else None, masks, cell=cell)
    assert all(x.dtype == before.dtype for x in (*states, *found))
    return [x.cpu() for x in (*states, *found)]


def against_float64(cell, thresholds, device, *, rows=5, columns=40, dtype=torch.float32, change=lambda x: x):
    of_x, of_h, before, grads = inputs(cell, rows, columns, dtype)
    found = run(cell, change(of_x), change(of_h), change(before), [change(grad) for grad in grads], thresholds, device)
    cut = 2 if dtype == torch.bfloat16 and backend() == "interpreter" else 1  # it truncates to bf16
    for x, y in zip(found, expected(cell, of_x, of_h, before, grads, thresholds), strict=True):
        assert (x.double() - y).abs().max() <= cut * SEQUENCE[dtype] * max(1.0, y.abs().max().item())
    if "hidden" in thresholds:
        assert (found[0][~stream.keep(SEED, rows, columns, thresholds["hidden"], stream.stream_of("hidden"))] == 0).all()


@pytest.mark.parametrize("cell, thresholds", CELL_AND_THRESHOLDS, ids=str)
def test_every_kind(cell, thresholds, device):
    against_float64(cell, thresholds, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows, columns", [(1, 1), (70, 17), (3, 64), (2, 600)])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_shapes(cell, rows, columns, dtype, device):
    thresholds = {kind: EVERY[kind] for kind in (EVERY if cell == "LSTM" else ("hidden", "candidate"))}
    against_float64(cell, thresholds, device, rows=rows, columns=columns, dtype=dtype)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_strides(cell, device):
    """Rows of a wider tensor, as the projection of a whole sequence has them, and what is not contiguous at all."""
    for change in (lambda x: torch.cat([x, x[:, :3]], 1)[:, : x.shape[1]], lambda x: x.t().contiguous().t()):
        against_float64(cell, {"hidden": 16384, "candidate": 24000}, device, change=change)


def test_a_gradient_that_nobody_gives(device):
    """Of h, of c, of neither: as if it was 0."""
    of_x, of_h, before, (grad_h, grad_c) = inputs("LSTM", 3, 20, torch.float32)
    zero = torch.zeros_like(grad_h)
    for given, full in [((grad_h, None), (grad_h, zero)), ((None, grad_c), (zero, grad_c)), ((None, None), (zero, zero))]:
        found = run("LSTM", of_x, of_h, before, given, EVERY, device)
        for x, y in zip(found, run("LSTM", of_x, of_h, before, full, EVERY, device), strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_dropped_candidate_may_be_anything(cell, device):
    of_x, of_h, before, _ = inputs(cell, 4, 40, torch.float32)
    of_x[:, 80:120] = float("nan")
    seed, masks = seed_tensor(SEED, device), masks_of({"candidate": 24000})
    states, _ = gated_cell.forward(*(x.to(device) for x in (of_x, of_h, before)), seed, masks, cell=cell)
    keep = stream.keep(SEED, 4, 40, 24000, stream.stream_of("candidate"))
    assert all(torch.equal(state.isnan().cpu(), keep) for state in states)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_empty(cell, device):
    of_x, of_h, before, grads = inputs(cell, 0, 5, torch.float32)
    assert all(x.shape[0] == 0 for x in run(cell, of_x, of_h, before, grads, {"hidden": 16384}, device))

"""`stepwise` of a GRU and an LSTM: one library product and one pointwise kernel a step, which makes gates, states and masks.

The product goes to a buffer of one step, which stays in the cache, and is added to the input projection in fp32: to add it in
place, the library would first copy the projection there, with a launch of its own. A GRU needs W_hn h' alone besides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gates import (
    dropped,
    gru_backward,
    gru_forward,
    lstm_backward,
    lstm_cell_state,
    lstm_forward,
    zoned,
    zoned_backward,
)
from .launch import Masks, dense, on_device
from .mask_bits import kept
from .plan import GATES
from .step_rows import NO_STEP, StepRows, step_mask, steps_in_order, zoneout_mask

TILE = 512  # elements a program takes
NUMBERS = ["start", "rows", "old_start", "olds", "others"]
NUMBERS += ["hidden_row", "hidden_scale", "recurrent_row", "recurrent_scale"]
NUMBERS += ["candidate_row", "candidate_scale", "cell_row", "cell_scale"]


@triton.jit
def _kept_or_all(bits_ptr, row, column, H, inside):
    """A mask as the functions of `gates` take it."""
    if bits_ptr is None:
        return None
    else:
        return kept(bits_ptr, row, column, H, inside)


@triton.jit
def _state_before(state_ptr, first_ptr, start, rows, row, column, H, inside):
    """A state (fp32) as the step before left it in its `rows` rows from `start`; the first where a sequence begins."""
    begins = row >= rows
    old = tl.load(state_ptr + (start + row) * H + column, mask=inside & ~begins, other=0.0)
    return tl.where(begins, tl.load(first_ptr + row * H + column, mask=inside & begins, other=0.0), old).to(tl.float32)


@triton.jit
def _gate(x_ptr, product_ptr, x_at, product_at, inside):
    """What x and h make of a gate together."""
    of_x = tl.load(x_ptr + x_at, mask=inside, other=0.0).to(tl.float32)
    return of_x + tl.load(product_ptr + product_at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store_four(pointer, at, H, inside, first, second, third, fourth):
    """Side by side in rows of 4*H; `at` is where the first goes."""
    DTYPE: tl.constexpr = pointer.dtype.element_ty
    tl.store(pointer + at, first.to(DTYPE), mask=inside)
    tl.store(pointer + at + H, second.to(DTYPE), mask=inside)
    tl.store(pointer + at + 2 * H, third.to(DTYPE), mask=inside)
    tl.store(pointer + at + 3 * H, fourth.to(DTYPE), mask=inside)


@triton.jit
def _load_four(pointer, at, H, inside):
    return (
        tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32),
        tl.load(pointer + at + H, mask=inside, other=0.0).to(tl.float32),
        tl.load(pointer + at + 2 * H, mask=inside, other=0.0).to(tl.float32),
        tl.load(pointer + at + 3 * H, mask=inside, other=0.0).to(tl.float32),
    )


@triton.jit(do_not_specialize=[*NUMBERS, "old_share", "old_cell_share"])
def forward_kernel(
    x_ptr,  # (N, G*H): the input projection
    product_ptr,  # (rows, G*H): W_hh h', of this step
    b_hn_ptr,  # (H) of a GRU, or None
    h_0_ptr,  # (B, H)
    c_0_ptr,  # (B, H), or None of a GRU
    output_ptr,  # (N, H): written, and read of the step before
    gates_ptr,  # (N, 4*H): written
    c_ptr,  # (N, H): written, and read of the step before; None of a GRU
    state_ptr,  # (others, H), or None: r * h for the next step, from h_0 where a sequence starts there
    hidden_ptr,  # (any, ceil(H/32)) int32, or None: row hidden_row is that of our row 0, and so on
    recurrent_ptr,  # the same for the next step
    zoneout_ptr,  # a row for each row of the data
    candidate_ptr,
    cell_ptr,
    cell_zoneout_ptr,  # a row for each row of the data
    start: tl.int64,  # row of the data that is this step's row 0
    rows,
    old_start: tl.int64,  # the same of the step before
    olds,
    others,  # rows of the next step
    hidden_row: tl.int64,
    hidden_scale,
    recurrent_row: tl.int64,
    recurrent_scale,
    candidate_row: tl.int64,
    candidate_scale,
    cell_row: tl.int64,
    cell_scale,
    old_share,  # of the old state in the expectation of zoneout, or None
    old_cell_share,
    H,
    CELL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    DTYPE: tl.constexpr = output_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < H)
    at, gates_at = (start + row) * H + column, (start + row) * (4 * H) + column
    candidate = _kept_or_all(candidate_ptr, candidate_row + row, column, H, inside)
    h_before = None
    if CELL == "GRU" or zoneout_ptr is not None or old_share is not None:
        h_before = _state_before(output_ptr, h_0_ptr, old_start, olds, row, column, H, inside)
    if CELL == "LSTM":
        product_at = row * (4 * H) + column
        i = _gate(x_ptr, product_ptr, gates_at, product_at, inside)
        f = _gate(x_ptr, product_ptr, gates_at + H, product_at + H, inside)
        g = _gate(x_ptr, product_ptr, gates_at + 2 * H, product_at + 2 * H, inside)
        o = _gate(x_ptr, product_ptr, gates_at + 3 * H, product_at + 3 * H, inside)
        c_before = _state_before(c_ptr, c_0_ptr, old_start, olds, row, column, H, inside)
        cell = _kept_or_all(cell_ptr, cell_row + row, column, H, inside)
        i, f, g, o, c, made = lstm_forward(i, f, g, o, c_before, candidate, candidate_scale, cell, cell_scale, DTYPE, "exact")
        c = zoned(c_before, c, _kept_or_all(cell_zoneout_ptr, start + row, column, H, inside), old_cell_share)
        tl.store(c_ptr + at, c.to(DTYPE), mask=inside)
        _store_four(gates_ptr, gates_at, H, inside, i, f, g, o)
    else:
        tl.static_assert(CELL == "GRU")
        x_at, product_at = (start + row) * (3 * H) + column, row * (3 * H) + column
        r = _gate(x_ptr, product_ptr, x_at, product_at, inside)
        z = _gate(x_ptr, product_ptr, x_at + H, product_at + H, inside)
        x_n = tl.load(x_ptr + x_at + 2 * H, mask=inside, other=0.0).to(tl.float32)
        hn = tl.load(product_ptr + product_at + 2 * H, mask=inside, other=0.0).to(tl.float32)
        if b_hn_ptr is not None:
            hn += tl.load(b_hn_ptr + column + tl.zeros_like(row), mask=inside, other=0.0).to(tl.float32)  # no other layout
        r, z, n, made = gru_forward(r, z, x_n, hn, h_before, candidate, candidate_scale, DTYPE, "exact")
        _store_four(gates_ptr, gates_at, H, inside, hn, r, z, n)
    h = dropped(made, _kept_or_all(hidden_ptr, hidden_row + row, column, H, inside), hidden_scale)
    h = zoned(h_before, h, _kept_or_all(zoneout_ptr, start + row, column, H, inside), old_share).to(DTYPE)
    tl.store(output_ptr + at, h, mask=inside)
    if state_ptr is not None:
        other = (row < others) & (column < H)
        h = tl.where(row < rows, h, tl.load(h_0_ptr + row * H + column, mask=other & (row >= rows), other=0.0))
        keep = _kept_or_all(recurrent_ptr, recurrent_row + row, column, H, other)
        h = dropped(h.to(tl.float32), keep, recurrent_scale).to(DTYPE)
        tl.store(state_ptr + row * H + column, h, mask=other)


@triton.jit(do_not_specialize=NUMBERS)
def backward_kernel(
    grad_output_ptr,  # (N, H)
    grad_h_n_ptr,  # (B, H), or None: taken by a sequence that ends here (row >= others)
    grad_c_n_ptr,  # the same of an LSTM
    h_0_ptr,  # (B, H)
    c_0_ptr,  # (B, H), or None of a GRU
    output_ptr,  # (N, H)
    gates_ptr,  # (N, 4*H)
    c_ptr,  # (N, H), or None of a GRU
    grad_gates_ptr,  # (N, 4*H): written
    grad_h_0_ptr,  # (B, H): given by a sequence that starts at the step after (row >= rows)
    grad_c_0_ptr,  # the same of an LSTM
    state_ptr,  # (others, H): the gradient of the gates of the step after, times W_hh
    carry_ptr,  # (B, H) float32: the gradient of h that passes by W_hh; None where nothing does
    cell_carry_ptr,  # (B, H) float32: the gradient of c; None of a GRU
    hidden_ptr,  # (any, ceil(H/32)) int32, or None: row hidden_row is that of our row 0, and so on
    recurrent_ptr,  # the same for the step after
    zoneout_ptr,  # a row for each row of the data
    candidate_ptr,
    cell_ptr,
    cell_zoneout_ptr,  # a row for each row of the data
    start: tl.int64,  # row of the data that is this step's row 0
    rows,
    old_start: tl.int64,  # the same of the step before
    olds,
    others,  # rows of the step after
    hidden_row: tl.int64,
    hidden_scale,
    recurrent_row: tl.int64,
    recurrent_scale,
    candidate_row: tl.int64,
    candidate_scale,
    cell_row: tl.int64,
    cell_scale,
    H,
    CELL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    DTYPE: tl.constexpr = grad_gates_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside, other = (row < rows) & (column < H), (row < others) & (column < H)
    begins, ends = other & (row >= rows), inside & (row >= others)  # the sequence, at the step after; here
    state_at, at, gates_at = row * H + column, (start + row) * H + column, (start + row) * (4 * H) + column
    dh = tl.load(state_ptr + state_at, mask=other, other=0.0).to(tl.float32)
    dh = dropped(dh, _kept_or_all(recurrent_ptr, recurrent_row + row, column, H, other), recurrent_scale)
    if carry_ptr is not None:
        dh += tl.load(carry_ptr + state_at, mask=other, other=0.0)
    tl.store(grad_h_0_ptr + state_at, dh.to(DTYPE), mask=begins)
    if grad_h_n_ptr is not None:
        dh += tl.load(grad_h_n_ptr + state_at, mask=ends, other=0.0).to(tl.float32)
    dh += tl.load(grad_output_ptr + at, mask=inside, other=0.0).to(tl.float32)
    d_old, d_made = zoned_backward(dh, _kept_or_all(zoneout_ptr, start + row, column, H, inside))
    d_made = dropped(d_made, _kept_or_all(hidden_ptr, hidden_row + row, column, H, inside), hidden_scale)
    candidate = _kept_or_all(candidate_ptr, candidate_row + row, column, H, inside)
    if CELL == "LSTM":
        i, f, g, o = _load_four(gates_ptr, gates_at, H, inside)
        c_before = _state_before(c_ptr, c_0_ptr, old_start, olds, row, column, H, inside)
        dc = tl.load(cell_carry_ptr + state_at, mask=other, other=0.0)
        tl.store(grad_c_0_ptr + state_at, dc.to(DTYPE), mask=begins)
        if grad_c_n_ptr is not None:
            dc += tl.load(grad_c_n_ptr + state_at, mask=ends, other=0.0).to(tl.float32)
        cell = _kept_or_all(cell_ptr, cell_row + row, column, H, inside)
        if cell_zoneout_ptr is None:
            c = tl.load(c_ptr + at, mask=inside, other=0.0).to(tl.float32)
        else:
            c = lstm_cell_state(i, f, g, c_before, candidate, candidate_scale, cell, cell_scale)
        dc_old, dc = zoned_backward(dc, _kept_or_all(cell_zoneout_ptr, start + row, column, H, inside))
        di, df, dg, do, dc = lstm_backward(
            d_made, dc, i, f, g, o, c_before, c, candidate, candidate_scale, cell, cell_scale, DTYPE, "exact"
        )
        tl.store(cell_carry_ptr + state_at, dc_old + dc, mask=inside)
        _store_four(grad_gates_ptr, gates_at, H, inside, di, df, dg, do)
    else:
        tl.static_assert(CELL == "GRU")
        hn, r, z, n = _load_four(gates_ptr, gates_at, H, inside)
        h_before = _state_before(output_ptr, h_0_ptr, old_start, olds, row, column, H, inside)
        dhn, dr, dz, dn, carried = gru_backward(d_made, hn, r, z, n, h_before, candidate, candidate_scale)
        d_old += carried
        _store_four(grad_gates_ptr, gates_at, H, inside, dhn, dr, dz, dn)
    if carry_ptr is not None:
        tl.store(carry_ptr + state_at, d_old, mask=inside)


def forward(
    input_projection: Tensor,
    states: Sequence[Tensor],
    w_hh: Tensor,
    masks: Masks,
    *,
    cell: str,
    b_hn: Tensor | None = None,
    reverse: bool = False,
    tf32: bool = False,
    sizes: Sequence[int] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The output of every step, and what backward needs besides.

    Args:
        input_projection: (T, B, G*H), or (N, G*H) with `sizes`, of float32, float16 or bfloat16: W_ih x and both biases, but
            not a GRU's b_hn. Its gates are i, f, g, o of an LSTM and r, z, n of a GRU.
        states: h_0 (B, H); of an LSTM c_0 (B, H) too.
        w_hh: (G*H, H).
        masks: by kind; one that is not there drops nothing. "hidden": of the new state. "recurrent": of the state where it
            enters W_hh. "zoneout": where the new state is taken and not the old one. "candidate": of n, or of g. Of an LSTM
            "cell": of the new cell state. "cell_zoneout": where that is taken.
        cell: "LSTM" or "GRU".
        b_hn: (H) of a GRU, or None.
        reverse: from the last step to the first.
        tf32: for the other strategies; the library's product asks PyTorch itself.
        sizes: the rows of each step of sequences of different lengths, never increasing.

    Returns:
        The output, (T, B, H) or (N, H). A list: of an LSTM the gates i, f, g, o after their activations, (T, B, 4*H) or
        (N, 4*H), and the cell states; of a GRU W_hn h' + b_hn, and r, z and n after their activations.

    Raises:
        ValueError: the strategy cannot run this here, and why.
    """
    with on_device(input_projection):
        H, steps = w_hh.shape[1], steps_in_order("stepwise", input_projection, reverse, sizes)
        shape, B = input_projection.shape[:-1], max(step.size for step in steps)
        states, weight = [dense(state) for state in states], w_hh.t()
        output, gates = (input_projection.new_empty(*shape, k * H) for k in (1, 4))
        saved = [gates] if cell == "GRU" else [gates, torch.empty_like(output)]
        product = input_projection.new_empty(B, GATES[cell] * H)
        # Without a state of its own the product reads what the step before wrote.
        state = torch.empty_like(states[0]) if "recurrent" in masks or (reverse and sizes is not None) else None
        launch = _Launch(masks, steps, H, cell)
        tensors = {
            "x_ptr": dense(input_projection),
            "product_ptr": product,
            "b_hn_ptr": dense(b_hn),
            "h_0_ptr": states[0],
            "c_0_ptr": None if cell == "GRU" else states[1],
            "output_ptr": output,
            "gates_ptr": gates,
            "c_ptr": None if cell == "GRU" else saved[1],
            "state_ptr": state,
            "old_share": zoneout_mask(masks, "zoneout", steps, H)[1],
            "old_cell_share": zoneout_mask(masks, "cell_zoneout", steps, H)[1],
        }
        if state is not None:
            launch(forward_kernel, NO_STEP, NO_STEP, steps[0], tensors)
        rows, entering, before = output.view(-1, H), states[0], NO_STEP
        for step, following in zip(steps, [*steps[1:], NO_STEP], strict=True):
            torch.mm((entering if state is None else state)[: step.size], weight, out=product[: step.size])
            launch(forward_kernel, step, before, following, tensors)
            entering, before = rows[step.slice], step
    return output, saved


def backward(
    grad_output: Tensor,
    grad_states: Sequence[Tensor | None],
    states: Sequence[Tensor],
    output: Tensor,
    saved: Sequence[Tensor],
    w_hh: Tensor,
    masks: Masks,
    *,
    cell: str,
    reverse: bool = False,
    tf32: bool = False,
    sizes: Sequence[int] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of the gates' pre-activations and of the states at the beginning.

    Args:
        grad_output: like output.
        grad_states: of the states at the end, (B, H) each, or None.
        output, saved: what forward returned. The rest is what forward was given, zoneouts as masks.

    Returns:
        (T, B, 4*H) or (N, 4*H): i, f, g, o of an LSTM; of a GRU W_hn h' + b_hn, r, z and n. (B, H) each. All contiguous.

    Raises:
        ValueError: the strategy cannot run this here, and why.
    """
    with on_device(output):
        H, steps = w_hh.shape[1], steps_in_order("stepwise", output, reverse, sizes)
        B, gru = max(step.size for step in steps), cell == "GRU"
        weight = w_hh.roll(H, 0) if gru else w_hh  # as the gates of W_hh come: n, r, z
        grad_gates = output.new_empty(*output.shape[:-1], 4 * H)
        of_w_hh = grad_gates.view(-1, 4 * H)[:, : weight.shape[0]]
        state, *begun = (output.new_empty(B, H) for _ in range(1 + len(states)))
        launch = _Launch(masks, steps, H, cell)

        def carry(needed: bool) -> Tensor | None:
            return output.new_empty((B, H), dtype=torch.float32) if needed else None

        tensors = {
            "grad_output_ptr": dense(grad_output),
            "grad_h_n_ptr": dense(grad_states[0]),
            "grad_c_n_ptr": None if gru else dense(grad_states[1]),
            "h_0_ptr": dense(states[0]),
            "c_0_ptr": None if gru else dense(states[1]),
            "output_ptr": dense(output),
            "gates_ptr": dense(saved[0]),
            "c_ptr": None if gru else dense(saved[1]),
            "grad_gates_ptr": grad_gates,
            "grad_h_0_ptr": begun[0],
            "grad_c_0_ptr": None if gru else begun[1],
            "state_ptr": state,
            "carry_ptr": carry(gru or "zoneout" in masks),
            "cell_carry_ptr": carry(not gru),
        }
        following = NO_STEP
        for step, before in zip([*steps[::-1], NO_STEP], [*steps[-2::-1], NO_STEP, NO_STEP], strict=True):
            launch(backward_kernel, step, before, following, tensors)
            if step.size:
                torch.mm(of_w_hh[step.slice], weight, out=state[: step.size])
            following = step
    return grad_gates, begun


class _Launch:
    """The launch of a kernel for a step: what is the same for all steps, prepared once."""

    def __init__(self, masks: Masks, steps: Sequence[StepRows], H: int, cell: str) -> None:
        kinds = ("hidden", "recurrent", "candidate", "cell")
        self.masks = {kind: step_mask(masks, kind, steps, H) for kind in kinds}
        self.options = {f"{kind}_ptr": mask.bits for kind, mask in self.masks.items()}
        self.options |= {f"{kind}_scale": mask.scale for kind, mask in self.masks.items()}
        self.options |= {f"{kind}_ptr": zoneout_mask(masks, kind, steps, H)[0] for kind in ("zoneout", "cell_zoneout")}
        columns = min(triton.next_power_of_2(H), 128)
        self.tile = TILE // columns, columns
        self.options |= {"H": H, "CELL": cell, "ROWS": self.tile[0], "COLUMNS": self.tile[1]}

    def __call__(self, kernel, step: StepRows, before: StepRows, following: StepRows, tensors: dict) -> None:
        """`before` and `following` in the order in which forward takes the steps."""
        ROWS, COLUMNS = self.tile
        grid = triton.cdiv(max(step.size, following.size), ROWS), triton.cdiv(self.options["H"], COLUMNS)
        rows = {f"{kind}_row": mask.first_row(following if kind == "recurrent" else step) for kind, mask in self.masks.items()}
        kernel[grid](
            **tensors,
            **self.options,
            **rows,
            start=step.start,
            rows=step.size,
            old_start=before.start,
            olds=before.size,
            others=following.size,
        )

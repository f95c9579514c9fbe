"""A packed mask applied to rows: reads x and the bits, writes the result, nothing else."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import MaskBits, on_device
from .mask_bits import kept

TILE = 1024  # elements a program takes


@triton.jit(do_not_specialize=["rows", "mask_rows", "x_row", "y_row", "scale"])
def apply_mask_kernel(
    x_ptr,  # (rows, columns), rows x_row elements apart
    bits_ptr,  # (mask_rows, ceil(columns/32)) int32
    y_ptr,  # (rows, columns), rows y_row elements apart
    rows: tl.int64,
    mask_rows: tl.int64,
    x_row: tl.int64,
    y_row: tl.int64,
    scale,
    columns,
    REPEATED: tl.constexpr,  # mask_rows < rows
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tiles = tl.cdiv(columns, COLUMNS)
    pid = tl.program_id(0)
    row = (pid // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = pid % tiles * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)
    keep = kept(bits_ptr, row % mask_rows if REPEATED else row, column, columns, inside)
    x = tl.load(x_ptr + row * x_row + column, mask=keep, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * y_row + column, (x * scale).to(y_ptr.dtype.element_ty), mask=inside)


def apply_mask(x: Tensor, mask: MaskBits, *, out: Tensor | None = None) -> Tensor:
    """keep * scale * x; 0 where dropped, whatever is there.

    Args:
        x: (rows, columns); its rows may be any distance apart.
        mask: of as many rows, or of fewer that repeat: row r takes row r % mask rows.
        out: like x, where to write.

    Returns:
        (rows, columns) of x's dtype.
    """
    y = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    rows, columns = x.shape
    if x.numel() == 0:
        return y
    x = x if x.stride(1) == 1 or columns == 1 else x.contiguous()
    COLUMNS = min(triton.next_power_of_2(columns), 256)
    ROWS = TILE // COLUMNS
    grid = (triton.cdiv(rows, ROWS) * triton.cdiv(columns, COLUMNS),)
    with on_device(x):
        apply_mask_kernel[grid](
            x,
            mask.bits.contiguous(),
            y,
            rows,
            mask.bits.shape[0],
            x.stride(0),
            y.stride(0),
            mask.scale,
            columns,
            REPEATED=mask.bits.shape[0] < rows,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
        )
    return y

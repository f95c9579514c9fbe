"""One layer, one direction on the Triton kernels: what `cpu` does, with masks as bits and a strategy for the recurrence."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from .cpu import Span
from .kernels import activation_dropout, cooperative, launch, packed_mask, plan, resident, stepwise
from .mask import Mask, scale, threshold

RECURRENCES: dict[str, ModuleType] = {"resident": resident, "cooperative": cooperative, "stepwise": stepwise}
CELLS = {"tanh": "RNN_TANH", "relu": "RNN_RELU"}


@dataclass(frozen=True)
class Kernels:
    """The backend of one strategy. It takes tensors of any device: which of them belong here is decided above."""

    strategy: str

    KEEP: ClassVar = torch.int32  # a mask here: bit c % 32 of word c // 32 is 1 where column c is kept

    def keep(self, seed: Tensor, rows: int, columns: int, p: float, site: int) -> Tensor:
        """A mask of (rows, columns) as (rows, ceil(columns / 32))."""
        return packed_mask.packed_mask(seed, rows, columns, threshold(p), site)

    def keep_columns(self, columns: int) -> int:
        """The width of such a mask."""
        return -(-columns // 32)

    def unpack(self, keep: Tensor, columns: int) -> Tensor:
        """A mask as bool, (rows, columns)."""
        bit = torch.arange(32, dtype=torch.int32, device=keep.device)
        return (keep[:, :, None] >> bit & 1).bool().flatten(1)[:, :columns]

    def forward(
        self,
        input: Tensor,
        h0: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        bias: Tensor | None,
        hidden: Mask | None,
        recurrent: Mask | None,
        *,
        spans: list[Span],
        nonlinearity: str,
    ) -> tuple[Tensor, Tensor]:
        """Output (T, B, H) or (N, H) and h_n (B, H) of input (T, B, I) or (N, I), h0 (B, H), weights and bias (H)."""
        x = input.reshape(-1, input.shape[-1])
        xw = x @ w_ih.t() if bias is None else torch.addmm(bias, x, w_ih.t())
        shape, masks, options = self._arguments(xw, hidden, recurrent, spans)
        run = RECURRENCES[self.strategy].forward
        output = run(xw.view(shape), h0, w_hh, *masks, cell=CELLS[nonlinearity], **options)
        rows = output.view(xw.shape)
        return output if output.dim() == input.dim() else rows, rows[_last_rows(spans, len(h0))].clone()

    def backward(
        self,
        grad_output: Tensor,
        grad_h_n: Tensor | None,
        output: Tensor,
        h0: Tensor,
        w_hh: Tensor,
        hidden: Mask | None,
        recurrent: Mask | None,
        *,
        spans: list[Span],
        nonlinearity: str,
    ) -> tuple[Tensor, Tensor]:
        """The gradients of the pre-activations (N, H) and of h0 (B, H). `grad_output` is (N, H) or (T, B, H)."""
        shape, masks, options = self._arguments(output, hidden, recurrent, spans)
        run = RECURRENCES[self.strategy].backward
        grad_a, grad_h0 = run(
            grad_output.reshape(shape), grad_h_n, output.view(shape), w_hh, *masks, cell=CELLS[nonlinearity], **options
        )
        return grad_a.view(output.shape), grad_h0

    def _arguments(
        self, rows: Tensor, hidden: Mask | None, recurrent: Mask | None, spans: list[Span]
    ) -> tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]:
        """The shape, the masks and the options that a recurrence's launchers take. Raises ValueError where it cannot run."""
        sizes, reverse = _sizes(spans)
        packed = sizes[0] != sizes[-1]
        if packed and self.strategy != "stepwise":
            raise ValueError(f"strategy {self.strategy!r} cannot run: the sequences are of different lengths")
        if rows.dtype not in plan.DTYPES:
            raise ValueError(f"strategy {self.strategy!r} cannot run: {rows.dtype} is none of float32, float16, bfloat16")
        masks = [
            None if mask is None else launch.MaskBits(_compact(mask, sizes) if packed else mask.keep, mask.scale)
            for mask in (hidden, recurrent)
        ]
        options = {"reverse": reverse, "tf32": launch.allows_tf32()} | ({"sizes": sizes} if packed else {})
        shape = tuple(rows.shape) if packed else (len(sizes), sizes[0], rows.shape[1])
        return shape, tuple(masks), options

    def recurrent_input(self, output: Tensor, h0: Tensor, recurrent: Mask | None, *, spans: list[Span]) -> Tensor:
        """What entered W_hh at each row, (N, H): the state before it, its dropped elements 0, without the mask's scale."""
        sizes, reverse = _sizes(spans)
        batch = len(h0)
        if sizes[-1] == batch:
            entered = torch.cat([output[batch:], h0] if reverse else [h0, output[: len(output) - batch]])
        else:
            entered = torch.cat([output, h0])[_rows_before(spans, batch, len(output)).to(output.device)]
        if recurrent is None:
            return entered
        keep = self.unpack(recurrent.keep, output.shape[1]).view(-1, batch, output.shape[1])
        keep = torch.cat([keep[t % len(keep), :size] for t, size in enumerate(sizes)]) if sizes[-1] != batch else keep
        return entered.view(-1, *keep.shape[1:]).masked_fill(~keep, 0).view(output.shape)

    def dropout_keep_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """The kernel makes the mask again in backward: none is kept."""
        return 0, self.keep_columns(columns)

    def dropout_forward(self, x: Tensor, seed: Tensor, p: float, site: int, *, nonlinearity: str) -> tuple[Tensor, Tensor]:
        """dropout(f(x)) of x (N, H), any strides."""
        y = x.new_empty(x.shape)
        activation_dropout.forward(x, seed, threshold(p), scale(p), site, nonlinearity=nonlinearity, out=y)
        return y, x.new_empty(self.dropout_keep_shape(*x.shape), dtype=self.KEEP)

    def dropout_backward(
        self, grad_y: Tensor, y: Tensor, keep: Tensor, seed: Tensor, p: float, site: int, *, nonlinearity: str
    ) -> Tensor:
        """The gradient of x, from y = dropout(f(x))."""
        return activation_dropout.backward(grad_y, y, seed, threshold(p), scale(p), site, nonlinearity=nonlinearity)


def choose(device: torch.device, H: int, B: int, dtype: torch.dtype, *, packed: bool = False) -> plan.Choice:
    """What `auto` runs on this CUDA device; on an A100, where tensors are traced for a device that is not there."""
    facts = launch.device_of(device) if torch.cuda.is_available() else launch.A100
    return plan.choose(H, B, dtype, facts, packed=packed, tf32=launch.allows_tf32())


def _compact(mask: Mask, sizes: list[int]) -> Tensor:
    """A mask of a padded batch as the rows of packed data."""
    keep = mask.keep.view(-1, sizes[0], mask.keep.shape[1])
    return torch.cat([keep[t, :size] for t, size in enumerate(sizes)]) if mask.per_step else mask.keep


def _sizes(spans: list[Span]) -> tuple[list[int], bool]:
    """The rows of each step in time, and whether they are processed from the last to the first."""
    reverse = spans[0] > spans[-1]
    return [stop - start for start, stop in (spans[::-1] if reverse else spans)], reverse


def _last_rows(spans: list[Span], batch: int) -> slice | list[int]:
    """The row of the last step of each sequence, in the order of processing."""
    start, stop = spans[-1]
    if stop - start == batch:
        return slice(start, stop)
    return [max(start + b for start, stop in spans if start + b < stop) for b in range(batch)]


def _rows_before(spans: list[Span], batch: int, rows: int) -> Tensor:
    """For each row of a packed sequence the row of the step before, counting h0 as the rows after the last."""
    before = torch.empty(rows, dtype=torch.int64)
    from_h0 = torch.arange(rows, rows + batch)
    previous = from_h0[:0]
    for start, stop in spans:
        size = stop - start
        before[start:stop] = torch.cat([previous[:size], from_h0[len(previous) : size]])
        previous = torch.arange(start, stop)
    return before

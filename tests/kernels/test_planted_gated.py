"""Mistakes planted into each strategy of a GRU and an LSTM: the checks of the real ones must see each."""

from types import SimpleNamespace

import pytest
import torch

from rnndrop.cell import CELLS
from rnndrop.kernels import gated_resident, gated_stepwise
from rnndrop.kernels.launch import MaskBits

from . import gated_sequences
from .gated_sequences import Case, every_kind

STRATEGIES = {"resident": gated_resident, "stepwise": gated_stepwise}
CASES = {cell: Case(cell, T=3, B=3, H=20, thresholds=every_kind(cell)) for cell in ("LSTM", "GRU")}
KINDS = [(cell, kind) for cell in CASES for kind in CELLS[cell].kinds]

everywhere = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
both_cells = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def is_seen(strategy, case, device, **broken):
    """A strategy with another forward or backward fails."""
    parts = {"forward": strategy.forward, "backward": strategy.backward}
    with pytest.raises(AssertionError, match=r"differs by|drops"):
        gated_sequences.against_float64(SimpleNamespace(**parts | broken), case, device)


def first_step_always(bits):
    """Step 0's mask for all steps (haste)."""
    return bits[:3].repeat(3, 1)


def repeated_over_rows(bits):
    """One row's mask for all rows of a step (xformers)."""
    return bits.view(3, 3, -1)[:, :1].repeat(1, 3, 1).flatten(0, 1)


def shifted_by_a_step(bits):
    """The mask of the step before."""
    return bits.roll(3, 0)


def with_masks(launcher, change):
    """The launcher, given other masks."""

    def launch(*args, **options):
        *tensors, masks = args
        return launcher(*tensors, change(masks), **options)

    return launch


@everywhere
@both_cells
def test_nothing_is_seen_without_a_bug(strategy, case, device):
    for sizes in (None, (3, 3, 2, 1)):
        gated_sequences.against_float64(strategy, case._replace(sizes=sizes), device)


@pytest.mark.parametrize(
    "where, change", [("forward", shifted_by_a_step), ("backward", first_step_always), ("backward", repeated_over_rows)]
)
@pytest.mark.parametrize("cell, kind", KINDS)
@everywhere
def test_another_mask_is_seen(strategy, cell, kind, where, change, device):
    def other(masks):
        return masks | {kind: MaskBits(change(masks[kind].bits), masks[kind].scale)}

    is_seen(strategy, CASES[cell], device, **{where: with_masks(getattr(strategy, where), other)})


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("cell, kind", KINDS)
@everywhere
def test_a_mask_accepted_and_ignored_is_seen(strategy, cell, kind, where, device):
    """Keras's SimpleRNN once."""

    def without(masks):
        return {other: mask for other, mask in masks.items() if other != kind}

    is_seen(strategy, CASES[cell], device, **{where: with_masks(getattr(strategy, where), without)})


def exchanged(tensor, first, second, gates, axis):
    """Two gates in each other's place."""
    order = [second if gate == first else first if gate == second else gate for gate in range(gates)]
    parts = tensor.chunk(gates, axis)
    return torch.cat([parts[gate] for gate in order], axis)


@pytest.mark.parametrize("cell, pair", [("LSTM", (0, 1)), ("LSTM", (2, 3)), ("LSTM", (1, 2)), ("GRU", (0, 1)), ("GRU", (1, 2))])
@everywhere
def test_another_order_of_the_gates_is_seen(strategy, cell, pair, device):
    gates = CELLS[cell].gates

    def forward(x, states, w_hh, masks, **options):
        return strategy.forward(exchanged(x, *pair, gates, -1), states, exchanged(w_hh, *pair, gates, 0), masks, **options)

    def backward(*args, **options):
        *tensors, w_hh, masks = args
        return strategy.backward(*tensors, exchanged(w_hh, *pair, gates, 0), masks, **options)

    is_seen(strategy, CASES[cell], device, forward=forward)
    is_seen(strategy, CASES[cell], device, backward=backward)


@everywhere
def test_a_bias_outside_of_the_reset_gate_is_seen(strategy, device):
    def forward(x, states, w_hh, masks, *, b_hn, **options):
        H = w_hh.shape[1]
        outside = torch.cat([x[..., : 2 * H], x[..., 2 * H :] + b_hn], -1)
        return strategy.forward(outside, states, w_hh, masks, b_hn=None, **options)

    is_seen(strategy, CASES["GRU"], device, forward=forward)


@both_cells
@everywhere
def test_a_state_that_is_not_carried_is_seen(strategy, case, device):
    """Each step from the first states; each step's gradient without the later ones'."""
    for broken in ("forward", "backward"):
        is_seen(strategy, case, device, **{broken: _step_by_step(getattr(strategy, broken), broken == "forward")})


def _step_by_step(launcher, is_forward):
    """The launcher, for one step after the other and nothing between them."""

    def launch(*args, **options):
        *tensors, masks = args
        results = []
        for t in range(3):
            now = {kind: MaskBits(mask.bits[3 * t : 3 * t + 3], mask.scale) for kind, mask in masks.items()}
            results.append(launcher(*[_step(x, t) for x in tensors], now, **options))
        first = torch.cat([result[0] for result in results])
        if is_forward:
            return first, [torch.cat(parts) for parts in zip(*[saved for _, saved in results], strict=True)]
        return first, results[0][1]

    return launch


def _step(tensor, t):
    """Its step t, of what has steps."""
    if isinstance(tensor, list):
        return [_step(x, t) for x in tensor]
    return tensor[t : t + 1] if tensor.dim() == 3 else tensor


@pytest.mark.parametrize("sizes", [(3, 3, 3), (3, 2, 2, 2)])
@both_cells
@everywhere
def test_rows_of_another_step_are_seen(strategy, case, sizes, device):
    """A sequence ends a step earlier, another a step later: the rows are as many."""
    packed = case._replace(sizes=(3, 3, 2, 1))
    for where in ("forward", "backward"):
        real = getattr(strategy, where)
        is_seen(
            strategy, packed, device, **{where: lambda *args, real=real, **options: real(*args, **options | {"sizes": sizes})}
        )

"""Mistakes that other libraries shipped, planted into each strategy: the checks of the real ones must see each."""

from types import SimpleNamespace

import pytest
import torch

from rnndrop.kernels import apply_mask, cooperative, stepwise
from rnndrop.kernels.launch import MaskBits
from tests import stream
from tests.tolerances import SEQUENCE
from tests.triton_driver import backend

from . import sequences
from .sequences import Case, resident

STRATEGIES = {"resident": resident, "cooperative": cooperative, "stepwise": stepwise}
CASE = Case(T=3, B=3, H=40, recurrent=16384)
WITH_ZONEOUT = CASE._replace(zoneout=16384)
PACKED = Case(H=40, recurrent=16384, sizes=(3, 3, 2, 1))


def first_step_always(bits):
    """Step 0's mask for all steps (haste)."""
    return bits[: CASE.B].repeat(CASE.T, 1)


def repeated_over_rows(bits):
    """One row's mask for all rows of a step (xformers)."""
    return bits.view(CASE.T, CASE.B, -1)[:, :1].repeat(1, CASE.B, 1).flatten(0, 1)


def shifted_by_a_step(bits):
    """The mask of the step before."""
    return bits.roll(CASE.B, 0)


def with_other_masks(launcher, change, kind):
    """The launcher, given other bits for a kind of mask."""

    def launch(*args, **options):
        *tensors, masks = args
        other = MaskBits(change(masks[kind].bits), masks[kind].scale)
        return launcher(*tensors, masks | {kind: other}, **options)

    return launch


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_nothing_is_seen_without_a_bug(strategy, device):
    for case in (CASE, WITH_ZONEOUT, PACKED):
        sequences.against_float64(strategy, case, device)
    sequences.gradient_has_the_mask_of_the_output(strategy, CASE, device)


@pytest.mark.parametrize("change", [first_step_always, repeated_over_rows, shifted_by_a_step])
@pytest.mark.parametrize("kind", ["hidden", "recurrent", "zoneout"])
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_another_mask_is_seen(strategy, where, kind, change, device):
    parts = {"forward": strategy.forward, "backward": strategy.backward}
    broken = SimpleNamespace(**parts | {where: with_other_masks(parts[where], change, kind)})
    with pytest.raises(AssertionError, match="differs by"):
        sequences.against_float64(broken, WITH_ZONEOUT if kind == "zoneout" else CASE, device)
    if kind == "hidden":
        with pytest.raises(AssertionError, match="mask is not the given one"):
            sequences.gradient_has_the_mask_of_the_output(broken, CASE, device)


def without(kind):
    def change(launcher):
        def launch(*args, **options):
            *tensors, masks = args
            return launcher(*tensors, {k: mask for k, mask in masks.items() if k != kind}, **options)

        return launch

    return change


@pytest.mark.parametrize("kind", ["hidden", "recurrent", "zoneout"])
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_mask_accepted_and_ignored_is_seen(strategy, where, kind, device):
    """Keras's SimpleRNN once."""
    parts = {"forward": strategy.forward, "backward": strategy.backward}
    broken = SimpleNamespace(**parts | {where: without(kind)(parts[where])})
    with pytest.raises(AssertionError):
        sequences.against_float64(broken, WITH_ZONEOUT if kind == "zoneout" else CASE, device)


def after_the_recurrent_mask(strategy):
    """What zoneout keeps is the old state as it entered W_hh, not as it was: a loop over the strategy, a step at a time."""

    def forward(x, h_0, w, masks, **options):
        outputs, h = [], h_0
        for t, step in enumerate(x):
            now = {kind: MaskBits(mask.bits[t * len(h) : (t + 1) * len(h)], mask.scale) for kind, mask in masks.items()}
            kept = apply_mask.apply_mask(h, now.pop("recurrent"))
            h = strategy.forward(step[None], kept, w, now, **options)[0]
            outputs.append(h)
        return torch.stack(outputs)

    return SimpleNamespace(forward=forward, backward=strategy.backward)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_an_old_state_that_the_recurrent_mask_has_dropped_is_seen(strategy, device):
    broken = after_the_recurrent_mask(strategy)
    with pytest.raises(AssertionError, match="output differs by"):
        sequences.against_float64(broken, WITH_ZONEOUT, device)
    without = WITH_ZONEOUT._replace(zoneout=0)  # where it keeps no old state it is right
    given = sequences.inputs(without)
    x, h_0, w = (v.to(device) for v in given[:3])
    made = sequences.masks(without, given.keeps, device)
    output = broken.forward(x, h_0, w, made, **without.options).cpu()
    assert (output - sequences.oracle(without, given)[0]).abs().max() <= SEQUENCE[torch.float32]


def a_step_late(sizes):
    """A sequence ends a step later, another a step earlier: the rows are as many."""
    return 3, 3, 3


def a_row_to_the_step_after(sizes):
    """The offsets of steps 2 and 3 are a row too small: a sequence ends a step earlier, another a step later."""
    return 3, 2, 2, 2


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("change", [a_step_late, a_row_to_the_step_after])
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_rows_of_another_step_are_seen(strategy, change, where, device):
    def broken(launcher):
        return lambda *args, sizes, **options: launcher(*args, sizes=change(sizes), **options)

    parts = {"forward": strategy.forward, "backward": strategy.backward}
    with pytest.raises(AssertionError, match="differs by"):
        sequences.against_float64(SimpleNamespace(**parts | {where: broken(parts[where])}), PACKED, device)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_gradient_from_the_sign_of_the_output_is_seen(strategy, device):
    """Kept is where the output is positive (trident)."""

    def backward(grad_output, grad_h_n, output, w_hh, masks, **options):
        positive = stream.pack(output.view(-1, CASE.H).cpu() > 0).to(device)
        other = {"hidden": MaskBits(positive, masks["hidden"].scale)}
        return strategy.backward(grad_output, grad_h_n, output, w_hh, masks | other, **options)

    with pytest.raises(AssertionError, match="differs by"):
        sequences.against_float64(SimpleNamespace(forward=strategy.forward, backward=backward), CASE, device)


@pytest.mark.skipif(backend() == "interpreter", reason="the interpreter multiplies in fp32 whatever is asked for")
@pytest.mark.parametrize("strategy", [resident, cooperative], ids=["resident", "cooperative"])
def test_tf32_is_what_it_says(strategy, device):
    """Exact fp32 is within fp32's bound of float64, tf32 only within its own."""
    case = Case(T=3, B=3, H=64)
    given = sequences.inputs(case)
    expected = sequences.oracle(case, given)[0]
    for tf32 in (False, True):
        output = sequences.run(strategy, case._replace(tf32=tf32), given, device)[0]
        error = (output - expected).abs().max() / expected.abs().max()
        assert (error > SEQUENCE[torch.float32]) == tf32 and error <= SEQUENCE["tf32"]

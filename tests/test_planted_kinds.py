"""Bugs of the new kinds of dropout, planted here, must be seen by the tests of test_kinds, test_seeds and test_zoneout."""

import pytest
import torch

import rnndrop.layer
from rnndrop import dropouts, reference
from rnndrop.dropouts import Dropouts
from rnndrop.layer import MaskSource
from rnndrop.mask import Mask
from rnndrop.modules import base
from rnndrop.ops import mask as mask_operator
from tests.helpers import EACH_KIND, EVERY_KIND, INSIDE
from tests.modules import test_kinds, test_seeds, test_zoneout

LENGTHS = [2, 5, 3]


def kinds(lengths=None, **options):
    test_kinds.checked(lengths, **{"bidirectional": True, **options})


def caught(check, *args, **options):
    with pytest.raises(AssertionError, match=r"not (close|equal)"):
        check(*args, **options)


@pytest.fixture(autouse=True)
def without_a_bug():
    kinds(LENGTHS, **EVERY_KIND)
    test_seeds.test_against_the_oracle("every", "step", LENGTHS)
    test_zoneout.check(LENGTHS, bidirectional=True)


def test_the_outputs_mask_on_the_last_state_too(monkeypatch):
    original = base.RNNBase._with_dropout

    def planted(self, *args):
        output, (h_n,) = original(self, *args)
        return output, [torch.cat([h_n[:-1], torch.where(output[-1:] == 0, 0, h_n[-1:])])]

    monkeypatch.setattr(base.RNNBase, "_with_dropout", planted)
    for others in ({}, INSIDE):
        caught(kinds, bidirectional=False, **others, **EACH_KIND["output"])


@pytest.mark.parametrize("kind", ["between", "output"])
def test_one_mask_for_both_directions(monkeypatch, kind):
    outside = MaskSource.outside
    monkeypatch.setattr(MaskSource, "outside", lambda self, *args: outside(self._replace(direction=0), *args))
    caught(kinds, **EACH_KIND[kind])


def test_a_mask_of_the_input_for_each_direction(monkeypatch):
    """The reverse direction reads another input than the forward one."""
    layer = base.RNNBase._layer

    def planted(self, x, initial, weights, dropouts, masks, steps, strategy):
        if masks is None or masks.layer or not dropouts.input_dropout:
            return layer(self, x, initial, weights, dropouts, masks, steps, strategy)
        outputs, states = [], []
        for d, each in enumerate((steps, steps.backwards())):
            keep, scale = masks._replace(layer=0, direction=d).outside("input", dropouts, x[..., 0].numel(), x.shape[-1])
            mine = x if d == 0 else x * (keep != 0).view(x.shape) * scale
            one = masks._replace(direction=d)
            output, last = rnndrop.layer.recurrent_layer(
                mine, [initial[0][d]], weights[d], dropouts, one, each, self.cell, strategy
            )
            outputs.append(output)
            states.append(last[0])
        return torch.cat(outputs, -1), [torch.stack(states)]

    monkeypatch.setattr(base.RNNBase, "_layer", planted)
    kinds(**INSIDE)  # which the plan above leaves as it is
    caught(kinds, **INSIDE, input_dropout=0.2)


@pytest.mark.parametrize("number", [1, 2])
def test_the_input_dropped_with_the_number_of_another_layer(monkeypatch, number):
    outside = MaskSource.outside

    def planted(self, kind, *args):
        return outside(self._replace(layer=number) if kind == "input" else self, kind, *args)

    monkeypatch.setattr(MaskSource, "outside", planted)
    caught(kinds, **EACH_KIND["input"])


def test_the_output_dropped_with_the_number_of_the_first_layer(monkeypatch):
    outside = MaskSource.outside
    monkeypatch.setattr(MaskSource, "outside", lambda self, *args: outside(self._replace(layer=0), *args))
    kinds(**EACH_KIND["input"])
    caught(kinds, **EACH_KIND["output"])


@pytest.mark.parametrize("kind", ["hidden", "recurrent", "between", "input", "output"])
def test_a_mask_per_step_whatever_the_scope(monkeypatch, kind):
    """As the dropout between layers was, before version 0.2."""
    per_step = Dropouts.per_step
    monkeypatch.setattr(Dropouts, "per_step", lambda self, name: name == kind or per_step(self, name))
    for mask_scope in ("sequence", {kind: "sequence"}):
        caught(kinds, mask_scope=mask_scope, **EACH_KIND[kind])


def test_a_scope_that_is_for_all_kinds(monkeypatch):
    """Where a mapping has one for some."""
    per_step = Dropouts.per_step
    monkeypatch.setattr(Dropouts, "per_step", lambda self, name: name == "zoneout" or per_step(self, "hidden"))
    caught(kinds, mask_scope={"hidden": "sequence"}, **EVERY_KIND)


# Of the weights.


def test_a_weight_mask_that_is_transposed(monkeypatch):
    of_weight = MaskSource.of_weight

    def planted(self, *args):
        keep, scale = of_weight(self, *args)
        return Mask(keep.t().contiguous(), scale)

    monkeypatch.setattr(MaskSource, "of_weight", planted)
    caught(kinds, **EACH_KIND["weight"])


def test_one_weight_mask_for_all_layers(monkeypatch):
    of_weight = MaskSource.of_weight
    monkeypatch.setattr(MaskSource, "of_weight", lambda self, *args: of_weight(self._replace(layer=0), *args))
    caught(kinds, **EACH_KIND["weight"])


def test_weights_that_are_not_dropped(monkeypatch):
    """AWD-LSTM's, after an update of PyTorch."""
    monkeypatch.setattr(base, "weight_dropout", lambda weights, *_: weights)
    caught(kinds, **EACH_KIND["weight"])


def test_the_weights_mask_without_its_gradient(monkeypatch):
    """Wrappers that write into the data of the parameter."""
    drop = base.weight_dropout

    def planted(weights, *args):
        dropped = drop(weights, *args).w_hh
        return weights._replace(w_hh=weights.w_hh + (dropped - weights.w_hh).detach())

    monkeypatch.setattr(base, "weight_dropout", planted)
    caught(kinds, **EACH_KIND["weight"])


# Of zoneout.


def with_step(monkeypatch, zone):
    """Layers run the plain loop with a zone(old, the old one after the recurrent mask, new, mask); the oracle keeps its own."""

    def step(x, states, weights, masks, activation):
        (h,), linear = states, torch.nn.functional.linear
        dropped = reference.dropout(h, masks.get("recurrent"))
        a = linear(x, weights.w_ih, weights.b_ih) + linear(dropped, weights.w_hh, weights.b_hh)
        new, mask = reference.dropout(a, masks.get("hidden"), activation), masks.get("zoneout")
        return (new if mask is None else zone(h, dropped, new, mask),)

    def layer(input, states, weights, masks, steps, cell, strategy):
        with monkeypatch.context() as patch:
            patch.setitem(reference.STEP, cell.mode, step)
            return reference.layer(input, states, weights, masks, steps, cell)

    monkeypatch.setattr(rnndrop.layer.layer_operator, "layer", layer)


def test_zoneout_that_is_scaled(monkeypatch):
    """As a dropout is, so that the new state makes up for the old one."""
    scale = 1 / (1 - EVERY_KIND["zoneout"])
    with_step(monkeypatch, lambda old, _, new, mask: reference.zone(old, new * scale, mask))
    kinds(hidden_dropout=0.3, recurrent_dropout=0.4)
    caught(kinds, **EACH_KIND["zoneout"])


def test_the_old_state_after_the_recurrent_mask(monkeypatch):
    """Zoneout carries h_{t-1} itself."""
    with_step(monkeypatch, lambda _, dropped, new, mask: reference.zone(dropped, new, mask))
    kinds(**EACH_KIND["zoneout"])
    caught(kinds, recurrent_dropout=0.4, **EACH_KIND["zoneout"])


def test_old_and_new_swapped(monkeypatch):
    with_step(monkeypatch, lambda old, _, new, mask: reference.zone(new, old, mask))
    caught(kinds, **EACH_KIND["zoneout"])


def test_zoneout_per_sequence(monkeypatch):
    per_step = Dropouts.per_step
    monkeypatch.setattr(Dropouts, "per_step", lambda self, name: name != "zoneout" and per_step(self, name))
    caught(kinds, **EACH_KIND["zoneout"])


def test_the_shares_of_the_expectation_swapped(monkeypatch):
    share = dropouts.share
    monkeypatch.setattr(dropouts, "share", lambda p: 1 - share(p))
    caught(test_zoneout.check)
    caught(test_zoneout.test_a_cell, "tanh", True, test_zoneout.P, torch.float64)


def test_the_share_that_was_asked_for(monkeypatch):
    """Not that of the masks, in units of 1/65536."""
    monkeypatch.setattr(dropouts, "share", lambda p: p)
    caught(test_zoneout.check, zoneout=1 / 3)


# Of the seeds.


def test_seeds_by_the_sorted_position(monkeypatch):
    """Instead of the user's."""
    draw = mask_operator.sequence_mask

    def planted(seed, *rest):
        return draw(seed, *rest[:-2], None if seed.shape[0] > 1 else rest[-2], rest[-1])

    monkeypatch.setattr(rnndrop.layer, "sequence_mask", planted)
    kinds(LENGTHS, **EVERY_KIND)
    test_seeds.test_against_the_oracle("every", "step", [5, 3, 1])
    caught(test_seeds.test_against_the_oracle, "every", "step", LENGTHS)


def test_a_seed_that_numbers_its_rows_as_in_the_batch(monkeypatch):
    """Row t * B + b of its stream, which it would not have alone."""
    keep_bytes = mask_operator.keep_bytes

    def planted(seed, rows, *rest):
        return keep_bytes(seed, 3 * rows, *rest)[::3]

    monkeypatch.setattr(mask_operator, "keep_bytes", planted)
    caught(test_seeds.test_against_the_oracle, "every", "step", None)


def test_the_first_seed_for_all(monkeypatch):
    original = base.seed_tensor
    monkeypatch.setattr(base, "seed_tensor", lambda *args: original(*args)[:1])
    caught(test_seeds.test_against_the_oracle, "hidden", "sequence", None)


def test_a_weight_mask_of_another_seed_than_the_first(monkeypatch):
    of_weight = MaskSource.of_weight
    monkeypatch.setattr(MaskSource, "of_weight", lambda self, *args: of_weight(self._replace(seed=self.seed.flip(0)), *args))
    kinds(**EACH_KIND["weight"])
    caught(test_seeds.test_against_the_oracle, "weight", "step", None)

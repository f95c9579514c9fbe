"""Bugs of GRU and LSTM, planted here, must be seen by the check that test_gated_kinds, test_gated_cells and others make."""

import types

import pytest
import torch
from torch.nn.functional import linear

import rnndrop.layer
from rnndrop import one_step, reference
from rnndrop.dropouts import Dropouts
from rnndrop.layer import MaskSource
from rnndrop.mask import Mask
from rnndrop.reference import dropout, zone
from tests.helpers import each_kind, every_kind, inside
from tests.modules import test_gated_cells, test_gated_zoneout
from tests.modules.checks import checked

LENGTHS = [2, 5, 3]
OF_GATED = ["candidate", "cell", "cell_zoneout"]


def caught(check, *args, **options):
    with pytest.raises(AssertionError, match=r"not (close|equal)"):
        check(*args, **options)


def with_layer(monkeypatch, planted):
    """Modules run `planted` for each layer, whatever their strategy; the oracle keeps the loop of the package."""
    instead = types.SimpleNamespace(layer=planted, STEP=reference.STEP)
    monkeypatch.setattr(rnndrop.layer, "reference", instead)
    monkeypatch.setattr(rnndrop.layer.layer_operator, "layer", lambda *args: planted(*args[:-1]))


def with_step(monkeypatch, cell, step):
    def layer(input, states, weights, masks, steps, cell_):
        with monkeypatch.context() as patch:
            patch.setitem(reference.STEP, cell, step)
            return reference.layer(input, states, weights, masks, steps, cell_)

    with_layer(monkeypatch, layer)


def lstm(bug):
    """The step with a bug of that name; without one it is the package's."""

    def step(x, states, weights, masks, activation):
        h, c = states
        entering, of_x = dropout(h, masks.get("recurrent")), linear(x, weights.w_ih, weights.b_ih)
        gates = of_x + linear(entering, weights.w_hh, weights.b_hh)
        i, f, g, o = gates.chunk(4, -1)
        if bug == "forget and input swapped":
            i, f = f, i
        if bug == "candidate and output swapped":
            g, o = o, g
        if bug == "a recurrent mask that one gate lacks":
            o = (of_x + linear(h, weights.w_hh, weights.b_hh)).chunk(4, -1)[3]
        u, d = masks.get("candidate"), masks.get("cell")
        candidate, i, f, o = torch.tanh(g), torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o)
        if bug == "the candidate's mask on the forget gate":
            f = dropout(f, u)
        elif bug == "the candidate's mask on the output gate":
            o = dropout(o, u)
        elif bug == "the candidate's mask on the cell state":
            c = dropout(c, u)
        else:
            candidate = dropout(candidate, u)
        whole = f * c + i * candidate
        new = dropout(whole, d)
        made = o * torch.tanh(whole if bug == "a cell mask that is kept and not shown" else new)
        if bug == "c masked twice":
            new = dropout(new, d)
        if bug == "a cell mask that is shown and not kept":
            new = whole
        zoned = zone(c, new, masks.get("cell_zoneout"))
        if bug == "h from the zoned c":
            made = o * torch.tanh(zoned)
        if bug == "h from the old c":
            made = o * torch.tanh(c)
        if bug == "old and new of c swapped":
            zoned = zone(new, c, masks.get("cell_zoneout")) if "cell_zoneout" in masks else new
        old = entering if bug == "zoneout of h after the recurrent mask" else h
        return zone(old, dropout(made, masks.get("hidden")), masks.get("zoneout")), zoned

    return step


def gru(bug):
    def step(x, states, weights, masks, activation):
        (h,), u = states, masks.get("candidate")
        entering = dropout(h, masks.get("recurrent"))
        of_x = linear(x, weights.w_ih, weights.b_ih).chunk(3, -1)
        of_h = linear(entering, weights.w_hh, weights.b_hh).chunk(3, -1)
        r, z = torch.sigmoid(of_x[0] + of_h[0]), torch.sigmoid(of_x[1] + of_h[1])
        if bug == "reset and update swapped":
            r, z = z, r
        n = of_x[2] + r * of_h[2]
        if bug == "b_hn outside of r":
            b_hn = weights.b_hh.chunk(3)[2]
            n = of_x[2] + r * (of_h[2] - b_hn) + b_hn
        if bug == "r before the product":
            n = of_x[2] + linear(r * entering, weights.w_hh.chunk(3)[2], weights.b_hh.chunk(3)[2])
        candidate = torch.tanh(n)
        if bug == "the candidate's mask on the update gate":
            z = dropout(z, u)
        elif bug == "the candidate's mask on the reset gate":
            candidate = torch.tanh(of_x[2] + dropout(r, u) * of_h[2])
        elif bug == "the candidate's mask inside of its tanh":
            candidate = torch.tanh(dropout(n, u))
        else:
            candidate = dropout(candidate, u)
        carried = entering if bug == "a recurrent mask on the carry" else h
        made = z * candidate + (1 - z) * carried if bug == "z and 1 - z swapped" else (1 - z) * candidate + z * carried
        if bug == "a hidden mask of the candidate alone":
            new = (1 - z) * dropout(candidate, masks.get("hidden")) + z * carried
        else:
            new = dropout(made, masks.get("hidden"))
        old = entering if bug == "zoneout of h after the recurrent mask" else h
        return (zone(old, new, masks.get("zoneout")),)

    return step


# By bug the rates at which it is seen, and those, if any, at which it is not.
OF_LSTM = {
    "forget and input swapped": (dict(hidden_dropout=0.3), None),
    "candidate and output swapped": (dict(hidden_dropout=0.3), None),
    "a recurrent mask that one gate lacks": (dict(recurrent_dropout=0.4), dict(hidden_dropout=0.3)),
    "the candidate's mask on the forget gate": (dict(candidate_dropout=0.25), dict(cell_dropout=0.2)),
    "the candidate's mask on the output gate": (dict(candidate_dropout=0.25), dict(cell_dropout=0.2)),
    "the candidate's mask on the cell state": (dict(candidate_dropout=0.25), dict(cell_dropout=0.2)),
    "a cell mask that is kept and not shown": (dict(cell_dropout=0.2), dict(candidate_dropout=0.25)),
    "a cell mask that is shown and not kept": (dict(cell_dropout=0.2), dict(candidate_dropout=0.25)),
    "c masked twice": (dict(cell_dropout=0.2), dict(cell_zoneout=0.35)),
    "h from the zoned c": (dict(cell_zoneout=0.35), dict(zoneout=0.15, cell_dropout=0.2)),
    "h from the old c": (dict(cell_zoneout=0.35), None),
    "old and new of c swapped": (dict(cell_zoneout=0.35), dict(zoneout=0.15)),
    "zoneout of h after the recurrent mask": (dict(zoneout=0.15, recurrent_dropout=0.4), dict(zoneout=0.15)),
}
OF_GRU = {
    "reset and update swapped": (dict(hidden_dropout=0.3), None),
    "b_hn outside of r": (dict(hidden_dropout=0.3), dict(hidden_dropout=0.3, bias=False)),
    "r before the product": (dict(hidden_dropout=0.3), None),
    "the candidate's mask on the update gate": (dict(candidate_dropout=0.25), dict(hidden_dropout=0.3)),
    "the candidate's mask on the reset gate": (dict(candidate_dropout=0.25), dict(hidden_dropout=0.3)),
    "the candidate's mask inside of its tanh": (dict(candidate_dropout=0.25), dict(hidden_dropout=0.3)),
    "a recurrent mask on the carry": (dict(recurrent_dropout=0.4), dict(candidate_dropout=0.25)),
    "z and 1 - z swapped": (dict(hidden_dropout=0.3), None),
    "a hidden mask of the candidate alone": (dict(hidden_dropout=0.3), dict(candidate_dropout=0.25)),
    "zoneout of h after the recurrent mask": (dict(zoneout=0.15, recurrent_dropout=0.4), dict(zoneout=0.15)),
}
MADE = {"GRU": gru, "LSTM": lstm}
BUGS = [("GRU", bug, *rates) for bug, rates in OF_GRU.items()] + [("LSTM", bug, *rates) for bug, rates in OF_LSTM.items()]


@pytest.mark.parametrize("cell", MADE)
def test_without_a_bug(monkeypatch, cell):
    """What stands in for the package here is right but for its bugs."""
    with_step(monkeypatch, cell, MADE[cell](None))
    for lengths in (None, LENGTHS):
        checked(lengths, cell=cell, bidirectional=True, **every_kind(cell))


@pytest.mark.parametrize("cell, bug, seen, unseen", BUGS, ids=[f"{cell}: {bug}" for cell, bug, *_ in BUGS])
def test_a_step(monkeypatch, cell, bug, seen, unseen):
    step = MADE[cell](bug)
    if unseen is not None and unseen.get("bias", True):
        with_step(monkeypatch, cell, step)
        checked(cell=cell, **unseen)
    with_step(monkeypatch, cell, step)
    for lengths in (None, LENGTHS):
        caught(checked, lengths, cell=cell, **seen)
        caught(checked, lengths, cell=cell, bidirectional=True, **every_kind(cell))


@pytest.mark.parametrize("cell", MADE)
def test_a_hidden_mask_that_the_next_step_does_not_see(monkeypatch, cell):
    """nn.Dropout after the layer."""

    def planted(input, states, weights, masks, steps, cell_):
        others = {kind: mask for kind, mask in masks.items() if kind != "hidden"}
        output, last = reference.layer(input, states, weights, others, steps, cell_)
        if "hidden" in masks:
            output = dropout(output.flatten(0, -2), masks["hidden"]).view(output.shape)
        return output, last

    with_layer(monkeypatch, planted)
    checked(cell=cell, candidate_dropout=0.25)
    caught(checked, cell=cell, hidden_dropout=0.3)


# Masks.


def each_of_gated():
    return pytest.mark.parametrize("cell, kind", [("GRU", "candidate"), *(("LSTM", kind) for kind in OF_GATED)])


@each_of_gated()
@pytest.mark.parametrize("change", ["direction", "layer", "kind", "step", "sequence"])
def test_a_mask_of_another(monkeypatch, cell, kind, change):
    inside_of = MaskSource.inside

    def planted(self, name, dropouts, rows, columns):
        if name != kind:
            return inside_of(self, name, dropouts, rows, columns)
        if change in ("direction", "layer"):
            return inside_of(self._replace(**{change: 0}), name, dropouts, rows, columns)
        if change == "kind":
            rates = dropouts.replace("hidden_dropout", dropouts.rate(name))
            return inside_of(self, "hidden", rates, rows, columns)
        keep, scale = inside_of(self, name, dropouts, rows, columns)
        return Mask(keep.roll(3 if change == "step" else 1, 0), scale)

    monkeypatch.setattr(MaskSource, "inside", planted)
    caught(checked, cell=cell, bidirectional=True, **each_kind(cell)[kind])


@each_of_gated()
def test_another_scope(monkeypatch, cell, kind):
    """Per step whatever was asked for, and a zoneout per sequence."""
    per_step = Dropouts.per_step
    asked = kind != "cell_zoneout"
    monkeypatch.setattr(Dropouts, "per_step", lambda self, name: asked if name == kind else per_step(self, name))
    caught(checked, cell=cell, mask_scope="sequence", **each_kind(cell)[kind])


@each_of_gated()
def test_a_scale_that_is_missing_or_too_much(monkeypatch, cell, kind):
    inside_of = MaskSource.inside

    def planted(self, name, *args):
        keep, scale = inside_of(self, name, *args)
        return Mask(keep, 1.0 if name == kind else scale)

    monkeypatch.setattr(MaskSource, "inside", planted)
    if kind == "cell_zoneout":
        checked(cell=cell, **each_kind(cell)[kind])
    else:
        caught(checked, cell=cell, **each_kind(cell)[kind])


def test_one_rate_for_both_zoneouts_in_evaluation(monkeypatch):
    rates = dict(zoneout=0.15, cell_zoneout=0.35)
    test_gated_zoneout.check("LSTM", **rates)
    rate = Dropouts.rate
    monkeypatch.setattr(Dropouts, "rate", lambda self, kind: rate(self, "zoneout" if kind == "cell_zoneout" else kind))
    caught(test_gated_zoneout.check, "LSTM", **rates)


def test_the_cells_zoneout_forgotten_in_evaluation(monkeypatch):
    original = Dropouts.in_evaluation
    monkeypatch.setattr(Dropouts, "in_evaluation", lambda self: original(self).replace("cell_zoneout", 0.0))
    caught(test_gated_zoneout.check, "LSTM", zoneout=0.15, cell_zoneout=0.35)


# One step.


@pytest.mark.parametrize("cell", MADE)
@pytest.mark.parametrize("kind", ["hidden", "recurrent", *OF_GATED, "zoneout"])
def test_a_kind_that_a_single_step_forgets(monkeypatch, cell, kind):
    if kind not in each_kind(cell):
        return
    original = one_step.STEP[cell]

    def planted(x, states, weights, factors, zoneouts, mode):
        factors, zoneouts = ({name: m for name, m in masks.items() if name != kind} for masks in (factors, zoneouts))
        return original(x, states, weights, factors, zoneouts, mode)

    monkeypatch.setitem(one_step.STEP, cell, planted)
    others = {name: p for name, p in inside(cell).items() if name not in each_kind(cell)[kind]}
    checked(cell=cell, steps=1, **others)
    test_gated_cells.check(cell, **others)
    caught(checked, cell=cell, steps=1, **each_kind(cell)[kind])
    caught(test_gated_cells.check, cell, **each_kind(cell)[kind])

"""What is wrong is not timed."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cases import BOTH, HIDDEN, RATES, Case, Cell, with_dropouts
from benchmarks.contenders import BY_NAME, EVERYONE
from benchmarks.contenders.base import Contender, Model, Wrapped, source
from benchmarks.contenders.loops import KINDS, Loop, States, Step
from benchmarks.measure import check as check_module
from benchmarks.measure.check import STEPS, Wrong, check
from rnndrop.kinds import KINDS as KINDS_TABLE
from tests.benchmarks.helpers import GATED_TINY, PLAIN, RNNDROP, TINY

WIDE = replace(TINY, T=12, B=16, I=64, H=64)
EACH = [(cell, name) for cell, names in KINDS.items() for name in names]
DROPPED = [name for name in KINDS["RNN"] if name != "zoneout"]
Drop = Callable[..., Tensor]


def checked(contender: Contender, case: Case) -> None:
    check(contender, case, source(case, "cpu"), case.input("cpu"))


def kind_of(name: str) -> str:
    return "between" if name == "dropout" else name.removesuffix("_dropout")


def rates(cell: str) -> dict[str, float]:
    """Of all kinds that the loop has."""
    return {name: RATES[cell][name] for name in KINDS[cell]}


@pytest.mark.parametrize("scope", ["step", "sequence"])
@pytest.mark.parametrize(("cell", "name"), EACH)
def test_wrong_drop_rate_is_caught(cell: Cell, name: str, scope: str) -> None:
    """Of each kind while all others are right."""

    def build(case: Case, rnn: nn.RNNBase) -> Model:
        return Loop(replace(case, dropouts=case.dropouts | {name: case.rate(name) * 1.5}), rnn)

    case = with_dropouts(replace(WIDE, cell=cell), rates(cell), scope)
    checked(BY_NAME["loop"], case)
    with pytest.raises(Wrong, match=rf"drops 0\.\d+ of the units by {kind_of(name)} dropout|{kind_of(name)} masks"):
        checked(Contender("wrong rate", build, KINDS[cell]), case)


def test_wrong_drop_rate_is_caught_where_another_kind_is_had_instead() -> None:
    def build(factor: float, case: Case, rnn: nn.RNNBase) -> Model:
        return Loop(replace(case, dropouts={"recurrent_dropout": factor * case.rate("hidden_dropout")}), rnn)

    kinds = {"kinds": ("recurrent_dropout",), "instead": {"hidden_dropout": "recurrent_dropout"}}
    right, wrong = (Contender("recurrent only", functools.partial(build, factor), **kinds) for factor in (1.0, 1.5))
    checked(right, WIDE)
    with pytest.raises(Wrong, match=r"drops 0\.[23]\d* of the units by recurrent dropout"):
        checked(wrong, WIDE)


def drawn(x: Tensor, p: float, *shape: int, generator: torch.Generator | None = None) -> Tensor:
    return (torch.rand(shape or x.shape, generator=generator) >= p) / (1 - p)


def one_for_all_rows(x: Tensor, p: float) -> Tensor:
    return x * drawn(x, p, *x.shape[:-2], 1, x.shape[-1])


def one_for_all_calls(x: Tensor, p: float) -> Tensor:
    return x * drawn(x, p, generator=torch.Generator().manual_seed(0))


def not_in_the_gradient(x: Tensor, p: float) -> Tensor:
    return x + (x * drawn(x, p) - x).detach()


WRONG_DROPOUTS: dict[str, tuple[Drop, str]] = {
    "one for all rows": (one_for_all_rows, "for every"),
    "one for all calls": (one_for_all_calls, "in every call"),
    "no scale": (lambda x, p: x * (drawn(x, p) > 0), r"masks of its own|drops 0\.1"),
    "not in the gradient": (not_in_the_gradient, r"masks of its own|by weight dropout"),
    "nothing is dropped": (lambda x, p: x, r"drops 0\.000"),
}


@pytest.mark.parametrize("wrong", WRONG_DROPOUTS)
@pytest.mark.parametrize("name", DROPPED)
def test_masks_of_its_own_are_looked_at(name: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def use(drop: Drop) -> None:
        def dropout(x: Tensor, p: float, training: bool, inplace: bool = False) -> Tensor:
            return drop(x, p) if training and p else x

        monkeypatch.setattr(nn.functional, "dropout", dropout)

    case = with_dropouts(WIDE, {name: 0.2})
    use(lambda x, p: x * drawn(x, p))
    checked(BY_NAME["loop"], case)
    drop, reason = WRONG_DROPOUTS[wrong]
    use(drop)
    with pytest.raises(Wrong, match=reason):
        checked(BY_NAME["loop"], case)


class OneMask(Step):
    """Zoneout by one mask for all steps."""

    def begin(self, h: Tensor) -> None:
        super().begin(h)
        self.mask = torch.rand_like(h) < max(self.zoneouts)

    def zone(self, p: float, old: Tensor, new: Tensor) -> Tensor:
        return torch.where(self.mask, old, new)


def zoning(zone: Callable[[float, Tensor, Tensor], Tensor]) -> type[Step]:
    return type("Planted", (Step,), {"zone": lambda self, p, old, new: zone(p, old, new)})


WRONG_ZONEOUTS: dict[str, tuple[type[Step], str]] = {
    "one for all steps": (OneMask, "at every step"),
    "one for all sequences": (zoning(lambda p, old, new: torch.where(torch.rand(64) < p, old, new)), "every sequence"),
    "scaled": (zoning(lambda p, old, new: torch.where(torch.rand_like(new) < p, old, new / (1 - p))), "masks of its own"),
    "the wrong way": (zoning(lambda p, old, new: torch.where(torch.rand_like(new) < p, new, old)), r"drops 0\.[89]"),
    "zeroes": (zoning(lambda p, old, new: torch.where(torch.rand_like(new) < p, 0, new)), r"drops 0\.0|masks of its own"),
    "no gradient": (zoning(lambda p, old, new: torch.where(torch.rand_like(new) < p, old.detach(), new)), "the gradient"),
}


@pytest.mark.parametrize("wrong", WRONG_ZONEOUTS)
@pytest.mark.parametrize(("cell", "name"), [("RNN", "zoneout"), ("LSTM", "zoneout"), ("LSTM", "cell_zoneout")])
def test_zoneout_is_looked_at(cell: Cell, name: str, wrong: str) -> None:
    step, reason = WRONG_ZONEOUTS[wrong]
    case = with_dropouts(replace(WIDE, cell=cell), {name: 0.1})
    with pytest.raises(Wrong, match=reason):
        checked(Contender("planted", lambda case, rnn: Loop(case, rnn, step=step), KINDS[cell]), case)


class ZonedFirst(Step):
    """The output is made of the cell state that zoneout has left."""

    def new(self, x: Tensor, states: States) -> States:
        h, c = super().new(x, states)
        zoned = self.zone(max(self.zoneouts), states[1], c)
        return h / torch.tanh(c) * torch.tanh(zoned), zoned

    def zoned(self, old: States, new: States) -> States:
        return new


class CarriesWhole(Step):
    """The state goes on whole."""

    def begin(self, h: Tensor) -> None:
        super().begin(h)
        self.whole = h, h

    def forward(self, x: Tensor, states: States) -> States:
        h, c = self.whole = self.new(x, self.whole)
        return self.hidden(h), c


class DropsTheCellState(Step):
    def forward(self, x: Tensor, states: States) -> States:
        h, c = super().forward(x, states)
        return h, self.hidden(c)


WRONG_STATES: dict[str, tuple[type[Step], str]] = {
    "h of the zoned c": (ZonedFirst, "cell_zoneout"),
    "h goes on whole": (CarriesWhole, "hidden_dropout"),
    "c is dropped too": (DropsTheCellState, "hidden_dropout"),
}


@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_both_states_of_an_lstm_are_looked_at(wrong: str) -> None:
    step, name = WRONG_STATES[wrong]
    case = with_dropouts(replace(WIDE, cell="LSTM"), {name: 0.2})
    with pytest.raises(Wrong, match=r"masks of its own|drops 0\."):
        checked(Contender("planted", lambda case, rnn: Loop(case, rnn, step=step), KINDS["LSTM"]), case)


def test_the_weight_has_one_mask_for_all_steps() -> None:
    class EachStep(Step):
        def new(self, x: Tensor, states: States) -> States:
            self.begin(states[0])
            return super().new(x, states)

    case = with_dropouts(WIDE, {"weight_dropout": 0.2})
    with pytest.raises(Wrong, match="weight"):
        checked(Contender("planted", lambda case, rnn: Loop(case, rnn, step=EachStep), KINDS["RNN"]), case)


@pytest.mark.parametrize(("cell", "asked", "had"), [(cell, name, had) for cell, name in EACH for had in KINDS[cell]])
def test_no_kind_passes_for_another(cell: Cell, asked: str, had: str) -> None:
    def build(case: Case, rnn: nn.RNNBase) -> Model:
        return Loop(replace(case, dropouts={had if name == asked else name: p for name, p in case.dropouts.items()}), rnn)

    case, contender = with_dropouts(replace(WIDE, cell=cell), {asked: 0.2}), Contender("planted", build, KINDS[cell])
    if asked == had:
        return checked(contender, case)
    with pytest.raises(Wrong):
        checked(contender, case)


@pytest.mark.parametrize(("cell", "name"), [(cell, name) for cell in RATES for name in RATES[cell] if name != "weight_dropout"])
def test_the_network_shows_every_pattern_of_dropped_steps(cell: Cell, name: str) -> None:
    """Of two that differ where they can be seen the outputs are apart, and a candidate's are no new state's."""
    kind = next(kind for kind, known in KINDS_TABLE.items() if known.argument == name)
    case = replace(TINY, cell=cell, T=STEPS, layers=1 + (kind == "between"))
    network = check_module._showing(case, kind, "cpu")
    shown = check_module._shown(case, network, kind, 1.25)
    dropped = check_module._bits(torch.arange(2**STEPS), shown.device)[check_module._visible(kind)]
    apart = (dropped.unsqueeze(1) != dropped.unsqueeze(2)).any(0)
    assert apart.any() and (shown.unsqueeze(1) - shown.unsqueeze(2)).abs().amax(0)[apart].min() > 0.05
    if kind == "candidate":
        assert (shown - check_module._shown(case, network, "hidden", 1.25)).abs().max() > 0.05


@pytest.mark.parametrize("name", ["b_ih[0]", "b_hh[1]", "w_ih[2]", "w_hh[3]", "x"])
def test_every_gradient_is_looked_at(name: str) -> None:
    case = replace(TINY, layers=2, bidirectional=True, input_grad=True)

    def build(case: Case, rnn: nn.RNNBase) -> Model:
        model = PLAIN.build(case, rnn)
        kind, number = (name[:-3], int(name[-2])) if name != "x" else ("", 0)
        if kind:
            position = ("w_ih", "w_hh", "b_ih", "b_hh").index(kind)
            model.rnn.all_weights[number][position].register_hook(torch.zeros_like)  # type: ignore[union-attr, index]
        else:
            forward = model.forward
            model.forward = lambda x, seed=None: forward(x.detach() + 0 * x)  # type: ignore[method-assign]
        return model

    with pytest.raises(Wrong, match=re.escape(f"the gradient of {name} ")):
        check(Contender("broken", build), case, source(case, "cpu"), torch.randn(4, 3, 5))


def test_dropout_only_with_a_seed_is_caught() -> None:
    def build(case: Case, rnn: nn.RNNBase) -> Model:
        model, plain = RNNDROP.build(case, rnn), PLAIN.build(case, rnn)
        forward = model.forward
        model.forward = lambda x, seed=None: forward(x, seed=seed) if seed else plain(x)  # type: ignore[method-assign]
        model.gradients = lambda: [  # type: ignore[method-assign]
            [a if a is not None else b for a, b in zip(*groups, strict=True)]
            for groups in zip(Wrapped.gradients(model), plain.gradients(), strict=True)  # type: ignore[arg-type]
        ]
        return model

    with pytest.raises(Wrong, match=r"drops 0\.000"):
        check(Contender("seed", build, seeded=True), TINY, source(TINY, "cpu"), torch.randn(4, 3, 5))


def test_evaluation_is_judged_before_it_can_spoil_its_input() -> None:
    class Spoils(Wrapped):
        def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
            x.zero_()
            return torch.zeros(4, 3, 16)

    case = replace(TINY, pass_="inference")
    contender = Contender("spoils", lambda case, rnn: Spoils(case, rnn))
    with pytest.raises(Wrong, match="in evaluation"):
        checked(contender, case)


@pytest.mark.parametrize(("cell", "name"), [("RNN", "zoneout"), ("GRU", "zoneout"), ("LSTM", "cell_zoneout")])
def test_evaluation_with_zoneout_is_its_expectation(cell: Cell, name: str) -> None:
    case = replace(with_dropouts(replace(TINY, cell=cell), {name: 0.1}), pass_="inference")
    for contender in (RNNDROP, BY_NAME["loop"], PLAIN):  # of which the last has no zoneout
        checked(contender, case)
    with pytest.raises(Wrong, match="in evaluation"):
        checked(Contender("none in evaluation", PLAIN.build, (name,)), case)
    with pytest.raises(Wrong, match="in evaluation"):
        checked(Contender("zones in evaluation", BY_NAME["loop"].build), case)


@pytest.mark.parametrize(
    "case",
    [TINY, replace(TINY, packed=True, T=9), with_dropouts(TINY, {"zoneout": 0.1}), *GATED_TINY],
    ids=lambda case: case.name,
)
def test_wrong_mask_is_caught(case: Case) -> None:
    def build(case: Case, rnn: nn.RNNBase) -> Model:
        model = RNNDROP.build(case, rnn)
        forward = model.forward
        model.forward = lambda x, seed=None: forward(x, seed=None if seed is None else seed + 1)  # type: ignore[method-assign]
        return model

    with pytest.raises(Wrong, match="with dropout"):
        checked(Contender("wrong mask", build, seeded=True, packs=True), case)


@pytest.mark.parametrize(
    "case",
    [
        *[with_dropouts(replace(TINY, cell=cell), {name: p}) for cell in RATES for name, p in RATES[cell].items()],
        *[with_dropouts(replace(TINY, cell=cell), RATES[cell]) for cell in RATES],
        with_dropouts(TINY, BOTH, "sequence"),
        replace(with_dropouts(TINY, RATES["RNN"], "sequence"), bidirectional=True),
        replace(TINY, dtype="bf16"),
        replace(TINY, input_grad=True),
        replace(TINY, pass_="forward"),
        replace(TINY, T=1, B=1),
        replace(TINY, packed=True, T=9, dropouts=HIDDEN),
        replace(with_dropouts(TINY, RATES["RNN"]), packed=True, T=9, bidirectional=True),
        *[
            replace(with_dropouts(tiny, RATES[tiny.cell], "sequence"), packed=True, T=9, bidirectional=True)
            for tiny in GATED_TINY
        ],
        *[replace(tiny, dtype="bf16") for tiny in GATED_TINY],
        *[replace(tiny, pass_="inference") for tiny in GATED_TINY],
        replace(TINY, packed=True, T=9, pass_="inference"),
    ],
    ids=lambda case: " ".join(case.key),
)
def test_every_kind_of_case_passes_its_checks(case: Case) -> None:
    case = replace(case, who="most")
    for contender in EVERYONE:
        if not contender.why_not(case, "cpu"):
            checked(contender, case)

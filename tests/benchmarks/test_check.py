"""What is wrong is not timed."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cases import Case
from benchmarks.contenders import BY_NAME, EVERYONE
from benchmarks.contenders.base import Contender, Model, Wrapped, source
from benchmarks.contenders.loops import Loop
from benchmarks.contenders.torch_nn import copy_of
from benchmarks.measure.check import Wrong, check
from tests.benchmarks.helpers import NN_RNN, RNNDROP, TINY

BOTH = {"hidden_dropout": 0.2, "recurrent_dropout": 0.2}


@pytest.mark.parametrize("scope", ["step", "sequence"])
@pytest.mark.parametrize("kind", ["hidden", "recurrent"])
def test_wrong_drop_rate_is_caught(kind: str, scope: str) -> None:
    """Of each kind while the other is right."""

    rate = f"{kind}_dropout"

    def build(case: Case, rnn: nn.RNN) -> Model:
        return Loop(replace(case, dropouts=case.dropouts | {rate: case.rate(rate) * 1.5}), rnn)

    x = torch.randn(12, 16, 5)
    case = replace(TINY, T=12, B=16, H=64, dropouts=BOTH, mask_scope=scope)
    check(BY_NAME["loop"], case, source(case, "cpu"), x)
    with pytest.raises(Wrong, match=rf"drops 0\.[23]\d* of the units by {kind} dropout"):
        check(Contender("wrong rate", build, tuple(BOTH)), case, source(case, "cpu"), x)


def test_wrong_drop_rate_is_caught_where_only_recurrent_dropout_is_had() -> None:
    """Of a case with hidden dropout."""

    def build(factor: float, case: Case, rnn: nn.RNN) -> Model:
        rate = factor * (case.rate("recurrent_dropout") or case.rate("hidden_dropout"))
        return Loop(replace(case, dropouts={"recurrent_dropout": rate}), rnn)

    x = torch.randn(12, 16, 5)
    case = replace(TINY, T=12, B=16, H=64)
    kinds = ("recurrent_dropout",)
    right, wrong = (Contender("recurrent only", functools.partial(build, factor), kinds) for factor in (1.0, 1.5))
    check(right, case, source(case, "cpu"), x)
    with pytest.raises(Wrong, match=r"drops 0\.[23]\d* of the units by recurrent dropout"):
        check(wrong, case, source(case, "cpu"), x)


class Own(Wrapped):
    """nn.RNN and a dropout of its own."""

    def __init__(self, rnn: nn.RNN, drop: Callable[[Tensor], Tensor]) -> None:
        super().__init__(copy_of(rnn))
        self.drop = drop

    def forward(self, x: Tensor, seed: int | None = None) -> Tensor:
        y = super().forward(x)
        return self.drop(y) if self.training else y


def drawn(*shape: int) -> Tensor:
    return (torch.rand(shape) >= 0.2) / 0.8


FIXED = drawn(12, 16, 64)


@pytest.mark.parametrize(
    ("drop", "reason"),
    [
        (lambda y: y * drawn(len(y), 16, 64), ""),
        (lambda y: y * drawn(len(y), 1, 64), "for every sequence"),
        (lambda y: y * FIXED, "in every call"),
        (lambda y: y * (drawn(len(y), 16, 64) > 0), "kept by dropout"),
        (lambda y: y if y.requires_grad else y * drawn(len(y), 16, 64), "drops 0.000"),
        (lambda y: y + (y * drawn(len(y), 16, 64) - y).detach(), "the gradient of b_ih"),
    ],
    ids=["right", "one for all rows", "one for all calls", "no scale", "not in training", "not in the gradient"],
)
def test_masks_of_its_own_are_looked_at(drop: Callable[[Tensor], Tensor], reason: str) -> None:
    case = replace(TINY, T=12, B=16, H=64)
    contender = Contender(
        "own", lambda case, rnn: Own(rnn, drop if case.rate("hidden_dropout") else torch.clone), ("hidden_dropout",)
    )
    with pytest.raises(Wrong, match=reason) if reason else nullcontext():
        check(contender, case, source(case, "cpu"), torch.randn(12, 16, 5))


@pytest.mark.parametrize("name", ["b_ih[0]", "b_hh[1]", "w_ih[2]", "w_hh[3]", "x"])
def test_every_gradient_is_looked_at(name: str) -> None:
    case = replace(TINY, layers=2, bidirectional=True, input_grad=True)

    def build(case: Case, rnn: nn.RNN) -> Model:
        model = NN_RNN.build(case, rnn)
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
    def build(case: Case, rnn: nn.RNN) -> Model:
        model, plain = RNNDROP.build(case, rnn), NN_RNN.build(case, rnn)
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
    contender = Contender("spoils", lambda case, rnn: Spoils(rnn))
    with pytest.raises(Wrong, match="in evaluation"):
        check(contender, case, source(case, "cpu"), torch.randn(4, 3, 5))


def test_wrong_mask_is_caught() -> None:
    def build(case: Case, rnn: nn.RNN) -> Model:
        model = RNNDROP.build(case, rnn)
        forward = model.forward
        model.forward = lambda x, seed=None: forward(x, seed=None if seed is None else seed + 1)  # type: ignore[method-assign]
        return model

    with pytest.raises(Wrong, match="with dropout"):
        check(Contender("wrong mask", build, seeded=True), TINY, source(TINY, "cpu"), torch.randn(4, 3, 5))


@pytest.mark.parametrize(
    "options",
    [
        {"dropouts": {"recurrent_dropout": 0.2}},
        {"dropouts": BOTH, "mask_scope": "sequence"},
        {"dropouts": BOTH | {"dropout": 0.2}, "layers": 2, "bidirectional": True},
        {"dtype": "bf16"},
        {"input_grad": True},
        {"pass_": "forward"},
    ],
    ids=str,
)
def test_every_kind_of_case_passes_its_checks(options: dict[str, Any]) -> None:
    case = replace(TINY, everyone=False, **options)
    for contender in EVERYONE:
        if not contender.why_not(case, "cpu"):
            x = torch.randn(case.T, case.B, case.I).to(case.torch_dtype)
            check(contender, case, source(case, "cpu"), x)

"""A contender is shown to be right before it is timed; what is wrong gets an error and no time.

With every dropout at 0 it must equal nn.RNN, outputs and all gradients. One that takes a seed must then drop exactly what the
mask stream says. Called without a seed, as it is timed, each must drop at the right rate, scale what it keeps, and have other
masks for each sequence and call.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..cases import Case
from ..contenders.base import Contender, Model, Wrapped, source
from ..contenders.products import Products
from . import oracle
from .graph import capture

TOLERANCE = {"fp32": 2e-4, "tf32": 2e-2, "bf16": 6e-2, "fp16": 1e-2}  # of the largest value; rounding adds up over steps
SEED = 20
REPEATS = 8  # calls whose masks are looked at


class Wrong(Exception):
    """A contender computes something else."""


def check(contender: Contender, case: Case, rnn: nn.RNN, x: Tensor) -> None:
    """Raise :class:`Wrong` unless the contender computes the case with the weights of `rnn` on x (T, B, I)."""
    model = contender.build(case, rnn)
    if isinstance(model, Products):
        _check_products(model, case, x)
    elif case.pass_ == "inference":  # of the case's own model: evaluation must drop nothing
        with torch.no_grad():
            expected = {"the output": rnn(x)[0]}
            _compare(case, "in evaluation", {"the output": model.eval()(x)}, expected)
    else:
        _check_without_dropout(contender, case, rnn, x)
        if contender.seeded:
            output, groups, input = oracle.network(case, rnn, x, SEED)
            (output * _loss_weights(output)).sum().backward()
            expected = _named(output, [[w.grad for w in group if w is not None] for group in groups], input.grad)
            _compare(case, "with dropout", _results(model.train(), case, x, SEED), expected)
        _check_drawn_masks(contender, case, x)


def _check_products(products: Products, case: Case, x: Tensor) -> None:
    layer = products.layers[0]
    expected = x @ layer.w_ih.t() + layer.h @ layer.w_hh.t()
    products(x)
    _compare(case, "of the products", {"the output": layer.a}, {"the output": expected})


def _check_without_dropout(contender: Contender, case: Case, rnn: nn.RNN, x: Tensor) -> None:
    expected = _results(Wrapped(rnn), case, x)
    model = contender.build(case.without_dropout(), rnn).train()
    _compare(case, "without dropout", _results(model, case, x), expected)
    if contender.captured:
        found: dict[str, Tensor] = {}

        def step(static: Tensor) -> None:
            found.update(_results(model, case, static))

        capture(step, torch.zeros_like(x))(x)
        _compare(case, "in a CUDA graph", found, expected)


def _results(model: Model, case: Case, x: Tensor, seed: int | None = None) -> dict[str, Tensor]:
    """The output and the gradients: of every weight, and of the input where the case has it."""
    model.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_(case.input_grad)
    output = model(x, seed=seed)
    (output * _loss_weights(output)).sum().backward()
    return _named(output, model.gradients(), x.grad)


def _named(output: Tensor, gradients: Sequence[Sequence[Tensor | None]], of_input: Tensor | None) -> dict[str, Tensor]:
    found = {"the output": output, "the gradient of x": of_input}
    for number, group in enumerate(gradients):
        for name, gradient in zip(("w_ih", "w_hh", "b_ih", "b_hh"), group, strict=True):
            found[f"the gradient of {name}[{number}]"] = gradient
    return {name: value.detach() for name, value in found.items() if value is not None}


def _loss_weights(output: Tensor) -> Tensor:
    """Of the sum that is differentiated: the same for all."""
    numbers = torch.arange(output.numel(), device=output.device, dtype=torch.float64).view(output.shape)
    return torch.cos(numbers).to(output.dtype)


def _check_drawn_masks(contender: Contender, case: Case, x: Tensor) -> None:
    """The masks of a call without a seed, of each kind of dropout that the contender has."""
    rates = contender.rates(case)
    for name, check_kind in {"hidden_dropout": _check_hidden, "recurrent_dropout": _check_recurrent}.items():
        if p := rates.get(name, 0.0):
            check_kind(contender, case, x, p)


def _check_masks(kind: str, p: float, calls: list[Tensor]) -> None:
    """`calls`: what each dropped, bool (..., B, H). Masks have the rate, and differ between sequences and calls."""
    found = statistics.mean(float(dropped.double().mean()) for dropped in calls)
    independent = calls[0][0].numel() * len(calls)  # at least this many: a mask may serve a whole sequence
    if not abs(found - p) <= 6 * math.sqrt(p * (1 - p) / independent) + 1 / 256:
        raise Wrong(f"drops {found:.3f} of the units by {kind} dropout, not {p}")
    if all(torch.equal(dropped, calls[0]) for dropped in calls):
        raise Wrong(f"has the same mask of {kind} dropout in every call")
    if calls[0].shape[1] > 1 and all(torch.equal(dropped, dropped[:, :1].expand_as(dropped)) for dropped in calls):
        raise Wrong(f"has the same mask of {kind} dropout for every sequence")


def _constant(case: Case, device: str, recurrent: float) -> nn.RNN:
    """A network that adds 1 in every unit, whatever its input, and its own state times `recurrent`."""
    rnn = source(case, device)
    with torch.no_grad():
        for name, weight in rnn.named_parameters():
            weight.fill_(1.0 if name.startswith("bias_ih") else 0.0)
            if name.startswith("weight_hh"):
                weight.fill_diagonal_(recurrent)
    return rnn


def _check_hidden(contender: Contender, case: Case, x: Tensor, p: float) -> None:
    """Outputs are 0 where dropped and tanh(1)/(1-p) where kept; so are the gradients, here of two steps, lest sums round."""
    model = contender.build(case, _constant(case, x.device.type, 0.0)).train()
    outputs = [model(x).detach() for _ in range(REPEATS)]
    _check_masks("hidden", p, [output == 0 for output in outputs])
    for output in outputs:
        _compare(case, "kept by dropout", {"the output": output}, {"the output": (output != 0) * (math.tanh(1) / (1 - p))})
    last = _results(model, case, x[:2])
    kept, slope = last["the output"] != 0, (1 - math.tanh(1) ** 2) / (1 - p)
    of_bias = (kept * _loss_weights(last["the output"]).double() * slope).sum((0, 1)).chunk(case.directions)
    first = (case.layers - 1) * case.directions
    expected = {f"the gradient of b_ih[{first + direction}]": gradient for direction, gradient in enumerate(of_bias)}
    _compare(case, "with its own masks", last, expected)


def _check_recurrent(contender: Contender, case: Case, x: Tensor, p: float) -> None:
    """A state is dropped where the second step is above 0: it is tanh(1 - 4 r_2 h_1), and h_1 = tanh(1)."""
    others = contender.rates(case).keys() - {"recurrent_dropout"}
    dropouts = {name: rate for name, rate in case.dropouts.items() if name not in others}
    alone = replace(case, T=2, layers=1, bidirectional=False, dropouts=dropouts)
    model = contender.build(alone, _constant(alone, x.device.type, -4.0)).train()
    _check_masks("recurrent", p, [model(x.new_zeros(2, *x.shape[1:]))[1:] > 0 for _ in range(REPEATS)])


def _compare(case: Case, when: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, e in expected.items():
        f = found.get(name)
        if f is None or f.shape != e.shape:
            raise Wrong(f"{name} {when} has shape {None if f is None else tuple(f.shape)}, not {tuple(e.shape)}")
        f, e = f.detach().double(), e.detach().double()
        off = float((f - e).abs().max()) / (float(e.abs().max()) or 1.0)
        if not off <= TOLERANCE[case.dtype]:
            raise Wrong(f"{name} {when} is off by {off:.1e} of its largest value, more than {TOLERANCE[case.dtype]}")

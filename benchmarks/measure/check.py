"""A contender is shown to be right before it is timed; what is wrong gets an error and no time.

With every dropout at 0 it must equal torch.nn's layer, outputs and all gradients. One that takes a seed must then drop exactly
what the mask stream says. Called without a seed, as it is timed, each must drop at the right rate, with other masks for each
sequence and call, and compute what the definition says of these masks: each kind alone, on a network that shows its masks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from rnndrop.kinds import KINDS, ZONEOUTS
from rnndrop.mask import Mask

from ..cases import Case
from ..contenders.base import Contender, Model, Wrapped, source
from ..contenders.products import Products
from . import oracle
from .graph import capture

TOLERANCE = {"fp32": 2e-4, "tf32": 2e-2, "bf16": 6e-2, "fp16": 1e-2}  # of the largest value; rounding adds up over steps
SEED = 20
REPEATS = 8  # calls whose masks are looked at
SHOWN = math.tanh(1)  # the input of the network that shows masks
STEPS = 3  # of it
OPEN = 20.0  # a gate's bias with which it is 1 in every dtype


class Wrong(Exception):
    """A contender computes something else."""


def check(contender: Contender, case: Case, rnn: nn.RNNBase, x: Tensor) -> None:
    """Raise :class:`Wrong` unless the contender computes the case with the weights of `rnn` on x (T, B, I)."""
    model = contender.build(case, rnn)
    if isinstance(model, Products):
        _check_products(model, case, x)
    elif case.pass_ == "inference":  # of the case's own model: evaluation must drop nothing, but have zoneout's expectation
        with torch.no_grad():
            zoned = not contender.rates(case).keys().isdisjoint(ZONEOUTS)
            expected = oracle.network(case, rnn, x, oracle.of_seed(case, SEED, x.device))[0] if zoned else Wrapped(case, rnn)(x)
            _compare(case, "in evaluation", {"the output": model.eval()(x)}, {"the output": expected})
    else:
        _check_without_dropout(contender, case, rnn, x)
        if contender.seeded:
            expected = _exact(case, rnn, x, oracle.of_seed(case, SEED, x.device))
            _compare(case, "with dropout", _results(model.train(), case, x, SEED), expected)
        for name, p in contender.rates(case).items():
            _check_drawn_masks(contender, case, name, p, x.device)


def _check_products(products: Products, case: Case, x: Tensor) -> None:
    layer = products.layers[0]
    expected = x @ layer.w_ih.t() + layer.h @ layer.w_hh.t()
    products(x)
    _compare(case, "of the products", {"the output": layer.a}, {"the output": expected})


def _check_without_dropout(contender: Contender, case: Case, rnn: nn.RNNBase, x: Tensor) -> None:
    expected = _results(Wrapped(case, rnn), case, x)
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


def _exact(case: Case, rnn: nn.RNNBase, x: Tensor, masks: oracle.Masks) -> dict[str, Tensor]:
    """Likewise, in float64."""
    output, groups, input = oracle.network(case, rnn, x, masks)
    (output * _loss_weights(output)).sum().backward()
    return _named(output, [[w.grad for w in group if w is not None] for group in groups], input.grad)


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


def _check_drawn_masks(contender: Contender, case: Case, name: str, p: float, device: torch.device) -> None:
    """The masks of a call without a seed, of one kind of dropout, alone."""
    (kind,) = (kind for kind in KINDS if KINDS[kind].argument == name)
    dropouts = {given: rate for given, rate in case.dropouts.items() if name in (given, contender.instead.get(given))}
    layers, inputs = 1 + (kind == "between"), min(case.I, case.H)
    one = {"layers": layers, "bidirectional": False, "packed": False, "input_grad": kind == "input"}
    probe = replace(case, T=STEPS, I=inputs, dropouts=dropouts, **one)
    rnn, x = _showing(probe, kind, device.type), torch.full((STEPS, case.B, inputs), SHOWN).to(device, case.torch_dtype)
    columns = inputs if kind == "input" else case.H
    model, factor = contender.build(probe, rnn).train(), 1.0 if kind in ZONEOUTS else 1 / (1 - p)
    shown = None if kind == "weight" else _shown(probe, rnn, kind, factor)
    calls = [_dropped(shown, columns, _results(model, probe, x)) for _ in range(REPEATS)]
    _check_masks(kind, p, [dropped[_visible(kind)] for dropped in calls])
    found = _results(model, probe, x)
    mask = Mask(~_dropped(shown, columns, found).flatten(0, 1), factor)
    expected = _exact(probe, rnn, x, lambda asked, layer, direction: mask if asked == kind else None)
    if case.dtype != "fp32":
        expected = {"the output": expected["the output"]}  # gradients are sums of few terms, which cancel
    _compare(case, f"with {kind} masks of its own", found, expected)


def _visible(kind: str) -> slice:
    """The steps whose mask can be seen: the first state is 0, and whether a cell state stayed is seen at the next step."""
    return slice(1, None) if kind == "recurrent" else slice(STEPS - 1) if kind == "cell_zoneout" else slice(None)


def _check_masks(kind: str, p: float, calls: list[Tensor]) -> None:
    """`calls`: what each dropped, bool (steps, B, columns). Masks have the rate, and differ between sequences and calls."""
    found = statistics.mean(float(dropped.double().mean()) for dropped in calls)
    independent = calls[0][0].numel() * len(calls)  # at least this many: a mask may serve a whole sequence
    if not abs(found - p) <= 6 * math.sqrt(p * (1 - p) / independent) + 1 / 256:
        raise Wrong(f"drops {found:.3f} of the units by {kind} dropout, not {p}")
    if all(torch.equal(dropped, calls[0]) for dropped in calls):
        raise Wrong(f"has the same mask of {kind} dropout in every call")
    if calls[0].shape[1] > 1 and all(torch.equal(dropped, dropped[:, :1].expand_as(dropped)) for dropped in calls):
        raise Wrong(f"has the same mask of {kind} dropout for every {'row' if kind == 'weight' else 'sequence'}")
    if kind in ZONEOUTS and all(torch.equal(dropped, dropped[:1].expand_as(dropped)) for dropped in calls):
        raise Wrong(f"has the same mask of {kind} at every step")


def _showing(case: Case, kind: str, device: str) -> nn.RNNBase:
    """A network whose candidate adds 1 in every unit, less twice an element of what the masks of a kind are applied to.

    Gates are open and stay so, whatever masks of its own a gate may have, but for those that a kind needs half open.
    """
    rnn = source(case, device)
    units, candidate = torch.arange(case.H), 2 * case.H if case.gates > 1 else 0
    with torch.no_grad():
        for name, weight in rnn.named_parameters():
            weight.fill_(0.5 if kind == "weight" and name.startswith("bias") else 0.0)
            if kind != "weight" and name.startswith("bias_ih"):
                weight.fill_(OPEN)
                weight[candidate : candidate + case.H] = 1.0
                if case.cell == "GRU":
                    weight[case.H : candidate] = -1.0 if kind == "candidate" else -OPEN  # how much of the old state is kept
        weight = getattr(rnn, {"input": "weight_ih_l0", "between": "weight_ih_l1"}.get(kind, "weight_hh_l0"))
        weight[candidate + units, units % weight.shape[1]] = -2.0
    return rnn


def _shown(case: Case, rnn: nn.RNNBase, kind: str, factor: float) -> Tensor:
    """The output (T, 2**T) of any unit of that network, by which of the steps are dropped; `factor`: of what is kept."""
    patterns = 2**STEPS
    one = replace(case, B=patterns)
    kept = ~_bits(torch.arange(patterns), rnn.weight_ih_l0.device)  # type: ignore[union-attr]
    mask = Mask(kept.flatten().unsqueeze(1), factor)
    x = torch.full((STEPS, patterns, case.I), SHOWN, device=kept.device, dtype=case.torch_dtype)
    return oracle.network(one, rnn, x, lambda asked, layer, direction: mask if asked == kind else None)[0][..., 0].detach()


def _bits(patterns: Tensor, device: torch.device) -> Tensor:
    """Whether each step is dropped, bool (T, ...)."""
    return torch.stack([(patterns.to(device) >> step) & 1 for step in range(STEPS)]) == 1


def _dropped(shown: Tensor | None, columns: int, found: dict[str, Tensor]) -> Tensor:
    """What was dropped, bool (T, B, columns), as the output of that network shows it; of the weight, (1, G*H, H), its gradient.

    shown: of each pattern of dropped steps the output; None of the weight."""
    if shown is None:
        return (found["the gradient of w_hh[0]"] == 0).unsqueeze(0)
    y = found["the output"].double()[..., :columns]
    off = torch.stack([(y - pattern.view(-1, 1, 1)).abs().amax(0) for pattern in shown.unbind(1)])
    return _bits(off.argmin(0), y.device)


def _compare(case: Case, when: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, e in expected.items():
        f = found.get(name)
        if f is None or f.shape != e.shape:
            raise Wrong(f"{name} {when} has shape {None if f is None else tuple(f.shape)}, not {tuple(e.shape)}")
        f, e = f.detach().double(), e.detach().double()
        off = float((f - e).abs().max()) / (float(e.abs().max()) or 1.0)
        if not off <= TOLERANCE[case.dtype]:
            raise Wrong(f"{name} {when} is off by {off:.1e} of its largest value, more than {TOLERANCE[case.dtype]}")

"""A provider is shown to be right before it is timed; what is wrong gets an error and no time.

With every dropout at 0 it must equal nn.RNN, outputs and gradients. One that takes a seed must then drop exactly what the mask
stream says (a plain loop in float64 is the judge), and one that draws its own masks must drop at the right rate.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import torch
from torch import Tensor, nn

from rnndrop import dropout_mask

from .cases import Case
from .graph import capture
from .limits import Products
from .providers import LIMIT, Model, Provider, Whole, source, weights

TOLERANCE = {"fp32": 2e-4, "tf32": 2e-2, "bf16": 6e-2, "fp16": 1e-2}  # of the largest value; rounding adds up over steps
SEED = 20
REPEATS = 8  # of a measured drop rate


class Wrong(Exception):
    """A provider computes something else."""


def check(provider: Provider, case: Case, rnn: nn.RNN, x: Tensor) -> None:
    """Raise :class:`Wrong` unless the provider computes the case."""
    if provider.name.startswith(LIMIT):
        return _check_products(provider, case, rnn, x)
    if getattr(provider.build, "diagonal", False):
        rnn = _diagonal(rnn)
    if case.direction == "inference":  # of the case's own model: evaluation must drop nothing
        with torch.no_grad():
            return _compare(case, "in evaluation", [_build(provider, case, rnn).eval()(x)], [rnn(x)[0]])
    _check_without_dropout(provider, case, rnn, x)
    if provider.masks == "same":
        _compare(case, "with dropout", _results(_build(provider, case, rnn), x, SEED), judge(case, rnn, x, SEED))
    elif provider.masks != "none":
        _check_rates(provider, case, rnn, x)
    return None


def _check_products(provider: Provider, case: Case, rnn: nn.RNN, x: Tensor) -> None:
    products = provider.build(case, rnn)
    assert isinstance(products, Products)
    products(x)
    layer = products.layers[0]
    _compare(case, "of the products", [layer.a], [x @ layer.w_ih.t() + layer.h @ layer.w_hh.t()])


def _check_without_dropout(provider: Provider, case: Case, rnn: nn.RNN, x: Tensor) -> None:
    expected = _results(Whole(rnn), x)
    model = _build(provider, case.without_dropout(), rnn)
    _compare(case, "without dropout", _results(model, x), expected)
    if provider.captured:
        found: list[Tensor] = []

        def step(static: Tensor) -> None:
            found[:] = _results(model, static)

        capture(step, torch.zeros_like(x))(x)
        _compare(case, "in a CUDA graph", found, expected)


def _build(provider: Provider, case: Case, rnn: nn.RNN) -> Model:
    model = provider.build(case, rnn)
    assert isinstance(model, Model)
    return model.train()


def _results(model: Model, x: Tensor, seed: int | None = None) -> list[Tensor]:
    """The output and the gradients of the first layer's weights."""
    model.zero_grad(set_to_none=True)
    output = model(x, seed=seed)
    _loss(output).backward()
    return [output, *model.gradients()]


def _loss(output: Tensor) -> Tensor:
    """A weighted sum of the output; the weights are the same for all."""
    numbers = torch.arange(output.numel(), device=output.device, dtype=torch.float64).view(output.shape)
    return (output * torch.cos(numbers).to(output.dtype)).sum()


def _check_rates(provider: Provider, case: Case, rnn: nn.RNN, x: Tensor) -> None:
    """The share of units dropped, of each kind of dropout that the provider draws."""
    independent = x.shape[1] * case.H * REPEATS  # at least this many: a mask may serve a whole sequence
    rates = {"hidden": case.hidden_dropout, "recurrent": case.recurrent_dropout}
    if provider.masks == "recurrent":
        rates["recurrent"] = rates["recurrent"] or rates["hidden"]
    for kind, share in {"hidden": _zeros, "recurrent": _forgotten}.items():
        p = rates[kind]
        if p and kind in provider.masks.split():
            found = statistics.mean(share(provider, case, rnn, x))
            if not abs(found - p) <= 6 * math.sqrt(p * (1 - p) / independent) + 1 / 256:
                raise Wrong(f"drops {found:.3f} of the units by {kind} dropout, not {p}")


@torch.no_grad()
def _zeros(provider: Provider, case: Case, rnn: nn.RNN, x: Tensor) -> list[float]:
    """Shares of the outputs that hidden dropout made 0."""
    model = _build(provider, case, rnn)
    return [float((model(x) == 0).double().mean()) for _ in range(REPEATS)]


@torch.no_grad()
def _forgotten(provider: Provider, case: Case, rnn: nn.RNN, x: Tensor) -> list[float]:
    """Shares of the states that recurrent dropout kept from the next step.

    They are where the second step is above 0, tanh(1 - 4 r_2 h_1) with h_1 = tanh(1).
    """
    hidden = case.hidden_dropout if provider.masks == "recurrent" else 0.0
    alone = replace(case, T=2, layers=1, bidirectional=False, hidden_dropout=hidden)
    probe = source(alone, x.device.type)
    for name, weight in probe.named_parameters():
        weight.fill_(1.0 if name == "bias_ih_l0" else 0.0)
    probe.get_parameter("weight_hh_l0").fill_diagonal_(-4.0)
    model = _build(provider, alone, probe)
    return [float((model(x.new_zeros(2, *x.shape[1:]))[1] > 0).double().mean()) for _ in range(REPEATS)]


def _compare(case: Case, when: str, found: list[Tensor], expected: list[Tensor]) -> None:
    for name, f, e in zip(("the output", "the gradient of w_ih", "the gradient of w_hh"), found, expected, strict=False):
        if f is None or f.shape != e.shape:
            raise Wrong(f"{name} {when} has shape {None if f is None else tuple(f.shape)}, not {tuple(e.shape)}")
        f, e = f.double(), e.double()
        largest = float(e.detach().abs().max())
        off = float((f - e).detach().abs().max()) / (largest or 1.0)
        if not off <= TOLERANCE[case.dtype]:
            raise Wrong(f"{name} {when} is off by {off:.1e} of its largest value, more than {TOLERANCE[case.dtype]}")


def judge(case: Case, rnn: nn.RNN, x: Tensor, seed: int) -> list[Tensor]:
    """Output and first weight gradients by a plain loop in float64 with the masks of the stream."""
    groups = [[weight.double().requires_grad_() for weight in group] for group in weights(rnn)]
    T, B, _ = x.shape
    y = x.double()
    for layer in range(case.layers):
        if layer and case.dropout_between:
            parts = y.chunk(case.directions, -1)
            p = case.dropout_between
            masks = [_mask(seed, T * B, case.H, p, x, layer=layer - 1, direction=d, kind="between") for d in range(len(parts))]
            y = torch.cat([part * mask.view(T, B, -1) for part, mask in zip(parts, masks, strict=True)], -1)
        outputs = [
            _judge_layer(case, y, groups[layer * case.directions + direction], seed, layer, direction)
            for direction in range(case.directions)
        ]
        y = torch.cat(outputs, -1)
    _loss(y).backward()
    return [y, groups[0][0].grad, groups[0][1].grad]  # type: ignore[list-item]


def _judge_layer(case: Case, x: Tensor, group: list[Tensor], seed: int, layer: int, direction: int) -> Tensor:
    T, B, _ = x.shape
    w_ih, w_hh, b_ih, b_hh = group
    rows = T * B if case.mask_scope == "step" else B
    numbers = {"layer": layer, "direction": direction}
    r = _mask(seed, rows, case.H, case.recurrent_dropout, x, kind="recurrent", **numbers).view(-1, B, case.H)
    m = _mask(seed, rows, case.H, case.hidden_dropout, x, kind="hidden", **numbers).view(-1, B, case.H)
    h, outputs = x.new_zeros(B, case.H), [x] * T
    for t in range(T)[::-1] if direction else range(T):
        row = t if case.mask_scope == "step" else 0
        h = m[row] * torch.tanh(x[t] @ w_ih.t() + b_ih + (r[row] * h) @ w_hh.t() + b_hh)
        outputs[t] = h
    return torch.stack(outputs)


def _mask(seed: int, rows: int, columns: int, p: float, like: Tensor, **site: object) -> Tensor:
    return dropout_mask(seed, rows, columns, p, **site).to(like.device, torch.float64)  # type: ignore[arg-type]


def _diagonal(rnn: nn.RNN) -> nn.RNN:
    with torch.no_grad():
        for name, weight in rnn.named_parameters():
            if name.startswith("weight_hh"):
                weight.copy_(torch.diag(weight.diagonal()))
    return rnn

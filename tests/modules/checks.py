"""Modules of every cell against the oracle: their outputs, the states at the end and every gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tests import oracle
from tests.helpers import assert_near, doubled, gradients, inputs_of, make_rnn

SEED = 3


def flat(found: Any) -> list[Tensor]:
    """The tensors of what a module returned, or was given."""
    if isinstance(found, PackedSequence):
        return [found.data]
    return [found] if isinstance(found, Tensor) else [x for part in found for x in flat(part)]


def changed(hx: Any, change: Any) -> Any:
    """hx, a state or a pair of states, with a change made in each."""
    return tuple(map(change, hx)) if isinstance(hx, tuple) else change(hx)


def leaves_of(rnn: Any, x: Tensor, hx: Any) -> dict[str, Tensor]:
    states = {name: state.requires_grad_() for name, state in zip(("hx", "cx"), flat(hx), strict=False)}
    return {"x": x.requires_grad_(), **states, **dict(rnn.named_parameters())}


def exact(rnn: Any, leaves: dict[str, Tensor], seed: Any = SEED, lengths: Sequence[int] | None = None) -> Any:
    """The oracle's results on leaves in float64."""
    parameters = {name: leaves[name] for name, _ in rnn.named_parameters()}
    hx = (leaves["hx"], leaves["cx"]) if "cx" in leaves else leaves["hx"]
    return oracle.network(rnn, leaves["x"], hx, seed, lengths, parameters)


def check(rnn: Any, outputs: Any, x: Tensor, hx: Any, seed: Any, lengths: Sequence[int] | None = None) -> None:
    """Outputs and the gradients of x, hx and all parameters against the oracle."""
    leaves, outputs = leaves_of(rnn, x, hx), flat(outputs)
    copies = doubled(leaves)
    expected = exact(rnn, copies, seed, lengths)
    assert_near(outputs, expected)
    assert_near(gradients(outputs, leaves), gradients(expected, copies))


def run_packed(rnn: Any, x: Tensor, hx: Any, lengths: Sequence[int] | None, seed: Any = SEED) -> Any:
    """Padded again: the outputs for lengths in any order, or of the padded batch."""
    if lengths is None:
        return rnn(x, hx, seed=seed)
    output, h_n = rnn(pack_padded_sequence(x, lengths, enforce_sorted=False), hx, seed=seed)
    return pad_packed_sequence(output, total_length=len(x))[0], h_n


def checked(lengths: Sequence[int] | None = None, steps: int = 5, seed: Any = SEED, **options: Any) -> None:
    """A module of two layers, freshly made, whose results must be the oracle's."""
    rnn = make_rnn(**{"num_layers": 2, **options})
    x, hx = inputs_of(rnn, steps=max(lengths) if lengths else steps)
    leaves_of(rnn, x, hx)
    drawn = seed if isinstance(seed, int) else torch.tensor(seed)
    check(rnn, run_packed(rnn, x, hx, lengths, drawn), x, hx, seed, lengths)

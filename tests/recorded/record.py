"""Outputs and gradients of the installed rnndrop, written to a file: what a restructuring must not change.

    python tests/recorded/record.py tests/recorded/results.npz      with the version to record on PYTHONPATH

It uses nothing but rnndrop's public functions, and inputs that no generator makes: they are the same on every machine.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import rnndrop

SEED = -7
STEPS, BATCH, INPUTS = 4, 3, 2
LENGTHS = [4, 3, 1]
RATES = {"hidden": {"hidden_dropout": 0.3}, "recurrent": {"recurrent_dropout": 0.4}, "all": {}}
RATES["all"] = {**RATES["hidden"], **RATES["recurrent"]}
NETWORKS = {"1 layer": (1, False), "1 layer, both directions": (1, True), "2 layers, both directions": (2, True)}


def filled(start: int, *shape: int, size: float = 1.0, dtype: torch.dtype) -> Tensor:
    """Numbers in [-size, size), by a multiplication of integers."""
    numbers = torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.int64) + 1000 * start
    return ((numbers * 2654435761 % 2**32).double() / 2**31 - 1).mul(size).to(dtype).view(shape)


def outputs_and_gradients(outputs: list[Tensor], leaves: list[Tensor]) -> np.ndarray:
    """All in one row."""
    incoming = [filled(50 + i, *y.shape, dtype=y.dtype) for i, y in enumerate(outputs)]
    gradients = torch.autograd.grad(outputs, leaves, incoming)
    return torch.cat([v.detach().flatten() for v in (*outputs, *gradients)]).numpy()


def fill(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(filled(i, *p.shape, size=module.hidden_size**-0.5, dtype=p.dtype))


def network(dtype: torch.dtype, packed: bool, hidden_size: int = 4, **options: object) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rnn = rnndrop.RNN(INPUTS, hidden_size, dtype=dtype, **options)
    fill(rnn)
    x = filled(30, STEPS, BATCH, INPUTS, dtype=dtype).requires_grad_()
    hx = filled(40, rnn.num_layers * (1 + rnn.bidirectional), BATCH, hidden_size, dtype=dtype).requires_grad_()
    output, h_n = rnn(pack_padded_sequence(x, LENGTHS) if packed else x, hx, seed=SEED)
    return outputs_and_gradients([output.data if packed else output, h_n], [x, hx, *rnn.parameters()])


def cell(dtype: torch.dtype, **options: object) -> np.ndarray:
    module = rnndrop.RNNCell(INPUTS, 4, dtype=dtype, **options)
    fill(module)
    x, h = (filled(30 + i, BATCH, n, dtype=dtype).requires_grad_() for i, n in enumerate((INPUTS, 4)))
    return outputs_and_gradients([module(x, h, seed=SEED)], [x, h, *module.parameters()])


def tanh_dropout(dtype: torch.dtype) -> np.ndarray:
    x = filled(30, 3, 40, dtype=dtype).requires_grad_()
    return outputs_and_gradients([rnndrop.functional.tanh_dropout(x, 0.3, seed=SEED)], [x])


def results() -> dict[str, np.ndarray]:
    """By name. A cell's and those of a mask wider than a counter are few."""
    found = {}
    for dtype, activation, scope in itertools.product((torch.float32, torch.float64), ("tanh", "relu"), ("step", "sequence")):
        # Version 0.1 had always a mask a step between layers.
        options = {"nonlinearity": activation, "mask_scope": {"hidden": scope, "recurrent": scope}}
        start = f"{str(dtype)[6:]}, {activation}, {scope}"
        for (words, (layers, both)), (dropped, rates), packed in itertools.product(
            NETWORKS.items(), RATES.items(), (False, True)
        ):
            between = {"dropout": 0.25} if layers > 1 else {}
            name = f"{start}, {words}, {dropped}, {'packed' if packed else 'padded'}"
            found[name] = network(dtype, packed, num_layers=layers, bidirectional=both, **options, **rates, **between)
        found[f"{start}, 17 units"] = network(dtype, False, 17, **options, **RATES["all"])
    for dtype in (torch.float32, torch.float64):
        found[f"{str(dtype)[6:]}, between layers alone"] = network(dtype, False, num_layers=2, bidirectional=True, dropout=0.25)
        found[f"{str(dtype)[6:]}, tanh_dropout"] = tanh_dropout(dtype)
        for activation in ("tanh", "relu"):
            found[f"{str(dtype)[6:]}, {activation}, cell"] = cell(dtype, nonlinearity=activation, **RATES["all"])
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the .npz file to write")
    file = parser.parse_args().file
    torch.set_num_threads(1)
    np.savez_compressed(file, **results())
    print(f"{file}: {file.stat().st_size:,} bytes, from {rnndrop.__file__} {rnndrop.__version__}")

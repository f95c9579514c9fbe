"""Who is measured. EVERYONE: all contenders, installed or not, the most important first."""

from __future__ import annotations

from dataclasses import replace

from . import keras, kernels, loops, ours, products, torch_nn
from .base import GRAPH, Contender

_GRAPHS = (ours.MODULE, torch_nn.PLAIN, torch_nn.DROPPED, loops.THE_LOOP, products.PRODUCTS)

EVERYONE: list[Contender] = [
    ours.MODULE,
    torch_nn.PLAIN,
    torch_nn.DROPPED,
    loops.THE_LOOP,
    products.PRODUCTS,
    ours.LOOP_OF_CELLS,
    loops.ONE_MASK,
    loops.COMPILED,
    *ours.STRATEGIES,
    keras.KERAS,
    kernels.HASTE,
    kernels.FLASH_RNN,
    *[replace(contender, name=contender.name + GRAPH, captured=True) for contender in _GRAPHS],
]
BY_NAME = {contender.name: contender for contender in EVERYONE}

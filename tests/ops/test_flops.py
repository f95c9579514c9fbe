"""torch.utils.flop_counter counts the products of the plain loop."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rnndrop import layer, reference
from tests.helpers import inputs_of, inside, make_rnn
from tests.modules.checks import flat


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def by_the_loop(input, states, weights, masks, steps, cell, strategy):
    return reference.layer(input, states, weights, layer.by_element(masks, states), steps, cell)


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("leaves", ["parameters", "input", "states"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_products_of_the_plain_loop(cell, leaves, packed, monkeypatch):
    rnn = make_rnn(cell, num_layers=2, bidirectional=True, **inside(cell))
    x, hx = inputs_of(rnn)
    x.requires_grad_(leaves == "input")
    for state in flat(hx):
        state.requires_grad_(leaves == "states")

    def step():
        given = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3, 3])) if packed else x
        output = rnn(given, hx, seed=3)[0]
        (output.data if packed else output).sum().backward()

    found = counted(step)
    monkeypatch.setattr(layer.layer_operator, "layer", by_the_loop)
    assert found == counted(step) > 0

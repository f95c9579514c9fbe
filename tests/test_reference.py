import pytest
import torch
from torch import nn

from rnndrop import reference
from tests.helpers import assert_near, doubled, gradients, layer_by_hand, make_layer

STEPS, BATCH, COLUMNS = 5, 3, 17


def masks(seed, *, p=0.4):
    keep = torch.rand(STEPS, BATCH, COLUMNS, generator=torch.Generator().manual_seed(seed)) >= p
    return keep, 1 / (1 - p)


def weights(leaves):
    return [leaves.get(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_a_loop_of_rnn_cell_and_masks(nonlinearity, bias):
    """What a user writes by hand today: nn.RNNCell, h = h * mask, mask on what enters the cell."""
    leaves = make_layer(bias=bias)
    (m, hidden_scale), (r, recurrent_scale) = masks(1), masks(2)
    cell = nn.RNNCell(4, COLUMNS, bias=bias, nonlinearity=nonlinearity, dtype=torch.float64)
    cell.load_state_dict({name.replace("w_", "weight_").replace("b_", "bias_"): leaf.detach()
                          for name, leaf in leaves.items() if name[1:2] == "_"})  # fmt: skip
    h, steps = leaves["h0"], []
    for t in range(STEPS):
        h = cell(leaves["x"][t], h * r[t] * recurrent_scale) * m[t] * hidden_scale
        steps.append(h)
    output, h_n = reference.rnn_layer(
        leaves["x"], leaves["h0"], *weights(leaves), nonlinearity=nonlinearity,
        hidden_keep=m, hidden_scale=hidden_scale, recurrent_keep=r, recurrent_scale=recurrent_scale,
    )  # fmt: skip
    assert_near(output.view(STEPS, BATCH, COLUMNS), torch.stack(steps))
    assert torch.equal(h_n, output[-BATCH:])
    mine = gradients([output, h_n], leaves)
    theirs = gradients(
        [torch.cat(steps), h],
        {"x": leaves["x"], "h0": leaves["h0"], **dict(zip(list(leaves)[2:], cell.parameters(), strict=True))},
    )
    assert_near(mine, theirs)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch_without_dropout(nonlinearity, bias):
    leaves = make_layer(bias=bias)
    rnn = nn.RNN(4, COLUMNS, nonlinearity=nonlinearity, bias=bias, dtype=torch.float64)
    rnn.load_state_dict(dict(zip(rnn.state_dict(), [w.detach() for w in weights(leaves) if w is not None], strict=True)))
    theirs = rnn(leaves["x"], leaves["h0"].unsqueeze(0))
    output, h_n = reference.rnn_layer(leaves["x"], leaves["h0"], *weights(leaves), nonlinearity=nonlinearity)
    assert_near(output.view(STEPS, BATCH, COLUMNS), theirs[0])
    assert_near(h_n, theirs[1][0])
    mine = gradients([output, h_n], leaves)
    names = ["x", "h0", *[name for name in leaves if name[1:2] == "_"]]
    outputs = [theirs[0].flatten(0, 1), theirs[1][0]]
    assert_near(mine, gradients(outputs, dict(zip(names, [leaves["x"], leaves["h0"], *rnn.parameters()], strict=True))))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [[3, 3, 3, 3, 3], [3, 3, 2, 1, 1]])
def test_equals_one_sequence_at_a_time(nonlinearity, reverse, sizes):
    leaves, (m, hidden_scale), (r, recurrent_scale) = make_layer(), masks(1), masks(2)
    lengths = [sum(size > b for size in sizes) for b in range(BATCH)]
    output, h_n = reference.rnn_layer(
        [leaves["x"][t, :size] for t, size in enumerate(sizes)], leaves["h0"], *weights(leaves),
        nonlinearity=nonlinearity, hidden_keep=m, hidden_scale=hidden_scale, recurrent_keep=r,
        recurrent_scale=recurrent_scale, reverse=reverse,
    )  # fmt: skip
    copies = doubled(leaves)
    padded, states = layer_by_hand(
        *copies.values(), nonlinearity=nonlinearity, hidden=m.double() * hidden_scale,
        recurrent=r.double() * recurrent_scale, lengths=lengths, reverse=reverse,
    )  # fmt: skip
    expected = torch.cat([padded[t, :size] for t, size in enumerate(sizes)])
    assert_near(output, expected)
    assert_near(h_n, states)
    assert_near(gradients([output, h_n], leaves), gradients([expected, states], copies))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "identity"])
def test_dropped_is_zero_whatever_is_there(nonlinearity):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0, float("nan")], requires_grad=True)
    keep = torch.tensor([False, False, False, True, True])
    y = reference.dropout(x, keep, 2.0, nonlinearity=nonlinearity)
    (grad,) = torch.autograd.grad(y, x, torch.ones(5))
    assert (y[:3] == 0).all() and (grad[:3] == 0).all()
    assert y[3] == reference.ACTIVATIONS[nonlinearity](x[3]) * 2 and y[4].isnan()

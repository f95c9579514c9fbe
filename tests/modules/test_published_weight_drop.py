"""AWD-LSTM's weight drop, as people copy it, given our mask: LSTM(weight_dropout=...) is that, and goes on dropping.

The published algorithm (Merity et al. 2017): take the parameter W_hh out of the module and keep it under another name; at each
call set the attribute to dropout(raw), which is differentiable, and run the module.
"""

import copy
import io

import pytest
import torch
from torch import nn

import rnndrop
from tests import oracle
from tests.helpers import GATED, assert_equal, assert_near, inputs_of, make_rnn
from tests.modules.checks import flat

SEED, P = 3, 0.45
each_cell = pytest.mark.parametrize("cell", GATED)


class WeightDrop(nn.Module):
    """Of a module of torch.nn whose W_hh it drops by masks that it is given, a name each."""

    def __init__(self, module, masks):
        super().__init__()
        self.module, self.masks = module, masks
        for name in masks:
            raw = getattr(module, name)
            del module._parameters[name]
            self.register_parameter(f"{name}_raw", raw)

    def forward(self, *given):
        for name, mask in self.masks.items():
            dropped = getattr(self, f"{name}_raw") * mask
            setattr(self.module, name, dropped)  # no parameter: it takes part in the graph
        # PyTorch's own function: its module's list of weights is what broke copies of this at each update.
        weights = [getattr(self.module, name) for name in self.module._flat_weights_names]
        x, hx = given
        run = getattr(torch, type(self.module).__name__.lower())
        options = self.module.bias, self.module.num_layers, 0.0, True, self.module.bidirectional, False
        return run(x, hx, weights, *options)


def pair(cell, **options):
    """Ours, and theirs around a copy of it, with the masks of our seed."""
    rnn = make_rnn(cell, num_layers=2, bidirectional=True, weight_dropout=P, **options)
    masks = {}
    for layer in range(2):
        for direction in range(2):
            name = f"weight_hh_l{layer}" + "_reverse" * direction
            shape = getattr(rnn, name).shape
            masks[name] = oracle.mask(SEED, *shape, P, kind="weight", layer=layer, direction=direction)
    return rnn, WeightDrop(rnn.to_torch(), masks)


def same(rnn, theirs, x, hx):
    """Outputs, and the gradients of x and of all parameters, those of the raw ones too."""
    x = x.clone().requires_grad_()
    found, expected = flat(rnn(x, hx, seed=SEED)), flat(theirs(x, hx))
    assert_near(found, expected)
    names = [name for name, _ in rnn.named_parameters()]
    others = [getattr(theirs, f"{name}_raw") if name in theirs.masks else getattr(theirs.module, name) for name in names]
    grads = [torch.randn(y.shape, dtype=torch.float64) for y in found]
    mine = torch.autograd.grad(found, [x, *rnn.parameters()], grads)
    assert_near(mine, torch.autograd.grad(expected, [x, *others], grads))
    by_name = dict(zip(names, mine[1:], strict=True))
    for name, mask in theirs.masks.items():  # something is dropped, and its gradient is 0
        assert 0.3 < (mask == 0).double().mean() < 0.6 and (by_name[name][mask == 0] == 0).all()
        assert (by_name[name][mask != 0] != 0).double().mean() > 0.99
    assert not torch.allclose(found[0], rnn.to_torch()(x, hx)[0], rtol=1e-3)


@each_cell
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_published_one(cell, bias):
    rnn, theirs = pair(cell, bias=bias)
    same(rnn, theirs, *inputs_of(rnn))


def through_state_dicts(rnn):
    """Ours, theirs, ours."""
    torchs = rnn.to_torch()
    torchs.load_state_dict(rnn.state_dict())
    other = make_rnn(type(rnn).__name__, num_layers=2, bidirectional=True, weight_dropout=P)
    other.load_state_dict(torchs.state_dict())
    return other


def through_a_file(rnn):
    file = io.BytesIO()
    torch.save(rnn, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


AFTER = {
    "flatten_parameters": lambda rnn: rnn.flatten_parameters(),
    "to": lambda rnn: rnn.to("cpu").to(torch.float64),
    "eval and train": lambda rnn: rnn.eval().train(),
    "state_dict": through_state_dicts,
    "deepcopy": copy.deepcopy,
    "a file": through_a_file,
    "from_torch": lambda rnn: type(rnn).from_torch(rnn.to_torch(), weight_dropout=P),
    "an update": lambda rnn: torch.optim.SGD(rnn.parameters(), lr=0.0).step(),
}


@each_cell
@pytest.mark.parametrize("after", AFTER)
def test_it_is_the_published_one_after_anything(cell, after):
    """And after a call and its backward pass."""
    rnn, theirs = pair(cell)
    x, hx = inputs_of(rnn)
    rnn(x, hx, seed=SEED)[0].sum().backward()
    rnn = AFTER[after](rnn) or rnn
    assert [*rnn.state_dict()] == [*rnn.to_torch().state_dict()] == [name for name, _ in rnn.named_parameters()]
    same(rnn, theirs, x, hx)


@each_cell
def test_two_calls_have_two_masks_and_evaluation_none(cell):
    rnn, _ = pair(cell)
    x, hx = inputs_of(rnn)
    assert not torch.equal(rnn(x, hx)[0], rnn(x, hx)[0])
    assert_equal(flat(rnn.eval()(x, hx)), flat(rnn.to_torch()(x, hx)))
    assert rnndrop.explain(rnn.train(), x).strategy == f"torch.nn.{cell}"


@each_cell
def test_one_mask_for_all_steps_and_sequences(cell):
    """Sequences that are the same come out the same; a later step reads the weights of the first."""
    rnn = make_rnn(cell, weight_dropout=P)
    x = torch.randn(5, 1, rnn.input_size, dtype=torch.float64)
    output = rnn(x.expand(-1, 3, -1), seed=SEED)[0]
    assert_near(output[:, 1:], output[:, :1].expand(-1, 2, -1))
    first, state = rnn(x[:2], seed=SEED)
    assert_near(torch.cat([first, rnn(x[2:], state, seed=SEED)[0]]), output[:, :1])
    dropped = make_rnn(cell)
    dropped.load_state_dict(rnn.state_dict())
    with torch.no_grad():
        dropped.weight_hh_l0.mul_(oracle.mask(SEED, *rnn.weight_hh_l0.shape, P, kind="weight"))
    assert_near(dropped(x)[0], output[:, :1])

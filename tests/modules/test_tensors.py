"""Tensors come and go as nn.RNN's do: what requires a gradient, what shares memory, threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.helpers import BOTH, assert_near, inputs_of, make_rnn, threads

INSIDE = BOTH
EVERYWHERE = dict(num_layers=2, dropout=0.25, bidirectional=True, **INSIDE)


def leaves_of(rnn, x, hx):
    return {"x": x.requires_grad_(), "hx": hx.requires_grad_(), **dict(rnn.named_parameters())}


@pytest.mark.parametrize(
    "frozen",
    [
        ["weight_hh_l0"],
        ["weight_ih_l0", "bias_ih_l0"],
        ["bias_hh_l0"],
        ["x"],
        ["hx"],
        ["x", "hx", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0"],
    ],
    ids=str,
)
def test_frozen_leaves(frozen):
    """The gradients of the others are what they were; the frozen have none."""
    rnn = make_rnn(**INSIDE)
    x, hx = (v.requires_grad_() for v in inputs_of(rnn))
    leaves = leaves_of(rnn, x, hx)
    rnn(x, hx, seed=1)[0].square().sum().backward()
    whole = {name: leaf.grad for name, leaf in leaves.items()}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name not in frozen).grad = None
    rnn(x, hx, seed=1)[0].square().sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is None if name in frozen else torch.equal(leaf.grad, whole[name])


def test_no_grad_and_nothing_to_learn():
    rnn = make_rnn(**EVERYWHERE)
    x, hx = inputs_of(rnn)
    expected = rnn(x, hx, seed=1)
    with torch.no_grad():
        output, h_n = rnn(x, hx, seed=1)
    assert not output.requires_grad and torch.equal(output, expected[0]) and torch.equal(h_n, expected[1])
    with torch.inference_mode():
        assert torch.equal(rnn(x, hx, seed=1)[0], expected[0])
    assert not rnn.requires_grad_(False)(x, hx, seed=1)[0].requires_grad


@pytest.mark.parametrize("rates", [dict(), INSIDE, dict(num_layers=2, dropout=0.5)], ids=["none", "inside", "between"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_h_n_shares_no_memory_with_the_output(rates, training, steps):
    rnn = make_rnn(**rates).train(training)
    output, h_n = rnn(inputs_of(rnn, steps=steps)[0], seed=1)
    assert torch.equal(output[-1], h_n[-1])
    before = h_n.clone()
    with torch.no_grad():
        output.fill_(7)
    assert torch.equal(h_n, before)


@pytest.mark.parametrize("change", [lambda y: y.mul_(2), lambda y: y[0].zero_(), lambda y: y.add_(y.detach())])
def test_backward_after_the_output_was_changed_in_place(change):
    """As with nn.RNN: the right gradient or an error, never a wrong gradient."""
    rnn = make_rnn(hidden_dropout=0.3)
    x, _ = inputs_of(rnn)
    x.requires_grad_()
    expected = rnn(x, seed=1)[0].clone()
    change(expected)
    (exact,) = torch.autograd.grad(expected.square().sum(), x)
    output = rnn(x, seed=1)[0]
    change(output)
    try:
        (actual,) = torch.autograd.grad(output.square().sum(), x)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert_near(actual, exact)


def test_inputs_stay_as_they_are():
    rnn = make_rnn(**EVERYWHERE)
    x, hx = inputs_of(rnn)
    before = [v.clone() for v in (x, hx, *rnn.parameters())]
    x.requires_grad_(), hx.requires_grad_()
    output, h_n = rnn(x, hx, seed=1)
    (output.sum() + h_n.sum()).backward()
    assert all(map(torch.equal, before, (x, hx, *rnn.parameters())))


def test_gradients_accumulate():
    rnn = make_rnn(**EVERYWHERE)
    x, _ = inputs_of(rnn)
    rnn(x, seed=1)[0].sum().backward()
    once = [p.grad.clone() for p in rnn.parameters()]
    rnn(x, seed=1)[0].sum().backward()
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(rnn.parameters(), once, strict=True))


def test_each_bias_has_a_gradient_of_its_own():
    """Clipping one in place leaves the other."""
    for rates in (INSIDE, dict(num_layers=2, dropout=0.5)):
        rnn = make_rnn(**rates)
        rnn(inputs_of(rnn)[0], seed=1)[0].sum().backward()
        grads = [p.grad for name, p in rnn.named_parameters() if "bias" in name]
        assert_near(grads[0], grads[1])
        assert len({g.untyped_storage().data_ptr() for g in grads}) == len(grads)


def test_two_threads_give_what_one_gives():
    rnn = make_rnn(input_size=8, hidden_size=200, **INSIDE)
    x, hx = inputs_of(rnn, 50, 30)

    def step(seed):
        output, h_n = rnn(x, hx, seed=seed)
        return [output, h_n, *torch.autograd.grad(output.square().sum(), list(rnn.parameters()))]

    serial = [step(seed) for seed in range(4)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(step, range(4)))
    for alone, beside in zip(serial, together, strict=True):
        assert all(map(torch.equal, alone, beside))


def test_the_number_of_threads_drops_the_same_units():
    rnn = make_rnn(input_size=8, hidden_size=200, hidden_dropout=0.4)
    with torch.no_grad():
        rnn.bias_ih_l0.fill_(3)
    x, _ = inputs_of(rnn, 50, 30)
    outputs = []
    for number in (1, 2):
        with threads(number):
            outputs.append(rnn(x, seed=1)[0])
    assert torch.equal(outputs[0] == 0, outputs[1] == 0)
    assert_near(outputs[0], outputs[1])

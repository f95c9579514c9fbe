"""The CPU's backend and that of the plain loop, called as the operators call them: what each promises, and that they agree."""

import itertools

import pytest
import torch

from rnndrop.backends.base import Layer, Needs
from rnndrop.backends.cpu import Cpu
from rnndrop.backends.reference import Reference
from rnndrop.cell import CELLS, Weights
from rnndrop.mask import Mask, packed
from rnndrop.steps import Steps
from tests.helpers import assert_equal, assert_near, keep, make_layer

ALL = Needs(True, True, True, True, True)
CASES = list(itertools.product(["RNN_TANH", "RNN_RELU"], [None, [3, 3, 2, 1, 1]], [False, True], ["step", "sequence"]))


def given(mode, sizes, reverse, scope, bias=True):
    """Arguments of forward."""
    input, h_0, *weights = (leaf.detach() for leaf in make_layer(bias=bias).values())
    steps = Steps(5, 3, None if sizes is None else torch.tensor(sizes), reverse)
    if sizes is not None:
        input = input.flatten(0, 1)[: steps.rows]
    rows = steps.rows if scope == "step" else 3
    masks = {kind: Mask(-keep(3, rows, 17, 0.4, kind=kind).to(torch.int8), 1.5) for kind in ("hidden", "recurrent")}
    return input, [h_0], Weights(*weights, *[None] * (4 - len(weights))), masks, steps, CELLS[mode]


def backward(backend, arguments, result, grads, needs=ALL):
    return backend.backward(Layer(*arguments, result.output, result.saved), grads[0], grads[1:], needs)


@pytest.mark.parametrize("mode, sizes, reverse, scope", CASES)
def test_they_agree(mode, sizes, reverse, scope):
    arguments = given(mode, sizes, reverse, scope)
    results = [backend.forward(*arguments) for backend in (Cpu(), Reference())]
    assert_near(results[0].output, results[1].output)
    assert_near(results[0].states[0], results[1].states[0])
    for result in results:
        assert result.output.shape == (*arguments[0].shape[:-1], 17)
        assert result.output.untyped_storage().data_ptr() != result.states[0].untyped_storage().data_ptr()
    output, h_n = torch.randn_like(results[0].output), torch.randn(3, 17, dtype=torch.float64)
    for grads in ([output, h_n], [output, None], [None, h_n]):
        found = [backward(b, arguments, r, grads) for b, r in zip((Cpu(), Reference()), results, strict=True)]
        for mine, exact in zip(found[0][:5], found[1][:5], strict=True):
            assert_near(mine, exact)
        assert_near(found[0].states[0], found[1].states[0])


@pytest.mark.parametrize("needs", [Needs(*needs) for needs in itertools.product([False, True], repeat=5)], ids=str)
def test_the_cpu_computes_what_is_asked_for(needs):
    arguments = given("RNN_TANH", None, False, "step")
    result = Cpu().forward(*arguments)
    grads = [torch.randn_like(result.output), None]
    found, whole = backward(Cpu(), arguments, result, grads, needs), backward(Cpu(), arguments, result, grads)
    for asked, mine, exact in zip(needs, found, whole, strict=False):
        assert (mine is not None) == asked
        assert mine is None or torch.equal(mine, exact)


def test_without_biases():
    arguments = given("RNN_TANH", None, False, "step", bias=False)
    results = [backend.forward(*arguments) for backend in (Cpu(), Reference())]
    assert_near(results[0].output, results[1].output)
    grads = [torch.randn_like(results[0].output), None]
    found = [backward(b, arguments, r, grads) for b, r in zip((Cpu(), Reference()), results, strict=True)]
    assert_near(found[0].w_hh, found[1].w_hh)
    assert found[1].b_ih is None and found[1].b_hh is None


def test_the_loop_takes_bits_too():
    """As a GPU without kernels has them."""
    arguments = given("RNN_TANH", None, False, "step")
    bits = {kind: Mask(packed(mask.keep), mask.scale) for kind, mask in arguments[3].items()}
    other = *arguments[:3], bits, *arguments[4:]
    results = [Reference().forward(*a) for a in (arguments, other)]
    assert_equal(results[0].output, results[1].output)
    grads = [torch.randn_like(results[0].output), None]
    found = [backward(Reference(), a, r, grads) for a, r in zip((arguments, other), results, strict=True)]
    assert_equal(found[0].w_hh, found[1].w_hh)
    x = torch.randn(15, 17, dtype=torch.float64)
    for name in ("dropout", "tanh_dropout"):
        mine, exact = (getattr(Reference(), name)(x, masks["hidden"]) for masks in (bits, arguments[3]))
        assert_equal(mine, exact)
        assert_near(getattr(Cpu(), name)(x, arguments[3]["hidden"]), exact)

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from rnndrop import functional
from tests import oracle
from tests.helpers import STRATEGIES, assert_equal, assert_near, keep, seed_tensor

SEED = 3


def run(x, strategy, p=0.4):
    return functional.tanh_dropout(x, p, seed=SEED, strategy=strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradcheck(strategy):
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: run(x, strategy), x)
    assert gradgradcheck(lambda x: run(x, strategy), x)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("p", [0.4, 32769 / 65536, 1 - 2**-16, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_under_create_graph_is_the_plain_one(strategy, p, dtype):
    x = torch.randn(300, 400, dtype=dtype, requires_grad=True)
    y, grad = run(x, strategy, p), torch.randn(300, 400, dtype=dtype)
    (plain,) = torch.autograd.grad(y, x, grad, retain_graph=True)
    (again,) = torch.autograd.grad(y, x, grad, create_graph=True)
    assert_equal(again.detach(), plain)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_second_derivative(strategy):
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    copy = x.detach().clone().requires_grad_()
    found = []
    for leaf, y in ((x, run(x, strategy)), (copy, oracle.tanh_dropout(copy, 0.4, SEED))):
        (grad,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), leaf)[0])
    assert_near(*found)


def test_opcheck():
    x = torch.randn(4, 33, requires_grad=True)
    arguments = (x, seed_tensor(SEED), 0.4, 0, "cpu")
    torch.library.opcheck(torch.ops.rnndrop.tanh_dropout.default, arguments)
    y, kept = torch.ops.rnndrop.tanh_dropout(*arguments)
    assert torch.equal(kept != 0, keep(SEED, 4, 33, 0.4)) and (y[kept == 0] == 0).all()
    grad = torch.randn(4, 33)
    (mine,) = torch.autograd.grad(y, x, grad)
    (expected,) = torch.autograd.grad(run(x, "cpu"), x, grad)
    assert_equal(mine, expected)

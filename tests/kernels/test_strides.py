"""Launchers take tensors as callers have them: any strides, any alignment, gradients that nobody stored."""

import pytest
import torch

from rnndrop.kernels import cooperative, stepwise
from tests.tolerances import SEQUENCE
from tests.triton_driver import backend

from . import sequences
from .sequences import Case, resident

STRATEGIES = {"resident": resident, "cooperative": cooperative, "stepwise": stepwise}
NAMES = ("input_projection", "h_0", "w_hh", "grad_output", "grad_h_n")

STRIDES = {
    "first axes exchanged": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "last axis in the middle": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "half of wider rows": lambda x: torch.cat([x, x], -1)[..., x.shape[-1] :],
    "rows no whole number apart": lambda x: torch.cat([x, x[..., :5]], -1)[..., : x.shape[-1]],
    "every second row": lambda x: x.repeat_interleave(2, -2)[..., ::2, :],
    "every second column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "off the 16-byte boundary": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("H", [32, 33])
def test_any_strides(H, strategy, name, device):
    """H = 33 is padded, and copied for it: two strides are enough."""
    case = Case(T=2, B=2, H=H, recurrent=16384)
    given = sequences.inputs(case)
    expected = sequences.run(strategy, case, given, device)
    for stride in list(STRIDES.values())[: 7 if H == 32 else 2]:
        assert_same(run_strided(strategy, case, given, {name: stride}, device), expected)


def assert_same(found, expected):
    """But for rounding: the library's product may add up in another order where w_hh has other strides."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=SEQUENCE[torch.float32])


def run_strided(strategy, case, given, strides, device):
    """What sequences.run does, with some of the tensors in other strides."""
    tensors = {name: None if getattr(given, name) is None else getattr(given, name).to(device) for name in NAMES}
    for name, stride in strides.items():
        tensors[name] = stride(tensors[name])
        assert torch.equal(tensors[name].cpu(), getattr(given, name))
    x, h_0, w, grad_output, grad_h_n = tensors.values()
    masks = sequences.masks(case, given.keeps, device)
    output = strategy.forward(x, h_0, w, masks, **case.options)
    grads = strategy.backward(grad_output, grad_h_n, output, w, masks, **case.options)
    return [v.cpu() for v in (output, *grads)]


@pytest.mark.skipif(backend() == "interpreter", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("strategy", [resident, cooperative], ids=["resident", "cooperative"])
def test_an_address_off_the_16_byte_boundary_compiles_nothing(strategy, device):
    """A kernel compiled for such an address would have no vector accesses."""
    kernels = strategy.forward_kernel, strategy.backward_kernel

    def compiled():
        return sum(len(caches[0]) for kernel in kernels for caches in kernel.device_caches.values())

    case = Case(T=2, B=2, H=32)
    given = sequences.inputs(case)
    sequences.run(strategy, case, given, device)
    before = compiled()
    for name in NAMES:
        run_strided(strategy, case, given, {name: STRIDES["off the 16-byte boundary"]}, device)
    assert compiled() == before


@pytest.mark.parametrize("name", ["input_projection", "grad_output"])
@pytest.mark.parametrize("strides", [(96, 40, 1), (72, 32, 1), (128, 64, 1), (32, 96, 1)], ids=str)
def test_steps_and_rows_apart(strides, name, device):
    """`resident` counts in whole rows, of steps and of sequences: one of them may be no whole number, or both are."""
    case = Case(T=2, B=2, H=32)
    given = sequences.inputs(case)
    expected = sequences.run(resident, case, given, device)

    def apart(x):
        return x.new_zeros(256).as_strided(case.shape, strides).copy_(x)

    assert_same(run_strided(resident, case, given, {name: apart}, device), expected)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize("H", [32, 33])
def test_a_gradient_of_one_number(H, strategy, device):
    """output.sum().backward() hands over one number, expanded."""
    case = Case(T=3, B=2, H=H)
    given = sequences.inputs(case)
    given = given._replace(grad_output=torch.tensor(0.5).expand(case.shape), grad_h_n=torch.tensor(0.25).expand(2, H))
    expected = sequences.run(strategy, case, given, device)[1:]
    copied = given._replace(grad_output=given.grad_output.contiguous(), grad_h_n=given.grad_h_n.contiguous())
    for a, b in zip(expected, sequences.run(strategy, case, copied, device)[1:], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(expected, sequences.oracle(case, given)[1:], strict=True):
        assert (a - b).abs().max() <= SEQUENCE[torch.float32]


@pytest.mark.parametrize("name", ["input_projection", "grad_output"])
def test_packed_data_of_any_strides(name, device):
    case = Case(H=33, sizes=(4, 3, 1), recurrent=16384)
    given = sequences.inputs(case)
    expected = sequences.run(stepwise, case, given, device)
    for stride in STRIDES.values():
        assert_same(run_strided(stepwise, case, given, {name: stride}, device), expected)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_no_gradient_of_the_last_state(strategy, device):
    case = Case(T=3, B=2, H=33)
    given = sequences.inputs(case)
    given.grad_h_n.zero_()
    _, grad_gates, grad_h_0 = sequences.run(strategy, case, given, device)
    none = run_strided(strategy, case, given._replace(grad_h_n=None), {}, device)
    assert torch.equal(none[1], grad_gates) and torch.equal(none[2], grad_h_0)

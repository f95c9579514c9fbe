"""What stands in for a GPU where there is none: fake tensors of one, or tensors of the CPU, taken for its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import rnndrop
from rnndrop import dispatch
from rnndrop.kernels import launch
from rnndrop.modules import base, cells
from tests import triton_driver

CUDA = torch.device("cuda", 0)


@pytest.fixture
def fake_cuda() -> Iterator[Callable[..., Tensor]]:
    """A function that makes fake tensors on a GPU. They have no numbers: what asks for one raises."""
    with FakeTensorMode(), torch.no_grad():
        yield lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device=CUDA)


def fake_module(kind: type[nn.Module], *args: object, dtype: torch.dtype = torch.float32, **kwargs: object) -> nn.Module:
    """A module whose parameters are fake tensors on a GPU; without gradients, which a PyTorch for the CPU has none of there."""
    module = kind(*args, device="meta", dtype=dtype, **kwargs)
    for name, parameter in [*module.named_parameters()]:
        fake = torch.empty(parameter.shape, dtype=dtype, device=CUDA)
        setattr(module, name, nn.Parameter(fake, requires_grad=False))
    return module


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device whose tensors dispatch takes for those of a GPU: one, or the CPU, where a driver runs the kernels."""
    if triton_driver.backend() == "cuda":
        return "cuda"
    choose, mask_form = dispatch.choose, dispatch.mask_form
    monkeypatch.setattr(dispatch, "choose", lambda strategy, problem: choose(strategy, problem._replace(device=CUDA)))
    monkeypatch.setattr(launch, "device_of", lambda device: launch.A100)
    for module in (dispatch, base, cells):
        monkeypatch.setattr(module, "mask_form", lambda strategy, device: mask_form(strategy, CUDA))
    return "cpu"


def forget() -> None:
    """Asks Triton's driver again, and warns again."""
    dispatch.kernels_unavailable.cache_clear()
    dispatch._warn_once.cache_clear()


@pytest.fixture
def forgetful() -> Iterator[None]:
    forget()
    yield
    forget()


def rnn(**kwargs: object) -> rnndrop.RNN:
    """A small one with both dropouts inside."""
    return rnndrop.RNN(4, 8, **{"hidden_dropout": 0.25, "recurrent_dropout": 0.25, **kwargs})

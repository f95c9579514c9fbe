from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.stand_ins import cuda, fake_cuda, forgetful  # noqa: F401

# The examples are the same in every run.
settings.register_profile("stable", deadline=None, derandomize=True, database=None)
settings.load_profile("stable")

# PyTorch's own test inputs come from a module that, imported, forbids the whole process to set a flag; other tests do.
torch.backends.disable_global_flags = lambda: None


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN and the largest integers, so that an element the code leaves out is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """torch.compile without what it has compiled in other tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The matrices here are too small to share; a test of threads asks for them."""
    torch.set_num_threads(1)

"""Nothing on the way of a call reads a number of the device, or copies one to it: CUDA graphs can be captured."""

import sys

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import rnndrop
from rnndrop import kinds
from rnndrop.layer import seed_tensor
from rnndrop.steps import Steps
from tests.stand_ins import CUDA, fake_module

SIZES = torch.tensor([3, 3, 2, 1, 1])
READS = ("_local_scalar_dense", "item", "nonzero", "lift_fresh", "equal", "is_nonzero")


class Operators(TorchDispatchMode):
    """Notes the operators that run, and what they read or copy to another device."""

    def __init__(self):
        super().__init__()
        self.names, self.copies, self.read = [], [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.names.append(name)
        if name == "_local_scalar_dense":
            self.read.append(args[0])
        tensors = [x for x in (*args, found) if isinstance(x, torch.Tensor)]
        if name in ("_to_copy", "copy_", "index", "index_put_") and len({x.device for x in tensors}) > 1:
            self.copies.append(name)
        return found


@pytest.mark.parametrize("seed", [3, -1, 2**63, 2**64 - 1, None])
def test_a_seed_is_filled_in_on_the_device(fake_cuda, seed):
    with Operators() as ran:
        tensor = seed_tensor(seed, CUDA)
    assert tensor.device == CUDA and tensor.shape == (1,) and tensor.dtype == torch.int64
    assert ran.names == (["randint"] if seed is None else ["full"])


def test_a_seed_tensor_stays_where_it_is(fake_cuda):
    seed = fake_cuda(1, dtype=torch.int64)
    assert seed_tensor(seed, CUDA) is seed


@pytest.mark.parametrize(("seed", "same"), [(2**63, -(2**63)), (2**64 - 1, -1), (-(2**63) - 1, 2**63 - 1), (5, 5)])
def test_the_range_of_seeds(seed, same):
    assert seed_tensor(seed, torch.device("cpu")).tolist() == [same]


KINDS = [kind.argument for kind in kinds.KINDS.values()]


def module_with(kind: str) -> type:
    """The first of our modules that has this kind."""
    modules = {"candidate_dropout": rnndrop.GRU, "cell_dropout": rnndrop.LSTM, "cell_zoneout": rnndrop.LSTM}
    return modules.get(kind, rnndrop.RNN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("steps", [1, 5])
def test_a_call_on_fake_tensors(fake_cuda, kind, each, steps):
    """A seed for each sequence is on the device too."""
    module = fake_module(module_with(kind), 4, 8, 2, bidirectional=True, **{kind: 0.5})
    with Operators() as ran:
        module(fake_cuda(steps, 3, 4), seed=fake_cuda(3, dtype=torch.int64) if each else 3)
    assert ran.names and not ran.copies and not set(READS) & set(ran.names)


@pytest.mark.parametrize("kind", ["hidden_dropout", "recurrent_dropout", "zoneout"])
@pytest.mark.parametrize("training", [True, False])
def test_a_call_of_a_cell_and_evaluation(fake_cuda, kind, training):
    cell, rnn = (fake_module(of, 4, 8, **{kind: 0.5}).train(training) for of in (rnndrop.RNNCell, rnndrop.RNN))
    with Operators() as ran:
        cell(fake_cuda(3, 4), seed=fake_cuda(3, dtype=torch.int64))
        if kind == "zoneout" or training:  # PyTorch's own layers want a real GPU
            rnn(fake_cuda(5, 3, 4))
    assert ran.names and not ran.copies and not set(READS) & set(ran.names)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_call_and_its_backward(cuda, kind, enforce_sorted):
    """They read the sizes of the batch alone, which are on the CPU, and make no tensor of a list, which would be copied."""
    module = module_with(kind)(4, 8, 2, bidirectional=True, device=cuda, **{kind: 0.5})
    x = pack_padded_sequence(torch.randn(5, 3, 4, device=cuda), torch.tensor([5, 3, 2]), enforce_sorted=enforce_sorted)
    module(x, seed=3)  # where the steps of these sizes begin is copied once
    with Operators() as ran:
        output, _ = module(x, seed=3)
        output.data.sum().backward()
    assert not ran.copies and not (set(READS) - {"_local_scalar_dense"}) & set(ran.names)
    sizes = x.batch_sizes.untyped_storage().data_ptr()
    assert ran.read and {tensor.untyped_storage().data_ptr() for tensor in ran.read} == {sizes}


class Lines:
    """Counts the lines of Python that run under `rnndrop`."""

    def __enter__(self):
        self.count = 0
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, argument):
        if "rnndrop" not in frame.f_code.co_filename:
            return None
        self.count += event == "line"
        return self.trace


def bookkeeping(steps, batch):
    """What a layer asks for: sequences that end one by one, as many runs as B."""
    lengths = torch.linspace(1, steps, batch).long()
    sizes = (lengths[None, :] > torch.arange(int(lengths.max()))[:, None]).sum(1)
    both = Steps(steps, batch, sizes), Steps(steps, batch, sizes, reverse=True)
    with Lines() as lines:
        for one in both:
            _ = one.runs, one.rows
    return lines.count


def test_bookkeeping_does_not_loop_over_steps():
    assert bookkeeping(1000, 128) == bookkeeping(20, 128) < 60


def test_runs():
    assert [tuple(run) for run in Steps(5, 3, SIZES).runs] == [(0, 2, 3), (6, 1, 2), (8, 2, 1)]
    assert Steps(5, 3, SIZES).runs == Steps(5, 3, SIZES, reverse=True).runs


@pytest.mark.parametrize("reverse", [False, True])
def test_the_rows_before(reverse):
    """One row at a time; sequence b is row b of a step."""
    steps, output, initial = Steps(5, 3, SIZES, reverse), torch.arange(10.0)[:, None], -torch.arange(1.0, 4.0)[:, None]
    rows = {(t, b): int(SIZES[:t].sum()) + b for t, size in enumerate(SIZES.tolist()) for b in range(size)}
    found = steps.before(output, initial)
    for (t, b), row in rows.items():
        other = rows.get((t + (1 if reverse else -1), b))
        assert found[row] == (initial[b] if other is None else output[other])

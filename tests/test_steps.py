"""Rows in time, against loops that look at one sequence and one step."""

import itertools
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnndrop.steps import Run, Steps, checked_batch_sizes


class Naive:
    """The same by lengths that fall: a row for each (t, b) with t < lengths[b], one step after another."""

    def __init__(self, lengths, reverse):
        self.lengths, self.reverse = lengths, reverse
        self.count, self.batch = max(lengths), len(lengths)
        self.places = [(t, b) for t in range(self.count) for b in range(self.batch) if t < lengths[b]]
        self.sizes = [sum(t < length for length in lengths) for t in range(self.count)]

    def row(self, t, b):
        return self.places.index((t, b))

    def in_order(self, steps):
        return steps[::-1] if self.reverse else steps

    def ranges(self):
        return self.in_order([(self.row(t, 0), self.row(t, 0) + size) for t, size in enumerate(self.sizes)])

    def last(self, output):
        return [output[self.row(0 if self.reverse else length - 1, b)] for b, length in enumerate(self.lengths)]

    def before(self, output, initial):
        found = []
        for t, b in self.places:
            previous = t + 1 if self.reverse else t - 1
            found.append(output[self.row(previous, b)] if 0 <= previous < self.lengths[b] else initial[b])
        return found


def check(lengths, reverse, packed=True):
    naive = Naive(lengths, reverse)
    steps = Steps(naive.count, naive.batch, torch.tensor(naive.sizes) if packed else None, reverse)
    rows = len(naive.places)
    x = torch.arange(rows * 2.0).view(rows, 2)
    initial = -1 - torch.arange(naive.batch * 2.0).view(-1, 2)

    assert steps.rows == rows
    assert steps.ranges == naive.ranges()
    sizes = [size for run in steps.runs for size in [run.size] * run.steps]
    assert sizes == naive.sizes and all(a.size != b.size for a, b in itertools.pairwise(steps.runs))
    assert [run.start for run in steps.runs] + [rows] == [0] + [run.stop for run in steps.runs]
    assert all(isinstance(value, int) for run in steps.runs for value in run)

    parts = steps.split(x)
    assert len(parts) == naive.count
    assert all(torch.equal(part, x[start:stop]) for part, (start, stop) in zip(parts, naive.ranges(), strict=True))
    assert all(part.data_ptr() == x[start].data_ptr() for part, (start, _) in zip(parts, naive.ranges(), strict=True))
    last = steps.last(x)
    assert torch.equal(last, torch.stack(naive.last(x)))
    assert last.untyped_storage().data_ptr() != x.untyped_storage().data_ptr(), "a copy"
    assert torch.equal(steps.before(x, initial), torch.stack(naive.before(x, initial)))

    padded = torch.arange(naive.count * naive.batch * 3).view(-1, 3)
    expected = [padded[t * naive.batch + b] for t, b in naive.places]
    assert torch.equal(steps.without_padding(padded), torch.stack(expected))
    assert torch.equal(steps.repeated(initial), torch.stack([initial[b] for _, b in naive.places]))

    other = steps.backwards()
    assert (other.count, other.batch, other.reverse, other.rows) == (steps.count, steps.batch, not reverse, rows)
    assert other.batch_sizes is steps.batch_sizes and other.runs == steps.runs
    assert other.ranges == steps.ranges[::-1]
    assert Steps(naive.count, naive.batch, steps.batch_sizes, not reverse).backwards().ranges == steps.ranges  # runs not known


def falling(count, batch):
    """Every list of lengths of `batch` sequences, the longest of `count` steps."""
    for rest in itertools.combinations_with_replacement(range(count, 0, -1), batch - 1):
        yield [count, *rest]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("count, batch", list(itertools.product(range(1, 6), range(1, 5))))
def test_every_small_batch(count, batch, reverse):
    for lengths in falling(count, batch):
        check(lengths, reverse)
    check([count] * batch, reverse, packed=False)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), reverse=st.booleans())
def test_larger_batches(lengths, reverse):
    check(sorted(lengths, reverse=True), reverse)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_padded_batch_is_split_with_its_steps_or_its_rows(reverse):
    x = torch.randn(4, 3, 5)
    steps = Steps(4, 3, reverse=reverse)
    for given_x in (x, x.view(12, 5)):
        parts = steps.split(given_x)
        assert all(torch.equal(a, b) for a, b in zip(parts, reversed(x) if reverse else x, strict=True))
    assert steps.runs == (Run(0, 4, 3),) and Run(2, 4, 3).stop == 14


def test_steps_of_an_input():
    padded, sizes = Steps.of(torch.zeros(4, 3, 5), 3, reverse=True), torch.tensor([3, 2])
    assert (padded.count, padded.batch, padded.batch_sizes, padded.reverse) == (4, 3, None, True)
    packed = Steps.of(torch.zeros(5, 2), 3, sizes)
    assert (packed.count, packed.batch, packed.reverse) == (2, 3, False) and packed.batch_sizes is sizes


@pytest.mark.parametrize("reverse", [False, True])
def test_a_batch_of_nobody(reverse):
    steps, x = Steps(4, 0, reverse=reverse), torch.zeros(0, 5)
    assert steps.rows == 0 and steps.ranges == [(0, 0)] * 4
    assert [part.shape for part in steps.split(x)] == [(0, 5)] * 4
    assert (
        steps.last(x).shape == steps.before(x, x).shape == steps.without_padding(x).shape == steps.repeated(x).shape == x.shape
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_long_and_many(reverse):
    """1000 steps of 128 sequences, each of another length: Python's part is a loop over runs, a list over steps, no more."""
    lengths = sorted([1000 - 7 * b for b in range(128)], reverse=True)
    sizes = torch.tensor([sum(t < length for length in lengths) for t in range(1000)])
    rows, initial = torch.zeros(int(sizes.sum()), 1), torch.zeros(128, 1)
    found = []
    for _ in range(5):
        start = time.process_time()
        steps = Steps(1000, 128, checked_batch_sizes(sizes, len(rows)), reverse)
        assert len(steps.runs) == 128 and len(steps.ranges) == 1000
        steps.last(rows), steps.before(rows, initial)
        found.append(time.process_time() - start)
    assert min(found) < 0.02  # several times what it takes; a loop over rows would take more


@pytest.mark.parametrize("sizes", [[3, 2, 1], torch.tensor([3, 2, 1]), torch.tensor([3, 2, 1], dtype=torch.int32), (3, 2, 1)])
def test_batch_sizes_of_any_kind(sizes):
    checked = checked_batch_sizes(sizes, 6)
    assert checked.dtype == torch.int64 and checked.tolist() == [3, 2, 1] and checked.device.type == "cpu"


@pytest.mark.parametrize("sizes, rows", [([3, 2, 1], 7), ([3, 1, 2], 6), ([3, 3, 0], 6), ([3, 3, -1], 5), ([], 0), ([0], 0)])
def test_batch_sizes_that_cannot_be(sizes, rows):
    with pytest.raises(RuntimeError, match=f"batch_sizes should be positive, never increase and add up to the {rows} rows"):
        checked_batch_sizes(sizes, rows)

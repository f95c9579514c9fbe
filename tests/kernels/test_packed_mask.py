import pytest
import torch

from rnndrop.kernels.packed_mask import packed_mask
from tests import stream
from tests.helpers import seed_tensor

SHAPES = [(1, 1), (3, 16), (7, 33), (5, 100), (64, 48), (2, 4100), (300, 5)]
THRESHOLDS = [0, 1, 16384, 32767, 32768, 32769, 58982, 65535, 65536]


@pytest.mark.parametrize("rows, columns", SHAPES)
def test_equals_the_definition(rows, columns, device):
    words = packed_mask(seed_tensor(1234, device), rows, columns, 20000, 7)
    assert words.shape == (rows, -(-columns // 32)) and words.dtype == torch.int32
    assert torch.equal(stream.unpack(words, columns), stream.keep(1234, rows, columns, 20000, 7))


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_every_kind_of_threshold(threshold, device):
    words = packed_mask(seed_tensor(5, device), 40, 96, threshold, 1)
    assert torch.equal(stream.unpack(words, 96), stream.keep(5, 40, 96, threshold, 1))


@pytest.mark.parametrize("threshold", [32768, 32769])
def test_a_word_at_the_threshold_where_the_comparison_turns(threshold, device):
    """So many words that some are 32768, which only the larger threshold drops."""
    rows = 20000
    expected = stream.keep(8, rows, 16, threshold, 2)
    assert not torch.equal(stream.keep(8, rows, 16, 32768, 2), stream.keep(8, rows, 16, 32769, 2))
    words = packed_mask(seed_tensor(8, device), rows, 16, threshold, 2)
    assert torch.equal(stream.unpack(words, 16), expected)


def test_thresholds_of_the_words_that_are_there(device):
    """A word equal to the threshold is kept and the next threshold drops it, for the words of one block."""
    for word in {0x0, 0x7FFF, 0x8000, 0xFFFF} | set(stream.words_of_row(99, 3, 0, 16)):
        for threshold in {word, word + 1}:
            words = packed_mask(seed_tensor(99, device), 1, 16, threshold, 3)
            assert torch.equal(stream.unpack(words, 16), stream.keep(99, 1, 16, threshold, 3))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("key", [0, 1, 2**32, 2 << 32 | 5 << 1 | 1])
def test_every_key(seed, key, device):
    mask = stream.unpack(packed_mask(seed_tensor(seed, device), 3, 35, 32768, key), 35)
    assert torch.equal(mask, stream.keep(seed, 3, 35, 32768, key))


def test_empty(device):
    assert packed_mask(seed_tensor(3, device), 0, 40, 16384, 0).shape == (0, 2)


@pytest.mark.parametrize("columns", [5, 33, 300])
def test_every_sequence_may_have_a_seed(columns, device):
    """Row r is row r // S of the mask of seed r % S."""
    seeds = [3, -1, 2**62]
    words = packed_mask(torch.tensor(seeds, device=device), 12, columns, 20000, 7)
    expected = torch.stack([stream.keep(seed, 4, columns, 20000, 7) for seed in seeds], 1).flatten(0, 1)
    assert torch.equal(stream.unpack(words, columns), expected)

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch

from rnndrop import dropout_mask, mask
from rnndrop.kinds import KINDS
from tests import stream
from tests.helpers import assert_binomial, keep, threads
from tests.stream import philox4x64, threshold_of

ONES = 2**64 - 1
# Random123, tests/kat_vectors, "philox4x64 10": counter, key, result. The third holds digits of pi.
PUBLISHED = [
    ([0] * 4, [0] * 2, [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]),
    ([ONES] * 4, [ONES] * 2, [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]),
    (
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        [0x452821E638D01377, 0xBE5466CF34E90C6C],
        [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
    ),
]
BELOW_ONE = 1 - 2.0**-53


@pytest.mark.parametrize("counter, key, result", PUBLISHED)
def test_published_vectors(counter, key, result):
    assert philox4x64(counter, key) == result
    before = (sum(word << 64 * i for i, word in enumerate(counter)) - 1) % 2**256  # NumPy advances, then draws
    assert np.random.Philox(key=np.array(key, np.uint64), counter=before).random_raw(4).tolist() == result


@pytest.mark.parametrize("seed", [0, 1, 42, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 16), (5, 17), (4, 33), (2, 100)])
def test_every_bit_of_the_definition(seed, rows, columns):
    for kind, layer, direction, number in [
        ("hidden", 0, 0, 0),
        ("hidden", 0, 1, 1),
        ("recurrent", 0, 0, 1 << 32),
        ("between", 3, 1, 2 << 32 | 7),
        ("recurrent", 2**31 - 1, 1, 1 << 32 | 0xFFFFFFFF),
        ("input", 0, 0, 3 << 32),
        ("output", 1, 1, 4 << 32 | 3),
        ("weight", 2, 0, 5 << 32 | 4),
        ("zoneout", 1, 0, 6 << 32 | 2),
    ]:
        actual = keep(seed, rows, columns, 0.3, kind=kind, layer=layer, direction=direction)
        assert torch.equal(actual, stream.keep(seed, rows, columns, threshold_of(0.3), number))
        assert mask.stream(kind, layer, direction) == number == stream.stream_of(kind, layer, direction)


@pytest.mark.parametrize(
    "p", [0.0, 1e-300, 1 / 65536, 1.5 / 65536, 0.2, 1 / 3, 0.5, 32769 / 65536, 0.999, 65535 / 65536, BELOW_ONE, 1.0]
)
def test_every_kind_of_p(p):
    scale = 65536 / (65536 - threshold_of(p)) if p < 1 else 0.0
    expected = stream.keep(7, 40, 35, threshold_of(p), 0) * scale
    assert torch.equal(dropout_mask(7, 40, 35, p), expected.to(torch.get_default_dtype()))


@pytest.mark.parametrize(
    "p, threshold",
    [
        (0, 0),
        (1, 65536),
        (0.0, 0),
        (1.0, 65536),
        (5e-324, 1),
        (1e-9, 1),
        (0.4 / 65536, 1),
        (0.5 / 65536, 1),
        (1.5 / 65536, 2),
        (2.5 / 65536, 2),
        (3.5 / 65536, 4),
        (32767.5 / 65536, 32768),
        (0.5, 32768),
        (65534.5 / 65536, 65534),
        (65535.5 / 65536, 65535),
        (BELOW_ONE, 65535),
    ],
)
def test_thresholds(p, threshold):
    assert mask.threshold(p) == threshold == threshold_of(p)


def test_all_steps_of_p():
    """k/65536 is exact for every k, and the halves between go to the even neighbour."""
    for k in range(65537):
        assert mask.threshold(k / 65536) == k
    for k in range(1, 65535):
        assert mask.threshold((k + 0.5) / 65536) == k + (k % 2)


def test_a_word_at_the_threshold_is_kept():
    for column, word in enumerate(stream.words_of_row(99, 0, 0, 16)):
        assert dropout_mask(99, 1, 16, word / 65536)[0, column] != 0
        assert dropout_mask(99, 1, 16, (word + 1) / 65536)[0, column] == 0


@pytest.mark.parametrize("p", [0.0, 1e-9, 1 / 3, 0.5, 0.9, BELOW_ONE])
def test_the_expectation_is_exact(p):
    """Over all 65536 values of a word the mask's mean is 1, but for the rounding of one float."""
    mean = Fraction(mask.scale(p)) * (65536 - threshold_of(p)) / 65536
    assert abs(mean - 1) <= Fraction(1, 2**53)


def test_p_one_keeps_nothing():
    assert mask.scale(1.0) == 0
    assert torch.equal(dropout_mask(1, 3, 20, 1.0), torch.zeros(3, 20))


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**63, 2**64 - 1, 2**64 + 5, -(2**64) - 3, 10**40])
def test_seeds_wrap(seed):
    assert torch.equal(dropout_mask(seed, 4, 20, 0.5), dropout_mask(seed % 2**64, 4, 20, 0.5))
    signed = (seed + 2**63) % 2**64 - 2**63
    assert torch.equal(dropout_mask(seed, 4, 20, 0.5), dropout_mask(torch.tensor([signed]), 4, 20, 0.5))


def test_a_mask_is_the_start_of_a_longer_and_wider_one():
    long = dropout_mask(3, 300, 48, 0.4)
    assert torch.equal(dropout_mask(3, 7, 33, 0.4), long[:7, :33])  # 33 and 48 columns take three counters each


@pytest.mark.parametrize("rows, columns", [(5000, 130), (3, 400_000), (700_000, 1), (262_144, 2)])
def test_large_masks(rows, columns):
    """Chunks and threads leave no seam: against the stream in one piece, and by definition at sampled places."""
    blocks = -(-columns // 16)
    raw = np.random.Philox(key=[5, 0], counter=0).random_raw(rows * blocks * 4).astype("<u8").view("<u2")
    actual = keep(5, rows, columns, 0.25)
    assert torch.equal(actual, torch.from_numpy(raw.reshape(rows, -1)[:, :columns] >= 16384))
    g = torch.Generator().manual_seed(0)
    for row, column in zip(torch.randint(rows, (50,), generator=g), torch.randint(columns, (50,), generator=g), strict=True):
        row, column = int(row), int(column)
        result = philox4x64((row * blocks + column // 16 + 1, 0, 0, 0), (5, 0))[column % 16 // 4]
        assert actual[row, column] == ((result >> column % 4 * 16) % 65536 >= 16384)


def test_threads_change_nothing():
    drawn = []
    for number in (1, 2, 3, 7):
        with threads(number):
            drawn.append(dropout_mask(1, 2001, 515, 0.3))
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])


def test_many_threads_at_once():
    serial = [dropout_mask(seed, 900, 400, 0.3) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: dropout_mask(seed, 900, 400, 0.3), range(4)))
    assert all(map(torch.equal, serial, together))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_fork():
    """A child of a process that has drawn with its threads draws too, instead of waiting for threads it has not got."""
    draw = lambda: mask.keep_bytes(8, 2000, 400, 32768, 0).numpy().tobytes()  # noqa: E731
    with threads(2):
        mask._pool.cache_clear()
        expected = draw()
        assert mask._pool.cache_info().currsize == 1, "too few rows for the threads"
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            os._exit(draw() != expected)
        assert os.waitpid(child, 0)[1] == 0


def test_bytes_are_0_or_all_ones():
    """They are applied by a bitwise and."""
    for p in (0.3, 1.0):
        made = mask.keep_bytes(3, 30, 40, threshold_of(p), 5)
        assert made.dtype == torch.int8
        assert torch.equal(made, -stream.keep(3, 30, 40, threshold_of(p), 5).to(torch.int8))


@pytest.mark.parametrize("columns", [1, 8, 31, 32, 33, 64, 100])
def test_bits(columns):
    kept = keep(3, 7, columns, 0.5)
    words = mask.packed(-kept.to(torch.int8))
    assert torch.equal(words, stream.pack(kept)) and torch.equal(stream.unpack(words, columns), kept)
    back, scale = mask.unpacked(mask.Mask(words, 2.0), columns)
    assert back.dtype == torch.bool and torch.equal(back, kept) and scale == 2.0
    by_byte = mask.Mask(-kept.to(torch.int8), 2.0)
    assert mask.unpacked(by_byte, columns) is by_byte


# Rates and independence. The counts are binomial if the stream is what it claims to be.

RATES = [1 / 65536 * 100, 0.1, 0.25, 1 / 3, 0.5, 0.8, 0.99]


@pytest.mark.parametrize("p", RATES)
def test_rates(p):
    """The rate of all, of every row and of every column is p as rounded."""
    rows, columns, exact = 2048, 512, threshold_of(p) / 65536
    dropped = ~keep(2024, rows, columns, p)
    assert_binomial(dropped.sum(), rows * columns, exact)
    if rows * exact * (1 - exact) > 20:  # else a binomial is too far from a normal for six deviations to mean anything
        assert_binomial(dropped.sum(0), rows, exact)
        assert_binomial(dropped.sum(1), columns, exact)


SHAPE = dict(rows=24 * 32, columns=256)  # 24 steps of 32 sequences


PAIRS = {
    "neighbouring units": lambda m: (m[:, 0::2], m[:, 1::2]),
    "units of neighbouring counters": lambda m: (m.view(-1, 8, 2, 16)[:, :, 0], m.view(-1, 8, 2, 16)[:, :, 1]),
    "units of neighbouring results": lambda m: (m.view(-1, 32, 2, 4)[:, :, 0], m.view(-1, 32, 2, 4)[:, :, 1]),
    "batch": lambda m: (m[0::2], m[1::2]),
    "time": lambda m: (m.view(12, 2, 32, 256)[:, 0], m.view(12, 2, 32, 256)[:, 1]),
    "far apart in time": lambda m: (m[:384], m[384:]),
}
CALLS = {
    "layers": dict(layer=1),
    "far layers": dict(layer=1000),
    "directions": dict(direction=1),
    "hidden and recurrent": dict(kind="recurrent"),
    "hidden and between": dict(kind="between"),
    "hidden and input": dict(kind="input"),
    "hidden and output": dict(kind="output"),
    "hidden and weight": dict(kind="weight"),
    "hidden and zoneout": dict(kind="zoneout"),
    "calls": dict(seed=12),
    "calls of negated seeds": dict(seed=-11),
    "calls of far seeds": dict(seed=11 + 2**62),
}


@pytest.mark.parametrize("p", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("name", [*PAIRS, *CALLS])
def test_independence(name, p):
    """Two elements are dropped together p*p of the time, and one of two is 2p(1-p) of it."""
    drawn = ~keep(11, p=p, **SHAPE)
    a, b = PAIRS[name](drawn) if name in PAIRS else (drawn, ~keep(**{"seed": 11, **CALLS[name]}, p=p, **SHAPE))
    exact = threshold_of(p) / 65536
    assert_binomial((a & b).sum(), a.numel(), exact**2)
    assert_binomial((a ^ b).sum(), a.numel(), 2 * exact * (1 - exact))


def test_the_kinds_are_independent():
    """Each of each, of the same layer and of the next, and of the other direction."""
    drawn = {
        (kind, place): ~keep(11, 512, 64, 0.3, kind=kind, layer=place // 2, direction=place % 2)
        for kind in KINDS
        for place in range(4)
    }
    exact = threshold_of(0.3) / 65536
    for a, b in combinations(drawn.values(), 2):
        assert_binomial((a & b).sum(), a.numel(), exact**2)
        assert_binomial((a ^ b).sum(), a.numel(), 2 * exact * (1 - exact))


# The function.


def test_shape_and_dtype():
    assert dropout_mask(1, 3, 5, 0.5).dtype == torch.get_default_dtype()
    for rows, columns in [(0, 5), (5, 0), (0, 0)]:
        assert dropout_mask(1, rows, columns, 0.5).shape == (rows, columns)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert dropout_mask(1, 3, 5, 1 / 3).max().item() == mask.scale(1 / 3)
    finally:
        torch.set_default_dtype(before)


BAD_P = [-0.1, 1.1, -1e-300, float("nan"), float("inf"), True, False, np.bool_(True), "0.5", None, [0.5], 0.5j]


@pytest.mark.parametrize("p", BAD_P)
def test_bad_p(p):
    with pytest.raises(ValueError, match=r"^p should be a number in range \[0, 1\]") as raised:
        dropout_mask(1, 2, 3, p)
    assert repr(p) in str(raised.value)


@pytest.mark.parametrize("p", [np.float32(0.5), np.float64(0.5), np.int64(1), 0, 1])
def test_numbers_that_are_good(p):
    assert torch.equal(dropout_mask(1, 2, 30, p), dropout_mask(1, 2, 30, float(p)))


@pytest.mark.parametrize(
    "name, value",
    [("kind", "state"), ("kind", 0), ("rows", -1), ("columns", -2), ("layer", -1), ("layer", 2**31), ("direction", 2)],
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=name) as raised:
        dropout_mask(**{"seed": 1, "rows": 2, "columns": 3, "p": 0.5, name: value})
    assert repr(value) in str(raised.value)


def test_a_dropped_element_is_zero_without_a_sign():
    assert not dropout_mask(1, 5, 50, 0.5).signbit().any()


@pytest.mark.parametrize("seed", [True, 5.0, "5", torch.tensor(5.0), torch.tensor(5, dtype=torch.int32)])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(TypeError, match="seed should be an int or an int64 tensor"):
        dropout_mask(seed, 5, 50, 0.5)


def test_a_seed_may_be_numpys():
    assert torch.equal(dropout_mask(np.int64(-5), 5, 50, 0.5), dropout_mask(-5, 5, 50, 0.5))

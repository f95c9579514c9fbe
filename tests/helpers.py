"""What the tests share: the mask stream in Python's integers, the layer by hand in float64, how results are compared."""

from __future__ import annotations

import functools
import warnings
from fractions import Fraction

import torch
from torch import nn

import rnndrop
from tests.tolerances import SEQUENCE

WORD = 2**64 - 1
STRATEGIES = ("torch", "reference", "auto")
PARAMETERS = ("w_ih", "w_hh", "b_ih", "b_hh")


# The mask stream, as section by section of its definition, without NumPy.


def philox4x64(counter, key):
    """Philox4x64-10 in integers of any size."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
        c = [(b >> 64) ^ c[1] ^ k[0], b & WORD, (a >> 64) ^ c[3] ^ k[1], a & WORD]
        k = [(k[0] + 0x9E3779B97F4A7C15) & WORD, (k[1] + 0xBB67AE8584CAA73B) & WORD]
    return c


@functools.cache
def words_of_row(seed, site, row, columns):
    """The 16-bit words of a row of the mask."""
    blocks, words = -(-columns // 16), []
    for block in range(blocks):
        for result in philox4x64((row * blocks + block + 1, 0, 0, 0), (seed % 2**64, site)):
            words += [result >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    return words[:columns]


def threshold_of(p):
    """p in units of 1/65536, to nearest, ties to even, in exact arithmetic; 0 and 65536 only for p = 0 and 1."""
    nearest = round(Fraction(p) * 65536)
    return nearest if p in (0, 1) else min(max(nearest, 1), 65535)


def keep_by_definition(seed, rows, columns, p, site):
    """True where kept."""
    words = [words_of_row(seed, site, row, columns) for row in range(rows)]
    return torch.tensor(words, dtype=torch.int64).reshape(rows, columns) >= threshold_of(p)


def keep(seed, rows, columns, p, **where):
    """The mask of the package as bool."""
    return rnndrop.dropout_mask(seed, rows, columns, p, **where) != 0


# The layer by hand: one sequence, one direction, one step at a time.


def layer_by_hand(
    x, h0, w_ih, w_hh, b_ih=None, b_hh=None, *, nonlinearity="tanh", hidden=None, recurrent=None, lengths=None, reverse=False
):
    """(T, B, I) and (B, H) to (T, B, H), zero after a sequence's end, and (B, H). `hidden` and `recurrent` are masks
    (T, B, H) with their scale."""
    steps, batch, _ = x.shape
    f = {"tanh": torch.tanh, "relu": torch.relu}[nonlinearity]
    outputs, states = [], []
    for b in range(batch):
        length, h = steps if lengths is None else lengths[b], h0[b]
        output = [torch.zeros_like(h)] * steps
        for t in range(length)[::-1] if reverse else range(length):
            a = w_ih @ x[t, b] + w_hh @ (h if recurrent is None else recurrent[t, b] * h)
            a = a + (0 if b_ih is None else b_ih) + (0 if b_hh is None else b_hh)
            h = f(a) if hidden is None else hidden[t, b] * f(a)
            output[t] = h
        outputs.append(torch.stack(output))
        states.append(h)
    return torch.stack(outputs, 1), torch.stack(states)


def mask_over_time(seed, steps, batch, columns, p, scope="step", **where):
    """The mask (T, B, H) of a padded batch in float64; None for p = 0."""
    if p == 0:
        return None
    if scope == "sequence":
        return exact_mask(seed, batch, columns, p, **where).expand(steps, batch, columns)
    return exact_mask(seed, steps * batch, columns, p, **where).view(steps, batch, columns)


def exact_mask(seed, rows, columns, p, **where):
    kept = 65536 - threshold_of(p)
    return keep(seed, rows, columns, p, **where).double() * (65536 / kept if kept else 0.0)


def network_by_hand(rnn, x, hx, seed, lengths=None, parameters=None):
    """rnndrop.RNN in training, in float64: (T, B, I) and (layers * D, B, H) to the padded output (T, B, D * H) and h_n."""
    steps, batch, _ = x.shape
    parameters = dict(rnn.named_parameters()) if parameters is None else parameters
    directions, columns, states = 2 if rnn.bidirectional else 1, rnn.hidden_size, []
    for layer in range(rnn.num_layers):
        outputs = []
        for direction in range(directions):
            where = dict(layer=layer, direction=direction)
            end = f"_l{layer}" + "_reverse" * direction
            names = [n + end for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            masks = [
                mask_over_time(seed, steps, batch, columns, p, rnn.mask_scope, kind=kind, **where)
                for kind, p in (("hidden", rnn.hidden_dropout), ("recurrent", rnn.recurrent_dropout))
            ]
            output, h_n = layer_by_hand(
                x,
                hx[layer * directions + direction],
                *[parameters.get(name) for name in names],
                nonlinearity=rnn.nonlinearity,
                hidden=masks[0],
                recurrent=masks[1],
                lengths=lengths,
                reverse=bool(direction),
            )
            if layer + 1 < rnn.num_layers and rnn.dropout:
                output = output * mask_over_time(seed, steps, batch, columns, rnn.dropout, kind="between", **where)
            outputs.append(output)
            states.append(h_n)
        x = torch.cat(outputs, -1)
    return x, torch.stack(states)


# Cases and comparison.


def make_layer(steps=5, batch=3, inputs=4, columns=17, *, dtype=torch.float64, bias=True, kink=True):
    """Leaves of a freshly initialised layer, {name: tensor}. `kink` False: every pre-activation is far from 0, so that
    rounding does not switch a relu."""
    shapes = dict(w_ih=(columns, inputs), w_hh=(columns, columns)) | (dict(b_ih=(columns,), b_hh=(columns,)) if bias else {})
    leaves = dict(x=torch.randn(steps, batch, inputs), h0=torch.randn(batch, columns))
    leaves |= {name: torch.empty(shape).uniform_(-1, 1) / columns**0.5 for name, shape in shapes.items()}
    if not kink:
        leaves["w_ih"], leaves["w_hh"] = leaves["w_ih"] / 4, leaves["w_hh"] / 4
        leaves["b_ih"] = torch.randn(columns).sign() * 3
    return {name: leaf.to(dtype).requires_grad_() for name, leaf in leaves.items()}


def doubled(leaves):
    return {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}


def gradients(outputs, leaves):
    """Gradients of the leaves for fixed random gradients of the outputs: {"grad " + name: tensor}."""
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
    found = torch.autograd.grad(outputs, list(leaves.values()), grads)
    return {f"grad {name}": g for name, g in zip(leaves, found, strict=True)}


def assert_near(actual, expected, bound=None):
    """Within `bound` (by default that of the dtype in the tolerance table) of the largest element of `expected`."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name in expected:
            try:
                assert_near(actual[name], expected[name], bound)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from None
        return
    assert actual.shape == expected.shape
    bound = SEQUENCE[actual.dtype] if bound is None else bound
    size = max(expected.detach().abs().max().item(), 1e-30) if expected.numel() else 0.0
    torch.testing.assert_close(actual.detach().double(), expected.detach().double(), rtol=0, atol=bound * size)


def quiet(kind, *args, **kwargs):
    """A module without the warning about dropout of a single layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(*args, **kwargs)


def error_of(call, *args, **kwargs):
    """The type of exception that a call raises; None without."""
    try:
        call(*args, **kwargs)
    except Exception as error:
        return type(error)
    return None


def twin(rnn, **dropouts):
    """The nn.RNN of an rnndrop.RNN, and the other way round."""
    return rnndrop.RNN.from_torch(rnn, **dropouts) if isinstance(rnn, nn.RNN) else rnn.to_torch()


def assert_binomial(count, trials, p, sigmas=6):
    """A binomial count is beyond six standard deviations once in 500 million; a seed fixes it for good."""
    count, deviation = torch.as_tensor(count, dtype=torch.float64), (trials * p * (1 - p)) ** 0.5
    worst = (count - trials * p).abs().max().item()
    assert worst <= sigmas * deviation, f"{worst / deviation:.1f} standard deviations of {trials} trials at {p}"

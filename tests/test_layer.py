"""Every mask of a call: where its seed comes from, and what follows from it."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import rnndrop
from rnndrop import functional
from rnndrop.dropouts import Dropouts
from rnndrop.kinds import KINDS
from rnndrop.layer import MaskSource, seed_tensor
from rnndrop.steps import Steps
from tests.helpers import EVERY_KIND, OUTSIDE, assert_binomial, every_kind
from tests.stream import scale_of, threshold_of

CPU = torch.device("cpu")
RATES = dict(hidden_dropout=0.4, recurrent_dropout=0.3)
X = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def rnn(**options):
    return rnndrop.RNN(4, 17, dtype=torch.float64, **{**RATES, **options})


def layers():
    """Everything that drops, as a function of a seed."""
    torch.manual_seed(0)
    module = rnn(num_layers=2, dropout=0.2, bidirectional=True)
    around = rnndrop.RNN(4, 17, 2, dtype=torch.float64, bidirectional=True, **OUTSIDE)
    every = rnndrop.RNN(4, 17, 2, dtype=torch.float64, **EVERY_KIND)
    between, cell = rnn(num_layers=2, dropout=0.2, hidden_dropout=0, recurrent_dropout=0), rnndrop.RNNCell(4, 17, **RATES)
    zoned = rnndrop.RNN(4, 17, dtype=torch.float64, zoneout=0.3)
    weights = [p.detach() for p in rnn().parameters()]
    return {
        "RNN": lambda seed=None: module(X, seed=seed)[0],
        "RNN, between layers": lambda seed=None: between(X, seed=seed)[0],
        "RNN, around the layers": lambda seed=None: around(X, seed=seed)[0],
        "RNN, everywhere": lambda seed=None: every(X, seed=seed)[0],
        "RNN, zoneout": lambda seed=None: zoned(X, seed=seed)[0],
        "RNNCell": lambda seed=None: cell.double()(X[0], seed=seed),
        "rnn_layer": lambda seed=None: functional.rnn_layer(X, X.new_ones(3, 17), *weights, seed=seed, **RATES)[0],
        "rnn_layer, reference": lambda seed=None: functional.rnn_layer(
            X, X.new_ones(3, 17), *weights, seed=seed, strategy="reference", **RATES
        )[0],
        "tanh_dropout": lambda seed=None: functional.tanh_dropout(X, 0.4, seed=seed),
        "tanh_dropout, reference": lambda seed=None: functional.tanh_dropout(X, 0.4, seed=seed, strategy="reference"),
    }


every_layer = pytest.mark.parametrize("name", list(layers()))


@every_layer
def test_calls_differ_and_manual_seed_repeats_them(name):
    run = layers()[name]
    torch.manual_seed(5)
    first, second = run(), run()
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(run(), first) and torch.equal(run(), second)
    torch.manual_seed(6)
    assert not torch.equal(run(), first)


@every_layer
def test_rng_state_and_fork_rng(name):
    run = layers()[name]
    state = torch.get_rng_state()
    first = run()
    with torch.random.fork_rng():
        inside = run()
    second = run()
    assert torch.equal(inside, second) and not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(run(), first)


@every_layer
def test_a_call_draws_one_number_and_a_seeded_call_none(name):
    run = layers()[name]
    torch.manual_seed(5)
    drawn = torch.randint(-(2**63), 2**63 - 1, (1,))
    after = torch.get_rng_state()
    expected = run(drawn)
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(5)
    assert torch.equal(run(), expected)
    assert torch.equal(torch.get_rng_state(), after)


@every_layer
def test_seeds(name):
    """An int, a tensor, a wrapped one: the same; another one: another mask."""
    run = layers()[name]
    expected = run(7)
    for seed in (7, torch.tensor(7), torch.tensor([7]), 7 + 2**64, 7 - 2**64):
        assert torch.equal(run(seed), expected)
    assert torch.equal(run(-1), run(2**64 - 1))
    results = [run(seed) for seed in (7, 8, -7, 7 + 2**32, 7 + 2**63, 0)]
    assert not any(torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


@every_layer
@pytest.mark.parametrize("seed", [7.0, "7", True, torch.tensor(7.0), torch.tensor(7, dtype=torch.int32), torch.tensor(True)])
def test_wrong_seeds(name, seed):
    with pytest.raises(TypeError, match="seed should be an int or an int64 tensor, got"):
        layers()[name](seed)
    with pytest.raises(ValueError, match="seed should be a tensor of one element"):
        layers()[name](torch.tensor([7, 8]))


def test_a_seed_tensor_is_left_alone():
    seed = torch.tensor([7])
    rnn()(X, seed=seed)
    assert seed.tolist() == [7] and not seed.requires_grad


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize(
    "options",
    [dict(), dict(num_layers=2, dropout=0.2, bidirectional=True), dict(EVERY_KIND, num_layers=2)],
    ids=["one", "many", "every"],
)
def test_checkpointing(use_reentrant, seed, options):
    """Run again in the backward pass, a layer drops what it dropped in the forward pass."""
    module = rnn(**options)

    def step(through):
        torch.manual_seed(5)
        module.zero_grad()
        x = X.clone().requires_grad_()
        output = through(lambda x: module(x, seed=seed)[0], x)
        output.square().sum().backward()
        return [output, x.grad, *[p.grad.clone() for p in module.parameters()]]

    plain = step(lambda run, x: run(x))
    checked = step(lambda run, x: checkpoint(run, x, use_reentrant=use_reentrant))
    assert all(map(torch.equal, plain, checked))


@pytest.mark.parametrize("cuts", [[5], [2, 3], [1, 1, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("options", [dict(), dict(num_layers=2)], ids=["one layer", "two layers"])
def test_chunks_of_a_sequence_share_a_mask(cuts, options):
    module, h = rnn(mask_scope="sequence", **options), None
    output, h_n = module(X, seed=3)
    parts = []
    for chunk in X.split(cuts):
        part, h = module(chunk, h, seed=3)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts), output, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(h, h_n, rtol=1e-12, atol=1e-12)


def test_layers_directions_and_kinds_of_a_call_have_masks_of_their_own():
    module = rnndrop.RNN(17, 17, 2, bidirectional=True, dtype=torch.float64, hidden_dropout=0.5)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.fill_(3 if "bias" in name else 0)
    dropped = module(torch.zeros(50, 3, 17, dtype=torch.float64), seed=3)[0].view(150, 2, 17) == 0
    for direction in (0, 1):
        mask = rnndrop.dropout_mask(3, 150, 17, 0.5, layer=1, direction=direction)
        assert torch.equal(dropped[:, direction], mask == 0)


def test_the_scale_of_each_mask():
    """Zoneout has none: it takes the old state or the new one."""
    source, dropouts = MaskSource(torch.tensor([3]), Steps(2, 3), "bytes"), Dropouts(**every_kind("LSTM"))
    for kind in KINDS:
        make = source.inside if KINDS[kind].state is not None else source.outside
        keep, scale = source.of_weight(dropouts, 5, 4) if kind == "weight" else make(kind, dropouts, 6, 4)
        assert keep.shape == ((5, 4) if kind == "weight" else (6, 4))
        assert scale == (1.0 if "zoneout" in kind else scale_of(threshold_of(dropouts.rate(kind))))


# The seed of a call.


def test_a_drawn_seed_is_any_int64():
    torch.manual_seed(0)
    drawn = torch.cat([seed_tensor(None, CPU) for _ in range(2000)])
    assert drawn.dtype == torch.int64
    # Every bit is 1 half of the time, the sign too: 2000 draws of 64 bits.
    bits = (drawn[:, None] >> torch.arange(64)) & 1
    assert_binomial(bits.sum(0), 2000, 0.5)
    assert len(drawn.unique()) == 2000


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, 3 * 2**64 - 5])
def test_an_int_of_any_size_is_a_seed(seed):
    found = seed_tensor(seed, CPU)
    assert found.shape == (1,) and found.dtype == torch.int64 and (int(found) - seed) % 2**64 == 0


def test_a_seed_tensor_is_taken_as_it_is():
    for shape in ((), (1,), (1, 1)):
        assert seed_tensor(torch.full(shape, -3), CPU).tolist() == [-3]
    seed = torch.tensor([5])
    assert seed_tensor(seed, CPU) is seed

"""Both zoneouts of GRU and LSTM in evaluation: the expectation, nothing is drawn, and no other dropout acts."""

import pytest
import torch
from torch.func import functional_call, vmap

import rnndrop
from tests.helpers import (
    GATED,
    assert_equal,
    assert_near,
    doubled,
    draws_nothing,
    every_kind,
    gradients,
    inputs_of,
    make_rnn,
)
from tests.modules.checks import changed, flat, leaves_of, run_packed
from tests.stream import threshold_of
from tests.test_reference_gated import by_hand

ZONED = [("GRU", dict(zoneout=0.15)), *(("LSTM", rates) for rates in (dict(zoneout=0.15), dict(cell_zoneout=0.35)))]
ZONED += [("LSTM", dict(zoneout=0.15, cell_zoneout=0.35))]
zoned = pytest.mark.parametrize("cell, rates", ZONED, ids=str)


def expected_of(rnn, leaves, lengths=None):
    """A layer and a direction after another, by the definition that test_reference_gated has beside the package's."""
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"]
    shares = {kind: threshold_of(getattr(rnn, kind, 0.0)) / 65536 for kind in ("zoneout", "cell_zoneout")}
    x, ends = leaves["x"], []
    for layer in range(rnn.num_layers):
        outputs = []
        for direction in range(rnn.num_directions):
            row, end = layer * rnn.num_directions + direction, f"_l{layer}" + "_reverse" * direction
            states = {f"{name}_0": leaves[f"{name}x"][row] for name in "hc" if f"{name}x" in leaves}
            short = zip(("w_ih", "w_hh", "b_ih", "b_hh", "w_hr"), names, strict=True)
            weights = {one: leaves[name + end] for one, name in short if name + end in leaves}
            values = {"input": x, **states, **weights}
            output, *last = by_hand(type(rnn).__name__, values, shares, lengths, bool(direction))
            outputs.append(output)
            ends.append(last)
        x = torch.cat(outputs, -1)
    return [x, *[torch.stack(state) for state in zip(*ends, strict=True)]]


def check(cell, lengths=None, **options):
    rnn = make_rnn(cell, **{"num_layers": 2, **options}).eval()
    x, hx = inputs_of(rnn)
    leaves = leaves_of(rnn, x, hx)
    copies = doubled(leaves)
    outputs = flat(draws_nothing(lambda: run_packed(rnn, x, hx, lengths)))
    expected = expected_of(rnn, copies, lengths)
    assert_near(outputs, expected)
    allowed = dict(allow_unused=True, materialize_grads=True)  # where all is zoned out
    assert_near(gradients(outputs, leaves, **allowed), gradients(expected, copies, **allowed))


@zoned
@pytest.mark.parametrize("lengths", [None, [5, 3, 1], [2, 5, 3]], ids=str)
def test_a_module_against_a_loop(cell, rates, lengths):
    """All gradients too; no other dropout acts."""
    for options in (dict(), dict(bidirectional=True), dict(bias=False, num_layers=1)):
        check(cell, lengths, **rates, **options)
    others = {name: p for name, p in every_kind(cell).items() if "zoneout" not in name}
    check(cell, lengths, bidirectional=True, mask_scope="sequence", **others, **rates)


@zoned
@pytest.mark.parametrize("p", [1e-9, 1 / 3, 1 - 2**-16, 1.0])
def test_every_rate(cell, rates, p):
    """The share is that of the rate as the masks have it, in units of 1/65536."""
    check(cell, bidirectional=True, **dict.fromkeys(rates, p))


@zoned
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(cell, rates, dtype):
    check(cell, [2, 5, 3], dtype=dtype, **rates)


@zoned
def test_one_step_and_layouts(cell, rates):
    rnn = make_rnn(cell, num_layers=2, bidirectional=True, **rates).eval()
    x, hx = inputs_of(rnn)
    for seed in (3, torch.tensor([1, 2, 3])):
        assert_equal(flat(draws_nothing(lambda seed=seed: rnn(x, hx, seed=seed))), flat(rnn(x, hx)))
    one = flat(rnn(x[:1], hx))
    packed = flat(rnn(torch.nn.utils.rnn.pack_padded_sequence(x[:1], [1, 1, 1]), hx))
    assert_near([packed[0].view(one[0].shape), *packed[1:]], one)
    forward = make_rnn(cell, **rates).eval()
    x, hx = inputs_of(forward)
    state, outputs = hx, []
    for step in x:  # chunks of one step, which are other code
        y, state = forward(step[None], state)
        outputs.append(y)
    assert_near([torch.cat(outputs), *flat(state)], flat(forward(x, hx)))


@zoned
def test_without_a_rate_it_is_torch_and_explain_says_so(cell, rates):
    rnn = make_rnn(cell, num_layers=2, **every_kind(cell) | dict.fromkeys(rates, 0.0)).eval()
    for name in ("zoneout", "cell_zoneout")[: 1 + (cell == "LSTM")]:
        setattr(rnn, name, 0.0)
    x, hx = inputs_of(rnn)
    assert_equal(flat(rnn(x, hx)), flat(rnn.to_torch()(x, hx)))
    assert rnndrop.explain(rnn, x).strategy == f"torch.nn.{cell}"
    for name, p in rates.items():
        setattr(rnn, name, p)
    assert not torch.equal(rnn(x, hx)[0], rnn.to_torch()(x, hx)[0])
    assert rnndrop.explain(rnn, x).strategy in ("cpu", "reference")


@zoned
def test_derivatives_and_vmap(cell, rates):
    rnn = make_rnn(cell, input_size=1, hidden_size=2, **rates).eval()
    x, hx = inputs_of(rnn, 3, 2)
    leaves = leaves_of(rnn, x, hx)
    assert torch.autograd.gradcheck(lambda *_: tuple(flat(rnn(x, hx))), tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(lambda *_: tuple(flat(rnn(x, hx))), tuple(leaves.values())[:4])
    parameters = {name: torch.stack([p.detach(), -p.detach()]) for name, p in rnn.named_parameters()}
    found = vmap(lambda p: flat(functional_call(rnn, p, (x.detach(), changed(hx, torch.Tensor.detach)))))(parameters)
    for i in range(2):
        expected = functional_call(rnn, {name: p[i] for name, p in parameters.items()}, (x, hx))
        assert_near([y[i] for y in found], flat(expected))


def test_the_mean_of_a_step_of_the_cell_state():
    """Over many masks of one step c_n tends to its expectation within six deviations of the mean, in a module and in a cell."""
    samples, module = 4000, rnndrop.LSTMCell(4, 17, dtype=torch.float64, cell_zoneout=0.3)
    rnn = make_rnn("LSTM", cell_zoneout=0.3)
    rnn.load_state_dict({name + "_l0": p for name, p in module.state_dict().items()})
    x, h, c = (torch.randn(1, width, dtype=torch.float64) for width in (4, 17, 17))
    many, seeds = [v.expand(samples, -1) for v in (x, h, c)], torch.arange(samples)
    new, q = module.to_torch()(x, (h, c))[1], threshold_of(0.3) / 65536
    deviation = (new - c).abs() * (q * (1 - q) / samples) ** 0.5
    drawn = module(many[0], (many[1], many[2]), seed=seeds)[1]
    layer = rnn(many[0][None], (many[1][None], many[2][None]), seed=5)[1][1][0]
    for found in (drawn, layer):
        assert ((found.mean(0) - module.eval()(x, (h, c))[1][0]).abs() <= 6 * deviation).all()
        assert ((found == c) | (found - new).abs().lt(1e-12)).all()
    # h is made of the new cell state, zoned or not.
    assert_equal(module.train()(x, (h, c), seed=1)[0], module.eval()(x, (h, c))[0])


@pytest.mark.parametrize("cell", GATED)
def test_all_of_it_leaves_the_states(cell):
    rnn = make_rnn(cell, zoneout=1.0, **dict(cell_zoneout=1.0) if cell == "LSTM" else {})
    x, hx = inputs_of(rnn)
    for module in (rnn, rnn.eval()):
        output, *ends = flat(module(x, hx))
        assert torch.equal(output, flat(hx)[0].expand_as(output)) and all(map(torch.equal, ends, flat(hx)))

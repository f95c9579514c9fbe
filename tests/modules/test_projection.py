"""LSTM with a projected state (proj_size): PyTorch's layer in evaluation, the plain loop where something is dropped inside."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import rnndrop
from tests.helpers import (
    COLUMNS,
    INPUTS,
    OUTSIDE,
    assert_equal,
    assert_near,
    each_kind,
    every_kind,
    inputs_of,
    inside,
    make_rnn,
)
from tests.modules.checks import SEED, changed, checked, flat, leaves_of
from tests.modules.test_gated_zoneout import check as check_evaluation

WIDTH = 5
CASES = each_kind("LSTM") | {"outside": OUTSIDE, "inside": inside("LSTM"), "every": every_kind("LSTM")}


def make(**options):
    return make_rnn("LSTM", proj_size=WIDTH, **options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mask_scope", ["step", "sequence"])
def test_against_the_oracle(case, mask_scope):
    """Every gradient, that of weight_hr too, in both directions of two layers; packed, with many seeds, and of one step."""
    for lengths, options in (
        (None, dict()),
        ([2, 5, 3], dict(seed=[7, -3, 5])),
        ([5, 3, 1], dict(bias=False)),
        (None, dict(steps=1)),
    ):
        options = dict(cell="LSTM", proj_size=WIDTH, bidirectional=True, mask_scope=mask_scope) | options
        checked(lengths, **options, **CASES[case])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    checked(cell="LSTM", proj_size=WIDTH, dtype=dtype, **inside("LSTM"))


def test_masks_are_as_wide_as_what_they_drop():
    """Those of h as the projection, those of c as the cell."""
    seen, rnn = {}, make(**inside("LSTM"))
    original = rnndrop.layer.sequence_mask

    def spied(seed, columns, p, stream, *rest):
        seen[stream >> 32] = columns
        return original(seed, columns, p, stream, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rnndrop.layer, "sequence_mask", spied)
        rnn(*inputs_of(rnn), seed=SEED)
    assert seen == {0: WIDTH, 1: WIDTH, 6: WIDTH, 7: COLUMNS, 8: COLUMNS, 9: COLUMNS}
    output, (h_n, c_n) = rnn(inputs_of(rnn)[0])
    assert output.shape[-1] == h_n.shape[-1] == WIDTH and c_n.shape[-1] == COLUMNS


@pytest.mark.parametrize("training", [False, True])
def test_without_dropout_inside_it_is_torch(training):
    """And says so; dropout around it leaves it PyTorch's."""
    rates = {} if training else {name: p for name, p in every_kind("LSTM").items() if "zoneout" not in name}
    rnn = make(num_layers=2, bidirectional=True, **rates).train(training)
    x, hx = inputs_of(rnn)
    for given in ((x, hx), (x,), (pack_padded_sequence(x, [2, 5, 3], enforce_sorted=False), hx)):
        assert_equal(flat(rnn(*given)), flat(rnn.to_torch()(*given)))
    assert rnndrop.explain(rnn, x).strategy == "torch.nn.LSTM"
    assert rnndrop.explain(make(num_layers=2, **OUTSIDE), x).strategy == "torch.nn.LSTM"


def test_what_runs_is_what_explain_says():
    rnn = make(**inside("LSTM"))
    x, _ = inputs_of(rnn)
    for module, steps in ((rnn, 5), (rnn, 1), (copy.deepcopy(rnn).eval(), 5)):
        found = rnndrop.explain(module, x[:steps])
        assert found.strategy == "reference" and "projected (proj_size)" in found.reason


@pytest.mark.parametrize("rates", [dict(zoneout=0.15), dict(cell_zoneout=0.35), dict(zoneout=1.0, cell_zoneout=0.35)], ids=str)
def test_zoneout_in_evaluation(rates):
    for lengths in (None, [2, 5, 3]):
        check_evaluation("LSTM", lengths, proj_size=WIDTH, bidirectional=True, **rates)


def test_derivatives():
    rnn = make_rnn("LSTM", input_size=1, hidden_size=3, proj_size=2, **inside("LSTM"))
    x, hx = inputs_of(rnn, 3, 2)
    leaves = tuple(leaves_of(rnn, x, hx).values())
    assert torch.autograd.gradcheck(lambda *_: tuple(flat(rnn(x, hx, seed=1))), leaves)
    assert torch.autograd.gradgradcheck(lambda *_: tuple(flat(rnn(x, hx, seed=1))), leaves)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("case", ["none", "every"])
def test_vmap(training, steps, case):
    rnn = make(num_layers=2, bidirectional=True, **(every_kind("LSTM") if case == "every" else {})).train(training)
    x, hx = inputs_of(rnn, steps)
    parameters = {name: torch.stack([p.detach(), p.detach() / 2]) for name, p in rnn.named_parameters()}
    run = lambda x, p: flat(functional_call(rnn, p, (x, hx), dict(seed=7)))  # noqa: E731
    found = vmap(run)(torch.stack([x, -x]), parameters)
    for i, one in enumerate((x, -x)):
        assert_near([y[i] for y in found], run(one, {name: p[i] for name, p in parameters.items()}))


@pytest.mark.parametrize("rates", [dict(), dict(hidden_dropout=0.5)], ids=str)
def test_states_of_another_size(rates):
    """In the words of nn.LSTM."""
    rnn = make(**rates)
    x, (h, c) = inputs_of(rnn)
    for hx in ((c, c), (h, h)):
        with pytest.raises(RuntimeError) as theirs:
            rnn.to_torch()(x, hx)
        with pytest.raises(RuntimeError) as ours:
            rnn(x, hx)
        assert str(ours.value) == str(theirs.value)


def test_other_layouts():
    rnn = make(num_layers=2, bidirectional=True, **every_kind("LSTM"))
    x, hx = inputs_of(rnn)
    output, *ends = flat(rnn(x, hx, seed=SEED))
    one = flat(rnn(x[:, :1], changed(hx, lambda h: h[:, :1]), seed=SEED))
    assert_near(flat(rnn(x[:, 0], changed(hx, lambda h: h[:, 0]), seed=SEED)), [y[:, 0] for y in one])
    rnn.batch_first = True
    transposed, *same = flat(rnn(x.transpose(0, 1), hx, seed=SEED))
    assert_equal([transposed.transpose(0, 1), *same], [output, *ends])


def test_autocast_and_a_graph():
    rnn = make(dtype=torch.float32, **inside("LSTM"))
    x, hx = inputs_of(rnn)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = flat(rnn(x, hx, seed=SEED))
    output, h_n, c_n = (y.dtype for y in outputs)  # as nn.LSTM's: h is a product, c a sum
    assert (output, h_n, c_n) == (torch.bfloat16, torch.bfloat16, torch.float32)
    exact = flat(copy.deepcopy(rnn).double()(x.double(), changed(hx, torch.Tensor.double), seed=SEED))
    assert_near([y.bfloat16() for y in outputs], exact)
    torch._dynamo.reset()
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    for mine, other in zip(flat(compiled(x, hx, seed=SEED)), flat(rnn(x, hx, seed=SEED)), strict=True):
        torch.testing.assert_close(mine, other)
    torch._dynamo.reset()


def test_a_module_of_torch_and_back():
    theirs = nn.LSTM(INPUTS, COLUMNS, 2, proj_size=WIDTH, bidirectional=True)
    mine = rnndrop.LSTM.from_torch(theirs, hidden_dropout=0.5)
    assert mine.proj_size == WIDTH and repr(mine.to_torch()) == repr(theirs)
    assert [*mine.state_dict()] == [*theirs.state_dict()] and mine.weight_hr_l1_reverse.shape == (WIDTH, COLUMNS)

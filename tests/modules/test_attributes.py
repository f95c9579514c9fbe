"""What heirs and users of torch.nn's modules read, call, assign and override."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnndrop
from tests.helpers import GATED, assert_equal, inputs_of, inside, make_rnn
from tests.modules.checks import flat

LAYERS = ["RNN", *GATED]
each_layer = pytest.mark.parametrize("cell", LAYERS)
LEFT_OUT = {"_flat_weight_refs", "_init_flat_weights", "_update_flat_weights", "_weights_have_changed"}
SCRIPTED = {"__constants__", "__jit_unused_properties__"}


@each_layer
def test_every_name_of_torchs_layers(cell):
    """Is here, or its absence is told."""
    theirs, mine = getattr(nn, cell)(3, 5), getattr(rnndrop, cell)(3, 5)
    missing = {*dir(theirs)} - {*dir(mine)}
    assert missing == LEFT_OUT | SCRIPTED
    assert all(f"`{name}`" in rnndrop.modules.base.RNNBase.__doc__ for name in missing)
    for name in {*dir(type(theirs))} - {*dir(nn.Module)}:
        value = getattr(type(theirs), name)
        if inspect.isfunction(value) and name not in LEFT_OUT:
            theirs_take, mine_take = (
                [*inspect.signature(value).parameters],
                [*inspect.signature(getattr(mine, name)).parameters],
            )
            assert name in ("__init__", "forward") or theirs_take[1:] == mine_take, name
    for name in (
        "mode",
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
        "proj_size",
    ):
        assert getattr(mine, name) == getattr(theirs, name)
    for name in ("_flat_weights_names", "_all_weights"):
        assert getattr(mine, name) == getattr(theirs, name)
    assert [w.shape for w in mine._flat_weights] == [w.shape for w in theirs._flat_weights]


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_every_name_of_torchs_cells(kind):
    theirs, mine = getattr(nn, kind)(3, 5), getattr(rnndrop, kind)(3, 5)
    assert {*dir(theirs)} - {*dir(mine)} == {"__constants__"}


ARGUMENTS = [  # input, the shape of a state, batch sizes
    (torch.zeros(5, 3, 4), (2, 3, 6), None),
    (torch.zeros(5, 3, 4), (2, 2, 6), None),
    (torch.zeros(5, 3, 3), (2, 3, 6), None),
    (torch.zeros(5, 4), (2, 3, 6), None),
    (torch.zeros(5, 3, 4, dtype=torch.float64), (2, 3, 6), None),
    (torch.zeros(7, 4), (2, 3, 6), torch.tensor([3, 2, 2])),
    (torch.zeros(7, 4), (2, 4, 6), torch.tensor([3, 2, 2])),
]


@each_layer
@pytest.mark.parametrize("input, shape, batch_sizes", ARGUMENTS)
def test_the_checks_are_those_of_torch(cell, input, shape, batch_sizes):
    theirs, mine = getattr(nn, cell)(4, 6, 2), getattr(rnndrop, cell)(4, 6, 2)
    state = torch.zeros(shape)
    found = []
    for module in (theirs, mine):
        hidden = (torch.zeros(2, 3, 6), state) if cell == "LSTM" else state
        results = [module.get_expected_hidden_size(input, batch_sizes)]
        if cell == "LSTM":
            results.append(module.get_expected_cell_size(input, batch_sizes))
        for check in (
            lambda: module.check_input(input, batch_sizes),  # noqa: B023
            lambda: module.check_hidden_size(state, results[0], "{} and {}"),  # noqa: B023
            lambda: module.check_forward_args(input, hidden, batch_sizes),  # noqa: B023
        ):
            try:
                results.append(check())
            except (RuntimeError, ValueError) as error:
                results.append((type(error), str(error)))
        found.append(results)
    assert found[0] == found[1]


@each_layer
def test_a_state_is_permuted(cell):
    module, (_, hx) = make_rnn(cell), inputs_of(make_rnn(cell))
    assert module.permute_hidden(hx, None) is hx
    permuted = module.permute_hidden(hx, torch.tensor([2, 0, 1]))
    assert type(permuted) is type(hx)
    assert_equal(flat(permuted), [state[:, [2, 0, 1]] for state in flat(hx)])


@each_layer
@pytest.mark.parametrize("training", [True, False])
def test_what_an_heir_overrides_acts(cell, training):
    called = []

    class Heir(getattr(rnndrop, cell)):
        def check_forward_args(self, input, hidden, batch_sizes):
            called.append((type(hidden), batch_sizes))
            super().check_forward_args(input, hidden, batch_sizes)

        def permute_hidden(self, hx, permutation):
            called.append(permutation)
            return super().permute_hidden(hx, permutation)

    module = Heir(4, 17, dtype=torch.float64, **inside(cell)).train(training)
    x, hx = inputs_of(module)
    for given in (None, hx):
        called.clear()
        module(x, given)
        assert called == [(type(hx), None)]
        called.clear()
        packed = pack_padded_sequence(x, [2, 5, 4], enforce_sorted=False)
        module(packed, given)
        expected = [packed.sorted_indices] * (given is not None) + [(type(hx), packed.batch_sizes), packed.unsorted_indices]
        assert len(called) == len(expected) and all(a is b or a[1] is b[1] for a, b in zip(called, expected, strict=True))


@each_layer
def test_flat_weights_are_assigned(cell):
    """As wrappers do, after a weight was replaced or taken out: as with torch.nn's, these are the weights."""
    torch.manual_seed(1)
    x, found = torch.randn(5, 3, 4), []
    new = [nn.Parameter(w.detach() / 2) for w in getattr(nn, cell)(4, 6, 2).parameters()]
    for library in (nn, rnndrop):
        module = getattr(library, cell)(4, 6, 2)
        module._flat_weights = new
        module.flatten_parameters()
        found.append(flat(module(x)))
    assert_equal(*found)
    assert all(a is b for a, b in zip(module.parameters(), new, strict=True))
    before = [*module.parameters()]
    module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
    assert all(a is b for a, b in zip(module.parameters(), before, strict=True))
    with pytest.raises(ValueError):
        module._flat_weights = new[1:]
    del module.weight_hh_l0
    module._flat_weights = [None if w is new[1] else w for w in new]
    assert module._flat_weights[1] is None and not hasattr(module, "weight_hh_l0")
    module._flat_weights = [w.detach() if w is new[1] else w for w in new]
    assert_equal(flat(module(x)), found[0])  # a tensor where there is no parameter any more

import copy
import dataclasses
import pickle

import pytest
import torch

import rnndrop
from rnndrop import LSTM, RNN, LSTMCell, functional
from rnndrop.dropouts import Dropouts, check_choice
from rnndrop.kinds import KINDS
from tests.helpers import draws_nothing

RATES = [kind.argument for kind in KINDS.values()]
OF_CELLS = [kind.argument for kind in KINDS.values() if kind.state is not None]
ZONEOUTS = ["zoneout", "cell_zoneout"]
BAD_RATES = [-0.1, 1.5, float("nan"), float("inf"), True, "0.5", None, [0.5], 1j]


def makers(name):
    """Everything that has such a rate, as functions of it."""
    found = [lambda p: Dropouts(**{name: p}), lambda p: LSTM(3, 5, 2, **{name: p})]
    return [*found, lambda p: LSTMCell(3, 5, **{name: p})] if name in OF_CELLS else found


@pytest.mark.parametrize("value", BAD_RATES, ids=repr)
@pytest.mark.parametrize("name", RATES)
def test_a_bad_rate_is_refused_at_once(name, value):
    for make in makers(name):
        with pytest.raises(ValueError, match=rf"^{name} should be a number in range \[0, 1\]") as raised:
            draws_nothing(lambda make=make: make(value))
        assert str(raised.value).endswith(f"got {value!r}")


@pytest.mark.parametrize("value", BAD_RATES, ids=repr)
@pytest.mark.parametrize("name", RATES)
def test_a_bad_rate_set_later_is_refused_when_it_is_set(name, value):
    """And leaves what was there."""
    for make in makers(name)[1:]:
        module = make(0.25)
        before = repr(module)
        with pytest.raises(ValueError, match=rf"^{name} should be a number in range \[0, 1\]"):
            setattr(module, name, value)
        assert getattr(module, name) == 0.25 and repr(module) == before


@pytest.mark.parametrize("value", ["batch", None, 1, "Step"])
def test_a_bad_scope(value):
    words = f"^Unknown mask_scope {value!r}. Select from 'step' or 'sequence'.$"
    for make in (Dropouts, lambda **options: RNN(3, 5, **options)):
        with pytest.raises(ValueError, match=words):
            draws_nothing(lambda make=make: make(mask_scope=value))
    rnn = RNN(3, 5, hidden_dropout=0.5, mask_scope="sequence")
    with pytest.raises(ValueError, match=words):
        rnn.mask_scope = value
    assert rnn.mask_scope == "sequence"
    draws_nothing(lambda: rnn.eval()(torch.zeros(2, 3)))


def test_a_rate_is_read_as_a_float():
    rnn = RNN(3, 5, 2, dropout=1, hidden_dropout=0)
    assert (rnn.dropout, rnn.hidden_dropout) == (1.0, 0.0) and isinstance(rnn.dropout, float)
    rnn.hidden_dropout = 1
    assert isinstance(rnn.hidden_dropout, float)


def test_what_is_dropped():
    assert not Dropouts().inside and not Dropouts().any(3)
    for name in RATES:
        dropouts = Dropouts(**{name: 0.5})
        assert bool(dropouts.inside) == (name in OF_CELLS) and dropouts.any(2)
        assert dropouts.any(1) == (name != "dropout")
        left = dropouts.in_evaluation()
        assert left == (dropouts if name in ZONEOUTS else Dropouts())


def test_the_scope_of_each_kind():
    """One word for all, or a word for some and "step" for the rest; zoneout is always per step, a weight's mask never."""
    scoped = ["hidden", "recurrent", "between", "input", "output", "cell", "candidate"]
    for scope in ("step", "sequence"):
        assert [Dropouts(mask_scope=scope).per_step(kind) for kind in scoped] == [scope == "step"] * 7
    for kind in scoped:
        dropouts = Dropouts(mask_scope={kind: "sequence"})
        assert [each for each in scoped if not dropouts.per_step(each)] == [kind]
        assert dropouts.per_step("zoneout") and dropouts.per_step("cell_zoneout") and not dropouts.per_step("weight")


@pytest.mark.parametrize(
    "scope, words",
    [
        ({"hidden": "batch"}, "Unknown mask_scope of 'hidden' 'batch'. Select from 'step' or 'sequence'."),
        ({"zoneout": "step"}, "Unknown kind in mask_scope 'zoneout'. Select from 'hidden', 'recurrent', 'between'"),
        ({"cell_zoneout": "step"}, "Unknown kind in mask_scope 'cell_zoneout'."),
        ({"weight": "sequence"}, "Unknown kind in mask_scope 'weight'."),
        ({"hidden": "step", 3: "step"}, "Unknown kind in mask_scope 3."),
    ],
)
def test_a_bad_mapping(scope, words):
    for make in (Dropouts, lambda **options: RNN(3, 5, **options)):
        with pytest.raises(ValueError, match=f"^{words}"):
            make(mask_scope=scope)
    rnn = RNN(3, 5, mask_scope={"hidden": "sequence"})
    with pytest.raises(ValueError, match=f"^{words}"):
        rnn.mask_scope = scope
    assert rnn.mask_scope == {"hidden": "sequence"}


OF_ALL = ["hidden", "recurrent", "between", "input", "output"]
SCOPED = {"RNN": OF_ALL, "GRU": [*OF_ALL, "candidate"], "LSTM": [*OF_ALL, "cell", "candidate"]}


@pytest.mark.parametrize("name", SCOPED)
def test_a_scope_of_a_kind_that_a_module_does_not_have(name):
    kind, function, have = getattr(rnndrop, name), getattr(functional, f"{name.lower()}_layer"), SCOPED[name]
    module, theirs = kind(3, 5, 2, mask_scope=dict.fromkeys(have, "sequence")), getattr(torch.nn, name)(3, 5)
    states, weights = [torch.zeros(1, 5)] * (1 + (name == "LSTM")), module.all_weights[0]
    for other in {"cell", "candidate"} - {*have}:
        scope = {other: "sequence"}
        calls = [lambda scope=scope: kind(3, 5, mask_scope=scope), lambda scope=scope: setattr(module, "mask_scope", scope)]
        calls.append(lambda scope=scope: kind.from_torch(theirs, mask_scope=scope))
        for call in calls:
            with pytest.raises(ValueError) as raised:
                draws_nothing(call)
            listed = ", ".join(map(repr, have[:-1])) + f" or {have[-1]!r}"
            assert str(raised.value) == f"Unknown kind in mask_scope {other!r}. Select from {listed}."
        for wrong in (scope, {"between": "step"}):  # a layer alone has none between
            with pytest.raises(ValueError, match=r"^Unknown kind in mask_scope .* Select from 'hidden', 'recurrent', 'input'"):
                draws_nothing(lambda wrong=wrong: function(torch.zeros(2, 1, 3), *states, *weights, mask_scope=wrong))
    assert module.mask_scope == dict.fromkeys(have, "sequence")
    scope = dict.fromkeys([each for each in have if each != "between"], "sequence")
    assert function(torch.zeros(2, 1, 3), *states, *weights, mask_scope=scope)[0].shape == (2, 1, 5)


def test_a_mapping_is_the_modules_own():
    given = {"hidden": "sequence"}
    rnn = RNN(3, 5, mask_scope=given)
    given["hidden"] = rnn.mask_scope["hidden"] = "batch"
    assert rnn.mask_scope == {"hidden": "sequence"}


def test_what_is_changed():
    assert Dropouts().changed() == {}
    changed = dict.fromkeys([*Dropouts.__match_args__][:-1], 0.5) | {"mask_scope": "sequence"}
    assert Dropouts(**changed).changed() == changed
    assert list(Dropouts(**changed).changed()) == list(changed)


def test_they_do_not_change_but_are_replaced():
    dropouts = Dropouts(hidden_dropout=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dropouts.hidden_dropout = 0.1
    assert dropouts.replace("mask_scope", "sequence") == Dropouts(hidden_dropout=0.5, mask_scope="sequence")
    assert dropouts == Dropouts(hidden_dropout=0.5)


@pytest.mark.parametrize("through", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(through):
    dropouts = Dropouts(dropout=0.5, zoneout=0.25, mask_scope={"input": "sequence"})
    assert through(dropouts) == dropouts
    # Those of a module are its own.
    rnn = RNN(3, 5, 2, dropout=0.5, hidden_dropout=0.25)
    other = through(rnn)
    other.hidden_dropout = 0.0
    assert rnn.hidden_dropout == 0.25 and other.dropout == 0.5


@pytest.mark.parametrize("choices, words", [(("a",), "'a'"), (("a", "b"), "'a' or 'b'"), (("a", "b", "c"), "'a', 'b' or 'c'")])
def test_check_choice(choices, words):
    for choice in choices:
        check_choice("letter", choice, choices)
    with pytest.raises(ValueError, match=f"^Unknown letter 'd'. Select from {words}.$"):
        check_choice("letter", "d", choices)

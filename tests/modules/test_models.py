"""Whole models to and from torch.nn, and the tools of PyTorch that want them there."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rnndrop
from tests.helpers import assert_equal, draws_nothing
from tests.modules.checks import flat

KINDS = ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"]
RATES = dict(hidden_dropout=0.25, dropout=0.5, cell_dropout=0.125, mask_scope="sequence")


class Model(nn.Module):
    """Recurrent modules of a library at several depths and in containers, one of them in two places, two weights tied."""

    def __init__(self, library):
        super().__init__()
        self.rnn = library.RNN(4, 4, 2, nonlinearity="relu", batch_first=True, dropout=0.25)
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"lstm": library.LSTM(4, 4, proj_size=2)}))
        self.cells = nn.ModuleList([library.RNNCell(4, 4, bias=False), library.LSTMCell(4, 4), library.GRUCell(4, 4), None])
        self.gru = library.GRU(2, 4, bidirectional=True, dtype=torch.float64).eval()
        self.again, self.cells[2].weight_hh = self.rnn, nn.Parameter(self.cells[2].weight_ih.detach())
        self.cells[2].weight_hh = self.cells[2].weight_ih
        self.rnn.weight_hh_l0.requires_grad_(False)

    def forward(self, x):
        output = self.again(self.rnn(x)[0])[0]
        output, (h_n, c_n) = self.inner[1]["lstm"](self.inner[0](output))
        twice, last = self.gru(output.double())
        states = [self.cells[0](x[0]), *self.cells[1](x[0]), self.cells[2](x[0])]
        return [output, h_n, c_n, twice, last, *states]


def recurrent(model):
    return {name: module for name, module in model.named_modules() if type(module).__name__ in KINDS}


@pytest.fixture
def x():
    return torch.randn(3, 5, 4)


def test_from_torch_and_to_torch(x):
    """In place, every module of its class, and back."""
    model = Model(nn)
    parameters, expected = [*model.named_parameters()], model.eval()(x)
    model.train(), model.gru.eval()
    assert draws_nothing(lambda: rnndrop.from_torch(model, **RATES)) is model
    assert {type(module).__module__.split(".")[0] for module in recurrent(model).values()} == {"rnndrop"}
    assert len(recurrent(model)) == 6 and model.again is model.rnn and model.cells[3] is None
    assert all(a is b for (_, a), (_, b) in zip(model.named_parameters(), parameters, strict=True))
    assert model.cells[2].weight_hh is model.cells[2].weight_ih and not model.rnn.weight_hh_l0.requires_grad
    assert model.rnn.training and not model.gru.training and model.gru.weight_ih_l0.dtype == torch.float64
    assert_equal(model.eval()(x), expected)
    twin = Model(nn)
    for name in ("rnn", "gru", "inner.1.lstm"):
        twin.get_submodule(name).dropout = 0.5
    assert repr(rnndrop.to_torch(model)) == repr(twin)
    assert all(type(module).__module__ == "torch.nn.modules.rnn" for module in recurrent(model).values())
    assert all(a is b for (_, a), (_, b) in zip(model.named_parameters(), parameters, strict=True))
    assert_equal(model(x), expected)


def test_each_module_takes_the_kinds_that_it_has():
    model = rnndrop.from_torch(Model(nn), **RATES)
    found = {name: module._dropouts.changed() for name, module in recurrent(model).items()}
    of_layers = dict(hidden_dropout=0.25, dropout=0.5, mask_scope="sequence")
    assert found == {
        "rnn": of_layers,
        "gru": of_layers,
        "inner.1.lstm": of_layers | dict(cell_dropout=0.125),
        "cells.0": dict(hidden_dropout=0.25),
        "cells.1": dict(hidden_dropout=0.25, cell_dropout=0.125),
        "cells.2": dict(hidden_dropout=0.25),
    }
    assert rnndrop.from_torch(Model(nn), zoneout=0.5).rnn.dropout == 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_one(kind):
    theirs = getattr(nn, kind)(3, 5).eval()
    weights = [*theirs.parameters()]
    mine = rnndrop.from_torch(theirs, zoneout=0.5)
    assert type(mine) is getattr(rnndrop, kind) and mine.zoneout == 0.5 and not mine.training
    back = rnndrop.to_torch(mine)
    assert type(back) is type(theirs) and not back.training
    for other in (mine, back):
        assert all(a is b for a, b in zip(other.parameters(), weights, strict=True))


def test_an_optimizer_goes_on(x):
    """And so does momentum."""
    models, losses = [Model(nn), None], [[], []]
    models[1] = copy.deepcopy(models[0])
    optimizers = [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9) for model in models]
    for step in range(4):
        if step == 2:
            rnndrop.from_torch(models[1], dropout=0.0), setattr(models[0].rnn, "dropout", 0.0)
        for model, optimizer, found in zip(models, optimizers, losses, strict=True):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = sum(y.double().square().sum() for y in model(x))
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    assert losses[0] == losses[1] and len({*losses[0]}) == 4


def test_hooks_stay(x):
    model, called = nn.Sequential(nn.RNN(4, 4)), []
    handle = model[0].register_forward_hook(lambda module, args, output: called.append(type(module)))
    model[0].register_forward_pre_hook(lambda module, args, kwargs: called.append(len(args)), with_kwargs=True)
    rnndrop.from_torch(model, hidden_dropout=0.5)(x)
    assert called == [1, rnndrop.RNN]
    handle.remove()
    model(x)
    assert called == [1, rnndrop.RNN, 1]


@pytest.mark.parametrize(
    "model, dropouts, error, words",
    [
        (
            nn.Sequential(nn.GRU(3, 5), nn.LSTMCell(3, 5)),
            dict(cell_dropout=0.5, weight_dropout=1.5),
            ValueError,
            "^weight_dropout",
        ),
        (nn.Sequential(nn.GRU(3, 5), nn.RNN(3, 5)), dict(zoneout=0.5, cell_dropout=0.5), ValueError, "has cell_dropout$"),
        (
            nn.Sequential(nn.GRUCell(3, 5)),
            dict(mask_scope="step"),
            ValueError,
            "no recurrent module of the model has mask_scope",
        ),
        (nn.Linear(3, 5), dict(hidden_dropout=0.5), ValueError, "no recurrent module of the model has hidden_dropout"),
        (nn.Sequential(nn.GRU(3, 5)), dict(forward=0.5), TypeError, r"^from_torch\(\) got an unexpected .* 'forward'$"),
        ([nn.GRU(3, 5)], dict(), TypeError, "^model should be a torch.nn.Module, got list$"),
    ],
)
def test_what_no_module_has_is_refused(model, dropouts, error, words):
    before = repr(model)
    with pytest.raises(error, match=words):
        rnndrop.from_torch(model, **dropouts)
    assert repr(model) == before


def test_each_module_takes_the_scopes_that_it_has():
    model = nn.ModuleList([nn.RNN(3, 5), nn.LSTM(3, 5), nn.LSTMCell(3, 5)])
    rnn, lstm, _ = rnndrop.from_torch(model, mask_scope={"input": "sequence", "cell": "sequence"})
    assert rnn.mask_scope == {"input": "sequence"} and lstm.mask_scope == {"input": "sequence", "cell": "sequence"}
    with pytest.raises(ValueError, match=r"^no recurrent module of the model has cell_dropout$"):
        rnndrop.from_torch(nn.ModuleList([nn.GRU(3, 5)]), mask_scope={"cell": "sequence"})


def test_a_model_without_any_is_left_as_it_is():
    """And so are classes that somebody has derived."""

    class Own(nn.LSTM):
        pass

    model = nn.Sequential(nn.Linear(3, 5), Own(3, 5))
    for convert in (rnndrop.from_torch, rnndrop.to_torch):
        assert convert(model) is model and type(model[1]) is Own
    with pytest.raises(TypeError, match=r"should be a torch\.nn\.Module, got NoneType"):
        rnndrop.to_torch(None)


@pytest.mark.parametrize("library", [nn, rnndrop])
@pytest.mark.parametrize(
    "make",
    [
        lambda m, name: parametrizations.weight_norm(m, name),
        lambda m, name: prune.l1_unstructured(m, name, 0.5),
        pytest.param(
            lambda m, name: nn.utils.weight_norm(m, name),
            marks=pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning"),
        ),
    ],
    ids=["parametrized", "pruned", "weight norm"],
)
def test_a_computed_weight_is_refused(library, make):
    """Nothing is changed, and once it is a parameter it goes."""
    inner = nn.Sequential(library.RNN(3, 5), library.LSTM(3, 5))
    model = nn.ModuleDict({"inner": inner})
    make(inner[1], "weight_hh_l0")
    convert = rnndrop.from_torch if library is nn else rnndrop.to_torch
    with pytest.raises(ValueError, match=r"^weight_hh_l0 of inner\.1 is computed"):
        convert(model)
    assert type(inner[0]) is library.RNN
    if parametrize.is_parametrized(inner[1]):
        parametrize.remove_parametrizations(inner[1], "weight_hh_l0")
        convert(model)
        assert type(inner[1]) is (rnndrop.LSTM if library is nn else nn.LSTM)


# Tools that go by the classes of torch.nn.

deprecated = pytest.mark.filterwarnings("ignore:.*(deprecated|TypedStorage):Warning")


@deprecated
def test_a_converted_model_is_scripted(x):
    """Mine by itself is refused, in words that say what to do."""
    model = nn.Sequential(rnndrop.LSTM(4, 6, hidden_dropout=0.5)).eval()
    with pytest.raises(
        RuntimeError, match=r"torch\.jit\.script does not know rnndrop\.LSTM: script rnndrop\.to_torch\(model\)"
    ):
        torch.jit.script(model)
    assert type(model[0]) is rnndrop.LSTM
    scripted = torch.jit.script(rnndrop.to_torch(copy.deepcopy(model)))
    assert_equal(flat(scripted(x)), flat(model(x)))


@deprecated
@pytest.mark.parametrize("kind", KINDS)
def test_quantize_dynamic_warns(kind):
    """And quantizes a converted model, as it does one of torch.nn, without a warning of this library."""
    quantize = torch.ao.quantization.quantize_dynamic
    model = nn.ModuleDict({"linear": nn.Linear(3, 5), "rnn": getattr(rnndrop, kind)(3, 5)})
    with pytest.warns(UserWarning, match=rf"does not know rnndrop\.{kind}, .*quantize rnndrop\.to_torch\(model\)$"):
        left = quantize(model)
    assert type(left.rnn) is type(model.rnn) and not hasattr(left.rnn, "qconfig") and type(left.linear) is not nn.Linear
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*does not know")
        whole = quantize(rnndrop.to_torch(model))
    assert "quantized" in type(whole.rnn).__module__ or kind == "RNN"  # which PyTorch does not quantize


def test_a_converted_model_is_exported(x):
    """At once, before it has run."""
    model = rnndrop.to_torch(nn.Sequential(rnndrop.GRU(4, 6, hidden_dropout=0.5))).eval()
    exported = torch.export.export(model, (x,)).module()
    assert_equal(flat(exported(x)), flat(model(x)))

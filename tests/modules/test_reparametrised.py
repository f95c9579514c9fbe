"""Weights that are pruned, normed, parametrised, tied, or come later: beside torch.nn's modules, where all this works too."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, skip_init

import rnndrop
from tests.helpers import assert_equal, assert_near
from tests.modules.checks import flat

KINDS = ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"]


class Case:
    """A kind of module of one of both libraries, of mine with dropout inside; and the names of its weights."""

    def __init__(self, library, kind):
        self.kind, self.options = getattr(library, kind), {} if library is nn else {"hidden_dropout": 0.25}
        self.end = "" if kind.endswith("Cell") else "_l0"
        self.w_ih, self.w_hh = f"weight_ih{self.end}", f"weight_hh{self.end}"
        self.x, h = [torch.randn(*shape) for shape in (((3, 4), (3, 6)) if not self.end else ((5, 3, 4), (1, 3, 6)))]
        self.hx = (h, -h) if kind.startswith("LSTM") else h

    def make(self, **options):
        return self.kind(4, 6, **self.options, **options)

    def run(self, module):
        """Its results, with the same masks each time."""
        return flat(module(self.x, self.hx, **({"seed": 1} if self.options else {})))

    def train(self, module):
        """One step of an optimizer."""
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        sum(y.square().sum() for y in self.run(module)).backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
        optimizer.step()
        module.zero_grad()


@pytest.fixture(
    params=[(library, kind) for kind in KINDS for library in (nn, rnndrop)], ids=lambda p: f"{p[0].__name__}.{p[1]}"
)
def case(request):
    return Case(*request.param)


def assert_computes_with_its_weights(case, module):
    """As a module does whose parameters are what the weights of this one are now."""
    plain, _ = case.make(), case.run(module)  # which makes a weight anew, where a hook does
    for name, p in plain.named_parameters():
        p.data.copy_(getattr(module, name))
    for training in (False, True):
        assert_equal(case.run(module.train(training)), case.run(plain.train(training)))


def test_pruning(case):
    module = case.make()
    prune.l1_unstructured(module, case.w_hh, 0.5)
    prune.random_structured(module, case.w_ih, 0.25, dim=1)
    for _ in range(2):
        assert_computes_with_its_weights(case, module)
        case.train(module)
    dropped = getattr(module, f"{case.w_hh}_mask") == 0
    assert dropped.sum() == dropped.numel() // 2 and (getattr(module, case.w_hh)[dropped] == 0).all()
    before = case.run(module)
    for name in (case.w_hh, case.w_ih):
        prune.remove(module, name)
    assert_equal(case.run(module), before)
    prune.global_unstructured([(module, case.w_hh), (module, case.w_ih)], prune.L1Unstructured, amount=0.75)
    assert_computes_with_its_weights(case, module)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, parametrizations.weight_norm], ids=["old", "new"])
def test_weight_norm(case, norm):
    plain = case.make()
    module = norm(copy.deepcopy(plain), case.w_hh)
    assert_near(case.run(module), case.run(plain))
    for _ in range(2):
        case.train(module)
        assert_computes_with_its_weights(case, module)
    assert not torch.allclose(getattr(module, case.w_hh), getattr(plain, case.w_hh), rtol=0.01)
    expected = case.run(module)
    if norm is nn.utils.weight_norm:
        nn.utils.remove_weight_norm(module, case.w_hh)
    else:
        parametrize.remove_parametrizations(module, case.w_hh)
    assert {name for name, _ in module.named_parameters()} == {name for name, _ in plain.named_parameters()}
    assert_near(case.run(module), expected)


def test_an_orthogonal_weight(case):
    """Stays so, and its parameter learns."""
    module = parametrizations.orthogonal(case.make(), case.w_hh)
    for _ in range(3):
        weight = getattr(module, case.w_hh)
        assert_near(weight.T @ weight, torch.eye(6))
        assert_computes_with_its_weights(case, module)
        case.train(module)
    assert not torch.allclose(getattr(module, case.w_hh), weight, rtol=0.01)


def test_tied_weights(case):
    """The gradient of a parameter with two names is the sum of both; one of another module is shared as well."""
    module, other = case.kind(6, 6, **case.options), case.kind(6, 6, **case.options)
    case.x = torch.randn(*case.x.shape[:-1], 6)
    setattr(module, case.w_hh, getattr(module, case.w_ih))
    for name, p in module.named_parameters(remove_duplicate=False):
        setattr(other, name, p if name != case.w_hh else nn.Parameter(p.detach().clone()))
    assert len([*module.parameters()]) == len([*other.parameters()]) - 1
    found = []
    for each in (module, other):
        module.zero_grad(), other.zero_grad()
        sum(y.square().sum() for y in case.run(each)).backward()
        found.append(getattr(each, case.w_ih).grad.clone())
    assert_near(found[0], found[1] + getattr(other, case.w_hh).grad)


def test_skip_init(case):
    """nn.RNN, LSTM and GRU have no argument of the name `device` that it finds; their cells do, and all of mine."""
    if case.kind in (nn.RNN, nn.LSTM, nn.GRU):
        with pytest.raises(RuntimeError, match="must support a 'device' arg"):
            skip_init(case.kind, 4, 6)
        return
    state = torch.get_rng_state()
    module = skip_init(case.kind, 4, 6, **case.options)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.device.type == "cpu" for p in module.parameters())
    module.reset_parameters()
    assert all(0 < p.abs().max() <= 6**-0.5 for p in module.parameters())
    assert_computes_with_its_weights(case, module)


@pytest.mark.parametrize("through", ["to_empty", "assign"])
def test_made_on_the_meta_device(case, through):
    """And given its weights afterwards, copied or assigned."""
    expected = case.make()
    with torch.device("meta"):
        module = case.make()
    assert all(p.is_meta for p in module.parameters())
    if through == "to_empty":
        module.to_empty(device="cpu").load_state_dict(expected.state_dict())
    else:
        module.load_state_dict(expected.state_dict(), assign=True)
        assert getattr(module, case.w_hh).data_ptr() == getattr(expected, case.w_hh).data_ptr()
    assert_equal(case.run(module), case.run(expected))
    assert_equal(flat(module.eval()(case.x)), flat(expected.eval()(case.x)))
    case.train(module.train())

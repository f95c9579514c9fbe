"""What a user of torch.nn expects of a module beside its numbers."""

import io

import pytest
import torch
from torch import nn

import rnndrop

KINDS = [(nn.RNN, rnndrop.RNN), (nn.RNNCell, rnndrop.RNNCell)]


def test_proj_size():
    """In the words of nn.RNN."""
    with pytest.raises(ValueError) as theirs:
        nn.RNN(4, 8, proj_size=2)
    with pytest.raises(ValueError) as ours:
        rnndrop.RNN(4, 8, proj_size=2)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_cell_to_and_from_torch(bias, nonlinearity):
    cell = nn.RNNCell(4, 8, bias=bias, nonlinearity=nonlinearity, dtype=torch.float64).eval()
    cell.weight_hh.requires_grad_(False)
    ours = rnndrop.RNNCell.from_torch(cell, hidden_dropout=0.25, recurrent_dropout=0.5)
    assert (ours.hidden_dropout, ours.recurrent_dropout, ours.bias, ours.nonlinearity) == (0.25, 0.5, bias, nonlinearity)
    assert not ours.training and not ours.weight_hh.requires_grad and ours.weight_ih.requires_grad
    back = ours.to_torch()
    assert type(back) is nn.RNNCell and back.nonlinearity == nonlinearity and back.bias == bias
    x = torch.randn(3, 4, dtype=torch.float64)
    for other in (ours, back):
        assert torch.equal(other(x), cell(x)) and other.weight_ih.data_ptr() != cell.weight_ih.data_ptr()
        assert [*other.state_dict()] == [*cell.state_dict()]


def test_other_modules_are_refused():
    for kind, wrong in ((rnndrop.RNNCell, nn.RNN(4, 8)), (rnndrop.RNN, nn.RNNCell(4, 8))):
        with pytest.raises(TypeError, match=r"should be a torch\.nn\.RNN"):
            kind.from_torch(wrong)
    with pytest.raises(TypeError):
        rnndrop.RNNCell.from_torch(nn.RNNCell(4, 8), dropout=0.5)


@pytest.mark.parametrize(
    "module",
    [rnndrop.RNN(4, 8, 2, hidden_dropout=0.25, mask_scope="sequence", nonlinearity="relu"), rnndrop.RNNCell(4, 8)],
    ids=["RNN", "RNNCell"],
)
def test_a_whole_module_is_loaded_under_weights_only(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert type(loaded) is type(module) and repr(loaded) == repr(module)
    x = torch.randn(3, 4)
    for mine, other in zip(loaded(x, seed=1), module(x, seed=1), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("seed", [1, 2])
def test_evaluation_ignores_the_seed(seed):
    """As the docstrings say."""
    module, cell, x = (
        rnndrop.RNN(4, 8, hidden_dropout=0.5).eval(),
        rnndrop.RNNCell(4, 8, hidden_dropout=0.5).eval(),
        torch.randn(3, 4),
    )
    assert torch.equal(module(x, seed=seed)[0], module.to_torch()(x)[0])
    assert torch.equal(cell(x, seed=seed), cell.to_torch()(x))
    for kind in (rnndrop.RNN, rnndrop.RNNCell):
        text = " ".join(kind.__doc__.split())
        assert "evaluation" in text.lower() and "ignore" in text[text.index("**seed**") :]


class TestAWeightTakenOut:
    """As wrappers do that make a weight anew at every call (WeightDrop)."""

    @pytest.fixture(params=[nn.RNN, rnndrop.RNN])
    def module(self, request):
        module = request.param(4, 8)
        self.raw = module.weight_hh_l0.detach().clone()
        del module.weight_hh_l0
        return module

    @pytest.mark.parametrize("move", [lambda m: m.to("cpu"), lambda m: m.double(), lambda m: m.half(), lambda m: m.to("meta")])
    def test_moves(self, module, move):
        moved = move(module)
        assert set(dict(moved.named_parameters())) == {"weight_ih_l0", "bias_ih_l0", "bias_hh_l0"}

    def test_runs_once_it_is_back(self, module):
        x = torch.randn(5, 3, 4)
        if isinstance(module, rnndrop.RNN):
            module.to("cpu")
            module.weight_hh_l0 = self.raw * 2
            whole = rnndrop.RNN(4, 8)
            whole.load_state_dict({**module.state_dict(), "weight_hh_l0": self.raw * 2})
            assert torch.equal(module(x)[0], whole(x)[0])
            module.hidden_dropout = whole.hidden_dropout = 0.5
            assert torch.equal(module(x, seed=1)[0], whole(x, seed=1)[0])

    def test_a_copy_is_pickled(self, module):
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        assert [*torch.load(file, weights_only=False).state_dict()] == [*module.state_dict()]

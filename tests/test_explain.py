"""What explain tells of every kind of call."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_sequence

import rnndrop
from rnndrop import dispatch
from rnndrop.explain import Explanation
from rnndrop.kernels import launch, plan
from tests.helpers import OUTSIDE
from tests.stand_ins import CUDA, fake_module


@pytest.fixture
def explained(fake_cuda, monkeypatch):
    """Explains a module on a GPU, an A100, of an input of some shape."""
    monkeypatch.setattr(dispatch, "kernels_unavailable", lambda: "")
    monkeypatch.setattr(launch, "device_of", lambda device: launch.A100)

    def explained(*shape, dtype=torch.float32, **options):
        module = fake_module(rnndrop.RNN, 4, **{"hidden_size": 128, "hidden_dropout": 0.1, "dtype": dtype, **options})
        return rnndrop.explain(module, fake_cuda(*shape, dtype=dtype))

    return explained


def test_tiles(explained):
    """Under the names and with the values of the plan."""
    found = explained(7, 40, 4)
    assert found.strategy == "resident" and found.rejected == {}
    assert found.tiles == dict(rows=16, width=128, columns=128, repeats=1, warps=8, programs=3)
    assert found.on_chip_bytes == 2 * 4 * (128 * 128 + 16 * 128)  # of W_hh and h, a number of fp32 as two of tf32
    text = str(found).splitlines()
    assert text[0] == "resident: W_hh stays on one multiprocessor for all steps, in one launch"
    assert text[1].split(", ") == [f"{' ' * 4 * (name == 'rows')}{name} {value}" for name, value in found.tiles.items()]
    assert text[2] == f"    on chip {found.on_chip_bytes:,} bytes" and len(text) == 3


def test_tiles_of_cooperative(explained):
    found, expected = explained(7, 40, 4, hidden_size=1024), plan.plan_cooperative(1024, 40, torch.float32, launch.A100)
    assert found.strategy == "cooperative" and list(found.rejected) == ["resident"]
    assert found.tiles == {
        name: getattr(expected, name) for name in ("slice", "rows", "width", "chunk", "warps", "slices", "groups")
    }
    assert found.on_chip_bytes == expected.shared
    assert str(found).splitlines()[-1] == f"    not resident: {found.rejected['resident']}"


@pytest.mark.parametrize(
    ("shape", "options", "programs"),
    [
        ((7, 40, 4), dict(), 3),
        ((40, 7, 4), dict(batch_first=True), 3),
        ((7, 40, 4), dict(batch_first=True), 1),
        ((40, 4), dict(), 1),
        ((40, 4), dict(batch_first=True), 1),
    ],
)
def test_the_batch_is_found(explained, shape, options, programs):
    assert explained(*shape, **options).tiles["programs"] == programs


def test_recurrent_dropout_alone(explained):
    assert explained(7, 40, 4, hidden_dropout=0.0, recurrent_dropout=0.1).strategy == "resident"


@pytest.mark.parametrize(
    "options", [dict(hidden_dropout=0.0), *(dict(hidden_dropout=0.0, num_layers=2, **{name: 0.5}) for name in OUTSIDE)]
)
def test_nothing_inside(explained, options):
    found = explained(7, 40, 4, **options)
    assert found.strategy == "torch.nn.RNN" and "PyTorch's own layers" in found.reason


def test_evaluation():
    module = rnndrop.RNN(4, 8, hidden_dropout=0.1).eval()
    assert rnndrop.explain(module, torch.zeros(7, 3, 4)).strategy == "torch.nn.RNN"


def test_dtypes(explained):
    assert explained(7, 40, 4, dtype=torch.float64).strategy == "reference"
    assert explained(7, 40, 4, dtype=torch.bfloat16, hidden_size=256).strategy == "resident"


def test_autocast(explained):
    """The layer runs in autocast's dtype: W_hh takes a half, and H = 256 fits the registers."""
    torch.set_autocast_enabled("cuda", True)  # which torch.autocast refuses without a GPU
    try:
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        found = explained(7, 40, 4, hidden_size=256)
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", torch.float16)
    assert found.strategy == "resident" and explained(7, 40, 4, hidden_size=256).strategy == "cooperative"


def test_zoneout(explained):
    """Its masks do not fit beside W_hh of H = 128 in exact fp32; its expectation does."""
    found = explained(7, 40, 4, zoneout=0.1)
    assert found.strategy == "cooperative" and found.rejected["resident"].endswith("no room for zoneout")
    assert explained(7, 40, 4, zoneout=0.1, hidden_size=64).strategy == "resident"
    with FakeTensorMode():
        module, x = fake_module(rnndrop.RNN, 4, 128, zoneout=0.1), torch.empty(7, 40, 4, device=CUDA)
    assert rnndrop.explain(module.eval(), x).strategy == "resident"


def test_packed(monkeypatch):
    """Sequences of any lengths are as if they were padded: the first step has all of them."""
    monkeypatch.setattr(dispatch, "kernels_unavailable", lambda: "")
    monkeypatch.setattr(launch, "device_of", lambda device: launch.A100)
    with FakeTensorMode():
        module = fake_module(rnndrop.RNN, 4, 8, hidden_dropout=0.1)
        data = torch.empty(41, 4, device=CUDA)
    found = rnndrop.explain(module, nn.utils.rnn.PackedSequence(data, torch.tensor([20, 20, 1])))
    assert found.strategy == "resident" and found.tiles["programs"] == 2 and not found.rejected
    with FakeTensorMode():
        module = fake_module(rnndrop.RNN, 4, 128, hidden_dropout=0.1)
    for sizes, strategy in (([20, 20, 1], "cooperative"), ([20, 20], "resident")):
        assert rnndrop.explain(module, nn.utils.rnn.PackedSequence(data, torch.tensor(sizes))).strategy == strategy


def test_the_cpu_and_the_meta_device():
    module = rnndrop.RNN(4, 8, hidden_dropout=0.1)
    for x in (torch.zeros(7, 3, 4), torch.zeros(7, 4), torch.zeros(7, 3, 4, device="meta")):
        found = rnndrop.explain(module, x)
        assert found == Explanation("cpu", "the input is on the CPU: in-place products by PyTorch, the rest by NumPy")
    assert rnndrop.explain(module, pack_sequence([torch.zeros(5, 4), torch.zeros(3, 4)])).strategy == "cpu"
    assert rnndrop.explain(module, torch.zeros(1, 3, 4)).strategy == "one step"


def test_what_is_explained_is_what_runs(monkeypatch):
    names, backend = [], dispatch.backend
    monkeypatch.setattr(dispatch, "backend", lambda name, *rest: names.append(name) or backend(name, *rest))
    module, x = rnndrop.RNN(4, 8, hidden_dropout=0.1), torch.zeros(7, 3, 4)
    module(x)
    assert names == [rnndrop.explain(module, x).strategy]


def test_other_modules_are_refused():
    with pytest.raises(TypeError, match=r"rnn should be a rnndrop\.RNN, LSTM or GRU, got Linear"):
        rnndrop.explain(nn.Linear(2, 3), torch.zeros(3, 2))

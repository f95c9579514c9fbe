"""Which strategy runs where: the CUDA side without a GPU."""

import contextlib
import warnings

import pytest
import torch

import rnndrop
from rnndrop import dispatch
from rnndrop.dispatch import Problem, choose
from rnndrop.kernels import launch, plan
from tests.stand_ins import CUDA, fake_module, rnn


def problem(device=CUDA, dtype=torch.float32, steps=7, batch=32, hidden_size=128, cell="RNN_TANH", **extras):
    return Problem(torch.device(device), dtype, steps, batch, hidden_size, cell, plan.Extras(**extras))


@pytest.fixture
def a100(monkeypatch):
    """Kernels can run, on an A100."""
    monkeypatch.setattr(dispatch, "kernels_unavailable", lambda: "")
    monkeypatch.setattr(launch, "elsewhere", lambda device: "")
    monkeypatch.setattr(launch, "device_of", lambda device: launch.A100)


@pytest.fixture
def no_driver(monkeypatch, forgetful):
    monkeypatch.setattr(launch, "unavailable", lambda: "Triton finds no device: none of them is active")


@pytest.mark.parametrize(
    ("changed", "strategy"),
    [
        (dict(), "resident"),
        (dict(hidden_size=1024), "cooperative"),
        (dict(hidden_size=1024, dtype=torch.bfloat16), "cooperative"),
        (dict(batch=128, hidden_size=1024), "cooperative"),
        (dict(batch=1024, hidden_size=128), "resident"),
        (dict(batch=20000, hidden_size=1024), "stepwise"),
        (dict(hidden_size=20000), "stepwise"),
        (dict(dtype=torch.float64), "reference"),
        (dict(cell="CfC"), "reference"),
        (dict(batch=0), "reference"),
        (dict(kinds=("zoneout",)), "cooperative"),
        (dict(packed=True), "cooperative"),
        (dict(kinds=("zoneout",), packed=True, dtype=torch.bfloat16), "resident"),
        (dict(device="cpu"), "cpu"),
        (dict(device="cpu", steps=1), "one step"),
        (dict(device="meta"), "cpu"),
        (dict(device="xpu"), "reference"),
    ],
)
def test_auto(a100, changed, strategy):
    """B = 1024 of H = 128 is resident, H = 1024 of B = 128 is not."""
    assert choose("auto", problem(**changed)).strategy == strategy


def test_auto_says_why_not_the_others(a100):
    choice = choose("auto", problem(hidden_size=20000))
    assert list(choice.rejected) == ["resident", "cooperative"] and all(choice.rejected.values())
    assert choice.plan is None and "library product" in choice.reason
    assert choose("auto", problem()).plan == plan.plan_resident(128, 32, torch.float32, launch.A100)
    assert "less than torch.float64" in choose("auto", problem(dtype=torch.float64)).reason


def test_the_precision_of_products_decides(a100):
    """As tf32, W_hh takes half of the registers."""
    assert choose("auto", problem(hidden_size=256)).strategy == plan.choose(256, 32, torch.float32, launch.A100).strategy
    torch.set_float32_matmul_precision("high")
    try:
        expected = plan.choose(256, 32, torch.float32, launch.A100, tf32=True)
        assert choose("auto", problem(hidden_size=256)).plan == expected.plan
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("strategy", "changed", "message"),
    [
        ("cpu", dict(), "it computes in NumPy, and the input is on cuda:0"),
        ("resident", dict(hidden_size=1024), "registers a thread"),
        ("resident", dict(kinds=("zoneout",)), "no room for zoneout"),
        ("stepwise", dict(dtype=torch.float64), "torch.float64 is none of float32, float16, bfloat16"),
        ("stepwise", dict(cell="CfC"), "no kernel has the cell CfC"),
    ],
)
def test_a_name_that_cannot_run_says_why(a100, strategy, changed, message):
    with pytest.raises(ValueError, match=f"strategy '{strategy}' cannot run: .*{message}"):
        choose(strategy, problem(**changed))


@pytest.mark.parametrize("strategy", ["resident", "cooperative", "stepwise", "reference"])
def test_a_name_that_can_run(a100, strategy):
    assert choose(strategy, problem()).strategy == strategy


def test_without_a_driver(no_driver):
    """ "auto" runs the loop and says so once; a name says why not."""
    with pytest.warns(UserWarning, match=r"runs a plain loop on CUDA.*finds no device") as warned:
        choices = [choose("auto", problem()) for _ in range(3)]
    assert len(warned) == 1 and {choice.strategy for choice in choices} == {"reference"}
    assert set(choices[0].rejected) == {"resident", "cooperative", "stepwise"}
    assert all("finds no device" in reason for reason in choices[0].rejected.values())
    for strategy in dispatch.KERNELS:
        with pytest.raises(ValueError, match=f"strategy '{strategy}' cannot run: .*finds no device"):
            choose(strategy, problem())
    with pytest.raises(ValueError, match=r"strategy 'triton' cannot run: .*finds no device"):
        rnndrop.functional.tanh_dropout(torch.zeros(2, 3), strategy="triton")


def test_dropout_between_layers_alone_runs_no_loop(cuda, no_driver):
    """PyTorch's own layers run: there is nothing to warn of."""
    module = rnn(num_layers=2, dropout=0.5, hidden_dropout=0.0, recurrent_dropout=0.0, device=cuda)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(torch.randn(5, 3, 4, device=cuda))


def test_the_device_is_asked_once(monkeypatch):
    """Facts of a device, and plans, are of the cache from the second call on: the driver takes a millisecond."""
    asked = []

    class Driver:
        class utils:
            @staticmethod
            def get_device_properties(index):
                asked.append(index)
                return {"multiprocessor_count": 80 + index, "max_shared_mem": 101376}

        def get_active_torch_device(self):
            return CUDA

        def get_current_target(self):
            return type("Target", (), {"backend": "cuda", "arch": 86, "warp_size": 32})

    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(triton.runtime, "driver", type("Drivers", (), {"active": Driver()}))
    monkeypatch.setattr(dispatch, "kernels_unavailable", lambda: "")
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    launch._facts.cache_clear()
    try:
        for _ in range(3):
            for index in (0, 1):
                assert launch.device_of(torch.device("cuda", index)).num_sms == 80 + index
                choose("auto", problem(device=f"cuda:{index}"))
                choose("resident", problem(device=f"cuda:{index}"))
        assert asked == [0, 1]
        before = plan.choose.cache_info().misses
        choose("auto", problem(device="cuda:0"))
        assert plan.choose.cache_info().misses == before
    finally:
        launch._facts.cache_clear()


@pytest.mark.parametrize("kind", [rnndrop.RNN, rnndrop.RNNCell])
def test_modules_on_fake_tensors(fake_cuda, kind):
    """On the device of the input, without a number of it."""
    module = fake_module(kind, 4, 8, hidden_dropout=0.5, recurrent_dropout=0.5)
    shape = (5, 3, 4) if kind is rnndrop.RNN else (3, 4)
    found = module(fake_cuda(*shape), seed=3)
    output = found[0] if kind is rnndrop.RNN else found
    assert output.device == CUDA and output.shape == (*shape[:-1], 8)


def test_layers_on_fake_tensors(fake_cuda):
    module = fake_module(rnndrop.RNN, 4, 8, 2, dropout=0.5, hidden_dropout=0.5, bidirectional=True, batch_first=True)
    output, h_n = module(fake_cuda(3, 5, 4))
    assert output.device == CUDA and output.shape == (3, 5, 16) and h_n.shape == (4, 3, 8)
    y = rnndrop.functional.tanh_dropout(fake_cuda(3, 5), 0.5)
    assert y.device == CUDA and y.shape == (3, 5)


@pytest.fixture
def ran(monkeypatch):
    """The strategies whose backends were asked for."""
    names, backend = [], dispatch.backend
    monkeypatch.setattr(dispatch, "backend", lambda name, *rest: names.append(name) or backend(name, *rest))
    return names


@pytest.mark.parametrize("columns", [8, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("strategy", ["auto", "reference"])
def test_a_layer_on_a_gpu(cuda, ran, strategy, dtype, columns):
    """Masks are bits that a kernel makes, those of the CPU; the loop reads them too. float64 has no kernel."""
    module = rnndrop.RNN(4, columns, device=cuda, dtype=dtype)
    x = torch.randn(5, 3, 4, device=cuda, dtype=dtype)
    h_0 = torch.randn(3, columns, device=cuda, dtype=dtype)
    options = dict(hidden_dropout=0.25, recurrent_dropout=0.5, seed=11)

    def run(weights, *inputs, **options):
        return rnndrop.functional.rnn_layer(*inputs, *weights, **options)[0]

    output = run(module.all_weights[0], x, h_0, **options, strategy=strategy)
    output.sum().backward()
    assert set(ran) == ({"resident"} if (strategy, dtype) == ("auto", torch.float32) else set())
    plain = rnndrop.RNN(4, columns, dtype=dtype)
    plain.load_state_dict(module.state_dict())
    expected = run(plain.all_weights[0], x.cpu(), h_0.cpu(), **options, strategy="cpu" if cuda != "cpu" else "reference")
    expected.sum().backward()
    torch.testing.assert_close(output.cpu(), expected)
    torch.testing.assert_close(module.weight_hh_l0.grad.cpu(), plain.weight_hh_l0.grad, rtol=1e-4, atol=1e-5)
    mask = rnndrop.dropout_mask(11, 15, columns, 0.25).view(5, 3, columns) != 0
    assert torch.equal(output.cpu() != 0, mask)


def test_packed_sequences_on_a_gpu(cuda, ran):
    module = rnn(device=cuda)
    x, lengths = torch.randn(5, 3, 4, device=cuda), torch.tensor([5, 2, 3])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    whole, _ = module(x, seed=2)
    found, _ = torch.nn.utils.rnn.pad_packed_sequence(module(packed, seed=2)[0])
    assert set(ran) == {"resident"}
    for b, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[:length, b], whole[:length, b])

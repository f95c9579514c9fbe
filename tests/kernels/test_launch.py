"""Device facts and settings as launchers take them, and that each launch is on the device of its tensors."""

import contextlib
import subprocess
import sys
import types

import pytest
import torch

from rnndrop.backends.triton import GATED_RECURRENCES
from rnndrop.kernels import (
    activation_dropout,
    apply_mask,
    cooperative,
    gated_cell,
    launch,
    packed_mask,
    resident,
    stepwise,
)
from rnndrop.kernels.launch import A100, MaskBits
from tests.triton_driver import backend

from . import sequences

# ---------------------------------------------------------------- precision of fp32 products


@pytest.fixture
def precision_restored():
    before = torch.get_float32_matmul_precision()
    yield
    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = "none"
        torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("word, allowed", [("highest", False), ("high", True), ("medium", True)])
def test_the_old_setting(word, allowed, precision_restored):
    torch.set_float32_matmul_precision(word)
    assert launch.allows_tf32() == allowed


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="a setting of PyTorch 2.9")
@pytest.mark.parametrize("word, allowed", [("ieee", False), ("tf32", True)])
def test_the_new_setting_of_cuda_products(word, allowed, precision_restored):
    """After it torch.get_float32_matmul_precision() may raise."""
    torch.backends.cuda.matmul.fp32_precision = word
    assert launch.allows_tf32() == allowed


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="a setting of PyTorch 2.9")
@pytest.mark.parametrize("word, allowed", [("ieee", False), ("tf32", True)])
def test_the_new_setting_of_everything(word, allowed, precision_restored):
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.fp32_precision = word
    assert launch.allows_tf32() == allowed


@pytest.mark.parametrize(
    "matmul, everything, allowed",
    [("none", "tf32", True), ("none", "none", False), ("ieee", "tf32", False), ("tf32", "ieee", True), (None, "high", True)],
)
def test_either_pytorch(matmul, everything, allowed, monkeypatch):
    """None: PyTorch before 2.9, where only the word counts."""
    settings = types.SimpleNamespace() if matmul is None else types.SimpleNamespace(fp32_precision=matmul)
    backends = types.SimpleNamespace(cuda=types.SimpleNamespace(matmul=settings), fp32_precision=everything)

    def word():
        assert matmul is None, "it raises once the new setting was used"
        return everything

    fake = types.SimpleNamespace(backends=backends, get_float32_matmul_precision=word)
    monkeypatch.setattr(launch, "torch", fake)
    assert launch.allows_tf32() == allowed


# ---------------------------------------------------------------- without Triton, with an old one, without a device


def test_kernels_can_run_here():
    assert launch.unavailable() == ""


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert launch.unavailable() == "Triton is not installed: pip install 'triton>=3.7.1'"


def test_an_old_triton_without_knobs(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__="3.3.1"))
    assert launch.unavailable().startswith("Triton 3.3.1 is older than 3.4")
    assert "pip install" in launch.unavailable()


def test_no_driver(monkeypatch):
    class Driver:
        @property
        def active(self):
            raise RuntimeError("0 active drivers")

    fake = types.SimpleNamespace(
        __version__="3.10.0+git",
        knobs=types.SimpleNamespace(runtime=types.SimpleNamespace(interpret=False)),
        runtime=types.SimpleNamespace(driver=Driver()),
    )
    monkeypatch.setitem(sys.modules, "triton", fake)
    assert launch.unavailable() == "Triton finds no device: 0 active drivers"


def test_what_can_be_imported_without_triton():
    code = """if True:
        import sys
        sys.modules["triton"] = None
        import rnndrop.kernels.launch, rnndrop.kernels.plan
        print(rnndrop.kernels.plan.choose(128, 16, __import__("torch").float32, rnndrop.kernels.launch.A100).strategy)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "resident", done.stderr


# ---------------------------------------------------------------- devices


@pytest.mark.skipif(backend() != "interpreter", reason="the interpreter stands for an A100")
def test_the_device_of_the_interpreter():
    assert launch.device_of(torch.device("cpu")) == A100._replace(backend="interpreter")


@pytest.mark.skipif(backend() == "interpreter", reason="the interpreter has no device")
def test_the_device_here(device):
    found = launch.device_of(torch.empty(1, device=device).device)
    assert found.backend in ("cuda", "hip") and found.num_sms > 0 and found.max_shared_mem >= 65536
    assert found.warp_size == (32 if found.backend == "cuda" else 64)
    assert found.capability >= 70 if found.backend == "cuda" else found.capability == 0
    assert found.triton_version >= (3, 4)


def test_a_driver_is_asked_once(monkeypatch):
    """For each device index, its own facts, whichever is current; its questions take milliseconds on some machines."""
    asked, current = [], [0]

    @contextlib.contextmanager
    def made_current(index):
        current.append(index)
        yield
        current.pop()

    def properties(index):
        asked.append(index)
        return {"multiprocessor_count": 100 + index, "max_shared_mem": 101376}

    active = types.SimpleNamespace(
        utils=types.SimpleNamespace(get_device_properties=properties),
        get_current_device=lambda: 0,
        get_current_target=lambda: types.SimpleNamespace(backend="cuda", arch=75 + 15 * current[-1], warp_size=32),
    )
    fake = types.SimpleNamespace(
        __version__="3.6.0",
        knobs=types.SimpleNamespace(runtime=types.SimpleNamespace(interpret=False)),
        runtime=types.SimpleNamespace(driver=types.SimpleNamespace(active=active)),
    )
    monkeypatch.setitem(sys.modules, "triton", fake)
    monkeypatch.setattr(torch.cuda, "device", made_current)
    launch._facts.cache_clear()
    try:
        for _ in range(3):
            for index in (1, 0):
                found = launch.device_of(torch.device("cuda", index))
                assert found == (100 + index, 101376, 32, 75 + 15 * index, "cuda", (3, 6))
        assert asked == [1, 0]
    finally:
        launch._facts.cache_clear()


class Recorder:
    """In place of a kernel: on which device it would have been launched."""

    def __init__(self, current):
        self.current, self.devices = current, []

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.devices.append(self.current[0])


def _everything_launched():
    """Each public launcher, on tensors that are nowhere."""
    x, w = torch.empty(3, 2, 64, device="meta"), torch.empty(64, 64, device="meta")
    seed = torch.empty(1, dtype=torch.int64, device="meta")
    mask = MaskBits(torch.empty(6, 2, dtype=torch.int32, device="meta"), 2.0)
    masks = {"hidden": mask, "recurrent": mask}
    yield lambda: activation_dropout.forward(x[0], seed, 5, 2.0, 0)
    yield lambda: activation_dropout.backward(x[0], x[0], seed, 5, 2.0, 0)
    yield lambda: packed_mask.packed_mask(seed, 6, 64, 5, 0)
    yield lambda: apply_mask.apply_mask(x.view(6, 64), mask)
    for module in (sequences.resident, cooperative, stepwise):
        yield lambda module=module: module.forward(x, x[0], w, masks, cell="RNN_TANH")
        yield lambda module=module: module.backward(x, None, x, w, masks, cell="RNN_TANH")
    h, gates, w_hh = x[0], torch.empty(3, 2, 256, device="meta"), torch.empty(256, 64, device="meta")
    for module in GATED_RECURRENCES.values():
        yield lambda module=module: module.forward(gates, [h, h], w_hh, masks, cell="LSTM")
        yield lambda module=module: module.backward(x, [None, h], [h, h], x, [gates, x], w_hh, masks, cell="LSTM")
    yield lambda: gated_cell.forward(gates[0], gates[0], h, seed, {}, cell="LSTM")
    yield lambda: gated_cell.backward([h, h], gates[0], h, h, seed, {}, cell="LSTM")


def test_every_launch_is_on_the_device_of_its_tensors(monkeypatch):
    """A stand-in for PyTorch's guard: the device 0 is current, the tensors are on 1. Launches and questions to the driver."""
    current, asked = [0], []

    @contextlib.contextmanager
    def device_of(tensor):
        assert tensor.is_meta and current == [0]
        current[0] = 1
        yield
        current[0] = 0

    def facts(index):
        asked.append(current[0])
        return A100

    recorder = Recorder(current)
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(launch, "_facts", facts)
    for module in (activation_dropout, resident, cooperative, stepwise, gated_cell, *GATED_RECURRENCES.values()):
        monkeypatch.setattr(module, "forward_kernel", recorder)
        monkeypatch.setattr(module, "backward_kernel", recorder)
    monkeypatch.setattr(packed_mask, "packed_mask_kernel", recorder)
    monkeypatch.setattr(apply_mask, "apply_mask_kernel", recorder)
    for call in _everything_launched():
        before = len(recorder.devices)
        call()
        assert set(recorder.devices[before:]) == {1} and current == [0]
    assert set(asked) == {1}


# ---------------------------------------------------------------- masks


def test_the_scope_of_a_mask_is_its_number_of_rows():
    def masks(rows, words=2):
        return {"hidden": MaskBits(torch.zeros(rows, words, dtype=torch.int32), 2.0)}

    assert launch.is_per_step(masks(12), "hidden", 12, 4, 64) and not launch.is_per_step(masks(4), "hidden", 12, 4, 64)
    assert launch.is_per_step(masks(4), "hidden", 4, 4, 33) and not launch.is_per_step(masks(12), "recurrent", 12, 4, 64)
    for bad in (masks(5), masks(12, 3), masks(1)):
        with pytest.raises(ValueError, match=r"a packed mask should be \(12 or 4, 2\), got"):
            launch.is_per_step(bad, "hidden", 12, 4, 64)


def test_row_offsets_are_made_once(device):
    offsets = launch.row_offsets((3, 3, 1), torch.device(device))
    assert offsets.tolist() == [0, 3, 6, 7] and offsets.dtype == torch.int64 and offsets.device.type == device
    assert launch.row_offsets((3, 3, 1), torch.device(device)) is offsets


def test_row_offsets_are_not_copied_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="run it once before the capture"):
        launch.row_offsets((2, 1), torch.device("cuda", 99))

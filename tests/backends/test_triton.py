"""The kernels behind a layer: every strategy against the plain loop in float64, and its masks against the CPU's."""

import pytest
import torch

import rnndrop
from rnndrop import functional
from rnndrop.backends.triton import RECURRENCES
from rnndrop.cell import CELLS, Weights
from rnndrop.kernels import launch
from rnndrop.mask import Mask, stream, unpacked
from rnndrop.ops import layer as layer_operator
from rnndrop.ops import tanh_dropout as tanh_dropout_operator
from rnndrop.ops.mask import draw
from rnndrop.steps import Steps
from tests import triton_driver
from tests.tolerances import SEQUENCE

STRATEGIES = {"resident": 20, "cooperative": 48, "stepwise": 20}  # and a hidden size of its kind, not a power of two
OPTIONS = [
    {"hidden_dropout": 0.25},
    {"recurrent_dropout": 0.25, "direction": 1},
    {"hidden_dropout": 0.9, "recurrent_dropout": 0.25, "mask_scope": "sequence", "layer": 2},
    {"hidden_dropout": 0.25, "recurrent_dropout": 0.5, "nonlinearity": "relu", "direction": 1},
    {},
    {"hidden_dropout": 1.0},
    {"zoneout": 0.5},
    {"hidden_dropout": 0.25, "recurrent_dropout": 0.5, "zoneout": 0.25, "mask_scope": "sequence", "direction": 1},
]


@pytest.fixture
def device():
    return triton_driver.device()


def layer_inputs(H, *, T=4, B=3, width=5, batch_sizes=None, dtype=torch.float32, device="cpu"):
    """input, h_0, w_ih, w_hh, b_ih, b_hh."""
    generator = torch.Generator().manual_seed(H)

    def normal(*shape, size=1.0):
        return (size * torch.randn(shape, generator=generator)).to(dtype).to(device)

    x = normal(T, B, width) if batch_sizes is None else normal(sum(batch_sizes), width)
    return [x, normal(B, H), normal(H, width, size=width**-0.5), normal(H, H, size=0.5 * H**-0.5), normal(H), normal(H)]


def results(inputs, strategy, dtype=None, **options):
    """Output, h_n and the gradients of all inputs, in float64 on the CPU."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
    outputs = functional.rnn_layer(*leaves, strategy=strategy, seed=-7, **options)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=generator).to(y.dtype).to(y.device) for y in outputs]
    return [x.double().cpu() for x in (*outputs, *torch.autograd.grad(outputs, leaves, grads))]


def assert_close(found, expected, bound):
    for x, y in zip(found, expected, strict=True):
        assert (x - y).abs().max() <= bound * y.abs().max().clamp(min=1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_by_name_is_the_plain_loop(strategy, options, device):
    inputs = layer_inputs(STRATEGIES[strategy], device=device)
    expected = results(inputs, "reference", torch.float64, **options)
    assert_close(results(inputs, strategy, **options), expected, SEQUENCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sixteen_bits(strategy, dtype, device):
    inputs = layer_inputs(STRATEGIES[strategy], dtype=dtype, device=device)
    options = {"hidden_dropout": 0.25, "recurrent_dropout": 0.25}
    expected = results(inputs, "reference", torch.float64, **options)
    found = results(inputs, strategy, **options)
    assert_close(found, expected, SEQUENCE[dtype])
    assert torch.equal(found[0] == 0, expected[0] == 0)


@pytest.mark.parametrize("scope, direction", [("step", 0), ("sequence", 1)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_packed_sequences(strategy, scope, direction, device):
    batch_sizes = [3, 3, 2, 1]
    inputs = layer_inputs(STRATEGIES[strategy], batch_sizes=batch_sizes, device=device)
    rates = {"hidden_dropout": 0.25, "recurrent_dropout": 0.25, "zoneout": 0.25 * direction}
    options = {"batch_sizes": batch_sizes, "direction": direction} | rates
    expected = results(inputs, "reference", torch.float64, mask_scope=scope, **options)
    assert_close(results(inputs, strategy, mask_scope=scope, **options), expected, SEQUENCE[torch.float32])


@pytest.mark.parametrize("batch_sizes", [None, [3, 3, 2, 1]], ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_expectation_of_zoneout(strategy, batch_sizes, device, monkeypatch):
    """Forward is the kernel's, backward the plain loop's."""
    leaves = [x.requires_grad_() for x in layer_inputs(STRATEGIES[strategy], batch_sizes=batch_sizes, device=device)]
    cell, sizes = CELLS["RNN_TANH"], None if batch_sizes is None else torch.tensor(batch_sizes)
    masks, found, calls = {"zoneout": Mask(torch.empty(0, 1, dtype=torch.int8, device=device), 0.3)}, [], []
    recurrence = RECURRENCES[strategy]
    forward = recurrence.forward
    monkeypatch.setattr(recurrence, "forward", lambda *args, **options: calls.append(strategy) or forward(*args, **options))
    for name, dtype in ((strategy, torch.float32), ("reference", torch.float64)):
        x, h_0, *weights = (leaf.to(dtype) for leaf in leaves)
        output, (h_n,) = layer_operator.layer(x, [h_0], Weights(*weights), masks, Steps(4, 3, sizes), cell, name)
        gradients = torch.autograd.grad(output.square().sum() + h_n.sum(), leaves)
        found.append([y.detach().double() for y in (output, h_n, *gradients)])
    assert calls == [strategy]
    assert_close(*found, SEQUENCE[torch.float32])


@pytest.mark.parametrize("kind", ["hidden", "recurrent", "zoneout"])
def test_masks_are_those_of_the_cpu_bit_for_bit(kind, device):
    seed, where = torch.tensor([-(2**40) - 3], device=device), stream(kind, 3, 1)
    for rows, columns, p in [(7, 50, 0.3), (2, 16, 0.999), (5, 1, 1.0), (3, 33, 1e-9)]:
        in_bytes, in_bits = (draw(seed, rows, columns, p, where, form) for form in ("bytes", "bits"))
        found = unpacked(Mask(in_bits, 1.0), columns).keep.cpu()
        assert in_bits.shape == (rows, -(-columns // 32)) and torch.equal(found, in_bytes.cpu() != 0)
        assert torch.equal(found, rnndrop.dropout_mask(int(seed), rows, columns, p, layer=3, direction=1, kind=kind) != 0)


@pytest.mark.parametrize("p", [0.25, 1.0])
def test_tanh_dropout_by_its_kernel(p, device):
    x = torch.randn(2, 3, 40, device=device, requires_grad=True)
    found = functional.tanh_dropout(x, p, seed=5, strategy="triton")
    expected = torch.tanh(x) * rnndrop.dropout_mask(5, 6, 40, p).view(2, 3, 40).to(device)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected)
    g = torch.randn_like(x)
    first = [torch.autograd.grad(y, x, g, create_graph=True)[0] for y in (found, expected)]
    torch.testing.assert_close(*first)
    plain = torch.autograd.grad(found, x, g, retain_graph=True)[0]
    torch.testing.assert_close(first[0], plain)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in first))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_second_derivatives_go_through_the_plain_loop(strategy, device):
    inputs = [x.requires_grad_() for x in layer_inputs(STRATEGIES[strategy], device=device)]
    rates = {"hidden_dropout": 0.25, "recurrent_dropout": 0.25}
    second = []
    for name in (strategy, "reference"):
        output, _ = functional.rnn_layer(*inputs, strategy=name, seed=1, **rates)
        (first,) = torch.autograd.grad(output.square().sum(), inputs[3], create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), inputs))
    for x, y in zip(*second, strict=True):
        assert (x - y).abs().max() <= SEQUENCE[torch.float32] * y.abs().max()


def test_a_gradient_with_a_graph_is_the_plain_one(device):
    inputs = [x.requires_grad_() for x in layer_inputs(20, device=device)]
    output, _ = functional.rnn_layer(*inputs, strategy="resident", seed=1, hidden_dropout=0.25, recurrent_dropout=0.25)
    plain = torch.autograd.grad(output.sum(), inputs, retain_graph=True)
    for x, y in zip(torch.autograd.grad(output.sum(), inputs, create_graph=True), plain, strict=True):
        assert torch.equal(x, y)


@pytest.fixture
def precision():
    """Sets that of fp32 products, until the test ends."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def test_the_backward_pass_has_the_precision_of_the_forward_pass(precision, device, monkeypatch):
    """On a device with so little memory that exact fp32, which takes twice as much, does not fit."""
    real = launch.device_of(torch.empty(1, device=device).device)
    monkeypatch.setattr(launch, "device_of", lambda device: real._replace(max_shared_mem=8192))
    gradients = []
    for later in ("high", "highest"):
        precision("high")
        inputs = [x.requires_grad_() for x in layer_inputs(48, device=device)]
        output, _ = functional.rnn_layer(*inputs, strategy="cooperative", seed=1, hidden_dropout=0.25)
        precision(later)
        gradients.append(torch.autograd.grad(output.square().sum(), inputs[1:]))
    assert all(map(torch.equal, *gradients))


def operands(strategy, device, batch_sizes=None, columns=None):
    """What the operator of a layer takes: direction 1, hidden and recurrent masks."""
    columns = columns or STRATEGIES[strategy]
    x, h_0, *weights = (v.requires_grad_() for v in layer_inputs(columns, T=2, batch_sizes=batch_sizes, device=device))
    seed, rows = torch.tensor([3], device=device), x.shape[0] if batch_sizes else 6
    keeps = [draw(seed, rows, columns, 0.25, stream(kind, 0, 1), "bits") for kind in ("hidden", "recurrent")] + [None]
    sizes = None if batch_sizes is None else torch.tensor(batch_sizes)
    return x, [h_0], *weights, keeps, [4 / 3, 4 / 3, 1.0], 2, 3, sizes, True, "RNN_TANH", strategy


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_operators_are_what_the_compiler_is_told(strategy, device):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(layer_operator._operator, operands(strategy, device), test_utils=checks)


def test_the_operators_are_what_the_compiler_is_told_of_packed_data(device):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(layer_operator._operator, operands("stepwise", device, [3, 2]), test_utils=checks)


def test_the_tanh_dropout_operator_is_what_the_compiler_is_told(device):
    x, seed = torch.randn(4, 20, device=device, requires_grad=True), torch.tensor([3], device=device)
    torch.library.opcheck(tanh_dropout_operator._operator, (x, seed, 0.2, 3, "triton"))


def test_compiled_whole(device):
    inputs = [x.requires_grad_() for x in layer_inputs(20, T=2, device=device)]

    def run(*tensors):
        seed = tensors[0].new_tensor([3], dtype=torch.int64)
        return functional.rnn_layer(*tensors, strategy="stepwise", seed=seed, hidden_dropout=0.25)

    found, expected = (f(*inputs) for f in (torch.compile(run, fullgraph=True, backend="aot_eager"), run))
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)
    gradients = (torch.autograd.grad(y[0].sum(), inputs) for y in (found, expected))
    for x, y in zip(*gradients, strict=True):
        assert torch.equal(x, y)


def test_tanh_dropout_compiled_whole(device):
    def run(x):
        return functional.tanh_dropout(x, 0.25, seed=5, strategy="triton")

    x = torch.randn(4, 20, device=device, requires_grad=True)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x), run(x)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)))
    with pytest.raises(ValueError, match=r"'triton' cannot run: torch.float64 is none of"):
        compiled(x.double())


def test_a_strategy_that_cannot_run_says_why_before_anything_is_drawn(device):
    def run(H, name, dtype=torch.float32):
        inputs = layer_inputs(H, T=2, dtype=dtype, device=device)
        functional.rnn_layer(*inputs, strategy=name, hidden_dropout=0.2)

    state = torch.get_rng_state()
    for name in STRATEGIES:
        with pytest.raises(ValueError, match=rf"'{name}' cannot run: torch.float64 is none of"):
            run(20, name, torch.float64)
    with pytest.raises(ValueError, match=r"'resident' cannot run: .*H = 1024.* registers"):
        run(1024, "resident")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the masks of one seed on it and on the CPU")
def test_a_module_on_a_gpu_drops_what_it_drops_on_the_cpu():
    rnn = rnndrop.RNN(5, 64, 2, dropout=0.3, hidden_dropout=0.2, recurrent_dropout=0.1, bidirectional=True)
    x = torch.randn(6, 3, 5)
    on_cpu, _ = rnn(x, seed=11)
    on_gpu, _ = rnn.cuda()(x.cuda(), seed=11)
    assert torch.equal(on_cpu == 0, on_gpu.cpu() == 0)
    torch.testing.assert_close(on_cpu, on_gpu.cpu(), rtol=1e-4, atol=1e-5)

"""The kernels behind `functional`, `RNN` and `explain`: every strategy against the float64 reference and the CPU path."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

import rnndrop
from rnndrop import autograd, functional
from rnndrop.explain import from_choice
from rnndrop.kernels import sequence, strategy
from tests.tolerances import SEQUENCE
from tests.triton_driver import backend

STRATEGIES = {"resident": 20, "cooperative": 48, "stepwise": 20}  # and a hidden size of its kind, not a power of two
OPTIONS = [
    {"hidden_dropout": 0.25},
    {"recurrent_dropout": 0.25, "direction": 1},
    {"hidden_dropout": 0.9, "recurrent_dropout": 0.25, "mask_scope": "sequence", "layer": 2},
    {"hidden_dropout": 0.25, "recurrent_dropout": 0.5, "nonlinearity": "relu", "direction": 1},
    {},
    {"hidden_dropout": 1.0},
]


def layer_inputs(H, *, T=4, B=3, width=5, batch_sizes=None, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(H)

    def normal(*shape, size=1.0):
        return (size * torch.randn(shape, generator=generator)).to(dtype).to(device)

    x = normal(T, B, width) if batch_sizes is None else normal(sum(batch_sizes), width)
    return [x, normal(B, H), normal(H, width, size=width**-0.5), normal(H, H, size=0.5 * H**-0.5), normal(H), normal(H)]


def results(inputs, name, dtype=None, **options):
    """Output, h_n and the gradients of all inputs, in float64 on the CPU."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
    outputs = functional.rnn_layer(*leaves, strategy=name, seed=-7, **options)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=generator).to(y.dtype).to(y.device) for y in outputs]
    return [x.double().cpu() for x in (*outputs, *torch.autograd.grad(outputs, leaves, grads))]


def assert_close(found, expected, bound):
    for x, y in zip(found, expected, strict=True):
        assert (x - y).abs().max() <= bound * y.abs().max().clamp(min=1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_by_name_is_the_float64_reference(name, options, device):
    inputs = layer_inputs(STRATEGIES[name], device=device)
    expected = results(inputs, "reference", torch.float64, **options)
    assert_close(results(inputs, name, **options), expected, SEQUENCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", STRATEGIES)
def test_sixteen_bits(name, dtype, device):
    inputs = layer_inputs(STRATEGIES[name], dtype=dtype, device=device)
    options = {"hidden_dropout": 0.25, "recurrent_dropout": 0.25}
    expected = results(inputs, "reference", torch.float64, **options)
    found = results(inputs, name, **options)
    assert_close(found, expected, SEQUENCE[dtype])
    assert torch.equal(found[0] == 0, expected[0] == 0)


@pytest.mark.parametrize("direction", [0, 1])
def test_packed_sequences_go_stepwise(direction, device):
    batch_sizes = [3, 3, 2, 1]
    inputs = layer_inputs(20, batch_sizes=batch_sizes, device=device)
    options = {"batch_sizes": batch_sizes, "hidden_dropout": 0.25, "recurrent_dropout": 0.25, "direction": direction}
    expected = results(inputs, "reference", torch.float64, **options)
    assert_close(results(inputs, "stepwise", **options), expected, SEQUENCE[torch.float32])


@pytest.mark.parametrize("kind", ["hidden", "recurrent"])
def test_masks_are_those_of_the_cpu_path_bit_for_bit(kind, device):
    seed = torch.tensor([-(2**40) - 3], device=device)
    for rows, columns, p in [(7, 50, 0.3), (2, 16, 0.999), (5, 1, 1.0), (3, 33, 1e-9)]:
        where = rnndrop.mask.site(kind, 3, 1)
        masks = [autograd.backend(name) for name in ("torch", "stepwise")]
        on_cpu, in_bits = (m.unpack(m.keep(seed, rows, columns, p, where), columns).cpu() for m in masks)
        assert torch.equal(on_cpu, in_bits)
        assert torch.equal(on_cpu, rnndrop.dropout_mask(int(seed), rows, columns, p, layer=3, direction=1, kind=kind) != 0)


@pytest.mark.parametrize("p", [0.25, 1.0])
def test_tanh_dropout_by_its_kernel_is_that_of_the_cpu_path(p, device):
    x = torch.randn(2, 3, 40, device=device, requires_grad=True)
    found = functional.tanh_dropout(x, p, seed=5, strategy="triton")
    expected = torch.tanh(x) * rnndrop.dropout_mask(5, 6, 40, p).view(2, 3, 40).to(device)
    assert torch.equal(found == 0, expected == 0)
    torch.testing.assert_close(found, expected)
    g = torch.randn_like(x)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, g)[0] for y in (found, expected)))


def test_double_backward_goes_through_the_reference(device):
    inputs = [x.requires_grad_() for x in layer_inputs(20, device=device)]
    second = []
    for name in ("resident", "reference"):
        output, _ = functional.rnn_layer(*inputs, strategy=name, seed=1, hidden_dropout=0.25, recurrent_dropout=0.25)
        (first,) = torch.autograd.grad(output.square().sum(), inputs[3], create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), inputs))
    for x, y in zip(*second, strict=True):
        assert (x - y).abs().max() <= SEQUENCE[torch.float32] * y.abs().max()


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_operators_are_what_the_compiler_is_told(name, device):
    inputs = [x.requires_grad_() for x in layer_inputs(STRATEGIES[name], T=2, device=device)]
    seed = torch.tensor([3], device=device)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(autograd._layer_op, (*inputs, seed, None, "tanh", 0.2, 0.3, "step", 0, 1, name), test_utils=checks)


def test_the_dropout_operator_is_what_the_compiler_is_told(device):
    x, seed = torch.randn(4, 20, device=device, requires_grad=True), torch.tensor([3], device=device)
    torch.library.opcheck(autograd._dropout_op, (x, seed, "tanh", 0.2, 3, "triton"))


def test_compiled_whole(device):
    inputs = [x.requires_grad_() for x in layer_inputs(20, T=2, device=device)]

    def run(*tensors):
        return functional.rnn_layer(
            *tensors, strategy="stepwise", seed=tensors[0].new_tensor([3], dtype=torch.int64), hidden_dropout=0.25
        )

    found, expected = (f(*inputs) for f in (torch.compile(run, fullgraph=True, backend="aot_eager"), run))
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x, y)
    gradients = (torch.autograd.grad(y[0].sum(), inputs) for y in (found, expected))
    for x, y in zip(*gradients, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(("H", "batch_sizes"), [(64, None), (512, None), (4096, None), (64, [3, 2])])
def test_traced_for_cuda_without_one(H, batch_sizes):
    with FakeTensorMode():
        x = torch.empty(*((4, 3) if batch_sizes is None else (5,)), 5, device="cuda")
        weights = (torch.empty(shape, device="cuda") for shape in [(3, H), (H, 5), (H, H), (H,), (H,)])
        seed = torch.empty(1, dtype=torch.int64, device="cuda")
        options = {"hidden_dropout": 0.2, "recurrent_dropout": 0.1, "batch_sizes": batch_sizes}
        y, h_n = functional.rnn_layer(x, *weights, seed=seed, **options)
        z = functional.tanh_dropout(y, seed=seed)
    assert (y.shape, h_n.shape, z.shape) == ((*x.shape[:-1], H), (3, H), y.shape)
    assert {t.device.type for t in (y, h_n, z)} == {"cuda"}


def test_a_strategy_that_cannot_run_says_why():
    def run(H, name, dtype=torch.float32, batch_sizes=None):
        inputs = layer_inputs(H, T=2, dtype=dtype, batch_sizes=batch_sizes)
        functional.rnn_layer(*inputs, strategy=name, hidden_dropout=0.2, seed=1, batch_sizes=batch_sizes)

    for name in STRATEGIES:
        with pytest.raises(ValueError, match=rf"'{name}' cannot run: torch.float64 is none of"):
            run(20, name, torch.float64)
    for name in ("resident", "cooperative"):
        with pytest.raises(ValueError, match=rf"'{name}' cannot run: the sequences are of different lengths"):
            run(20, name, batch_sizes=[3, 2])
    with pytest.raises(ValueError, match=r"'resident' cannot run: .*H = 1024.* registers"):
        run(1024, "resident")


def test_the_choice_follows_shape_dtype_and_device():
    def choose(H, B=16, dtype=torch.bfloat16, **options):
        choice = strategy.choose(H, B, dtype, sequence.A100, **options)
        assert choice.reason
        return choice.strategy, set(choice.rejected)

    assert choose(128) == ("resident", set())
    assert choose(1024) == ("cooperative", {"resident"})
    assert choose(16384) == ("stepwise", {"resident", "cooperative"})
    assert choose(128, B=10**6) == ("stepwise", {"resident", "cooperative"})
    assert choose(128, packed=True) == ("stepwise", {"resident", "cooperative"})
    assert choose(128, dtype=torch.float64) == choose(128, B=0) == ("reference", set())


def test_explain_tells_strategy_reason_tiles_and_bytes():
    rnn = rnndrop.RNN(5, 20, hidden_dropout=0.2)
    x = torch.randn(4, 3, 5)
    assert rnndrop.explain(rnn, x).strategy == "torch"
    assert rnndrop.explain(rnn.eval(), x).strategy == "torch.nn.RNN"
    with pytest.raises(TypeError, match=r"rnndrop\.RNN, got RNN"):
        rnndrop.explain(nn.RNN(5, 20), x)
    found = from_choice(strategy.choose(512, 16, torch.bfloat16, sequence.A100))
    assert found.strategy == "cooperative" and found.on_chip_bytes > 512 * 32 * 2
    assert found.tiles["slices"] * found.tiles["slice"] >= 512
    assert "not resident: W_hh of H = 512" in str(found)
    with FakeTensorMode():
        on_cuda = rnndrop.explain(rnn.train(), torch.empty(4, 3, 5, device="cuda"))
    assert on_cuda.strategy == "resident" and on_cuda.tiles["rows"] == 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the masks of one seed on it and on the CPU")
def test_a_module_on_a_gpu_drops_what_it_drops_on_the_cpu():
    assert backend() == "cuda"
    rnn = rnndrop.RNN(5, 64, 2, dropout=0.3, hidden_dropout=0.2, recurrent_dropout=0.1, bidirectional=True)
    x = torch.randn(6, 3, 5)
    on_cpu, _ = rnn(x, seed=11)
    on_gpu, _ = rnn.cuda()(x.cuda(), seed=11)
    assert torch.equal(on_cpu == 0, on_gpu.cpu() == 0)
    torch.testing.assert_close(on_cpu, on_gpu.cpu(), rtol=1e-4, atol=1e-5)

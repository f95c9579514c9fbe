"""The resident kernels against the plain loop in float64: outputs and all that the gradients are made of."""

import numpy as np
import pytest
import torch

from rnndrop.kernels import resident
from tests.tolerances import SEQUENCE
from tests.triton_driver import backend

from . import sequences, stream


def pack(keep):
    """Booleans (rows, H) as int32 (rows, ceil(H/32)), without the kernel that does it on a device."""
    rows, H = keep.shape
    bits = np.zeros((rows, -(-H // 32) * 32), np.uint8)
    bits[:, :H] = keep
    return torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view("<i4").copy())


class Case:
    """Random inputs, the masks of one layer, and what float64 makes of them."""

    def __init__(
        self,
        device,
        T=5,
        B=3,
        H=33,
        p=0.25,
        q=0.0,
        dtype=torch.float32,
        nonlinearity="tanh",
        scope="step",
        reverse=False,
        seed=0,
    ):
        torch.manual_seed(seed)
        self.T, self.B, self.H, self.device, self.dtype = T, B, H, device, dtype
        self.x, self.h0, self.w = (torch.randn(s).to(dtype) for s in ((T, B, H), (B, H), (H, H)))
        self.w /= H**0.5
        self.grad, self.grad_h_n = torch.randn(T, B, H).to(dtype), torch.randn(B, H).to(dtype)
        thresholds = [round(65536 * v) for v in (p, q)]
        self.scales = [stream.scale(v) for v in thresholds]
        rows = T * B if scope == "step" else B
        self.keeps = [stream.keep(seed + 7, rows, H, v, kind << 32) if v else None for kind, v in enumerate(thresholds)]
        self.options = dict(nonlinearity=nonlinearity, mask_scope=scope, reverse=reverse)

    def keep(self, kind, t):
        mask = self.keeps[kind]
        return mask if mask is None or self.options["mask_scope"] == "sequence" else mask[t * self.B : (t + 1) * self.B]

    def expected(self):
        """output, grad_a, grad_h0 in float64."""
        f = getattr(torch, self.options["nonlinearity"])
        x, h0, w = self.x.double().requires_grad_(), self.h0.double().requires_grad_(), self.w.double()
        h, steps = h0, [None] * self.T
        for t in range(self.T)[::-1] if self.options["reverse"] else range(self.T):
            r, m = self.keep(1, t), self.keep(0, t)
            a = x[t] + (h if r is None else torch.where(r, h * self.scales[1], 0.0)) @ w.T
            h = f(a) if m is None else f(torch.where(m, a, 0.0)) * self.scales[0]
            steps[t] = h
        output = torch.stack(steps)
        return output.detach(), *torch.autograd.grad([output, h], [x, h0], [self.grad.double(), self.grad_h_n.double()])

    def actual(self, tf32=False):
        def there(x):
            return None if x is None else x.to(self.device)

        bits = [there(None if keep is None else pack(keep)) for keep in self.keeps]
        w = there(self.w)
        self.output = resident.forward(there(self.x), there(self.h0), w, *bits, *self.scales, tf32=tf32, **self.options)
        gradients = there(self.grad), there(self.grad_h_n)
        grads = resident.backward(*gradients, self.output, w, *bits, *self.scales, tf32=tf32, **self.options)
        return tuple(x.cpu() for x in (self.output, *grads))

    def check(self, tf32=False):
        tolerance = SEQUENCE["tf32" if tf32 else self.dtype]
        results = zip(("output", "grad_a", "grad_h0"), self.actual(tf32), self.expected(), strict=True)
        for name, actual, expected in results:
            assert actual.dtype == self.dtype and actual.shape == expected.shape
            size = max(1.0, float(expected.abs().max()))
            error = float((actual.double() - expected).abs().max()) / size
            assert error <= tolerance, f"{name} differs by {error:.2g}"


SHAPES = [(1, 1, 3), (16, 3, 33), (33, 16, 5), (64, 33, 4), (100, 17, 3), (128, 3, 9), (256, 1, 3)]


@pytest.mark.parametrize("H, B, T", SHAPES)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_shapes(H, B, T, nonlinearity, device):
    dtype = torch.bfloat16 if H == 256 else torch.float32
    if H == 256 and nonlinearity == "relu":
        T = 1  # rounding of h moves some units across relu's kink
    Case(device, T, B, H, p=0.25, q=0.25, dtype=dtype, nonlinearity=nonlinearity).check()


@pytest.mark.parametrize("p, q", [(0, 0), (0.25, 0), (0, 0.25), (0.9, 0.25), (0.25, 0.9), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("scope, reverse", [("step", True), ("sequence", False)])
def test_masks(p, q, scope, reverse, device):
    Case(device, T=4, B=3, H=48, p=p, q=q, scope=scope, reverse=reverse).check()


@pytest.mark.parametrize("scope, reverse", [("step", False), ("sequence", True)])
def test_directions(scope, reverse, device):
    Case(device, T=4, B=3, H=48, p=0.25, q=0.25, scope=scope, reverse=reverse).check()


@pytest.mark.parametrize("dtype, tf32", [(torch.float32, True), (torch.float16, False), (torch.bfloat16, False)])
@pytest.mark.parametrize("H", [16, 33, 128])
def test_dtypes(H, dtype, tf32, device):
    Case(device, T=5, B=2, H=H, q=0.25, dtype=dtype).check(tf32)


def test_long_sequence(device):
    Case(device, T=33, B=2, H=64, p=0.25, q=0.25).check()


def test_strides(device):
    """Batch first, one direction's half of both, an expanded gradient, a tensor off the 16-byte boundary."""
    case = Case(device, T=3, B=2, H=32)
    want = case.expected()
    inputs = {
        "batch first": case.x.transpose(0, 1).contiguous().transpose(0, 1),
        "half": torch.cat([case.x, case.x], 2)[:, :, 32:],
        "off": torch.cat([torch.zeros(1), case.x.flatten()])[1:].view(3, 2, 32),
    }
    for case.x in inputs.values():
        assert float((case.actual()[0] - want[0]).abs().max()) < 1e-5
    case.grad = torch.tensor(0.5).expand(3, 2, 32)
    case.check()


def test_no_final_gradient(device):
    case = Case(device)
    case.grad_h_n = None
    actual = case.actual()[1:]
    case.grad_h_n = torch.zeros(case.B, case.H)
    for a, b in zip(actual, case.expected()[1:], strict=True):
        assert float((a - b).abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_nan(nonlinearity, dtype, device):
    """Dropped is 0 where the activation is NaN, kept stays NaN, and so in the gradient."""
    case = Case(device, T=2, B=2, H=33, p=0.5, dtype=dtype, nonlinearity=nonlinearity)
    kept = case.keeps[0].view(2, 2, 33)
    case.x[1] = float("nan")
    output, grad_a, _ = case.actual()
    assert torch.equal(output[1].isnan(), kept[1]) and not output[1][~kept[1]].any()
    assert not grad_a[1][~kept[1]].any()
    if nonlinearity == "tanh":  # relu passes a gradient at NaN, as in PyTorch
        assert torch.equal(grad_a[1].isnan(), kept[1])
    assert not grad_a[~kept].any() and not output[0].isnan().any()


@pytest.mark.parametrize("hidden", [None, 32768])
def test_relu_stops_not_a_number(hidden, device):
    sequences.relu_stops_not_a_number(resident, sequences.Case(T=2, H=48, hidden=hidden), device)


@pytest.mark.parametrize("reverse", [False, True])
def test_addresses_past_32_bits(reverse, device, tmp_path):
    """Steps 2**30 elements apart: nothing else of the span is touched."""
    case = Case(device, T=3, B=2, H=32, dtype=torch.float16, reverse=reverse)
    near = case.actual()
    for name in ("x", "grad"):
        values = getattr(case, name)
        file = np.memmap(tmp_path / name, np.float16, "w+", shape=2**31 + 64)
        setattr(case, name, torch.from_numpy(file).as_strided(values.shape, (2**30, 32, 1)).copy_(values))
    assert all(torch.equal(a, b) for a, b in zip(case.actual(), near, strict=True))


def test_a_dropped_nan_does_not_spread(device):
    """Infinity in the last real column meets the zeros of the padding; what does not enter W_hh must not come back."""
    case = Case(device, T=4, B=1, H=33, p=0, q=0.5, nonlinearity="relu")
    case.keeps[1][:] = False
    case.keeps[1][2, 32] = True
    case.w[:] = 0
    case.x[1, 0, 32] = float("inf")
    output = case.actual()[0]
    assert output[2].isnan().all() and not output[3].isnan().any()


def test_kept_zero_passes_the_gradient(device):
    """The planted bug of reading the mask from the output: a kept unit whose tanh is 0 has slope 1."""
    case = Case(device, T=2, B=1, H=16, p=0.5)
    case.x[:], case.h0[:] = 0, 0
    _, grad_a, _ = case.actual()
    kept = case.keeps[0].view(2, 1, 16)
    assert grad_a[kept].all() and not grad_a[~kept].any()
    case.check()


@pytest.mark.parametrize("bug", ["the first step's mask at every step", "one mask for all rows"])
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_planted_bugs_are_caught(bug, kind, where, device, monkeypatch):
    case = Case(device, T=3, B=3, H=16, p=0.25, q=0.25)
    right = getattr(resident, where)

    def wrong(*args, **options):
        args = list(args)
        bits = args[4 + kind if where == "backward" else 3 + kind].view(3, 3, -1)
        bits = (bits[:1] if "first" in bug else bits[:, :1]).expand(3, 3, -1)
        args[4 + kind if where == "backward" else 3 + kind] = bits.reshape(9, -1)
        return right(*args, **options)

    case.check()
    monkeypatch.setattr(resident, where, wrong)
    with pytest.raises(AssertionError, match="differs by"):
        case.check()


def test_gradient_from_the_sign_of_the_output_is_caught(device, monkeypatch):
    """Forward as it is; backward told that negative outputs were dropped."""
    case = Case(device, T=3, B=3, H=16)
    right = resident.backward

    def wrong(grad_output, grad_h_n, output, w_hh, hidden_bits, *args, **options):
        positive = pack(output.cpu().view(9, 16) > 0).to(device)
        return right(grad_output, grad_h_n, output, w_hh, positive, *args, **options)

    monkeypatch.setattr(resident, "backward", wrong)
    with pytest.raises(AssertionError, match="differs by"):
        case.check()


def test_one_compilation_for_all_lengths_and_batches(device):
    if backend() == "interpreter":
        pytest.skip("the interpreter compiles nothing")
    kernels = resident.forward_kernel, resident.backward_kernel

    def compiled():
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    for H in (1, 33, 64):
        Case(device, T=2, B=3, H=H).actual()
        before = compiled()
        for T, B in ((1, 1), (3, 16), (2, 17), (16, 2)):
            Case(device, T=T, B=B, H=H).actual()
        assert compiled() == before


def test_refusals(device):
    x = torch.zeros(2, 2, 512, device=device)
    with pytest.raises(ValueError, match=r"resident.*registers"):
        resident.forward(x, x[0], torch.zeros(512, 512, device=device), None, None, 1.0, 1.0)
    x = torch.zeros(0, 2, 16, device=device)
    with pytest.raises(ValueError, match="at least one step"):
        resident.forward(x, x.new_zeros(2, 16), x.new_zeros(16, 16), None, None, 1.0, 1.0)


def test_plan():
    assert resident.plan(100, 33, torch.bfloat16, resident.A100) == (16, 128, 1, 8, 3, 32768, 4096, "")
    assert resident.plan(256, 16, torch.float16, resident.A100).spans == 2
    assert "registers" in resident.plan(129, 1, torch.float32, resident.A100).reason
    assert "float64" in resident.plan(16, 1, torch.float64, resident.A100).reason
    assert "shared memory" in resident.plan(128, 1, torch.float32, {"max_shared_mem": 8192}).reason

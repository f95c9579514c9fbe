"""A GPU without Triton, or with one that is too old: the masks of the CPU's code, a plain loop, and a word about it.

Where there is no GPU, dispatch takes the CPU for one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STUBS = {
    "none": "sys.modules['triton'] = None",
    "3.3": "triton = types.ModuleType('triton'); triton.__version__ = '3.3.1'; sys.modules['triton'] = triton",
}
SAYS = {"none": "Triton is not installed: pip install", "3.3": "Triton 3.3.1 is older"}

PRELUDE = """
import sys, types, warnings
import torch
STUB
import rnndrop
from rnndrop import dispatch, functional
from rnndrop.modules import base
from rnndrop.ops import mask, tanh_dropout

device, cpu = ("cuda" if torch.cuda.is_available() else "cpu"), torch.device("cpu")
if device == "cpu":
    choose, form, gpu = dispatch.choose, dispatch.mask_form, torch.device("cuda", 0)
    dispatch.choose = lambda strategy, problem: choose(strategy, problem._replace(device=gpu))
    dispatch.mask_form = base.mask_form = lambda strategy, device: form(strategy, gpu)

def warned(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = call()
    return result, [str(w.message) for w in found if "rnndrop" in str(w.message)]

rnn = rnndrop.RNN(4, 40, 2, dropout=0.3, hidden_dropout=0.25, recurrent_dropout=0.25, device=device)
x = torch.randn(5, 3, 4, device=device)
"""


THE_LOOP = """
(output, h_n), said = warned(lambda: rnn(x, seed=7))
output.sum().backward()
again, more = warned(lambda: rnn(x, seed=7))
assert torch.equal(output, again[0])
assert len(said) == 1 and not more, (said, more)
print("warning", said[0])
"""

THE_SAME_BY_THE_CPU = """
if device == "cpu":
    dispatch.choose, dispatch.mask_form, base.mask_form = choose, form, form
plain = rnndrop.RNN(4, 40, 2, dropout=0.3, hidden_dropout=0.25, recurrent_dropout=0.25)
plain.load_state_dict(rnn.state_dict())
expected, _ = plain(x.to(cpu), seed=7)
expected.sum().backward()
torch.testing.assert_close(output.to(cpu), expected)
for mine, other in zip(rnn.parameters(), plain.parameters()):
    torch.testing.assert_close(mine.grad.to(cpu), other.grad, rtol=1e-4, atol=1e-5)
"""

NAMES = """
h_0, weights = torch.zeros(3, 40, device=device), rnn.all_weights[0]
for name in ("resident", "cooperative", "stepwise", "triton"):
    try:
        if name == "triton":
            functional.tanh_dropout(x, 0.5, strategy=name)
        else:
            functional.rnn_layer(x, h_0, *weights, hidden_dropout=0.5, strategy=name)
    except ValueError as error:
        print("name", error)
"""

OTHERS = """
one, _ = functional.rnn_layer(x, h_0, *weights, hidden_dropout=0.5, seed=5, strategy="reference")
kept = rnndrop.dropout_mask(5, 15, 40, 0.5).view(5, 3, 40) != 0
print("reference", torch.equal(one.to(cpu) != 0, kept))
y = functional.tanh_dropout(x, 0.5, seed=5)
print("tanh_dropout", torch.equal(y.to(cpu) != 0, rnndrop.dropout_mask(5, 15, 4, 0.5).view(5, 3, 4) != 0))
cell = rnndrop.RNNCell(4, 40, hidden_dropout=0.5, device=device)
h = cell(x[0], seed=5)
h.sum().backward()
print("cell", torch.equal(h.to(cpu) != 0, rnndrop.dropout_mask(5, 3, 40, 0.5) != 0))
"""


@pytest.fixture(scope="module", params=STUBS)
def printed(request):
    """The stub's name, and the lines that a process with it has printed."""
    code = PRELUDE.replace("STUB", STUBS[request.param]) + NAMES + THE_LOOP + OTHERS + THE_SAME_BY_THE_CPU
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return request.param, done.stdout.splitlines()


def test_auto_runs_the_loop_and_warns_once(printed):
    stub, lines = printed
    (said,) = [line for line in lines if line.startswith("warning")]
    assert "rnndrop runs a plain loop on CUDA" in said and SAYS[stub] in said and "triton>=" in said


def test_a_kernel_by_name_says_why_not(printed):
    stub, lines = printed
    found = [line for line in lines if line.startswith("name")]
    assert [line.split()[2] for line in found] == ["'resident'", "'cooperative'", "'stepwise'", "'triton'"]
    assert all(f"cannot run: {SAYS[stub]}" in line for line in found)


def test_the_others_run(printed):
    """The loop by name, the pointwise dropout and the cell have the masks of the CPU."""
    assert {"reference True", "tanh_dropout True", "cell True"} <= set(printed[1])

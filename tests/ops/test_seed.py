"""The seed of a call as an operator of compiled graphs."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import rnndrop
from rnndrop.ops.seed import drawn_seed
from tests.helpers import gradients

pytestmark = pytest.mark.usefixtures("fresh_compiler")
CPU = torch.device("cpu")


def test_opcheck():
    """Its values are another at each call, which the other checks of opcheck compare."""
    like = torch.empty(0, dtype=torch.int64)
    torch.library.opcheck(torch.ops.rnndrop.seed.default, (like,), test_utils=("test_schema", "test_faketensor"))


def test_compiled_it_is_drawn_as_in_eager_mode():
    compiled = torch.compile(lambda: [drawn_seed(CPU) for _ in range(3)], fullgraph=True, backend="aot_eager")
    torch.manual_seed(7)
    found = compiled()
    torch.manual_seed(7)
    assert found == [drawn_seed(CPU) for _ in range(3)] and len({int(seed) for seed in found}) == 3


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_checkpoint_draws_it_again(backend):
    """What is computed a second time in the backward pass has the masks of the first."""
    rnn = rnndrop.RNN(4, 8, hidden_dropout=0.5, dtype=torch.float64)
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)

    def run(x):
        return checkpoint(lambda x: rnn(x)[0].sin() * x.sum(), x, use_reentrant=False)

    leaves, results = {"x": x, **dict(rnn.named_parameters())}, []
    for each in (torch.compile(run, fullgraph=True, backend=backend), run):
        torch.manual_seed(1)
        output = each(x)
        results.append([output, gradients((output,), leaves)])
    torch.testing.assert_close(*results)

"""Two processes of one group (gloo): data parallel training, and replicated DTensors."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
import torch, torch.distributed as distributed, rnndrop
from torch import nn
from torch.nn.parallel import DistributedDataParallel

rank = int(sys.argv[1])
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)

def same(x):
    others = [torch.empty_like(x) for _ in range(2)]
    distributed.all_gather(others, x.detach().contiguous())
    return torch.equal(*others)
"""
MASKS = """
x = torch.ones(5, 3, 4)
for make in (lambda: nn.Dropout(0.5), *[lambda kind=kind: kind(4, 8, hidden_dropout=0.5) for kind in KINDS]):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), make())
    wrapped = DistributedDataParallel(model)
    output = lambda: y if isinstance(y := wrapped(x), torch.Tensor) else y[0]
    assert same(output()), "one seed for all ranks, the same masks"
    torch.manual_seed(0 + rank)
    found = output()
    assert not same(found), "the cure"
    found.square().sum().backward()
    with torch.no_grad():
        for p in model.parameters():
            assert same(p.grad) and p.grad.abs().max() > 0
"""
DTENSORS = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
x = torch.randn(5, 4, 4)
held = lambda y: (y.to_local() if isinstance(y, DTensor) else y).detach().clone()
first = lambda y: y if isinstance(y, torch.Tensor) else y[0]
whole = lambda y: distribute_tensor(y, mesh, [Replicate()])
cells = [rnndrop.RNNCell, rnndrop.LSTMCell, rnndrop.GRUCell]
cases = [(nn.RNN, {}), (nn.GRU, {})] + [(kind, dict(hidden_dropout=0.5)) for kind in KINDS + cells]
for kind, options in [*cases, (rnndrop.RNN, dict(weight_dropout=0.5, input_dropout=0.25, zoneout=0.5))]:
    module, found = kind(4, 8, **options), []
    given = x[0] if kind in cells else x
    hx = [] if options else [torch.zeros(1, 4, 8)]  # torch.nn's zeros are no DTensors
    seed = {"seed": 1} if options else {}
    for replicated in (False, True):
        if replicated:
            distribute_module(module, mesh)
            given, hx = whole(given), [whole(h) for h in hx]
        output = first(module(given, *hx, **seed))
        output.square().sum().backward()
        assert isinstance(output, DTensor) == replicated
        found.append([held(y) for y in (output, *(p.grad for p in module.parameters()))])
        module.zero_grad()
    assert all(map(torch.equal, *found)), kind
    if options:
        try:
            module(distribute_tensor(held(given), mesh, [Shard(0)]), **seed)
        except RuntimeError as error:
            assert "takes a DTensor that is replicated, got (Shard(dim=0),)" in str(error)
        else:
            raise AssertionError("a part of the input was taken for the whole")
"""
END = """
distributed.destroy_process_group()
print("done")
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_masks_of_ranks_and_replicated_tensors(tmp_path):
    """Ranks that share a seed have the same masks, as with nn.Dropout, until each has its own. A module that is replicated has
    the results of the one that it was, to the last bit."""
    program = PROGRAM + "KINDS = [rnndrop.RNN, rnndrop.LSTM, rnndrop.GRU]\n" + MASKS + DTENSORS + END
    command = [sys.executable, "-W", "ignore", "-c", program]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "group")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        for rank in range(2)
    ]
    try:
        found = [rank.communicate(timeout=100) for rank in ranks]
    finally:
        [rank.kill() for rank in ranks]
    assert [output for output, _ in found] == ["done\n"] * 2, textwrap.indent("".join(error for _, error in found), "  ")

"""DistributedDataParallel on two processes: ranks that share a seed share masks, and the cure is `seed + rank`.

python -m examples.distributed
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor, distributed, nn
from torch import multiprocessing as mp
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import rnndrop
from examples.report import COLOURS, finish, options, write

RANKS, SEED, TIME, HIDDEN, P = 2, 42, 30, 24, 0.3


class Forecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnndrop.RNN(1, HIDDEN, hidden_dropout=P)
        self.linear = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        output, _ = self.rnn(x)
        return self.linear(output), output


def work(rank: int, folder: str, steps: int) -> None:
    """One process: the same weights, its own part of the data and its own masks."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    torch.manual_seed(SEED)
    model = DistributedDataParallel(Forecaster())
    x = (torch.arange(64)[rank::RANKS] + 0.2 * torch.arange(TIME + 1)[:, None]).sin().unsqueeze(2)
    torch.manual_seed(SEED)
    shared = model(x[:-1])[1].detach()[:, 0] == 0
    torch.manual_seed(SEED + rank)  # the cure: the weights are equal already, from here on masks differ
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for step in range(steps):
        forecast, output = model(x[:-1])
        if step == 0:
            own = output.detach()[:, 0] == 0
        loss = F.mse_loss(forecast, x[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if rank == 0 and (step + 1) % max(1, steps // 4) == 0:
            print(f"step {step + 1} of {steps}: loss {losses[-1]:.3f}", flush=True)
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.save({"shared": shared, "own": own, "losses": losses, "weights": weights}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def main() -> None:
    arguments = options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (folder, 5 if arguments.quick else 300), nprocs=RANKS)
        ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(RANKS)]
    differ = {name: (ranks[0][name] != ranks[1][name]).float().mean().item() for name in ("shared", "own")}
    apart = (ranks[0]["weights"] - ranks[1]["weights"]).abs().max().item()
    rows = [
        ("share of masks that differ, same seed", differ["shared"]),
        ("share of masks that differ, seed + rank", differ["own"]),
        ("largest difference of the ranks' weights after training", apart),
        *[(f"last training loss, rank {rank}", result["losses"][-1]) for rank, result in enumerate(ranks)],
    ]
    results = pd.DataFrame(rows, columns=["what", "value"])
    figure, plots = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
    for rank, (axes, result) in enumerate(zip(plots, ranks, strict=False)):
        axes.pcolormesh(~result["own"].t(), cmap="Blues", vmin=0, vmax=1.6, edgecolors="white", linewidth=0.3)
        axes.set(xlabel="time step", ylabel="hidden unit", title=f"Rank {rank}, seed + rank: white is dropped")
        plots[2].plot(result["losses"], color=COLOURS[1 + rank], label=f"rank {rank}")
    plots[2].set(xlabel="training step", ylabel="training loss (mean squared error)", title="Training", ylim=(0, None))
    finish(plots[2])
    table = results.assign(value=results["value"].map("{:.3f}".format)).set_index("what")
    write(arguments.out, "distributed", figure, results, table)


if __name__ == "__main__":
    main()

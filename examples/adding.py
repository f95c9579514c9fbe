"""The adding problem: the sum of the two marked numbers of a long sequence. Which dropout still learns it?

python -m examples.adding
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.nn import functional as F

import rnndrop
from examples.report import COLOURS, finish, options, over_seeds, progress, write

TIME, BATCH, HIDDEN, P, POINT = 40, 32, 48, 0.1, 20
GUESS = 1 / 6  # the error of always answering 1, the variance of a sum of two uniform numbers
VARIANTS: dict[str, dict[str, Any]] = {
    "no dropout": {},
    "zoneout": dict(zoneout=P),
    "hidden_dropout, per step": dict(hidden_dropout=P),
    "candidate_dropout, per step": dict(candidate_dropout=P),
}


class Adder(nn.Module):
    def __init__(self, **dropouts: Any) -> None:
        super().__init__()
        self.gru = rnndrop.GRU(2, HIDDEN, **dropouts)
        self.linear = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.gru(x)[0][-1]).squeeze(1)


def make(batch: int) -> tuple[Tensor, Tensor]:
    """Numbers in [0, 1) beside marks, (T, B, 2): one mark in each half."""
    numbers, marks = torch.rand(TIME, batch), torch.zeros(TIME, batch)
    marks.scatter_(0, torch.randint(TIME // 2, (1, batch)), 1)
    marks.scatter_(0, torch.randint(TIME // 2, TIME, (1, batch)), 1)
    return torch.stack([numbers, marks], 2), (numbers * marks).sum(0)


def train(model: Adder, steps: int, bar: Any) -> list[float]:
    """The error without dropout at each point, on numbers never seen."""
    test_inputs, test_targets = make(500)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    errors = []
    for step in range(1, steps + 1):
        inputs, targets = make(BATCH)
        optimizer.zero_grad()
        F.mse_loss(model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % POINT == 0:
            with torch.no_grad():
                errors.append(F.mse_loss(model.eval()(test_inputs), test_targets).item())
            model.train()
        bar.update()
    return errors


def main() -> None:
    arguments = options(__doc__)
    seeds, steps = (range(2), POINT) if arguments.quick else (range(3), 800)
    rows, curves = [], {}
    with progress(len(seeds) * len(VARIANTS) * steps) as bar:
        for seed in seeds:
            for name, dropouts in VARIANTS.items():
                torch.manual_seed(seed)
                curves[name, seed] = train(Adder(**dropouts), steps, bar)
                rows.append({"variant": name, "seed": seed, "error over guessing's": curves[name, seed][-1] / GUESS})
    results = pd.DataFrame(rows)
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    at = range(POINT, steps + 1, POINT)
    for name, colour in zip(VARIANTS, COLOURS, strict=True):
        for seed in seeds:
            axes.semilogy(at, curves[name, seed], color=colour, alpha=0.8, label=name if seed == 0 else None)
    axes.axhline(GUESS, color="#999999", linestyle="--", label="always answering 1")
    axes.set(xlabel="training step", ylabel="test error (mean squared), dropout off")
    axes.set_title(f"The adding problem, length {TIME}, GRU of {HIDDEN} units, p = {P}: a line a seed")
    finish(axes)
    write(arguments.out, "adding", figure, results, over_seeds(results, "variant"))


if __name__ == "__main__":
    main()

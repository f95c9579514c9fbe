"""A noisy sine: the article's five points, and forecasts from windows of fifty values.

python -m examples.sine
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

HIDDEN, WINDOW, NOISE, P = 32, 50, 0.3, 0.2
VARIANTS: dict[str, dict[str, Any]] = {
    "no dropout": {},
    "output_dropout": dict(output_dropout=P),
    "hidden_dropout, per step": dict(hidden_dropout=P),
    "recurrent_dropout, per sequence": dict(recurrent_dropout=P, mask_scope="sequence"),
}


class Forecaster(nn.Module):
    """The value after a sequence, (B, T, 1) -> (B, 1)."""

    def __init__(self, **dropouts: Any) -> None:
        super().__init__()
        self.rnn = rnndrop.RNN(1, HIDDEN, batch_first=True, **dropouts)
        self.linear = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rnn(x)[0][:, -1])


def five_points() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sequences of one step, as in the article; tested on the sine between the points."""
    x, between = torch.linspace(0, 10, 5), torch.linspace(0, 10, 101)
    y = x.sin() + 0.1 * torch.randn(5)
    return x.view(-1, 1, 1), y.view(-1, 1), between.view(-1, 1, 1), between.sin().view(-1, 1)


def windows() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows of a noisy sine and the noisy value after each; tested on later windows against the sine itself."""
    sine = (torch.arange(600) * 0.25).sin()
    noisy = sine + NOISE * torch.randn(600)
    inputs = noisy.unfold(0, WINDOW, 1)[:-1].unsqueeze(2)
    return inputs[:100], noisy[WINDOW:][:100].view(-1, 1), inputs[200:], sine[WINDOW:][200:].view(-1, 1)


def main() -> None:
    arguments = options(__doc__)
    seeds, epochs = (range(2), 5) if arguments.quick else (range(3), 300)
    data = {"five points": five_points, f"windows of {WINDOW}": windows}
    rows, curves = [], {}
    with progress(len(data) * len(seeds) * len(VARIANTS) * epochs) as bar:
        for seed in seeds:
            for task, make in data.items():
                for name, dropouts in VARIANTS.items():
                    torch.manual_seed(seed)
                    inputs, targets, test_inputs, test_targets = make()
                    model = Forecaster(**dropouts)
                    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
                    curve = []
                    for _ in range(epochs):
                        optimizer.zero_grad()
                        F.mse_loss(model(inputs), targets).backward()
                        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                        optimizer.step()
                        with torch.no_grad():
                            curve.append(F.mse_loss(model.eval()(test_inputs), test_targets).sqrt().item())
                        model.train()
                        bar.update()
                    curves[task, name, seed] = curve
                    rows.append({"variant": f"{task}: {name}", "seed": seed, "test error (RMSE)": curve[-1]})
    results = pd.DataFrame(rows)
    figure, plots = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axes, task in zip(plots, data, strict=True):
        for name, colour in zip(VARIANTS, COLOURS, strict=True):
            mean = torch.tensor([curves[task, name, seed] for seed in seeds]).mean(0)
            axes.plot(range(1, epochs + 1), mean, color=colour, label=name, linewidth=3 if name == "no dropout" else 1.2)
        axes.set(title=task, xlabel="epoch", ylabel="test error against the sine (RMSE)", ylim=(0, 1.2))
        finish(axes)
    figure.suptitle(f"A noisy sine, RNN of {HIDDEN} units, p = {P}: mean of {len(seeds)} seeds")
    write(arguments.out, "sine", figure, results, over_seeds(results, "variant"))


if __name__ == "__main__":
    main()

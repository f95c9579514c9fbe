"""How sure is a forecast? Monte-Carlo dropout, its bands, and whether they hold what they promise.

python -m examples.uncertainty
"""

from __future__ import annotations

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.nn import functional as F

import rnndrop
from examples.report import COLOURS, finish, options, over_seeds, progress, write

WINDOW, HIDDEN, P, NOISE = 30, 32, 0.2, 0.2
LEVELS = torch.tensor([0.5, 0.8, 0.9, 0.95])
TRAINING, VALIDATION = slice(0, 200), slice(230, 380)
TEST = slice(410, 810)


class Forecaster(nn.Module):
    """The value after a window, (B, T, 1) -> (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = rnndrop.GRU(1, HIDDEN, batch_first=True, hidden_dropout=P, mask_scope="sequence")
        self.linear = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.gru(x)[0][:, -1]).squeeze(1)


def make() -> tuple[Tensor, Tensor]:
    """Windows of two sines with noise, and the value after each."""
    time = torch.arange(900.0)
    series = (time * 0.2).sin() + 0.5 * (time * 0.31).sin() + NOISE * torch.randn(900)
    return series.unfold(0, WINDOW, 1)[:-1].unsqueeze(2), series[WINDOW:]


def sample(model: Forecaster, inputs: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the forecast over masks."""
    with rnndrop.monte_carlo(model), torch.no_grad():
        forecasts = torch.stack([model(inputs) for _ in range(samples)])
    return forecasts.mean(0), forecasts.std(0)


def coverage(targets: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """The share of targets inside the central band of each level of a normal distribution."""
    width = torch.distributions.Normal(0.0, 1.0).icdf((1 + LEVELS) / 2)
    return ((targets - mean).abs() <= deviation * width[:, None]).float().mean(1)


def main() -> None:
    arguments = options(__doc__)
    seeds, epochs, samples = (range(2), 5, 4) if arguments.quick else (range(3), 400, 100)
    rows = []
    with progress(len(seeds) * epochs) as bar:
        for seed in seeds:
            torch.manual_seed(seed)
            inputs, targets = make()
            model = Forecaster()
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            for _ in range(epochs):
                optimizer.zero_grad()
                F.mse_loss(model(inputs[TRAINING]), targets[TRAINING]).backward()
                optimizer.step()
                bar.update()
            model.eval()
            # The masks tell how unsure the model is; the noise of the series itself is what held-out errors have beyond that.
            validation_mean, validation_deviation = sample(model, inputs[VALIDATION], samples)
            error = (targets[VALIDATION] - validation_mean).square().mean()
            noise = (error - validation_deviation.square().mean()).clamp(min=0)
            mean, model_deviation = sample(model, inputs[TEST], samples)
            deviations = {"masks": model_deviation, "masks and noise": (model_deviation.square() + noise).sqrt()}
            for name, deviation in deviations.items():
                for level, covered in zip(LEVELS.tolist(), coverage(targets[TEST], mean, deviation).tolist(), strict=True):
                    rows.append({"band": f"{name}, nominal {level:.2f}", "seed": seed, "coverage": covered})
    results = pd.DataFrame(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", width_ratios=[2, 1])
    shown = range(100)
    for (name, deviation), colour in zip(reversed(deviations.items()), COLOURS[1:], strict=False):
        low, high = ((mean + sign * 1.645 * deviation)[:100] for sign in (-1, 1))
        left.fill_between(shown, low, high, color=colour, alpha=0.4, linewidth=0, label=f"0.90 band: {name}")
    left.plot(shown, mean[:100], color="black", label="forecast")
    left.plot(shown, targets[TEST][:100], ".", color="#666666", label="what came")
    left.set(xlabel="time step of the test series", ylabel="value", title=f"Forecasts one step ahead, seed {seeds[-1]}")
    finish(left)
    left.set_ylim(top=3.6)
    left.legend(frameon=False, ncols=2, loc="upper right")
    covered = results.groupby("band", sort=False)["coverage"].mean()
    for name, colour in zip(reversed(deviations), COLOURS[1:], strict=False):
        right.plot(
            LEVELS, [covered[f"{name}, nominal {level:.2f}"] for level in LEVELS.tolist()], "o-", color=colour, label=name
        )
    right.plot([0, 1], [0, 1], "--", color="#999999", label="perfect")
    right.set(xlabel="nominal coverage", ylabel="measured coverage", xlim=(0, 1), ylim=(0, 1))
    right.set_title(f"Calibration, mean of {len(seeds)} seeds")
    finish(right)
    write(arguments.out, "uncertainty", figure, results, over_seeds(results, "band"))


if __name__ == "__main__":
    main()

"""A character model of Python's help texts in the style of AWD-LSTM: plain, variational, weight-dropped, zoneout.

python -m examples.language_model
"""

from __future__ import annotations

import math
import pydoc_data.topics
from typing import Any

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.nn import functional as F

import rnndrop
from examples.report import COLOURS, finish, options, over_seeds, progress, write

PARTS = [21_000, 4_500, 4_500]  # characters of training, validation and test: few, so that the plain model overfits
EMBEDDING, HIDDEN, BATCH, TIME, POINT = 32, 128, 16, 50, 25
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "variational (Gal 2016)": dict(input_dropout=0.1, recurrent_dropout=0.3, output_dropout=0.3, mask_scope="sequence"),
    "weight-dropped (Merity 2017)": dict(input_dropout=0.1, weight_dropout=0.5, output_dropout=0.3, mask_scope="sequence"),
    "zoneout (Krueger 2016)": dict(zoneout=0.05, cell_zoneout=0.3),
}


class LanguageModel(nn.Module):
    def __init__(self, characters: int, **dropouts: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, EMBEDDING)
        self.lstm = rnndrop.LSTM(EMBEDDING, HIDDEN, **dropouts)
        self.scores = nn.Linear(HIDDEN, characters)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        output, state = self.lstm(self.embedding(x), state)
        return self.scores(output), state


def read_text() -> tuple[Tensor, int]:
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))[: sum(PARTS)]
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    return torch.tensor([numbers[character] for character in text]), len(numbers)


def columns(text: Tensor) -> Tensor:
    """Text in columns that are read side by side, (L, B)."""
    return text[: len(text) // BATCH * BATCH].view(BATCH, -1).t()


def bits(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten()) / math.log(2)


@torch.no_grad()
def evaluate(model: LanguageModel, text: Tensor) -> float:
    model.eval()
    loss = bits(model(text[:-1])[0], text[1:]).item()
    model.train()
    return loss


def train(model: LanguageModel, training: Tensor, validation: Tensor, test: Tensor, steps: int, bar: Any) -> list[list[float]]:
    """Validation and test loss at each point; a piece of text starts in the state where the one before it ended."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    points, start, state = [], 0, None
    for step in range(1, steps + 1):
        if start + TIME >= len(training):
            start, state = 0, None
        scores, state = model(training[start : start + TIME], state)
        state = tuple(part.detach() for part in state)
        optimizer.zero_grad()
        bits(scores, training[start + 1 : start + TIME + 1]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        start += TIME
        if step % POINT == 0:
            points.append([evaluate(model, validation), evaluate(model, test)])
        bar.update()
    return points


def main() -> None:
    arguments = options(__doc__)
    seeds, steps = (range(2), POINT) if arguments.quick else (range(3), 500)
    text, characters = read_text()
    training, validation, test = map(columns, text.split(PARTS))
    rows, curves = [], {}
    with progress(len(seeds) * len(VARIANTS) * steps) as bar:
        for seed in seeds:
            for name, dropouts in VARIANTS.items():
                torch.manual_seed(seed)
                curve = train(LanguageModel(characters, **dropouts), training, validation, test, steps, bar)
                best = min(curve)  # by validation: the step where one would stop
                curves[name, seed] = curve
                row = {"validation at best": best[0], "test there": best[1], "validation at the end": curve[-1][0]}
                rows.append({"variant": name, "seed": seed, **row})
    results = pd.DataFrame(rows)
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for name, colour in zip(VARIANTS, COLOURS, strict=True):
        losses = torch.tensor([curves[name, seed] for seed in seeds])[..., 0]
        at = range(POINT, steps + 1, POINT)
        axes.plot(at, losses.mean(0), color=colour, label=name)
        axes.fill_between(at, losses.amin(0), losses.amax(0), color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="training step", ylabel="validation loss (bits per character)")
    axes.set_title(f"LSTM of {HIDDEN} units on Python's help texts: mean and range of {len(seeds)} seeds")
    finish(axes)
    write(arguments.out, "language_model", figure, results, over_seeds(results, "variant"))


if __name__ == "__main__":
    main()

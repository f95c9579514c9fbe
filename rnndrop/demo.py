"""What dropout inside the recurrence does, in three pictures: an example, a language model and the masks themselves."""

from __future__ import annotations

import json
import math
import platform
import pydoc_data.topics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from . import __version__, dropout_mask
from .modules import GRU, LSTM, RNN

P = 0.2
MODULES: dict[str, tuple[type[nn.RNNBase], Any]] = {"rnn": (nn.RNN, RNN), "lstm": (nn.LSTM, LSTM), "gru": (nn.GRU, GRU)}

# The example: five points of a sine.
EPOCHS = 100

# The language model: small, of little text, so that it overfits in a minute.
CHARACTERS = 50_000
TRAINING_SHARE = 0.8
EMBEDDING, HIDDEN = 64, 192
BATCH, TIME = 16, 64
STEPS, STEPS_A_POINT = 1500, 50
BRIEFLY, BRIEF_VARIANTS = 700, ("no dropout", "recurrent_dropout, per sequence")  # the steps and variants of the other cells
LEARNING_RATE = 3e-3

# Okabe and Ito's colours, distinct to every eye, from the plain to the dropped.
COLOURS = ["#000000", "#E69F00", "#0072B2", "#009E73"]
KEPT, DROPPED = "#56B4E9", "#FFFFFF"

Curves = dict[str, dict[str, Any]]


def run(out: Path, *, cell: str = "rnn", seed: int = 42, quick: bool = False) -> None:
    """Runs the whole demo, all variants of `cell` and two of the others, and writes pictures and metrics.json into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    models, texts = sine_models(*MODULES[cell]), {name: text_models(*modules) for name, modules in MODULES.items()}
    for other in texts.keys() - {cell}:
        texts[other] = {name: texts[other][name] for name in BRIEF_VARIANTS}
    steps = {name: (STEPS if name == cell else BRIEFLY) // (10 if quick else 1) for name in texts}
    total = len(models) * EPOCHS + sum(len(variants) * steps[name] for name, variants in texts.items())
    with one_thread(), progress_bar(total) as progress:
        sine = fit_sine(models, seed, progress)
        curves = {name: fit_text(variants, seed, steps[name], progress) for name, variants in texts.items()}
    matplotlib.use("agg")
    pictures = {"sine.png": plot_sine(sine), "masks.png": plot_masks(seed)}
    pictures |= {f"text-{name}.png": plot_text(text, name) for name, text in curves.items()}
    for name, figure in pictures.items():
        figure.savefig(out / name, dpi=150)
        plt.close(figure)
    metrics = {"cell": cell, "seed": seed, "p": P, "versions": versions(), "sine": sine, "text": curves}
    metrics["seconds"] = round(time.perf_counter() - start, 1)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    for name, text in curves.items():
        print(f"{name.upper()}\n{table(text)}\n")
    print(f"{', '.join(pictures)} and metrics.json are in {out}/, after {metrics['seconds']:.0f} s.")


def progress_bar(total: int) -> tqdm:
    """A bar; where nobody watches a terminal, a line every half a minute."""
    return tqdm(total=total, unit="step", mininterval=0.1 if sys.stderr.isatty() else 30)


@contextmanager
def one_thread() -> Iterator[None]:
    """Products this small gain nothing from a second one, and on a busy machine wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# 1. Five points of a sine, as articles on dropout in RNNs show it.


class SineModel(nn.Module):
    """One value in, one value out, through a recurrent layer and dropout on its last output."""

    def __init__(self, rnn: nn.Module, dropout: float) -> None:
        super().__init__()
        self.rnn = rnn
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)
        return self.linear(self.dropout(output[:, -1]))


def sine_models(plain: Any, dropping: Any) -> dict[str, Callable[[], SineModel]]:
    """By name, of torch.nn's module and of ours."""
    cell = plain.__name__
    return {
        f"nn.{cell}, then nn.Dropout": lambda: SineModel(plain(1, 32, batch_first=True), P),
        f"rnndrop.{cell}(hidden_dropout)": lambda: SineModel(dropping(1, 32, batch_first=True, hidden_dropout=P), 0.0),
    }


def fit_sine(models: dict[str, Callable[[], SineModel]], seed: int, progress: tqdm) -> dict[str, list[float]]:
    """The training loss of each epoch, dropout on, by model."""
    progress.set_description("sine")
    x = np.linspace(0, 10, 5)
    y = np.sin(x) + 0.1 * np.random.default_rng(seed).standard_normal(5)
    inputs, targets = torch.tensor(x, dtype=torch.float32).view(5, 1, 1), torch.tensor(y, dtype=torch.float32).view(5, 1)
    losses: dict[str, list[float]] = {}
    for name, make in models.items():
        torch.manual_seed(seed)
        model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        losses[name] = []
        for _ in range(EPOCHS):
            loss = F.mse_loss(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[name].append(loss.item())
            progress.update()
    return losses


def plot_sine(losses: dict[str, list[float]]) -> Figure:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, curve), colour in zip(losses.items(), [COLOURS[1], COLOURS[2]], strict=True):
        axes.plot(range(1, EPOCHS + 1), curve, color=colour, label=name)
    axes.set(xlabel="epoch", ylabel="training loss (mean squared error)", ylim=(0, None))
    axes.set_title(
        f"Five noisy points of a sine, sequences of length 1, p = {P}\n"
        "With one step nothing is fed back: the same model with other masks"
    )
    return finish(figure, axes)


# 2. A language model of the characters of Python's help texts.


class TextModel(nn.Module):
    """The next character's scores; any recurrent layer with the interface of torch.nn's fits in."""

    def __init__(self, characters: int, rnn: nn.Module, output_dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, EMBEDDING)
        self.rnn = rnn
        self.dropout = nn.Dropout(output_dropout)
        self.scores = nn.Linear(HIDDEN, characters)

    def forward(self, x: Tensor, h: Any) -> tuple[Tensor, Any]:
        output, h = self.rnn(self.embedding(x), h)
        return self.scores(self.dropout(output)), h


def text_models(plain: Any, dropping: Any) -> dict[str, Callable[[int], TextModel]]:
    """By name, of so many characters, of torch.nn's module and of ours."""
    sizes = EMBEDDING, HIDDEN
    return {
        "no dropout": lambda n: TextModel(n, plain(*sizes)),
        "nn.Dropout on the outputs": lambda n: TextModel(n, plain(*sizes), P),
        "hidden_dropout, per step": lambda n: TextModel(n, dropping(*sizes, hidden_dropout=P)),
        "recurrent_dropout, per sequence": lambda n: TextModel(n, dropping(*sizes, recurrent_dropout=P, mask_scope="sequence")),
    }


class Columns(NamedTuple):
    """Text in columns that are read side by side, (L, B), and the character after each."""

    inputs: Tensor
    targets: Tensor


def fit_text(models: dict[str, Callable[[int], TextModel]], seed: int, steps: int, progress: tqdm) -> Curves:
    """The curves of each variant: same text, same initial weights, same order."""
    text, characters = read_text()
    split = int(len(text) * TRAINING_SHARE)
    training, validation = columns(text[:split]), columns(text[split:])
    curves: Curves = {}
    for name, make in models.items():
        progress.set_description(name)
        torch.manual_seed(seed)
        curves[name] = train(make(characters), training, validation, steps, progress)
    return curves


def read_text() -> tuple[Tensor, int]:
    """The beginning of Python's help texts as numbers, and how many different characters it has."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics))[:CHARACTERS]
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    return torch.tensor([numbers[character] for character in text]), len(numbers)


def columns(text: Tensor) -> Columns:
    length = (len(text) - 1) // BATCH
    inputs, targets = (text[shift:][: length * BATCH].view(BATCH, length).t() for shift in (0, 1))
    return Columns(inputs, targets)


def train(model: TextModel, training: Columns, validation: Columns, steps: int, progress: tqdm) -> dict[str, Any]:
    """Adam on truncated sequences; each starts in the state where the one before it ended."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    curve: dict[str, Any] = {"step": [], "training": [], "validation": []}
    losses: list[float] = []
    start, seconds = 0, 0.0
    state: Any = None
    for step in range(1, steps + 1):
        if start + TIME > len(training.inputs):
            start, state = 0, None
        before = time.perf_counter()
        inputs, targets = (part[start : start + TIME] for part in training)
        scores, state = model(inputs, state)
        state = state.detach() if isinstance(state, Tensor) else tuple(part.detach() for part in state)
        loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds += time.perf_counter() - before
        start += TIME
        losses.append(bits(loss))
        if step % STEPS_A_POINT == 0:
            curve["step"].append(step)
            curve["training"].append(sum(losses) / len(losses))
            curve["validation"].append(validate(model, validation))
            losses.clear()
        progress.update()
    best = min(range(len(curve["step"])), key=curve["validation"].__getitem__)
    curve["best"] = {name: curve[name][best] for name in ("step", "training", "validation")}
    curve["training_seconds"] = round(seconds, 2)
    return curve


@torch.no_grad()
def validate(model: TextModel, text: Columns) -> float:
    """Bits per character without dropout."""
    model.eval()
    scores, _ = model(text.inputs, None)
    model.train()
    return bits(F.cross_entropy(scores.flatten(0, 1), text.targets.flatten()))


def bits(loss: Tensor) -> float:
    return loss.item() / math.log(2)


def plot_text(curves: Curves, cell: str) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    colours = dict(zip(text_models(*MODULES[cell]), COLOURS, strict=True))
    for name, curve in curves.items():
        best, colour = curve["best"], colours[name]
        left.plot(curve["step"], curve["training"], color=colour, label=name)
        right.plot(curve["step"], curve["validation"], color=colour, label=f"{name}: {best['validation']:.3f}")
        right.plot(best["step"], best["validation"], "o", color=colour)
    left.set(title="Training, dropout on", xlabel="training step", ylabel="training loss (bits per character)")
    right.set(title="Validation, dropout off: a dot and a number for the best")
    right.set(xlabel="training step", ylabel="validation loss (bits per character)")
    figure.suptitle(f"A character model of Python's help texts, {cell.upper()}, p = {P}")
    finish(figure, left)
    return finish(figure, right)


def table(curves: Curves) -> str:
    """Best and last validation loss of each variant."""
    head = ["bits per character", "best validation", "at step", "last validation", "last training", "ms a step"]
    rows = [head]
    for name, curve in curves.items():
        best, last = curve["best"], curve["step"][-1]
        milliseconds = f"{1000 * curve['training_seconds'] / last:.1f}"
        losses = [f"{curve[part][-1]:.3f}" for part in ("validation", "training")]
        rows.append([name, f"{best['validation']:.3f}", str(best["step"]), *losses, milliseconds])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = [str.ljust, *[str.rjust] * (len(head) - 1)]
    return "\n".join("  ".join(f(cell, w) for f, cell, w in zip(pad, row, widths, strict=True)) for row in rows)


# 3. The masks.


def plot_masks(seed: int, steps: int = 40, units: int = 32) -> Figure:
    """The hidden masks of one sequence, for both scopes: white where a unit is dropped."""
    per_step = dropout_mask(seed, steps, units, P)
    per_sequence = dropout_mask(seed, 1, units, P).expand(steps, units)
    figure, plots = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    colours = matplotlib.colors.ListedColormap([DROPPED, KEPT])
    titles = {
        'mask_scope="step": dropped here, back at the next step': per_step,
        'mask_scope="sequence": the same units at every step': per_sequence,
    }
    for axes, (title, mask) in zip(plots, titles.items(), strict=True):
        axes.pcolormesh(mask.t() > 0, cmap=colours, vmin=0, vmax=1, edgecolors="#FFFFFF", linewidth=0.5)
        axes.set(xlabel="time step", title=title)
    plots[0].set_ylabel("hidden unit")
    kept = matplotlib.patches.Patch(facecolor=KEPT, label=f"kept, times {per_step.max():.2f}")
    dropped = matplotlib.patches.Patch(facecolor=DROPPED, edgecolor="black", label="dropped")
    figure.legend(handles=[kept, dropped], loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"The masks of one sequence, hidden_dropout = {P}")
    return figure


def finish(figure: Figure, axes: Axes) -> Figure:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def versions() -> dict[str, str]:
    modules = {"torch": torch.__version__, "numpy": np.__version__, "matplotlib": matplotlib.__version__}
    return {"rnndrop": __version__, "python": platform.python_version(), **modules}

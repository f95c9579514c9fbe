"""What the examples share: their options, their progress and what they leave behind."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

# Okabe and Ito's colours, distinct to every eye.
COLOURS = ["#000000", "#E69F00", "#0072B2", "#009E73"]


def options(description: str) -> argparse.Namespace:
    """The command line of every example; also one thread (small products gain nothing from more) and no window."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("examples_output"), help="folder for the picture and the table")
    parser.add_argument("--quick", action="store_true", help="smoke size: shows that it runs, and nothing else")
    matplotlib.use("agg")
    torch.set_num_threads(1)
    return parser.parse_args()


def progress(total: int) -> tqdm:
    """A bar; a line every half a minute where nobody watches a terminal."""
    return tqdm(total=total, unit="step", mininterval=0.1 if sys.stderr.isatty() else 30)


def over_seeds(results: pd.DataFrame, by: str) -> pd.DataFrame:
    """Mean and standard deviation over seeds of each other column."""
    columns = results.columns.drop([by, "seed"])
    groups = results.groupby(by, sort=False)[list(columns)]
    return groups.mean().map("{:.3f}".format) + " ± " + groups.std().map("{:.3f}".format)


def write(out: Path, name: str, figure: Figure, results: pd.DataFrame, table: pd.DataFrame) -> None:
    """The picture, every single result, and the table, which is printed too."""
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"{name}.png", dpi=150)
    results.to_csv(out / f"{name}.csv", index=False)
    text = table.to_markdown(disable_numparse=True)
    (out / f"{name}.md").write_text(text + "\n")
    print(f"{text}\n\n{name}.png, .csv and .md are in {out}/.")


def finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)

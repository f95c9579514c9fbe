"""The command line: python -m rnndrop."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import __version__


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rnndrop", description="RNN, LSTM and GRU with dropout inside the recurrence."
    )
    parser.add_argument("--version", action="version", version=f"rnndrop {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)
    demo = commands.add_parser("demo", help="train small models with and without dropout; write pictures and metrics.json")
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the results (default: %(default)s)")
    demo.add_argument(
        "--cell",
        choices=["rnn", "lstm", "gru"],
        default="rnn",
        help="trained longest, before the others (default: %(default)s)",
    )
    demo.add_argument("--seed", type=int, default=42, help="of the weights and the masks (default: %(default)s)")
    demo.add_argument("--quick", action="store_true", help="a tenth of the training steps: whether it runs, not what it learns")
    options = parser.parse_args(arguments)
    try:
        from .demo import run
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "tqdm"):
            raise
        parser.exit(1, f'The demo needs {error.name}. Install it with: pip install "rnndrop[demo]"\n')
    run(options.out, cell=options.cell, seed=options.seed, quick=options.quick)


if __name__ == "__main__":
    main()

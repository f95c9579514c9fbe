"""Each example runs in its smoke size and writes a picture, its single results and a table, all finite."""

import subprocess
import sys
from pathlib import Path

import pytest

pandas = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parent.parent
ROWS = {"sine": 16, "language_model": 8, "uncertainty": 16, "adding": 8, "distributed": 5}


def results(name: str, out: Path):
    command = [sys.executable, "-m", f"examples.{name}", "--quick", "--out", str(out)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert len(run.stderr.splitlines()) < 5  # no terminal, few lines of progress
    assert (out / f"{name}.md").read_text().strip() in run.stdout
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return pandas.read_csv(out / f"{name}.csv")


def test_every_example_is_tested():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} - {"report"} == set(ROWS)


@pytest.mark.parametrize("name", ["sine", "language_model", "uncertainty", "adding"])
def test_results_are_finite_numbers_of_two_seeds(name, tmp_path):
    table = results(name, tmp_path)
    value = table.iloc[:, 2:]
    assert len(table) == ROWS[name] and set(table["seed"]) == {0, 1}
    assert value.notna().all(axis=None) and (value >= 0).all(axis=None) and (value < 100).all(axis=None)


def test_ranks_share_masks_by_seed_and_differ_by_seed_and_rank(tmp_path):
    values = results("distributed", tmp_path).set_index("what")["value"]
    assert len(values) == ROWS["distributed"]
    assert values["share of masks that differ, same seed"] == 0
    assert values["largest difference of the ranks' weights after training"] == 0
    assert 0.3 < values["share of masks that differ, seed + rank"] < 0.54  # 2 p (1 - p) = 0.42 of 720
    assert values["last training loss, rank 0"] != values["last training loss, rank 1"]

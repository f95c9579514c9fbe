from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.contenders.base import BASELINE, OURS
from benchmarks.measure import results
from benchmarks.report import charts
from tests.benchmarks.helpers import result

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --v=0 --window-size=1250,3200 --virtual-time-budget=8000"
COMMITTED = Path(report.__file__).parent.parent / "results"


def test_report_files(smoke: Path) -> None:
    assert {"rows.csv", "environment.json", "report.md", "report.html", "ratios-RNN.png", "growth.png", "memory-LSTM.png"} <= {
        path.name for path in smoke.iterdir()
    }
    text = (smoke / "report.md").read_text()
    for heading in (
        "A training step of GRU with dropout inside, fp32",
        "Growth",
        "Held for",
        "Environment",
        "Not measured",
    ):
        assert re.search(rf"^## .*{heading}", text, re.MULTILINE), heading
    assert "CUDA graphs need CUDA" in text or shutil.which("nvidia-smi")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (smoke / link).exists(), link


def test_html_needs_no_network(smoke: Path) -> None:
    page = (smoke / "report.html").read_text()
    body = page[: page.index("<script>")] + page[page.index("<body>") :]  # without plotly's own source
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page[: page.index("<script>")])
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=[\"'](?!data:)", body)
    assert "{{" not in page[: page.index("<script>")]


def test_html_has_the_charts_and_every_row(smoke: Path) -> None:
    page = (smoke / "report.html").read_text()
    assert page[page.index("<body>") :].count("Plotly.newPlot(") == len(charts.CHARTS)
    table = page[page.index('id="rows"') :]
    assert table.count("<tr") == 1 + len(results.read(smoke))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_html_in_a_browser(smoke: Path, tmp_path: Path) -> None:
    """Offline, no console error, charts drawn, and a click sorts the table."""
    page = tmp_path / "report.html"
    click = """<script>addEventListener("load", () => {
      const table = document.querySelector("#rows table"), heads = [...table.querySelectorAll("th")];
      const column = heads.findIndex(h => h.textContent === "median, ms");
      const read = () => [...table.tBodies[0].rows].map(r => parseFloat(r.cells[column].textContent)).filter(x => x === x);
      heads[column].click(); const up = read(); heads[column].click(); const down = read();
      const sorted = up.every((x, i) => !i || up[i - 1] <= x) && down.every((x, i) => !i || down[i - 1] >= x);
      document.body.dataset.sorted = `${sorted} ${up.length}`;
    });</script>"""
    page.write_text((smoke / "report.html").read_text().replace("</body>", click + "</body>"))
    shot = tmp_path / "report.png"
    options = [*PAGE.split(), f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    dom = subprocess.run([CHROMIUM, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    subprocess.run([CHROMIUM, *options, f"--screenshot={shot}", page.as_uri()], capture_output=True, timeout=120, check=True)
    assert "CONSOLE" not in dom.stderr, [line for line in dom.stderr.splitlines() if "CONSOLE" in line]
    assert len(re.findall(r'class="main-svg"', dom.stdout)) >= len(charts.CHARTS), "charts drawn"
    sorted_, rows = re.search(r'data-sorted="(\w+) (\d+)"', dom.stdout).groups()  # type: ignore[union-attr]
    assert sorted_ == "true" and int(rows) == (results.read(smoke).status == "ok").sum()
    assert shot.stat().st_size > 20_000


def test_the_report_contradicts_auto(tmp_path: Path) -> None:
    seconds = {OURS: 1.0, BASELINE: 1.0, f"{OURS} resident": 0.8}
    folder = result(tmp_path / "a", seconds, seed=5, cases=2)
    report.write(folder)
    assert 'Where another strategy was faster than the one "auto" chose' in (folder / "report.md").read_text()


def test_committed_reports_can_be_read_and_lack_nothing_that_they_link_to() -> None:
    folders = [path.parent for path in COMMITTED.glob("*/rows.csv")]
    assert folders
    for folder in folders:
        assert (results.read(folder).status == "ok").any()
        text = (folder / "report.md").read_text()
        pictures = re.findall(r"\]\(([^)]+)\)", text)
        assert pictures and set(pictures) == {path.name for path in folder.glob("*.png")}
        assert "report.html" not in text or "python -m benchmarks report" in text

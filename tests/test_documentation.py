"""What the README, the pages of docs/ and the docstrings show is run, and the pages are built."""

import doctest
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import rnndrop
from rnndrop.kinds import KINDS
from tests.helpers import assert_near, every_kind, make_rnn

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text() for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")))
}
README = PAGES["README.md"]
REPORT = re.search(r"include\} \.\./(.*)$", PAGES["docs/report.md"], re.M)[1]
CODE = {page: code for page, text in PAGES.items() if (code := re.findall(r"```python\n(.*?)```", text, re.S))}


def table(text, heading):
    """The rows of the table under a heading, a list of cells each."""
    rows = re.search(rf"^{re.escape(heading)}\n\|--.*\n((?:\|.*\n)+)", text, re.M)[1]
    return [row.strip("| ").split(" | ") for row in rows.splitlines()]


KINDS_OF = {
    "README.md": table(README, "| argument | what is dropped | when |"),
    "docs/kinds.md": table(PAGES["docs/kinds.md"], "| argument | what is dropped |"),
}
PAPERS = table(PAGES["docs/kinds.md"], "| from | modules | write |")
CELLS = {"all": ["RNN", "LSTM", "GRU"], "RNN, GRU": ["RNN", "GRU"], "LSTM": ["LSTM"], "LSTM, GRU": ["LSTM", "GRU"]}
WRITTEN = [
    pytest.param(cell, text.strip("`"), id=f"{cell}-{paper.partition(', ')[0]}")
    for paper, cells, text in PAPERS
    for cell in CELLS[cells]
]


@pytest.mark.parametrize("page", CODE)
def test_the_code_of_a_page_runs(page, monkeypatch, tmp_path):
    """From top to bottom, one block after another."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page}
    for block in CODE[page]:
        exec(block, names)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_commands_to_targets(page):
    folder, targets = (ROOT / page).parent, re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]):
        assert link.startswith("https://") or (folder / link).exists(), link
    for target in re.findall(r"(?:^|`)make ([a-z]+)", PAGES[page], re.M):
        assert target in targets, target


def test_the_pages_are_built(tmp_path):
    """As `make docs` builds them: without a warning, with every page, aligned formulae, and nothing that a browser fetches."""
    command = re.search(r"\$\(BIN\)/python -m sphinx (.*) docs_output$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    done = subprocess.run([sys.executable, "-m", "sphinx", *command, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    pages = {path.stem: path.read_text() for path in tmp_path.glob("*.html")}
    assert {Path(page).stem for page in PAGES if page.startswith("docs/")} <= pages.keys()
    for name, text in pages.items():
        assert not re.search(r"""<(?:script|link|img)[^>]*(?:src|href)=["']?(?:https?:)?//""", text), name
    reference = pages["reference"]
    assert reference.count("<math") > 100 and reference.count("<mtable") >= 8
    assert "<mi>&</mi>" not in reference and "\\begin" not in reference


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_the_table_of_times_is_the_reports(cell):
    """Rounded; where a report is replaced, the table has to be."""
    text = PAGES["docs/performance.md"]
    rows = table(text, re.search(rf"^\| T, B, I, H \| `nn.{cell}`.*", text, re.M)[0])
    report = (ROOT / REPORT).read_text()
    section = report[report.index(f"## A training step of {cell} with dropout inside, fp32") :]
    lines = [re.split(r"\s*\|\s*", line.strip("| ")) for line in re.findall(r"^\| .*", section, re.M)]
    names, measured = lines[0], {line[0].removesuffix(f" {cell}"): line for line in lines[1 : len(rows) + 1]}
    shown = "torch.nn", "torch.nn + nn.Dropout", "loop", "loop, compiled", "Keras", "matrix products"
    columns = [names.index(name) for name in shown]
    for case, *ratios in rows:
        sizes = case.split(", ")
        line = measured[case if len(sizes) == 1 else "-".join(map("".join, zip("TBIH", sizes, strict=True)))]
        for ratio, column in zip(ratios, columns, strict=True):
            assert ratio == line[column] == "\N{EN DASH}" or abs(float(ratio.strip("*")) - float(line[column])) <= 0.0051, (
                case,
                ratio,
            )
    means, readme = (
        [ratio.strip("*") for ratio in rows[-1][1:]],
        table(README, "| a training step | of `torch.nn`'s layer | of a loop |"),
    )
    assert [f"`{cell}`", f"**{means[0]}**", means[2]] in readme


def test_every_page_shows_the_same_report():
    shown = {name for text in PAGES.values() for name in re.findall(r"benchmarks/results/[\w-]+", text)}
    assert shown == {str(Path(REPORT).parent)}


@pytest.mark.parametrize("page", KINDS_OF)
def test_a_table_has_every_argument(page):
    """And says which cells have it."""
    arguments = [argument for argument, *_ in KINDS_OF[page]]
    names = [re.match(r"`(\w+)=", argument)[1] for argument in arguments]
    assert sorted(names) == sorted([kind.argument for kind in KINDS.values()] + ["mask_scope"])
    for name, argument in zip(names, arguments, strict=True):
        only = re.search(r" \((.*)\)$", argument)
        having = [cell for cell in CELLS["all"] if name == "mask_scope" or name in every_kind(cell)]
        assert having == CELLS[only[1] if only else "all"], argument
    example = re.search(r"a mapping, `(.*?)`", PAGES[page])[1]
    make_rnn(mask_scope=eval(example))


def test_the_table_of_the_mask_stream_has_every_kind():
    rows = table(PAGES["docs/masks.md"], "| kind | number | columns |")
    assert {kind.strip("`"): int(number) for kind, number, _ in rows} == {name: kind.number for name, kind in KINDS.items()}


def test_every_paper_is_there():
    names = "Zaremba", "Pham", "Gal", "Keras", "Wan", "Merity", "Krueger", "Moon", "Semeniuta"
    assert all(any(paper.startswith(name) for paper, *_ in PAPERS) for name in names)


@pytest.mark.parametrize(("cell", "written"), WRITTEN)
def test_what_is_written_for_a_paper_is_what_drops(cell, written):
    """Its arguments are the constructor's, and each of them drops."""
    rates = eval(f"dict({written})", {"p": 0.5, "q": 0.25})
    rnn = make_rnn(cell, num_layers=2, **rates)
    assert {name: getattr(rnn, name) for name in rates} == rates
    x = torch.randn(5, 3, rnn.input_size, dtype=torch.float64)
    whole = rnn(x, seed=1)[0]
    for name in rates.keys() - {"mask_scope"}:
        assert not torch.equal(make_like(rnn, cell, **rates | {name: 0.0})(x, seed=1)[0], whole), name
    if "mask_scope" in rates:
        assert not torch.equal(make_like(rnn, cell, **rates | {"mask_scope": "step"})(x, seed=1)[0], whole)


def make_like(rnn, cell, **rates):
    other = make_rnn(cell, num_layers=2, **rates)
    other.load_state_dict(rnn.state_dict())
    return other


PUBLIC = [value for module in (rnndrop, rnndrop.functional) for value in vars(module).values() if callable(value)]
EXAMPLES = {
    each: examples
    for each in PUBLIC
    if each.__module__.startswith("rnndrop.") and (examples := doctest.DocTestParser().get_examples(each.__doc__ or ""))
}


@pytest.mark.parametrize("public", EXAMPLES, ids=lambda public: public.__name__)
def test_the_examples_of_a_docstring_run(public):
    names = {"torch": torch, "rnndrop": rnndrop, "model": rnndrop.RNNCell(3, 5), "x": torch.randn(2, 3)}
    for example in EXAMPLES[public]:
        assert not example.want, "what comes is not compared"
        exec(example.source, names)


def test_the_code_in_the_docstring_is_what_the_module_computes():
    code = textwrap.dedent(re.search(r"\.\. code-block:: python\n(.*?)\n    Args:", rnndrop.RNN.__doc__, re.S)[1])
    sizes = dict(input_size=4, hidden_size=17, num_layers=3, L=5, N=2, seed=7)
    rates = dict(d=0.3, i=0.35, p=0.2, q=0.4, o=0.25, w=0.15, z=0.45)
    names = {**sizes, **rates, "torch": torch, "rnndrop": rnndrop}
    exec(code, names)
    x, h = torch.randn(5, 2, 4), torch.randn(3, 2, 17)
    rnn = names["rnn"]
    assert {getattr(rnn, name) for name in every_kind("RNN")} == set(rates.values())
    for actual, expected in zip(rnn(x, h, seed=7), names["forward"](x, h), strict=True):
        assert_near(actual, expected)

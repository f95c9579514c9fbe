"""What a package index shows."""

import re
import subprocess
import sys
from email import message_from_string
from pathlib import Path

import pytest

import rnndrop

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    folder = tmp_path_factory.mktemp("egg")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return message_from_string((folder / "rnndrop.egg-info/PKG-INFO").read_text())


def test_licence_and_pythons(metadata):
    assert metadata["License-Expression"] == "MIT" and metadata["License-File"] == "LICENSE" and "License" not in metadata
    pythons = [c.rpartition(" ")[2] for c in metadata.get_all("Classifier") if re.search(r":: 3\.\d+$", c)]
    assert pythons == ["3.11"]  # the one that CI runs
    assert metadata["Requires-Python"] == ">=3.10" and 'target-version = "py310"' in (ROOT / "pyproject.toml").read_text()


def test_urls(metadata):
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL"))
    assert set(urls) == {"Source", "Issues", "Changelog"} and all(url.startswith(urls["Source"]) for url in urls.values())
    assert metadata["Version"] == rnndrop.__version__
    citation = dict(re.findall(r"^([a-z-]+): (.+)$", (ROOT / "CITATION.cff").read_text(), re.M))
    assert citation["version"] == rnndrop.__version__ and citation["repository-code"] == urls["Source"]
    assert (ROOT / "CHANGELOG.md").read_text().startswith(f"# Changelog\n\n## {rnndrop.__version__} ")


def test_the_extra_takes_the_triton_of_older_pytorch(metadata):
    """2.11 brings Triton 3.6."""
    (line,) = [line for line in metadata.get_all("Requires-Dist") if line.startswith("triton") and 'extra == "triton"' in line]
    specifier = pytest.importorskip("packaging.requirements").Requirement(line).specifier
    assert all(version in specifier for version in ("3.4.0", "3.6.0", "3.7.1", "3.9.0")) and "3.3.1" not in specifier


def test_links_and_pictures_work_off_the_repository(metadata):
    """Each is an address, of a file that is here and of this version."""
    text, repository = metadata.get_payload(), dict(u.split(", ") for u in metadata.get_all("Project-URL"))["Source"]
    links = re.findall(r"(!?)\[[^]]*\]\(([^)]*)\)", text)
    assert {picture for picture, _ in links} == {"", "!"}
    for picture, target in links:
        assert target.startswith("https://"), target
        if target.startswith(repository):
            kind, version, path = target.removeprefix(repository + "/").split("/", 2)
            assert kind == ("raw" if picture else "blob") and version == f"v{rnndrop.__version__}"
            assert (ROOT / path).exists(), path

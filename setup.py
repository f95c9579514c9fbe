"""What is installed. The folder kernels/ becomes rnndrop.kernels, because PyPI has another package named kernels."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "rnndrop/__init__.py").read_text(), re.MULTILINE)[1]
README = HERE / "README.md"
REPOSITORY = "https://github.com/rnndrop/rnndrop"


def long_description() -> str:
    """README.md with links and pictures that work off the repository: those of files become addresses of this version's."""
    text = README.read_text() if README.exists() else ""
    text = re.sub(r"(!\[[^]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/raw/v{VERSION}/", text)
    return re.sub(r"((?<!!)\[[^]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/blob/v{VERSION}/", text)


TRITON = "triton>=3.4; platform_system == 'Linux'"  # the oldest that the kernels run on; PyTorch's CUDA wheels bring theirs
DEMO = ["matplotlib>=3.8", "tqdm>=4.60"]
EXAMPLES = [*DEMO, "pandas>=2", "tabulate>=0.9"]
TIMING = ["pytest>=8", "pytest-benchmark>=4"]
BENCH = [*EXAMPLES, *TIMING, TRITON, "keras>=3", "plotly>=5", "typer>=0.12"]
DOCS = ["furo>=2024.8", "latex2mathml>=3.77", "myst-parser>=4", "sphinx>=8"]
TYPES = ["mypy>=1.11"]
EXTRAS = {
    "triton": [TRITON],
    "demo": DEMO,
    "examples": EXAMPLES,
    "test": [
        *BENCH,
        *["build>=1", "setuptools>=77", "wheel"],  # test_packaging builds a wheel
        *[*DOCS, *TYPES, "basedpyright>=1.30", "twine>=6"],  # the pages, a user's types, and what a package index shows
        *["expecttest>=0.2", "hypothesis>=6.100", "pytest-xdist>=3.6"],
        *["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.5"],  # what an export gives
    ],
    "bench": BENCH,
    "docs": DOCS,
    "dev": [*TYPES, "ruff>=0.6"],
}

setup(
    name="rnndrop",
    version=VERSION,
    description="RNN, LSTM and GRU for PyTorch with dropout inside the recurrence",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    url=REPOSITORY,
    project_urls={
        "Source": REPOSITORY,
        "Issues": f"{REPOSITORY}/issues",
        "Changelog": f"{REPOSITORY}/blob/v{VERSION}/CHANGELOG.md",
    },
    author="The rnndrop authors",
    license_expression="MIT",
    license_files=["LICENSE"],
    keywords=["pytorch", "rnn", "lstm", "gru", "dropout", "zoneout", "triton"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        *[f"Programming Language :: Python :: {version}" for version in ("3", "3.11")],
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    # What the code calls is in these versions' documentation; constraints.txt has those it is tested with.
    python_requires=">=3.10",
    install_requires=["torch>=2.4", "numpy>=1.26", "typing-extensions>=4.6"],
    extras_require=EXTRAS,
    packages=["rnndrop", "rnndrop.backends", "rnndrop.backends.cpu", "rnndrop.kernels", "rnndrop.modules", "rnndrop.ops"],
    package_dir={"rnndrop.kernels": "kernels"},
    package_data={"rnndrop": ["py.typed"]},
    py_modules=[],
    zip_safe=False,
)

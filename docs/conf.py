"""Sphinx: `make docs`. Pages are Markdown, the reference is the docstrings, formulae are MathML: nothing is fetched."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parent.parent))

import rnndrop

project = "rnndrop"
author = copyright = "The rnndrop authors"
REPOSITORY = "https://github.com/rnndrop/rnndrop"
version = release = rnndrop.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nitpicky = True
nitpick_ignore_regex = [("py:attr", r"\w+")]  # an argument of the class at hand
napoleon_custom_sections = ["Returns"]  # a sentence, not a type and a colon
html_math_renderer = "mathml"

html_theme = "furo"
html_static_path, html_css_files = ["static"], ["style.css"]
html_title = f"rnndrop {version}"
html_copy_source = html_show_sphinx = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have them in words


def link_to_files(app: Any, page: str, source: list[str]) -> None:
    """A link to a file of the repository leads there: on the pages it is no neighbour."""
    source[0] = re.sub(r"((?<!!)\[[^]]*\]\()\.\./", rf"\1{REPOSITORY}/blob/v{version}/", source[0])


def mathml(latex: str, display: str) -> str:
    """A formula as browsers show it, without a script."""
    latex = latex.replace("{aligned}", "{split}").replace(r"\_", "_")  # in the words of latex2mathml
    prime = "&#x02032;"  # which is raised by itself
    raised, level = f"<msup>(<mi>.</mi>)<mi>{prime}</mi></msup>", rf'<mrow>\1<mo lspace="0" rspace="0">{prime}</mo></mrow>'
    return re.sub(raised, level, convert(latex, display=display))


def visit_inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def of_torch(app: Any, env: Any, node: Any, content: nodes.Node) -> nodes.reference | None:
    """A name of PyTorch's leads to its documentation."""
    name = node.get("reftarget", "")
    if not re.fullmatch(r"torch(\.\w+)+", name):
        return None
    address = f"https://docs.pytorch.org/docs/stable/generated/{name}.html"
    return nodes.reference("", "", content, refuri=address, internal=False)


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))
    app.connect("source-read", link_to_files)
    app.connect("missing-reference", of_torch)

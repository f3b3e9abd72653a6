"""Sphinx settings. The reference is made from the installed package, so it must import."""

import sys
from importlib import metadata
from pathlib import Path

import mouso

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Mouso"
author = "The Mouso contributors"
copyright = f"2026, {author}"
release = version = metadata.version(mouso.__name__)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "mouso_reference"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

smartquotes = False  # commands and options must stay as they are typed

html_theme = "furo"
html_title = "Mouso"
html_static_path = ["_static"]
html_css_files = ["mouso.css"]

myst_enable_extensions = ["colon_fence", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Guarantees", "returns_style")]

"""Sphinx settings. The reference is made from the installed package, so it must import."""

from importlib import metadata

import mouso

project = "Mouso"
author = "The Mouso contributors"
copyright = f"2026, {author}"
release = version = metadata.version(mouso.__name__)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "Mouso"

myst_enable_extensions = ["colon_fence", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Guarantees", "returns_style")]

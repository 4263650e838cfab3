"""Settings of the documentation; the reference pages of commands and settings are generated before every build."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generate import write_reference

project = "cryoscan"
author = "cryoscan developers"
copyright = "2026, cryoscan developers"  # noqa: A001 - Sphinx's name
version = release = installed_version("cryoscan")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "changes"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the signature and the docstring say it already
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = "cryoscan"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
html_show_sourcelink = False


def setup(app) -> None:
    """Generate what is generated, whatever the builder."""
    app.connect("builder-inited", lambda app: write_reference(Path(app.srcdir) / "reference" / "generated"))

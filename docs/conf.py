"""The documentation site: `sphinx-build -W --keep-going -b html docs build/docs`, or `nox -s docs`."""

import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

project = "keepnorm"
author = "The keepnorm developers"
copyright = "the keepnorm developers, BSD-3-Clause"
try:
    release = metadata.version("keepnorm").partition("+")[0]
except metadata.PackageNotFoundError:  # built from a checkout that is not installed
    release = ""

extensions = [
    "sphinx.ext.autodoc",
    "myst_parser",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "cube_directive",
]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "keepnorm"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
pygments_style = "default"
pygments_dark_style = "github-dark"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

numpydoc_show_class_members = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
nitpicky = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

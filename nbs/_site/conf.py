"""The documentation site: Sphinx over the notebooks, with the outputs stored in them (nothing is run).

python -m sphinx -W --keep-going -b html -c nbs/_site nbs _docs/html
"""

import gc
import sys
from pathlib import Path
from unittest.mock import patch

from myst_parser.mdit_to_docutils import base

import calami

sys.path.insert(0, str(Path(__file__).parent))

render_rst = base.DocutilsRenderer.render_restructuredtext


def unpadded(self, token):
    """
    Parse a block of reStructuredText without as many blank lines before it as its line number says.

    The cells of a notebook are numbered from 10,000, 20,000, …: on long pages that takes minutes and gigabytes.
    """
    with patch.object(base, "token_line", lambda *_: 0):
        render_rst(self, token)


base.DocutilsRenderer.render_restructuredtext = unpadded

project = "calami"
author = "The calami developers"
copyright = f"2026, {author}"
version = release = calami.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "numpydoc", "nbdev_pages", "nbdev_links", "mathml"]
default_role = "obj"  # a name in backticks in a docstring leads to its reference
smartquotes = False  # an option is typed as --peaks, not with a dash
exclude_patterns = ["_*", "**/_*", "**/.*"]
root_doc = "index"
templates_path = ["_templates"]
html_static_path = ["_static"]

# Notebooks
nb_execution_mode = "off"
nb_merge_streams = True
# A figure without a recorded size is still kept to the width of the text (see calami.css).
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Docstrings: numpydoc states the types, so signatures stay short.
add_module_names = False
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# Pages that need nothing from the network
html_theme = "pydata_sphinx_theme"
html_math_renderer = "mathml"
html_title = f"calami {version}"
html_css_files = ["calami.css"]
html_js_files = ["enlarge.js"]
html_search_scorer = str(Path(__file__).parent / "_static" / "scorer.js")
html_copy_source = False
html_show_sourcelink = False
html_sidebars = {"**": ["contents.html"]}
html_theme_options = {
    "logo": {"text": "calami"},
    "navbar_align": "right",
    "navbar_center": [],
    "navbar_persistent": [],
    "navbar_end": ["search-button", "theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}

# Trees of pages are read as many objects at once, each time setting off a walk through all others: 0.85 GB at most so.
gc.set_threshold(200_000, 20, 100)

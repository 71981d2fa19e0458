# SPDX-License-Identifier: Apache-2.0
"""The documentation's site: make docs."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "pageferry"
author = "the pageferry authors"
release = (HERE.parent / "VERSION").read_text().strip()
version = release
root_doc = "index"

extensions = ["myst_parser", "sphinx.ext.autodoc", "c_header", "command_help", "rest_of_package"]
exclude_patterns = ["man", "_build"]

html_theme = "furo"
html_title = f"pageferry {release}"
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_use_legacy_class_based = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False

"""Sphinx: `make docs` builds docs/_build/html."""
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = 'mmrest'
release = re.search("'(.+)'", (ROOT / 'mmrest/version.py').read_text())[1]
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'mmrest {release}'
myst_heading_anchors = 3
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # docstrings say it
# Links to folders and Markdown files of the repository that are no pages.
suppress_warnings = ['myst.xref_missing']

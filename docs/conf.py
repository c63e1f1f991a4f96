"""Sphinx: `make docs` builds docs/_build/html."""
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

project, copyright = 'mmrest', 'the mmrest authors'
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

# Files of the repository that end a page of the documentation.
APPENDED = {'mmrest/ops/emsa/README.md': 'design', 'mmcv_ops/README.md': 'install',
            'SECURITY.md': 'weights', **{
    f'configs/{name}/README.md': 'weights' for name in (
        'classification', 'faster_rcnn', 'mask_rcnn', 'retinanet', 'semantic_fpn', 'upernet')}}


def append(app, page, source):
    """What GitHub shows as links to other files is part of a page in HTML."""
    for path, owner in APPENDED.items():
        if page == owner:
            source[0] += (f'\n```{{include}} ../{path}\n:heading-offset: 1\n'
                          f":relative-docs: {'../' * path.count('/')}docs/\n```\n")
        title = (ROOT / path).read_text().partition('\n')[0].removeprefix('# ')
        anchor = re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
        source[0] = source[0].replace(f'(../{path})', f'({owner}.md#{anchor})')
        source[0] = source[0].replace(f'(../{path}#', f'({owner}.md#')


def setup(app):
    app.connect('source-read', append)

"""Configuration of the site; `python docs/build.py` makes it."""

import os
import pathlib
import sys

ROOT = pathlib.Path(os.environ['FMTL_JAX_ROOT'])  # Of `docs/build.py`.
sys.path.insert(0, str(ROOT))

import experiments  # noqa: E402, F401, which gives its modules both names.
from docs.making import api_pages  # noqa: E402
from fmtl_jax.version import __version__  # noqa: E402

for _name, _module in api_pages.modules().items():
  sys.modules.setdefault(_name, _module)  # Also those that are not there yet.

project = 'fmtl_jax'
release = __version__
author = 'the authors of fmtl_jax'
copyright = author
html_title = 'fmtl_jax'
extensions = [
  'myst_nb',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx_design',
  'docs.making.mathml',
  'docs.making.site_links',
]
exclude_patterns = ['made/**', '**/*.py']
default_role = 'py:obj'

myst_enable_extensions = ['attrs_inline', 'colon_fence', 'dollarmath']
myst_heading_anchors = 3
nb_execution_mode = 'off'

autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 60
pygments_style = 'friendly'

html_theme = 'sphinx_book_theme'
html_static_path = ['static']
html_css_files = ['site.css']
html_math_renderer = 'mathml'
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
  'collapse_navbar': True,
  'home_page_in_toc': True,
  'footer_content_items': ['copyright.html'],
  'show_toc_level': 2,
  'use_download_button': False,
  'use_fullscreen_button': False,
}

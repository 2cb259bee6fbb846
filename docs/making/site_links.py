"""Sphinx's part: docstrings as they are written here, and links from names.

What pages have in backticks is a link where it names something: a public name
(`fmtl_jax.Federation`, `algorithms.build`), a class of laws
(`ditto_test.DittoTest`).
"""

import re
from typing import Any

from docutils import nodes
import sphinx.application
from sphinx.util import nodes as sphinx_nodes

from docs.making import api_pages
from docs.making import law_pages

_NAME = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)+')
# Parts of a docstring that napoleon reads.
_SECTION = re.compile(r'(Args|Attributes|Raises|Returns|Yields|References):$')


def plain_docstring(
  unused_app: Any,
  unused_what: str,
  unused_name: str,
  unused_value: Any,
  unused_options: Any,
  lines: list[str],
) -> None:
  """Escapes what is no markup; before napoleon, sections stay."""
  found: list[str] = []
  prose: list[str] = []
  in_section = False
  for line in lines:
    if _SECTION.match(line):
      found += [*api_pages.as_rst('\n'.join(prose)).split('\n'), '', line]
      prose, in_section = [], True
    elif in_section and line.startswith(' '):
      found.append(api_pages.escaped(line))
    elif in_section and not line.strip():
      found.append('')
    else:
      in_section = False
      prose.append(line)
  if prose:
    found += ['', *api_pages.as_rst('\n'.join(prose)).split('\n')]
  lines[:] = found


def link_names(
  app: sphinx.application.Sphinx, doctree: nodes.document, docname: str
) -> None:
  """Makes links of names in backticks that are known."""
  objects = app.env.domains['py'].data['objects']
  labels = app.env.domains['std'].data['anonlabels']
  for literal in list(doctree.findall(nodes.literal)):
    text = literal.astext()
    if isinstance(literal.parent, (nodes.reference, nodes.title)):
      continue
    if not _NAME.fullmatch(text):
      continue
    place = labels.get(law_pages.target(text), ())[:2]
    for name in (text, f'fmtl_jax.{text}'):
      if name in objects:
        place = (objects[name].docname, objects[name].node_id)
    if len(place) == 2 and place[0] != docname:
      literal.replace_self(
        sphinx_nodes.make_refnode(
          app.builder, docname, place[0], place[1], literal.deepcopy()
        )
      )


def setup(app: sphinx.application.Sphinx) -> dict[str, Any]:
  """Connects both."""
  app.connect('autodoc-process-docstring', plain_docstring, priority=100)
  app.connect('doctree-resolved', link_names)
  return {'parallel_read_safe': True, 'parallel_write_safe': True}

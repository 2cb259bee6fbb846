"""A renderer of mathematics that needs no script and no network: MathML.

Browsers draw MathML themselves; the pages hold what they draw.
"""

from typing import Any

from docutils import nodes
from latex2mathml import converter
import sphinx.application


def convert(tex: str, display: str = 'inline') -> str:
  """TeX as an element `math`.

  Args:
    tex: Without dollars.
    display: `inline` or `block`.
  """
  return converter.convert(tex, display=display)


def _visit_inline(writer: Any, node: nodes.math) -> None:
  writer.body.append(convert(node.astext()))
  raise nodes.SkipNode


def _visit_display(writer: Any, node: nodes.math_block) -> None:
  block = convert(node.astext(), 'block')
  writer.body.append(f'<div class="display-math">{block}</div>\n')
  raise nodes.SkipNode


def setup(app: sphinx.application.Sphinx) -> dict[str, Any]:
  """Makes it the renderer `mathml`."""
  app.add_html_math_renderer(
    'mathml', (_visit_inline, None), (_visit_display, None)
  )
  return {'parallel_read_safe': True, 'parallel_write_safe': True}

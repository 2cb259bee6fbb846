"""What tests of figures do: they look at what was drawn, and saved."""

import itertools
import pathlib
import struct
import tempfile
from unittest import mock
import warnings

from absl.testing import parameterized
from matplotlib import figure as figure_lib
from matplotlib import text as text_lib


def _overlaps(boxes):
  """The pairs of boxes that share more than a pixel's edge."""
  return [
    (a, b)
    for a, b in itertools.combinations(boxes, 2)
    if min(a.x1, b.x1) - max(a.x0, b.x0) > 1
    and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
  ]


def _folder(test):
  """A new folder, removed after the test."""
  return pathlib.Path(test.enterContext(tempfile.TemporaryDirectory()))


class DrawnTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = _folder(self) / 'figure.png'
    self.enterContext(warnings.catch_warnings())
    warnings.simplefilter('error')

  def drawn(self, draw, *args, **settings):
    """The figure that a function writes, and checks that it is a picture."""
    saved = []
    save = figure_lib.Figure.savefig

    def savefig(figure, *args, **kwargs):
      save(figure, *args, **kwargs)
      saved.append(figure)

    with mock.patch.object(figure_lib.Figure, 'savefig', savefig):
      draw(self.path, *args, **settings)
    (figure,) = saved
    head = self.path.read_bytes()[:24]
    self.assertEqual(head[1:4], b'PNG')
    self.assertGreaterEqual(struct.unpack('>I', head[16:20])[0], 1200)
    return figure

  def check_nothing_overlaps(self, figure):
    texts, frames = [*figure.texts], []
    for axes in figure.axes:
      frames.append(axes.get_window_extent())
      texts += [c for c in axes.get_children() if isinstance(c, text_lib.Text)]
      for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        texts.append(axis.label)
        texts += [
          tick.label1
          for tick in axis.get_major_ticks()
          if low <= tick.get_loc() <= high
        ]
    legends = [legend.get_window_extent() for legend in figure.legends]
    boxes = [t.get_window_extent() for t in texts if t.get_text()]
    self.assertEmpty(_overlaps(boxes + legends))
    for legend in legends:
      self.assertEmpty([f for f in frames if _overlaps([f, legend])])
    for box in boxes + legends:
      self.assertGreaterEqual(min(box.x0, box.y0), -1)
      self.assertLessEqual(box.x1, figure.bbox.x1 + 1)
      self.assertLessEqual(box.y1, figure.bbox.y1 + 1)

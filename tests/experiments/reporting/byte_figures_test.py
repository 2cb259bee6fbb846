"""Laws of figures of a metric against bytes."""

from absl.testing import absltest
import numpy as np

from experiments.reporting import byte_figures
from tests.experiments.reporting import drawn_figures

_DOTS = [
  byte_figures.Dot('a', '', 4096.0, 7.0, 90.0, 1.0),
  byte_figures.Dot('b', '4', 512.0, 7.0, 89.0, np.nan),
  byte_figures.Dot('b', '2', 256.0, 7.0, 88.0, 0.5),
  byte_figures.Dot('b', '1', 128.0, 7.0, np.nan, 0.5),
]


class ByBytesTest(drawn_figures.DrawnTestCase):
  def test_dots_stand_at_their_bytes_and_those_of_a_label_are_joined(self):
    figure = self.drawn(byte_figures.by_bytes, _DOTS, 'accuracy (%)')
    (axes,) = figure.axes
    lines = [bars.lines[0] for bars in axes.containers]
    self.assertEqual([bars.get_label() for bars in axes.containers], ['a', 'b'])
    np.testing.assert_array_equal(lines[1].get_xdata(), [256, 512])
    np.testing.assert_array_equal(lines[1].get_ydata(), [88, 89])
    self.assertEqual([t.get_text() for t in axes.texts], ['2', '4'])
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    self.assertEqual(ticks, ['256 B', '512 B', '1 KiB', '2 KiB', '4 KiB'])
    self.check_nothing_overlaps(figure)

  def test_where_all_move_as_much_there_is_none(self):
    dots = [dot._replace(up=1.0) for dot in _DOTS]
    self.assertFalse(byte_figures.by_bytes(self.path, dots, 'accuracy'))
    self.assertFalse(self.path.exists())

  def test_who_moves_nothing_is_left_out(self):
    nothing = _DOTS[0]._replace(label='own', up=0.0, down=0.0)
    for dots in ([nothing, *_DOTS], [nothing._replace(down=7.0), *_DOTS]):
      figure = self.drawn(byte_figures.by_bytes, dots, 'accuracy (%)')
      (axes,) = figure.axes
      self.assertEqual([b.get_label() for b in axes.containers], ['a', 'b'])
      self.assertEndsWith(axes.get_xlabel(), ', up')

  def test_where_some_are_sent_less_both_ways_count(self):
    dots = [_DOTS[0]._replace(down=0.0), *_DOTS[1:]]
    figure = self.drawn(byte_figures.by_bytes, dots, 'accuracy (%)')
    (axes,) = figure.axes
    self.assertEndsWith(axes.get_xlabel(), 'up and down')
    line = axes.containers[1].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [263, 519])

  def test_points_that_differ_by_a_field_that_does_nothing_have_no_note(self):
    dots = [*_DOTS[:3], _DOTS[2]._replace(note='3')]
    figure = self.drawn(byte_figures.by_bytes, dots, 'accuracy (%)')
    self.assertEqual([t.get_text() for t in figure.axes[0].texts], ['4'])


class DotsTest(absltest.TestCase):
  def test_of_points(self):
    row = {
      'case': 'fedavg',
      'settings': {'compression.common': 'eden', 'compression.bits': 2.0},
      'final': 90.0,
      'std': None,
      'bytes': {'up': 10.0, 'down': 20.0},
    }
    rows = [row, row | {'final': None}, row | {'bytes': {}}]
    (dot,) = byte_figures.of_points(rows, {'fedavg': 'FedAvg'})
    self.assertEqual(dot[:5], ('FedAvg, eden', '2.0', 10.0, 20.0, 90.0))
    self.assertTrue(np.isnan(dot.std))


if __name__ == '__main__':
  absltest.main()

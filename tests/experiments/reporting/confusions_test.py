"""Laws of confusion matrices: shares of a class, means over seeds."""

import numpy as np

from absl.testing import absltest

from experiments.reporting import confusions
from tests.experiments.reporting import drawn_figures
from tests.experiments.reporting import toy_records

TASKS = ('two', 'three')


def _record(case='a', tasks=TASKS):
  """Two seeds; the first task has two classes, the others have three."""
  record = toy_records.last(case, 90.0, 90.0, tasks=tasks)
  for i in range(3):
    for j in range(3):
      shares = [10.0 * i + j] * (len(tasks) + 1)
      if 2 in (i, j):
        shares[0] = None
      record['curve']['values'][f'test/pooled/confusion_{i}_{j}'] = [
        [shares, [s if s is None else s + 2 for s in shares]]
      ]
  return record


class MatricesTest(drawn_figures.DrawnTestCase):
  def test_a_row_is_a_class(self):
    found = confusions.matrix(_record(), 'test', 'pooled', 1)
    np.testing.assert_array_equal(
      found, [[1, 2, 3], [11, 12, 13], [21, 22, 23]]
    )
    self.assertEqual(
      confusions.matrix(_record(), 'test', 'pooled', 0).tolist(),
      [[1, 2], [11, 12]],
    )

  def test_a_task_has_a_panel_of_its_own(self):
    figure = self.drawn(confusions.matrices, [_record()])
    shown = [[t.get_text() for t in axes.texts] for axes in figure.axes]
    self.assertEqual(shown[0], ['1.0', '2.0', '11.0', '12.0'])
    self.assertLen(shown[1], 9)
    self.check_nothing_overlaps(figure)

  def test_of_several_cases_it_is_the_mean(self):
    figure = self.drawn(confusions.matrices, [_record('a'), _record('b')])
    titles = [axes.get_title(loc='left') for axes in figure.axes]
    self.assertEqual(titles, ['A', 'B'])

  def test_without_such_metrics_there_is_none(self):
    record = toy_records.last('a', 90.0)
    self.assertFalse(confusions.matrices(self.path, [record]))
    self.assertFalse(self.path.exists())


if __name__ == '__main__':
  absltest.main()

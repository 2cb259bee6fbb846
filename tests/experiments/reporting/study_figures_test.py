"""Laws of figures of studies: who is best is at the top, and has a label."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.reporting import study_figures
from tests.experiments.reporting import drawn_figures


def _rows(count):
  """Algorithms as of `comparison_reports.summarize`; the first one diverged."""
  rng = np.random.default_rng(count)
  fields = ('mean', 'std', 'worst_decile', 'worst_decile_std')
  rows = [
    {
      'case': f'a{number}',
      'label': f'An algorithm with a label, {number}',
      'learning_rate': 0.1 if number else None,
      'points': 3,
      'seeds': [0, 1],
      'diverged_seeds': [],
    }
    | dict(
      zip(fields, rng.uniform((90, 1, 60, 2), (99, 2, 80, 5)), strict=True)
    )
    for number in range(count)
  ]
  return [rows[0] | dict.fromkeys(fields), *rows[1:]]


def _comparison(path, rows):
  study_figures.comparison(
    path, rows, reference='a1', title='Toy: accuracy (%)'
  )


class ComparisonTest(drawn_figures.DrawnTestCase):
  def test_algorithms_are_ordered_dots_and_those_that_diverged_are_last(self):
    rows = _rows(6)
    figure = self.drawn(
      study_figures.comparison, rows, reference='a1', title='Toy'
    )
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    wanted = sorted(rows[1:], key=lambda row: -row['mean'])
    self.assertEqual(names, [row['label'] for row in (*wanted, rows[0])])
    for axes, name in zip(figure.axes, ('mean', 'worst_decile'), strict=True):
      line, dots = axes.get_lines()
      self.assertEqual(set(line.get_xdata()), {rows[1][name]})
      np.testing.assert_array_equal(dots.get_ydata(), range(6))
      np.testing.assert_allclose(
        dots.get_xdata(), [*(row[name] for row in wanted), np.nan]
      )
      (bars,) = axes.collections
      ends = [path.vertices[:, 0] for path in bars.get_paths()]
      for (low, high), row in zip(ends, wanted, strict=False):
        std = row[f'{name}_std'] if name != 'mean' else row['std']
        self.assertAlmostEqual((high - low) / 2, std)
      self.assertEqual([t.get_text() for t in axes.texts], ['diverged'])

  def test_a_lower_loss_is_above_a_higher_one(self):
    rows = _rows(6)
    figure = self.drawn(
      study_figures.comparison, rows, reference='a1', metric='loss'
    )
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    wanted = sorted(rows[1:], key=lambda row: row['mean'])
    self.assertEqual(names[:-1], [row['label'] for row in wanted])

  @parameterized.parameters(1, 3)
  def test_algorithms_may_all_have_diverged(self, count):
    rows = [_rows(1)[0] | {'label': str(n)} for n in range(count)]
    figure = self.drawn(study_figures.comparison, rows, reference='a0')
    self.assertLen(figure.axes[0].texts, count)

  @parameterized.parameters(2, 28)
  def test_no_label_hides_another(self, count):
    self.check_nothing_overlaps(self.drawn(_comparison, _rows(count)))


class HeldOutTest(drawn_figures.DrawnTestCase):
  def test_lines_are_means_and_the_close_up_is_of_those_that_learned(self):
    rows = [
      {
        'label': label,
        'examples': [0, 5, 50],
        'seeds': [0, 1],
        'mean': mean,
        'std': [1.0, 1.0, 1.0],
        'learned': label != 'alone',
      }
      for label, mean in (
        ('alone', [10.0, 40.0, 80.0]),
        ('fedavg', [90.0, 92.0, 95.0]),
      )
    ]
    figure = self.drawn(study_figures.held_out, rows, title='Toy')
    for row, line in zip(rows, figure.axes[0].get_lines(), strict=True):
      self.assertEqual(line.get_label(), row['label'])
      np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
      np.testing.assert_array_equal(line.get_ydata(), row['mean'])
    np.testing.assert_allclose(figure.axes[1].get_ylim(), (89, 96))
    self.check_nothing_overlaps(figure)


if __name__ == '__main__':
  absltest.main()

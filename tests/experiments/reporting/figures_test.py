"""Laws of figures: lines are means over seeds, and nothing hides another."""

import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.reporting import figures
from tests.experiments.reporting import drawn_figures


def _record(case, *, tasks=3, seeds=2, clients=4, rounds=20, label=''):
  """A case whose curves rise; every client holds one task."""
  rng = np.random.default_rng(len(case))
  evaluations = 5 if rounds else 1
  values = np.sort(rng.uniform(50, 100, (evaluations, seeds, tasks)), axis=0)
  values = np.append(values, values.mean(-1, keepdims=True), -1)
  own = rng.uniform(50, 100, (seeds, clients, 1))
  bytes_ = {'common': 4000.0 * rounds, 'task': 1000.0 * rounds, 'personal': 0}
  return {
    'case': case,
    'label': label or case,
    'tasks': [f'task number {task}' for task in range(tasks)],
    'seeds': list(range(seeds)),
    'rounds': rounds,
    'clients': [str(client) for client in range(clients)],
    'client_tasks': [[client % tasks] for client in range(clients)],
    'curve': {
      'round': [rounds * e // 4 for e in range(evaluations)],
      'values': {'test/pooled/accuracy': values.tolist()},
    },
    'client_values': {'test/accuracy': own.tolist()},
    'cost': {'bytes_up_per_round': bytes_, 'bytes_down_per_round': bytes_},
  }


def _many():
  """Eight cases of thirty tasks and clients, one a reference."""
  names = [f'A case with a rather long label, {number}' for number in range(7)]
  records = [
    _record('c' * (number + 1), tasks=30, clients=30, label=name)
    for number, name in enumerate(names)
  ]
  reference = _record('reference', tasks=30, clients=0, rounds=0)
  return [reference, *records]


class FiguresTest(drawn_figures.DrawnTestCase):
  @parameterized.product(seeds=(1, 3))
  def test_a_task_line_is_the_mean_over_seeds(self, seeds):
    record = _record('case', seeds=seeds)
    figure = self.drawn(figures.task_curves, record)
    values = np.asarray(record['curve']['values']['test/pooled/accuracy'])
    lines = figure.axes[0].get_lines()
    self.assertLen(lines, 3)
    for task, line in enumerate(lines):
      self.assertEqual(line.get_label(), record['tasks'][task])
      np.testing.assert_array_equal(line.get_xdata(), [0, 5, 10, 15, 20])
      np.testing.assert_allclose(line.get_ydata(), values[..., task].mean(1))

  def test_a_band_is_one_standard_deviation(self):
    record = _record('case', tasks=1, seeds=3)
    figure = self.drawn(figures.task_curves, record)
    values = np.asarray(record['curve']['values']['test/pooled/accuracy'])
    mean, std = values[..., 0].mean(1), values[..., 0].std(1, ddof=1)
    (band,) = figure.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    self.assertAlmostEqual(heights.max(), (mean + std).max())
    self.assertAlmostEqual(heights.min(), (mean - std).min())

  def test_of_many_tasks_the_extremes_are_named(self):
    record = _many()[1]
    figure = self.drawn(figures.task_curves, record)
    last = np.asarray(record['curve']['values']['test/pooled/accuracy'])[-1]
    last = last.mean(0)[:-1]
    (legend,) = figure.legends
    self.assertEqual(
      [text.get_text() for text in legend.get_texts()],
      [
        'each of 30 tasks',
        'mean',
        f'highest: task number {last.argmax()}',
        f'lowest: task number {last.argmin()}',
      ],
    )
    low, high = figure.axes[1].get_ylim()
    self.assertTrue(((last > low) & (last < high)).all())

  def test_a_case_without_rounds_is_a_horizontal_dashed_line(self):
    records = _many()
    figure = self.drawn(figures.case_curves, records)
    *lines, reference = figure.axes[0].get_lines()
    values = records[0]['curve']['values']['test/pooled/accuracy']
    height = np.asarray(values)[-1, :, -1].mean()
    np.testing.assert_allclose(reference.get_ydata(), height)
    self.assertEqual(reference.get_linestyle(), '--')
    for record, line in zip(records[1:], lines, strict=True):
      values = np.asarray(record['curve']['values']['test/pooled/accuracy'])
      np.testing.assert_allclose(line.get_ydata(), values[..., -1].mean(1))

  def test_lines_of_many_cases_differ_in_color_or_dashes(self):
    records = [_record('c' * n) for n in range(1, 20)]
    figure = self.drawn(figures.case_curves, records)
    looks = {
      (line.get_color(), str(line._dash_pattern))
      for line in figure.axes[0].get_lines()
    }
    self.assertLen(looks, len(records))

  def test_dots_are_the_sorted_mean_differences_of_clients(self):
    case, base = _record('case', clients=6), _record('base!', clients=6)
    figure = self.drawn(figures.client_dots, [base, case], 'base!')
    own, others = (
      np.asarray(r['client_values']['test/accuracy'])[..., 0]
      for r in (case, base)
    )
    expected = (own - others).mean(0)
    (axes,) = figure.axes
    dots = sorted(
      point
      for line in axes.get_lines()
      if line.get_marker() == 'o'
      for point in zip(*line.get_data(), strict=True)
    )
    np.testing.assert_allclose([y for _, y in dots], np.sort(expected))
    self.assertEqual(
      [text.get_text() for text in axes.get_xticklabels()],
      [str(client) for client in expected.argsort()],
    )
    better, worse = (expected > 0).sum(), (expected < 0).sum()
    self.assertIn(f'{better} better, {worse} worse', axes.get_title(loc='left'))

  def test_dots_need_clients_in_common(self):
    records = [_record('majority', clients=0, rounds=0), _record('base')]
    self.assertFalse(figures.client_dots(self.path, records, 'base'))
    self.assertFalse(figures.client_dots(self.path, records, 'unknown'))
    self.assertFalse(self.path.exists())

  def test_bars_add_up_to_the_bytes_of_both_directions(self):
    record = _record('case', rounds=20)
    other = _record('other', rounds=8)
    figure = self.drawn(figures.communication, [record, other])
    (axes,) = figure.axes
    widths = [[bar.get_width() for bar in c] for c in axes.containers]
    np.testing.assert_allclose(
      np.array(widths) * 1024, [[160e3, 64e3], [40e3, 16e3]]
    )
    np.testing.assert_allclose(
      [bar.get_x() for bar in axes.containers[1]], widths[0]
    )
    self.assertEqual(
      [text.get_text() for text in axes.texts], ['195 KiB', '78.1 KiB']
    )
    self.assertStartsWith(axes.get_xlabel(), 'KiB')

  @parameterized.parameters(
    (figures.task_curves, lambda: [_many()[1]]),
    (figures.task_curves, lambda: [_record('c', tasks=7)]),
    (figures.case_curves, lambda: [_many()]),
    (figures.client_dots, lambda: [_many(), 'ccc']),
    (figures.communication, lambda: [_many()]),
  )
  def test_no_label_hides_another(self, draw, arguments):
    self.check_nothing_overlaps(self.drawn(draw, *arguments()))

  @parameterized.parameters(1, 2)
  def test_undefined_values_are_gaps(self, seeds):
    record = _record('case', tasks=9, seeds=seeds)
    values = record['curve']['values']
    values['test/pooled/accuracy'] = np.full((5, seeds, 10), None).tolist()
    for draw, of in (
      (figures.task_curves, record),
      (figures.case_curves, [record]),
    ):
      for axes in self.drawn(draw, of).axes:
        drawn = [line.get_ydata() for line in axes.get_lines()]
        self.assertNotEmpty(drawn)
        self.assertTrue(np.isnan(np.concatenate(drawn).astype(float)).all())

  def test_training_does_not_wait_for_matplotlib(self):
    code = (
      'import sys, experiments.reporting.figures; '
      "print('matplotlib' in sys.modules)"
    )
    root = pathlib.Path(figures.__file__).parents[2]
    done = subprocess.run(
      [sys.executable, '-c', code],
      cwd=root,
      capture_output=True,
      text=True,
      check=True,
    )
    self.assertEqual(done.stdout.strip(), 'False')


if __name__ == '__main__':
  absltest.main()

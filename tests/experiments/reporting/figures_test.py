"""Laws of figures: lines are means over seeds, and nothing hides another."""

import itertools
import pathlib
import struct
import subprocess
import sys
import tempfile
from unittest import mock
import warnings

from absl.testing import absltest
from absl.testing import parameterized
from matplotlib import figure as figure_lib
from matplotlib import text as text_lib
import numpy as np

from experiments.reporting import figures


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


def _rows(count):
  """Algorithms as of `comparisons.summarize`; the first one diverged."""
  rng = np.random.default_rng(count)
  fields = ('mean', 'std', 'worst_decile', 'worst_decile_std')
  rows = [
    {
      'case': f'a{number}',
      'label': f'An algorithm with a label, {number}',
      'learning_rate': 0.1 if number else None,
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
  figures.comparison(path, rows, reference='a1', title='Toy: accuracy (%)')


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


class FiguresTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = _folder(self) / 'figure.png'
    self.enterContext(warnings.catch_warnings())
    warnings.simplefilter('error')

  def _drawn(self, draw, *args, **settings):
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

  def _check_nothing_overlaps(self, figure):
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

  @parameterized.product(seeds=(1, 3))
  def test_a_task_line_is_the_mean_over_seeds(self, seeds):
    record = _record('case', seeds=seeds)
    figure = self._drawn(figures.task_curves, record)
    values = np.asarray(record['curve']['values']['test/pooled/accuracy'])
    lines = figure.axes[0].get_lines()
    self.assertLen(lines, 3)
    for task, line in enumerate(lines):
      self.assertEqual(line.get_label(), record['tasks'][task])
      np.testing.assert_array_equal(line.get_xdata(), [0, 5, 10, 15, 20])
      np.testing.assert_allclose(line.get_ydata(), values[..., task].mean(1))

  def test_a_band_is_one_standard_deviation(self):
    record = _record('case', tasks=1, seeds=3)
    figure = self._drawn(figures.task_curves, record)
    values = np.asarray(record['curve']['values']['test/pooled/accuracy'])
    mean, std = values[..., 0].mean(1), values[..., 0].std(1, ddof=1)
    (band,) = figure.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    self.assertAlmostEqual(heights.max(), (mean + std).max())
    self.assertAlmostEqual(heights.min(), (mean - std).min())

  def test_of_many_tasks_the_extremes_are_named(self):
    record = _many()[1]
    figure = self._drawn(figures.task_curves, record)
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
    figure = self._drawn(figures.case_curves, records)
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
    figure = self._drawn(figures.case_curves, records)
    looks = {
      (line.get_color(), str(line._dash_pattern))
      for line in figure.axes[0].get_lines()
    }
    self.assertLen(looks, len(records))

  def test_dots_are_the_sorted_mean_differences_of_clients(self):
    case, base = _record('case', clients=6), _record('base!', clients=6)
    figure = self._drawn(figures.client_dots, [base, case], 'base!')
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

  def test_algorithms_are_ordered_dots_and_those_that_diverged_are_last(self):
    rows = _rows(6)
    figure = self._drawn(figures.comparison, rows, reference='a1', title='Toy')
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
    figure = self._drawn(
      figures.comparison, rows, reference='a1', metric='loss'
    )
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    wanted = sorted(rows[1:], key=lambda row: row['mean'])
    self.assertEqual(names[:-1], [row['label'] for row in wanted])

  @parameterized.parameters(1, 3)
  def test_algorithms_may_all_have_diverged(self, count):
    rows = [_rows(1)[0] | {'label': str(n)} for n in range(count)]
    figure = self._drawn(figures.comparison, rows, reference='a0')
    self.assertLen(figure.axes[0].texts, count)

  def test_bars_add_up_to_the_bytes_of_both_directions(self):
    record = _record('case', rounds=20)
    other = _record('other', rounds=8)
    figure = self._drawn(figures.communication, [record, other])
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
    (_comparison, lambda: [_rows(28)]),
    (_comparison, lambda: [_rows(2)]),
  )
  def test_no_label_hides_another(self, draw, arguments):
    self._check_nothing_overlaps(self._drawn(draw, *arguments()))

  @parameterized.parameters(1, 2)
  def test_undefined_values_are_gaps(self, seeds):
    record = _record('case', tasks=9, seeds=seeds)
    values = record['curve']['values']
    values['test/pooled/accuracy'] = np.full((5, seeds, 10), None).tolist()
    for draw, of in (
      (figures.task_curves, record),
      (figures.case_curves, [record]),
    ):
      for axes in self._drawn(draw, of).axes:
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

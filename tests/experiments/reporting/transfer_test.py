"""Laws of gains: who loses by sharing, whether it helps, who is small."""

import csv
import json
import pathlib
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.configuration import config as config_lib
from experiments.folders import records as records_lib
from experiments.reporting import gain_figures
from experiments.reporting import reports
from experiments.reporting import transfer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.reporting import drawn_figures
from tests.experiments.reporting import toy_records

TASKS = ('a', 'b', 'c')
SHOWN = transfer.Shown()
# Of three seeds; isolated has those of `BASE`.
BASE = np.array([[80.0, 60, 70], [82, 61, 73], [78, 59, 76]])
# Gains of each seed: a wins, b loses clearly, c loses, but not clearly.
FEDU = np.array([[4.0, -2, -3], [5, -2.5, 2], [6, -1.5, -2]])
EXAMPLES = [[10, 100, 40], [20, 100, 40], [30, 100, 40]]


def _record(case, values, metric='accuracy', **changes):
  """A case of some tasks by the last values `[R, T]` of each seed."""
  values = np.asarray(values, float)
  values = np.concatenate([values, values.mean(1, keepdims=True)], 1)
  names = TASKS[: values.shape[1] - 1]
  record = toy_records.record(
    case, [np.where(np.isnan(values), None, values)], tasks=names
  )
  record['curve']['values'] = {
    f'test/pooled/{metric}': record['curve']['values']['test/pooled/accuracy']
  }
  sizes = {'tasks': np.array(EXAMPLES)[: len(values), : len(names)].tolist()}
  return record | {'train_examples': sizes} | changes


def _records(sign=1, metric='accuracy'):
  return [
    _record(case, BASE + sign * gain, metric)
    for case, gain in (
      ('isolated', 0 * BASE),
      ('fedu', FEDU),
      ('fedavg', -1 - np.abs(FEDU)),
      ('centralized_separate', 10 + 0 * BASE),
    )
  ]


def _clients(case, values):
  """A case of one task by the last values `[R, M]` of its clients."""
  values = np.asarray(values, float)
  record = _record(case, values.mean(1, keepdims=True))
  numbers = range(values.shape[1])
  return record | {
    'clients': [str(number) for number in numbers],
    'client_tasks': [[0] for _ in numbers],
    'client_values': {'test/accuracy': values[..., None].tolist()},
    'train_examples': {
      'tasks': [[60]] * len(values),
      'clients': [[10 * (number + 1) for number in numbers]] * len(values),
    },
  }


class GainsTest(parameterized.TestCase):
  @parameterized.parameters((1.9, False), (2.1, True))
  def test_clearly_is_above_two_standard_errors(self, ratio, is_clear):
    spread = 3**0.5 / ratio * np.array([-1, 0, 1])
    for sign in (-1, 1):
      gain = sign * (1 + spread)[:, None]
      records = [_record('isolated', BASE), _record('fedu', BASE + gain)]
      found = transfer.build(transfer.gains(records, SHOWN), SHOWN)
      [entry] = found['negative_transfer']['comparisons']
      self.assertEqual(entry['helps'], is_clear and sign > 0)
      self.assertEqual(entry['share_that_loses'], sign < 0)
      clearly = entry['share_that_loses_clearly']
      self.assertEqual(clearly, is_clear and sign < 0)

  def test_methods_are_compared_with_every_reference(self):
    found = transfer.gains(_records(), SHOWN)
    pairs = [
      (one.record['case'], one.against, one.reference['case']) for one in found
    ]
    self.assertEqual(
      pairs,
      [
        ('fedu', 'local', 'isolated'),
        ('fedu', 'global', 'fedavg'),
        ('fedu', 'central', 'centralized_separate'),
        ('fedavg', 'local', 'isolated'),
        ('fedavg', 'central', 'centralized_separate'),
      ],
    )
    np.testing.assert_allclose(found[0].of_units, FEDU)
    np.testing.assert_allclose(found[0].of_mean, FEDU.mean(1))

  @parameterized.parameters(('accuracy', 1), ('mse', -1))
  def test_a_gain_is_what_is_better(self, metric, sign):
    """MSE falls where accuracy rises."""
    shown = transfer.Shown(metric)
    found = transfer.gains(_records(sign, metric), shown)
    entry = transfer.build(found, shown)['negative_transfer']['comparisons'][0]
    means = FEDU.mean(1)
    self.assertAlmostEqual(entry['gain'], means.mean())
    self.assertAlmostEqual(
      entry['standard_error'], means.std(ddof=1) / np.sqrt(3)
    )
    np.testing.assert_allclose(entry['seed_gains'], means)
    self.assertAlmostEqual(entry['share_that_loses'], 2 / 3)
    self.assertAlmostEqual(entry['share_that_loses_clearly'], 1 / 3)

  def test_seeds_are_paired(self):
    """The same seeds in another order, and one that the reference lacks."""
    isolated, fedu, *_ = _records()
    order = [2, 0, 1]
    turned = _record('fedu', (BASE + FEDU)[order]) | {'seeds': order}
    (one,) = transfer.gains([isolated, turned], SHOWN)
    np.testing.assert_allclose(one.of_units, FEDU[order])
    (one,) = transfer.gains([isolated, fedu | {'seeds': [1, 2, 3]}], SHOWN)
    np.testing.assert_allclose(one.of_units, (BASE + FEDU)[:2] - BASE[1:])
    (alone,) = [isolated | {'seeds': [7, 8, 9]}]
    self.assertEmpty(transfer.gains([alone, fedu], SHOWN))

  def test_sentence(self):
    isolated, fedu, fedavg, central = _records()
    say = lambda *records: transfer.conclusion(transfer.gains(records, SHOWN))
    # The mean of FedU is better, by less than two standard errors.
    none = 'Sharing does not help here: no method is better than local'
    self.assertStartsWith(say(isolated, fedu, fedavg, central), none)
    better = _record('ditto', BASE + [[2.0], [2.1], [1.9]])
    self.assertEqual(
      say(isolated, better, fedu),
      'Better than local training by more than two standard errors: Ditto.',
    )
    self.assertEqual(say(fedu, fedavg, central), '')
    one_seed = [_record(r['case'], BASE[:1]) for r in (isolated, fedu)]
    self.assertEqual(say(*one_seed), '')
    found = transfer.build(transfer.gains(one_seed, SHOWN), SHOWN)
    (entry,) = found['negative_transfer']['comparisons']
    self.assertIsNone(entry['standard_error'])
    json.dumps(found, allow_nan=False)

  def test_who_diverges_loses(self):
    broken = BASE + FEDU
    broken[1] = np.nan
    isolated = _record('isolated', BASE)
    found = transfer.gains([isolated, _record('fedu', broken)], SHOWN)
    self.assertEqual(transfer._losers(found[0])[1].tolist(), [1, 1, 1])
    self.assertStartsWith(transfer.conclusion(found), 'Sharing does not help')
    cells = toy_records.cells(transfer.transfer_table(found, SHOWN), 'gain')
    self.assertEqual(cells['Fedu'], 'diverged')
    json.dumps(transfer.build(found, SHOWN), allow_nan=False)

  def test_of_one_task_clients_are_compared(self):
    gain = np.array([[1.0, -2, 3, 4], [1, -2, 3, 5]])
    base = np.full((2, 4), 50.0)
    records = [_clients('isolated', base), _clients('fedu', base + gain)]
    (one,) = transfer.gains(records, SHOWN)
    self.assertEqual((one.unit, one.names), ('client', ['0', '1', '2', '3']))
    np.testing.assert_allclose(one.of_units, gain)
    self.assertEqual(one.examples.tolist(), [10, 20, 30, 40])
    self.assertAlmostEqual(transfer.unequal(one)['rank_correlation'], 0.8)

  def test_tables_and_lines_have_the_numbers(self):
    found = transfer.gains(_records()[:2], SHOWN)
    (row,) = transfer.transfer_table(found, SHOWN).rows
    means = FEDU.mean(1)
    error = means.std(ddof=1) / np.sqrt(3)
    self.assertEqual(
      row,
      (
        *('Fedu', 'Isolated', f'+{means.mean():.2f} ± {error:.2f}'),
        *('2 of 3', '1 of 3', 'b: −2.00'),
      ),
    )
    (first, second, third) = transfer.rows(found)
    self.assertEqual(
      first[:7], ('fedu', 'local', 'isolated', 'task', 'a', 20.0, 5.0)
    )
    self.assertAlmostEqual(first[7], 1 / np.sqrt(3))
    self.assertEqual(
      [row[-2:] for row in (first, second, third)], [(0, 0), (1, 1), (1, 0)]
    )


class UnequalTasksTest(drawn_figures.DrawnTestCase):
  def test_small_tasks_that_gain_most_have_a_negative_correlation(self):
    found = transfer.gains(_records()[:2], SHOWN)
    known = transfer.unequal(found[0])
    # Examples 20, 100, 40; gains 5, -2, -1: exactly the other way round.
    self.assertAlmostEqual(known['rank_correlation'], -1)
    self.assertEqual(
      [
        (t['least'], t['units'], t['share_that_loses']) for t in known['thirds']
      ],
      [(20, 1, 0), (40, 1, 1), (100, 1, 1)],
    )
    np.testing.assert_allclose(
      [t['gain'] for t in known['thirds']], [5, -1, -2]
    )
    (row,) = transfer.unequal_table(found, SHOWN).rows
    self.assertEqual(row[1:3], ('−1.00', '+5.00, 0 of 1 lose (20–20)'))

  def test_tasks_of_one_size_or_of_none_that_is_known_are_left_out(self):
    same = {'train_examples': {'tasks': [[50, 52, 54]] * 3}}
    for changes in (same, {'train_examples': None}):
      records = [record | changes for record in _records()]
      found = transfer.gains(records, SHOWN)
      self.assertFalse(any(map(transfer.is_unequal, found)))
      self.assertFalse(gain_figures.gains_by_size(self.path, found, SHOWN))
    found = transfer.gains(_records(), SHOWN)
    unequal = [one for one in found if transfer.is_unequal(one)]
    self.assertEqual([one.against for one in unequal], ['local'] * 2)

  def test_a_dot_is_a_task(self):
    found = transfer.gains(_records(), SHOWN)
    figure = self.drawn(gain_figures.gains_by_size, found, SHOWN)
    dots = {
      tuple(point)
      for line in figure.axes[0].get_lines()
      if line.get_marker() == 'o'
      for point in line.get_xydata()
    }
    self.assertEqual(dots, {(20, 5), (100, -2), (40, -1)})
    names = {text.get_text() for text in figure.axes[0].texts}
    self.assertEqual(names, {'a', 'b'})

  def test_a_panel_above_an_empty_place_has_numbers(self):
    one, *_ = transfer.gains(_records(), SHOWN)
    figure = self.drawn(gain_figures.gains_by_size, [one] * 3, SHOWN)
    above = [
      axes.xaxis.get_tick_params()['labelbottom'] for axes in figure.axes
    ]
    self.assertEqual(above, [False, True, True, True])


class ReportTest(absltest.TestCase):
  def test_a_run_leaves_them(self):
    config = config_lib.default_config()
    workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (workdir / 'cases').mkdir()
    for record in _records():
      record['train_examples'] |= {'clients': [[]] * 3}
      records_lib.write(
        workdir / 'cases' / f'{record["case"]}.json',
        record | {'train_loss': [[1.0] * 3] * 10},
      )
    found = reports.write(workdir, config, missing=['ditto'])
    self.assertEqual(json.loads((workdir / 'results.json').read_text()), found)
    self.assertLen(found['negative_transfer']['comparisons'], 5)
    self.assertLen(found['unequal_tasks'], 2)
    sentence = 'Sharing does not help here'
    for name in ('results.md', 'results.html'):
      text = (workdir / name).read_text()
      self.assertIn(sentence, text)
      self.assertIn('Gain over local training by the size of tasks', text)
    self.assertTrue((workdir / 'gains.png').exists())
    with (workdir / 'negative_transfer.csv').open(newline='') as file:
      rows = list(csv.DictReader(file))
    self.assertLen(rows, 5 * 3)
    found = {
      tuple(row[k] for k in ('case', 'against', 'name')): row for row in rows
    }
    self.assertEqual(float(found['fedu', 'local', 'a']['gain']), 5)


if __name__ == '__main__':
  absltest.main()

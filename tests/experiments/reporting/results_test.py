"""Laws of results: last values over seeds, strict JSON, nothing lost in CSV."""

import csv
import json
import pathlib
import tempfile
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
from experiments.reporting import results
import numpy as np

_TASKS = ['odd', 'prime']


def _record(curves, **changes):
  """A case with curves `[E][R][3]` of two tasks, by split/view/metric."""
  evaluations = len(next(iter(curves.values())))
  seeds = len(next(iter(curves.values()))[0])
  return {
    'case': 'toy',
    'label': 'Toy',
    'tasks': _TASKS,
    'seeds': list(range(7, 7 + seeds)),
    'rounds': 5 * (evaluations - 1),
    'protocol': 'iid',
    'clients': [],
    'client_tasks': [],
    'curve': {
      'round': [5 * number for number in range(evaluations)],
      'values': curves,
    },
    'train_loss': [],
    'client_values': {},
    'cost': {'seconds_per_round': 0.5},
  } | changes


def _clients(names, tasks, values, seeds=(0,)):
  """A case with last values of clients: tasks `[M][S]`, values `[R][M][S]`."""
  return _record(
    {'test/client/accuracy': [[[0, 0, 0]] * len(seeds)]},
    clients=names,
    client_tasks=tasks,
    client_values={'test/accuracy': values},
    seeds=list(seeds),
  )


def _folder(test):
  """A new folder, removed after the test."""
  return pathlib.Path(test.enterContext(tempfile.TemporaryDirectory()))


class BuildTest(parameterized.TestCase):
  def test_entries_hold_the_last_values_over_seeds(self):
    record = _record(
      {
        'test/pooled/accuracy': [
          [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
          [[90, 60, 75], [92, 70, 81], [97, 65, 81]],
        ]
      },
      settings={'precision.matmul': 'highest'},
    )
    built = results.build([record], {'jax': '1'})
    self.assertEqual(built['environment'], {'jax': '1'})
    self.assertEqual(built['cost'], [{'case': 'toy', 'seconds_per_round': 0.5}])
    first, _, mean = built['results']
    self.assertAlmostEqual(first.pop('std'), 13**0.5)
    self.assertEqual(
      first,
      {
        'case': 'toy',
        'task': 'odd',
        'metric': 'accuracy',
        'view': 'pooled',
        'mean': 93.0,
        'seeds': [7, 8, 9],
        'seed_values': [90.0, 92.0, 97.0],
        'rounds': 5,
        'split': 'test',
        'protocol': 'iid',
        'matmul_precision': 'highest',
        'compute_precision': None,
      },
    )
    self.assertEqual(mean['task'], 'mean')
    self.assertAlmostEqual(mean['mean'], 79)

  def test_one_seed_has_no_standard_deviation(self):
    record = _record({'test/pooled/loss': [[[1.0, 2.0, 1.5]]]})
    for entry in results.build([record], {})['results']:
      self.assertIsNone(entry['std'])
      self.assertIsNotNone(entry['mean'])

  def test_a_seed_without_a_value_is_null_and_no_seed_is_no_entry(self):
    record = _record(
      {'test/pooled/auc': [[[None, None, None], [None, 0.5, 0.5]]]}
    )
    entries = results.build([record], {})['results']
    self.assertEqual([entry['task'] for entry in entries], ['prime', 'mean'])
    for entry in entries:
      self.assertEqual(entry['seed_values'], [None, 0.5])
      self.assertIsNone(entry['mean'])
      self.assertIsNone(entry['std'])

  def test_what_is_written_is_strict_json(self):
    record = _record(
      {'test/pooled/auc': [[[None, 0.5, float('nan')]]]},
      cost={'client_steps_per_second': float('inf')},
    )
    path = _folder(self) / 'results.json'
    path.write_text('old')
    results.write_json(
      path, results.build([record], {}) | {'more': np.float64('nan')}
    )

    def refuse(constant):
      raise AssertionError(f'{constant} is no JSON.')

    read = json.loads(path.read_text(), parse_constant=refuse)
    self.assertIsNone(read['more'])
    self.assertIsNone(read['cost'][0]['client_steps_per_second'])
    self.assertLen(read['results'], 1)
    self.assertEqual([p.name for p in path.parent.iterdir()], ['results.json'])


class MetricsCsvTest(absltest.TestCase):
  def test_every_defined_value_is_one_line(self):
    curves: dict[str, Any] = {
      'test/pooled/accuracy': [
        [[1, 2, 1.5], [3, None, 3]],
        [[5, 6, 5.5], [7, 8, 7.5]],
      ],
      'validation/client/loss': [[[0.1, 0.2, 0.3]] * 2] * 2,
    }
    record = _record(curves, train_loss=[[0.5, 0.25], [0.75, None]])
    path = _folder(self) / 'metrics.csv'
    results.write_metrics_csv(path, [record, record | {'case': 'other'}])
    with path.open(newline='') as file:
      rows = list(csv.reader(file))
    self.assertEqual(
      ','.join(rows[0]), 'case,seed,round,split,view,task,metric,value'
    )
    rows = [row for row in rows[1:] if row[0] == 'toy']
    expected: list[list[Any]] = [
      [
        'toy',
        str(7 + seed),
        str(5 * e),
        *name.split('/')[:2],
        task,
        name.split('/')[2],
        float(value),
      ]
      for name, values in curves.items()
      for e, of_round in enumerate(values)
      for seed, of_seed in enumerate(of_round)
      for task, value in zip([*_TASKS, 'mean'], of_seed, strict=True)
      if value is not None
    ]
    expected += [
      ['toy', seed, number, 'train', 'cohort', 'mean', 'loss', value]
      for seed, number, value in (
        ('7', '1', 0.5),
        ('8', '1', 0.25),
        ('7', '2', 0.75),
      )
    ]
    found = [[*row[:-1], float(row[-1])] for row in rows]
    self.assertCountEqual(found, expected)


class BrokenClientTest(parameterized.TestCase):
  """A client whose outputs are not finite is worse off than any other."""

  def _record(self, values, losses, counts):
    shape = lambda row: [[[x] for x in row]]
    record = _clients(['a', 'b', 'c', 'd'], [[0]] * 4, shape(values))
    record['client_values'] |= {
      'test/loss': shape(losses),
      'test/count': shape(counts),
    }
    return record

  def test_it_counts_and_one_without_labels_does_not(self):
    base = self._record([80, 80, None, None], [1, 1, None, None], [3, 3, 3, 0])
    case = self._record([90, None, 10, None], [1, None, 1, None], [3, 3, 3, 0])
    arguments = case, base, 'test', 'accuracy'
    np.testing.assert_array_equal(
      results.client_differences(*arguments), [[10, -np.inf, np.inf, np.nan]]
    )
    np.testing.assert_allclose(results.negative_transfer(*arguments), [100 / 3])
    for record in (case, base):
      record['client_values']['test/mse'] = record['client_values'].pop(
        'test/accuracy'
      )
    np.testing.assert_array_equal(
      results.client_differences(case, base, 'test', 'mse'),
      [[10, np.inf, -np.inf, np.nan]],
    )

  def test_both_nonfinite_cannot_be_compared(self):
    case = self._record([None] * 4, [None] * 4, [3, 3, 3, 3])
    differences = results.client_differences(case, case, 'test', 'accuracy')
    self.assertTrue(np.isnan(differences).all())


class ClientDifferencesTest(absltest.TestCase):
  def test_clients_and_seeds_are_matched_by_name(self):
    record = _clients(
      ['a', 'b'], [[0], [1]], [[[80], [90]], [[70], [60]]], seeds=(3, 4)
    )
    base = _clients(
      ['b', 'a'],
      [[1], [0]],
      [[[50], [60]], [[85], [75]], [[0], [0]]],
      seeds=(4, 3, 5),
    )
    differences = results.client_differences(record, base, 'test', 'accuracy')
    np.testing.assert_array_equal(differences, [[5, 5], [10, 10]])

  def test_only_tasks_of_both_cases_count(self):
    empty = len(_TASKS)
    record = _clients(
      ['a', 'b', 'c'],
      [[0, 1], [1, empty], [0, 1]],
      [[[80, 90], [70, None], [50, None]]],
    )
    base = _clients(
      ['a', 'b', 'c'],
      [[[1, empty], [0, empty], [1, 0]]],  # One table for each seed.
      [[[85, None], [10, None], [60, 40]]],
    )
    differences = results.client_differences(record, base, 'test', 'accuracy')
    np.testing.assert_array_equal(differences, [[5, np.nan, 10]])

  def test_a_case_without_clients_has_nothing_to_compare(self):
    record = _clients(['a'], [[0]], [[[80]]])
    nobody = _record({'test/pooled/accuracy': [[[50, 60, 55]]]}, seeds=[0])
    for pair, shape in (((record, nobody), (1, 1)), ((nobody, record), (1, 0))):
      differences = results.client_differences(*pair, 'test', 'accuracy')
      self.assertEqual(differences.shape, shape)
      self.assertTrue(np.isnan(differences).all())


if __name__ == '__main__':
  absltest.main()

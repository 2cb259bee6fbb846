"""Law: a metric of one's own is in every result, the right way round."""

import csv
import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from experiments.building import checks
from experiments.building import datasets
from experiments.configuration import config as config_lib
from experiments.reporting import results
from experiments.studies import train
from fmtl_jax import metrics as metrics_lib
from fmtl_jax import tasks as tasks_lib

ERROR = metrics_lib.Metric(
  name='absolute_error',
  values=lambda a: jnp.abs(a.predictions - a.targets),
  lower_is_better=True,
)
NEAR = metrics_lib.Metric(
  name='accuracy_within_one',  # Begins as another metric does.
  values=lambda a: jnp.abs(a.predictions - a.targets) < 1,
  in_percent=True,
  label='share within one',
)
TASKS = tuple(
  tasks_lib.regression(name, column=column, metrics=(ERROR, NEAR))
  for column, name in enumerate(('left', 'right'))
)


def _source(unused_data):
  rng = np.random.default_rng(0)
  features = rng.normal(size=(80, 3)).astype(np.float32)
  labels = features @ rng.normal(size=(3, 2)).astype(np.float32)
  return datasets.Source(
    features=features,
    labels=labels,
    tasks=TASKS,
    strata=np.zeros(80, np.int32),
  )


def _config():
  config = config_lib.default_config()
  config.name = 'slopes'
  config.cases = ('isolated', 'multi_task_fl')
  config.data.name = 'slopes'
  config.data.clients = 4
  config.data.standardize = False
  config.model.hidden = (4,)
  config.run.rounds = 2
  config.run.seeds = 1
  config.report.metric = 'absolute_error'
  config.report.more_metrics = ('accuracy_within_one',)
  config.report.baseline = 'isolated'
  return config


def _record(case, errors):
  """A record with the last errors of two clients of one task."""
  return {
    'case': case,
    'label': case,
    'tasks': ['left'],
    'seeds': [0],
    'rounds': 1,
    'clients': ['0', '1'],
    'client_tasks': [[0], [0]],
    'client_values': {'test/absolute_error': [[[e] for e in errors]]},
  } | results.own_metrics(TASKS)


class OwnMetricTest(parameterized.TestCase):
  def test_a_run_reports_it(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    with mock.patch.dict(datasets.SOURCES, slopes=_source):
      found = train.train_and_evaluate(_config(), folder / 'run')
    entries = {
      (e['case'], e['view'], e['metric'], e['task']): e['mean']
      for e in found['results']
      if e['split'] == 'test'
    }
    for case in _config().cases:
      for task in ('left', 'right', 'mean'):
        self.assertGreater(entries[case, 'pooled', 'absolute_error', task], 0)
        for suffix in ('', *metrics_lib.SUFFIXES):
          key = case, 'client', 'absolute_error' + suffix, task
          self.assertIn(key, entries)
      error, worst = (
        entries[case, 'client', f'absolute_error_{suffix}', 'mean']
        for suffix in ('client_mean', 'worst_decile')
      )
      self.assertGreater(worst, error)  # The largest errors are the worst.
      share = entries[case, 'pooled', 'accuracy_within_one', 'mean']
      self.assertBetween(share, 1.5, 100)  # Percent.
    with (folder / 'run/metrics.csv').open(encoding='utf-8') as file:
      names = {row['metric'] for row in csv.DictReader(file)}
    self.assertContainsSubset({'absolute_error', 'accuracy_within_one'}, names)
    text = (folder / 'run/results.md').read_text(encoding='utf-8')
    self.assertIn('Test absolute error', text)
    self.assertIn('Test share within one (%)', text)
    means = {
      case: round(entries[case, 'pooled', 'absolute_error', 'mean'], 4)
      for case in _config().cases
    }
    self.assertIn(f'**{min(means.values()):.4f}**', text)
    self.assertNotIn(f'**{max(means.values()):.4f}**', text)
    record = json.loads((folder / 'run/cases/isolated.json').read_bytes())
    self.assertEqual(
      record['metrics']['accuracy_within_one'],
      {
        'lower_is_better': False,
        'in_percent': True,
        'label': 'share within one',
      },
    )

  def test_a_larger_error_is_negative_transfer(self):
    alone, together = _record('a', [1.0, 1.0]), _record('b', [0.5, 3.0])
    for record, other, expected in (
      (together, alone, 50),
      (alone, alone, 0),
      (_record('c', [2.0, 3.0]), alone, 100),
    ):
      found = results.negative_transfer(record, other, 'test', 'absolute_error')
      np.testing.assert_array_equal(found, [expected])

  def test_names_that_begin_alike_are_other_metrics(self):
    rows = [results.own_metrics(TASKS)]
    self.assertTrue(results.in_percent('accuracy_within_one', rows))
    self.assertFalse(results.lower_is_better('accuracy_within_one', rows))
    self.assertTrue(results.lower_is_better('absolute_error_client_std', rows))
    self.assertFalse(results.in_percent('absolute_error', rows))
    self.assertEqual(
      results.describe('test', 'accuracy_within_one_worst_decile', rows),
      'test share within one worst decile (%)',
    )
    for name in ('loss_ratio', 'accuracy_of_none', 'absolute_error'):
      with self.assertRaisesRegex(ValueError, f'shown, got {name!r}'):
        results.in_percent(name)

  def test_metrics_of_this_package_are_in_no_record(self):
    plain = [tasks_lib.binary('a'), tasks_lib.regression('b')]
    self.assertEqual(results.own_metrics(plain), {})

  def test_a_metric_that_no_task_has_is_reported(self):
    config = _config()
    checks.check_metrics(config, TASKS)
    config.report.metric = 'absolute_eror'
    with self.assertRaisesRegex(
      ValueError, "mse, .*absolute_error, .*Did you mean 'absolute_error'"
    ):
      checks.check_metrics(config, TASKS)


if __name__ == '__main__':
  absltest.main()

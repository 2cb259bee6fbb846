"""Law: what has no value is said by name, and what broke is never chosen."""

import contextlib
import io
import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import numpy as np

from experiments.building import datasets
from experiments.building import federating
from experiments.reporting import reports
from experiments.studies import histories
from experiments.studies import train
from fmtl_jax.storage import checkpoints

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test
from tests.experiments.studies import train_test


def _source(unused_data=None):
  """The toy data, with labels of the second task in training examples only."""
  source = program_test.toy_source()
  config = program_test.toy_config().data
  labels = source.labels.copy()
  for seed in program_test.SEEDS:
    split = federating.federate(source, config, seed).partition
    for part in (split.validation, split.test):
      labels[np.concatenate(part.groups()), 1] = np.nan
  # Everyone keeps one to train with, whatever the seed.
  return source._replace(labels=labels)


class UnlabelledTest(program_test.ToyTestCase):
  """A task without test labels, in the log, the tables and the first row."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    fields = {
      'cases': ('majority', 'multi_task_fl'),
      'run.seeds': 1,
      'run.rounds': 2,
      'report.view': 'client',
      'report.baseline': '',
    }
    cls.enterClassContext(mock.patch.dict(datasets.SOURCES, toy=_source))
    cls.config = program_test.toy_config(fields)
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.workdir = pathlib.Path(folder) / 'run'
    with contextlib.redirect_stderr(io.StringIO()) as said:
      train.train_and_evaluate(cls.config, cls.workdir)
    cls.said = said.getvalue()

  def test_the_log_names_it(self):
    self.assertIn(
      'warning: No validation example carries a label of top; no test example '
      'carries a label of top (first seed); their values are not defined, and '
      'means are over the other tasks.',
      self.said,
    )

  def test_the_table_names_it(self):
    table = (self.workdir / 'results.md').read_text()
    self.assertIn('Means leave out top, for which no', table)

  def test_the_majority_has_a_value_for_clients(self):
    """The share of the label that trains most, over all test examples."""
    record = train_test.read_json(self.workdir / 'cases' / 'majority.json')
    reports.load_records(self.workdir)  # It is a sound one.
    data = federating.federate(_source(), self.config.data, 0)
    held = np.asarray(data.partition.client_tasks)[:, 0] == 0
    train_rows, test_rows = (
      np.concatenate([r for r, h in zip(rows.groups(), held, strict=True) if h])
      for rows in (data.partition.train, data.partition.test)
    )
    labels = data.examples.labels[:, 0]
    answer = np.bincount(labels[train_rows].astype(int)).argmax()
    expected = 100 * np.mean(labels[test_rows] == answer)
    (values,) = record['curve']['values']['test/client/accuracy'][0]
    np.testing.assert_allclose(values[0], expected, rtol=1e-6)
    self.assertIsNone(values[1])
    np.testing.assert_allclose(values[2], expected, rtol=1e-6)
    self.assertLen(record['clients'], program_test.CLIENTS)


class NeverChosenTest(program_test.ToyTestCase):
  def test_a_run_without_a_value_makes_no_mean(self):
    history = histories.History(
      {'values': {'v': [[[1, 2.0], [1, None], [1, 4.0]]]}}
    )
    self.assertTrue(np.isnan(history.last('v')))
    self.assertEqual(history.last('v', np.array([True, False, True])), 3.0)

  def test_a_checkpoint_that_broke_is_not_the_best(self):
    state = {'a': np.ones(2, np.float32)}
    with tempfile.TemporaryDirectory() as folder:
      saved = checkpoints.Checkpoints(pathlib.Path(folder) / 'c', 1)
      for number, score in enumerate((0.5, float('nan'), float('inf'), None)):
        saved.save(number + 1, state, {}, score)
      saved.close()
      again = checkpoints.Checkpoints(pathlib.Path(folder) / 'c', 1)
      self.assertEqual(again.rounds, [1, 4])
      again.close()

  def test_a_target_of_seeds_of_which_one_broke_is_none(self):
    config = program_test.toy_config({'report.target_case': 'fedavg'})
    record = {
      'case': 'fedavg',
      'seeds': [0, 1],
      'tasks': ['a'],
      'curve': {
        'round': [0],
        'values': {'test/pooled/accuracy': [[[90, 90], [None, None]]]},
      },
    }
    self.assertEmpty(reports._target_of_case([record], config.report))


if __name__ == '__main__':
  absltest.main()

"""Laws of owners that are held out by name: in turn, and reported so."""

import pathlib
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.studies import held_out
from experiments.studies import held_out_data
from experiments.studies import held_out_reports
from experiments.studies import case_runs
from fmtl_jax import evaluation

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test
from tests.experiments.studies import toy_held_out as toy


def _config(**fields):
  named = {field.replace('__', '.'): value for field, value in fields.items()}
  return toy.config(
    toy.OF_PEOPLE | {'unseen.owners': ('1', '3'), 'run.seeds': 4} | named
  )


def _record(of_seeds, owners):
  """A record whose two held-out clients have values around `[R, N]` ones."""
  of_seeds = np.asarray(of_seeds, float)
  values = of_seeds[:, :, None, None] + np.array([-1, 1])[:, None]
  seeds = list(range(7, 7 + len(of_seeds)))
  return {
    'case': 'fedavg',
    'label': 'FedAvg',
    'adapted': 'nothing',
    'seeds': seeds,
    'rounds': 1,
    'examples': list(range(of_seeds.shape[1])),
    'values': {'auc': values, evaluation.LOSS: values},
    'training_clients': {'auc': list(range(len(seeds)))},
    'settings': {'unseen.start': 'mean'},
    'way': {'rate': 0.1, 'pull': 0.0},
    'owners': owners,
  }


class DataTest(parameterized.TestCase):
  @parameterized.parameters(0, 5)
  def test_owners_have_turns(self, first):
    source = toy.people()
    config = _config(run__first_seed=first)
    seeds = case_runs.seeds_of(config)
    self.assertEqual(
      held_out_data.owners_of(config, seeds), ['1', '3', '1', '3']
    )
    splits = held_out_data.hold_out_each(source, config, seeds)
    for split, owner in zip(splits, (1, 3, 1, 3), strict=True):
      partition = split.held_out.partition
      rows = np.concatenate(
        [*partition.train.groups(), *partition.test.groups()]
      )
      np.testing.assert_array_equal(
        np.sort(rows), np.flatnonzero(source.keys == owner)
      )
      trained = np.concatenate(split.train.partition.train.groups())
      self.assertNotIn(owner, source.keys[trained])
    orders = [s.held_out.partition.train.groups()[0].tolist() for s in splits]
    self.assertNotEqual(orders[0], orders[2])

  def test_a_pattern_holds_out_all_owners_of_a_kind(self):
    names = {
      key: f'{"ab"[key % 2]} {key}' for key in range(program_test.CLIENTS)
    }
    source = toy.people(key_names=names)
    config = _config(unseen__owners=('b .*',))
    split = held_out_data.hold_out(source, config, 0)
    np.testing.assert_array_equal(split.clients, [1, 3])
    config = _config(unseen__owners=('b',))
    with self.assertRaisesRegex(ValueError, "'b' for none of a 0, b 1, a 2"):
      held_out_data.hold_out(source, config, 0)

  def test_drawn_clients_are_those_of_before(self):
    source, config = toy.people(), _config(unseen__owners=())
    self.assertEqual(held_out_data.owners_of(config, [0, 1]), [])
    each = held_out_data.hold_out_each(source, config, [0, 1])
    for seed, split in enumerate(each):
      alone = held_out_data.hold_out(source, config, seed)
      np.testing.assert_array_equal(split.clients, alone.clients)
      self.assertLen(split.clients, config.unseen.clients)

  @parameterized.parameters(
    ({'unseen.owners': ('7',)}, "'7' for none of 0, 1, 2, 3, 4"),
    ({'unseen.owners': ('.*',)}, "'.*' for all of 0, 1, 2, 3, 4"),
    ({'data.partition': 'iid'}, "data.partition='key' .* got 'iid'"),
    ({'unseen.owners': ('1', '[23]')}, r"got 2 and \[1, 1, 1\] for '\[23\]'"),
  )
  def test_owners_that_are_not_there_are_refused(self, fields, sentence):
    config = toy.config(
      toy.OF_PEOPLE | {'unseen.owners': ('1',), 'run.seeds': 2} | fields
    )
    with self.assertRaisesRegex(ValueError, sentence):
      held_out_data.hold_out_each(toy.people(), config, [0, 1])

  @parameterized.parameters(
    (('1', 3), 'to be names or patterns'),
    (('1', '1'), 'every pattern of unseen.owners once'),
    (('(',), 'to be regular expressions'),
    (('1', '2', '3'), 'run.seeds to be a multiple of the 3 unseen.owners'),
  )
  def test_invalid_settings_are_refused(self, owners, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      held_out._check(_config(unseen__owners=owners))


class ReportsTest(absltest.TestCase):
  def test_means_are_over_turns_and_rows_of_an_owner_are_its_own(self):
    of_seeds = [[1.0, 10.0], [3.0, 30.0], [5.0, 50.0], [11.0, 70.0]]
    records = [_record(of_seeds, ['a', 'b', 'a', 'b'])]
    (mean,) = held_out_reports.summarize(records, 'auc')
    np.testing.assert_allclose(mean['seed_values'], [[2, 20], [8, 60]])
    np.testing.assert_allclose(mean['mean'], [5, 40])
    np.testing.assert_allclose(
      mean['std'], np.std([[2, 20], [8, 60]], 0, ddof=1)
    )
    self.assertEqual(mean['seeds'], [7, 9])
    self.assertNotIn('owner', mean)
    (own,) = held_out_reports.summarize(records, 'auc', 'b')
    np.testing.assert_allclose(own['seed_values'], [[3, 30], [11, 70]])
    np.testing.assert_allclose(own['mean'], [7, 50])
    self.assertEqual((own['owner'], own['seeds']), ('b', [8, 10]))
    self.assertEqual(own['training_clients'], 2.0)


class RunTest(program_test.ToyTestCase):
  def test_a_study_has_a_table_of_each_owner(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    config = _config(
      cases=('fedavg',),
      run__seeds=2,
      run__rounds=1,
      unseen__owners=('0', '1'),
      unseen__examples=(0, 3),
      report__more_metrics=('balanced_accuracy',),
    )
    found = held_out.run(config, folder)['results']
    shown = [row.get('owner', '') for row in found if row['metric'] == 'loss']
    self.assertEqual(shown, ['', '0', '1'])
    text = (folder / 'unseen.md').read_text()
    self.assertIn('in turn 0, 1;', text)
    for title in ('0: test accuracy', '1: test balanced accuracy'):
      self.assertIn(title, text)


if __name__ == '__main__':
  absltest.main()

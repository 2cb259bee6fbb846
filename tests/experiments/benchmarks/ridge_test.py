"""Laws of ridge regressions: closed forms are what other ways find, too."""

import importlib
import pathlib
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import sklearn.linear_model

from experiments.benchmarks import ridge
from experiments.building import backbones
from experiments.building import federating

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.data import small_tables

FEATURES = 3


def _clients(sizes=(9, 14, 11)):
  rng = np.random.default_rng(0)
  found = []
  for size in sizes:
    x = np.c_[rng.standard_normal((size, FEATURES)), np.ones(size)]
    w = np.arange(FEATURES + 1) + rng.standard_normal(FEATURES + 1)
    found.append(ridge.Part(x, x @ w + rng.standard_normal(size)))
  return found


def _by_stacked_rows(clients, penalty):
  """The common model and the differences by one least-squares problem."""
  width, count = FEATURES + 1, len(clients)
  rows, targets = [], []
  for number, (x, y) in enumerate(clients):
    row = np.zeros((len(x), width * (1 + count)))
    row[:, :width] = x
    row[:, width * (1 + number) : width * (2 + number)] = x
    rows.append(row)
    targets.append(y)
  rows.append(np.sqrt(penalty) * np.eye(width * (1 + count))[width:])
  targets.append(np.zeros(width * count))
  found = np.linalg.lstsq(np.vstack(rows), np.concatenate(targets), rcond=None)
  common, *own = found[0].reshape(1 + count, width)
  return [common + difference for difference in own]


def _config(variants):
  return importlib.import_module('configs.relations').get_config(variants)


class FitsTest(parameterized.TestCase):
  @parameterized.parameters(0.1, 3.0, 100.0)
  def test_near_a_common_one_is_least_squares_of_stacked_rows(self, penalty):
    clients = _clients()
    np.testing.assert_allclose(
      ridge.near_a_common_one(clients, penalty),
      _by_stacked_rows(clients, penalty),
      atol=1e-9,
    )

  def test_near_a_common_one_has_the_others_as_limits(self):
    clients = _clients()
    for penalty, fit in (
      (1e-9, ridge.separate),
      (1e9, ridge.one_model),
    ):
      np.testing.assert_allclose(
        ridge.near_a_common_one(clients, penalty),
        fit(clients, 0.0),
        atol=1e-5,
      )

  def test_separate_is_ridge_regression_without_a_penalty_of_intercepts(self):
    clients = _clients()
    for model, (x, y) in zip(
      ridge.separate(clients, 2.0), clients, strict=True
    ):
      other = sklearn.linear_model.Ridge(alpha=2.0).fit(x[:, :-1], y)
      expected = [*other.coef_, other.intercept_]
      np.testing.assert_allclose(model, expected, atol=1e-9)

  def test_errors_count_all_examples_alike(self):
    ones = ridge.Part(np.ones((3, 1)), np.array([3.0, 3.0, 3.0]))
    one = ridge.Part(np.ones((1, 1)), np.array([1.0]))
    models = [np.array([1.0]), np.array([1.0])]
    self.assertEqual(ridge.error(models, [ones, one]), 12**0.5 / 2)


class DataTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.enterContext(small_tables.installed())

  def test_examples_are_standardized_as_in_training(self):
    config = _config('exam')
    source = backbones.load_source(config)
    data = federating.federate(source, config.data, 0)
    train, test = ridge.parts(data)
    self.assertLen(train, data.num_clients)
    np.testing.assert_array_equal(
      [len(part.targets) for part in test], data.partition.test.sizes
    )
    for values in (
      np.concatenate([part.features[:, :-1] for part in train]),
      np.concatenate([part.targets for part in train]),
    ):
      np.testing.assert_allclose(values.mean(0), 0, atol=1e-4)
      deviations = values.std(0)
      # A column that is constant stays so.
      np.testing.assert_allclose(deviations[deviations > 0], 1, rtol=1e-3)

  def test_penalties_are_the_best_of_the_grid(self):
    config = _config('exam,smoke')
    found = ridge.references(config)
    self.assertEqual(list(found), list(ridge.FITS))
    source = backbones.load_source(config)
    splits = [
      ridge.parts(federating.federate(source, config.data, seed))
      for seed in range(config.run.seeds)
    ]
    for name, fit in ridge.FITS.items():
      of = lambda c, fit=fit: np.mean(
        [ridge.error(fit(train, c), test) for train, test in splits]
      )
      errors = [of(penalty) for penalty in ridge.PENALTIES]
      self.assertAlmostEqual(found[name]['nrmse'], min(errors))

  def test_clients_with_several_tasks_are_refused(self):
    config = _config('star')
    data = federating.federate(backbones.load_source(config), config.data, 0)
    with self.assertRaisesRegex(ValueError, 'one regression of each client'):
      ridge.parts(data)


if __name__ == '__main__':
  absltest.main()

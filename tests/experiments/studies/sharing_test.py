"""Laws of centralized sharing: which cases are the same under two names."""

import pathlib
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.building import build
from experiments.configuration import cases
from fmtl_jax import testing
from fmtl_jax.running import program

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test

RULES = (('dense_0(/.*)?', 'task'), ('output(/.*)?', 'personal'))


def _evaluate(case):
  """The evaluation after three rounds."""
  compiled = program.Program(case, 3, 'low')
  state, _ = compiled.run_rounds(compiled.init(), 3)
  return compiled.evaluate(state, 'test')


def _case(name, fields):
  config = program_test.toy_config({'run.seeds': 1, **fields})
  resolved = cases.resolve(name, config, {})
  return build.build(name, resolved, program_test.toy_source(), [3])


_FROM_GLOBAL = 'predicts as isolated training from the global model'


class SharingTest(program_test.ToyTestCase):
  @parameterized.parameters(
    ('hard_sharing', 'centralized_joint', {}),
    ('hard_sharing', 'centralized_joint', {'layer_types': RULES}),
    (
      'soft_sharing',
      'centralized_separate',
      {'algorithm.soft_sharing.lam': 0.0, 'client.momentum': 0.5},
    ),
  )
  def test_it_is_another_case(self, name, same, fields):
    found, expected = (_evaluate(_case(n, fields)) for n in (name, same))
    testing.assert_trees_close(found, expected, 1e-4)

  @parameterized.parameters(
    ('ditto', 'lam', 0.0, _FROM_GLOBAL),
    ('apfl', 'alpha', 0.0, 'is fedavg'),
    ('apfl', 'alpha', 1.0, _FROM_GLOBAL),
    ('mr_mtl', 'lam', 0.0, 'is isolated training'),
    ('soft_sharing', 'lam', 0.0, 'is centralized_separate'),
  )
  def test_what_a_setting_makes_of_it_is_reported(
    self, name, setting, value, is_
  ):
    field = f'algorithm.{name}.{setting}'
    self.assertEqual(
      _case(name, {field: value}).warning,
      f'{name} {is_} with {field}={value:.0f}',
    )
    self.assertEqual(_case(name, {}).warning, '')

  def test_a_pull_changes_the_networks(self):
    field = 'algorithm.soft_sharing.lam'
    apart, near = (
      _evaluate(_case('soft_sharing', {field: lam}))['pooled']['loss']
      for lam in (0.0, 3.0)
    )
    self.assertGreater(np.abs(apart - near).max(), 1e-3)


if __name__ == '__main__':
  absltest.main()

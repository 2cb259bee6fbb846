"""Law: a new algorithm is one new file; all the rest finds it by itself.

A copy of FedProx under another name lies in a folder of its own, with a setting
of another name and default, which is nobody else's.
"""

import importlib.util
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from configs import compare
from experiments.building import build
from experiments.building import checks
from experiments.building import factories
from experiments.configuration import cases
from experiments.configuration import config as config_lib
from experiments.console import listing
from experiments.studies import comparison_plans
from experiments.studies import held_out
from experiments.studies import held_out_data
from fmtl_jax import algorithms
from fmtl_jax import testing
from fmtl_jax.algorithms import fedprox
from fmtl_jax.algorithms import specs
from fmtl_jax.running import program

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / 'tests' / 'laws'))  # For what laws import.

NAME = 'nearby'
FIELD = 'algorithm.nearby.weight'


def _source():
  """The text of the new file."""
  text = pathlib.Path(fedprox.__file__).read_text(encoding='utf-8')
  for old, new in (
    ('FedProx', 'Nearby'),
    ('fedprox', NAME),
    ('mu: float | jax.Array = 0.1', 'weight: float | jax.Array = 0.2'),
    ('mu=mu', 'weight=weight'),
    ('proximal=mu', 'proximal=weight'),
    ("'mu'", "'weight'"),
  ):
    assert old in text, old
    text = text.replace(old, new)
  return text


class NewAlgorithmTest(program_test.ToyTestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    file = pathlib.Path(folder) / f'{NAME}.py'
    file.write_text(_source(), encoding='utf-8')
    cls.enterClassContext(mock.patch.dict(sys.modules))
    path = [*algorithms.__path__, folder]
    cls.enterClassContext(mock.patch.object(algorithms, '__path__', path))
    cls.enterClassContext(mock.patch.dict(algorithms.ALGORITHMS))
    found = specs.ordered(algorithms._found())
    algorithms.register(found[NAME])  # As it were there from the beginning.
    assert found == algorithms.ALGORITHMS

  def _config(self, **fields):
    return program_test.toy_config({'cases': (NAME,), **fields})

  def _case(self, name, field, weight, points=({},)):
    own = {field: weight, 'run.seeds': 1}
    config = self._config(**program_test.BATCHES, **own)
    final = cases.resolve(name, config, {})
    source = program_test.toy_source()
    return build.build(name, final, source, [3], points)

  def test_the_library_builds_it(self):
    federation, _ = testing.toy_federation()
    self.assertNotEmpty(algorithms.build(NAME, federation, weight=0.3))
    with self.assertRaisesRegex(ValueError, 'Expected `weight` >= 0, got -1'):
      algorithms.build(NAME, federation, weight=-1)
    with self.assertRaisesRegex(ValueError, f'known are .*{NAME}'):
      algorithms.build('other', federation)

  def test_a_config_has_its_setting(self):
    config = self._config()
    self.assertEqual(config_lib.flatten(config)[FIELD], 0.2)
    self.assertIn(FIELD, config_lib.identity(config))
    self.assertIn(FIELD, factories.mapped_fields())
    config_lib.set_field(config, FIELD, -1.0)
    with self.assertRaisesRegex(ValueError, f'Expected {FIELD} >= 0, got -1'):
      checks.check(config)

  def test_a_config_without_it_is_as_before(self):
    for _ in range(2):  # Nothing is remembered of one registered meanwhile.
      checks.check(self._config())
      self.assertFalse(config_lib.is_own_setting(FIELD))
      with mock.patch.dict(algorithms.ALGORITHMS):
        del algorithms.ALGORITHMS[NAME]
        checks.check(program_test.toy_config())
        self.assertTrue(config_lib.is_own_setting(FIELD))

  def test_tables_have_a_row_for_it(self):
    config = self._config(**{'algorithm.name': NAME})
    self.assertEqual(cases.names(config), [NAME])
    self.assertEqual(cases.names(self._config()), [NAME])
    self.assertEqual(cases.label(NAME, config), 'Nearby')
    self.assertIn(NAME, cases.CASES)
    self.assertLen([*cases.CASES], len(cases.CASES))
    self.assertIn(NAME, compare.get_config().cases)
    self.assertIn(f'Nearby ({NAME}, 2020)', listing.text())
    self.assertNotIn(FIELD, comparison_plans.identity_of(config))
    own = comparison_plans.identity_of_case(NAME, config)
    self.assertEqual(own[FIELD], 0.2)
    other = comparison_plans.identity_of_case('fedprox', config)
    self.assertNotIn(FIELD, other)

  def test_it_trains_as_what_it_is_a_copy_of(self):
    points = ({FIELD: 0.0}, {FIELD: 0.7})
    compiled = program.Program(self._case(NAME, FIELD, 0.7, points), 2, 'low')
    mapped = program_test.toy_run(compiled, (2,))
    same = self._case('fedprox', 'algorithm.mu', 0.7)
    expected = program_test.toy_run(program.Program(same, 2, 'low'), (2,))
    testing.assert_trees_close(
      program_test.of_run(mapped['rounds'], 1), expected['rounds'], rtol=1e-4
    )
    losses = mapped['rounds']['loss_sum']
    self.assertFalse(np.array_equal(losses[0], losses[1]))

  def test_its_degenerate_case_is_reported_by_the_field(self):
    case = self._case(NAME, FIELD, 0.0)
    self.assertEqual(case.warning, f'{NAME} is fedavg with {FIELD}=0')

  def test_held_out_clients_adapt_as_it_says(self):
    config = self._config(**{'unseen.clients': 1, 'unseen.examples': (0, 2)})
    source = program_test.toy_source()
    held = [
      held_out_data.hold_out(source, config, s) for s in program_test.SEEDS
    ]
    (plan,) = held_out.plans_of(config, source, held)
    self.assertEqual(plan.way, (False, config.unseen.learning_rate, 0.0))

  def test_the_laws_of_all_algorithms_hold_it(self):
    for law in ('algorithms_test', 'conformance_test', 'specs_test'):
      spec = importlib.util.spec_from_file_location(
        f'again_{law}', ROOT / 'tests' / 'laws' / f'{law}.py'
      )
      module = importlib.util.module_from_spec(spec)
      with mock.patch.object(jax.config, 'update'):  # JAX has started.
        spec.loader.exec_module(module)
      suite = unittest.defaultTestLoader.loadTestsFromModule(module)
      ids = [test.id() for group in suite for test in group]
      self.assertNotEmpty([name for name in ids if NAME in name], law)


if __name__ == '__main__':
  absltest.main()

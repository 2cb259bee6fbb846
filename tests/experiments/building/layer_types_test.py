"""Whose `layer_types` a row has: those it was given, and not another row's."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import ml_collections

from experiments.building import build
from experiments.configuration import cases
from fmtl_jax.federation import layer_types
from tests.experiments.running import program_test

RULES = (('dense_0/.*', 'common'), ('.*', 'task'))


def _labels(name, fields, *, command_line=(), **overrides):
  """The layer types of the leaves of a row's network, by path."""
  config = program_test.toy_config({'run.seeds': 1, **fields})
  config.overrides = ml_collections.ConfigDict(overrides)
  given = {field: fields[field] for field in command_line}
  resolved = cases.resolve(name, config, given)
  case = build.build(name, resolved, program_test.toy_source(), [3])
  labels = case.federation.labels
  return dict(
    zip(layer_types.paths(labels), jax.tree.leaves(labels), strict=True)
  )


class LayerTypesTest(program_test.ToyTestCase):
  @parameterized.parameters(
    *('fedavg', 'fedprox', 'scaffold', 'fedadam', 'fedbuff', 'ditto', 'apfl')
  )
  def test_a_row_has_those_of_its_overrides(self, name):
    plain = _labels(name, {'layer_types': RULES})
    self.assertEqual(set(plain.values()), {'common'})
    given = {name: {'layer_types': RULES}}
    for path, label in _labels(name, {}, **given).items():
      expected = 'common' if path.startswith('dense_0/') else 'task'
      self.assertEqual(label, expected, path)

  def test_those_of_the_config_are_of_the_paper_s_method(self):
    for name in ('multi_task_fl', 'hard_sharing', 'centralized_joint'):
      rules = (('dense_0/.*', 'task'), ('.*', 'common'))
      labels = _labels(name, {'layer_types': rules})
      self.assertEqual(labels['dense_0/kernel'], 'task', name)
      self.assertEqual(labels['output/kernel'], 'common', name)

  def test_the_only_row_has_those_of_the_command_line(self):
    fields = {'algorithm.name': 'fedprox', 'layer_types': RULES}
    found = _labels('fedprox', fields, command_line=('layer_types',))
    self.assertEqual(set(found.values()), {'common', 'task'})
    found = _labels('fedprox', fields)  # Of a config file, for another row.
    self.assertEqual(set(found.values()), {'common'})

  def test_leaves_that_make_an_algorithm_stay_its_own(self):
    fields = {'model.normalization': 'batch'}
    rules = (('.*', 'common'),)
    found = _labels('fedbn', fields, fedbn={'layer_types': rules})
    types = {path: label for path, label in found.items() if '/norm/' in path}
    self.assertEqual(set(types.values()), {'personal'})
    self.assertEqual(found['dense_0/kernel'], 'common')

  def test_what_an_algorithm_cannot_have_is_refused(self):
    given = {'fedrep': {'layer_types': RULES}}
    with self.assertRaisesRegex(ValueError, 'fedrep to have layers that'):
      _labels('fedrep', {}, **given)


if __name__ == '__main__':
  absltest.main()

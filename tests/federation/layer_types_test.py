"""Laws of layer types: rules label leaves, labels split trees."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import testing
from fmtl_jax.federation import layer_types

PARAMS = {
  'encoder': {'kernel': np.ones((3, 4)), 'bias': np.zeros(4)},
  'head': {'kernel': np.ones((4, 2)), 'bias': np.zeros(2)},
  'scale': np.ones(()),
}
PATHS = ['encoder/bias', 'encoder/kernel', 'head/bias', 'head/kernel', 'scale']


def _labels(*rules, known=None):
  """The layer types of the leaves, in the order of `PATHS`."""
  return jax.tree.leaves(layer_types.label_params(PARAMS, rules, known))


class LabelParamsTest(parameterized.TestCase):
  def test_paths_join_the_keys(self):
    self.assertEqual(layer_types.paths(PARAMS), PATHS)
    self.assertEqual(
      layer_types.paths({'blocks': [{'w': 0}, {'w': 1}], 'gap': None}),
      ['blocks/0/w', 'blocks/1/w'],
    )

  def test_the_first_rule_wins(self):
    self.assertEqual(
      _labels(('head/bias', 'personal'), ('head/.*', 'task'), ('.*', 'common')),
      ['common', 'common', 'personal', 'task', 'common'],
    )

  def test_a_rule_matches_the_whole_path(self):
    with self.assertRaisesRegex(ValueError, "covers the parameter 'encoder/bi"):
      _labels(('encoder', 'common'), ('.*/kernel', 'common'))
    with self.assertRaisesRegex(ValueError, "covers the parameter 'encoder/bi"):
      _labels(('bias', 'common'), ('.*kernel', 'common'))

  def test_the_labels_have_the_structure_of_the_parameters(self):
    labels = layer_types.label_params(PARAMS, [('.*', 'common')])
    self.assertEqual(jax.tree.structure(labels), jax.tree.structure(PARAMS))

  def test_an_uncovered_parameter_is_named_with_a_cure(self):
    with self.assertRaisesRegex(
      ValueError,
      "No rule of layer_types covers the parameter 'scale'; add one, for "
      r"example \('scale', 'common'\)",
    ):
      _labels(('encoder/.*', 'common'), ('head/.*', 'task'))

  @parameterized.parameters(
    ([('.*', 'common'), ('head/.*', 'task')],),
    ([('decoder/.*', 'task'), ('.*', 'common')],),
  )
  def test_a_rule_without_a_parameter_is_named(self, rules):
    idle = next(rule for rule in rules if rule[1] == 'task')
    with self.assertRaises(ValueError) as caught:
      _labels(*rules)
    self.assertIn(
      f'The layer_types rule {idle} covers no parameter', str(caught.exception)
    )
    self.assertIn(', '.join(PATHS), str(caught.exception))

  def test_a_broken_pattern_is_named(self):
    with self.assertRaisesRegex(
      ValueError, r"a regular expression in layer_types, got '\(head' \("
    ):
      _labels(('(head', 'task'), ('.*', 'common'))

  def test_an_unknown_layer_type_is_named(self):
    rules = ('head/.*', 'cluster'), ('.*', 'common')
    with self.assertRaisesRegex(
      ValueError,
      r"Unknown layer type 'cluster' in layer_types rule \('head/.*', "
      r"'cluster'\); known are common, task",
    ):
      _labels(*rules, known=['task', 'common'])
    expected = ['common', 'common', 'cluster', 'cluster', 'common']
    self.assertEqual(_labels(*rules), expected)
    known = ['cluster', 'common']
    self.assertEqual(_labels(*rules, known=known), expected)

  def test_exact_rules_give_every_leaf_its_label(self):
    params = {'a.b': {'w': 0, 'w+': 1}, 'aXb': {'w': 2}}
    labels = {'a.b': {'w': 'task', 'w+': 'personal'}, 'aXb': {'w': 'common'}}
    rules = layer_types.exact_rules(labels)
    self.assertEqual(layer_types.label_params(params, rules), labels)


class SplitTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.labels = {
      'encoder': {'kernel': 'pretrained', 'bias': 'common'},
      'head': {'kernel': 'task', 'bias': 'personal'},
      'scale': 'pretrained',
    }

  def test_split_and_merge_are_inverse(self):
    trained, frozen = layer_types.split(PARAMS, self.labels)
    self.assertEqual(
      layer_types.paths(trained), ['encoder/bias', 'head/bias', 'head/kernel']
    )
    self.assertEqual(layer_types.paths(frozen), ['encoder/kernel', 'scale'])
    testing.assert_trees_equal(layer_types.merge(trained, frozen), PARAMS)
    testing.assert_trees_equal(layer_types.merge(frozen, trained), PARAMS)

  def test_split_leaves_holes(self):
    trained, frozen = layer_types.split(PARAMS, self.labels)
    self.assertIsNone(trained['encoder']['kernel'])
    self.assertIsNone(trained['scale'])
    self.assertIsNone(frozen['head']['kernel'])

  def test_select_keeps_what_passes(self):
    head = layer_types.select(
      PARAMS, self.labels, lambda label: label in ('task', 'personal')
    )
    self.assertEqual(layer_types.paths(head), ['head/bias', 'head/kernel'])

  def test_the_first_tree_of_a_merge_wins(self):
    merged = layer_types.merge(
      {'a': 1, 'b': None, 'c': None}, {'a': 2, 'b': 3, 'c': None}
    )
    self.assertEqual(merged, {'a': 1, 'b': 3, 'c': None})

  def test_sizes_count_values_by_layer_type(self):
    self.assertEqual(
      layer_types.sizes(PARAMS, self.labels),
      {'pretrained': 13, 'common': 4, 'task': 8, 'personal': 2},
    )


class UseOrderTest(parameterized.TestCase):
  def _order(self, apply_fn, *names):
    params = {name: jnp.ones((2, 2)) for name in names}
    return layer_types.use_order(apply_fn, params, jnp.ones((1, 2)))

  def test_it_is_that_of_the_network_and_not_of_the_names(self):
    def apply(params, x):
      return jnp.tanh(x @ params['z'] @ params['m']) @ params['a']

    self.assertEqual(self._order(apply, 'a', 'm', 'z'), ['z', 'm', 'a'])

  def test_unused_parameters_come_last(self):
    apply = lambda params, x: x @ params['c'] @ params['b']
    self.assertEqual(
      self._order(apply, 'a', 'b', 'c', 'd'), ['c', 'b', 'a', 'd']
    )

  def test_a_second_use_changes_nothing(self):
    apply = lambda params, x: x @ params['b'] @ params['a'] @ params['b']
    self.assertEqual(self._order(apply, 'a', 'b'), ['b', 'a'])

  @parameterized.named_parameters(
    ('jit', jax.jit),
    ('checkpoint', jax.checkpoint),
    ('both', lambda function: jax.jit(jax.checkpoint(function))),
  )
  def test_it_looks_into_inner_functions(self, transform):
    @transform
    def inner(first, second, x):
      return x @ second @ first

    apply = lambda params, x: inner(params['a'], params['b'], x) @ params['0']
    self.assertEqual(self._order(apply, '0', 'a', 'b'), ['b', 'a', '0'])

  def test_it_looks_into_loops(self):
    def apply(params, x):
      step = lambda x, _: (x @ params['b'] @ params['a'], None)
      return jax.lax.scan(step, x @ params['c'], None, 3)[0]

    self.assertEqual(self._order(apply, 'a', 'b', 'c'), ['c', 'b', 'a'])

  def test_shapes_are_enough(self):
    init, apply = testing.mlp([3, 4, 2])
    shapes = jax.eval_shape(init, jax.random.key(0))
    features = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    order = layer_types.use_order(apply, shapes, features)
    self.assertCountEqual(order, layer_types.paths(shapes))
    self.assertEqual(layer_types.modules(order), ['layer_0', 'layer_1'])


class ByDepthTest(parameterized.TestCase):
  def test_modules_are_first_keys_in_order(self):
    self.assertEqual(
      layer_types.modules(['b/kernel', 'a/x/y', 'b/bias', 'c']), ['b', 'a', 'c']
    )

  def test_layers_get_types_from_the_input_on(self):
    rules = layer_types.by_depth(
      ['scale', 'encoder', 'head'],
      [('pretrained', 1), ('common', 1), ('task', 0), ('personal', 1)],
    )
    self.assertEqual(
      _labels(*rules),
      ['common', 'common', 'personal', 'personal', 'pretrained'],
    )

  def test_a_layer_is_its_name_and_no_pattern(self):
    names = ['a.1', 'a.10', 'a+1']
    rules = layer_types.by_depth(names, [('common', 1), ('task', 2)])
    self.assertEqual(
      layer_types.label_params({name: {'w': 0} for name in names}, rules),
      {'a.1': {'w': 'common'}, 'a.10': {'w': 'task'}, 'a+1': {'w': 'task'}},
    )

  @parameterized.parameters(
    (1, 3, '1 common, 3 task'),
    (1, 0, '1 common, 0 task'),
    (-1, 3, '-1 common, 3 task'),
  )
  def test_numbers_that_do_not_fit_are_named(self, common, task, given):
    with self.assertRaisesRegex(
      ValueError,
      rf'each of the 2 layers \(a, b\), got {given}; choose fewer',
    ):
      layer_types.by_depth(['a', 'b'], [('common', common), ('task', task)])


if __name__ == '__main__':
  absltest.main()

"""Laws of how a federation is put together, and of its initial values."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import federation as federation_lib
from fmtl_jax import testing
from fmtl_jax.federation import layer_types

C, T, P = layer_types.COMMON, layer_types.TASK, layer_types.PERSONAL

FROZEN = layer_types.PRETRAINED

CLUSTERS = {
  **federation_lib.OWNERS,
  'cluster': federation_lib.Owner('cluster'),
}


def _with_clusters(data, index):
  partition = dataclasses.replace(
    data.partition, owner_index={'cluster': np.asarray(index, np.int32)}
  )
  return dataclasses.replace(data, partition=partition)


def _create(**changes):
  data = changes.pop('data', None) or testing.toy_data()
  model = changes.pop('model', testing.mlp([3, 4, 5]))
  rules = changes.pop('rules', [('layer_0/.*', C), ('layer_1/.*', T)])
  return federation_lib.Federation.create(model, rules, data, **changes)


class CreateTest(parameterized.TestCase):
  def test_rules_are_checked_against_the_owners(self):
    with self.assertRaisesRegex(
      ValueError,
      "Unknown layer type 'cluster' .* known are client, common, decoder, "
      'personal, pretrained, task',
    ):
      _create(rules=[('.*', 'cluster')])

  def test_something_is_left_to_train(self):
    with self.assertRaisesRegex(ValueError, 'Every layer is pre-trained'):
      _create(rules=[('.*', FROZEN)])

  def test_pretrained_layers_need_values(self):
    rules = [('layer_0/.*', FROZEN), ('layer_1/.*', C)]
    with self.assertRaisesRegex(
      ValueError, "The layer 'layer_0/bias' is labelled pre-trained but no "
    ):
      _create(rules=rules)
    kernel = {'layer_0': {'kernel': np.ones((3, 4))}}
    with self.assertRaisesRegex(ValueError, "The layer 'layer_0/bias'"):
      _create(rules=rules, pretrained=kernel)

  def test_pretrained_values_have_the_shape_of_the_layer(self):
    with self.assertRaisesRegex(
      ValueError,
      r"pre-trained layer 'layer_0/kernel' to have the shape \(3, 4\), got "
      r'\(4, 3\)',
    ):
      _create(
        rules=[('layer_0/kernel', FROZEN), ('.*', C)],
        pretrained={'layer_0': {'kernel': np.ones((4, 3))}},
      )

  def test_pretrained_values_are_taken_from_a_larger_tree(self):
    kernel = np.ones((3, 4))
    values = {
      'layer_0': {'kernel': kernel, 'bias': np.ones(4)},
      'classifier': {'kernel': np.ones((4, 1000))},
    }
    federation = _create(
      rules=[('layer_0/kernel', FROZEN), ('.*', T)], pretrained=values
    )
    self.assertIs(federation.frozen['layer_0']['kernel'], kernel)
    self.assertEqual(layer_types.paths(federation.frozen), ['layer_0/kernel'])
    self.assertEqual(
      layer_types.paths(federation.layer_types),
      ['layer_0/bias', 'layer_1/bias', 'layer_1/kernel'],
    )

  def test_every_task_has_a_weight(self):
    with self.assertRaisesRegex(
      ValueError, r'`task_weights` .* each of the 3 tasks, got \(1.0, 2.0\)'
    ):
      _create(task_weights=[1.0, 2.0])
    self.assertEqual(_create().task_weights, (1.0, 1.0, 1.0))

  @parameterized.parameters((True, False), (False, True), (False, False))
  def test_owners_are_numbered_and_indexed(self, numbered, indexed):
    data = testing.toy_data()
    with self.assertRaisesRegex(
      ValueError,
      r"layer type 'cluster' are not known; give num_owners\['cluster'\] here "
      r"and owner_index\['cluster'\] in the data",
    ):
      _create(
        data=_with_clusters(data, np.arange(7) % 2) if indexed else data,
        rules=[('layer_0/.*', C), ('layer_1/.*', 'cluster')],
        owners=CLUSTERS,
        num_owners={'cluster': 2} if numbered else None,
      )

  def test_an_unknown_initialization_is_named(self):
    with self.assertRaisesRegex(
      ValueError, "to be 'shared' or 'per_owner', got 'zeros'"
    ):
      _create(initialization='zeros')

  @parameterized.parameters(
    (testing.mlp([3, 4]), r'\(1, 4\)'),
    ((testing.mlp([3, 5])[0], lambda params, x: x[:, 0]), r'\(1,\)'),
  )
  def test_outputs_fit_the_widest_task(self, model, shape):
    with self.assertRaisesRegex(
      ValueError, rf'\[B, O\] with O >= 5 .* got the shape {shape} for a batch'
    ):
      _create(model=model, rules=[('.*', C)])

  def test_an_own_loss_may_have_any_outputs(self):
    federation = _create(
      model=testing.mlp([3, 2]),
      rules=[('.*', C)],
      loss=lambda outputs, labels: outputs.sum(1) + labels,
    )
    np.testing.assert_array_equal(
      federation.loss_fn(jnp.ones((2, 2)), jnp.array([3.0, 4.0]), jnp.array(1)),
      [5, 6],
    )

  def test_groups_are_counted(self):
    federation = _create(data=testing.toy_data(7, 3, 2))
    # Clients 2 and 5 hold a single task, the last of the three.
    self.assertEqual(federation.group_sizes, (3, 5, 4))
    self.assertEqual(federation.num_slots, 2)
    self.assertEqual(federation.num_owners, {'task': 3, 'client': 7})

  @parameterized.parameters(
    ([C, T], False),
    ([C, C], False),
    ([T, T], False),
    ([P, T], True),
    ([C, P], True),
    ([FROZEN, P], True),
  )
  def test_models_of_clients_differ_with_personal_layers(self, types, expected):
    federation, _ = testing.toy_federation(types)
    self.assertEqual(federation.has_client_layers, expected)

  def test_models_of_clients_differ_with_clusters(self):
    data = _with_clusters(testing.toy_data(), np.arange(7) % 2)
    federation, _ = testing.toy_federation(
      ['cluster', T], data, owners=CLUSTERS, num_owners={'cluster': 2}
    )
    self.assertTrue(federation.has_client_layers)


class OwnersTest(parameterized.TestCase):
  """Axes of the state and copies in a client's view, by layer."""

  def _check(self, types, num_slots, expected, **settings):
    """`expected` has the owner axes and whether copies are by slot."""
    data = settings.pop('data', None) or testing.toy_data(7, 3, num_slots)
    federation, _ = testing.toy_federation(types, data, **settings)
    per_slot = [federation.per_slot[f'layer_{i}'] for i in range(len(types))]
    shapes = jax.eval_shape(federation.init_params, jax.random.key(0))
    for number, (axes, by_slot) in enumerate(expected):
      self.assertEqual(
        per_slot[number], {'kernel': by_slot, 'bias': by_slot}, number
      )
      kernel = shapes[f'layer_{number}']['kernel']
      if axes is None:
        self.assertIsNone(kernel)
      else:
        self.assertEqual(kernel.shape[:-2], axes, number)
    return federation

  @parameterized.parameters(1, 2)
  def test_common_and_task_specific(self, num_slots):
    self._check(
      [FROZEN, C, T],
      num_slots,
      [(None, False), ((), False), ((3,), True)],
    )

  @parameterized.parameters(1, 2)
  def test_personal_before_and_after_the_first_task_layer(self, num_slots):
    self._check(
      [P, C, T, C, P],
      num_slots,
      [
        ((7,), False),
        ((), False),
        ((3,), True),
        ((), False),
        ((7, num_slots), True),
      ],
    )

  @parameterized.parameters(1, 2)
  def test_the_output_layer_where_no_layer_is_task_specific(self, num_slots):
    self._check(
      [P, P, P],
      num_slots,
      [((7,), False), ((7,), False), ((7, num_slots), True)],
    )

  def test_a_common_output_layer_stays_single(self):
    self._check([P, C], 2, [((7,), False), ((), False)])

  def test_the_order_is_that_of_use(self):
    """`a` is the output: by name it would come before the task layer."""

    def init(unused_key):
      shapes = {'a': (4, 5), 'm': (4, 4), 'z': (3, 4)}
      return {name: jnp.zeros(shape) for name, shape in shapes.items()}

    federation = _create(
      model=(init, lambda p, x: x @ p['z'] @ p['m'] @ p['a']),
      rules=[('m', T), ('.*', P)],
      data=testing.toy_data(7, 3, 2),
    )
    self.assertEqual(federation.per_slot, {'a': True, 'm': True, 'z': False})

  def test_kernel_and_bias_of_the_output_layer_go_together(self):
    """A layer that adds its bias last has its kernel by slot as well."""
    federation = _create(
      model=testing.mlp([3, 4, 5]),
      rules=[('layer_1/.*', P), ('.*', C)],
      data=testing.toy_data(7, 3, 2),
    )
    self.assertEqual(
      federation.per_slot,
      {
        'layer_0': {'kernel': False, 'bias': False},
        'layer_1': {'kernel': True, 'bias': True},
      },
    )

  def test_an_owner_of_clients_has_no_slots(self):
    data = _with_clusters(testing.toy_data(7, 3, 2), np.arange(7) % 4)
    self._check(
      ['cluster', C, 'cluster'],
      2,
      [((4,), False), ((), False), ((4,), False)],
      data=data,
      owners=CLUSTERS,
      num_owners={'cluster': 4},
    )

  def test_an_owner_of_slots_acts_as_a_task(self):
    """Layers of a cluster for each slot, and personal ones from there on."""
    index = np.arange(14).reshape(7, 2) % 4
    self._check(
      [P, 'cluster', P],
      2,
      [((7,), False), ((4,), True), ((7, 2), True)],
      data=_with_clusters(testing.toy_data(7, 3, 2), index),
      owners=CLUSTERS,
      num_owners={'cluster': 4},
    )


class InitializationTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.key = jax.random.key(5)
    self.data = testing.toy_data(4, 2, 2)

  def _init(self, types, initialization):
    federation, _ = testing.toy_federation(
      types, self.data, width=2, initialization=initialization
    )
    params = testing.jit(federation.init_params)(self.key)
    one = federation.init_fn(self.key)
    return jax.tree.map(np.asarray, params), one, federation

  def test_shared_is_one_draw_for_all_owners(self):
    params, one, _ = self._init([FROZEN, C, T, P], 'shared')
    self.assertIsNone(params['layer_0']['kernel'])
    for name, axes in ('layer_1', ()), ('layer_2', (2,)), ('layer_3', (4, 2)):
      for leaf in 'kernel', 'bias':
        expected = one[name][leaf]
        np.testing.assert_allclose(
          params[name][leaf],
          np.broadcast_to(expected, axes + expected.shape),
          rtol=1e-6,
        )

  def test_every_owner_has_a_draw_of_its_own(self):
    params, one, _ = self._init([P, C, T, P], 'per_owner')
    np.testing.assert_allclose(
      params['layer_1']['kernel'], one['layer_1']['kernel'], rtol=1e-6
    )
    for name, owners in ('layer_0', 4), ('layer_2', 2), ('layer_3', 8):
      kernel = params[name]['kernel']
      copies = kernel.reshape((owners,) + kernel.shape[-2:])
      self.assertLen(np.unique(copies.reshape(owners, -1), axis=0), owners)

  @parameterized.parameters('shared', 'per_owner')
  def test_some_clients_start_as_in_the_whole_federation(self, initialization):
    params, _, federation = self._init([P, C, T, P], initialization)
    clients = jnp.array([3, 1])

    @testing.jit
    def of_some(clients):
      return federation.of_clients(clients, (1, 1)).init_params(self.key)

    expected = dict(params)
    for name in ('layer_0', 'layer_3'):
      expected[name] = jax.tree.map(lambda x: x[clients], params[name])
    testing.assert_trees_equal(of_some(clients), expected)

  def test_an_owner_has_the_draw_of_its_number(self):
    params, _, federation = self._init([C, T], 'per_owner')
    for task in range(2):
      drawn = federation.init_fn(jax.random.fold_in(self.key, task))
      np.testing.assert_allclose(
        params['layer_1']['kernel'][task],
        drawn['layer_1']['kernel'],
        rtol=1e-6,
      )


if __name__ == '__main__':
  absltest.main()

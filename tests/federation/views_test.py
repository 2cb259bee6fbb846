"""Laws of the copies that a client has."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import testing
from fmtl_jax.federation import layer_types

C, T, P = layer_types.COMMON, layer_types.TASK, layer_types.PERSONAL

FROZEN = layer_types.PRETRAINED


def _distinct(tree):
  """Every value of every leaf is another number."""
  leaves, structure = jax.tree.flatten(tree)
  ends = np.cumsum([leaf.size for leaf in leaves])
  return jax.tree.unflatten(
    structure,
    [
      np.arange(end - leaf.size, end, dtype=np.float32).reshape(leaf.shape)
      for leaf, end in zip(leaves, ends, strict=True)
    ],
  )


class ViewTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.data = testing.toy_data(5, 3, 2)
    self.federation, _ = testing.toy_federation(
      [P, FROZEN, C, T, P], self.data, width=2
    )
    shapes = jax.eval_shape(self.federation.init_params, jax.random.key(0))
    self.params = _distinct(shapes)

  def test_broadcast_gathers_the_rows_of_the_owners(self):
    everyone = cohorts.everyone(self.data)
    views = jax.vmap(self.federation.broadcast, (None, 0))(
      self.params, everyone.index
    )
    for client in range(5):
      tasks = self.data.partition.client_tasks[client]
      tasks = np.minimum(tasks, 2)  # An empty slot has some task's layer.
      view = jax.tree.map(lambda leaf, row=client: leaf[row], views)
      params = self.params
      testing.assert_trees_equal(view['layer_0'], self._row('layer_0', client))
      self.assertEqual(jax.tree.leaves(view['layer_1']), [])
      testing.assert_trees_equal(view['layer_2'], params['layer_2'])
      testing.assert_trees_equal(view['layer_3'], self._row('layer_3', tasks))
      testing.assert_trees_equal(view['layer_4'], self._row('layer_4', client))

  def _row(self, name, index):
    return jax.tree.map(lambda leaf: leaf[index], self.params[name])

  def test_a_padding_client_is_clipped(self):
    index = {'client': jnp.array(5), 'task': jnp.array([3, 3])}
    view = self.federation.broadcast(self.params, index)
    testing.assert_trees_equal(view['layer_0'], self._row('layer_0', 4))
    testing.assert_trees_equal(
      view['layer_3'], self._row('layer_3', np.array([2, 2]))
    )

  def test_a_slot_has_a_plain_model(self):
    index = {'client': jnp.array(3), 'task': jnp.array([2, 0])}
    view = self.federation.broadcast(self.params, index)
    model = self.federation.slot_view(view, jnp.array(1))
    testing.assert_trees_equal(model['layer_0'], self._row('layer_0', 3))
    testing.assert_trees_equal(model['layer_2'], self.params['layer_2'])
    testing.assert_trees_equal(model['layer_3'], self._row('layer_3', 0))
    testing.assert_trees_equal(model['layer_4'], self._row('layer_4', (3, 1)))

  @parameterized.parameters([[P, FROZEN, C, T, P]], [[C, P]], [[P, C]], [[C]])
  def test_slots_are_computed_as_one_by_one(self, types):
    federation, _ = testing.toy_federation(types, self.data, width=2)
    params = jax.tree.map(
      lambda x: np.cos(_distinct(x)),
      jax.eval_shape(federation.init_params, jax.random.key(0)),
    )
    features = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    index = {'client': jnp.array(3), 'task': jnp.array([2, 0])}

    @testing.jit
    def both(params):
      view = federation.broadcast(params, index)
      models = [
        layer_types.merge(federation.slot_view(view, slot), federation.frozen)
        for slot in (jnp.array(0), jnp.array(1))
      ]
      return (
        federation.apply_slots(view, federation.frozen, features),
        jnp.stack([federation.apply_fn(model, features) for model in models]),
      )

    together, apart = both(params)
    self.assertEqual(together.shape, (2, 4, 5))
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-6)
    if types != [P, C] and types != [C]:
      self.assertGreater(np.abs(apart[0] - apart[1]).max(), 0.01)


if __name__ == '__main__':
  absltest.main()

"""Laws of local optimizers and their learning rates."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import optax

from fmtl_jax import testing
from fmtl_jax.clients import local_optimizers


class RateTest(parameterized.TestCase):
  def test_a_number_or_a_schedule(self):
    self.assertEqual(local_optimizers.rate(0.5, jnp.int32(3)), 0.5)
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    self.assertEqual(local_optimizers.rate(schedule, jnp.int32(3)), 0.25)


class OnPartTest(parameterized.TestCase):
  def test_the_rest_is_neither_seen_nor_moved(self):
    """Its gradients have no part in the norm that is clipped, say."""
    clipped = lambda rate: optax.chain(
      optax.clip_by_global_norm(1.0),
      local_optimizers.Sgd(momentum=0.5, weight_decay=0.1)(rate),
    )
    params = {'body': jnp.ones(2), 'head': jnp.ones(3), 'none': None}
    grads = {'body': jnp.full(2, 1e6), 'head': jnp.full(3, 7.0), 'none': None}
    part = {'body': False, 'head': True, 'none': None}
    tx, alone = local_optimizers.on_part(clipped, part)(0.2), clipped(0.2)
    state, its_state = tx.init(params), alone.init(params['head'])
    for _ in range(2):
      changes, state = tx.update(grads, state, params)
      expected, its_state = alone.update(
        grads['head'], its_state, params['head']
      )
      testing.assert_trees_equal(
        changes, {'body': jnp.zeros(2), 'head': expected, 'none': None}
      )
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    self.assertNotIn((2,), shapes)


if __name__ == '__main__':
  absltest.main()

"""Laws of client updates as rounds run them: masked slots."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import testing
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates


@functools.cache
def _data():
  """Four clients with eight rows at most."""
  return testing.toy_data(4, 2, sizes=(5, 2, 8, 4))


def _client(number, data=None):
  cohort = cohorts.everyone(_data() if data is None else data)
  return cohorts.take(cohort, jnp.int32(number))


class MaskedTest(parameterized.TestCase):
  """The round keeps any client update away from slots that take no part."""

  def _run(self, run, num_slots=2):
    """One client whose second slot takes no part and holds NaN everywhere."""
    data = testing.toy_data(4, 3, num_slots)
    federation, _ = testing.toy_federation(('common', 'task', 'personal'), data)
    client = _client(0, data)
    active = jnp.array([True, False])
    client = dataclasses.replace(client, active=active)
    params = federation.init_params(jax.random.key(0))
    view = federation.broadcast(params, client.index)
    nan = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), view)
    spoiled = federation.where_active(active, view, nan)
    kept = {'model': spoiled, 'sent': federation.averaged(spoiled), 'rounds': 3}
    update = client_updates.masked(
      federation, client_updates.ClientUpdate(lambda view: kept, run)
    )
    context = client_updates.ClientContext(
      key=jax.random.key(1),
      view=spoiled,
      state=kept,
      frozen=federation.frozen,
      data=client_batches.LocalData(data, client),
      round=jnp.int32(0),
      broadcast=federation.averaged(spoiled),
    )
    return federation, kept, update.run(context)

  def test_it_sees_zeros_and_sends_zeros(self):
    seen = []

    def run(context):
      seen.append((context.view, context.state, context.broadcast))
      ones = jax.tree.map(jnp.ones_like, context.view)
      return client_updates.ClientResult(ones, context.state, {})

    federation, _, result = self._run(run)
    for leaf in jax.tree.leaves(seen):
      self.assertTrue(np.isfinite(leaf).all())
    of_task, shared = result.update['layer_1'], result.update['layer_0']
    np.testing.assert_array_equal(of_task['bias'][0], 1)
    np.testing.assert_array_equal(of_task['bias'][1], 0)
    np.testing.assert_array_equal(shared['bias'], 1)

  def test_what_is_kept_of_other_slots_stays(self):
    """Models and averaged layers alike; what is neither is the update's."""

    def run(context):
      add = lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree)
      return client_updates.ClientResult(context.view, add(context.state), {})

    federation, kept, result = self._run(run)
    self.assertEqual(result.state['rounds'], 4)
    for name in ('model', 'sent'):
      for layer in ('layer_0', 'layer_1', 'layer_2'):
        new, old = result.state[name][layer], kept[name][layer]
        if new['bias'] is None:  # The server has no copy of it.
          self.assertEqual((name, layer), ('sent', 'layer_2'))
        elif layer == 'layer_0':
          np.testing.assert_array_equal(new['bias'], old['bias'] + 1)
        else:
          np.testing.assert_array_equal(new['bias'][0], old['bias'][0] + 1)
          np.testing.assert_array_equal(new['bias'][1], old['bias'][1])


if __name__ == '__main__':
  absltest.main()

"""FedRep against the loops of its paper, and the order of its phases."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from fmtl_jax import testing
from fmtl_jax.algorithms import fedbabu
from fmtl_jax.algorithms import fedrep
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings

import cases
import naive


@dataclasses.dataclass
class FedRep(naive.Federation):
  """Algorithm 1 of the paper in loops: heads are the personal layers."""

  head_epochs: int = 10
  trains_heads: bool = False

  def touched(self, member):
    return {
      (leaf, place)
      for leaf, place in super().touched(member)
      if (self.types[leaf] == 'personal') == self.trains_heads
    }

  def local_training(self, params, member, number):
    params, found = naive.copied(params), {}
    for heads, orders in (
      (True, member.orders[: self.head_epochs]),
      (False, member.orders[self.head_epochs :]),
    ):
      self.trains_heads = heads
      phase = dataclasses.replace(member, orders=orders)
      values = super().local_training(params, phase, number)
      for ((layer, name), place), value in values.items():
        params[layer][name][place] = value
      found |= values
    return found


def _keys(head_epochs):
  """The keys of the orders of both phases."""

  def keys(key, epochs):
    head_key, body_key = jax.random.split(key)
    return [
      *cases.epoch_keys(head_key, head_epochs),
      *cases.epoch_keys(body_key, epochs),
    ]

  return keys


def _run(build, local, types=('common', 'personal'), rounds=1, **own):
  """The parameters before and after some rounds."""
  federation, data = cases.toy_federation(types)
  algorithm = build(federation, local, round_settings.RoundSettings(), **own)
  start = cases.start(algorithm, data)
  state, round_fn = start, testing.jit(algorithm.round)
  for _ in range(rounds):
    state, _ = round_fn(state, data)
  return start.params, state.params


class FedRepTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_rounds_are_those_of_the_paper(self, keep_momentum):
    cases.compare(
      ('common', 'personal', ('common', 'personal')),
      cases.toy_data(7, 3),
      local=cases.Local(
        batch_size=2, epochs=2, momentum=0.5, keep_momentum=keep_momentum
      ),
      clients_per_task=(2, 1, 2),
      rounds=3,
      build=fedrep.fedrep,
      reference=FedRep,
      own={'head_epochs': 3},
      keys_fn=_keys(3),
    )

  def test_any_layer_types_and_several_tasks_for_each_client(self):
    cases.compare(
      ('common', 'task', 'personal'),
      cases.toy_data(5, 3, 2, missing=0.4),
      local=cases.Local(batch_size=3),
      clients_per_task=1,
      rounds=4,
      build=fedrep.fedrep,
      reference=FedRep,
      own={'head_epochs': 2},
      keys_fn=_keys(2),
    )

  def test_without_epochs_of_heads_it_has_the_rounds_of_fedbabu(self):
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=0, epochs=2)
    _, found = _run(fedrep.fedrep, local, rounds=2, head_epochs=0)
    _, expected = _run(fedbabu.fedbabu, local, rounds=2)
    testing.assert_trees_close(found, expected)

  def test_with_heads_alone_it_is_isolated_training(self):
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=0, epochs=3)
    types = ('personal', 'personal')
    _, found = _run(fedrep.fedrep, local, types, rounds=2, head_epochs=3)
    _, expected = _run(multi_task_fl.multi_task_fl, local, types, rounds=2)
    testing.assert_trees_close(found, expected)

  @parameterized.parameters((0, False), (1, True))
  def test_the_body_learns_from_the_new_head(self, head_epochs, moves):
    """A head of zeros lets no gradient through to the body; a new one does."""
    federation, data = cases.toy_federation(('common', 'personal'))
    algorithm = fedrep.fedrep(
      federation,
      local_optimizers.LocalSgd(learning_rate=0.2, batch_size=0),
      head_epochs=head_epochs,
    )
    start = cases.start(algorithm, data)
    params = dict(start.params)
    params['layer_1'] = jax.tree.map(jnp.zeros_like, params['layer_1'])
    start = dataclasses.replace(start, params=params)
    new, _ = testing.jit(algorithm.round)(start, data)
    change = jnp.abs(
      new.params['layer_0']['kernel'] - params['layer_0']['kernel']
    )
    self.assertEqual(float(change.max()) > 1e-3, moves)

  def test_the_head_learns_from_the_body_that_was_sent(self):
    """As with a body that nobody trains, whatever its optimizer would do."""
    local = local_optimizers.LocalSgd(
      optimizer=local_optimizers.Sgd(momentum=0.5, weight_decay=0.1),
      learning_rate=0.2,
      batch_size=0,
      epochs=3,
    )
    start, found = _run(fedrep.fedrep, local, head_epochs=3)
    federation, data = cases.toy_federation(
      ('pretrained', 'personal'),
      pretrained=jax.tree.map(jnp.asarray, start),
    )
    algorithm = multi_task_fl.multi_task_fl(federation, local)
    state = cases.start(algorithm, data)
    state = dataclasses.replace(
      state,
      params={
        'layer_0': state.params['layer_0'],
        'layer_1': start['layer_1'],
      },
    )
    state, _ = testing.jit(algorithm.round)(state, data)
    testing.assert_trees_close(found['layer_1'], state.params['layer_1'])

  def test_clients_without_heads_are_told(self):
    federation, _ = cases.toy_federation(('common', 'task'))
    with self.assertRaisesRegex(
      ValueError, 'fedrep to have layers that clients own.*got common, task'
    ):
      fedrep.fedrep(federation)


if __name__ == '__main__':
  absltest.main()

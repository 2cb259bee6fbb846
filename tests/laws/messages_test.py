"""Laws of messages: bytes are of what rounds move, models of what predicts."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from fmtl_jax import algorithms
from fmtl_jax import federation as federation_lib
from fmtl_jax import testing
from fmtl_jax.clients import local_optimizers
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import aggregation
from fmtl_jax.rounds import communication

C, T, P = layer_types.COMMON, layer_types.TASK, layer_types.PERSONAL
FROZEN = layer_types.PRETRAINED
CLUSTER = 'cluster'
CLIENTS, SLOTS = 7, 2


def _built(name, types=(C, T), keeps=False, **own):
  """Layers of 3 x 4 + 4 = 16, 4 x 4 + 4 = 20, ... and 4 x 5 + 5 = 25 values."""
  entry = algorithms.ALGORITHMS[name]
  counts = entry.owners({**entry.defaults, **own})
  owners = {n: federation_lib.Owner(n) for n in counts}
  data = testing.toy_data(CLIENTS, 3, SLOTS).with_owners(counts)
  federation, _ = testing.toy_federation(
    list(types),
    data,
    owners={**federation_lib.OWNERS, **owners},
    num_owners=counts,
  )
  local = local_optimizers.LocalSgd(
    optimizer=local_optimizers.Sgd(), keep_optimizer_state=keeps
  )
  return federation, entry.build(federation, local, **own), data


class MessagesTest(parameterized.TestCase):
  @parameterized.parameters(
    *('scaffold', 'fednova', 'feddyn', 'ditto', 'pfedme', 'apfl', 'mr_mtl'),
    *('per_fedavg', 'ifca', 'cfl'),
  )
  def test_they_are_what_a_round_moves(self, name):
    """The round is traced, and its messages are looked at on their way."""
    types = (C, CLUSTER, P) if name in ('ifca', 'cfl') else (C, T, P)
    federation, algorithm, data = _built(name, types)
    messages = algorithm.messages()
    up, down = [], []
    split = aggregation.Aggregation.split
    broadcast = federation_lib.Federation.broadcast
    shapes = lambda tree: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree
    )

    def seen_split(self, update, report=()):
      parts = (federation.averaged(update), report)
      up.append(shapes(tuple(p for p in parts if p != ())))
      return split(self, update, report)

    def seen_broadcast(self, params, index):
      view = broadcast(self, params, index)
      down.append(shapes(federation.averaged(view)))
      return view

    state = jax.eval_shape(algorithm.init, jax.random.key(0), data)
    with (
      mock.patch.object(aggregation.Aggregation, 'split', seen_split),
      mock.patch.object(federation_lib.Federation, 'broadcast', seen_broadcast),
    ):
      jax.eval_shape(algorithm.round, state, data)
    self.assertNotEmpty(up)
    for found in up:
      self.assertEqual(found, shapes(messages.up))  # Weak types are none.
    for tree in messages.down:
      if not messages.all_copies:
        self.assertIn(tree, down)

  @parameterized.parameters(
    # Values of the common and of the task-specific layer, up and down.
    ('fedavg', (16, 20), (16, 20)),
    ('feddyn', (16, 20), (16, 20)),
    ('ditto', (16, 20), (16, 20)),
    ('scaffold', (32, 40), (32, 40)),
    ('fednova', (18, 22), (16, 20)),  # A number more for each of two leaves.
  )
  def test_by_hand(self, name, up, down):
    federation, algorithm, _ = _built(name, (C, T, P))
    messages = algorithm.messages()
    for message, values in ((messages.up, up), (messages.down, down)):
      once, each_slot = communication.message_bytes(federation, message)
      self.assertEqual(once, {C: 4 * values[0]})
      self.assertEqual(each_slot, {T: 4 * values[1]})

  def test_a_client_that_chooses_a_model_is_sent_all_of_them(self):
    federation, algorithm, _ = _built('ifca', (C, CLUSTER), clusters=3)
    messages = algorithm.messages()
    once, _ = communication.message_bytes(federation, messages.down)
    self.assertEqual(once, {C: 64, CLUSTER: 3 * 100})
    once, _ = communication.message_bytes(federation, messages.up)
    self.assertEqual(once, {C: 64, CLUSTER: 100})
    _, algorithm, _ = _built('cfl', (C, CLUSTER))
    messages = algorithm.messages()
    self.assertEqual(messages.up, messages.down)

  def test_what_goes_along_has_the_type_of_its_layer(self):
    """Control variates of half precision are half as large."""
    data = testing.toy_data()
    federation = federation_lib.Federation.create(
      (
        lambda unused_key: {
          'half': jnp.zeros((3, 7), jnp.bfloat16),
          'output': jnp.zeros((7, 5), jnp.float32),
        },
        lambda params, x: x @ params['half'] @ params['output'],
      ),
      [('half', C), ('output', T)],
      data,
    )
    messages = algorithms.ALGORITHMS['scaffold'].build(federation).messages()
    for message in (messages.up, messages.down):
      once, each_slot = communication.message_bytes(federation, message)
      self.assertEqual((once, each_slot), ({C: 2 * 42}, {T: 2 * 140}))


class KeptModelsTest(parameterized.TestCase):
  """Seven clients of two slots: a view has 16 + 2 x 20 + 2 x 25 values."""

  @parameterized.product(name=('ditto', 'apfl', 'mr_mtl'), keeps=(False, True))
  def test_personal_models_count_for_every_client(self, name, keeps):
    federation, algorithm, data = _built(name, (C, T, P), keeps)
    kept = communication.kept_models(federation, algorithm, data)
    self.assertEqual(
      communication.parameter_counts(federation, kept),
      {
        FROZEN: 0,
        C: 16,
        T: 3 * 20,
        # By label, and whole models.
        P: CLIENTS * SLOTS * 25 + CLIENTS * (16 + SLOTS * (20 + 25)),
      },
    )

  @parameterized.parameters('scaffold', 'feddyn', 'fedavg_finetune', 'fedavg')
  def test_what_nobody_predicts_with_is_no_model(self, name):
    federation, algorithm, data = _built(name, (C, T), keeps=False)
    self.assertEmpty(communication.kept_models(federation, algorithm, data))

  def test_owners_that_are_not_in_use_do_not_count(self):
    federation, _, _ = _built('cfl', (C, CLUSTER), max_clusters=8)
    count = communication.parameter_counts
    self.assertEqual(count(federation)[CLUSTER], 8 * 25)
    self.assertEqual(count(federation, (), {CLUSTER: 3})[CLUSTER], 3 * 25)
    self.assertEqual(count(federation, (), {CLUSTER: 2.5})[CLUSTER], 62.5)


if __name__ == '__main__':
  absltest.main()

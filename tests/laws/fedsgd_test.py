"""FedSGD against the loops of its paper, and against one step on all data."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import testing
from fmtl_jax.algorithms import fedsgd
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers

import cases
import naive


class FedSgd(naive.Federation):
  """One step of every client, on all of its examples in their order."""

  def __post_init__(self):
    super().__post_init__()
    self.momentum = 0.0

  def batches(self, member):
    yield range(len(self.clients[member.client].features))


class FedSgdTest(parameterized.TestCase):
  @parameterized.parameters(
    (('common', 'common'), 1, 0.0), (('common', 'task', 'personal'), 2, 0.4)
  )
  def test_rounds_are_those_of_the_paper(self, types, num_slots, missing):
    """Whatever batches, epochs and momentum are."""
    cases.compare(
      types,
      cases.toy_data(7, 3, num_slots, missing=missing),
      local=cases.Local(
        batch_size=2, epochs=2, momentum=0.5, keep_momentum=True
      ),
      clients_per_task=(2, 1, 2),
      rounds=3,
      build=fedsgd.fedsgd,
      reference=FedSgd,
    )

  def test_a_round_is_one_step_on_the_examples_of_all_clients(self):
    """Not so for FedAvg, whose clients drift."""
    federation, data = testing.toy_federation(
      ('common', 'common'), cases.toy_data(5, 1)
    )
    rows = np.concatenate(data.partition.train.groups())
    features, labels = data.examples.features[rows], data.examples.labels[rows]

    def loss(params):
      outputs = federation.apply_fn(params, features)
      return federation.loss_fn(outputs, labels[:, 0], jnp.int32(0)).mean()

    local = local_optimizers.LocalSgd(learning_rate=0.3, batch_size=2, epochs=2)
    moved = []
    for build in (fedsgd.fedsgd, multi_task_fl.multi_task_fl):
      algorithm = build(federation, local)
      state = cases.start(algorithm, data)
      new, _ = testing.jit(algorithm.round)(state, data)
      moved.append(jax.tree.map(jnp.subtract, new.params, state.params))
    gradient = testing.jit(jax.grad(loss))(state.params)
    step = jax.tree.map(lambda x: -0.3 * x, gradient)
    testing.assert_trees_close(moved[0], step)
    with self.assertRaises(AssertionError):
      testing.assert_trees_close(moved[1], step, 0.1, 0.01)

  def test_it_is_fedavg_with_one_epoch_of_one_batch(self):
    """Weight decay stays, as part of the gradient."""
    federation, data = cases.toy_federation(('common', 'task'))
    found = []
    for build, momentum, batch_size, decay in (
      (fedsgd.fedsgd, 0.9, 2, 0.1),
      (multi_task_fl.multi_task_fl, 0.0, 0, 0.1),
      (multi_task_fl.multi_task_fl, 0.0, 0, 0.0),
    ):
      optimizer = local_optimizers.Sgd(
        momentum=momentum, nesterov=momentum > 0, weight_decay=decay
      )
      algorithm = build(
        federation,
        local_optimizers.LocalSgd(optimizer=optimizer, batch_size=batch_size),
      )
      state = cases.start(algorithm, data)
      found.append(testing.jit(algorithm.round)(state, data)[0].params)
    testing.assert_trees_equal(found[0], found[1])
    with self.assertRaises(AssertionError):
      testing.assert_trees_close(found[0], found[2], 1e-3, 1e-3)

  def test_an_optimizer_that_is_not_sgd_is_refused(self):
    federation, _ = cases.toy_federation(('common', 'common'))
    with self.assertRaisesRegex(
      ValueError, '`local.optimizer` to be SGD with fed'
    ):
      fedsgd.fedsgd(federation, local_optimizers.LocalSgd(optimizer=optax.adam))


if __name__ == '__main__':
  absltest.main()

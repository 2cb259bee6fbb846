"""FedProx against the loops of its paper, and what its term does."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import testing
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import fedprox
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import round_settings

import cases
import naive


@dataclasses.dataclass
class FedProx(naive.Federation):
  """Equation 2 of the paper in loops."""

  mu: float = 0.1

  def local_training(self, params, member, number):
    self.start = naive.copied(params)
    return super().local_training(params, member, number)

  def extra_gradient(self, params, key, member):
    (layer, name), place = key
    if self.types[layer, name] == 'personal':
      return 0
    start = self.start[layer][name][place]
    return self.mu * (params[layer][name][place] - start)


class FedProxTest(parameterized.TestCase):
  def test_rounds_are_those_of_the_paper(self):
    cases.compare(
      ('common', 'task', 'personal'),
      cases.toy_data(5, 3, 2, missing=0.4),
      local=cases.Local(batch_size=2, epochs=2, momentum=0.5),
      clients_per_task=1,
      rounds=3,
      build=fedprox.fedprox,
      reference=FedProx,
      own={'mu': 2.0},
    )

  @parameterized.parameters('scan', 'low_rank')
  def test_its_weight_may_follow_a_schedule(self, execution):
    federation, data = cases.toy_federation(('common', 'common'))
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    placement = round_settings.Placement(
      execution=execution, low_rank_below=np.inf
    )
    settings = round_settings.RoundSettings(placement=placement)

    def rounds(*weights):
      """The state after a round with each of the weights, traced."""

      @testing.jit
      def one(state, weight):
        return build(weight).round(state, data)[0]

      state = start
      for weight in weights:
        state = one(state, np.float32(weight))
      return state.params

    def build(weight):
      update = training.local_sgd(federation, local, proximal=weight)
      algorithm = federated_averaging.federated_averaging(
        federation, update, settings
      )
      self.assertEqual(algorithm.form(data)[0].split(':')[0], execution)
      return algorithm

    scheduled = build(lambda r: jnp.where(r < 1, 0.0, 2.0))
    start = cases.start(scheduled, data)
    found = cases.run(scheduled, data, 2, start).state.params
    testing.assert_trees_close(found, rounds(0.0, 2.0))
    far = jax.tree.map(
      lambda x, y: np.abs(np.subtract(x, y)).max(), rounds(0.0, 0.0), found
    )
    self.assertGreater(max(map(float, jax.tree.leaves(far))), 1e-3)

  def test_a_heavy_term_keeps_clients_where_they_were_and_none_is_fedavg(self):
    federation, data = cases.toy_federation(('common', 'common'))
    local = local_optimizers.LocalSgd(
      learning_rate=0.02, batch_size=2, epochs=5
    )
    owns = [{'mu': mu} for mu in (0.0, 40.0)]
    free, bound = (
      state.params
      for state, _ in cases.train_each(
        fedprox.fedprox, federation, data, local, 1, owns
      )
    )
    algorithm = multi_task_fl.multi_task_fl(federation, local)
    start, expected, *_ = cases.run(algorithm, data)
    # Without its term it is FedAvg.
    testing.assert_trees_close(free, expected.params)
    free, bound = (
      max(
        np.abs(np.subtract(x, y)).max()
        for x, y in zip(
          jax.tree.leaves(params), jax.tree.leaves(start.params), strict=True
        )
      )
      for params in (free, bound)
    )
    self.assertLess(bound, 0.4 * free)


if __name__ == '__main__':
  absltest.main()

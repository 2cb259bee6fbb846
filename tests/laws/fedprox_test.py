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
  @parameterized.parameters(0.1, 2.0)
  def test_rounds_are_those_of_the_paper(self, mu):
    cases.compare(
      ('common', 'task', 'personal'),
      testing.toy_data(5, 3, 2, missing=0.4),
      local=cases.Local(batch_size=2, epochs=2, momentum=0.5),
      clients_per_task=1,
      rounds=3,
      build=fedprox.fedprox,
      reference=FedProx,
      own={'mu': mu},
    )

  def test_without_its_term_it_is_fedavg(self):
    federation, data = testing.toy_federation(('common', 'common'))
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    found = [
      cases.train(build, federation, data, local, own=own)[0].params
      for build, own in (
        (fedprox.fedprox, {'mu': 0.0}),
        (multi_task_fl.multi_task_fl, {}),
      )
    ]
    testing.assert_trees_close(*found)

  @parameterized.parameters('scan', 'low_rank')
  def test_its_weight_may_follow_a_schedule(self, execution):
    federation, data = testing.toy_federation(('common', 'common'))
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    placement = round_settings.Placement(
      execution=execution, low_rank_below=np.inf
    )
    settings = round_settings.RoundSettings(placement=placement)

    def rounds_of(weight):
      update = training.local_sgd(federation, local, proximal=weight)
      algorithm = federated_averaging.federated_averaging(
        federation, update, settings
      )
      self.assertEqual(algorithm.form(data)[0].split(':')[0], execution)
      return algorithm, testing.jit(algorithm.round)

    algorithm, scheduled = rounds_of(lambda r: jnp.where(r < 1, 0.0, 2.0))
    start = algorithm.init(jax.random.key(0), data)
    found, _ = scheduled(scheduled(start, data)[0], data)
    (_, free), (_, bound) = rounds_of(0.0), rounds_of(2.0)
    first, _ = free(start, data)
    expected, _ = bound(first, data)
    testing.assert_trees_close(found.params, expected.params)
    other, _ = free(first, data)
    far = jax.tree.map(
      lambda x, y: jnp.abs(x - y).max(), other.params, found.params
    )
    self.assertGreater(max(map(float, jax.tree.leaves(far))), 1e-3)

  def test_a_heavy_term_keeps_clients_where_they_were(self):
    federation, data = testing.toy_federation(('common', 'common'))
    moved = []
    for mu, rate in ((0.0, 0.02), (40.0, 0.02)):
      local = local_optimizers.LocalSgd(
        learning_rate=rate, batch_size=2, epochs=5
      )
      algorithm = fedprox.fedprox(federation, local, mu=mu)
      start = algorithm.init(jax.random.key(0), data)
      state, _ = testing.jit(algorithm.round)(start, data)
      far = jax.tree.map(
        lambda x, y: jnp.abs(x - y).max(), state.params, start.params
      )
      moved.append(max(map(float, jax.tree.leaves(far))))
    self.assertLess(moved[1], 0.4 * moved[0])


if __name__ == '__main__':
  absltest.main()

"""FedReptile against the loops of its paper, and what its rate does."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from fmtl_jax import testing
from fmtl_jax.algorithms import fedavg_finetune
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import reptile
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers

import cases
import naive


@dataclasses.dataclass
class Reptile(naive.FineTuned):
  """Algorithm 2 of the paper in loops, with weights."""

  server_rate: float = 0.5

  def average(self, layer_type, params, new, cohort, results, number):
    super().average(layer_type, params, new, cohort, results, number)
    for (layer, name), label in self.types.items():
      if label == layer_type:
        phi, mean = params[layer][name], new[layer][name]
        new[layer][name] = phi + self.server_rate * (mean - phi)


class ReptileTest(parameterized.TestCase):
  def test_rounds_are_those_of_the_paper(self):
    cases.compare(
      ('common', 'common'),
      cases.toy_data(7, 3),
      local=cases.Local(batch_size=2, epochs=2, momentum=0.5),
      clients_per_task=(2, 1, 2),
      weighting={'common': 'uniform'},
      rounds=3,
      build=reptile.reptile,
      reference=Reptile,
      own={'server_rate': 0.3, 'finetune_epochs': 0},
    )

  def test_any_layer_types_and_several_tasks_for_each_client(self):
    cases.compare(
      ('common', 'task', 'personal'),
      cases.toy_data(5, 3, 2, missing=0.4),
      clients_per_task=1,
      rounds=3,
      build=reptile.reptile,
      reference=Reptile,
      own={'server_rate': 0.3, 'finetune_epochs': 3},
    )

  @parameterized.parameters(1.0, 0.3)
  def test_its_rate_is_that_of_the_server_of_fedavg(self, rate):
    """At rate one it is fedavg with fine-tuning, to the bit."""
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    federation, data = cases.toy_federation(('common', 'common'))
    own = {'server_rate': rate}
    found, views = cases.train(reptile.reptile, federation, data, local, 2, own)
    slow = server_optimizers.ServerOptimizer(learning_rate=rate)
    server = {} if rate == 1 else {'server': {'common': slow}}
    expected, its_views = cases.train(
      fedavg_finetune.fedavg_finetune, federation, data, local, 2, **server
    )
    compare = (
      testing.assert_trees_equal if rate == 1 else testing.assert_trees_close
    )
    compare((found.params, views), (expected.params, its_views))

  @parameterized.parameters(0.25, 1.0)
  def test_the_server_goes_a_part_of_the_way(self, server_rate):
    """Clients go to the means 2 and 6 of their labels, the server between."""
    federation, data = testing.mean_estimation(
      [[1.0, 3.0], [6.0]], [0, 0], 'common'
    )
    algorithm = reptile.reptile(
      federation,
      testing.TO_THE_MEAN,
      round_settings.RoundSettings(weighting={'common': 'uniform'}),
      server_rate=server_rate,
    )
    for number in (1, 3):
      found = cases.run(algorithm, data, number, views=True)
      np.testing.assert_allclose(
        found.state.params['output']['bias'],
        [4 * (1 - (1 - server_rate) ** number)],
        rtol=1e-6,
      )
    np.testing.assert_allclose(
      found.views['output']['bias'], [[2.0], [6.0]], rtol=1e-6
    )

  def test_layers_of_clients_go_all_the_way(self):
    federation, data = cases.toy_federation(('common', 'personal'))
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    layers = []
    for build in (reptile.reptile, multi_task_fl.multi_task_fl):
      algorithm = build(federation, local)
      layers.append(cases.run(algorithm, data).state.params['layer_1'])
    testing.assert_trees_equal(*layers)


if __name__ == '__main__':
  absltest.main()

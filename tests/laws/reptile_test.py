"""FedReptile against the loops of its paper, and what its rate does."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import cohorts
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
      testing.toy_data(7, 3),
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
      testing.toy_data(5, 3, 2, missing=0.4),
      clients_per_task=1,
      rounds=3,
      build=reptile.reptile,
      reference=Reptile,
      own={'server_rate': 0.3, 'finetune_epochs': 3},
    )

  def test_at_rate_one_it_is_fedavg_with_fine_tuning(self):
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    testing.assert_trees_equal(
      *(
        _rounds_and_views(build, local, round_settings.RoundSettings(), **own)
        for build, own in (
          (reptile.reptile, {'server_rate': 1.0}),
          (fedavg_finetune.fedavg_finetune, {}),
        )
      )
    )

  def test_its_rate_is_that_of_the_server_of_fedavg(self):
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    slow = server_optimizers.ServerOptimizer(learning_rate=0.3)
    settings = round_settings.RoundSettings(server={'common': slow})
    testing.assert_trees_close(
      _rounds_and_views(
        reptile.reptile, local, round_settings.RoundSettings(), server_rate=0.3
      ),
      _rounds_and_views(fedavg_finetune.fedavg_finetune, local, settings),
    )

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
    state = algorithm.init(jax.random.key(0), data)
    round_fn = testing.jit(algorithm.round)
    for number in range(1, 4):
      state, _ = round_fn(state, data)
      np.testing.assert_allclose(
        state.params['output']['bias'],
        [4 * (1 - (1 - server_rate) ** number)],
        rtol=1e-6,
      )
    view = testing.jit(algorithm.view)
    for client, mean in enumerate((2.0, 6.0)):
      row = cohorts.take(cohorts.everyone(data), client)
      found = view(state, data, row, federation.frozen)
      np.testing.assert_allclose(found['output']['bias'], [mean], rtol=1e-6)

  def test_layers_of_clients_go_all_the_way(self):
    federation, data = testing.toy_federation(('common', 'personal'))
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    layers = []
    for build in (reptile.reptile, multi_task_fl.multi_task_fl):
      algorithm = build(federation, local)
      state, _ = testing.jit(algorithm.round)(
        algorithm.init(jax.random.key(0), data), data
      )
      layers.append(state.params['layer_1'])
    testing.assert_trees_equal(*layers)


def _rounds_and_views(build, local, settings, **own):
  """The state after two rounds, and the model of each client."""
  federation, data = testing.toy_federation(('common', 'common'))
  algorithm = build(federation, local, settings, **own)

  def run(state):
    for _ in range(2):
      state, _ = algorithm.round(state, data)
    view = lambda client: algorithm.view(state, data, client, federation.frozen)
    return state.params, jax.vmap(view)(cohorts.everyone(data))

  return testing.jit(run)(algorithm.init(jax.random.key(0), data))


if __name__ == '__main__':
  absltest.main()

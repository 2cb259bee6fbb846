"""FedAvgM against the loops of its paper, and what its momentum does."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import optax

from fmtl_jax import testing
from fmtl_jax.algorithms import fedavgm
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers

import cases
import naive


@dataclasses.dataclass
class FedAvgM(naive.Federation):
  """Federated averaging with server momentum of each owner."""

  server_momentum: float = 0.9

  def __post_init__(self):
    super().__post_init__()
    self.servers = {
      name: naive.Sgd(
        self.servers.get(name, naive.Sgd()).rate, self.server_momentum
      )
      for name in ('common', 'task')
    }


class FedAvgMTest(parameterized.TestCase):
  @parameterized.parameters({}, {'server_momentum': 0.4})
  def test_rounds_are_those_of_the_paper(self, **own):
    cases.compare(
      ('common', 'common'),
      cases.toy_data(7, 3),
      local=cases.Local(batch_size=2),
      clients_per_task=(2, 1, 2),
      rounds=3,
      build=fedavgm.fedavgm,
      reference=FedAvgM,
      own=own,
    )

  def test_any_layer_types_and_owners_nobody_reports_to(self):
    """The learning rate of each layer type stays."""
    cases.compare(
      ('common', 'task', 'personal'),
      cases.partly_labelled(),
      local=cases.Local(rate=0.1, batch_size=3),
      clients_per_task=1,
      servers={'task': cases.Server(optax.sgd, 0.5, naive.Sgd(0.5))},
      rounds=5,
      build=fedavgm.fedavgm,
      reference=FedAvgM,
      own={'server_momentum': 0.7},
    )

  def test_momentum_overshoots_where_fedavg_rests(self):
    """Clients go to their mean, 1, from wherever they are."""
    federation, data = testing.mean_estimation(
      [[0.5, 1.0], [1.5]], [0, 0], 'common'
    )
    expected = {0.9: [1, 1.9, 1.81], 0.0: [1, 1, 1]}
    for momentum, values in expected.items():
      algorithm = fedavgm.fedavgm(
        federation, testing.TO_THE_MEAN, server_momentum=momentum
      )
      round_fn = testing.jit(algorithm.round)
      state = testing.jit(algorithm.init)(jax.random.key(0), data)
      for value in values:
        state, _ = round_fn(state, data)
        np.testing.assert_allclose(
          state.params['output']['bias'], value, rtol=1e-5
        )

  def test_without_momentum_it_is_fedavg(self):
    federation, data = cases.toy_federation(('common', 'task'))
    local = local_optimizers.LocalSgd(batch_size=2)
    settings = round_settings.RoundSettings(clients_per_task=1)
    found = []
    for algorithm in (
      fedavgm.fedavgm(federation, local, settings, server_momentum=0.0),
      multi_task_fl.multi_task_fl(federation, local, settings),
    ):
      state = testing.jit(algorithm.init)(jax.random.key(0), data)
      round_fn = testing.jit(algorithm.round)
      for _ in range(2):
        state, _ = round_fn(state, data)
      found.append(state.params)
    testing.assert_trees_equal(*found)

  @parameterized.parameters(1.0, -0.1)
  def test_a_momentum_out_of_range_is_refused(self, momentum):
    federation, _ = cases.toy_federation(('common', 'common'))
    with self.assertRaisesRegex(
      ValueError, r'Expected `server_momentum` in \[0, 1\)'
    ):
      fedavgm.fedavgm(federation, server_momentum=momentum)

  @parameterized.parameters(
    (optax.adam,), (local_optimizers.Sgd(momentum=0.5),)
  )
  def test_another_server_optimizer_is_refused(self, optimizer):
    federation, _ = cases.toy_federation(('common', 'common'))
    server = {'common': server_optimizers.ServerOptimizer(optimizer)}
    with self.assertRaisesRegex(
      ValueError, r"server\['common'\].optimizer` to be SGD"
    ):
      fedavgm.fedavgm(
        federation, settings=round_settings.RoundSettings(server=server)
      )


if __name__ == '__main__':
  absltest.main()

"""FedBABU against the loops of its paper; heads that rounds never move."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import testing
from fmtl_jax.algorithms import fedbabu
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers

import cases
import naive

LOCAL = local_optimizers.LocalSgd(
  optimizer=local_optimizers.Sgd(momentum=0.5, weight_decay=0.1),
  learning_rate=0.2,
  batch_size=2,
  epochs=2,
)


@dataclasses.dataclass
class FedBabu(naive.FineTuned):
  """Algorithm 1 of the paper in loops: heads are the personal layers."""

  finetune_head_only: bool = False
  parts: tuple[bool, ...] = (False,)

  def touched(self, member):
    return {
      (leaf, place)
      for leaf, place in super().touched(member)
      if (self.types[leaf] == 'personal') in self.parts
    }

  def finetune(self, params, member):
    self.parts = (True,) if self.finetune_head_only else (False, True)
    values = self.local_training(params, member, 0)
    self.parts = (False,)
    return values


class FedBabuTest(parameterized.TestCase):
  def test_rounds_are_those_of_the_paper(self):
    cases.compare(
      ('common', 'personal'),
      cases.toy_data(7, 3),
      local=cases.Local(batch_size=2, epochs=2, momentum=0.5),
      clients_per_task=(2, 1, 2),
      rounds=3,
      build=fedbabu.fedbabu,
      reference=FedBabu,
      own={'finetune_epochs': 0},
    )

  @parameterized.parameters(
    (False, ('common', 'task', 'personal')),
    (True, ('common', ('personal', 'common'), 'personal')),
  )
  def test_any_layer_types_and_several_tasks_for_each_client(
    self, head_only, types
  ):
    cases.compare(
      types,
      cases.toy_data(5, 3, 2, missing=0.4),
      clients_per_task=1,
      rounds=4,
      build=fedbabu.fedbabu,
      reference=FedBabu,
      own={'finetune_epochs': 3, 'finetune_head_only': head_only},
    )

  @parameterized.parameters('shared', 'per_owner')
  def test_rounds_never_move_a_head(self, initialization):
    federation, data = cases.toy_federation(
      ('common', 'personal'), initialization=initialization
    )
    algorithm = fedbabu.fedbabu(federation, LOCAL)
    start, state, *_ = cases.run(algorithm, data, 3)
    testing.assert_trees_equal(state.params['layer_1'], start.params['layer_1'])
    kernels = np.asarray(start.params['layer_1']['kernel'])[:, 0]
    self.assertEqual((kernels == kernels[0]).all(), initialization == 'shared')
    body = np.abs(
      state.params['layer_0']['kernel'] - start.params['layer_0']['kernel']
    )
    self.assertGreater(body.max(), 1e-3)

  def test_rounds_are_fedavg_with_the_initial_head_as_a_constant(self):
    federation, data = cases.toy_federation(('common', 'personal'))
    algorithm = fedbabu.fedbabu(federation, LOCAL)
    first = cases.run(algorithm, data, 2)
    head = jax.tree.map(lambda x: x[0, 0], first.start.params['layer_1'])
    fixed, _ = testing.toy_federation(
      ('common', 'pretrained'), data, pretrained={'layer_1': head}
    )
    second = cases.run(multi_task_fl.multi_task_fl(fixed, LOCAL), data, 2)
    testing.assert_trees_close(
      *(found.state.params['layer_0'] for found in (first, second))
    )

  @parameterized.parameters((0, False), (2, False), (2, True))
  def test_before_it_predicts_a_client_trains_its_head(self, epochs, head_only):
    federation, data = cases.toy_federation(('common', 'personal'))
    algorithm = fedbabu.fedbabu(
      federation, LOCAL, finetune_epochs=epochs, finetune_head_only=head_only
    )

    @testing.jit
    def view_and_received(state, data):
      client = cohorts.take(cohorts.everyone(data), 2)
      view = algorithm.view(state, data, client, federation.frozen)
      return view, federation.broadcast(state.params, client.index)

    view, received = view_and_received(cases.start(algorithm, data), data)
    moved = {
      layer: not np.array_equal(view[layer]['kernel'], leaves['kernel'])
      for layer, leaves in received.items()
    }
    self.assertEqual(
      moved, {'layer_0': epochs > 0 and not head_only, 'layer_1': epochs > 0}
    )

  def test_clients_without_heads_are_told(self):
    federation, _ = cases.toy_federation(('common', 'common'))
    with self.assertRaisesRegex(
      ValueError, 'fedbabu to have layers that clients own.*got common;'
    ):
      fedbabu.fedbabu(federation)


if __name__ == '__main__':
  absltest.main()

"""FedAvg with fine-tuning against the loops of its paper."""

from absl.testing import absltest
from absl.testing import parameterized

from fmtl_jax import testing
from fmtl_jax.algorithms import fedavg_finetune
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers

import cases
import naive


class FineTuningTest(parameterized.TestCase):
  @parameterized.parameters(0, 3)
  def test_clients_predict_after_training_on_their_examples(self, epochs):
    cases.compare(
      ('common', 'task', 'personal'),
      cases.toy_data(5, 3, 2, missing=0.4),
      clients_per_task=1,
      rounds=3,
      build=fedavg_finetune.fedavg_finetune,
      reference=naive.FineTuned,
      own={'finetune_epochs': epochs},
    )

  def test_rounds_are_those_of_fedavg(self):
    federation, data = cases.toy_federation(('common', 'common'))
    local = local_optimizers.LocalSgd(learning_rate=0.2, batch_size=2)
    states = [
      cases.train(build, federation, data, local)[0]
      for build in (
        fedavg_finetune.fedavg_finetune,
        multi_task_fl.multi_task_fl,
      )
    ]
    testing.assert_trees_equal(*states)


if __name__ == '__main__':
  absltest.main()

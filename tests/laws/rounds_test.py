"""Law: a round equals the naive loop, whatever the layer types and settings."""

import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import weights

import cases

TYPES = ('common', 'task', 'personal')
MIX = ('common', 'task', 'personal')


@functools.cache
def _one_slot(**settings):
  """Seven clients of unequal sizes, in groups of three, two and two."""
  return testing.toy_data(7, 3, **settings)


@functools.cache
def _two_slots(**settings):
  """Five clients with up to two of three tasks, and missing labels."""
  return testing.toy_data(5, 3, 2, missing=0.4, **settings)


class LayerTypesTest(parameterized.TestCase):
  @parameterized.parameters(*itertools.product(TYPES, repeat=2))
  def test_two_layers_and_one_task_for_each_client(self, *types):
    cases.compare(
      types,
      _one_slot(),
      local=cases.Local(batch_size=2, epochs=2),
      clients_per_task=(2, 1, 2),
    )

  @parameterized.parameters(*itertools.product(TYPES, repeat=3))
  def test_three_layers_and_several_tasks_for_each_client(self, *types):
    cases.compare(
      types,
      _two_slots(),
      local=cases.Local(batch_size=3, momentum=0.5),
      clients_per_task=1,
    )

  @parameterized.parameters(
    (('pretrained', 'common', 'task'),),
    (('common', 'pretrained', 'personal'),),
    (('task', 'personal', 'pretrained'),),
    (('pretrained', 'pretrained', 'personal'),),
  )
  def test_some_layers_are_pretrained(self, types):
    cases.compare(types, _two_slots(), clients_per_task=1)

  @parameterized.parameters(
    ((('common', 'personal'), ('common', 'personal'), 'task'),),
    ((('personal', 'task'), ('task', 'common'), 'personal'),),
    (('common', ('personal', 'common'), ('common', 'personal')),),
    ((('pretrained', 'common'), ('personal', 'task'), 'common'),),
  )
  def test_kernel_and_bias_differ(self, types):
    cases.compare(types, _two_slots(), clients_per_task=1)


class CohortTest(parameterized.TestCase):
  @parameterized.product(clients_per_task=[0, 2, (3, 1, 1)])
  def test_one_slot(self, clients_per_task):
    cases.compare(MIX, _one_slot(), clients_per_task=clients_per_task)

  @parameterized.parameters((1, 'all'), (2, 'drawn'), (2, 'all'), (0, 'drawn'))
  def test_two_slots(self, clients_per_task, slots):
    cases.compare(
      MIX, _two_slots(), clients_per_task=clients_per_task, slots=slots
    )

  def test_momentum_that_is_kept_waits_with_its_slot(self):
    cases.compare(
      MIX,
      testing.toy_data(4, 3, 2),
      local=cases.Local(batch_size=2, momentum=0.5, keep_momentum=True),
      clients_per_task=1,
      rounds=7,
    )

  @parameterized.parameters('vmap', 'chunk:3')
  def test_other_executions(self, execution):
    cases.compare(
      MIX,
      _two_slots(),
      local=cases.Local(batch_size=2),
      clients_per_task=2,
      execution=execution,
    )


class WeightingTest(parameterized.TestCase):
  @parameterized.parameters(
    *[(weighting, _two_slots) for weighting in weights.WEIGHTINGS],
    ('task_balanced', _one_slot),
    ('paper', _one_slot),
  )
  def test_every_weighting(self, weighting, data_fn):
    cases.compare(
      MIX,
      data_fn(),
      clients_per_task=(2, 1, 2),
      weighting={'common': weighting, 'task': weighting},
    )

  def test_layer_types_have_weightings_of_their_own(self):
    cases.compare(
      MIX,
      _two_slots(),
      clients_per_task=1,
      weighting={'common': 'task_balanced', 'task': 'uniform'},
    )

  def test_the_literal_equations_differ_from_the_usual_ones_by_a_factor(self):
    data, drawn = _one_slot(), 2
    federation, _ = testing.toy_federation(('common', 'task'), data)

    def run(weighting):
      algorithm = multi_task_fl.multi_task_fl(
        federation,
        cases.Local().package(),
        round_settings.RoundSettings(
          clients_per_task=drawn,
          weighting={'common': weighting, 'task': weighting},
        ),
      )
      old = cases.start(algorithm, data)
      new, metrics = testing.jit(algorithm.round)(old, data)
      change = jax.tree.map(lambda x, y: x - y, new.params, old.params)
      return change, np.asarray(metrics['client'])

    usual, cohort = run('examples')
    literal, _ = run('paper')
    sizes = data.partition.train.sizes
    total = sizes.sum()
    selected = np.zeros(data.num_tasks)
    np.add.at(selected, data.partition.client_tasks[cohort, 0], sizes[cohort])
    of_common = selected.sum() / (data.num_tasks * drawn * total)
    of_task = selected / (drawn * total)
    testing.assert_trees_close(
      literal,
      {
        'layer_0': jax.tree.map(lambda x: of_common * x, usual['layer_0']),
        'layer_1': {
          'kernel': of_task[:, None, None] * usual['layer_1']['kernel'],
          'bias': of_task[:, None] * usual['layer_1']['bias'],
        },
      },
    )


class LocalTrainingTest(parameterized.TestCase):
  @parameterized.parameters(1, 4, 100)
  def test_every_batch_size(self, batch_size):
    """Sizes are 5, 2, 7, 3: the last batch of 4 is short, or the only one."""
    cases.compare(
      MIX,
      _one_slot(),
      local=cases.Local(
        batch_size=batch_size, momentum=0.9, epochs=3, rate=0.05
      ),
      clients_per_task=(2, 1, 2),
    )

  @parameterized.product(batch_size=[0, 2])
  def test_momentum_crosses_rounds_if_asked_to(self, batch_size):
    cases.compare(
      MIX,
      _one_slot(),
      local=cases.Local(
        batch_size=batch_size, momentum=0.9, keep_momentum=True, rate=0.05
      ),
      clients_per_task=2,
      rounds=4,
    )

  def test_the_learning_rate_reads_the_round(self):
    cases.compare(
      MIX,
      _one_slot(),
      local=cases.Local(rate=lambda number: 0.5 / (1 + number)),
      clients_per_task=2,
      rounds=3,
    )

  @parameterized.parameters(
    (tasks_lib.KINDS,), ((tasks_lib.REGRESSION,),), ((tasks_lib.BINARY,),)
  )
  def test_every_kind_of_task(self, kinds):
    cases.compare(
      MIX,
      _two_slots(kinds=kinds),
      local=cases.Local(rate=0.05),
      task_weights=(0.5, 2.0, 1.0),
    )


class ServerTest(parameterized.TestCase):
  def test_layer_types_have_servers_of_their_own(self):
    cases.compare(
      MIX,
      _one_slot(),
      clients_per_task=(2, 1, 2),
      servers={'task': cases.Server.adam(0.1)},
      rounds=3,
    )

  def test_a_server_has_momentum_and_a_schedule(self):
    cases.compare(
      MIX,
      _two_slots(),
      clients_per_task=1,
      servers={
        'common': cases.Server.sgd(lambda number: 1 / (1 + number), 0.5),
        'task': cases.Server.sgd(0.5, 0.9),
      },
      rounds=3,
    )

  def test_clipping_by_norm_never_mixes_tasks(self):
    cases.compare(
      ('common', 'task', 'task'),
      _one_slot(),
      local=cases.Local(rate=1.0),
      clients_per_task=(2, 1, 2),
      servers={
        'common': cases.Server.sgd(1.0, max_norm=0.1),
        'task': cases.Server.sgd(1.0, 0.5, max_norm=0.2),
      },
      rounds=3,
    )

  @parameterized.parameters(
    (('common',), _one_slot), (('common', 'task'), _two_slots)
  )
  def test_medians(self, layer_types, data_fn):
    cases.compare(
      MIX, data_fn(), clients_per_task=(2, 1, 2), median=layer_types
    )


if __name__ == '__main__':
  absltest.main()

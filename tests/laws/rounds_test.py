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


# Three layer types at four places: each pair of places has all pairs of types.
PAIRS = tuple(
  (TYPES[a], TYPES[b], TYPES[(a + b) % 3], TYPES[(a + 2 * b) % 3])
  for a, b in itertools.product(range(3), repeat=2)
)


class LayerTypesTest(parameterized.TestCase):
  @parameterized.parameters(*PAIRS)
  def test_two_layers_and_one_task_for_each_client(self, *types):
    """Kernels and biases have types of their own."""
    cases.compare(
      (types[0::2], types[1::2]),
      _one_slot(),
      local=cases.Local(batch_size=2, epochs=2),
      clients_per_task=(2, 1, 2),
    )

  @parameterized.parameters(*(types[:3] for types in PAIRS))
  def test_three_layers_and_several_tasks_for_each_client(self, *types):
    cases.compare(
      types,
      _two_slots(),
      local=cases.Local(batch_size=3, momentum=0.5),
      clients_per_task=1,
    )

  @parameterized.parameters(
    (('pretrained', ('common', 'personal'), 'task'),),
    (('task', 'personal', 'pretrained'),),
    (('pretrained', 'pretrained', ('personal', 'common')),),
    ((('pretrained', 'common'), ('personal', 'task'), 'common'),),
  )
  def test_some_leaves_are_pretrained(self, types):
    cases.compare(types, _two_slots(), clients_per_task=1)


class CohortTest(parameterized.TestCase):
  @parameterized.parameters((0, 1), (2, 4), ((3, 1, 1), 100))
  def test_one_slot(self, clients_per_task, batch_size):
    """Sizes are 5, 2, 7, 3: the last batch of 4 is short, or the only one."""
    cases.compare(
      MIX,
      _one_slot(),
      local=cases.Local(
        batch_size=batch_size, momentum=0.9, epochs=3, rate=0.05
      ),
      clients_per_task=clients_per_task,
    )

  @parameterized.parameters(
    (1, 'all', 'vmap'), (2, 'all', 'chunk:3'), (0, 'drawn', 'scan')
  )
  def test_two_slots(self, clients_per_task, slots, execution):
    cases.compare(
      MIX,
      _two_slots(),
      local=cases.Local(batch_size=2),
      clients_per_task=clients_per_task,
      slots=slots,
      execution=execution,
    )

  def test_momentum_that_is_kept_waits_with_its_slot(self):
    cases.compare(
      MIX,
      cases.toy_data(4, 3, 2),
      local=cases.Local(batch_size=2, momentum=0.5, keep_momentum=True),
      clients_per_task=1,
      rounds=7,
    )


class WeightingTest(parameterized.TestCase):
  @parameterized.parameters(
    ('examples', 'task_balanced', _two_slots),
    ('task_balanced', 'uniform', _two_slots),
    ('uniform', 'paper', _two_slots),
    ('paper', 'examples', _two_slots),
    ('task_balanced', 'paper', _one_slot),
    ('paper', 'task_balanced', _one_slot),
  )
  def test_every_weighting_at_every_place(self, of_common, of_task, data_fn):
    cases.compare(
      MIX,
      data_fn(),
      clients_per_task=(2, 1, 2),
      weighting={'common': of_common, 'task': of_task},
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
  """Batches of every size are those of `CohortTest`."""

  @parameterized.parameters(
    (0, tasks_lib.REGRESSION, lambda number: 0.05 / (1 + number)),
    (2, tasks_lib.BINARY, 0.05),
  )
  def test_momentum_crosses_rounds_if_asked_to(self, batch_size, kind, rate):
    """With one kind of task, and a learning rate that reads the round."""
    cases.compare(
      MIX,
      _one_slot(kinds=(kind,)),
      local=cases.Local(
        batch_size=batch_size, momentum=0.9, keep_momentum=True, rate=rate
      ),
      clients_per_task=2,
      rounds=4,
    )

  def test_tasks_of_several_kinds_have_weights(self):
    cases.compare(
      MIX,
      _two_slots(kinds=tasks_lib.KINDS),
      local=cases.Local(rate=0.05),
      task_weights=(0.5, 2.0, 1.0),
    )


class ServerTest(parameterized.TestCase):
  def test_layer_types_have_servers_of_their_own(self):
    """The other one gets medians."""
    cases.compare(
      MIX,
      _one_slot(),
      clients_per_task=(2, 1, 2),
      servers={'task': cases.Server.adam(0.1)},
      median=('common',),
      rounds=3,
    )

  def test_a_server_has_momentum_and_a_schedule(self):
    """It steps on medians."""
    cases.compare(
      MIX,
      _two_slots(),
      clients_per_task=(2, 1, 2),
      servers={
        'common': cases.Server.sgd(lambda number: 1 / (1 + number), 0.5),
        'task': cases.Server.sgd(0.5, 0.9),
      },
      median=('common', 'task'),
      rounds=3,
    )

  def test_clipping_by_norm_never_mixes_tasks(self):
    cases.compare(
      ('common', 'task', 'task'),
      _one_slot(),
      local=cases.Local(rate=1.0),
      clients_per_task=(2, 1, 2),
      servers={
        'common': cases.Server.sgd(lambda n: 1 / (1 + n), max_norm=0.1),
        'task': cases.Server.sgd(1.0, 0.5, max_norm=0.2),
      },
      rounds=3,
    )


if __name__ == '__main__':
  absltest.main()

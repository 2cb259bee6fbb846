"""Law: clients on the host change no number; memory holds only a cohort."""

import dataclasses
import functools
import pathlib
import tempfile
import threading

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import execution as execution_lib
from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import fedavg_finetune
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import client_sources
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import streaming

import cases

ROUNDS = 4
MIX = ('common', 'task', 'personal')
MOMENTUM = local_optimizers.LocalSgd(
  optimizer=lambda rate: optax.sgd(rate, momentum=0.9),
  batch_size=2,
  keep_optimizer_state=True,
)
PLAIN = local_optimizers.LocalSgd(batch_size=3)


testing.use_cpu_devices(8)


@functools.cache
def _one_slot():
  return cases.toy_data(9, 3)


@functools.cache
def _two_slots():
  """Clients that are drawn twice, empty slots and missing labels."""
  return cases.toy_data(7, 3, 2, missing=0.4)


class Source(client_sources.DatasetClients):
  """Counts what is read, and fails if told to."""

  def __init__(self, data):
    super().__init__(data)
    self.read_clients = []
    self.broken = ()

  def read(self, client):
    self.read_clients.append(client)
    if client in self.broken:
      raise OSError(f'client {client} cannot be read')
    return super().read(client)


def _both(
  types,
  data,
  local=PLAIN,
  initialization='per_owner',
  folder=None,
  devices=0,
  **settings,
):
  """An algorithm in memory, and the same with its clients on the host."""
  make = functools.partial(_algorithm, local=local)
  settings = round_settings.RoundSettings(**settings)
  federation, _ = testing.toy_federation(
    types, data, initialization=initialization
  )
  source = Source(data)
  streamed_federation, _ = testing.toy_federation(
    types, source.tables, initialization=initialization
  )
  streamed = _stream(
    streamed_federation,
    source,
    make,
    dataclasses.replace(
      settings,
      placement=dataclasses.replace(
        settings.placement, client_axis='client' if devices else None
      ),
    ),
    folder,
    testing.mesh({'client': devices}) if devices else None,
  )
  return make(federation, settings), streamed, source


def _stream(*args):
  return streaming.StreamedRounds(
    *args, compiler_options=execution_lib.quick_options()
  )


def _algorithm(federation, settings, local):
  return multi_task_fl.multi_task_fl(federation, local, settings)


def _everyone(data):
  return np.arange(data.num_clients)


class StreamingTest(parameterized.TestCase):
  def _compare(self, types, data, **settings):
    """Runs both and compares states and metrics; returns the cohorts."""
    algorithm, streamed, _ = _both(types, data, **settings)
    expected, found = cases.run(algorithm, data, ROUNDS, seed=3), []
    with streamed:
      state = streamed.init(jax.random.key(3))
      for number in range(ROUNDS):
        state, metrics = streamed.run_round(state)
        testing.assert_trees_close(
          metrics, cases.rows(expected.metrics, number)
        )
        found.append(np.asarray(metrics['client']))
      testing.assert_trees_close(
        streamed.state_of(state, _everyone(data)), expected.state
      )
    return np.array(found)

  @parameterized.parameters((2, 'low_rank'), (4, 'scan'))
  def test_any_mesh(self, devices, form):
    self._compare(
      MIX,
      _one_slot(),
      devices=devices,
      placement=round_settings.Placement(execution=form, low_rank_below=np.inf),
      clients_per_task=1,
    )

  def test_clients_of_several_tasks_on_a_mesh(self):
    """And tasks of a cohort that count the same."""
    self._compare(
      MIX,
      _two_slots(),
      devices=2,
      clients_per_task=(2, 1, 2),
      weighting={'common': 'task_balanced'},
    )

  @parameterized.parameters(
    (('common', 'task'), 'shared', 'uniform', 'examples', PLAIN),
    (('personal', 'common'), 'per_owner', 'paper', 'paper', MOMENTUM),
    (('task', 'pretrained', 'personal'), 'shared', 'paper', 'uniform', PLAIN),
    (
      ('personal', 'task', 'personal'),
      *('per_owner', 'examples', 'task_balanced', MOMENTUM),
    ),
    (
      ('personal', 'common', 'task'),
      *('per_owner', 'task_balanced', 'paper', PLAIN),
    ),
  )
  def test_any_layer_types(
    self, types, initialization, of_common, of_task, local
  ):
    """With every weighting, and optimizers that cross rounds."""
    self._compare(
      types,
      _one_slot(),
      local=local,
      clients_per_task=(1, 2, 1),
      weighting={'common': of_common, 'task': of_task},
      initialization=initialization,
    )

  @parameterized.parameters(
    ('drawn', 'shared', 'uniform'), ('all', 'per_owner', 'task_balanced')
  )
  def test_clients_with_several_tasks(self, slots, initialization, weighting):
    drawn = self._compare(
      MIX,
      _two_slots(),
      local=MOMENTUM,
      clients_per_task=(2, 1, 2),
      slots=slots,
      weighting={'common': weighting},
      initialization=initialization,
    )
    self.assertTrue((drawn == 7).any())  # Somebody was drawn twice,
    self.assertLess(len(np.unique(drawn)), drawn.size)  # and again later.

  def test_everybody_takes_part(self):
    self._compare(MIX, _two_slots(), clients_per_task=0)

  def test_owners_of_ones_own(self):
    data = cases.toy_data(6, 2)
    cluster = np.array([2, 0, 1, 1, 0, 2], np.int32)
    data.partition.owner_index['cluster'] = cluster
    owners = {
      **federation_lib.OWNERS,
      'cluster': federation_lib.Owner('cluster'),
    }
    make = functools.partial(_algorithm, local=PLAIN)
    settings = round_settings.RoundSettings(clients_per_task=1)
    source = Source(data)
    federations = [
      testing.toy_federation(
        ('cluster', 'personal'),
        tables,
        owners=owners,
        num_owners={'cluster': 3},
        initialization='per_owner',
      )[0]
      for tables in (data, source.tables)
    ]
    algorithm = make(federations[0], settings)
    expected = cases.run(algorithm, data, 3).state
    with _stream(federations[1], source, make, settings) as streamed:
      state = streamed.init(jax.random.key(0))
      for _ in range(3):
        state, _ = streamed.run_round(state)
      testing.assert_trees_close(
        streamed.state_of(state, _everyone(data)), expected
      )

  def test_views_are_those_of_the_whole_federation(self):
    """Fine-tuned ones, which need the clients' data."""
    data = _two_slots()
    settings = round_settings.RoundSettings(clients_per_task=1)
    make = lambda federation, settings: fedavg_finetune.fedavg_finetune(
      federation, PLAIN, settings, finetune_epochs=2
    )
    source = Source(data)
    federation, _ = testing.toy_federation(MIX, source.tables)
    algorithm = make(testing.toy_federation(MIX, data)[0], settings)
    everyone = jax.tree.map(jnp.asarray, cohorts.everyone(data))
    view = testing.jit(jax.vmap(algorithm.view, in_axes=(None, None, 0, None)))
    with _stream(federation, source, make, settings) as s:
      state, _ = s.run_round(s.init(jax.random.key(0)))
      full = s.state_of(state, _everyone(data))
      clients = np.array([5, 0, 3, 6])
      expected = view(full, data, everyone, federation.frozen)
      testing.assert_trees_close(
        s.views(state, clients),
        jax.tree.map(lambda leaf: np.asarray(leaf)[clients], expected),
      )


class ReadingTest(absltest.TestCase):
  def test_a_device_has_the_examples_of_its_own_share(self):
    _, streamed, source = _both(MIX, _one_slot(), devices=2, clients_per_task=1)
    with streamed:
      streamed.run_round(streamed.init(jax.random.key(0)))
      _, (features, _, _) = streamed._ahead.data.result()
    # Three clients in a round: two on one device, one and a gap on the other.
    size = 2 * source.tables.partition.train.max_size
    self.assertEqual(
      [shard.data.shape[0] for shard in features.addressable_shards],
      [size, size],
    )
    self.assertLen(source.read_clients, 6)

  def test_a_round_compiles_once_and_ahead_changes_nothing(self):
    data, found = _two_slots(), []
    settings = round_settings.RoundSettings(clients_per_task=1)
    for ahead in (False, True):
      traced = []

      def make(federation, settings, traced=traced):
        algorithm = _algorithm(federation, settings, MOMENTUM)

        def round_fn(*args):
          traced.append(1)
          return algorithm.round(*args)

        return algorithm._replace(round=round_fn)

      source = Source(data)
      federation, _ = testing.toy_federation(MIX, source.tables)
      with _stream(federation, source, make, settings) as streamed:
        state = streamed.init(jax.random.key(0))
        if ahead:
          streamed.compile(state)
          self.assertFalse(streamed.store.touched.any())
          self.assertEqual(streamed._round._cache_size(), 1)
        state, metrics = streamed.run_round(state)
        self.assertEqual(streamed._round._cache_size(), 1)
        full = streamed.state_of(state, _everyone(data))
        found.append(jax.tree.map(jnp.copy, (metrics, full)))
        for _ in range(4):  # They take the memory of the state before.
          state, _ = streamed.run_round(state)
      self.assertLen(traced, 1)
    testing.assert_trees_equal(*found)

  def test_only_the_cohort_and_the_next_one_are_read(self):
    _, streamed, source = _both(MIX, _one_slot(), clients_per_task=1)
    with streamed:
      state, metrics = streamed.run_round(streamed.init(jax.random.key(0)))
      first = np.asarray(metrics['client']).tolist()
      _, metrics = streamed.run_round(state)
    second = np.asarray(metrics['client']).tolist()
    self.assertCountEqual(source.read_clients[:3], first)
    self.assertCountEqual(source.read_clients[3:6], second)
    self.assertLessEqual(len(source.read_clients), 9)
    np.testing.assert_array_equal(
      np.flatnonzero(streamed.store.touched), np.unique(first + second)
    )

  def test_an_error_of_the_reader_reaches_the_caller_and_can_be_repaired(self):
    _, streamed, source = _both(('common',), _one_slot(), clients_per_task=0)
    with streamed:
      state = streamed.init(jax.random.key(0))
      source.broken = (4,)
      with self.assertRaisesRegex(OSError, 'client 4 cannot be read'):
        streamed.run_round(state)
      source.broken = ()
      streamed.run_round(state)

  def test_another_seed_gets_cohorts_and_closing_ends_the_thread(self):
    before = set(threading.enumerate())
    _, streamed, _ = _both(('common',), _one_slot(), clients_per_task=1)
    found = []
    with streamed:
      for seed in (0, 1, 0):
        state = streamed.init(jax.random.key(seed))
        drawn = []
        for _ in range(3):
          state, metrics = streamed.run_round(state)
          drawn.append(np.asarray(metrics['client']).tolist())
        found.append(drawn)
      self.assertNotEmpty(set(threading.enumerate()) - before)
    self.assertEmpty(set(threading.enumerate()) - before)
    self.assertEqual(found[0], found[2])
    self.assertNotEqual(found[0], found[1])

  def test_another_federation_is_refused(self):
    federation, _ = testing.toy_federation(MIX, _two_slots())
    with self.assertRaisesRegex(ValueError, 'of the 9 clients .* one of 7;'):
      streaming.StreamedRounds(federation, Source(_one_slot()), _algorithm)

  def test_layers_of_clients_that_a_server_relates_are_refused(self):
    source = Source(_one_slot())
    federation, _ = testing.toy_federation(
      ('common', 'related'),
      source.tables,
      owners=federation_lib.OWNERS
      | {'related': federation_lib.Owner('client')},
    )
    with self.assertRaisesRegex(ValueError, "'related'.*on the device"):
      streaming.StreamedRounds(federation, source, _algorithm)

  def test_too_many_clients_are_refused(self):
    with self.assertRaisesRegex(ValueError, '`clients_per_task` <= 3'):
      _both(MIX, _one_slot(), clients_per_task=4)


class ResumingTest(absltest.TestCase):
  def test_resuming_equals_not_stopping(self):
    settings = {'local': MOMENTUM, 'clients_per_task': 1}
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'saved')
      _, streamed, source = _both(MIX, _two_slots(), folder=folder, **settings)
      with streamed:
        state = streamed.init(jax.random.key(0))
        for _ in range(2):
          state, _ = streamed.run_round(state)
        saved = jax.tree.map(jnp.copy, state)
        streamed.store.save(path)
        for _ in range(2):
          state, _ = streamed.run_round(state)
        expected = streamed.state_of(state, _everyone(_two_slots()))
      _, streamed, source = _both(MIX, _two_slots(), **settings)
      with streamed:
        streamed.init(jax.random.key(0))
        streamed.store.load(path)
        state = saved
        for _ in range(2):
          state, _ = streamed.run_round(state)
        testing.assert_trees_equal(
          streamed.state_of(state, _everyone(_two_slots())), expected
        )


if __name__ == '__main__':
  absltest.main()

"""Law: a round of any federation equals the naive loop, whatever is random.

It is checked on a thousand federations, always the same. More of them,
from a seed that is new each time and is printed (`PROPERTY_SEED` repeats one):

  PROPERTY_EXAMPLES=10000 python -m pytest -s tests/laws/property_test.py

A setting is one compiled program; all that is data is drawn, see
`random_federations`. A counterexample is shrunk to a smallest one.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os
import random
from typing import Any

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import client_batches
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators

import cases
import naive
import random_federations
import renumbering

EXAMPLES = int(os.environ.get('PROPERTY_EXAMPLES', 1000))
SEED = 0
if 'PROPERTY_EXAMPLES' in os.environ:
  SEED = int(os.environ.get('PROPERTY_SEED', random.randrange(2**32)))
  print(f'PROPERTY_SEED={SEED}')

MIX = ('common', 'task', 'personal')
ONE_SLOT = random_federations.Shape(clients=8, groups=(3, 2, 2), slots=1)
TWO_SLOTS = random_federations.Shape(clients=6, groups=(4, 3, 2), slots=2)
THREE_SLOTS = random_federations.Shape(clients=5, groups=(4, 2, 1), slots=3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """What a round is compiled for.

  Attributes:
    shape: Of the federations.
    types: Layer types of the layers, or of their `(kernel, bias)`.
    clients_per_task: K.
    take_part: `drawn` or `all`, which slots do.
    local: Local training.
    weighting: By layer type.
    median: The layer types with medians.
    servers: Makes those of the layer types, whose references keep a state.
    task_weights: In a client's objective.
    execution: How clients are mapped.
    rounds: At most.
  """

  shape: random_federations.Shape = TWO_SLOTS
  types: Sequence[str | tuple[str, str]] = MIX
  clients_per_task: int | Sequence[int] = (2, 1, 2)
  take_part: str = cohorts.DRAWN
  local: cases.Local = cases.Local(batch_size=2, rate=0.1)
  weighting: Mapping[str, str] = dataclasses.field(default_factory=dict)
  median: Sequence[str] = ()
  servers: Callable[[], Mapping[str, cases.Server]] = dict
  task_weights: Sequence[float] | None = None
  execution: str = 'scan'
  rounds: int = 2


def _adam(rate):
  """Adam with a constant that keeps rounding what it is."""
  optimizer = functools.partial(optax.adam, eps=1e-2)
  return cases.Server(optimizer, rate, naive.Adam(rate, eps=1e-2))


# Each has several things at once that a round can have; that all of them occur,
# and most pairs, is what matters.
SETTINGS = {
  'one_task': Setting(
    shape=random_federations.Shape(
      clients=6, groups=(5,), slots=1, kinds=(tasks_lib.REGRESSION,)
    ),
    types=('common', 'common'),
    clients_per_task=3,
    local=cases.Local(batch_size=3, epochs=2, momentum=0.5, rate=0.05),
  ),
  'one_slot_and_factored_kernels': Setting(
    shape=ONE_SLOT,
    types=('personal', 'common', 'task'),
    local=cases.Local(
      batch_size=1,
      epochs=2,
      momentum=0.5,
      rate=lambda number: 0.1 / (1 + number),
    ),
    weighting={'common': 'task_balanced', 'task': 'uniform'},
    execution='low_rank',
  ),
  'server_optimizers': Setting(
    clients_per_task=1,
    local=cases.Local(batch_size=3, momentum=0.5, rate=0.1),
    weighting={'common': 'uniform'},
    servers=lambda: {
      'common': cases.Server.sgd(lambda n: 1 / (1 + n), 0.5, max_norm=0.1),
      'task': _adam(0.1),
    },
    rounds=3,
  ),
  'all_clients': Setting(
    shape=THREE_SLOTS,
    types=('personal', 'task', 'common'),
    clients_per_task=0,
    local=cases.Local(batch_size=0, epochs=2, rate=0.1),
    task_weights=(0.5, 2.0, 1.0),
    execution='vmap',
  ),
  'kept_momentum_and_literal_weights': Setting(
    types=('common', ('personal', 'task'), ('task', 'personal')),
    clients_per_task=(2, 2, 1),
    take_part=cohorts.ALL,
    local=cases.Local(batch_size=2, momentum=0.9, keep_momentum=True, rate=0.1),
    weighting={'common': 'paper', 'task': 'paper'},
    execution='chunk:2',
    rounds=3,
  ),
  'factored_kernels': Setting(
    local=cases.Local(batch_size=2, epochs=2, momentum=0.5, rate=0.1),
    weighting={'common': 'task_balanced'},
    execution='low_rank:2',
  ),
  'medians': Setting(
    shape=random_federations.Shape(clients=7, groups=(6, 5), slots=2),
    clients_per_task=(5, 4),
    median=('common', 'task'),
    execution='vmap',
  ),
  'clusters_without_a_task_specific_layer': Setting(
    types=('pretrained', ('cluster', 'common'), 'personal'),
    clients_per_task=2,
    local=cases.Local(batch_size=2, momentum=0.5, keep_momentum=True, rate=0.1),
    weighting={'cluster': 'uniform'},
    servers=lambda: {'cluster': cases.Server.sgd(0.5, 0.9)},
    execution='chunk:3',
    rounds=3,
  ),
}


class Program:
  """The round of a setting, compiled once.

  Attributes:
    setting: The setting.
    federation: The package's.
    clients_per_task: K of each task.
    traces: How often the round was traced.
  """

  def __init__(self, setting: Setting):
    self.setting, self.traces = setting, 0
    shape = setting.shape
    cells = range(shape.clients * shape.slots)
    drawn = random_federations.Drawn(
      holders=random_federations.holders(shape, cells),
      sizes=(shape.most,) * shape.clients,
      missing=0.0,
      unlabelled=frozenset(),
      fill=0.0,
      rounds=1,
      seed=0,
    )
    data = self.data(drawn, random_federations.values(shape, drawn))
    cluster = federation_lib.Owner('cluster')
    self.federation, _ = testing.toy_federation(
      setting.types,
      data,
      width=2,
      owners={**federation_lib.OWNERS, 'cluster': cluster},
      num_owners={'cluster': random_federations.NUM_CLUSTERS},
      task_weights=setting.task_weights,
    )
    servers = setting.servers()
    self._algorithm = multi_task_fl.multi_task_fl(
      self.federation,
      setting.local.package(),
      round_settings.RoundSettings(
        clients_per_task=setting.clients_per_task,
        slots=setting.take_part,
        weighting=setting.weighting,
        reducer=dict.fromkeys(setting.median, robust_aggregators.median),
        server={name: server.package for name, server in servers.items()},
        placement=round_settings.Placement(
          execution=setting.execution, low_rank_below=np.inf
        ),
      ),
    )
    self.clients_per_task = cohorts.check_clients_per_task(
      setting.clients_per_task, shape.groups, [t.name for t in shape.tasks]
    )
    self._state = jax.eval_shape(self._algorithm.init, jax.random.key(0), data)
    self.round = testing.jit(self._round)

  def _round(self, state, data, frozen):
    """A round, and what is random about it."""
    self.traces += 1
    setting, train = self.setting, data.partition.train
    sample_key, clients_key = jax.random.split(
      jax.random.fold_in(state.key, state.round)
    )
    cohort = cohorts.sample(
      sample_key,
      data,
      self.clients_per_task,
      setting.shape.groups,
      setting.take_part,
    )
    batch_size = setting.local.batch_size or train.max_size
    length = -(-train.max_size // batch_size) * batch_size

    def order(client_id, size, epoch):
      if batch_size >= train.max_size:
        return jnp.arange(length)
      key = jax.random.fold_in(
        jax.random.fold_in(clients_key, client_id), epoch
      )
      return client_batches.shuffle(key, size, length)

    by_epoch = jax.vmap(order, (None, None, 0))
    orders = jax.vmap(by_epoch, (0, 0, None))(
      cohort.client_id, cohort.size, jnp.arange(setting.local.epochs)
    )
    luck = {'client': cohort.client, 'active': cohort.active, 'order': orders}
    return *self._algorithm.round(state, data, frozen), luck

  def data(self, drawn, values, fill=None, order=None, rng=None):
    """The data set; by default with its own filling and numbers of clients."""
    shape = self.setting.shape
    return random_federations.data_set(
      shape,
      drawn,
      values,
      fill=drawn.fill if fill is None else fill,
      order=range(shape.clients) if order is None else order,
      rng=rng or np.random.default_rng([drawn.seed, 0]),
    )

  def naive(self, drawn, values) -> tuple[naive.Federation, Any]:
    """The same federation as loops, and its pre-trained layers."""
    setting, local = self.setting, self.setting.local
    servers = setting.servers()
    rng = np.random.default_rng([drawn.seed, 1])
    frozen = jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32),
      self.federation.frozen,
    )
    loop = naive.Federation(
      types=cases.leaf_types(setting.types),
      clients=random_federations.naive_clients(drawn, values),
      tasks=[(task.kind, task.num_classes) for task in setting.shape.tasks],
      frozen=cases.to_float64(frozen),
      rate=local.rate,
      momentum=local.momentum,
      keep_momentum=local.keep_momentum,
      batch_size=local.batch_size,
      task_weights=setting.task_weights,
      weighting=setting.weighting,
      median=setting.median,
      servers={name: server.reference for name, server in servers.items()},
      clients_per_task=self.clients_per_task,
    )
    return loop, frozen

  def start(self, drawn, loop) -> algorithm_lib.State:
    """A state in which all owners differ.

    Personal layers of empty slots are filled as the data are. Clients without a
    label, who have nothing to say, may have lost all their personal layers.
    """
    rng = np.random.default_rng([drawn.seed, 2])
    normal = lambda x: rng.normal(scale=0.5, size=x.shape).astype(np.float32)
    zeros = lambda x: np.zeros(x.shape, x.dtype)
    params = jax.tree.map(normal, self._state.params)
    is_empty = np.array(drawn.holders) == random_federations.NOBODY
    for (layer, name), label in loop.types.items():
      if label == 'personal':
        if (layer, name) in loop.by_slot:
          params[layer][name][is_empty] = drawn.fill
        params[layer][name][_lost(drawn, loop)] = np.nan
    key = rng.integers(2**32, size=2, dtype=np.uint32)
    return algorithm_lib.State(
      params=params,
      server=jax.tree.map(zeros, self._state.server),
      clients=jax.tree.map(zeros, self._state.clients),
      key=jax.random.wrap_key_data(key),
      round=np.int32(rng.integers(5)),
    )


def _lost(drawn, loop) -> list[int]:
  """The clients whose personal layers are NaN at first."""
  return [
    number
    for number, client in enumerate(loop.clients)
    if np.isnan(drawn.fill) and np.isnan(client.labels).all()
  ]


@functools.cache
def _program(name: str) -> Program:
  return Program(SETTINGS[name])


def _members(program, drawn, luck) -> list[naive.Member]:
  """Who takes part, for the naive loop."""
  members = []
  for client, active, orders in zip(
    luck['client'], luck['active'], luck['order'], strict=True
  ):
    if client == program.setting.shape.clients:
      continue
    size = drawn.sizes[client]
    orders = orders[:, :size].tolist() if size else []
    for order in orders:
      assert sorted(order) == list(range(size)), order
    members.append(naive.Member(int(client), active.tolist(), orders))
  return members


def _check_cohort(program, drawn, members):
  """Raises an AssertionError unless K clients of each task were drawn."""
  numbers = [member.client for member in members]
  assert len(set(numbers)) == len(numbers), numbers
  drawn_for = np.zeros(len(program.clients_per_task), int)
  for member in members:
    held = np.array(drawn.holders[member.client])
    active = held[member.active]
    assert (active != random_federations.NOBODY).all(), member
    drawn_for[active] += 1
    if program.setting.take_part == cohorts.ALL:
      is_slot = held != random_federations.NOBODY
      np.testing.assert_array_equal(member.active, is_slot)
  if program.setting.take_part == cohorts.ALL:
    assert (drawn_for >= program.clients_per_task).all(), drawn_for
    assert len(numbers) <= sum(program.clients_per_task), numbers
  else:
    np.testing.assert_array_equal(drawn_for, program.clients_per_task)


def _check_silence(program, loop, members, old, new):
  """Raises an AssertionError if an owner changed whom nobody reported to."""
  shape = program.setting.shape
  trained = np.zeros((shape.clients, shape.slots), bool)
  heard = {
    'common': np.zeros((), bool),
    'task': np.zeros(len(shape.groups), bool),
    'cluster': np.zeros(random_federations.NUM_CLUSTERS, bool),
  }
  for member in members:
    client = loop.clients[member.client]
    by_slot, total = loop.counts(member)
    trained[member.client] = member.active
    heard['common'] |= total > 0
    heard['cluster'][client.owners['cluster']] |= total > 0
    for task, count in zip(client.tasks, by_slot, strict=True):
      if count:
        heard['task'][task] = True

  def check(is_heard, old, new):
    old, new = np.asarray(old), np.asarray(new)
    np.testing.assert_array_equal(new[~is_heard], old[~is_heard])

  for (layer, name), label in loop.types.items():
    if label == 'pretrained':
      continue
    by_slot = (layer, name) in loop.by_slot
    own = trained if by_slot else trained.any(1)
    is_heard = own if label == 'personal' else heard[label]
    check(is_heard, old.params[layer][name], new.params[layer][name])
  for label, state in old.server.items():
    check_label = functools.partial(check, heard[label])
    jax.tree.map(check_label, state, new.server[label])
  check_clients = functools.partial(check, trained.any(1))
  jax.tree.map(check_clients, old.clients, new.clients)


def _check_metrics(program, drawn, loop, members, metrics):
  """Raises an AssertionError unless steps and examples were counted right."""
  shape, local = program.setting.shape, program.setting.local
  rows = len(metrics['client'])
  expected = {
    'client': np.full(rows, shape.clients),
    'task': np.full((rows, shape.slots), len(shape.groups)),
    'count': np.zeros((rows, shape.slots), int),
    'steps': np.zeros(rows, int),
  }
  for row, member in enumerate(members):
    client = loop.clients[member.client]
    size, by_slot = len(client.features), loop.counts(member)[0]
    expected['client'][row] = member.client
    for slot, active in enumerate(member.active):
      if active:
        expected['task'][row, slot] = client.tasks[slot]
    expected['count'][row] = local.epochs * np.array(by_slot)
    batches = -(-size // (local.batch_size or max(size, 1)))
    expected['steps'][row] = local.epochs * batches
  for name, value in expected.items():
    np.testing.assert_array_equal(metrics[name], value, name)
  lost = np.isin(expected['client'], [shape.clients, *_lost(drawn, loop)])
  for finite in jax.tree.leaves(metrics['finite']):
    assert (finite | lost).all(), finite


class FederationsTest(parameterized.TestCase):
  def _for_all(self, program, check):
    """Checks so many federations of a setting."""
    count = -(-EXAMPLES // len(SETTINGS))
    checked = 0

    @hypothesis.seed(f'{SEED} {self._testMethodName}')
    @hypothesis.settings(
      max_examples=count,
      database=None,
      deadline=None,
      report_multiple_bugs=False,
    )
    @hypothesis.given(
      random_federations.federations(
        program.setting.shape, program.setting.rounds
      )
    )
    def run(drawn):
      nonlocal checked
      hypothesis.note(f'PROPERTY_SEED={SEED}')
      check(drawn)
      checked += 1

    run()
    self.assertGreaterEqual(checked, count)
    self.assertEqual(program.traces, 1)

  @parameterized.parameters(*SETTINGS)
  def test_rounds_equal_the_naive_loop_whatever_fills_shapes(self, name):
    """So do those of the same clients under other numbers, filled with 0."""
    program = _program(name)

    def check(drawn):
      values = random_federations.values(program.setting.shape, drawn)
      rng = np.random.default_rng([drawn.seed, 3])
      order = rng.permutation(program.setting.shape.clients)
      renumbered = lambda params: renumbering.take(
        program.federation, params, 'personal', order
      )
      data = program.data(drawn, values)
      other_data = program.data(drawn, values, fill=0.0, order=order, rng=rng)
      loop, frozen = program.naive(drawn, values)
      state = program.start(drawn, loop)
      other = dataclasses.replace(state, params=renumbered(state.params))
      expected = cases.to_float64(state.params)
      for _ in range(drawn.rounds):
        new, *found = program.round(state, data, frozen)
        other, other_metrics, _ = program.round(other, other_data, frozen)
        metrics, luck = jax.device_get(found)
        members = _members(program, drawn, luck)
        _check_cohort(program, drawn, members)
        expected = loop.round(expected, members, int(state.round))
        actual = cases.to_float64(new.params)
        testing.assert_trees_close(actual, expected, 1e-4, 1e-5)
        _check_silence(program, loop, members, state, new)
        _check_metrics(program, drawn, loop, members, metrics)
        testing.assert_trees_close(
          other.params, renumbered(jax.device_get(new.params)), 1e-4, 1e-5
        )
        self._assert_same_clients(order, metrics, jax.device_get(other_metrics))
        state = new

    self._for_all(program, check)

  def _assert_same_clients(self, order, metrics, other):
    """The same clients did the same, in whatever order."""
    numbers = np.append(order, len(order))[other['client']]
    rows, other_rows = np.argsort(metrics['client']), np.argsort(numbers)
    for name in ('task', 'count', 'steps'):
      np.testing.assert_array_equal(
        other[name][other_rows], metrics[name][rows], name
      )
    np.testing.assert_array_equal(numbers[other_rows], metrics['client'][rows])
    np.testing.assert_allclose(
      other['loss_sum'][other_rows], metrics['loss_sum'][rows], 1e-4, 1e-5
    )


if __name__ == '__main__':
  absltest.main()

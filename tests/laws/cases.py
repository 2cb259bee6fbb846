"""Runs the same rounds with the package and with the naive reference."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import algorithms
from fmtl_jax import balancing as balancing_lib
from fmtl_jax import cohorts
from fmtl_jax import evaluation
from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import personal_models
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation as participation_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import adapters
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators
from fmtl_jax.server import server_optimizers

import naive

Tree = Any

testing.use_cpu_devices(8)  # Of files that run alone: `jit` starts JAX.
_sample = testing.jit(cohorts.sample, static_argnums=(2, 3, 4))
_shuffle = testing.jit(client_batches.shuffle, static_argnums=2)
_take_part = testing.jit(
  participation_lib.apply_participation, static_argnums=(0, 4)
)


class Server:
  """A server optimizer on both sides."""

  def __init__(self, optimizer, rate, reference):
    self.package = server_optimizers.ServerOptimizer(optimizer, rate)
    self.reference = reference

  @classmethod
  def sgd(cls, rate, momentum=0.0, max_norm=np.inf):
    """SGD on updates that are perhaps clipped by the norm of all leaves."""

    def optimizer(rate):
      sgd = optax.sgd(rate, momentum=momentum or None)
      if max_norm == np.inf:
        return sgd
      return optax.chain(optax.clip_by_global_norm(max_norm), sgd)

    return cls(optimizer, rate, naive.Sgd(rate, momentum, max_norm))

  @classmethod
  def adam(cls, rate):
    """Adam with the usual constants."""
    return cls(optax.adam, rate, naive.Adam(rate))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local:
  """Local training on both sides, see `naive.Federation`."""

  rate: naive.Schedule = 0.2
  momentum: float = 0.0
  keep_momentum: bool = False
  batch_size: int = 0
  epochs: int = 1

  def package(self) -> local_optimizers.LocalSgd:
    """The settings of the package."""
    return local_optimizers.LocalSgd(
      optimizer=local_optimizers.Sgd(momentum=self.momentum),
      learning_rate=self.rate,
      batch_size=self.batch_size,
      epochs=self.epochs,
      keep_optimizer_state=self.keep_momentum,
    )


def toy_data(
  num_clients: int = 7,
  num_tasks: int = 3,
  num_slots: int = 1,
  *,
  kinds: Sequence[str] = (tasks_lib.BINARY,),
  **settings: Any,
) -> dataset_lib.FederatedDataset:
  """As `testing.toy_data`, by default with tasks of one kind.

  A law of what does not depend on kinds of tasks has them of one kind: a round
  is compiled in less time. Those of every algorithm, and of rounds and their
  forms, have mixed kinds (`conformance_test`, `algorithms_test`, `rounds_test`,
  `executions_test`, `padding_test`, `property_test`).

  Args:
    num_clients: M.
    num_tasks: T.
    num_slots: S.
    kinds: The tasks' kinds, repeated.
    **settings: Further arguments of `testing.toy_data`.
  """
  return testing.toy_data(
    num_clients, num_tasks, num_slots, kinds=kinds, **settings
  )


def toy_federation(
  types: Sequence[str | tuple[str, str]] = ('common', 'task'), **settings: Any
) -> tuple[federation_lib.Federation, dataset_lib.FederatedDataset]:
  """As `testing.toy_federation`, on `toy_data`."""
  return testing.toy_federation(types, toy_data(), **settings)


def rows(tree: Tree, index: Any) -> Tree:
  """Takes the rows of some owners."""
  return jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)


def leaf_types(
  types: Sequence[str | tuple[str, str]],
) -> dict[tuple[str, str], str]:
  """Layer types by leaf from those of layers or of `(kernel, bias)` pairs."""
  return {
    (f'layer_{i}', name): label
    for i, given in enumerate(types)
    for name, label in zip(
      ('kernel', 'bias'),
      (given, given) if isinstance(given, str) else given,
      strict=True,
    )
  }


def start(
  algorithm: algorithm_lib.Algorithm, data, seed: int = 1
) -> algorithm_lib.State:
  """A state in which all owners have different values.

  What optimizers keep is zero at first, so that no program has to run but where
  balancers keep something, or the server a relationship.
  """
  key = jax.random.key(seed)
  shapes = jax.eval_shape(algorithm.init, key, data)
  rng = np.random.default_rng(seed)
  zeros = lambda x: jax.device_put(np.zeros(x.shape, x.dtype))
  memory, server = shapes.balancing, jax.tree.map(zeros, shapes.server)
  if jax.tree.leaves(memory):
    memory = testing.jit(algorithm.init)(key, data).balancing
  if algorithm.relations is not None and jax.tree.leaves(server):
    server = testing.jit(algorithm.init)(key, data).server
  privacy = shapes.privacy
  if jax.tree.leaves(privacy):
    privacy = testing.jit(algorithm.init)(key, data).privacy
  return algorithm_lib.State(
    params=jax.tree.map(
      lambda x: jax.device_put(
        rng.normal(scale=0.5, size=x.shape).astype(x.dtype)
      ),
      shapes.params,
    ),
    server=server,
    clients=jax.tree.map(zeros, shapes.clients),
    key=key,
    round=jnp.asarray(np.int32(0)),
    balancing=memory,
    memory=jax.tree.map(zeros, shapes.memory),
    pending=jax.tree.map(zeros, shapes.pending),
    privacy=privacy,
  )


def clients_of(data: dataset_lib.FederatedDataset) -> list[naive.Client]:
  """The training data of each client, in plain arrays."""
  columns = [task.column for task in data.tasks]
  examples, partition = data.examples, data.partition
  labels = np.where(examples.present, examples.labels, np.nan)
  clients = []
  for number, rows in enumerate(partition.train.groups()):
    tasks = [
      int(t) if t < len(columns) else None
      for t in partition.client_tasks[number]
    ]
    clients.append(
      naive.Client(
        features=np.asarray(examples.features, np.float64)[rows],
        labels=np.stack(
          [
            np.full(len(rows), np.nan)
            if task is None
            else labels[rows, columns[task]]
            for task in tasks
          ],
          axis=1,
        ),
        tasks=tasks,
        owners={
          name: int(index[number])
          for name, index in partition.owner_index.items()
        },
      )
    )
  return clients


def epoch_keys(key: jax.Array, epochs: int) -> list[jax.Array]:
  """The keys of the orders that a client with one order an epoch uses."""
  return [jax.random.fold_in(key, epoch) for epoch in range(epochs)]


def drawn(
  state: algorithm_lib.State,
  data: dataset_lib.FederatedDataset,
  federation: federation_lib.Federation,
  clients_per_task: Sequence[int],
  slots: str,
  local: Local,
  keys_fn: Callable[[jax.Array, int], list[jax.Array]] = epoch_keys,
  personal_epochs: int = 0,
  taking_part: participation_lib.Participation | None = None,
) -> list[naive.Member]:
  """Everything random about the next round: cohort and orders of examples."""
  key = jax.random.fold_in(state.key, state.round)
  sample_key, clients_key = jax.random.split(key)
  cohort = _sample(
    sample_key, data, clients_per_task, federation.group_sizes, slots
  )
  counted = np.asarray(cohort.example_counts) > 0
  if taking_part is not None:
    cohort, _ = _take_part(
      taking_part, state.key, state.round, cohort, data.num_clients
    )
  work = np.ones(len(counted)) if cohort.work is None else cohort.work
  is_late = counted & (np.asarray(cohort.example_counts) == 0)
  members = []
  for client, active, own_work, own_late in zip(
    np.asarray(cohort.client),
    np.asarray(cohort.active),
    work,
    is_late,
    strict=True,
  ):
    if client == data.num_clients:
      continue
    size = len(data.partition.train.groups()[client])
    client_key = jax.random.fold_in(
      clients_key, data.partition.client_ids[client]
    )

    def orders(keys, size=size):
      max_size, batch_size = data.partition.train.max_size, local.batch_size
      if not 0 < batch_size < max_size:
        return [list(range(size)) for _ in keys]
      length = -(-max_size // batch_size) * batch_size
      found = []
      for key in keys:
        order = np.asarray(_shuffle(key, size, length))
        found.append(order[:size].tolist())
        assert sorted(found[-1]) == list(range(size))
      return found

    second = personal_models.second_key(client_key)
    members.append(
      naive.Member(
        int(client),
        [bool(a) for a in active],
        orders(keys_fn(client_key, local.epochs)),
        orders(epoch_keys(second, personal_epochs)),
        float(own_work),
        bool(own_late),
      )
    )
  return members


def to_float64(params: Tree) -> Tree:
  """The same values as NumPy arrays without None holes."""
  return {
    layer: {
      name: np.array(leaf, np.float64)
      for name, leaf in leaves.items()
      if leaf is not None
    }
    for layer, leaves in params.items()
  }


def compare(
  types: Sequence[str | tuple[str, str]],
  data: dataset_lib.FederatedDataset,
  *,
  local: Local = Local(),
  clients_per_task: int | Sequence[int] = 0,
  slots: str = cohorts.DRAWN,
  weighting: Mapping[str, str] | None = None,
  median: Sequence[str] = (),
  servers: Mapping[str, Server] | None = None,
  execution: str = 'scan',
  rounds: int = 2,
  rtol: float = 1e-4,
  atol: float = 1e-5,
  build: Callable[..., algorithm_lib.Algorithm] | None = None,
  reference: Callable[..., naive.Federation] = naive.Federation,
  own: Mapping[str, Any] | None = None,
  keys_fn: Callable[[jax.Array, int], list[jax.Array]] = epoch_keys,
  participation: participation_lib.Participation | None = None,
  skip_nonfinite: bool = False,
  balancing: balancing_lib.Places = balancing_lib.Places(),
  **settings: Any,
) -> algorithm_lib.State:
  """Raises an AssertionError unless rounds equal those of the naive reference.

  With `build`, a run starts as the algorithm does, and the models with which
  clients predict are compared after the last round, too.

  Args:
    types: Layer types of the layers, or of their `(kernel, bias)`.
    data: The federation's data.
    local: Local training.
    clients_per_task: K.
    slots: `drawn` or `all`.
    weighting: By layer type.
    median: The layer types with medians.
    servers: By layer type.
    execution: How clients are mapped.
    rounds: How many rounds.
    rtol: Relative tolerance.
    atol: Absolute tolerance.
    build: Of another algorithm than `multi_task_fl`.
    reference: `naive.Federation`, or a class of its kind for the algorithm.
    own: Settings of the algorithm's own, on both sides.
    keys_fn: `(key of a client, epochs) -> keys` of all orders of its examples
      that the client uses in a round.
    participation: Who takes part in full.
    skip_nonfinite: Whether clients whose features are NaN are left out.
    balancing: Of tasks, of a kind that leaves the rounds as they are.
    **settings: Further arguments of `Federation.create`.

  Returns:
    The package's last state.
  """
  weighting, servers, own = weighting or {}, servers or {}, own or {}
  federation, _ = testing.toy_federation(types, data, **settings)
  algorithm = (build or multi_task_fl.multi_task_fl)(
    federation,
    local.package(),
    round_settings.RoundSettings(
      clients_per_task=clients_per_task,
      slots=slots,
      weighting=weighting,
      reducer=dict.fromkeys(median, robust_aggregators.median),
      server={name: server.package for name, server in servers.items()},
      participation=participation,
      skip_nonfinite=skip_nonfinite,
      balancing=balancing,
      placement=round_settings.Placement(
        execution=execution, low_rank_below=np.inf
      ),
    ),
    **own,
  )
  counts = cohorts.check_clients_per_task(
    clients_per_task, federation.group_sizes, [t.name for t in data.tasks]
  )
  naive_rounds = reference(
    types=leaf_types(types),
    clients=clients_of(data),
    tasks=[(task.kind, task.num_classes) for task in data.tasks],
    frozen=to_float64(federation.frozen),
    rate=local.rate,
    momentum=local.momentum,
    keep_momentum=local.keep_momentum,
    batch_size=local.batch_size,
    task_weights=federation.task_weights,
    weighting=weighting,
    median=median,
    servers={name: server.reference for name, server in servers.items()},
    clients_per_task=counts,
    **own,
  )
  first = start(algorithm, data) if build is None else None
  found = run(algorithm, data, rounds, first, 1, views=build is not None)
  expected = to_float64(found.start.params)
  for number in range(rounds):
    cohort = drawn(
      dataclasses.replace(found.start, round=jnp.int32(number)),
      data,
      federation,
      counts,
      slots,
      local,
      keys_fn,
      own.get('personal_epochs', 0),
      participation,
    )
    if skip_nonfinite:
      sound = lambda member: np.isfinite(
        naive_rounds.clients[member.client].features
      ).all()
      cohort = [member for member in cohort if sound(member)]
    expected = naive_rounds.round(expected, cohort, number)
  state = found.state
  testing.assert_trees_close(to_float64(state.params), expected, rtol, atol)
  if build is not None:
    _compare_views(found.views, naive_rounds, expected, rtol, atol)
  return state


def _compare_views(views, naive_rounds, params, rtol, atol):
  """Compares the models with which all clients predict."""
  found = to_float64(views)
  for number, client in enumerate(naive_rounds.clients):
    expected = naive_rounds.personal(params, number)
    for slot, task in enumerate(client.tasks):
      if task is None:
        continue
      for layer, name in naive_rounds.types:
        if naive_rounds.types[layer, name] == 'pretrained':
          continue
        leaf = found[layer][name][number]
        if (layer, name) in naive_rounds.by_slot:
          leaf = leaf[slot]
        place = naive_rounds.place((layer, name), number, slot)
        np.testing.assert_allclose(
          leaf,
          expected[layer][name][place],
          rtol,
          atol,
          err_msg=f'{layer}/{name} of client {number}, slot {slot}',
        )


# Of label rules that take a number of layers.
_DEPTHS = {
  'task_layers': 1,
  'personal_layers': 1,
  'common_layers': 1,
  'shared_layers': 1,
  'decoder_layers': 1,
}
# Settings of their own, and of the round, that algorithms need to be themselves
# in a few rounds.
OWN = {'cfl': {'eps1': np.inf, 'eps2': 0.0}}
ROUND = {'cfl': {'clients_per_task': 0}}
# Their network is one dense layer.
LINEAR = tuple(
  name
  for name, entry in algorithms.ALGORITHMS.items()
  if entry.network.get('name') == 'linear'
)
# Whose servers relate all clients, each to each.
RELATED = ('fedu', 'fedamp', 'mat_fl', 'fedhca2', *LINEAR)


def distinct() -> list[str]:
  """A law of what rounds compute has a row for each code that there is."""
  others = testing.OTHER_LABELS
  return [name for name in algorithms.ALGORITHMS if name not in others]


def named(
  name: str,
  data: dataset_lib.FederatedDataset,
  local: Local = Local(rate=0.1, momentum=0.5, batch_size=2),
  own: Mapping[str, Any] | None = None,
  normalization: str = 'none',
  dtype: Any = None,
  compute: str = 'float32',
  **settings: Any,
) -> tuple[
  federation_lib.Federation,
  dataset_lib.FederatedDataset,
  algorithm_lib.Algorithm,
]:
  """An algorithm of the table by its name, on a small network of its own rules.

  Args:
    name: In `algorithms.ALGORITHMS`.
    data: The federation's data.
    local: Local training.
    own: Settings of the algorithm's own.
    normalization: Of the network.
    dtype: Of parameters and what the network computes, perhaps one for each
      layer; by default float32.
    compute: In what the network computes, see `Federation.create`.
    **settings: Of `RoundSettings`.

  Returns:
    The federation, its data with the owners that the algorithm adds, and the
    algorithm.
  """
  entry = algorithms.ALGORITHMS[name]
  own = entry.defaults | OWN.get(name, {}) | dict(own or {})
  num_owners = entry.owners(own)
  data = data.with_owners(num_owners)
  features = np.shape(data.examples.features)[1:]
  outputs = tasks_lib.num_outputs(data.tasks)
  model = models.mlp(features, (4, 4), outputs, normalization)
  if name in LINEAR:
    model = models.linear(features, outputs)
  layers = [stage for stage, _ in model.stages]
  frozen, pretrained = (), None
  if 'adapters.targets' in entry.network:
    model, frozen, pretrained = _adapted(model, entry)
  if dtype is not None:
    plain = model
    by_layer = (
      dtype if isinstance(dtype, dict) else dict.fromkeys(layers, dtype)
    )
    model = model._replace(
      init=lambda key: {
        layer: optax.tree.cast(leaves, by_layer[layer])
        for layer, leaves in plain.init(key).items()
      },
      apply=lambda params, x: plain.apply(
        params, x.astype(by_layer[layers[0]])
      ),
    )
  rules = [
    *frozen,
    *(
      entry.leaf_rules()
      if normalization != 'none' and 'normalization' in entry.network
      else ()
    ),
    *entry.label_rules(layers, **{d: _DEPTHS[d] for d in entry.depths}),
  ]
  model, rules = entry.wraps(model, rules, data.tasks, own)
  more = {index: federation_lib.Owner(index) for index in num_owners}
  federation = federation_lib.Federation.create(
    model,
    rules,
    data,
    owners={**federation_lib.OWNERS, **more},
    num_owners=num_owners,
    compute=compute,
    pretrained=pretrained,
  )
  placement = round_settings.Placement(low_rank_below=np.inf, execution='scan')
  algorithm = entry.build(
    federation,
    local.package(),
    round_settings.RoundSettings(**{'placement': placement} | settings),
    **{name: own[name] for name in entry.own},
  )
  return federation, data, algorithm


def _adapted(model, entry):
  """A network with an adapter of its first kernel, which is not trained.

  Returns:
    The network, rules in front of those by depth, and values that are frozen.
  """
  model = models.Adapters(rank=3, targets=('dense_0/kernel',)).wrap(model)
  pretrained = model.init(jax.random.key(100))
  paths = layer_types.paths(pretrained)
  rules = [
    *layer_types.matching(entry.leaf_rules(), paths),
    (adapters.OF_SCALE, layer_types.PRETRAINED),
    ('dense_0/kernel', layer_types.PRETRAINED),
  ]
  return model, rules, pretrained


def unlike_clients(
  sizes: Sequence[int] = (1, 1),
) -> tuple[federation_lib.Federation, dataset_lib.FederatedDataset]:
  """Two clients whose squared errors have unlike curvature.

  F_1 = (w - 0)^2 and F_2 = (4 w - 4)^2: with the weights p_1 and p_2, their
  common optimum is at 16 p_2 / (p_1 + 16 p_2).

  Args:
    sizes: How many examples, all the same, each client has.
  """
  model = (
    lambda key: {'output': {'slope': jnp.zeros(1)}},
    lambda params, x: x @ params['output']['slope'][None].T,
  )
  data = dataset_lib.FederatedDataset.from_clients(
    [
      np.full((size, 1), x, np.float32)
      for x, size in zip((1, 4), sizes, strict=True)
    ],
    [[0.0] * sizes[0], [4.0] * sizes[1]],
    [0, 0],
    [tasks_lib.Task(name='t', kind=tasks_lib.REGRESSION, num_classes=0)],
  )
  rules = [('.*', 'common')]
  return federation_lib.Federation.create(model, rules, data), data


def partly_labelled() -> dataset_lib.FederatedDataset:
  """Three clients with two tasks, of which two have no labels of the second.

  Where they alone are drawn for it, nobody reports to its owner.
  """
  rng = np.random.default_rng(0)
  sizes = (3, 5, 4)
  labels = [rng.normal(size=(size, 2)).astype(np.float32) for size in sizes]
  for client in (0, 2):
    labels[client][:, 1] = np.nan
  return dataset_lib.FederatedDataset.from_clients(
    [rng.normal(size=(size, 3)).astype(np.float32) for size in sizes],
    labels,
    [[0, 1], [1, 0], [0, 1]],
    [
      tasks_lib.Task(
        name=f'task_{n}', kind=tasks_lib.REGRESSION, num_classes=0, column=n
      )
      for n in range(2)
    ],
  )


def views_of(
  algorithm: algorithm_lib.Algorithm, state: algorithm_lib.State, data
) -> Tree:
  """The parameters `[M, ...]` with which all clients predict."""
  return testing.jit(functools.partial(_views, algorithm))(state, data)


def _views(algorithm, state, data):
  view_fn = lambda client: algorithm.view(state, data, client, None)
  return jax.vmap(view_fn)(cohorts.everyone(data))


class Run(NamedTuple):
  """Some rounds.

  Attributes:
    start: The state before them.
    state: The state after them.
    metrics: Of all rounds, `[rounds, ...]`.
    views: The clients' views after them, `[M, ...]`, None if not asked for.
  """

  start: algorithm_lib.State
  state: algorithm_lib.State
  metrics: algorithm_lib.Metrics
  views: Tree


def run(
  algorithm: algorithm_lib.Algorithm,
  data: dataset_lib.FederatedDataset,
  rounds: int = 1,
  start: algorithm_lib.State | None = None,
  seed: int = 0,
  views: bool = False,
) -> Run:
  """Runs the start, some rounds and the views after them as one program.

  Args:
    algorithm: Whose rounds they are.
    data: To train on.
    rounds: How many.
    start: By default as the algorithm starts.
    seed: Of that start.
    views: Whether to look at the clients' views.
  """
  first = jax.random.key(seed) if start is None else start
  run_all = functools.partial(_run, algorithm, rounds, views)
  return testing.jit(run_all)(first, data)


def _run(algorithm, rounds, views, start, data):
  """A run from a state, or from a key."""
  if not isinstance(start, algorithm_lib.State):
    start = algorithm.init(start, data)
  step = lambda state, _: algorithm.round(state, data)
  state, metrics = jax.lax.scan(step, start, length=rounds)
  found = _views(algorithm, state, data) if views else None
  return Run(start, state, metrics, found)


def train(
  build: Callable[..., algorithm_lib.Algorithm],
  federation: federation_lib.Federation,
  data: dataset_lib.FederatedDataset,
  local: local_optimizers.LocalSgd,
  rounds: int = 3,
  own: Mapping[str, Any] | None = None,
  **settings: Any,
) -> tuple[algorithm_lib.State, Tree]:
  """The state after some rounds, and the clients' views, `[M, ...]`.

  Args:
    build: `(federation, local, settings, **own) -> Algorithm`.
    federation: Of `data`.
    data: To train on.
    local: Local training.
    rounds: How many.
    own: Settings of the algorithm's own.
    **settings: Of `RoundSettings`.
  """
  algorithm = build(
    federation, local, round_settings.RoundSettings(**settings), **(own or {})
  )
  found = run(algorithm, data, rounds, views=True)
  return found.state, found.views


def train_each(
  build: Callable[..., algorithm_lib.Algorithm],
  federation: federation_lib.Federation,
  data: dataset_lib.FederatedDataset,
  local: local_optimizers.LocalSgd,
  rounds: int,
  owns: Sequence[Mapping[str, float]],
  **settings: Any,
) -> list[tuple[algorithm_lib.State, Tree]]:
  """As `train` for each of some settings of the algorithm's own, all numbers.

  They are traced, so that all have the same program.
  """

  @testing.jit
  def run_all(key, data, own):
    algorithm = build(
      federation, local, round_settings.RoundSettings(**settings), **own
    )
    return _run(algorithm, rounds, True, key, data)

  found = []
  for own in owns:
    own = {name: np.float32(value) for name, value in own.items()}
    result = run_all(jax.random.key(0), data, own)
    found.append((result.state, result.views))
  return found


def two_rounds(
  algorithm: algorithm_lib.Algorithm,
  data: dataset_lib.FederatedDataset,
  devices: int = 0,
  axis: str = 'client',
) -> tuple[algorithm_lib.State, algorithm_lib.Metrics]:
  """The state after two rounds and the metrics of the second.

  Args:
    algorithm: With `axis` as its client axis, if there are devices.
    data: To train on.
    devices: Over how many clients are spread; 0 for no mesh.
    axis: Of the mesh.
  """
  run = jitted_rounds(algorithm, devices, axis)
  return run(start(algorithm, data), data)


def jitted_rounds(
  algorithm: algorithm_lib.Algorithm, devices: int = 0, axis: str = 'client'
) -> Callable[..., tuple[algorithm_lib.State, algorithm_lib.Metrics]]:
  """The function `(state, data)` of `two_rounds`."""

  def run(state, data):
    state, metrics = jax.lax.scan(
      lambda state, _: algorithm.round(state, data), state, length=2
    )
    return state, jax.tree.map(lambda leaf: leaf[-1], metrics)

  return spread(run, devices, axis)


def models_of(
  algorithm: algorithm_lib.Algorithm,
  federation: federation_lib.Federation,
  state: algorithm_lib.State,
  data: dataset_lib.FederatedDataset,
  devices: int = 0,
  axis: str = 'client',
) -> dict[str, Any]:
  """The models of an evaluation; the arguments are as of `two_rounds`."""
  evaluate = evaluation.evaluator(
    federation, algorithm, client_axis=axis if devices else None
  )
  return spread(evaluate.models, devices, axis)(state, data)


def evaluated(
  algorithm: algorithm_lib.Algorithm,
  federation: federation_lib.Federation,
  state: algorithm_lib.State,
  data: dataset_lib.FederatedDataset,
  devices: int = 0,
  axis: str = 'client',
) -> dict[str, Any]:
  """The evaluation of a state; the other arguments are as of `two_rounds`."""
  evaluate = evaluation.evaluator(
    federation, algorithm, client_axis=axis if devices else None
  )
  models = models_of(algorithm, federation, state, data, devices, axis)
  rows = {
    evaluation.CLIENT: data.partition.test,
    evaluation.POOLED: data.partition.pooled_test,
  }
  found = {}
  for name in models:  # Stages are compiled once for many algorithms.

    def measure(models, rows, data, name=name):
      return evaluate.measure(models, name, rows, data)

    measure = spread(measure, devices, axis)
    found[name] = measure(models[name], rows[name], data)
  return spread(evaluate.summary, 0)(found, data)


def spread(
  run: Callable[..., Any], devices: int, axis: str = 'client'
) -> Callable[..., Any]:
  """A jitted function, its clients over some devices unless they are 0."""
  if devices:
    run = execution_lib.over_devices(run, testing.mesh({axis: devices}))
  return testing.jit(run)


def assert_rounds_close(found: Any, expected: Any) -> None:
  """Raises an AssertionError unless `two_rounds` agree up to rounding."""
  testing.assert_trees_close(found[0], expected[0], 1e-4, 1e-5)
  for name in ('client', 'task', 'count', 'steps', 'finite'):
    testing.assert_trees_equal(found[1][name], expected[1][name])
  losses = [metrics['loss_sum'] for _, metrics in (found, expected)]
  testing.assert_trees_close(*losses, 1e-4)

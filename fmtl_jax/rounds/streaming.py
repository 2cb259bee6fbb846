"""Rounds of federations that are larger than a device's memory.

A round of a large federation is a round of the small federation that consists
of its cohort, with all of its clients. The clients' data and what each of them
keeps (personal layers, its state) live on the host: the cohort's are gathered,
the very round of the algorithm runs on them, and its rows are scattered back.
A cohort is a pure function of the seed and the round, so that the examples of
the next one are read while the device computes.

Over a mesh, every device has the examples of its own share of the cohort, and a
process reads those of its devices alone.
"""

from collections.abc import Callable, Mapping
from concurrent import futures
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import execution
from fmtl_jax import federation as federation_lib
from fmtl_jax.data import client_data
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib
from fmtl_jax.rounds import client_store
from fmtl_jax.rounds import round_settings

Tree = Any
MakeAlgorithm = Callable[
  [federation_lib.Federation, round_settings.RoundSettings],
  algorithm_lib.Algorithm,
]


@dataclasses.dataclass(frozen=True)
class _Ahead:
  """A cohort, and its data that are being read.

  Attributes:
    seed: The words of the key that the cohort was drawn with.
    round: Its number.
    clients: `[C]` int32, M for padding.
    data: The data set of these clients, on the device.
  """

  seed: bytes
  round: int
  clients: np.ndarray
  data: futures.Future


def check(
  federation: federation_lib.Federation,
  tables: dataset_lib.FederatedDataset,
  make_algorithm: MakeAlgorithm,
  settings: round_settings.RoundSettings,
) -> tuple[int, ...]:
  """How many clients of each task take part, if rounds can be streamed.

  Args:
    federation: Of all clients.
    tables: Of all clients; no example is read.
    make_algorithm: As of `StreamedRounds`.
    settings: Of the rounds of all clients.

  Raises:
    ValueError: If K exceeds a task group, the federation is another one, a
      server has a copy of a layer for each client, or the algorithm needs more
      than a cohort at once, as that of private clients does.
  """
  _check_federation(federation, tables)
  counts = cohorts.check_clients_per_task(
    settings.clients_per_task,
    federation.group_sizes,
    [task.name for task in federation.tasks],
  )
  count = min(sum(counts), tables.num_clients)
  numbers = jnp.arange(count, dtype=jnp.int32)
  make_algorithm(federation.of_clients(numbers, counts), settings)
  return counts


class StreamedRounds:
  """Rounds whose clients live on the host.

  A state has the layers that are averaged; the rows of the clients are in
  `store`. Both go together: what a round is given is the state that the last
  one returned, or one that was saved along with the store.

  Attributes:
    store: What each client keeps, once `init` was called: a dict of its
      personal layers, `params`, its `state`, that of its `balancing`, and the
      `memory` of wrappers of its update.
  """

  store: client_store.ClientStore

  def __init__(
    self,
    federation: federation_lib.Federation,
    source: client_data.ClientData,
    make_algorithm: MakeAlgorithm,
    settings: round_settings.RoundSettings = round_settings.RoundSettings(),
    folder: str | pathlib.Path | None = None,
    mesh: jax.sharding.Mesh | None = None,
    compiler_options: Mapping[str, Any] | None = None,
  ):
    """Compiles and reads nothing yet.

    Args:
      federation: Of all clients, made with `source.tables`.
      source: Their data.
      make_algorithm: `(federation, settings) -> Algorithm`, of the cohort.
      settings: Of the rounds of all clients. With `skip_nonfinite` features
        that are read may be NaN or infinite.
      folder: Where clients' rows are memory-mapped; None keeps them in memory.
      mesh: Devices with the client axis of the settings' placement alone, over
        which the algorithm spreads its clients; by default the first device.
      compiler_options: As of `jax.jit`; by default those of
        `execution.compiler_options`.

    Raises:
      ValueError: If K exceeds a task group, the federation is another one, or
        a server has a copy of a layer for each client.
    """
    tables = source.tables
    counts = check(federation, tables, make_algorithm, settings)
    settings = dataclasses.replace(settings, clients_per_task=counts)
    self._federation = federation
    self._source = source
    self._tables = _with_totals(tables, federation)
    self._folder = folder
    self._num_clients = tables.num_clients
    self._allow_nonfinite = settings.skip_nonfinite
    self._cohort_size = min(sum(counts), self._num_clients)
    self._ahead: _Ahead | None = None
    self._reader = futures.ThreadPoolExecutor(1, 'reader')
    if mesh is None:
      axis = settings.placement.client_axis or 'client'
      mesh = execution.mesh({axis: 1}, jax.local_devices())
    self._mesh = mesh
    if compiler_options is None:
      compiler_options = execution.compiler_options(mesh)
    # Whether a label counts is asked for all clients of several tasks.
    self._has_shares = tables.num_slots == 1
    self._store_spec = jax.P(mesh.axis_names if self._has_shares else None)
    self._everywhere = functools.partial(execution.everywhere, mesh=mesh)
    self._frozen = self._everywhere(federation.frozen)
    # Drawn there: a cohort never waits for what the device computes.
    self._cpu = jax.local_devices(backend='cpu')[0]
    self._members = jax.device_put(tables.partition.members, self._cpu)
    self._set_functions(make_algorithm, settings, compiler_options)

  def _set_functions(self, make_algorithm, settings, compiler_options):
    """Sets the compiled functions: draws, initial rows, rounds and views."""
    federation, tables = self._federation, self._source.tables
    counts = settings.clients_per_task

    def algorithm(clients):
      return make_algorithm(federation.of_clients(clients, counts), settings)

    def draw(key, round_number, members):
      partition = dataclasses.replace(tables.partition, members=members)
      return cohorts.draw_clients(
        cohorts.round_keys(key, round_number)[0],
        dataclasses.replace(tables, partition=partition),
        counts,
        federation.group_sizes,
        settings.slots,
      )

    @jax.jit  # Traced once for both uses.
    def init(key, clients, data):
      return self._split(algorithm(clients).init(key, data))

    def round_fn(state, rows, clients, data, examples, frozen):
      state = self._join(state, rows)
      data = self._here(data, examples)
      state, metrics = algorithm(clients).round(state, data, frozen)
      took_part = metrics['client'] < len(clients)
      numbers = jnp.where(took_part, clients, self._num_clients)
      return *self._split(state), metrics | {'client': numbers}

    def views(state, rows, clients, data, frozen):
      state = self._join(state, rows)
      view = algorithm(clients).view
      return jax.lax.map(
        lambda client: view(state, data, client, frozen), cohorts.everyone(data)
      )

    jit = functools.partial(jax.jit, compiler_options=dict(compiler_options))
    self._draw = jit(draw)
    self._init_state = jit(lambda *args: init(*args)[0])
    self._init_rows = jit(lambda *args: init(*args)[1])
    specs = (jax.P(),) * 4 + (self._store_spec, jax.P())
    self._round = jit(
      execution.over_devices(round_fn, self._mesh, specs), donate_argnums=(0, 1)
    )
    self._views = jit(views)

  def __enter__(self) -> 'StreamedRounds':
    return self

  def __exit__(self, *unused_error) -> None:
    self.close()

  def close(self) -> None:
    """Waits for what is being read and ends the thread that reads."""
    self._ahead = None
    self._reader.shutdown(cancel_futures=True)

  def init(self, key: jax.Array) -> algorithm_lib.State:
    """The state before the first round; all clients' rows are new.

    Args:
      key: Not consumed: rows of clients are drawn when they are asked for.
    """
    clients = np.arange(self._cohort_size, dtype=np.int32)
    data = client_data.without_examples(self._tables, clients)
    state = self._everywhere(self._init_state(key, clients, data))
    rows = jax.eval_shape(self._init_rows, key, clients, data)
    self.store = client_store.ClientStore(
      jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows),
      self._num_clients,
      lambda clients: self._new_rows(key, clients),
      self._folder,
    )
    return state

  def compile(self, state: algorithm_lib.State) -> None:
    """Compiles rounds, by running one of padding clients; changes nothing.

    Args:
      state: The one of the next round, whose examples are being read then.
    """
    padding = np.full(self._cohort_size, self._num_clients, np.int32)
    copy = jax.tree.map(jnp.copy, state)
    inputs = (*self._rows(padding), *self._load(padding), self._frozen)
    jax.block_until_ready(self._round(copy, *inputs))
    self._ahead = self._read(_one_copy(state.key), int(state.round))

  def run_round(
    self, state: algorithm_lib.State
  ) -> tuple[algorithm_lib.State, algorithm_lib.Metrics]:
    """Runs a round, and reads the examples of the next one meanwhile.

    Args:
      state: Donated.

    Returns:
      The new state, and metrics as of `Algorithm.round`.
    """
    number, key = int(state.round), _one_copy(state.key)
    now, self._ahead = self._ahead, None
    if now is None or (now.seed, now.round) != (_words(key), number):
      now = self._read(key, number)
    data = now.data.result()
    self._ahead = self._read(key, number + 1)
    state, rows, metrics = self._round(
      state, *self._rows(now.clients), *data, self._frozen
    )
    self.store.scatter(now.clients, jax.device_get(rows))
    return state, metrics

  def state_of(
    self, state: algorithm_lib.State, clients: np.ndarray
  ) -> algorithm_lib.State:
    """The state of the federation that the `[n]` clients make up."""
    rows = self.store.gather(np.asarray(clients, np.int32))
    return self._join(_one_copy(state), jax.tree.map(jnp.asarray, rows))

  def take_state(self, state: algorithm_lib.State) -> algorithm_lib.State:
    """Takes a state of all clients, as of `Algorithm.round`, for a round."""
    state, rows = self._split(state)
    self.store.scatter(np.arange(self._num_clients), jax.device_get(rows))
    return self._everywhere(state)

  def views(self, state: algorithm_lib.State, clients: np.ndarray) -> Tree:
    """The parameters with which `[n]` clients predict.

    Args:
      state: As `run_round` returned it.
      clients: Any of them.

    Returns:
      Views `[n, ...]`, in NumPy arrays.
    """
    found = []
    for piece, size in self._pieces(clients):
      data = client_data.read_clients(
        self._source, piece, allow_nonfinite=self._allow_nonfinite
      )
      views = self._views(
        state, self.store.gather(piece), piece, data, self._frozen
      )
      found.append(_first(views, size))
    return _concatenate(found)

  def _read(self, key, number):
    """Draws a cohort, and has its examples read."""
    clients, active = jax.tree.map(
      np.asarray,
      self._draw(
        *jax.device_put((key, np.int32(number)), self._cpu), self._members
      ),
    )

    reading = self._reader.submit(self._load, clients, active)
    return _Ahead(_words(key), number, clients, reading)

  def _load(self, clients, active=None):
    """The cohort's tables everywhere, and examples where they belong."""
    data = client_data.without_examples(self._tables, clients, active)
    shares = self._shares(np.asarray(data.partition.train.sizes))
    partition = client_data.place(data.partition, shares)
    stores = {}
    for number, device in enumerate(self._mesh.devices.flat):
      if device.process_index == jax.process_index():
        share = shares[number % len(shares)]
        store = client_data.read_examples(
          self._source, clients, share, self._allow_nonfinite
        )
        stores[device] = jax.device_put(store, device)
    # The stores of all devices are one array.
    sharding = jax.NamedSharding(self._mesh, self._store_spec)
    examples = jax.tree.map(
      lambda *parts: jax.make_array_from_single_device_arrays(
        (len(shares) * len(parts[0]), *parts[0].shape[1:]),
        sharding,
        list(parts),
      ),
      *[(x.features, x.labels, x.present) for x in stores.values()],
    )
    tables = dataclasses.replace(data, partition=partition)
    return jax.block_until_ready((self._everywhere(tables), examples))

  def _rows(self, clients):
    """The rows and numbers of a cohort, on all devices."""
    return self._everywhere((self.store.gather(clients), clients))

  def _shares(self, sizes):
    """The clients `[D, n]` in the store of each device, `[1, C]` if in all."""
    if self._has_shares:
      return execution.shares(sizes, self._mesh.size)
    return np.arange(len(sizes))[None]

  def _here(self, tables, examples):
    """The data set as one device sees it, with its own store."""
    features, labels, present = examples
    train = tables.partition.train
    index = train.index
    if self._has_shares:
      number = jax.lax.axis_index(self._mesh.axis_names)
      index = index - number * len(labels)
    return dataclasses.replace(
      tables,
      examples=dataclasses.replace(
        tables.examples, features=features, labels=labels, present=present
      ),
      partition=dataclasses.replace(
        tables.partition, train=dataclasses.replace(train, index=index)
      ),
    )

  def _new_rows(self, key, clients):
    """Rows `[n, ...]` of clients that never took part."""
    found = []
    for piece, size in self._pieces(clients):
      data = client_data.without_examples(self._tables, piece)
      found.append(_first(self._init_rows(key, piece, data), size))
    return _concatenate(found)

  def _pieces(self, clients):
    """Pads clients to cohorts: `(clients [C], how many are real)`."""
    clients, size = np.asarray(clients, np.int32), self._cohort_size
    for start in range(0, len(clients), size):
      piece = clients[start : start + size]
      missing = size - len(piece)
      yield (
        np.pad(piece, (0, missing), constant_values=self._num_clients),
        len(piece),
      )

  def _split(self, state):
    """The state without what clients own, and that."""
    owners = self._federation.owners
    part = lambda averaged: layer_types.select(
      state.params,
      self._federation.layer_types,
      lambda label: owners[label].averaged == averaged,
    )
    rows = {
      'params': part(False),
      'state': state.clients,
      'balancing': state.balancing.client,
      'memory': state.memory,
    }
    empty = dict.fromkeys(rows, ())
    return _state(state, part(True), empty), rows

  def _join(self, state, rows):
    """The inverse of `_split`."""
    params = layer_types.merge(state.params, rows['params'])
    return _state(state, params, rows)


def _check_federation(
  federation: federation_lib.Federation, tables: dataset_lib.FederatedDataset
) -> None:
  """Raises a ValueError unless the rounds of a federation can be streamed."""
  if federation.num_owners['client'] != tables.num_clients:
    raise ValueError(
      f'Expected a federation of the {tables.num_clients} clients of the '
      f'source, got one of {federation.num_owners["client"]}; create it with '
      'source.tables.'
    )
  for name in sorted(set(jax.tree.leaves(federation.layer_types))):
    owner = federation.owners[name]
    if owner.averaged and owner.index == 'client':
      raise ValueError(
        f'Expected layers of clients that are not averaged, got {name!r}, '
        'whose server needs the copies of all clients at once; keep clients '
        'on the device.'
      )


def _state(
  state: algorithm_lib.State, params: Tree, rows: Mapping[str, Tree]
) -> algorithm_lib.State:
  """Another state of the same round, with what clients keep."""
  return dataclasses.replace(
    state,
    params=params,
    clients=rows['state'],
    balancing=balancing.Memory(rows['balancing'], state.balancing.server),
    memory=rows['memory'],
  )


def _with_totals(
  tables: dataset_lib.FederatedDataset, federation: federation_lib.Federation
) -> dataset_lib.FederatedDataset:
  """Tables that keep the totals of all clients in a selection of clients."""
  counts = {n: c for n, c in federation.num_owners.items() if n != 'client'}
  is_known = (
    tables.num_slots == 1 or tables.partition.example_counts is not None
  )

  def totals(tables):
    return {
      name: found if is_known else found._replace(examples=None)
      for name, found in cohorts.totals(tables, counts).items()
    }

  cpu = jax.local_devices(backend='cpu')[0]
  found = jax.jit(totals)(jax.device_put(tables, cpu))
  partition = dataclasses.replace(
    tables.partition, totals=jax.tree.map(np.asarray, found)
  )
  return dataclasses.replace(tables, partition=partition)


def _words(key: jax.Array) -> bytes:
  """A key as bytes, to compare it."""
  return np.asarray(jax.random.key_data(key)).tobytes()


def _one_copy(tree: Tree) -> Tree:
  """Values that all devices have, on one of this process."""
  return jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def _first(tree: Tree, size: int) -> Tree:
  """The first rows, on the host."""
  return jax.tree.map(lambda x: np.asarray(x)[:size], tree)


def _concatenate(trees: list[Tree]) -> Tree:
  """Puts rows of several trees one after the other."""
  return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)

"""Workloads of the benchmarks: random data, and the least they can take."""

from collections.abc import Callable, Sequence
import dataclasses
import math

import jax
import numpy as np

from fmtl_jax import execution
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import client_data
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import layer_types

LEARNING_RATE = 0.05


class Pool:
  """Clients that share random examples; each has a few in a row.

  Attributes:
    tables: As in `client_data.ClientData`.
  """

  def __init__(self, workload: 'Workload'):
    rng = np.random.default_rng(0)
    size, classes = workload.pool, max(2, workload.outputs)
    self.features = rng.standard_normal((size, *workload.shape), np.float32)
    self.labels = rng.integers(classes, size=(size, 1)).astype(np.float32)
    self._starts = rng.integers(size, size=workload.clients)
    kind = tasks_lib.BINARY if workload.outputs == 1 else tasks_lib.MULTICLASS
    tasks = [
      tasks_lib.Task(name=f'task {number}', kind=kind, num_classes=classes)
      for number in range(workload.tasks)
    ]
    self.tables = client_data.tables(
      features=self.features[0],
      tasks=tasks,
      client_tasks=np.arange(workload.clients) % workload.tasks,
      sizes=workload.sizes(),
    )

  def rows(self, client: int) -> np.ndarray:
    """The numbers of a client's examples."""
    size = np.diff(self.tables.partition.train.offsets[client : client + 2])[0]
    return (self._starts[client] + np.arange(size)) % len(self.labels)

  def read(self, client: int) -> tuple[np.ndarray, np.ndarray]:
    """See `client_data.ClientData.read`."""
    rows = self.rows(client)
    return self.features[rows], self.labels[rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
  """A federation and its network.

  Attributes:
    clients: M; the tasks are given to them in turn.
    tasks: T.
    clients_per_task: K, 0 for all.
    examples: The least and the most that a client has.
    shape: Of one example.
    channels: Of the convolutions, each followed by 2-fold pooling.
    window: Their size along an axis.
    hidden: Widths of the hidden dense layers.
    outputs: Classes; 1 is a binary task.
    batch_size: B.
    layers: How many are common, task-specific and personal, from the input on.
    pool: How many examples there are; clients share them.
    convolution: As `model.convolution`.
  """

  clients: int
  tasks: int = 1
  clients_per_task: int = 0
  examples: tuple[int, int]
  shape: tuple[int, ...]
  channels: tuple[int, ...] = ()
  window: int = 3
  hidden: tuple[int, ...]
  outputs: int
  batch_size: int = 16
  layers: tuple[int, int, int]
  pool: int = 10_000
  convolution: str = 'auto'

  def sizes(self) -> np.ndarray:
    """`[M]`, how many examples each client has."""
    least, most = self.examples
    return np.random.default_rng(0).integers(least, most + 1, self.clients)

  def model(self) -> models.Model:
    """The network."""
    if self.channels:
      return models.cnn(
        self.shape,
        self.channels,
        self.hidden,
        self.outputs,
        self.window,
        self.convolution,
      )
    return models.mlp(self.shape, self.hidden, self.outputs)

  def products(self) -> list[tuple[int, int, int]]:
    """`(rows an example, inputs, outputs)` of the matrix product of each layer.

    A convolution is one of patches, with a row for each place in the image.
    """
    found = []
    *space, inputs = self.shape
    for features in self.channels:
      patch = self.window ** len(space) * inputs
      found.append((math.prod(space), patch, features))
      space = [size // 2 for size in space]
      inputs = features
    widths = [math.prod(space) * inputs, *self.hidden, self.outputs]
    pairs = zip(widths[:-1], widths[1:], strict=True)
    return found + [(1, before, after) for before, after in pairs]

  def flops(self) -> int:
    """Of the products of one example: forward, and both gradients.

    The first layer's input needs no gradient.
    """
    return sum(
      2 * rows * before * after * (3 if number else 2)
      for number, (rows, before, after) in enumerate(self.products())
    )

  def build(
    self,
  ) -> tuple[federation_lib.Federation, dataset_lib.FederatedDataset]:
    """The federation and its data."""
    federation, pool = self.build_on_host()
    data = dataset_lib.FederatedDataset.create(
      features=pool.features,
      labels=pool.labels,
      tasks=pool.tables.tasks,
      client_tasks=pool.tables.partition.client_tasks,
      train=[pool.rows(client) for client in range(self.clients)],
    )
    return federation, data

  def build_on_host(self) -> tuple[federation_lib.Federation, Pool]:
    """The same with data that are read when a client takes part."""
    pool = Pool(self)
    model = self.model()
    names = [name for name, _ in model.stages]
    kinds = (layer_types.COMMON, layer_types.TASK, layer_types.PERSONAL)
    rules = layer_types.by_depth(
      names, list(zip(kinds, self.layers, strict=True))
    )
    return federation_lib.Federation.create(model, rules, pool.tables), pool


_W2 = Workload(
  clients=100,
  tasks=5,
  clients_per_task=4,
  examples=(138, 138),
  shape=(4096,),
  hidden=(4096, 2048, 1024),
  outputs=1,
  layers=(2, 2, 0),
  pool=2_000,
)
_W1 = Workload(
  clients=30,
  examples=(281, 409),
  shape=(561,),
  hidden=(128, 64, 32),
  outputs=6,
  layers=(2, 0, 2),
)
WORKLOADS = {
  'W1': _W1,
  'W2': _W2,
  'W2s': dataclasses.replace(_W2, hidden=(512, 256, 128)),
  'W3': dataclasses.replace(_W1, clients=1_000, clients_per_task=100),
  'W4': Workload(
    clients=100,
    clients_per_task=20,
    examples=(100, 100),
    shape=(28, 28, 1),
    channels=(32, 64),
    window=5,
    hidden=(512,),
    outputs=62,
    layers=(3, 0, 1),
  ),
  'W5': Workload(
    clients=1_000,
    clients_per_task=50,
    examples=(50, 50),
    shape=(32, 32, 3),
    channels=(32, 64),
    hidden=(512,),
    outputs=10,
    batch_size=10,
    layers=(4, 0, 0),
    pool=5_000,
  ),
}


def find(name: str, known: Sequence[str] = tuple(WORKLOADS)) -> Workload:
  """A workload by its name; raises a ValueError if there is none."""
  if name not in WORKLOADS:
    raise ValueError(
      f'Expected --workload to be one of {", ".join(known)}, got {name!r}.'
    )
  return WORKLOADS[name]


def check_dense(workload: Workload) -> None:
  """Raises a ValueError for a network that has convolutions."""
  if workload.channels:
    raise ValueError(
      'Expected a workload of dense layers (W1, W2, W2s or W3) for '
      f'--reference=torch_manual, got convolutions of {workload.channels} '
      'channels; use --reference=torch.'
    )


def floor(
  workload: Workload, steps: int, mesh: jax.sharding.Mesh
) -> Callable[[], jax.Array]:
  """The products of `steps` batches, with nothing between them.

  Args:
    workload: Gives the products.
    steps: Of all devices together, which share them.
    mesh: The devices.

  Returns:
    What computes them; it ran once.
  """
  keys = jax.random.split(jax.random.key(0), 3)
  operands = []
  for rows, before, after in workload.products():
    shapes = (
      (rows * workload.batch_size, before),
      (before, after),
      (rows * workload.batch_size, after),
    )
    operands.append(
      [
        jax.random.normal(key, shape)
        for key, shape in zip(keys, shapes, strict=True)
      ]
    )

  def run_all(operands):
    def step(_, zero):
      # Operands depend on the step before, and products cannot be cut down to
      # the one number that is read of them: none is left out.
      products = []
      for number, (x, w, g) in enumerate(operands):
        x, g = x + zero, g + zero
        products += [x @ w, x.T @ g]
        if number:
          products.append(g @ w.T)
      products = jax.lax.optimization_barrier(products)
      return 0 * sum(product[0, 0] for product in products)

    return jax.lax.fori_loop(0, -(-steps // mesh.size), step, 0.0)

  run = jax.jit(execution.over_devices(run_all, mesh))
  operands = jax.device_put(operands, jax.NamedSharding(mesh, jax.P()))
  jax.block_until_ready(run(operands))
  return lambda: run(operands)

"""Workloads of the benchmarks: random data, and the least they can take."""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import networks
from fmtl_jax import execution
from fmtl_jax import federation as federation_lib
from fmtl_jax import metrics as metrics_lib
from fmtl_jax import models
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import client_data
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import layer_types

PADDING = 0  # The token whose place counts for nothing.


def _next_token_loss(outputs, targets, unused_features):
  """The mean cross-entropy over the tokens of each example."""
  losses = optax.softmax_cross_entropy_with_integer_labels(
    outputs, targets['tokens']
  )
  counts = targets['tokens'] != PADDING
  total = jnp.where(counts, losses, 0).sum(-1)
  return total / jnp.maximum(counts.sum(-1), 1)


def _right_tokens(answers):
  tokens = answers.targets['tokens']
  counts = tokens != PADDING
  return ((answers.predictions == tokens) & counts).sum(-1), counts.sum(-1)


NEXT_TOKENS = tasks_lib.Kind(
  name='next tokens',
  loss=_next_token_loss,
  metrics=(
    metrics_lib.Metric(
      name='token_accuracy', values=_right_tokens, in_percent=True
    ),
  ),
  num_outputs=None,
  predict=lambda outputs: outputs.argmax(-1).astype(jnp.int32),
  is_valid=lambda targets, num_classes: (
    (targets['tokens'] >= 0) & (targets['tokens'] < num_classes[:, None])
  ).all(1),
  rule='tokens from 0 to {last}',
)


class Pool:
  """Clients that share random examples; each has a few in a row.

  Attributes:
    tables: As in `client_data.ClientData`.
  """

  def __init__(self, workload: 'Workload'):
    rng = np.random.default_rng(0)
    self.features, labels = workload.draw(rng)
    self.labels = (
      {'tokens': labels[:, None]}
      if workload.has_tokens
      else labels[:, None].astype(np.float32)
    )
    classes = max(2, workload.outputs)
    size = workload.pool
    self._starts = rng.integers(size, size=workload.clients)
    kind: str | tasks_lib.Kind = tasks_lib.MULTICLASS
    if workload.outputs == 1:
      kind = tasks_lib.BINARY
    elif workload.has_tokens:
      kind = NEXT_TOKENS
    tasks = [
      tasks_lib.Task(name=f'task {number}', kind=kind, num_classes=classes)
      for number in range(workload.tasks)
    ]
    self.tables = client_data.tables(
      features=self.features[0],
      tasks=tasks,
      client_tasks=np.arange(workload.clients) % workload.tasks,
      sizes=workload.sizes(),
      labels=self._of(0) if workload.has_tokens else None,
    )

  def _of(self, rows):
    """The labels of some examples."""
    return jax.tree.map(lambda leaf: leaf[rows], self.labels)

  def rows(self, client: int) -> np.ndarray:
    """The numbers of a client's examples."""
    size = np.diff(self.tables.partition.train.offsets[client : client + 2])[0]
    return (self._starts[client] + np.arange(size)) % len(self.features)

  def read(self, client: int) -> tuple[np.ndarray, Any]:
    """See `client_data.ClientData.read`."""
    rows = self.rows(client)
    return self.features[rows], self._of(rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
  """A federation and its network.

  Attributes:
    clients: M; the tasks are given to them in turn.
    tasks: T.
    clients_per_task: K, 0 for all.
    examples: The least and the most that a client has.
    spread: The mean and the standard deviation of these numbers, which then are
      log-normal, and cut off; None for uniform ones.
    network: Of `networks.NETWORKS`.
    shape: Of one example.
    channels: Of the convolutions; of a ResNet, of its pairs of blocks.
    window: Their size along an axis.
    hidden: Widths of the hidden dense or recurrent layers.
    outputs: Classes, or tokens; 1 is a binary task.
    batch_size: B.
    learning_rate: Of SGD.
    layers: How many are common, task-specific and personal, from the input on;
      empty for all in common.
    pool: How many examples there are; clients share them.
    convolution: As `model.convolution`.
  """

  clients: int
  tasks: int = 1
  clients_per_task: int = 0
  examples: tuple[int, int]
  spread: tuple[float, float] | None = None
  network: str = networks.PLAIN
  shape: tuple[int, ...]
  channels: tuple[int, ...] = ()
  window: int = 3
  hidden: tuple[int, ...] = ()
  outputs: int
  batch_size: int = 16
  learning_rate: float = 0.05
  layers: tuple[int, int, int] | tuple[()] = ()
  pool: int = 10_000
  convolution: str = 'auto'

  def sizes(self) -> np.ndarray:
    """`[M]`, how many examples each client has."""
    rng = np.random.default_rng(0)
    least, most = self.examples
    if self.spread is None:
      return rng.integers(least, most + 1, self.clients)
    mean, deviation = self.spread
    variance = math.log1p((deviation / mean) ** 2)
    sizes = rng.lognormal(
      math.log(mean) - variance / 2, math.sqrt(variance), self.clients
    )
    return np.clip(sizes.round().astype(np.int64), least, most)

  @property
  def has_tokens(self) -> bool:
    """Whether examples are tokens, and targets the next ones."""
    return networks.NETWORKS[self.network].has_tokens

  def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features `[pool, *shape]`, and classes `[pool]` or next tokens."""
    classes = max(2, self.outputs)
    if self.has_tokens:
      shape = (self.pool, self.shape[0] + 1)
      tokens = rng.integers(PADDING + 1, classes, size=shape, dtype=np.int32)
      return tokens[:, :-1], tokens[:, 1:]
    features = rng.standard_normal((self.pool, *self.shape), np.float32)
    return features, rng.integers(classes, size=self.pool)

  def model(self) -> models.Model:
    """The network."""
    return networks.NETWORKS[self.network].model(self)

  def products(self) -> networks.Products:
    """See `networks.Network`."""
    return networks.NETWORKS[self.network].products(self)

  def flops(self) -> int:
    """Of the products of one example: forward, and both gradients.

    The first layer's input needs no gradient.
    """
    return sum(
      2 * math.prod(product) * (3 if number else 2)
      for number, product in enumerate(self.products())
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
    depths = self.layers or (len(names), 0, 0)
    rules = layer_types.by_depth(names, list(zip(kinds, depths, strict=True)))
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
  # Of published comparisons, see `published.py`. Checked against their texts:
  # clients, cohorts, batches, rates and networks; where the numbers of examples
  # are from, and what of them is a guess, is said in README.md.
  'F1': Workload(
    clients=1_000,
    clients_per_task=10,
    examples=(9, 5_000),
    spread=(62, 95),
    shape=(784,),
    outputs=10,
    batch_size=10,
    learning_rate=0.03,
  ),
  'F2': Workload(
    clients=3_400,
    clients_per_task=10,
    examples=(20, 5_000),
    spread=(198, 77),
    network='paired_cnn',
    shape=(28, 28, 1),
    channels=(32, 64),
    hidden=(128,),
    outputs=62,
    batch_size=20,
    learning_rate=0.1,
  ),
  'F3': Workload(
    clients=500,
    clients_per_task=10,
    examples=(100, 100),
    network='resnet18',
    shape=(32, 32, 3),
    channels=(64, 128, 256, 512),
    outputs=100,
    batch_size=20,
    learning_rate=0.1,
  ),
  'F4': Workload(
    clients=715,
    clients_per_task=10,
    examples=(2, 5_000),
    spread=(75, 110),
    network='lstm',
    shape=(80,),
    hidden=(256, 256),
    outputs=90,
    batch_size=4,
    learning_rate=0.8,
  ),
  'F5': Workload(
    clients=1_000,
    clients_per_task=50,
    examples=(50, 50),
    network='paired_cnn',
    shape=(32, 32, 3),
    channels=(32, 64),
    hidden=(128,),
    outputs=10,
    batch_size=10,
    learning_rate=0.1,
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
  """Raises a ValueError for a network that is more than dense layers."""
  if workload.channels or workload.network != networks.PLAIN:
    found = (
      f'convolutions of {workload.channels} channels'
      if workload.channels
      else f'the network {workload.network}'
    )
    raise ValueError(
      'Expected a workload of dense layers (W1, W2, W2s, W3 or F1) for '
      f'--reference=torch_manual, got {found}; use --reference=torch.'
    )


def batch_products(
  workload: Workload,
) -> tuple[Callable[[Any, jax.Array], list[jax.Array]], Any]:
  """The products of a batch, forward and of both gradients.

  Args:
    workload: Gives them.

  Returns:
    `(operands, zero) -> products`, and the operands; `zero` makes them depend
    on what was computed before. Those of a recurrent layer's state come one
    place after another, the gradient of its kernel is one product.
  """
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = workload.products()
  operands = []
  for rows, inputs, outputs, places in shapes:
    rows *= places * workload.batch_size
    of_product = ((rows, inputs), (inputs, outputs), (rows, outputs))
    operands.append(
      [
        jax.random.normal(key, shape)
        for key, shape in zip(keys, of_product, strict=True)
      ]
    )

  def multiply(operands, zero):
    products = []
    for number, (x, w, g) in enumerate(operands):
      x, g = x + zero, g + zero
      places = shapes[number].places
      products += [_in_turn(x, w, places), x.T @ g]
      if number:
        products.append(_in_turn(g, w.T, places))
    return products

  return multiply, operands


def floor(
  workload: Workload, mesh: jax.sharding.Mesh
) -> Callable[[int], jax.Array]:
  """The products of batches, with nothing between them.

  Args:
    workload: Gives the products, see `batch_products`.
    mesh: The devices.

  Returns:
    `steps -> the end`: computes those of so many batches of all devices
    together, which share them; it ran once.
  """
  multiply, operands = batch_products(workload)

  def run_all(operands, steps):
    def step(_, zero):
      # Operands depend on the step before, and products cannot be cut down to
      # the one number that is read of them: none is left out.
      products = jax.lax.optimization_barrier(multiply(operands, zero))
      return 0 * sum(product[0, 0] for product in products)

    return jax.lax.fori_loop(0, steps, step, 0.0)

  run = jax.jit(execution.over_devices(run_all, mesh))
  operands = jax.device_put(operands, jax.NamedSharding(mesh, jax.P()))
  of_each = lambda steps: run(operands, np.int32(-(-steps // mesh.size)))
  jax.block_until_ready(of_each(1))
  return of_each


def _in_turn(x, w, places):
  """`x @ w`; or of the rows of one place, which wait for those before."""
  if places == 1:
    return x @ w
  x = x[: x.shape[0] // places]

  def at_place(_, product):
    # What is added is zero, which the compiler does not know.
    return jax.lax.optimization_barrier((x + 0 * product[:1, :1]) @ w)

  return jax.lax.fori_loop(1, places, at_place, x @ w)

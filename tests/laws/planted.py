"""Federations with clusters: one where they are known, and their settings."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import execution as execution_lib
from fmtl_jax import cohorts
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import clusters
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import client_sources
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import streaming

import cases

CLIENTS = 8
# Of each client: half of them call positive what the others call negative.
TRUTH = np.array([0, 1, 1, 0, 1, 0, 0, 1])


def owners(count: int) -> dict[str, Any]:
  """Arguments of `Federation.create` for so many clusters."""
  return {'owners': clusters.OWNERS, 'num_owners': {clusters.CLUSTER: count}}


def toy_data(*args: Any, **settings: Any) -> dataset_lib.FederatedDataset:
  """As of `testing.toy_data`, with clusters."""
  data = testing.toy_data(*args, **settings)
  return data.with_owners([clusters.CLUSTER])


def data(
  order: Sequence[int] = range(CLIENTS),
) -> dataset_lib.FederatedDataset:
  """Clients, in any order, whose labels are opposite in two clusters."""
  rng = np.random.default_rng(0)
  features = rng.normal(size=(CLIENTS, 12, 2)).astype(np.float32)
  labels = (features[..., 0] + 0.5 * features[..., 1] > 0) ^ TRUTH[:, None]
  return dataset_lib.FederatedDataset.from_clients(
    [features[i] for i in order],
    [labels[i].astype(np.float32) for i in order],
    [0] * CLIENTS,
    [tasks_lib.Task(name='sign', kind=tasks_lib.BINARY)],
  ).with_owners([clusters.CLUSTER])


def runs(
  build: Any,
  orders: Sequence[Sequence[int]] = (range(CLIENTS),),
  *,
  types: Sequence[str] = (clusters.CLUSTER,),
  count: int = 2,
  rounds: int = 10,
) -> list[tuple[np.ndarray, list[dict[str, Any]], Any]]:
  """Runs an algorithm on the clients of `data`, in full batches.

  Returns:
    For each order of clients, the accuracy of each client's own model on its
    training examples, the metrics of all rounds, and the views of all clients.
  """
  settings = owners(count) if count else {}
  federation, _ = testing.toy_federation(types, data(), **settings)
  local = local_optimizers.LocalSgd(learning_rate=0.5, batch_size=0, epochs=3)
  algorithm = build(federation, local, round_settings.RoundSettings())

  @testing.jit
  def train(key, clients):
    def predict(client):
      view = algorithm.view(state, clients, client, federation.frozen)
      local_data = client_batches.LocalData(clients, client)
      batch = local_data.batch(jnp.arange(clients.partition.train.max_size))
      scores = federation.apply_slots(view, federation.frozen, batch.features)
      correct = (scores[0, :, 0] > 0) == (batch.labels[0] > 0.5)
      return correct.mean(), view

    state, metrics = jax.lax.scan(
      lambda state, _: algorithm.round(state, clients),
      algorithm.init(key, clients),
      length=rounds,
    )
    return *jax.vmap(predict)(cohorts.everyone(clients)), metrics

  found = []
  for order in orders:
    results = train(jax.random.key(0), data(order))
    accuracy, views, metrics = jax.device_get(results)
    of_rounds = [
      jax.tree.map(lambda x, i=number: x[i], metrics)
      for number in range(rounds)
    ]
    found.append((accuracy, of_rounds, views))
  return found


@functools.cache
def accuracy_of_one_model() -> np.ndarray:
  """That of FedAvg for each client."""
  build = multi_task_fl.multi_task_fl
  [(accuracy, *_)] = runs(build, types=('common',), count=0)
  return accuracy


def same_partition(first: Sequence[int], second: Sequence[int]) -> bool:
  """Whether two assignments are the same but for the clusters' numbers."""
  together = [np.equal.outer(np.array(x), np.array(x)) for x in (first, second)]
  return bool((together[0] == together[1]).all())


def assert_streamed_rounds_agree(
  build: Any, types: Sequence[str], count: int, clients_per_task: int
) -> np.ndarray:
  """Raises unless rounds of clients on the host, over two devices, agree.

  Returns:
    The clusters of the clients of all rounds.
  """
  source = client_sources.DatasetClients(toy_data(9, 3))
  local = local_optimizers.LocalSgd(learning_rate=0.5, batch_size=2)
  make = lambda federation, settings: build(federation, local, settings)
  create = functools.partial(testing.toy_federation, types, **owners(count))
  settings = round_settings.RoundSettings(clients_per_task=clients_per_task)
  algorithm = make(create(toy_data(9, 3))[0], settings)
  expected = cases.run(algorithm, toy_data(9, 3), 3, seed=2)
  with streaming.StreamedRounds(
    create(source.tables)[0],
    source,
    make,
    round_settings.RoundSettings(
      clients_per_task=clients_per_task,
      placement=round_settings.Placement(client_axis='client'),
    ),
    mesh=testing.mesh({'client': min(2, jax.device_count())}),
    compiler_options=execution_lib.quick_options(),
  ) as streamed:
    state = streamed.init(jax.random.key(2))
    streamed.compile(state)  # By a round of padding alone.
    for number in range(3):
      metrics = cases.rows(expected.metrics, number)
      state, streamed_metrics = streamed.run_round(state)
      testing.assert_trees_close(streamed_metrics, metrics, 1e-4, 1e-5)
    state = streamed.state_of(state, np.arange(9))
  testing.assert_trees_close(state, expected.state, 1e-4, 1e-5)
  return np.asarray(expected.metrics[clusters.CLUSTER])

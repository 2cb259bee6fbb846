"""Build: from a case's config to a `program.Case`."""

from collections.abc import Callable, Sequence
import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..configuration import fields
from ..configuration import own_code
from . import checks
from . import factories
from . import federating
from . import modal_sources
from . import networks
from . import private_examples
from . import private_parties
from . import sources
from . import standardizing
from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax.clients import attacks
from fmtl_jax.clients import faults
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitions
from fmtl_jax.execution import task_devices as task_devices_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import streaming
from fmtl_jax.running import program

FederateFn = Callable[
  [sources.Source, ml_collections.ConfigDict, int],
  dataset_lib.FederatedDataset,
]


def _with_features(
  data: dataset_lib.FederatedDataset, features: np.ndarray
) -> dataset_lib.FederatedDataset:
  """The same data set with other features of its examples."""
  if features is data.examples.features:
    return data
  examples = dataclasses.replace(data.examples, features=features)
  return dataclasses.replace(data, examples=examples)


def _stack(
  datasets_: Sequence[dataset_lib.FederatedDataset], repeats: int
) -> partitions.Partition:
  """Stacks the seeds' partitions, all of them again for every point."""
  stacked = partitions.stack_partitions([d.partition for d in datasets_])
  return jax.tree.map(
    lambda x: np.tile(x, (repeats,) + (1,) * (x.ndim - 1)), stacked
  )


def mark_attackers(
  data: dataset_lib.FederatedDataset,
  config: ml_collections.ConfigDict,
  seed: int,
) -> dataset_lib.FederatedDataset:
  """The data set in which the clients of `config.attack` are attackers."""
  if attacks.get(config.attack.name) is None:
    return data
  return attacks.mark(
    data, config.attack.share, seed, by_task=config.attack.by_task
  )


@fields.named()
def build(
  name: str,
  config: ml_collections.ConfigDict,
  source: sources.Source,
  seeds: Sequence[int],
  points: Sequence[factories.Settings] = ({},),
  federate: FederateFn = federating.federate,
) -> program.Case:
  """Builds a case for every point and seed.

  Args:
    name: A row of the table, not the majority class.
    config: The case's own, see `cases.resolve`.
    source: The data.
    seeds: Every point is run with each.
    points: Values of `factories.mapped_fields`; the same fields for
      every point.
    federate: `(source, data, seed) -> data set`: who has which examples.

  Raises:
    ValueError: If a setting is invalid.
  """
  checks.check(config)
  checks.check_metrics(config, source.tasks)
  case = cases_lib.get(name)
  algorithm, data = _trained_as(case, config.data, source)
  private_parties.check(config, algorithm)
  test = [
    mark_attackers(federate(source, data, seed), config, seed) for seed in seeds
  ]
  train = _union(name, config, source, test) if case.centralized else test
  centralized = bool(case.centralized)
  network = networks.build_network(config, source, algorithm, centralized)
  owners, chosen = networks.further_owners(config, algorithm)
  of_source, num_owners = modal_sources.owners(source, centralized)
  owners, num_owners = owners | of_source, num_owners | chosen
  with fields.named(fields.of_algorithm(algorithm)):
    model, rules = own_code.spec(algorithm).wraps(
      network.model,
      network.rules,
      source.tasks,
      networks.own_settings(config, algorithm),
    )
  groups = [
    [
      _with_features(data, network.features).with_owners(chosen)
      for data in group
    ]
    for group in ([train, test] if centralized else [test])
  ]
  train, test = groups[0], groups[-1]
  federations = [
    federation_lib.Federation.create(
      model,
      rules,
      data,
      pretrained=network.pretrained,
      task_weights=config.client.task_weights or None,
      initialization=config.algorithm.initialization,
      compute=config.precision.compute,
      owners=owners,
      num_owners=num_owners,
    )
    for data, *_ in groups
  ]
  federation, test_federation = federations[0], federations[-1]
  # A centralized client has several tasks.
  task_devices = 1 if centralized else config.execution.task_devices
  _check_task_devices(config, federation, task_devices)
  runs = _runs(train, test, seeds, points)
  sizes = private_examples.sizes_of(train)
  privacy = private_examples.settings(config, algorithm, sizes, points[0])
  make = factories.make_algorithm(
    config,
    algorithm,
    task_devices,
    _runs_at_once(len(runs.key)),
    centralized,
    privacy,
  )
  names = fields.of_algorithm(algorithm) | fields.of_layers(config)
  with fields.named(names):  # Before anything is compiled.
    make(federation, {})
    _check_streamed(config, federation, train[0], make)
  reason = _degenerate_case(config, algorithm, federation, points)
  return program.Case(
    data=train[0],
    test_data=test[0],
    federation=federation,
    test_federation=test_federation,
    make_algorithm=make,
    runs=runs,
    execution=execution_lib.resolve(
      execution_lib.AUTO
      if execution_lib.is_low_rank(config.execution.name)
      else config.execution.name
    ),
    prefix_parameters=sum(
      leaf.size for leaf in jax.tree.leaves(network.prefix_params)
    ),
    algorithm=algorithm,
    task_devices=task_devices,
    warning=f'{name} {fields.translated(reason, names)}' if reason else '',
  )


def streamed_settings(
  config: ml_collections.ConfigDict,
) -> round_settings.RoundSettings:
  """What rounds whose clients are on the host have to know of a config."""
  return round_settings.RoundSettings(
    clients_per_task=config.cohort.clients_per_task,
    slots=config.cohort.slots,
    skip_nonfinite=config.faults.nonfinite != faults.STOP,
  )


def is_streamed(config: ml_collections.ConfigDict) -> bool:
  """Whether the clients of rounds are on the host."""
  return config.execution.clients_on == 'host' or jax.process_count() > 1


def _check_streamed(config, federation, data, make):
  """Raises a ValueError where clients have to be on the device, and are not."""
  if not is_streamed(config):
    return
  settings = streamed_settings(config)
  try:
    streaming.check(federation, data, lambda some, _: make(some, {}), settings)
  except ValueError as error:
    cure = "execution.clients_on='device'"
    if jax.process_count() > 1:
      cure = 'one process, without --distributed'
    raise ValueError(f'{str(error).removesuffix(".")} ({cure}).') from error


def _trained_as(
  case: cases_lib.Case,
  data: ml_collections.ConfigDict,
  source: sources.Source,
) -> tuple[str, ml_collections.ConfigDict]:
  """The algorithm of a case, and the config's `data` as it takes them."""
  if case.centralized != cases_lib.JOINT or source.shared_labels:
    return case.algorithm, data
  if data.standardize_targets == standardizing.TASK:
    data = config_lib.copied(data)  # One model answers in one unit.
    data.standardize_targets = standardizing.COLUMN
  return 'fedavg', data  # One task, so that task layers would be common.


def _union(
  name: str,
  config: ml_collections.ConfigDict,
  source: sources.Source,
  datasets: Sequence[dataset_lib.FederatedDataset],
) -> list[dataset_lib.FederatedDataset]:
  """What a centralized case trains on, by seed."""
  centralized = cases_lib.get(name).centralized
  private_examples.check_centralized(config, name, centralized)
  return [
    federating.centralize(
      data, centralized, source.shared_labels, source.unsound
    )
    for data in datasets
  ]


def _runs(
  train: Sequence[dataset_lib.FederatedDataset],
  test: Sequence[dataset_lib.FederatedDataset],
  seeds: Sequence[int],
  points: Sequence[factories.Settings],
) -> program.Run:
  """All runs: the seeds of the first point, those of the second, and so on.

  Args:
    train: What is trained on, by seed.
    test: What is evaluated on, by seed.
    seeds: Every point is run with each.
    points: Values of mapped fields.
  """
  return program.Run(
    key=jax.vmap(jax.random.key)(
      jnp.array(list(seeds) * len(points), jnp.uint32)
    ),
    train=_stack(train, len(points)),
    test=_stack(test, len(points)),
    settings={
      field: jnp.repeat(jnp.array([p[field] for p in points]), len(seeds))
      for field in points[0]
    },
  )


def _check_task_devices(
  config: ml_collections.ConfigDict,
  federation: federation_lib.Federation,
  task_devices: int,
) -> None:
  """Raises a ValueError where tasks cannot have devices of their own."""
  available = jax.local_device_count()
  if available % task_devices or (
    task_devices > 1 and config.execution.clients_on != 'device'
  ):
    raise ValueError(
      'Expected execution.task_devices to be 1, or to divide the '
      f"{available} devices with execution.clients_on='device', got "
      f'{task_devices}.'
    )
  task_devices_lib.check(
    federation,
    cohorts.check_clients_per_task(
      config.cohort.clients_per_task,
      federation.group_sizes,
      [task.name for task in federation.tasks],
    ),
    task_devices,
  )


def _runs_at_once(num_runs: int) -> int:
  """How many runs share a device's memory: on CPU they are not mapped."""
  if jax.default_backend() == 'cpu':
    return 1
  return -(-num_runs // jax.local_device_count())


def _degenerate_case(
  config: ml_collections.ConfigDict,
  algorithm: str,
  federation: federation_lib.Federation,
  points: Sequence[factories.Settings],
) -> str:
  """Which simpler algorithm the settings amount to, in words; '' if none."""
  reason = ''
  if not points[0]:
    own = networks.own_settings(config, algorithm)
    reason = own_code.spec(algorithm).equals(own, federation)
  if config.balancing.client != balancing.NONE and federation.num_slots == 1:
    reason = reason or 'has clients of one task: balancing.client does nothing'
  return reason

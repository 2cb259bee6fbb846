"""Factories of algorithms, whose settings may be mapped over runs."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
from typing import Any

import ml_collections

from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..configuration import optimizers
from ..configuration import own_code
from ..configuration import schema
from . import checks
from . import private
from fmtl_jax import algorithms
from fmtl_jax import balancing
from fmtl_jax import execution as execution_lib
from fmtl_jax import privacy as privacy_lib
from fmtl_jax.clients import attacks
from fmtl_jax.clients import faults
from fmtl_jax.clients import local_optimizers
from fmtl_jax.cohorts import participation
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings
from fmtl_jax.running import kept_ceilings
from fmtl_jax.running import program
from fmtl_jax.server import robust_aggregators
from fmtl_jax.server import server_optimizers

Settings = Mapping[str, Any]
Value = Callable[[str], Any]  # A field's value, by dotted name.
_SHARES = ('dropout', 'late', 'partial', 'least_work')
OF_CLOCK = (
  'steps_per_second',
  'speed_spread',
  'bytes_per_second',
  'bandwidth_spread',
  'deadline',
)
_MAPPED = (
  *(f'balancing.{name}' for name in balancing.SETTINGS),
  *(f'participation.{name}' for name in _SHARES + OF_CLOCK),
  'algorithm.finetune_epochs',
  'client.decay',
  'client.learning_rate',
  'client.local_epochs',
  'client.momentum',
  'client.weight_decay',
  'faults.clip_norm',
  'server.common.learning_rate',
  'server.common.momentum',
  'server.task.learning_rate',
  'server.task.momentum',
)


def mapped_fields() -> set[str]:
  """Fields that change no shape: those of every algorithm of the package."""
  own = (
    schema.own_field(name, setting)
    for name, spec in algorithms.ALGORITHMS.items()
    for setting, default in spec.defaults.items()
    if isinstance(default, float)
  )
  return {*own, *_MAPPED}


def is_mapped(field: str, case: str) -> bool:
  """Whether a sweep of a case maps a field over runs of one program."""
  if not config_lib.is_own_setting(field):
    return field in mapped_fields()
  algorithm = cases_lib.get(case).algorithm
  return own_code.is_own(algorithm) and any(
    isinstance(default, float) and field == schema.own_field(algorithm, name)
    for name, default in own_code.spec(algorithm).defaults.items()
  )


def make_algorithm(
  config: ml_collections.ConfigDict,
  algorithm: str,
  task_devices: int = 1,
  runs_at_once: int = 1,
  centralized: bool = False,
  privacy: privacy_lib.ExamplePrivacy | None = None,
) -> program.MakeAlgorithm:
  """`(federation, settings) -> Algorithm`; settings replace config fields.

  Args:
    config: Of the case.
    algorithm: Its name.
    task_devices: See `program.Case`.
    runs_at_once: The runs that share a device's memory.
    centralized: Whether there are no clients that could drop out.
    privacy: Of the examples of each client.
  """
  budget = config.execution.memory_mb * 10**6 or execution_lib.memory_budget()
  placement = round_settings.Placement(
    execution=config.execution.name,
    memory_budget=budget // runs_at_once,
    low_rank_below=config.execution.low_rank_below or None,
    ceilings=kept_ceilings.kept(),
    client_axis=program.CLIENT_AXIS,
    task_axis=program.TASK_AXIS if task_devices > 1 else None,
  )
  entry = own_code.spec(algorithm)

  def make(federation, settings: Settings):
    averaged = [n for n, o in federation.owners.items() if o.averaged]
    added = [n for n in averaged if n not in config.server]

    def value(field):
      section = config
      for name in field.split('.'):
        section = section[name]
      return settings.get(field, section)

    local = _local_sgd(config, value, privacy)
    own = {name: value(schema.own_field(algorithm, name)) for name in entry.own}
    of_round = dataclasses.replace(
      _round_settings(config, value, added, placement),
      noise_key=privacy is not None and privacy.seed is None,
    )
    if not centralized:
      of_round = dataclasses.replace(
        of_round, privacy=private.settings(config, federation)
      )
    built = entry.build(federation, local, of_round, **own)
    if centralized:
      return built
    is_swept = any(field.startswith('participation.') for field in settings)
    partial = _participation(
      config, federation, built.messages, value, is_swept
    )
    if partial is None:
      return built
    of_round = dataclasses.replace(of_round, participation=partial)
    return entry.build(federation, local, of_round, **own)

  return make


def _local_sgd(
  config: ml_collections.ConfigDict,
  value: Value,
  privacy: privacy_lib.ExamplePrivacy | None,
) -> local_optimizers.LocalSgd:
  """How clients train locally."""
  optimizer = optimizers.get(
    'client.optimizer',
    config.client.optimizer,
    value('client.momentum'),
    value('client.weight_decay'),
  )
  if config.faults.nonfinite == faults.CLIP:
    optimizer = faults.Clipped(optimizer, value('faults.clip_norm'))
  return local_optimizers.LocalSgd(
    optimizer=optimizer,
    learning_rate=optimizers.schedule(
      config.client.schedule,
      value('client.learning_rate'),
      value('client.decay'),
      config.run.rounds,
    ),
    batch_size=config.client.batch_size,
    epochs=value('client.local_epochs'),
    keep_optimizer_state=config.client.keep_optimizer_state,
    privacy=privacy,
  )


def _round_settings(
  config: ml_collections.ConfigDict,
  value: Value,
  added: Iterable[str],
  placement: round_settings.Placement,
) -> round_settings.RoundSettings:
  """The settings of a round.

  Args:
    config: Of the case.
    value: A field's value, by dotted name.
    added: Layer types that configs do not set; they have the settings of
      `common`.
    placement: Where clients train.
  """

  def of_types(values):
    return {**values, **dict.fromkeys(added, values[layer_types.COMMON])}

  server = {
    name: server_optimizers.ServerOptimizer(
      optimizers.get(
        f'server.{name}.optimizer',
        config.server[name].optimizer,
        value(f'server.{name}.momentum'),
      ),
      value(f'server.{name}.learning_rate'),
    )
    for name in config.server
  }
  aggregators = {
    name: robust_aggregators.get(
      config.reducer[name],
      f'reducer.{name}',
      **checks.reducer_settings(config),
    )
    for name in config.server
  }
  codecs = of_types(checks.codecs(config, 'compression'))
  if config.compression.client:
    for name in schema.OF_CLIENTS:
      codecs[name] = checks.codec(config, 'compression.client')
  down = checks.codecs(config, 'compression.down')
  return round_settings.RoundSettings(
    clients_per_task=config.cohort.clients_per_task,
    slots=config.cohort.slots,
    weighting=of_types(config.aggregation.to_dict()),
    reducer=of_types(aggregators),
    reduce_within_tasks=config.reducer.within_tasks,
    server=of_types(server),
    attack=attacks.get(config.attack.name, config.attack.scale),
    compression={n: c for n, c in codecs.items() if c is not None},
    broadcast={n: c for n, c in down.items() if c is not None},
    secure=checks.secure_sums(config),
    balancing=balancing.places(
      {place: config.balancing[place] for place in balancing.PLACES},
      {name: value(f'balancing.{name}') for name in balancing.SETTINGS},
      config.balancing.weights,
    ),
    skip_nonfinite=config.faults.nonfinite != faults.STOP,
    matmul_precision=config.precision.matmul or None,
    placement=placement,
  )


def _participation(
  config, federation, messages_fn, value, is_swept
) -> participation.Participation | None:
  """Dropouts, stragglers and partial work; None if there are none."""
  given = config.participation
  probabilities = (given.dropout, given.late, given.partial)
  if not (given.clock or is_swept or any(probabilities)):
    return None
  clock = None
  if given.clock:
    messages = messages_fn()
    once, each_slot = (
      sum(
        sum(communication.cohort_bytes(federation, way, *counts).values())
        for way in (messages.up, messages.down)
      )
      for counts in ((1, 0), (0, 1))
    )
    clock = participation.Clock(
      relative_fn=communication.relative_costs(federation, messages),
      bytes_once=once,
      bytes_each_slot=each_slot,
      batch_size=config.client.batch_size,
      epochs=value('client.local_epochs'),
      at_deadline=given.at_deadline,
      **{name: value(f'participation.{name}') for name in OF_CLOCK},
    )
  return participation.Participation(
    **{name: value(f'participation.{name}') for name in _SHARES}, clock=clock
  )

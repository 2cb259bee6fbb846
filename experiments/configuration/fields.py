"""Fields: what a config calls the arguments of the library.

The library's sentences have its own arguments, in backticks: `clients_per_task`
or `server['common'].optimizer`. A user of a command knows the fields of the
config, which stand there instead: `cohort.clients_per_task`.
"""

from collections.abc import Iterator, Mapping
import contextlib
import re
from typing import Any

from . import own_code
from . import schema

# Of `RoundSettings`.
OF_ROUNDS: Mapping[str, str] = {
  'balancing': 'balancing',
  'broadcast': 'compression.down',
  'compression': 'compression',
  'clients_per_task': 'cohort.clients_per_task',
  'execution': 'execution.name',
  'low_rank_below': 'execution.low_rank_below',
  'matmul_precision': 'precision.matmul',
  'privacy': 'privacy.clipping_norm',
  'reduce_within_tasks': 'reducer.within_tasks',
  'reducer': 'reducer',
  'secure': 'secure.aggregation',
  'server': 'server',
  'slots': 'cohort.slots',
  'task_axis': 'execution.task_devices',
  'weighting': 'aggregation',
}
# All that have one field, whoever asks: what an argument holds, as in
# `local.optimizer`, has that of the longest part that is here.
_ARGUMENTS: Mapping[str, str] = {
  **OF_ROUNDS,
  'adapters.targets': 'model.adapters.targets',
  'at_deadline': 'participation.at_deadline',
  'bands': 'privacy.bands',
  'bits': 'compression.bits',
  'by_task': 'attack.by_task',
  'adaptive': 'privacy.adaptive.quantile',
  'cap': 'privacy.cap',
  'channels': 'model.channels',
  'encoder': 'model.encoder',
  'fusion': 'model.fusion',
  'clipping_norm': 'privacy.clipping_norm',
  **{
    f"clipping_norm['{name}']": f'privacy.norms.{name}'
    for name in schema.LAYER_TYPES
  },
  'compute': 'precision.compute',
  'convolution': 'model.convolution',
  'count_noise': 'privacy.adaptive.count_noise',
  'deadline': 'participation.deadline',
  'delta': 'privacy.delta',
  'dropout': 'participation.dropout',
  'epsilon': 'privacy.epsilon',
  'fractions': 'data.coverage',
  'heads': 'model.heads',
  'hidden': 'model.hidden',
  'late': 'participation.late',
  'local': 'client',
  'local.epochs': 'client.local_epochs',
  'local.privacy': 'privacy.unit',
  'local.optimizer.momentum': 'client.momentum',
  'noise': 'privacy.noise',
  'noise_multiplier': 'privacy.noise_multiplier',
  'normalization': 'model.normalization',
  'num_clients': 'data.clients',
  'num_devices': 'execution.task_devices',
  'partial': 'participation.partial',
  'partition': 'data.partition',
  'quantile': 'privacy.adaptive.quantile',
  'rank': 'compression.rank',
  **{f'secure.{n}': f'secure.{n}' for n in ('bits', 'clip', 'report_clip')},
  **{f'secure.{n}': f'secure.{n}' for n in ('largest', 'max_weight')},
  'secure.threshold': 'secure.threshold',
  'sampling': 'privacy.sampling',
  'share': 'attack.share',
  'shards_per_client': 'data.shards_per_client',
  'task_weights': 'client.task_weights',
  'tasks_per_client': 'data.tasks_per_client',
  'test_fraction': 'data.test_fraction',
  'validation_fraction': 'data.validation_fraction',
  'window': 'model.window',
}
# Of adapters.
OF_ADAPTERS: Mapping[str, str] = {
  'alpha': 'model.adapters.alpha',
  'rank': 'model.adapters.rank',
  'targets': 'model.adapters.targets',
}
_ARGUMENT = re.compile(r"`([a-z_]\w*(?:\.\w+|\['\w+'\])*)`")
_LAYER_TYPE = re.compile(r"\['(\w+)'\]")


def of_algorithm(name: str) -> dict[str, str]:
  """The fields of what is an algorithm's own, and of its name."""
  spec = own_code.spec(name)
  settings = {
    setting: schema.own_field(name, setting) for setting in spec.settings
  }
  depths = {depth: f'algorithm.{depth}' for depth in spec.depths}
  return {name: f'algorithm.{own_code.key(name)}', **depths, **settings}


def of_layers(config: Mapping[str, Any]) -> dict[str, str]:
  """The fields of layer types that have others than those of `common`."""
  if not config['compression']['client']:
    return {}
  field = 'compression.client'
  return {f"compression['{name}']": field for name in schema.OF_CLIENTS}


def translated(sentence: str, more: Mapping[str, str] | None = None) -> str:
  """A sentence of the library with the fields of its arguments.

  Args:
    sentence: With arguments in backticks; others stay.
    more: Further fields, by argument; one of a layer type, as in
      `server['common']`, has that field in the place of the general one.
  """
  known = {**_ARGUMENTS, **(more or {})}

  def of_type(match: re.Match[str]) -> str:
    has_fields = match[1] in schema.LAYER_TYPES
    return f'.{match[1] if has_fields else "common"}'

  def field(match: re.Match[str]) -> str:
    for of_layer, its_field in known.items():
      if match[1].startswith(of_layer) and _LAYER_TYPE.search(of_layer):
        return its_field + match[1][len(of_layer) :]
    argument = _LAYER_TYPE.sub(of_type, match[1])
    parts = re.findall(r'\w+', argument)
    for end in range(len(parts), 0, -1):
      start = known.get('.'.join(parts[:end]))
      if start is not None:
        return '.'.join([start, *parts[end:]])
    return match[0]

  return _ARGUMENT.sub(field, sentence)


@contextlib.contextmanager
def named(more: Mapping[str, str] | None = None) -> Iterator[None]:
  """Lets errors of the library name fields; a block, or a decorator.

  Args:
    more: Further fields, by argument.
  """
  try:
    yield
  except ValueError as error:
    sentence = translated(str(error), more)
    if sentence == str(error):
      raise
    raise ValueError(sentence) from error

"""Fields of the command line that no case of a run would read.

`model.intercept` is one of linear networks, `compression.bits` one of some
codecs. Given where no case has these, such a field changes nothing, and whoever
gave it believes that it does: that is an error. In a config file it may wait
for another network, or a row of another run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import functools
import inspect
from typing import Any, NamedTuple

import ml_collections

from ..configuration import cases
from ..configuration import config as config_lib
from ..configuration import own_fields
from . import factories
from fmtl_jax import balancing
from fmtl_jax import compression
from fmtl_jax import secure_aggregation
from fmtl_jax.models import language
from fmtl_jax.server import robust_aggregators

_DENSE = ('hidden', 'normalization')
_CONVOLUTIONS = ('channels', 'window', 'convolution')
_RECURRENT = ('embedding', 'hidden')

# What each network reads of `model`, beside what all do.
OF_NETWORKS: Mapping[str, tuple[str, ...]] = {
  'mlp': _DENSE,
  'cnn': (*_DENSE, *_CONVOLUTIONS),
  'linear': ('intercept',),
  'vertical': (*_RECURRENT, 'head', 'parties'),
  'multi_modal': (*_DENSE, *_CONVOLUTIONS, 'encoder', 'fusion'),
  language.LSTM: _RECURRENT,
  language.GRU: _RECURRENT,
  language.TRANSFORMER: ('hidden', 'heads'),
}
_OF_SUMS = tuple(
  field.name for field in dataclasses.fields(secure_aggregation.SecureSums)
)
_OF_CLOCK = (*factories.OF_CLOCK, 'at_deadline')


class _Rule(NamedTuple):
  """When a field acts.

  Attributes:
    acts: Whether it does, with the config of a case and its algorithm.
    needs: What that takes, in words.
  """

  acts: Callable[[ml_collections.ConfigDict, str], bool]
  needs: str


# By section and fields.
_SWITCHES: Mapping[tuple[str, tuple[str, ...]], _Rule] = {
  ('secure', _OF_SUMS): _Rule(
    lambda config, _: config.secure.aggregation, 'secure.aggregation=True'
  ),
  ('attack', ('share', 'by_task', 'scale')): _Rule(
    lambda config, _: config.attack.name != 'none', 'an attack.name'
  ),
  ('participation', _OF_CLOCK): _Rule(
    lambda config, _: config.participation.clock, 'participation.clock=True'
  ),
  ('faults', ('clip_norm',)): _Rule(
    lambda config, _: config.faults.nonfinite == 'clip', 'faults.nonfinite=clip'
  ),
  ('client', ('decay',)): _Rule(
    lambda config, _: config.client.schedule == 'exponential',
    'client.schedule=exponential',
  ),
  ('model.adapters', ('rank', 'alpha')): _Rule(
    lambda config, _: bool(config.model.adapters.targets),
    'model.adapters.targets',
  ),
}


def check(
  command_line: Iterable[str],
  configs: Iterable[tuple[str, ml_collections.ConfigDict]],
) -> None:
  """Raises a ValueError for a field that none of the cases reads.

  Args:
    command_line: The fields that were given, by dotted name.
    configs: Of all cases, with their names, see `cases.resolve`.
  """
  for field, needs in idle(command_line, configs).items():
    raise ValueError(
      f'Expected {needs} with {field}, which nothing else reads, but no case '
      f'has that; set it, too, or leave {field} out.'
    )


def idle(
  command_line: Iterable[str],
  configs: Iterable[tuple[str, ml_collections.ConfigDict]],
) -> dict[str, str]:
  """Fields that none of the cases reads, and what each needs; see `check`."""
  of_fields = dict(rules())
  configs = list(configs)
  return {
    field: of_fields[field].needs
    for field in command_line
    if field in of_fields
    and not any(
      of_fields[field].acts(c, _algorithm(name)) for name, c in configs
    )
  }


def _algorithm(case: str) -> str:
  """The algorithm of a case, '' of one that trains nothing."""
  return '' if case == cases.MAJORITY else cases.get(case).algorithm


def rules() -> Iterator[tuple[str, _Rule]]:
  """All fields that act in some cases alone."""
  yield from _of_networks()
  yield from _of_algorithms()
  for section, methods in (
    ('balancing', balancing.METHODS),
    ('compression', compression.CODECS),
    ('reducer', robust_aggregators.ROBUST_AGGREGATORS),
  ):
    yield from _of_methods(section, methods)
  for (section, names), rule in _SWITCHES.items():
    for name in names:
      yield f'{section}.{name}', rule


def _of_networks() -> Iterator[tuple[str, _Rule]]:
  """What networks read."""
  for field in sorted({x for names in OF_NETWORKS.values() for x in names}):
    having = [name for name, names in OF_NETWORKS.items() if field in names]
    acts = functools.partial(_has_network, having)
    yield f'model.{field}', _Rule(acts, f'model.name={" or ".join(having)}')


def _has_network(names, config, unused_algorithm):
  return config.model.name in names


def _of_algorithms() -> Iterator[tuple[str, _Rule]]:
  """What an algorithm alone reads."""
  for field, names in own_fields.by_field().items():
    if field.count('.') < 2:
      continue  # Numbers of layers are of the network, whatever the cases.
    acts = functools.partial(_reads, field)
    yield field, _Rule(acts, f'a case of {" or ".join(names)}')
  yield (
    'layer_types',
    _Rule(
      lambda config, name: bool(config.layer_types) or name in cases.RULED,
      f'a case of {" or ".join(cases.RULED)} (or an algorithm.name)',
    ),
  )


def _reads(field, unused_config, algorithm):
  return own_fields.reads(algorithm, field)


def _of_methods(
  section: str, methods: Mapping[str, Callable[..., Any]]
) -> Iterator[tuple[str, _Rule]]:
  """What some methods read that a section names, wherever it names them."""
  having: dict[str, list[str]] = {}
  for name, method in methods.items():
    for setting in inspect.signature(method).parameters:
      having.setdefault(setting, []).append(name)
  for setting, names in having.items():
    if setting not in config_lib.default_config()[section]:
      continue  # It has no field.
    acts = functools.partial(_names_one, section, names)
    rule = _Rule(acts, f'a {section} of {" or ".join(names)}')
    yield f'{section}.{setting}', rule


def _names_one(section, names, config, unused_algorithm):
  values = config_lib.flatten(config[section]).values()
  return any(value in names for value in values)

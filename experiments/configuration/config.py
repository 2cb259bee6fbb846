"""A config: its fields by dotted name, its variants, and its identity.

Configs of a user's own begin with `default_config`.
"""

from collections.abc import Callable, Mapping, Sequence
import copy
import functools
import json
import types
from typing import Any

import ml_collections

from . import catalogue
from . import hints
from . import own_code
from . import schema

default_config = schema.default_config

# Sections that are not part of a run's identity: its numbers do not depend on
# them, to rounding. All other fields are part of it, paths of data and weights
# too.
_NOT_IDENTITY = (
  'execution',  # How it is computed.
  'checkpoint',  # What is kept of it.
  'report',  # What is shown. A choice by its metric adds that: see CHOICE.
  'cases',  # Which rows there are; a row depends on no other one.
  'compare',  # Of experiments.compare alone, which adds it.
  'unseen',  # Of experiments.unseen alone, which adds it.
)
_CACHES = ('data.feature_dir',)
# Where files lie.
_PLACES = (
  *('data.manual_dir', 'data.data_dir', 'data.feature_dir'),
  *('data.encoder_dir', 'data.splits'),
  *('model.backbone_weights', 'model.pretrained'),
)
# What sweeps and comparisons are about: they keep values of one metric.
CHOICE = ('report.metric', 'report.view')
_PLAIN = (str, bool, int, float, type(None))  # Are JSON values as they are.
# Sections whose fields are names of cases.
_BY_CASE = ('overrides', 'report.labels')


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a config that results depend on, by dotted field name."""
  return {
    name: value
    for name, value in flatten(config).items()
    if name.split('.')[0] not in _NOT_IDENTITY and name not in _CACHES
  }


def default_identity() -> dict[str, Any]:
  """The identity of the defaults: what was done before a field existed."""
  return identity(default_config())


def command_line_identity(command_line: Mapping[str, Any]) -> list[str]:
  """The fields given on the command line that results depend on."""
  return sorted(
    name
    for name in command_line
    if name.split('.')[0] not in _NOT_IDENTITY and name not in _CACHES
  )


def is_place(name: str) -> bool:
  """Whether a field says where files lie, which may differ by machine."""
  return name in _PLACES


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
  """Lists the fields by dotted name, in JSON types."""
  flat: dict[str, Any] = {}
  for name, value in config.items():
    if isinstance(value, (Mapping, ml_collections.ConfigDict)):
      flat |= {f'{name}.{k}': v for k, v in flatten(value).items()}
    elif type(value) in _PLAIN:
      flat[name] = value
    else:
      try:
        flat[name] = json.loads(json.dumps(value))
      except TypeError as error:
        raise ValueError(
          f'Expected config field {name!r} to hold plain numbers and strings, '
          f'got {value!r}.'
        ) from error
  return flat


def defaults() -> Mapping[str, Any]:
  """The default of every field, by dotted name; nobody changes it."""
  return _defaults(tuple(catalogue.known()))


@functools.cache
def _defaults(unused_algorithms: tuple[str, ...]) -> Mapping[str, Any]:
  """Algorithms that are registered have fields."""
  return flatten(default_config())


def changed(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The fields, by dotted name, that are not at their defaults.

  Those of what is shown are left out.
  """
  usual = defaults()
  return {
    field: value
    for field, value in flat.items()
    if usual.get(field) != value and field.split('.')[0] != 'report'
  }


def copied(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A copy to be changed; a field that may have several types still may."""
  new = copy.deepcopy(config)
  new.unlock()
  return new


def shown(value: Any) -> str:
  """A field's value as one writes it on the command line."""
  return str(tuples(value))


def apply_variants(
  config: ml_collections.ConfigDict,
  variants: str,
  known: Mapping[str, Callable[[ml_collections.ConfigDict], None]],
) -> ml_collections.ConfigDict:
  """Applies `--config=FILE:one,two`.

  Args:
    config: Changed in place and returned.
    variants: Names joined by commas; '' for none.
    known: What each variant does to a config.

  Raises:
    ValueError: If a variant is not known.
  """
  for name in filter(None, variants.split(',')):
    if name not in known:
      raise ValueError(
        f'Unknown variant {name!r} of this config; known are '
        f'{", ".join(known) or "none"}.{hints.nearest(name, known)}'
      )
    known[name](config)
  return config


def own_defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields of the user's code that a config names, in JSON types."""
  return flatten(own_code.defaults(config)) if _has_names(config) else {}


def _has_names(config: ml_collections.ConfigDict) -> bool:
  """Whether a config has what names code; else `check_fields` says so."""
  return isinstance(config.get('cases'), tuple) and all(
    isinstance(config.get(name), ml_collections.ConfigDict)
    for name in ('data', 'model', 'algorithm')
  )


def add_own(
  config: ml_collections.ConfigDict,
  given: Mapping[str, Any] = types.MappingProxyType({}),
  only: Sequence[str] = (),
) -> None:
  """Adds the settings of the user's code that are not there, in place.

  Args:
    config: The experiment.
    given: Names that are given elsewhere, by field.
    only: The rows that are run: algorithms of the user's that the config does
      not name are added to its table, which says whose settings it has.

  Raises:
    ValueError: If the code is not found, or two things have one name.
  """
  if not _has_names(config):
    return
  with config.unlocked():
    for field, value in given.items():
      set_field(config, field, value)
    known = own_code.names_in(config)
    new = [n for n in only if own_code.is_own(n) and n not in known]
    if new:
      config.cases = (*config.cases, *new)
    own_code.check_keys([*known, *new], _of_algorithms())
    there = flatten(config)
    for field, value in own_defaults(config).items():
      if field not in there:
        put_field(config, field, value)


def _of_algorithms() -> tuple[str, ...]:
  """The names that `algorithm` has, or that its sections may have."""
  return _with_fields(tuple(catalogue.known()))


@functools.cache
def _with_fields(names: tuple[str, ...]) -> tuple[str, ...]:
  """Names of algorithms, and those of the fields beside them."""
  return (*default_config().algorithm, *names)


def is_own_setting(field: str) -> bool:
  """Whether a field is a setting of an algorithm of the user's."""
  section, *names = field.split('.')
  return (
    section == 'algorithm'
    and len(names) == 2
    and names[0] not in _of_algorithms()
  )


def of_case(config: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
  """The identity of one algorithm's training, without the others' settings."""
  own = f'algorithm.{own_code.key(algorithm)}.'
  return {
    field: value
    for field, value in identity(config).items()
    if field.startswith(own) or not is_own_setting(field)
  }


def check_fields(config: ml_collections.ConfigDict) -> None:
  """Raises a ValueError unless a config has the fields of the schema alone."""
  known = {**defaults(), **own_defaults(config)}
  given = {
    field: value
    for field, value in flatten(config).items()
    if not field.startswith(tuple(f'{name}.' for name in _BY_CASE))
  }
  for field in known:
    if field not in given:
      raise ValueError(
        f'The config has no field {field!r}; start from '
        f'{hints.module("config")}.default_config().'
      )
  for field in given:
    if field not in known:
      raise ValueError(
        f'Unknown config field {field!r}.{hints.nearest(field, known)}'
      )
  for field in _BY_CASE:
    *sections, name = field.split('.')
    section = config[sections[0]] if sections else config
    if not isinstance(section.get(name), ml_collections.ConfigDict):
      raise ValueError(
        f'Expected {field} to be a ConfigDict by case, got '
        f'{section.get(name)!r}.'
      )


def put_field(
  config: ml_collections.ConfigDict, field: str, value: Any
) -> None:
  """Sets a field by its dotted name; makes sections that are not there."""
  *sections, name = field.split('.')
  for part in sections:
    if part not in config:
      config[part] = ml_collections.ConfigDict()
    config = config[part]
  config[name] = tuples(value)


def tuples(value: Any) -> Any:
  """Lists, as JSON and flags give them, as tuples."""
  return tuple(map(tuples, value)) if isinstance(value, list) else value


def set_field(
  config: ml_collections.ConfigDict, field: str, value: Any
) -> None:
  """Sets a field by its dotted name, checking name and type.

  Raises:
    ValueError: If there is no such field or the value has another type.
  """
  *sections, name = field.split('.')
  section = config
  for part in sections:
    section = section.get(part)
    if not isinstance(section, ml_collections.ConfigDict):
      break
  if not isinstance(section, ml_collections.ConfigDict) or name not in section:
    raise ValueError(
      f'Unknown config field {field!r}.{hints.nearest(field, flatten(config))}'
    )
  try:
    section[name] = value
  except TypeError as error:
    raise ValueError(
      f'Expected config field {field!r} to be like {section[name]!r}, got '
      f'{value!r}.'
    ) from error

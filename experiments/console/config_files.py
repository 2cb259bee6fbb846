"""Config files on the command line: paths, variants and the user's code."""

import ast
from collections.abc import Sequence
import contextlib
import importlib.machinery
import pathlib
import re
import sys
import traceback
import types
from typing import Any
from unittest import mock

from absl import flags
from absl import logging
import ml_collections
from ml_collections import config_flags

from .. import checkout
from ..configuration import config as config_lib
from ..configuration import own_code
from ..configuration import paths

# Fields whose values may name code of the user's.
_NAMES = (own_code.DATA, own_code.MODEL, own_code.ALGORITHM)


def split_config(value: str) -> tuple[str, list[str]]:
  """The path and the variants, one text or none, of a config flag.

  Variants follow the last colon behind `.py`, so that a path may have colons,
  or the name of one of this package's, such as `digits` and `sweeps/digits`.
  """
  found = re.fullmatch(r'(.*\.py)(?::(.*))?', value, re.DOTALL)
  path, variants = found.groups() if found else (value, None)
  if named := re.fullmatch(r'([a-z_]+(?:/[a-z_]+)?)(?::(.*))?', value):
    place = checkout.configs() / f'{named[1]}.py'
    if place.is_file() and not pathlib.Path(value).is_file():
      path, variants = str(place), named[2]
  return paths.expanded(path), [] if variants is None else [variants]


class _ConfigFileParser(flags.ArgumentParser):
  """Reads a config file, whose path may have colons.

  `plain` is the parser that takes all behind the first colon as variants.
  """

  def __init__(self, section: str, plain: flags.ArgumentParser):
    self._section, self._plain = section, plain

  def parse(self, argument: str) -> Any:
    """See the class."""
    file, variants = split_config(argument)
    if ':' not in file:
      return self._plain.parse(':'.join([file, *variants]))
    name = f'{self._section}_config'
    loader = importlib.machinery.SourceFileLoader(name, file)
    module = types.ModuleType(name)
    module.__file__ = file
    sys.modules[name] = module
    try:
      loader.exec_module(module)
      config = module.get_config(*variants)
    except (TypeError, ValueError) as error:  # Which flags say without a trace.
      raise type(error)(f'{file}:\n\n{traceback.format_exc()}') from error
    if isinstance(config, ml_collections.ConfigDict):
      config.lock()
    return config


class _ExperimentParser(flags.ArgumentParser):
  """Adds the settings of the user's code to what another parser reads.

  The file names the code, or the command line does.
  """

  def __init__(self, file: flags.ArgumentParser):
    self._file = file

  def parse(self, argument: str) -> Any:
    """See the class."""
    return with_own(self._file.parse(argument), sys.argv)


def with_own(config: Any, argv: Sequence[str]) -> Any:
  """An experiment with the settings of the user's code, added in place."""
  if isinstance(config, ml_collections.ConfigDict):
    argv = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
    config_lib.add_own(config, *_names_of(given_flags(argv)))
  return config


def _names_of(
  given: Sequence[tuple[str, str]],
) -> tuple[dict[str, Any], list[str]]:
  """Names that the command line gives, by field, and those of --cases."""
  fields: dict[str, Any] = {}
  for flag, value in given:
    section, _, field = flag.partition('.')
    if section == 'config' and field in _NAMES:
      fields[field] = value
    elif flag == 'config.cases':
      with contextlib.suppress(SyntaxError, TypeError, ValueError):
        cases = ast.literal_eval(value)
        fields['cases'] = (cases,) if isinstance(cases, str) else tuple(cases)
  only = [
    name
    for flag, value in given
    if flag == 'cases'
    for name in value.split(',')
  ]
  return fields, only


def define_config_file(
  name: str, help_text: str, flag_values: flags.FlagValues = flags.FLAGS
) -> Any:
  """Defines a flag for a config file, and those of its fields."""
  holder = config_flags.DEFINE_config_file(
    name, None, help_text, flag_values=flag_values
  )
  flag = flag_values[name]
  flag.parser = _ConfigFileParser(name, flag.parser)
  return holder


def define_config() -> Any:
  """Defines --config; to be called once, by a module with flags."""
  holder = define_config_file(
    'config', 'The experiment: FILE.py or FILE.py:variant,variant.'
  )
  flag = flags.FLAGS['config']
  flag.parser = _ExperimentParser(flag.parser)
  return holder


def with_variants(names: Sequence[str]) -> Any:
  """The file of --config with variants behind those that it was given.

  Fields of the command line are not in it.
  """
  (given,) = [
    value for flag, value in given_flags(sys.argv) if flag == 'config'
  ]
  path, variants = split_config(given)
  joined = ','.join(filter(None, [*variants, *names]))
  return with_own(load(sys.argv[0], 'config', f'{path}:{joined}'), sys.argv)


def given_flags(argv: Sequence[str]) -> list[tuple[str, str]]:
  """Names and values of the flags: `--name=value` or `--name value`."""
  given = []
  for argument, following in zip(argv[1:], [*argv[2:], ''], strict=False):
    if argument.startswith('-'):
      name, equals, value = argument.lstrip('-').partition('=')
      given.append((name, value if equals else following))
  return given


def experiment_flags(argv: Sequence[str]) -> list[str]:
  """The flags of an experiment: its config, fields of it, and its cases."""
  found = []
  for flag, value in given_flags(argv):
    if flag == 'config':
      path, variants = split_config(value)
      value = ':'.join([str(pathlib.Path(path).absolute()), *variants])
    if flag.partition('.')[0] == 'config' or flag == 'cases':
      found.append(f'--{flag}={value}')
  return found


def load(program: str, section: str, value: str) -> Any:
  """What a config file returns, without overrides."""
  holder = flags.FlagValues()
  define_config_file(section, '', flag_values=holder)
  arguments = [program, f'--{section}={value}']
  # The config flag looks for its overrides there, and logs what it raises.
  with (
    mock.patch.object(sys, 'argv', arguments),
    mock.patch.object(logging.get_absl_logger(), 'disabled', True),
  ):
    holder(arguments)
  return getattr(holder, section)

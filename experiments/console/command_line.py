"""The command line: flags of programs, and errors in their values.

A mistake is one sentence with the cure, never a traceback. What the flag parser
would answer with one is checked before it is called.
"""

from collections.abc import Sequence
import pathlib
import sys
import traceback
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags

from .. import checkout
from ..configuration import config as config_lib
from ..configuration import hints
from ..configuration import paths
from ..running import exits
from . import config_files


class UserError(Exception):
  """A mistake on the command line; its text is one sentence with the cure."""


class _PathParser(flags.ArgumentParser):
  """Expands `~`."""

  def parse(self, argument: str) -> str:
    """See the class."""
    return paths.expanded(argument)


def define_path(name: str, help_text: str, default: str | None = '') -> Any:
  """Defines a flag for a file or folder."""
  return flags.DEFINE(_PathParser(), name, default, help_text)


def define_workdir() -> Any:
  """Defines --workdir; to be called once, by a module with flags."""
  return define_path(
    'workdir', 'Where results go; by default a new folder under runs/.'
  )


def define_cases() -> Any:
  """Defines --cases; to be called once, by a module with flags."""
  return flags.DEFINE_list('cases', [], 'A part of the table, by name.')


def define_resume() -> Any:
  """Defines --resume; to be called once, by a module with flags."""
  return flags.DEFINE_string(
    'resume',
    'auto',
    'auto resumes a run in the workdir, never wants none there, must one.',
  )


def override_values() -> dict[str, Any]:
  """The config fields that were given on the command line, by dotted name."""
  return dict(config_flags.get_override_values(flags.FLAGS['config']))


def check_arguments(argv: Sequence[str]) -> None:
  """Checks config files, for which the flag parser shows a traceback.

  Args:
    argv: As of `sys.argv`.

  Raises:
    UserError: If a config file is missing or cannot be used.
  """
  given = config_files.given_flags(argv)
  for name, value in given:
    if name not in ('config', 'sweep'):
      continue
    try:
      path, _ = config_files.split_config(value)
    except ValueError as error:
      raise UserError(str(error)) from error
    count = [other for other, _ in given].count(name)
    if count > 1:
      raise UserError(f'Expected one --{name}, got {count}.')
    if pathlib.Path(path).is_file():
      _check_file(argv, name, value)
      continue
    folder = pathlib.Path(path).parent
    known = sorted(str(p) for p in folder.glob('*.py') if p.stem != '__init__')
    hint = f' Files there: {", ".join(known)}.' if known else ''
    if '.py' not in value:
      named = sorted(
        p.stem for p in checkout.configs().glob('*.py') if p.stem != '__init__'
      )
      hint = f' Configs of this package: {", ".join(named)}.'
    raise UserError(f'There is no {name} file {path!r}.{hint}')


def _check_file(argv: Sequence[str], section: str, value: str) -> None:
  """Raises a UserError for a config file that cannot be used."""
  try:
    config = config_files.load(argv[0], section, value)
    if not isinstance(config, ml_collections.ConfigDict):
      raise TypeError(f'get_config() returns {config!r}, no ConfigDict')
    if section == 'config':
      config_lib.check_fields(config_files.with_own(config, argv))
    config_lib.flatten(config)
  except ValueError as error:
    raise UserError(one_sentence(str(error))) from error
  # Whatever a file of the user's can raise.
  except (Exception, SystemExit) as error:
    path, _ = config_files.split_config(value)
    reason = one_sentence(f'{type(error).__name__}: {error}')
    raise UserError(
      f'The {section} file {path!r} cannot be used ({reason}); correct it, '
      '--debug shows where.'
    ) from error


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses the flags; a mistake ends the process with a sentence and code 2."""
  try:
    check_arguments(argv)
    program, *others = flags.FLAGS(list(argv))
    if others:
      raise UserError(f'Expected flags, got {others[0]!r}; write --name=value.')
    return [program]
  except Exception as error:  # The parser lets errors of values through.
    if '--debug' in argv:
      traceback.print_exc()
    message = str(error)
    if not isinstance(error, UserError):
      message = _explain(one_sentence(message), argv)
  fail(message)
  return []


def one_sentence(message: str) -> str:
  """What a traceback ends with, or the whole message, on one line."""
  if 'Traceback (most recent call last)' in message:
    lines = message.strip().splitlines()
    frames = [n for n, line in enumerate(lines) if line.startswith('  ')]
    message = '\n'.join(lines[frames[-1] + 1 :] if frames else lines[-1:])
    message = message.partition(': ')[2] or message
  return ' '.join(message.split())


def _explain(message: str, argv: Sequence[str]) -> str:
  """A sentence for what the flag parser reports of a value or a name."""
  for flag, value in config_files.given_flags(argv):
    section, _, field = flag.partition('.')
    if section not in ('config', 'sweep') or not field:
      continue
    known = _known_fields(argv, section)
    if known and field not in known:
      return f'Unknown {section} field {field!r}.' + hints.nearest(field, known)
    if f'{flag}={value}:' in message:
      usual = config_lib.tuples(known[field])
      return f'Expected --{flag} to be like {usual!r}, got {value!r}.'
  return message


def _known_fields(argv: Sequence[str], section: str) -> dict[str, Any]:
  """All fields of the config file, read without overrides."""
  for name, value in config_files.given_flags(argv):
    if name == section:
      config = config_files.load(argv[0], section, value)
      if section == 'config':
        config = config_files.with_own(config, argv)
      return config_lib.flatten(config)
  return {}


def fail(message: str, exit_code: int = exits.USER_ERROR) -> None:
  """Prints one sentence and ends the process."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(exit_code)

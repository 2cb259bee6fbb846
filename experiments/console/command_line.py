"""The command line's manners: one sentence for a mistake, never a traceback.

Everything here runs before JAX starts, so that the number of devices can be
set.
"""

from collections.abc import Callable, Sequence
import ast
import contextlib
import errno
import importlib.machinery
import io
import os
import pathlib
import re
import shlex
import sys
import traceback
import types
from typing import Any
from unittest import mock

from absl import app
from absl import flags
from absl import logging
import jax
import ml_collections
from ml_collections import config_flags

from .. import checkout
from ..configuration import config as config_lib
from ..configuration import hints
from ..configuration import own_code
from ..configuration import paths
from ..folders import held_folders
from ..folders import logs
from ..running import determinism
from ..running import exits
from ..running import interrupts
from ..running import jax_settings
from ..running import streams

USER_ERROR = exits.USER_ERROR
# Fields whose values may name code of the user's.
_NAMES = (own_code.DATA, own_code.MODEL, own_code.ALGORITHM)
# Of the disk, rather than of a name: what the sentence of an error lacks.
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)

_DEBUG = flags.DEFINE_bool(
  'debug', False, 'Show the traceback of an error instead of its sentence.'
)
_DETERMINISTIC = flags.DEFINE_bool(
  'deterministic',
  False,
  f'Guarantee {determinism.GUARANTEE}. On CPU it holds anyway, on GPU rounds '
  'become slower.',
)


class UserError(Exception):
  """A mistake on the command line; its text is one sentence with the cure."""


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
    return _with_own(self._file.parse(argument), sys.argv)


def _with_own(config: Any, argv: Sequence[str]) -> Any:
  """An experiment with the settings of the user's code, added in place."""
  if isinstance(config, ml_collections.ConfigDict):
    argv = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
    config_lib.add_own(config, *_names_of(_given(argv)))
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
    'auto goes on with a run in the workdir, never wants none there, must one.',
  )


def override_values() -> dict[str, Any]:
  """The config fields that were given on the command line, by dotted name."""
  return dict(config_flags.get_override_values(flags.FLAGS['config']))


def use_all_cores() -> None:
  """Gives XLA one CPU device for each core, unless the user chose otherwise.

  Runs are spread over devices. On GPU and TPU this changes nothing.
  """
  if 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', ''):
    return
  if os.environ.get('JAX_NUM_CPU_DEVICES'):
    return
  jax.config.update('jax_num_cpu_devices', os.cpu_count() or 1)


def use_compilation_cache() -> None:
  """Keeps compiled programs for the next process, unless the user says where.

  `JAX_ENABLE_COMPILATION_CACHE=false` turns it off, and so does a folder that
  cannot be written: JAX would say so for each program.
  """
  if not jax.config.values['jax_compilation_cache_dir']:
    folder = str(paths.cache_folder() / 'xla')
    jax.config.update('jax_compilation_cache_dir', folder)
  folder = jax.config.values['jax_compilation_cache_dir']
  if '://' not in folder and not _can_be_written(pathlib.Path(folder)):
    jax.config.update('jax_enable_compilation_cache', False)
    print(
      f'warning: Compiled programs cannot be kept in {folder}; '
      'JAX_COMPILATION_CACHE_DIR=DIR names another folder.',
      file=sys.stderr,
    )
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


def _can_be_written(folder: pathlib.Path) -> bool:
  """Whether there is a folder that can be written, or can be made."""
  place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
  return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def check_arguments(argv: Sequence[str]) -> None:
  """Checks what the flag parser would answer with a traceback.

  Args:
    argv: As of `sys.argv`.

  Raises:
    UserError: If a config file is missing or cannot be used.
  """
  given = _given(argv)
  for name, value in given:
    if name not in ('config', 'sweep'):
      continue
    try:
      path, _ = split_config(value)
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
    config = _load(argv[0], section, value)
    if not isinstance(config, ml_collections.ConfigDict):
      raise TypeError(f'get_config() returns {config!r}, no ConfigDict')
    if section == 'config':
      config_lib.check_fields(_with_own(config, argv))
    config_lib.flatten(config)
  except ValueError as error:
    raise UserError(_one_sentence(str(error))) from error
  # Whatever a file of the user's can raise.
  except (Exception, SystemExit) as error:
    path, _ = split_config(value)
    reason = _one_sentence(f'{type(error).__name__}: {error}')
    raise UserError(
      f'The {section} file {path!r} cannot be used ({reason}); correct it, '
      '--debug shows where.'
    ) from error


def _given(argv: Sequence[str]) -> list[tuple[str, str]]:
  """Names and values of the flags: `--name=value` or `--name value`."""
  given = []
  for argument, following in zip(argv[1:], [*argv[2:], ''], strict=False):
    if argument.startswith('-'):
      name, equals, value = argument.lstrip('-').partition('=')
      given.append((name, value if equals else following))
  return given


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses the flags; a mistake ends the process with a sentence and code 2."""
  try:
    check_arguments(argv)
    program, *others = flags.FLAGS(list(argv))
    if others:
      raise UserError(f'Expected flags, got {others[0]!r}; write --name=value.')
    return [program]
  except Exception as error:  # The parser passes on what values raise.
    if '--debug' in argv:
      traceback.print_exc()
    message = str(error)
    if not isinstance(error, UserError):
      message = _explain(_one_sentence(message), argv)
  fail(message)
  return []


def _one_sentence(message: str) -> str:
  """What a traceback ends with, or the whole message, on one line."""
  if 'Traceback (most recent call last)' in message:
    lines = message.strip().splitlines()
    frames = [n for n, line in enumerate(lines) if line.startswith('  ')]
    message = '\n'.join(lines[frames[-1] + 1 :] if frames else lines[-1:])
    message = message.partition(': ')[2] or message
  return ' '.join(message.split())


def _explain(message: str, argv: Sequence[str]) -> str:
  """A sentence for what the flag parser says of a value or a name."""
  for flag, value in _given(argv):
    section, _, field = flag.partition('.')
    if section not in ('config', 'sweep') or not field:
      continue
    known = _known_fields(argv, section)
    if known and field not in known:
      return f'Unknown {section} field {field!r}.' + hints.nearest(field, known)
    if f'{flag}={value}:' in message:
      return f'Expected --{flag} to be like {known[field]!r}, got {value!r}.'
  return message


def _known_fields(argv: Sequence[str], section: str) -> dict[str, Any]:
  """All fields of the config file, read without overrides."""
  for name, value in _given(argv):
    if name == section:
      config = _load(argv[0], section, value)
      if section == 'config':
        config = _with_own(config, argv)
      return config_lib.flatten(config)
  return {}


def _load(program: str, section: str, value: str) -> Any:
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


def fail(message: str, exit_code: int = USER_ERROR) -> None:
  """Prints one sentence and ends the process."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(exit_code)


def how_to_go_on(module: str, workdir: pathlib.Path) -> str:
  """What to type after a stop."""
  again, skip = [], False
  for argument in sys.argv[1:]:
    name, equals, _ = argument.lstrip('-').partition('=')
    # With `--resume=never` the folder that is there would be refused.
    if skip or (argument.startswith('-') and name in ('workdir', 'resume')):
      skip = not skip and not equals  # `--workdir DIR` are two.
    else:
      again.append(argument)
  command = ['python', '-m', f'{__package__}.{module}', *again]
  return (
    f'To go on: {shlex.join(command)} --workdir={shlex.quote(str(workdir))}'
  )


@logs.kept()
def carry_out(
  module: str,
  workdir: pathlib.Path,
  work: Callable[[], Any],
  quiet: bool = False,
) -> int:
  """Does what can be stopped and gone on with; returns the exit code.

  Args:
    module: Of `experiments`, the one that was called.
    workdir: Where results go.
    work: Raises what `train.train_and_evaluate` does.
    quiet: Whether another process says where results are.
  """
  from ..studies import train

  if not quiet:
    print(f'Results go to {workdir}.', flush=True)
  try:
    work()
  except interrupts.Interrupted as stop:
    print(
      f'Stopped by {stop}; what was done is saved. '
      f'{how_to_go_on(module, workdir)}',
      file=sys.stderr,
    )
    return stop.exit_code
  except held_folders.MovedError as error:
    print(
      f'error: {error}. {how_to_go_on(module, error.workdir)}',
      file=sys.stderr,
    )
    return USER_ERROR
  except train.DivergedError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except OSError as error:
    if error.errno not in _OF_DISK:
      raise
    raise OSError(
      f'Could not write {error.filename or workdir} ({error.strerror}); make '
      'room, and the same command goes on with what was saved in '
      f'--workdir={workdir}.'
    ) from error
  if not quiet:
    print(f'Results are in {workdir}.')
  return 0


def run(main: Callable[[], int]) -> None:
  """Runs a program whose flags are defined.

  Args:
    main: Returns the exit code; a ValueError or OSError that it raises is shown
      as a sentence.
  """
  use_all_cores()
  use_compilation_cache()
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):  # It may know less than UTF-8.
      stream.reconfigure(errors='backslashreplace')
  streams.keep()
  for flag in flags.FLAGS.get_key_flags_for_module(__name__):
    # `--help` shows the flags of the program: these are its own.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)

  def guarded(unused_argv: Any) -> int:
    # Orbax says a lot otherwise.
    logging.set_verbosity(logging.WARNING if _DEBUG.value else logging.FATAL)
    if _DETERMINISTIC.value:  # JAX has not started: it reads the flags then.
      determinism.use()
      print(f'Deterministic: {determinism.GUARANTEE}.', flush=True)
    try:
      code = _outcome(main)
    except Exception:
      if not exits.is_at_once():
        raise
      traceback.print_exc()
      code = 1
    if exits.is_at_once():
      exits.end(code)
    return code

  app.run(guarded, flags_parser=parse_flags)


def _outcome(main: Callable[[], int]) -> int:
  """The exit code of a program; a mistake is a sentence."""
  try:
    interrupts.raise_and_note()
    warning = jax_settings.check()
    if warning:
      print(f'warning: {warning}', file=sys.stderr)
    return main()
  except (ValueError, OSError) as error:
    if _DEBUG.value:
      raise
    message = _one_sentence(str(error))
  except (RuntimeError, AssertionError):
    message = '' if _DEBUG.value else jax_settings.why_not_started()
    if not message:
      raise
  except MemoryError as error:
    if _DEBUG.value:
      raise
    message = (
      f'Not enough memory ({_one_sentence(str(error))}); use fewer or '
      'smaller examples, or a smaller network.'
    )
  except KeyboardInterrupt:  # Outside of the rounds, or for a second time.
    print(interrupts.AT_ONCE, file=sys.stderr)
    exits.at_once()  # What is compiled or read has no one to wait for it.
    return interrupts.EXIT_CODE
  print(f'error: {message}', file=sys.stderr)
  return USER_ERROR

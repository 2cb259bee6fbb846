"""Programs: from their start to an exit code, and how a run is resumed.

An error is one sentence; `--debug` shows its traceback. What is set up here is
set before JAX starts, such as the number of devices.
"""

from collections.abc import Callable
import errno
import io
import pathlib
import shlex
import sys
import traceback
from typing import Any

from absl import app
from absl import flags
from absl import logging

from ..configuration import hints
from ..folders import held_folders
from ..folders import logs
from ..running import determinism
from ..running import exits
from ..running import interrupts
from ..running import jax_settings
from ..running import streams
from . import command_line
from . import config_files
from fmtl_jax.running import machine

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


def how_to_resume(module: str, workdir: pathlib.Path) -> str:
  """The command that resumes a run that was stopped."""
  again, skip = [], False
  for argument in sys.argv[1:]:
    name, equals, _ = argument.lstrip('-').partition('=')
    # With `--resume=never` the folder that is there would be refused.
    if skip or (argument.startswith('-') and name in ('workdir', 'resume')):
      skip = not skip and not equals  # `--workdir DIR` are two.
    else:
      again.append(argument)
  command = ['python', '-m', hints.module(module), *again]
  return (
    f'To resume: {shlex.join(command)} --workdir={shlex.quote(str(workdir))}'
  )


@logs.kept()
def carry_out(
  module: str,
  workdir: pathlib.Path,
  work: Callable[[], Any],
  quiet: bool = False,
) -> int:
  """Runs work that can be stopped and resumed; returns the exit code.

  Args:
    module: Of `experiments`, the one that was called.
    workdir: Where results go.
    work: Raises what `driver.run` does.
    quiet: Whether another process prints where results are.
  """
  from ..studies import divergence

  if not quiet:
    print(f'Results go to {workdir}.', flush=True)
  try:
    work()
  except interrupts.Interrupted as stop:
    print(
      f'Stopped by {stop}; what was done is saved. '
      f'{how_to_resume(module, workdir)}',
      file=sys.stderr,
    )
    return stop.exit_code
  except held_folders.MovedError as error:
    print(
      f'error: {error}. {how_to_resume(module, error.workdir)}',
      file=sys.stderr,
    )
    return exits.USER_ERROR
  except divergence.DivergedError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except OSError as error:
    if error.errno not in _OF_DISK:
      raise
    raise OSError(
      f'Could not write {error.filename or workdir} ({error.strerror}); make '
      'room, and the same command resumes from what was saved in '
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
  machine.use_all_cores()
  machine.use_compilation_cache()
  for stream in (sys.stdout, sys.stderr):
    if isinstance(
      stream, io.TextIOWrapper
    ):  # Its encoding may lack characters.
      stream.reconfigure(errors='backslashreplace')
  streams.keep()
  # `--help` shows the flags of the program: these are its own.
  for module in (__name__, command_line.__name__, config_files.__name__):
    for flag in flags.FLAGS.get_key_flags_for_module(module):
      flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)

  def guarded(unused_argv: Any) -> int:
    # Orbax logs a lot otherwise.
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

  app.run(guarded, flags_parser=command_line.parse_flags)


def _outcome(main: Callable[[], int]) -> int:
  """The exit code of a program; an error is printed as one sentence."""
  try:
    interrupts.raise_and_note()
    warning = jax_settings.check()
    if warning:
      print(f'warning: {warning}', file=sys.stderr)
    return main()
  except (ValueError, OSError) as error:
    if _DEBUG.value:
      raise
    message = command_line.one_sentence(str(error))
  except (RuntimeError, AssertionError):
    message = '' if _DEBUG.value else jax_settings.why_not_started()
    if not message:
      raise
  except MemoryError as error:
    if _DEBUG.value:
      raise
    message = (
      f'Not enough memory ({command_line.one_sentence(str(error))}); use fewer '
      'or smaller examples, or a smaller network.'
    )
  except KeyboardInterrupt:  # Outside of the rounds, or for a second time.
    print(interrupts.AT_ONCE, file=sys.stderr)
    exits.at_once()  # Nobody waits for what is compiled or read.
    return interrupts.EXIT_CODE
  print(f'error: {message}', file=sys.stderr)
  return exits.USER_ERROR

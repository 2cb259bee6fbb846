"""Workdirs: a folder holds one experiment."""

from collections.abc import Iterator, Mapping
import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

from ..configuration import config as config_lib
from ..configuration import hints
from ..configuration import own_code
from . import files
from . import held_folders
from fmtl_jax.storage import digests
from fmtl_jax.storage import host_trees
from fmtl_jax.storage import orbax_paths

CONFIG = 'config.json'
DATA = 'data'  # In the config: their fingerprint.
CODE_OF = 'code of '  # There: the fingerprint of code of the user's.
_LOCK = '.lock'
_LONGEST = 255  # Bytes of a name in common file systems.
RESUME = ('auto', 'never', 'must')
# Errors of file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def default(name: str) -> pathlib.Path:
  """A new dated folder under runs/."""
  now = datetime.datetime.now().strftime('%Y-%m-%d_%H-%M-%S')
  return pathlib.Path('runs') / f'{now}_{name}'


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON so that the file is either the old or the new one."""
  files.write_text(path, json.dumps(value, indent=1, allow_nan=False) + '\n')


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
  """What `prepare` wrote.

  Raises:
    ValueError: If the folder holds no run.
  """
  path = workdir / CONFIG
  if not path.is_file():
    raise ValueError(
      f'No run in {workdir}: {CONFIG} is missing; give the --workdir of a '
      f'run of {hints.module("main")}.'
    )
  try:
    saved = digests.unseal(json.loads(path.read_bytes()))
    if not isinstance(saved.get('identity'), dict):
      raise ValueError('it has no identity')
  except ValueError as error:
    raise ValueError(
      f'{path} is damaged ({error}); use another --workdir.'
    ) from error
  return saved


def check(
  workdir: pathlib.Path, identity: Mapping[str, Any], resume: str = 'auto'
) -> None:
  """Checks that a run may use a folder; nothing is left there.

  Args:
    workdir: It need not exist.
    identity: What the results depend on, by field.
    resume: `auto`: resumes a run that is there; `never`: there must be none;
      `must`: there must be one.

  Raises:
    ValueError: If it is not a folder, is in use, holds other files or another
      run; the sentence lists the fields that differ.
  """
  if resume not in RESUME:
    raise ValueError(
      f'Expected --resume to be one of {", ".join(RESUME)}, got {resume!r}.'
    )
  try:
    _check_place(workdir)
  except OSError as error:
    raise _cannot_write(workdir, error) from error
  if resume == 'must' and not (workdir / CONFIG).is_file():
    raise ValueError(
      f'There is no run in --workdir={workdir} to resume; name the folder of '
      'one, or leave --resume=must out.'
    )
  # Left by a process that was killed then.
  started = files.temporary(workdir / CONFIG)
  if not workdir.exists() or set(workdir.iterdir()) <= {started}:
    return
  if resume == 'never' and (workdir / CONFIG).is_file():
    raise ValueError(
      f'--workdir={workdir} holds a run; name a new folder, or leave '
      '--resume=never out to resume it.'
    )
  if not (workdir / CONFIG).is_file():
    raise ValueError(
      f'--workdir={workdir} holds files of something else; name a new folder.'
    )
  saved = read_config(workdir)
  there = saved['identity']
  if isinstance(config := saved.get('config'), dict):
    # Fields that were not part of the identity then are known from there.
    there = {f: v for f, v in config.items() if f in identity} | there
  # A field that did not exist then had the effect of its default.
  known = config_lib.default_identity()
  there |= {
    field: value
    for field, value in identity.items()
    if field not in there and field in known and known[field] == value
  }
  # An algorithm of the user's that one of them lacks is another row.
  both = [
    field
    for field in {**there, **identity}
    if (field in there and field in identity)
    or not config_lib.is_own_setting(field)
  ]
  there, here = (
    {field: side[field] for field in both if field in side}
    for side in (there, identity)
  )
  check_identity(workdir, there, here)
  if not os.access(workdir, os.W_OK):
    raise _cannot_write(workdir, PermissionError(errno.EACCES, 'no permission'))
  if (workdir / _LOCK).exists():
    with locked(workdir, quiet=True):
      pass


def check_new(folder: pathlib.Path) -> None:
  """Raises a ValueError unless --output can be made; nothing is left there."""
  if folder.exists() or folder.is_symlink():
    raise ValueError(
      f'--output={folder} exists; name a folder that does not, nothing is '
      'replaced.'
    )
  try:
    _check_place(folder, 'output')
  except OSError as error:
    raise _cannot_write(folder, error, 'output') from error


def _check_place(workdir, flag='workdir'):
  """Raises an error if a folder cannot be made or is none.

  Whether a new one can be made is tried: what is tried with is removed.
  """
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f'--{flag}={workdir} is a file; name a folder.')
  orbax_paths.check(workdir.absolute(), f'--{flag}')
  for place in (workdir, *workdir.parents):
    if place.is_symlink() and not place.exists():
      raise ValueError(
        f'--{flag}={workdir}: {place} is a link to nothing; name another '
        'folder.'
      )
    if place.exists() and not place.is_dir():
      raise ValueError(
        f'--{flag}={workdir} is below {place}, which is a file; name another '
        'folder.'
      )
  for part in workdir.parts:
    if len(os.fsencode(part)) > _LONGEST:
      raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
  if not workdir.exists():
    with tempfile.TemporaryDirectory(dir=_nearest(workdir)):
      pass


def _nearest(workdir):
  """The folder itself, or the nearest one above it that exists."""
  return next(p for p in (workdir, *workdir.absolute().parents) if p.exists())


def _cannot_write(workdir, error, flag='workdir'):
  return ValueError(
    f'Cannot write to --{flag}={workdir} ({error.strerror}); name another '
    'folder.'
  )


def check_identity(
  workdir: pathlib.Path, there: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
  """Checks that what a folder holds is what a run would make.

  Args:
    workdir: The folder.
    there: What results in it depend on, by field.
    identity: The same of the run.

  Raises:
    ValueError: If they differ; the sentence lists the fields.
  """
  reason = host_trees.differences(there, identity)
  if reason:
    raise ValueError(
      f'--workdir={workdir} holds another run: it differs in {reason}; name a '
      'new folder, or give the same config to resume that run.'
    )


@contextlib.contextmanager
def locked(workdir: pathlib.Path, quiet: bool = False) -> Iterator[None]:
  """Keeps other processes out of a folder; it ends with the process at last.

  Args:
    workdir: It exists.
    quiet: Whether a file system without locks causes no warning.

  Raises:
    ValueError: If another process has the folder.
  """
  with open(workdir / _LOCK, 'ab') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
        f'Another process is running in --workdir={workdir}; wait for it, or '
        'name another folder.'
      ) from error
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      if not quiet:
        print(
          f'warning: The file system of --workdir={workdir} has no locks '
          f'({error.strerror}); see to it that no other process runs there.',
          file=sys.stderr,
        )
    with held_folders.held(workdir, CONFIG):
      yield


def check_space(workdir: pathlib.Path, needed: int) -> None:
  """Raises a ValueError if the disk has not so many bytes left.

  Args:
    workdir: It need not exist.
    needed: Bytes.
  """
  free = shutil.disk_usage(_nearest(workdir)).free
  if free < needed:
    raise ValueError(
      f'The disk of --workdir={workdir} has {free / 1e6:,.0f} MB left, and the '
      f'checkpoints need up to {needed / 1e6:,.0f} MB; make room, name another '
      'folder, or set checkpoint.keep to less.'
    )


def prepare(
  workdir: pathlib.Path,
  identity: Mapping[str, Any],
  config: Mapping[str, Any],
  data: Mapping[str, Any] | None = None,
) -> None:
  """Makes the folder and writes the config, unless it is there.

  Args:
    workdir: The folder.
    identity: What the results depend on, by field.
    config: All fields.
    data: Their fingerprint, if known. It is added to a config without one, as
      are the algorithms of the user's that a table gets later.

  Raises:
    ValueError: If it cannot be written.
  """
  content: dict[str, Any] = {'identity': dict(identity), 'config': dict(config)}
  if data is not None:
    content[DATA] = dict(data)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / CONFIG).exists():  # It says whose folder this is.
      write_json(workdir / CONFIG, digests.seal(content))
    elif (saved := read_config(workdir)) != (grown := _grown(saved, content)):
      write_json(workdir / CONFIG, digests.seal(grown))
    (workdir / 'cases').mkdir(exist_ok=True)
  except OSError as error:
    cause = error.__cause__ if error.errno is None else error
    raise _cannot_write(workdir, cause) from error


def _grown(
  saved: Mapping[str, Any], content: Mapping[str, Any]
) -> dict[str, Any]:
  """The content of `config.json` when a run is resumed, with what it lacked.

  Args:
    saved: Its content now.
    content: Its content if the folder were new.
  """
  grown = dict(saved)
  if DATA in content:
    lacking = content[DATA]
    if isinstance(there := saved.get(DATA), dict):
      lacking = {k: v for k, v in lacking.items() if k.startswith(CODE_OF)}
    else:
      there = {}
    grown[DATA] = lacking | there
  for part in ('identity', 'config'):
    if isinstance(there := saved.get(part), dict):
      own = {
        f: v for f, v in content[part].items() if config_lib.is_own_setting(f)
      }
      grown[part] = own | there
  rows = filter(own_code.is_own, content['config'].get('cases', []))
  if (new := list(rows)) and isinstance(there := grown.get('config'), dict):
    there['cases'] = [*dict.fromkeys([*there.get('cases', []), *new])]
  return grown

"""What all prepared data sets share: how they are made, opened and checked.

A preparation that fails leaves nothing; what one that was killed has left is
removed by the next one.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
import time
from typing import Any, TypeVar

from array_record.python import array_record_module
import tensorflow_datasets as tfds

from fmtl_jax.storage import temporaries

_Builder = TypeVar('_Builder', bound=tfds.core.DatasetBuilder)

# TFDS writes it before it has anything of a data set with several configs.
_NAMES_ONLY = 'metadata.json'
_INCOMPLETE = f'{tfds.core.constants.INCOMPLETE_PREFIX}*'
_OTHER_FORMAT = 'File format is already set'  # As TFDS says it.
_DAY = 24 * 60 * 60  # Seconds.


def opened(
  builder_class: type[_Builder], data_dir: str | None, **settings: Any
) -> _Builder:
  """Makes a builder of a data set that may be prepared.

  Args:
    builder_class: Of which data set.
    data_dir: Where TFDS keeps prepared data sets; None is TFDS's own default.
    **settings: Further arguments of the builder.

  Raises:
    ValueError: If what says of a prepared data set what is in it is damaged,
      or if it is prepared in another format.
  """
  try:
    return builder_class(
      data_dir=data_dir, file_format='array_record', **settings
    )
  except Exception as error:  # Whatever TFDS makes of damaged files.
    place = data_dir or tfds.core.constants.DATA_DIR
    reason = ' '.join(str(error).split()) or repr(error)
    if _OTHER_FORMAT in reason:  # It is intact: others may have prepared it.
      raise ValueError(
        f'Expected {builder_class.name} to be prepared as array_record, or not '
        f'at all, in data_dir {place}, got another format ({reason}); give '
        'another data_dir.'
      ) from error
    raise ValueError(
      'Could not read the prepared data set in '
      f'{os.path.join(place, builder_class.name)}: its dataset_info.json is '
      f'damaged ({reason}); delete this folder and try again.'
    ) from error


def prepare(
  builder: tfds.core.DatasetBuilder, manual_dir: str | os.PathLike[str] | None
) -> None:
  """Prepares a data set, unless it is prepared.

  Args:
    builder: What `opened` returned.
    manual_dir: Where its files are; None downloads them.

  Raises:
    OSError: If it cannot be written.
  """
  root = pathlib.Path(builder.data_dir_root)
  try:
    with _leaving_nothing(root), _cleaned(root, builder.name):
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
      )
  except OSError:
    # Another process may have prepared the same data in the meantime.
    if not builder.data_path.exists():
      raise


def check(builder: tfds.core.DatasetBuilder) -> None:
  """Raises an error if a prepared data set has lost or gained examples."""
  for name, split in builder.info.splits.items():
    found = 0
    for path in split.filepaths:
      reader = array_record_module.ArrayRecordReader(os.fspath(path))
      found += reader.num_records()
      reader.close()
    if found != split.num_examples:
      raise ValueError(
        f'{name} has {found} examples, not {split.num_examples} as '
        'dataset_info.json says'
      )


@contextlib.contextmanager
def _cleaned(root: pathlib.Path, name: str) -> Iterator[None]:
  """Removes what killed preparations of a data set have left.

  Every preparation has a shared lock on its folder while it runs: what is in
  one without a lock is stale. TFDS itself locks nothing: in a folder
  that is not named after the content of the data, where it may be at work, only
  what is a day old is removed.
  """
  root.mkdir(parents=True, exist_ok=True)
  own = root.name.startswith(f'{name}_')
  for folder in root.parent.glob(f'{name}_*') if own else (root,):
    with temporaries.locked(folder) as alone:
      for path in _incomplete(folder, name) if alone else ():
        if own or path.lstat().st_mtime < time.time() - _DAY:
          if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
          else:
            path.unlink(missing_ok=True)
  with temporaries.locked(root, shared=True, wait=True):
    yield


def _incomplete(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
  """What TFDS writes below a folder before it is renamed."""
  return [
    *(folder / name).glob(_INCOMPLETE),
    *(folder / name).glob(f'*/{_INCOMPLETE}'),
    *(folder / 'downloads').glob('*.tmp.*'),
  ]


@contextlib.contextmanager
def _leaving_nothing(folder: pathlib.Path) -> Iterator[None]:
  """Removes the folders that a preparation has made before it failed.

  Args:
    folder: Where it makes folders; those with data of others are kept.
  """
  missing = [p for p in (folder, *folder.parents) if not p.exists()]
  try:
    yield
  except BaseException:
    with temporaries.locked(folder) as alone:  # Others may have begun there.
      if alone:
        _remove_empty(folder, missing)
    raise


def _remove_empty(folder, missing):
  below = sorted(folder.rglob('*'))
  made = [p for p in below if p.is_dir()]
  files = [p for p in below if not p.is_dir()]
  if missing and all(p.name == _NAMES_ONLY for p in files):
    for path in files:
      path.unlink(missing_ok=True)
  for path in [*reversed(made), *missing]:
    # Another process may have put something there.
    with contextlib.suppress(OSError):
      path.rmdir()

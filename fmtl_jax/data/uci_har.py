"""UCI HAR: six activities of thirty people, recorded by a phone at the waist.

A TFDS builder that works without TensorFlow, and a loader on top of it that
gives NumPy arrays. The public zip is read as it is: nothing is unpacked.

The builder downloads the data from the UCI repository, unless a `manual_dir`
with the data is given. TFDS checks the size and the SHA-256 of a download
against those in `UciHar.url_infos`, which are the published file's.

References:
  Anguita, Ghio, Oneto, Parra, Reyes-Ortiz (2013), A Public Domain Dataset for
  Human Activity Recognition Using Smartphones, ESANN,
  https://archive.ics.uci.edu/dataset/240.
"""

from collections.abc import Callable, Iterator
import contextlib
import hashlib
import io
import os
import pathlib
import re
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from fmtl_jax.data import preparation
from fmtl_jax.storage import archives

URL = (
  'https://archive.ics.uci.edu/static/public/240/'
  'human+activity+recognition+using+smartphones.zip'
)
FEATURES = 'features'
SIGNALS = 'signals'
ACTIVITIES = (
  'walking',
  'walking_upstairs',
  'walking_downstairs',
  'sitting',
  'standing',
  'laying',
)
# Body acceleration in units of gravity (without gravity itself), angular
# velocity in radians per second, total acceleration in units of gravity.
CHANNELS = (
  'body_acc_x',
  'body_acc_y',
  'body_acc_z',
  'body_gyro_x',
  'body_gyro_y',
  'body_gyro_z',
  'total_acc_x',
  'total_acc_y',
  'total_acc_z',
)
NUM_FEATURES = 561
NUM_SAMPLES = 128  # Of a window: 2.56 seconds at 50 Hz.
SPLITS = ('train', 'test')

_SHAPES = {FEATURES: (NUM_FEATURES,), SIGNALS: (NUM_SAMPLES, len(CHANNELS))}
_FOLDER = 'UCI HAR Dataset'
_MOST = 2**28  # Bytes of one file: four times the largest one.
_LABELS = 'activity_labels.txt'
_COLUMNS = 'features.txt'
_NAME = re.compile('har|human.activity.recognition', re.IGNORECASE)

# Gives the bytes of a file, named by its path in the data set's folder.
_Read = Callable[[str], bytes]


class HumanActivity(NamedTuple):
  """The recordings in file order: training rows, then test rows.

  Rows of one subject stand in recording order, and neighbouring windows overlap
  by half.

  Attributes:
    features: `[N, 561]` float32, or `[N, 128, 9]` float32 with the channels in
      the order of `CHANNELS`.
    activity: `[N]` int32, a position in `ACTIVITIES`.
    subject: `[N]` int32, who was recorded, from 1.
    is_test: `[N]` bool, the official split, in which no subject is on both
      sides.
  """

  features: np.ndarray
  activity: np.ndarray
  subject: np.ndarray
  is_test: np.ndarray


class UciHar(tfds.core.GeneratorBasedBuilder):
  """Builds the data set in the config `features` or `signals`.

  Without TensorFlow, ask for a file format that does not need it:

  ```python
  builder = uci_har.UciHar(config='signals', file_format='array_record')
  builder.download_and_prepare()
  windows = builder.as_data_source('train')
  ```

  An example has the config's array under the config's name (`features`,
  `[561]` float32, or `signals`, `[128, 9]` float32, channels as in `CHANNELS`),
  `activity`, `subject` and `row`, its position in the files of its split.
  Examples stand in that order.
  """

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
    tfds.core.BuilderConfig(
      name=FEATURES, description='561 features of each window.'
    ),
    tfds.core.BuilderConfig(
      name=SIGNALS, description='Nine channels of 128 samples a window.'
    ),
  ]
  url_infos: ClassVar[dict[str, Any]] = {
    URL: tfds.download.checksums.UrlInfo(
      size=61_005_872,
      checksum=(
        'c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031'
      ),
      filename='human+activity+recognition+using+smartphones.zip',
    )
  }

  _manual_dir: str | os.PathLike[str] | None = None
  allow_nonfinite = False  # Whether windows may hold NaN.

  def download_and_prepare(self, *, download_config=None, **kwargs) -> None:
    """As in TFDS, except that `download_config.manual_dir` is optional.

    If it is given, the data are taken from there, a zip or an unpacked folder,
    and nothing is downloaded.

    Args:
      download_config: TFDS's settings.
      **kwargs: Further arguments of TFDS.

    Raises:
      ValueError: If the data cannot be had or are damaged. Nothing that looks
        like a prepared data set is left behind.
    """
    # The download manager cannot distinguish a given folder from TFDS's
    # default.
    self._manual_dir = download_config.manual_dir if download_config else None
    super().download_and_prepare(download_config=download_config, **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    kind = self.builder_config.name
    return tfds.core.DatasetInfo(
      builder=self,
      description=(
        'Windows of 2.56 seconds of accelerometer and gyroscope data from '
        'a phone at the waist of 30 people during six activities.'
      ),
      features=tfds.features.FeaturesDict(
        {
          kind: tfds.features.Tensor(shape=_SHAPES[kind], dtype=np.float32),
          'activity': tfds.features.ClassLabel(names=ACTIVITIES),
          'subject': tfds.features.Scalar(np.int32),
          'row': tfds.features.Scalar(np.int32),
        }
      ),
      supervised_keys=(kind, 'activity'),
      homepage='https://archive.ics.uci.edu/dataset/240',
      disable_shuffling=True,  # Recording order is part of the data.
    )

  def _split_generators(self, dl_manager):
    if self._manual_dir is not None:
      source = _find_source(self._manual_dir)
    else:
      source = _download(dl_manager)
    return {split: self._generate_examples(source, split) for split in SPLITS}

  def _generate_examples(self, source, split):
    kind = self.builder_config.name
    with _open(source) as read:
      values, activity, subject = _read_split(
        read, kind, split, self.allow_nonfinite
      )
    for row in range(len(values)):
      yield (
        row,
        {
          kind: values[row],
          'activity': activity[row],
          'subject': subject[row],
          'row': row,
        },
      )


def load(
  manual_dir: str | None = None,
  data_dir: str | None = None,
  kind: str = FEATURES,
  allow_nonfinite: bool = False,
) -> HumanActivity:
  """Loads the data set; it is prepared on first use.

  Args:
    manual_dir: A folder with the zip of the data set, which may stand in
      another zip, or with the unpacked folder. None downloads the zip.
    data_dir: Where TFDS keeps prepared data sets; None is TFDS's own default.
      Data from a `manual_dir` are kept in a sub-folder that is named after
      their content, so that other data are never taken for them.
    kind: `features` or `signals`.
    allow_nonfinite: Whether windows may hold NaN or infinite values.

  Raises:
    ValueError: If the kind is unknown, or the data cannot be had or are
      damaged.
  """
  if kind not in _SHAPES:
    raise ValueError(
      f'Expected kind to be one of {", ".join(_SHAPES)}, got {kind!r}.'
    )
  if data_dir is not None:
    data_dir = os.path.expanduser(data_dir)
  if manual_dir is not None:
    root = data_dir or tfds.core.constants.DATA_DIR
    content = _fingerprint(_find_source(manual_dir))
    data_dir = os.path.join(root, f'uci_har_{content}')
  builder = preparation.opened(UciHar, data_dir, config=kind)
  builder.allow_nonfinite = allow_nonfinite
  preparation.prepare(builder, manual_dir)
  try:
    preparation.check(builder)
    found = _read_prepared(builder, kind)
  except Exception as error:  # Whatever a reader makes of damaged files.
    raise ValueError(
      f'Could not read the prepared data set in {builder.data_dir} '
      f'({error!r}); delete this folder and try again.'
    ) from error
  values = found.features.reshape(len(found.subject), -1)
  broken = np.unique(found.subject[~np.isfinite(values).all(1)])
  if broken.size and not allow_nonfinite:  # Prepared where they are allowed.
    raise ValueError(
      f'The windows of subject {", ".join(map(str, broken[:5]))} hold NaN or '
      f'infinite values; download the data again from {URL}.'
    )
  return found


def _read_prepared(builder, kind):
  """Reads both splits of a prepared data set."""
  examples: list[dict[str, Any]] = []
  sizes = []
  for split in SPLITS:
    source = builder.as_data_source(split)
    examples += source.__getitems__(range(len(source)))
    sizes.append(len(source))
  return HumanActivity(
    features=np.stack([example[kind] for example in examples]),
    activity=np.array([e['activity'] for e in examples], np.int32),
    subject=np.array([e['subject'] for e in examples], np.int32),
    is_test=np.repeat([split == 'test' for split in SPLITS], sizes),
  )


def _download(dl_manager):
  """Downloads the zip, or takes it from TFDS's cache."""
  try:
    return pathlib.Path(dl_manager.download(URL))
  except Exception as error:  # Of the network, or a checksum's.
    raise ValueError(
      f'Could not download {URL} ({error!r}); download it by hand and give '
      'the folder it is in as manual_dir.'
    ) from error


def _find_source(manual_dir) -> pathlib.Path:
  """Finds the zip, or else the unpacked folder, in a folder."""
  folder = pathlib.Path(manual_dir).expanduser()
  if not folder.is_dir():
    raise ValueError(
      f'Expected manual_dir to be a folder with the UCI HAR zip, got {folder}'
      f', which is none; make it and put {URL} there.'
    )
  zips = sorted(
    path
    for path in folder.glob('*.zip')
    if _NAME.search(path.name) and not path.name.startswith('.')
  )
  if len(zips) > 1:
    raise ValueError(
      f'Expected one UCI HAR zip in manual_dir {folder}, got '
      f'{", ".join(path.name for path in zips)}; keep the one to read, as it '
      f'comes from {URL}.'
    )
  if zips:
    return zips[0]
  if (folder / _FOLDER).is_dir():
    return folder / _FOLDER
  if (folder / SPLITS[0]).is_dir():
    return folder
  raise ValueError(
    f'Expected a zip with HAR in its name or the folder {_FOLDER!r} in '
    f'manual_dir {folder}, got neither; put {URL} there.'
  )


def _fingerprint(source: pathlib.Path) -> str:
  """A short name for the content of a zip or an unpacked folder."""
  digest = hashlib.sha256()
  if source.is_dir():
    with _open(source) as read:
      for name in _all_files():
        digest.update(hashlib.sha256(read(name)).digest())
  else:
    with source.open('rb') as file:
      digest = hashlib.file_digest(file, 'sha256')
  return digest.hexdigest()[:16]


def _all_files() -> list[str]:
  """Lists the files of the data set that are read."""
  names = [_LABELS, _COLUMNS]
  for split in SPLITS:
    names += [_path(stem, split) for stem in ('X', 'y', 'subject')]
    names += [_path(channel, split) for channel in CHANNELS]
  return names


def _path(stem, split):
  folder = 'Inertial Signals/' if stem in CHANNELS else ''
  return f'{split}/{folder}{stem}_{split}.txt'


@contextlib.contextmanager
def _open(source: pathlib.Path) -> Iterator[_Read]:
  """Opens a zip, a zip in a zip or a folder to read files from."""
  if source.is_dir():
    archive, prefix = None, ''
  else:
    try:
      archive, prefix = _open_zip(source)
    # Damaged bytes surface as a dozen types of exceptions.
    except Exception as error:
      raise ValueError(
        f'Expected a zip of the UCI HAR data set, got {source}, which cannot '
        f'be read ({error!r}); download it again from {URL}.'
      ) from error

  def read(name):
    try:
      if archive is None:
        return (source / name).read_bytes()
      return archive.read(prefix + name)
    except (FileNotFoundError, KeyError):
      raise ValueError(
        f'Expected the file {name} in {source}, got none; download the data '
        f'again from {URL}.'
      ) from None
    except Exception as error:
      raise ValueError(
        f'Could not read {name} in {source} ({error!r}); download the data '
        f'again from {URL}.'
      ) from error

  with archive or contextlib.nullcontext():
    yield read


def _open_zip(source, inside=False):
  """Opens the zip with the data: `source` itself, or one that it contains.

  Returns:
    The zip, and what comes before the names of the data set's files in it.
  """
  archive = archives.Zip(source, _MOST)
  names = [n for n in archive.namelist() if not n.startswith('__MACOSX/')]
  found = [name for name in names if name.endswith(_LABELS)]
  inner = [name for name in names if name.endswith('.zip')]
  if inner and not found and not inside:  # No zip in a zip in a zip.
    with archive:
      return _open_zip(io.BytesIO(archive.read(inner[0])), inside=True)
  return archive, found[0].removesuffix(_LABELS) if found else ''


def _read_split(read: _Read, kind: str, split: str, allow_nonfinite: bool):
  """Reads one official split and checks all its files against each other.

  Returns:
    `(values, activity, subject)`: `[N, ...]` float32, `[N]` ints from 0 and
    `[N]` ints.
  """
  _check_labels(read)
  tables: dict[str, np.ndarray] = {}
  sizes: dict[str, int] = {}
  wanted = ('X',) if kind == FEATURES else CHANNELS
  for stem in ('X', 'y', 'subject', *CHANNELS):
    path = _path(stem, split)
    lines = read(path).rstrip().splitlines()
    sizes[path] = len(lines)
    if stem in ('y', 'subject'):
      tables[stem] = _parse(lines, 1, path)
    elif stem in wanted:
      columns = NUM_FEATURES if stem == 'X' else NUM_SAMPLES
      tables[stem] = _parse(lines, columns, path, allow_nonfinite)
  first = _path('X', split)
  for path, size in sizes.items():
    if size != sizes[first] or not size:
      raise ValueError(
        f'Expected a row for each window in {path}, as many as in {first} '
        f'({sizes[first]}) and at least one, got {size}; download the data '
        f'again from {URL}.'
      )
  activity = _whole_numbers(tables['y'], _path('y', split), 1, len(ACTIVITIES))
  subject = _whole_numbers(
    tables['subject'], _path('subject', split), 1, np.iinfo(np.int32).max
  )
  if kind == FEATURES:
    values = tables['X']
  else:
    values = np.stack([tables[channel] for channel in CHANNELS], axis=-1)
  return values, activity - 1, subject


def _check_labels(read):
  """Checks that classes and columns mean what they mean here."""
  lines = read(_LABELS).decode('latin-1').lower().splitlines()
  labels = [line.split() for line in lines if line.strip()]
  expected = [[str(n), name] for n, name in enumerate(ACTIVITIES, start=1)]
  if labels != expected:
    raise ValueError(
      'Expected the lines '
      f'{", ".join(" ".join(line) for line in expected)} in {_LABELS}, got '
      f'{len(labels)} lines that differ; download the data again from {URL}.'
    )
  size = len(read(_COLUMNS).rstrip().splitlines())
  if size != NUM_FEATURES:
    raise ValueError(
      f'Expected {NUM_FEATURES} names in {_COLUMNS}, got {size}; download '
      f'the data again from {URL}.'
    )


def _parse(lines, columns, path, allow_nonfinite=False):
  """Parses `[N]` lines of bytes into `[N, columns]` float32 numbers."""
  table = np.empty((len(lines), columns), np.float32)
  for number, line in enumerate(lines):
    try:
      row = np.fromiter(map(float, line.split()), np.float64)
    except ValueError as error:
      raise ValueError(
        f'Expected numbers in line {number + 1} of {path}, got something '
        f'else ({str(error)[:80]}); download the data again from {URL}.'
      ) from None
    if len(row) != columns:
      raise ValueError(
        f'Expected {columns} numbers in line {number + 1} of {path}, got '
        f'{len(row)}; download the data again from {URL}.'
      )
    with np.errstate(over='ignore'):  # Becomes infinite, and is reported below.
      table[number] = row
  finite = np.isfinite(table)
  if not finite.all() and not allow_nonfinite:
    row, column = np.argwhere(~finite)[0]
    raise ValueError(
      f'Expected finite numbers in {path}, got {table[row, column]} in line '
      f'{row + 1}, column {column + 1}; download the data again from {URL}.'
    )
  return table


def _whole_numbers(table, path, low, high):
  """Turns `[N, 1]` numbers into `[N]` ints between two bounds."""
  values = table[:, 0].astype(np.float64)
  wrong = (values != np.round(values)) | (values < low) | (values > high)
  if wrong.any():
    row = int(np.argmax(wrong))
    raise ValueError(
      f'Expected whole numbers from {low} to {high} in {path}, got '
      f'{values[row]:g} in line {row + 1}; download the data again from '
      f'{URL}.'
    )
  return values.astype(np.int32)

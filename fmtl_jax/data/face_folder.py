"""A folder of photographs, and a table of what can be seen on them.

`FaceFolder` reads any such folder. What it shares with other data sets of
photographs is `ImageBuilder`, a TFDS builder that works without TensorFlow and
keeps images as the bytes of their files, and `prepare`.
"""

import abc
from collections.abc import Mapping, Sequence
import contextlib
import csv
import io
import math
import os
import pathlib
import sys
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle
import tqdm

from fmtl_jax.data import images
from fmtl_jax.data import preparation

_NAMED = 3  # How many of the files left out are named.


class LabelledImages(NamedTuple):
  """Photographs in the order of their paths, and their attributes.

  Attributes:
    encoded: The bytes of N files, read when they are asked for; see
      `images.Images`.
    labels: `[N, A]` float32, 0 or 1, NaN where missing.
    attributes: What the A columns are.
    names: Paths of the N files in the folder.
    summary: What was left out, in one line; empty if nothing was.
  """

  encoded: images.Encoded
  labels: np.ndarray
  attributes: tuple[str, ...]
  names: tuple[str, ...]
  summary: str


class Labels(NamedTuple):
  """What is known of images before they are read.

  Attributes:
    examples: Features of each image besides `image` and `name`, by its name.
    left_out: Names of what cannot be used, by the kind of thing it is.
    metadata: To keep with the prepared data set.
  """

  examples: Mapping[str, Mapping[str, Any]]
  left_out: Mapping[str, Sequence[str]]
  metadata: Mapping[str, Any]


class ImageBuilder(
  tfds.core.GeneratorBasedBuilder,
  skip_registration=True,  # type: ignore[call-arg]  # TFDS has no types.
):
  """Builds a data set of encoded images, in the order of their names.

  An example has `image`, the bytes of a file, `name`, and `label_features`.
  Images that cannot be decoded are left out, and `info.metadata['summary']`
  tells so. Give `file_format='array_record'`, which needs no TensorFlow.
  """

  VERSION = tfds.core.Version('1.0.0')
  url_infos: ClassVar[dict[str, Any]] = {}  # Nothing is downloaded.
  label_features: Mapping[str, Any]
  description: str
  homepage: str | None = None

  @staticmethod
  @abc.abstractmethod
  def open(manual_dir) -> contextlib.AbstractContextManager[images.Files]:
    """Opens the files of the data set."""

  @abc.abstractmethod
  def read_labels(self, files: images.Files) -> Labels:
    """Reads the labels of all images."""

  def _info(self) -> tfds.core.DatasetInfo:
    # An `Image` would be decoded; `Text` gives its bytes as they are.
    text = tfds.features.Text()
    features = {'image': text, 'name': text, **self.label_features}
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.description,
      features=tfds.features.FeaturesDict(features),
      homepage=self.homepage,
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(dl_manager.manual_dir)}

  def _generate_examples(self, manual_dir):
    # TFDS holds 1 GB in memory; it would need TensorFlow to write more.
    shuffle.MAX_MEM_BUFFER_SIZE = sys.maxsize
    with self.open(manual_dir) as files:
      labels = self.read_labels(files)
      names = sorted(labels.examples)
      unreadable = []
      bar = tqdm.tqdm(
        images.read_images(files, names),
        desc='images',
        total=len(names),
        unit='image',
        disable=None,
      )
      for name, content in bar:
        if content is None:
          unreadable.append(name)
        else:
          # Not all paths of a file system are UTF-8.
          path = name.encode(errors='surrogateescape')
          yield name, {'image': content, 'name': path, **labels.examples[name]}
    summary = _summarize({'unreadable images': unreadable, **labels.left_out})
    if len(unreadable) == len(names):
      raise ValueError(
        'Expected at least one image with labels that can be decoded in '
        f'{manual_dir}, got none{summary and f" ({summary})"}; add some.'
      )
    self.info.metadata.update(labels.metadata, summary=summary)


class Prepared(NamedTuple):
  """A prepared data set.

  Attributes:
    encoded: The bytes of N files.
    names: Of the files.
    columns: N values of each of the other features.
    metadata: What was kept with it.
  """

  encoded: images.Encoded
  names: tuple[str, ...]
  columns: Mapping[str, Sequence[Any]]
  metadata: Mapping[str, Any]


def prepare(
  builder_class: type[ImageBuilder],
  manual_dir: str | os.PathLike[str],
  data_dir: str | None,
) -> Prepared:
  """Prepares images on first use, in a folder named after their content.

  Args:
    builder_class: What builds the data set.
    manual_dir: Where its files are.
    data_dir: Where TFDS keeps prepared data sets; None is TFDS's own default.

  Raises:
    ValueError: If the files cannot be used, or the prepared ones are damaged.
  """
  with builder_class.open(manual_dir) as files:
    content = files.fingerprint()
  root = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
  builder = preparation.opened(
    builder_class, os.path.join(root, f'{builder_class.name}_{content}')
  )
  preparation.prepare(builder, os.path.expanduser(manual_dir))
  try:
    preparation.check(builder)
    source = builder.as_data_source('train')
    columns: dict[str, list[Any]] = {}
    for example in source:
      del example['image']
      for name, value in example.items():
        columns.setdefault(name, []).append(value)
    names = tuple(
      name.decode(errors='surrogateescape') for name in columns.pop('name')
    )
    return Prepared(
      images.FromSource(source), names, columns, builder.info.metadata
    )
  except Exception as error:  # Whatever a reader makes of damaged files.
    raise ValueError(
      f'Could not read the prepared data set in {builder.data_dir} '
      f'({error!r}); delete this folder and try again.'
    ) from error


def _summarize(left_out: Mapping[str, Sequence[str]]) -> str:
  """Counts what was left out and names the first of each kind."""
  parts = []
  for kind, names in left_out.items():
    if names:
      more = ', ...' if len(names) > _NAMED else ''
      some = ', '.join(map(repr, names[:_NAMED]))  # In one printable line.
      parts.append(f'{len(names)} {kind} ({some}{more})')
  return f'Left out: {"; ".join(parts)}' if parts else ''


class FaceFolder(ImageBuilder):
  """Builds a folder of images, at any depth, and one CSV with a header.

  The first column of the CSV has an image's path in the folder, or its file
  name where only one image has it; the others have binary attributes, 0 or 1
  (or -1 and 1), empty where unknown.

  Examples have `labels`, `[A]` float32, and `info.metadata['attributes']` names
  them.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = 'Give a folder of images and one CSV.'
  description = 'Photographs with binary attributes.'
  label_features = {
    'labels': tfds.features.Tensor(shape=(None,), dtype=np.float32)
  }

  @staticmethod
  def open(manual_dir) -> contextlib.AbstractContextManager[images.Files]:
    folder = pathlib.Path(manual_dir).expanduser()
    if not folder.is_dir():
      raise ValueError(
        'Expected a folder with images and one CSV of their attributes, got '
        f'{folder}, which is none; give the path of one.'
      )
    return images.open_files(folder, '.csv', *images.SUFFIXES)

  def read_labels(self, files: images.Files) -> Labels:
    tables = [name for name in files.names if name.lower().endswith('.csv')]
    if len(tables) != 1:
      raise ValueError(
        'Expected one CSV with the attributes of the images in their folder, '
        f'got {", ".join(tables) or "none"}; keep the one to read there.'
      )
    [table] = tables
    found = [name for name in files.names if name != table]
    paths: dict[str, list[str]] = {}
    for path in found:
      paths.setdefault(path.rpartition('/')[2], []).append(path)
    # A path in the folder names one image, whatever others are called.
    paths.update({path: [path] for path in found})
    attributes, rows = _read_table(table, files.read(table))
    examples: dict[str, dict[str, Any]] = {}
    no_image = []
    for line, name, labels in rows:
      if name not in paths:
        no_image.append(name)
        continue
      path, *others = paths[name]
      if others or path in examples:
        raise ValueError(
          f'Expected one image for each row, got {name!r} again in line {line} '
          f'of {table}; write paths in the folder, each once.'
        )
      examples[path] = {'labels': labels}
    no_row = [path for path in found if path not in examples]
    return Labels(
      examples,
      {'images without a row': no_row, 'rows without an image': no_image},
      {'attributes': attributes},
    )


def _read_table(
  table: str, content: bytes
) -> tuple[list[str], list[tuple[int, str, np.ndarray]]]:
  """Reads a CSV of binary attributes.

  Returns:
    Names of the A attributes, and `(line, name, labels [A])` of each row.
  """
  try:
    text = io.StringIO(content.decode(), newline='')
    reader = csv.reader(text)
    header = [name.strip() for name in next(reader, [])]
    # The number is that of the line where a row ends.
    cells = [(reader.line_num, row) for row in reader if row]
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(
      f'Expected {table} to be a CSV in UTF-8, got something else ({error}); '
      'save it as one.'
    ) from None
  attributes = header[1:]
  if (
    not attributes
    or '' in attributes
    or len(set(attributes)) != len(attributes)
  ):
    raise ValueError(
      f'Expected a header in {table} with a column of file names and one for '
      f'each attribute, got {header}; name each column once, between commas.'
    )
  rows = []
  lowest: dict[str, float] = {}  # Of an attribute: 0 or -1 once it is known.
  for line, row in cells:
    where = f'line {line} of {table}'
    if len(row) != len(header):
      raise ValueError(
        f'Expected {len(header)} values in {where}, as in its header, got '
        f'{len(row)}; leave a value empty where it is unknown.'
      )
    labels = []
    for attribute, cell in zip(attributes, row[1:], strict=True):
      value = _binary(cell)
      # Where there are 0 and -1, one of them may stand for something else.
      if (
        value is None
        or value < 1
        and value != lowest.setdefault(attribute, value)
      ):
        raise ValueError(
          f'Expected 0 or 1 (or -1 or 1 in all of a column) for {attribute!r} '
          f'in {where}, got {cell!r}; leave it empty where it is unknown.'
        )
      labels.append(0.0 if value == -1 else value)
    rows.append((line, row[0].strip(), np.array(labels, np.float32)))
  return attributes, rows


def _binary(cell: str) -> float | None:
  """The number in a cell: NaN where it is empty, None if it is not binary."""
  if not cell.strip():
    return math.nan
  try:
    value = float(cell)
  except ValueError:
    return None
  return value if value in (-1, 0, 1) else None


def load(
  folder: str | os.PathLike[str], data_dir: str | None = None
) -> LabelledImages:
  """Loads a folder of images and one CSV; it is prepared on first use.

  Images are prepared as the bytes of their files, in a sub-folder of `data_dir`
  named after their content, so that others are never taken for them; memory has
  to hold them all once. Images without a row, rows without an image and images
  that cannot be decoded are left out.

  Args:
    folder: Where images and the CSV are; see `FaceFolder`.
    data_dir: Where TFDS keeps prepared data sets; None is TFDS's own default.

  Raises:
    ValueError: If there is not one CSV, if it has a value that is not binary,
      or if no image is left.
  """
  prepared = prepare(FaceFolder, folder, data_dir)
  return LabelledImages(
    encoded=prepared.encoded,
    labels=np.stack(prepared.columns['labels']),
    attributes=tuple(prepared.metadata['attributes']),
    names=prepared.names,
    summary=prepared.metadata['summary'],
  )

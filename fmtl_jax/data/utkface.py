"""UTKFace: photographs of faces with age, gender and race.

A TFDS builder that works without TensorFlow, and a loader on top of it. The
data set is for research only and has no automatic download. Images are kept as
the bytes of their files; `images.Images` decodes them.

References:
  Zhang, Song, Qi (2017), Age Progression/Regression by Conditional Adversarial
  Autoencoder, https://arxiv.org/abs/1702.08423.
"""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from fmtl_jax.data import face_folder
from fmtl_jax.data import images
from fmtl_jax.data import manual

URL = 'https://susanqq.github.io/UTKFace/'
GENDERS = ('male', 'female')
RACES = ('white', 'black', 'asian', 'indian', 'other')

_FOLDER = 'UTKFace'
# `[age]_[gender]_[race]_[time].jpg.chip.jpg`
_NAME = re.compile(r'([0-9]{1,3})_([01])_([0-4])_[^_]+')


class Faces(NamedTuple):
  """The photographs in the order of their file names.

  Attributes:
    encoded: The bytes of N JPEG files, read when they are asked for; see
      `images.Images`.
    age: `[N]` int32, in years.
    gender: `[N]` int32, a position in `GENDERS`.
    race: `[N]` int32, a position in `RACES`.
    names: Of the N files.
    summary: What was left out, in one line; empty if nothing was.
  """

  encoded: images.Encoded
  age: np.ndarray
  gender: np.ndarray
  race: np.ndarray
  names: tuple[str, ...]
  summary: str


class Utkface(face_folder.ImageBuilder):
  """Builds the data set from a zip or a folder in `manual_dir`.

  ```python
  builder = utkface.Utkface(file_format='array_record')
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir='~/downloads')
  )
  faces = builder.as_data_source('train')
  ```

  An example has `image`, the bytes of a JPEG file, `name`, `age`, `gender` and
  `race`. Images that cannot be decoded, and those without labels in their
  names, are left out; `info.metadata['summary']` tells so.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = f'Get the aligned images from {URL}.'
  description = 'Photographs of faces with age, gender and race.'
  homepage = URL
  label_features = {
    'age': tfds.features.Scalar(np.int32),
    'gender': tfds.features.ClassLabel(names=GENDERS),
    'race': tfds.features.ClassLabel(names=RACES),
  }

  @staticmethod
  @contextlib.contextmanager
  def open(manual_dir) -> Iterator[images.Files]:
    """Opens the images of one folder, named without it."""
    source = _find_source(manual_dir)
    with images.open_files(source, *images.SUFFIXES) as files:
      parents = {pathlib.PurePosixPath(name).parent for name in files.names}
      if not parents:
        raise ValueError(
          f'Expected images of UTKFace in {source}, got none; get them from '
          f'{URL}.'
        )
      # Some downloads have the same images in several folders.
      parent = min(parents, key=lambda p: (p.name != _FOLDER, p.parts))
      names = [
        path.name
        for path in map(pathlib.PurePosixPath, files.names)
        if path.parent == parent
      ]
      yield images.Files(
        sorted(names), lambda name: files.read(str(parent / name))
      )

  def read_labels(self, files: images.Files) -> face_folder.Labels:
    examples = {}
    no_label = []
    for name in files.names:
      match = _NAME.match(name)
      if match is None:
        no_label.append(name)
      else:
        age, gender, race = map(int, match.groups())
        examples[name] = {'age': age, 'gender': gender, 'race': race}
    return face_folder.Labels(
      examples, {'images without labels in their names': no_label}, {}
    )


def load(
  manual_dir: str | os.PathLike[str], data_dir: str | None = None
) -> Faces:
  """Loads the data set; it is prepared on first use.

  It is prepared in a sub-folder of `data_dir` named after its content, so that
  other images are never taken for these.

  Args:
    manual_dir: A folder with the zip, which has UTK in its name, or with the
      unpacked images, which may stand in `UTKFace/`.
    data_dir: Where TFDS keeps prepared data sets; None is TFDS's own default.

  Raises:
    ValueError: If there are no images with labels.
  """
  prepared = face_folder.prepare(Utkface, manual_dir, data_dir)
  return Faces(
    encoded=prepared.encoded,
    age=np.array(prepared.columns['age'], np.int32),
    gender=np.array(prepared.columns['gender'], np.int32),
    race=np.array(prepared.columns['race'], np.int32),
    names=prepared.names,
    summary=prepared.metadata['summary'],
  )


def _find_source(manual_dir) -> pathlib.Path:
  """Finds the zip in a folder, or else takes the folder."""
  folder = pathlib.Path(manual_dir).expanduser()
  if not folder.is_dir():
    raise ValueError(
      'Expected manual_dir to be a folder with the zip or the images of '
      f'UTKFace, got {folder}, which is none; make it and put them there, from '
      f'{URL}.'
    )
  folder = manual.folder_of(folder, '*[uU][tT][kK]*.zip')
  zips = sorted(
    path
    for path in folder.glob('*.zip')
    if 'utk' in path.name.lower() and not path.name.startswith('.')
  )
  if len(zips) > 1:
    raise ValueError(
      f'Expected one UTKFace zip in manual_dir {folder}, got '
      f'{", ".join(path.name for path in zips)}; keep the one to read.'
    )
  return zips[0] if zips else folder

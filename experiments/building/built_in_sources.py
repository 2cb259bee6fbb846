"""The sources of this package: functions of the config's `data`."""

import sys

import ml_collections
import numpy as np

from ..configuration import fields
from . import sources
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import activity_columns
from fmtl_jax.data import domains
from fmtl_jax.data import images
from fmtl_jax.data import play_lines
from fmtl_jax.data import shakespeare
from fmtl_jax.models import bert
from fmtl_jax.models import word_piece


def load_digits(data: ml_collections.ConfigDict) -> sources.Source:
  """Handwritten digits of scikit-learn; `data.kind` says which tasks.

  With `data.domains` each client shows them in its own way, and is the natural
  owner of its pictures.
  """
  from fmtl_jax.data import digits  # scikit-learn takes a second to import.

  loaded = digits.load(data.kind)
  pictures, keys = loaded.features.reshape(-1, 8, 8, 1), None
  if data.domains:
    with fields.named({'domains': 'data.domains'}):
      pictures, keys = domains.deal(pictures, loaded.strata, data.domains, 0)
  return sources.Source(
    features=pictures,
    labels=loaded.labels,
    tasks=loaded.tasks,
    strata=loaded.strata,
    keys=keys,
  )


def load_breast_cancer(data: ml_collections.ConfigDict) -> sources.Source:
  """Breast cancer of scikit-learn: three blocks of ten columns."""
  from fmtl_jax.data import breast_cancer  # scikit-learn takes a second.

  if data.kind:
    raise ValueError(
      f"Expected data.kind='' of 'breast_cancer', got {data.kind!r}."
    )
  loaded = breast_cancer.load()
  return sources.Source(
    features=loaded.features,
    labels=loaded.malignant[:, None].astype(np.float32),
    tasks=(tasks_lib.Task(name='malignant'),),
    strata=loaded.malignant,
    parties=loaded.blocks,
  )


def _disable_progress_bars():
  """Disables the progress bars of TFDS unless stderr is a terminal."""
  import tensorflow_datasets as tfds  # Slow to import.

  if not sys.stderr.isatty():
    tfds.disable_progress_bar()


def load_uci_har(
  data: ml_collections.ConfigDict, allow_nonfinite: bool = False
) -> sources.Source:
  """Human activity: each person is a task; `data.kind` says which features.

  With the name of an activity, people tell it from the rest by the features.

  Args:
    data: The config's `data`.
    allow_nonfinite: Whether features may be NaN or infinite.
  """
  from fmtl_jax.data import uci_har  # tensorflow_datasets is slow to import.

  _disable_progress_bars()

  kind = data.kind or uci_har.FEATURES
  is_one = kind in uci_har.ACTIVITIES
  known = (uci_har.FEATURES, uci_har.SIGNALS, *uci_har.ACTIVITIES)
  if kind not in known:
    raise ValueError(
      f'Expected data.kind to be one of {", ".join(known)}, got {kind!r}.'
    )
  loaded = uci_har.load(
    data.manual_dir or None,
    data.data_dir or None,
    uci_har.FEATURES if is_one else kind,
    allow_nonfinite,
  )
  labels, classes = loaded.activity, len(uci_har.ACTIVITIES)
  if is_one:
    labels, classes = labels == uci_har.ACTIVITIES.index(kind), 2
  people = np.unique(loaded.subject)
  tasks = tuple(
    tasks_lib.Task(
      name=f'person {person}',
      kind=tasks_lib.BINARY if is_one else tasks_lib.MULTICLASS,
      num_classes=classes,
    )
    for person in people
  )
  return sources.Source(
    features=loaded.features,
    labels=labels[:, None].astype(np.float32),
    tasks=tasks,
    strata=loaded.activity,
    keys=loaded.subject,
    runs=loaded.activity,
    shared_labels=False,
    task_keys={f'person {person}': person for person in people},
    standardized_axes=(0,) if kind == uci_har.SIGNALS else (),
    feature_names=()
    if kind == uci_har.SIGNALS
    else activity_columns.FEATURE_NAMES,
  )


def load_utkface(data: ml_collections.ConfigDict) -> sources.Source:
  """UTKFace: photographs with five binary tasks."""
  from fmtl_jax.data import utkface  # tensorflow_datasets is slow to import.

  _disable_progress_bars()

  if not data.manual_dir:
    raise ValueError(
      'Expected data.manual_dir to be the folder with UTKFace.zip, got none; '
      f'get it from {utkface.URL}.'
    )
  faces = utkface.load(data.manual_dir, data.data_dir or None)
  columns = {
    'gender': faces.gender,
    'adult': faces.age >= 18,
    'over_30': faces.age > 30,
    'over_50': faces.age > 50,
    'White': faces.race == utkface.RACES.index('white'),
  }
  labels = np.stack(list(columns.values()), 1).astype(np.float32)
  return _photographs(data, faces.encoded, labels, columns, faces.summary)


def load_face_folder(data: ml_collections.ConfigDict) -> sources.Source:
  """A folder of photographs and a CSV of binary attributes."""
  from fmtl_jax.data import face_folder  # tensorflow_datasets is slow.

  _disable_progress_bars()

  if not data.manual_dir:
    raise ValueError(
      'Expected data.manual_dir to be a folder with images and one CSV of '
      'binary attributes, got none; name it.'
    )
  faces = face_folder.load(data.manual_dir, data.data_dir or None)
  return _photographs(
    data, faces.encoded, faces.labels, faces.attributes, faces.summary
  )


def load_celeb_a(data: ml_collections.ConfigDict) -> sources.Source:
  """CelebA: photographs with forty attributes, and who is on them."""
  from fmtl_jax.data import celeb_a  # tensorflow_datasets is slow to import.

  _disable_progress_bars()

  faces = celeb_a.load(data.data_dir or None, data.manual_dir or None)
  return _photographs(
    data, faces.encoded, faces.labels, faces.tasks, '', faces.identity
  )


def load_play_lines(data: ml_collections.ConfigDict) -> sources.Source:
  """Lines of plays as tokens of an encoder: which play each is from."""
  if not data.manual_dir:
    raise ValueError(
      f'Expected data.manual_dir to be the folder with {shakespeare.FILE}, got '
      f'none; get it from {shakespeare.URL}.'
    )
  loaded = play_lines.load(data.manual_dir)
  folder = bert.folder_of(data.encoder_dir)
  tokenizer = word_piece.WordPiece.read(folder / bert.VOCABULARY)
  rows = np.arange(len(loaded.text))
  if 0 < data.max_texts < len(rows):
    rows = np.linspace(0, len(rows) - 1, data.max_texts).astype(np.int64)
  play = loaded.play[rows]
  return sources.Source(
    features=tokenizer([loaded.text[i] for i in rows], data.max_tokens),
    labels=play[:, None].astype(np.float32),
    tasks=(
      tasks_lib.Task(
        name='play',
        kind=tasks_lib.MULTICLASS,
        num_classes=len(shakespeare.PLAYS),
      ),
    ),
    strata=play,
    keys=loaded.speaker[rows],
  )


def _photographs(
  data, encoded, labels, names, summary, keys=None
) -> sources.Source:
  """Photographs with binary labels `[N, L]`, a task for each column."""
  if summary:
    print(f'warning: {summary}', file=sys.stderr)
  if 0 < data.max_images < len(labels):
    rows = np.linspace(0, len(labels) - 1, data.max_images).astype(np.int64)
    encoded, labels = [encoded[int(row)] for row in rows], labels[rows]
    keys = None if keys is None else keys[rows]
  _, strata = np.unique(
    np.nan_to_num(labels, nan=2), axis=0, return_inverse=True
  )
  return sources.Source(
    features=images.Images(
      encoded, (data.image_size,) * 2, data.image_crop, data.grey
    ),
    labels=labels,
    tasks=tuple(
      tasks_lib.Task(name=name, column=column)
      for column, name in enumerate(names)
    ),
    strata=strata.reshape(-1),
    keys=keys,
  )

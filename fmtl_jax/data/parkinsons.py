"""Parkinson's telemonitoring: 42 patients, two scores of each recording.

References:
  Tsanas, Little (2009), https://archive.ics.uci.edu/dataset/189, CC BY 4.0.
"""

import csv
import os

import numpy as np

from fmtl_jax.data import manual
from fmtl_jax.data import tables

URL = 'https://archive.ics.uci.edu/dataset/189'
FILE = 'parkinsons_updrs.data'
TARGETS = ('motor_UPDRS', 'total_UPDRS')
_OWNER = 'subject#'
_FEATURES = (
  *('age', 'sex', 'test_time', 'Jitter(%)', 'Jitter(Abs)', 'Jitter:RAP'),
  *('Jitter:PPQ5', 'Jitter:DDP', 'Shimmer', 'Shimmer(dB)', 'Shimmer:APQ3'),
  *('Shimmer:APQ5', 'Shimmer:APQ11', 'Shimmer:DDA', 'NHR', 'HNR', 'RPDE'),
  *('DFA', 'PPE'),
)


def load(manual_dir: str | os.PathLike[str]) -> tables.Table:
  """Loads the recordings of all patients.

  Features are age, sex, the day of the recording and sixteen of the voice.

  Args:
    manual_dir: The folder with `parkinsons_updrs.data`, whose columns are
      separated by commas or tabs.

  Raises:
    ValueError: If the file cannot be read.
  """
  path = manual.folder_of(manual_dir, FILE) / FILE
  try:
    lines = path.read_text('utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(
      f'Could not read {path} ({error}); put {FILE} of {URL} there.'
    ) from error
  header, *rows = csv.reader(
    lines or [''], delimiter='\t' if '\t' in (lines or [''])[0] else ','
  )
  rows = [row for row in rows if row]
  if not rows or any(len(row) != len(header) for row in rows):
    raise ValueError(
      f'Expected {len(header)} values in every row of {path}, and rows, got '
      f'something else; get it again from {URL}.'
    )
  frame = dict(zip(header, np.array(rows, object).T, strict=True))
  features, names = tables.features(
    frame, [tables.Column(n) for n in _FEATURES]
  )
  labels = [tables.numbers(n, tables.required(frame, n)) for n in TARGETS]
  owners = tables.numbers(_OWNER, tables.required(frame, _OWNER))
  return tables.Table(
    features=features,
    feature_names=names,
    labels=np.stack(labels, 1).astype(np.float32),
    label_names=TARGETS,
    keys=owners.astype(np.int64),
  )

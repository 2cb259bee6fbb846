"""Heart disease: four hospitals, thirteen findings, many of them missing.

A missing finding is a usual value and a feature that says so. Cholesterol 0 was
not measured (all of Switzerland), nor was a blood pressure of 0. Hungary's file
knows who is ill, not how severely: its severities are missing.

References:
  Janosi, Steinbrunn, Pfisterer, Detrano (1988),
  https://archive.ics.uci.edu/dataset/45, CC BY 4.0.
"""

import csv
import os
import pathlib
from typing import Any

import numpy as np

from fmtl_jax.data import manual
from fmtl_jax.data import tables

URL = 'https://archive.ics.uci.edu/dataset/45'
HOSPITALS = {
  'Cleveland': 'processed.cleveland.data',
  'Hungary': 'processed.hungarian.data',
  'Switzerland': 'processed.switzerland.data',
  'Long Beach': 'processed.va.data',
}
DISEASE, SEVERITY = TARGETS = ('disease', 'severity')
NUM_SEVERITIES = 5
_NO_SEVERITY = ('Hungary',)
_NOT_ZERO = ('trestbps', 'chol')  # Of the living.
_NUMBERS = ('1', '2', '3', '4')
_COLUMNS = (
  tables.Column('age'),
  tables.Column('sex'),
  tables.Column('cp', _NUMBERS),
  tables.Column('trestbps', fill=130.0, optional=True),
  tables.Column('chol', fill=240.0, optional=True),
  tables.Column('fbs', fill=0.0, optional=True),
  tables.Column('restecg', ('0', '1', '2'), optional=True),
  tables.Column('thalach', fill=140.0, optional=True),
  tables.Column('exang', fill=0.0, optional=True),
  tables.Column('oldpeak', fill=1.0, optional=True),
  tables.Column('slope', ('1', '2', '3'), optional=True),
  tables.Column('ca', fill=0.0, optional=True),
  tables.Column('thal', ('3', '6', '7'), optional=True),
)
_NAMES = (*(column.name for column in _COLUMNS), 'num')


def load(manual_dir: str | os.PathLike[str]) -> tables.Table:
  """Loads the patients of all hospitals.

  Args:
    manual_dir: The folder with the four `processed.*.data`.

  Returns:
    The table; its keys are names of hospitals, its labels `disease` (0 or 1)
    and `severity` (0 to 4).

  Raises:
    ValueError: If a file cannot be read.
  """
  folder = manual.folder_of(manual_dir, *HOSPITALS.values())
  parts = {name: _read(folder / file) for name, file in HOSPITALS.items()}
  keys = np.repeat(list(parts), [len(part['num']) for part in parts.values()])
  frame = {
    name: np.concatenate([part[name] for part in parts.values()])
    for name in _NAMES
  }
  for name in _NOT_ZERO:
    frame[name] = np.where(frame[name] == '0', '?', frame[name])
  features, names = tables.features(frame, _COLUMNS)
  found = tables.numbers('num', frame['num'])
  if not np.isin(found, range(NUM_SEVERITIES)).all():
    raise ValueError(
      f'Expected the last column to be 0 to {NUM_SEVERITIES - 1} in the files '
      f'of {folder}, got another value; get them again from {URL}.'
    )
  severity = np.where(np.isin(keys, _NO_SEVERITY), np.nan, found)
  return tables.Table(
    features=features,
    feature_names=names,
    labels=np.stack([found > 0, severity], 1).astype(np.float32),
    label_names=TARGETS,
    keys=keys,
  )


def _read(path: pathlib.Path) -> dict[str, Any]:
  """The columns of a hospital, as texts without a decimal point of nought."""
  try:
    rows = [
      row for row in csv.reader(path.read_text('ascii').splitlines()) if row
    ]
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(
      f'Could not read {path} ({error}); put the processed files of {URL} '
      'there.'
    ) from error
  if not rows or any(len(row) != len(_NAMES) for row in rows):
    raise ValueError(
      f'Expected {len(_NAMES)} values in every row of {path}, and rows, got '
      f'something else; get it again from {URL}.'
    )
  table = np.array(
    [[x.strip().removesuffix('.0') for x in row] for row in rows], object
  )
  return dict(zip(_NAMES, table.T, strict=True))

"""AI4I 2020: a milling machine, three grades of products, five ways to fail.

The data are synthetic by their author's design: four modes follow from the
process by rules, the fifth, `RNF`, has one chance in a thousand whatever the
process is, and nothing can be learned about it.

References:
  Matzka (2020), Explainable artificial intelligence for predictive maintenance
  applications, https://archive.ics.uci.edu/dataset/601, CC BY 4.0.
"""

from collections.abc import Mapping
import csv
import os

import numpy as np

from fmtl_jax.data import manual
from fmtl_jax.data import tables

URL = 'https://archive.ics.uci.edu/dataset/601'
FILE = 'ai4i2020.csv'
# Tool wear, heat dissipation, power, overstrain, and at random.
TARGETS = ('TWF', 'HDF', 'PWF', 'OSF', 'RNF')
_GRADE = 'Type'
GRADES = ('L', 'M', 'H')
# What a site does not log, where sites do not log all.
UNLOGGED: Mapping[str, str] = {'L': 'PWF', 'M': 'OSF', 'H': 'HDF'}
_COLUMNS = (
  tables.Column('Air temperature [K]'),
  tables.Column('Process temperature [K]'),
  tables.Column('Rotational speed [rpm]'),
  tables.Column('Torque [Nm]'),
  tables.Column('Tool wear [min]'),
)


def load(
  manual_dir: str | os.PathLike[str], *, logs_all: bool = True
) -> tables.Table:
  """Loads all products; a grade is a site.

  Args:
    manual_dir: The folder with `ai4i2020.csv`.
    logs_all: Whether every site knows of all modes; otherwise each lacks the
      labels of one, see `UNLOGGED`.

  Returns:
    The table; its keys are grades, its labels 0 or 1 for each mode.

  Raises:
    ValueError: If the file cannot be read or holds something else.
  """
  path = manual.folder_of(manual_dir, FILE) / FILE
  try:  # It begins with a byte order mark.
    rows = list(csv.DictReader(path.read_text('utf-8-sig').splitlines()))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise ValueError(
      f'Could not read {path} ({error}); put {FILE} of {URL} there.'
    ) from error
  if not rows:
    raise ValueError(
      f'Expected rows in {path}, got none; get it again from {URL}.'
    )
  frame = {name: [row[name] for row in rows] for name in rows[0]}
  features, names = tables.features(frame, _COLUMNS)
  keys = tables.required(frame, _GRADE).astype(str)
  labels = np.stack(
    [tables.numbers(name, tables.required(frame, name)) for name in TARGETS], 1
  )
  known = np.isin(keys, GRADES) & np.isin(labels, (0, 1)).all(1)
  if not known.all():
    raise ValueError(
      f'Expected {_GRADE} to be one of {", ".join(GRADES)} and '
      f'{", ".join(TARGETS)} to be 0 or 1 in {path}, got something else in row '
      f'{int(known.argmin()) + 1}; get it again from {URL}.'
    )
  if not logs_all:
    for grade, target in UNLOGGED.items():
      labels[keys == grade, TARGETS.index(target)] = np.nan
  return tables.Table(
    features=features,
    feature_names=names,
    labels=labels.astype(np.float32),
    label_names=TARGETS,
    keys=keys,
  )

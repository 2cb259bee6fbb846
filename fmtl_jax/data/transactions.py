"""Transactions: synthetic payments of bank cards, some of them a fraud.

A sequence is what one card paid, one after the other. Two frauds may be in it:
a stolen number is tried with a few tiny payments online within minutes
(`testing`), or the card is emptied abroad at night (`takeover`). What looks a
little like them is none: sprees of usual payments within minutes, and journeys
with usual payments by day. Banks have other customers (how much and how often
they pay, where and when) and other shares of the frauds.

Every number is drawn, and none is of a real bank.
"""

from typing import NamedTuple

import numpy as np

TARGETS = ('testing', 'takeover')
FEATURES = (
  'amount',  # Natural logarithm.
  'gap',  # Natural logarithm of the minutes since the last one.
  'sine of the hour',
  'cosine of the hour',
  'abroad',
  'online',
)
LENGTH = 16
_BURST = 4  # Payments of a fraud or of what looks like one.


class Transactions(NamedTuple):
  """Sequences of several banks.

  Attributes:
    features: `[N, LENGTH, F]` float32, see `FEATURES`.
    labels: `[N, 2]` float32, 1 for a fraud of `TARGETS`; at most one is.
    keys: `[N]` int64, the bank of each, 0 to B - 1.
    shares: `[B, 2]` float64, what share of a bank's sequences has each fraud.
  """

  features: np.ndarray
  labels: np.ndarray
  keys: np.ndarray
  shares: np.ndarray


def generate(num_banks: int, per_bank: int, seed: int) -> Transactions:
  """Draws sequences of banks; the same ones for the same arguments.

  Args:
    num_banks: B.
    per_bank: Sequences of each.
    seed: Of all that is drawn.

  Raises:
    ValueError: If there is no bank or no sequence.
  """
  if min(num_banks, per_bank) < 1:
    raise ValueError(
      'Expected `num_banks` and `per_bank` to be at least 1, got '
      f'{num_banks} and {per_bank}.'
    )
  rng = np.random.default_rng(seed)
  shares = rng.uniform(0.02, 0.08, (num_banks, len(TARGETS)))
  banks = [_of_bank(rng, per_bank, share) for share in shares]
  return Transactions(
    features=np.concatenate([features for features, _ in banks]),
    labels=np.concatenate([labels for _, labels in banks]),
    keys=np.repeat(np.arange(num_banks), per_bank),
    shares=shares,
  )


def _of_bank(rng, count, share):
  """`[count, LENGTH, F]` features and `[count, 2]` labels of a bank."""
  size = count, LENGTH
  usual = rng.normal(3.0, 0.6) + rng.normal(0, 0.5, (count, 1))  # By card.
  amount = usual + rng.normal(0, 0.7, size)
  gap = rng.normal(rng.normal(6.5, 0.7), 1.0, size)
  hour = rng.normal(rng.uniform(11, 17), 3.5, size)
  abroad = rng.random(size) < rng.uniform(0.01, 0.1)
  online = rng.random(size) < rng.uniform(0.2, 0.6)
  # 0 and 1 are the frauds, 2 a spree, 3 a journey, 4 nothing of it.
  odds = [*share, 0.15, 0.15]
  event = rng.choice(5, count, p=[*odds, 1 - sum(odds)])
  first = rng.integers(0, LENGTH - _BURST + 1, (count, 1))
  place = np.arange(LENGTH)
  burst = (place >= first) & (place < first + _BURST)
  at = [burst & (event == kind)[:, None] for kind in range(4)]
  near = rng.normal(0.5, 0.8, size)  # A minute or two.
  night = rng.normal(3.0, 2.0, size)
  amount = np.where(at[0], rng.normal(0.8, 0.7, size), amount)
  amount = np.where(at[1], usual + rng.normal(1.2, 0.8, size), amount)
  gap = np.where(at[0] | at[2], near, gap)
  hour = np.where(at[1], night, hour)
  abroad = np.where(at[1] | at[3], True, abroad)
  online = np.where(at[0], True, np.where(at[1] | at[3], False, online))
  angle = hour * (2 * np.pi / 24)
  features = np.stack(
    [amount, gap, np.sin(angle), np.cos(angle), abroad, online], -1
  )
  labels = np.stack([event == kind for kind in range(len(TARGETS))], 1)
  return features.astype(np.float32), labels.astype(np.float32)

"""Noise of which a part is taken back in later rounds (DP-FTRL).

Let Z be independent noise of rounds. Rounds get C^-1 Z in its place, where C is
lower triangular with b bands and columns of norm one at most: what is added to
parameters over many rounds, the running sum, has less noise. It protects the
sums X of rounds as Z protects C X: with one norm for what a client sends, the
round of a client and the b - 1 rounds after it are one release of the Gaussian
mechanism, as long as it takes part again b rounds later at the earliest. So
clients are dealt to b groups that take turns, and a client is charged for one
round out of b, in which it takes part with b times the rate.

C is Toeplitz, `C[i, i - r] = c_r`, and its inverse is a recurrence over the
last b - 1 noises, `xi_t = (z_t - sum_r c_r xi_{t - r}) / c_0`.

References:
  Choquette-Choo et al. (2023), (Amplified) banded matrix factorization: a
  unified approach to private training, https://arxiv.org/abs/2306.08153,
  Theorem 4 for the charge, Algorithm 9 for the recurrence.
  Fichtenberger, Henzinger, Upadhyay (2023), Constant matters: fine-grained
  error bound on differentially private continual observation,
  https://arxiv.org/abs/2202.11205, for the coefficients in closed form.
"""

import dataclasses
import functools

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class BandedNoise:
  """Noise that is related over rounds, and clients that take turns.

  Attributes:
    bands: b, in how many rounds a noise counts, and how many groups of clients
      take turns; 1 for independent noise.
    rounds: For how many rounds the mean squared error of running sums is made
      smallest, by jax-privacy, an extra; more may be run. None for coefficients
      in closed form, which do not depend on it.
  """

  bands: int = 1
  rounds: int | None = None

  def __post_init__(self):
    if self.bands < 1:
      raise ValueError(f'Expected `bands` >= 1, got {self.bands}.')
    if self.rounds is not None and self.bands > self.rounds:
      raise ValueError(
        f'Expected `bands` <= {self.rounds}, the number of rounds, got '
        f'{self.bands}; set fewer bands.'
      )

  @property
  def coefficients(self) -> tuple[float, ...]:
    """c_0 to c_{b - 1}, of norm one.

    Raises:
      ValueError: If they are to be found for a number of rounds, and
        jax-privacy is not installed.
    """
    return _coefficients(self.bands, self.rounds)


@functools.cache
def _coefficients(bands, rounds):
  """Those of `BandedNoise`."""
  k = np.arange(1, bands)
  found = np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])
  if rounds is not None and bands > 1:
    with jax.ensure_compile_time_eval():  # Rounds may be traced now.
      found = _toeplitz().optimize_banded_toeplitz(rounds, bands)
      found = np.asarray(found, np.float64)
  # Of float32 at last: rounded down, so that the norm is one at most.
  return tuple((found / np.linalg.norm(found) * (1 - 1e-6)).tolist())


def _toeplitz():
  """The matrices of jax-privacy.

  Raises:
    ValueError: If it is not installed.
  """
  try:
    from jax_privacy.matrix_factorization import toeplitz
  except ImportError as error:
    raise ValueError(
      'Expected jax-privacy for noise that is related over rounds, got none; '
      "install it with `pip install 'fmtl_jax[privacy]'`."
    ) from error
  return toeplitz

"""Settings of differentially private rounds."""

from collections.abc import Mapping
import dataclasses
import math

from fmtl_jax.privacy import banded as banded_lib

POISSON, FIXED = 'poisson', 'fixed'
CENTRAL, LOCAL = 'central', 'local'


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveClipping:
  """The clipping norm follows a quantile of the norms of updates.

  Attributes:
    quantile: Of the norms, in (0, 1), to which the clipping norm converges.
    learning_rate: Of the geometric step, above 0.
    count_noise: Standard deviation of the noise of the count of clipped
      clients; None for a twentieth of the expected cohort.

  References:
    Andrew et al. (2021), Differentially private learning with adaptive
    clipping, Algorithm 1.
  """

  quantile: float = 0.5
  learning_rate: float = 0.2
  count_noise: float | None = None

  def __post_init__(self):
    if not 0 < self.quantile < 1:
      raise ValueError(
        f'Expected `quantile` between 0 and 1, got {self.quantile}.'
      )
    _check_above_zero('learning_rate', self.learning_rate)
    if self.count_noise is not None:
      _check_above_zero('count_noise', self.count_noise)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientPrivacy:
  """Client-level privacy of rounds by the Gaussian mechanism.

  Attributes:
    clipping_norm: The largest L2 norm of what a client sends: one for the whole
      message, or one for each layer type that is sent. Infinity for none. The
      initial value where it is adaptive.
    noise_multiplier: z, the standard deviation of the noise of the sums by
      owner in units of the clipping norm; 0 for none.
    sampling: `poisson`: each client takes part with its group's rate by itself;
      `fixed`: K clients of each group, as without privacy.
    cap: The most clients of a task group in a Poisson cohort, the others are
      dropped at random; one number, one for each task, or None for the expected
      number plus four standard deviations.
    adaptive: The clipping norm follows a quantile of the norms; None for a
      constant one. Not with a norm for each layer type.
    noise: `central`: added to sums by the server; `local`: each client adds its
      own before it sends.
    banded: Relates the noise of rounds, of Poisson cohorts whose clients take
      turns; None for independent noise. Central, with constant norms.
    delta: Of (epsilon, delta).
    seed: None draws the key of the noise from the operating system; a number is
      for simulations, whose result protects nobody.
  """

  # A mapping has no hash; settings are compared by it all the same.
  clipping_norm: float | Mapping[str, float] = dataclasses.field(
    default=1.0, hash=False
  )
  noise_multiplier: float = 0.0
  sampling: str = POISSON
  cap: int | tuple[int, ...] | None = None
  adaptive: AdaptiveClipping | None = None
  noise: str = CENTRAL
  banded: banded_lib.BandedNoise | None = None
  delta: float = 1e-5
  seed: int | None = 0

  def __post_init__(self):
    norms = (
      self.clipping_norm
      if isinstance(self.clipping_norm, Mapping)
      else {'': self.clipping_norm}
    )
    for layer_type, norm in norms.items():
      place = (
        f"clipping_norm['{layer_type}']" if layer_type else 'clipping_norm'
      )
      _check_above_zero(place, norm)
      if self.noise_multiplier and math.isinf(norm):
        raise ValueError(
          f'Expected `{place}` to be finite with `noise_multiplier` > 0, got '
          'infinity.'
        )
    if not self.noise_multiplier >= 0:
      raise ValueError(
        f'Expected `noise_multiplier` >= 0, got {self.noise_multiplier}.'
      )
    for name, value, known in (
      ('sampling', self.sampling, (POISSON, FIXED)),
      ('noise', self.noise, (CENTRAL, LOCAL)),
    ):
      if value not in known:
        raise ValueError(
          f'Expected `{name}` to be one of {", ".join(known)}, got {value!r}.'
        )
    if not 0 < self.delta < 1:
      raise ValueError(f'Expected `delta` between 0 and 1, got {self.delta}.')
    if self.bands > 1:
      self._check_banded()

  @property
  def bands(self) -> int:
    """In how many rounds a noise counts; 1 where it is independent."""
    return 1 if self.banded is None else self.banded.bands

  def _check_banded(self):
    """Raises a ValueError for what noise over several rounds has no bound."""
    for name, value, wanted, because in (
      ('sampling', self.sampling, POISSON, 'of clients that take turns'),
      ('noise', self.noise, CENTRAL, 'which the server relates over rounds'),
      ('adaptive', self.adaptive, None, 'which needs the same norm in rounds'),
    ):
      if value != wanted:
        got = repr(value) if isinstance(value, str) else 'another'
        raise ValueError(
          f'Expected `{name}`={wanted!r} with `bands` > 1, {because}, got '
          f'{got}; set one of them.'
        )


def _check_above_zero(name: str, value: float) -> None:
  """Raises a ValueError unless a number is above 0; infinity is."""
  if not value > 0:
    raise ValueError(f'Expected `{name}` > 0, got {value}.')

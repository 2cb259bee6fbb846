"""Settings of rounds whose updates are summed securely."""

import dataclasses
import math

from fmtl_jax.secure_aggregation import fixed_point
from fmtl_jax.secure_aggregation import protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecureSums:
  """How updates become numbers, and how many clients a sum needs.

  Every layer type of a client has a run of its own with those that own the
  same copy. Its bounds are public, and the same for all.

  Attributes:
    clip: The largest L2 norm of an update of one layer type; a longer one is
      scaled down to it by its client.
    report_clip: As `clip`, of what an algorithm reports beside its updates.
    max_weight: The largest weight where clients weigh what they have; more
      counts as that many. Uniform weights are 1.
    bits: Of a client's number, from 2 to 16, or 32 for full precision. With
      fewer than 32 weights have to be uniform.
    largest: The largest coordinate with fewer than 32 bits, larger ones are
      clamped; 0 for the clip.
    threshold: The share of a group's clients that have to stay, in [0.5, 1):
      more than that, and three at least.
  """

  clip: float = 10.0
  report_clip: float = 100.0
  max_weight: float = 1000.0
  bits: int = fixed_point.WORD
  largest: float = 0.0
  threshold: float = 2 / 3

  def __post_init__(self):
    for name in ('clip', 'report_clip', 'max_weight'):
      value = getattr(self, name)
      if not 0 < value < math.inf:
        raise ValueError(f'Expected `secure.{name}` > 0, got {value}.')
    if not 0 <= self.largest < math.inf:
      raise ValueError(f'Expected `secure.largest` >= 0, got {self.largest}.')
    if self.bits != fixed_point.WORD and self.bits not in range(2, 17):
      raise ValueError(
        'Expected `secure.bits` to be a whole number from 2 to 16, or 32 for '
        f'full precision, got {self.bits}.'
      )
    if not 0.5 <= self.threshold < 1:
      raise ValueError(
        f'Expected `secure.threshold` in [0.5, 1), got {self.threshold}; more '
        'than half of the clients must be needed, or the server could ask two '
        'halves for different secrets.'
      )

  def protocol_of(self, num_clients: int, who: str) -> protocol.Protocol:
    """The protocol of a group.

    Args:
      num_clients: n, of the group in a round.
      who: They are, for the error.

    Raises:
      ValueError: If the group is too small.
    """
    threshold = math.floor(self.threshold * num_clients + 1e-9) + 1
    found = protocol.Protocol(max(min(threshold, num_clients), protocol.LEAST))
    found.check(num_clients, who)
    return found

  def point(
    self,
    num_clients: int,
    uniform: bool,
    few_bits: bool,
    clip: float | None = None,
  ) -> fixed_point.FixedPoint:
    """The numbers of updates.

    Args:
      num_clients: n, of the largest group.
      uniform: Whether weights are.
      few_bits: Whether `bits` are to be those of the settings.
      clip: The norm to which clients have clipped already; None for that of the
        settings.
    """
    return fixed_point.FixedPoint(
      self.clip if clip is None else clip,
      num_clients,
      1.0 if uniform else self.max_weight,
      bits=self.bits if few_bits else None,
      largest=self.largest or None if few_bits else None,
    )

  def report_point(
    self, num_clients: int, uniform: bool
  ) -> fixed_point.FixedPoint:
    """The numbers of reports, as `point`."""
    weight = 1.0 if uniform else self.max_weight
    return fixed_point.FixedPoint(self.report_clip, num_clients, weight)

"""What clients and the server agree on before a run: neighbours, threshold.

Every client has neighbours, with whom it shares its masks and secrets: those
next to it on a ring, as many on either side, or all others. Its secrets are
held by them and by itself; `threshold` of these holders give them back.

More than half of the holders must be needed. A holder gives a share of one of
the two secrets of a client, of its own mask or of its key of masks, so that no
server that tells holders different things can get both.
"""

from collections.abc import Sequence
import dataclasses

KEY_BYTES = 32  # Of every key, public ones too.
NONCE_BYTES = 12  # Of a sealed message,
SEAL_BYTES = NONCE_BYTES + 16  # and all that sealing adds, with the tag.
LEAST = 3  # The sum of two tells each what the other one sent.


@dataclasses.dataclass(frozen=True)
class Protocol:
  """Neighbours and threshold of a run.

  Attributes:
    threshold: How many holders of a client's secrets give them back.
    neighbours: How many neighbours a client has, an even number; None for all
      others. Where there are no more others, it has all of them.
  """

  threshold: int
  neighbours: int | None = None

  def __post_init__(self):
    count = self.neighbours
    if count is not None and (count < 2 or count % 2):
      raise ValueError(
        f'Expected `neighbours` to be an even number >= 2, got {count}; as '
        'many are on either side of a client.'
      )
    if self.threshold < 2:
      raise ValueError(
        f'Expected `threshold` >= 2, got {self.threshold}; with one share each '
        'client knows all secrets of its neighbours.'
      )

  def holders(self, num_clients: int) -> int:
    """How many clients hold shares of a client's secrets, itself included."""
    others = num_clients - 1
    return (
      min(others, others if self.neighbours is None else self.neighbours) + 1
    )

  def check(self, num_clients: int, who: str = 'a run') -> None:
    """Raises a ValueError where a run of so many clients cannot be.

    Args:
      num_clients: n.
      who: They are, for the error.
    """
    least = max(self.threshold, LEAST)
    if num_clients < least:
      raise ValueError(
        f'Expected at least {least} clients in {who}, as many as the sum has '
        f'to hide a client among, got {num_clients}; merge it with another '
        'one, or make its layers personal.'
      )
    check_threshold(self.threshold, self.holders(num_clients))

  def neighbours_of(self, ring: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """The neighbours of every client of a ring.

    Args:
      ring: Clients, in their order on it.
    """
    count = len(ring)
    reach = (self.holders(count) - 1) // 2
    if self.holders(count) == count:
      return {c: tuple(x for x in ring if x != c) for c in ring}
    steps = [*range(-reach, 0), *range(1, reach + 1)]
    return {
      client: tuple(ring[(i + step) % count] for step in steps)
      for i, client in enumerate(ring)
    }


def check_threshold(threshold: int, holders: int) -> None:
  """Raises a ValueError unless more than half of the holders are needed.

  Args:
    threshold: Of them.
    holders: Of a client's secrets.
  """
  if not holders < 2 * threshold <= 2 * holders:
    raise ValueError(
      f'Expected a threshold in [{holders // 2 + 1}, {holders}], more than '
      f'half of the {holders} holders of a secret, got {threshold}.'
    )


def two_thirds(num_clients: int, neighbours: int | None = None) -> Protocol:
  """The protocol that needs more than two thirds of the holders.

  Args:
    num_clients: n.
    neighbours: As of `Protocol`.
  """
  holders = Protocol(2, neighbours).holders(num_clients)
  return Protocol(max(2 * holders // 3 + 1, 2), neighbours)

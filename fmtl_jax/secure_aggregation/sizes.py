"""How many bytes the messages of a run have beside a client's numbers."""

from fmtl_jax.secure_aggregation import messages
from fmtl_jax.secure_aggregation import protocol
from fmtl_jax.secure_aggregation import shamir

WEIGHT_BYTES = 4  # Of the masked weight, behind the masked update.


def beside(run: str, num_clients: int) -> tuple[int, int]:
  """Bytes of a client in a run in which nobody drops out, up and down.

  They are keys, shares and lists of clients, names and lengths, and the masked
  weight: all but the masked update.

  Args:
    run: Its name.
    num_clients: n, who are all neighbours.
  """
  others = tuple(range(num_clients - 1))
  everyone = tuple(range(num_clients))
  key, share = bytes(protocol.KEY_BYTES), bytes(shamir.SHARE_BYTES)
  sealed = bytes(2 * shamir.SHARE_BYTES + protocol.SEAL_BYTES)
  of_others = lambda value: (value,) * len(others)
  up: tuple[messages.Message, ...] = (
    messages.Advertisement(run, 0, key, key),
    messages.Shares(run, 0, others, of_others(sealed)),
    messages.MaskedInput(run, 0, bytes(WEIGHT_BYTES)),
    messages.UnmaskReply(run, 0, everyone, (share,) * num_clients),
  )
  down: tuple[messages.Message, ...] = (
    messages.Roster(run, others, of_others(key), of_others(key)),
    messages.Delivery(run, others, of_others(sealed)),
    messages.UnmaskRequest(run, everyone, ()),
  )
  return sum(map(messages.num_bytes, up)), sum(map(messages.num_bytes, down))

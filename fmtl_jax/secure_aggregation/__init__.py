"""Secure aggregation: a server that learns sums of updates, and no update.

`fixed_point`  whole numbers mod 2^32 whose sums cannot overflow
`shamir`       secrets of which a threshold of shares give all
`keys`         agreement and sealed messages (`cryptography`, an extra)
`masks`        uniform numbers of a key
`messages`     what is sent, as bytes
`protocol`     neighbours and threshold
`client`       what a client sends in four stages, and refuses
`server`       what the server makes of it
`driver`       whole runs in one process, by layer type and group
`reducers`     the same sums inside compiled rounds
`settings`     bounds and thresholds of rounds
`whole_numbers`  numbers of a few bits, as a codec
`sizes`        bytes of keys and shares

In four stages clients advertise keys, share secrets, send masked numbers, and
give the shares by which masks are removed from the sum. Whoever drops out, at
whatever stage, the sum of those whose numbers arrived is exact as long as a
threshold of every neighbourhood is left. There is one run for each group of
clients that own a copy together, such as the clients of a task.

A server that follows the protocol, and one that asks for more than it should,
learn nothing else than sums over at least a threshold of clients. Not covered
are a server that invents clients or keys, which takes keys that somebody else
vouches for, and what the sum itself tells, which takes noise.

References:
  Bonawitz et al. (2017), https://eprint.iacr.org/2017/281, Figure 4.
  Bell et al. (2020), https://eprint.iacr.org/2020/704, for neighbours.

Deviations: the graph is a ring in a random order, and dropouts are confirmed by
no round of signatures: a threshold above half of the holders stands for it.
"""

from fmtl_jax.secure_aggregation.client import Client
from fmtl_jax.secure_aggregation.driver import aggregate
from fmtl_jax.secure_aggregation.driver import GroupMean
from fmtl_jax.secure_aggregation.driver import Outcome
from fmtl_jax.secure_aggregation.driver import simulate
from fmtl_jax.secure_aggregation.driver import STAGES
from fmtl_jax.secure_aggregation.fixed_point import clipped
from fmtl_jax.secure_aggregation.fixed_point import FixedPoint
from fmtl_jax.secure_aggregation.fixed_point import owner_sums
from fmtl_jax.secure_aggregation.fixed_point import sum_mod
from fmtl_jax.secure_aggregation.keys import RefusedError
from fmtl_jax.secure_aggregation.messages import Advertisement
from fmtl_jax.secure_aggregation.messages import decode
from fmtl_jax.secure_aggregation.messages import Delivery
from fmtl_jax.secure_aggregation.messages import encode
from fmtl_jax.secure_aggregation.messages import MaskedInput
from fmtl_jax.secure_aggregation.messages import num_bytes
from fmtl_jax.secure_aggregation.messages import Roster
from fmtl_jax.secure_aggregation.messages import Shares
from fmtl_jax.secure_aggregation.messages import UnmaskReply
from fmtl_jax.secure_aggregation.messages import UnmaskRequest
from fmtl_jax.secure_aggregation.protocol import Protocol
from fmtl_jax.secure_aggregation.protocol import two_thirds
from fmtl_jax.secure_aggregation.reducers import reducer
from fmtl_jax.secure_aggregation.server import Server
from fmtl_jax.secure_aggregation.server import Sum
from fmtl_jax.secure_aggregation.settings import SecureSums

__all__ = (
  'Advertisement',
  'Client',
  'Delivery',
  'FixedPoint',
  'GroupMean',
  'MaskedInput',
  'Outcome',
  'Protocol',
  'RefusedError',
  'Roster',
  'STAGES',
  'SecureSums',
  'Server',
  'Shares',
  'Sum',
  'UnmaskReply',
  'UnmaskRequest',
  'aggregate',
  'clipped',
  'decode',
  'encode',
  'num_bytes',
  'owner_sums',
  'reducer',
  'simulate',
  'sum_mod',
  'two_thirds',
)

"""Servers that send what is new in a few bits, to clients that come and go.

All clients have the same reference R, which the server keeps, too: the
parameters of the state are R. A round moves the server's own parameters W by
any server; what is sent is the encoded difference, and all add what it decodes
to,

  W' = server(W, updates of R),   R' = R + decode(encode(W' - R)).

What a message lost is in the next difference: error feedback, with its residual
W - R at the server. So R follows W for every codec that loses less than it is
given, biased or not, and equals it where nothing is lost.

A client that was absent needs all messages since its last round, in their
order, or R as it is, whichever is smaller: nobody has a reference of its own.

References:
  Tang, Yu, Lian, Zhang, Liu (2019), DoubleSqueeze: parallel stochastic gradient
  descent with double-pass error-compensated compression,
  https://arxiv.org/abs/1905.05957, for the server's residual.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import compression
from fmtl_jax import precision
from fmtl_jax.server import servers

Tree = Any
_SEED = 2**32 - 3  # Folded into the key of a server.


class EncodedState(NamedTuple):
  """The state of a server that sends encoded differences.

  Attributes:
    params: W, what the server has; what clients have is in the parameters.
    server: The state of the server that moves W.
  """

  params: Tree
  server: Tree


def encoded(
  server: servers.Server, codec: compression.Codec, statistics: Tree
) -> servers.Server:
  """The server whose broadcast is an encoded difference.

  Args:
    server: Moves its own parameters.
    codec: Of the layer type; its residual is the server's.
    statistics: Whether a leaf of the layer type is a running statistic, which
      is sent as it is; None at others.
  """
  places = [i for i, x in enumerate(jax.tree.leaves(statistics)) if not x]

  def init(params, num_owners):
    copies = jax.tree.map(jnp.array, params)
    return EncodedState(copies, server.init(params, num_owners))

  def decoded(key, leaves):
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    return codec.decode(key, codec.encode(key, leaves), shapes)

  def step(key, params, state, aggregate, round_number):
    own, inner = server.step(
      key, state.params, state.server, aggregate, round_number
    )
    leaves, treedef = jax.tree.flatten(params)
    new = jax.tree.leaves(own)
    lags = [new[place] - leaves[place] for place in places]
    seed = jax.random.fold_in(key, np.uint32(_SEED))
    if aggregate.share.ndim:
      owners = jnp.arange(len(aggregate.share), dtype=jnp.uint32)
      seeds = jax.vmap(lambda i: jax.random.fold_in(seed, i))(owners)
      found = jax.vmap(decoded)(seeds, lags)
    else:
      found = decoded(seed, lags)
    for place, lag in zip(places, found, strict=True):
      leaves[place] = leaves[place] + lag
    received = precision.like(jax.tree.unflatten(treedef, leaves), params)
    return received, EncodedState(precision.like(own, state.params), inner)

  sends = None
  if server.sends is not None:
    sends = lambda state: server.sends(state.server)
  return servers.Server(init, step, server.mixes_owners, sends)


def expected_bytes(message: int, whole: int, taking_part: float) -> float:
  """What a client fetches when it takes part, in the mean over rounds.

  It takes part in every round with the same probability, and fetches the
  messages of all rounds since its last one, or all parameters where these are
  smaller.

  Args:
    message: Bytes of the message of a round.
    whole: Bytes of the parameters.
    taking_part: The probability, in (0, 1].
  """
  most = max(whole // message, 1)  # Of messages that are fetched.
  absent = 1.0 - taking_part
  gaps = np.arange(1, most + 1)
  known = taking_part * absent ** (gaps - 1)
  return float((known * np.minimum(gaps * message, whole)).sum()) + (
    whole * absent**most
  )

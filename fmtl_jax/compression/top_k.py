"""Top-k: the k largest values with their places; the others are kept back.

The values of a layer type are compared with each other, whatever their leaves.
A value takes 8 bytes, 4 of them for its place. With error feedback what was
kept back is added to the client's next update.

References:
  Stich, Cordonnier, Jaggi (2018), Sparsified SGD with memory,
  https://arxiv.org/abs/1809.07599, Algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax.compression import codecs


class Message(NamedTuple):
  """What is sent.

  Attributes:
    values: `[k]`.
    places: `[k]` uint32, in the vector of all values.
  """

  values: jax.Array
  places: jax.Array


def top_k(share: float = 0.05) -> codecs.Codec:
  """Builds top-k.

  Args:
    share: Of the values, how many are sent, one at least.

  Raises:
    ValueError: If `share` is out of range.
  """
  if not 0 < share <= 1:
    raise ValueError(
      f'Expected `share` of top_k above 0 and at most 1, got {share}.'
    )

  def encode(unused_key, leaves):
    vector = codecs.to_vector(leaves)
    count = max(1, round(share * len(vector)))
    _, places = jax.lax.top_k(jnp.abs(vector), count)
    return Message(vector[places], places.astype(jnp.uint32))

  def decode(unused_key, message, shapes):
    vector = jnp.zeros(codecs.size_of(shapes), message.values.dtype)
    vector = vector.at[message.places].set(message.values)
    return codecs.to_leaves(vector, shapes)

  return codecs.Codec('top_k', encode, decode)

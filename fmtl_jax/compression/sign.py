"""Signs: one bit a value, with the mean size of each leaf.

A leaf x of d values is received as |x|_1 / d sign(x); a zero counts as
positive. Bits fill words of 32 over all leaves, and a size takes 4 bytes.
With error feedback what was lost is added to the client's next update.

References:
  Karimireddy, Rebjock, Stich, Jaggi (2019), Error feedback fixes SignSGD and
  other gradient compression schemes, https://arxiv.org/abs/1901.09847,
  Algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax.compression import codecs
from fmtl_jax.compression import packing


class Message(NamedTuple):
  """What is sent of L leaves.

  Attributes:
    sizes: `[L]` float32.
    signs: Packed, 1 for positive values, `[1, words]` uint32.
  """

  sizes: jax.Array
  signs: jax.Array


def sign() -> codecs.Codec:
  """Builds the codec of signs."""

  def encode(unused_key, leaves):
    rows = codecs.to_blocks(codecs.to_vector(leaves), packing.WORD)
    sizes = [jnp.abs(leaf).mean().astype(jnp.float32) for leaf in leaves]
    signs = packing.pack((rows >= 0).reshape(-1), 1)
    return Message(jnp.stack(sizes), signs)

  def decode(unused_key, message, shapes):
    signs = (2 * packing.unpack(message.signs) - 1).astype(jnp.float32)
    return [
      (size * leaf.astype(size.dtype)).astype(leaf.dtype)
      for size, leaf in zip(
        message.sizes, codecs.to_leaves(signs, shapes), strict=True
      )
    ]

  return codecs.Codec('sign', encode, decode)

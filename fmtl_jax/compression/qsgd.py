"""QSGD: values rounded at random to levels of the norm, in buckets.

A bucket x of n = 512 values has s = 2^(b-1) - 1 levels with b bits, of which
one is the sign: |x_i| / |x| lies between two of 0, 1/s, ..., 1, and becomes
either, such that its mean is right. The norm is sent with the bucket, 4 bytes;
zeros that fill the last bucket are sent, too. The error E |x^ - x|^2 / |x|^2 is
at most min(n / s^2, sqrt(n) / s): large below 8 bits, and useless with one
bucket for a whole layer type.

References:
  Alistarh, Grubic, Li, Tomioka, Vojnovic (2017), QSGD: communication-efficient
  SGD via gradient quantization and encoding, https://arxiv.org/abs/1610.02132,
  section 3; buckets, section 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import random_bits
from fmtl_jax.compression import codecs
from fmtl_jax.compression import packing

BUCKET = 512


class Message(NamedTuple):
  """What is sent of n buckets.

  Attributes:
    norms: `[n]` float32.
    codes: Packed levels from -s to s, `[n, bits, 16]` uint32.
  """

  norms: jax.Array
  codes: jax.Array


def qsgd(bits: float = 2.0) -> codecs.Codec:
  """Builds QSGD.

  Args:
    bits: Of a value, a whole number from 2 to 8.

  Raises:
    ValueError: If `bits` is out of range.
  """
  if bits not in range(2, 9):
    raise ValueError(
      f'Expected `bits` of qsgd to be a whole number from 2 to 8, got {bits}.'
    )
  levels = 2 ** (int(bits) - 1) - 1

  def encode(key, leaves):
    blocks = codecs.to_blocks(codecs.to_vector(leaves), BUCKET)
    norms = jnp.sqrt(jnp.square(blocks).sum(1)).astype(jnp.float32)
    scaled = codecs.times(jnp.abs(blocks), codecs.over(float(levels), norms))
    key = random_bits.narrow(key)
    drawn = jax.random.uniform(key, blocks.shape, jnp.float32)
    level = jnp.floor(scaled + drawn.astype(scaled.dtype))
    signed = jnp.sign(blocks) * jnp.minimum(level, levels)
    codes = (signed + levels).astype(jnp.int32)
    return Message(norms, packing.pack(codes, int(bits)))

  def decode(unused_key, message, shapes):
    signed = (packing.unpack(message.codes) - levels).astype(jnp.float32)
    blocks = codecs.times(signed, message.norms / levels)
    return codecs.to_leaves(blocks.reshape(-1), shapes)

  most = min(BUCKET / levels**2, BUCKET**0.5 / levels)
  return codecs.Codec(
    *('qsgd', encode, decode),
    unbiased=True,
    feedback=False,
    contracts=most < 1,
  )

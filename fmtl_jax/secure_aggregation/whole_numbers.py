"""Whole numbers of a few bits: the codec of updates that are summed securely.

All clients share the step, which is public, so that the sum of their numbers is
a number of steps, too: it may be masked. The update is clipped, coordinates
beyond the largest are clamped, and each becomes one of the two steps around it
at random, so that its mean is right. A number of b bits is sent in the b +
ceil(log2 n) bits that the sum of n clients needs, without scales.

References:
  Suresh, Yu, Kumar, McMahan (2017), Distributed mean estimation with limited
  communication, https://arxiv.org/abs/1611.00429, section 2 (one range for all
  clients; without the rotation).
"""

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import compression
from fmtl_jax import random_bits
from fmtl_jax.compression import codecs
from fmtl_jax.compression import packing
from fmtl_jax.secure_aggregation import fixed_point


def codec(point: fixed_point.FixedPoint) -> compression.Codec:
  """The codec whose decoded updates are whole numbers of `point`'s steps.

  An update that is not finite has no number: what is decoded is not finite
  either, and is not sent.

  Args:
    point: With `bits`, for weights of one.

  Raises:
    ValueError: If it has no `bits`, or another largest weight.
  """
  if point.bits is None or point.max_weight != 1:
    raise ValueError(
      'Expected `point` with `bits` and a `max_weight` of 1, whose numbers are '
      f'those of updates, got {point}.'
    )

  def encode(key, leaves):
    vector = codecs.to_vector(leaves).astype(jnp.float32)
    norm = jnp.sqrt(jnp.square(vector).sum())
    finite = jnp.isfinite(norm)
    clip = np.float32(point.clip)
    scale = clip / jnp.where(finite, jnp.maximum(norm, clip), clip)
    bits = jax.random.bits(random_bits.narrow(key), vector.shape, jnp.uint32)
    numbers, _ = point.quantize(vector * scale, 1.0, bits)
    signed = jax.lax.bitcast_convert_type(numbers, jnp.int32)
    codes = jnp.where(finite, signed + point.limit, 2 * point.limit + 1)
    padded = jnp.pad(codes, (0, -len(codes) % packing.WORD))
    return packing.pack(padded, point.sum_bits)

  def decode(unused_key, message, shapes):
    signed = packing.unpack(message) - point.limit
    steps = signed.astype(jnp.float32) * np.float32(1 / point.scale)
    steps = jnp.where(signed > point.limit, jnp.nan, steps)
    return codecs.to_leaves(steps, shapes)

  return compression.Codec(
    'whole numbers', encode, decode, unbiased=True, feedback=False
  )

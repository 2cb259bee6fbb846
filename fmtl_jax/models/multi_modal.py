"""Networks of several modalities: an encoder for each, fused where they are.

Examples are rows as of `fmtl_jax.data.modalities`: the columns of each
modality, then which of them the example has. What it has not got is not looked
at: neither its values nor the encoder's answer to them reach the output, and
the encoder has no gradient of such an example.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax.federation import modalities
from fmtl_jax.models import base
from fmtl_jax.models import layers
from fmtl_jax.models import networks

Tree = Any
MEAN, ATTENTION = FUSIONS = ('mean', 'attention')
_QUERY = 'query'


def multi_modal(
  sizes: Mapping[str, int | Sequence[int]],
  encoder: Sequence[int],
  hidden: Sequence[int],
  num_outputs: int,
  fusion: str = MEAN,
  channels: Sequence[int] = (),
  window: int = 3,
  convolution: str = layers.AUTO,
) -> base.Model:
  """An encoder for each modality, a fusion, and a perceptron behind it.

  Stages are `encoders` (with `encoders/NAME/dense_0`, ...; images have
  `encoders/NAME/conv_0`, ... before), `fusion` with
  attention, `dense_0`, ..., `output`. Of the embeddings h_m of the modalities
  that an example has, `mean` takes the mean and `attention`

    z = sum_m a_m h_m,   a = softmax_m(q . h_m / sqrt(E)),

  with a query q that starts at zero, where it is the mean. An example without
  any modality has z = 0. Neither depends on the order of modalities, nor do
  initial values: they are drawn by name.

  Args:
    sizes: How many columns each modality has, by name, in the order of the
      features; of images or series their shape, channels last, whose values
      are the columns.
    encoder: Widths of the layers of every encoder; the last one is E.
    hidden: Widths of the hidden layers behind the fusion.
    num_outputs: Width of the output layer.
    fusion: `mean` or `attention`.
    channels: Of the convolutions in front of encoders of images and series.
    window: Of these, see `cnn`.
    convolution: How these are computed, see `cnn`.

  Raises:
    ValueError: If there is no modality, no layer, no such fusion, or an image
      is too small for the convolutions.
  """
  if not sizes or not encoder or min(encoder) < 1:
    raise ValueError(
      'Expected modalities and widths >= 1 of the layers of their `encoder`, '
      f'got {dict(sizes)} and {tuple(encoder)}.'
    )
  if fusion not in FUSIONS:
    raise ValueError(
      f'Expected `fusion` to be one of {", ".join(FUSIONS)}, got {fusion!r}.'
    )
  shapes = {
    name: (size,) if isinstance(size, int) else tuple(size)
    for name, size in sizes.items()
  }
  encoders = {
    name: networks.encoder(shape, encoder, channels, window, convolution)
    for name, shape in shapes.items()
  }
  behind = networks.mlp((encoder[-1],), hidden, num_outputs)

  def init(key):
    first, second = jax.random.split(key)
    of_name = lambda name: jax.random.fold_in(
      first, np.uint32(zlib.crc32(name.encode()))
    )
    params = {
      modalities.ENCODERS: {
        name: one.init(of_name(name)) for name, one in encoders.items()
      }
    }
    if fusion == ATTENTION:
      params['fusion'] = {_QUERY: jnp.zeros(encoder[-1])}
    return {**params, **behind.init(second)}

  encode = functools.partial(_encode, shapes, encoders)
  stages: tuple[tuple[str, Callable[[Tree, Any], Any]], ...]
  if fusion == MEAN:
    stages = ((modalities.ENCODERS, lambda p, x: masked_mean(*encode(p, x))),)
  else:
    stages = (
      (modalities.ENCODERS, encode),
      ('fusion', lambda p, x: attended(p[_QUERY], *x)),
    )
  return base.chain(init, (*stages, *behind.stages))


def _encode(shapes, encoders, params, x):
  """Embeddings `[B, P, E]`, zero where missing, and `[B, P]`: which are."""
  present = x[:, sum(map(math.prod, shapes.values())) :] > 0
  found, start = [], 0
  for number, (name, shape) in enumerate(shapes.items()):
    there = present[:, number, None]
    size = math.prod(shape)
    # Before and behind: what is missing may be anything.
    given = jnp.where(there, x[:, start : start + size], 0)
    given = given.reshape(-1, *shape)
    embedding = encoders[name].apply(params[name], given)
    found.append(jnp.where(there, embedding, 0))
    start += size
  return jnp.stack(found, 1), present


def masked_mean(embeddings: jax.Array, present: jax.Array) -> jax.Array:
  """The mean of those that are there, `[B, E]`; zero if none is.

  Args:
    embeddings: `[B, P, E]`, zero where missing.
    present: `[B, P]` bool.
  """
  count = jnp.maximum(present.sum(1), 1).astype(embeddings.dtype)
  return embeddings.sum(1) / count[:, None]


def attended(
  query: jax.Array, embeddings: jax.Array, present: jax.Array
) -> jax.Array:
  """The mean of those that are there by attention, `[B, E]`; zero if none is.

  Args:
    query: `[E]`.
    embeddings: `[B, P, E]`, zero where missing.
    present: `[B, P]` bool.
  """
  scores = embeddings @ query / np.sqrt(len(query)).astype(embeddings.dtype)
  lowest = jnp.finfo(scores.dtype).min
  scores = jnp.where(present, scores, lowest)
  weights = jax.nn.softmax(scores, 1)
  return (weights[:, :, None] * embeddings).sum(1)

"""Privacy of embeddings: what a party's rows cost that it sends noisy.

What is protected is one row of one party: two federations are neighbours if
they differ in the features that the party has of one entity. Who is shared, and
how many rows there are, is known.

In every step a party other than that with labels sends the embeddings of the
batch, each clipped to a norm C, with N(0, (z C)^2) on every coordinate: a row
moves its own by 2 C at most. That alone would not do, because the encoder that
makes all other embeddings has been trained on the row, too. So the party trains
it by the sum of the rows' gradients, each clipped to C', plus N(0, (z C')^2):
what it knows of the row before the next step is noisy as well. An epoch is two
releases of a row with the noise multiplier z / 2 each, whichever batch it is
in; there is no amplification by sampling, because the party with labels knows
the batches.

Not covered: features and labels of the party with labels, of which the
gradients that it sends down tell something; a row of which a prediction is
asked costs one release more for each. The intersection is not covered, either.

References:
  Dwork, Roth (2014), The algorithmic foundations of differential privacy,
  Appendix A, of the Gaussian mechanism.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import random_bits
from fmtl_jax.privacy import accounting

RELATION = 'the features that the party has of one entity are replaced'
ASSUMPTION = (
  'every row is in one batch of every epoch; features and labels of the party '
  'with labels are not covered, nor is who is shared, training losses, '
  'metrics, and the search for settings; a prediction of a row costs one '
  'release more; noise has a seed: a simulation, which protects nobody'
)


def epsilon(noise_multiplier: float, epochs: int, delta: float) -> float:
  """The epsilon of a party's rows after training.

  Args:
    noise_multiplier: z, of embeddings and of gradients of the encoder.
    epochs: All epochs of all rounds.
    delta: Of (epsilon, delta).

  Returns:
    Epsilon, infinity without noise.

  Raises:
    ValueError: Without dp-accounting, or for arguments out of range.
  """
  everyone = accounting.Everyone()
  return accounting.epsilon(noise_multiplier, everyone, 2 * epochs, delta)


def clipped(rows: jax.Array, norm: float) -> jax.Array:
  """Rows `[B, E]` of at most this L2 norm."""
  norms = jnp.sqrt(jnp.square(rows).sum(-1, keepdims=True) + 1e-20)
  return rows * jnp.minimum(1, norm / norms)


def noise(key: jax.Array, like: Any, deviation: float) -> Any:
  """Normal noise in the shapes of a tree."""
  leaves = jax.tree.leaves(like)
  keys = jax.random.split(random_bits.narrow(key), max(len(leaves), 1))
  drawn = [
    deviation * jax.random.normal(k, x.shape, x.dtype)
    for k, x in zip(keys, leaves, strict=False)
  ]
  return jax.tree.unflatten(jax.tree.structure(like), drawn)


def clipped_sum(gradients: Any, norm: float) -> Any:
  """The sum of rows' gradients `[B, ...]`, each of at most this L2 norm."""
  squares = [
    jnp.square(leaf).reshape(len(leaf), -1).sum(1)
    for leaf in jax.tree.leaves(gradients)
  ]
  norms = jnp.sqrt(sum(squares, jnp.float32(0)) + 1e-20)
  scale = jnp.minimum(1, norm / norms)
  return jax.tree.map(
    lambda leaf: jnp.tensordot(scale, leaf, 1, precision='highest'), gradients
  )

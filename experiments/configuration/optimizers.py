"""Optimizers and learning-rate schedules by name, for clients and servers."""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
import optax

from fmtl_jax.clients import local_optimizers

Number = jax.Array | float

_OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  'adagrad': optax.adagrad,
  'adam': optax.adam,
  'adamw': optax.adamw,
  'lamb': optax.lamb,
  'rmsprop': optax.rmsprop,
  'yogi': optax.yogi,
}
_SCHEDULES = ('constant', 'exponential', 'cosine')


def get(
  field: str, name: str, momentum: Number, weight_decay: Number = 0.0
) -> local_optimizers.OptimizerFn:
  """Looks an optimizer up.

  Args:
    field: The config field that names it, for the error.
    name: `sgd` or one of optax's, with its defaults there.
    momentum: Of `sgd`; 0 has none.
    weight_decay: Added to the gradient, for every optimizer.

  Returns:
    `learning rate -> optax transformation`.

  Raises:
    ValueError: If the name is not known.
  """
  known = ['sgd', *_OPTIMIZERS]
  if name not in known:
    raise ValueError(
      f'Expected {field} to be one of {", ".join(known)}, got {name!r}.'
    )
  if name == 'sgd':
    return local_optimizers.Sgd(momentum=momentum, weight_decay=weight_decay)
  optimizer = _OPTIMIZERS[name]
  if isinstance(weight_decay, (int, float)) and weight_decay == 0:
    return optimizer

  def with_decay(learning_rate):
    return optax.chain(
      optax.add_decayed_weights(weight_decay), optimizer(learning_rate)
    )

  return with_decay


def schedule(
  name: str, learning_rate: Number, decay: Number, rounds: int
) -> local_optimizers.Schedule:
  """A learning rate over rounds.

  Args:
    name: `constant`; `exponential`: times `decay` each round; `cosine`: to zero
      over all rounds.
    learning_rate: Of round 0.
    decay: Of `exponential`.
    rounds: How many there will be.

  Raises:
    ValueError: If the name is not known.
  """
  if name not in _SCHEDULES:
    raise ValueError(
      f'Expected client.schedule to be one of {", ".join(_SCHEDULES)}, got '
      f'{name!r}.'
    )
  if name == 'exponential':
    return lambda step: learning_rate * decay ** step.astype(jnp.float32)
  if name == 'cosine':
    return lambda step: (
      learning_rate * 0.5 * (1 + jnp.cos(math.pi * step / rounds))
    )
  return learning_rate

"""Local optimizers: the settings with which clients train."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import precision
from fmtl_jax.privacy import example_privacy

Tree = Any
Schedule = Callable[[jax.Array], jax.Array] | jax.Array | float

# `learning rate -> optax transformation`, such as `optax.sgd`.
OptimizerFn = Callable[[jax.Array | float], optax.GradientTransformation]

# What is trained after the rounds has the learning rate of this one: a schedule
# says nothing of rounds that are never run, and often ends at zero there.
FIRST_ROUND = np.int32(0)


def rate(schedule: Schedule, round_number: jax.Array) -> jax.Array | float:
  """The value of a constant or a schedule over rounds."""
  return schedule(round_number) if callable(schedule) else schedule


def check_first_rate(schedule: Schedule, cure: str) -> None:
  """Raises a ValueError if training after the rounds would have rate 0.

  Args:
    schedule: The learning rate of the rounds; a constant may be anything.
    cure: The end of the sentence.
  """
  if not callable(schedule):
    return
  first = schedule(jnp.asarray(FIRST_ROUND))
  if not isinstance(first, jax.core.Tracer) and not np.any(np.asarray(first)):
    raise ValueError(
      'Expected a learning rate whose schedule does not start at 0, the rate '
      f'of what is trained after the rounds, got one that does; {cure}.'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sgd:
  """SGD as `learning rate -> optax transformation`: linear in the gradients.

  Attributes:
    momentum: 0 has none; may be traced.
    nesterov: Whether momentum looks ahead.
    weight_decay: Times the parameters, added to the gradients; may be traced.
  """

  momentum: jax.Array | float = 0.0
  nesterov: bool = False
  weight_decay: jax.Array | float = 0.0

  @property
  def is_plain(self) -> bool:
    """Whether it is known to have neither momentum nor weight decay."""
    return not self.has_momentum and _is_zero(self.weight_decay)

  @property
  def has_momentum(self) -> bool:
    """Whether it may have momentum."""
    return not _is_zero(self.momentum)

  def __call__(
    self, learning_rate: jax.Array | float
  ) -> optax.GradientTransformation:
    """The transformation at a learning rate."""
    momentum = self.momentum if self.has_momentum else None
    sgd = optax.sgd(learning_rate, momentum, self.nesterov)
    if not _is_zero(self.weight_decay):
      sgd = optax.chain(optax.add_decayed_weights(self.weight_decay), sgd)

    def update(grads, state, params=None):
      changes, new = sgd.update(grads, state, params)
      return changes, precision.like(new, state)  # Settings may be wider.

    return optax.GradientTransformation(sgd.init, update)


def _is_zero(value: jax.Array | float) -> bool:
  """Whether a setting is off; one that is traced never is."""
  return isinstance(value, (int, float)) and value == 0


def on_part(optimizer: OptimizerFn, part: Tree) -> OptimizerFn:
  """An optimizer of some leaves; the others are neither read nor updated.

  These have no momentum, no weight decay and no part in a norm.

  Args:
    optimizer: `learning rate -> optax transformation`.
    part: Whether a leaf is trained, with the structure of a view.
  """
  labels = jax.tree.map(lambda chosen: 'trained' if chosen else 'fixed', part)
  return lambda learning_rate: optax.partition(
    {'trained': optimizer(learning_rate), 'fixed': optax.set_to_zero()}, labels
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalSgd:
  """Settings of local training.

  Attributes:
    optimizer: `learning rate -> optax transformation`; it starts afresh each
      round unless `keep_optimizer_state`. One that is not an `Sgd` may do
      anything with the gradients.
    learning_rate: A number or a schedule over rounds.
    batch_size: B; 0 is one step on all examples.
    epochs: E.
    keep_optimizer_state: Whether momentum and the like cross rounds.
    privacy: Of the examples of each client; None for none.
  """

  optimizer: OptimizerFn = Sgd()
  learning_rate: Schedule = 0.1
  batch_size: int = 16
  epochs: int | jax.Array = 1
  keep_optimizer_state: bool = False
  privacy: example_privacy.ExamplePrivacy | None = None

  def refuse_privacy(self, algorithm: str) -> None:
    """Raises a ValueError if there is privacy that an algorithm would break.

    Args:
      algorithm: Its name, for the error.
    """
    if self.privacy is not None:
      raise ValueError(
        f'Expected no `local.privacy` with {algorithm}, whose clients use '
        'their examples in other ways than by local steps of DP-SGD, which '
        'nothing protects, got some; take one of fedavg, fedprox, fedper, '
        'multi_task_fl, mr_mtl, ditto or isolated.'
      )

"""Losses of linear models by their duals, for coordinate ascent.

Of an output z = x . w and a target y, with the dual variable alpha of an
example, a loss phi has

  dual(alpha, y) = -phi*(-alpha),   phi(z, y) >= dual(alpha, y) - alpha z,

with equality where alpha is minus the derivative of phi at z. Classes have the
targets -1 and 1; a = y alpha lies in [0, 1] then.

  hinge     max(0, 1 - y z)         a
  squared   (z - y)^2 / 2           alpha y - alpha^2 / 2
  logistic  log(1 + exp(-y z))      -a log a - (1 - a) log(1 - a)

References:
  Shalev-Shwartz, Zhang (2013), Stochastic dual coordinate ascent methods for
  regularized loss minimization, https://arxiv.org/abs/1209.1873.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.special as special

HINGE = 'hinge'
SQUARED = 'squared'
LOGISTIC = 'logistic'
_NEWTON, _LONGEST = 10, 2.0  # Steps on one number, and how long they are.


class DualLoss(NamedTuple):
  """A loss and its dual, elementwise.

  Attributes:
    primal: `(outputs, targets) -> losses`.
    dual: `(alpha, targets) -> values`, see the file.
    step: `(outputs, alpha, targets, curvature) -> alpha`: the maximum over the
      new alpha of `dual(alpha) - change output - curvature change^2 / 2`.
  """

  primal: Callable[[jax.Array, jax.Array], jax.Array]
  dual: Callable[[jax.Array, jax.Array], jax.Array]
  step: Callable[..., jax.Array]


def _hinge_step(outputs, alpha, targets, curvature):
  room = (1 - targets * outputs) / _above_zero(curvature)
  return targets * jnp.clip(targets * alpha + room, 0, 1)


def _squared_step(outputs, alpha, targets, curvature):
  return alpha + (targets - outputs - alpha) / (1 + curvature)


def _logistic_step(outputs, alpha, targets, curvature):
  """Newton's steps on u = log((1 - a) / a), none of them long.

  u - y z - curvature (sigmoid(-u) - a_old) increases in u, most steeply near 0;
  its zero lies where the change of a is between -a_old and 1 - a_old.
  """
  margin, old = targets * outputs, targets * alpha
  low, high = margin - curvature * old, margin + curvature * (1 - old)

  def newton(_, u):
    new = jax.nn.sigmoid(-u)
    excess = u - margin - curvature * (new - old)
    step = excess / (1 + curvature * new * (1 - new))
    return jnp.clip(u - jnp.clip(step, -_LONGEST, _LONGEST), low, high)

  inner = jnp.clip(old, 0.01, 0.99)  # With much curvature a moves little.
  before = jnp.log1p(-inner) - jnp.log(inner)
  start = jnp.clip(before, low, high)
  u = jax.lax.fori_loop(0, _NEWTON, newton, start)
  return targets * jax.nn.sigmoid(-u)


def _above_zero(x):
  return jnp.maximum(x, jnp.finfo(x.dtype).tiny)


DUAL_LOSSES: Mapping[str, DualLoss] = {
  HINGE: DualLoss(
    lambda z, y: jnp.maximum(1 - y * z, 0),
    lambda alpha, y: y * alpha,
    _hinge_step,
  ),
  SQUARED: DualLoss(
    lambda z, y: jnp.square(z - y) / 2,
    lambda alpha, y: alpha * y - jnp.square(alpha) / 2,
    _squared_step,
  ),
  LOGISTIC: DualLoss(
    lambda z, y: jax.nn.softplus(-y * z),
    lambda alpha, y: special.entr(y * alpha) + special.entr(1 - y * alpha),
    _logistic_step,
  ),
}


def choose(is_squared: jax.Array, loss: DualLoss) -> DualLoss:
  """A loss for some targets, and the squared one for others.

  Args:
    is_squared: Bool, of a shape that fits to outputs.
    loss: Of the others.
  """
  of = DUAL_LOSSES[SQUARED]
  either = lambda one, other: (
    lambda *values: jnp.where(is_squared, one(*values), other(*values))
  )
  return DualLoss(
    either(of.primal, loss.primal),
    either(of.dual, loss.dual),
    either(of.step, loss.step),
  )

"""Networks of the user's own: built, and checked before they are compiled."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections

from ..configuration import hints
from ..configuration import own_code
from fmtl_jax import models


def build(
  model: ml_collections.ConfigDict, shape: Sequence[int], num_outputs: int
) -> models.Model:
  """Builds the network that `model.name` names.

  Args:
    model: The config's `model`.
    shape: Of an example.
    num_outputs: The width of the widest task.

  Raises:
    ValueError: If it cannot be built, or is not a valid network.
  """
  name = model.name
  found = own_code.call(
    own_code.MODEL,
    name,
    own_code.function(own_code.MODEL, name),
    tuple(shape),
    num_outputs,
    **model.own.to_dict(),
  )
  expected = f'Expected {own_code.MODEL}={name} to return'
  if not isinstance(found, models.Model):
    raise ValueError(
      f'{expected} a models.Model, as models.base.sequential does, got '
      f'{hints.shown(found)}.'
    )
  batch = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
  params = own_code.call(
    own_code.MODEL, name, jax.eval_shape, found.init, jax.random.key(0)
  )
  names = [name for name, _ in found.stages]
  if not isinstance(params, dict) or sorted(params) != sorted(names):
    raise ValueError(
      f'{expected} a network with parameters by the name of each stage, '
      f'{", ".join(names)}, got {hints.shown(params)}.'
    )
  outputs = own_code.call(
    own_code.MODEL, name, jax.eval_shape, found.apply, params, batch
  )
  shape_now = getattr(outputs, 'shape', None)
  if shape_now != (2, num_outputs):
    raise ValueError(
      f'{expected} a network with outputs [B, {num_outputs}], as wide as its '
      f'widest task, got {hints.shown(shape_now)} for B=2.'
    )
  return found

"""Compatibility: names that the oldest supported versions spell otherwise.

The oldest are those of setup.cfg: jax 0.7.2 and flax 0.11.2, which hosted TPU
notebooks have.
"""

from typing import Any

import jax
from jax import experimental


_HOME_OF_X64: Any = jax if hasattr(jax, 'enable_x64') else experimental


def enable_x64(enabled: bool) -> Any:
  """The context manager `jax.enable_x64`, experimental in older versions."""
  return _HOME_OF_X64.enable_x64(enabled)


def variable_value(variable: Any) -> jax.Array:
  """The array of a Flax variable; `get_value` is newer than flax 0.11."""
  if hasattr(variable, 'get_value'):
    return variable.get_value()
  return variable.value

"""The device's ceilings: products at every precision, their errors, a copy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import timing
from fmtl_jax import execution

NAME = 'ceilings'
# Those in capitals are algorithms, such as three passes of TF32; not every
# platform has them. With `bfloat16`, a GPU would take TF32.
PRECISIONS = (
  'default',
  'BF16_BF16_F32',
  'tensorfloat32',
  'TF32_TF32_F32_X3',
  'highest',
)
_CHECKED = 64  # Rows that are multiplied in float64.
_REPEATS = 5


def _best(function: Callable[..., Any], *args: Any) -> float:
  """Seconds of the fastest of some calls, after one that compiles."""
  jax.block_until_ready(function(*args))
  return min(timing.timed(function, *args)[1] for _ in range(_REPEATS))


def measure(size: int = 0) -> dict[str, Any]:
  """Measures the first device.

  Args:
    size: Of the square matrices; 0 for what suits the platform.

  Returns:
    `products`, by precision: operations a second and the error relative to
    float64, each in the Frobenius norm, or `error` where the platform does not
    have it. `copy_bytes_per_second` counts bytes read and written.
  """
  on_cpu = jax.default_backend() == 'cpu'
  size = size or (1024 if on_cpu else 8192)
  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (size, size)) for key in keys)
  exact = np.asarray(a[:_CHECKED], np.float64) @ np.asarray(b, np.float64)
  products: dict[str, dict[str, Any]] = {}
  for precision in PRECISIONS:
    # By the setting, as in rounds; the context is a part of what is compiled.
    with jax.default_matmul_precision(precision):
      product = jax.jit(jnp.matmul)
      try:
        seconds = _best(product, a, b)
        error = np.asarray(product(a, b)[:_CHECKED], np.float64) - exact
      except Exception as problem:  # What XLA raises differs by platform.
        sentence = str(problem).strip().splitlines() or [type(problem).__name__]
        products[precision] = {'error': sentence[0]}
        continue
    products[precision] = {
      'flops_per_second': 2 * size**3 / seconds,
      'relative_error': float(np.linalg.norm(error) / np.linalg.norm(exact)),
    }
  numbers = jnp.ones(2**24 if on_cpu else 2**29, jnp.float32)
  seconds = _best(jax.jit(lambda x: x + 1), numbers)
  return {
    'device_kind': jax.devices()[0].device_kind,
    'platform': jax.default_backend(),
    'jax': jax.__version__,
    'size': size,
    'products': products,
    'copy_bytes_per_second': 2 * numbers.nbytes / seconds,
  }


def of_products(found: dict[str, Any]) -> execution.Ceilings:
  """The ceilings of products in float32.

  Args:
    found: As `measure` returns it.

  Raises:
    ValueError: If they could not be measured.
  """
  products = found['products']['highest']
  if 'error' in products:
    raise ValueError(
      'Expected products in float32 to keep the ceilings, but they failed: '
      f'{products["error"]}'
    )
  return execution.Ceilings(
    flops_per_second=products['flops_per_second'],
    bytes_per_second=found['copy_bytes_per_second'],
  )

"""Hardware: measured speed of the machine."""

import time

import jax
import jax.numpy as jnp


def matmul_flops(size: int = 1024, repeats: int = 5) -> float:
  """Operations a second of the best of some products of square matrices."""
  a = jnp.ones((size, size), jnp.float32)
  product = jax.jit(lambda x: x @ x)
  product(a).block_until_ready()
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    product(a).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * size**3 / min(seconds)

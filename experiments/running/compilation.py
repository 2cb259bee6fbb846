"""Compilation: XLA works on one program while JAX traces the next."""

from collections.abc import Iterable, Mapping
from concurrent import futures
from typing import Any

import jax

# Halves the time to compile: for what runs once or a few times.
LOW_EFFORT: dict[str, Any] = {'xla_backend_optimization_level': 0}


def compile_all(
  programs: Iterable[tuple[str, jax.stages.Lowered, Mapping[str, Any]]],
) -> dict[str, jax.stages.Compiled]:
  """Compiles programs, each while those behind it are traced.

  Args:
    programs: `(name, lowered program, compiler options)`; a generator that
      traces and lowers a program when it is asked for it.

  Returns:
    The compiled programs by name.
  """
  pool = futures.ThreadPoolExecutor()
  try:
    compiling = {
      name: pool.submit(lowered.compile, dict(options))
      for name, lowered, options in programs
    }
    return {name: found.result() for name, found in compiling.items()}
  finally:  # Ctrl-C does not wait for the compiler.
    pool.shutdown(wait=False, cancel_futures=True)

"""Compilation: programs are compiled on all cores, while others are traced."""

from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
import os
import time
from typing import Any, NamedTuple

import jax

POLL = 0.2  # Seconds between two looks at whether to stop.


class Compiled(NamedTuple):
  """A compiled program, and the seconds to trace and compile it."""

  program: jax.stages.Compiled
  seconds: float


def compile_all(
  programs: Iterable[tuple[str, jax.stages.Lowered, Mapping[str, Any]]],
  check: Callable[[], None] = lambda: None,
) -> dict[str, Compiled]:
  """Compiles programs, each while those behind it are traced.

  A program that is the same as one well before it is found in JAX's cache of
  compiled programs.

  Args:
    programs: `(name, lowered program, compiler options)`; a generator that
      traces and lowers a program when it is asked for it.
    check: Raises an error if it is to stop; called while others compile.

  Returns:
    The compiled programs by name.
  """
  pool = futures.ThreadPoolExecutor(os.cpu_count())
  compiling = {}
  try:
    start = time.perf_counter()
    for name, lowered, options in programs:
      check()
      traced = time.perf_counter() - start
      compiling[name] = pool.submit(_compile, lowered, dict(options), traced)
      start = time.perf_counter()
    while futures.wait(compiling.values(), POLL).not_done:
      check()
    return {name: found.result() for name, found in compiling.items()}
  finally:  # Ctrl-C does not wait for the compiler.
    pool.shutdown(wait=False, cancel_futures=True)


def _compile(lowered, options, traced):
  start = time.perf_counter()
  program = lowered.compile(options)
  return Compiled(program, traced + time.perf_counter() - start)

"""Exits: how a program ends."""

import contextlib
import os
import sys

USER_ERROR = 2

_at_once = False


def at_once() -> None:
  """Requests that the program ends by `end`, without waiting for others."""
  global _at_once
  _at_once = True


def is_at_once() -> bool:
  """Whether `at_once` was called."""
  return _at_once


def end(code: int) -> None:
  """Ends the process without what runs at a usual exit.

  Args:
    code: Its exit code.
  """
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):  # The reader is gone.
      stream.flush()
  os._exit(code)

"""Silences the logs of orbax about errors that it also raises."""

from collections.abc import Callable, Iterator
import contextlib
import logging
import sys
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Silences the logs of orbax, whose errors are raised."""
  if not isinstance(sys.unraisablehook, _LateReads):
    sys.unraisablehook = _LateReads(sys.unraisablehook)
    logging.getLogger('asyncio').addFilter(_is_no_late_read)
  logger = logging.getLogger('absl')
  before, logger.disabled = logger.disabled, True
  try:
    yield
  finally:
    logger.disabled = before


class _LateReads:
  """Shows unraisable errors, except of reads that end after a failed one.

  Tensorstore calls an event loop that is closed by then, at any time later.
  """

  def __init__(self, show: Callable[[Any], object]):
    self._show = show

  def __call__(self, unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      self._show(unraisable)


def _is_no_late_read(record: logging.LogRecord) -> bool:
  """The same of what asyncio logs."""
  return not record.getMessage().startswith('Task exception was never')

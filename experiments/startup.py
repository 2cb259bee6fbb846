"""The start of a program, before anything that may fail is imported."""

from . import interrupts
from . import jax_settings
from . import streams


def begin() -> None:
  """Begins a program: its streams, its signals, and JAX."""
  streams.open_missing()
  interrupts.end_at_once()
  jax_settings.import_jax()

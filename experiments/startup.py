"""The start of a program, before anything that may fail is imported."""

from .running import interrupts
from .running import jax_settings
from .running import streams


def begin() -> None:
  """Begins a program: its streams, its signals, and JAX."""
  streams.open_missing()
  interrupts.end_at_once()
  jax_settings.import_jax()

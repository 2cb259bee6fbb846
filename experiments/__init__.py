"""Experiments: federations trained, compared and reported from the shell."""

import gc
import sys

from experiments import interrupts
from experiments import jax_settings
from experiments import streams

# Imports and tracing make millions of objects that stay. To look through them
# for garbage as often as Python does would take a tenth of the time to the
# first round.
gc.set_threshold(50_000, 20, 1_000)

if sys.argv[:1] == ['-m']:  # A program begins: `python -m experiments.NAME`.
  streams.open_missing()
  interrupts.end_at_once()
  jax_settings.import_jax()

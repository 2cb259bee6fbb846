"""Experiments: federations trained, compared and reported from the shell."""

import gc
import sys

from . import checkout
from . import startup

# Imports and tracing make millions of objects that stay. To look through them
# for garbage as often as Python does would take a tenth of the time to the
# first round.
gc.set_threshold(50_000, 20, 1_000)

if __name__ != checkout.NAME:
  checkout.use_both_names()
if sys.argv[:1] == ['-m']:  # A program begins: `python -m experiments.NAME`.
  startup.begin()

"""Experiments: federations trained, compared and reported from the shell."""

import gc
import importlib
import sys
from typing import Any, TYPE_CHECKING

from . import checkout
from . import startup

if TYPE_CHECKING:
  from .building import datasets
  from .configuration import config
  from .configuration.own_code import named
  from .studies.runs import run

# What configs, notebooks and code of a user's own import: modules, and names in
# modules.
_PUBLIC = {'config': 'configuration.config', 'datasets': 'building.datasets'}
_NAMES = {'named': 'configuration.own_code', 'run': 'studies.runs'}

__all__ = ('config', 'datasets', 'named', 'run')

# Imports and tracing make millions of objects that stay. To look through them
# for garbage as often as Python does would take a tenth of the time to the
# first round.
gc.set_threshold(50_000, 20, 1_000)

if __name__ != checkout.NAME:
  checkout.use_both_names()
if sys.argv[:1] == ['-m']:  # A program begins: `python -m experiments.NAME`.
  startup.begin()


def __getattr__(name: str) -> Any:
  if name in _PUBLIC:
    return importlib.import_module(f'{__name__}.{_PUBLIC[name]}')
  if name in _NAMES:
    return getattr(importlib.import_module(f'{__name__}.{_NAMES[name]}'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

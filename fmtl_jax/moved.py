"""Modules of 0.1 that have another place now, and still work.

The rule for public names: one of `__all__`, of the package or of one of its
rooms, that is renamed or moved works for two more minor releases. It warns with
the new name and with the release that drops it, and is listed in the change
log under both. Names inside of a module are those of its new place.
"""

from collections.abc import Mapping, Sequence
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings

# The name in `fmtl_jax` up to 0.1, and where the module is from 0.2 on.
MODULES: Mapping[str, str] = {
  'aggregation': 'rounds.aggregation',
  'algorithms.base': 'rounds.algorithm',
  'archives': 'storage.archives',
  'attacks': 'clients.attacks',
  'client_store': 'rounds.client_store',
  'client_updates': 'clients',
  'communication': 'rounds.communication',
  'critical': 'storage.critical',
  'digests': 'storage.digests',
  'faults': 'clients.faults',
  'features': 'data.features',
  'layer_types': 'federation.layer_types',
  'low_rank': 'execution.low_rank',
  'low_rank_sgd': 'clients.low_rank_sgd',
  'participation': 'cohorts.participation',
  'reducers': 'server.robust_aggregators',
  'server_optimizers': 'server.server_optimizers',
  'streaming': 'rounds.streaming',
  'task_devices': 'execution.task_devices',
  'temporaries': 'storage.temporaries',
  'weights': 'server.weights',
}
DROPPED = '0.4'
_PREFIX = 'fmtl_jax.'


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  """Finds the modules under their old names."""

  def find_spec(
    self,
    fullname: str,
    path: Sequence[str] | None = None,
    target: types.ModuleType | None = None,
  ) -> importlib.machinery.ModuleSpec | None:
    """See `importlib.abc.MetaPathFinder`."""
    is_old = fullname.startswith(_PREFIX)
    if not is_old or fullname.removeprefix(_PREFIX) not in MODULES:
      return None
    return importlib.machinery.ModuleSpec(fullname, self)

  def exec_module(self, module: types.ModuleType) -> None:
    """Puts the module at its new place under the old name."""
    name = module.__name__
    sys.modules[name] = get(name.removeprefix(_PREFIX), stacklevel=8)


def get(name: str, stacklevel: int = 3) -> types.ModuleType:
  """The module of an old name, with a warning.

  Args:
    name: One of `MODULES`.
    stacklevel: Of the line that the warning is about.
  """
  place = _PREFIX + MODULES[name]
  warnings.warn(
    f'{_PREFIX}{name} is {place} now; the old name goes in {DROPPED}.',
    DeprecationWarning,
    stacklevel=stacklevel,
  )
  return importlib.import_module(place)


def find_old_names() -> None:
  """Lets imports find the old names; to be called by the package, once."""
  sys.meta_path.append(_Finder())

"""Public names that have another place now, and still work.

The rule for all of them: a name of `__all__`, of the package or of one of its
rooms, that is renamed or moved works for two more minor releases. It warns with
the new name and with the release that drops it, and is listed in the change
log under both.
"""

from collections.abc import Mapping
import importlib
import types
import warnings

# The name in `fmtl_jax` up to 0.1, and where the module is from 0.2 on.
MODULES: Mapping[str, str] = {
  'aggregation': 'rounds.aggregation',
  'attacks': 'clients.attacks',
  'client_store': 'rounds.client_store',
  'client_updates': 'clients',
  'communication': 'rounds.communication',
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
  'weights': 'server.weights',
}
DROPPED = '0.4'


def module(name: str) -> types.ModuleType:
  """The module of an old name, with a warning.

  Args:
    name: One of `MODULES`.
  """
  place = f'fmtl_jax.{MODULES[name]}'
  warnings.warn(
    f'fmtl_jax.{name} is {place} now; the old name goes in {DROPPED}.',
    DeprecationWarning,
    stacklevel=3,
  )
  return importlib.import_module(place)

"""Costs: the parameters that a case trains, and the bytes that it moves."""

from collections.abc import Mapping
import inspect
from typing import Any

import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import compression
from fmtl_jax.algorithms import clusters
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import modalities
from fmtl_jax.rounds import communication
from fmtl_jax.running import program


def parameters(
  case: program.Case, client_values: Mapping[str, Any]
) -> dict[str, float]:
  """Distinct trained values by layer type, with those of pre-trained layers.

  Args:
    case: What was run.
    client_values: Of its history. Clusters count to which a client belongs,
      mean over runs, unless clients are sent all of them; before any round
      everyone is in the first one.
  """
  federation = case.federation
  algorithm = case.make_algorithm(federation, {})
  used: dict[str, float] = {}
  name = clusters.CLUSTER
  if name in {*federation.num_owners} - {*algorithm.messages().all_copies}:
    used[name] = _used(client_values.get(name))
  kept = communication.kept_models(federation, algorithm, case.data)
  counts = dict(communication.parameter_counts(federation, kept, used))
  counts['pretrained'] += case.prefix_parameters
  return counts


def _used(cluster: Any) -> float:
  """How many clusters have clients, mean over runs."""
  if cluster is None:
    return 1
  of_runs = np.nan_to_num(np.asarray(cluster, np.float64))
  mean = float(np.mean([len(np.unique(of_run)) for of_run in of_runs]))
  return int(mean) if mean.is_integer() else mean


def moved(
  case: program.Case,
  algorithm: algorithms.Algorithm,
  num_clients: float,
  num_active_slots: float,
) -> tuple[dict[str, float], dict[str, float]]:
  """Bytes of a cohort by layer type, up and down.

  Args:
    case: What was run.
    algorithm: That of the case.
    num_clients: Clients of the cohort.
    num_active_slots: Their active slots.
  """
  messages = algorithm.messages()
  held = modalities.held_shares(case.federation.owners, case.data.partition)
  up, down = (
    communication.cohort_bytes(
      case.federation, message, num_clients, num_active_slots, held
    )
    for message in (messages.up, messages.down)
  )
  if algorithm.each_example is None:
    return up, down
  each = algorithm.each_example(case.data)
  sizes = np.diff(np.asarray(case.runs.train.train.offsets), axis=-1)
  examples = float(sizes.mean()) * num_clients  # Of the mean client.
  for way, message in ((up, each.messages.up), (down, each.messages.down)):
    found = communication.cohort_bytes(case.federation, message, examples, 0)
    for name, size in found.items():
      way[name] += size * each.times
  return up, down


def codecs(settings: Mapping[str, Any]) -> str:
  """How messages are encoded: `common eden (bits 2.0)`; '' if as they are.

  Args:
    settings: Of a case, config fields by dotted name.
  """
  found = []
  types = layer_types.COMMON, layer_types.TASK
  for layer_type in (*types, 'client', *(f'down.{name}' for name in types)):
    name = settings.get(f'compression.{layer_type}', compression.NONE)
    layer_type = layer_type.replace('down.', 'down, ')
    if name and name != compression.NONE:
      own = inspect.signature(compression.CODECS[name]).parameters
      given = [f'{key} {settings[f"compression.{key}"]}' for key in own]
      found.append(
        f'{layer_type} {name}' + (f' ({", ".join(given)})' if given else '')
      )
  return ', '.join(found)


def secure_sums(settings: Mapping[str, Any]) -> str:
  """How the updates of a case are summed securely, in words; '' if not.

  Args:
    settings: Of a case, config fields by dotted name.
  """
  if not settings.get('secure.aggregation', False):
    return ''
  of = lambda name: settings[f'secure.{name}']
  bounds = (
    f'norms of at most {of("clip"):g}, weights of at most '
    f'{of("max_weight"):g} (1 where they are uniform)'
  )
  if settings.get('privacy.unit') == 'client':
    bounds = 'norms as private clients have clipped them, weights of 1'
    if settings['privacy.noise'] == 'local':
      bounds = f'norms, with noise, of at most {of("clip"):g}, weights of 1'
  return (
    f'numbers of {of("bits")} bits, {bounds}, sums over more than '
    f'{of("threshold"):.0%} of a group'
  )

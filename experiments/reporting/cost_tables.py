"""Tables of what cases cost: bytes, parameters and times."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import results
from . import tables
from . import texts
from fmtl_jax.federation import layer_types

Record = results.Record
_LAYER_TYPES = (
  layer_types.PRETRAINED,
  layer_types.COMMON,
  layer_types.TASK,
  layer_types.PERSONAL,
)


def communication_table(
  records: Sequence[Record], *, title: str = 'Communication'
) -> tables.Table:
  """Builds the table of bytes by layer type: a round's cohort, one client."""
  names = layer_types_of(records, 'bytes_up_per_round', 'bytes_down_per_round')
  rows = []
  for record in records:
    cost = record['cost']
    up = _byte_cells(cost, 'up', names)
    down = _byte_cells(cost, 'down', names)
    ways = [('up', up), ('down', down)] if up != down else [('each way', up)]
    rows += [(record['label'], way, *cells) for way, cells in ways]
  return tables.Table(
    title=title,
    header=(texts.CASE, 'direction', *names, 'all', 'all, one client'),
    rows=tuple(rows),
    notes=(
      'Bytes that the cohort of a round moves, mean over rounds; up: from '
      'clients to the server.',
    ),
  )


def _byte_cells(
  cost: Mapping[str, Any], way: str, names: tables.Row
) -> list[str]:
  """Bytes by layer type, of all of them, and of one client."""
  of_round = cost[f'bytes_{way}_per_round']
  of_client = cost[f'bytes_{way}_per_client']
  counts = [of_round.get(name, 0) for name in names]
  counts += [sum(of_round.values()), sum(of_client.values())]
  return [texts.human_bytes(count) for count in counts]


def cost_table(
  records: Sequence[Record], *, title: str = 'Parameters and time'
) -> tables.Table:
  """Builds the table of distinct parameters by layer type, and of times."""
  names = layer_types_of(records, 'parameters')
  simulated = [results.simulated_seconds(record) for record in records]
  has_clock = any(times is not None for times in simulated)
  rows = []
  for record, until in zip(records, simulated, strict=True):
    cost = record['cost']
    counts = [cost['parameters'].get(name, 0) for name in names]
    times: tables.Row = (texts.MISSING,) * 3
    if record['rounds']:
      times = (
        texts.seconds(cost['seconds_per_round']),
        texts.seconds(cost['compile_seconds']),
        f'{cost["client_steps_per_second"]:,.0f}',
      )
    if has_clock:
      last = np.nan if until is None else until[-1]
      known = np.isfinite(last)
      times += (texts.seconds(last) if known else texts.MISSING,)
    rows.append(
      (
        record['label'],
        *(f'{count:,}' for count in (*counts, sum(counts))),
        *times,
      )
    )
  return tables.Table(
    title=title,
    header=(
      *(texts.CASE, *names, 'all'),
      *('a round', 'compile', 'client steps / s'),
      *(('simulated',) if has_clock else ()),
    ),
    rows=tuple(rows),
    notes=(
      'Distinct parameters of all owners: a common layer counts once, a '
      'task-specific layer once a task, a personal layer once a client, and so '
      'does a whole model that a client keeps to predict with.',
      'A round: of one seed; without evaluation and compilation.',
      *(
        ('Simulated: time of all rounds by the clock of participation.',)
        if has_clock
        else ()
      ),
    ),
  )


def layer_types_of(records: Sequence[Record], *fields: str) -> tables.Row:
  """The layer types that costs name, those of the paper first."""
  names = dict.fromkeys(
    name for r in records for field in fields for name in r['cost'][field]
  )
  known = [name for name in _LAYER_TYPES if name in names]
  return (*known, *(name for name in names if name not in known))

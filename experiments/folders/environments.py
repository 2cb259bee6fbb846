"""Environments: versions and devices of every process that trained rounds.

A case records in spans which rounds were trained in which environment: a run
may be resumed with another version or on another device. Spans are saved with
the state, so that rounds that were lost are not counted, and kept in records.
Without spans, as in folders of version 0.1.0, only the environment in
`results.json` is known, which is that of the last process.
"""

from collections.abc import Mapping, Sequence
import datetime
import json
import pathlib
import platform
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import optax

from ..running import determinism
import fmtl_jax

# `environment` (None if not known), `rounds` (the first and the last one, from
# 1; 0 where nothing is trained), `until` (when the last one ended).
Span = dict[str, Any]
KEY = 'environments'
_DETERMINISTIC = 'deterministic'
_PRECISION = 'jax_default_matmul_precision'


def environment() -> dict[str, Any]:
  """The environment of this process: the same one gives the same bits."""
  devices = jax.devices()
  return {
    'python': platform.python_version(),
    'jax': jax.__version__,
    'jaxlib': jaxlib.__version__,
    'flax': flax.__version__,
    'numpy': np.__version__,
    'optax': optax.__version__,
    'fmtl_jax': fmtl_jax.__version__,
    'platform': devices[0].platform,
    'device_kind': devices[0].device_kind,
    'device_count': len(devices),
    'xla_flags': determinism.flags_of_xla(),
    _PRECISION: jax.config.values[_PRECISION],
    _DETERMINISTIC: determinism.is_used(),
  }


def extended(spans: Sequence[Span], first: int, last: int) -> list[Span]:
  """Adds rounds of this process.

  Args:
    spans: Of the rounds before.
    first: The first new round, from 1.
    last: The last one.
  """
  span = {
    'environment': environment(),
    'rounds': [first, last],
    'until': datetime.datetime.now(datetime.UTC).isoformat(),
  }
  if spans and spans[-1]['environment'] == span['environment']:
    span['rounds'] = [spans[-1]['rounds'][0], last]
    return [*spans[:-1], span]
  return [*spans, span]


def unknown(rounds: int) -> list[Span]:
  """The span of a number of first rounds whose environment is not known."""
  return [_span(None, rounds)] if rounds else []


def _span(found: Any, rounds: int) -> Span:
  """All rounds of a case without spans.

  Args:
    found: The environment of the last process, None if that is not known; those
      before it may have been less deterministic.
    rounds: How many there are.
  """
  if found is not None and found.get(_DETERMINISTIC):
    found = {**found, _DETERMINISTIC: None}
  return {
    'environment': found,
    'rounds': [min(1, rounds), rounds],
    'until': None,
  }


def of_records(
  records: Sequence[Mapping[str, Any]], path: pathlib.Path
) -> dict[str, list[Span]]:
  """The spans of cases, by name.

  Args:
    records: Of the cases; those without spans are looked up.
    path: What was written for them before, such as `results.json`.
  """
  return {
    r['case']: r[KEY] if KEY in r else _written(path, r['case'], r['rounds'])
    for r in records
  }


def of_rows(
  parts: Mapping[str, Sequence[Mapping[str, Any]]], path: pathlib.Path
) -> dict[str, list[Span]]:
  """The same of the parts of a sweep, or of searches: rows by name."""
  return of_records(
    [
      {**rows[0], 'case': name, 'rounds': rows[0]['rounds'][-1]}
      for name, rows in parts.items()
    ],
    path,
  )


def _written(path: pathlib.Path, case: str, rounds: int) -> list[Span]:
  """The spans of a case without any, from the file of an earlier report."""
  try:
    before = json.loads(path.read_bytes())
    if KEY not in before:
      return [_span(dict(before['environment']), rounds)]
    for entry in before[KEY]:
      if case in entry['cases'] and entry['environment'] is not None:
        return [_span(dict(entry['environment']), rounds)]
  except (OSError, ValueError, KeyError, TypeError):
    pass  # Nothing is known; the file is about to be replaced.
  return [_span(None, rounds)]


def summary(parts: Mapping[str, Sequence[Span]]) -> dict[str, Any]:
  """The environments of a report.

  Args:
    parts: Spans by the name of a case or of another part; one at least.

  Returns:
    `environment`: that of the process which trained last, its fields None where
    nothing is known; it is deterministic only if those of all parts are.
    `environments`: all of them in the order of time, each with `cases`, the
    rounds that were trained with it, by name.
  """
  entries: list[dict[str, Any]] = []
  placed = [(span, name) for name, of in parts.items() for span in of]
  for span, name in sorted(placed, key=lambda pair: pair[0]['until'] or ''):
    entry = next(
      (e for e in entries if e['environment'] == span['environment']), None
    )
    if entry is None:
      entry = {'environment': span['environment'], 'cases': {}}
      entries.append(entry)
    entry['cases'].setdefault(name, []).append(span['rounds'])
    entry['until'] = span['until']
  all_of_them = [entry['environment'] or {} for entry in entries]
  last = max(entries, key=lambda entry: entry['until'] or '')
  return {
    'environment': {
      **dict.fromkeys(environment()),
      **(last['environment'] or {}),
      _DETERMINISTIC: all(bool(e.get(_DETERMINISTIC)) for e in all_of_them),
    },
    KEY: entries,
  }


def nothing_trained(
  what: str, parts: Mapping[str, Sequence[Span]], paths: Sequence[pathlib.Path]
) -> str:
  """A sentence: everything was finished before, and when.

  Args:
    what: What the parts are: `cases`.
    parts: Their spans.
    paths: Their files, whose dates are given where there are no spans.
  """
  known = [s['until'] for of in parts.values() for s in of if s['until']]
  if known:
    last = datetime.datetime.fromisoformat(max(known)).astimezone()
  else:
    last = datetime.datetime.fromtimestamp(
      max(p.stat().st_mtime for p in paths)
    )
  return (
    f'All {what} were finished: nothing was trained; results are of '
    f'{last:%Y-%m-%d %H:%M:%S}.'
  )

"""Records: what the finished parts of an experiment leave, read and checked.

A truncated or modified file is reported with its name, before anything is run
that would end in a report.
"""

from collections.abc import Callable, Mapping, Sequence
import json
import pathlib
from typing import Any

import numpy as np

from . import environments
from . import workdirs
from fmtl_jax.storage import digests

Check = Callable[[Any], None]
_SHARES = tuple(f'participation.{n}' for n in ('dropout', 'late', 'partial'))


def write(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  """Writes a JSON object for `read`, with a digest; all of it or nothing."""
  workdirs.write_json(path, digests.seal(value))


def write_rows(path: pathlib.Path, rows: Sequence[Any]) -> None:
  """Writes the rows of a part of a sweep for `read_rows`."""
  write(path, {'rows': list(rows)})


def read_rows(path: pathlib.Path) -> list[Any]:
  """Reads the rows of a part of a sweep.

  Raises:
    ValueError: If they are damaged.
  """

  def check(value):
    check_rows(value['rows'])

  return read(path, check)['rows']


def read(path: pathlib.Path, check: Check) -> Any:
  """Reads a JSON file of a workdir.

  Args:
    path: The file.
    check: Raises any error for a value that is not what the file should hold.

  Raises:
    ValueError: If it is damaged.
  """
  try:
    value = json.loads(path.read_bytes())
    if isinstance(value, list):  # Version 0 wrote rows so.
      value = {'rows': value}
    value = digests.unseal(value)
    check(value)
  except Exception as error:  # Whatever such a value can make it raise.
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    raise ValueError(
      f'{path} is damaged ({reason}); remove it, and the same command makes it '
      'again.'
    ) from error
  return value


def check_case(record: Any) -> None:
  """Raises an error unless a value is the record of a case."""
  _fields(
    record,
    {
      'case': str,
      'label': str,
      'tasks': list,
      'seeds': list,
      'protocol': str,
      'rounds': int,
      'clients': list,
      'client_tasks': list,
      'curve': dict,
      'train_loss': list,
      'client_values': dict,
      'cost': dict,
    },
  )
  _each('tasks', record['tasks'], str)
  _each('clients', record['clients'], str)
  _each('seeds', record['seeds'], int)
  _whole('rounds', record['rounds'])
  _whole('overlapping_pairs', record.get('overlapping_pairs', 0))
  curve, seeds = record['curve'], len(record['seeds'])
  _fields(curve, {'round': list, 'values': dict})
  _each('round', curve['round'], int)
  if not seeds or not curve['round']:
    raise ValueError('it has no seed or no evaluation')
  shape = (len(curve['round']), seeds, len(record['tasks']) + 1)
  for name, values in curve['values'].items():
    if name.count('/') != 2:
      raise ValueError(f'{name} is not of the form split/view/metric')
    _array(name, values, shape)
  losses = record['train_loss']
  if bool(losses) != bool(record['rounds']):
    raise ValueError('its train_loss is not that of its rounds')
  _array('train_loss', losses, (len(losses), seeds))
  _check_idle(record.get('idle_rounds', []), losses)
  for name, values in record.get('per_round', {}).items():
    _array(name, values, (len(losses), seeds))
  tasks = np.asarray(record['client_tasks'])
  if tasks.size and not np.issubdtype(tasks.dtype, np.integer):
    raise ValueError('client_tasks are not integers')
  if tasks.size and tasks.min() < 0:
    raise ValueError('client_tasks are negative')
  of_each = tasks.shape[1:] if tasks.ndim == 3 else tasks.shape
  if len(record['clients']) != (of_each[0] if of_each else 0):
    raise ValueError('client_tasks are not those of its clients')
  for name, values in record['client_values'].items():
    wanted = (seeds, *of_each)
    _array(name, values, wanted if '/' in name else wanted[:2])
  _check_cost(record['cost'])
  _check_spans(record)
  _check_settings(record.get('settings'))
  _check_relations(record.get('relations'), seeds)
  for name, of_each in record.get('train_examples', {}).items():
    _array(name, of_each, (seeds, len(record[name])))


def _check_relations(relations, seeds):
  """Checks the matrices of a record, or that a file is said to have them."""
  if relations is None:
    return
  if 'matrices' not in relations:
    return _fields(relations, {'file': str})
  shape = np.shape(relations['matrices'])
  _array('relations', relations['matrices'], (seeds, *shape[2:3] * 2))


def _check_idle(idle_rounds, losses):
  """Checks the rounds without a loss of each seed."""
  if not isinstance(idle_rounds, list) or (
    idle_rounds and len(idle_rounds) != np.shape(losses)[1]
  ):
    raise ValueError('idle_rounds are not those of its seeds')
  _each('idle_rounds', idle_rounds, list)
  for seed, numbers in enumerate(idle_rounds):
    _each('idle_rounds', numbers, int)
    for number in numbers:
      if not 1 <= number <= len(losses) or losses[number - 1][seed] is not None:
        raise ValueError('idle_rounds are not those without a loss')


def check_history(metadata: Any) -> None:
  """Raises an error unless values are what a checkpoint keeps of a case."""
  _fields(metadata, {'history': dict})
  history = metadata['history']
  _fields(
    history,
    {
      'rounds': list,
      'values': dict,
      'client_values': dict,
      'train_loss': list,
      'per_round': dict,
      'totals': dict,
    },
  )
  _each('rounds', history['rounds'], int)
  for name, values in history['values'].items():
    if not values or len(values) > len(history['rounds']):
      raise ValueError(f'{name} is not that of its rounds')
    shape = np.shape(np.asarray(values, np.float64))
    _array(name, values, (len(values), *shape[1:]))
  losses = np.asarray(history['train_loss'], np.float64)
  for name, values in history['per_round'].items():
    _array(name, values, losses.shape)
  _numbers(history['totals'], 'rounds', 'clients', 'slots', 'steps')
  _numbers(history, 'seconds', 'compile_seconds')


def check_held_out(record: Any) -> None:
  """Raises an error unless a value is the record of held-out clients."""
  _fields(
    record,
    {
      'case': str,
      'label': str,
      'seeds': list,
      'rounds': int,
      'protocol': str,
      'examples': list,
      'clients': list,
      'test_examples': list,
      'adapted': str,
      'way': dict,
      'values': dict,
      'training_clients': dict,
      'settings': dict,
    },
  )
  _each('seeds', record['seeds'], int)
  _each('examples', record['examples'], int)
  _whole('rounds', record['rounds'])
  _whole('overlapping_pairs', record['overlapping_pairs'])
  _numbers(record['way'], 'rate', 'pull')
  _check_settings(record['settings'], 'unseen.start')
  _check_spans(record)
  _whole('unseen.epochs', record['settings']['unseen.epochs'])
  seeds, clients = len(record['seeds']), np.shape(record['clients'])
  if not seeds or not record['examples'] or not record['values']:
    raise ValueError('it has no seed, number of examples or value')
  _array('clients', record['clients'], (seeds, *clients[1:2]))
  _array('test_examples', record['test_examples'], clients)
  for name, values in record['values'].items():
    slots = np.shape(values)[3:4]
    shape = (seeds, len(record['examples']), *clients[1:], *slots)
    _array(name, values, shape)
    _array(name, record['training_clients'][name], (seeds,))


def check_rows(rows: Any) -> None:
  """Raises an error unless a value is the rows of a part of a sweep."""
  if not isinstance(rows, list) or not rows:
    raise ValueError('it has no rows')
  for row in rows:
    _fields(
      row,
      {
        'case': str,
        'settings': dict,
        'rounds': list,
        'curve': list,
        'lower_is_better': bool,
      },
    )
    _each('rounds', row['rounds'], int)
    _array('curve', row['curve'], (len(row['rounds']),))
    _numbers(row, 'seconds')
    _check_spans(row)
    _whole('best_round', row['best_round'])
    for name in ('final', 'std', 'best'):
      _array(name, row[name], ())


def check_search(search: Any, field: str) -> None:
  """Raises an error unless a value is a search, finished or not.

  Args:
    search: The value.
    field: The field whose numbers it tried.
  """
  _fields(search, {'identity': dict})
  if search['rows'] is not None:
    check_rows(search['rows'])
    for row in search['rows']:
      _numbers(row['settings'], field)


def _fields(value: Any, types: Mapping[str, type]) -> None:
  if not isinstance(value, dict):
    raise ValueError('it is not a JSON object')
  for name, kind in types.items():
    if not isinstance(value.get(name), kind):
      raise ValueError(f'its {name} is not of the type {kind.__name__}')


def _each(name, values, kind):
  if not all(isinstance(v, kind) for v in values):
    raise ValueError(f'its {name} are not of the type {kind.__name__}')


def _whole(name, value):
  if not isinstance(value, int) or value < 0:
    raise ValueError(f'its {name} is not a whole number')


def _numbers(value, *names):
  for name in names:
    _array(name, value[name], ())
    if value[name] is None:
      raise ValueError(f'its {name} is not a number')


def _array(name, values, shape):
  """Checks numbers, None where undefined, and how they are nested."""
  found = np.asarray(values, np.float64)
  if found.shape != shape and (found.size or np.prod(shape)):
    raise ValueError(f'its {name} has the shape {found.shape}, not {shape}')


def _check_cost(cost):
  sizes = (
    *('parameters', 'bytes_up_per_round', 'bytes_down_per_round'),
    *('bytes_up_per_client', 'bytes_down_per_client'),
  )
  for field in sizes:
    _fields(cost, {field: dict})
    _numbers(cost[field], 'common', 'task', 'personal', *cost[field])
  _numbers(
    cost, 'seconds_per_round', 'compile_seconds', 'client_steps_per_second'
  )


def _check_spans(record):
  """Checks the environments of a record, where it has them."""
  for span in record.get(environments.KEY, []):
    _fields(span, {'rounds': list})
    _each('rounds', span['rounds'], int)
    if not isinstance(span['environment'], (dict, type(None))):
      raise ValueError('its environment is not a JSON object')
    if not isinstance(span['until'], (str, type(None))):
      raise ValueError('its environment has no date')


def _check_settings(settings, *names):
  """Checks the settings of a record that reports read."""
  if settings is None:
    return
  texts = ('aggregation.common', 'aggregation.task', *names)
  _fields(settings, dict.fromkeys(texts, str))
  if settings.get('attack.name', 'none') != 'none':
    _numbers(settings, 'attack.share')
  _numbers(settings, *(f for f in settings if f in _SHARES))

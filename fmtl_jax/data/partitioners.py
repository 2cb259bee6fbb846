"""Partitioners: who holds which examples.

A partition is a list of M arrays, the row numbers of each client in ascending
order. Clients share no example and every example has a client. The functions
run once, on the host, and take a seeded NumPy generator where they draw.
"""

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np

from fmtl_jax import tasks as tasks_lib

_TABLE_WIDTH = 100
_NAME_WIDTH = 24


def iid(
  num_examples: int, num_clients: int, rng: np.random.Generator
) -> list[np.ndarray]:
  """Deals examples at random; sizes differ by one at most.

  Args:
    num_examples: N.
    num_clients: M.
    rng: Draws who gets what; sizes do not depend on it.

  Raises:
    ValueError: If there are no clients or more clients than examples.
  """
  _check_sizes(num_examples, num_clients)
  order = rng.permutation(num_examples)
  return [np.sort(rows) for rows in np.array_split(order, num_clients)]


def by_key(keys: Any) -> tuple[list[np.ndarray], np.ndarray]:
  """Makes one client of each key: the natural partition by user or site.

  Args:
    keys: `[N]` numbers or strings, who each example comes from.

  Returns:
    The rows of each client, and the clients' keys, `[M]`, in ascending order.

  Raises:
    ValueError: If a key is NaN, or keys have no order.
  """
  keys = np.asarray(keys)
  if np.issubdtype(keys.dtype, np.floating) and np.isnan(keys).any():
    raise ValueError(
      f'Expected a key for each of {len(keys)} examples, got NaN for '
      f'{np.isnan(keys).sum()}; give these a key or remove them.'
    )
  try:
    return _rows_by_value(keys)
  except TypeError as error:
    types = sorted({type(key).__name__ for key in keys.tolist()})
    raise ValueError(
      f'Expected keys of one type, got {", ".join(types)}; give every example '
      'a key of the same.'
    ) from error


def dirichlet(
  labels: Any,
  num_clients: int,
  alpha: float,
  rng: np.random.Generator,
  min_size: int = 10,
) -> list[np.ndarray]:
  """Splits each class over the clients by Dirichlet proportions: label skew.

  The examples of each class are cut by one draw from Dir(alpha), so that small
  values of `alpha` give clients few classes. As in the code of Yurochkin et
  al., a client with N / M examples or more gets no further class. Two things
  differ from it: the classes come in random order, so that no class is always
  the one that fills up, and instead of drawing anew until every client has
  enough (with small `alpha` that never happens), the largest clients give
  random examples to those below `min_size`.

  Args:
    labels: `[N]`; missing ones, NaN, count as a class.
    num_clients: M.
    alpha: The concentration; large values tend to equal clients.
    rng: Draws the proportions and the examples.
    min_size: The fewest examples of a client.

  Raises:
    ValueError: If there are too few examples or `alpha` is not positive.

  References:
    Yurochkin et al. (2019), Bayesian Nonparametric Federated Learning of Neural
    Networks, https://arxiv.org/abs/1905.12022 (the heterogeneous partition).
    Hsu, Qi, Brown (2019), Measuring the Effects of Non-Identical Data
    Distribution for Federated Visual Classification,
    https://arxiv.org/abs/1909.06335 (draws the classes of each client instead).
  """
  labels = np.asarray(labels)
  _check_sizes(len(labels), num_clients, min_size)
  _check_alpha(alpha)
  classes, _ = _rows_by_value(labels)
  parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
  sizes = np.zeros(num_clients, int)
  for number in rng.permutation(len(classes)):
    rows = rng.permutation(classes[number])
    # A Dirichlet draw restricted to some clients is one over these clients.
    takers = np.flatnonzero(sizes * num_clients < len(labels))
    cuts = _cuts(rng.dirichlet(np.full(len(takers), alpha)), len(rows))
    for client, part in zip(takers, np.split(rows, cuts), strict=True):
      parts[client].append(part)
      sizes[client] += len(part)
  groups = [np.concatenate(part) for part in parts]
  return _fill_up(groups, min_size, rng)


def shards(
  labels: Any,
  num_clients: int,
  shards_per_client: int,
  rng: np.random.Generator,
) -> list[np.ndarray]:
  """Sorts by label, cuts into shards and deals the same number to each client.

  The pathological partition: with two shards most clients have two classes.
  Where N is not a multiple of the shards, their widths differ by one and are
  such that the clients' sizes do not depend on the draw and differ by one.

  Args:
    labels: `[N]`.
    num_clients: M.
    shards_per_client: How many shards a client gets.
    rng: Draws the order within a class and who gets which shards.

  Raises:
    ValueError: If there are fewer examples than shards.

  References:
    McMahan et al. (2017), Communication-Efficient Learning of Deep Networks
    from Decentralized Data, https://arxiv.org/abs/1602.05629, section 3.
  """
  labels = np.asarray(labels)
  num_examples = len(labels)
  _check_sizes(num_examples, num_clients)
  most = num_examples // num_clients
  if not 1 <= shards_per_client <= most:
    raise ValueError(
      f'Expected `shards_per_client` between 1 and {most} '
      f'({num_examples} examples over {num_clients} clients), got '
      f'{shards_per_client}; use fewer shards or clients.'
    )
  order = np.lexsort((rng.random(num_examples), labels))
  widths = np.concatenate(
    [
      _even_sizes(size, shards_per_client)
      for size in _even_sizes(num_examples, num_clients)
    ]
  )
  places = rng.permutation(len(widths))
  pieces = np.split(order, np.cumsum(widths[places])[:-1])
  # Argsort inverts the permutation: the shard that went to each place.
  dealt = [pieces[shard] for shard in np.argsort(places)]
  return [
    np.sort(np.concatenate(dealt[start : start + shards_per_client]))
    for start in range(0, len(dealt), shards_per_client)
  ]


def quantity_skew(
  num_examples: int,
  num_clients: int,
  alpha: float,
  rng: np.random.Generator,
  min_size: int = 10,
) -> list[np.ndarray]:
  """Deals examples at random in unequal amounts, one draw from Dir(alpha).

  Clients below `min_size` are raised to it at the expense of the largest.

  Args:
    num_examples: N.
    num_clients: M.
    alpha: The concentration; large values tend to equal sizes.
    rng: Draws the sizes and the examples.
    min_size: The fewest examples of a client.

  Raises:
    ValueError: If there are too few examples or `alpha` is not positive.
  """
  _check_sizes(num_examples, num_clients, min_size)
  _check_alpha(alpha)
  cuts = _cuts(rng.dirichlet(np.full(num_clients, alpha)), num_examples)
  sizes = _raise_sizes(np.diff([0, *cuts, num_examples]), min_size)
  order = rng.permutation(num_examples)
  return [np.sort(rows) for rows in np.split(order, np.cumsum(sizes)[:-1])]


def describe(
  groups: Sequence[np.ndarray],
  labels: Any,
  client_tasks: Any,
  tasks: Sequence[tasks_lib.Task],
) -> str:
  """Writes down who holds what as a table of at most 100 columns.

  Args:
    groups: The rows of each client.
    labels: `[N]` or `[N, L]`; NaN where a label is missing, any number where
      it is a tree of targets.
    client_tasks: `[M]` or `[M, S]` task numbers; out of range for an empty
      slot.
    tasks: The T tasks.

  Returns:
    A line on the federation, and a table with one line for each task: its
    clients, their examples, the smallest, median and largest client, and the
    examples of each class.
  """
  labels = np.asarray(labels, float).reshape(len(labels), -1)
  client_tasks = np.asarray(client_tasks).reshape(len(groups), -1)
  sizes = np.array([len(group) for group in groups])
  held = ((client_tasks >= 0) & (client_tasks < len(tasks))).sum(1)
  lines = [('task', 'clients', 'examples', 'min', 'median', 'max')]
  values = []
  flat = np.where(client_tasks < 0, len(tasks), client_tasks).reshape(-1)
  # By task, then by client.
  order = np.argsort(flat, kind='stable') // client_tasks.shape[1]
  ends = np.cumsum(np.bincount(flat, minlength=len(tasks))[: len(tasks)])
  for task, holders in zip(tasks, np.split(order, ends)[:-1], strict=True):
    rows = [np.zeros(0, int), *(groups[int(client)] for client in holders)]
    values.append(labels[np.concatenate(rows), task.column])
    name = task.name
    if len(name) > _NAME_WIDTH:
      name = name[: _NAME_WIDTH - 3] + '...'
    counts = (str(len(holders)), str(len(values[-1])))
    lines.append((name, *counts, *_spread(sizes[holders])))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  left = _TABLE_WIDTH - sum(widths) - 2 * len(widths)
  cells = ['labels'] + [
    _label_summary(task, value, left)
    for task, value in zip(tasks, values, strict=True)
  ]
  table = [
    '  '.join(
      [
        line[0].ljust(widths[0]),
        *(n.rjust(w) for n, w in zip(line[1:], widths[1:], strict=True)),
        cell,
      ]
    )
    for line, cell in zip(lines, cells, strict=True)
  ]
  smallest, median, largest = _spread(sizes)
  title = (
    f'{len(groups)} clients, {sizes.sum()} examples; {smallest} to {largest} '
    f'a client (median {median}); tasks a client: '
    + ' to '.join(str(number) for number in sorted({held.min(), held.max()}))
  )
  return '\n'.join([title, *table])


def _rows_by_value(values):
  """The rows of each value, and the values in ascending order."""
  unique, index = np.unique(values, return_inverse=True)
  order = np.argsort(index, kind='stable')
  cuts = np.cumsum(np.bincount(index, minlength=len(unique)))[:-1]
  return np.split(order, cuts), unique


def _even_sizes(total, parts):
  """`[parts]` sizes that add up to `total` and differ by one at most."""
  return total // parts + (np.arange(parts) < total % parts)


def _cuts(proportions, total):
  """Where to cut `total` examples so that parts have these proportions."""
  return np.round(np.cumsum(proportions[:-1]) * total).astype(int)


def _raise_sizes(sizes, min_size):
  """Raises small sizes to `min_size`; the largest are cut to a common level."""
  raised = np.maximum(sizes, min_size)
  missing = raised.sum() - sizes.sum()

  def cut(level):
    return np.maximum(raised - level, 0).sum()

  levels = range(min_size, int(raised.max()) + 1)
  # `cut` falls with the level: take the highest that sets enough free.
  index = bisect.bisect_left(levels, True, key=lambda x: cut(x) < missing)
  level = levels[index - 1]
  lowered = np.minimum(raised, level)
  above = np.flatnonzero(raised > level)
  lowered[above[: cut(level) - missing]] += 1
  return lowered


def _fill_up(groups, min_size, rng):
  """Moves random examples of the largest groups to those below `min_size`."""
  sizes = np.array([len(group) for group in groups])
  targets = _raise_sizes(sizes, min_size)
  groups = [rng.permutation(group) for group in groups]
  free = [group[end:] for group, end in zip(groups, targets, strict=True)]
  cuts = np.cumsum(np.maximum(targets - sizes, 0))[:-1]
  gifts = np.split(rng.permutation(np.concatenate(free)), cuts)
  return [
    np.sort(np.concatenate([group[:end], gift]))
    for group, end, gift in zip(groups, targets, gifts, strict=True)
  ]


def _check_sizes(num_examples, num_clients, min_size=1):
  if not 1 <= num_clients <= num_examples:
    raise ValueError(
      f'Expected `num_clients` between 1 and {num_examples} (the number of '
      f'examples), got {num_clients}.'
    )
  most = num_examples // num_clients
  if not 1 <= min_size <= most:
    raise ValueError(
      f'Expected {num_examples} examples over {num_clients} clients to be at '
      f'least {min_size} for each, as this partition wants, got {most}; use '
      'fewer `num_clients`.'
    )


def _check_alpha(alpha):
  if not 0 < alpha < np.inf:
    raise ValueError(
      f'Expected `alpha` > 0 and finite, got {alpha}; small values give '
      'unequal clients, large ones equal clients.'
    )


def _spread(sizes):
  """Smallest, median and largest size in words; dashes where there is none."""
  if not len(sizes):
    return ('-',) * 3
  return str(sizes.min()), f'{np.median(sizes):.10g}', str(sizes.max())


def _label_summary(task, values, width):
  """The labels of one task in at most `width` columns."""
  known = values[~np.isnan(values)]
  items = []
  if len(known) < len(values):
    items.append(f'missing: {len(values) - len(known)}')
  kind = task.definition
  if kind.has_classes:
    counts = np.bincount(known.astype(int), minlength=task.num_classes)
    items += [f'{number}: {count}' for number, count in enumerate(counts)]
  elif not kind.has_unit:
    items.append(f'labels: {len(known)}')
  elif len(known):
    known = task.offset + task.unit * known  # As the task means them.
    items.append(f'mean: {known.mean():.4g}')
    items.append(f'range: {known.min():.4g} to {known.max():.4g}')
  text = ', '.join(items)
  shown = len(items)
  while len(text) > width and shown:
    shown -= 1
    text = ', '.join([*items[:shown], f'{len(items) - shown} more'])
  return text

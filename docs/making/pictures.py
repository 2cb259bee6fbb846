"""Pictures of the concepts, drawn from objects of the library.

Who owns which copy, who is drawn and which device trains whom is read off a
federation, its cohorts and the library's functions: a picture shows what they
do. Numbers of figures stand in the tables of the pages.
"""

from collections.abc import Iterator, Mapping
import contextlib
import os
import pathlib
import re
from typing import Any
from unittest import mock

import jax
import numpy as np

from experiments.reporting import drawing
from fmtl_jax import cohorts
from fmtl_jax import execution
from fmtl_jax import federation as federation_lib
from fmtl_jax import testing
from fmtl_jax.federation import layer_types

ROOT = pathlib.Path(__file__).resolve().parents[2]
TYPES = (
  layer_types.PRETRAINED,
  layer_types.COMMON,
  layer_types.TASK,
  layer_types.PERSONAL,
)
_OWNED_BY = ('constant', 'of all', 'one a task', 'one a client')
_TASK_COLORS = (drawing.BLUE, drawing.RED, drawing.GREEN)
_CLIENTS, _TASKS = 6, 3


def draw_all(folder: pathlib.Path) -> None:
  """Draws every picture of the site.

  Args:
    folder: Of the sources; those of README.md are in its `figures`.
  """
  draw_for_readme(folder / 'figures')
  folder = folder / 'pictures'
  folder.mkdir()
  for name, draw in (
    ('owners', owners),
    ('slots', slots),
    ('cohorts', drawn_cohorts),
    ('placement', placement),
  ):
    with _steady():
      draw(folder / f'{name}.svg')


def draw_for_readme(folder: pathlib.Path) -> None:
  """Draws the two pictures that README.md shows.

  Args:
    folder: Is made.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with _steady():
    layers(folder / 'layers.svg')
    table_3(folder / 'table3.svg', ROOT / 'docs' / 'results.md')


@contextlib.contextmanager
def _steady() -> Iterator[None]:
  """The same picture gives the same file."""
  import matplotlib

  with (
    mock.patch.dict(os.environ, SOURCE_DATE_EPOCH='0'),
    matplotlib.rc_context({'svg.hashsalt': 'fmtl_jax'}),
  ):
    yield


def _federation(
  num_slots: int = 1,
) -> tuple[federation_lib.Federation, Any]:
  """Four layers, one of each type, of six clients with three tasks."""
  data = testing.toy_data(_CLIENTS, _TASKS, num_slots)
  width = max(task.num_outputs for task in data.tasks)
  model = testing.mlp([3, 4, 4, 4, width])
  rules = [(f'layer_{i}/.*', name) for i, name in enumerate(TYPES)]
  values = model[0](jax.random.key(1))
  federation = federation_lib.Federation.create(
    model, rules, data, pretrained=values
  )
  return federation, data


def copies(federation: federation_lib.Federation) -> Mapping[str, int]:
  """How many copies of each layer there are, by layer type."""
  state = jax.eval_shape(federation.init_params, jax.random.key(0))
  found = {layer_types.PRETRAINED: 1}
  for layer, leaves in state.items():
    label = jax.tree.leaves(federation.labels[layer])[0]
    one = jax.tree.leaves(federation.shapes[layer])[0].shape
    for leaf in jax.tree.leaves(leaves)[:1]:
      more = leaf.shape[: len(leaf.shape) - len(one)]
      found[label] = int(more[0]) if more else 1
  return found


def used(data: Any) -> Mapping[str, np.ndarray]:
  """Which copy each client uses, by layer type."""
  index = cohorts.everyone(data).index
  return {
    layer_types.PRETRAINED: np.zeros(data.num_clients, int),
    layer_types.COMMON: np.zeros(data.num_clients, int),
    layer_types.TASK: np.asarray(index['task'])[:, 0],
    layer_types.PERSONAL: np.asarray(index['client']),
  }


def layers(path: pathlib.Path) -> None:
  """The four layer types: every client's way through the copies it uses."""
  federation, data = _federation()
  number, use = copies(federation), used(data)
  order = np.argsort(use[layer_types.TASK], kind='stable')
  tasks = use[layer_types.TASK]
  heights = {
    label: _heights(number[label], use[label], order) for label in TYPES
  }
  with drawing.figure(path, height=3.9) as figure:
    axes = figure.subplots()
    axes.set_axis_off()
    for row, client in enumerate(order):
      x, y = [-0.62], [float(row)]
      for column, label in enumerate(TYPES):
        spread = (row - 2.5) * 0.1 if number[label] == 1 else 0.0
        spread += (row % 2 - 0.5) * 0.2 if label == layer_types.TASK else 0
        x += [column - 0.3, column + 0.3]
        y += [heights[label][use[label][client]] + spread] * 2
      color = _TASK_COLORS[tasks[client]]
      axes.plot(x, y, color=color, linewidth=1.4, alpha=0.85)
      axes.text(
        -0.66,
        row,
        f'client {client}\n{data.tasks[tasks[client]].name}',
        color=color,
        fontsize=11,
        ha='right',
        va='center',
      )
    for column, (label, owner) in enumerate(zip(TYPES, _OWNED_BY, strict=True)):
      for copy, height in heights[label].items():
        _box(axes, column, height, _copy_color(label, copy, tasks))
      count = number[label]
      axes.text(
        column,
        -0.7,
        f'{layer_types_word(label)}\n'
        f'{count} cop{"ies" if count > 1 else "y"},\n{owner}',
        ha='center',
        va='bottom',
        fontsize=12,
      )
    axes.set_xlim(-1.1, 3.5)
    axes.set_ylim(5.5, -2.5)


def layer_types_word(label: str) -> str:
  """A layer type as the paper writes it."""
  words = {
    layer_types.PRETRAINED: 'pre-trained',
    layer_types.TASK: 'task-specific',
  }
  return words.get(label, label)


def _heights(
  count: int, use: np.ndarray, order: np.ndarray
) -> Mapping[int, float]:
  """Where each copy is: in the middle of the clients that use it."""
  return {
    copy: float(np.mean([row for row, m in enumerate(order) if use[m] == copy]))
    for copy in range(count)
  }


def _copy_color(label: str, copy: int, tasks: np.ndarray) -> str:
  if label == layer_types.TASK:
    return _TASK_COLORS[copy]
  if label == layer_types.PERSONAL:
    return _TASK_COLORS[tasks[copy]]
  return drawing.GREY


def _box(axes: Any, column: int, height: float, color: str) -> None:
  """One copy of a layer."""
  from matplotlib import patches

  axes.add_patch(
    patches.FancyBboxPatch(
      (column - 0.2, height - 0.3),
      0.4,
      0.6,
      boxstyle='round,pad=0.02,rounding_size=0.08',
      facecolor='white',
      edgecolor=color,
      linewidth=1.6,
      zorder=3,
    )
  )


def owners(path: pathlib.Path) -> None:
  """Broadcast and aggregation: which owner's copy each client has."""
  _, data = _federation()
  use = used(data)
  count = {
    layer_types.COMMON: 1,
    layer_types.TASK: _TASKS,
    layer_types.PERSONAL: _CLIENTS,
  }
  everyone = cohorts.everyone(data)
  examples = np.asarray(everyone.label_counts)[:, 0]
  with drawing.figure(path, height=2.9) as figure:
    panels = figure.subplots(1, 3, width_ratios=(1.6, 2.4, 3.6))
    for axes, label in zip(panels, count, strict=True):
      matrix = np.zeros((_CLIENTS, count[label]))
      matrix[np.arange(_CLIENTS), use[label]] = examples
      shares = matrix / matrix.sum(0)
      axes.imshow(shares, cmap='Blues', vmin=0, vmax=1, aspect='auto')
      for m, owner in zip(*np.nonzero(matrix), strict=True):
        axes.text(
          owner,
          m,
          f'{shares[m, owner]:.2f}',
          ha='center',
          va='center',
          fontsize=8,
          color='white' if shares[m, owner] > 0.5 else 'black',
        )
      names = {
        layer_types.COMMON: ['the one copy'],
        layer_types.TASK: [task.name for task in data.tasks],
      }
      axes.set_xticks(
        range(count[label]), names.get(label, [*range(count[label])])
      )
      axes.set_yticks(range(_CLIENTS))
      axes.set_title(layer_types_word(label))
      axes.set_xlabel('owner' if label != layer_types.PERSONAL else 'client')
      axes.grid(False)
    panels[0].set_ylabel('client')


def slots(path: pathlib.Path) -> None:
  """Which task each slot of a client has."""
  _, data = _federation(2)
  held = np.asarray(data.partition.client_tasks)
  with drawing.figure(path, height=1.9) as figure:
    axes = figure.subplots()
    axes.grid(False)
    for client, tasks in enumerate(held):
      for slot, task in enumerate(tasks):
        is_held = task < _TASKS
        color = _TASK_COLORS[task] if is_held else 'white'
        axes.barh(
          slot, 0.94, 0.86, client - 0.47, color=color, edgecolor=drawing.GREY
        )
        axes.text(
          client,
          slot,
          data.tasks[task].name if is_held else 'empty',
          ha='center',
          va='center',
          fontsize=8,
          color='white' if is_held else drawing.GREY,
        )
    axes.set_yticks(range(held.shape[1]), [f'slot {s}' for s in range(2)])
    axes.set_xticks(range(_CLIENTS))
    axes.set_xlabel('client')
    axes.invert_yaxis()
    axes.tick_params(length=0)
    for side in axes.spines.values():
      side.set_visible(False)


def drawn_cohorts(path: pathlib.Path, rounds: int = 24) -> None:
  """Who takes part: K = 2 of each task, round by round."""
  data = testing.toy_data(15, _TASKS)
  sizes = tuple(int(n) for n in data.partition.members.sizes)
  tasks = np.asarray(data.partition.client_tasks)[:, 0]
  order = np.argsort(tasks, kind='stable')
  row = {int(client): place for place, client in enumerate(order)}

  @jax.jit
  def draw(number):
    key, _ = cohorts.round_keys(jax.random.key(0), number)
    return cohorts.draw_clients(key, data, (2,) * _TASKS, sizes)[0]

  with drawing.figure(path, height=2.9) as figure:
    axes = figure.subplots()
    for number in range(rounds):
      for client in np.asarray(draw(number)):
        if client < data.num_clients:
          color = _TASK_COLORS[tasks[client]]
          axes.plot(number, row[int(client)], 's', color=color, markersize=6)
    axes.set_xlabel('round')
    axes.set_yticks(range(len(order)), order)
    axes.set_ylabel('client, by task')
    axes.invert_yaxis()


def placement(path: pathlib.Path, devices: int = 4) -> None:
  """Which device trains which client: the longest first, dealt in turn."""
  sizes = np.random.default_rng(3).integers(2, 30, 14)
  shares = execution.shares(sizes, devices)
  with drawing.figure(path, height=2.5) as figure:
    axes = figure.subplots()
    for device, clients in enumerate(shares):
      start = 0
      for client in clients[clients < len(sizes)]:
        size = int(sizes[client])
        axes.barh(
          device, size, 0.7, start, color=drawing.COLORS[4], edgecolor='white'
        )
        if size > 2:
          axes.text(
            start + size / 2,
            device,
            str(client),
            ha='center',
            va='center',
            fontsize=8,
          )
        start += size
    axes.set_yticks(range(devices), [f'device {d}' for d in range(devices)])
    axes.set_xlabel('local steps of its clients; numbers are clients')
    axes.invert_yaxis()
    axes.grid(axis='y', visible=False)


def read_table(path: pathlib.Path, title: str) -> list[list[str]]:
  """The cells of the first table behind a heading of a page.

  Args:
    path: Of the page.
    title: Of the heading.

  Returns:
    Rows, the head first.

  Raises:
    ValueError: If there is no such heading or table.
  """
  text = path.read_text(encoding='utf-8')
  match = re.search(
    rf'^#+ {re.escape(title)}\n(?:[^|\n].*\n|\n)*((\|.*\n)+)',
    text,
    re.MULTILINE,
  )
  if match is None:
    raise ValueError(
      f'Expected {path.name} to have a table below {title!r}, got none.'
    )
  rows = [line.strip().strip('|').split('|') for line in match[1].splitlines()]
  return [
    [cell.strip(' *') for cell in row] for row in rows if '--' not in row[1]
  ]


def table_3(path: pathlib.Path, page: pathlib.Path) -> None:
  """Bars of the table of faces: the error of every case for each task."""
  head, *rows = read_table(page, 'Faces')
  tasks = head[1 : head.index('mean')]
  rows = [row for row in rows if 'two tasks' not in row[0]]
  error = np.array(
    [[100 - float(x) for x in row[1 : len(tasks) + 1]] for row in rows]
  )
  majority, error = error[0], error[1:]
  names = [row[0] for row in rows[1:]]
  with drawing.figure(path, height=3.3) as figure:
    axes = figure.subplots()
    width = 0.8 / len(names)
    colors = (
      '#9ecae1',
      drawing.COLORS[4],
      drawing.LIGHT_GREY,
      drawing.AMBER,
      drawing.BLUE,
    )
    for place, (name, values) in enumerate(zip(names, error, strict=True)):
      left = np.arange(len(tasks)) + (place - (len(names) - 1) / 2) * width
      axes.bar(left, values, width * 0.92, color=colors[place], label=name)
    axes.set_xticks(
      range(len(tasks)),
      [
        f'{t}\n(majority class: {m:.1f})'
        for t, m in zip(tasks, majority, strict=True)
      ],
      fontsize=8.5,
    )
    axes.tick_params(axis='x', length=0)
    axes.grid(axis='x', visible=False)
    axes.set_ylabel('test error (%)')
    figure.legend(
      loc='outside upper center', ncols=len(names), columnspacing=1.0
    )

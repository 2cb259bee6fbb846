"""Relations: which owners of layers a case related, as files and a table.

A record has the matrices of all seeds, `[R][N][N]`, or, of many owners, the
name of a file that has them.
"""

from collections.abc import Mapping, Sequence
import csv
import itertools
import pathlib
from typing import Any

import numpy as np

from ..folders import files
from ..running import processes
from . import drawing
from . import results
from . import tables
from . import texts

Record = results.Record
RELATIONS = 'relations'
MOST_OWNERS = 200  # More than that are in a file of their own.
_MOST_DRAWN = 2000
_MOST_NAMES = 80  # More owners than that have no room for their names,
_MOST_BESIDE = 25  # and more than that not with two panels in a row.
_CSV_HEADER = ('case', 'owner', 'other', 'mean', 'std')


def kept(
  matrices: np.ndarray | None, workdir: pathlib.Path, case: str
) -> dict[str, Any]:
  """What a record keeps of the matrices of a case, which are written as well.

  The first process writes them, whose folder it is.

  Args:
    matrices: `[R, N, N]`, NaN where undefined; None if there are none.
    workdir: Of the run.
    case: Its name.
  """
  if matrices is None:
    return {}
  matrices = np.asarray(matrices, np.float32)
  name = f'{RELATIONS}/{case}.npy'
  if processes.is_first():
    _write(workdir / name, matrices)
  if matrices.shape[-1] > MOST_OWNERS:
    return {RELATIONS: {'file': name}}
  numbers = matrices.astype(str).astype(object)  # The shortest ones.
  values = np.vectorize(float, otypes=[object])(numbers)
  values[~np.isfinite(matrices)] = None
  return {RELATIONS: {'matrices': values.tolist()}}


def _write(path, matrices):
  path.parent.mkdir(exist_ok=True)
  with files.replacing(path) as unfinished, unfinished.open('wb') as file:
    np.save(file, matrices)


def of_clusters(clusters: Any) -> np.ndarray | None:
  """Which clients were in one cluster last, `[R, M, M]` ones and zeros.

  Args:
    clusters: `[R][M]`, None before a client's first one; None if there are no
      clusters.
  """
  if clusters is None:
    return None
  of_client = np.asarray(clusters, np.float64)  # NaN equals nothing.
  found = (of_client[:, :, None] == of_client[:, None]).astype(np.float32)
  return found * (1 - np.eye(of_client.shape[1], dtype=np.float32))


def matrices(record: Record, workdir: pathlib.Path) -> np.ndarray | None:
  """The matrices of a record, `[R, N, N]` float64, NaN where undefined.

  Raises:
    ValueError: If their file is not there, or another one.
  """
  known = record.get(RELATIONS)
  if known is None:
    return None
  if 'matrices' in known:
    return np.asarray(known['matrices'], np.float64)
  path = workdir / known['file']
  try:
    found = np.load(path, allow_pickle=False)
    if found.ndim != 3 or len(found) != len(record['seeds']):
      raise ValueError(f'it has the shape {found.shape}')
  except (OSError, ValueError) as error:
    raise ValueError(
      f'{path} is damaged ({error}); remove it and '
      f'cases/{record["case"]}.json, and the same command makes them again.'
    ) from error
  return found.astype(np.float64)


def owners(record: Record, count: int) -> list[str]:
  """The names of the owners that a matrix is of: clients, or tasks.

  Args:
    record: Of one case.
    count: N. A client is named by its task where nobody else has it.
  """
  tasks, clients = record['tasks'], record['clients']
  if count != len(clients):
    if count == len(tasks):
      return list(tasks)
    return [str(number) for number in range(count)]
  held = np.asarray(record['client_tasks'], int)
  held = held[0] if held.ndim == 3 else held
  of_client = [
    [tasks[task] for task in slots if task < len(tasks)] for slots in held
  ]
  once = sorted(task for slots in of_client for task in slots) == sorted(tasks)
  if once and all(len(slots) == 1 for slots in of_client):
    return [slots[0] for slots in of_client]
  if len(tasks) == 1:
    return list(clients)
  return [
    f'{client} {"+".join(slots)}'.strip()
    for client, slots in zip(clients, of_client, strict=True)
  ]


def stability(found: np.ndarray) -> float:
  """How much the matrices of seeds agree.

  Args:
    found: `[R, N, N]`.

  Returns:
    The mean over pairs of seeds of the correlation of the entries off the
    diagonals; NaN for one seed, or where the entries of one are all the same.
  """
  off = ~np.eye(found.shape[-1], dtype=bool)
  rows = [matrix[off] for matrix in found]
  each = [_correlation(*pair) for pair in itertools.combinations(rows, 2)]
  return float(np.mean(each)) if each else float('nan')


def _correlation(first, second):
  """Pearson's, NaN where undefined."""
  if not first.size or np.ptp(first) == 0 or np.ptp(second) == 0:
    return np.nan
  return np.corrcoef(first, second)[0, 1]


def build(
  records: Sequence[Record], workdir: pathlib.Path
) -> list[dict[str, Any]]:
  """What `results.json` has of relations, an entry for each case with some.

  Args:
    records: Of the cases.
    workdir: Of the run.

  Returns:
    `case`, `owners` (names), `seeds`, `stability`; `mean`, `[N][N]` over seeds,
    or `file`, where there are many owners.
  """
  found = []
  for record in records:
    of_seeds = matrices(record, workdir)
    if of_seeds is None:
      continue
    known = record[RELATIONS]
    found.append(
      {
        'case': record['case'],
        'owners': owners(record, of_seeds.shape[-1]),
        'seeds': list(record['seeds']),
        'stability': stability(of_seeds),
        **(
          {'file': known['file']}
          if 'file' in known
          else {'mean': of_seeds.mean(0).tolist()}
        ),
      }
    )
  return results.strict(found)


def write_csv(
  path: pathlib.Path, records: Sequence[Record], workdir: pathlib.Path
) -> None:
  """Writes mean and deviation over seeds of all pairs of owners, one a line.

  Cases of many owners are left out; without any there is no file.
  """
  rows: list[tuple[Any, ...]] = []
  for record in records:
    of_seeds = matrices(record, workdir)
    if of_seeds is None or 'file' in record[RELATIONS]:
      continue
    mean, std = results.mean_and_std(np.moveaxis(of_seeds, 0, -2))
    names = owners(record, len(mean))
    for i, j in itertools.permutations(range(len(names)), 2):
      values = (
        '' if np.isnan(x) else float(x) for x in (mean[i, j], std[i, j])
      )
      rows.append((record['case'], names[i], names[j], *values))
  write_rows(path, _CSV_HEADER, rows)


def write_rows(
  path: pathlib.Path, header: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
  """Writes a CSV file; without rows there is none."""
  if not rows:
    return
  with (
    files.replacing(path) as unfinished,
    unfinished.open('w', encoding=files.ENCODING, newline='') as file,
  ):
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(header)
    writer.writerows(rows)


def table(
  entries: Sequence[Mapping[str, Any]], records: Sequence[Record]
) -> tables.Table:
  """The table of relations: owners, strongest pair and stability of each case.

  Args:
    entries: As of `build`, one at least.
    records: Of the cases.
  """
  labels = {record['case']: record['label'] for record in records}
  rows, notes = [], []
  for entry in entries:
    strongest = '–'
    if 'mean' in entry:
      strongest = _strongest(np.asarray(entry['mean'], float), entry['owners'])
    else:
      notes.append(
        f'{labels[entry["case"]]}: the matrices of {len(entry["owners"])} '
        f'owners are in {entry["file"]}, those of each seed.'
      )
    rows.append(
      (
        labels[entry['case']],
        str(len(entry['owners'])),
        strongest,
        texts.signed(entry['stability'], 2),
      )
    )
  return tables.Table(
    title='Relations between owners',
    header=(texts.CASE, 'owners', 'strongest pair', 'stability'),
    rows=tuple(rows),
    notes=(
      'Stability: the correlation of the relations of two seeds, mean over '
      'pairs of seeds; 1 if they are the same.',
      *notes,
    ),
  )


def _strongest(mean, names):
  """The pair of owners with the largest weight, or how many, and the weight."""
  pairs = np.where(np.eye(len(mean), dtype=bool), np.nan, mean)
  if np.isnan(pairs).all() or np.nanmin(pairs) == np.nanmax(pairs):
    return texts.MISSING
  places = np.argwhere(pairs == np.nanmax(pairs))
  found = {tuple(sorted(place)) for place in places.tolist()}
  (i, j), *others = sorted(found)
  named = f'{len(found)} pairs' if others else f'{names[i]}, {names[j]}'
  return f'{named}: {np.nanmax(pairs):.3g}'


def order(mean: np.ndarray) -> np.ndarray:
  """Owners so that those with large weights are beside each other, `[N]`.

  That of the leaves of a hierarchical clustering, by mean distances; of at most
  200 owners the best one.

  Args:
    mean: `[N, N]`, finite.
  """
  from scipy.cluster import hierarchy
  from scipy.spatial import distance

  near = (mean + mean.T) / 2
  off = ~np.eye(len(near), dtype=bool)
  if len(near) < 3 or np.ptp(near[off]) == 0:
    return np.arange(len(near))
  far = np.where(off, near[off].max() - near, 0)
  links = hierarchy.linkage(
    distance.squareform(far, checks=False),
    'average',
    optimal_ordering=len(near) <= MOST_OWNERS,
  )
  return hierarchy.leaves_list(links)


def heat_maps(
  path: drawing.Paths, records: Sequence[Record], workdir: pathlib.Path
) -> bool:
  """Draws the mean matrix of each case that relates owners, ordered.

  Args:
    path: Where the picture goes, or several; see `drawing.figure`.
    records: Of the cases.
    workdir: Of the run.

  Returns:
    Whether there is anything to draw; nothing is written otherwise.
  """
  panels = []
  for record in records:
    of_seeds = matrices(record, workdir)
    if of_seeds is None or of_seeds.shape[-1] > _MOST_DRAWN:
      continue
    mean = of_seeds.mean(0)
    if np.isfinite(mean).all():
      panels.append((record, mean, stability(of_seeds)))
  if not panels:
    return False
  most = max(len(mean) for _, mean, _ in panels)
  columns = 1 if len(panels) == 1 or most > _MOST_BESIDE else 2
  rows = -(-len(panels) // columns)
  with drawing.figure(path, height=0.5 + rows * 7 / columns) as figure:
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (record, mean, stable) in zip(grid.flat, panels, strict=False):
      _heat_map(figure, axes, record, mean, columns)
      said = f'\nstability over seeds {texts.signed(stable, 2)}'
      said = '' if np.isnan(stable) else said
      label = drawing.wrapped(record['label'])
      axes.set_title(f'{label}{said}', fontsize=9)
    for axes in list(grid.flat)[len(panels) :]:
      axes.set_axis_off()
    seeds = texts.counted(len(panels[0][0]['seeds']), 'seed')
    drawing.title(figure, f'Relations between owners: mean of {seeds}')
  return True


def _heat_map(figure, axes, record, mean, columns):
  """One matrix with names and a scale, its diagonal left out."""
  place = order(mean)
  shown = mean[np.ix_(place, place)]
  np.fill_diagonal(shown, np.nan)
  most = np.nanmax(np.abs(shown)) if len(shown) > 1 else 0
  most = most or 1.0
  signed = len(shown) > 1 and np.nanmin(shown) < 0
  image = axes.imshow(
    shown,
    cmap='RdBu' if signed else 'Blues',
    vmin=-most if signed else 0,
    vmax=most,
    interpolation='nearest',
  )
  axes.set_facecolor(drawing.LIGHT_GREY)
  axes.grid(visible=False)
  names = np.asarray(owners(record, len(mean)))[place]
  if len(names) <= _MOST_NAMES:
    size = min(8.0, 330 / columns / len(names))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.tick_params(length=0)
  else:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(f'{len(names)} owners, ordered')
  figure.colorbar(image, ax=axes, shrink=0.7)

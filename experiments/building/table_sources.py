"""Sources of tables: schools, patients, sites, machines, banks as clients.

A linear model of their columns is a network without hidden layers
(`model.hidden=()`). A source with one target makes every client a task; one
with several has a task for each, which all clients hold, and `data.kind` names
one of them to make every client a task of it. So do the sources that are drawn,
`transactions` and `farms`, as `data.synthetic` says.
"""

from collections.abc import Callable, Sequence
import functools

import ml_collections
import numpy as np

from ..configuration import fields
from . import sources
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import ai4i
from fmtl_jax.data import credit
from fmtl_jax.data import farms
from fmtl_jax.data import heart_disease
from fmtl_jax.data import landmine
from fmtl_jax.data import parkinsons
from fmtl_jax.data import schools
from fmtl_jax.data import tables
from fmtl_jax.data import transactions

_MakeTask = Callable[..., tasks_lib.Task]


def load_school(
  data: ml_collections.ConfigDict, *, name: str
) -> sources.Source:
  """Test results of pupils; each school is a task.

  Args:
    data: The config's `data`.
    name: `exam`, `math_achieve` or `bdf`.
  """
  _check_kind(data, ('',))
  return _task_of_each_owner(schools.load(name), 0, 'school')


def load_star(data: ml_collections.ConfigDict) -> sources.Source:
  """Eight tests of pupils at 80 schools, or the one that `data.kind` names.

  Two files make parties of all eight: what is known of a pupil at home, and to
  which kind of class a school sent the pupil.
  """
  _check_kind(data, ('', *schools.STAR_TARGETS))
  table = schools.load_star(data.kind)
  if data.kind:
    return _task_of_each_owner(table, 0, 'school')
  of_class = np.array([name.startswith('star') for name in table.feature_names])
  source = _shared_tasks(table, [tasks_lib.regression] * len(table.label_names))
  return source._replace(
    parties={
      'pupil': tuple(np.flatnonzero(~of_class).tolist()),
      'school': tuple(np.flatnonzero(of_class).tolist()),
    }
  )


def load_parkinsons(data: ml_collections.ConfigDict) -> sources.Source:
  """Recordings of 42 patients with two scores; `data.kind`: motor or total."""
  scores = dict(zip(('motor', 'total'), parkinsons.TARGETS, strict=True))
  _check_kind(data, ('', *scores))
  table = parkinsons.load(_manual_dir(data, parkinsons.FILE, parkinsons.URL))
  if data.kind:
    column = table.label_names.index(scores[data.kind])
    return _task_of_each_owner(table, column, 'patient')
  return _shared_tasks(table, [tasks_lib.regression] * 2)


def load_landmine(data: ml_collections.ConfigDict) -> sources.Source:
  """Radar images of 29 sites: mine or clutter; each site is a task."""
  _check_kind(data, ('',))
  where = 'https://jmlr.org/papers/v8/xue07a.html'
  table = landmine.load(_manual_dir(data, landmine.FILE, where))
  return _task_of_each_owner(table, 0, 'site', tasks_lib.binary)


def load_heart_disease(data: ml_collections.ConfigDict) -> sources.Source:
  """Patients of four hospitals; `data.kind`: disease or severity alone."""
  _check_kind(data, ('', *heart_disease.TARGETS))
  table = heart_disease.load(
    _manual_dir(data, 'processed.*.data', heart_disease.URL)
  )
  severity = functools.partial(
    tasks_lib.multiclass, num_classes=heart_disease.NUM_SEVERITIES
  )
  makers: list[_MakeTask] = [tasks_lib.binary, severity]
  if data.kind:
    column = table.label_names.index(data.kind)
    return _task_of_each_owner(table, column, '', makers[column])
  return _shared_tasks(table, makers)


def load_ai4i(data: ml_collections.ConfigDict) -> sources.Source:
  """Products of three grades; `data.kind`: a mode of failure, or `partial`.

  With `partial` every grade lacks the labels of one mode.
  """
  _check_kind(data, ('', 'partial', *ai4i.TARGETS))
  folder = _manual_dir(data, ai4i.FILE, ai4i.URL)
  table = ai4i.load(folder, logs_all=data.kind != 'partial')
  if data.kind in ai4i.TARGETS:
    column = ai4i.TARGETS.index(data.kind)
    return _task_of_each_owner(table, column, 'grade', tasks_lib.binary)
  return _shared_tasks(table, [tasks_lib.binary] * len(ai4i.TARGETS))


def load_credit(data: ml_collections.ConfigDict) -> sources.Source:
  """Loans of two institutions: which of them went bad."""
  _check_kind(data, ('',))
  return _task_of_each_owner(credit.load(), 0, '', tasks_lib.binary)


def load_transactions(data: ml_collections.ConfigDict) -> sources.Source:
  """Synthetic card payments of banks; `data.kind`: one of the two frauds."""
  _check_kind(data, ('', *transactions.TARGETS))
  how = data.synthetic
  with fields.named(_of_generator('num_banks', 'per_bank')):
    drawn = transactions.generate(how.owners, how.examples, how.seed)
  table = tables.Table(
    features=drawn.features,
    feature_names=transactions.FEATURES,
    labels=drawn.labels,
    label_names=transactions.TARGETS,
    keys=drawn.keys,
  )
  return _drawn(data, table, 'bank', [tasks_lib.binary] * 2)


def load_farms(data: ml_collections.ConfigDict) -> sources.Source:
  """Synthetic patches of fields at sites; `data.kind`: crop or pest alone."""
  names = ('crop', 'pest')
  _check_kind(data, ('', *names))
  how = data.synthetic
  with fields.named(
    _of_generator('num_sites', 'per_site') | {'alpha': 'data.synthetic.alpha'}
  ):
    drawn = farms.generate(how.owners, how.examples, how.seed, how.alpha)
  table = tables.Table(
    features=drawn.pictures,
    feature_names=(),
    labels=drawn.labels,
    label_names=names,
    keys=drawn.keys,
  )
  makers = [
    functools.partial(tasks_lib.multiclass, num_classes=len(classes))
    for classes in (farms.CROPS, farms.PESTS)
  ]
  return _drawn(data, table, 'site', makers)


def _of_generator(owners: str, examples: str) -> dict[str, str]:
  """The fields of the arguments of a generator."""
  section = 'data.synthetic'
  return {owners: f'{section}.owners', examples: f'{section}.examples'}


def _drawn(
  data: ml_collections.ConfigDict,
  table: tables.Table,
  what: str,
  makers: Sequence[_MakeTask],
) -> sources.Source:
  """The source of a generator: all tasks, or one of them by owner."""
  if not data.kind:
    return _shared_tasks(table, makers)
  column = table.label_names.index(data.kind)
  return _task_of_each_owner(table, column, what, makers[column])


def _task_of_each_owner(
  table: tables.Table,
  column: int,
  what: str,
  make: _MakeTask = tasks_lib.regression,
) -> sources.Source:
  """A source in which every owner is a task, of the rows with a label.

  Args:
    table: The data.
    column: Of the labels.
    what: An owner is, before its key in the task's name.
    make: The task of a name.
  """
  keep = ~np.isnan(table.labels[:, column])
  labels, keys = table.labels[keep][:, [column]], table.keys[keep]
  named = {f'{what} {key}'.strip(): key for key in np.unique(keys).tolist()}
  tasks = tuple(make(name) for name in named)
  return sources.Source(
    features=table.features[keep],
    feature_names=table.feature_names,
    labels=labels,
    tasks=tasks,
    strata=_strata(labels, tasks[:1]),
    keys=keys,
    shared_labels=False,
    task_keys=named,
  )


def _shared_tasks(
  table: tables.Table, makers: Sequence[_MakeTask]
) -> sources.Source:
  """A source in which all owners have all tasks, as far as they have labels."""
  tasks = tuple(
    make(name, column=column)
    for column, (name, make) in enumerate(
      zip(table.label_names, makers, strict=True)
    )
  )
  return sources.Source(
    features=table.features,
    feature_names=table.feature_names,
    labels=table.labels,
    tasks=tasks,
    strata=_strata(table.labels, tasks),
    keys=table.keys,
  )


def _strata(labels: np.ndarray, tasks: Sequence[tasks_lib.Task]) -> np.ndarray:
  """`[N]`, the classes of each row, and which of its labels are missing."""
  shown = np.isnan(labels).astype(int)
  for task in tasks:
    if task.definition.has_classes:
      of_task = np.nan_to_num(labels[:, task.column], nan=-1)
      shown = np.concatenate([shown, of_task[:, None].astype(int)], 1)
  return np.unique(shown, axis=0, return_inverse=True)[1].reshape(-1)


def _check_kind(data: ml_collections.ConfigDict, known: Sequence[str]) -> None:
  if data.kind not in known:
    raise ValueError(
      f'Expected data.kind of {data.name!r} to be one of '
      f'{", ".join(map(repr, known))}, got {data.kind!r}.'
    )


def _manual_dir(data: ml_collections.ConfigDict, files: str, where: str) -> str:
  if not data.manual_dir:
    raise ValueError(
      f'Expected data.manual_dir to be the folder with {files} of {where}, got '
      'none; name it.'
    )
  return data.manual_dir

"""Cards: what there is to know of a model and of a run, for who gets them.

Markdown with a YAML header as the Hugging Face Hub reads it: `README.md` for a
model, `RESULTS.md` for the table that it is from.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import yaml

from ..building import terms
from ..configuration import config as config_lib
from ..configuration import own_code
from . import results
from . import tables as tables_lib
from . import texts
from fmtl_jax import evaluation
from fmtl_jax import metrics as metrics_lib
from fmtl_jax import predictors
from fmtl_jax.storage import digests

Record = results.Record
MODEL, RESULTS = 'README.md', 'RESULTS.md'
UNKNOWN = 'unknown'  # Of a licence, as the Hub has it.
# How the Hub calls metrics; others have their own names.
_METRICS = {'auc': 'roc_auc', 'brier': 'brier_score', 'macro_f1': 'f1'}


class Value(NamedTuple):
  """One number of a model.

  Attributes:
    metric: Its name.
    words: As in tables, with its unit.
    value: Of this model, None if it is not defined.
    mean: Over the seeds of the run, None for what differs by seed otherwise.
    std: With ddof 1.
    view: `pooled` or `client`.
  """

  metric: str
  words: str
  value: float | None
  mean: float | None
  std: float | None
  view: str


def values_of_task(record: Record, seed: int, task: str) -> list[Value]:
  """The test results of the model of a task, the loss last."""
  found = []
  place = record['seeds'].index(seed), record['tasks'].index(task)
  for name in record['curve']['values']:
    split, view, metric = name.split('/')
    if split != 'test' or metric != metrics_lib.base_name(metric):
      continue
    last = results.curve(record, split, view, metric)[-1]
    mean, std = results.mean_and_std(last[:, place[1] : place[1] + 1])
    words = results.describe(split, metric, [record])
    number = last[place]
    if not np.isnan(number):
      row = (metric, words, *map(float, (number, mean[0], std[0])), view)
      found.append(Value(*row))
  return found


def values_of_client(
  record: Record, seed: int, client: str, slot: int
) -> list[Value]:
  """The results of a client's model on its own test examples."""
  found = []
  place = (
    record['seeds'].index(seed),
    record['clients'].index(client),
    slot,
  )
  for name, values in record['client_values'].items():
    split, _, metric = name.partition('/')
    if split != 'test' or metric == 'count':
      continue
    value = np.asarray(values, np.float64)[place]
    if not np.isnan(value):
      words = results.describe(split, metric, [record])
      row = (metric, words, float(value), None, None, evaluation.CLIENT)
      found.append(Value(*row))
  return found


def model_card(
  model: predictors.Predictor,
  record: Record,
  values: Sequence[Value],
  *,
  seed: int,
  whose: str,
  licence: str,
  tags: Sequence[str],
  sections: Sequence[tuple[str, str]],
) -> str:
  """The card of one model.

  Args:
    model: As it is saved.
    record: Of its case.
    values: Its results.
    seed: Of its run.
    whose: Who predicts with it: `client 3 predicts`.
    licence: Under which the weights are passed on, `UNKNOWN` if not said.
    tags: Beside those of all models.
    sections: Titles and Markdown, behind results and layers.
  """
  settings = record['settings']
  task = model.task
  name = f'{record["label"]}: {task.name}'
  header = _header(licence, settings['data.name'], tags, [values])
  header['model-index'] = [
    {'name': name, 'results': [_result(task, settings, values)]}
  ]
  kind = task.definition
  what = f'{task.num_classes} classes' if kind.has_classes else kind.name
  lines = [
    _front(header),
    f'# {_escaped(name)}',
    f'A model for the task {_escaped(task.name)} ({what}) with which '
    f'{_escaped(whose)}: seed {seed} of {_escaped(record["label"])} '
    f'after {texts.counted(record["rounds"], "round")} of training with '
    'fmtl_jax.',
    '## Results',
    _results_table(values, len(record['seeds'])),
    '## Layers, and whose they are',
    _layers_table(model),
    *(part for title, body in sections for part in (f'## {title}', body)),
  ]
  return '\n\n'.join(lines) + '\n'


def result_card(
  records: Sequence[Record],
  tables: Sequence[tables_lib.Table],
  config: Mapping[str, Any],
  *,
  licence: str,
  sections: Sequence[tuple[str, str]],
) -> str:
  """The card of a run: the tables of all its cases.

  Args:
    records: Of the cases.
    tables: As in `results.md`.
    config: Its `report` says which metric and view.
    licence: As of `model_card`.
    sections: As of `model_card`.
  """
  report, flat = config['report'], config_lib.flatten(config)
  index, found = [], []
  for record in records:
    last = results.curve(record, 'test', report.view, report.metric)[-1]
    mean, std = results.mean_and_std(last)
    entries = []
    for column, task in enumerate((*record['tasks'], results.MEAN)):
      if np.isnan(mean[column]):
        continue
      words = results.describe('test', report.metric, [record])
      number, deviation = float(mean[column]), float(std[column])
      value = Value(
        report.metric, words, number, number, deviation, report.view
      )
      found.append(value)
      entries.append(_entry(task, _task_type(flat), flat, [value]))
    if entries:
      index.append({'name': record['label'], 'results': entries})
  header = _header(licence, flat['data.name'], (), [found])
  header['model-index'] = index
  lines = [
    _front(header),
    f'# {_escaped(tables[0].title)}',
    'All cases of a run of fmtl_jax, as it wrote them to `results.md`; '
    '`results.json`, `metrics.csv` and `results.html` of the run have more.',
    *map(tables_lib.to_markdown, tables),
    *(part for title, body in sections for part in (f'## {title}', body)),
  ]
  return '\n\n'.join(lines) + '\n'


def about_data(
  settings: Mapping[str, Any], data: Mapping[str, Any] | None
) -> str:
  """The data, where they are from and under what terms.

  Args:
    settings: Of the run, by dotted field.
    data: Their fingerprint, None if it is not known.
  """
  name = settings['data.name']
  about = terms.SOURCES.get(name)
  lines = [f'- `{name}`' + (f': {about.title}' if about else '')]
  lines.append(
    f'- Terms: {about.terms}'
    if about
    else "- Terms: the source is of the user's own; ask whoever passes this on."
  )
  backbone = terms.BACKBONES.get(settings['model.backbone'])
  if backbone is not None:
    lines += [f'- In front: {backbone.title}', f'- Its terms: {backbone.terms}']
  features = (data or {}).get('features')
  if isinstance(features, Mapping) and 'sha256' in features:
    lines.append(
      f'- {features["shape"][0]:,} examples of the shape '
      f'{features["shape"][1:]}, SHA-256 `{features["sha256"]}`'
    )
  lines.append(
    f'- {settings["data.clients"]} clients asked for, partition '
    f'{settings["data.partition"]}, protocol {settings["data.protocol"]}, '
    f'{settings["data.test_fraction"]:.0%} for the test, '
    f'{settings["data.validation_fraction"]:.0%} for validation.'
  )
  return '\n'.join(lines)


def about_settings(settings: Mapping[str, Any]) -> str:
  """The settings that are not the defaults, as a table."""
  fields = config_lib.changed(settings)
  rows = [(f'`{field}`', config_lib.shown(v)) for field, v in fields.items()]
  return _markdown(('field', 'value'), rows)


def about_environment(made_with: Mapping[str, Any]) -> str:
  """Versions and devices, as a table."""
  rows = [(k, str(v)) for k, v in made_with['environment'].items() if v != '']
  return _markdown(('what', 'value'), rows)


def code(text: str, language: str = '') -> str:
  """A block of code."""
  return f'```{language}\n{text}\n```'


def _header(licence, data, tags, values):
  """The fields that both cards have."""
  return {
    'license': licence,
    'library_name': 'fmtl_jax',
    'tags': [
      *('jax', 'fmtl_jax', 'federated-learning', 'multi-task-learning'),
      *tags,
    ],
    'datasets': [own_code.key(data)],
    'metrics': list(
      dict.fromkeys(_hub_name(v.metric) for of in values for v in of)
    ),
  }


def _hub_name(metric: str) -> str:
  base = metrics_lib.base_name(metric)
  return 'confusion_matrix' if _is_entry(base) else _METRICS.get(base, base)


def _is_entry(metric: str) -> bool:
  """Whether it is one of a confusion matrix."""
  return metric.startswith('confusion_')


def _front(header: Mapping[str, Any]) -> str:
  """The YAML header."""
  text = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)
  return f'---\n{text}---'


def _result(task, settings, values):
  """One entry of a model index: a task and its numbers."""
  kind = 'regression' if task.definition.has_unit else 'classification'
  return _entry(task.name, _task_type(settings, kind), settings, values)


def _task_type(settings, kind='classification'):
  """As the Hub calls them."""
  is_image = settings['model.name'] == 'cnn' or settings['model.backbone']
  if is_image and kind == 'classification':
    return f'image-{kind}'
  return f'tabular-{kind}'


def _entry(task, task_type, settings, values):
  name = own_code.key(settings['data.name'])
  metrics = []
  for value in values:
    if _is_entry(value.metric):
      continue  # All of the matrix are in the text.
    args = {'view': value.view, 'metric': value.metric}
    if value.mean is not None:
      args |= {'mean_over_seeds': value.mean}
    if value.std is not None and not np.isnan(value.std):
      args |= {'std_over_seeds': value.std}
    metrics.append(
      {
        'type': _hub_name(value.metric),
        'name': f'{value.words}, {value.view}',
        'value': value.value,
        'args': args,
      }
    )
  return {
    'task': {'type': task_type, 'name': str(task)},
    'dataset': {'name': name, 'type': name, 'split': 'test'},
    'metrics': metrics,
  }


def _results_table(values, num_seeds):
  rows = []
  for value in values:
    digits = 2 if value.words.endswith('(%)') else 4
    rows.append(
      (
        value.words,
        value.view,
        texts.plus_minus(value.value, None, digits),
        texts.plus_minus(value.mean, value.std, digits),
      )
    )
  over = f'mean ± std of {texts.counted(num_seeds, "seed")}'
  notes = [
    texts.view_note(view) for view in dict.fromkeys(v.view for v in values)
  ]
  table = _markdown(('metric', 'view', 'this model', over), rows)
  return '\n\n'.join([table, *notes])


def _layers_table(model):
  """Layers with the same type and owner, leaf by leaf."""
  rows = []
  for path, leaf in digests.flat(model.params).items():
    shape = ' × '.join(map(str, np.shape(leaf))) or '1'
    size = int(np.prod(np.shape(leaf)))
    layer_type = model.layer_types.get(path, texts.MISSING)
    owner = model.owners.get(path, texts.MISSING)
    rows.append((f'`{path}`', shape, f'{size:,}', layer_type, owner))
  table = _markdown(
    ('parameter', 'shape', 'values', 'layer type', 'of whom'), rows
  )
  count = sum(np.size(leaf) for leaf in jax.tree.leaves(model.params))
  return f'{table}\n\n{count:,} values.'


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A plain table."""
  line = lambda cells: f'| {" | ".join(map(_escaped, cells))} |'
  return '\n'.join(
    [line(header), line([':--'] * len(header)), *map(line, rows)]
  )


def _escaped(text: str) -> str:
  """Text in Markdown, on one line, without tags."""
  text = ' '.join(str(text).split())
  return text.replace('|', r'\|').replace('<', '&lt;').replace('*', r'\*')

"""Exports: a model of a run as files, with its card and that of the run."""

from collections.abc import Sequence
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from ..configuration import cases as cases_lib
from ..configuration import fields
from ..configuration import hints
from ..configuration import own_code
from ..folders import environments
from ..folders import workdirs
from ..reporting import cards
from ..reporting import pages
from ..reporting import reports
from ..reporting import results
from . import models_of_runs
from fmtl_jax import predictors
from fmtl_jax.models import language
from fmtl_jax.storage import saved_models

_LIMITS = (
  'The numbers are those of the test examples above, which were drawn from the '
  'same data as the training examples; of other data they say nothing.',
  'Training was not differentially private: nothing bounds what parameters say '
  'about the examples that they were trained on.',
)


def export(
  workdir: pathlib.Path,
  case: str,
  seed: int,
  output: pathlib.Path,
  *,
  task: str = '',
  client: int | str | None = None,
  slot: int = 0,
  form: str = saved_models.ORBAX,
  licence: str = cards.UNKNOWN,
) -> predictors.Predictor:
  """Saves a model of a run, with `README.md` and `RESULTS.md`.

  A case that is not finished has no results: its model is saved without cards.

  Args:
    workdir: The folder of a run.
    case: A row of its table.
    seed: One of its seeds.
    output: A new folder.
    task: As of `models_of_runs.load`.
    client: As of `models_of_runs.load`.
    slot: As of `models_of_runs.load`.
    form: As of `predictors.Predictor.save`.
    licence: Under which the weights are passed on, as the Hugging Face Hub
      calls it.

  Raises:
    ValueError: If the run, case, seed, task or client does not exist.
  """
  model = models_of_runs.load(
    workdir, case, seed, task=task, client=client, slot=slot
  )
  config, _ = models_of_runs.read_config(workdir)
  records = reports.load_records(workdir, config.cases)
  (record,) = [r for r in records if r['case'] == case] or (None,)
  if record is None:
    model.save(output, form)
    print(
      f'warning: {case} is not finished: its model is saved without cards.',
      file=sys.stderr,
    )
    return model
  if task:
    values = cards.values_of_task(record, seed, task)
    whose = f'all clients of {task} predict'
  else:
    values = cards.values_of_client(record, seed, str(client), slot)
    whose = f'client {client} predicts'
  made = _made(workdir, records)
  data = workdirs.read_config(workdir).get(workdirs.DATA)
  model_card = cards.model_card(
    model,
    record,
    values,
    seed=seed,
    whose=whose,
    licence=licence,
    tags=[own_code.key(cases_lib.get(case).algorithm)],
    sections=[
      ('Use', _use(case, model, record['settings'], data)),
      ('Data', cards.about_data(record['settings'], data)),
      ('Method', _method(case)),
      ('Settings', cards.about_settings(record['settings'])),
      ('Limits', _limits(model, record, licence)),
      *made,
    ],
  )
  result_card = cards.result_card(
    records,
    reports.build_tables(records, config),
    config,
    licence=licence,
    sections=[
      ('Data', cards.about_data(record['settings'], data)),
      (
        'Settings',
        cards.about_settings(workdirs.read_config(workdir)['config']),
      ),
      *made,
    ],
  )
  texts = {cards.MODEL: model_card, cards.RESULTS: result_card}
  model.save(output, form, texts)
  return model


def _made(
  workdir: pathlib.Path, records: Sequence[results.Record]
) -> list[tuple[str, str]]:
  """Commands and versions, of both cards."""
  path = workdir / 'results.json'
  made_with = environments.summary(environments.of_records(records, path))
  commands = '\n'.join(pages.commands(workdir))
  table = cards.about_environment(made_with)
  body = f'{cards.code(commands, "sh")}\n\n{table}' if commands else table
  return [('How it was made', body)]


def _method(case: str) -> str:
  """The algorithm in words, and where it is not as in its paper."""
  algorithm = cases_lib.get(case).algorithm
  spec = own_code.spec(algorithm)
  lines = [f'{spec.label}: {spec.title}']
  if cases_lib.get(case).centralized:
    lines.append(
      'This is a centralized reference: it was trained on the union of the '
      "clients' examples, not by a federation."
    )
  if spec.deviations:
    lines.append(f'Unlike its paper: {spec.deviations}')
  return '\n\n'.join(
    fields.translated(line, fields.of_algorithm(algorithm)) for line in lines
  )


def _use(
  case: str,
  model: predictors.Predictor,
  settings: dict[str, Any],
  data: dict[str, Any] | None,
) -> str:
  """How to load the model; code that runs where the network is known."""
  network = _network(model, settings, data)
  spec = own_code.spec(cases_lib.get(case).algorithm)
  if network is None or spec.has_own_network:
    return (
      'The network is not one that the library builds by name: give its '
      '`apply_fn` to `fmtl_jax.predictors.Predictor.load(FOLDER, apply_fn)`, '
      f'or load it from the run with `{hints.module("studies")}'
      '.models_of_runs.load`.'
    )
  load = cards.code(
    'from fmtl_jax import models, predictors\n\n'
    f'network = {network}\n'
    "model = predictors.Predictor.load('FOLDER', network.apply)\n"
    'model.predict(features)  # As they come, [B, ...].',
    'python',
  )
  return (
    f'{load}\n\n`model.layer_types` and `model.owners` say of each parameter '
    'what the table above says.'
  )


def _network(model, settings, data) -> str | None:
  """The call that makes the network of a model, None if it is not known."""
  features = (data or {}).get('features') or {}
  shape = features.get('shape', [None])[1:]
  if (
    not shape
    or settings['model.backbone']
    or settings.get('precision.compute', 'float32') != 'float32'
    or settings['model.name'] not in ('mlp', 'cnn', 'linear', *language.NAMES)
  ):
    return None
  is_language = settings['model.name'] in language.NAMES
  dtype = np.int32 if is_language else np.float32
  example = jax.ShapeDtypeStruct((1, *shape), dtype)
  outputs = jax.eval_shape(model.apply_fn, model.params, example)
  width = outputs.shape[-1]
  if is_language:
    hidden = tuple(settings['model.hidden'])
    given = [width, settings['model.embedding'], hidden, width]
    if settings['model.name'] == language.TRANSFORMER:
      given = [width, hidden, settings['model.heads'], width]
    arguments = ', '.join(map(repr, given))
    return f'models.{settings["model.name"]}({arguments})'
  given = [tuple(shape)]
  if settings['model.name'] == 'linear':
    given += [width, settings['model.intercept']]
    return f'models.linear({", ".join(map(repr, given))})'
  if settings['model.name'] == 'cnn':
    given.append(tuple(settings['model.channels']))
  given += [tuple(settings['model.hidden']), width]
  if settings['model.name'] == 'cnn':
    given += [settings['model.window'], settings['model.convolution']]
  given.append(settings['model.normalization'])
  arguments = ', '.join(map(repr, given))
  return f'models.{settings["model.name"]}({arguments})'


def _limits(
  model: predictors.Predictor, record: results.Record, licence: str
) -> str:
  """What the model is not good for, as far as the run says."""
  found = list(_LIMITS)
  clients = {o for o in model.owners.values() if o.startswith('client ')}
  if clients:
    found.append(
      f'Parameters of {", ".join(sorted(clients))} were trained on the data of '
      'that client alone, or for it: passing them on is passing on something '
      'of one person or site.'
    )
  found += reports.notes([record])
  if licence == cards.UNKNOWN:
    found.append(
      'Nobody has said under which licence the parameters may be used; whoever '
      'publishes them does, within the terms of the data.'
    )
  return '\n'.join(f'- {sentence}' for sentence in found)

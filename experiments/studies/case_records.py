"""Case records: the results of a finished case as JSON values."""

from typing import Any

import jax
import ml_collections
import numpy as np

from ..building import build
from ..building import datasets
from ..building import federating
from ..building import private
from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..folders import environments
from ..reporting import costs
from ..reporting import results
from . import case_runs
from . import histories
from fmtl_jax import evaluation
from fmtl_jax.running import program as program_lib

Record = dict[str, Any]


def head(
  name: str,
  config: ml_collections.ConfigDict,
  source: datasets.Source,
  overlapping_pairs: int,
) -> Record:
  """The fields of a record that name its case and data."""
  return {
    'case': name,
    'label': cases_lib.label(name, config),
    'tasks': [task.name for task in source.tasks],
    'seeds': case_runs.seeds_of(config),
    'protocol': config.data.protocol,
    'overlapping_pairs': overlapping_pairs,
    **results.own_metrics(source.tasks),
    **({'alignment': dict(source.alignment)} if source.alignment else {}),
  }


def bytes_of_client(
  name: str, case: program_lib.Case, history: histories.History
) -> dict[str, float]:
  """What one client moves in a round, up and down, mean over rounds.

  Args:
    name: Of the case.
    case: What was run.
    history: Of it.
  """
  of_cohort = _moved(name, case, history)
  clients = history.totals['clients'] / max(history.totals['rounds'], 1)
  return {
    way: sum(sizes.values()) / clients if clients else 0.0
    for way, sizes in zip(('up', 'down'), of_cohort, strict=True)
  }


def _moved(name, case, history):
  """Bytes of a round's cohort by layer type, up and down."""
  rounds = max(history.totals['rounds'], 1)
  up, down = costs.moved(
    case,
    case.make_algorithm(case.federation, {}),
    history.totals['clients'] / rounds,
    history.totals['slots'] / rounds,
  )
  if cases_lib.get(name).centralized:
    up = down = dict.fromkeys(up, 0.0)  # The data were moved instead.
  return up, down


def of_case(
  name: str,
  case: program_lib.Case,
  config: ml_collections.ConfigDict,
  history: histories.History,
) -> Record:
  """The record of a finished case, JSON values throughout."""
  run_rounds = max(history.totals['rounds'], 1)
  clients = history.totals['clients'] / run_rounds
  up, down = _moved(name, case, history)
  ledger = private.of_case(name, config, case)
  of_client = lambda sizes: {
    k: v / clients if clients else 0.0 for k, v in sizes.items()
  }
  return {
    'rounds': config.run.rounds,
    'clients': [str(i) for i in case.test_data.partition.client_ids],
    'client_tasks': np.asarray(case.runs.test.client_tasks[0]).tolist(),
    'train_examples': _train_examples(case),
    **history.curves(),
    'client_values': history.client_values,
    **({'privacy': ledger} if ledger else {}),
    environments.KEY: history.environments,
    'settings': {
      field: value
      for field, value in config_lib.flatten(config).items()
      if field.split('.')[0]
      not in (
        *('report', 'cases', 'compare', 'unseen'),
        *('overrides', 'name', 'checkpoint'),
      )
    },
    'cost': {
      'parameters': costs.parameters(case, history.client_values),
      'bytes_up_per_round': up,
      'bytes_down_per_round': down,
      'bytes_up_per_client': of_client(up),
      'bytes_down_per_client': of_client(down),
      'seconds_per_round': history.seconds / run_rounds,
      'compile_seconds': history.compile_seconds,
      'client_steps_per_second': history.totals['steps']
      / max(history.seconds, 1e-9),
    },
  }


def _train_examples(case: program_lib.Case) -> dict[str, Any]:
  """Training examples with a label of tasks `[R][T]` and clients `[R][M]`."""
  counts = np.asarray(case.runs.test.label_counts)
  held = np.asarray(case.runs.test.client_tasks)
  number = range(len(case.test_data.tasks))
  of_tasks = [(counts * (held == task)).sum((1, 2)) for task in number]
  return {
    'tasks': np.stack(of_tasks, axis=1).tolist(),
    'clients': counts.sum(2).tolist(),
  }


def of_majority(
  source: datasets.Source, config: ml_collections.ConfigDict
) -> Record:
  """The record of the majority-class baseline."""
  found: dict[str, list[Any]] = {}
  for seed in case_runs.seeds_of(config):
    data = build.mark_attackers(
      federating.federate(source, config.data, seed), config, seed
    )
    for split in program_lib.splits_of(data.partition):
      pooled, own = (
        getattr(data.partition, name) for name in (f'pooled_{split}', split)
      )
      accuracy = evaluation.majority_class(data, pooled)
      each, summary = evaluation.majority_of_clients(data, own)
      found.setdefault(split, []).append(
        {
          'pooled': {evaluation.ACCURACY: accuracy},
          'client': summary,
          'each': each,
        }
      )
  history = histories.History()
  for split, of_seeds in found.items():
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *of_seeds)
    history.add_evaluation(0, split, stacked)
  zeros = {'common': 0, 'task': 0, 'personal': 0}
  return {
    'rounds': 0,
    environments.KEY: environments.extended([], 0, 0),
    'clients': [str(i) for i in data.partition.client_ids],
    'client_tasks': np.asarray(data.partition.client_tasks).tolist(),
    'curve': {'round': [0], 'values': history.values},
    'train_loss': [],
    'client_values': history.client_values,
    'cost': {
      'parameters': zeros | {'pretrained': 0},
      'bytes_up_per_round': zeros,
      'bytes_down_per_round': zeros,
      'bytes_up_per_client': zeros,
      'bytes_down_per_client': zeros,
      'seconds_per_round': 0.0,
      'compile_seconds': 0.0,
      'client_steps_per_second': 0.0,
    },
  }

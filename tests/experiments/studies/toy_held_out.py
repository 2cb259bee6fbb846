"""Toy studies of held-out clients, for tests."""

import dataclasses
import pathlib
import sys

from experiments.studies import case_runs
from experiments.studies import held_out_data

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test

ALGORITHMS = ('fedavg', 'fedavg_finetune')
OF_PEOPLE = {'data.partition': 'key', 'data.standardize': True}


def config(fields=None):
  """A study of few rounds, with fields by dotted name."""
  return program_test.toy_config(
    {
      'cases': ALGORITHMS,
      'unseen.clients': 2,
      'unseen.examples': (0, 3, 8),
      'unseen.epochs': 2,
      'run.rounds': 4,
      'run.seeds': 2,
    }
    | (fields or {})
  )


def people(**changes):
  """The toy source where every client is a task of its own."""
  source = program_test.toy_source()
  one = [
    dataclasses.replace(source.tasks[0], name=f'person {n}', column=0)
    for n in range(program_test.CLIENTS)
  ]
  people = source._replace(
    labels=source.labels[:, :1],
    tasks=tuple(one),
    runs=source.strata,
    shared_labels=False,
    task_keys={task.name: number for number, task in enumerate(one)},
  )
  return people._replace(**changes)


def splits_of(source, config):
  """The data of all seeds."""
  return [
    held_out_data.hold_out(source, config, seed)
    for seed in case_runs.seeds_of(config)
  ]

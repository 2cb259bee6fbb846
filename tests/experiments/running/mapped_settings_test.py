"""Law: a mapped setting acts as the same value in the config."""

import dataclasses
import functools
import pathlib
import sys

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from experiments.building import factories
from experiments.configuration import config as config_lib
from experiments.configuration import schema
from fmtl_jax import algorithms
from fmtl_jax import evaluation
from fmtl_jax import execution
from fmtl_jax import testing
from fmtl_jax.running import program

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test


def _examples(name):
  """The examples of an algorithm's own settings, by mapped field."""
  return {
    field: rule.examples
    for setting, rule in algorithms.ALGORITHMS[name].settings.items()
    if (field := schema.own_field(name, setting)) in factories.mapped_fields()
  }


# A value that leaves training as it is, and another one, of every mapped field.
_VALUES: dict[str, tuple[float, float]] = {
  **{
    k: v for name in algorithms.ALGORITHMS for k, v in _examples(name).items()
  },
  'balancing.rate': (0.025, 0.5),
  'balancing.temperature': (2.0, 0.2),
  'balancing.alpha': (1.5, 0.1),
  'balancing.decay': (0.001, 30.0),
  'balancing.c': (0.5, 0.1),
  'client.decay': (1.0, 0.5),
  'client.learning_rate': (0.1, 0.3),
  'client.local_epochs': (1, 2),
  'client.momentum': (0.0, 0.5),
  'client.weight_decay': (0.0, 0.1),
  'faults.clip_norm': (10.0, 0.1),
  'participation.dropout': (0.0, 0.4),
  'participation.late': (0.0, 0.4),
  'participation.partial': (0.5, 0.9),
  'participation.least_work': (0.1, 0.6),
  'participation.steps_per_second': (50.0, 40.0),
  'participation.speed_spread': (0.01, 1.0),
  'participation.bytes_per_second': (5e3, 3.5e3),
  'participation.bandwidth_spread': (0.01, 4.0),
  'participation.deadline': (0.1, 0.09),
  'server.common.learning_rate': (1.0, 0.7),
  'server.common.momentum': (0.0, 0.4),
  'server.task.learning_rate': (1.0, 1.2),
  'server.task.momentum': (0.0, 0.3),
}
_OF_ALL = tuple(
  f
  for f in factories.mapped_fields()
  if f.split('.')[0]
  not in ('algorithm', 'balancing', 'faults', 'participation')
)
# Some clients have one of the tasks, some both.
_TWO_TASKS = {
  'data.tasks_per_client': 2,
  'data.coverage': (0.6, 0.8),
  'cohort.clients_per_task': 0,
}
# Methods that read all settings of balancing, where clients have two tasks.
_BALANCED = (
  (('rate', 'alpha', 'c'), {'client': 'cagrad', 'server': 'gradnorm'}),
  (('temperature', 'decay'), {'client': 'famo', 'server': 'dwa'}),
)
_UNEVEN = tuple(
  f
  for f in factories.mapped_fields()
  if f.split('.')[0] in ('faults', 'participation')
)
_OWN = {
  name: fields
  for name, entry in algorithms.ALGORITHMS.items()
  if (
    fields := tuple(
      field
      for setting in entry.own
      if (field := schema.own_field(name, setting)) in factories.mapped_fields()
    )
  )
}


# Some clients are stale: they are slow, and the server waits for one alone.
_CHANGES = {
  'fedast': {
    'algorithm.fedast.buffer': 1,
    'algorithm.fedast.concurrency': 2,
    'participation.clock': True,
    'participation.speed_spread': 1.0,
  }
}
# Its settings act in rounds and in what predicts.
_WHOLE = 'per_fedavg'


def _outcome(case, run):
  """What all rounds of a run measure, and the models that they lead to."""
  train, test = (
    dataclasses.replace(data, partition=partition)
    for data, partition in (
      (case.data, run.train),
      (case.test_data, run.test),
    )
  )
  algorithm = case.make_algorithm(case.federation, run.settings)
  state, rounds = jax.lax.scan(
    lambda state, _: algorithm.round(state, train),
    algorithm.init(run.key, train),
    length=5,
  )
  evaluate = evaluation.evaluator(
    case.test_federation,
    case.make_algorithm(case.test_federation, run.settings),
    case.execution,
    program.CLIENT_AXIS,
  )
  return {'rounds': rounds, 'end': evaluate.models(state, test)}


class MappedSettingsTest(program_test.ToyTestCase):
  """A mapped value acts as the same value in the config.

  The mapped runs and the one with values in the config are compiled as one.
  """

  @parameterized.named_parameters(
    ('of_all', 'multi_task_fl', _OF_ALL),
    *((name, name, f, _CHANGES.get(name)) for name, f in _OWN.items()),
    (
      'uneven',
      'multi_task_fl',
      _UNEVEN,
      {'participation.clock': True, 'faults.nonfinite': 'clip'},
    ),
    *(
      (
        '_and_'.join(methods.values()),
        'multi_task_fl',
        tuple(f'balancing.{setting}' for setting in settings),
        {f'balancing.{place}': method for place, method in methods.items()}
        | _TWO_TASKS,
      )
      for settings, methods in _BALANCED
    ),
  )
  def test_points_are_single_runs_with_these_settings(
    self, name, fields, changes=None
  ):
    values = _VALUES | _examples(name)
    base = {field: values[field][0] for field in fields}
    other = {field: values[field][1] for field in fields}
    points = [base, *(base | {f: other[f]} for f in fields), other]
    network = algorithms.ALGORITHMS[name].network
    config = program_test.toy_config(
      program_test.BATCHES
      | {'client.schedule': 'exponential', 'run.seeds': 1}
      | {f'model.{field}': value for field, value in network.items()}
      | dict(changes or {})
    )
    mapped = program_test.toy_case(config, [3], points, name)
    for field, value in other.items():
      config_lib.set_field(config, field, value)
    found, alone = self.outcomes(
      name, mapped, program_test.toy_case(config, [3], name=name)
    )
    start = jax.tree.leaves(program_test.of_run(found['end'], 0))
    for number, field in enumerate(fields, start=1):
      models = jax.tree.leaves(program_test.of_run(found['end'], number))
      same = [np.array_equal(x, y) for x, y in zip(models, start, strict=True)]
      self.assertFalse(
        all(same),
        f'{field} changes nothing while the others have their first values: as '
        f'a mapped value, or {values[field]} are too near.',
      )
    testing.assert_trees_close(
      program_test.of_run(found, len(points) - 1), alone, rtol=1e-4
    )

  def outcomes(self, name, *given):
    """Metrics of rounds, and the last models or what they answer, by case."""
    if name == _WHOLE:
      found = [
        program_test.toy_run(program.Program(case, 2, 'low')) for case in given
      ]
      return [
        {'rounds': x['rounds'], 'end': (x['validation'], x['test'])}
        for x in found
      ]
    together = lambda runs: [
      jax.lax.map(functools.partial(_outcome, case), of_case)
      for case, of_case in zip(given, runs, strict=True)
    ]
    mesh = execution.mesh({program.CLIENT_AXIS: 1}, jax.local_devices())
    compiled = testing.jit(execution.over_devices(together, mesh))
    return jax.device_get(compiled([case.runs for case in given]))

  def test_every_mapped_field_has_values_here(self):
    self.assertCountEqual(
      factories.mapped_fields(),
      _VALUES,
      'Give every mapped field two values in _VALUES.',
    )

  def test_points_are_the_outer_and_seeds_the_inner_axis(self):
    points = [{'client.learning_rate': rate} for rate in (0.1, 0.2)]
    runs = program_test.toy_case(
      program_test.toy_config(), program_test.SEEDS, points
    ).runs
    rates = np.asarray(runs.settings['client.learning_rate'])
    np.testing.assert_allclose(rates, [0.1] * 3 + [0.2] * 3)
    keys = jax.random.key_data(runs.key)
    np.testing.assert_array_equal(keys[:3], keys[3:])
    rows = runs.train.train.index
    np.testing.assert_array_equal(rows[:3], rows[3:])
    self.assertFalse(np.array_equal(rows[0], rows[1]))


if __name__ == '__main__':
  absltest.main()

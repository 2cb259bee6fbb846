"""Laws: code of the user's own works like the package's, named or given."""

import contextlib
import functools
import io
import json
import pathlib
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.configuration import cases
from experiments.configuration import config as config_lib
from experiments.configuration import own_code
from experiments.folders import workdirs
from experiments.studies import train
from fmtl_jax import algorithms
from fmtl_jax import models

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test

# What a user has in a folder: a source, networks and algorithms.
MODULE = """
import dataclasses
import functools

from fmtl_jax import algorithms
from fmtl_jax import clients
from fmtl_jax import metrics
from fmtl_jax import models
from fmtl_jax.algorithms import federated_averaging
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.algorithms import specs
from tests.experiments.running import program_test

NUMBER = 3


def toys(data, *, shift=0.0):
  source = program_test.toy_source()
  return source._replace(features=source.features + shift)


def labels_of_others(data):
  source = program_test.toy_source()
  return source._replace(labels=source.labels[:-1])


def no_source(data):
  return 1, 2


def nobody(data):
  source = program_test.toy_source()
  arrays = ('features', 'labels', 'strata', 'keys')
  return source._replace(**{k: getattr(source, k)[:0] for k in arrays})


def objects(data):
  source = program_test.toy_source()
  return source._replace(features=source.features.astype(object))


def listed(data):
  source = program_test.toy_source()
  return source._replace(keys=['somebody'] * len(source.features))


def ends(data):
  raise SystemExit(3)


def needs(data, what):
  return program_test.toy_source()


def fails(data):
  raise KeyError('a cause')


SURE = metrics.Metric(
  name='sure', values=lambda answers: answers.losses < 0.5, in_percent=True
)
AGAIN = metrics.Metric(name='accuracy', values=lambda answers: answers.losses)


def square(outputs, targets, features):
  return (outputs[:, 0] - targets) ** 2


def squared(tasks):
  return [dataclasses.replace(task, loss=square) for task in tasks]


def tuned(tasks, *, factor=0.5):
  return tasks


def renamed(tasks):
  return [dataclasses.replace(task, name=task.name + 's') for task in tasks]


def no_tasks(tasks):
  return tasks[0]


def net(shape, num_outputs, *, width=4):
  return models.mlp(shape, (width,), num_outputs)


def wide(shape, num_outputs):
  return models.mlp(shape, (4,), num_outputs + 1)


def deep(shape, num_outputs):
  return models.mlp((*shape, 2), (4,), num_outputs)


def no_net(shape, num_outputs):
  return 'a network'


def myprox(federation, local, settings, *, mu=0.3, loss=None):
  update = clients.local_sgd(federation, local, proximal=mu)
  return federated_averaging.federated_averaging(federation, update, settings)


def heads(federation, local, settings, *, mu=0.3):
  return myprox(federation, local, settings, mu=mu)


HEADS = algorithms.Spec(
  name='heads',
  label='Heads of tasks',
  doc=None,
  family=specs.MULTI_TASK,
  year=2026,
  build=heads,
  label_rules=multi_task_fl.label_rules,
  depths=('task_layers', 'personal_layers'),
  settings={
    'mu': algorithms.Setting(help='Pull.', least=0, examples=(0.1, 1.0))
  },
)


def no_algorithm(federation, local, settings):
  return None


def late(federation, local, settings):
  def fails(state, data, frozen=None):
    raise KeyError('in a round')

  return myprox(federation, local, settings)._replace(round=fails)


def fedprox(federation, local, settings):
  return myprox(federation, local, settings)
"""
NAME = 'users_code_of_a_test'
PROX = f'{NAME}:myprox'


class OwnCodeTestCase(program_test.ToyTestCase):
  """Has the module of a user in a folder in front, and one that is broken."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    pathlib.Path(folder, f'{NAME}.py').write_text(MODULE, encoding='utf-8')
    pathlib.Path(folder, 'broken_code_of_a_test.py').write_text(
      'import no_such_library', encoding='utf-8'
    )
    sys.path.insert(0, folder)
    cls.addClassCleanup(sys.path.remove, folder)
    cls.addClassCleanup(sys.modules.pop, NAME, None)

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(folder, 'run')

  def run_table(self, fields, **settings):
    """Records by case, and what was said, of two rounds."""
    config = program_test.toy_config(
      {
        'data.name': f'{NAME}:toys',
        'model.name': f'{NAME}:net',
        'run.rounds': 2,
        'run.seeds': 1,
      }
      | fields
    )
    for field, value in settings.items():
      config_lib.put_field(config, field.replace('__', '.'), value)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
      train.train_and_evaluate(config, self.workdir)
    records = {
      path.stem: json.loads(path.read_text(encoding='utf-8'))
      for path in (self.workdir / 'cases').glob('*.json')
    }
    return records, said.getvalue()


class MistakesTest(OwnCodeTestCase):
  """What is wrong is a sentence before anything is written."""

  @parameterized.parameters(
    ('data.name', 'toys:', 'data.name to be package.module:NAME, got .toys:'),
    ('data.name', 'a-b:c', 'data.name to be package.module:NAME'),
    ('data.name', 'nowhere.at_all:f', "'nowhere.at_all' .*start in the folder"),
    ('data.name', 'broken_code_of_a_test:f', "'no_such_library'.*correct it"),
    ('data.name', f'{NAME}:toy', "has no 'toy'; .* Did you mean 'toys'"),
    ('data.name', f'{NAME}:NUMBER', r'a function \(data\), got 3'),
    ('data.name', f'{NAME}:needs', r"to take \(data\) .*'what'"),
    ('data.name', f'{NAME}:fails', "raised an error .KeyError: 'a cause'"),
    ('data.name', f'{NAME}:ends', 'raised an error .SystemExit'),
    ('data.name', f'{NAME}:nobody', 'with examples, got none'),
    ('data.name', f'{NAME}:objects', 'as features, got Python objects'),
    ('data.name', f'{NAME}:listed', 'got a list as keys; make it an array'),
    ('data.name', 'json.at_all:f', r'that is in \S*json, or start in'),
    ('data.name', 'bisect.at_all:f', r'that is in \S*bisect.py, or start in'),
    ('data.name', f'{NAME}:no_source', 'a datasets.Source, got tuple'),
    ('data.name', f'{NAME}:labels_of_others', r'with labels \[N, L\]'),
    ('data.name', 'given:mine', 'in another process; give it again'),
    ('data.tasks', f'{NAME}:wide', r'to take \(tasks\)'),
    ('data.tasks', f'{NAME}:tuned', r'to take \(tasks\) alone'),
    ('data.tasks', f'{NAME}:fails', "raised an error .KeyError: 'a cause'"),
    ('data.tasks', f'{NAME}:no_tasks', r'return a list of tasks.Task.* got'),
    ('data.tasks', f'{NAME}:renamed', 'with their names .* got'),
    ('data.metrics', (f'{NAME}:net',), 'to name values of metrics.Metric'),
    ('data.metrics', (f'{NAME}:AGAIN',), 'accuracy more than once'),
    ('data.metrics', (f'{NAME}:SURF',), "has no 'SURF'; .* mean 'SURE'"),
    ('model.name', f'{NAME}:nets', "has no 'nets'; .* Did you mean 'net'"),
    ('model.name', f'{NAME}:no_net', "a models.Model, .* got 'a network'"),
    ('model.name', f'{NAME}:wide', r'outputs \[B, 1\], .* got \(2, 2\)'),
    ('model.name', f'{NAME}:deep', 'raised an error'),
    ('algorithm.name', f'{NAME}:myprx', "Did you mean 'myprox'"),
    (
      'algorithm.name',
      f'{NAME}:NUMBER',
      'federation, local, settings.*, got 3',
    ),
    (
      'algorithm.name',
      f'{NAME}:toys',
      r'to take \(federation, local, settings',
    ),
    (
      'algorithm.name',
      f'{NAME}:no_algorithm',
      'algorithms.Algorithm.* got None',
    ),
    ('algorithm.name', f'{NAME}:fedprox', 'another name behind the colon'),
  )
  def test_a_wrong_name_is_a_sentence(self, field, name, sentence):
    with self.assertRaisesRegex(ValueError, f'^(?s:.)*{sentence}') as caught:
      self.run_table({field: name})
    self.assertNotIn('\n', str(caught.exception))
    self.assertFalse(self.workdir.exists())

  @parameterized.parameters(
    ('data.own.shft', 1.0, "'data.own.shft'. Did you mean 'data.own.shift'"),
    ('data.own.shift', 'far', 'Expected data.own.shift to be like 0.0'),
    ('model.own.width', 2.5, 'Expected model.own.width to be like 4'),
    (
      'algorithm.myprox.mu',
      True,
      'Expected algorithm.myprox.mu to be like 0.3',
    ),
    (
      'algorithm.myprox.loss',
      1,
      "Unknown config field 'algorithm.myprox.loss'",
    ),
    ('overrides.myprx.client.momentum', 0.1, "Did you mean 'myprox'"),
    ('report.labels.myprx', 'Mine', "Did you mean 'myprox'"),
  )
  def test_a_wrong_setting_is_a_sentence(self, field, value, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      self.run_table({'cases': (PROX,)}, **{field.replace('.', '__'): value})
    self.assertFalse(self.workdir.exists())

  def test_two_of_one_name_are_refused(self):
    with self.assertRaisesRegex(
      ValueError, "'given:myprox' .*'myprox', .*name"
    ):
      given = own_code.named(lambda f, local, s: None, 'myprox')
      self.run_table({'cases': (PROX, given)})


class RoundTest(OwnCodeTestCase):
  def test_an_error_in_a_round_is_a_sentence(self):
    with self.assertRaisesRegex(
      ValueError, "algorithm.name=.*:late raised .*KeyError: 'in a round'"
    ):
      self.run_table({'cases': (f'{NAME}:late',)})


class TasksTest(OwnCodeTestCase):
  """Tasks of any source may have a user's loss and metrics."""

  def test_a_named_loss_trains_and_a_named_metric_is_reported(self):
    fields = {'cases': ('fedavg',), 'client.batch_size': 0}
    plain, _ = self.run_table(fields)
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(folder, 'own')
    fields |= {
      'data.tasks': f'{NAME}:squared',
      'data.metrics': (f'{NAME}:SURE',),
      'report.metric': 'sure',
    }
    own, said = self.run_table(fields)
    self.assertNotEqual(
      plain['fedavg']['train_loss'], own['fedavg']['train_loss']
    )
    curve = own['fedavg']['curve']['values']['test/pooled/sure']
    self.assertBetween(np.min(curve), 0, 100)
    self.assertIn('sure', said)
    _, said = self.run_table(fields)
    self.assertNotIn('warning', said)
    with self.assertRaisesRegex(ValueError, 'data.tasks'):
      self.run_table(fields | {'data.tasks': ''})
    with open(sys.modules[NAME].__file__, 'a', encoding='utf-8') as file:
      file.write('\n# One more line.\n')
    _, said = self.run_table(fields)
    for name in ('squared', 'SURE'):
      self.assertIn(f'warning: The code of {NAME}:{name} was changed', said)


class ObjectsTest(OwnCodeTestCase):
  """Objects have names, too."""

  def test_what_can_be_imported_is_called_so(self):
    own_code.find('data.name', f'{NAME}:toys')
    for attribute in ('toys', 'net', 'myprox'):
      value = getattr(sys.modules[NAME], attribute)
      self.assertEqual(own_code.named(value), f'{NAME}:{attribute}')

  def test_another_object_is_kept_under_a_name(self):
    net = functools.partial(models.mlp, hidden=(3,))
    with self.assertRaisesRegex(ValueError, 'Expected a name for .*partial'):
      own_code.named(net)
    name = own_code.named(
      lambda shape, width: net(shape, num_outputs=width), 'n'
    )
    self.assertEqual(name, 'given:n')
    self.assertEqual(own_code.settings_of('model.name', name), {})
    entry = algorithms.ALGORITHMS['ditto']
    name = own_code.named(entry, 'mine')
    self.assertEqual(own_code.spec(name).defaults, entry.defaults)

  def test_settings_are_keywords_with_plain_defaults(self):
    self.assertEqual(own_code.settings_of('algorithm.name', PROX), {'mu': 0.3})
    config = program_test.toy_config({'cases': ('fedavg',)})
    config = cases.with_own(config, [PROX, 'fedprox'])
    self.assertEqual(config.cases, ('fedavg', PROX))
    self.assertEqual(config.algorithm.myprox.to_dict(), {'mu': 0.3})


class TableTest(OwnCodeTestCase):
  """A user's algorithm is a row of the table, with settings of its own."""

  def test_a_copy_has_the_numbers_of_the_original(self):
    fields = {
      'cases': ('fedprox', PROX, f'{NAME}:HEADS'),
      'algorithm.mu': 0.7,
      'data.test_fraction': 0.3,
    }
    settings = {
      'algorithm__myprox__mu': 0.1,  # The override of the case counts.
      'overrides__myprox__algorithm__myprox__mu': 0.7,
      'report__labels__myprox': 'Mine',
      'data__own__shift': 0.25,
    }
    records, said = self.run_table(fields, **settings)
    theirs, ours = records[PROX], records['fedprox']
    self.assertEqual(theirs['train_loss'], ours['train_loss'])
    self.assertEqual(theirs['curve'], ours['curve'])
    self.assertEqual(theirs['settings']['algorithm.myprox.mu'], 0.7)
    self.assertEqual(theirs['label'], 'Mine')
    self.assertGreater(
      records[f'{NAME}:HEADS']['cost']['parameters']['task'], 0
    )
    self.assertIn('Mine', said)
    # It is resumed; another value, and other code, are noticed.
    before = workdirs.read_config(self.workdir)
    self.assertEqual(before['config']['data.own.shift'], 0.25)
    _, said = self.run_table(fields, **settings)
    self.assertNotIn('warning', said)
    self.assertEqual(workdirs.read_config(self.workdir), before)
    with self.assertRaisesRegex(ValueError, r'algorithm.myprox.mu \(0.1 there'):
      self.run_table(fields, **settings | {'algorithm__myprox__mu': 0.2})
    with self.assertRaisesRegex(ValueError, r'data.own.shift \(0.25 there'):
      self.run_table(fields, **settings | {'data__own__shift': 0.5})
    # An algorithm that is added is one more row, and the folder says so.
    copy = own_code.named(sys.modules[NAME].myprox, 'copy')
    fields['cases'] = (copy, *fields['cases'])
    self.run_table(fields, **settings, algorithm__copy__mu=0.5)
    grown = workdirs.read_config(self.workdir)
    self.assertEqual(grown['config']['cases'][-1], copy)
    self.assertEqual(grown['identity']['algorithm.copy.mu'], 0.5)
    with self.assertRaisesRegex(ValueError, r'algorithm.copy.mu \(0.5 there'):
      self.run_table(fields, **settings, algorithm__copy__mu=0.6)
    with open(sys.modules[NAME].__file__, 'a', encoding='utf-8') as file:
      file.write('\n# Another line.\n')
    _, said = self.run_table(fields, **settings, algorithm__copy__mu=0.5)
    self.assertIn('The code that loads the data was changed', said)
    for name in (f'{NAME}:net', PROX, copy):
      self.assertIn(f'warning: The code of {name} was changed', said)


if __name__ == '__main__':
  absltest.main()

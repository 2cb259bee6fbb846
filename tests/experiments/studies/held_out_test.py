"""Laws of held-out clients: unseen in training, adapted as documented."""

import contextlib
import dataclasses
import io
import pathlib
import shutil
import signal
import sys
import tempfile
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.configuration import config as config_lib
from experiments.running import interrupts
from experiments.studies import case_runs
from experiments.studies import held_out
from experiments.studies import held_out_adaptation
from fmtl_jax import testing
from fmtl_jax.running import program

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests import needs
from tests.experiments.reporting import events_test
from tests.experiments.running import program_test
from tests.experiments.studies import toy_held_out as toy
from tests.experiments.studies import train_test

FILES = {
  'cases',
  'checkpoints',
  'config.json',
  'log.txt',
  'unseen.html',
  'unseen.json',
  'unseen.md',
  'unseen.png',
  'unseen.tex',
  'tensorboard',
  '.lock',
}


class PoisonTest(program_test.ToyTestCase):
  def test_training_never_sees_a_held_out_client(self):
    """Values that would spoil everything change no bit of what is trained."""
    config = toy.config(toy.OF_PEOPLE | {'cases': ('fedavg',), 'run.seeds': 1})
    source = toy.people()
    (clean,) = toy.splits_of(source, config)
    features, labels = source.features.copy(), source.labels.copy()
    theirs = np.isin(source.keys, clean.clients)
    features[theirs] = 1e30
    labels[theirs] = 1 - labels[theirs]
    states = []
    for given in (source, source._replace(features=features, labels=labels)):
      held = toy.splits_of(given, config)
      (plan,) = held_out.plans_of(config, given, held)
      compiled = program.Program(plan.case, 2, 'low')
      state, _ = compiled.run_rounds(compiled.init(), 2)
      states.append(compiled.host_state(state))
      tested = compiled.evaluate(state, 'test')
      self.assertTrue(np.isfinite(tested['client']['loss']).all())
    testing.assert_trees_equal(states[0].params, states[1].params)


class RunTest(program_test.ToyTestCase):
  """One run of two algorithms, and calls on copies of its folder."""

  RENDERS = True
  finished: pathlib.Path
  returned: dict[str, Any]

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.finished = pathlib.Path(folder) / 'run'
    cls.returned = held_out.run(toy.config(), cls.finished)

  def copy(self):
    workdir = train_test.new_folder(self)
    shutil.copytree(self.finished, workdir)
    return workdir

  def row(self, name):
    (row,) = [
      r
      for r in self.returned['results']
      if (r['case'], r['metric']) == (name, 'accuracy')
    ]
    return row

  def test_it_leaves_these_files(self):
    self.assertEqual({p.name for p in self.finished.iterdir()}, FILES)
    found = train_test.read_json(self.finished / 'unseen.json')
    self.assertEqual(found, self.returned)
    (entry,) = found['environments']
    self.assertCountEqual(entry['cases'], toy.ALGORITHMS)
    self.assertEqual(entry['environment'], found['environment'])
    for name in ('unseen.md', 'unseen.tex'):
      text = (self.finished / name).read_text()
      for word in ('FedAvg', 'all layers', 'nothing', '2 epochs', '2 clients'):
        self.assertIn(word, text)
    curves = self.finished / 'tensorboard'
    self.assertCountEqual(
      toy.ALGORITHMS, [path.name for path in curves.iterdir()]
    )
    for folder in curves.iterdir():
      tags = {tag for tag, *_ in events_test.scalars(folder)}
      self.assertIn('test_client_accuracy/mean', tags)
    png = (self.finished / 'unseen.png').read_bytes()
    self.assertTrue(png.startswith(b'\x89PNG'))

  def test_rows_summarize_the_records(self):
    record = train_test.read_json(
      self.finished / 'cases' / 'fedavg_finetune.json'
    )
    values = np.array(record['values']['accuracy'])
    self.assertEqual(values.shape, (2, 3, 2, 1))
    row = self.row('fedavg_finetune')
    np.testing.assert_allclose(row['seed_values'], values.mean((2, 3)))
    np.testing.assert_allclose(row['mean'], values.mean((0, 2, 3)))
    np.testing.assert_allclose(row['std'], values.mean((2, 3)).std(0, ddof=1))
    self.assertEqual(row['examples'], [0, 3, 8])
    self.assertEqual(np.shape(record['clients']), (2, 2))
    self.assertTrue(row['learned'])

  def test_without_examples_all_have_what_was_trained(self):
    losses = {
      r['case']: r['seed_values']
      for r in self.returned['results']
      if r['metric'] == 'loss'
    }
    flat, tuned = (np.array(losses[name]) for name in toy.ALGORITHMS)
    np.testing.assert_array_equal(flat, flat[:, :1].repeat(3, 1))
    np.testing.assert_array_equal(tuned[:, 0], flat[:, 0])
    self.assertTrue((tuned[:, 1:] != flat[:, 1:]).all())

  def test_a_second_call_does_nothing(self):
    with (
      contextlib.redirect_stdout(io.StringIO()) as printed,
      mock.patch.object(case_runs, 'run_case') as run_case,
    ):
      again = held_out.run(toy.config(), self.copy())
    self.assertIn(
      'All cases were finished: nothing was trained', printed.getvalue()
    )
    run_case.assert_not_called()
    self.assertEqual(again, self.returned)

  def test_only_what_is_missing_is_run(self):
    workdir = self.copy()
    (workdir / 'cases' / 'fedavg_finetune.json').unlink()
    calls = []
    run_case = case_runs.run_case

    def noted(label, *args, **settings):
      calls.append(label)
      return run_case(label, *args, **settings)

    with mock.patch.object(case_runs, 'run_case', noted):
      again = held_out.run(toy.config(), workdir)
    self.assertEqual(calls, ['FedAvg + fine-tuning'])
    self.assertEqual(again, self.returned)

  @parameterized.parameters(
    ({'unseen.epochs': 3}, 'unseen.epochs .2 there, 3 now'),
    ({'unseen.clients': 1}, 'unseen.clients'),
    ({'run.rounds': 5}, 'run.rounds'),
  )
  def test_another_experiment_is_refused(self, fields, sentence):
    workdir = self.copy()
    before = train_test.snapshot(workdir)
    with self.assertRaisesRegex(ValueError, f'another run: .*{sentence}'):
      held_out.run(toy.config(fields), workdir)
    self.assertEqual(train_test.snapshot(workdir), before)

  def test_a_resumed_run_equals_one_that_was_not_stopped(self):
    workdir = self.copy()
    (workdir / 'cases' / 'fedavg.json').unlink()
    flag = interrupts.Flag()
    flag.set(signal.SIGTERM)
    with (
      mock.patch.object(
        interrupts, 'noticed', lambda: contextlib.nullcontext(flag)
      ),
      self.assertRaises(interrupts.Interrupted) as caught,
    ):
      held_out.run(toy.config(), workdir)
    self.assertEqual(caught.exception.exit_code, 143)
    self.assertFalse((workdir / 'cases' / 'fedavg.json').exists())
    again = held_out.run(toy.config(), workdir)
    self.assertEqual(
      train_test.without_dates(again), train_test.without_dates(self.returned)
    )

  def test_a_dry_run_names_held_out_clients_and_how_they_adapt(self):
    text = held_out.describe(toy.config(), self.finished)
    ids = train_test.read_json(self.finished / 'cases' / 'fedavg.json')
    for line in (
      'Held-out clients of seed 1: '
      + ', '.join(str(i) for i in ids['clients'][1]),
      'FedAvg (fedavg): held-out clients adapt nothing at learning rate 0.02, '
      'finished',
      'FedAvg + fine-tuning (fedavg_finetune): held-out clients adapt all '
      'layers at learning rate 0.02, finished',
    ):
      self.assertIn(line, text.splitlines())


class PrivateTest(program_test.ToyTestCase):
  @needs.dp_accounting
  def test_epsilon_of_training_is_said_before_and_after_it(self):
    config = toy.config(
      {
        'cases': ('fedavg',),
        'run.rounds': 2,
        'run.seeds': 1,
        'unseen.examples': (0, 3),
        'unseen.clients': 1,
        'aggregation.common': 'uniform',
        'aggregation.task': 'uniform',
        'privacy.unit': 'client',
        'privacy.clipping_norm': 1.0,
        'privacy.noise_multiplier': 1.0,
      }
    )
    workdir = train_test.new_folder(self)
    before = held_out.describe(config, workdir)
    held_out.run(config, workdir)
    record = train_test.read_json(workdir / 'cases' / 'fedavg.json')
    epsilon = max(record['privacy']['epsilon_by_task'].values())
    after = (workdir / 'unseen.md').read_text(encoding='utf-8')
    for text in (before, after):
      self.assertIn(f'epsilon of a client at most {epsilon:.4g}', text)
    self.assertIn('Adaptation adds no noise', after)


class LearningTest(program_test.ToyTestCase):
  def test_more_examples_help_where_everybody_is_another_task(self):
    """A model for all must guess: half of the clients call the left right."""
    rng = np.random.default_rng(0)
    count, people = 600, 6
    features = rng.normal(size=(count, 3)).astype(np.float32)
    keys = np.arange(count) % people
    labels = ((features[:, 0] > 0) ^ (keys % 2 == 1)).astype(np.float32)
    first = program_test.toy_source()
    source = first._replace(
      features=features,
      labels=labels[:, None],
      strata=labels.astype(np.int32),
      keys=keys,
      tasks=tuple(
        dataclasses.replace(first.tasks[0], name=f'person {n}', column=0)
        for n in range(people)
      ),
      shared_labels=False,
      task_keys={f'person {n}': n for n in range(people)},
    )
    config = toy.config(
      {
        'cases': ('fedavg_finetune',),
        'data.partition': 'key',
        'unseen.examples': (0, 5, 50),
        'unseen.epochs': 20,
        'unseen.learning_rate': 0.5,
      }
    )
    held = toy.splits_of(source, config)
    (plan,) = held_out.plans_of(config, source, held)
    states = case_runs.initial_states(plan.case)
    found = held_out_adaptation.evaluate(
      plan,
      held_out_adaptation.clients_of(plan, held),
      held_out_adaptation.trained_of(plan, states, states),
    )
    few, some, many = found['accuracy'].mean((0, 2, 3))
    self.assertLess(few, 0.7)
    self.assertGreater(some, few + 0.05)
    self.assertGreater(many, 0.9)
    # Other people train for each seed, under one number of a task.
    people = [[t.name for t in split.train.tasks] for split in held]
    self.assertNotEqual(*people)
    self.assertEqual(held_out._names(plan.case, held[:1]), tuple(people[0]))
    numbers = [f'task {number}' for number, _ in enumerate(people[0])]
    self.assertEqual(held_out._names(plan.case, held), numbers)


class MistakesTest(program_test.ToyTestCase):
  @parameterized.parameters(
    ({'unseen.examples': ()}, 'whole numbers >= 0 in ascending order'),
    ({'unseen.examples': (5, 2)}, 'ascending order'),
    ({'unseen.examples': (0,)}, 'one of them above 0'),
    ({'unseen.examples': (0, 1.5)}, 'whole numbers'),
    ({'unseen.clients': 0}, 'unseen.clients >= 1, got 0'),
    ({'unseen.clients': 5}, 'unseen.clients <= 3'),
    ({'unseen.epochs': 0}, 'unseen.epochs >= 1'),
    ({'unseen.learning_rate': 0.0}, 'unseen.learning_rate above 0'),
    ({'unseen.start': 'zero'}, 'one of mean, initial'),
    ({'cases': ('majority',)}, 'Expected algorithms to run'),
    ({'cases': ('separate_fl_two_tasks',)}, 'the same data.tasks_per_client'),
    ({'overrides.fedavg.unseen.clients': 1}, 'the same unseen.clients'),
  )
  def test_a_mistake_is_reported_before_anything_is_written(
    self, fields, sentence
  ):
    workdir = train_test.new_folder(self)
    config = toy.config()
    for field, value in fields.items():
      put = (
        config_lib.put_field
        if field.startswith('overrides')
        else config_lib.set_field
      )
      put(config, field, value)
    with self.assertRaisesRegex(ValueError, sentence):
      held_out.run(config, workdir)
    self.assertFalse(workdir.exists())


if __name__ == '__main__':
  absltest.main()

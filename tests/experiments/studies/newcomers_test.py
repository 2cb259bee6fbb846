"""Laws of newcomers: training never sees them, and they adapt as is said."""

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
import jax
import jax.numpy as jnp
import numpy as np

from experiments.configuration import cases
from experiments.configuration import config as config_lib
from experiments.running import interrupts
from experiments.running import program
from experiments.studies import newcomers
from experiments.studies import train
from fmtl_jax import adaptation
from fmtl_jax import cohorts
from fmtl_jax import testing
from fmtl_jax.algorithms import finetuning
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import local_optimizers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test
from tests.experiments.studies import train_test

ALGORITHMS = ('fedavg', 'fedavg_finetune')
FILES = {
  'cases',
  'checkpoints',
  'config.json',
  'log.txt',
  'unseen.json',
  'unseen.md',
  'unseen.png',
  'unseen.tex',
  '.lock',
}


def _config(fields=None):
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


def _people(**changes):
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


_OF_PEOPLE = {'data.partition': 'key', 'data.standardize': True}


def _held_out(source, config):
  return [
    newcomers.hold_out(source, config, seed) for seed in train.seeds_of(config)
  ]


def _rows(data):
  """All rows that a data set points to, client by client."""
  part = data.partition
  groups = zip(
    *(x.groups() for x in (part.train, part.validation, part.test)),
    strict=True,
  )
  return [np.concatenate(group) for group in groups]


class HoldOutTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_newcomers_and_the_others_share_no_example(self, of_people):
    source = _people() if of_people else program_test.toy_source()
    config = _config(_OF_PEOPLE if of_people else {})
    drawn = set()
    for seed in range(8):
      held = newcomers.hold_out(source, config, seed)
      drawn.add(tuple(held.clients))
      self.assertEqual(held.newcomers.num_clients, 2)
      self.assertEqual(held.train.num_clients, program_test.CLIENTS - 2)
      own, others = _rows(held.newcomers), _rows(held.train)
      everything = np.concatenate([*own, *others])
      self.assertLen(set(everything), len(source.strata))
      self.assertLen(everything, len(source.strata))
      for part in (held.train.partition, held.newcomers.partition):
        self.assertTrue((part.train.sizes > 0).all())
      if of_people:
        for client, rows in zip(held.clients, own, strict=True):
          self.assertEqual(set(source.keys[rows]), {client})
        names = [task.name for task in held.newcomers.tasks]
        self.assertEqual(names, [f'person {c}' for c in held.clients])
    self.assertGreater(len(drawn), 1)

  def test_task_groups_have_the_same_sizes_for_all_seeds(self):
    config = _config({'data.clients': 9})
    sizes = {
      tuple(
        newcomers.hold_out(
          program_test.toy_source(), config, seed
        ).train.partition.members.sizes
      )
      for seed in range(5)
    }
    self.assertEqual(sizes, {(4, 3)})

  def test_newcomers_keep_their_tasks_and_numbers(self):
    source = program_test.toy_source()
    held = newcomers.hold_out(source, _config(), 0)
    both = [held.train.partition, held.newcomers.partition]
    ids = np.concatenate([p.client_ids for p in both])
    self.assertCountEqual(ids, range(program_test.CLIENTS))
    np.testing.assert_array_equal(both[1].client_ids, held.clients)
    tasks = np.concatenate([p.client_tasks for p in both])[np.argsort(ids)]
    np.testing.assert_array_equal(tasks[:, 0], [0, 0, 0, 1, 1])

  def test_numbers_of_examples_are_nested_and_the_test_is_the_rest(self):
    source = program_test.toy_source()
    one, two = (
      newcomers.hold_out(source, _config({'unseen.examples': n}), 0)
      for n in ((0, 3), (5, 8))
    )
    np.testing.assert_array_equal(one.clients, two.clients)
    pairs = [
      [data.newcomers.partition.train.groups() for data in (one, two)],
      [data.newcomers.partition.test.groups() for data in (one, two)],
    ]
    for few, many in zip(*pairs[0], strict=True):
      self.assertEqual((len(few), len(many)), (3, 8))
      np.testing.assert_array_equal(few, many[:3])
    for more, less in zip(*pairs[1], strict=True):
      self.assertContainsSubset(less, more)
      self.assertLen(more, len(less) + 5)

  def test_standardization_knows_nothing_of_newcomers(self):
    source, config = _people(), _config(_OF_PEOPLE)
    clean = newcomers.hold_out(source, config, 0)
    features = source.features.copy()
    features[np.isin(source.keys, clean.clients)] = 1e30
    poisoned = newcomers.hold_out(source._replace(features=features), config, 0)
    wanted = clean.train.partition.standardization
    for data in (poisoned.train, poisoned.newcomers, clean.newcomers):
      testing.assert_trees_equal(data.partition.standardization, wanted)
    rows = np.concatenate(clean.train.partition.train.groups())
    np.testing.assert_allclose(
      wanted[0], source.features[rows].mean(0), atol=1e-6
    )

  def test_blocked_tests_on_no_neighbour(self):
    runs = np.arange(100) // program_test.CLIENTS // 10
    source = _people(runs=runs)
    config = _config(
      _OF_PEOPLE | {'data.protocol': 'blocked', 'unseen.examples': (4,)}
    )
    blocked = newcomers.hold_out(source, config, 0)
    self.assertEqual(newcomers.overlapping_pairs(source, blocked), 0)
    self.assertTrue((blocked.newcomers.partition.test.sizes > 0).all())
    config.data.protocol = 'random'
    random = newcomers.hold_out(source, config, 0)
    self.assertGreater(newcomers.overlapping_pairs(source, random), 0)

  @parameterized.parameters(
    ({'unseen.clients': 4}, 'unseen.clients <= 3, .* got 4'),
    ({'unseen.examples': (1, 20)}, 'got 20 of the 20 examples of client'),
  )
  def test_what_cannot_be_held_out_is_told(self, fields, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      newcomers.hold_out(program_test.toy_source(), _config(fields), 0)


def _initial_states(case):
  """As `newcomers.initial_states`, to be traced."""
  one = jax.tree.map(lambda x: x[0], case.runs)
  data = dataclasses.replace(case.data, partition=one.train)
  state = case.make_algorithm(case.federation, {}).init(one.key, data)
  return jax.tree.map(lambda x: jnp.stack([x] * len(case.runs.key)), state)


class AdaptationTest(program_test.ToyTestCase):
  """Newcomers of algorithms that were not trained: states are made up."""

  def prepare(self, name, fields=None, source=None):
    source = source or program_test.toy_source()
    config = _config({'cases': (name,), 'unseen.start': 'mean'})
    for field, value in (fields or {}).items():
      config_lib.set_field(config, field, value)
    held = _held_out(source, config)
    (plan,) = newcomers.plans_of(config, source, held)
    state = newcomers.initial_states(plan.case)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: x + rng.normal(size=x.shape).astype(np.float32), state.params
    )
    state = dataclasses.replace(state, params=params)
    found = newcomers.newcomers_of(plan, source, held)
    return plan, found, newcomers.trained_of(plan, state, state)

  def view(self, prepared, count, number=0, change=None):
    """The adapted view of a newcomer of the first seed."""
    _, found, trained = prepared
    pick = lambda tree: jax.tree.map(lambda x: x[0], tree)
    data = dataclasses.replace(found.data, partition=pick(found.partitions))
    if change is not None:
      data = change(data)

    def view(trained, count):
      cohort = cohorts.select(
        data, jnp.array([number]), jnp.ones((1, data.num_slots), bool)
      )
      row = jax.tree.map(lambda x: x[0], cohort)
      algorithm = found.with_examples(count)
      return algorithm.view(trained, data, row, found.federation.frozen)

    return testing.jit(view)(pick(trained), jnp.int32(count))

  def test_the_body_of_fedrep_stays_and_its_head_learns(self):
    prepared = self.prepare('fedrep')
    self.assertEqual(newcomers.adapted_layers(prepared[0]), 'output')
    before, after = self.view(prepared, 0), self.view(prepared, 8)
    params = jax.tree.map(lambda x: x[0], prepared[2].params)
    testing.assert_trees_equal(before['dense_0'], params['dense_0'])
    testing.assert_trees_equal(after['dense_0'], params['dense_0'])
    head = lambda view: view['output']['kernel']
    self.assertGreater(float(abs(head(after) - head(before)).max()), 1e-3)

  def test_a_head_starts_from_the_mean_over_the_clients_of_its_task(self):
    prepared = self.prepare('fedrep')
    plan, found, trained = prepared
    tasks = np.asarray(plan.case.runs.train.client_tasks[0])[:, 0]
    own = np.asarray(found.partitions.client_tasks[0])[1, 0]
    heads = np.asarray(trained.params['output']['kernel'])[0]
    start = self.view(prepared, 0, number=1)['output']['kernel']
    np.testing.assert_allclose(start, heads[tasks == own].mean(0), atol=1e-6)

  def test_heads_that_are_the_same_have_themselves_as_mean(self):
    head = jnp.array([0.1, 0.7, 1 / 3])
    copies = jnp.stack([head] * 7)
    testing.assert_trees_equal(
      adaptation._mean(copies, jnp.arange(7) != 2), head
    )

  def test_a_task_that_was_trained_starts_from_its_copy(self):
    prepared = self.prepare('multi_task_fl')
    _, found, trained = prepared
    own = np.asarray(found.partitions.client_tasks[0])[1, 0]
    start = self.view(prepared, 0, number=1)['output']
    testing.assert_trees_equal(
      jax.tree.map(lambda x: x[0], start),
      jax.tree.map(lambda x: x[0, own], trained.params['output']),
    )

  def test_a_task_that_is_new_starts_from_the_mean_of_all(self):
    prepared = self.prepare('multi_task_fl', _OF_PEOPLE, _people())
    copies = np.asarray(prepared[2].params['output']['kernel'])[0]
    start = self.view(prepared, 0)['output']['kernel']
    self.assertLen(copies, program_test.CLIENTS - 2)
    np.testing.assert_allclose(start[0], copies.mean(0), atol=1e-6)

  def test_examples_behind_the_first_ones_do_nothing(self):
    prepared = self.prepare('fedavg_finetune')

    def poisoned(data):
      rows = np.asarray(data.partition.train.groups()[0])[3:]
      features = data.examples.features.copy()
      features[rows] = 1e6
      examples = dataclasses.replace(data.examples, features=features)
      return dataclasses.replace(data, examples=examples)

    testing.assert_trees_equal(
      self.view(prepared, 3, change=poisoned), self.view(prepared, 3)
    )
    with self.assertRaises(AssertionError):
      testing.assert_trees_equal(
        self.view(prepared, 4, change=poisoned), self.view(prepared, 4)
      )

  def test_fine_tuning_is_that_of_training_clients(self):
    prepared = self.prepare('fedavg_finetune', {'client.batch_size': 4})
    plan, found, trained = prepared
    pick = lambda tree: jax.tree.map(lambda x: x[0], tree)
    data = dataclasses.replace(found.data, partition=pick(found.partitions))
    local = local_optimizers.LocalSgd(
      learning_rate=plan.config.unseen.learning_rate, batch_size=4, epochs=2
    )
    plain = plan.case.make_algorithm(plan.case.test_federation, {})
    plain = plain._replace(
      view=lambda state, data, client, frozen: found.federation.broadcast(
        state.params, client.index
      )
    )
    settings = mock.Mock(
      local_data=lambda _, data, client: client_batches.LocalData(data, client)
    )
    tuned = finetuning.finetuned(plain, found.federation, local, settings)

    def view(state):
      everyone = cohorts.everyone(data)
      row = jax.tree.map(lambda x: x[1], everyone)
      return tuned.view(state, data, row, found.federation.frozen)

    wanted = testing.jit(view)(pick(trained))
    testing.assert_trees_close(self.view(prepared, 8, number=1), wanted)

  def test_a_pull_keeps_newcomers_near_the_global_model(self):
    moved = {}
    for name, fields in (
      ('fedavg_finetune', {}),
      ('ditto', {'algorithm.ditto.lam': 10.0}),
    ):
      prepared = self.prepare(name, fields)
      start, end = self.view(prepared, 0), self.view(prepared, 8)
      moved[name] = float(
        abs(end['output']['kernel'] - start['output']['kernel']).sum()
      )
    self.assertGreater(moved['ditto'], 0)
    self.assertLess(moved['ditto'], 0.9 * moved['fedavg_finetune'])

  def test_newcomers_take_the_cluster_that_suits_their_examples(self):
    prepared = self.prepare('ifca')
    _, found, trained = prepared
    clusters = [
      jax.tree.map(lambda x, n=n: x[0, n], trained.params) for n in range(2)
    ]
    taken = self.view(prepared, 8)
    losses = []
    pick = lambda tree: jax.tree.map(lambda x: x[0], tree)
    data = dataclasses.replace(found.data, partition=pick(found.partitions))
    row = jax.tree.map(lambda x: x[0], cohorts.everyone(data))
    batch = client_batches.LocalData(data, row).batch(jnp.arange(8))
    for cluster in clusters:
      view = jax.tree.map(lambda s, x: x.reshape(s.shape), taken, cluster)
      losses.append(
        float(found.federation.objective(view, None, batch, row.active)[0])
      )
    best = clusters[int(np.argmin(losses))]
    testing.assert_trees_equal(
      jax.tree.leaves(taken)[0], jax.tree.leaves(best)[0]
    )

  @parameterized.parameters(
    *(
      n
      for n, c in cases.CASES.items()
      if 'data.tasks_per_client' not in c.settings
    )
  )
  def test_newcomers_of_any_algorithm_have_a_model(self, name):
    config = _config({'cases': (name,), 'cohort.clients_per_task': 0})
    source = program_test.toy_source()
    held = _held_out(source, config)
    (plan,) = newcomers.plans_of(config, source, held)
    found = newcomers.newcomers_of(plan, source, held)
    shapes = jax.eval_shape(
      lambda: newcomers.evaluation_fn(plan, found)(
        newcomers.trained_of(plan, *[_initial_states(plan.case)] * 2),
        found.partitions,
        found.data.examples,
        found.federation.frozen,
      )
    )
    self.assertEqual(shapes['accuracy'].shape, (2, 3, 2, 1))


class PoisonTest(program_test.ToyTestCase):
  def test_training_never_sees_a_newcomer(self):
    """Values that would spoil everything change no bit of what is trained."""
    config = _config(_OF_PEOPLE | {'cases': ('fedavg',), 'run.seeds': 1})
    source = _people()
    (clean,) = _held_out(source, config)
    features, labels = source.features.copy(), source.labels.copy()
    theirs = np.isin(source.keys, clean.clients)
    features[theirs] = 1e30
    labels[theirs] = 1 - labels[theirs]
    states = []
    for given in (source, source._replace(features=features, labels=labels)):
      held = _held_out(given, config)
      (plan,) = newcomers.plans_of(config, given, held)
      compiled = program.Program(plan.case, 2, True)
      state, _ = compiled.run_rounds(compiled.init(), 2)
      states.append(compiled.host_state(state))
      tested = compiled.evaluate(state, 'test')
      self.assertTrue(np.isfinite(tested['client']['loss']).all())
    testing.assert_trees_equal(states[0].params, states[1].params)


class RunTest(program_test.ToyTestCase):
  """One run of two algorithms, and calls on copies of its folder."""

  finished: pathlib.Path
  returned: dict[str, Any]

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.finished = pathlib.Path(folder) / 'run'
    cls.returned = newcomers.run(_config(), cls.finished)

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
    self.assertCountEqual(entry['cases'], ALGORITHMS)
    self.assertEqual(entry['environment'], found['environment'])
    for name in ('unseen.md', 'unseen.tex'):
      text = (self.finished / name).read_text()
      for word in ('FedAvg', 'all layers', 'nothing', '2 epochs', '2 clients'):
        self.assertIn(word, text)
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
    flat, tuned = (np.array(losses[name]) for name in ALGORITHMS)
    np.testing.assert_array_equal(flat, flat[:, :1].repeat(3, 1))
    np.testing.assert_array_equal(tuned[:, 0], flat[:, 0])
    self.assertTrue((tuned[:, 1:] != flat[:, 1:]).all())

  def test_a_second_call_does_nothing(self):
    with (
      contextlib.redirect_stdout(io.StringIO()) as printed,
      mock.patch.object(train, 'run_case') as run_case,
    ):
      again = newcomers.run(_config(), self.copy())
    self.assertIn(
      'All cases were finished: nothing was trained', printed.getvalue()
    )
    run_case.assert_not_called()
    self.assertEqual(again, self.returned)

  def test_only_what_is_missing_is_run(self):
    workdir = self.copy()
    (workdir / 'cases' / 'fedavg_finetune.json').unlink()
    calls = []
    run_case = train.run_case

    def noted(label, *args, **settings):
      calls.append(label)
      return run_case(label, *args, **settings)

    with mock.patch.object(train, 'run_case', noted):
      again = newcomers.run(_config(), workdir)
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
      newcomers.run(_config(fields), workdir)
    self.assertEqual(train_test.snapshot(workdir), before)

  def test_a_stopped_run_goes_on_as_if_it_had_not_been(self):
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
      newcomers.run(_config(), workdir)
    self.assertEqual(caught.exception.exit_code, 143)
    self.assertFalse((workdir / 'cases' / 'fedavg.json').exists())
    again = newcomers.run(_config(), workdir)
    self.assertEqual(
      train_test.without_dates(again), train_test.without_dates(self.returned)
    )

  def test_a_dry_run_says_who_is_new_and_how_they_adapt(self):
    text = newcomers.describe(_config(), self.finished)
    ids = train_test.read_json(self.finished / 'cases' / 'fedavg.json')
    for line in (
      'Newcomers of seed 1: clients '
      + ', '.join(str(i) for i in ids['clients'][1]),
      'FedAvg (fedavg): newcomers adapt nothing at learning rate 0.02, '
      'finished',
      'FedAvg + fine-tuning (fedavg_finetune): newcomers adapt all layers at '
      'learning rate 0.02, finished',
    ):
      self.assertIn(line, text.splitlines())


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
    config = _config(
      {
        'cases': ('fedavg_finetune',),
        'data.partition': 'key',
        'unseen.examples': (0, 5, 50),
        'unseen.epochs': 20,
        'unseen.learning_rate': 0.5,
      }
    )
    held = _held_out(source, config)
    (plan,) = newcomers.plans_of(config, source, held)
    states = newcomers.initial_states(plan.case)
    found = newcomers.evaluate(
      plan,
      newcomers.newcomers_of(plan, source, held),
      newcomers.trained_of(plan, states, states),
    )
    few, some, many = found['accuracy'].mean((0, 2, 3))
    self.assertLess(few, 0.7)
    self.assertGreater(some, few + 0.05)
    self.assertGreater(many, 0.9)


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
  def test_a_mistake_is_told_before_anything_is_written(self, fields, sentence):
    workdir = train_test.new_folder(self)
    config = _config()
    for field, value in fields.items():
      put = (
        config_lib.put_field
        if field.startswith('overrides')
        else config_lib.set_field
      )
      put(config, field, value)
    with self.assertRaisesRegex(ValueError, sentence):
      newcomers.run(config, workdir)
    self.assertFalse(workdir.exists())


if __name__ == '__main__':
  absltest.main()

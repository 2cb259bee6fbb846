"""Laws: mapped runs are separate runs, on any devices; a case compiles once.

The toy experiment here is also that of the other tests of experiments.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import pathlib
import sys
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
from matplotlib import figure as figure_lib
import ml_collections
import numpy as np

from configs import digits
from experiments.building import build
from experiments.building import datasets
from experiments.configuration import cases
from experiments.configuration import config as config_lib
from experiments.reporting import drawing
from fmtl_jax import evaluation
from fmtl_jax import execution
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.running import program
from fmtl_jax.running import stages

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import kept_programs

testing.use_cpu_devices(8)

TASKS = ('left', 'top')
CLIENTS = 5
SEEDS = (0, 1, 2)
_EXAMPLES = 100
# Of tests in which orders of examples count.
BATCHES = {'client.batch_size': 4}
_savefig = figure_lib.Figure.savefig


def toy_source(
  unused_data: Any = None, noise: float = 0.5, **changes: Any
) -> datasets.Source:
  """Two noisy questions about points: is it left, is it at the top?

  Args:
    unused_data: The config's `data`, which every source gets.
    noise: How much labels deviate from what the point says.
    **changes: Fields of the source to replace.
  """
  rng = np.random.default_rng(0)
  features = rng.normal(size=(_EXAMPLES, 3)).astype(np.float32)
  noisy = features[:, :2] + noise * rng.normal(size=(_EXAMPLES, 2))
  labels = (noisy > 0).astype(np.float32)
  source = datasets.Source(
    features=features,
    labels=labels,
    tasks=tuple(
      tasks_lib.Task(name=name, column=column)
      for column, name in enumerate(TASKS)
    ),
    strata=labels[:, 0].astype(np.int32),
    keys=np.arange(_EXAMPLES) % CLIENTS,
  )
  return source._replace(**changes)


def toy_config(
  fields: Mapping[str, Any] | None = None,
) -> ml_collections.ConfigDict:
  """An experiment on `toy_source` that trains in no time.

  Args:
    fields: Values of further fields, by dotted name.
  """
  config = config_lib.default_config()
  changes = {
    'name': 'toy',
    'cases': ('multi_task_fl',),
    'data.name': 'toy',
    'data.clients': CLIENTS,
    'data.test_fraction': 0.3,
    'data.validation_fraction': 0.2,
    'model.hidden': (4,),
    'client.batch_size': 0,
    'cohort.clients_per_task': 1,
    'run.rounds': 5,
    'run.seeds': len(SEEDS),
    'run.evaluate_every': 2,
    'execution.compile_effort': 'low',
  }
  for field, value in (changes | dict(fields or {})).items():
    config_lib.set_field(config, field, value)
  return config


def on_devices(number):
  """The first devices only, or those there are, for a with block."""
  devices = jax.devices()[:number]
  return mock.patch.object(jax, 'local_devices', return_value=devices)


def unrendered():
  """Figures are made in a with block, but blank: that takes no time."""

  def save(unused_figure, path, **settings):
    _savefig(figure_lib.Figure(figsize=(1, 1)), path, **settings)

  return mock.patch.object(figure_lib.Figure, 'savefig', save)


class ToyTestCase(parameterized.TestCase):
  """Knows the data set `toy`, and compiles in half the time of low effort.

  Fewer devices compile faster; `DEVICES` is how many there are. Figures are
  blank, or coarse where a class `RENDERS` them: `figures_test` looks at them.
  """

  DEVICES = 1
  RENDERS = False

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.enterClassContext(on_devices(cls.DEVICES))
    cls.enterClassContext(mock.patch.dict(datasets.SOURCES, toy=toy_source))
    cls.enterClassContext(mock.patch.object(drawing, 'DOTS_PER_INCH', 25))
    if not cls.RENDERS:
      cls.enterClassContext(unrendered())
    cls.enterClassContext(kept_programs.kept())


def toy_case(config, seeds=SEEDS, points=({},), name='multi_task_fl'):
  resolved = cases.resolve(name, config, {})
  return build.build(name, resolved, toy_source(), seeds, points)


def toy_run(compiled, num_rounds=(2, 2, 1)):
  """States, metrics of all rounds and of the test rows, on the host."""
  state = compiled.init()
  metrics = []
  for number in num_rounds:
    state, of_rounds = compiled.run_rounds(state, number)
    metrics.append(of_rounds)
  joined = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *metrics)
  return {
    'state': compiled.host_state(state),
    'rounds': joined,
    'test': compiled.evaluate(state, 'test'),
    'validation': compiled.evaluate(state, 'validation'),
  }


def of_run(results, number):
  return jax.tree.map(lambda x: x[number : number + 1], results)


_COMPILED = '/jax/core/compile/backend_compile_duration'


@contextlib.contextmanager
def _compilations():
  """Counts what is compiled inside the block."""
  compiled = []

  def listen(event: str, duration_secs: float, **unused_details: Any) -> None:
    del duration_secs
    if event == _COMPILED:
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def _counted(case):
  """The case, and how often its functions of an algorithm are traced."""
  traced = {'round': 0, 'view': 0}

  def counted(name, function):
    def call(*args):
      traced[name] += 1
      return function(*args)

    return call

  def make(federation, settings):
    algorithm = case.make_algorithm(federation, settings)
    return algorithm._replace(
      round=counted('round', algorithm.round),
      view=counted('view', algorithm.view),
    )

  return dataclasses.replace(case, make_algorithm=make), traced


class MappedSeedsTest(ToyTestCase):
  """Runs one after the other on a device, or at once on two.

  Attributes:
    single: Compiled for one run.
    singles: What it found, by seed.
    mapped: Compiled for all seeds on one device.
    traced: How often its case's functions were traced.
    built: How many programs were compiled for it.
  """

  DEVICES = 8
  single: program.Program
  singles: list[dict[str, Any]]
  mapped: program.Program
  traced: dict[str, int]
  built: int

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.single = program.Program(
      toy_case(toy_config(BATCHES), SEEDS[:1]), 2, 'low'
    )
    cls.singles = [toy_run(cls.single)]
    for seed in SEEDS[1:]:
      # The same compiled functions with other runs.
      cls.single.set_runs(toy_case(toy_config(BATCHES), [seed]).runs)
      cls.singles.append(toy_run(cls.single))
    case, cls.traced = _counted(toy_case(toy_config(BATCHES)))
    with on_devices(1):
      cls.mapped = program.Program(case, 2, 'low')
    stages.measuring.cache_clear()  # Another test may have had the same.
    stages.summarizing.cache_clear()
    with _compilations() as programs:
      cls.mapped.compile()
    cls.built = len(programs)

  def test_seeds_differ(self):
    losses = [single['rounds']['loss_sum'].sum() for single in self.singles]
    self.assertLen(set(losses), len(SEEDS))

  def check_singles(self, compiled):
    found = toy_run(compiled)
    self.assertEqual(found['rounds']['loss_sum'].shape[:2], (len(SEEDS), 5))
    for number, single in enumerate(self.singles):
      testing.assert_trees_close(of_run(found, number), single)

  def test_mapped_seeds_are_single_runs(self):
    self.check_singles(self.mapped)

  def test_a_case_is_traced_and_compiled_once(self):
    # Initialisation, rounds, and an evaluation: models, what they answer under
    # two views, and the summary.
    self.assertEqual(self.built, 6)
    seconds = self.mapped.compile_seconds
    self.assertGreater(seconds, 0)
    runs = toy_case(toy_config(BATCHES)).runs
    toy_run(self.mapped)  # Two intervals of two rounds and a last short one.
    self.mapped.set_runs(toy_case(toy_config(BATCHES), [7, 8, 9]).runs)
    with _compilations() as programs:
      toy_run(self.mapped, (1, 2))
    self.assertEmpty(programs)
    self.mapped.set_runs(runs)
    # The models of clients, and those on common examples.
    self.assertEqual(self.traced, {'round': 1, 'view': 2})
    self.assertEqual(self.mapped.compile_seconds, seconds)

  def test_where_models_do_not_fit_an_evaluation_is_one_program(self):
    self.assertNotIn('evaluate', self.single._compiled)
    whole = program.Program(toy_case(toy_config(BATCHES), SEEDS[:1]), 2, 'low')
    with mock.patch.object(execution, 'memory_budget', return_value=0):
      whole.compile()
    self.assertIn('evaluate', whole._compiled)
    testing.assert_trees_close(toy_run(whole), self.singles[0], 1e-5, 1e-6)

  def test_runs_that_have_ended_stay_as_they_are(self):
    compiled = self.mapped
    plain, metrics = compiled.run_rounds(compiled.init(), 2)
    plain = compiled.host_state(plain)
    going = np.array([True, False, True])
    state = compiled.init()
    start = compiled.host_state(state)
    state, found = compiled.run_rounds(state, 2, going)
    state = compiled.host_state(state)
    for run, expected in ((0, plain), (1, start), (2, plain)):
      testing.assert_trees_equal(of_run(state, run), of_run(expected, run))
    for run in (0, 2):
      testing.assert_trees_equal(of_run(found, run), of_run(metrics, run))
    self.assertFalse(found['steps'][1].any())

  def test_tasks_may_have_devices_of_their_own(self):
    # Two runs at a time, the third one beside a copy of it; two devices for
    # tasks, two for clients.
    testing.need_devices(8)
    config = toy_config({'execution.task_devices': 2} | BATCHES)
    compiled = program.Program(toy_case(config), 2, 'low')
    self.assertEqual(
      dict(compiled._mesh.shape), {'run': 2, 'task': 2, 'client': 2}
    )
    self.check_singles(compiled)

  @parameterized.parameters(
    ({'task_devices': 3}, 'divide the 8 devices'),
    ({'task_devices': 4}, 'divide the 2 tasks, got 4'),
    ({'task_devices': 2, 'clients_on': 'host'}, "clients_on='device'"),
  )
  def test_devices_that_tasks_cannot_have_are_reported(self, fields, sentence):
    testing.need_devices(8)
    fields = {f'execution.{name}': value for name, value in fields.items()}
    with self.assertRaisesRegex(ValueError, sentence):
      toy_case(toy_config(fields))

  def test_private_clients_of_several_processes_are_reported(self):
    """These have rounds of clients on the host, whatever the config says."""
    config = toy_config(
      {
        'privacy.unit': 'client',
        'privacy.clipping_norm': 1.0,
        'privacy.noise_multiplier': 1.0,
        'aggregation.common': 'uniform',
        'aggregation.task': 'uniform',
      }
    )
    toy_case(config)
    with (
      mock.patch.object(jax, 'process_count', return_value=2),
      self.assertRaisesRegex(ValueError, 'without --distributed'),
    ):
      toy_case(config)

  def test_runs_are_mapped_at_once_where_that_is_faster(self):
    """On two devices if there are; states then move to one device."""
    case = toy_case(toy_config(BATCHES))
    with (
      mock.patch.object(jax, 'default_backend', return_value='gpu'),
      on_devices(2),
    ):
      first = program.Program(case, 2, 'low')
      first.compile()
    self.check_singles(first)
    state, _ = first.run_rounds(first.init(), 2)
    saved = first.host_state(state)
    self.assertLen(saved.round, len(SEEDS))
    second = self.mapped
    state = second.device_state(saved)
    for number in (2, 1):
      state, _ = second.run_rounds(state, number)
    for number, single in enumerate(self.singles):
      found = of_run(second.host_state(state), number)
      testing.assert_trees_close(found, single['state'])


class PrecisionTest(absltest.TestCase):
  def test_digits_are_told_as_well_where_networks_compute_in_bfloat16(self):
    """Within a standard deviation over seeds, on the same clients."""
    config = digits.get_config('smoke')
    source = datasets.load(config.data)
    accuracies = {}
    for compute in ('float32', 'bfloat16'):
      fields = {'precision.compute': compute, 'cohort.clients_per_task': 4}
      resolved = cases.resolve('multi_task_fl', config, fields)
      case = build.build('multi_task_fl', resolved, source, [0])
      algorithm = case.make_algorithm(case.federation, {})
      evaluate = evaluation.evaluator(case.federation, algorithm, 'scan')

      def run(key, data, algorithm=algorithm, evaluate=evaluate):
        state = jax.lax.fori_loop(
          *(0, 20, lambda _, state: algorithm.round(state, data)[0]),
          algorithm.init(key, data),
        )
        rows = data.partition.test, data.partition.pooled_test
        return evaluate(state, data, *rows)['pooled']['accuracy'][-1]

      every = lambda keys, data, run=run: jax.lax.map(
        lambda key: run(key, data), keys
      )
      mesh = execution.mesh({program.CLIENT_AXIS: 1}, jax.devices()[:1])
      keys = jax.vmap(jax.random.key)(np.arange(4))
      accuracies[compute] = np.asarray(
        testing.jit(execution.over_devices(every, mesh))(keys, case.data)
      )
    expected, found = accuracies.values()
    self.assertTrue((expected != found).any())  # It was not float32.
    self.assertGreater(expected.min(), 0.85)
    spread = expected.std(ddof=1)
    self.assertLess(abs(found.mean() - expected.mean()), spread)
    self.assertLess(abs(found - expected).max(), 2 * spread)


class StagesTest(ToyTestCase):
  """Cases share programs of evaluations, and the examples."""

  def test_only_rounds_and_models_depend_on_the_case(self):
    texts = []
    for name in ('separate_fl', 'multi_task_fl'):
      compiled = program.Program(toy_case(toy_config(), name=name), 2, 'low')
      texts.append({n: x.as_text() for n, x, _ in compiled._programs()})
    self.assertEqual(
      {name for name, text in texts[0].items() if text == texts[1][name]},
      {'measure_client', 'measure_pooled', 'summary'},
    )

  def test_they_are_compiled_once_for_cases_that_measure_alike(self):
    stages.measuring.cache_clear()
    stages.summarizing.cache_clear()
    found = []
    for name, fields in (
      ('separate_fl', {}),
      ('multi_task_fl', {}),  # Initialisation, rounds and models.
      ('multi_task_fl', {'algorithm.personal_layers': 1}),  # Not on pooled.
      ('multi_task_fl', {'model.hidden': (5,)}),
    ):
      compiled = program.Program(
        toy_case(toy_config(fields), name=name), 2, 'low'
      )
      with _compilations() as programs:
        compiled.compile()
      found.append(len(programs))
    self.assertEqual(found, [6, 3, 5, 6])

  def test_programs_have_the_features_once(self):
    case = toy_case(toy_config())
    one, other = (program.Program(case, 2) for _ in range(2))
    self.assertIs(*(x._examples[0].features for x in (one, other)))
    self.assertIs(*(x.features for x in one._examples))


if __name__ == '__main__':
  absltest.main()

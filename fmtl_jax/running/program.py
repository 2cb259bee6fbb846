"""Programs: an algorithm mapped over runs, compiled once.

Runs (seeds, or the points of a sweep) are the outermost axis of one program:
first over devices, then one after the other on CPU or all at once on GPU and
TPU. Devices that are left over share the clients of a run. A run has its own
key, partition and settings; examples are stored once.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import algorithms
from fmtl_jax import evaluation
from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitions
from fmtl_jax.execution import task_devices
from fmtl_jax.privacy import noise_keys
from fmtl_jax.running import compilation
from fmtl_jax.running import devices as devices_lib
from fmtl_jax.running import stages

Tree = Any
MakeAlgorithm = Callable[
  [federation_lib.Federation, Mapping[str, Any]], algorithms.Algorithm
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What differs between runs; with a leading axis, R of them.

  Attributes:
    key: Of the seed.
    train: The partition to train on.
    test: The partition to evaluate on.
    settings: Values of config fields that are mapped, by dotted name.
  """

  key: jax.Array
  train: partitions.Partition
  test: partitions.Partition
  settings: Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A row of the table, ready to be compiled.

  Attributes:
    data: The data set to train on, of any run.
    test_data: The data set to evaluate on, of any run.
    federation: Of `data`.
    test_federation: Of `test_data`, with the same network and labels.
    make_algorithm: `(federation, settings) -> Algorithm`; settings may be
      traced.
    runs: R runs.
    execution: How clients are mapped in evaluations.
    prefix_parameters: Values of pre-trained layers that ran before round 0.
    algorithm: Its name, whose label rules the network has.
    task_devices: How many devices share the tasks of a run.
    warning: The degenerate case that the settings amount to; '' if none.
  """

  data: dataset_lib.FederatedDataset
  test_data: dataset_lib.FederatedDataset
  federation: federation_lib.Federation
  test_federation: federation_lib.Federation
  make_algorithm: MakeAlgorithm
  runs: Run
  execution: str
  prefix_parameters: int = 0
  algorithm: str = ''
  task_devices: int = 1
  warning: str = ''


CLIENT_AXIS = devices_lib.CLIENT_AXIS
TASK_AXIS = devices_lib.TASK_AXIS
SPLITS = ('validation', 'test')  # That are evaluated.


class Program:
  """The compiled functions of one case, each compiled once.

  Attributes:
    num_runs: R.
    form: The execution mode of rounds, and reasons, as of `Algorithm.form`.
    splits: Those that can be evaluated, see `splits_of`.
    compile_seconds: What tracing and compiling took, over all of them; 0
      before.
    memory_bytes: Of temporaries of the compiled rounds, where known.
  """

  def __init__(
    self,
    case: Case,
    rounds_per_call: int,
    effort: str = execution_lib.HIGH,
  ):
    """Compiles nothing yet.

    Args:
      case: What to run.
      rounds_per_call: The most rounds between two evaluations.
      effort: Of the compiler for rounds, see `execution.compiler`; evaluations
        are compiled with `medium` at most.
    """
    self._effort = effort
    self._case = case
    self._rounds_per_call = rounds_per_call
    self.num_runs = len(case.runs.key)
    algorithm = case.make_algorithm(case.federation, {})
    self.form = algorithm.form(case.data)
    self._mesh = devices_lib.mesh_of_runs(
      self.num_runs,
      case.task_devices,
      spread=algorithm.client_axis == CLIENT_AXIS,
    )
    self._padding = -self.num_runs % self._mesh.shape['run']
    self._by_run = jax.NamedSharding(self._mesh, jax.P('run'))
    everywhere = jax.NamedSharding(self._mesh, jax.P())
    self._examples = tuple(
      dataclasses.replace(
        data.examples,
        features=devices_lib.placed(data.examples.features, everywhere),
      )
      for data in (case.data, case.test_data)
    )
    self._frozen = jax.device_put(case.federation.frozen, everywhere)
    self.set_runs(case.runs)
    self._compiled: dict[str, Any] = {}
    self.compile_seconds = 0.0
    self.memory_bytes: int | None = None

  def set_runs(self, runs: Run) -> None:
    """Sets other runs of the same shapes; nothing is compiled again."""
    self._runs = self._put(runs)
    self._rows = {
      split: self._put(rows) for split, rows in rows_of(runs.test).items()
    }
    self.splits = splits_of(runs.test)

  def _put(self, tree: Tree) -> Tree:
    """Pads R runs to a multiple of the devices and places them."""

    def put(leaf):
      if self._padding:
        last = [self.num_runs - 1] * self._padding
        leaf = leaf[np.array([*range(self.num_runs), *last])]
      # Of its own: states are donated.
      return jax.device_put(leaf, self._by_run, may_alias=False)

    return jax.tree.map(put, tree)

  def _fetch(self, tree: Tree) -> Tree:
    """The runs' values on the host, without padding."""
    return jax.tree.map(lambda x: np.asarray(x)[: self.num_runs], tree)

  def _map(self, fn: Callable[..., Tree]) -> Callable[..., Tree]:
    """Maps `fn(mapped, shared)` over runs: devices first.

    Where there are more devices than runs, several of them have the same run,
    and its clients are spread over these.
    """
    return stages.over_runs(self._mesh, fn)

  def compile(self) -> None:
    """Compiles everything, once."""
    if not self._compiled:
      compile_together([self])

  def _programs(self):
    """What `compilation.compile_all` compiles."""
    options = self._options(self._effort)  # Queries XLA, busy later on.
    init = jax.jit(self._init).trace(*self._of_init)
    yield 'init', init.lower(), execution_lib.quick_options()
    state = self._shapes(init.out_info)
    rounds = jax.jit(self._rounds, donate_argnums=0).lower(
      state,
      self._runs,
      self._examples,
      self._frozen,
      jax.ShapeDtypeStruct(
        (self.num_runs + self._padding,), np.int32, sharding=self._by_run
      ),
    )
    yield 'rounds', rounds, options
    if self.splits:
      yield from self._evaluations(state)

  def _evaluations(self, state):
    """The programs of an evaluation.

    Where the models of all entities fit into memory, those that measure and
    summarize them are apart: they are the same for many cases, and are traced,
    lowered and compiled once for all of them.

    Args:
      state: Shapes of the states.
    """
    low = self._effort == execution_lib.LOW
    options = self._options(execution_lib.LOW if low else execution_lib.MEDIUM)
    runs, measures = self._runs, self._evaluator({}).measures
    rows, shared = self._rows['test'], (self._examples, self._frozen)
    models = jax.jit(self._models).trace(state, runs, *shared)
    if self._bytes_each(models.out_info) > execution_lib.memory_budget():
      evaluate = jax.jit(self._evaluate).lower(state, runs, rows, *shared)
      yield 'evaluate', evaluate, options
      return
    yield 'models', models.lower(), options
    found = {}
    for name, shapes in self._shapes(models.out_info).items():
      measure = stages.measuring(measures.of_view(name), name, self._mesh)
      measured = measure.trace(shapes, runs.test, rows[name], *shared)
      found[name] = self._shapes(measured.out_info)
      yield f'measure_{name}', measured.lower(), options
    summary = stages.summarizing(measures, self._mesh).lower(found, runs.test)
    yield 'summary', summary, options

  def _shapes(self, tree: Tree) -> Tree:
    """Shapes of values of runs, where they are."""
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._by_run),
      tree,
    )

  def _bytes_each(self, tree: Tree) -> int:
    """What values of runs take on a device."""
    return federation_lib.num_bytes(tree) // self._mesh.shape['run']

  def _options(self, effort: str) -> dict[str, Any]:
    """Compiler options of an effort."""
    return execution_lib.compiler_options(self._mesh, effort)

  def _train_data(self, run, examples):
    return dataclasses.replace(
      self._case.data, examples=examples[0], partition=run.train
    )

  def init(self) -> Tree:
    """The states before the first round, `[R, ...]`."""
    self.compile()
    return self._compiled['init'](*self._of_init)

  @property
  def _of_init(self):  # Other words of the system each time.
    words = self._put(noise_keys.draw(self.num_runs))
    return self._runs, self._examples, words

  def run_rounds(
    self, state: Tree, num_rounds: int, going: np.ndarray | None = None
  ) -> tuple[Tree, Tree]:
    """Runs rounds, at most `rounds_per_call`.

    Args:
      state: `[R, ...]`; donated.
      num_rounds: How many.
      going: `[R]` bool, the runs that continue; by default all. The others
        keep their states, and their metrics are zeros.

    Returns:
      The new state, and the rounds' metrics on the host, `[R, rounds, ...]`.
    """
    self.compile()
    counts = np.zeros(self.num_runs + self._padding, np.int32)
    counts[: self.num_runs] = num_rounds
    if going is not None:
      counts[: self.num_runs] *= going
    counts = jax.device_put(counts, self._by_run)
    state, metrics = self._compiled['rounds'](
      state, self._runs, self._examples, self._frozen, counts
    )
    metrics = self._fetch(metrics)
    return state, jax.tree.map(lambda x: x[:, :num_rounds], metrics)

  def evaluate(self, state: Tree, split: str) -> Tree:
    """Evaluates the states on the `validation` or `test` rows.

    Returns:
      Metrics as of `evaluation.evaluator`, `[R, ...]`, on the host.
    """
    self.compile()
    rows, shared = self._rows[split], (self._examples, self._frozen)
    programs = self._compiled
    with jax.debug_nans(False):  # A metric without examples is NaN.
      if 'evaluate' in programs:
        found = programs['evaluate'](state, self._runs, rows, *shared)
      else:
        models = programs['models'](state, self._runs, *shared)
        measured = {
          name: programs[f'measure_{name}'](
            models.pop(name), self._runs.test, rows[name], *shared
          )
          for name in list(models)
        }
        found = programs['summary'](measured, self._runs.test)
    return self._fetch(found)

  def _init(self, runs, examples, words):
    def one(mapped, examples):
      run, words = mapped
      algorithm = self._case.make_algorithm(self._case.federation, run.settings)
      with noise_keys.given(words):
        return algorithm.init(run.key, self._train_data(run, examples))

    return self._map(one)((runs, words), examples)

  def _rounds(self, state, runs, examples, frozen, num_rounds):
    def one(mapped, shared):
      state, run, num_rounds = mapped
      examples, frozen = shared
      algorithm = self._case.make_algorithm(self._case.federation, run.settings)
      data = self._train_data(run, examples)
      round_fn = jax.jit(algorithm.round)  # Traced once for both uses.
      has_shares = self._case.task_devices > 1
      if has_shares:
        state = task_devices.own_tasks(self._case.federation, state, TASK_AXIS)
      shapes = jax.eval_shape(round_fn, state, data, frozen)[1]
      zeros = lambda x: jnp.zeros((self._rounds_per_call, *x.shape), x.dtype)
      buffer = jax.tree.map(zeros, shapes)

      def one_round(i, carry):
        state, buffer = carry
        state, metrics = round_fn(state, data, frozen)
        buffer = jax.tree.map(lambda b, x: b.at[i].set(x), buffer, metrics)
        return state, buffer

      state, buffer = jax.lax.fori_loop(
        0, num_rounds, one_round, (state, buffer)
      )
      if has_shares:
        state = task_devices.all_tasks(self._case.federation, state, TASK_AXIS)
      return state, buffer

    return self._map(one)((state, runs, num_rounds), (examples, frozen))

  def _evaluate(self, state, runs, rows, examples, frozen):
    def one(mapped, shared):
      state, run, rows = mapped
      examples, frozen = shared
      return self._evaluator(run.settings)(
        state,
        self._test_data(run.test, examples),
        rows[evaluation.CLIENT],
        rows[evaluation.POOLED],
        frozen,
      )

    return self._map(one)((state, runs, rows), (examples, frozen))

  def _models(self, state, runs, examples, frozen):
    def one(mapped, shared):
      state, run = mapped
      examples, frozen = shared
      data = self._test_data(run.test, examples)
      return self._evaluator(run.settings).models(state, data, frozen)

    return self._map(one)((state, runs), (examples, frozen))

  def _evaluator(self, settings):
    federation = self._case.test_federation
    return evaluation.evaluator(
      federation,
      self._case.make_algorithm(federation, settings),
      self._case.execution,
      CLIENT_AXIS,
    )

  def _test_data(self, test, examples):
    return dataclasses.replace(
      self._case.test_data, examples=examples[1], partition=test
    )

  def host_state(self, state: Tree) -> Tree:
    """The states on the host without padding, to be saved."""
    return on_host(state, self.num_runs)

  def device_state(self, state: Tree) -> Tree:
    """States as returned by `host_state`, back on the devices."""
    return self._put(state)


def on_host(tree: Tree, num_runs: int | None = None) -> Tree:
  """Values of runs as NumPy arrays, keys as keys; by default of all runs."""

  def fetch(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(fetch(jax.random.key_data(leaf)))
    return np.asarray(leaf)[:num_runs]

  return jax.tree.map(fetch, tree)


def compile_together(
  programs: Sequence[Program], check: Callable[[], None] = lambda: None
) -> None:
  """Compiles the programs of several cases on all cores.

  Args:
    programs: Of cases; what is compiled is not compiled again.
    check: See `compilation.compile_all`.
  """

  programs = [program for program in programs if not program._compiled]

  def of_all():
    for number, program in enumerate(programs):
      for name, lowered, options in program._programs():
        yield f'{number}/{name}', lowered, options

  compiled = compilation.compile_all(of_all(), check)
  for number, program in enumerate(programs):
    first = f'{number}/'
    found = {
      name.removeprefix(first): one
      for name, one in compiled.items()
      if name.startswith(first)
    }
    program._compiled = {name: one.program for name, one in found.items()}
    program.compile_seconds = sum(one.seconds for one in found.values())
    if 'rounds' in found:
      memory = found['rounds'].program.memory_analysis()
      program.memory_bytes = getattr(memory, 'temp_size_in_bytes', None)


def splits_of(partition: partitions.Partition) -> list[str]:
  """The splits in which a client has examples; seeds may be stacked."""
  return [
    split
    for split in SPLITS
    if np.any(np.asarray(getattr(partition, split).offsets)[..., -1])
  ]


def rows_of(partition: partitions.Partition) -> dict[str, dict[str, Any]]:
  """Rows by client and by task of each split, padded to the same shapes."""

  def same(a, b):
    length = max(a.index.shape[-1], b.index.shape[-1])
    size = max(a.max_size, b.max_size)

    def pad(rows):
      missing = length - rows.index.shape[-1]
      return partitions.Rows(
        index=np.pad(rows.index, ((0, 0), (0, missing))),
        offsets=rows.offsets,
        max_size=size,
      )

    return pad(a), pad(b)

  clients = same(partition.validation, partition.test)
  pooled = same(partition.pooled_validation, partition.pooled_test)
  return {
    split: {
      evaluation.CLIENT: clients[number],
      evaluation.POOLED: pooled[number],
    }
    for number, split in enumerate(SPLITS)
  }

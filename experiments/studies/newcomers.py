"""Newcomers: how well algorithms serve clients that took no part in training.

For every seed some clients are drawn and left out: of training, of
standardization, of everything. An algorithm is trained on the federation of the
others; then each newcomer adapts with the first n examples of one random order
of its own, in the algorithm's way (`Spec.adapt`), and is tested on its examples
behind the largest n, the same for every n and every algorithm. Where data are
split in time (`data.protocol=blocked`), neighbours in time of the largest n are
left out of the test.

Where the clients of all tasks share their examples' labels, as many clients of
every combination of tasks are drawn for each seed, and a newcomer has the tasks
of others. Where every client is a task of its own, so is a newcomer: there is
no copy of its task's layers, see `fmtl_jax/adaptation.py`.

A finished algorithm is not run again.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from ..building import backbones
from ..building import build
from ..building import datasets
from ..building import fingerprints
from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..configuration import own_code
from ..folders import environments
from ..folders import logs
from ..folders import records as records_lib
from ..folders import workdirs
from ..reporting import figures
from ..reporting import reports
from ..reporting import results
from ..reporting import tables
from ..running import compilation
from ..running import interrupts
from ..running import program as program_lib
from . import train
from fmtl_jax import adaptation
from fmtl_jax import algorithms
from fmtl_jax import evaluation
from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitioners
from fmtl_jax.data import partitions as partitions_lib
from fmtl_jax.data import splits
from fmtl_jax.federation import layer_types
from fmtl_jax.storage import checkpoints

Record = dict[str, Any]

MEAN = 'mean'
INITIAL = 'initial'
_STARTS = (MEAN, INITIAL)
# The same for all rows of one table.
_SHARED = (
  'data',
  'run.seeds',
  'run.first_seed',
  'unseen.clients',
  'unseen.examples',
)
_HELD_OUT = 2**31 - 1  # Apart from what else a seed draws.


class HeldOut(NamedTuple):
  """The two parts of the data of one seed.

  Attributes:
    train: The federation without the newcomers.
    newcomers: The newcomers; training examples are those to adapt with, in
      their order, with the standardization of `train`.
    clients: Their numbers in the whole federation.
  """

  train: dataset_lib.FederatedDataset
  newcomers: dataset_lib.FederatedDataset
  clients: np.ndarray


def hold_out(
  source: datasets.Source, config: ml_collections.ConfigDict, seed: int
) -> HeldOut:
  """Takes newcomers out of the federation of a seed.

  Args:
    source: The data.
    config: Its `data` and `unseen` say how.
    seed: Says who is drawn, and the newcomers' orders of examples.

  Raises:
    ValueError: If too few clients would be left, or a newcomer has too few
      examples to be tested on.
  """
  plain = config_lib.copied(config.data)
  plain.standardize = False  # By what the newcomers have, too.
  # What is standardized, is so below.
  whole = datasets.federate(source._replace(center=None), plain, seed)
  rng = np.random.default_rng((_HELD_OUT, seed))
  clients = _draw(whole, source.shared_labels, config.unseen.clients, rng)
  stay = np.setdiff1d(np.arange(whole.num_clients), clients)
  partition = whole.partition
  parts = [p.groups() for p in (partition.train, partition.validation)]
  parts.append(partition.test.groups())
  shared = source.shared_labels
  kept = _subset(
    whole, shared, stay, *([part[c] for c in stay] for part in parts)
  )
  if config.data.standardize:
    kept = datasets.standardized(source, kept)
  most = max(config.unseen.examples)
  own, test = [], []
  for client in clients:
    rows = np.sort(np.concatenate([part[client] for part in parts]))
    order = rng.permutation(len(rows))
    first, rest = order[:most], np.sort(order[most:])
    if config.data.protocol == 'blocked':
      rest = rest[~_beside(rest, first, np.asarray(source.runs)[rows])]
    if not len(rest):
      raise ValueError(
        f'Expected unseen.examples to leave newcomers some to be tested on, '
        f'got {most} of the {len(rows)} examples of client '
        f'{partition.client_ids[client]} (seed {seed}); use fewer.'
      )
    own.append(rows[first])
    test.append(rows[rest])
  none = [rows[:0] for rows in own]
  newcomers = _subset(whole, shared, clients, own, none, test)
  return HeldOut(
    kept,
    datasets.with_standardization(newcomers, kept.partition.standardization),
    clients,
  )


def _draw(whole, shared_labels, count, rng):
  """The newcomers' numbers: as many of each combination of tasks."""
  tasks = whole.partition.client_tasks
  group = np.zeros(len(tasks), np.int64)
  if shared_labels:
    _, group = np.unique(tasks, axis=0, return_inverse=True)
    group = group.reshape(-1)
  left = np.bincount(group)
  drawn = np.zeros_like(left)
  most = int((left - 1).sum())
  if count > most:
    raise ValueError(
      f'Expected unseen.clients <= {most}, so that of the {len(tasks)} clients '
      f'one of each combination of tasks is left to train, got {count}.'
    )
  for _ in range(count):  # The same for every seed: shapes depend on it.
    largest = int(np.lexsort((drawn, -left))[0])
    left[largest] -= 1
    drawn[largest] += 1
  chosen = [
    rng.choice(np.flatnonzero(group == number), size, replace=False)
    for number, size in enumerate(drawn)
  ]
  return np.sort(np.concatenate(chosen))


def _beside(places, others, runs):
  """Which places stand beside one of others, in the same run."""
  is_other = np.zeros(len(runs), bool)
  is_other[others] = True
  same = runs[1:] == runs[:-1]
  beside = np.zeros(len(runs), bool)
  beside[1:] |= is_other[:-1] & same
  beside[:-1] |= is_other[1:] & same
  return beside[places]


def _subset(whole, shared_labels, clients, training, validation, test):
  """The data set of some clients, with rows for each of them."""
  tasks, examples = whole.tasks, whole.examples
  client_tasks = whole.partition.client_tasks[clients]
  columns = np.append(examples.columns, 0)[client_tasks]
  label_counts = np.stack(
    [
      examples.present[rows][:, column].sum(0)
      for rows, column in zip(training, columns, strict=True)
    ]
  )
  label_counts = np.where(client_tasks < len(tasks), label_counts, 0)
  if shared_labels:
    pool = lambda groups: [np.concatenate(groups)] * len(tasks)
  else:  # A task for each client.
    tasks = tuple(tasks[task] for task in client_tasks[:, 0])
    columns = np.array([task.column for task in tasks], np.int32)
    examples = dataclasses.replace(examples, columns=columns)
    client_tasks = np.arange(len(clients), dtype=np.int32)[:, None]
    pool = lambda groups: groups
  rows_of = partitions_lib.Rows.create
  flat = client_tasks.reshape(-1)
  members = [np.flatnonzero(flat == task) for task in range(len(tasks))]
  return dataset_lib.FederatedDataset(
    examples=examples,
    tasks=tasks,
    partition=partitions_lib.Partition(
      train=rows_of(training),
      validation=rows_of(validation),
      test=rows_of(test),
      pooled_validation=rows_of(pool(validation)),
      pooled_test=rows_of(pool(test)),
      client_tasks=client_tasks,
      client_ids=whole.partition.client_ids[clients],
      label_counts=label_counts.astype(np.int32),
      members=rows_of(members),
    ),
  )


class Plan(NamedTuple):
  """What is done for one algorithm.

  Attributes:
    name: Its case.
    label: How it is shown.
    config: Of the case.
    case: What is trained.
    way: How newcomers adapt.
  """

  name: str
  label: str
  config: ml_collections.ConfigDict
  case: program_lib.Case
  way: specs.Way


def plans_of(
  config: ml_collections.ConfigDict,
  source: datasets.Source,
  held_out: Sequence[HeldOut],
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
) -> list[Plan]:
  """The plans of all algorithms, in the order of the table.

  Args:
    config: The experiment; its cases are the algorithms.
    source: The data.
    held_out: Of each seed.
    only: A part of the algorithms; () is all.
    command_line: Fields that come after the cases' own settings.

  Raises:
    ValueError: If a setting is no good.
  """
  by_seed = dict(zip(train.seeds_of(config), held_out, strict=True))
  plans = []
  for name, final in _configs(config, only, command_line).items():
    case = build.build(
      name,
      final,
      source,
      train.seeds_of(final),
      federate=lambda unused_source, unused_data, seed: by_seed[seed].train,
    )
    way = own_code.spec(case.algorithm).adapt(
      build.own_settings(final, case.algorithm), final.unseen.learning_rate
    )
    personal = case.make_algorithm(case.federation, {}).personal
    if personal and not (way.all_layers or case.federation.has_client_layers):
      raise ValueError(
        f'Expected algorithms whose newcomers adapt in a way that is known, '
        f'got {name!r}; leave it out.'
      )
    plans.append(Plan(name, cases_lib.label(name, config), final, case, way))
  return plans


def _configs(config, only, command_line):
  """The config of each case, checked as far as it goes without data."""
  names = cases_lib.names(config, only)
  of_all, configs = config_lib.flatten(config), {}
  _check(config)
  for name in names:
    if name == cases_lib.MAJORITY:
      continue
    final = cases_lib.resolve(name, config, dict(command_line or {}))
    build.check(final)
    _check(final)
    for field, value in config_lib.flatten(final).items():
      if field.startswith(_SHARED) and value != of_all[field]:
        raise ValueError(
          f'Expected the same {field} for all algorithms of a table, got '
          f'{value!r} for {name!r} beside {of_all[field]!r}; leave it out.'
        )
    configs[name] = final
  if not configs:
    raise ValueError('Expected algorithms to run, got none; set cases.')
  return configs


def _check(config):
  """Raises a ValueError for newcomers that cannot be."""
  unseen = config.unseen
  examples = tuple(unseen.examples)
  whole = all(isinstance(n, int) and n >= 0 for n in examples)
  if not whole or sorted(set(examples)) != list(examples) or not any(examples):
    raise ValueError(
      'Expected unseen.examples to be whole numbers >= 0 in ascending order, '
      f'one of them above 0, got {examples!r}; for one write (5,).'
    )
  for field in ('clients', 'epochs'):
    if unseen[field] < 1:
      raise ValueError(f'Expected unseen.{field} >= 1, got {unseen[field]}.')
  if not 0 < unseen.learning_rate < float('inf'):
    raise ValueError(
      f'Expected unseen.learning_rate above 0, got {unseen.learning_rate}.'
    )
  if unseen.start not in _STARTS:
    raise ValueError(
      f'Expected unseen.start to be one of {", ".join(_STARTS)}, got '
      f'{unseen.start!r}.'
    )


@logs.kept()
def run(
  config: ml_collections.ConfigDict,
  workdir: str | pathlib.Path,
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
  resume: str = 'auto',
) -> dict[str, Any]:
  """Trains without newcomers, lets these adapt, and writes table and figure.

  Args:
    config: The experiment; its cases are the algorithms.
    workdir: Where results go. A folder with the same experiment is gone on
      with: what is finished is not run again.
    only: A part of the algorithms; () is all of them.
    command_line: Fields that come after the cases' own settings.
    resume: Whether there must or must not be one, see `workdirs.check`.

  Returns:
    What `unseen.json` holds: `environment` and `environments` as in
    `results.json`, and `results`, see `summarize`.

  Raises:
    ValueError: If anything about the input is wrong; nothing is written then.
    train.DivergedError: If a loss is not finite; what is finished is kept.
    interrupts.Interrupted: After SIGINT or SIGTERM, when the state is saved.
  """
  workdir = pathlib.Path(workdir)
  command_line = dict(command_line or {})
  config = cases_lib.with_own(config, only)
  _configs(config, only, command_line)
  identity = _identity(config, command_line)
  workdirs.check(workdir, identity, resume)
  reports.load_records(workdir, check=records_lib.check_newcomers)
  source = backbones.load_source(config)
  fingerprints.check(workdir, source.fingerprint)
  held_out = [hold_out(source, config, s) for s in train.seeds_of(config)]
  plans = plans_of(config, source, held_out, only, command_line)
  for plan in plans:
    if plan.case.warning:
      print(f'warning: {plan.case.warning}', file=sys.stderr)
  workdirs.prepare(
    workdir, identity, config_lib.flatten(config), source.fingerprint
  )
  paths = [workdir / 'cases' / f'{plan.name}.json' for plan in plans]
  with workdirs.locked(workdir), interrupts.noticed() as flag:
    logs.write_to(workdir)
    missing = [
      plan for plan, path in zip(plans, paths, strict=True) if not path.exists()
    ]
    if not missing:
      check, report = records_lib.check_newcomers, workdir / 'unseen.json'
      print(reports.nothing_trained(report, paths, check), flush=True)
    for number, plan in enumerate(missing, start=1):
      record = _run(plan, source, held_out, workdir, flag)
      records_lib.write(workdir / 'cases' / f'{plan.name}.json', record)
      _say(record, config)
      if number < len(missing):
        _report(workdir, config, [p.label for p in missing[number:]])
    return _report(workdir, config)


def _identity(config, command_line):
  """What all results depend on, by field."""
  flat = config_lib.flatten(config)
  return (
    config_lib.identity(config)
    | {field: v for field, v in flat.items() if field.startswith('unseen.')}
    | {'command_line': sorted(_dependent(command_line))}
  )


def _dependent(command_line):
  """The fields of the command line that results depend on."""
  unseen = [field for field in command_line if field.startswith('unseen.')]
  return [*config_lib.command_line_identity(command_line), *unseen]


def _run(plan, source, held_out, workdir, flag):
  """Trains an algorithm and lets newcomers adapt: its record."""
  folder = workdir / 'checkpoints' / plan.name
  if flag.signal_number is not None:
    raise interrupts.Interrupted(flag.signal_number)
  history = train.run_case(plan.label, plan.case, plan.config, folder, flag)
  if flag.signal_number is not None:
    raise interrupts.Interrupted(flag.signal_number)
  began = time.perf_counter()
  initial = initial_states(plan.case)
  saved = checkpoints.Checkpoints(
    folder,
    plan.config.checkpoint.keep,
    train.about(plan.case, plan.config),
    defaults=train.about_before(),
  )
  try:
    states, _ = saved.restore(initial)
  finally:
    saved.close()
  each = evaluate(
    plan,
    newcomers_of(plan, source, held_out),
    trained_of(plan, states, initial),
  )
  partitions = [data.newcomers.partition for data in held_out]
  flat = config_lib.flatten(plan.config)
  own = results.own_metrics(source.tasks)
  return {
    'case': plan.name,
    'label': plan.label,
    'seeds': train.seeds_of(plan.config),
    'rounds': plan.config.run.rounds,
    'protocol': plan.config.data.protocol,
    'overlapping_pairs': overlapping_pairs(source, held_out[0]),
    environments.KEY: history.environments,
    'examples': list(plan.config.unseen.examples),
    'clients': [[int(i) for i in p.client_ids] for p in partitions],
    'test_examples': [p.test.sizes.tolist() for p in partitions],
    'adapted': adapted_layers(plan),
    'way': plan.way._asdict(),
    'values': {
      name: train.to_json(100 * x if results.in_percent(name, [own]) else x)
      for name, x in each.items()
      if name != 'count'
    },
    'counts': train.to_json(each['count'][:, 0]),  # The same for all numbers.
    **own,
    'training_clients': {
      name.removeprefix('test/client/'): [of_seed[-1] for of_seed in values[-1]]
      for name, values in history.values.items()
      if name.startswith('test/client/')
    },
    'settings': {
      field: value
      for field, value in flat.items()
      if field.split('.')[0] not in ('report', 'cases', 'compare', 'overrides')
    },
    'adaptation_seconds': time.perf_counter() - began,
  }


def initial_states(case: program_lib.Case) -> Any:
  """The states of all runs before the first round, `[R, ...]`."""

  def one(run):
    algorithm = case.make_algorithm(case.federation, run.settings)
    data = dataclasses.replace(case.data, partition=run.train)
    return algorithm.init(run.key, data)

  init = jax.jit(lambda runs: jax.lax.map(one, runs))
  compiled = init.lower(case.runs).compile(compilation.LOW_EFFORT)
  return compiled(case.runs)


class Newcomers(NamedTuple):
  """The newcomers of an algorithm, ready to adapt.

  Attributes:
    federation: Of the newcomers.
    data: Theirs, of any seed.
    partitions: Of all seeds, `[R, ...]`.
    with_examples: `count -> Algorithm` whose `view` adapts with so many; it
      takes an `adaptation.Trained` for the state.
  """

  federation: federation_lib.Federation
  data: dataset_lib.FederatedDataset
  partitions: partitions_lib.Partition
  with_examples: Callable[[Any], algorithms.Algorithm]


def newcomers_of(
  plan: Plan, source: datasets.Source, held_out: Sequence[HeldOut]
) -> Newcomers:
  """Gives the newcomers of all seeds an algorithm."""
  case, data = plan.case, held_out[0].newcomers
  known = source.shared_labels
  # The store of the case: layers may have been computed on it.
  features = case.test_data.examples.features
  data = dataclasses.replace(
    data, examples=dataclasses.replace(data.examples, features=features)
  )
  federation = _federation_of(case.test_federation, data, known)
  with_examples = functools.partial(
    adaptation.adapted,
    case.make_algorithm(case.test_federation, {}),
    federation,
    adaptation.Adaptation(
      local_optimizers.LocalSgd(
        learning_rate=plan.way.rate,
        batch_size=plan.config.client.batch_size,
        epochs=plan.config.unseen.epochs,
      ),
      trained_layers(plan),
      plan.way.pull,
    ),
    len(data.tasks) if known else None,
  )
  partitions = [each.newcomers.partition for each in held_out]
  return Newcomers(
    federation, data, partitions_lib.stack_partitions(partitions), with_examples
  )


def trained_of(plan: Plan, states: Any, initial: Any) -> adaptation.Trained:
  """What newcomers get of all runs, `[R, ...]`.

  Args:
    plan: Of the algorithm.
    states: After the last round.
    initial: Before the first one.
  """
  is_initial = plan.config.unseen.start == INITIAL
  return adaptation.Trained(
    params=states.params,
    initial=(initial if is_initial else states).params,
    client_tasks=jnp.asarray(plan.case.runs.train.client_tasks),
    key=states.key,
    round=states.round,
  )


def evaluate(
  plan: Plan, newcomers: Newcomers, trained: adaptation.Trained
) -> evaluation.Metrics:
  """Lets the newcomers of all seeds adapt, and tests them.

  Args:
    plan: Of the algorithm.
    newcomers: Of the algorithm.
    trained: Of all runs, `[R, ...]`.

  Returns:
    `[R, N, M, S]` NumPy by metric, and `count`: R seeds, N numbers of examples,
    M newcomers, S slots. NaN where a slot is empty.
  """
  low = plan.config.execution.compile_effort == 'low'
  evaluate_fn = jax.jit(
    evaluation_fn(plan, newcomers),
    compiler_options=compilation.LOW_EFFORT if low else None,
  )
  with jax.debug_nans(False):  # NaN is what an empty slot has.
    found = evaluate_fn(
      trained,
      newcomers.partitions,
      newcomers.data.examples,
      newcomers.federation.frozen,
    )
  return jax.tree.map(np.asarray, found)


def evaluation_fn(
  plan: Plan, newcomers: Newcomers
) -> Callable[..., evaluation.Metrics]:
  """What `evaluate` compiles.

  Args:
    plan: Of the algorithm.
    newcomers: Of the algorithm.

  Returns:
    `(trained, partitions, examples, frozen) -> metrics`, both of all runs.
  """
  counts = jnp.array(plan.config.unseen.examples, jnp.int32)

  def of_all(trained, partitions, examples, frozen):
    def of_run(run):
      trained, partition = run
      data = dataclasses.replace(
        newcomers.data, examples=examples, partition=partition
      )
      rows = partition.test, partition.pooled_test

      def with_examples(count):
        evaluate_fn = evaluation.evaluator(
          newcomers.federation,
          newcomers.with_examples(count),
          plan.case.execution,
        )
        return evaluate_fn(trained, data, *rows, frozen)['each']

      return jax.lax.map(with_examples, counts)

    return jax.lax.map(of_run, (trained, partitions))

  return of_all


def _federation_of(federation, newcomers, known):
  """The federation of the newcomers, with the network of the case."""
  clients = dict(federation.num_owners) | {'client': newcomers.num_clients}
  if known:
    return dataclasses.replace(federation, num_owners=clients)
  return dataclasses.replace(
    federation,
    num_owners=clients | {'task': newcomers.num_tasks},
    tasks=newcomers.tasks,
    loss_fn=tasks_lib.task_loss(newcomers.tasks),
    task_weights=(1.0,) * newcomers.num_tasks,
  )


def trained_layers(plan: Plan) -> Any:
  """Whether newcomers train a leaf, with the structure of a view."""
  federation: federation_lib.Federation = plan.case.test_federation
  if plan.way.all_layers:
    return jax.tree.map(lambda unused_type: True, federation.layer_types)
  return adaptation.own_layers(federation)


def adapted_layers(plan: Plan) -> str:
  """What newcomers train, in words."""
  flags = trained_layers(plan)
  chosen = jax.tree.leaves(flags)
  if all(chosen) or not any(chosen):
    return 'all layers' if all(chosen) else 'nothing'
  names = [
    path.rsplit('/', 1)[0]
    for path, flag in zip(layer_types.paths(flags), chosen, strict=True)
    if flag
  ]
  return ', '.join(dict.fromkeys(names))


def overlapping_pairs(source: datasets.Source, held_out: HeldOut) -> int:
  """Pairs of neighbouring windows to adapt with and to be tested on.

  Zero for a source without an order in time.
  """
  if source.runs is None or source.keys is None:
    return 0
  groups, _ = partitioners.by_key(source.keys)
  partition = held_out.newcomers.partition
  own, test = partition.train.groups(), partition.test.groups()
  split = splits.Split(own, own, test)
  theirs = [groups[client] for client in held_out.clients]
  return splits.overlaps(split, theirs, source.runs)


def summarize(records: Sequence[Record], metric: str) -> list[dict[str, Any]]:
  """A row for each algorithm.

  Args:
    records: Of the algorithms.
    metric: A name of `evaluation.metric_names`.

  Returns:
    Rows with `case`, `label`, `adapted`, `seeds`, `rounds` and `examples`
    `[N]`; and `mean`, `std` `[N]` (over seeds, ddof 1; NaN for one seed) and
    `seed_values` `[R, N]` of the mean over newcomers, all alike; `way`;
    `learned`, whether they start from what was trained; and `training_clients`,
    the mean of the others after the last round.
  """
  rows = []
  for record in records:
    values = np.asarray(record['values'][metric], np.float64)  # [R, N, M, S]
    defined = ~np.isnan(values)
    count = np.maximum(defined.sum((2, 3)), 1)
    of_seeds = np.where(defined, values, 0).sum((2, 3)) / count
    of_seeds[~defined.any((2, 3)) | _broken(record).any((2, 3))] = np.nan
    mean, std = results.mean_and_std(of_seeds)
    seen = np.asarray(record['training_clients'][metric], np.float64)
    rows.append(
      {
        'case': record['case'],
        'label': record['label'],
        'metric': metric,
        'adapted': record['adapted'],
        'examples': record['examples'],
        'mean': mean.tolist(),
        'std': std.tolist(),
        'seed_values': of_seeds.tolist(),
        'training_clients': float(seen.mean()),
        'seeds': record['seeds'],
        'rounds': record['rounds'],
        'way': record['way'],
        'learned': record['settings']['unseen.start'] != INITIAL,
      }
      | {k: record[k] for k in (results.METRICS,) if k in record}
    )
  return rows


def _broken(record):
  """Who has labels to be tested on and no loss, `[R, N, M, S]` bool."""
  losses = np.asarray(record['values'][evaluation.LOSS], np.float64)
  counts = np.asarray(record.get('counts', np.zeros(())), np.float64)
  counts = counts[:, None] if counts.ndim else counts
  return np.isnan(losses) & (counts > 0)


def _notes(records):
  """What a reader of the table has to know of how it was made."""
  first = records[0]
  most, count = max(first['examples']), len(first['clients'][0])
  sizes = [size for of_seed in first['test_examples'] for size in of_seed]
  ways: dict[tuple[float, int], list[str]] = {}
  for record in records:
    if record['adapted'] != 'nothing':
      way = record['way']['rate'], record['settings']['unseen.epochs']
      ways.setdefault(way, []).append(record['label'])
  trained = '; '.join(
    f'{tables.counted(epochs, "epoch")} at learning rate {rate:g} '
    f'({", ".join(labels)})'
    for (rate, epochs), labels in ways.items()
  )
  pulled = [
    f'{record["label"]} with weight {record["way"]["pull"]:g}'
    for record in records
    if record['way']['pull']
  ]
  initial = [
    record['label']
    for record in records
    if record['settings']['unseen.start'] == INITIAL
  ]
  notes = [
    f'Newcomers: {tables.counted(count, "client")} that took no part in '
    'training, others for each seed; mean over them, all alike. A column for '
    'each number of examples that a newcomer adapts with, the first ones of '
    'one order; tested on '
    f'{_span(sizes)} others, behind the first {most}.',
    f'Adaptation: plain SGD, {trained or "none"}'
    + '; layers that are not named stay. Layers of clients or '
    'tasks start from the mean of the copies that training left'
    + (f' (untrained: {", ".join(initial)})' if initial else '')
    + ', those of a task that was trained from its copy.',
  ]
  if pulled:
    notes.append(f'Pulled to what they start from: {", ".join(pulled)}.')
  if first['overlapping_pairs']:
    notes.append(
      f'{first["overlapping_pairs"]} pairs of neighbouring windows, which '
      'share samples, are on both sides of adaptation and test (first seed); '
      'the blocked protocol has none.'
    )
  return notes


def _span(numbers):
  """`3 to 5`, or one number."""
  least, most = min(numbers), max(numbers)
  return str(least) if least == most else f'{least} to {most}'


def _report(workdir, config, missing=()):
  """Writes unseen.json, .md, .tex and .png.

  The table is printed, too, if nothing is missing, by label.
  """
  records = reports.load_records(
    workdir, config.cases, records_lib.check_newcomers
  )
  metrics = [
    name
    for name in records[0]['values']
    if all(name in record['values'] for record in records)
  ]
  if config.report.metric not in metrics:
    raise ValueError(
      f'Expected report.metric to be one of {", ".join(metrics)}, got '
      f'{config.report.metric!r}.'
    )
  rows = summarize(records, config.report.metric)
  path = workdir / 'unseen.json'
  results.write_json(
    path,
    {
      **environments.summary(environments.of_records(records, path)),
      'results': [row for name in metrics for row in summarize(records, name)],
    },
  )
  table = tables.newcomers_table(
    rows,
    records,
    metric=config.report.metric,
    title=config.report.title,
    notes=[*_notes(records), *reports.unfinished(missing)],
  )
  tables.write([table], workdir, 'unseen')
  figures.newcomers(
    workdir / 'unseen.png', rows, metric=config.report.metric, title=table.title
  )
  if not missing:
    print('\n' + tables.to_text(table))
  return json.loads(path.read_bytes())


def _say(record, config):
  """Prints what the newcomers of an algorithm ended with."""
  (row,) = summarize([record], config.report.metric)
  found = ', '.join(
    f'{count}: {mean:.2f}'
    for count, mean in zip(row['examples'], row['mean'], strict=True)
  )
  shown = results.describe('test', config.report.metric, [record])
  print(f'{row["label"]}: {shown} by examples {found}', flush=True)


def describe(
  config: ml_collections.ConfigDict,
  workdir: str | pathlib.Path | None = None,
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
) -> str:
  """Says what `run` would do, without training anything: `--dry_run`.

  Args:
    config: The experiment.
    workdir: Where results would go, if that is known.
    only: A part of the algorithms; () is all of them.
    command_line: Fields that come after the cases' own settings.

  Raises:
    ValueError: If anything about the input is wrong.
  """
  folder = None if workdir is None else pathlib.Path(workdir)
  config = cases_lib.with_own(config, only)
  _configs(config, only, command_line)
  if folder is not None:
    workdirs.check(folder, _identity(config, command_line or {}))
  source = backbones.load_source(config, compute=False)
  if folder is not None:
    fingerprints.check(folder, source.fingerprint)
  seeds = train.seeds_of(config)
  held_out = [hold_out(source, config, seed) for seed in seeds]
  lines = [
    'Partition without newcomers (training examples of the first seed)',
    datasets.describe(held_out[0].train),
    '',
  ]
  for seed, data in zip(seeds, held_out, strict=True):
    numbers = ', '.join(str(i) for i in data.newcomers.partition.client_ids)
    lines.append(f'Newcomers of seed {seed}: clients {numbers}')
  lines.append('')
  for plan in plans_of(config, source, held_out, only, command_line):
    path = folder and folder / 'cases' / f'{plan.name}.json'
    done = ', finished' if path and path.exists() else ''
    lines.append(
      f'{plan.label} ({plan.name}): newcomers adapt {adapted_layers(plan)} at '
      f'learning rate {plan.way.rate:g}{done}'
    )
  return '\n'.join(lines)

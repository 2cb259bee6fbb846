"""Held-out clients: how well algorithms serve clients unseen in training.

For every seed some clients are held out of training, drawn or named in turn,
see `held_out_data`. An
algorithm is trained on the federation of the others; then each held-out client
adapts with the first n examples of one random order of its own, in the
algorithm's way (`Spec.adapt`), and is tested on its examples behind the largest
n, the same for every n and every algorithm. Where data are split in time
(`data.protocol=blocked`), neighbours in time of the largest n are left out of
the test.

A held-out client that is a task of its own has no copy of its task's layers,
see `fmtl_jax/adaptation.py`. A finished algorithm is not run again.
"""

from collections.abc import Mapping, Sequence
import functools
import pathlib
import re
import sys
import time
from typing import Any

import ml_collections

from ..building import build
from ..building import checks
from ..building import idle_fields
from ..building import data_notes
from ..building import datasets
from ..building import networks
from ..building import private
from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..configuration import own_code
from ..folders import environments
from ..folders import logs
from ..folders import records
from ..reporting import reports
from ..reporting import results
from ..running import interrupts
from . import case_runs
from . import driver
from . import held_out_adaptation
from . import held_out_data
from . import held_out_reports
from . import histories
from . import tracked_runs
from fmtl_jax.storage import checkpoints

# The same for all rows of one table.
_SHARED = (
  'data',
  'run.seeds',
  'run.first_seed',
  'unseen.clients',
  'unseen.owners',
  'unseen.examples',
)


def plans_of(
  config: ml_collections.ConfigDict,
  source: datasets.Source,
  splits: Sequence[held_out_data.HeldOutSplit],
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
) -> list[held_out_adaptation.Plan]:
  """The plans of all algorithms, in the order of the table.

  Args:
    config: The experiment; its cases are the algorithms.
    source: The data.
    splits: Of each seed.
    only: A part of the algorithms; () is all.
    command_line: Fields that come after the cases' own settings.

  Raises:
    ValueError: If a setting is invalid.
  """
  by_seed = dict(zip(case_runs.seeds_of(config), splits, strict=True))
  plans = []
  for name, final in _configs(config, only, command_line).items():
    case = build.build(
      name,
      final,
      source,
      case_runs.seeds_of(final),
      federate=lambda unused_source, unused_data, seed: by_seed[seed].train,
    )
    way = own_code.spec(case.algorithm).adapt(
      networks.own_settings(final, case.algorithm), final.unseen.learning_rate
    )
    personal = case.make_algorithm(case.federation, {}).personal
    if personal and not (way.all_layers or case.federation.has_client_layers):
      raise ValueError(
        'Expected algorithms that define how held-out clients adapt, got '
        f'{name!r}; leave it out.'
      )
    label = cases_lib.label(name, config)
    plans.append(held_out_adaptation.Plan(name, label, final, case, way))
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
    checks.check(final)
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
  idle_fields.check(command_line or {}, configs.items())
  return configs


def _check(config):
  """Raises a ValueError for invalid settings of held-out clients."""
  unseen = config.unseen
  examples = tuple(unseen.examples)
  whole = all(isinstance(n, int) and n >= 0 for n in examples)
  if not whole or sorted(set(examples)) != list(examples) or not any(examples):
    raise ValueError(
      'Expected unseen.examples to be whole numbers >= 0 in ascending order, '
      f'one of them above 0, got {examples!r}; for one write (5,).'
    )
  _check_owners(config)
  for field in ('clients', 'epochs'):
    if unseen[field] < 1:
      raise ValueError(f'Expected unseen.{field} >= 1, got {unseen[field]}.')
  if not 0 < unseen.learning_rate < float('inf'):
    raise ValueError(
      f'Expected unseen.learning_rate above 0, got {unseen.learning_rate}.'
    )
  starts = held_out_adaptation.STARTS
  if unseen.start not in starts:
    raise ValueError(
      f'Expected unseen.start to be one of {", ".join(starts)}, got '
      f'{unseen.start!r}.'
    )


def _check_owners(config):
  """Raises a ValueError for owners that cannot be held out in turn."""
  owners = config.unseen.owners
  if not all(isinstance(pattern, str) and pattern for pattern in owners):
    raise ValueError(
      f'Expected unseen.owners to be names or patterns, got {owners!r}; for '
      "one write ('NAME',)."
    )
  if len(set(owners)) < len(owners):
    raise ValueError(
      f'Expected every pattern of unseen.owners once, got {owners!r}.'
    )
  for pattern in owners:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(
        'Expected unseen.owners to be regular expressions, got '
        f'{pattern!r} ({error}).'
      ) from error
  if owners and config.run.seeds % len(owners):
    raise ValueError(
      f'Expected run.seeds to be a multiple of the {len(owners)} '
      'unseen.owners, so that all have as many turns, got '
      f'{config.run.seeds}.'
    )


@logs.kept()
def run(
  config: ml_collections.ConfigDict,
  workdir: str | pathlib.Path,
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
  resume: str = 'auto',
) -> dict[str, Any]:
  """Trains without held-out clients, lets these adapt, and reports.

  Args:
    config: The experiment; its cases are the algorithms.
    workdir: Where results go. An unfinished run of the same experiment is
      resumed: what is finished is not run again.
    only: A part of the algorithms; () is all of them.
    command_line: Fields that come after the cases' own settings.
    resume: Whether there must or must not be one, see `workdirs.check`.

  Returns:
    What `unseen.json` holds: `environment` and `environments` as in
    `results.json`, and `results`, see `held_out_reports.summarize`.

  Raises:
    ValueError: If anything about the input is wrong; nothing is written then.
    divergence.DivergedError: If a loss is not finite; what is finished is kept.
    interrupts.Interrupted: After SIGINT or SIGTERM, when the state is saved.
  """
  return driver.run(
    _study(config, only, command_line), pathlib.Path(workdir), resume
  )


def _study(
  config: ml_collections.ConfigDict,
  only: Sequence[str],
  command_line: Mapping[str, Any] | None,
) -> driver.Study:
  """The study of some algorithms."""
  config = cases_lib.with_own(config, only)
  _configs(config, only, command_line)

  def check(workdir):
    reports.load_records(workdir, check=records.check_held_out)

  def prepare(source, workdir):
    splits = _splits_of(config, source)
    plans = plans_of(config, source, splits, only, command_line)
    for plan in plans:
      if plan.case.warning:
        print(f'warning: {plan.case.warning}', file=sys.stderr)
    parts = [
      driver.case(
        workdir / 'cases' / f'{plan.name}.json',
        functools.partial(_run, plan, source, splits, workdir),
        records.check_held_out,
        lambda record: held_out_reports.say(record, config),
      )
      for plan in plans
    ]
    return driver.Work(
      parts, lambda missing: held_out_reports.write(workdir, config, missing)
    )

  return driver.Study(
    config,
    _identity(config, command_line or {}),
    check,
    prepare,
    report='unseen.json',
  )


def _splits_of(config, source):
  """The data of all seeds."""
  return held_out_data.hold_out_each(source, config, case_runs.seeds_of(config))


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


def _names(case, splits):
  """The training tasks; by number where other ones train for each seed."""
  names = {tuple(t.name for t in split.train.tasks) for split in splits}
  [same] = names if len(names) == 1 else [None]
  return same or [f'task {i}' for i in range(len(case.test_data.tasks))]


def _run(plan, source, splits, workdir, flag):
  """Trains an algorithm and lets held-out clients adapt: its record."""
  folder = workdir / 'checkpoints' / plan.name
  if flag.signal_number is not None:
    raise interrupts.Interrupted(flag.signal_number)
  head = {
    'label': plan.label,
    'tasks': _names(plan.case, splits),
    'seeds': case_runs.seeds_of(plan.config),
  }
  history = tracked_runs.run_case(
    plan.name, plan.case, plan.config, workdir, flag, head
  )
  if flag.signal_number is not None:
    raise interrupts.Interrupted(flag.signal_number)
  began = time.perf_counter()
  initial = case_runs.initial_states(plan.case)
  saved = checkpoints.Checkpoints(
    folder,
    plan.config.checkpoint.keep,
    case_runs.about(plan.case, plan.config),
    defaults=case_runs.about_before(),
  )
  try:
    states, _ = saved.restore(initial)
  finally:
    saved.close()
  each = held_out_adaptation.evaluate(
    plan,
    held_out_adaptation.clients_of(plan, splits),
    held_out_adaptation.trained_of(plan, states, initial),
  )
  partitions = [split.held_out.partition for split in splits]
  flat = config_lib.flatten(plan.config)
  own = results.own_metrics(source.tasks)
  ledger = private.of_case(plan.name, plan.config, plan.case)
  owners = held_out_data.owners_of(plan.config, head['seeds'])
  return {
    'case': plan.name,
    'label': head['label'],
    'seeds': head['seeds'],
    'rounds': plan.config.run.rounds,
    'protocol': plan.config.data.protocol,
    'overlapping_pairs': held_out_data.overlapping_pairs(source, splits[0]),
    environments.KEY: history.environments,
    'examples': list(plan.config.unseen.examples),
    'clients': [[int(i) for i in p.client_ids] for p in partitions],
    **({'owners': owners} if owners else {}),
    **({'privacy': ledger} if ledger else {}),
    'test_examples': [p.test.sizes.tolist() for p in partitions],
    'adapted': held_out_adaptation.adapted_layers(plan),
    'way': plan.way._asdict(),
    'values': {
      name: histories.to_json(100 * x if results.in_percent(name, [own]) else x)
      for name, x in each.items()
      if name != 'count'
    },
    'counts': histories.to_json(
      each['count'][:, 0]
    ),  # The same for all numbers.
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


def describe(
  config: ml_collections.ConfigDict,
  workdir: str | pathlib.Path | None = None,
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
) -> str:
  """Describes what `run` would do, without training: `--dry_run`.

  Args:
    config: The experiment.
    workdir: Where results would go, if that is known.
    only: A part of the algorithms; () is all of them.
    command_line: Fields that come after the cases' own settings.

  Raises:
    ValueError: If anything about the input is wrong.
  """
  folder = None if workdir is None else pathlib.Path(workdir)
  source = driver.load(
    _study(config, only, command_line), folder, compute=False
  )
  config = cases_lib.with_own(config, only)
  splits = _splits_of(config, source)
  lines = [
    'Partition without held-out clients (training examples, first seed)',
    data_notes.describe(splits[0].train),
    '',
  ]
  for seed, split in zip(case_runs.seeds_of(config), splits, strict=True):
    numbers = ', '.join(str(i) for i in split.held_out.partition.client_ids)
    lines.append(f'Held-out clients of seed {seed}: {numbers}')
  lines.append('')
  for plan in plans_of(config, source, splits, only, command_line):
    adapted = held_out_adaptation.adapted_layers(plan)
    path = folder and folder / 'cases' / f'{plan.name}.json'
    done = ', finished' if path and path.exists() else ''
    lines.append(
      f'{plan.label} ({plan.name}): held-out clients adapt '
      f'{adapted} at learning rate {plan.way.rate:g}{done}'
    )
    ledger = private.of_case(plan.name, plan.config, plan.case)
    said = private.in_words('  privacy', ledger)
    lines += [said] if said else []
  return '\n'.join(lines)

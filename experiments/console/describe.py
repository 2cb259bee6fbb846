"""Describe: what an experiment would run, without training: `--dry_run`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from ..building import backbones
from ..building import data_notes
from ..building import networks
from ..building import private
from ..configuration import cases as cases_lib
from ..configuration import config as config_lib
from ..configuration import own_code
from ..configuration import schema
from ..reporting import costs
from ..studies import train
from fmtl_jax import algorithms
from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import communication
from fmtl_jax.running import kept_ceilings
from fmtl_jax.running import program as program_lib


def describe(
  config: ml_collections.ConfigDict,
  only: Sequence[str] = (),
  command_line: Mapping[str, Any] | None = None,
  check_case: train.CheckCase | None = None,
) -> str:
  """Describes the cases of an experiment: `--dry_run`.

  Args:
    config: The experiment.
    only: A part of the cases; () is all of them.
    command_line: Fields that come after the cases' own settings.
    check_case: See `train.train_and_evaluate`.

  Returns:
    For each case the algorithm's own settings, its layer types, parameters,
    bytes, memory and execution, and once the partition.

  Raises:
    ValueError: If anything about the input is wrong.
  """
  config = cases_lib.with_own(config, only)
  names, command_line = cases_lib.names(config, only), dict(command_line or {})
  train.check_cases(names, config, command_line)
  source = backbones.load_source(config, compute=False)
  lines = []
  partition = ''
  for name in names:
    final, case = train.build_case(
      name, config, command_line, source, check_case
    )
    if case is None:
      continue
    described = data_notes.describe(case.test_data)
    if described != partition:
      partition = described
      lines += ['Partition (training examples of the first seed)', described]
    lines += ['', f'{cases_lib.label(name, config)} ({name})']
    own = own_settings(final, case.algorithm)
    lines += [f'  {line}' for line in [*own, *_case(name, case, final)]]
  return '\n'.join(lines)


def own_settings(
  config: ml_collections.ConfigDict, algorithm: str
) -> list[str]:
  """A line for each setting that is an algorithm's own: field, value, help."""
  spec = own_code.spec(algorithm)
  return [
    f'{schema.own_field(algorithm, setting)}={config_lib.shown(value)}: '
    f'{spec.settings[setting].help}'
    for setting, value in networks.own_settings(config, algorithm).items()
  ]


def layer_table(federation: federation_lib.Federation) -> list[str]:
  """A line for each parameter: path, shape, layer type, copies."""
  rows = [('parameter', 'shape', 'layer type', 'copies')]
  for path, label, per_slot, leaf in zip(
    layer_types.paths(federation.shapes),
    jax.tree.leaves(federation.labels),
    jax.tree.leaves(federation.per_slot),
    jax.tree.leaves(federation.shapes),
    strict=True,
  ):
    copies: tuple[int, ...] = ()
    if label != layer_types.PRETRAINED:
      copies = federation.owner_shape(label, per_slot)
    copied = ' x '.join(str(count) for count in copies) or '1'
    rows.append((path, str(leaf.shape), label, copied))
  widths = [max(len(row[i]) for row in rows) for i in range(4)]
  return [
    '  '.join(
      cell.ljust(w) for cell, w in zip(row, widths, strict=True)
    ).rstrip()
    for row in rows
  ]


def _messages(
  federation: federation_lib.Federation, messages: algorithms.Messages
) -> list[str]:
  """Sizes of client message and server broadcast, on one line if equal."""
  ways = []
  for message in (messages.up, messages.down):
    once, each_slot = communication.message_bytes(federation, message)
    sizes = ', '.join(f'{n} {b:,}' for n, b in {**once, **each_slot}.items())
    note = ' (task-specific layers for each active task)' if each_slot else ''
    ways.append(f'{sizes or "nothing"}{note}')
  up, down = ways
  if up == down:
    return [f'bytes of one copy, each way: {up}']
  return [
    f'bytes of one copy, up: {up}',
    f'bytes of one copy, down: {down}',
  ]


def _of_examples(
  federation: federation_lib.Federation,
  algorithm: algorithms.Algorithm,
  data: dataset_lib.FederatedDataset,
) -> list[str]:
  """Sizes of what is sent for each example, nothing where that is nothing."""
  if algorithm.each_example is None:
    return []
  each = algorithm.each_example(data)
  lines = _messages(federation, each.messages)
  more = f', {each.times:g} times a round'
  return [line.replace('one copy', 'one example') + more for line in lines]


def _case(
  name: str, case: program_lib.Case, config: ml_collections.ConfigDict
) -> list[str]:
  """Layer types, parameters, bytes, memory, execution."""
  federation = case.federation
  parameters = costs.parameters(case, {})
  program = program_lib.Program(
    case, config.run.evaluate_every, execution_lib.LOW
  )
  program.compile()
  memory = 'not known on this platform'
  if program.memory_bytes is not None:
    memory = f'{program.memory_bytes / 2**20:.1f} MiB a device'
  before = []
  if case.prefix_parameters:
    before = [
      f'before round 0: pre-trained layers of {case.prefix_parameters:,} '
      'parameters, whose outputs are computed once'
    ]
  algorithm = case.make_algorithm(federation, {})
  form, reasons = program.form
  codecs = costs.codecs(config_lib.flatten(config))
  secure = costs.secure_sums(config_lib.flatten(config))
  ledger = private.of_case(name, config, case)
  deviations = own_code.spec(case.algorithm).deviations
  kept = config.execution.name == 'auto' and kept_ceilings.kept() is not None
  return [
    *before,
    *([f'unlike its paper: {deviations}'] if deviations else []),
    *layer_table(federation),
    'distinct parameters: '
    + ', '.join(f'{name} {n:,}' for name, n in parameters.items()),
    *_messages(federation, algorithm.messages()),
    *_of_examples(federation, algorithm, case.data),
    *([f'compression of updates: {codecs}'] if codecs else []),
    *([f'secure sums of updates: {secure}'] if secure else []),
    *filter(None, [private.in_words('privacy', ledger)]),
    f'memory for temporaries of a round: {memory}',
    f'execution: {form} on {len(jax.devices())} '
    f'{jax.devices()[0].platform} device(s), {program.num_runs} run(s) mapped',
    *([f'  by the ceilings in {kept_ceilings.path()}'] if kept else []),
    *(f'  {path}: {reason}' for path, reason in reasons.items()),
  ]

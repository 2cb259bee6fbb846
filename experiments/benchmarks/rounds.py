"""Measures a round: python -m experiments.benchmarks.rounds --workload=W1

Seconds a round are the median of several, of one seed on all devices. The rate
of matrix products is measured in the same process, and the time that products
of the round's batches alone take, the floor, in turn with further rounds, so
that both have the same machine: their share is the median over pairs. Where
clients are of unlike sizes rounds are, too, and steps a second count. With
`--reference=torch` (extra `benchmarks`) the usual PyTorch loop does the same
work in processes of its own, on a CPU with one thread and with two; the faster
one counts. `--reference=torch_manual` is dense networks written by hand in
PyTorch, without autograd; both may be named. With many clients their data and
personal layers live on the host (`--clients_on=host`). `--counts` says what the
compiled round is made of. `--all --folder=DIR` measures all workloads with
their references and the device's ceilings, and goes on where it stopped.
"""

import dataclasses
import sys

from absl import flags

from ..console import command_line
from ..console import programs
from . import outputs
from . import timing

_WORKLOAD = flags.DEFINE_string(
  'workload',
  '',
  'W1, W2, W2s, W3, W4, W5, or F1 to F5, see workloads.py; `ceilings` for the '
  'products and copies that the device is capable of.',
)
_EXECUTION = flags.DEFINE_string('execution', 'auto', 'As execution.name.')
_CONVOLUTION = flags.DEFINE_string(
  'convolution', 'auto', 'As model.convolution.'
)
_CLIENTS = flags.DEFINE_integer(
  'clients', 0, 'Another number of clients than the workload has.'
)
_CLIENTS_ON = flags.DEFINE_enum(
  'clients_on',
  '',
  ['', 'device', 'host'],
  'Where clients live; by default on the host if they are more than 100,000.',
)
_DEVICE = flags.DEFINE_enum(
  'device',
  '',
  ['', 'cpu', 'cuda'],
  "Of the round and its references; '' for JAX's own choice.",
)
_MATMUL = flags.DEFINE_enum(
  'matmul',
  'highest',
  ['highest', 'tensorfloat32', 'tensorfloat32_x3'],
  'How products and convolutions are rounded on a GPU, here and in references.',
)
_DEVICES = flags.DEFINE_integer(
  'devices', 0, 'Over how many clients are spread; 0: all.'
)
_ROUNDS_PER_CALL = flags.DEFINE_integer(
  'rounds_per_call', 1, 'Rounds that run without going back to Python.'
)
_REPEATS = flags.DEFINE_integer(
  'repeats',
  0,
  f'{timing.REPEATS_HELP} As many again are measured in turn with the floor.',
  lower_bound=0,
)
_WHOLE = flags.DEFINE_bool(
  'whole',
  False,
  'Run all rounds of the published run, instead of multiplying.',
)
_COUNTS = flags.DEFINE_enum(
  'counts',
  '',
  ['', 'also', 'only'],
  'Count operations of a local step, and the flops and bytes of a round by '
  'XLA; `only` runs nothing.',
)
_PRIVATE = flags.DEFINE_bool(
  'private',
  False,
  'Measure rounds with clipped clients and noise, too, in turn with ordinary '
  'ones; with clients on the device.',
)
_REFERENCE = flags.DEFINE_list(
  'reference', [], 'What to compare with: torch, torch_manual.'
)
_REFERENCE_SECONDS = flags.DEFINE_float(
  'reference_seconds', 0, 'After so many a reference is stopped; 0: never.'
)
_OUTPUT = command_line.define_path('output', 'A JSON file for the figures.')
_ALL = flags.DEFINE_bool('all', False, 'Measure all workloads; needs --folder.')
_WORKLOADS = flags.DEFINE_list('workloads', [], 'With --all, some of them.')
_FOLDER = command_line.define_path('folder', 'Of the rows and table of --all.')
_KEEP = flags.DEFINE_bool(
  'keep',
  False,
  'With --workload=ceilings, keep them in the cache folder: by them, and no '
  'longer by those of another machine, execution.name=auto decides here.',
)
_MINUTES = flags.DEFINE_float('minutes', 8, 'With --all, for all rows.')
_ROW_SECONDS = flags.DEFINE_float(
  'row_seconds', 90, 'With --all, for each row.'
)


def _measure_all() -> int:
  """Measures every workload in a process of its own."""
  from . import session

  chosen = {
    'device': _DEVICE.value,
    'matmul': _MATMUL.value,
    'execution': _EXECUTION.value,
    'convolution': _CONVOLUTION.value,
    'clients': _CLIENTS.value,
    'rounds_per_call': _ROUNDS_PER_CALL.value,
    'repeats': _REPEATS.value,
  }
  return session.run(
    _FOLDER.value,
    chosen,
    names=_WORKLOADS.value,
    seconds=60 * _MINUTES.value,
    row_seconds=_ROW_SECONDS.value,
  )


def _measure_one() -> int:
  """Measures, prints and writes the figures of a workload."""
  from . import ceilings
  from . import measuring
  from . import references
  from . import workloads
  from fmtl_jax.running import kept_ceilings

  name = _WORKLOAD.value
  if name == ceilings.NAME:
    measuring.use(_DEVICE.value, _MATMUL.value)
    found = ceilings.measure()
    if _KEEP.value:
      found['kept'] = str(kept_ceilings.keep(ceilings.of_products(found)))
    outputs.show(found, _OUTPUT.value)
    return 0
  workload = dataclasses.replace(
    workloads.find(name), convolution=_CONVOLUTION.value
  )
  if _CLIENTS.value:
    workload = dataclasses.replace(workload, clients=_CLIENTS.value)
  references.check(_REFERENCE.value, workload)
  if _ROUNDS_PER_CALL.value < 1:
    raise ValueError(
      f'Expected --rounds_per_call >= 1, got {_ROUNDS_PER_CALL.value}.'
    )
  matmul = measuring.use(_DEVICE.value, _MATMUL.value)
  options = measuring.Options(
    execution=_EXECUTION.value,
    clients_on=_CLIENTS_ON.value,
    devices=_DEVICES.value,
    rounds_per_call=_ROUNDS_PER_CALL.value,
    repeats=_REPEATS.value,
    counts=_COUNTS.value,
    whole=_WHOLE.value,
    private=_PRIVATE.value,
  )
  figures = measuring.measure(name, workload, options)
  peers = {peer: {'error': 'It was not run.'} for peer in _REFERENCE.value}
  figures |= {'matmul': matmul, 'references': peers}
  outputs.write(figures, _OUTPUT.value)  # References may take long.
  for reference in _REFERENCE.value:
    found = references.measure(
      reference,
      name,
      clients=workload.clients,
      device=_DEVICE.value or measuring.torch_device(),
      matmul=_MATMUL.value,
      repeats=_REPEATS.value,
      timeout=_REFERENCE_SECONDS.value or None,
    )
    rate = 'client_steps_per_second'
    if rate in found and rate in figures:
      found['times_faster'] = figures[rate] / found[rate]
    peers[reference] = found
    outputs.write(figures, _OUTPUT.value)
  outputs.show(figures, _OUTPUT.value)
  failed = {peer: found for peer, found in peers.items() if 'error' in found}
  for reference, found in failed.items():
    sentence = f'error: --reference={reference} did not run: {found["error"]}'
    print(sentence, file=sys.stderr)
  return 1 if failed else 0


def main() -> int:
  """Measures one workload or all."""
  if _ALL.value != bool(_FOLDER.value):
    raise ValueError('Expected --folder=DIR with --all, and only with it.')
  if _KEEP.value and (_ALL.value or _WORKLOAD.value != 'ceilings'):
    raise ValueError('Expected --workload=ceilings with --keep, and no other.')
  return _measure_all() if _ALL.value else _measure_one()


if __name__ == '__main__':
  programs.run(main)

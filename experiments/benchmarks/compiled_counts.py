"""What a compiled round is made of: operations of a local step, flops, bytes.

These counts are of the program, not of a clock: two builds can be compared on
any machine that compiles for the platform.
"""

from collections.abc import Mapping
import collections
import dataclasses
import re
from typing import Any

from fmtl_jax.clients import client_batches

# What starts nothing: arguments, names for parts of buffers, and ends of what
# was counted when it started.
_FREE = frozenset(
  (
    *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'),
    *('after-all', 'opt-barrier', 'partition-id', 'replica-id', 'domain'),
    *('add-dependency', 'copy-done', 'async-update', 'async-done'),
    *('all-reduce-done', 'all-gather-done', 'collective-permute-done'),
    *('send-done', 'recv-done'),
  )
)
_COMMENT = re.compile(r'/\*.*?\*/')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?[\w.\-]+ = (.*)$')
_OPCODE = re.compile(r'\s([a-z][a-z0-9\-]*)\(')
_CALLED = re.compile(
  r'(body|to_apply|true_computation|false_computation)=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"?known_trip_count"?:?=?\{"?n"?:"?(\d+)"?\}')
_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
  """One line of a computation.

  Attributes:
    opcode: Such as `fusion`.
    body: Of a loop, the computation that it repeats; '' elsewhere.
    trips: How often, None where that depends on data.
    calls: What a call runs, or the branches of a conditional.
    name: Where in the traced function it comes from.
  """

  opcode: str
  body: str = ''
  trips: int | None = None
  calls: tuple[str, ...] = ()
  name: str = ''


def parse(text: str) -> dict[str, list[Instruction]]:
  """The computations of a compiled program's text by name.

  Args:
    text: As of `jax.stages.Compiled.as_text`.
  """
  found: dict[str, list[Instruction]] = {}
  current: list[Instruction] = []
  for line in _COMMENT.sub('', text).splitlines():
    computation = _COMPUTATION.match(line)
    if computation:
      current = found.setdefault(computation[2], [])
      continue
    instruction = _INSTRUCTION.match(line)
    opcode = instruction and _OPCODE.search(f' {instruction[1]}')
    if not instruction or not opcode:
      continue
    called = dict(_CALLED.findall(line))
    branches = _BRANCHES.search(line)
    trips, name = _TRIPS.search(line), _NAME.search(line)
    is_loop = opcode[1] == 'while'
    calls: tuple[str, ...] = ()
    if opcode[1] == 'call':
      calls = (called['to_apply'],)
    elif opcode[1] == 'conditional' and branches:
      calls = tuple(n.strip().lstrip('%') for n in branches[1].split(','))
    elif opcode[1] == 'conditional':
      calls = (called['true_computation'], called['false_computation'])
    current.append(
      Instruction(
        opcode=opcode[1],
        body=called['body'] if is_loop else '',
        trips=int(trips[1]) if is_loop and trips else None,
        calls=calls,
        name=name[1] if name else '',
      )
    )
  return found


def operations(
  computations: Mapping[str, list[Instruction]], name: str
) -> collections.Counter[str]:
  """What a computation starts, by opcode: on a GPU, its kernels and copies.

  A loop counts as often as it runs, once where that depends on data; of a
  conditional the larger branch counts.

  Args:
    computations: Of `parse`.
    name: One of them.
  """
  total: collections.Counter[str] = collections.Counter()
  for instruction in computations[name]:
    if instruction.body:
      for opcode, count in operations(computations, instruction.body).items():
        total[opcode] += count * (instruction.trips or 1)
    elif instruction.calls:
      parts = [operations(computations, call) for call in instruction.calls]
      total.update(max(parts, key=lambda part: sum(part.values())))
    elif instruction.opcode not in _FREE:
      total[instruction.opcode] += 1
  return total


def step_body(computations: Mapping[str, list[Instruction]]) -> str | None:
  """The computation that is a local step, None where no loop is left of it.

  Args:
    computations: Of `parse`.
  """
  scope = f'{client_batches.STEP_SCOPE}/'

  def own(body):
    """Instructions of the step itself, not of loops inside of it."""
    return sum(
      scope in line.name and 'while' not in line.name.rpartition(scope)[2]
      for line in computations[body]
    )

  bodies = {
    line.body for lines in computations.values() for line in lines if line.body
  }
  best = max(sorted(bodies), key=own, default=None)
  return best if best is not None and own(best) else None


def counts(text: str, costs: Mapping[str, Any] | None) -> dict[str, Any]:
  """The counts of a compiled round.

  Args:
    text: As of `jax.stages.Compiled.as_text`.
    costs: As of `cost_analysis`, which counts the body of a loop once.

  Returns:
    `step_operations` and, by opcode, `step_opcodes` (None where no loop of
    local steps is left), and XLA's `cost_flops` and `cost_bytes_accessed` of
    the round, None where it does not say.
  """
  computations = parse(text)
  body = step_body(computations)
  step = operations(computations, body) if body else None
  costs = costs or {}
  return {
    'step_operations': step.total() if step else None,
    'step_opcodes': dict(step.most_common()) if step else None,
    'cost_flops': costs.get('flops'),
    'cost_bytes_accessed': costs.get('bytes accessed'),
  }

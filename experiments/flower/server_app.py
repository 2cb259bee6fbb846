"""The ServerApp: the study of an experiment, whose rounds are messages."""

import contextlib
import functools
import json
import pathlib
import shlex
import sys
import time
from typing import Any

from flwr import app as records
from flwr import serverapp

from ..console import command_line
from ..console import config_files
from ..folders import workdirs
from ..running import jax_settings
from . import client_app
from . import parts
from . import program as program_lib
from . import secure_program

app = serverapp.ServerApp()
_POLL = 0.1  # Seconds between two looks for answers.
_TYPES = {
  'hello': records.MessageType.QUERY,
  'train': records.MessageType.TRAIN,
  'secure': records.MessageType.TRAIN,
  'evaluate': records.MessageType.EVALUATE,
}


class GridExchange:
  """Reaches nodes over Flower's grid, see `program.Exchange`.

  A node that does not answer in time has dropped out of the round. One that is
  started again has another number at Flower: it is asked who it is.

  Attributes:
    session: The number of the run.
    count: How many nodes there are.
    is_complete: Whether all of them have been there.
    moved: See `program.Exchange`.
    seconds: What answers took, a row each: kind, node, and seconds in all, in
      the process of the ClientApp, at the worker, and of its computation.
  """

  def __init__(
    self, grid: serverapp.Grid, session: str, count: int, timeout: float
  ):
    """Asks nobody yet.

    Args:
      grid: Of the ServerApp.
      session: The number of the run.
      count: How many nodes there are.
      timeout: Seconds for the answers of a round.
    """
    self.session, self.count = session, count
    self.is_complete = False
    self.moved: dict[str, dict[str, int]] = {}
    self.seconds: list[tuple[Any, ...]] = []
    self._grid, self._timeout = grid, timeout
    self._known: dict[int, int] = {}  # Flower's numbers to ours.
    self._silent: set[int] = set()

  def wait_for_nodes(self) -> None:
    """Waits until all nodes are there; a ValueError if they do not come."""
    end = time.monotonic() + self._timeout
    while set(self._nodes()) != set(range(self.count)):
      if time.monotonic() > end:
        here = ', '.join(map(str, sorted(set(self._nodes())))) or 'none'
        raise ValueError(
          f'Expected {self.count} nodes with partition-id 0 to '
          f'{self.count - 1}, got {here} within {self._timeout:g} s; start the '
          'others, or wait longer (--node_timeout).'
        )
      time.sleep(_POLL)
    self.is_complete = True

  def __call__(self, requests: program_lib.Messages) -> program_lib.Messages:
    """See `program.Exchange`."""
    addresses = self._nodes()
    there = {addresses[n]: r for n, r in requests.items() if n in addresses}
    found = self._ask(there)
    answers = {self._known[address]: x for address, x in found.items()}
    missing = sorted(set(requests) - set(answers))
    if missing:
      names = ', '.join(map(str, missing))
      print(
        f'warning: No answer of the nodes {names} within {self._timeout:g} s; '
        'their clients dropped out of the round.',
        file=sys.stderr,
      )
    return answers

  def _nodes(self) -> dict[int, int]:
    """Flower's number of each node that is there; new ones are asked."""
    present = list(self._grid.get_node_ids())
    new = [n for n in present if n not in self._known and n not in self._silent]
    for address, (about, _) in self._ask(
      dict.fromkeys(new, ({'kind': 'hello'}, b''))
    ).items():
      if about['count'] != self.count:
        raise ValueError(
          f'Expected num-partitions={self.count} in --node-config of all '
          f'nodes, got {about["count"]}.'
        )
      self._known[address] = about['number']
    self._silent |= {address for address in new if address not in self._known}
    # The newest one of a number comes last.
    order = list(self._known)
    return {
      self._known[address]: address for address in order if address in present
    }

  def _ask(self, requests):
    """Answers by Flower's number, of all who answer in time."""
    if not requests:
      return {}
    start = time.monotonic()
    messages = [
      records.Message(
        client_app.record(about, data),
        dst_node_id=address,
        message_type=_TYPES[about['kind']],
        ttl=self._timeout + 60,
      )
      for address, (about, data) in requests.items()
    ]
    pushed = zip(self._grid.push_messages(messages), requests, strict=False)
    waiting = {name: address for name, address in pushed if name}
    found = {}
    while waiting and time.monotonic() - start < self._timeout:
      for reply in self._grid.pull_messages(list(waiting)):
        address = waiting.pop(reply.metadata.reply_to_message_id)
        kind = requests[address][0]['kind']
        if reply.has_error():
          self._refused(address, reply.error.reason)
          continue
        about, data = client_app.opened(reply.content)
        found[address] = about, data
        self.seconds.append(
          (
            *(kind, about['number'], time.monotonic() - start),
            *(about['process'], about['worker'], about['compute']),
          )
        )
      if waiting:
        time.sleep(_POLL)
    return found

  def _refused(self, address: int, reason: str | None) -> None:
    """Raises the error of a node, unless it is that the node is away."""
    reason = reason or ''
    sentence = reason.partition(":<'")[2].removesuffix("'>")
    if sentence and 'ValueError' in reason:
      raise ValueError(sentence)
    print(f'warning: A node failed ({address}): {reason}', file=sys.stderr)


@app.main()
def main(grid: serverapp.Grid, context: records.Context) -> None:
  """Runs the study that the run's config names."""
  run = context.run_config
  with contextlib.ExitStack() as stack:
    if run['log']:
      log = stack.enter_context(
        open(str(run['log']), 'w', encoding='utf-8', buffering=1)
      )
      stack.enter_context(contextlib.redirect_stdout(log))
      stack.enter_context(contextlib.redirect_stderr(log))
    code, message = 1, 'The server has ended before the study.'
    try:
      _study(grid, context.run_id, run)
      code, message = 0, ''
    except (ValueError, OSError) as error:
      code, message = 2, command_line.one_sentence(str(error))
      if not run['outcome']:
        print(f'error: {message}', file=sys.stderr)
    except Exception as error:
      message = command_line.one_sentence(f'{type(error).__name__}: {error}')
      raise
    finally:
      if run['outcome']:
        outcome = pathlib.Path(str(run['outcome']))
        text = json.dumps({'code': code, 'message': message})
        outcome.with_suffix('.tmp').write_text(text, encoding='utf-8')
        outcome.with_suffix('.tmp').replace(outcome)


def _study(grid: serverapp.Grid, run_id: int, run: Any) -> None:
  """Runs the experiment of a run's config."""
  from ..studies import train
  from fmtl_jax.running import machine

  jax_settings.check()
  machine.use_all_cores()
  machine.use_compilation_cache()
  sys.argv = ['flower', *shlex.split(str(run['flags']))]
  given = config_files.define_config()
  cases = command_line.define_cases()
  command_line.parse_flags(sys.argv)
  config = given.value
  if config is None:
    raise ValueError('Expected --config in the flags of the run, got none.')
  exchange = GridExchange(
    grid, str(run_id), int(run['nodes']), float(run['timeout'])
  )
  workdir = pathlib.Path(str(run['workdir']) or workdirs.default(config.name))
  train.train_and_evaluate(
    config,
    workdir,
    cases.value,
    command_line.override_values(),
    str(run['resume']),
    functools.partial(_program, exchange),
    functools.partial(parts.check_case, count=exchange.count),
  )
  workdirs.write_json(
    workdir / 'flower.json',
    {'moved': exchange.moved, 'seconds': exchange.seconds},
  )


def _program(exchange, name, case, config):
  """The program of a case; all cases are known to be good by now."""
  if not exchange.is_complete:
    exchange.wait_for_nodes()
  return secure_program.of(name, case, config, exchange)

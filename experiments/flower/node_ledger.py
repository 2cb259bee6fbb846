"""The ledger of a node: what its private clients have released, on its disk.

A message counts when it is made, whether or not it arrives: its noise is spent.
The ledger is written before the message is sent, and a client that has made as
many as its config has rounds makes no more, whatever the server asks for. What
epsilon that amounts to is said where a node can know it: of private examples,
and of clients that add their own noise. Central noise is the server's.
"""

from collections.abc import Callable
import dataclasses
import json
import math
import pathlib
from typing import Any

import ml_collections
import numpy as np

from ..building import private
from ..building import private_examples
from ..folders import files
from fmtl_jax.privacy import example_ledger
from fmtl_jax.privacy import settings as privacy_settings
from fmtl_jax.running import program as program_lib

# `(run, client, rounds) -> epsilon`, None for infinity.
EpsilonFn = Callable[[int, int, int], float | None]
FILE = 'ledger.json'


class Ledger:
  """The ledger of a run of a case."""

  def __init__(
    self,
    path: pathlib.Path,
    config: ml_collections.ConfigDict,
    case: program_lib.Case,
    run: int,
  ):
    """Goes on with the file where there is one.

    Args:
      path: Of the file.
      config: Of the case, with privacy.
      case: What is run.
      run: Which of its runs.
    """
    self._path, self._run = path, run
    self._every, self._most = config.run.evaluate_every, config.run.rounds
    self._epsilon = _epsilon_fn(config, case)
    self._clients: dict[str, dict[str, Any]] = {}
    if path.is_file():
      self._clients = json.loads(path.read_text(encoding='utf-8'))['clients']
    given = config.privacy
    self._about = {
      'unit': given.unit,
      'delta': given.delta,
      'rounds': self._most,
      'epsilon_is_of': (
        'the messages that a client has made, sent or not'
        if self._epsilon
        else 'the server, which adds the noise'
      ),
    }

  def charge(self, client: int) -> None:
    """Charges a client for a message that it is about to make.

    Args:
      client: Its number.

    Raises:
      ValueError: If it has made as many as its config has rounds.
    """
    own = self._clients.setdefault(str(client), {'messages': 0})
    if own['messages'] >= self._most:
      raise ValueError(
        f'Expected at most run.rounds={self._most} messages of client '
        f'{client}, for which its noise is enough, got one more; '
        f'{self._path} has what it has released.'
      )
    own['messages'] += 1
    due = own['messages'] % self._every == 0 or own['messages'] == self._most
    if self._epsilon is not None and due:
      own['epsilon'] = self._epsilon(self._run, client, own['messages'])
      own['epsilon_after'] = own['messages']
    self._path.parent.mkdir(parents=True, exist_ok=True)
    found = {**self._about, 'clients': self._clients}
    files.write_text(self._path, json.dumps(found, indent=2) + '\n')


def is_private(config: ml_collections.ConfigDict) -> bool:
  """Whether a case has a ledger."""
  return config.privacy.unit in (private.CLIENT, private_examples.EXAMPLE)


def _epsilon_fn(config, case) -> EpsilonFn | None:
  """What messages of clients amount to; None where a node cannot know it."""
  if config.privacy.unit == private_examples.EXAMPLE:
    offsets = np.asarray(case.runs.train.train.offsets)  # [R, M + 1]
    sizes = np.diff(offsets, axis=1).reshape(-1).tolist()
    privacy: Any = private_examples.settings(config, case.algorithm, sizes)
    work = private_examples.work(config, case.algorithm)

    def of_examples(run, client, rounds):
      size = int(offsets[run][client + 1] - offsets[run][client])
      charged = dataclasses.replace(work, rounds=rounds)
      return _known(example_ledger.epsilon(privacy, charged, size))

    return of_examples
  if config.privacy.noise == privacy_settings.LOCAL:
    of_clients = lambda unused_run, unused_client, rounds: private.ledger(
      config, case.federation, rounds
    )['epsilon']
    return of_clients
  return None


def _known(epsilon: float) -> float | None:
  """JSON has no infinity."""
  return epsilon if math.isfinite(epsilon) else None

"""Rounds with and without a canary, of which all released parameters are seen.

The federation is small and its rounds are the library's own, whatever their
settings are: clients of two tasks, with common and task-specific layers, all of
which have large updates in directions that the attacker knows.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fmtl_jax

TASKS = 2
_DIRECTIONS = 3  # That of the canary, and two of the others.
_LABEL = 100.0  # So large that every update is clipped.

Tree = Any


def federation(
  directions: np.ndarray, num_directions: int
) -> tuple[fmtl_jax.Federation, fmtl_jax.FederatedDataset]:
  """Clients with one example each, of a linear model without intercept.

  Its weights are the sum of a common and a task-specific vector, so that the
  update of a client is large in one coordinate of both.

  Args:
    directions: `[M]` int, the coordinate of each client; tasks take turns.
    num_directions: D.
  """
  tasks = [
    fmtl_jax.Task(
      name=f'task_{number}', kind=fmtl_jax.tasks.REGRESSION, num_classes=0
    )
    for number in range(TASKS)
  ]
  count = len(directions)
  data = fmtl_jax.FederatedDataset.from_clients(
    np.eye(num_directions, dtype=np.float32)[directions][:, None],
    list(np.full((count, 1), _LABEL, np.float32)),
    np.arange(count) % TASKS,
    tasks,
  )

  def init(unused_key):
    zeros = {'kernel': jnp.zeros((num_directions, 1))}
    return {'common': zeros, 'own': zeros}

  def apply(params, features):
    return features @ (params['common']['kernel'] + params['own']['kernel'])

  rules = [('common/.*', 'common'), ('own/.*', 'task')]
  return fmtl_jax.Federation.create((init, apply), rules, data), data


def _training(federation, data, settings, rounds):
  """The changes of all parameters in each round, as a function of a key."""
  algorithm = fmtl_jax.algorithms.build(
    'multi_task_fl',
    federation,
    fmtl_jax.LocalSgd(learning_rate=0.1, batch_size=0),
    settings,
  )

  def run(key):
    def step(state, _):
      new, _ = algorithm.round(state, data)
      return new, jax.tree.map(jnp.subtract, new.params, state.params)

    return jax.lax.scan(step, algorithm.init(key, data), length=rounds)[1]

  return run


def releases(
  settings: fmtl_jax.RoundSettings,
  *,
  has_canary: bool,
  rounds: int,
  trials: int,
  clients: int = 12,
  seed: int = 0,
) -> np.ndarray:
  """All that a server releases in many trainings, with a canary or without.

  The canary is the last client, and the only one in its direction. Without it
  all that is public stays, such as the sizes of groups: it sends zero.

  Args:
    settings: Of the rounds.
    has_canary: Whether it is there.
    rounds: R.
    trials: N, each with draws of its own.
    clients: M with the canary.
    seed: Of all draws.

  Returns:
    `[N, R * d]`, the changes of all parameters round by round.
  """
  directions = 1 + np.arange(clients) % (_DIRECTIONS - 1)
  directions[-1] = 0
  found, data = federation(directions, _DIRECTIONS)
  features = np.array(data.examples.features)
  if not has_canary:
    features[-1] = 0  # Its update is zero, whatever the parameters are.

  def one(key, features):
    examples = dataclasses.replace(data.examples, features=features)
    with_features = dataclasses.replace(data, examples=examples)
    train = _training(found, with_features, settings, rounds)
    leaves = jax.tree.leaves(train(key))
    return jnp.concatenate([x.ravel() for x in leaves])

  keys = jax.random.split(jax.random.key(2 * seed + has_canary), trials)
  batch = min(trials, 1000)
  run = jax.jit(
    lambda keys, features: jax.lax.map(
      lambda key: one(key, features), keys, batch_size=batch
    )
  )
  return np.asarray(run(keys, features))


def one_run(
  settings: fmtl_jax.RoundSettings,
  *,
  rounds: int,
  canaries: int = 1000,
  seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """One training with many canaries, each with a direction of its own.

  Args:
    settings: Of the rounds.
    rounds: R.
    canaries: m, of which each takes part with probability 1/2.
    seed: Of all draws.

  Returns:
    Scores `[m]`, and who took part, `[m]` bool.
  """
  rng = np.random.default_rng(seed)
  included = rng.random(canaries) < 0.5
  present = np.flatnonzero(included)
  found = federation(present, canaries)
  run = jax.jit(_training(*found, settings, rounds))
  changes = jax.tree.map(np.asarray, run(jax.random.key(seed)))
  common = changes['common']['kernel'].sum((0, 2))
  own = changes['own']['kernel'].sum((0, 3))
  # Of those who took no part, the task that they would have had.
  task = np.where(included, np.cumsum(included) - 1, np.arange(canaries))
  return common + own[task % TASKS, np.arange(canaries)], included

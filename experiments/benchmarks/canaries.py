"""Rounds with and without a canary, of which all released parameters are seen.

The federation is small and its rounds are the library's own, whatever their
settings are: clients of two tasks fit a linear model whose weights are the sum
of a common and a task-specific vector. All have large updates, in directions
that the attacker knows; that of the canary is one that nobody else has.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fmtl_jax

FEATURES = 3
TASKS = 2
_LABEL = 100.0  # So large that every update is clipped.

Tree = Any


def federation(
  clients: int, *, has_canary: bool
) -> tuple[fmtl_jax.Federation, fmtl_jax.FederatedDataset]:
  """A federation with a canary, or the neighbouring one without.

  Args:
    clients: M with the canary, at least 4; tasks take turns.
    has_canary: Whether the last client is there.
  """
  tasks = [
    fmtl_jax.Task(
      name=f'task_{number}', kind=fmtl_jax.tasks.REGRESSION, num_classes=0
    )
    for number in range(TASKS)
  ]
  directions = 1 + np.arange(clients) % (FEATURES - 1)
  directions[-1] = 0
  features = np.eye(FEATURES, dtype=np.float32)[directions][:, None]
  count = clients if has_canary else clients - 1
  data = fmtl_jax.FederatedDataset.from_clients(
    features[:count],
    np.full((count, 1), _LABEL, np.float32),
    np.arange(count) % TASKS,
    tasks,
  )

  def init(unused_key):
    zeros = {'kernel': jnp.zeros((FEATURES, 1))}
    return {'common': zeros, 'own': zeros}

  def apply(params, features):
    return features @ (params['common']['kernel'] + params['own']['kernel'])

  rules = [('common/.*', 'common'), ('own/.*', 'task')]
  return fmtl_jax.Federation.create((init, apply), rules, data), data


def releases(
  settings: fmtl_jax.RoundSettings,
  *,
  has_canary: bool,
  rounds: int,
  trials: int,
  clients: int = 12,
  seed: int = 0,
) -> np.ndarray:
  """All parameters of the server after every round, of many trainings.

  Args:
    settings: Of the rounds.
    has_canary: Whether the canary is one of the clients.
    rounds: R.
    trials: N, each with draws of its own.
    clients: M with the canary.
    seed: Of all draws.

  Returns:
    `[N, R * d]` changes of the parameters, round by round.
  """
  found, data = federation(clients, has_canary=has_canary)
  algorithm = fmtl_jax.algorithms.build(
    'multi_task_fl',
    found,
    fmtl_jax.LocalSgd(learning_rate=0.1, batch_size=0),
    settings,
  )

  def one(key):
    def step(state, _):
      new, _ = algorithm.round(state, data)
      change = jax.tree.map(jnp.subtract, new.params, state.params)
      return new, jnp.concatenate([x.ravel() for x in jax.tree.leaves(change)])

    state = algorithm.init(key, data)
    return jax.lax.scan(step, state, length=rounds)[1].ravel()

  keys = jax.random.split(jax.random.key(seed + has_canary), trials)
  batch = min(trials, 1000)
  run = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=batch))
  return np.asarray(run(keys))

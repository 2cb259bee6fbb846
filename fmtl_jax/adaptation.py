"""Adaptation: the model of a client that was held out of training.

A held-out client starts from the trained state:

- of a common layer, its only copy;
- of a task-specific layer, the copy of the client's task; the mean over all
  tasks' copies where no training client had that task;
- of a personal layer, the mean over the copies of the clients that have its
  task, or of all clients where none had it. Heads that were never trained are
  all the same and so is their mean;
- of a layer with other owners (clusters), the copy with the least loss on its
  examples, the first one of equals.

Then it trains some layers on its examples, by local SGD or as the algorithm
says (`Algorithm.adapt`), and keeps the others.
Without an example it predicts with its initial parameters.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.algorithms import personal_models
from fmtl_jax.clients import client_batches
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.clients import training
from fmtl_jax.rounds import algorithm as algorithm_lib

Tree = Any
_HELD_OUT_OWNERS = ('task', 'client')


class Adaptation(NamedTuple):
  """How a held-out client trains.

  Attributes:
    local: Settings of local training; of a schedule of learning rates, the one
      of the first round.
    trained: Whether a leaf is trained, with the structure of a view.
    proximal_weight: `proximal_weight / 2` times the squared distance from the
      initial parameters is added to the loss.
  """

  local: local_optimizers.LocalSgd
  trained: Tree
  proximal_weight: float = 0.0


class Trained(NamedTuple):
  """The trained state that held-out clients start from.

  Attributes:
    params: After the last round, `[owners, ...]`.
    initial: Where layers of clients and tasks start from instead; may be those.
    client_tasks: `[M, S]`, the tasks of the training clients.
    key: The run's key.
    round: `[]` int32, the rounds that were run.
  """

  params: Tree
  initial: Tree
  client_tasks: jax.Array
  key: jax.Array
  round: jax.Array


def own_layers(federation: federation_lib.Federation) -> Tree:
  """Whether a held-out client has its own copy: of task or personal layers."""
  return jax.tree.map(
    lambda label: federation.owners[label].index in _HELD_OUT_OWNERS,
    federation.layer_types,
  )


def start(
  federation: federation_lib.Federation,
  trained: Trained,
  tasks: jax.Array,
  num_tasks: int | None,
  owner: jax.Array | int = 0,
) -> Tree:
  """The initial view of a held-out client.

  Args:
    federation: Network and layer types.
    trained: The trained state.
    tasks: `[S]` of the held-out client.
    num_tasks: T, where its tasks are those of the training clients; None where
      they are others.
    owner: Whose copy it takes of layers that belong to neither.
  """
  client_tasks = jnp.asarray(trained.client_tasks)
  if num_tasks is None:
    chosen = jnp.ones((len(tasks), *client_tasks.shape), bool)
  else:
    chosen = client_tasks == tasks[:, None, None]

  def view(layer_type, per_slot, leaf, initial):
    index = federation.owners[layer_type].index
    if index is None:
      return leaf
    if index not in _HELD_OUT_OWNERS:
      return jnp.take(leaf, owner, axis=0, mode='clip')
    if index == 'task' and num_tasks is not None:
      return jnp.take(initial, tasks, axis=0, mode='clip')
    if index == 'task':
      mean = _mean(initial, jnp.ones(len(initial), bool))
      return jnp.broadcast_to(mean, (len(tasks), *mean.shape))
    if not per_slot:
      return _mean(initial, chosen.any((0, 2)))
    copies = initial.reshape(-1, *initial.shape[2:])
    return jax.vmap(lambda c: _mean(copies, c.reshape(-1)))(chosen)

  per_slot = federation.view_per_slot
  return jax.tree.map(
    view, federation.layer_types, per_slot, trained.params, trained.initial
  )


def _mean(copies, chosen):
  """The mean of some of `[N, ...]` copies; exact where all are the same."""
  first = copies[jnp.argmax(chosen)]
  mask = chosen.reshape((-1,) + (1,) * (copies.ndim - 1))
  apart = jnp.where(mask, copies - first, 0).sum(0)
  return first + apart / jnp.maximum(chosen.sum(), 1).astype(copies.dtype)


def adapted(
  rounds: algorithm_lib.Algorithm,
  federation: federation_lib.Federation,
  adaptation: Adaptation,
  num_tasks: int | None,
  num_examples: int | jax.Array,
) -> algorithm_lib.Algorithm:
  """The algorithm for held-out clients: its `view` adapts.

  Args:
    rounds: The algorithm; only its `view` is replaced.
    federation: Of the held-out clients.
    adaptation: How they train.
    num_tasks: As for `start`.
    num_examples: How many of its training examples, the first ones, a held-out
      client adapts with; may be traced.

  Returns:
    An algorithm whose `view` takes a `Trained` for the state and the data of
    held-out clients. Orders of examples depend on the run and the client alone.
  """
  indices = {
    federation.owners[label].index
    for label in jax.tree.leaves(federation.layer_types)
  }
  others = sorted(
    index
    for index in indices
    if index
    and index not in _HELD_OUT_OWNERS
    and federation.num_owners[index] > 1
  )
  if len(others) > 1:
    raise ValueError(
      'Expected held-out clients to choose among the owners of one index, got '
      f'{", ".join(others)}; label the layers otherwise.'
    )
  local_optimizers.check_first_rate(
    adaptation.local.learning_rate, 'give adaptation one of its own'
  )
  train = training.local_training(federation, adaptation.local)
  any_trained = any(jax.tree.leaves(adaptation.trained))

  def select(changes):
    return jax.tree.map(
      lambda chosen, leaf: leaf if chosen else jnp.zeros_like(leaf),
      adaptation.trained,
      changes,
    )

  def view(state, data, client, frozen):
    size = jnp.minimum(client.size, num_examples)
    client = dataclasses.replace(client, size=size)
    local_data = client_batches.LocalData(data, client)

    def of_owner(owner=0):
      return start(federation, state, client.tasks, num_tasks, owner)

    def loss(owner):
      batch = local_data.batch(jnp.arange(data.partition.train.max_size))
      return federation.objective(
        of_owner(owner), frozen, batch, client.active
      )[0]

    first = of_owner()
    if others:
      count = federation.num_owners[others[0]]
      with precision.products(rounds.matmul_precision):
        losses = jax.lax.map(loss, jnp.arange(count))
      first = of_owner(jnp.argmin(losses))
    if not any_trained:
      return first
    if rounds.adapt is not None:
      with precision.products(rounds.matmul_precision):
        return rounds.adapt(first, frozen, local_data, adaptation.local.epochs)
    penalty_fn: Callable[..., jax.Array] | None = None
    if adaptation.proximal_weight:
      penalty_fn = lambda params: (
        0.5
        * adaptation.proximal_weight
        * personal_models.squared_distance(params, first)
      )
    key = jax.random.fold_in(state.key, state.round)
    context = client_updates.ClientContext(
      key=jax.random.fold_in(key, client.client_id),
      view=first,
      state=(),
      frozen=frozen,
      data=local_data,
      round=local_optimizers.FIRST_ROUND,
    )
    with precision.products(rounds.matmul_precision):
      trained = train(context, first, penalty_fn=penalty_fn, select_fn=select)
    return trained.params

  return rounds._replace(view=view, personal=True)

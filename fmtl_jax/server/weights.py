"""Aggregation weights of clients.

`examples`      N_m / sum of N_m over the clients averaged; the default.
`uniform`       Equal weights for all clients that have data.
`task_balanced` Equal weights for all tasks in the common layers, for any amount
                of data and any assignment of tasks: a client's slot gets its
                share of its task's examples in the cohort.
`paper`         Equations 1 and 2 taken literally: N_m / (T K N) for common and
                N_m / (K N) for task-specific layers, N the examples of all
                clients. They do not add up to one.

N_m counts the client's training examples that carry the label of the slot for
layers with a copy for each slot, and those with at least one active label for
the others.

A weight of a client cannot balance tasks that its update has mixed. Where
clients hold several tasks, `task_balanced` therefore also sets the loss of the
layers that a client's slots share, in every algorithm: with s_mt client m's
share of the examples of task t,

  sum_t (s_mt / sum_u s_mu) L_mt,   and the client weighs   1 / T sum_t s_mt,

so that one step of all clients follows the gradient of 1 / T sum_t L_t, with
L_t the mean loss over all examples of task t, for any assignment of tasks. The
task weights of `Federation` multiply the L_mt. Layers with a copy for each
slot, personal ones too, have the loss of their task alone, as with any weights;
personal layers that slots share have the loss of the common ones. A client with
one task has the plain loss, as has training outside of rounds (fine-tuning,
held-out clients), where nothing is averaged.

A rule of the server that accumulates client messages over rounds, as a part of
the mean over all clients of an owner (`server_optimizers.ServerRule`), needs
weights that do not depend on the rest of the cohort: `task_balanced` then takes
a client's share of its task's examples in the whole federation, and
`group_weights` is the weight of all clients.

References:
  Kececi et al. (2022), https://arxiv.org/abs/2207.08147, equations 1 and 2
  (which Algorithm 1 there cites the wrong way round).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax.data import partitions

EXAMPLES = 'examples'
UNIFORM = 'uniform'
TASK_BALANCED = 'task_balanced'
PAPER = 'paper'
WEIGHTINGS = (EXAMPLES, UNIFORM, TASK_BALANCED, PAPER)


def check(weighting: str, field: str = '`weighting`') -> str:
  """Returns `weighting`; raises a ValueError if it is not a known one."""
  if weighting not in WEIGHTINGS:
    raise ValueError(
      f'Expected {field} to be one of {", ".join(WEIGHTINGS)}, got '
      f'{weighting!r}.'
    )
  return weighting


def client_weights(
  weighting: str,
  cohort: cohorts.Cohort,
  num_tasks: int,
  *,
  by_slot: bool,
  task_totals: jax.Array | None = None,
) -> jax.Array:
  """The weight of each client's update before normalisation.

  Args:
    weighting: One of `WEIGHTINGS`.
    cohort: C clients.
    num_tasks: T.
    by_slot: Whether the layer has a copy for each slot.
    task_totals: `[T]`, the labels of each task that `task_balanced` takes
      shares of; by default those of the cohort.

  Returns:
    `[C, S]` if `by_slot`, else `[C]`; zero for padding and for clients that
    have nothing to say.
  """
  counts = cohort.label_counts if by_slot else cohort.example_counts
  if weighting == UNIFORM:
    return (counts > 0).astype(jnp.float32)
  if weighting == TASK_BALANCED and not by_slot:
    shares, present = _shares_of_tasks(cohort, num_tasks, task_totals)
    return shares.sum(1) / jnp.maximum(present, 1)
  return counts  # Within one task, balancing tasks changes nothing.


def slot_weights(
  weighting: str, cohort: cohorts.Cohort, num_tasks: int
) -> jax.Array:
  """What part of a client's weight in a common layer each of its slots has.

  Args:
    weighting: One of `WEIGHTINGS`.
    cohort: C clients.
    num_tasks: T.

  Returns:
    `[C, S]`, as they stand to each other; zero for slots without a label.
  """
  if weighting == TASK_BALANCED:
    return _shares_of_tasks(cohort, num_tasks)[0]
  return client_weights(weighting, cohort, num_tasks, by_slot=True)


def task_shares(
  cohort: cohorts.Cohort,
  label_counts: jax.Array,
  num_tasks: int,
  task_totals: jax.Array | None = None,
) -> jax.Array:
  """How much each slot's loss counts in layers that a client's slots share.

  Args:
    cohort: C clients.
    label_counts: `[C, S]`, training examples with an active slot's label, also
      of clients whose updates do not count: they train as if theirs did. A task
      that has no others is one whole.
    num_tasks: T.
    task_totals: As for `client_weights`.

  Returns:
    `[C, S]`, with the sum 1, or 0 for clients without a label.
  """
  total = _total_of_tasks(cohort, num_tasks, task_totals)[1]
  shares = label_counts / jnp.where(total > 0, total, 1)
  shares = jnp.where(total > 0, shares, label_counts > 0)
  whole = shares.sum(1, keepdims=True)
  return shares / jnp.where(whole > 0, whole, 1)


def group_weights(
  weighting: str,
  totals: partitions.Totals,
  task_totals: jax.Array | None,
  *,
  by_slot: bool,
) -> jax.Array:
  """What all clients of each owner weigh together, `[owners]`.

  Args:
    weighting: One of `WEIGHTINGS`.
    totals: Of these owners.
    task_totals: As for `client_weights`.
    by_slot: Whether the layer has a copy for each slot.

  Raises:
    ValueError: If the examples with a label are not known.
  """
  if weighting == UNIFORM:
    return totals.clients
  if weighting == TASK_BALANCED and not by_slot:
    assert task_totals is not None
    shares = totals.labels / jnp.maximum(task_totals, 1)
    return shares.sum(1) / jnp.maximum((task_totals > 0).sum(), 1)
  if totals.examples is None:
    raise ValueError(
      'Expected example_counts in the tables of clients with several slots, '
      f'whose {weighting!r} weights are shares of those of all clients, got '
      'none; give client_data.tables the number of examples with a label of '
      'any slot.'
    )
  return totals.examples


def _total_of_tasks(cohort, num_tasks, totals=None):
  """The examples of each task, by default in the cohort, and of each slot's."""
  if totals is None:
    labels = cohort.label_counts
    totals = jnp.zeros(num_tasks).at[cohort.tasks].add(labels, mode='drop')
  return totals, jnp.take(totals, cohort.tasks, mode='clip')


def _shares_of_tasks(cohort, num_tasks, totals=None):
  """Each slot's share of its task's examples, and how many tasks there are."""
  labels = cohort.label_counts
  totals, total = _total_of_tasks(cohort, num_tasks, totals)
  shares = jnp.where(labels > 0, labels / jnp.maximum(total, 1), 0)
  return shares, (totals > 0).sum()


def normalizer(
  weighting: str,
  weight_sum: jax.Array,
  clients_per_task: Sequence[int],
  num_examples: jax.Array,
  *,
  by_task: bool,
) -> jax.Array:
  """What a weighted sum is divided by.

  Args:
    weighting: One of `WEIGHTINGS`.
    weight_sum: `[]` or `[owners]`, the weights' sum.
    clients_per_task: K of each task.
    num_examples: `[]`, N.
    by_task: Whether the owners are the tasks.

  Returns:
    As `weight_sum`, 1 for an owner without reporting clients.
  """
  if weighting == PAPER:
    drawn = jnp.array(clients_per_task, jnp.float32)
    divisor = (drawn if by_task else drawn.sum()) * num_examples
    weight_sum = jnp.where(weight_sum > 0, divisor, 0)
  return jnp.where(weight_sum > 0, weight_sum, 1)

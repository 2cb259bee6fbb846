"""Aggregation weights: how much each client counts in an average.

`examples`      N_m / sum of N_m over the clients averaged; the default.
`uniform`       Every client that has data counts the same.
`task_balanced` Every task counts the same in the common layers, whatever its
                amount of data: a client's slot gets its share of its task's
                examples in the cohort.
`paper`         Equations 1 and 2 taken literally: N_m / (T K N) for common and
                N_m / (K N) for task-specific layers, N the examples of all
                clients. They do not add up to one.

N_m counts the client's training examples that carry the label of the slot for
layers with a copy for each slot, and those with at least one active label for
the others.

A rule of the server that adds up what an owner's clients report, round after
round, as a part of the mean over all of them (`server_optimizers.ServerRule`),
needs weights that do not depend on who else was drawn: `task_balanced` then
takes a client's share of its task's examples in the whole federation, and
`group_weights` is what all clients weigh.

References:
  Kececi et al. (2022), https://arxiv.org/abs/2207.08147, equations 1 and 2
  (which Algorithm 1 there cites the wrong way round).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax.data import dataset as dataset_lib

EXAMPLES = 'examples'
UNIFORM = 'uniform'
TASK_BALANCED = 'task_balanced'
PAPER = 'paper'
WEIGHTINGS = (EXAMPLES, UNIFORM, TASK_BALANCED, PAPER)


def check(weighting: str, field: str = 'aggregation') -> str:
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
    labels = cohort.label_counts
    totals = task_totals
    if totals is None:
      totals = jnp.zeros(num_tasks).at[cohort.tasks].add(labels, mode='drop')
    total = jnp.take(totals, cohort.tasks, mode='clip')
    shares = jnp.where(labels > 0, labels / jnp.maximum(total, 1), 0)
    return shares.sum(1) / jnp.maximum((totals > 0).sum(), 1)
  return counts  # Within one task, balancing tasks changes nothing.


def group_weights(
  weighting: str,
  totals: dataset_lib.Totals,
  task_totals: jax.Array,
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
    As `weight_sum`, 1 where nobody reported.
  """
  if weighting == PAPER:
    drawn = jnp.array(clients_per_task, jnp.float32)
    divisor = (drawn if by_task else drawn.sum()) * num_examples
    weight_sum = jnp.where(weight_sum > 0, divisor, 0)
  return jnp.where(weight_sum > 0, weight_sum, 1)

"""Held-out adaptation: how clients left out of training adapt, compiled.

All seeds, numbers of examples and held-out clients of an algorithm are one
program.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from . import held_out_data
from fmtl_jax import adaptation
from fmtl_jax import algorithms
from fmtl_jax import evaluation
from fmtl_jax import execution as execution_lib
from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.algorithms import specs
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.data import partitions as partitions_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.running import program as program_lib

MEAN = 'mean'
INITIAL = 'initial'
STARTS = (MEAN, INITIAL)


class Plan(NamedTuple):
  """How one algorithm is trained and adapts.

  Attributes:
    name: Its case.
    label: How it is shown.
    config: Of the case.
    case: What is trained.
    way: How held-out clients adapt.
  """

  name: str
  label: str
  config: ml_collections.ConfigDict
  case: program_lib.Case
  way: specs.Way


class HeldOutClients(NamedTuple):
  """The held-out clients of an algorithm, ready to adapt.

  Attributes:
    federation: Of the held-out clients.
    data: Theirs, of any seed.
    partitions: Of all seeds, `[R, ...]`.
    with_examples: `count -> Algorithm` whose `view` adapts with so many; it
      takes an `adaptation.Trained` for the state.
  """

  federation: federation_lib.Federation
  data: dataset_lib.FederatedDataset
  partitions: partitions_lib.Partition
  with_examples: Callable[[Any], algorithms.Algorithm]


def clients_of(
  plan: Plan, splits: Sequence[held_out_data.HeldOutSplit]
) -> HeldOutClients:
  """The held-out clients of all seeds, with the algorithm that adapts."""
  case, data = plan.case, splits[0].held_out
  known = data.tasks == splits[0].train.tasks  # Not tasks of their own.
  # The store of the case: layers may have been computed on it.
  features = case.test_data.examples.features
  data = dataclasses.replace(
    data, examples=dataclasses.replace(data.examples, features=features)
  )
  federation = _federation_of(case.test_federation, data, known)
  with_examples = functools.partial(
    adaptation.adapted,
    case.make_algorithm(case.test_federation, {}),
    federation,
    adaptation.Adaptation(
      local_optimizers.LocalSgd(
        learning_rate=plan.way.rate,
        batch_size=plan.config.client.batch_size,
        epochs=plan.config.unseen.epochs,
      ),
      trained_layers(plan),
      plan.way.pull,
    ),
    len(data.tasks) if known else None,
  )
  partitions = [split.held_out.partition for split in splits]
  return HeldOutClients(
    federation, data, partitions_lib.stack_partitions(partitions), with_examples
  )


def trained_of(plan: Plan, states: Any, initial: Any) -> adaptation.Trained:
  """The trained states that held-out clients start from, `[R, ...]`.

  Args:
    plan: Of the algorithm.
    states: After the last round.
    initial: Before the first one.
  """
  is_initial = plan.config.unseen.start == INITIAL
  return adaptation.Trained(
    params=states.params,
    initial=(initial if is_initial else states).params,
    client_tasks=jnp.asarray(plan.case.runs.train.client_tasks),
    key=states.key,
    round=states.round,
  )


def evaluate(
  plan: Plan, clients: HeldOutClients, trained: adaptation.Trained
) -> evaluation.Metrics:
  """Lets the held-out clients of all seeds adapt, and tests them.

  Args:
    plan: Of the algorithm.
    clients: Of the algorithm.
    trained: Of all runs, `[R, ...]`.

  Returns:
    `[R, N, M, S]` NumPy by metric, and `count`: R seeds, N numbers of examples,
    M clients, S slots. NaN where a slot is empty.
  """
  mesh = execution_lib.mesh({'run': 1})
  evaluate_fn = jax.jit(
    evaluation_fn(plan, clients),
    compiler_options=execution_lib.compiler_options(
      mesh, plan.config.execution.compile_effort
    ),
  )
  with jax.debug_nans(False):  # NaN is what an empty slot has.
    found = evaluate_fn(
      trained,
      clients.partitions,
      clients.data.examples,
      clients.federation.frozen,
    )
  return jax.tree.map(np.asarray, found)


def evaluation_fn(
  plan: Plan, clients: HeldOutClients
) -> Callable[..., evaluation.Metrics]:
  """The function that `evaluate` compiles.

  Args:
    plan: Of the algorithm.
    clients: Of the algorithm.

  Returns:
    `(trained, partitions, examples, frozen) -> metrics`, both of all runs.
  """
  counts = jnp.array(plan.config.unseen.examples, jnp.int32)

  def of_all(trained, partitions, examples, frozen):
    def of_run(run):
      trained, partition = run
      data = dataclasses.replace(
        clients.data, examples=examples, partition=partition
      )
      rows = partition.test, partition.pooled_test

      def with_examples(count):
        evaluate_fn = evaluation.evaluator(
          clients.federation,
          clients.with_examples(count),
          plan.case.execution,
        )
        return evaluate_fn(trained, data, *rows, frozen)['each']

      return jax.lax.map(with_examples, counts)

    return jax.lax.map(of_run, (trained, partitions))

  return of_all


def _federation_of(federation, data, known):
  """The federation of the held-out clients, with the network of the case."""
  num_owners = dict(federation.num_owners) | {'client': data.num_clients}
  if known:
    return dataclasses.replace(federation, num_owners=num_owners)
  return dataclasses.replace(
    federation,
    num_owners=num_owners | {'task': data.num_tasks},
    tasks=data.tasks,
    loss_fn=tasks_lib.task_loss(data.tasks),
    task_weights=(1.0,) * data.num_tasks,
  )


def trained_layers(plan: Plan) -> Any:
  """Whether held-out clients train each leaf, structured as a view."""
  federation: federation_lib.Federation = plan.case.test_federation
  if plan.way.all_layers:
    return jax.tree.map(lambda unused_type: True, federation.layer_types)
  return adaptation.own_layers(federation)


def adapted_layers(plan: Plan) -> str:
  """The names of the layers that held-out clients train."""
  flags = trained_layers(plan)
  chosen = jax.tree.leaves(flags)
  if all(chosen) or not any(chosen):
    return 'all layers' if all(chosen) else 'nothing'
  names = [
    path.rsplit('/', 1)[0]
    for path, flag in zip(layer_types.paths(flags), chosen, strict=True)
    if flag
  ]
  return ', '.join(dict.fromkeys(names))

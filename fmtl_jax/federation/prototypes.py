"""Prototypes: a point for each class, beside a network that answers embeddings.

The embedding of an example is what the last layer sees of it. Beside the
network stand prototypes, points among the embeddings: of every class the mean,
and how often it was reported, so that a class is known or not. They are a layer
as any other, of one layer type, and no gradient reaches them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import stages as stages_lib

Tree = Any

PROTOTYPES = 'prototypes'  # The layer of what is not the network's.
MEANS = 'means'
REPORTS = 'reports'


class Outputs(NamedTuple):
  """What the network says; the axes of slots come first.

  Attributes:
    answers: `[B, O]`.
    embeddings: `[B, E]`.
    distances: `[B, C]`, the mean over the E coordinates of the squared
      difference of an embedding and the prototype of each class; zero for a
      class that is not known.
  """

  answers: jax.Array
  embeddings: jax.Array
  distances: jax.Array


class Network(NamedTuple):
  """A network with prototypes, as pure functions.

  Attributes:
    init: `key -> params`; no class is known at first.
    apply: `(params, features [B, ...]) -> Outputs`.
    train_apply: As `models.Model.train_apply`.
    answer: `(outputs, task) -> [B, O]`, see `Federation.answers`.
  """

  init: Callable[[jax.Array], Tree]
  apply: Callable[[Tree, Any], Outputs]
  train_apply: Callable[..., tuple[Outputs, Tree]] | None
  answer: Callable[[Outputs, jax.Array], jax.Array]


def classes_of(task: tasks_lib.Task) -> int:
  """How many classes a task has, a label each; 0 if it has none."""
  kind = task.definition
  if not (kind.has_classes and kind.has_plain_labels):
    return 0
  return max(task.num_classes, 2)


def of_network(
  model: Any,
  rules: layer_types.Rules,
  tasks: Sequence[tasks_lib.Task],
  layer_type: str,
) -> tuple[Network, layer_types.Rules]:
  """A network with prototypes, and its label rules.

  Args:
    model: A chain of stages, as `models.Model`; the last one is a dense layer.
    rules: Its label rules.
    tasks: The federation's.
    layer_type: Of the prototypes.

  Raises:
    ValueError: If the network is no such chain, or no task has classes.
  """
  classes = max(map(classes_of, tasks))
  if not classes:
    raise ValueError(
      'Expected a task with classes, of which prototypes are the means, got '
      f'{", ".join(sorted({t.definition.name for t in tasks}))} tasks alone.'
    )
  stages: Any = getattr(model, 'stages', ())
  width = _width(model, stages)
  *body, (last, head) = stages
  trains = dict(getattr(model, 'train_stages', {}))

  def init(key):
    own = {
      MEANS: jnp.zeros((classes, width), jnp.float32),
      REPORTS: jnp.zeros(classes, jnp.float32),
    }
    return {**model.init(key), PROTOTYPES: own}

  def outputs(params, embeddings):
    flat = embeddings.reshape(len(embeddings), -1)
    own = params[PROTOTYPES]
    means = own[MEANS].astype(flat.dtype)
    apart = jnp.square(flat[:, None] - means[None]).mean(2)
    known = own[REPORTS].astype(flat.dtype)[None] > 0
    # Before the head, so that prototypes are used in front of it.
    distances = jnp.where(known, apart, 0)
    return Outputs(head(params[last], embeddings), flat, distances)

  def apply(params, x):
    return outputs(params, stages_lib.apply(body, params, x))

  def train_apply(params, x, is_example, trained):
    x, statistics = stages_lib.train_apply(
      body, trains, params, x, is_example, trained
    )
    return outputs(params, x), statistics

  network = Network(
    init,
    apply,
    train_apply if trains else None,
    lambda outputs, unused_task: outputs.answers,
  )
  return network, [(f'{PROTOTYPES}/.*', layer_type), *rules]


def _width(model, stages):
  """E, how many inputs the last stage of a chain has."""
  wanted = 'Expected a network for prototypes that is a chain of two stages or'
  cure = 'take one of the own networks, with a hidden layer.'
  if len(stages) < 2:
    raise ValueError(f'{wanted} more, got {len(stages)}; {cure}')
  last = stages[-1][0]
  shapes = jax.eval_shape(model.init, jax.random.key(0))[last]
  kernels = [x.shape for x in jax.tree.leaves(shapes) if len(x.shape) == 2]
  if len(kernels) != 1 or last in getattr(model, 'train_stages', {}):
    raise ValueError(
      f'{wanted} more, of which the last one is a dense layer, got {last!r} '
      f'with {len(kernels)} kernels; {cure}'
    )
  return kernels[0][0]

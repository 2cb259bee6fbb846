"""Mixtures: M networks side by side, and how much a client uses each.

The components are what a network is, each with its own start; their leaves are
stacked, `[M, ...]`, under the layer types that they have in the network, so
that a round treats them as any. Beside them a client has its weights of the
components, which are personal, one set for each of its slots. What the mixture
answers has the mean of the components' probabilities, see `tasks.mixing`.

For regression it has a variance of each component, too: a component says that
labels are normal around its output. A task has variances of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax import tasks as tasks_lib
from fmtl_jax.federation import layer_types

Tree = Any

MIXTURE = 'mixture'  # The layer of what is no component.
WEIGHTS = 'weights'
VARIANCES = 'variances'


class Outputs(NamedTuple):
  """What the network says; the axes of slots come first.

  Attributes:
    components: `[M, B, ..., O]`.
    weights: `[M]`.
    variances: `[M]`; None without regression tasks.
  """

  components: jax.Array
  weights: jax.Array
  variances: jax.Array | None


class Mixture(NamedTuple):
  """A network of several, as pure functions.

  Attributes:
    init: `key -> params`; the first component starts as the network would.
    apply: `(params, features [B, ...]) -> Outputs`.
    train_apply: As `models.Model.train_apply`.
    answer: `(outputs, task) -> [B, ..., O]`, see `Federation.answers`.
  """

  init: Callable[[jax.Array], Tree]
  apply: Callable[[Tree, Any], Outputs]
  train_apply: Callable[..., tuple[Outputs, Tree]] | None
  answer: Callable[[Outputs, jax.Array], jax.Array]


def of_network(
  model: Sequence[Any],
  rules: layer_types.Rules,
  tasks: Sequence[tasks_lib.Task],
  components: int,
) -> tuple[Mixture, layer_types.Rules]:
  """A mixture of networks, and its label rules.

  Args:
    model: `(init, apply)`, as for `Federation.create`; parameters are a dict.
    rules: Its label rules; pre-trained leaves have one copy.
    tasks: The federation's.
    components: M.

  Raises:
    ValueError: If the outputs for a kind of tasks cannot be mixed.
  """
  shapes = jax.eval_shape(model[0], jax.random.key(0))
  labels = layer_types.label_params(shapes, rules)
  axes = jax.tree.map(
    lambda label: None if label == layer_types.PRETRAINED else 0, labels
  )
  train_fn: Any = getattr(model, 'train_apply', None)
  is_stacked = jax.tree.map(
    lambda label: label != layer_types.PRETRAINED, labels
  )
  has_variances = any(task.definition.has_unit for task in tasks)
  mix = tasks_lib.mixing(tasks)

  def init(key):
    others = [jax.random.fold_in(key, i) for i in range(1, components)]
    drawn = jax.vmap(model[0])(jnp.stack([key, *others]))
    params = jax.tree.map(
      lambda stacked, leaf: leaf if stacked else leaf[0], is_stacked, drawn
    )
    own = {WEIGHTS: jnp.full(components, 1 / components, jnp.float32)}
    if has_variances:
      own[VARIANCES] = jnp.ones(components, jnp.float32)
    return {**params, MIXTURE: own}

  def split(params):
    own = params[MIXTURE]
    rest = {name: leaf for name, leaf in params.items() if name != MIXTURE}
    return rest, (own[WEIGHTS], own.get(VARIANCES))

  def apply(params, features):
    rest, own = split(params)
    of_each = jax.vmap(model[1], in_axes=(axes, None), axis_size=components)
    return Outputs(of_each(rest, features), *own)

  def train_apply(params, features, is_example, trained):
    rest, own = split(params)
    flags = {name: leaf for name, leaf in trained.items() if name != MIXTURE}
    of_each = jax.vmap(
      lambda params: train_fn(params, features, is_example, flags),
      in_axes=(axes,),
      axis_size=components,
    )
    outputs, statistics = of_each(rest)
    nothing = jax.tree.map(lambda unused_leaf: None, params[MIXTURE])
    return Outputs(outputs, *own), {**statistics, MIXTURE: nothing}

  def answer(outputs, task):
    return mix(outputs.components, outputs.weights, task)

  more = [(f'{MIXTURE}/{WEIGHTS}', layer_types.PERSONAL)]
  if has_variances:
    more.append((f'{MIXTURE}/{VARIANCES}', layer_types.TASK))
  return (
    Mixture(init, apply, None if train_fn is None else train_apply, answer),
    [*more, *rules],
  )

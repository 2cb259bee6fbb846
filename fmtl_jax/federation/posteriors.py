"""Networks of Gaussians, and private layers beside those that clients share.

`gaussian` makes a pair of every trained leaf, on a last axis: the mean and the
precision of a normal distribution of each parameter. As a function the network
is that of its means.

`with_private` puts a second network beside one that is a chain of stages: with
h_l the outputs of the stages, f_l, and their private copies f'_l,

  h_l = f_l(h_{l-1}),   g_l = f'_l(g_{l-1} + a_l h_{l-1}),   y = h_L + g_L.

The private copies and the lateral connections a_l, a number for each stage
behind the first, are personal. Stages that are pre-trained have no copy.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmtl_jax.federation import layer_types

Tree = Any

PRIVATE, LATERALS = 'private', 'laterals'


class Network(NamedTuple):
  """A network as pure functions, see `models.Model`."""

  init: Callable[[jax.Array], Tree]
  apply: Callable[[Tree, Any], jax.Array]
  train_apply: Callable[..., tuple[jax.Array, Tree]] | None


LEAST_PRECISION = 1e-6


def pair(first: jax.Array, second: jax.Array) -> jax.Array:
  """Pairs, `[..., 2]`."""
  return jnp.stack([first, second], -1)


def natural(moments: jax.Array) -> jax.Array:
  """Natural parameters, mean times precision and precision, `[..., 2]`.

  Args:
    moments: Means and precisions, `[..., 2]`; these are at least
      `LEAST_PRECISION`.
  """
  precisions = jnp.maximum(moments[..., 1], LEAST_PRECISION)
  return pair(moments[..., 0] * precisions, precisions)


def moments(natural_pairs: jax.Array) -> jax.Array:
  """Means and precisions of natural parameters; the inverse of `natural`."""
  precisions = jnp.maximum(natural_pairs[..., 1], LEAST_PRECISION)
  return pair(natural_pairs[..., 0] / precisions, precisions)


def divergence(trained: jax.Array, other: jax.Array) -> jax.Array:
  """The KL divergence of normal distributions from others, `[...]`.

  Args:
    trained: Means and logarithms of standard deviations, `[..., 2]`.
    other: Means and precisions, `[..., 2]`.
  """
  mean, log_deviation = trained[..., 0], trained[..., 1]
  center, precisions = other[..., 0], other[..., 1]
  spread = jnp.exp(2 * log_deviation) + jnp.square(mean - center)
  return 0.5 * (precisions * spread - 1 - jnp.log(precisions)) - log_deviation


def gaussian(
  model: Sequence[Any], rules: layer_types.Rules
) -> tuple[Network, layer_types.Rules]:
  """A network whose trained leaves are pairs `[..., 2]`, and its label rules.

  Args:
    model: `(init, apply)`, as for `Federation.create`.
    rules: Its label rules, which stay; pre-trained leaves are no pairs.
  """
  shapes = jax.eval_shape(model[0], jax.random.key(0))
  is_pair = jax.tree.map(
    lambda label: label != layer_types.PRETRAINED,
    layer_types.label_params(shapes, rules),
  )
  train_fn: Any = getattr(model, 'train_apply', None)

  def with_precision(is_trained, leaf):
    return pair(leaf, jnp.ones_like(leaf)) if is_trained else leaf

  def means(params):
    return jax.tree.map(
      lambda is_trained, leaf: leaf[..., 0] if is_trained else leaf,
      is_pair,
      params,
    )

  def train_apply(params, features, is_example, trained):
    outputs, statistics = train_fn(means(params), features, is_example, trained)
    return outputs, jax.tree.map(
      lambda leaf, new: None if new is None else leaf.at[..., 0].set(new),
      params,
      statistics,
    )

  return (
    Network(
      lambda key: jax.tree.map(with_precision, is_pair, model[0](key)),
      lambda params, features: model[1](means(params), features),
      None if train_fn is None else train_apply,
    ),
    rules,
  )


def with_private(
  model: Any, rules: layer_types.Rules
) -> tuple[Network, layer_types.Rules]:
  """A network and a private one beside it, and their label rules.

  The private output starts at zero, so that the network starts as it is.

  Args:
    model: A chain of stages, such as `models.mlp`.
    rules: Its label rules.

  Raises:
    ValueError: If it is no chain of stages, or all of them are pre-trained.
  """
  shapes = jax.eval_shape(model[0], jax.random.key(0))
  labels = layer_types.label_params(shapes, rules)
  types = {
    name: set(jax.tree.leaves(leaves)) for name, leaves in labels.items()
  }
  stages = getattr(model, 'stages', ())
  own = [
    name
    for name, _ in stages
    if types[name] and layer_types.PRETRAINED not in types[name]
  ]
  if not own:
    raise ValueError(
      'Expected a network of stages that are trained, such as models.mlp, to '
      'have private layers beside them, got one without; set `private`=False.'
    )
  train_stages = getattr(model, 'train_stages', {})

  def init(key):
    drawn = model[0](jax.random.fold_in(key, 1))
    private = {name: drawn[name] for name in own}
    private[own[-1]] = jax.tree.map(jnp.zeros_like, private[own[-1]])
    beside = {name: jnp.ones((), jnp.float32) for name in own[1:]}
    return {**model[0](key), PRIVATE: private, LATERALS: beside}

  def forward(params, x, stage_fn):
    shared = private = x
    for name, apply in stages:
      inputs = private
      if name in own[1:]:
        lateral = params[LATERALS][name].astype(private.dtype)
        inputs = private + lateral * shared
      shared = stage_fn(name, apply, params[name], shared, False)
      if name in own:
        private = stage_fn(name, apply, params[PRIVATE][name], inputs, True)
      else:
        private = shared if types[name] else apply(params[name], private)
    return shared + private

  def apply(params, features):
    return forward(
      params, features, lambda unused_name, fn, leaves, x, _: fn(leaves, x)
    )

  def train_apply(params, features, is_example, trained):
    statistics = jax.tree.map(lambda unused_leaf: None, params)

    def stage(name, fn, leaves, x, is_private):
      if name not in train_stages or layer_types.PRETRAINED in types[name]:
        return fn(leaves, x)
      y, new = train_stages[name](leaves, x, is_example)
      (statistics[PRIVATE] if is_private else statistics)[name] = new
      return y

    del trained  # A stage with a leaf that is not trained has none.
    return forward(params, features, stage), statistics

  more = [(f'{PRIVATE}/.*', layer_types.PERSONAL)]
  if own[1:]:
    more.append((f'{LATERALS}/.*', layer_types.PERSONAL))
  return (
    Network(init, apply, train_apply if train_stages else None),
    [*more, *rules],
  )

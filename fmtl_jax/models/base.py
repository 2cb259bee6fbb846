"""Models: pure `init` and `apply` functions over a plain dict of parameters.

A network is a chain of named stages. It does not know that it is federated: the
same network is used with different label rules. Any other `(init, apply)` pair
of functions works wherever a model is asked for.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx
import jax

from fmtl_jax import layer_types

Tree = Any
# Builds a stage; the parameters it makes are its own.
ModuleFn = Callable[[nnx.Rngs], nnx.Module]


class Model(NamedTuple):
  """A network as pure functions.

  Attributes:
    init: `key -> params`, a plain dict with one entry for each stage.
    apply: `(params, features [B, ...]) -> outputs [B, O]`.
    stages: `(name, apply)` of each stage, from the input on; `apply` is
      `(the stage's params, x) -> x`.
  """

  init: Callable[[jax.Array], Tree]
  apply: Callable[[Tree, Any], jax.Array]
  stages: tuple[tuple[str, Callable[[Tree, Any], Any]], ...] = ()


def from_nnx(
  module_fn: ModuleFn,
) -> tuple[Callable[[jax.Array], Tree], Callable[[Tree, Any], jax.Array]]:
  """Turns an NNX module into pure functions.

  Args:
    module_fn: Builds the module out of `nnx.Rngs`.

  Returns:
    `init(key) -> params` and `apply(params, x)`.
  """
  graph, shapes = nnx.split(nnx.eval_shape(lambda: module_fn(nnx.Rngs(0))))

  def init(key):
    return nnx.to_pure_dict(nnx.state(module_fn(nnx.Rngs(key))))

  def apply(params, x):
    state = jax.tree.map(lambda leaf: leaf, shapes)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)(x)

  return init, apply


def sequential(stages: Mapping[str, ModuleFn]) -> Model:
  """Chains stages into a model.

  Args:
    stages: What builds each stage, by name, from the input on.
  """
  pure = {name: from_nnx(module_fn) for name, module_fn in stages.items()}
  applies = tuple((name, apply) for name, (_, apply) in pure.items())

  def init(key):
    keys = jax.random.split(key, len(pure))
    return {
      name: stage_init(stage_key)
      for stage_key, (name, (stage_init, _)) in zip(
        keys, pure.items(), strict=True
      )
    }

  return chain(init, applies)


def chain(
  init: Callable[[jax.Array], Tree],
  stages: tuple[tuple[str, Callable[[Tree, Any], Any]], ...],
) -> Model:
  """Makes a model of stages, each a pure function.

  Args:
    init: `key -> params`, with an entry for each stage.
    stages: `(name, apply)` of each stage, from the input on.
  """

  def apply(params, x):
    for name, stage in stages:
      x = stage(params[name], x)
    return x

  return Model(init, apply, stages)


def split_prefix(model: Model, labels: Tree) -> tuple[Model, Model]:
  """Splits off the pre-trained stages at the input.

  Their outputs never change, so that they are computed once for each example
  and training runs on the rest of the network.

  Args:
    model: A chain of stages.
    labels: Layer types of its parameters.

  Returns:
    The pre-trained prefix, possibly without stages, and the rest.
  """
  count = 0
  for name, _ in model.stages:
    if set(jax.tree.leaves(labels[name])) - {layer_types.PRETRAINED}:
      break
    count += 1

  def part(stages):
    names = [name for name, _ in stages]

    def init(key):
      params = model.init(key)
      return {name: params[name] for name in names}

    return chain(init, tuple(stages))

  return part(model.stages[:count]), part(model.stages[count:])

"""Models: pure `init` and `apply` functions over a plain dict of parameters.

A network is a chain of named stages. It does not know that it is federated: the
same network is used with different label rules. Any other `(init, apply)` pair
of functions works wherever a model is asked for.
"""

from collections.abc import Callable, Mapping
import types
from typing import Any, NamedTuple

from flax import nnx
import jax

from fmtl_jax import compatibility
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import stages as stages_lib

Tree = Any
# Builds a stage; the parameters it makes are its own.
ModuleFn = Callable[[nnx.Rngs], nnx.Module]
# `(the stage's params, x, is_example [B]) -> (x, statistics)`.
TrainFn = Callable[[Tree, Any, jax.Array], tuple[Any, Tree]]


class Model(NamedTuple):
  """A network as pure functions.

  Attributes:
    init: `key -> params`, a plain dict with one entry for each stage.
    apply: `(params, features [B, ...]) -> outputs [B, O]`.
    stages: `(name, apply)` of each stage, from the input on; `apply` is
      `(the stage's params, x) -> x`.
    train_apply: `(params, features, is_example [B], trained) -> (outputs,
      statistics)`, where training computes something else than `apply`, as with
      batch normalization; None where it does not. `is_example` is False for
      padding. `trained`, in the structure of `params`, says which leaves are;
      statistics that are not trained are used as in `apply`. The statistics
      are new values of leaves which have no gradient, None elsewhere.
    train_stages: What `train_apply` does at the stages with statistics.
  """

  init: Callable[[jax.Array], Tree]
  apply: Callable[[Tree, Any], jax.Array]
  stages: tuple[tuple[str, Callable[[Tree, Any], Any]], ...] = ()
  train_apply: Callable[..., tuple[jax.Array, Tree]] | None = None
  train_stages: Mapping[str, TrainFn] = types.MappingProxyType({})


class Stage(NamedTuple):
  """An NNX module as pure functions.

  Attributes:
    init: `key -> params`.
    apply: `(params, x) -> y`.
    train: `(params, x, is_example [B]) -> (y, statistics)`, None elsewhere than
      at variables of the type `nnx.BatchStat`; None for a module without them.
  """

  init: Callable[[jax.Array], Tree]
  apply: Callable[[Tree, Any], Any]
  train: TrainFn | None

  @classmethod
  def from_nnx(cls, module_fn: ModuleFn) -> 'Stage':
    """Turns an NNX module into pure functions.

    Args:
      module_fn: Builds the module out of `nnx.Rngs`. One that has variables of
        the type `nnx.BatchStat` is called with `(x, is_example)` in training
        and sets them.
    """
    graph, shapes = nnx.split(nnx.eval_shape(lambda: module_fn(nnx.Rngs(0))))

    def init(key):
      return nnx.to_pure_dict(nnx.state(module_fn(nnx.Rngs(key))))

    def module(params):
      state = jax.tree.map(lambda leaf: leaf, shapes)
      nnx.replace_by_pure_dict(state, params)
      return nnx.merge(graph, state)

    def train(params, x, is_example):
      trained = module(params)
      y = trained(x, is_example)
      statistics = jax.tree.map(
        lambda v: (
          compatibility.variable_value(v)
          if isinstance(v, nnx.BatchStat)
          else None
        ),
        nnx.state(trained),
        is_leaf=lambda v: isinstance(v, nnx.Variable),
      )
      return y, nnx.to_pure_dict(statistics)

    has_statistics = jax.tree.leaves(nnx.filter_state(shapes, nnx.BatchStat))
    return cls(
      init=init,
      apply=lambda params, x: module(params)(x),
      train=train if has_statistics else None,
    )


def from_nnx(
  module_fn: ModuleFn,
) -> tuple[Callable[[jax.Array], Tree], Callable[[Tree, Any], jax.Array]]:
  """Turns an NNX module into `init(key) -> params` and `apply(params, x)`.

  Args:
    module_fn: Builds the module out of `nnx.Rngs`.
  """
  stage = Stage.from_nnx(module_fn)
  return stage.init, stage.apply


def sequential(stages: Mapping[str, ModuleFn]) -> Model:
  """Chains stages into a model.

  Args:
    stages: What builds each stage, by name, from the input on; see
      `Stage.from_nnx` for those with statistics.
  """
  pure = {name: Stage.from_nnx(fn) for name, fn in stages.items()}

  def init(key):
    keys = jax.random.split(key, len(pure))
    return {
      name: stage.init(stage_key)
      for stage_key, (name, stage) in zip(keys, pure.items(), strict=True)
    }

  return chain(
    init,
    tuple((name, stage.apply) for name, stage in pure.items()),
    {name: stage.train for name, stage in pure.items() if stage.train},
  )


def chain(
  init: Callable[[jax.Array], Tree],
  stages: tuple[tuple[str, Callable[[Tree, Any], Any]], ...],
  train_stages: Mapping[str, TrainFn] = types.MappingProxyType({}),
) -> Model:
  """Makes a model of stages, each a pure function.

  Args:
    init: `key -> params`, with an entry for each stage.
    stages: `(name, apply)` of each stage, from the input on.
    train_stages: Those that have statistics, as `Model.train_stages`; one with
      a statistic that is not trained is applied as in evaluation.
  """

  def apply(params, x):
    return stages_lib.apply(stages, params, x)

  def train_apply(params, x, is_example, trained):
    return stages_lib.train_apply(
      stages, train_stages, params, x, is_example, trained
    )

  if not train_stages:
    return Model(init, apply, stages)
  return Model(init, apply, stages, train_apply, train_stages)


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

    trains = {n: f for n, f in model.train_stages.items() if n in names}
    return chain(init, tuple(stages), trains)

  return part(model.stages[:count]), part(model.stages[count:])

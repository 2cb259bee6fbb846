"""Adapters: low-rank changes of the kernels of a network that is not trained.

A kernel W of a dense, attention or convolution layer, as a matrix `[inputs,
outputs]` (its last axis are the outputs), is replaced by

  W' = W + alpha / r A B,

A `[inputs, r]` random and B `[r, outputs]` zero at first, so that training
begins with the network as it was. W is labelled pre-trained; A and B are leaves
beside it, `kernel_adapter/a` and `kernel_adapter/b`, whose layer types say who
shares what: FedIT, FFA-LoRA and FedSA-LoRA are label rules. `scale`, alpha / r,
stands beside them and is pre-trained, too; `delta` may, and holds what was
added to W for good (FLoRA).

In papers kernels are `[outputs, inputs]`: what is A here is there the
transposed A, and so is B.

References:
  Hu et al. (2022), LoRA: low-rank adaptation of large language models,
  https://arxiv.org/abs/2106.09685, equation 3; A begins as in its code.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax.federation import layer_types
from fmtl_jax.models import base

Tree = Any

SUFFIX = '_adapter'
A, B, SCALE, DELTA = 'a', 'b', 'scale', 'delta'
# Patterns of these leaves, for rules of layer types.
OF_A, OF_B, OF_SCALE, OF_DELTA = (
  f'.*{SUFFIX}/{leaf}' for leaf in (A, B, SCALE, DELTA)
)
TRAINED = f'.*{SUFFIX}/({A}|{B}|{DELTA})'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters:
  """Which kernels get adapters, and of what rank.

  Attributes:
    rank: r, at least 1.
    alpha: The factor of A B is alpha / r.
    targets: Patterns of whole paths, such as `block_5/attention/.*/kernel`;
      each is that of a kernel, an array of two axes or more.
  """

  rank: int = 8
  alpha: float = 16.0
  targets: Sequence[str] = ()

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f'Expected `rank` >= 1, got {self.rank}.')
    if not self.alpha > 0:
      raise ValueError(f'Expected `alpha` > 0, got {self.alpha}.')
    for pattern in self.targets:
      try:
        re.compile(pattern)
      except re.error as error:
        raise ValueError(
          f'Expected a regular expression in `targets`, got {pattern!r} '
          f'({error}).'
        ) from error

  def matches(self, path: str) -> bool:
    """Whether a leaf is one of the targets, by its path."""
    return any(re.fullmatch(pattern, path) for pattern in self.targets)

  def check(self, shapes: Tree) -> None:
    """Raises a ValueError if a target is no kernel of the network.

    Args:
      shapes: Of its parameters.
    """
    paths = layer_types.paths(shapes)
    for pattern in self.targets or ('',):
      if not any(re.fullmatch(pattern, path) for path in paths):
        raise ValueError(
          'Expected `targets` to match paths of kernels, got '
          f'{pattern!r}, which matches none of {", ".join(paths)}.'
        )
    for path, leaf in zip(paths, jax.tree.leaves(shapes), strict=True):
      if self.matches(path) and len(leaf.shape) < 2:
        raise ValueError(
          'Expected `targets` to match kernels only, which have two axes or '
          f'more, got {path!r} of shape {list(leaf.shape)}; narrow the pattern.'
        )

  def initial(self, key: jax.Array, shapes: Tree) -> Tree:
    """Draws the adapters of a network: a tree of them alone.

    Args:
      key: Consumed.
      shapes: Of the network's parameters.
    """

    def below(tree, path):
      found = {}
      for name, part in tree.items():
        where = f'{path}{name}'
        if isinstance(part, dict):
          inner = below(part, f'{where}/')
          if inner:
            found[name] = inner
        elif self.matches(where):
          number = numbers.index(where)
          inputs, outputs = _as_matrix(part.shape)
          found[name + SUFFIX] = {
            A: draw_a(
              jax.random.fold_in(key, number), inputs, self.rank, part.dtype
            ),
            B: jnp.zeros((self.rank, outputs), part.dtype),
            SCALE: jnp.asarray(self.alpha / self.rank, part.dtype),
          }
      return found

    numbers = layer_types.paths(shapes)
    return below(shapes, '')

  def wrap(self, model: Sequence[Any]) -> base.Model:
    """The network with adapters.

    Args:
      model: A `Model`, or any `(init, apply)` with parameters in plain dicts.

    Raises:
      ValueError: If a target is no kernel of the network.
    """
    shapes = jax.eval_shape(model[0], jax.random.key(0))
    self.check(shapes)

    def init(key):
      # Beside the network's own draw, which is that without adapters.
      adapters_key = jax.random.fold_in(key, _NUMBER)
      return put(model[0](key), self.initial(adapters_key, shapes))

    return _of_merged(model, init, merge_adapters)


_NUMBER = np.uint32(2**32 - 1)  # Folded into the key of a network.


def _as_matrix(shape: Sequence[int]) -> tuple[int, int]:
  """A kernel's inputs and outputs."""
  return math.prod(shape[:-1]), shape[-1]


def draw_a(key: jax.Array, inputs: int, rank: int, dtype: Any) -> jax.Array:
  """A as it begins: `[inputs, rank]`, uniform up to the root of 1 / inputs."""
  bound = 1 / math.sqrt(inputs)
  return jax.random.uniform(key, (inputs, rank), dtype, -bound, bound)


def put(params: Tree, adapters: Tree) -> Tree:
  """Puts adapters beside the kernels of a network; of new ones, the new."""
  merged = dict(params)
  for name, part in adapters.items():
    is_inner = isinstance(part, dict) and isinstance(merged.get(name), dict)
    merged[name] = put(merged[name], part) if is_inner else part
  return merged


def with_delta(model: Sequence[Any]) -> base.Model:
  """A network with adapters, to whose kernels `delta` is added, zero at first.

  Args:
    model: As of `Adapters.wrap`.
  """

  def add_zeros(params):
    found = {}
    for name, part in params.items():
      if name.endswith(SUFFIX):
        kernel = params[name.removesuffix(SUFFIX)]
        part = part | {DELTA: jnp.zeros_like(kernel)}
      found[name] = add_zeros(part) if _is_inner(name, part) else part
    return found

  def without(params):
    found = {}
    for name, part in params.items():
      adapter = params.get(name + SUFFIX, {})
      if name.endswith(SUFFIX):
        part = {leaf: value for leaf, value in part.items() if leaf != DELTA}
      elif DELTA in adapter:
        part = part + adapter[DELTA]
      found[name] = without(part) if _is_inner(name, part) else part
    return found

  return _of_merged(model, lambda key: add_zeros(model[0](key)), without)


def _is_inner(name, part):
  """Whether something is a module of a network, neither leaf nor adapter."""
  return isinstance(part, dict) and not name.endswith(SUFFIX)


def product(adapter: Tree) -> jax.Array:
  """alpha / r A B, `[inputs, outputs]`, of the adapter of one kernel."""
  return adapter[SCALE] * (adapter[A] @ adapter[B])


def merge_adapters(params: Tree) -> Tree:
  """The parameters of the same network without adapters, which are added.

  Args:
    params: Parameters of one model, in plain dicts.
  """
  merged = {}
  for name, part in params.items():
    if name.endswith(SUFFIX):
      continue
    adapter = params.get(name + SUFFIX)
    if adapter is not None:
      part = part + product(adapter).reshape(part.shape)
      part = part + adapter[DELTA] if DELTA in adapter else part
    merged[name] = merge_adapters(part) if _is_inner(name, part) else part
  return merged


def pairs(tree: Tree) -> list[tuple[str, Tree]]:
  """The adapters of a tree: `(path of the kernel, its adapter)`, in order."""
  found = []
  for name, part in tree.items():
    if name.endswith(SUFFIX):
      found.append((name.removesuffix(SUFFIX), part))
    elif isinstance(part, dict):
      found += [(f'{name}/{path}', inner) for path, inner in pairs(part)]
  return found


def trained_paths(names: Iterable[str]) -> list[str]:
  """Of the given paths those of leaves of adapters that may be trained."""
  return [path for path in names if re.fullmatch(TRAINED, path)]


def _of_merged(
  model: Sequence[Any],
  init: Callable[[jax.Array], Tree],
  merge: Callable[[Tree], Tree],
) -> base.Model:
  """A network whose parameters become those of another one before it runs."""
  if not getattr(model, 'stages', ()):
    _, apply = model[:2]
    return base.Model(init, lambda params, x: apply(merge(params), x))

  def stage(apply):
    return lambda params, x: apply(merge(params), x)

  def train_stage(train):
    def apply(params, x, is_example):
      y, statistics = train(merge(params), x, is_example)
      return y, _like(params, statistics)

    return apply

  return base.chain(
    init,
    tuple((name, stage(apply)) for name, apply in model.stages),
    {name: train_stage(fn) for name, fn in model.train_stages.items()},
  )


def _like(params: Tree, tree: Tree) -> Tree:
  """A tree of the network without adapters, with None at their places."""
  return {
    name: (
      _like(part, tree.get(name) or {})
      if isinstance(part, dict)
      else tree.get(name)
    )
    for name, part in params.items()
  }

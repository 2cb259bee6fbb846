"""Adapters of networks: which kernels get them, as a wrapper of a model.

What they are, and how they are merged, is `federation.adapters`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax.federation import adapters
from fmtl_jax.federation import layer_types
from fmtl_jax.models import base

Tree = Any
_NUMBER = np.uint32(2**32 - 1)  # Folded into the key of a network.


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
          found[name + adapters.SUFFIX] = {
            adapters.A: adapters.draw_a(
              jax.random.fold_in(key, number), inputs, self.rank, part.dtype
            ),
            adapters.B: jnp.zeros((self.rank, outputs), part.dtype),
            adapters.SCALE: jnp.asarray(self.alpha / self.rank, part.dtype),
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
      return adapters.put(model[0](key), self.initial(adapters_key, shapes))

    return _of_merged(model, init)


def _as_matrix(shape: Sequence[int]) -> tuple[int, int]:
  """A kernel's inputs and outputs."""
  return math.prod(shape[:-1]), shape[-1]


def _of_merged(
  model: Any,
  init: Callable[[jax.Array], Tree],
) -> base.Model:
  """A network whose adapters are merged into its kernels before it runs."""
  if not getattr(model, 'stages', ()):
    _, apply = model[:2]
    return base.Model(
      init, lambda params, x: apply(adapters.merge_adapters(params), x)
    )

  def stage(apply):
    return lambda params, x: apply(adapters.merge_adapters(params), x)

  def train_stage(train):
    def apply(params, x, is_example):
      y, statistics = train(adapters.merge_adapters(params), x, is_example)
      return y, adapters.like(params, statistics)

    return apply

  return base.chain(
    init,
    tuple((name, stage(apply)) for name, apply in model.stages),
    {name: train_stage(fn) for name, fn in model.train_stages.items()},
  )

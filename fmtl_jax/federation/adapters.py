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

from collections.abc import Callable, Iterable
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


Tree = Any

SUFFIX = '_adapter'
A, B, SCALE, DELTA = 'a', 'b', 'scale', 'delta'
# Patterns of these leaves, for rules of layer types.
OF_A, OF_B, OF_SCALE, OF_DELTA = (
  f'.*{SUFFIX}/{leaf}' for leaf in (A, B, SCALE, DELTA)
)
TRAINED = f'.*{SUFFIX}/({A}|{B}|{DELTA})'


class Adapted(NamedTuple):
  """A network with adapters: `init`, `apply` and `train_apply` of `Model`."""

  init: Callable[[jax.Array], Tree]
  apply: Callable[[Tree, Any], Any]
  train_apply: Callable[..., tuple[Any, Tree]] | None


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


def with_delta(model: Any) -> Adapted:
  """A network with adapters, to whose kernels `delta` is added, zero at first.

  Args:
    model: `(init, apply)`, with `train_apply` where it has statistics.
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

  def train_apply(params, x, is_example, trained):
    bare = without(params)
    y, statistics = model.train_apply(bare, x, is_example, like(bare, trained))
    return y, like(params, statistics)

  has_statistics = getattr(model, 'train_apply', None) is not None
  return Adapted(
    lambda key: add_zeros(model[0](key)),
    lambda params, x: model[1](without(params), x),
    train_apply if has_statistics else None,
  )


def like(params: Tree, tree: Tree) -> Tree:
  """The leaves of a tree at the places of another, None where it has none."""
  return {
    name: (
      like(part, tree.get(name) or {})
      if isinstance(part, dict)
      else tree.get(name)
    )
    for name, part in params.items()
  }

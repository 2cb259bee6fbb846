"""Layer types: which layers are shared with whom, as labels of parameters.

A layer type names the owners of copies of a parameter (METHOD, the paper's
section III): pre-trained layers are not trained, all clients share one copy of
a common layer, a task group shares a task-specific layer and a personal layer
never leaves its client. Beyond the paper, a layer of type `client` has a copy
for each client, too, but at the server, to which the client sends its updates:
so that the server may relate clients; `decoder` is another one of this kind,
where it relates the last layers in another way. Layer types are plain strings,
so that a new kind of sharing (a user cluster, a region) needs no change here.

References:
  Kececi, Shaqfeh, Mbayed, Serpedin (2022), Multi-Task and Transfer Learning for
  Federated Learning Applications, https://arxiv.org/abs/2207.08147.
"""

from collections.abc import Callable, Iterable, Sequence
import re
from typing import Any

import jax
import jax.extend
import numpy as np

PRETRAINED = 'pretrained'
COMMON = 'common'
TASK = 'task'
PERSONAL = 'personal'
CLIENT = 'client'
DECODER = 'decoder'

Tree = Any
Rules = Sequence[tuple[str, str]]


def paths(params: Tree) -> list[str]:
  """Lists the path of every leaf, its keys joined by `/`: `head/kernel`."""
  with_paths, _ = jax.tree.flatten_with_path(params)
  return [_path_name(path) for path, _ in with_paths]


def _path_name(path: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def label_params(
  params: Tree, rules: Rules, known: Iterable[str] | None = None
) -> Tree:
  """Labels every leaf by the first rule whose pattern matches its whole path.

  Args:
    params: Parameters of one model, without owner axes.
    rules: `(regex, layer type)` pairs, most specific first. A leaf's path joins
      its keys with `/`, as in `head/kernel`.
    known: The layer types a rule may name; None allows any.

  Returns:
    A tree of layer types with the structure of `params`.

  Raises:
    ValueError: If a leaf matches no rule, a rule is the first match of no leaf,
      a pattern is no regular expression or a layer type is not known.
  """
  names = paths(params)
  used = set()
  for pattern, layer_type in rules:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(
        f'Expected a regular expression in layer_types, got {pattern!r} '
        f'({error}).'
      ) from error
    if known is not None and layer_type not in known:
      raise ValueError(
        f'Unknown layer type {layer_type!r} in layer_types rule '
        f'{(pattern, layer_type)}; known are {", ".join(sorted(known))}.'
      )

  def label(path, unused_leaf):
    name = _path_name(path)
    for number, (pattern, layer_type) in enumerate(rules):
      if re.fullmatch(pattern, name):
        used.add(number)
        return layer_type
    raise ValueError(
      f'No rule of layer_types covers the parameter {name!r}; add one, for '
      f"example ({name!r}, 'common')."
    )

  labels = jax.tree.map_with_path(label, params)
  for number, (pattern, layer_type) in enumerate(rules):
    if number not in used:
      raise ValueError(
        f'The layer_types rule {(pattern, layer_type)} covers no parameter '
        'that an earlier rule does not; parameters are '
        f'{", ".join(names)}. Correct or remove the rule.'
      )
  return labels


def select(tree: Tree, labels: Tree, keep: Callable[[str], bool]) -> Tree:
  """Keeps the leaves whose label passes `keep`; the others become None."""
  return jax.tree.map(
    lambda label, leaf: leaf if keep(label) else None, labels, tree
  )


def split(tree: Tree, labels: Tree) -> tuple[Tree, Tree]:
  """Splits off the pre-trained leaves: (trained, frozen), None elsewhere."""
  trained = select(tree, labels, lambda label: label != PRETRAINED)
  frozen = select(tree, labels, lambda label: label == PRETRAINED)
  return trained, frozen


def merge(*trees: Tree) -> Tree:
  """Fills the None holes of the first tree from the ones after it."""
  return jax.tree.map(
    lambda *leaves: next((x for x in leaves if x is not None), None),
    *trees,
    is_leaf=lambda x: x is None,
  )


def sizes(params: Tree, labels: Tree) -> dict[str, int]:
  """Counts the values of one client's model by layer type."""
  counts: dict[str, int] = {}
  for label, leaf in zip(
    jax.tree.leaves(labels), jax.tree.leaves(params), strict=True
  ):
    counts[label] = counts.get(label, 0) + int(np.prod(np.shape(leaf)))
  return counts


def use_order(
  apply_fn: Callable[[Tree, Any], Any], params: Tree, features: Any
) -> list[str]:
  """Lists parameter paths in the order in which the network first uses them.

  Args:
    apply_fn: `(params, features) -> outputs`.
    params: Parameters, or their shapes.
    features: A batch of features, or its shapes.

  Returns:
    One path for every leaf of `params`; leaves that are never used come last.
  """
  names = paths(params)
  jaxpr = jax.make_jaxpr(apply_fn)(params, features).jaxpr
  origin = dict(zip(jaxpr.invars[: len(names)], names, strict=True))
  order: dict[str, None] = {}

  def visit(jaxpr, origin):
    for equation in jaxpr.eqns:
      inner = [
        getattr(value, 'jaxpr', value)
        for value in equation.params.values()
        if hasattr(getattr(value, 'jaxpr', value), 'eqns')
      ]
      operands = [
        None if isinstance(v, jax.extend.core.Literal) else origin.get(v)
        for v in equation.invars
      ]
      if equation.primitive.name == 'convert_element_type':
        origin[equation.outvars[0]] = operands[0]  # Not used by it.
        continue
      if len(inner) == 1 and len(inner[0].invars) == len(operands):
        visit(inner[0], dict(zip(inner[0].invars, operands, strict=True)))
      for name in operands:
        if name is not None:
          order.setdefault(name)

  visit(jaxpr, origin)
  return list(order) + [name for name in names if name not in order]


def modules(order: Iterable[str]) -> list[str]:
  """Lists the first keys of the paths: a network's layers in order."""
  return list(dict.fromkeys(path.split('/')[0] for path in order))


def by_depth(
  layers: Sequence[str], counts: Sequence[tuple[str, int]]
) -> list[tuple[str, str]]:
  """Builds rules that give layers their types from the input to the output.

  Args:
    layers: The network's layers in the order of their use, as `modules`.
    counts: `(layer type, how many layers)`, from the input on; the numbers add
      up to that of the layers.

  Raises:
    ValueError: If a number is negative or they do not add up.
  """
  numbers = [number for _, number in counts]
  if min(numbers) < 0 or sum(numbers) != len(layers):
    given = ', '.join(f'{number} {name}' for name, number in counts)
    raise ValueError(
      f'Expected layer types for each of the {len(layers)} layers '
      f'({", ".join(layers)}), got {given}; choose fewer of the given kinds.'
    )
  types = [name for name, number in counts for _ in range(number)]
  return [
    (f'{re.escape(layer)}(/.*)?', layer_type)
    for layer, layer_type in zip(layers, types, strict=True)
  ]


def matching(rules: Rules, names: Iterable[str]) -> list[tuple[str, str]]:
  """The rules whose pattern matches one of the given paths."""
  names = list(names)
  return [
    (pattern, layer_type)
    for pattern, layer_type in rules
    if any(re.fullmatch(pattern, name) for name in names)
  ]


def exact_rules(labels: Tree) -> list[tuple[str, str]]:
  """Rules that give every leaf of `labels` the label it has."""
  return [
    (re.escape(path), label)
    for path, label in zip(paths(labels), jax.tree.leaves(labels), strict=True)
  ]

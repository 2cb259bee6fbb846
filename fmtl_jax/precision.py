"""Precision: of matrix products, and of sums that are wider than parameters.

Products have the precision that settings say, see `products` and `computed`. A
sum of a thousand numbers in bfloat16 stops growing at 256 times the largest.
Sums over clients, examples or leaves, and the states of servers, have
at least the 24 bits of float32, whatever the parameters have; it is rounded to
them at the end. Numbers of float32 and float64 stay as they are.
"""

from collections.abc import Callable, Iterator
import contextlib
from typing import Any
import warnings

import jax
import jax.numpy as jnp

Tree = Any

HIGHEST = 'highest'
TF32_X3 = 'tensorfloat32_x3'
# Of products of float32, by JAX's names. What they are is a matter of the
# device: on CPU all are the same, a GPU has no bfloat16 products of float32.
# The second one is three passes of TF32 on a GPU, float32 elsewhere.
MATMUL = (HIGHEST, TF32_X3, 'tensorfloat32', 'bfloat16')
_ALGORITHM = 'TF32_TF32_F32_X3'

FLOAT32 = 'float32'
BFLOAT16 = 'bfloat16'
COMPUTE = (FLOAT32, BFLOAT16)


def check(name: str, value: str, known: tuple[str, ...]) -> None:
  """Raises a ValueError for a precision that is not known."""
  if value not in known:
    raise ValueError(
      f'Expected `{name}` to be one of {", ".join(known)}, got {value!r}.'
    )


def of_jax(matmul: str) -> str:
  """The name that JAX has for a precision where it runs."""
  if matmul != TF32_X3:
    return matmul
  return _ALGORITHM if jax.default_backend() == 'gpu' else HIGHEST


def of_convolutions() -> str | None:
  """The precision to name at a convolution, while products have theirs.

  An algorithm is one of products: JAX leaves convolutions at DEFAULT then.
  """
  given = _given()
  return HIGHEST if given == _ALGORITHM else None


def _given() -> Any:
  """What `jax_default_matmul_precision` says."""
  return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


@contextlib.contextmanager
def products(matmul: str | None) -> Iterator[None]:
  """Traces matrix products with a precision, but those that have their own.

  Args:
    matmul: One of `MATMUL`; None for what `jax_default_matmul_precision` says.
      Where both say something else, this one counts, with a warning.
  """
  if matmul is None:
    yield
    return
  given, name = _given(), of_jax(matmul)
  if given is not None and not _are_same(given, name):
    warnings.warn(
      f'jax_default_matmul_precision is {given!r}, and matrix products are '
      f'computed with the precision {matmul!r} that the settings say; where '
      '`matmul_precision` is None, that of JAX counts.',
      stacklevel=3,
    )
  with jax.default_matmul_precision(name):
    yield


def _are_same(one: Any, other: Any) -> bool:
  """Whether two names stand for the same precision: JAX has several of each."""
  try:
    return jax.lax.Precision(one) == jax.lax.Precision(other)
  except (KeyError, ValueError):  # An algorithm of its own.
    return one == other


def computed(
  apply_fn: Callable[..., Any], compute: str, is_kept: Tree = None
) -> Callable[..., Any]:
  """A network that computes in another type than that of its parameters.

  Args:
    apply_fn: `(params, features, ...) -> outputs`, or outputs and more.
    compute: `float32`: in the types that parameters and features have;
      `bfloat16`: their floating leaves are rounded to it before `apply_fn`.
    is_kept: Of the leaves of `params`, whether they stay as they are, such as
      running statistics; by default none.

  Returns:
    The same function; what it returns is in the type of sums.
  """
  if compute == FLOAT32:
    return apply_fn

  def narrow(leaf):
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(jnp.bfloat16) if is_float else leaf

  def apply(params, features, *others):
    if is_kept is None:
      params = jax.tree.map(narrow, params)
    else:
      params = jax.tree.map(
        lambda kept, leaf: leaf if kept else narrow(leaf), is_kept, params
      )
    return widen(apply_fn(params, jax.tree.map(narrow, features), *others))

  return apply


def wide(dtype: Any) -> Any:
  """The type of sums of numbers of a type: float32 for narrower floats."""
  if not jnp.issubdtype(dtype, jnp.floating):
    return dtype
  return jnp.promote_types(dtype, jnp.float32)


def widen(tree: Tree) -> Tree:
  """The same numbers in the type of their sums."""
  return jax.tree.map(lambda x: x.astype(wide(x.dtype)), tree)


def like(tree: Tree, other: Tree) -> Tree:
  """The numbers of a tree in the types of another one of its structure."""
  return jax.tree.map(
    lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), tree, other
  )

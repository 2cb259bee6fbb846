"""Dense kernels in factored form: local training without a copy of them.

A step of mini-batch SGD changes a dense kernel by `X^T G`, with X `[B, d]` the
inputs of its layer and G `[B, h]` the gradients of its outputs. After some
steps a client's kernel is

  W_client = scale W + X^T diag(c) G,

with the rows of all its batches in X and G and a coefficient for each row, so
that `x @ W_client = scale (x @ W) + ((x @ X^T) c) @ G`. W is the same for all
clients of an owner: their products with it are one matrix product, no client
reads or writes a `[d, h]` matrix in a step, and the weighted sum of the updates
of all clients is one product at the end. It is the arithmetic of SGD in another
order, for every optimizer that is linear in the gradients: `scale` and `c` are
what it makes of the coefficients.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
from jax.extend import core
import jax.numpy as jnp

from fmtl_jax import precision

Tree = Any


class Factors(NamedTuple):
  """Rows whose product `inputs^T @ grads` is a gradient.

  Attributes:
    inputs: `[n, d]`.
    grads: `[n, h]`.
  """

  inputs: jax.Array
  grads: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
  """The kernel of one client; every leaf has a leading axis for slots, if any.

  Base, factors and gradient have the type in which the network multiplies,
  the others that of parameters.

  Attributes:
    base: `[d, h]`, what the client was sent.
    factors: The rows of all steps so far; zero where there was none.
    coefficients: `[n]`, of each row.
    scale: `[]`, of `base`.
    gradient: The gradient with respect to this argument of a loss is that of
      the kernel, as `[B, d]` and `[B, h]` factors; its value is not looked at.
  """

  base: jax.Array
  factors: Factors
  coefficients: jax.Array
  scale: jax.Array
  gradient: Factors


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
  """The update of a kernel, `growth * base + inputs^T diag(c) grads`.

  Attributes:
    factors: As in `Kernel`.
    coefficients: As in `Kernel`.
    growth: `[]`, its scale less one.
  """

  factors: Factors
  coefficients: jax.Array
  growth: jax.Array


def is_factored(x: Any) -> bool:
  """Whether a node of a tree is a kernel or an update in factored form."""
  return isinstance(x, Kernel | Update)


class _Product(NamedTuple):
  """How a network multiplies: of a `dot_general`.

  Attributes:
    precision: Of its operands, or an algorithm; None for JAX's default.
    dtype: Of its result.
  """

  precision: Any
  dtype: Any

  def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """The product `x @ y` of two matrices, in the type of sums."""
    return self._contract(x, y, 0)

  def transposed(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """The product `x @ y.T`, without a copy of `y` that is turned."""
    return self._contract(x, y, 1)

  def _contract(self, x, y, axis):
    wide = precision.wide(jnp.promote_types(x.dtype, y.dtype))
    return jax.lax.dot_general(
      x,
      y,
      (((1,), (axis,)), ((), ())),
      precision=self.precision,
      preferred_element_type=wide,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(product, x, kernel):
  """`[B, d] -> [B, h]`, the product with a kernel in factored form."""
  inputs, grads = kernel.factors
  low = product.transposed(x, inputs) * kernel.coefficients
  low = low.astype(grads.dtype)
  outputs = kernel.scale * product(x, kernel.base) + product(low, grads)
  return outputs.astype(product.dtype)


def _forward(product, x, kernel):
  return _dense(product, x, kernel), (x, kernel)


def _backward(product, residual, output_grads):
  x, kernel = residual
  inputs, grads = kernel.factors
  low = product.transposed(output_grads, grads) * kernel.coefficients
  low = low.astype(inputs.dtype)
  x_grads = kernel.scale * product.transposed(output_grads, kernel.base)
  x_grads += product(low, inputs)
  zeros = jax.tree.map(jnp.zeros_like, kernel)
  gradient = Factors(x.astype(inputs.dtype), output_grads.astype(grads.dtype))
  return x_grads.astype(x.dtype), dataclasses.replace(zeros, gradient=gradient)


_dense.defvjp(_forward, _backward)


def add(
  total: jax.Array,
  update: Update,
  weights: jax.Array,
  owner: jax.Array | None,
  base: jax.Array,
) -> jax.Array:
  """Adds the weighted updates of clients to the sum of each owner.

  Args:
    total: `[d, h]`, or `[owners, d, h]`; of its type is the sum.
    update: Of K clients; with a leading axis, or two where there are slots.
    weights: `[K]` or `[K, S]`; where zero, the update is not looked at.
    owner: As `weights`, none if out of range; None for a single copy.
    base: As `total`, what the updates are of.
  """
  update = jax.tree.map(
    lambda x: x.reshape((weights.size,) + x.shape[weights.ndim :]), update
  )
  weights = weights.reshape(-1).astype(total.dtype)

  def select(x):  # `0 * nan` is nan.
    shape = (-1,) + (1,) * (x.ndim - 1)
    return jnp.where((weights > 0).reshape(shape), x.astype(total.dtype), 0)

  update = jax.tree.map(select, update)
  base = base.astype(total.dtype)
  inputs, grads = update.factors
  inputs = inputs * (weights[:, None] * update.coefficients)[..., None]
  growth = weights * update.growth
  if owner is None:
    rows = lambda x: x.reshape(-1, x.shape[-1])
    return total + growth.sum() * base + rows(inputs).T @ rows(grads)
  owner = owner.reshape(-1)
  growth = jnp.zeros(len(total), total.dtype).at[owner].add(growth, mode='drop')
  total = total + growth[:, None, None] * base

  def one(i, total):  # One client at a time: no product of each is kept.
    return total.at[owner[i]].add(inputs[i].T @ grads[i], mode='drop')

  return jax.lax.fori_loop(0, len(owner), one, total)


def squared_norm(
  update: Update, owner: jax.Array | None, base: jax.Array
) -> jax.Array:
  """The squared norm of each update, without the product of its factors.

  Args:
    update: `[K, ...]` or `[K, S, ...]`.
    owner: `[K]` or `[K, S]`, none if out of range; None for a single copy.
    base: `[d, h]`, or `[owners, d, h]`, what the updates are of.

  Returns:
    `[K]` or `[K, S]`, in the type of sums.
  """
  dtype = precision.wide(base.dtype)
  lead = update.growth.shape
  update = jax.tree.map(
    lambda x: x.reshape((-1,) + x.shape[len(lead) :]).astype(dtype), update
  )
  if owner is None:
    owner, base = jnp.zeros(lead, jnp.int32), base[None]

  def one(row):  # One client at a time: no copy of its kernel is kept.
    own, number = row
    inputs, grads = own.factors
    kernel = jnp.take(base, number, axis=0, mode='clip').astype(dtype)
    scaled = own.coefficients[:, None] * grads
    gram = ((inputs @ inputs.T) * (scaled @ scaled.T)).sum()
    product = ((inputs @ kernel) * scaled).sum()
    squares = jnp.square(kernel).sum()
    total = gram + own.growth * (2 * product + own.growth * squares)
    return jnp.maximum(total, 0)  # A rounding error may be less.

  return jax.lax.map(one, (update, owner.reshape(-1))).reshape(lead)


def dense_kernels(
  apply_fn: Callable[[Tree, Any], jax.Array], params: Tree, features: Any
) -> Tree:
  """Finds the parameters that a network uses as a dense kernel and only so.

  Args:
    apply_fn: `(params, features [B, ...]) -> outputs [B, O]`.
    params: Parameters, or their shapes.
    features: A batch, or its shapes.

  Returns:
    A tree of bools: whether the leaf `[d, h]`, perhaps in another type, stands
    on the right of a single product `[B, d] @ [d, h]`, and nowhere else.
  """
  leaves, treedef = jax.tree.flatten(params)
  jaxpr = jax.make_jaxpr(apply_fn)(params, features).jaxpr
  batch = jax.tree.leaves(features)[0].shape[0]
  uses: dict[int, list[bool]] = {number: [] for number in range(len(leaves))}

  def visit(jaxpr, origin):
    for equation in jaxpr.eqns:
      operands = _read(origin, equation.invars)
      inner = _inlined(equation)
      if inner is not None:
        visit(inner.jaxpr, dict(zip(inner.jaxpr.invars, operands, strict=True)))
        continue
      if _is_cast(equation):
        origin[equation.outvars[0]] = operands[0]
        continue
      for place, number in enumerate(operands):
        if number is not None:
          uses[number].append(
            place == 1
            and _is_dense(equation)
            and equation.invars[0].aval.shape[0] == batch
          )
    for number in _read(origin, jaxpr.outvars):
      if number is not None:
        uses[number].append(False)

  visit(jaxpr, dict(zip(jaxpr.invars, range(len(leaves)), strict=False)))
  return jax.tree.unflatten(
    treedef, [uses[n] == [True] for n in range(len(leaves))]
  )


class Products(NamedTuple):
  """All matrix products and convolutions of a batch, forward.

  Attributes:
    flops: Their operations.
    value_bytes: Of their first operands and their results.
  """

  flops: int
  value_bytes: int


def products(
  apply_fn: Callable[[Tree, Any], jax.Array], params: Tree, features: Any
) -> Products:
  """Looks at the products of a network.

  Args:
    apply_fn: `(params, features [B, ...]) -> outputs [B, O]`.
    params: Parameters, or their shapes.
    features: A batch, or its shapes.
  """

  def visit(jaxpr):
    flops, value_bytes = 0, 0
    for equation in jaxpr.eqns:
      is_loop = equation.primitive.name == 'scan'
      times = equation.params['length'] if is_loop else 1
      for value in equation.params.values():
        inner = getattr(value, 'jaxpr', value)
        if hasattr(inner, 'eqns'):
          found = visit(inner)
          flops += times * found.flops
          value_bytes += times * found.value_bytes
      operands = [v.aval.shape for v in equation.invars]
      if equation.primitive.name == 'dot_general':
        (contracted, _), _ = equation.params['dimension_numbers']
        depth = math.prod(operands[0][axis] for axis in contracted)
      elif equation.primitive.name == 'conv_general_dilated':
        features_out = equation.params['dimension_numbers'].rhs_spec[0]
        depth = math.prod(operands[1]) // operands[1][features_out]
      else:
        continue
      result = equation.outvars[0].aval
      flops += 2 * depth * result.size
      for value in (equation.invars[0].aval, result):
        value_bytes += value.size * value.dtype.itemsize
    return Products(flops, value_bytes)

  return visit(jax.make_jaxpr(apply_fn)(params, features).jaxpr)


def factored(
  apply_fn: Callable[[Tree, Any], jax.Array],
) -> Callable[[Tree, Any], jax.Array]:
  """The same network for parameters some of which are a `Kernel`.

  Args:
    apply_fn: `(params, features [B, ...]) -> outputs [B, O]`.

  Returns:
    The same; where `dense_kernels` says so, a leaf may be a `Kernel`.
  """

  def apply(params, features):
    leaves, treedef = jax.tree.flatten(params, is_leaf=is_factored)
    plain = [leaf.base if is_factored(leaf) else leaf for leaf in leaves]
    shape = lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))
    closed, out = jax.make_jaxpr(apply_fn, return_shape=True)(
      jax.tree.unflatten(treedef, map(shape, plain)),
      jax.tree.map(shape, features),
    )
    values = _evaluate(closed, [*leaves, *jax.tree.leaves(features)])
    return jax.tree.unflatten(jax.tree.structure(out), values)

  return apply


def _evaluate(closed, arguments):
  """Evaluates a jaxpr some of whose arguments are a `Kernel`."""
  jaxpr = closed.jaxpr
  values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
  values |= dict(zip(jaxpr.invars, arguments, strict=True))
  for equation in jaxpr.eqns:
    operands = [
      v.val if isinstance(v, core.Literal) else values[v]
      for v in equation.invars
    ]
    if not any(isinstance(x, Kernel) for x in operands):
      params = equation.primitive.get_bind_params(equation.params)
      # Some versions of JAX return functions that come first beside them.
      functions, params = params if isinstance(params, tuple) else ((), params)
      results = equation.primitive.bind(*functions, *operands, **params)
      if not equation.primitive.multiple_results:
        results = [results]
    elif _is_dense(equation):
      dtype = equation.outvars[0].aval.dtype
      product = _Product(equation.params['precision'], dtype)
      results = [_dense(product, *operands)]
    elif _is_cast(equation):
      results = [_cast(operands[0], equation.params['new_dtype'])]
    else:
      results = _evaluate(_inlined(equation), operands)
    values |= dict(zip(equation.outvars, results, strict=True))
  return [
    v.val if isinstance(v, core.Literal) else values[v] for v in jaxpr.outvars
  ]


def _read(origin, variables):
  """What stands for each variable; None for literals and others."""
  return [
    None if isinstance(v, core.Literal) else origin.get(v) for v in variables
  ]


def _inlined(equation):
  """The jaxpr of a nested `jit`, None for every other equation."""
  return equation.params['jaxpr'] if equation.primitive.name == 'jit' else None


def _is_cast(equation):
  """Whether an equation changes the type of a float to that of another one."""
  return equation.primitive.name == 'convert_element_type' and all(
    jnp.issubdtype(v.aval.dtype, jnp.floating)
    for v in (*equation.invars, *equation.outvars)
  )


def _cast(kernel, dtype):
  """A kernel that multiplies in another type."""
  cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)
  return dataclasses.replace(
    kernel,
    base=cast(kernel.base),
    factors=cast(kernel.factors),
    gradient=cast(kernel.gradient),
  )


def _is_dense(equation):
  """Whether an equation is a product `[B, d] @ [d, h]`, however precise."""
  return (
    equation.primitive.name == 'dot_general'
    and equation.params['dimension_numbers'] == (((1,), (0,)), ((), ()))
    and equation.invars[0].aval.ndim == equation.invars[1].aval.ndim == 2
  )

"""Relationships that a server learns: a matrix over owners from their models.

Of models W, a column for each of m owners, the regularizer of multi-task
learning is tr(W Sigma^{-1} W^T), Sigma positive with trace one. The best is

  Sigma = (W^T W)^{1/2} / tr((W^T W)^{1/2}).

Its eigenvalues are kept above a floor, so that it has an inverse, and the trace
is one again then. It follows from the singular values of W: where there are
more owners than numbers in a model, nothing larger than W is decomposed.

References:
  Zhang, Yeung (2010), A convex formulation for learning task relationships in
  multi-task learning, https://arxiv.org/abs/1203.3536, equation 10 (unchecked).
"""

import jax
import jax.numpy as jnp

FLOOR = 1e-7


def unrelated(num_owners: int, dtype: jnp.dtype) -> jax.Array:
  """I / m, with which every owner is alone, `[m, m]`."""
  return jnp.eye(num_owners, dtype=dtype) / num_owners


def one(num_owners: int, dtype: jnp.dtype) -> jax.Array:
  """1 / m everywhere, with which all owners have one model, `[m, m]`."""
  return jnp.full((num_owners, num_owners), 1 / num_owners, dtype)


def of_models(models: jax.Array, floor: float = FLOOR) -> jax.Array:
  """The best relationship of models, `[m, m]`.

  Args:
    models: `[m, D]`, flat.
    floor: Of its eigenvalues, before its trace is one again.
  """
  num_owners = len(models)
  if not models.size:
    return unrelated(num_owners, models.dtype)
  vectors, values, _ = jnp.linalg.svd(models, full_matrices=False)
  values = values / jnp.maximum(values.sum(), jnp.finfo(values.dtype).tiny)
  # What W says nothing of has the floor, whatever its vectors are.
  above = jnp.maximum(values - floor, 0)
  related = jnp.matmul(
    vectors * above[None], vectors.T, precision=jax.lax.Precision.HIGHEST
  )
  related = related + floor * jnp.eye(num_owners, dtype=models.dtype)
  related = (related + related.T) / 2
  return related / jnp.trace(related)


def reach(relationship: jax.Array) -> jax.Array:
  """How far an owner's step moves all models together, at most: `[m]`.

  sum_t' |Sigma_tt'|, which is rho_t Sigma_tt: the sum over all pairs of
  a_t Sigma_tt' a_t' is at most that of rho_t Sigma_tt a_t^2, so that owners may
  step at once, each as if its own move counted rho_t times.

  Args:
    relationship: Sigma, `[..., m, m]`.
  """
  return jnp.abs(relationship).sum(-1)

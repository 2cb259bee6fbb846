"""Faults: detection and handling of results that are not finite.

In each round, metrics hold for every client whether its message and its state
are finite, by layer type (`finite`). The policy says what follows:

`stop`         Rounds continue; the caller reads the metrics and stops them.
`skip_client`  A client whose loss, update or state is not finite is excluded
               from the round: the layers that it owns and its state stay
               unchanged (`skip`).
`clip`         Gradients of local steps are clipped by their global norm and a
               gradient that is not finite makes no step (`Clipped`); other
               results that are not finite are excluded as above.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import precision
from fmtl_jax.clients import client_updates
from fmtl_jax.clients import local_optimizers
from fmtl_jax.federation import layer_types

Tree = Any

STOP = 'stop'
SKIP_CLIENT = 'skip_client'
CLIP = 'clip'
POLICIES = (STOP, SKIP_CLIENT, CLIP)
STATE = 'state'  # Beside the layer types: what a client keeps.


def check(policy: str) -> str:
  """Returns `policy`; raises a ValueError if it is not a known one."""
  if policy not in POLICIES:
    raise ValueError(
      f'Expected `policy` to be one of {", ".join(POLICIES)}, got {policy!r}.'
    )
  return policy


def is_finite(tree: Tree) -> jax.Array:
  """Whether all values of a tree are numbers, `[]` bool."""
  finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
  return jnp.array([True, *finite]).all()


def finite(
  federation: federation_lib.Federation, update: Tree, state: Tree
) -> dict[str, jax.Array]:
  """Whether a client's results are finite, `[]` bool by layer type.

  Args:
    federation: Says which layers are of which type.
    update: Of its view.
    state: What it keeps, under the name `STATE`.
  """
  types = federation.layer_types
  of_type = lambda name: layer_types.select(
    update, types, lambda label: label == name
  )
  names = sorted(set(jax.tree.leaves(types)))
  found = {name: is_finite(of_type(name)) for name in names}
  return found | {STATE: is_finite(state)}


def watched(
  federation: federation_lib.Federation,
  client_update: client_updates.ClientUpdate,
  *,
  skips: bool,
  trusts: Callable[[cohorts.Cohort], jax.Array] | None = None,
) -> client_updates.ClientUpdate:
  """A client update whose metrics hold whether its results are finite.

  The entry is `finite`.

  Args:
    federation: Says which layers are of which type.
    client_update: What clients compute.
    skips: Whether results that are not finite are replaced, see `skip`.
    trusts: `client -> bool`, clients that are not checked, beside padding,
      which computes with some client's values.
  """

  def run(context):
    client = context.data.client
    ignored = client.client >= context.data.data.num_clients
    result = client_update.run(context)
    if skips:
      kept = context.data.balancing, context.memory
      result = skip(result, context.state, *kept, is_padding=ignored)
    found = finite(federation, result.update, result.state)
    if trusts is not None:
      ignored |= trusts(client)
    found = jax.tree.map(lambda known: known | ignored, found)
    return result._replace(metrics=result.metrics | {'finite': found})

  return client_update._replace(run=run)


def skip(
  result: client_updates.ClientResult,
  state: Tree,
  balancing: Tree,
  memory: Tree = (),
  is_padding: jax.Array | bool = False,
) -> client_updates.ClientResult:
  """Replaces a client's result that is not finite by one without effect.

  Args:
    result: Of one client.
    state: What the client kept before.
    balancing: What its balancer kept before.
    memory: What wrappers of its update kept before.
    is_padding: Whether the client is padding.

  Returns:
    The result, with `skipped`, `[]` bool, among its metrics; sums of a loss
    that does not count are zero.
  """
  metrics = result.metrics
  own = {k: v for k, v in metrics.items() if k in ('loss_sum', 'balancing')}
  kept = result.state, result.memory
  all_finite = is_finite((result.update, kept, result.report, own))
  zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
  nothing = client_updates.ClientResult(
    update=zeros(result.update),
    state=state,
    metrics=metrics
    | {name: zeros(metrics[name]) for name in ('loss_sum', 'count')}
    | ({'balancing': balancing} if 'balancing' in metrics else {}),
    report=zeros(result.report),
    memory=memory,
  )
  chosen = jax.tree.map(
    lambda x, y: jnp.where(all_finite, x, y), result, nothing
  )
  return chosen._replace(
    metrics=chosen.metrics | {'skipped': ~(all_finite | is_padding)}
  )


def without(
  metrics: Mapping[str, jax.Array],
  cohort: cohorts.Cohort,
  weights: Mapping[str, jax.Array],
) -> tuple[cohorts.Cohort, dict[str, jax.Array]]:
  """Excludes skipped clients from a cohort and its weights.

  Args:
    metrics: Of the clients; with `skipped`, `[K]` bool, where clients may be
      skipped.
    cohort: K clients.
    weights: Theirs, `[K]` or `[K, S]` by layer type.
  """
  if 'skipped' not in metrics:
    return cohort, dict(weights)
  skipped = metrics['skipped']

  def mask(values):
    return jnp.where(
      skipped.reshape((-1,) + (1,) * (values.ndim - 1)), 0, values
    )

  return cohorts.excluded(cohort, skipped), jax.tree.map(mask, dict(weights))


@dataclasses.dataclass(frozen=True)
class Clipped:
  """A local optimizer preceded by global-norm clipping.

  A gradient that is not finite becomes zero: momentum and weight decay still
  act in its step.

  Attributes:
    optimizer: `learning rate -> optax transformation`.
    norm: The largest norm, over all leaves; may be traced.
  """

  optimizer: local_optimizers.OptimizerFn
  norm: jax.Array | float

  def __call__(
    self, learning_rate: jax.Array | float
  ) -> optax.GradientTransformation:
    """The transformation at a learning rate."""
    return optax.chain(_clip(self.norm), self.optimizer(learning_rate))


def unclipped(
  optimizer: local_optimizers.OptimizerFn,
) -> tuple[local_optimizers.OptimizerFn, Callable[..., Any]]:
  """An optimizer without its clipping, and a function that clips others."""
  if isinstance(optimizer, Clipped):
    norm = optimizer.norm
    return optimizer.optimizer, lambda other: Clipped(other, norm)
  return optimizer, lambda other: other


def _clip(norm: jax.Array | float) -> optax.GradientTransformation:
  """Clips gradients by their global norm; zero where that is not finite."""

  def update(grads, state, unused_params=None):
    leaves = jax.tree.leaves(precision.widen(grads))
    squares = [jnp.square(leaf).sum() for leaf in leaves]
    size = jnp.sqrt(sum(squares, jnp.float32(0)))
    factor = jnp.minimum(1.0, norm / jnp.maximum(size, 1e-30))
    clipped = jax.tree.map(
      lambda g: jnp.where(jnp.isfinite(size), g * factor.astype(g.dtype), 0),
      grads,
    )
    return clipped, state

  init: Callable[[Tree], Tree] = lambda unused_params: optax.EmptyState()
  return optax.GradientTransformation(init, update)

"""How old the updates of buffered rounds are, and how much they count.

The staleness of an update is the number of steps that the server took since the
client was sent its model. A copy that its own clients alone move, such as the
layers of a task, is as stale as the number of those steps in which it moved:
one that nobody has changed since is fresh.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax.clients import client_updates

Tree = Any
Steps = Mapping[str, jax.Array]


class OwnerSteps:
  """Counts the steps in which the copy of each owner moves; holds none.

  Steps are `[owners]` int32, by layer type. Versions are what they were when a
  client started, of the copies that it was sent: `[]` or `[S]`.
  """

  def __init__(
    self, federation: federation_lib.Federation, layer_types: Sequence[str]
  ):
    """Looks up owners.

    Args:
      federation: Network, layer types and tasks.
      layer_types: Those to count, see `Aggregation.owners_apart`.
    """
    self._num_owners = federation.num_owners
    self._index = {
      name: federation.owners[name].index or '' for name in layer_types
    }
    self._shapes = federation.index_shapes()

  def none(self) -> Steps:
    """Those before the first round."""
    return {
      name: jnp.zeros(self._num_owners[index], jnp.int32)
      for name, index in self._index.items()
    }

  def no_versions(self, count: int) -> Steps:
    """The versions of so many clients before the first round."""
    return {
      name: jnp.zeros((count, *self._shapes[index].shape), jnp.int32)
      for name, index in self._index.items()
    }

  def versions(self, steps: Steps, index: Mapping[str, jax.Array]) -> Steps:
    """The versions of the copies that an index names, see `Cohort.index`."""
    return {
      name: jnp.take(steps[name], index[owner], axis=0, mode='clip')
      for name, owner in self._index.items()
    }

  def after(
    self, steps: Steps, cohort: cohorts.Cohort, weights: Mapping[str, jax.Array]
  ) -> Steps:
    """The steps after a round in which these clients had these weights."""

    def one(name, owner):
      counts = weights[name] > 0
      owners = jnp.where(counts, cohort.index[owner], len(steps[name]))
      moved = jnp.zeros(len(steps[name]), jnp.int32)
      return steps[name] + moved.at[owners].set(1, mode='drop')

    return {name: one(name, owner) for name, owner in self._index.items()}


def discounted(
  client_update: client_updates.ClientUpdate,
  federation: federation_lib.Federation,
  params: Tree,
  age_fn: Callable[[cohorts.Cohort], tuple[jax.Array, Steps]],
  exponent: jax.Array | float,
) -> client_updates.ClientUpdate:
  """A client update whose updates count (1 + staleness)^-a.

  Running statistics, which have to stay means, move from their newest value
  towards the client's.

  Args:
    client_update: Of a client that started from an older model.
    federation: Network, layer types and tasks.
    params: The newest, `[owners, ...]`.
    age_fn: The staleness of a client's update, and that of copies which count
      their own steps, by layer type.
    exponent: a; may be traced.
  """

  def run(context):
    client = context.data.client
    result = client_update.run(context)
    newest = federation.broadcast(params, client.index)
    of_all, own = age_fn(client)

    def one(layer_type, is_statistic, update, start, newest):
      if not federation.owners[layer_type].averaged:
        return update
      age = own.get(layer_type, of_all)
      moved = update + start - newest if is_statistic else update
      factor = (1 + age.astype(jnp.float32)) ** -exponent
      factor = factor.reshape(factor.shape + (1,) * (moved.ndim - factor.ndim))
      return moved * factor.astype(moved.dtype)

    update = jax.tree.map(
      one,
      federation.layer_types,
      federation.statistics,
      result.update,
      context.view,
      newest,
    )
    return result._replace(update=update)

  return client_update._replace(run=run)

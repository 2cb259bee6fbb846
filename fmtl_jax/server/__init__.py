"""From the client messages of a cohort to the new parameters of every owner.

`weights`             how clients are weighted
`aggregators`         how updates become means: by sums, or by all at once
`robust_aggregators`  medians, trimmed means, Krum, clipping: need all updates
`relations`           graphs by which owners are drawn together
`mixing`              mixtures of copies: from distances, attention, clusters
`servers`             a server sees the aggregates of all owners
`server_optimizers`   optax for each owner, and rules of algorithms before it
"""

from fmtl_jax.server.aggregators import Aggregator
from fmtl_jax.server.robust_aggregators import ROBUST_AGGREGATORS
from fmtl_jax.server.robust_aggregators import RobustAggregator
from fmtl_jax.server.server_optimizers import per_owner
from fmtl_jax.server.server_optimizers import PLAIN
from fmtl_jax.server.server_optimizers import ServerOptimizer
from fmtl_jax.server.server_optimizers import ServerRule
from fmtl_jax.server.servers import Aggregate
from fmtl_jax.server.servers import Server

__all__ = (
  'Aggregate',
  'Aggregator',
  'PLAIN',
  'ROBUST_AGGREGATORS',
  'RobustAggregator',
  'Server',
  'ServerOptimizer',
  'ServerRule',
  'per_owner',
)

"""The clients of a round.

`sampling`       cohorts: drawing clients, keys, counts and totals
`poisson`        cohorts in which each client takes part by itself
`participation`  dropouts, stragglers and partial work; simulated time
"""

from fmtl_jax.cohorts.poisson import Cycle
from fmtl_jax.cohorts.sampling import ALL
from fmtl_jax.cohorts.sampling import balancing_key
from fmtl_jax.cohorts.sampling import check_clients_per_task
from fmtl_jax.cohorts.sampling import Cohort
from fmtl_jax.cohorts.sampling import draw
from fmtl_jax.cohorts.sampling import draw_clients
from fmtl_jax.cohorts.sampling import DRAWN
from fmtl_jax.cohorts.sampling import everyone
from fmtl_jax.cohorts.sampling import excluded
from fmtl_jax.cohorts.sampling import label_counts
from fmtl_jax.cohorts.sampling import num_steps
from fmtl_jax.cohorts.sampling import round_keys
from fmtl_jax.cohorts.sampling import sample
from fmtl_jax.cohorts.sampling import select
from fmtl_jax.cohorts.sampling import server_key
from fmtl_jax.cohorts.sampling import steps_taken
from fmtl_jax.cohorts.sampling import take
from fmtl_jax.cohorts.sampling import totals

__all__ = (
  'ALL',
  'Cohort',
  'Cycle',
  'DRAWN',
  'balancing_key',
  'check_clients_per_task',
  'draw',
  'draw_clients',
  'everyone',
  'excluded',
  'label_counts',
  'num_steps',
  'round_keys',
  'sample',
  'select',
  'server_key',
  'steps_taken',
  'take',
  'totals',
)

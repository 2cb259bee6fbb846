"""Who owns a copy of each layer, and what one client's copies are."""

from fmtl_jax.federation.checks import pretrained_values
from fmtl_jax.federation.definition import Federation
from fmtl_jax.federation.definition import PER_OWNER
from fmtl_jax.federation.definition import SHARED
from fmtl_jax.federation.owners import Owner
from fmtl_jax.federation.owners import owner_sum
from fmtl_jax.federation.owners import OWNERS
from fmtl_jax.federation.state import FederationState
from fmtl_jax.federation.state import num_bytes

__all__ = (
  'Federation',
  'FederationState',
  'OWNERS',
  'Owner',
  'PER_OWNER',
  'SHARED',
  'num_bytes',
  'owner_sum',
  'pretrained_values',
)

"""Who owns a copy of each layer, and what one client's copies are."""

from fmtl_jax.federation.federation import Federation
from fmtl_jax.federation.federation import FederationState
from fmtl_jax.federation.federation import num_bytes
from fmtl_jax.federation.federation import Owner
from fmtl_jax.federation.federation import owner_sum
from fmtl_jax.federation.federation import OWNERS
from fmtl_jax.federation.federation import PER_OWNER
from fmtl_jax.federation.federation import pretrained_values
from fmtl_jax.federation.federation import SHARED

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

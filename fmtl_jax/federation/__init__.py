"""The federation: owners of layers, clients' views and their objective.

`layer_types`  rules to labels; split and merge; order of use
`owners`       the table of owners, copies for slots, sums by owner
`views`        a client's view: its copies, gathered by owner
`objectives`   outputs and losses of a client's view
`mixtures`     networks side by side, and how much a client uses each
`posteriors`   networks of normal distributions, private layers beside shared
`widths`       slices of a network that is a chain of layers
`modalities`   encoders that belong to those that have a sensor
`prototypes`   points of classes, beside a network that answers embeddings
`definition`   `Federation`: network, layer types and tasks put together
`state`        the state between two rounds
`checks`       what networks and layers must be
"""

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

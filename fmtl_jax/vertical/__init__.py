"""Vertical federations: parties with other features of the same entities.

`curve`              points of identifiers, and their multiples
`alignment`          which identifiers all have, and nothing else
                     (`cryptography`, an extra)
`parties`            what parties have, and their common rows
`column_splits`      columns of a data set dealt out to parties
`algorithm`          the algorithm: encoders of parties, a head with labels
`embedding_privacy`  what noisy embeddings cost

Its algorithms are no rows of `algorithms.ALGORITHMS`, whose clients all have
the same columns; they are built, run, saved and evaluated as those are.
"""

from collections.abc import Mapping

from fmtl_jax.algorithms import specs
from fmtl_jax.federation.parties import of_parts
from fmtl_jax.federation.parties import PartyNetwork
from fmtl_jax.vertical.alignment import align
from fmtl_jax.vertical.alignment import Alignment
from fmtl_jax.vertical.alignment import hashed
from fmtl_jax.vertical.alignment import Message
from fmtl_jax.vertical.alignment import pair
from fmtl_jax.vertical.alignment import Participant
from fmtl_jax.vertical.embedding_privacy import epsilon
from fmtl_jax.vertical.parties import Aligned
from fmtl_jax.vertical.parties import aligned
from fmtl_jax.vertical.parties import Party
from fmtl_jax.vertical.algorithm import federation_of
from fmtl_jax.vertical.algorithm import network
from fmtl_jax.vertical.algorithm import SPEC
from fmtl_jax.vertical.algorithm import vertical

ALGORITHMS: Mapping[str, specs.Spec] = {SPEC.name: SPEC}

__all__ = (
  'ALGORITHMS',
  'Aligned',
  'Alignment',
  'Message',
  'Participant',
  'Party',
  'PartyNetwork',
  'align',
  'aligned',
  'epsilon',
  'federation_of',
  'hashed',
  'network',
  'of_parts',
  'pair',
  'vertical',
)
